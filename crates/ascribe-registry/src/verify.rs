//! The check of a registry: every hash recomputed, every signature checked, every licence older than the run.

use std::collections::HashMap;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use serde::Serialize;

use crate::content::{self, check_summary};
use crate::error::RegistryError;
use crate::files;
use crate::history;
use crate::licence::{LicenceDigest, RegistryDomain};
use crate::log::LogHead;
use crate::manifest::permits_usage;
use crate::registry::{Dataset, Registry};
use crate::run::{DatasetUse, RunRecord};
use crate::status::{LicenceStatus, Relied};
use crate::tiles::{self, TILES_DIR};

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
    /// Who signed: an address in EIP-55 spelling, or a `did:key`.
    pub licensor: String,
    /// True when the signature is one by a public demo key.
    pub demo_key: bool,
    /// True when the terms permit training.
    pub permits_training: bool,
    /// First moment from which the licence no longer counts, Unix seconds, if it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_from: Option<u64>,
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
        self.check_tiles()?;
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
            check_permission(&Relied::current(dataset), start_unix_s)?;
        }
        Ok(())
    }

    /// Checks the licence of one dataset, its content included, and that it is in force at a moment.
    ///
    /// # Errors
    /// As [`Registry::verify`]; [`RegistryError::LicenceRevoked`] and [`RegistryError::LicenceNotInForce`].
    pub fn verify_licence_of(&self, dataset: &Dataset, at_unix_s: u64) -> Result<DatasetReport, RegistryError> {
        let report = self.verify_dataset(dataset)?;
        self.check_nonces()?;
        check_in_force(&Relied::current(dataset), at_unix_s)?;
        Ok(report)
    }

    fn verify_dataset(&self, dataset: &Dataset) -> Result<DatasetReport, RegistryError> {
        check_form(dataset)?;
        let summary = content::summarise_dataset(dataset)?;
        check_summary(dataset, &summary)?;
        let terms = files::read_small(&dataset.terms_path(), "legal text")?;
        let (licence, manifest) = (&dataset.licence, &dataset.manifest);
        licence.verify(&dataset.licence_path(), &self.domain, manifest, &terms)?;
        if let Some(revocation) = &dataset.revocation {
            history::check_revocation(&dataset.revocation_path(), revocation, licence, &self.domain)?;
        }
        for past in &dataset.history {
            past.verify(&self.domain)?;
        }
        let message = licence.message();
        Ok(DatasetReport {
            name: manifest.name.clone(),
            owner: manifest.owner.clone(),
            licence: manifest.licence.clone(),
            record_count: summary.record_count,
            len_bytes: summary.len_bytes,
            content_root: summary.root,
            licence_digest: licence.digest(),
            log_index: self.log_index(dataset)?,
            permits_training: permits_usage(&message.permits, &message.prohibits, TRAIN),
            licensor: message.licensor,
            demo_key: licence.demo_key(),
            revoked_from: dataset.revocation.as_ref().map(|revocation| revocation.message.effective_from),
            used_by_run: false,
        })
    }

    fn log_index(&self, dataset: &Dataset) -> Result<u64, RegistryError> {
        self.place_of(dataset.name(), dataset.licence.digest())
    }

    fn place_of(&self, dataset: &str, digest: LicenceDigest) -> Result<u64, RegistryError> {
        self.log.index_of(digest).ok_or_else(|| RegistryError::NotInLog {
            path: self.log.path().to_owned(),
            dataset: dataset.to_owned(),
            digest: digest.to_string(),
        })
    }

    /// Where there are tiles of the licence log, they are the licence log.
    fn check_tiles(&self) -> Result<(), RegistryError> {
        let registry_dir = self.log.path().parent().unwrap_or(Path::new("."));
        let dir = registry_dir.join(TILES_DIR);
        if dir.exists() {
            tiles::check_mirror(registry_dir, &ascribe_tlog::read_key(&dir)?)?;
        }
        Ok(())
    }

    /// Nonces of one licensor rise in the order of registration, through licences and revocations alike. Outside the demo
    /// domain nothing stands in the log that is not in a dataset's folder: what was registered cannot be hidden.
    fn check_nonces(&self) -> Result<(), RegistryError> {
        let mut in_order = Vec::with_capacity(self.datasets.len());
        for dataset in &self.datasets {
            for signed in dataset.signed_messages() {
                in_order.push((self.place_of(dataset.name(), signed.digest)?, signed));
            }
        }
        for past in &self.lapsed {
            past.verify(&self.domain)?;
            for signed in past.signed_messages() {
                in_order.push((self.place_of(&past.manifest.name, signed.digest)?, signed));
            }
        }
        in_order.sort_by_key(|(index, _)| *index);
        if self.domain != RegistryDomain::demo() {
            self.check_complete(in_order.iter().map(|(index, _)| *index))?;
        }
        let mut last: HashMap<String, u64> = HashMap::new();
        for (_, signed) in in_order {
            let nonce = signed.nonce;
            if let Some(earlier) = last.insert(signed.licensor, nonce).filter(|earlier| *earlier >= nonce) {
                let expected = format!("more than {earlier}, the nonce of the licensor's licence before");
                return Err(RegistryError::field(&signed.path, "message.nonce", expected, nonce));
            }
        }
        Ok(())
    }

    /// `places` are the log's indices that some file accounts for, ascending.
    fn check_complete(&self, places: impl Iterator<Item = u64>) -> Result<(), RegistryError> {
        let mut next = 0;
        for place in places.chain([self.log.head().size]) {
            if place > next {
                let digest = self.log.digest_at(next).map_or_else(String::new, |digest| digest.to_string());
                let field = format!("line {} of the log", next + 1);
                let expected = "a digest whose licence or revocation lies in the folder of a dataset";
                return Err(RegistryError::field(self.log.path(), field, expected, digest));
            }
            next = place + 1;
        }
        Ok(())
    }

    fn verify_run(&self, run: &RunRecord) -> Result<(), RegistryError> {
        self.check_run_log(run)?;
        for used in &run.datasets {
            self.verify_use(run, used)?;
        }
        Ok(())
    }

    /// The log in the folder begins with the log that the run saw.
    pub(crate) fn check_run_log(&self, run: &RunRecord) -> Result<(), RegistryError> {
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
        Ok(())
    }

    /// One dataset of a run: the same content, under a licence that was registered, in force and permitting.
    pub(crate) fn verify_use(&self, run: &RunRecord, used: &DatasetUse) -> Result<(), RegistryError> {
        let of_dataset = || self.relied().filter(|relied| relied.manifest.uuid == used.uuid);
        // The licence that the record names, which may have been replaced since; else the first one, to say what differs.
        let named = of_dataset().find(|relied| relied.licence.digest() == used.licence_digest);
        let Some(relied_on) = named.or_else(|| of_dataset().next()) else {
            let path = self.log.path().with_file_name(&used.name);
            return Err(RegistryError::Missing { path, what: "dataset that the training run used" });
        };
        let dir = self.log.path().with_file_name(relied_on.name);
        let log_index = self.place_of(relied_on.name, relied_on.licence.digest())?;
        if log_index >= run.licence_log.size {
            let (dataset, log_size) = (relied_on.name.to_owned(), run.licence_log.size);
            return Err(RegistryError::LicenceAfterRun { dataset, log_index, log_size });
        }
        let manifest = relied_on.manifest;
        let facts = [
            ("content_root", used.content_root.to_string(), manifest.content_root.to_string()),
            ("licence digest", used.licence_digest.to_string(), relied_on.licence.digest().to_string()),
            ("log index", used.log_index.to_string(), log_index.to_string()),
        ];
        for (what, expected, found) in facts {
            if expected != found {
                let field = format!("{what} that run {} relied on", run.invocation_id);
                return Err(RegistryError::field(&dir, field, expected, found));
            }
        }
        if used.records_used > manifest.record_count {
            let expected = format!("at most {}", manifest.record_count);
            return Err(RegistryError::field(&dir, "records used by the run", expected, used.records_used));
        }
        self.check_not_replaced(&relied_on, run)?;
        check_permission(&relied_on, run.started_unix_s)
    }

    /// No successor of the licence stood in the log when the run began: its licensor had not replaced the terms yet.
    fn check_not_replaced(&self, relied_on: &Relied<'_>, run: &RunRecord) -> Result<(), RegistryError> {
        let digest = relied_on.licence.digest();
        let successor = self.relied().find(|relied| relied.licence.message().supersedes == digest);
        let place = successor.and_then(|relied| self.log.index_of(relied.licence.digest()));
        match place.filter(|place| *place < run.licence_log.size) {
            None => Ok(()),
            Some(place) => Err(RegistryError::LicenceNotInForce {
                dataset: relied_on.name.to_owned(),
                expected: format!("a licence that was not replaced (by log index {place}) when the run began"),
                start: run.started_unix_s,
            }),
        }
    }
}

/// The terms permit training, and did at `start`.
fn check_permission(relied_on: &Relied<'_>, start: u64) -> Result<(), RegistryError> {
    if !relied_on.permits(TRAIN) {
        let message = relied_on.licence.message();
        let found = format!("permits {:?}, prohibits {:?}", message.permits, message.prohibits);
        return Err(RegistryError::NotPermitted { dataset: relied_on.name.to_owned(), usage: TRAIN, found });
    }
    check_in_force(relied_on, start)
}

/// The licence holds at `start`: within its window, and not revoked.
fn check_in_force(relied_on: &Relied<'_>, start: u64) -> Result<(), RegistryError> {
    let dataset = relied_on.name.to_owned();
    match relied_on.status_at(start) {
        LicenceStatus::InForce => Ok(()),
        LicenceStatus::Revoked { effective_from: from, reason } => {
            Err(RegistryError::LicenceRevoked { dataset, from, start, reason })
        }
        _ => {
            let message = relied_on.licence.message();
            let until = if message.valid_until == 0 { "open".to_owned() } else { message.valid_until.to_string() };
            let expected = format!("a start within validFrom {} and validUntil {until}", message.valid_from);
            Err(RegistryError::LicenceNotInForce { dataset, expected, start })
        }
    }
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
