//! Whose the datasets are and under which licence: `datasets-000001.json`, a part of a generation like the sums beside it.
//!
//! The store holds what it was told and judges nothing: who may tell it is the registry's. Without it a store has datasets and no
//! owners.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ascribe_core::Digest;
use serde::{Deserialize, Serialize};

use super::FEATURES_FORMAT_VERSION;
use super::generation::{Generation, Part};
use super::layout::{Paths, StoreHeader, check_version, parse_json};
use super::sealed::{self, NO_CHECKSUM};
use super::sums::{DatasetSums, check_part};
use crate::atomic::{read_capped, write_atomic};
use crate::error::StoreError;
use crate::limits::{DATASETS_MAX, TERMS_MAX_BYTES};

/// Characters of a name, an owner or a licence.
const TEXT_MAX: usize = 256;
const LOST: &str = "the newest generation names this file; restore it";

/// What the store knows of a dataset. As a change: what is absent stays as it is, an empty text is taken away.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetTerms {
    /// Its ordinal.
    pub dataset: u32,
    /// Short name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who is paid for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// SPDX name of its licence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Corpus that its rows were made of, where that is another than the store's spec says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<Digest>,
}

/// What the store knows of its datasets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Terms(BTreeMap<u32, DatasetTerms>);

/// Exact sums per owner.
#[derive(Clone, PartialEq, Debug)]
pub struct OwnerSums {
    /// The owners, in the order of their names.
    pub owners: Vec<String>,
    /// Row `o` is the sum of all datasets of owner `o`; its count is their rows.
    pub sums: DatasetSums,
}

/// `datasets-000001.json`.
#[derive(Serialize, Deserialize)]
struct File {
    format_version: u32,
    uuid: String,
    datasets: Vec<DatasetTerms>,
    checksum: String,
}

impl Terms {
    /// True if nothing is known of any dataset.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is known of a dataset.
    pub fn of_dataset(&self, dataset: u32) -> Option<&DatasetTerms> {
        self.0.get(&dataset)
    }

