//! The registered datasets as answers name them.

use ascribe_registry::{Dataset, Registry};
use serde::Serialize;

use super::answer::{Filter, RespondError};

/// One dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogDataset {
    /// `urn:uuid:…`.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// The paid party.
    pub owner: String,
    /// SPDX expression.
    pub licence: String,
    /// Language tag.
    pub language: String,
    /// Records.
    pub records: u64,
    /// RFC 6962 root over the record hashes, hex.
    pub content_root: String,
    /// True if the licence permits `search`: snippets may be shown.
    pub may_show: bool,
    /// True if its licence was revoked.
    pub revoked: bool,
    /// `(account, share in ppm)`.
    pub payees: Vec<(String, u32)>,
    /// Permitted uses, RSL tokens.
    pub permits: Vec<String>,
    /// Prohibited uses.
    pub prohibits: Vec<String>,
}

/// All datasets, by ordinal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Datasets.
    pub datasets: Vec<CatalogDataset>,
}

/// The RSL token for results with snippets.
const SHOW: &str = "search";

impl Catalog {
    /// Of a registry.
    pub fn of(registry: &Registry) -> Self {
        Self { datasets: registry.datasets().iter().map(entry).collect() }
    }

    /// Numbered datasets of a store that no registry describes.
    pub fn numbered(n: usize) -> Self {
        let entry = |k: usize| CatalogDataset {
            uuid: ascribe_registry::dataset_uuid(&format!("dataset-{k}")),
            name: format!("dataset-{k}"),
            title: format!("Dataset {k}"),
            owner: format!("owner of dataset {k}"),
            licence: "NOASSERTION".into(),
            language: "und".into(),
            records: 0,
            content_root: String::new(),
            may_show: false,
            revoked: false,
            payees: Vec::new(),
            permits: Vec::new(),
            prohibits: Vec::new(),
        };
        Self { datasets: (0..n).map(entry).collect() }
    }

    /// Which datasets a filter lets through, by ordinal.
    ///
    /// # Errors
    /// A name, owner or licence that nothing has.
    pub fn allowed(&self, filter: &Filter) -> Result<Vec<bool>, RespondError> {
        let mut allowed = vec![true; self.datasets.len()];
        type Matches = fn(&CatalogDataset, &str) -> bool;
        let lists: [(&'static str, &Vec<String>, Matches); 3] = [
            ("filter.datasets", &filter.datasets, |d, name| d.name == name || d.uuid == name),
            ("filter.owners", &filter.owners, |d, name| d.owner == name),
            ("filter.licences", &filter.licences, |d, name| d.licence == name),
        ];
        for (field, names, matches) in lists {
            if names.is_empty() {
                continue;
            }
            if let Some(unknown) = names.iter().find(|name| !self.datasets.iter().any(|d| matches(d, name))) {
                return Err(RespondError::refuse(field, "one that is registered", format!("{unknown:?}")));
            }
            for (allowed, dataset) in allowed.iter_mut().zip(&self.datasets) {
                *allowed &= names.iter().any(|name| matches(dataset, name));
            }
        }
        Ok(allowed)
    }
}

fn entry(dataset: &Dataset) -> CatalogDataset {
    let m = &dataset.manifest;
    let has = |list: &[String]| list.iter().any(|token| token == SHOW);
    CatalogDataset {
        uuid: m.uuid.clone(),
        name: m.name.clone(),
        title: m.title.clone(),
        owner: m.owner.clone(),
        licence: m.licence.clone(),
        language: m.language.clone(),
        records: m.record_count,
        content_root: m.content_root.to_string(),
        may_show: has(&m.permits) && !has(&m.prohibits) && dataset.revocation.is_none(),
        revoked: dataset.revocation.is_some(),
        payees: m.payees.iter().map(|p| (p.account.clone(), p.share_ppm)).collect(),
        permits: m.permits.clone(),
        prohibits: m.prohibits.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_must_all_hold_and_name_what_is_there() {
        let mut catalog = Catalog::numbered(3);
        catalog.datasets[1].licence = "MIT".into();
        catalog.datasets[2].licence = "MIT".into();
        let both = Filter {
            datasets: vec!["dataset-0".into(), "dataset-2".into()],
            licences: vec!["MIT".into()],
            ..Filter::default()
        };
        assert_eq!(catalog.allowed(&both).unwrap(), [false, false, true]);
        assert_eq!(catalog.allowed(&Filter::default()).unwrap(), [true; 3]);
        let unknown = Filter { owners: vec!["nobody".into()], ..Filter::default() };
        assert!(catalog.allowed(&unknown).unwrap_err().to_string().contains("filter.owners"));
    }
}
