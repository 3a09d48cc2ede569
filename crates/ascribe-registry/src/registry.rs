//! A registry folder, opened: its datasets in a fixed order, its licence log, its owners. Checks live in `verify`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{DatasetId, Digest};
use serde::Serialize;

use crate::content::RECORDS_FILE;
use crate::error::RegistryError;
use crate::files;
use crate::licence::{LICENCE_FILE, Licence, RegistryDomain};
use crate::log::LicenceLog;
use crate::manifest::{MANIFEST_FILE, Manifest, Payee};
use crate::run::DatasetUse;

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
    pub licence: Licence,
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
        Ok(Self {
            ordinal: 0,
            dir,
            manifest,
            licence,
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
    pub(crate) log: LicenceLog,
    owners: Owners,
    digest: Digest,
}

impl Registry {
    /// Opens the registry in `datasets_dir` under the demo domain. Reads manifests, licences and the log; record bytes
    /// and signatures are checked by [`Registry::verify`].
    ///
    /// # Errors
    /// A folder without its files, a file that does not have the declared form, a manifest that contradicts itself,
    /// datasets of one owner with different payees, no dataset at all.
    pub fn open(datasets_dir: &Path) -> Result<Self, RegistryError> {
        Self::open_in(datasets_dir, RegistryDomain::demo())
    }

    /// Opens a registry whose licences were signed in `domain`.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_in(datasets_dir: &Path, domain: RegistryDomain) -> Result<Self, RegistryError> {
        let mut datasets = Vec::new();
        for dir in dataset_dirs(datasets_dir)? {
            datasets.push(Dataset::open(dir)?);
        }
        datasets.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        for (ordinal, dataset) in (0..).zip(&mut datasets) {
            dataset.ordinal = ordinal;
        }
        if datasets.is_empty() {
            return Err(RegistryError::Missing { path: datasets_dir.to_owned(), what: "dataset folders" });
        }
        let (log, owners) = (LicenceLog::read(datasets_dir)?, collect_owners(&datasets)?);
        let digest = digest_of(&datasets);
        Ok(Self { domain, datasets, log, owners, digest })
    }

    /// The datasets; a dataset's ordinal is its position here.
    pub fn datasets(&self) -> &[Dataset] {
        &self.datasets
    }

    /// The dataset of that name.
    pub fn dataset(&self, name: &str) -> Option<&Dataset> {
        self.datasets.iter().find(|dataset| dataset.name() == name)
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
            licence_digest: dataset.licence.digest,
            log_index: self.log.index_of(dataset.licence.digest)?,
            records_used,
            epochs,
            sampling_seed,
        })
    }
}

/// Folders of a registry folder; files beside them and hidden folders are none of ours.
fn dataset_dirs(datasets_dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    if !datasets_dir.is_dir() {
        return Err(RegistryError::Missing { path: datasets_dir.to_owned(), what: "registry folder" });
    }
    let mut dirs = Vec::new();
    for entry in fs::read_dir(datasets_dir).map_err(RegistryError::io(datasets_dir, "listing"))? {
        let entry = entry.map_err(RegistryError::io(datasets_dir, "listing"))?;
        if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
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
