//! The check of a registry: every hash recomputed, every signature checked, every licence older than the run.

use std::collections::HashMap;

use alloy_primitives::Address;
use ascribe_core::{Digest, Progress};
use serde::Serialize;

use crate::content::{self, check_summary};
use crate::error::RegistryError;
use crate::files;
use crate::licence::{LicenceDigest, LicenceMessage, verify_licence};
use crate::log::LogHead;
use crate::manifest::permits_usage;
use crate::registry::{Dataset, Registry};
use crate::run::{DatasetUse, RunRecord};

/// The use that training needs.
const TRAIN: &str = "ai-train";

/// What was checked of one dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetReport {
    /// Name.
    pub name: String,
    /// Owner.
    pub owner: String,
    /// SPDX expression.
    pub licence: String,
    /// Records, counted.
    pub record_count: u64,
    /// Bytes of the record file, counted.
    pub len_bytes: u64,
    /// Content root, recomputed.
    pub content_root: Digest,
    /// Licence digest, recomputed.
    pub licence_digest: LicenceDigest,
    /// Place of the licence in the log.
    pub log_index: u64,
    /// Who signed, in EIP-55 spelling.
    pub licensor: String,
    /// True when the signature is one by a public demo key.
    pub demo_key: bool,
    /// True when the terms permit training.
    pub permits_training: bool,
    /// True when the run that was checked too has used it.
    pub used_by_run: bool,
}

/// What was checked; nothing in it was taken on trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The datasets, in registry order.
    pub datasets: Vec<DatasetReport>,
    /// Size and root of the licence log.
    pub licence_log: LogHead,
    /// [`Registry::digest`].
    pub registry_digest: Digest,
    /// Id of the run that was checked, if one was.
    pub run: Option<String>,
}

impl Registry {
    /// Recomputes every hash, checks every signature and, given a run, that every licence it relied on was registered
    /// before it, in force when it began, and permits training.
    ///
    /// Cost: reads and hashes every record byte once; one public-key recovery per dataset. Deterministic.
    ///
    /// # Errors
    /// The first thing that is wrong, in registry order; see [`RegistryError`].
    pub fn verify(&self, run: Option<&RunRecord>, progress: &dyn Progress) -> Result<VerifyReport, RegistryError> {
        let total = self.datasets.iter().map(|dataset| dataset.manifest.len_bytes).fold(0, u64::saturating_add);
        progress.start("verify registry", total, "bytes");
        let mut reports = Vec::with_capacity(self.datasets.len());
        for dataset in &self.datasets {
            if progress.stop_requested() {
                return Err(RegistryError::Stopped);
            }
            reports.push(self.verify_dataset(dataset)?);
            progress.advance(dataset.manifest.len_bytes);
        }
        self.check_nonces()?;
        if let Some(run) = run {
            self.verify_run(run)?;
            for report in &mut reports {
                report.used_by_run = run.datasets.iter().any(|used| used.content_root == report.content_root);
            }
        }
        progress.finish(&format!(
            "{} datasets, {} licences: every hash and signature holds",
            reports.len(),
            reports.len()
        ));
        Ok(VerifyReport {
            datasets: reports,
            licence_log: self.log.head(),
            registry_digest: self.digest(),
            run: run.map(|run| run.invocation_id.clone()),
        })
    }

    /// Checks what a trainer must know before it starts at `start_unix_s`: all licences are registered, in force, and
    /// permit training. Call [`Registry::verify`] first.
    ///
    /// # Errors
    /// [`RegistryError::NotInLog`], [`RegistryError::NotPermitted`], [`RegistryError::LicenceNotInForce`].
    pub fn check_training_permitted(&self, start_unix_s: u64) -> Result<(), RegistryError> {
        for dataset in &self.datasets {
            self.log_index(dataset)?;
            check_permission(dataset, start_unix_s)?;
        }
        Ok(())
    }

    fn verify_dataset(&self, dataset: &Dataset) -> Result<DatasetReport, RegistryError> {
        check_form(dataset)?;
        let summary = content::summarise(&dataset.records_path())?;
        check_summary(dataset, &summary)?;
        let terms = files::read_small(&dataset.terms_path(), "legal text")?;
        let (licence, manifest) = (&dataset.licence, &dataset.manifest);
        verify_licence(&dataset.licence_path(), licence, &self.domain, manifest, &terms)?;
        let message = &licence.message;
        Ok(DatasetReport {
            name: manifest.name.clone(),
            owner: manifest.owner.clone(),
            licence: manifest.licence.clone(),
            record_count: summary.record_count,
            len_bytes: summary.len_bytes,
            content_root: summary.root,
            licence_digest: licence.digest,
            log_index: self.log_index(dataset)?,
            licensor: message.licensor.to_checksum(None),
            demo_key: licence.demo_key,
            permits_training: permits_usage(&message.permits, &message.prohibits, TRAIN),
            used_by_run: false,
        })
    }

