//! Duplicates and derived work: which records say the same, within and across datasets.
//!
//! Two records are *exact* duplicates when their texts have the same bytes. They are *near* when enough of their shingles
//! (runs of [`SHINGLE_WORDS`] words, case and punctuation aside) are the same: a Jaccard similarity of at least
//! [`Thresholds::jaccard`], or a containment (shared shingles over those of the smaller record) of at least
//! [`Thresholds::containment`], which is what a copy inside a longer text has.
//!
//! Candidates come from MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*,
//! §3.4): records that agree on all [`ROWS`] numbers of one of [`BANDS`] bands. A pair of similarity s is missed with
//! probability `(1 − s^ROWS)^BANDS`. Every candidate is then judged by its whole shingle sets, so what is reported is counted,
//! not estimated.
//!
//! Streams twice over the records. Memory: 8 bytes a record (its place in a temporary file of shingle sets), 4 for the
//! clusters, and blocks of a fixed size for sorting. Deterministic: the same records in the same order give the same report.

mod clusters;
mod shingle;
mod sketch;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ascribe_core::{Digest, Progress};
use rayon::prelude::*;
use serde::Serialize;

use crate::content;
use crate::error::RegistryError;
use crate::files;
use crate::ingest::Ingest;
use crate::licence::LICENCE_FILE;
use crate::log::LicenceLog;
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::registry::dataset_dirs;
use crate::signed::SignedLicence;
use crate::sorter::Sorter;

use clusters::Clusters;
pub use shingle::SHINGLE_WORDS;
use sketch::ShingleFile;
pub use sketch::{BANDS, ROWS};

/// When two records are near.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Thresholds {
    /// Shared shingles over all shingles of both.
    pub jaccard: f64,
    /// Shared shingles over those of the record that has fewer.
    pub containment: f64,
    /// Fewest shared shingles that count as containment: three words in common are no copy.
    pub shared_at_least: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { jaccard: 0.5, containment: 0.5, shared_at_least: 8 }
    }
}

/// How many records with one band in common are compared each with each; a longer run is compared with its first ones and
/// its neighbours only (boilerplate that a thousand records share would cost a million comparisons).
const GROUP_CAP: usize = 32;

/// A dataset whose records are compared.
pub struct Compared<'a> {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// Place of its licence in the log, if it has one: the earliest licence comes first in a cluster.
    pub log_index: Option<u64>,
    /// Its records.
    pub ingest: Ingest<'a>,
}

/// A record of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Dataset.
    pub dataset: String,
    /// Owner of the dataset.
    pub owner: String,
    /// Record id.
    pub id: String,
    /// Row, from 0.
    pub row: u64,
    /// Place of the dataset's licence in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
}

/// Why two records stand in one cluster; members by their position in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// One record.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// True when the texts have the same bytes.
    pub exact: bool,
    /// Shingles that both have.
    pub shared: u32,
    /// Jaccard similarity of the shingle sets.
    pub jaccard: f64,
    /// Containment of the smaller in the larger.
    pub containment: f64,
}

/// Records that say the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// True when it spans several datasets.
    pub across_datasets: bool,
    /// True when it spans several owners.
    pub across_owners: bool,
    /// The records, the earliest licence first.
    pub members: Vec<Member>,
    /// Pairs that were compared and found near or exact.
    pub evidence: Vec<Evidence>,
}

/// What a search for duplicates found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duplicates {
    /// The thresholds.
    pub thresholds: Thresholds,
    /// Records compared.
    pub records: u64,
    /// Bytes of text compared.
    pub text_bytes: u64,
    /// Pairs of records that shared a band, and were judged.
    pub candidates: u64,
    /// Records in clusters that are not their first ones: what a deduplication would drop.
    pub redundant: u64,
    /// The clusters, by their first member.
    pub clusters: Vec<Cluster>,
}

/// A pair of records that was found to say the same.
#[derive(Clone, Copy)]
struct Pair {
    a: u32,
    b: u32,
    exact: bool,
    shared: u32,
    jaccard: f64,
    containment: f64,
}

