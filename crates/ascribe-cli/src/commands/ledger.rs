//! `ascribe ledger …`: arguments to calls of the book, results to words.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ascribe_book::{
    Book, Claimed, Dispute, Outcome, OwnerStatement, PayoutRun, RunRow, SettleTerms, Settled, parse_amount, show_amount,
};
use ascribe_core::Progress;
use ascribe_ledger::{Currency, Dialect, Money, Payee, PayoutRow, SubUnits, UnattributedReason, read_payout_csv};
use ascribe_payout::{self as payout, PayRunRecord};
use ascribe_registry::parse_moment;
use serde::Serialize;
use serde_json::json;

use crate::args::Format;
use crate::args::ledger::{BookArgs, DisputeCommand, Journal, LedgerCommand, MomentArgs, PayeeArgs, SettleArgs};
use crate::commands::accrue;
use crate::commands::guide::now_unix_s;
use crate::output::{print, table};

/// Runs one of the commands.
///
/// # Errors
/// Whatever the book refuses.
pub fn run(command: &LedgerCommand, format: Format, progress: &dyn Progress) -> Result<()> {
    match command {
        LedgerCommand::Init { book } => {
            let (entries, chain) = open(book)?.head()?;
            print(format, &json!({"entries": entries, "chain": chain}), |_| format!("the book holds {entries} entries"))
        }
        LedgerCommand::Accrue(args) => match &args.run {
            Some(dir) => import(&args.book, dir, format, progress),
            None => accrue::run(args, format, progress),
        },
        LedgerCommand::TopUp { book, customer, amount, reference, moment } => {
            let (amount, currency) = parse_amount(amount).context("--amount")?;
            let mut book = open(book)?;
            let outcome = book.top_up(customer, amount, currency, reference, at(moment)?)?;
            let balance = show_amount(book.prepaid(customer, currency)?, currency);
            let done = outcome == Outcome::AlreadyThere;
            let value = json!({"customer": customer, "balance": balance, "already_done": done});
            print(format, &value, |_| format!("{customer} has {balance}"))
        }
        LedgerCommand::Settle(args) => settle(args, format),
        LedgerCommand::Balance { book } => balance(book, format),
        LedgerCommand::Dispute(command) => dispute(command, format),
        LedgerCommand::Clawback { book, payee, amount, reference, return_pending, moment } => {
            let (amount, currency) = parse_amount(amount).context("--amount")?;
            let claimed = claimed(payee, currency)?;
            let found = open(book)?.clawback(reference, &claimed, amount, *return_pending, at(moment)?)?;
            print(format, &found, |f| {
                format!("taken {} sub-units; {} are owed and set off later", f.taken_subunits, f.owed_subunits)
            })
        }
        LedgerCommand::Statement { book, owner } => print(format, &open(book)?.statement(owner)?, statement_text),
        LedgerCommand::Verify { book } => print(format, &open(book)?.verify()?, |f| {
            format!(
                "{} entries, {} transfers: every balance follows from them\nchain {}",
                f.entries, f.transfers, f.chain
            )
        }),
        LedgerCommand::Export { book, to, out } => export(book, *to, out, format),
    }
}

pub(super) fn open(book: &BookArgs) -> Result<Book> {
    Ok(Book::open(&book.ledger)?)
}

pub(super) fn moment(option: &str, text: &str) -> Result<u64> {
    match parse_moment(text) {
        Some(moment) => Ok(moment),
        None => bail!("{option}: expected RFC 3339 in whole seconds such as 2026-11-29T12:00:00Z, found {text:?}"),
    }
}

fn at(args: &MomentArgs) -> Result<u64> {
    args.at.as_deref().map_or_else(|| Ok(now_unix_s()), |text| moment("--at", text))
}

fn claimed(payee: &PayeeArgs, currency: Currency) -> Result<Claimed> {
    let account = payee.account.as_deref().map(str::parse).transpose().context("--account")?;
    Ok(Claimed { currency, owner: payee.owner.clone(), account })
}

