//! What stands beside a run in other people's logs: a receipt that the run's own record is an entry, and the usage receipts that the
//! pool was settled by. An audit needs the run folder and public keys for it, nothing else.
//!
//! ```text
//! RUN/evidence/record.tlog-proof   receipt (C2SP tlog-proof) of the record's SHA-256: run.json of a payout, run.toml of a walk
//! RUN/evidence/usage/              a usage log (`ascribe log usage`), or a copy of it; without one, the run's own, RUN/usage/
//! ```

use std::path::Path;

use ascribe_core::Progress;
use ascribe_registry::{UsageAudit, verify_usage_log};
use ascribe_tlog::{NoteVerifier, Receipt, leaf_hash};
use serde::Serialize;

use crate::error::EngineError;
use crate::files;

/// Folder of evidence within a run folder. Its files come after the run, so no run record lists them.
pub const EVIDENCE_DIR: &str = "evidence";
/// Receipt of the record.
pub const RECORD_PROOF: &str = "record.tlog-proof";
const USAGE_DIR: &str = "usage";

/// Public keys that an auditor brings.
#[derive(Clone, Debug, Default)]
pub struct EvidenceKeys {
    /// Of the log that the run's record stands in.
    pub log: Option<NoteVerifier>,
    /// Of the usage log; its receipts are signed with the same key.
    pub usage: Option<NoteVerifier>,
    /// Of witnesses whose cosignatures count.
    pub witnesses: Vec<NoteVerifier>,
}

/// Where the record stands in a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Logged {
    /// The log.
    pub origin: String,
    /// Place of the record, from 0.
    pub index: u64,
    /// Entries of the log when the receipt was issued.
    pub size: u64,
    /// Witnesses who saw that checkpoint, with the moment that each of them states.
    pub witnesses: Vec<(String, u64)>,
}

/// What the logs say about a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The record's place in a log, if there is a receipt and a key to check it with.
    pub record: Option<Logged>,
    /// The usage log, likewise.
    pub usage: Option<UsageAudit>,
    /// Evidence that is there and was not checked, because no key for it was given.
    pub unchecked: Vec<String>,
}

/// Checks the evidence beside the run whose record is `dir/record`. `pool` is the settled revenue that the run paid out, as currency and
/// minor units: the usage log must have settled as much in that currency.
///
/// # Errors
/// A receipt of another record, a log that another key signed, a broken usage log, revenue that is not the pool.
pub fn check(
    dir: &Path,
    record: &str,
    pool: Option<(&str, u128)>,
    keys: &EvidenceKeys,
    progress: &dyn Progress,
) -> Result<Evidence, EngineError> {
    let mut found = Evidence::default();
    let folder = dir.join(EVIDENCE_DIR);
    let proof = folder.join(RECORD_PROOF);
    match (proof.exists(), &keys.log) {
        (true, Some(log)) => {
            let refuse = |error: ascribe_tlog::TlogError| EngineError::Content {
                path: proof.clone(),
                expected: format!("a receipt of {record} from the log of {}", log.name()),
                found: error.to_string(),
            };
            let receipt = Receipt::parse(&files::read(&proof)?).map_err(refuse)?;
            let leaf = leaf_hash(&files::digest(&dir.join(record))?.0);
            let checkpoint = receipt.verify(leaf, log, &keys.witnesses).map_err(refuse)?;
            let seen = checkpoint.signatures.iter().filter_map(|s| s.unix_s.map(|moment| (s.name.clone(), moment)));
            found.record = Some(Logged {
                origin: log.name().to_owned(),
                index: receipt.index,
                size: checkpoint.head().size,
                witnesses: seen.collect(),
            });
        }
        (true, None) => found.unchecked.push(format!("{EVIDENCE_DIR}/{RECORD_PROOF}")),
        // Whoever brings a key expects the log to know the run.
        (false, Some(log)) => {
            let expected = format!("a receipt of {record} from the log of {}", log.name());
            let hint = "none; hint: ascribe log append LOG --key KEY RECORD, then ascribe log prove LOG N --out THIS";
            return Err(EngineError::Content { path: proof, expected, found: hint.into() });
        }
        (false, None) => {}
    }
    // A log that was put there wins over the run's own.
    let usage = [folder.join(USAGE_DIR), dir.join(USAGE_DIR)].into_iter().find(|dir| dir.is_dir());
    let usage = usage.unwrap_or_else(|| folder.join(USAGE_DIR));
    match (usage.is_dir(), &keys.usage) {
        (true, Some(key)) => found.usage = Some(check_usage(&usage, key, pool, progress)?),
        (true, None) => found.unchecked.push(format!("{EVIDENCE_DIR}/{USAGE_DIR}")),
        (false, Some(_)) => {
            let (expected, hint) =
                ("a usage log".to_owned(), "none; hint: copy the folder of `ascribe log usage` there");
            return Err(EngineError::Content { path: usage, expected, found: hint.into() });
        }
        (false, None) => {}
    }
    Ok(found)
}

