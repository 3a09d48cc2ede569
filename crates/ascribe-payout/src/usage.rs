//! Receipts of a run: every response that the pool was split over leaves one in a usage log, signed by the operator.
//!
//! | where | what |
//! |---|---|
//! | `usage/` | the run's own log, where none is named: one receipt a response, nothing else |
//! | another folder (`--usage-log`) | a log of many runs: a response that another run has paid is refused, before anything is written |
//! | `evidence/usage.checkpoint` | in the second case, the log's checkpoint that covers the receipts |
//!
//! A receipt's revenue is what the response was settled to in whole minor units; over the run these are the pool. Its weights are
//! sub-units: the whole is what the response had to give, a dataset's weight what it earned by it before licence splits and caps, and the
//! rest is what stayed unattributed, and dust. Time is the last day of the period. So the receipts of a run follow from the run and the
//! operator's key, and a run that died after some of them goes on behind them.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_ledger::Money;
use ascribe_registry::{
    DEMO_USAGE_ORIGIN, PaidResponse, PaidShares, RegistryError, RunRecord, SharesDigest, UsageLog, UsageRun,
    UsageSalts, UsageShare, check_usage_run, even_minor, parse_moment, read_usage_key, request_id, salted_hash,
    usage_signer,
};
use ascribe_tlog::{Ed25519Key, NoteSigner, NoteVerifier, open_checkpoint, read_key};
use serde::{Deserialize, Serialize};

use crate::error::PayError;
use crate::files;
use crate::revenue::Revenue;
use crate::terms::PayTerms;
use crate::{Computed, PayRunRecord};

/// The run's own usage log within its folder.
pub const USAGE_DIR: &str = "usage";
/// Where another log's checkpoint stands.
pub const USAGE_CHECKPOINT: &str = "evidence/usage.checkpoint";
/// Rows beyond which receipts carry a digest of their shares: a hundred million shares would be nine gigabytes of receipts.
const LISTED_ROWS_MAX: u64 = 1 << 20;
/// Shares of one receipt beyond which it does.
const LISTED_SHARES_MAX: usize = 1_000;
/// What a receipt says where nobody said it.
const NOT_STATED: &str = "not stated";
/// Longest line of a file of outputs.
const OUTPUT_LINE_MAX_BYTES: u64 = 16 << 20;

/// How the receipts of a run are kept.
#[derive(Debug, Clone, Default)]
pub struct UsageJob {
    /// Folder of the usage log; the run's own where none is named.
    pub log: Option<PathBuf>,
    /// Secret key file of the operator; the registry's usage key where none is named ([`usage_signer`]).
    pub key: Option<PathBuf>,
    /// Record of the training run of the model that the scores explain.
    pub run_record: Option<PathBuf>,
    /// Outputs of the responses: JSONL, a line `{"query_id": …, "output": "…"}` each. Without it, the salted hash is of the id.
    pub outputs: Option<PathBuf>,
}

/// What a run's record says of its receipts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageFacts {
    /// How many there are: one a response.
    pub receipts: u64,
    /// Digest of the model; zeros where it was not stated.
    pub model_sha256: Digest,
    /// Id of its training run.
    pub model_run: String,
}

/// What was done with the receipts.
#[derive(Debug, Clone, Serialize)]
pub struct UsageDone {
    /// Folder of the log.
    pub log: PathBuf,
    /// Whose log it is.
    pub origin: String,
    /// Receipts appended now.
    pub appended: u64,
    /// Receipts that stood there already.
    pub there: u64,
    /// True when they were signed with the public demo key, which proves nothing about who signed.
    pub demo_key: bool,
}

/// Shares of a response until its receipt is made.
#[derive(Debug, Clone)]
enum Kept {
    Listed(Box<[(u32, u128)]>),
    Digest(Digest),
}

#[derive(Debug, Clone)]
struct Use {
    query: u64,
    /// Where the response has a name that is no number.
    name: Option<Box<str>>,
    shares: Kept,
}