    fn log_index(&self, dataset: &Dataset) -> Result<u64, RegistryError> {
        self.log.index_of(dataset.licence.digest).ok_or_else(|| RegistryError::NotInLog {
            path: self.log.path().to_owned(),
            dataset: dataset.name().to_owned(),
            digest: dataset.licence.digest.to_string(),
        })
    }

    /// Nonces of one licensor rise in the order of registration.
    fn check_nonces(&self) -> Result<(), RegistryError> {
        let mut in_order = Vec::with_capacity(self.datasets.len());
        for dataset in &self.datasets {
            in_order.push((self.log_index(dataset)?, dataset));
        }
        in_order.sort_by_key(|(index, _)| *index);
        let mut last: HashMap<Address, u64> = HashMap::new();
        for (_, dataset) in in_order {
            let LicenceMessage { licensor, nonce, .. } = dataset.licence.message;
            if let Some(earlier) = last.insert(licensor, nonce).filter(|earlier| *earlier >= nonce) {
                let expected = format!("more than {earlier}, the nonce of the licensor's licence before");
                return Err(RegistryError::field(&dataset.licence_path(), "message.nonce", expected, nonce));
            }
        }
        Ok(())
    }

    fn verify_run(&self, run: &RunRecord) -> Result<(), RegistryError> {
        let seen = run.licence_log;
        let root_then = self.log.head_at(seen.size).map(|head| head.root);
        if root_then != Some(seen.root) {
            return Err(RegistryError::LogRewritten {
                path: self.log.path().to_owned(),
                size: seen.size,
                expected: seen.root.to_string(),
                found: root_then
                    .map_or_else(|| format!("only {} licences", self.log.head().size), |root| root.to_string()),
            });
        }
        for used in &run.datasets {
            self.verify_use(run, used)?;
        }
        Ok(())
    }

    /// One dataset of a run: the same content, under a licence that was registered, in force and permitting.
    fn verify_use(&self, run: &RunRecord, used: &DatasetUse) -> Result<(), RegistryError> {
        let dataset = self.datasets.iter().find(|dataset| dataset.manifest.uuid == used.uuid);
        let Some(dataset) = dataset else {
            let path = self.log.path().with_file_name(&used.name);
            return Err(RegistryError::Missing { path, what: "dataset that the training run used" });
        };
        let log_index = self.log_index(dataset)?;
        if log_index >= run.licence_log.size {
            let (dataset, log_size) = (dataset.name().to_owned(), run.licence_log.size);
            return Err(RegistryError::LicenceAfterRun { dataset, log_index, log_size });
        }
        let manifest = &dataset.manifest;
        let facts = [
            ("content_root", used.content_root.to_string(), manifest.content_root.to_string()),
            ("licence digest", used.licence_digest.to_string(), dataset.licence.digest.to_string()),
            ("log index", used.log_index.to_string(), log_index.to_string()),
        ];
        for (what, expected, found) in facts {
            if expected != found {
                let field = format!("{what} that run {} relied on", run.invocation_id);
                return Err(RegistryError::field(&dataset.dir, field, expected, found));
            }
        }
        if used.records_used > manifest.record_count {
            let expected = format!("at most {}", manifest.record_count);
            return Err(RegistryError::field(&dataset.dir, "records used by the run", expected, used.records_used));
        }
        check_permission(dataset, run.started_unix_s)
    }
}

/// The terms permit training, and did at `start`.
fn check_permission(dataset: &Dataset, start: u64) -> Result<(), RegistryError> {
    let message = &dataset.licence.message;
    if !permits_usage(&message.permits, &message.prohibits, TRAIN) {
        let found = format!("permits {:?}, prohibits {:?}", message.permits, message.prohibits);
        return Err(RegistryError::NotPermitted { dataset: dataset.name().to_owned(), usage: TRAIN, found });
    }
    let open = message.valid_until == 0;
    if message.valid_from > start || (!open && message.valid_until <= start) {
        let until = if open { "open".to_owned() } else { message.valid_until.to_string() };
        let expected = format!("a start within validFrom {} and validUntil {until}", message.valid_from);
        return Err(RegistryError::LicenceNotInForce { dataset: dataset.name().to_owned(), expected, start });
    }
    Ok(())
}

/// Manifest and licence have exactly the bytes that their meaning is written as, so that no changed byte goes unseen.
fn check_form(dataset: &Dataset) -> Result<(), RegistryError> {
    let files = [
        (dataset.manifest_path(), files::to_json(&dataset.manifest), dataset.manifest_sha256),
        (dataset.licence_path(), files::to_json(&dataset.licence), dataset.licence_sha256),
    ];
    for (path, canonical, found) in files {
        let expected = Digest::of(&canonical);
        if expected != found {
            let field = "SHA-256 of its bytes (hint: other white space or member order than the registry writes)";
            return Err(RegistryError::field(&path, field, expected, found));
        }
    }
    Ok(())
}
