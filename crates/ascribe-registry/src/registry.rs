//! A registry folder, opened: its datasets in a fixed order, its licence log, its owners. Checks live in `verify`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{DatasetId, Digest};
use serde::Serialize;

use crate::content::RECORDS_FILE;
use crate::error::RegistryError;
use crate::files;
use crate::history::{self, Past};
use crate::licence::{LICENCE_FILE, RegistryDomain};
use crate::log::LicenceLog;
use crate::manifest::{MANIFEST_FILE, Manifest, Payee};
use crate::revocation::{REVOCATION_FILE, Revocation};
use crate::run::DatasetUse;
use crate::settings::Settings;
use crate::signed::SignedLicence;
use crate::tiles::TILES_DIR;

/// Name of the legal text of a dataset.
pub const TERMS_FILE: &str = "terms.txt";

/// One registered dataset.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Position in the registry: datasets stand in the byte order of their names.
    pub ordinal: u32,
    /// Its folder.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its licence.
    pub licence: SignedLicence,
    /// Why and from when on that licence no longer counts, if it was revoked.
    pub revocation: Option<Revocation>,
    /// Earlier licences, with the manifests and texts that they were for.
    pub history: Vec<Past>,
    /// SHA-256 of the manifest file.
    pub manifest_sha256: Digest,
    /// SHA-256 of the licence file.
    pub licence_sha256: Digest,
}

impl Dataset {
    /// The dataset by its content.
    pub fn id(&self) -> DatasetId {
        DatasetId(self.manifest.content_root)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Its record file.
    pub fn records_path(&self) -> PathBuf {
        self.dir.join(RECORDS_FILE)
    }

    /// Its manifest file.
    pub fn manifest_path(&self) -> PathBuf {
        self.dir.join(MANIFEST_FILE)
    }

    /// Its licence file.
    pub fn licence_path(&self) -> PathBuf {
        self.dir.join(LICENCE_FILE)
    }

    /// Its legal text.
    pub fn terms_path(&self) -> PathBuf {
        self.dir.join(TERMS_FILE)
    }

    fn open(dir: PathBuf) -> Result<Self, RegistryError> {
        let manifest_path = dir.join(MANIFEST_FILE);
        let manifest_bytes = files::read_small(&manifest_path, "manifest")?;
        let manifest: Manifest = files::parse_json(&manifest_path, &manifest_bytes)?;
        manifest.validate(&manifest_path)?;
        let folder = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if manifest.name != folder {
            return Err(RegistryError::field(&manifest_path, "name", folder, &manifest.name));
        }
        let licence_path = dir.join(LICENCE_FILE);
        let licence_bytes = files::read_small(&licence_path, "licence")?;
        let licence = files::parse_json(&licence_path, &licence_bytes)?;
        let revocation = history::read_revocation(&dir.join(REVOCATION_FILE))?;
        let history = history::read(&dir)?;
        Ok(Self {
            ordinal: 0,
            dir,
            manifest,
            licence,
            revocation,
            history,
            manifest_sha256: Digest::of(&manifest_bytes),
            licence_sha256: Digest::of(&licence_bytes),
        })
    }
}

/// A paid party and its datasets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// The owner string of its manifests, which is its key.
    pub name: String,
    /// Who is paid, and in which shares.
    pub payees: Vec<Payee>,
    /// Ordinals of its datasets, ascending.
    pub datasets: Vec<u32>,
}

/// All owners, in the byte order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owners {
    /// The owners.
    pub owners: Vec<Owner>,
    /// Position in `owners` of each dataset's owner, by dataset ordinal.
    pub owner_idx: Vec<u32>,
}

impl Owners {
    /// The owner of a dataset; `None` if there is no such dataset.
    pub fn of_dataset(&self, ordinal: u32) -> Option<&Owner> {
        self.owner_idx.get(ordinal as usize).and_then(|idx| self.owners.get(*idx as usize))
    }
}

/// An opened registry folder.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) domain: RegistryDomain,
    pub(crate) datasets: Vec<Dataset>,
    /// Earlier licences of datasets whose current version has none yet.
    pub(crate) lapsed: Vec<Past>,
    unlicensed: Vec<String>,
    pub(crate) log: LicenceLog,
    owners: Owners,
    digest: Digest,
}

impl Registry {
    /// Opens the registry in `datasets_dir` in the domain that its settings file names, or the demo domain without one.
    /// Reads manifests, licences and the log; record bytes and signatures are checked by [`Registry::verify`].
    ///
    /// # Errors
    /// A folder without its files, a file that does not have the declared form, a manifest that contradicts itself,
    /// datasets of one owner with different payees, no dataset at all.
    pub fn open(datasets_dir: &Path) -> Result<Self, RegistryError> {
        Self::open_in(datasets_dir, Settings::domain_of(datasets_dir)?)
    }