/// What each response gave to whom, in the order of their numbers.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    list: Vec<Use>,
    /// Sub-units and whole minor units of each response, where they have revenues of their own.
    own: Option<Vec<(u128, u128)>>,
    each: u128,
    uuids: Vec<String>,
    method: Option<String>,
}

/// [`Uses`] in the making; threads have one each.
pub(crate) struct UseNotes {
    listed: bool,
    uuids: Vec<[u8; 16]>,
    list: Vec<Use>,
}

impl UseNotes {
    pub(crate) fn new(terms: &PayTerms, n_rows: u64) -> Self {
        let bytes = |uuid: &String| {
            let digits: String = uuid.trim_start_matches("urn:uuid:").chars().filter(|c| *c != '-').collect();
            u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes()
        };
        let uuids = terms.uuids.iter().map(bytes).collect();
        Self { listed: n_rows <= LISTED_ROWS_MAX, uuids, list: Vec::new() }
    }

    /// Takes note of what each dataset earned by a response.
    pub(crate) fn response(&mut self, query: u64, parts: &[(u32, u128)]) {
        let paid = parts.iter().copied().filter(|(_, amount)| *amount > 0);
        let shares = if self.listed && parts.len() <= LISTED_SHARES_MAX {
            Kept::Listed(paid.collect())
        } else {
            let mut digest = SharesDigest::default();
            paid.for_each(|(dataset, amount)| digest.push(self.uuids[dataset as usize], amount));
            Kept::Digest(digest.finish())
        };
        self.list.push(Use { query, name: None, shares });
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.list.extend(other.list);
    }

    /// `name` gives the texts of responses that are no numbers; `method` says how the shares came about.
    pub(crate) fn finish(
        self,
        terms: &PayTerms,
        name: &dyn Fn(u64) -> Option<String>,
        revenue: &Revenue,
        method: Option<String>,
    ) -> Uses {
        self.named(terms.uuids.clone(), name, revenue, method)
    }

    fn named(
        mut self,
        uuids: Vec<String>,
        name: &dyn Fn(u64) -> Option<String>,
        revenue: &Revenue,
        method: Option<String>,
    ) -> Uses {
        self.list.sort_unstable_by_key(|one| one.query);
        let (mut own, mut each, mut sum) = (None, 0, 0u128);
        match revenue {
            Revenue::Even(amount) => each = *amount,
            Revenue::Own(_) => own = Some(Vec::with_capacity(self.list.len())),
        }
        for one in &mut self.list {
            one.name = name(one.query).map(String::into_boxed_str);
            if let Some(own) = &mut own {
                // Whole minor units of the sum so far: what a response adds to them is its revenue. The sum was checked when it was read.
                let (amount, before) = (revenue.of(one.query), sum / ascribe_ledger::SUB_UNITS_PER_MINOR);
                sum += amount;
                own.push((amount, sum / ascribe_ledger::SUB_UNITS_PER_MINOR - before));
            }
        }
        Uses { list: self.list, own, each, uuids, method }
    }
}

impl Uses {
    /// Responses.
    pub fn len(&self) -> u64 {
        self.list.len() as u64
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What the score file calls a response.
    fn name(&self, i: u64) -> String {
        let one = &self.list[i as usize];
        one.name.as_deref().map_or_else(|| one.query.to_string(), str::to_owned)
    }

    fn paid(&self, i: u64, pool: Money, salted_output: Option<Digest>) -> PaidResponse {
        let share = |(dataset, weight): &(u32, u128)| UsageShare {
            dataset: self.uuids[*dataset as usize].clone(),
            weight: *weight,
        };
        let shares = match &self.list[i as usize].shares {
            Kept::Listed(list) => PaidShares::Listed(list.iter().map(share).collect()),
            Kept::Digest(digest) => PaidShares::Digest(*digest),
        };
        let even = (self.each, even_minor(pool.minor, self.len(), i));
        let (weight_total, revenue_minor) = self.own.as_ref().map_or(even, |own| own[i as usize]);
        PaidResponse { salted_output, weight_total, shares, revenue_minor }
    }
}

/// Where salted hashes of outputs come from.
struct Salting<'a> {
    salts: UsageSalts,
    /// By request id, where outputs were given.
    outputs: Option<&'a HashMap<String, Digest>>,
}