/// A payout run's folder as the book takes it in. Verified first: it is made again from its own inputs.
fn import(book: &BookArgs, dir: &Path, format: Format, progress: &dyn Progress) -> Result<()> {
    payout::verify(dir, None, progress)?;
    let record = PayRunRecord::read(dir)?;
    let rows = |path: &Path| -> Result<Vec<PayoutRow>> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(read_payout_csv(&text)?.1)
    };
    let before = dir.join("inputs/previous");
    let (mut carried, mut dust_in) = (std::collections::BTreeMap::new(), SubUnits::ZERO);
    if before.exists() {
        dust_in = PayRunRecord::read(&before)?.dust(&before)?;
        for row in rows(&before.join(payout::outputs::PAYOUT_CSV))? {
            carried.insert(Payee { owner: row.owner, account: row.account }, row.carried);
        }
    }
    let mut run_rows = Vec::new();
    for row in rows(&dir.join(payout::outputs::PAYOUT_CSV))? {
        let payee = Payee { owner: row.owner, account: row.account };
        let had = carried.get(&payee).copied().unwrap_or_default();
        let has = row.amount.sub_units()?.plus(row.carried)?;
        let earned = has.0.checked_sub(had.0).with_context(|| format!("{}: carried more than it has", payee.owner))?;
        run_rows.push(RunRow { payee, earned: SubUnits(earned), paid_minor: row.amount.minor });
    }
    let mut unattributed = Vec::new();
    for (reason, amount) in &record.totals.unattributed {
        unattributed.push((reason_of(reason)?, parse_amount(amount)?.0));
    }
    let end = format!("{}T23:59:59Z", record.run.period.end());
    let run = PayoutRun {
        run_id: record.run_id,
        at_unix_s: moment("period", &end)?,
        pool: record.run.policy.pool,
        pool_rest: record.pool_rest_subunits.unwrap_or_default(),
        dust_in,
        rows: run_rows,
        unattributed,
        dust: record.dust(dir)?,
    };
    let found = open(book)?.import(&run)?;
    print(format, &found, |f| {
        let done = if f.already_done { " was in the book already" } else { " is in the book" };
        format!("run {}{done}: {} payees, {} payments to post or void", f.run_id, f.payees, f.payments)
    })
}

/// Reasons as `run.json` names them.
fn reason_of(word: &str) -> Result<UnattributedReason> {
    use UnattributedReason::{Cap, Coverage, Embargo, NoPayee, NoShares, NotLicensed, Unregistered};
    let all = [Cap, Coverage, Embargo, NoPayee, NoShares, NotLicensed, Unregistered];
    let found = all.into_iter().find(|reason| format!("{reason:?}") == word);
    found.with_context(|| format!("run.json: totals.unattributed: unknown reason {word:?}"))
}

fn settle(args: &SettleArgs, format: Format) -> Result<()> {
    let mut book = open(&args.book)?;
    if let Some((id, done)) = args.post.as_ref().map(|id| (id, true)).or(args.void.as_ref().map(|id| (id, false))) {
        let n = book.resolve(id, args.owner.as_deref(), done, at(&args.moment)?)?;
        let word = if done { "paid" } else { "returned" };
        return print(format, &json!({"id": id, word: n}), |_| format!("{n} payments {word}"));
    }
    let (Some(code), Some(as_of)) = (&args.currency, &args.as_of) else { bail!("expected --currency and --as-of") };
    let currency = Currency::of(code)?;
    let minimum: Option<Money> = args.minimum.as_deref().map(str::parse).transpose().context("--minimum")?;
    if let Some(other) = minimum.filter(|minimum| minimum.currency != currency) {
        bail!("--minimum: expected {currency}, found {other}");
    }
    let minimum_minor = minimum.map_or(1, |minimum| minimum.minor);
    let as_of_unix_s = moment("--as-of", as_of)?;
    let terms = SettleTerms { currency, as_of_unix_s, hold_days: args.hold_days, minimum_minor };
    print(format, &book.settle(&terms)?, settled_text)
}

fn settled_text(settled: &Settled) -> String {
    let row = |r: &ascribe_book::SettleRow| {
        vec![r.owner.clone(), r.pays.clone(), r.carried_subunits.clone(), format!("{:?}", r.status), r.account.clone()]
    };
    let rows: Vec<Vec<String>> = settled.rows.iter().map(row).collect();
    let done = if settled.already_done { " (it was done before)" } else { "" };
    let header = ["owner", "pays", "carried sub-units", "why", "account"];
    format!("settlement {}{done}: {}\n\n{}", settled.id, settled.total, table(&header, &rows))
}

