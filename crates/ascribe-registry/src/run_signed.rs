//! Signed run records: `run.json` for people and old readers, `run.dsse.json` around the very same bytes for proof.

use std::path::{Path, PathBuf};

use ascribe_tlog::{Ed25519Key, Ed25519PublicKey};

use crate::dsse::Envelope;
use crate::error::RegistryError;
use crate::files;
use crate::run::RunRecord;

/// Name of the envelope beside a run record.
pub const RUN_ENVELOPE_FILE: &str = "run.dsse.json";

/// What a model folder says about its training.
#[derive(Clone, Debug)]
pub struct SignedRun {
    /// The record.
    pub record: RunRecord,
    /// Who signed it, if it is signed at all.
    pub signer: Option<Ed25519PublicKey>,
    /// Where the record lies.
    pub path: PathBuf,
}

impl RunRecord {
    /// Writes the record and, given a key, the signed envelope around its bytes.
    ///
    /// The envelope goes first: a record whose envelope is about other bytes is refused, so a crash in between is seen.
    ///
    /// # Errors
    /// [`RegistryError::Field`], [`RegistryError::Io`].
    pub fn write_signed(&self, path: &Path, key: Option<&Ed25519Key>) -> Result<(), RegistryError> {
        let (bytes, envelope) = (self.to_bytes(path)?, path.with_file_name(RUN_ENVELOPE_FILE));
        match key {
            Some(key) => files::write_atomic(&envelope, &files::to_json(&Envelope::sign(&bytes, key)))?,
            // An old envelope would be about an old record.
            None if envelope.exists() => {
                std::fs::remove_file(&envelope).map_err(RegistryError::io(&envelope, "removing"))?
            }
            None => {}
        }
        files::write_atomic(path, &bytes)
    }
}

/// Puts a signed envelope beside the record at `path`, around its bytes as they are.
///
/// # Errors
/// What is wrong with the record; [`RegistryError::Io`].
pub fn sign_run(path: &Path, key: &Ed25519Key) -> Result<RunRecord, RegistryError> {
    let bytes = files::read_small(path, "training-run record")?;
    let record = RunRecord::from_bytes(path, &bytes)?;
    let envelope = path.with_file_name(RUN_ENVELOPE_FILE);
    files::write_atomic(&envelope, &files::to_json(&Envelope::sign(&bytes, key)))?;
    Ok(record)
}

/// Reads a record and checks its envelope, if there is one: under `key`, or under the key that it names itself.
///
/// # Errors
/// What is wrong with record or envelope; [`RegistryError::Missing`] if `key` is given and there is no envelope.
pub fn open_run(path: &Path, key: Option<&Ed25519PublicKey>) -> Result<SignedRun, RegistryError> {
    let bytes = files::read_small(path, "training-run record")?;
    let record = RunRecord::from_bytes(path, &bytes)?;
    let envelope_path = path.with_file_name(RUN_ENVELOPE_FILE);
    if !envelope_path.exists() {
        let what = "signed envelope of the run record";
        return match key {
            Some(_) => Err(RegistryError::Missing { path: envelope_path, what }),
            None => Ok(SignedRun { record, signer: None, path: path.to_owned() }),
        };
    }
    let envelope: Envelope = files::parse_json(&envelope_path, &files::read_small(&envelope_path, "envelope")?)?;
    let key = key.copied().or_else(|| envelope.claimed_key()).ok_or_else(|| {
        RegistryError::field(&envelope_path, "keyid", "a did:key, or the operator's key from elsewhere", "neither")
    })?;
    if envelope.verify(&envelope_path, &key)? != bytes {
        let expected = "the bytes of the run record beside it";
        return Err(RegistryError::field(&envelope_path, "payload", expected, "other bytes"));
    }
    Ok(SignedRun { record, signer: Some(key), path: path.to_owned() })
}

/// Checks that the files that the record names are in its folder with the stated digests. Returns how many.
///
/// # Errors
/// [`RegistryError::Missing`], [`RegistryError::Field`].
pub fn check_subjects(record: &RunRecord, folder: &Path) -> Result<usize, RegistryError> {
    for subject in &record.subjects {
        let path = folder.join(&subject.name);
        let found = files::digest_of(&path, files::open(&path, "file that the run record names")?)?;
        if found != subject.sha256 {
            return Err(RegistryError::field(&path, "SHA-256", subject.sha256, found));
        }
    }
    Ok(record.subjects.len())
}
