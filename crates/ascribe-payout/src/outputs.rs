//! The files of a run, each as a function of what was computed. Written to disk, or only hashed when a run is verified.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use ascribe_core::Digest;
use ascribe_ledger::{
    BookHead, BookNames, ChainAmounts, Debtor, Dialect, LedgerError, PayoutTree, SubUnits, UniswapTree, write_books,
    write_pain001, write_payout_rows, write_safe_csv, write_splits_v2,
};
use rayon::prelude::*;

use crate::error::PayError;
use crate::evidence::{SHARE_LINES_MAX, ShareLine};
use crate::files;
use crate::report;
use crate::sink::{Draw, Sink};
use crate::{Computed, INPUT_COPY_MAX_BYTES, PAYRUN_FORMAT_VERSION, PayJob, PayRunRecord, PayTotals, RUN_JSON};

/// Plain lines of the payout.
pub const PAYOUT_CSV: &str = "payout.csv";
/// Lines with what each payee earned and how sure that is.
pub const PAYEES_CSV: &str = "payees.csv";
/// The tree of what is claimable so far.
pub const CUMULATIVE: &str = "cumulative.json";
/// First line of [`PAYEES_CSV`].
pub const PAYEES_HEADER: &str = "owner,account,currency,carried_in_subunits,accrued_subunits,paid_minor,carried_subunits,\
                                 responses,datasets,owner_share_ppm,owner_share_low_ppm,owner_share_high_ppm";

const MERKLE: &str = "merkle.json";
const UNISWAP: &str = "uniswap.json";
const SPLITS: &str = "splits-v2.json";
const SAFE: &str = "safe.csv";
const PAIN001: &str = "pain001.xml";
const HLEDGER: &str = "run.journal";
const BEANCOUNT: &str = "run.beancount";
/// A line per share.
pub const SHARES_CSV: &str = "shares.csv";
/// Copy of the report of duplicates.
pub const DUPLICATES_INPUT: &str = "inputs/duplicates.json";
/// First line of [`SHARES_CSV`].
pub const SHARES_HEADER: &str = "response,dataset,owner,share_ppm,low_ppm,high_ppm";

/// Settings of a registry.
const SETTINGS: &str = "registry.json";
const REPORT: &str = "report.html";
const CHAIN_FILES: [&str; 5] = [MERKLE, CUMULATIVE, UNISWAP, SPLITS, SAFE];

/// What stands in `inputs/`.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Digests by path within the run folder.
    pub files: BTreeMap<String, Digest>,
    /// Name of the score file.
    pub scores_file: String,
    /// Whether it was copied.
    pub scores_copied: bool,
}

/// Copies what a run follows from into `out/inputs`. `registry` are the files of the registry, relative to its folder.
///
/// # Errors
/// The disk's.
pub fn copy_inputs(job: &PayJob, registry: &[String], out: &Path) -> Result<Inputs, PayError> {
    let copy = |from: &Path, to: String| -> Result<(String, Digest), PayError> {
        let bytes = files::read(from)?;
        files::write_soon(&out.join(&to), &bytes)?;
        Ok((to, Digest::of(&bytes)))
    };
    let extension = job.scores.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_else(|| "bin".into());
    let len = std::fs::metadata(&job.scores).map_err(|e| PayError::io(&job.scores, e))?.len();
    let mut inputs = Inputs {
        scores_file: format!("scores.{extension}"),
        scores_copied: len <= INPUT_COPY_MAX_BYTES,
        ..Inputs::default()
    };
    let of_registry = |path: &String| copy(&job.registry.join(path), format!("inputs/registry/{path}"));
    inputs.files = registry.par_iter().map(of_registry).collect::<Result<_, _>>()?;
    if inputs.scores_copied {
        inputs.files.extend([copy(&job.scores, format!("inputs/{}", inputs.scores_file))?]);
    }
    if let Some(duplicates) = &job.duplicates {
        inputs.files.extend([copy(duplicates, DUPLICATES_INPUT.into())?]);
    }
    if let Some(previous) = &job.previous {
        for file in [RUN_JSON, PAYOUT_CSV, CUMULATIVE].into_iter().filter(|file| previous.join(file).exists()) {
            inputs.files.extend([copy(&previous.join(file), format!("inputs/previous/{file}"))?]);
        }
    }
    Ok(inputs)
}

