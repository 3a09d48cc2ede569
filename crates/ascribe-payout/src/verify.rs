//! A run folder, checked by making it again from its own inputs: nobody's word is needed but the licences' signatures.

use std::path::{Path, PathBuf};

use ascribe_core::Progress;
use serde::Serialize;

use crate::error::PayError;
use crate::files;
use crate::outputs::{self, Inputs};
use crate::settings::PaySettings;
use crate::usage::{self, UsageCheck, UsageFound};
use crate::{PayJob, PayRunRecord, RUN_JSON, compute};

/// What was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyPayReport {
    /// Identity of the run.
    pub run_id: ascribe_core::Digest,
    /// Files whose digest was checked.
    pub files: u64,
    /// True when every file was made again from the inputs with the same bytes.
    pub recomputed: bool,
    /// True when the books close to the last sub-unit.
    pub conserved: bool,
    /// Pool.
    pub pool: String,
    /// Payees paid.
    pub paid_payees: u64,
    /// Its receipts.
    pub receipts: UsageFound,
}

/// Checks every digest of a run folder against its record, and that nothing else stands there.
///
/// # Errors
/// [`PayError::Digest`] for a changed file, [`PayError::Content`] for one too many, the disk's for one too few.
pub fn check_digests(dir: &Path, record: &PayRunRecord) -> Result<(), PayError> {
    for (name, expected) in &record.files {
        let path = dir.join(name);
        let found = files::digest(&path)?;
        if found != *expected {
            let hint = "the file was changed after the run";
            return Err(PayError::Digest { path, expected: *expected, found, hint });
        }
    }
    for name in files::list(dir)? {
        // Approvals and receipts of other people's logs come after the record; the run's own receipts are checked against the run.
        let later = ["approvals/", "evidence/", "usage/"].iter().any(|folder| name.starts_with(folder));
        let known = name == RUN_JSON || record.files.contains_key(&name) || later;
        if !known && !name.ends_with(".tmp") {
            let (path, expected) = (dir.join(&name), "only files that run.json lists".to_owned());
            return Err(PayError::Content { path, expected, found: "a file that is not part of the run".into() });
        }
    }
    Ok(())
}

/// Checks digests, then computes the run again from `inputs/` (`scores` where the score file was too large to be copied) and
/// compares the digest of every file and every figure of the record.
///
/// # Errors
/// What [`check_digests`] refuses; [`PayError::Differs`] with the number of differences and the first; a score file that is neither
/// in `inputs/` nor given.
pub fn verify(dir: &Path, scores: Option<&Path>, progress: &dyn Progress) -> Result<VerifyPayReport, PayError> {
    verify_with(dir, scores, &UsageCheck::default(), progress)
}

/// The same, with the receipts of a usage log of choice, under the operator's key where it is known. Every receipt is made again from
/// the inputs and held against the logged one; of its salted output only the operator can say more.
///
/// # Errors
/// As [`verify`]; a receipt that is missing, forged, or not what the run gives.
pub fn verify_with(
    dir: &Path,
    scores: Option<&Path>,
    usage: &UsageCheck,
    progress: &dyn Progress,
) -> Result<VerifyPayReport, PayError> {
    let record = PayRunRecord::read(dir)?;
    check_digests(dir, &record)?;
    let scores: PathBuf = match (scores, record.scores_copied) {
        (Some(scores), _) => scores.to_path_buf(),
        (None, true) => dir.join("inputs").join(&record.scores_file),
        (None, false) => {
            let expected = "the score file, which was too large to be copied; hint: pass --scores FILE".to_owned();
            return Err(PayError::Setting { setting: "--scores", expected, found: "none".into() });
        }
    };
    let previous = dir.join("inputs/previous");
    let (settings, method): (PaySettings, Option<String>) = serde_json::from_str(&record.run.policy.shares)?;
    let job = PayJob {
        scores,
        registry: dir.join("inputs/registry"),
        pool: Some(record.run.policy.pool),
        period: record.run.period.clone(),
        method,
        duplicates: record.files.contains_key(outputs::DUPLICATES_INPUT).then(|| dir.join(outputs::DUPLICATES_INPUT)),
        previous: previous.exists().then_some(previous),
        settings,
    };
    let computed = compute(&job, dir, progress)?;
    crate::approval::check(dir, &job.settings, &computed.run.policy.pool, &computed.run_id)?;
    let in_inputs =
        |(name, digest): (&String, &ascribe_core::Digest)| name.starts_with("inputs/").then(|| (name.clone(), *digest));
    let inputs = Inputs {
        files: record.files.iter().filter_map(in_inputs).collect(),
        scores_file: record.scores_file.clone(),
        scores_copied: record.scores_copied,
    };
    let mut again = outputs::write_all(&computed, &inputs, None)?;
    again.usage.clone_from(&record.usage);
    let differences = differences(&record, &again);
    if let Some(first) = differences.first() {
        return Err(PayError::Differs { count: differences.len(), first: first.clone() });
    }
    let receipts = usage::check(dir, &record, &computed, usage, progress)?;
    Ok(VerifyPayReport {
        run_id: record.run_id,
        files: record.files.len() as u64 + 1,
        recomputed: true,
        conserved: record.totals.conserved,
        pool: record.run.policy.pool.to_string(),
        paid_payees: record.paid_payees,
        receipts,
    })
}

fn differences(record: &PayRunRecord, again: &PayRunRecord) -> Vec<String> {
    let mut found = Vec::new();
    if record.run != again.run {
        found.push(format!("run: the inputs give {}, the folder says {}", again.run_id, record.run_id));
    }
    for (name, digest) in &again.files {
        match record.files.get(name) {
            Some(other) if other == digest => {}
            Some(other) => found.push(format!("{name}: made again it has SHA-256 {digest}, the folder has {other}")),
            None => found.push(format!("{name}: made again, missing in the folder")),
        }
    }
    found.extend(
        record
            .files
            .keys()
            .filter(|name| !again.files.contains_key(*name))
            .map(|name| format!("{name}: not of this run")),
    );
    if found.is_empty() && record != again {
        found.push(format!("{RUN_JSON}: its figures are not what the inputs give"));
    }
    found
}
