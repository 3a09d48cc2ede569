//! Which registered records say what an earlier licence covers (`duplicates.json`), and what that moves before money is split.
//!
//! The report is the one that `ascribe registry duplicates --format json` prints, so `ascribe pay run --duplicates` takes it as it is.
//! Shares come by dataset, so a dataset of which a part was licensed earlier by others gives that part of its weight away
//! (`ascribe_shares::Duplicates`). A search that finds nothing moves nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_ledger::{Event, Line};
use ascribe_registry::near::{self, Thresholds};
use ascribe_shares::{Derived, Duplicates, Summed};
use serde::Deserialize;

use super::context::Context;
use super::stamps::Stamps;
use crate::error::EngineError;
use crate::files;

/// The report, relative to the run folder.
pub const DUPLICATES_FILE: &str = "duplicates.json";

/// (dataset, row) of records that an earlier licence covers, with the dataset of that licence.
pub(crate) type Moved = HashMap<(u32, u64), u32>;

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
    row: u64,
    log_index: Option<u64>,
}

/// Searches the registry, unless `duplicates.json` is there, and returns what of each dataset earlier licences cover.
///
/// # Errors
/// From the search or the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<Vec<Derived>, EngineError> {
    let path = context.out.join(DUPLICATES_FILE);
    let thresholds = Thresholds::default();
    let key = Digest::of_json(&("duplicates", context.registry.digest(), thresholds))?;
    if !stamps.is_done(&context.out, "duplicates", key) {
        let found = near::find_in_registry(&registry_dir(context), thresholds, progress)?;
        let mut bytes = serde_json::to_vec_pretty(&found)?;
        bytes.push(b'\n');
        files::write_atomic(&path, &bytes)?;
        stamps.finish(&context.out, "duplicates", key, &[DUPLICATES_FILE.to_owned()])?;
    }
    let report: Report = serde_json::from_slice(&files::read(&path)?)?;
    let names: Vec<&str> = context.registry.datasets().iter().map(|d| d.name()).collect();
    let records: Vec<u64> = context.registry.datasets().iter().map(|d| d.manifest.record_count).collect();
    Ok(parts(&moved(&report.clusters, &names), &records))
}

/// The folder of the run's registry.
pub(crate) fn registry_dir(context: &Context) -> PathBuf {
    context.registry.log().path().parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The same over a registry folder, for callers that register more than the walk knows. `names` by ordinal.
///
/// # Errors
/// From the search.
pub(crate) fn search(dir: &Path, names: &[&str], progress: &dyn Progress) -> Result<Moved, EngineError> {
    let found = near::find_in_registry(dir, Thresholds::default(), progress)?;
    let member = |m: near::Member| Member { dataset: m.dataset, row: m.row, log_index: m.log_index };
    let cluster = |c: near::Cluster| Cluster { members: c.members.into_iter().map(member).collect() };
    Ok(moved(&found.clusters.into_iter().map(cluster).collect::<Vec<_>>(), names))
}

fn moved(clusters: &[Cluster], names: &[&str]) -> Moved {
    let by_name: BTreeMap<&str, u32> = names.iter().copied().zip(0u32..).collect();
    let mut moved = HashMap::new();
    for cluster in clusters {
        let first = cluster.members.iter().min_by_key(|m| m.log_index.unwrap_or(u64::MAX));
        let Some(first) = first.and_then(|m| by_name.get(m.dataset.as_str())) else { continue };
        for member in &cluster.members {
            if let Some(dataset) = by_name.get(member.dataset.as_str()).filter(|d| *d != first) {
                moved.insert((*dataset, member.row), *first);
            }
        }
    }
    moved
}

/// Of every dataset, the part of its records that earlier licences cover. `records` by ordinal.
pub(crate) fn parts(moved: &Moved, records: &[u64]) -> Vec<Derived> {
    let mut counts: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    moved.iter().for_each(|((from, _), to)| *counts.entry((*from, *to)).or_default() += 1);
    let part = |((from, to), n): ((u32, u32), u64)| Derived {
        from,
        to,
        ppm: (n * 1_000_000 / records[from as usize].max(1)) as u32,
    };
    counts.into_iter().map(part).collect()
}

/// Moves the covered part of every positive weight to the earlier licence's dataset, response by response.
///
/// # Errors
/// Parts that exceed a dataset, which would be a defect of the search.
pub fn apply(events: &mut [Event], parts: &[Derived]) -> Result<(), EngineError> {
    let duplicates = Duplicates::new(parts)?;
    if duplicates.is_empty() {
        return Ok(());
    }
    for event in events {
        let sums = event.lines.iter().map(|line| Summed {
            dataset: line.dataset,
            // Weights have 62 bits.
            score: i64::try_from(line.weight).unwrap_or(i64::MAX),
        });
        let (moved, _) = duplicates.apply(&sums.collect::<Vec<_>>(), 0);
        let line = |sum: Summed| Line { dataset: sum.dataset, weight: sum.score.unsigned_abs() };
        event.lines = moved.into_iter().filter(|sum| sum.score > 0).map(line).collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(dataset: &str, row: u64, log_index: Option<u64>) -> Member {
        Member { dataset: dataset.into(), row, log_index }
    }

    /// The log decides who was first, whatever the order of the report; a quarter of the later one's weight moves.
    #[test]
    fn the_earliest_licence_is_paid() {
        let clusters = [
            Cluster { members: vec![member("copy", 3, Some(9)), member("first", 0, Some(1))] },
            Cluster { members: vec![member("copy", 4, Some(9)), member("copy", 5, Some(9))] },
            Cluster { members: vec![member("stranger", 0, None), member("copy", 6, Some(9))] },
        ];
        let found = moved(&clusters, &["copy", "first"]);
        assert_eq!(found, Moved::from([((0, 3), 1)]));
        let parts = parts(&found, &[4, 7]);
        assert_eq!(parts, [Derived { from: 0, to: 1, ppm: 250_000 }]);
        let line = |dataset, weight| Line { dataset, weight };
        let mut events = [
            Event { response: 1, weight: 1, lines: vec![line(0, 400), line(1, 8)] },
            Event { response: 2, weight: 1, lines: Vec::new() },
            Event { response: 3, weight: 1, lines: vec![line(0, 4)] },
        ];
        apply(&mut events, &parts).unwrap();
        assert_eq!(events[0].lines, [line(0, 300), line(1, 108)]);
        assert!(events[1].lines.is_empty());
        assert_eq!(events[2].lines, [line(0, 3), line(1, 1)]);
    }
}