/// Does something with a run as its receipts see it; without `salting` they lack their outputs.
fn with_run<T>(
    computed: &Computed,
    facts: &UsageFacts,
    salting: Option<&Salting<'_>>,
    work: impl FnOnce(&UsageRun<'_>) -> T,
) -> T {
    let (uses, pool) = (&computed.gathered.uses, computed.run.policy.pool);
    let id = |i: u64| request_id(&uses.name(i));
    let salted = |i: u64, salting: &Salting<'_>| match salting.outputs {
        Some(outputs) => outputs.get(&id(i)).copied().unwrap_or_default(),
        None => salted_hash(&salting.salts.salt(&id(i)), uses.name(i).as_bytes()),
    };
    let response = |i: u64| uses.paid(i, pool, salting.map(|salting| salted(i, salting)));
    let method = uses.method.as_ref().or(computed.gathered.method.as_ref());
    work(&UsageRun {
        model_sha256: facts.model_sha256,
        run_id: facts.model_run.clone(),
        method: method.map_or_else(|| NOT_STATED.to_owned(), |method| request_id(method)),
        // The id covers score file, registry, policy, version and period: a receipt of another payout is another receipt.
        spec_sha256: computed.run_id,
        attribution_sha256: computed.run.inputs.get("scores").copied(),
        currency: pool.currency.to_string(),
        settled_unix_s: parse_moment(&format!("{}T00:00:00Z", computed.run.period.end())).unwrap_or(0),
        n_responses: uses.len(),
        id: &id,
        response: &response,
    })
}

/// The receipts of a run on their way into a log, which nobody else can write to meanwhile.
pub(crate) struct Receipts {
    dir: PathBuf,
    /// Another log than the run's own.
    shared: bool,
    signer: NoteSigner,
    log: Option<UsageLog>,
    outputs: Option<HashMap<String, Digest>>,
    facts: UsageFacts,
}

impl Receipts {
    /// Opens the log, if there is one already, and refuses what was paid before. Writes nothing but, at the first payout over a registry
    /// with secrets, its usage key.
    pub(crate) fn open(
        job: &UsageJob,
        registry: &Path,
        computed: &Computed,
        out: &Path,
        recorded: Option<&UsageFacts>,
    ) -> Result<Self, PayError> {
        let own = out.join(USAGE_DIR);
        let dir = job.log.clone().unwrap_or_else(|| own.clone());
        let read_signer = || match &job.key {
            Some(key) => read_usage_key(key),
            None => usage_signer(registry),
        };
        let signer = read_signer()?;
        let facts = recorded.map_or_else(|| facts(job, computed), |facts| Ok(facts.clone()))?;
        let uses = &computed.gathered.uses;
        let outputs = job.outputs.as_deref().map(|path| read_outputs(path, signer.key(), uses)).transpose()?;
        let stands = dir.join("log").join(ascribe_tlog::CHECKPOINT_FILE).exists();
        let log = if stands { Some(UsageLog::open(&dir, read_signer()?)?) } else { None };
        let receipts = Self { shared: dir != own, dir, signer, log, outputs, facts };
        if let Some(log) = &receipts.log {
            receipts.with(computed, |run| log.check_replay(run))?;
        }
        Ok(receipts)
    }

