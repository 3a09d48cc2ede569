//! `ascribe ledger accrue`: responses of an events file, or receipts of a usage log, become entries of a book.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ascribe_book::{
    Book, EntryId, Kind, NamedWeight, Outcome, PaidResponse, PayTable, Purpose, RevenueSplit, Source, parse_amount,
};
use ascribe_core::Progress;
use ascribe_ledger::{Currency, Money, SubUnits, UnattributedReason};
use ascribe_payout::PayRunRecord;
use ascribe_payout::terms::{PaidDataset, PaySource};
use ascribe_registry::{Registry, UsageReceipt, UsageShare, each_usage_receipt};
use serde::{Deserialize, Serialize};

use super::ledger::{moment, open};
use super::log::log_key;
use crate::args::Format;
use crate::args::ledger::AccrueArgs;
use crate::output::print;

/// Longest line of an events file, in bytes.
const LINE_MAX_BYTES: usize = 1 << 20;

/// One line of an events file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventLine {
    id: String,
    at: String,
    revenue: String,
    shares: Vec<NamedWeight>,
    #[serde(default = "whole")]
    coverage_ppm: u32,
    customer: Option<String>,
}

const fn whole() -> u32 {
    1_000_000
}

#[derive(Default, Serialize)]
struct Accrued {
    responses: u64,
    posted: u64,
    already_there: u64,
    #[serde(flatten)]
    usage: Option<UsageCounts>,
}

/// Receipts of a usage log that are not booked, and why.
#[derive(Default, Serialize)]
struct UsageCounts {
    /// Nothing was settled by them.
    without_revenue: u64,
    /// Settled in something that the book keeps no accounts in, by its code.
    other_currencies: BTreeMap<String, u64>,
    /// No longer in the log.
    erased: u64,
}

/// Why each dataset may not be paid for a response at `moment`, if it may not.
fn blocked(datasets: &[PaidDataset], moment: u64) -> Vec<Option<UnattributedReason>> {
    let why = |dataset: &PaidDataset| {
        let (from, until) = dataset.valid;
        let in_force = from <= moment && (until == 0 || moment < until);
        let revoked = dataset.revoked_from.is_some_and(|from| from <= moment);
        let licensed = dataset.permits && dataset.licence_index.is_some() && in_force && !revoked;
        (!licensed).then_some(UnattributedReason::NotLicensed)
    };
    datasets.iter().map(why).collect()
}

/// Events on their way into a book.
struct Accruing<'a> {
    args: &'a AccrueArgs,
    book: Book,
    datasets: Vec<PaidDataset>,
    /// The terms in force, by currency and by who may not be paid.
    table: Option<(Currency, Vec<Option<UnattributedReason>>, PayTable)>,
    entries: Vec<ascribe_book::Entry>,
    accrued: Accrued,
}

/// What a response brought in, beside its weights.
#[derive(Clone, Copy)]
struct Paid {
    at_unix_s: u64,
    revenue: SubUnits,
    currency: Currency,
    source: Source,
    coverage_ppm: u32,
}

/// `⌊10⁶ · Σ weight / weightTotal⌋`: what its shares leave of a receipt stays unattributed.
fn coverage_ppm(receipt: &UsageReceipt) -> u32 {
    let sum: u128 = receipt.shares.iter().map(|share| share.weight).sum();
    let whole = u128::from(whole());
    // The second form where the product would pass 2¹²⁸; it is at most one part lower. A checked receipt has Σ ≤ total, total > 0.
    let ppm = sum.checked_mul(whole).map(|product| product / receipt.weight_total);
    ppm.unwrap_or_else(|| sum / (receipt.weight_total / whole + 1)).min(whole) as u32
}

