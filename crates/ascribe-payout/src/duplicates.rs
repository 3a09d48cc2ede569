//! Whose text was there first: the report of `ascribe registry duplicates --format json`, read as moves of scores to the earliest
//! licence. The report is an input of a run like the score file: whoever has the records can make it again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ascribe_shares::{Derived, Duplicates};
use serde::Deserialize;

use crate::error::PayError;
use crate::files;
use crate::terms::PaidDataset;

/// Largest report that is read.
const REPORT_MAX_BYTES: u64 = 1 << 30;

#[derive(Deserialize)]
struct Report {
    clusters: Vec<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    dataset: String,
    id: String,
}

/// What a report says about the datasets of a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// For scores by dataset.
    pub parts: Duplicates,
    /// For scores by record: (dataset, record id) → dataset with the earliest licence.
    pub by_record: HashMap<(u32, String), u32>,
}

impl Moves {
    /// Reads a report and decides, cluster by cluster, which dataset was licensed first. The order that the report gives is not
    /// believed: places in the log are.
    ///
    /// # Errors
    /// A file that is no such report, one of another registry, more duplicates than a dataset has records.
    pub fn read(path: &Path, datasets: &[PaidDataset]) -> Result<Self, PayError> {
        let content = |expected: &str, found: String| PayError::Content {
            path: path.to_path_buf(),
            expected: expected.to_owned(),
            found,
        };
        let len = std::fs::metadata(path).map_err(|e| PayError::io(path, e))?.len();
        if len > REPORT_MAX_BYTES {
            return Err(content("at most 1 GiB", format!("{len} bytes")));
        }
        let report: Report = serde_json::from_slice(&files::read(path)?)
            .map_err(|e| content("the JSON of `ascribe registry duplicates --format json`", e.to_string()))?;
        let by_name: HashMap<&str, u32> = datasets.iter().map(|d| d.name.as_str()).zip(0u32..).collect();
        let place = |ordinal: u32| (datasets[ordinal as usize].licence_index.unwrap_or(u64::MAX), ordinal);
        let mut by_record = HashMap::new();
        let mut counts: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for cluster in &report.clusters {
            let mut members = Vec::with_capacity(cluster.members.len());
            for member in &cluster.members {
                let Some(&ordinal) = by_name.get(member.dataset.as_str()) else {
                    let hint = "hint: make the report over the registry that is paid";
                    return Err(content("datasets of this registry", format!("{:?}; {hint}", member.dataset)));
                };
                members.push((ordinal, member.id.as_str()));
            }
            let Some(&(first, _)) = members.iter().min_by_key(|(ordinal, _)| place(*ordinal)) else { continue };
            for (ordinal, id) in members.into_iter().filter(|(ordinal, _)| *ordinal != first) {
                if by_record.insert((ordinal, id.to_owned()), first).is_none() {
                    *counts.entry((ordinal, first)).or_default() += 1;
                }
            }
        }
        let mut parts = Vec::new();
        for ((from, to), n) in counts {
            let records = datasets[from as usize].records;
            if n > records {
                let found = format!("{n} duplicates in {}, which has {records} records", datasets[from as usize].name);
                return Err(content("no more duplicates than records", found));
            }
            parts.push(Derived { from, to, ppm: (u128::from(n) * 1_000_000 / u128::from(records)) as u32 });
        }
        Ok(Self { parts: Duplicates::new(&parts)?, by_record })
    }

    /// True when nothing moves.
    pub fn is_empty(&self) -> bool {
        self.by_record.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_ledger::Terms;

    fn dataset(name: &str, records: u64, licence_index: Option<u64>) -> PaidDataset {
        PaidDataset {
            name: name.into(),
            uuid: format!("urn:uuid:{name}"),
            content_root: name.into(),
            records,
            licence_index,
            permits: true,
            valid: (1, 0),
            revoked_from: None,
            terms: Terms { dataset: name.into(), owner: name.into(), payees: Vec::new() },
        }
    }

    fn read(text: &str) -> Result<Moves, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("duplicates.json");
        std::fs::write(&path, text).unwrap();
        let datasets = [dataset("copier", 4, Some(7)), dataset("original", 100, Some(2)), dataset("unlogged", 2, None)];
        Moves::read(&path, &datasets).map_err(|error| error.to_string())
    }

    fn cluster(members: &[(&str, &str)]) -> String {
        let member =
            |(dataset, id): &(&str, &str)| format!(r#"{{"dataset":"{dataset}","owner":"x","id":"{id}","row":0}}"#);
        format!(r#"{{"members":[{}],"evidence":[]}}"#, members.iter().map(member).collect::<Vec<_>>().join(","))
    }

    /// The report's own order is not believed: the copier stands first in it and is second in the log.
    #[test]
    fn the_log_decides_who_was_first() {
        let clusters = [cluster(&[("copier", "a"), ("original", "1")]), cluster(&[("copier", "b"), ("unlogged", "x")])];
        let found = read(&format!(r#"{{"thresholds":{{}},"clusters":[{}]}}"#, clusters.join(","))).unwrap();
        assert_eq!(found.parts.of(0), [(1, 250_000)]);
        assert_eq!(found.parts.of(2), [(0, 500_000)]);
        assert_eq!(found.by_record[&(0, "a".to_owned())], 1);
        assert!(!found.by_record.contains_key(&(1, "1".to_owned())));
    }

    #[test]
    fn bad_reports_are_refused() {
        assert!(read("[]").unwrap_err().contains("registry duplicates --format json"));
        let stranger = read(&format!(r#"{{"clusters":[{}]}}"#, cluster(&[("copier", "a"), ("nobody", "1")])));
        assert!(stranger.unwrap_err().contains("datasets of this registry, found \"nobody\""));
        let many: Vec<String> = (0..3).map(|n| cluster(&[("unlogged", &n.to_string()), ("original", "1")])).collect();
        let error = read(&format!(r#"{{"clusters":[{}]}}"#, many.join(","))).unwrap_err();
        assert!(error.contains("3 duplicates in unlogged, which has 2 records"), "{error}");
    }
}