/// What of a registry decides who is paid, relative to its folder: settings, log, and per dataset manifest, licence, terms,
/// revocation, and the same of its past.
pub(crate) fn registry_files(registry: &ascribe_registry::Registry, dir: &Path) -> Vec<String> {
    let mut found = vec!["licences.log".to_owned()];
    found.extend(dir.join(SETTINGS).exists().then(|| SETTINGS.to_owned()));
    for dataset in registry.datasets() {
        let mut folders = vec![dataset.name().to_owned()];
        for past in &dataset.history {
            let name = past.dir.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
            folders.push(format!("{}/history/{name}", dataset.name()));
        }
        for folder in folders {
            let files = ["manifest.json", "licence.json", "terms.txt", "revocation.json"];
            found.extend(files.map(|f| format!("{folder}/{f}")).into_iter().filter(|path| dir.join(path).exists()));
        }
    }
    found
}

/// Makes every file of the run, in `out` or, without one, only their digests; returns the record, which is not written.
///
/// # Errors
/// The ledger's and the disk's.
pub fn write_all(computed: &Computed, inputs: &Inputs, out: Option<&Path>) -> Result<PayRunRecord, PayError> {
    let mut sink = Sink { out, files: inputs.files.clone(), skipped: BTreeMap::new() };
    let statement = &computed.statement;
    let rows = || statement.rows.iter().map(|row| &row.row);
    let mut notes = Vec::new();
    let chain = Chain::of(computed, &mut sink, &mut notes)?;
    let names = BookNames::of(statement);
    let mut draws = book_files(computed, &names);
    let g = &computed.gathered;
    match &g.shares {
        Some(lines) => draws.push((SHARES_CSV.to_owned(), io_draw(SHARES_CSV, |to| put_shares(computed, lines, to)))),
        None => sink.skip(SHARES_CSV, &format!("more than {SHARE_LINES_MAX} shares")),
    }
    // The largest first, so that the last thread is not left alone with it.
    let mut all = chain.as_ref().map(Chain::files).unwrap_or_default();
    all.extend(draws);
    sink.put_all(all)?;
    let tree = chain.map(Chain::into_cumulative);
    notes.extend(g.notes.iter().cloned());
    if !computed.run.inputs.contains_key("duplicates") {
        notes.push(
            "copies under other content roots were not looked for; pass --duplicates with the report of \
             `ascribe registry duplicates --format json`"
                .to_owned(),
        );
    }
    if g.unregistered_count > 0 {
        let of = match g.unregistered_count {
            1 => "1 dataset of the score file is not registered; its".to_owned(),
            n => format!("{n} datasets of the score file are not registered; their"),
        };
        notes.push(format!("{of} part stays unattributed"));
    }
    if computed.settings.coverage_ppm == 1_000_000 {
        notes.push("coverage was not stated and is taken as whole; measure it and pass --coverage".to_owned());
    }
    let totals = totals(computed);
    put_pages(computed, &totals, &notes, tree.as_ref(), &mut sink)?;
    Ok(PayRunRecord {
        format_version: PAYRUN_FORMAT_VERSION,
        run_id: computed.run_id,
        run: computed.run.clone(),
        pool_rest_subunits: (computed.pool_rest > SubUnits::ZERO).then_some(computed.pool_rest),
        method: g.method.clone(),
        scores_file: inputs.scores_file.clone(),
        scores_copied: inputs.scores_copied,
        rows: g.rows,
        responses: g.responses,
        paid_responses: g.paid_responses,
        cancelled_responses: g.cancelled,
        unregistered: g.unregistered.clone(),
        unregistered_count: g.unregistered_count,
        blocked: g.blocked.clone(),
        payees: statement.rows.len() as u64,
        paid_payees: rows().filter(|row| row.amount.minor > 0).count() as u64,
        totals,
        files: sink.files,
        skipped: sink.skipped,
        usage: None,
        notes,
    })
}

/// A file whose writer fails with an I/O error.
fn io_draw<'a>(name: &'static str, draw: impl Fn(&mut dyn Write) -> io::Result<()> + Sync + Send + 'a) -> Draw<'a> {
    Box::new(move |to| draw(to).map_err(|e| unwritable(name, &e)))
}

