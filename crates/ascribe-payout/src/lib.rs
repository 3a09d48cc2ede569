//! The payout job: a score file of any tool, a registry and a settled pool become a folder of payout files.
//!
//! Here lives the order of things: read terms, gather rows per response, weigh, accrue, settle, write every format, and `run.json`
//! last. What stands in the folder follows from its `inputs/` alone, so [`verify()`] makes all of it again, byte by byte. Here never
//! live policies (`shares`), money (`ledger`), bytes of score files (`store`).
//!
//! | file | what |
//! |---|---|
//! | `merkle.json` | OpenZeppelin `StandardMerkleTree` of what this run pays |
//! | `cumulative.json` | the same of what is claimable so far, earlier runs included |
//! | `uniswap.json`, `splits-v2.json`, `safe.csv` | Uniswap's distributor, 0xSplits V2, a Safe wallet |
//! | `pain001.xml` | ISO 20022, for a bank |
//! | `run.journal`, `run.beancount` | double entry for hledger and beancount |
//! | `payout.csv`, `payees.csv` | a line per payee: paid and carried; earned, share and interval |
//! | `shares.csv` | a line per response and dataset with its share and interval, while there are few enough |
//! | `report.html`, `statements/` | pages for people: the run, and each payee's earnings, responses, certainty and claim |
//! | `usage/` | a receipt a response, in a log of its own where no other is named ([`usage`]) |
//! | `inputs/` | copies of the score file, manifests, licences and the earlier run that the money follows from |
//! | `run.json` | identity, figures, digests of all of the above; written last, so a folder without it is unfinished |

pub mod approval;
pub mod book;
pub mod diff;
pub mod duplicates;
pub mod error;
pub mod evidence;
pub mod files;
pub mod gather;
pub mod outputs;
pub mod report;
pub mod revenue;
pub mod settings;
mod sink;
pub mod spill;
pub mod terms;
pub mod usage;
pub mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_ledger::{
    BatchRules, BatchStatement, Money, Payee, PayoutTree, Period, Run, RunPolicy, SubUnits, UnattributedReason,
    settle_batch,
};
use ascribe_store::score_rows::ScoreRows;
use serde::{Deserialize, Serialize};

use gather::Gathered;
use revenue::{Funded, Funding};
use settings::PaySettings;
use terms::PayTerms;
use usage::{UsageDone, UsageFacts, UsageJob};

pub use ascribe_ledger::BatchRow;
pub use diff::{PayDiff, diff};
pub use error::PayError;
pub use verify::{VerifyPayReport, verify, verify_with};

/// Name of the record of a run.
pub const RUN_JSON: &str = "run.json";
/// Version of `run.json`.
pub const PAYRUN_FORMAT_VERSION: u32 = 1;
/// Score files up to this are copied into the run folder.
pub const INPUT_COPY_MAX_BYTES: u64 = 256 << 20;

/// What a payout job is given.
#[derive(Debug, Clone)]
pub struct PayJob {
    /// Score file.
    pub scores: PathBuf,
    /// Registry folder.
    pub registry: PathBuf,
    /// Settled revenue; may be left out where the score file says it response by response ([`revenue`]).
    pub pool: Option<Money>,
    /// What is paid.
    pub period: Period,
    /// Method of the score file, where it holds several.
    pub method: Option<String>,
    /// Report of duplicates (`ascribe registry duplicates --format json`).
    pub duplicates: Option<PathBuf>,
    /// Folder of the run before this one.
    pub previous: Option<PathBuf>,
    /// How.
    pub settings: PaySettings,
}

/// Everything that a run decided.
#[derive(Debug, Clone)]
pub struct Computed {
    /// Identity.
    pub run: Run,
    /// Hash of the identity.
    pub run_id: Digest,
    /// The books.
    pub statement: BatchStatement,
    /// How.
    pub settings: PaySettings,
    /// Claimable before this run.
    pub earlier: Option<PayoutTree>,
    /// What was read.
    pub gathered: Gathered,
    /// Settled revenue beyond the pool's whole minor units.
    pub pool_rest: SubUnits,
    /// Owner names by ordinal.
    pub owners: Vec<String>,
    /// Dataset names and the ordinals of their owners, by ordinal.
    pub datasets: Vec<(String, u32)>,
    /// Files of the registry that decide who is paid, relative to its folder.
    pub registry_files: Vec<String>,
}