    fn with<T>(&self, computed: &Computed, work: impl FnOnce(&UsageRun<'_>) -> T) -> T {
        let salting = Salting { salts: UsageSalts::of(self.signer.key()), outputs: self.outputs.as_ref() };
        with_run(computed, &self.facts, Some(&salting), work)
    }

    /// Appends what is not there yet; returns what the run's record says of it.
    pub(crate) fn settle(
        mut self,
        computed: &Computed,
        out: &Path,
        progress: &dyn Progress,
    ) -> Result<(UsageFacts, UsageDone), PayError> {
        let origin = self.signer.verifier().name().to_owned();
        let mut done =
            UsageDone { log: self.dir.clone(), demo_key: origin == DEMO_USAGE_ORIGIN, origin, appended: 0, there: 0 };
        if computed.gathered.uses.is_empty() {
            return Ok((self.facts, done));
        }
        progress.start("usage receipts", self.facts.receipts, "receipts");
        let mut log = match self.log.take() {
            Some(log) => log,
            None => {
                UsageLog::open(&self.dir, NoteSigner::parse(&self.signer.secret_line()).map_err(RegistryError::from)?)?
            }
        };
        let settled = self.with(computed, |run| log.settle(run, progress))?;
        (done.appended, done.there) = (settled.appended, settled.there);
        if self.shared {
            files::write(&out.join(USAGE_CHECKPOINT), log.checkpoint().note.as_str().as_bytes())?;
        }
        progress.finish(&format!("{} receipts in the log of {}", self.facts.receipts, done.origin));
        Ok((self.facts, done))
    }
}

/// True when a finished run has left its receipts somewhere.
pub(crate) fn stand(out: &Path) -> bool {
    out.join(USAGE_DIR).join("log").join(ascribe_tlog::CHECKPOINT_FILE).exists() || out.join(USAGE_CHECKPOINT).exists()
}

fn facts(job: &UsageJob, computed: &Computed) -> Result<UsageFacts, PayError> {
    let receipts = computed.gathered.uses.len();
    let Some(path) = &job.run_record else {
        return Ok(UsageFacts { receipts, model_sha256: Digest::default(), model_run: NOT_STATED.to_owned() });
    };
    let record = RunRecord::read(path)?;
    let weights = record.subjects.iter().find(|subject| subject.name == "model.safetensors");
    let model = record.detail.output_model_sha256;
    let model = model.or_else(|| weights.or(record.subjects.first()).map(|subject| subject.sha256));
    Ok(UsageFacts { receipts, model_sha256: model.unwrap_or_default(), model_run: request_id(&record.invocation_id) })
}

/// One line of a file of outputs.
#[derive(Deserialize)]
struct OutputLine {
    query_id: serde_json::Value,
    output: String,
}

/// Salted hashes of outputs by request id. Memory: a hash a response, whatever the length of the outputs.
fn read_outputs(path: &Path, key: &Ed25519Key, uses: &Uses) -> Result<HashMap<String, Digest>, PayError> {
    let content = |expected: &str, found: String| PayError::Content {
        path: path.to_path_buf(),
        expected: expected.to_owned(),
        found,
    };
    let (salts, form) = (UsageSalts::of(key), "a line {\"query_id\": …, \"output\": \"…\"} for every response, once");
    let file = std::fs::File::open(path).map_err(|e| PayError::io(path, e))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut salted, mut line, mut number) = (HashMap::new(), Vec::new(), 0u64);
    loop {
        line.clear();
        let mut taken = std::io::Read::take(&mut reader, OUTPUT_LINE_MAX_BYTES);
        if taken.read_until(b'\n', &mut line).map_err(|e| PayError::io(path, e))? == 0 {
            break;
        }
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let read: OutputLine =
            serde_json::from_slice(&line).map_err(|error| content(form, format!("line {number}: {error}")))?;
        let name = match &read.query_id {
            serde_json::Value::String(name) => name.clone(),
            other => other.to_string(),
        };
        let id = request_id(&name);
        let hash = salted_hash(&salts.salt(&id), read.output.as_bytes());
        if salted.insert(id, hash).is_some() {
            return Err(content(form, format!("line {number}: response {name:?} again")));
        }
    }
    let missing = (0..uses.len()).map(|i| uses.name(i)).find(|name| !salted.contains_key(&request_id(name)));
    match missing {
        Some(name) => Err(content(form, format!("none for response {name:?}"))),
        None => Ok(salted),
    }
}