/// The files of banks and accountants.
fn book_files<'a>(computed: &'a Computed, names: &'a BookNames) -> Vec<(String, Draw<'a>)> {
    let (statement, period) = (&computed.statement, &computed.run.period);
    let rows = || statement.rows.iter().map(|row| &row.row);
    let debtor = Debtor { name: computed.settings.debtor_name.clone(), iban: computed.settings.debtor_iban.clone() };
    let currency = computed.run.policy.pool.currency;
    let book = |name: &'static str, dialect: Dialect| {
        let head = BookHead { run_id: &computed.run_id, period, currency };
        (name.to_owned(), io_draw(name, move |to| write_books(dialect, &head, statement, names, to)))
    };
    let bank: Draw<'_> = Box::new(move |to| write_pain001(&computed.run_id, period, &debtor, rows(), to));
    vec![
        (PAIN001.to_owned(), bank),
        book(BEANCOUNT, Dialect::Beancount),
        book(HLEDGER, Dialect::Hledger),
        (PAYOUT_CSV.to_owned(), io_draw(PAYOUT_CSV, move |to| write_payout_rows(&computed.run_id, rows(), to))),
        (PAYEES_CSV.to_owned(), io_draw(PAYEES_CSV, |to| put_payees(computed, to))),
    ]
}

/// What is paid on a chain.
struct Chain {
    amounts: ChainAmounts,
    tree: PayoutTree,
    /// Where an earlier run left something to claim.
    later: Option<PayoutTree>,
    uniswap: UniswapTree,
}

impl Chain {
    /// Trees of the chain that is paid on; `None`, with the reasons in `sink`, where nobody is.
    fn of(computed: &Computed, sink: &mut Sink<'_>, notes: &mut Vec<String>) -> Result<Option<Self>, PayError> {
        let settings = &computed.settings;
        let rows = || computed.statement.rows.iter().map(|row| &row.row);
        let mut chains: BTreeMap<u64, u64> = BTreeMap::new();
        for row in rows().filter(|row| row.amount.minor > 0) {
            if let Some((chain, _)) = row.account.as_ref().and_then(ascribe_ledger::Caip10::evm) {
                *chains.entry(chain).or_default() += 1;
            }
        }
        // Most payees; of equal numbers the smaller id.
        let most = chains.iter().max_by_key(|(chain, n)| (**n, std::cmp::Reverse(**chain))).map(|(chain, _)| *chain);
        let Some(chain) = settings.chain_id.or(most) else {
            CHAIN_FILES.iter().for_each(|name| sink.skip(name, "nobody is paid on an EVM chain in this run"));
            return Ok(None);
        };
        let elsewhere: u64 = chains.iter().filter(|(other, _)| **other != chain).map(|(_, n)| n).sum();
        if elsewhere > 0 {
            notes.push(format!(
                "{elsewhere} payees are on other chains than {chain}; the on-chain files leave them out"
            ));
        }
        if settings.token.is_none() {
            let note = "no token was named: on-chain files carry the zero address and cannot be claimed; pass --token";
            notes.push(note.to_owned());
        }
        let decimals = settings.token_decimals.unwrap_or(computed.run.policy.pool.currency.exponent());
        let amounts = match ChainAmounts::of_rows(rows(), chain, settings.token_address()?, decimals) {
            Err(LedgerError::EmptyTree) => {
                let why = format!("nobody is paid on chain {chain} in this run");
                CHAIN_FILES.iter().for_each(|name| sink.skip(name, &why));
                return Ok(None);
            }
            found => found?,
        };
        let (trees, uniswap) = rayon::join(
            || -> Result<(PayoutTree, Option<PayoutTree>), LedgerError> {
                let later = computed.earlier.as_ref().map(|earlier| {
                    let later = amounts.tree(Some(earlier))?;
                    earlier.check_grows_into(&later)?;
                    Ok(later)
                });
                Ok((amounts.tree(None)?, later.transpose()?))
            },
            || UniswapTree::build(&amounts),
        );
        let ((tree, later), uniswap) = (trees?, uniswap?);
        Ok(Some(Self { amounts, tree, later, uniswap }))
    }

    fn files(&self) -> Vec<(String, Draw<'_>)> {
        let cumulative = self.later.as_ref().unwrap_or(&self.tree);
        vec![
            (UNISWAP.to_owned(), io_draw(UNISWAP, |to| self.uniswap.write(to))),
            (CUMULATIVE.to_owned(), io_draw(CUMULATIVE, move |to| cumulative.write(to))),
            (MERKLE.to_owned(), io_draw(MERKLE, |to| self.tree.write(to))),
            (SAFE.to_owned(), io_draw(SAFE, |to| write_safe_csv(&self.amounts, to))),
            (SPLITS.to_owned(), Box::new(|to| write_splits_v2(&self.amounts, to))),
        ]
    }