/// Finds duplicates within and across datasets.
///
/// # Errors
/// Records that cannot be read, more than 2³² of them, and what keeping temporary files meets.
pub fn find(
    datasets: &[Compared<'_>],
    thresholds: Thresholds,
    progress: &dyn Progress,
) -> Result<Duplicates, RegistryError> {
    let mut sketched = Sketched::new()?;
    let mut first_of = Vec::with_capacity(datasets.len() + 1);
    for dataset in datasets {
        first_of.push(sketched.shingles.len());
        progress.start(&format!("shingles of {}", dataset.name), dataset.ingest.set.len_bytes, "bytes");
        sketched.read(&dataset.ingest, progress)?;
        progress.finish(&format!("{} records", sketched.shingles.len() - first_of[first_of.len() - 1]));
    }
    let (records, text_bytes) = (sketched.shingles.len() as u64, sketched.text_bytes);
    let (pairs, candidates) = sketched.pairs(thresholds, progress)?;
    let mut clusters = Clusters::new(records as usize);
    pairs.iter().for_each(|pair| clusters.join(pair.a, pair.b));
    let groups = clusters.groups();
    let wanted: Vec<u32> = groups.iter().flatten().copied().collect();
    let members = members_of(datasets, &first_of, &wanted, progress)?;
    let mut found = Vec::with_capacity(groups.len());
    let mut by_root: HashMap<u32, Vec<Pair>> = HashMap::new();
    for pair in pairs {
        by_root.entry(clusters.root(pair.a)).or_default().push(pair);
    }
    for group in groups {
        let pairs = by_root.remove(&clusters.root(group[0])).unwrap_or_default();
        found.push(cluster_of(group, &members, &pairs));
    }
    let order = |cluster: &Cluster| {
        let first = &cluster.members[0];
        (first.log_index.unwrap_or(u64::MAX), first.dataset.clone(), first.row)
    };
    found.sort_by_cached_key(order);
    let redundant = found.iter().map(|cluster| cluster.members.len() as u64 - 1).sum();
    Ok(Duplicates { thresholds, records, text_bytes, candidates, redundant, clusters: found })
}

/// Finds duplicates among all datasets of a registry folder, licensed or not.
///
/// # Errors
/// As [`find`], and a folder that is no registry.
pub fn find_in_registry(
    dir: &Path,
    thresholds: Thresholds,
    progress: &dyn Progress,
) -> Result<Duplicates, RegistryError> {
    let log = LicenceLog::read(dir)?;
    let mut described = Vec::new();
    for dir in dataset_dirs(dir)? {
        let path = dir.join(MANIFEST_FILE);
        let manifest: Manifest = files::parse_json(&path, &files::read_small(&path, "manifest")?)?;
        let licence = dir.join(LICENCE_FILE);
        let log_index = if licence.exists() {
            let licence: SignedLicence = files::parse_json(&licence, &files::read_small(&licence, "licence")?)?;
            first_licence(&dir, &log)?.into_iter().chain(log.index_of(licence.digest())).min()
        } else {
            None
        };
        let (set, fields, strict) = content::sources_of(&dir)?;
        described.push((manifest, log_index, set, fields, strict));
    }
    described.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let compared: Vec<Compared<'_>> = described
        .iter()
        .map(|(manifest, log_index, set, fields, strict)| Compared {
            name: manifest.name.clone(),
            owner: manifest.owner.clone(),
            log_index: *log_index,
            ingest: Ingest { set, fields, strict: *strict },
        })
        .collect();
    find(&compared, thresholds, progress)
}

/// Place of the first licence that a dataset ever had, of those that were replaced.
fn first_licence(dir: &Path, log: &LicenceLog) -> Result<Option<u64>, RegistryError> {
    let past = crate::history::read(dir)?;
    Ok(past.iter().filter_map(|past| log.index_of(past.licence.digest())).min())
}

/// What one pass over the records leaves.
struct Sketched {
    shingles: ShingleFile,
    /// Band key, then record.
    bands: Sorter<12>,
    /// Hash of the text, then record.
    texts: Sorter<20>,
    text_bytes: u64,
}

fn temporary(error: std::io::Error) -> RegistryError {
    RegistryError::io(&std::env::temp_dir(), "keeping shingles")(error)
}

impl Sketched {
    fn new() -> Result<Self, RegistryError> {
        let shingles = ShingleFile::new().map_err(temporary)?;
        Ok(Self { shingles, bands: Sorter::new(), texts: Sorter::new(), text_bytes: 0 })
    }

    fn read(&mut self, ingest: &Ingest<'_>, progress: &dyn Progress) -> Result<(), RegistryError> {
        ingest.each_group(progress, &mut |path, batches| {
            let sketches: Result<Vec<_>, RegistryError> = batches
                .par_iter()
                .map(|batch| {
                    let mut sketches = Vec::new();
                    ingest.records_of(path, batch, &mut |record| sketches.push(sketch::Sketch::of(&record.text)))?;
                    Ok(sketches)
                })
                .collect();
            for sketch in sketches?.into_iter().flatten() {
                self.push(&sketch).map_err(temporary)?;
            }
            Ok(())
        })
    }

    fn push(&mut self, sketch: &sketch::Sketch) -> std::io::Result<()> {
        let record = self.shingles.push(&sketch.shingles)?.to_be_bytes();
        for key in &sketch.bands {
            let mut entry = [0; 12];
            entry[..8].copy_from_slice(&key.to_be_bytes());
            entry[8..].copy_from_slice(&record);
            self.bands.push(entry)?;
        }
        let mut entry = [0; 20];
        entry[..16].copy_from_slice(&sketch.text_hash);
        entry[16..].copy_from_slice(&record);
        self.texts.push(entry)?;
        self.text_bytes += sketch.text_bytes;
        Ok(())
    }

    /// All pairs that say the same, and how many candidates were judged.
    fn pairs(self, thresholds: Thresholds, progress: &dyn Progress) -> Result<(Vec<Pair>, u64), RegistryError> {
        let Self { mut shingles, bands, texts, .. } = self;
        shingles.flush().map_err(temporary)?;
        let mut exact = Vec::new();
        each_group(texts, |_, group| {
            // A chain is enough: equality is transitive.
            exact.extend(group.windows(2).map(|pair| (pair[0], pair[1])));
        })?;
        // A pair that shares several bands comes several times; sorted, it is judged once.
        let mut candidates = Sorter::<8>::new();
        let mut failed = None;
        each_group(bands, |_, group| {
            let mut push = |a: u32, b: u32| {
                let mut entry = [0; 8];
                entry[..4].copy_from_slice(&a.min(b).to_be_bytes());
                entry[4..].copy_from_slice(&a.max(b).to_be_bytes());
                failed = candidates.push(entry).err().or(failed.take());
            };
            for (i, a) in group.iter().enumerate() {
                let near = i + 1..group.len().min(i + 1 + GROUP_CAP);
                let first = if i >= GROUP_CAP { 0..GROUP_CAP.min(8) } else { 0..0 };
                near.chain(first).for_each(|j| push(*a, group[j]));
            }
        })?;
        if let Some(error) = failed {
            return Err(temporary(error));
        }
        judge(candidates, &shingles, &exact, thresholds, progress)
    }
}

/// Hands over runs of entries with one key: the key's bytes and the records, ascending.
fn each_group<const N: usize>(sorter: Sorter<N>, mut each: impl FnMut(&[u8], &[u32])) -> Result<(), RegistryError> {
    let (mut key, mut group): (Vec<u8>, Vec<u32>) = (Vec::new(), Vec::new());
    sorter
        .finish(|entry| {
            let (of, record) = entry.split_at(N - 4);
            if of != key {
                if group.len() > 1 {
                    each(&key, &group);
                }
                group.clear();
                key = of.to_vec();
            }
            group.push(u32::from_be_bytes([record[0], record[1], record[2], record[3]]));
            Ok(())
        })
        .map_err(temporary)?;
    if group.len() > 1 {
        each(&key, &group);
    }
    Ok(())
}

/// Counts the shared shingles of every candidate.
fn judge(
    candidates: Sorter<8>,
    shingles: &ShingleFile,
    exact: &[(u32, u32)],
    thresholds: Thresholds,
    progress: &dyn Progress,
) -> Result<(Vec<Pair>, u64), RegistryError> {
    /// Candidates that are judged at once.
    const GROUP: usize = 1 << 16;
    let mut pairs = Vec::new();
    for (a, b) in exact {
        let n = shingles.get(*a).map_err(temporary)?.len() as u32;
        pairs.push(Pair { a: *a, b: *b, exact: true, shared: n, jaccard: 1.0, containment: 1.0 });
    }
    let known: std::collections::HashSet<(u32, u32)> = exact.iter().copied().collect();
    let (mut group, mut last, mut n_judged) = (Vec::new(), None, 0u64);
    let mut flush = |group: &mut Vec<(u32, u32)>| -> std::io::Result<()> {
        let judged: std::io::Result<Vec<Option<Pair>>> =
            group.par_iter().map(|(a, b)| compare(shingles, *a, *b, thresholds)).collect();
        pairs.extend(judged?.into_iter().flatten());
        group.clear();
        Ok(())
    };
    progress.start("compare candidates", 0, "pairs");
    candidates
        .finish(|entry| {
            let half = |i: usize| u32::from_be_bytes([entry[i], entry[i + 1], entry[i + 2], entry[i + 3]]);
            let pair = (half(0), half(4));
            if last == Some(pair) || known.contains(&pair) {
                return Ok(());
            }
            last = Some(pair);
            n_judged += 1;
            group.push(pair);
            if group.len() == GROUP { flush(&mut group) } else { Ok(()) }
        })
        .and_then(|()| flush(&mut group))
        .map_err(temporary)?;
    progress.finish(&format!("{n_judged} pairs"));
    Ok((pairs, n_judged))
}

fn compare(shingles: &ShingleFile, a: u32, b: u32, thresholds: Thresholds) -> std::io::Result<Option<Pair>> {
    let (of_a, of_b) = (shingles.get(a)?, shingles.get(b)?);
    let shared = shingle::n_shared(&of_a, &of_b);
    let (smaller, all) = (of_a.len().min(of_b.len()), of_a.len() + of_b.len() - shared);
    let (jaccard, containment) = (shared as f64 / all.max(1) as f64, shared as f64 / smaller.max(1) as f64);
    let contained = containment >= thresholds.containment && shared >= thresholds.shared_at_least as usize;
    let near = shared > 0 && (jaccard >= thresholds.jaccard || contained);
    Ok(near.then_some(Pair { a, b, exact: false, shared: shared as u32, jaccard, containment }))
}

/// Ids of the records that stand in clusters, in a second pass.
fn members_of(
    datasets: &[Compared<'_>],
    first_of: &[usize],
    wanted: &[u32],
    progress: &dyn Progress,
) -> Result<BTreeMap<u32, Member>, RegistryError> {
    let wanted: std::collections::BTreeSet<u32> = wanted.iter().copied().collect();
    let mut members = BTreeMap::new();
    for (i, dataset) in datasets.iter().enumerate() {
        let first = first_of[i] as u32;
        let end = first_of.get(i + 1).map_or(u32::MAX, |end| *end as u32);
        if wanted.range(first..end).next().is_none() {
            continue;
        }
        dataset.ingest.each_record(progress, |row, record| {
            let place = first + row as u32;
            if wanted.contains(&place) {
                members.insert(
                    place,
                    Member {
                        dataset: dataset.name.clone(),
                        owner: dataset.owner.clone(),
                        id: record.id.clone().into_owned(),
                        row,
                        log_index: dataset.log_index,
                    },
                );
            }
            Ok::<(), RegistryError>(())
        })?;
    }
    Ok(members)
}

fn cluster_of(mut group: Vec<u32>, members: &BTreeMap<u32, Member>, pairs: &[Pair]) -> Cluster {
    group.sort_by_key(|place| {
        let member = &members[place];
        (member.log_index.unwrap_or(u64::MAX), member.dataset.clone(), member.row)
    });
    let position: HashMap<u32, usize> = group.iter().enumerate().map(|(i, place)| (*place, i)).collect();
    let mut evidence: Vec<Evidence> = pairs
        .iter()
        .map(|pair| {
            let (a, b) = (position[&pair.a], position[&pair.b]);
            let Pair { exact, shared, jaccard, containment, .. } = *pair;
            Evidence {
                a: a.min(b),
                b: a.max(b),
                exact,
                shared,
                jaccard: round(jaccard),
                containment: round(containment),
            }
        })
        .collect();
    evidence.sort_by_key(|pair| (pair.a, pair.b));
    let members: Vec<Member> = group.iter().map(|place| members[place].clone()).collect();
    let differ = |of: fn(&Member) -> &str| members.iter().any(|member| of(member) != of(&members[0]));
    Cluster {
        across_datasets: differ(|member| &member.dataset),
        across_owners: differ(|member| &member.owner),
        members,
        evidence,
    }
}

/// Four places are what anybody reads.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Hash by which texts are compared byte for byte.
fn text_hash(text: &str) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&Digest::of(text.as_bytes()).0[..16]);
    hash
}