/// Whose receipts a verifier expects, and where.
#[derive(Debug, Clone, Default)]
pub struct UsageCheck {
    /// The log, where it is not the run's own.
    pub log: Option<PathBuf>,
    /// The operator's public key; the one in the log's folder, which proves nothing about whose it is, where none is given.
    pub key: Option<NoteVerifier>,
}

/// What was found of a run's receipts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UsageFound {
    /// Receipts that are the run's, each with a signature that holds, in the log, as the run gives it.
    pub checked: u64,
    /// Receipts that were erased; their digests stand in the log.
    pub erased: u64,
    /// Why receipts were not checked.
    pub unchecked: Option<String>,
}

/// Holds the receipts of a run against the run as it was computed again.
pub(crate) fn check(
    dir: &Path,
    record: &PayRunRecord,
    computed: &Computed,
    check: &UsageCheck,
    progress: &dyn Progress,
) -> Result<UsageFound, PayError> {
    let Some(facts) = &record.usage else {
        let unchecked = Some("the run was made before runs left receipts".to_owned());
        return Ok(UsageFound { unchecked, ..UsageFound::default() });
    };
    let own = dir.join(USAGE_DIR);
    let content = |expected: String, found: String| PayError::Content { path: own.clone(), expected, found };
    if facts.receipts != computed.gathered.uses.len() {
        return Err(content(format!("{} receipts", computed.gathered.uses.len()), facts.receipts.to_string()));
    }
    let pointer = dir.join(USAGE_CHECKPOINT);
    let log = match &check.log {
        Some(log) => log.clone(),
        None if own.exists() => own.clone(),
        None if facts.receipts == 0 => return Ok(UsageFound::default()),
        None if pointer.exists() => {
            let unchecked = Some("they stand in a log outside of the folder; hint: pass --usage-log".to_owned());
            return Ok(UsageFound { unchecked, ..UsageFound::default() });
        }
        None => return Err(content(format!("a usage log with {} receipts", facts.receipts), "none".into())),
    };
    let key = match &check.key {
        Some(key) => key.clone(),
        None => read_key(&log.join("log")).map_err(RegistryError::from)?,
    };
    let older = match pointer.exists() {
        true => vec![open_checkpoint(&pointer, &key, &[]).map_err(RegistryError::from)?],
        false => Vec::new(),
    };
    let found = with_run(computed, facts, None, |run| check_usage_run(&log, &key, &older, run, progress))?;
    if log == own && found.size != facts.receipts {
        return Err(content(format!("{} receipts, those of the run", facts.receipts), found.size.to_string()));
    }
    Ok(UsageFound { checked: found.receipts, erased: found.erased, unchecked: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(listed: bool, revenue: &Revenue) -> Uses {
        let mut notes = UseNotes { listed, uuids: vec![[1; 16], [2; 16]], list: Vec::new() };
        notes.response(9, &[(0, 5), (1, 0)]);
        let mut other = UseNotes { listed, uuids: vec![[1; 16], [2; 16]], list: Vec::new() };
        other.response(4, &[(1, 7)]);
        notes.merge(other);
        notes.named(vec!["urn:uuid:a".into(), "urn:uuid:b".into()], &|_| None, revenue, None)
    }

    #[test]
    fn long_lists_stand_as_digests() {
        let pool: Money = "0.03 USD".parse().unwrap();
        let listed = uses(true, &Revenue::Even(10));
        let share = |dataset: &str, weight| UsageShare { dataset: dataset.into(), weight };
        assert_eq!((listed.len(), listed.name(0).as_str(), listed.name(1).as_str()), (2, "4", "9"));
        let paid = listed.paid(1, pool, None);
        assert_eq!(paid.shares, PaidShares::Listed(vec![share("urn:uuid:a", 5)]));
        assert_eq!((paid.weight_total, paid.revenue_minor), (10, 2));
        let mut digest = SharesDigest::default();
        digest.push([1; 16], 5);
        assert_eq!(uses(false, &Revenue::Even(10)).paid(1, pool, None).shares, PaidShares::Digest(digest.finish()));
    }
}