#[derive(Serialize)]
struct BalanceRow {
    account: String,
    available_subunits: String,
    available: String,
    reserved_subunits: String,
}

fn balance(book: &BookArgs, format: Format) -> Result<()> {
    let mut rows = Vec::new();
    for (account, balance) in open(book)?.balances()? {
        let is_asset = account.purpose.is_asset();
        let available = balance.available(is_asset);
        let reserved = if is_asset { balance.credits_pending } else { balance.debits_pending };
        rows.push(BalanceRow {
            available: show_amount(available, Currency::of(account.currency)?),
            account: account.to_string(),
            available_subunits: available.to_string(),
            reserved_subunits: reserved.to_string(),
        });
    }
    rows.sort_by(|a, b| a.account.cmp(&b.account));
    print(format, &json!({"accounts": rows}), |_| {
        let cells = |r: &BalanceRow| vec![r.account.clone(), r.available.clone(), r.reserved_subunits.clone()];
        table(&["account", "available", "reserved sub-units"], &rows.iter().map(cells).collect::<Vec<_>>())
    })
}

fn dispute(command: &DisputeCommand, format: Format) -> Result<()> {
    let text = |d: &Dispute| {
        let state = d.outcome.as_deref().unwrap_or("open");
        let frozen = d.frozen_subunits.as_deref().unwrap_or("everything");
        format!("{}: {} over {} {} ({frozen}): {}", d.id, state, d.owner, d.account, d.reason)
    };
    match command {
        DisputeCommand::Open { book, id, payee, currency, amount, reason, moment } => {
            let currency = Currency::of(currency)?;
            let amount = amount.as_deref().map(parse_amount).transpose().context("--amount")?;
            if let Some((_, other)) = amount.filter(|(_, other)| *other != currency) {
                bail!("--amount: expected {currency}, found {other}");
            }
            let claimed = claimed(payee, currency)?;
            let amount = amount.map(|(amount, _)| amount);
            print(format, &open(book)?.open_dispute(id, &claimed, amount, reason, at(moment)?)?, text)
        }
        DisputeCommand::End { book, id, upheld, moment } => {
            print(format, &open(book)?.end_dispute(id, *upheld, at(moment)?)?, text)
        }
        DisputeCommand::List { book } => {
            let all = open(book)?.disputes()?;
            print(format, &json!({"disputes": all}), |_| {
                if all.is_empty() {
                    "no disputes".to_owned()
                } else {
                    all.iter().map(text).collect::<Vec<_>>().join("\n")
                }
            })
        }
    }
}

fn statement_text(statement: &OwnerStatement) -> String {
    let row = |l: &ascribe_book::StatementLine| {
        let dataset = l.dataset.clone().unwrap_or_default();
        vec![l.why.clone(), l.direction.to_owned(), l.transfers.to_string(), l.amount.clone(), dataset]
    };
    let rows: Vec<Vec<String>> = statement.lines.iter().map(row).collect();
    let list = |title: &str, map: &std::collections::BTreeMap<String, String>| -> String {
        map.iter().map(|(account, amount)| format!("{title} {account}: {amount}\n")).collect()
    };
    let sums = table(&["why", "direction", "transfers", "amount", "dataset"], &rows);
    let (has, owes) = (list("has on", &statement.available), list("owes on", &statement.owes));
    format!("{}\n\n{sums}\n{has}{owes}{} disputes", statement.owner, statement.disputes.len())
}

fn export(book: &BookArgs, to: Journal, out: &Path, format: Format) -> Result<()> {
    let dialect = match to {
        Journal::Hledger => Dialect::Hledger,
        Journal::Beancount => Dialect::Beancount,
    };
    let file = File::create(out).with_context(|| out.display().to_string())?;
    let mut writer = BufWriter::new(file);
    let mut book = open(book)?;
    book.export(dialect, &mut writer)?;
    writer.flush().with_context(|| out.display().to_string())?;
    let (entries, _) = book.head()?;
    print(format, &json!({"file": out, "entries": entries}), |_| format!("{entries} entries in {}", out.display()))
}
