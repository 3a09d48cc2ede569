//! A run record held against a registry: every dataset's licence as of the start of the run, and the proof of that start.
//!
//! "Signed before training" means two things: the licence's place in the log lies below the size of the checkpoint that
//! the run names, and somebody else says that this checkpoint existed before the run began (a witness's cosignature or an
//! RFC 3161 time stamp). The first alone is an order that the log's operator could have made up afterwards.

use ascribe_tlog::{NoteVerifier, SignedCheckpoint, TimeStamp, verify_time_stamp};
use serde::Serialize;

use crate::error::{RegistryError, clip};
use crate::registry::Registry;
use crate::run::RunRecord;

/// What is wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunFault {
    /// A dataset that the registry does not know, or whose licence was never registered.
    Unlicensed,
    /// The licence was registered after the run had begun.
    SignedLater,
    /// The licence was not in force when the run began.
    NotInForce,
    /// The licence was revoked with effect from before the run began.
    Revoked,
    /// The terms do not permit training.
    NotPermitted,
    /// Content, licence or place in the log is not what the run says.
    Contradicted,
    /// The licence log does not begin with the log that the run saw.
    LogRewritten,
    /// The record names no checkpoint, or one that does not hold.
    NoCheckpoint,
    /// Nobody outside vouches that the checkpoint existed before the run began.
    NoOutsideTime,
    /// Nobody signed the record.
    Unsigned,
}

impl RunFault {
    /// Whether a strict policy alone asks for it: the run may well be right, but it cannot show it.
    pub const fn is_missing_proof(self) -> bool {
        matches!(self, Self::NoCheckpoint | Self::NoOutsideTime | Self::Unsigned)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunFinding {
    /// Its kind.
    pub fault: RunFault,
    /// The dataset, if it is about one.
    pub dataset: Option<String>,
    /// In words: expected and found.
    pub message: String,
}

impl RunFinding {
    /// The record has no signature.
    pub fn unsigned() -> Self {
        let message = "nobody signed the run record (hint: ascribe run sign)".to_owned();
        Self { fault: RunFault::Unsigned, dataset: None, message }
    }
}

/// What to do about findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunPolicy {
    /// Refuse what is wrong; flag what is only unproven.
    #[default]
    Refuse,
    /// Refuse both.
    Strict,
    /// Flag everything, refuse nothing.
    Flag,
}

impl RunPolicy {
    /// True if a run with this finding does not pass.
    pub fn refuses(self, finding: &RunFinding) -> bool {
        match self {
            Self::Refuse => !finding.fault.is_missing_proof(),
            Self::Strict => true,
            Self::Flag => false,
        }
    }
}

/// Keys and certificates that the checker trusts, from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct RunTrust {
    /// Key of the licence log.
    pub log: Option<NoteVerifier>,
    /// Keys of witnesses.
    pub witnesses: Vec<NoteVerifier>,
    /// Certificates of time-stamping authorities, as PEM.
    pub authorities_pem: Vec<u8>,
}

/// How the start of a run is proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartProof {
    /// Latest time at which a known witness saw the checkpoint, Unix seconds.
    pub witnessed_unix_s: Option<u64>,
    /// The time stamp, if one holds.
    pub time_stamp: Option<TimeStamp>,
}

impl Registry {
    /// Everything that is wrong with the datasets of a run, in the order of the record.
    ///
    /// Revocation acts forward only: a run that began earlier keeps its licence.
    pub fn check_run_datasets(&self, run: &RunRecord) -> Vec<RunFinding> {
        let mut findings = Vec::new();
        if let Err(error) = self.check_run_log(run) {
            findings.push(finding(None, &error));
        }
        for used in &run.datasets {
            if let Err(error) = self.verify_use(run, used) {
                findings.push(finding(Some(&used.name), &error));
            }
        }
        findings
    }
}

/// Checks the checkpoint that a run names: signed by the log, of the size and root that the run states, and older than the
/// run by the word of somebody outside.
pub fn check_run_start(run: &RunRecord, trust: &RunTrust) -> (StartProof, Vec<RunFinding>) {
    let mut proof = StartProof::default();
    let found = |fault, message: String| vec![RunFinding { fault, dataset: None, message }];
    let Some(note) = &run.detail.start_checkpoint else {
        let message = "the run record names no checkpoint of the licence log, only its size and root".to_owned();
        return (proof, found(RunFault::NoCheckpoint, message));
    };
    let Some(log) = &trust.log else {
        let message = "the run record names a checkpoint, but no key of the licence log was given".to_owned();
        return (proof, found(RunFault::NoCheckpoint, message));
    };
    let checkpoint = match SignedCheckpoint::open(note.as_bytes(), log, &trust.witnesses) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return (proof, found(RunFault::Contradicted, format!("start checkpoint: {error}"))),
    };
    let head = checkpoint.head();
    if (head.size, head.root) != (run.licence_log.size, run.licence_log.root) {
        let message = format!(
            "start checkpoint: expected {} licences with root {}, found {} with {}",
            run.licence_log.size, run.licence_log.root, head.size, head.root
        );
        return (proof, found(RunFault::Contradicted, message));
    }
    let start = run.started_unix_s;
    let witnessed = checkpoint.signatures.iter().filter_map(|signature| signature.unix_s);
    proof.witnessed_unix_s = witnessed.filter(|seen| *seen <= start).max();
    let mut findings = Vec::new();
    if let (Some(token), false) = (&run.detail.start_time_stamp, trust.authorities_pem.is_empty()) {
        match verify_time_stamp(token, checkpoint.checkpoint.text().as_bytes(), &trust.authorities_pem) {
            Ok(stamp) if stamp.unix_s <= start => proof.time_stamp = Some(stamp),
            Ok(stamp) => findings.push(RunFinding {
                fault: RunFault::NoOutsideTime,
                dataset: None,
                message: format!("time stamp: expected one of before the start {start}, found {}", stamp.unix_s),
            }),
            Err(error) => findings.extend(found(RunFault::Contradicted, error.to_string())),
        }
    }
    if proof.witnessed_unix_s.is_none() && proof.time_stamp.is_none() && findings.is_empty() {
        let message = "no known witness or time-stamping authority vouches that the licence log's checkpoint is older \
                       than the run (hint: a log proves order, not time)";
        findings.extend(found(RunFault::NoOutsideTime, message.to_owned()));
    }
    (proof, findings)
}

fn finding(dataset: Option<&str>, error: &RegistryError) -> RunFinding {
    let fault = match error {
        RegistryError::Missing { .. } | RegistryError::NotInLog { .. } => RunFault::Unlicensed,
        RegistryError::LicenceAfterRun { .. } => RunFault::SignedLater,
        RegistryError::LicenceNotInForce { .. } => RunFault::NotInForce,
        RegistryError::LicenceRevoked { .. } => RunFault::Revoked,
        RegistryError::NotPermitted { .. } => RunFault::NotPermitted,
        RegistryError::LogRewritten { .. } => RunFault::LogRewritten,
        _ => RunFault::Contradicted,
    };
    RunFinding { fault, dataset: dataset.map(str::to_owned), message: clip(&error.to_string()) }
}
