//! The record of a training run: what was trained, on which registered content, under which licences, when.
//!
//! On disk it is an in-toto Statement v1 with a SLSA provenance v1 predicate (see `run_wire`); `run_signed` puts it into a
//! signed envelope, `run_check` holds it against a registry.

use std::collections::HashSet;
use std::path::Path;

use ascribe_core::Digest;

use crate::error::RegistryError;
use crate::files;
use crate::licence::LicenceDigest;
use crate::log::LogHead;
use crate::run_wire::Statement;

/// One file that the run made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Path relative to the record, with `/`.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: Digest,
}

/// How a run used one dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetUse {
    /// Name, for people.
    pub name: String,
    /// `urn:uuid:…`.
    pub uuid: String,
    /// RFC 6962 root of the records.
    pub content_root: Digest,
    /// The licence under which it was used.
    pub licence_digest: LicenceDigest,
    /// Place of that licence in the log, from 0.
    pub log_index: u64,
    /// Records that contributed at least one token.
    pub records_used: u64,
    /// Passes over them, as a decimal (`2`, `0.5`).
    pub epochs: String,
    /// Seed of the order in which they were drawn.
    pub sampling_seed: u64,
    /// SHA-256 of whatever chose the records (a filter's code or list), if there was one.
    pub filter_sha256: Option<Digest>,
}

/// What a run record says beyond what every trainer of ours has always written. Records of before have none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunDetail {
    /// The program that trained, when it was not ours (`pytorch 2.9`).
    pub trainer: Option<String>,
    /// Git commit of the training code, 40 or 64 hex digits.
    pub code_commit: Option<String>,
    /// SHA-256 of the weights that training began with.
    pub base_model_sha256: Option<Digest>,
    /// Digest over all files of the finished model, as OpenSSF Model Signing computes it.
    pub output_model_sha256: Option<Digest>,
    /// The checkpoint of the licence log that the run began with: a signed note with its cosignatures.
    pub start_checkpoint: Option<String>,
    /// An RFC 3161 answer over the text of that checkpoint.
    pub start_time_stamp: Option<Vec<u8>>,
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Unique name of the run.
    pub invocation_id: String,
    /// Version of the trainer.
    pub builder_version: String,
    /// Start, Unix seconds.
    pub started_unix_s: u64,
    /// End, Unix seconds.
    pub finished_unix_s: u64,
    /// SHA-256 of the recipe file.
    pub recipe_sha256: Digest,
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Passes over the corpus, as a decimal.
    pub epochs: String,
    /// Weights, checkpoints, tokenizer.
    pub subjects: Vec<Subject>,
    /// Every dataset that was trained on, in registry order.
    pub datasets: Vec<DatasetUse>,
    /// The licence log as it stood when the run began.
    pub licence_log: LogHead,
    /// Commit, base model, output model, checkpoint.
    pub detail: RunDetail,
}

impl RunRecord {
    /// Reads and validates a record.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Json`], [`RegistryError::Field`].
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        Self::from_bytes(path, &files::read_small(path, "training-run record")?)
    }

    /// Validates and writes a record, whole or not at all.
    ///
    /// # Errors
    /// [`RegistryError::Field`], [`RegistryError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), RegistryError> {
        files::write_atomic(path, &self.to_bytes(path)?)
    }

    /// The bytes of the statement: what a signature covers.
    ///
    /// # Errors
    /// [`RegistryError::Field`].
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, RegistryError> {
        self.validate(path)?;
        Ok(files::to_json(&Statement::from_record(path, self)?))
    }

    /// Reads the bytes of a statement.
    ///
    /// # Errors
    /// [`RegistryError::Json`], [`RegistryError::Field`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, RegistryError> {
        let record = files::parse_json::<Statement>(path, bytes)?.into_record(path)?;
        record.validate(path)?;
        Ok(record)
    }

    /// Checks everything that can be checked without the registry.
    ///
    /// # Errors
    /// [`RegistryError::Field`] naming `path`.
    pub fn validate(&self, path: &Path) -> Result<(), RegistryError> {
        let refuse =
            |field: &str, expected: &str, found: String| Err(RegistryError::field(path, field, expected, found));
        if self.invocation_id.trim().is_empty() {
            return refuse("invocationId", "a name", format!("{:?}", self.invocation_id));
        }
        if self.finished_unix_s < self.started_unix_s {
            return refuse(
                "finishedOn",
                "no earlier than startedOn",
                format!("{} s before", self.started_unix_s - self.finished_unix_s),
            );
        }
        if self.steps == 0 {
            return refuse("steps", "at least 1", "0".to_owned());
        }
        check_epochs(path, "epochs", &self.epochs)?;
        if self.subjects.is_empty() {
            return refuse("subject", "at least one file", "none".to_owned());
        }
        let mut seen = HashSet::new();
        for subject in &self.subjects {
            let inside = subject.name.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if !inside || subject.name.contains('\\') {
                return refuse("subject.name", "a relative path within the folder", format!("{:?}", subject.name));
            }
            if !seen.insert(subject.name.as_str()) {
                return refuse("subject.name", "each file once", format!("{:?} twice", subject.name));
            }
        }
        if let Some(commit) = &self.detail.code_commit {
            let hex = commit.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if !hex || !matches!(commit.len(), 40 | 64) {
                return refuse("codeCommit", "40 or 64 lower-case hex digits", format!("{commit:?}"));
            }
        }
        if self.detail.trainer.as_ref().is_some_and(|trainer| trainer.trim().is_empty()) {
            return refuse("builder.version.trainer", "a name", "none".to_owned());
        }
        self.validate_datasets(path)
    }

    fn validate_datasets(&self, path: &Path) -> Result<(), RegistryError> {
        if self.datasets.is_empty() {
            return Err(RegistryError::field(path, "resolvedDependencies", "at least one dataset", "none"));
        }
        let mut seen = HashSet::new();
        for used in &self.datasets {
            if !seen.insert(used.uuid.as_str()) {
                let found = format!("{} ({}) twice", used.uuid, used.name);
                return Err(RegistryError::field(path, "resolvedDependencies", "each dataset once", found));
            }
            if used.records_used == 0 {
                return Err(RegistryError::field(path, format!("{}: recordsUsed", used.name), "at least 1", 0));
            }
            check_epochs(path, &format!("{}: epochs", used.name), &used.epochs)?;
        }
        Ok(())
    }
}

/// A plain decimal: digits, and perhaps a point and digits.
fn check_epochs(path: &Path, field: &str, text: &str) -> Result<(), RegistryError> {
    let digits = |part: &str| !part.is_empty() && part.len() <= 20 && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if digits(whole) && digits(fraction) {
        return Ok(());
    }
    Err(RegistryError::field(path, field, "a decimal such as 2 or 0.5", format!("{text:?}")))
}
