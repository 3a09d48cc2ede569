//! Which dataset belongs to whom. The registry says so; here it is reduced to what the policy step needs.

use std::collections::{BTreeMap, BTreeSet};

use ascribe_registry::Registry;
use serde::{Deserialize, Serialize};

use crate::error::SharesError;

/// Longest name, in characters.
const NAME_MAX: usize = 200;

/// A registered dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetEntry {
    /// `urn:uuid:…`.
    pub uuid: String,
    /// Short name.
    pub name: String,
    /// Owner, the paid party; datasets with one owner string are one person's.
    pub owner: String,
}

/// Datasets by ordinal, owners by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerMap {
    datasets: Vec<DatasetEntry>,
    owners: Vec<String>,
    owner_idx: Vec<u32>,
    by_uuid: BTreeMap<String, u32>,
}

impl OwnerMap {
    /// Datasets in the order of their ordinals. Owners get ordinals in the byte order of their names.
    ///
    /// # Errors
    /// [`SharesError::Duplicate`] for a uuid or name that stands twice, [`SharesError::BadName`].
    pub fn new(datasets: Vec<DatasetEntry>) -> Result<Self, SharesError> {
        let (mut by_uuid, mut names) = (BTreeMap::new(), BTreeSet::new());
        for (ordinal, entry) in (0u32..).zip(&datasets) {
            for (what, text) in [("dataset uuid", &entry.uuid), ("dataset name", &entry.name), ("owner", &entry.owner)]
            {
                check_name(what, text)?;
            }
            if by_uuid.insert(entry.uuid.clone(), ordinal).is_some() {
                return Err(SharesError::Duplicate { what: "dataset uuid", found: entry.uuid.clone() });
            }
            if !names.insert(&entry.name) {
                return Err(SharesError::Duplicate { what: "dataset name", found: entry.name.clone() });
            }
        }
        let owners: BTreeSet<&String> = datasets.iter().map(|entry| &entry.owner).collect();
        let owners: Vec<String> = owners.into_iter().cloned().collect();
        let position = |owner: &String| owners.binary_search(owner).expect("every owner is in the list made of them");
        let owner_idx = datasets.iter().map(|entry| position(&entry.owner) as u32).collect();
        Ok(Self { datasets, owners, owner_idx, by_uuid })
    }

    /// The datasets and owners of a registry.
    ///
    /// # Errors
    /// As [`OwnerMap::new`].
    pub fn of_registry(registry: &Registry) -> Result<Self, SharesError> {
        let entry = |dataset: &ascribe_registry::Dataset| DatasetEntry {
            uuid: dataset.manifest.uuid.clone(),
            name: dataset.manifest.name.clone(),
            owner: dataset.manifest.owner.clone(),
        };
        Self::new(registry.datasets().iter().map(entry).collect())
    }

    /// Datasets by ordinal.
    pub fn datasets(&self) -> &[DatasetEntry] {
        &self.datasets
    }

    /// Owners by their own ordinal, sorted.
    pub fn owners(&self) -> &[String] {
        &self.owners
    }

    /// Owner ordinals by dataset ordinal.
    pub fn owner_idx(&self) -> &[u32] {
        &self.owner_idx
    }

    /// Ordinal of the dataset with that uuid.
    pub fn ordinal(&self, uuid: &str) -> Option<u32> {
        self.by_uuid.get(uuid).copied()
    }

    /// The dataset of that ordinal.
    ///
    /// # Errors
    /// [`SharesError::UnknownDataset`].
    pub fn dataset(&self, ordinal: u32) -> Result<&DatasetEntry, SharesError> {
        let known = self.datasets.len();
        self.datasets.get(ordinal as usize).ok_or(SharesError::UnknownDataset { ordinal, known })
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), SharesError> {
    let n_chars = name.chars().count();
    if n_chars == 0 || n_chars > NAME_MAX || name.chars().any(char::is_control) || name.trim() != name {
        return Err(SharesError::BadName { what, found: name.chars().take(80).collect(), max: NAME_MAX });
    }
    Ok(())
}