    /// The tree of what is claimable so far.
    fn into_cumulative(self) -> PayoutTree {
        self.later.unwrap_or(self.tree)
    }
}

/// The page of the run, and a statement for each payee while they are few enough to be read.
fn put_pages(
    computed: &Computed,
    totals: &PayTotals,
    notes: &[String],
    tree: Option<&PayoutTree>,
    sink: &mut Sink<'_>,
) -> Result<(), PayError> {
    let html = report::report(computed, totals, notes)?;
    let page = |html: String| io_draw(REPORT, move |to| to.write_all(html.as_bytes()));
    let mut pages = vec![(REPORT.to_owned(), page(html))];
    let n_rows = computed.statement.rows.len();
    if n_rows > report::STATEMENTS_MAX {
        sink.skip(
            "statements/",
            &format!("{n_rows} payees; statements are written for at most {}", report::STATEMENTS_MAX),
        );
    } else {
        for number in 0..n_rows {
            let html = report::statement(computed, number, tree)?;
            pages.push((format!("statements/{number}.html"), page(html)));
        }
    }
    sink.put_all(pages)
}

fn unwritable(file: &'static str, error: &io::Error) -> LedgerError {
    LedgerError::Unwritable { file, why: error.to_string() }
}

fn totals(computed: &Computed) -> PayTotals {
    let currency = computed.run.policy.pool.currency;
    let text = |amount: SubUnits| format!("{} {currency}", amount.decimal(currency));
    let statement = &computed.statement;
    let carried_in = SubUnits(statement.rows.iter().map(|row| row.carried_in).sum());
    PayTotals {
        funded: text(statement.funded),
        paid: text(statement.settled()),
        carried_in: text(carried_in),
        carried: text(statement.carried()),
        unattributed: statement.unattributed.iter().map(|(why, n)| (format!("{why:?}"), text(SubUnits(*n)))).collect(),
        dust_subunits: statement.dust.0.to_string(),
        unspent: text(statement.unspent),
        conserved: statement.check().is_ok(),
    }
}

/// The interval of an owner's mean share over responses, in ppm: 1.96 standard errors to both sides.
pub fn share_interval(computed: &Computed, owner: usize) -> (u64, u64, u64) {
    let n = computed.gathered.responses as f64;
    let Some(tally) = computed.statement.owners.get(owner).filter(|_| n > 0.0) else {
        return (0, 0, 0);
    };
    let mean = tally.sum_ppm as f64 / n;
    let variance = (tally.sum_ppm2 as f64 / n - mean * mean).max(0.0);
    // With one response nothing is known about the spread.
    let half = if n > 1.0 { 1.96 * (variance / (n - 1.0)).sqrt() } else { 1e6 };
    (mean as u64, (mean - half).max(0.0) as u64, (mean + half).min(1e6).ceil() as u64)
}

fn put_payees(computed: &Computed, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{PAYEES_HEADER}")?;
    for found in &computed.statement.rows {
        let row = &found.row;
        let owner = computed.owners.binary_search(&row.owner).ok();
        let (mean, low, high) = owner.map_or((0, 0, 0), |owner| share_interval(computed, owner));
        writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{mean},{low},{high}",
            ascribe_ledger::payout::csv::field(&row.owner),
            row.account.as_ref().map_or("", ascribe_ledger::Caip10::as_str),
            row.amount.currency,
            found.carried_in,
            found.accrued,
            row.amount.minor,
            row.carried,
            row.responses,
            row.datasets,
        )?;
    }
    Ok(())
}

fn put_shares(computed: &Computed, lines: &[ShareLine], out: &mut dyn Write) -> io::Result<()> {
    use ascribe_ledger::payout::csv::field;
    writeln!(out, "{SHARES_HEADER}")?;
    for line in lines {
        let (dataset, owner) = &computed.datasets[line.dataset as usize];
        let owner = &computed.owners[*owner as usize];
        let ends = line.interval.map_or_else(|| ",".to_owned(), |(low, high)| format!("{low},{high}"));
        writeln!(out, "{},{},{},{},{ends}", field(&line.response), field(dataset), field(owner), line.share_ppm)?;
    }
    Ok(())
}
