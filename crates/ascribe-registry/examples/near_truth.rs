//! Precision, recall and speed of the search for duplicates, against pairs that are known.
//!
//!   cargo run --release -p ascribe-registry --example near_truth -- DATA_FOLDER
//!
//! `DATA_FOLDER` holds `corpora/NAME.jsonl` and `facts/jargon-derived.jsonl`: entries of one dictionary that say that they were
//! taken from another, with the share of words that they copied. Found pairs across the two dictionaries are held against
//! them at several shares; SPDX licence texts are held against every pair of them, compared in full by a second, plain program
//! (sets of strings), and against their own names (versions and variants of one licence). One thread; prints JSON, with
//! megabytes of text per second of the clock and of this process's own time on the processor.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_core::NoProgress;
use ascribe_registry::near::{self, BANDS, Compared, Duplicates, ROWS, SHINGLE_WORDS, Thresholds};
use ascribe_registry::{Fields, Ingest, SourceSet};
use serde::Deserialize;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Deserialize)]
struct Truth {
    original: String,
    derived: String,
    copied_share: f64,
}

fn main() -> Outcome<()> {
    let data = PathBuf::from(std::env::args_os().nth(1).ok_or("expected a folder with corpora/ and facts/")?);
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let corpus = |name: &str| SourceSet::find(&data.join("corpora").join(format!("{name}.jsonl")));
    let (jargon, foldoc) = (corpus("jargon-file")?, corpus("foldoc")?);
    let (found, seconds) = search(&[("jargon-file", &jargon), ("foldoc", &foldoc)])?;
    let pairs = pairs_across(&found);
    let truth: Vec<Truth> = std::fs::read_to_string(data.join("facts/jargon-derived.jsonl"))?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let known: HashSet<(String, String)> =
        truth.iter().map(|pair| (pair.original.clone(), pair.derived.clone())).collect();
    let right = pairs.intersection(&known).count();
    let recall_from = |least: f64| {
        let of: Vec<&Truth> = truth.iter().filter(|pair| pair.copied_share >= least).collect();
        let hit = of.iter().filter(|t| pairs.contains(&(t.original.clone(), t.derived.clone()))).count();
        serde_json::json!({ "copied_share_at_least": least, "pairs": of.len(), "recall": hit as f64 / of.len().max(1) as f64 })
    };
    let recall = [0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].map(recall_from);
    let wrong: Vec<&(String, String)> = pairs.difference(&known).take(12).collect();
    let spdx = corpus("spdx-licenses")?;
    let (licences, spdx_seconds) = search(&[("spdx-licenses", &spdx)])?;
    let all: Vec<SourceSet> = sets_of(&data.join("corpora"))?;
    let named: Vec<(String, &SourceSet)> = all.iter().map(|set| (set.root.display().to_string(), set)).collect();
    let named: Vec<(&str, &SourceSet)> = named.iter().map(|(name, set)| (name.as_str(), *set)).collect();
    let before = cpu_seconds();
    let (whole, whole_seconds) = search(&named)?;
    let whole_cpu = cpu_seconds() - before;
    let report = serde_json::json!({
        "shingle_words": SHINGLE_WORDS, "bands": BANDS, "rows": ROWS, "thresholds": Thresholds::default(),
        "derived": {
            "found": pairs.len(), "known": known.len(), "precision": right as f64 / pairs.len().max(1) as f64,
            "recall": recall, "not_in_the_list": wrong,
            "seconds": seconds, "mb_per_s": found.text_bytes as f64 / 1e6 / seconds, "candidates": found.candidates,
        },
        "spdx": {
            "records": licences.records, "clusters": licences.clusters.len(), "redundant": licences.redundant,
            "same_family": family_precision(&licences), "seconds": spdx_seconds, "every_pair": against_every_pair(&spdx, &licences)?,
        },
        "all": {
            "records": whole.records, "text_bytes": whole.text_bytes, "clusters": whole.clusters.len(),
            "candidates": whole.candidates, "seconds": whole_seconds,
            "mb_per_s": whole.text_bytes as f64 / 1e6 / whole_seconds,
            "cpu_seconds": whole_cpu, "mb_per_cpu_s": whole.text_bytes as f64 / 1e6 / whole_cpu,
        },
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

fn sets_of(dir: &Path) -> Outcome<Vec<SourceSet>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    Ok(paths.iter().map(|path| SourceSet::find(path)).collect::<Result<_, _>>()?)
}

fn search(sets: &[(&str, &SourceSet)]) -> Outcome<(Duplicates, f64)> {
    let fields = Fields::default();
    let compared: Vec<Compared<'_>> = (0u64..)
        .zip(sets)
        .map(|(i, (name, set))| Compared {
            name: (*name).to_owned(),
            owner: (*name).to_owned(),
            log_index: Some(i),
            ingest: Ingest { set, fields: &fields, strict: false },
        })
        .collect();
    let started = Instant::now();
    let found = near::find(&compared, Thresholds::default(), &NoProgress)?;
    Ok((found, started.elapsed().as_secs_f64()))
}

/// Pairs of ids that the evidence names, across datasets, the earlier dataset first.
fn pairs_across(found: &Duplicates) -> HashSet<(String, String)> {
    let mut pairs = HashSet::new();
    for cluster in &found.clusters {
        for pair in &cluster.evidence {
            let (a, b) = (&cluster.members[pair.a], &cluster.members[pair.b]);
            if a.dataset != b.dataset {
                pairs.insert((a.id.clone(), b.id.clone()));
            }
        }
    }
    pairs
}

/// Of all pairs of the evidence, the share whose names begin alike up to the first digit or dash (`GPL-2.0` and `GPL-3.0`,
/// `CC-BY` and `CC-BY-SA`): a proxy, because licences of different families quote one another too.
fn family_precision(found: &Duplicates) -> f64 {
    let family = |id: &str| id.rsplit('/').next().unwrap_or(id).split(['-', '.']).next().unwrap_or("").to_owned();
    let pairs = found.clusters.iter().flat_map(|c| c.evidence.iter().map(move |e| (c, e)));
    let (mut same, mut all) = (0usize, 0usize);
    for (cluster, pair) in pairs {
        all += 1;
        same += usize::from(family(&cluster.members[pair.a].id) == family(&cluster.members[pair.b].id));
    }
    same as f64 / all.max(1) as f64
}

/// Time of this process's threads on a processor, as Linux counts it: what a busy machine does not lengthen.
fn cpu_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |thread: std::fs::DirEntry| -> Option<f64> {
        std::fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    threads.filter_map(of).sum::<f64>() / 1e9
}

/// The found pairs against all pairs of a small set, compared in full without bands, hashes or the library's words: runs of
/// words as strings. Two records of one cluster count as found.
fn against_every_pair(set: &SourceSet, found: &Duplicates) -> Outcome<serde_json::Value> {
    #[derive(Deserialize)]
    struct Record {
        text: String,
    }
    let text = std::fs::read_to_string(&set.files[0])?;
    let records: Vec<Record> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let mut sets: Vec<Vec<u32>> = Vec::new();
    for record in &records {
        let lower = record.text.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let runs = words.windows(SHINGLE_WORDS.min(words.len()).max(1)).map(|run| run.join(" "));
        let mut of: Vec<u32> = runs
            .map(|run| {
                let next = numbers.len() as u32;
                *numbers.entry(run).or_insert(next)
            })
            .collect();
        of.sort_unstable();
        of.dedup();
        sets.push(of);
    }
    let limits = Thresholds::default();
    let near = |a: &[u32], b: &[u32]| {
        let shared = b.iter().filter(|run| a.binary_search(run).is_ok()).count();
        let (smaller, all) = (a.len().min(b.len()), a.len() + b.len() - shared);
        let contained =
            shared as f64 >= limits.containment * smaller as f64 && shared >= limits.shared_at_least as usize;
        shared > 0 && (shared as f64 >= limits.jaccard * all as f64 || contained)
    };
    let mut cluster_of = HashMap::new();
    for (i, cluster) in found.clusters.iter().enumerate() {
        cluster_of.extend(cluster.members.iter().map(|member| (member.row as usize, i)));
    }
    let (mut pairs, mut hit) = (0u64, 0u64);
    let mut known = HashSet::new();
    for i in 0..sets.len() {
        for j in i + 1..sets.len() {
            if near(&sets[i], &sets[j]) {
                pairs += 1;
                known.insert((i, j));
                hit += u64::from(cluster_of.get(&i).is_some_and(|of| cluster_of.get(&j) == Some(of)));
            }
        }
    }
    let evidence: Vec<(usize, usize)> = found
        .clusters
        .iter()
        .flat_map(|c| c.evidence.iter().map(|e| (c.members[e.a].row as usize, c.members[e.b].row as usize)))
        .map(|(a, b)| (a.min(b), a.max(b)))
        .collect();
    let right = evidence.iter().filter(|pair| known.contains(pair)).count();
    Ok(serde_json::json!({
        "records": records.len(), "near_pairs": pairs, "recall": hit as f64 / pairs.max(1) as f64,
        "pairs_of_the_evidence": evidence.len(), "precision": right as f64 / evidence.len().max(1) as f64,
    }))
}