impl Accruing<'_> {
    fn table(&mut self, currency: Currency, moment: u64) -> Result<&PayTable> {
        let blocked = blocked(&self.datasets, moment);
        let fits = self.table.as_ref().is_some_and(|(code, before, _)| (*code, before) == (currency, &blocked));
        if !fits {
            let terms: Vec<_> = self.datasets.iter().map(|dataset| dataset.terms.clone()).collect();
            let split = RevenueSplit { operator_ppm: self.args.operator_ppm, reserve_ppm: self.args.reserve_ppm };
            let table = self.book.pay_table(currency, &terms, &blocked, split)?;
            self.table = Some((currency, blocked, table));
        }
        match &self.table {
            Some((_, _, table)) => Ok(table),
            None => bail!("no terms"),
        }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        let mut event: EventLine = serde_json::from_str(text)?;
        let (revenue, currency) = parse_amount(&event.revenue).context("revenue")?;
        let at_unix_s = moment("at", &event.at)?;
        // Short names stand for datasets, too.
        for share in &mut event.shares {
            if let Some(found) = self.datasets.iter().find(|dataset| dataset.name == share.dataset) {
                share.dataset.clone_from(&found.uuid);
            }
        }
        let source = match &event.customer {
            None => Source::Cash,
            Some(customer) => {
                let purpose = Purpose::Prepaid { customer: customer.clone() };
                Source::Prepaid(self.book.account(currency, purpose)?)
            }
        };
        let paid = Paid { at_unix_s, revenue, currency, source, coverage_ppm: event.coverage_ppm };
        self.push(&event.id, paid, &event.shares)
    }

    /// A receipt is one response: what was settled, weights among its datasets, and as coverage the part of the whole that they are.
    fn receipt(&mut self, receipt: &UsageReceipt) -> Result<()> {
        let (id, settled) = (receipt.request_id.as_str(), &receipt.revenue);
        let counts = self.accrued.usage.get_or_insert_default();
        if settled.minor_units == 0 {
            counts.without_revenue += 1;
            return Ok(());
        }
        let Ok(currency) = Currency::of(&settled.currency) else {
            *counts.other_currencies.entry(settled.currency.clone()).or_default() += 1;
            return Ok(());
        };
        if receipt.shares_sha256.is_some() {
            bail!("shares: expected weights, found their digest; a payout run that left it is taken in with --run");
        }
        // What is booked stays as it was booked: terms that changed since must not make a rerun another entry.
        if self.book.holds(EntryId::of(Kind::Response, id))? {
            self.accrued.responses += 1;
            self.accrued.already_there += 1;
            return Ok(());
        }
        let weight = |share: &UsageShare| {
            let weight = u64::try_from(share.weight).with_context(|| format!("weight of {}", share.dataset))?;
            Ok(NamedWeight { dataset: share.dataset.clone(), weight })
        };
        let shares = receipt.shares.iter().map(weight).collect::<Result<Vec<_>>>()?;
        let revenue = Money { minor: settled.minor_units, currency }.sub_units()?;
        let at_unix_s = moment("settledOn", &receipt.settled_on)?;
        let paid = Paid { at_unix_s, revenue, currency, source: Source::Cash, coverage_ppm: coverage_ppm(receipt) };
        self.push(id, paid, &shares)
    }

    fn push(&mut self, request: &str, paid: Paid, shares: &[NamedWeight]) -> Result<()> {
        let table = self.table(paid.currency, paid.at_unix_s)?;
        let (lines, unknown_weight) = table.lines(shares)?;
        let Paid { at_unix_s, revenue, source, coverage_ppm, .. } = paid;
        let response =
            PaidResponse { request, at_unix_s, revenue, source, coverage_ppm, lines: &lines, unknown_weight };
        let entry = table.entry(&response)?;
        self.entries.push(entry);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let outcomes = self.book.post(&self.entries)?;
        self.accrued.responses += outcomes.len() as u64;
        let posted = outcomes.iter().filter(|outcome| **outcome == Outcome::Posted).count() as u64;
        self.accrued.posted += posted;
        self.accrued.already_there += outcomes.len() as u64 - posted;
        self.entries.clear();
        Ok(())
    }
}