    /// Opens a registry whose licences were signed in `domain`.
    ///
    /// Outside the demo domain a dataset may wait for its licence: such a one is left out and listed in
    /// [`Registry::unlicensed`]. Whose licence file was merely taken away is found by [`Registry::verify`], because its digest
    /// stands in the log. Every dataset of the demo registry has a licence.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_in(datasets_dir: &Path, domain: RegistryDomain) -> Result<Self, RegistryError> {
        let mut unlicensed = HashSet::new();
        if domain != RegistryDomain::demo() {
            for dir in dataset_dirs(datasets_dir)? {
                if dir.join(MANIFEST_FILE).exists() && !dir.join(LICENCE_FILE).exists() {
                    unlicensed.extend(dir.file_name().map(|name| name.to_string_lossy().into_owned()));
                }
            }
        }
        let registry = Self::open_without(datasets_dir, domain, &unlicensed)?;
        if registry.datasets.is_empty() {
            return Err(RegistryError::Missing { path: datasets_dir.to_owned(), what: "dataset folders" });
        }
        Ok(registry)
    }

    /// As [`Registry::open_in`], without the datasets of these names (those that nobody has licensed yet).
    pub(crate) fn open_without(
        datasets_dir: &Path,
        domain: RegistryDomain,
        unlicensed: &HashSet<String>,
    ) -> Result<Self, RegistryError> {
        let (mut datasets, mut lapsed) = (Vec::new(), Vec::new());
        for dir in dataset_dirs(datasets_dir)? {
            let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if unlicensed.contains(&name) {
                lapsed.extend(history::read(&dir)?);
            } else {
                datasets.push(Dataset::open(dir)?);
            }
        }
        datasets.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        for (ordinal, dataset) in (0..).zip(&mut datasets) {
            dataset.ordinal = ordinal;
        }
        let (log, owners) = (LicenceLog::read(datasets_dir)?, collect_owners(&datasets)?);
        let digest = digest_of(&datasets);
        let mut unlicensed: Vec<String> = unlicensed.iter().cloned().collect();
        unlicensed.sort_unstable();
        Ok(Self { domain, datasets, lapsed, unlicensed, log, owners, digest })
    }

    /// The datasets; a dataset's ordinal is its position here.
    pub fn datasets(&self) -> &[Dataset] {
        &self.datasets
    }

    /// The dataset of that name.
    pub fn dataset(&self, name: &str) -> Option<&Dataset> {
        self.datasets.iter().find(|dataset| dataset.name() == name)
    }

    /// Names of datasets in the folder whose current version nobody has licensed yet, ascending. They are no part of it.
    pub fn unlicensed(&self) -> &[String] {
        &self.unlicensed
    }

    /// The domain that its licences were signed in.
    pub fn domain(&self) -> &RegistryDomain {
        &self.domain
    }

    /// The licence log.
    pub fn log(&self) -> &LicenceLog {
        &self.log
    }

    /// Owners, their payees, and which dataset is whose.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// SHA-256 of the JSON list of `[name, SHA-256 of manifest.json, SHA-256 of licence.json]` in registry order. The
    /// manifests pin the content, the licences pin the terms.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What a run record says about a dataset of this registry. `None` if its licence was never registered.
    pub fn dataset_use(
        &self,
        dataset: &Dataset,
        records_used: u64,
        epochs: String,
        sampling_seed: u64,
    ) -> Option<DatasetUse> {
        Some(DatasetUse {
            name: dataset.name().to_owned(),
            uuid: dataset.manifest.uuid.clone(),
            content_root: dataset.manifest.content_root,
            licence_digest: dataset.licence.digest(),
            log_index: self.log.index_of(dataset.licence.digest())?,
            records_used,
            epochs,
            sampling_seed,
            filter_sha256: None,
        })
    }
}

/// Folders of a registry folder; files beside them, hidden folders and the licence log's tiles are no datasets.
pub(crate) fn dataset_dirs(datasets_dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    if !datasets_dir.is_dir() {
        return Err(RegistryError::Missing { path: datasets_dir.to_owned(), what: "registry folder" });
    }
    let mut dirs = Vec::new();
    for entry in fs::read_dir(datasets_dir).map_err(RegistryError::io(datasets_dir, "listing"))? {
        let entry = entry.map_err(RegistryError::io(datasets_dir, "listing"))?;
        let name = entry.file_name();
        if entry.path().is_dir() && !name.to_string_lossy().starts_with('.') && name != TILES_DIR {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

fn collect_owners(datasets: &[Dataset]) -> Result<Owners, RegistryError> {
    let mut by_name: BTreeMap<&str, Owner> = BTreeMap::new();
    for dataset in datasets {
        let manifest = &dataset.manifest;
        let owner = by_name.entry(manifest.owner.as_str()).or_insert_with(|| Owner {
            name: manifest.owner.clone(),
            payees: manifest.payees.clone(),
            datasets: Vec::new(),
        });
        if owner.payees != manifest.payees {
            let expected = format!("the payees of the other datasets of {:?}", manifest.owner);
            return Err(RegistryError::field(&dataset.manifest_path(), "payees", expected, "others"));
        }
        owner.datasets.push(dataset.ordinal);
    }
    let mut owner_idx = vec![0; datasets.len()];
    for (idx, owner) in (0..).zip(by_name.values()) {
        for ordinal in &owner.datasets {
            owner_idx[*ordinal as usize] = idx;
        }
    }
    Ok(Owners { owners: by_name.into_values().collect(), owner_idx })
}

fn digest_of(datasets: &[Dataset]) -> Digest {
    let rows: Vec<(&str, Digest, Digest)> =
        datasets.iter().map(|dataset| (dataset.name(), dataset.manifest_sha256, dataset.licence_sha256)).collect();
    Digest::of_json(&rows).expect("names and digests serialise")
}