    /// All that is known, by ordinal.
    pub fn iter(&self) -> impl Iterator<Item = &DatasetTerms> + '_ {
        self.0.values()
    }

    /// The owners, in the order of their names, each once.
    pub fn owners(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.values().filter_map(|terms| terms.owner.as_ref()).collect();
        names.into_iter().cloned().collect()
    }

    /// Position in [`Terms::owners`] of each dataset's owner, for the datasets below `n_datasets`.
    pub fn owner_of(&self, n_datasets: usize) -> Vec<Option<u32>> {
        let owners = self.owners();
        let place = |name: &String| owners.binary_search(name).ok().map(|at| at as u32);
        (0..n_datasets as u32).map(|k| self.0.get(&k).and_then(|terms| place(terms.owner.as_ref()?))).collect()
    }

    /// Ordinals of the datasets that `pick` says yes to.
    pub fn datasets_where(&self, pick: impl Fn(&DatasetTerms) -> bool) -> Vec<u32> {
        self.0.values().filter(|terms| pick(terms)).map(|terms| terms.dataset).collect()
    }

    /// Applies a change to one dataset; one that is refused leaves what was known.
    ///
    /// # Errors
    /// [`StoreError::Shape`] for a text that is too long or has control characters; [`StoreError::TooLarge`] for an ordinal.
    pub fn set(&mut self, change: &DatasetTerms) -> Result<(), StoreError> {
        if change.dataset >= DATASETS_MAX {
            let (limit, found) = (u64::from(DATASETS_MAX) - 1, u64::from(change.dataset));
            return Err(StoreError::TooLarge { what: "ordinal of a dataset", limit, found });
        }
        let mut now = self.0.get(&change.dataset).cloned().unwrap_or_default();
        now.dataset = change.dataset;
        let texts = [
            ("name of a dataset", &mut now.name, &change.name),
            ("owner of a dataset", &mut now.owner, &change.owner),
            ("licence of a dataset", &mut now.licence, &change.licence),
        ];
        for (what, now, new) in texts {
            let Some(text) = new else { continue };
            if text.chars().count() > TEXT_MAX || text.chars().any(char::is_control) {
                let expected = format!("at most {TEXT_MAX} characters without control characters");
                return Err(StoreError::Shape { what, expected, found: text.chars().take(TEXT_MAX).collect() });
            }
            *now = Some(text.clone()).filter(|text| !text.is_empty());
        }
        now.corpus = change.corpus.or(now.corpus);
        if now == (DatasetTerms { dataset: now.dataset, ..DatasetTerms::default() }) {
            self.0.remove(&now.dataset);
        } else {
            self.0.insert(now.dataset, now);
        }
        Ok(())
    }

    /// Sums per owner of these sums per dataset; those of nobody are in none.
    pub fn owner_sums(&self, sums: &DatasetSums) -> OwnerSums {
        let owners = self.owners();
        let sums = sums.by_owner(&self.owner_of(sums.counts.len()), owners.len());
        OwnerSums { owners, sums }
    }

    /// Writes the parts of generation `next` that follow from these terms and sums.
    pub(crate) fn write(
        &self,
        paths: &Paths,
        header: &StoreHeader,
        next: &mut Generation,
        sums: &DatasetSums,
    ) -> Result<(), StoreError> {
        (next.datasets, next.owner_sums) = (None, None);
        if self.is_empty() {
            return Ok(());
        }
        let file = format!("datasets-{:06}.json", next.generation);
        let path = paths.root.join(&file);
        let content = File {
            format_version: FEATURES_FORMAT_VERSION,
            uuid: header.uuid.clone(),
            datasets: self.0.values().cloned().collect(),
            checksum: NO_CHECKSUM.to_owned(),
        };
        let bytes = sealed::to_bytes(&path, &content)?;
        write_atomic(&path, &bytes)?;
        next.datasets =
            Some(Part { file, bytes: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() });
        next.owner_sums = Some(self.owner_sums(sums).sums.write_as("owner_sums", paths, header, next.generation)?);
        Ok(())
    }

    /// The terms of `generation`; none if it has none.
    pub(crate) fn of(paths: &Paths, header: &StoreHeader, generation: &Generation) -> Result<Self, StoreError> {
        let Some(part) = &generation.datasets else { return Ok(Self::default()) };
        let path = paths.root.join(&part.file);
        Self::parse(&path, &read_capped(&path, TERMS_MAX_BYTES, LOST)?, part, header)
    }

    /// Reads a file's bytes back; they must be the ones that `part` names.
    pub(crate) fn parse(path: &Path, bytes: &[u8], part: &Part, header: &StoreHeader) -> Result<Self, StoreError> {
        check_part(path, bytes, part)?;
        check_version(path, bytes)?;
        let found: File = parse_json(path, "datasets", bytes)?;
        sealed::check(path, bytes, &found.checksum)?;
        if found.uuid != header.uuid {
            return Err(StoreError::malformed(path, "store", &header.uuid, &found.uuid));
        }
        let mut terms = Self::default();
        for dataset in &found.datasets {
            terms.set(dataset)?;
        }
        if !terms.0.values().eq(&found.datasets) {
            return Err(StoreError::malformed(path, "datasets", "each once, in order, with something known", "others"));
        }
        Ok(terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(dataset: u32, owner: &str, licence: &str) -> DatasetTerms {
        let text = |text: &str| (text != "-").then(|| text.to_owned());
        DatasetTerms { dataset, owner: text(owner), licence: text(licence), ..DatasetTerms::default() }
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let mut terms = Terms::default();
        terms.set(&change(2, "Moss", "MIT")).unwrap();
        terms.set(&change(0, "Arbour", "CC0-1.0")).unwrap();
        terms.set(&change(2, "-", "PSF-2.0")).unwrap();
        assert_eq!(terms.of_dataset(2).unwrap(), &change(2, "Moss", "PSF-2.0"));
        assert_eq!(
            (terms.owners(), terms.owner_of(4)),
            (vec!["Arbour".into(), "Moss".into()], vec![Some(0), None, Some(1), None])
        );
        assert_eq!(terms.datasets_where(|t| t.licence.as_deref() == Some("CC0-1.0")), [0]);
        terms.set(&change(0, "", "")).unwrap();
        assert_eq!((terms.iter().count(), terms.owner_of(1)), (1, vec![None]));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let mut terms = Terms::default();
        for text in ["x".repeat(TEXT_MAX + 1), "a\nb".into()] {
            let error = terms.set(&DatasetTerms { owner: Some(text), ..DatasetTerms::default() }).unwrap_err();
            assert!(error.to_string().starts_with("owner of a dataset: expected at most 256"), "{error}");
        }
        assert!(matches!(terms.set(&change(DATASETS_MAX, "a", "-")), Err(StoreError::TooLarge { .. })));
        assert!(terms.is_empty());
        // What was known of the dataset outlives a change that is refused, in its first text or its last.
        terms.set(&change(0, "Moss", "MIT")).unwrap();
        let known = terms.clone();
        terms.set(&change(0, "a\nb", "-")).unwrap_err();
        terms.set(&change(0, "Arbour", "a\nb")).unwrap_err();
        assert_eq!(terms, known);
    }
}