/// Runs `ascribe ledger accrue` over an events file or a usage log.
///
/// # Errors
/// What is wrong with the events or the log; what the book refuses. Batches that were booked before stay booked.
pub fn run(args: &AccrueArgs, format: Format, progress: &dyn Progress) -> Result<()> {
    let Some(registry) = &args.registry else {
        bail!("expected --events FILE or --usage DIR with --registry DIR, or --run DIR");
    };
    let registry = Registry::open(registry)?;
    let datasets = PaySource::datasets(&registry)?;
    let (book, entries, accrued) = (open(&args.book)?, Vec::new(), Accrued::default());
    let mut accruing = Accruing { args, book, datasets, table: None, entries, accrued };
    match (&args.events, &args.usage) {
        (Some(file), None) => events(&mut accruing, file, progress)?,
        (None, Some(dir)) => usage(&mut accruing, dir, progress)?,
        _ => bail!("expected one of --events FILE and --usage DIR"),
    }
    print(format, &accruing.accrued, text)
}

fn text(a: &Accrued) -> String {
    let booked = format!("{} responses: {} booked, {} were there already", a.responses, a.posted, a.already_there);
    let Some(usage) = &a.usage else { return booked };
    let other = usage.other_currencies.iter().map(|(code, n)| format!(", {n} in {code}, which the book does not keep"));
    let other: String = other.collect();
    format!("{booked}\nnot booked: {} receipts without revenue, {} erased{other}", usage.without_revenue, usage.erased)
}

/// Every receipt of a usage log with revenue, once the whole log holds.
fn usage(accruing: &mut Accruing<'_>, dir: &Path, progress: &dyn Progress) -> Result<()> {
    // The receipts of a payout run and the run itself are the same money.
    if dir.parent().is_some_and(|run| PayRunRecord::read(run).is_ok()) {
        bail!("{}: expected a log that is no payout run's own: take the run in with --run", dir.display());
    }
    let key = log_key(&dir.join("log"), accruing.args.key.as_deref())?;
    accruing.accrued.usage = Some(UsageCounts::default());
    let batch = accruing.args.batch as usize;
    let audit = each_usage_receipt(dir, &key, progress, &mut |receipt| {
        let place = || format!("{}: receipt of {:?}", dir.display(), receipt.request_id);
        accruing.receipt(receipt).with_context(place)?;
        if accruing.entries.len() >= batch { accruing.flush().with_context(place) } else { Ok(()) }
    })?;
    accruing.accrued.usage.get_or_insert_default().erased = audit.erased;
    accruing.flush().with_context(|| dir.display().to_string())
}

fn events(accruing: &mut Accruing<'_>, events: &Path, progress: &dyn Progress) -> Result<()> {
    let reader: Box<dyn std::io::Read> = if events == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(events).with_context(|| events.display().to_string())?)
    };
    progress.start("accrue", 0, "responses");
    let mut reader = BufReader::new(reader);
    let mut text = String::new();
    for number in 1u64.. {
        text.clear();
        let limited = &mut std::io::Read::take(&mut reader, LINE_MAX_BYTES as u64 + 1);
        let len = limited.read_line(&mut text).with_context(|| events.display().to_string())?;
        if len == 0 {
            break;
        }
        let place = || format!("{}: line {number}", events.display());
        if len > LINE_MAX_BYTES {
            bail!("{}: expected at most {LINE_MAX_BYTES} bytes, found more", place());
        }
        if !text.trim().is_empty() {
            accruing.line(text.trim()).with_context(place)?;
        }
        if accruing.entries.len() >= accruing.args.batch as usize {
            accruing.flush().with_context(place)?;
        }
    }
    accruing.flush().with_context(|| events.display().to_string())?;
    progress.finish("");
    Ok(())
}