/// Where each sub-unit went, as decimal text in the pool's currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayTotals {
    /// The pool and the dust of the run before.
    pub funded: String,
    /// In whole minor units, to payees.
    pub paid: String,
    /// Carried in from the run before.
    pub carried_in: String,
    /// Stays on payees' accounts.
    pub carried: String,
    /// Not attributed, by reason.
    pub unattributed: BTreeMap<String, String>,
    /// Left over by floors; joins the next pool. In sub-units, so that it is read back exactly.
    pub dust_subunits: String,
    /// Claimed by no response.
    pub unspent: String,
    /// True when the sums close to the last sub-unit.
    pub conserved: bool,
}

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayRunRecord {
    /// Version of this file.
    pub format_version: u32,
    /// `SHA-256(JCS(run))`.
    pub run_id: Digest,
    /// Input digests, policy, code version, period.
    pub run: Run,
    /// Sub-units of settled revenue beyond the pool's whole minor units, where the score file says revenue by response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_rest_subunits: Option<SubUnits>,
    /// Method whose rows were read, where the file names methods.
    pub method: Option<String>,
    /// Name of the score file within `inputs/`, or of the file that was too large to copy.
    pub scores_file: String,
    /// True when `inputs/` holds the score file.
    pub scores_copied: bool,
    /// Rows read.
    pub rows: u64,
    /// Responses.
    pub responses: u64,
    /// Responses that were paid for.
    pub paid_responses: u64,
    /// Responses whose scores cancelled to rounding.
    pub cancelled_responses: u64,
    /// Datasets that the registry does not know: the first few names and how many.
    pub unregistered: Vec<String>,
    /// How many.
    pub unregistered_count: u64,
    /// Datasets that may not be paid, with the reason.
    pub blocked: BTreeMap<String, String>,
    /// Payees with a balance.
    pub payees: u64,
    /// Payees paid now.
    pub paid_payees: u64,
    /// Where the money went.
    pub totals: PayTotals,
    /// SHA-256 of every other file of the folder, `inputs/` included.
    pub files: BTreeMap<String, Digest>,
    /// Files that this run has not, and why.
    pub skipped: BTreeMap<String, String>,
    /// Its receipts, which stand in a usage log; runs of before had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageFacts>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// What a run tells its caller.
#[derive(Debug, Clone, Serialize)]
pub struct PaySummary {
    /// The record.
    #[serde(flatten)]
    pub record: PayRunRecord,
    /// True when the folder held this very run already and nothing was done.
    pub already_done: bool,
    /// What became of the receipts; `None` where they stood already.
    pub usage_log: Option<UsageDone>,
}

impl PayRunRecord {
    /// Reads the record of a run folder.
    ///
    /// # Errors
    /// A missing or malformed file, another version, an id that is not that of the run.
    pub fn read(dir: &Path) -> Result<Self, PayError> {
        let path = dir.join(RUN_JSON);
        let record: Self = serde_json::from_slice(&files::read(&path)?).map_err(|error| PayError::Content {
            path: path.clone(),
            expected: "the record of a payout run".into(),
            found: error.to_string(),
        })?;
        let content = |expected: String, found: String| PayError::Content { path: path.clone(), expected, found };
        if record.format_version != PAYRUN_FORMAT_VERSION {
            let expected = format!("format version {PAYRUN_FORMAT_VERSION}");
            return Err(content(expected, record.format_version.to_string()));
        }
        let run_id = record.run.run_id()?;
        if run_id != record.run_id {
            return Err(content(format!("run id {run_id}"), record.run_id.to_string()));
        }
        Ok(record)
    }

    /// Sub-units of dust that the next run's pool begins with.
    ///
    /// # Errors
    /// A text that is no integer.
    pub fn dust(&self, dir: &Path) -> Result<SubUnits, PayError> {
        self.totals.dust_subunits.parse().map(SubUnits).map_err(|_| PayError::Content {
            path: dir.join(RUN_JSON),
            expected: "totals.dust_subunits: an integer".into(),
            found: self.totals.dust_subunits.clone(),
        })
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// A value that does not serialise, which would be a defect.
    pub fn to_json(&self) -> Result<Vec<u8>, PayError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// The run before this one, as far as money follows from it.
#[derive(Debug, Clone, Default)]
pub struct Previous {
    /// Digest of its record.
    pub digest: Option<Digest>,
    /// Balances that it carried.
    pub carried: BTreeMap<Payee, SubUnits>,
    /// Its dust.
    pub dust: SubUnits,
    /// Claimable after it.
    pub tree: Option<PayoutTree>,
    /// Its period.
    pub period: Option<Period>,
}

impl Previous {
    /// Reads `run.json`, `payout.csv` and `cumulative.json` of a run folder and checks their digests.
    ///
    /// # Errors
    /// Missing, changed or malformed files.
    pub fn read(dir: &Path) -> Result<Self, PayError> {
        let record = PayRunRecord::read(dir)?;
        let read = |name: &str| -> Result<Option<Vec<u8>>, PayError> {
            let Some(expected) = record.files.get(name) else { return Ok(None) };
            let bytes = files::read(&dir.join(name))?;
            let found = Digest::of(&bytes);
            if found != *expected {
                let hint = "the earlier run was changed; verify it first";
                return Err(PayError::Digest { path: dir.join(name), expected: *expected, found, hint });
            }
            Ok(Some(bytes))
        };
        let mut carried = BTreeMap::new();
        if let Some(bytes) = read(outputs::PAYOUT_CSV)? {
            let text = String::from_utf8_lossy(&bytes);
            for row in ascribe_ledger::read_payout_csv(&text)?.1.into_iter().filter(|row| row.carried.0 > 0) {
                carried.insert(Payee { owner: row.owner, account: row.account }, row.carried);
            }
        }
        let tree = read(outputs::CUMULATIVE)?.map(|bytes| PayoutTree::from_json(&bytes)).transpose()?;
        let digest = Some(files::digest(&dir.join(RUN_JSON))?);
        let dust = record.dust(dir)?;
        Ok(Self { digest, carried, dust, tree, period: Some(record.run.period) })
    }
}

/// Computes a run without writing anything.
///
/// Deterministic: the same score rows in any order, chunks or container of the same bytes' digest, on any number of threads, give
/// the same money. Cost: two passes over the rows, `O(n log n)`; memory for some eight million rows, the rest goes to a
/// temporary folder within `scratch`.
///
/// # Errors
/// Score files, registries, settings and earlier runs that cannot be used.
pub fn compute(job: &PayJob, scratch: &Path, progress: &dyn Progress) -> Result<Computed, PayError> {
    job.settings.check()?;
    progress.start("terms", 0, "");
    let terms = PayTerms::read(&job.registry, &job.settings, &job.period, job.duplicates.as_deref())?;
    let previous = job.previous.as_deref().map(Previous::read).transpose()?.unwrap_or_default();
    if let Some(before) = previous.period.as_ref().filter(|before| before.end() >= job.period.start()) {
        let setting = "--period";
        let expected = format!("a period after the earlier run's last day, {}", before.end());
        return Err(PayError::Setting { setting, expected, found: job.period.to_string() });
    }
    let inputs = input_digests(job, &terms, &previous)?;
    progress.finish(&format!("{} datasets, {} payees", terms.datasets.len(), terms.batch.payees().len()));
    let book = book::read(&job.scores)?;
    let mut settings = job.settings.clone();
    if let Some(book) = book.as_ref().filter(|_| settings.coverage_ppm == 1_000_000) {
        settings.coverage_ppm = book.coverage_ppm;
    }
    let funding = Funding { pool: job.pool, dust: previous.dust };
    let (mut accruals, gathered, funded) = match &book {
        Some(book) => {
            let pool = funding.named()?;
            let (accruals, gathered) = book::gather(book, &terms, &settings, pool.sub_units()?.plus(previous.dust)?.0)?;
            (accruals, gathered, Funded { pool, rest: SubUnits::ZERO })
        }
        None => {
            let rows = ScoreRows::open(&job.scores, job.method.as_deref())?;
            gather::gather(&rows, &terms, &settings, &funding, scratch, progress)?
        }
    };
    let policy = RunPolicy {
        shares: serde_json::to_string(&(&settings, &job.method))?,
        pool: funded.pool,
        coverage_ppm: settings.coverage_ppm,
        minimum_minor: settings.minimum_minor.into(),
    };
    let run = Run { inputs, policy, version: env!("CARGO_PKG_VERSION").into(), period: job.period.clone() };
    run.check()?;
    let run_id = run.run_id()?;
    keep_revenue_shares(&terms, &mut accruals)?;
    let rules = BatchRules {
        pool: funded.pool,
        dust_in: previous.dust.plus(funded.rest)?,
        minimum_minor: settings.minimum_minor.into(),
        cap_ppm: settings.cap_ppm,
        carried_in: previous.carried,
    };
    let owners = terms.batch.owners().to_vec();
    let statement = settle_batch(&terms.batch, accruals, &rules)?;
    let gathered = Gathered { blocked: terms.blocked_names(), ..gathered };
    let datasets = terms.datasets.iter().cloned().zip(terms.batch.owner_of_dataset().iter().copied()).collect();
    let (earlier, registry_files) = (previous.tree, terms.files);
    let pool_rest = funded.rest;
    Ok(Computed { run, run_id, statement, settings, earlier, gathered, pool_rest, owners, datasets, registry_files })
}

/// Digests of everything that the money follows from.
fn input_digests(job: &PayJob, terms: &PayTerms, previous: &Previous) -> Result<BTreeMap<String, Digest>, PayError> {
    let mut inputs =
        BTreeMap::from([("registry".to_owned(), terms.digest), ("scores".to_owned(), files::digest(&job.scores)?)]);
    inputs.extend(previous.digest.map(|digest| ("previous".to_owned(), digest)));
    inputs.extend(terms.revocations.map(|digest| ("revocations".to_owned(), digest)));
    if let Some(path) = &job.duplicates {
        inputs.insert("duplicates".to_owned(), files::digest(path)?);
    }
    Ok(inputs)
}

/// Leaves what a licence's terms do not give to the licensor on the unattributed account.
fn keep_revenue_shares(terms: &PayTerms, accruals: &mut ascribe_ledger::Accruals) -> Result<(), PayError> {
    for (earned, ppm) in accruals.earned.iter_mut().zip(&terms.revenue_share) {
        let owed = ascribe_ledger::by_ppm(*earned, *ppm)?;
        if owed < *earned {
            // Sums of what was in the pool: they fit where the pool fits.
            *accruals.unattributed.entry(UnattributedReason::Cap).or_default() += *earned - owed;
            *earned = owed;
        }
    }
    Ok(())
}

/// Runs a payout job into `out`. A folder that holds this very run is left alone; one that holds another is refused.
///
/// Every file is written to the side and renamed, `run.json` last: after a crash the same command finishes the folder.
///
/// # Errors
/// As [`compute`]; a folder of another run; the disk's.
pub fn run(job: &PayJob, out: &Path, progress: &dyn Progress) -> Result<PaySummary, PayError> {
    run_with(job, &UsageJob::default(), out, progress)
}

/// The same, with receipts in a usage log of choice. They are durable before `run.json` is, so a finished run has all of them; a crash
/// between the two is finished by the same command, which finds its own receipts and appends none twice.
///
/// # Errors
/// As [`run`]; a response that another run has paid by this log, before anything is written.
pub fn run_with(job: &PayJob, usage: &UsageJob, out: &Path, progress: &dyn Progress) -> Result<PaySummary, PayError> {
    std::fs::create_dir_all(out).map_err(|e| PayError::io(out, e))?;
    let existing = if out.join(RUN_JSON).exists() { Some(PayRunRecord::read(out)?) } else { None };
    let computed = compute(job, out, progress)?;
    if let Some(mut record) = existing {
        approve(job, &computed, out)?;
        if record.run_id != computed.run_id {
            return Err(PayError::Content {
                path: out.join(RUN_JSON),
                expected: format!("run {}", computed.run_id),
                found: format!("run {}; hint: another run stands in this folder, choose a new one", record.run_id),
            });
        }
        verify::check_digests(out, &record)?;
        let mut usage_log = None;
        if !usage::stand(out) && record.usage.is_some() {
            let receipts = usage::Receipts::open(usage, &job.registry, &computed, out, record.usage.as_ref())?;
            let (facts, done) = receipts.settle(&computed, out, progress)?;
            (record.usage, usage_log) = (Some(facts), Some(done));
        }
        return Ok(PaySummary { record, already_done: true, usage_log });
    }
    let receipts = usage::Receipts::open(usage, &job.registry, &computed, out, None)?;
    approve(job, &computed, out)?;
    progress.start("payout files", 0, "");
    let copied = outputs::copy_inputs(job, &computed.registry_files, out)?;
    let mut record = outputs::write_all(&computed, &copied, Some(out))?;
    files::settle(out)?;
    let (facts, done) = receipts.settle(&computed, out, progress)?;
    record.usage = Some(facts);
    files::write(&out.join(RUN_JSON), &record.to_json()?)?;
    progress.finish(&format!("{} files, {} payees paid", record.files.len() + 1, record.paid_payees));
    Ok(PaySummary { record, already_done: false, usage_log: Some(done) })
}

/// Refuses a run that is not approved, and leaves in its folder what approvers are to look at.
fn approve(job: &PayJob, computed: &Computed, out: &Path) -> Result<(), PayError> {
    let pool = computed.run.policy.pool;
    let checked = approval::check(out, &job.settings, &pool, &computed.run_id);
    if checked.is_err() {
        let statement = &computed.statement;
        let pays = Money { minor: statement.settled().minor_floor(), currency: pool.currency }.to_string();
        let payees = statement.rows.iter().filter(|row| row.row.amount.minor > 0).count() as u64;
        approval::request(out, &approval::ApprovalRequest { run_id: computed.run_id, pool, pays, payees })?;
    }
    checked.map(drop)
}

/// The period that a run gets when none is named: that of the run already in `out`, else the current month (UTC).
///
/// # Errors
/// A record that cannot be read.
pub fn default_period(out: Option<&Path>) -> Result<Period, PayError> {
    if let Some(out) = out.filter(|out| out.join(RUN_JSON).exists()) {
        return Ok(PayRunRecord::read(out)?.run.period);
    }
    let today = time::OffsetDateTime::now_utc().date();
    let (year, month) = (today.year(), u8::from(today.month()));
    let last = today.month().length(year);
    Ok(format!("{year:04}-{month:02}-01/{year:04}-{month:02}-{last:02}").parse()?)
}