fn check_usage(
    dir: &Path,
    key: &NoteVerifier,
    pool: Option<(&str, u128)>,
    progress: &dyn Progress,
) -> Result<UsageAudit, EngineError> {
    let found = verify_usage_log(dir, key, &[], progress)?;
    if let Some((currency, minor)) = pool {
        let settled = found.revenue.iter().find(|(code, _)| code == currency).map_or("0", |(_, sum)| sum.as_str());
        if settled != minor.to_string() {
            return Err(EngineError::Content {
                path: dir.to_path_buf(),
                expected: format!("receipts that settle the pool of {minor} {currency} (smallest units)"),
                found: format!("{settled} {currency}"),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_core::{Digest, NoProgress};
    use ascribe_tlog::{Ed25519Key, LogWriter, NoteSigner, SignatureKind, TileTree};

    fn signer(name: &str, seed: u8) -> NoteSigner {
        NoteSigner::new(name, SignatureKind::Note, Ed25519Key::from_seed(&[seed; 32])).unwrap()
    }

    /// A log of three entries with the record in the middle, and its receipt in the run folder.
    fn logged(dir: &Path) -> EvidenceKeys {
        std::fs::write(dir.join("run.json"), "{}").unwrap();
        let log = dir.join("log");
        let mut writer = LogWriter::create(&log, signer("example.org/runs", 1)).unwrap();
        let entries = [b"a".as_slice(), b"{}", b"c"].map(|bytes| Digest::of(bytes).0);
        let appended = writer.append(entries, &NoProgress).unwrap();
        let tree = TileTree::new(&log, appended.checkpoint.head());
        let receipt = Receipt::issue(&tree, &appended.checkpoint, 1).unwrap();
        std::fs::create_dir_all(dir.join(EVIDENCE_DIR)).unwrap();
        std::fs::write(dir.join(EVIDENCE_DIR).join(RECORD_PROOF), receipt.to_text()).unwrap();
        EvidenceKeys { log: Some(signer("example.org/runs", 1).verifier().clone()), ..EvidenceKeys::default() }
    }

    #[test]
    fn a_record_in_a_log_is_found_and_a_changed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let keys = logged(dir.path());
        let check = |keys: &EvidenceKeys| check(dir.path(), "run.json", None, keys, &NoProgress);
        let found = check(&keys).unwrap().record.unwrap();
        assert_eq!((found.index, found.size, found.origin.as_str()), (1, 3, "example.org/runs"));
        let without = check(&EvidenceKeys::default()).unwrap();
        assert_eq!((without.record, without.unchecked), (None, vec!["evidence/record.tlog-proof".to_owned()]));
        let other =
            EvidenceKeys { log: Some(signer("example.org/runs", 2).verifier().clone()), ..EvidenceKeys::default() };
        assert!(check(&other).unwrap_err().to_string().contains("a receipt of run.json from the log"));
        std::fs::write(dir.path().join("run.json"), "{ }").unwrap();
        assert!(check(&keys).unwrap_err().to_string().contains("a receipt of run.json from the log"));
        std::fs::remove_dir_all(dir.path().join(EVIDENCE_DIR)).unwrap();
        assert!(check(&keys).unwrap_err().to_string().contains("hint: ascribe log append"));
        assert_eq!(check(&EvidenceKeys::default()).unwrap(), Evidence::default());
    }
}
