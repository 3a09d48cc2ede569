//! Fact tracing: does a method find the records that state a fact?
//!
//! A fact set is a file of queries beside a folder of records (`data`). Every channel (`channels`) orders all records for
//! every query; measured are recall@k, hits and the reciprocal rank of the first source, per set and over all. Where a fact
//! stands is the truth here, not what retraining says: for a model that was trained on other texts as well the two differ.

mod channels;
mod data;
mod passages;

use std::collections::BTreeMap;
use std::path::PathBuf;

use ascribe_core::Progress;
use ascribe_eval::recall::{hit_at, recall_at, reciprocal_ranks};
use ascribe_eval::{Estimate, bootstrap_mean};
use ndarray::{ArrayView1, Axis};
use rayon::prelude::*;
use serde_json::{Value, json};

pub use data::{Query, Records, read_queries};

use super::report::{MethodFigure, SettingReport, TruthFigure, cpu_of};
use crate::error::EngineError;
use crate::lab::model::{LabModel, Subject};
use channels::Channel;

/// Records counted by recall, unless asked otherwise.
pub const DEFAULT_K: usize = 10;
/// Queries scored at once.
const BLOCK: usize = 32;
/// What reciprocal ranks are taken after (Cormack et al. 2009).
const RRF_OFFSET: f64 = 60.0;
const BOOTSTRAP_SEED: u64 = 1;

/// Methods in the order of reports: name, sentence, source, control.
pub const METHODS: [(&str, &str, &str, bool); 7] = [
    (
        "combined",
        "reciprocal ranks of influence, words and, where given, the outside encoder added up",
        "Cormack, Clarke and Büttcher, SIGIR 2009, offset 60",
        false,
    ),
    (
        "influence",
        "block-Fisher influence of a record on the answer given the question, as a cosine in the curvature's metric",
        "LoGra, arXiv:2405.13954; unit norm: TrackStar, arXiv:2410.17413",
        false,
    ),
    ("bm25", "BM25 of the question's words and character pairs", "Robertson and Zaragoza 2009", true),
    ("bm25_answer", "BM25 with the answer's words and character pairs too", "Robertson and Zaragoza 2009", true),
    ("embedding", "cosine of mean hidden states of the model itself", "RepSim, arXiv:2409.19998", true),
    ("encoder", "cosine of mean hidden states of another model (--encoder)", "RepSim, arXiv:2409.19998", true),
    ("random", "seeded normal numbers", "—", true),
];
/// What `combined` adds up, as far as they take part. The own hidden states of a small model find next to nothing (recall@10
/// 0.044 on the shipped sets) and only dilute the others.
const COMBINED_OF: [&str; 3] = ["influence", "bm25_answer", "encoder"];

/// What is asked.
#[derive(Clone, Debug)]
pub struct FactsRequest {
    /// Name of the setting in the report.
    pub name: String,
    /// What it is, in a sentence.
    pub about: String,
    /// Folder of records.
    pub corpora: PathBuf,
    /// Query files, a set each.
    pub queries: Vec<PathBuf>,
    /// Model folder for `embedding` and `influence`.
    pub model: PathBuf,
    /// Model folder for `encoder`: any decoder or BERT.
    pub encoder: Option<PathBuf>,
    /// Methods by name; empty for all that can run.
    pub methods: Vec<String>,
    /// Records counted by recall.
    pub k: usize,
    /// At most so many queries of every set.
    pub limit: Option<usize>,
}

/// Measures of one query: recall@k, a source on top, a source among the first k, reciprocal rank of the first source.
type Found = [Option<f64>; 4];

/// Runs the methods over the fact sets.
///
/// # Errors
/// Files that do not read (file, line, field); an unknown method; `k` above the number of records; the models' errors.
pub fn run(request: &FactsRequest, progress: &dyn Progress) -> Result<SettingReport, EngineError> {
    let names = chosen(request)?;
    let records = Records::read(&request.corpora)?;
    let (sets, mut queries) = read_queries(&request.queries, &records)?;
    if let Some(limit) = request.limit {
        let mut seen = vec![0; sets.len()];
        queries.retain(|q| {
            seen[q.set] += 1;
            seen[q.set] <= limit
        });
    }
    if request.k == 0 || request.k > records.len() {
        let expected = format!("1 to {}, the number of records", records.len());
        return Err(EngineError::Setting { setting: "--k", expected, found: request.k.to_string() });
    }
    let channels = open(request, &names, &records, &queries, progress)?;
    let (found, costs) = search(&names, &channels, &records, &queries, request.k, progress)?;
    let mut methods = BTreeMap::new();
    for ((name, found), cpu_blocks) in names.iter().zip(&found).zip(costs) {
        let figure = figure(name, found, &sets, &queries, request.k)?;
        methods.insert(name.clone(), priced(figure, &channels, cpu_blocks));
    }
    let n_sets = sets.len();
    Ok(SettingReport {
        setting: request.name.clone(),
        about: request.about.clone(),
        queries: queries.len(),
        examples: records.len(),
        truth: TruthFigure {
            about: format!("the records that state each fact, named by {n_sets} fact sets: {}", sets.join(", ")),
            ..TruthFigure::default()
        },
        methods,
        gates: Vec::new(),
        notes: Vec::new(),
    })
}

/// Names of the methods asked for, checked.
fn chosen(request: &FactsRequest) -> Result<Vec<String>, EngineError> {
    let known: Vec<&str> = METHODS.iter().map(|m| m.0).collect();
    if let Some(unknown) = request.methods.iter().find(|name| !known.contains(&name.as_str())) {
        let expected = format!("one of {}", known.join(", "));
        return Err(EngineError::Setting { setting: "--methods", expected, found: unknown.clone() });
    }
    if request.methods.iter().any(|name| name == "encoder") && request.encoder.is_none() {
        let expected = "--encoder with a model folder beside the method encoder".into();
        return Err(EngineError::Setting { setting: "--methods", expected, found: "none".into() });
    }
    let wanted = |name: &str| match request.methods.is_empty() {
        true => name != "encoder" || request.encoder.is_some(),
        false => request.methods.iter().any(|asked| asked == name),
    };
    Ok(known.into_iter().filter(|name| wanted(name)).map(str::to_owned).collect())
}

/// Fits every channel that a chosen method needs.
fn open(
    request: &FactsRequest,
    names: &[String],
    records: &Records,
    queries: &[Query],
    progress: &dyn Progress,
) -> Result<BTreeMap<&'static str, Channel>, EngineError> {
    let combined = names.iter().any(|name| name == "combined");
    let needed = |name: &str| {
        let by_combined = combined && COMBINED_OF.contains(&name) && (name != "encoder" || request.encoder.is_some());
        by_combined || names.iter().any(|n| n == name)
    };
    let mut channels = BTreeMap::new();
    for (name, with_answer) in [("bm25", false), ("bm25_answer", true)] {
        if needed(name) {
            channels.insert(name, Channel::words(records, queries, with_answer)?);
        }
    }
    if needed("embedding") || needed("influence") {
        let model = LabModel::open_reader(&request.model, &Subject::default())?;
        if needed("embedding") {
            channels.insert("embedding", Channel::hidden(records, queries, &model, progress)?);
        }
        if needed("influence") {
            let model = LabModel::open(&request.model)?;
            channels.insert("influence", Channel::gradients(records, queries, &model, progress)?);
        }
    }
    if let Some(dir) = request.encoder.as_ref().filter(|_| needed("encoder")) {
        let model = LabModel::open_reader(dir, &Subject::default())?;
        channels.insert("encoder", Channel::hidden(records, queries, &model, progress)?);
    }
    if needed("random") {
        channels.insert("random", Channel::chance());
    }
    Ok(channels)
}

/// Measures of every query under every named method, and the CPU seconds that each method's blocks took.
fn search(
    names: &[String],
    channels: &BTreeMap<&'static str, Channel>,
    records: &Records,
    queries: &[Query],
    k: usize,
    progress: &dyn Progress,
) -> Result<(Vec<Vec<Found>>, Vec<f64>), EngineError> {
    let (mut found, mut costs) = (vec![Vec::new(); names.len()], vec![0.0; names.len()]);
    progress.start("search", queries.len() as u64, "queries");
    for start in (0..queries.len()).step_by(BLOCK) {
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
        let block = start..(start + BLOCK).min(queries.len());
        let mut orders = BTreeMap::new();
        let mut combined_cost = 0.0;
        for (&name, channel) in channels {
            let (order, cpu) = cpu_of(|| -> Result<Vec<Vec<u64>>, EngineError> {
                let scores = channel.score(block.clone(), records.len())?;
                Ok(scores.axis_iter(Axis(0)).into_par_iter().map(|row| ordered(row, |v| f64::from(*v))).collect())
            });
            orders.insert(name, order?);
            if let Some(at) = names.iter().position(|n| n == name) {
                costs[at] += cpu;
            }
            combined_cost += if COMBINED_OF.contains(&name) { cpu } else { 0.0 };
        }
        if let Some(at) = names.iter().position(|n| n == "combined") {
            let parts: Vec<&Vec<Vec<u64>>> = COMBINED_OF.iter().filter_map(|name| orders.get(name)).collect();
            let (order, cpu) = cpu_of(|| {
                let fuse = |q: usize| fused(&parts.iter().map(|part| part[q].as_slice()).collect::<Vec<_>>());
                (0..block.len()).into_par_iter().map(fuse).collect()
            });
            orders.insert("combined", order);
            costs[at] += cpu + combined_cost;
        }
        let sources: Vec<Vec<u64>> = queries[block.clone()].iter().map(|q| q.sources.clone()).collect();
        for (name, found) in names.iter().zip(&mut found) {
            let order = &orders[name.as_str()];
            let (recall, hit) = (recall_at(k, &sources, order), hit_at(1, &sources, order));
            let (hit_k, rank) = (hit_at(k, &sources, order), reciprocal_ranks(&sources, order));
            found.extend((0..block.len()).map(|q| [recall[q], hit[q], hit_k[q], rank[q]]));
        }
        progress.advance(block.len() as u64);
    }
    progress.finish("");
    Ok((found, costs))
}

/// Positions from the highest score down; equal scores in their order.
fn ordered<T>(scores: ArrayView1<'_, T>, value: impl Fn(&T) -> f64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..scores.len() as u64).collect();
    order.sort_by(|&a, &b| value(&scores[b as usize]).total_cmp(&value(&scores[a as usize])));
    order
}

/// Order by the sum of `1/(60 + rank)` over several orders.
fn fused(orders: &[&[u64]]) -> Vec<u64> {
    let mut scores = ndarray::Array1::<f64>::zeros(orders.first().map_or(0, |order| order.len()));
    for order in orders {
        for (rank, &record) in order.iter().enumerate() {
            scores[record as usize] += 1.0 / (RRF_OFFSET + (rank + 1) as f64);
        }
    }
    ordered(scores.view(), |v| *v)
}

/// The figure of one method: recall@k over all queries, everything else beside it, per set too.
fn figure(
    name: &str,
    found: &[Found],
    sets: &[String],
    queries: &[Query],
    k: usize,
) -> Result<MethodFigure, EngineError> {
    let measures = [format!("recall_at_{k}"), "hit_at_1".to_owned(), format!("hit_at_{k}"), "mrr".to_owned()];
    let (_, about, source, control) = METHODS.into_iter().find(|m| m.0 == name).expect("names were checked");
    let over = |measure: usize, set: Option<usize>| -> Result<Estimate, EngineError> {
        let of_set = found.iter().zip(queries).filter(|(_, q)| set.is_none_or(|set| q.set == set));
        let values: Vec<Option<f64>> = of_set.map(|(f, _)| f[measure]).collect();
        Ok(bootstrap_mean(&values, BOOTSTRAP_SEED)?)
    };
    let mut figure = MethodFigure::new(name, &measures[0]).estimated(Some(&over(0, None)?), found.len());
    for (at, measure) in measures.iter().enumerate() {
        for set in std::iter::once(None).chain((0..sets.len()).map(Some)) {
            let label = set.map_or_else(|| measure.clone(), |set| format!("{measure}@{}", sets[set]));
            if (at, set) == (0, None) {
                continue;
            }
            let estimate = over(at, set)?;
            figure.extra.insert(format!("{label}_low"), Some(estimate.low));
            figure.extra.insert(format!("{label}_high"), Some(estimate.high));
            figure.extra.insert(label, Some(estimate.mean));
        }
    }
    (figure.about, figure.source, figure.control) = (about.to_owned(), source.to_owned(), control);
    Ok(figure)
}

/// Adds what a method costs: its own channel's, or those of the channels that it combines.
fn priced(figure: MethodFigure, channels: &BTreeMap<&'static str, Channel>, cpu_blocks: f64) -> MethodFigure {
    let parts: Vec<(&&str, &Channel)> = match figure.name.as_str() {
        "combined" => channels.iter().filter(|(name, _)| COMBINED_OF.contains(*name)).collect(),
        own => channels.iter().filter(|(name, _)| **name == own).collect(),
    };
    let settings = match parts.as_slice() {
        [(_, one)] if figure.name != "combined" => one.settings.clone(),
        several => {
            let names: Vec<Value> = several.iter().map(|(name, _)| json!(name)).collect();
            json!({ "of": names, "offset": RRF_OFFSET })
        }
    };
    MethodFigure {
        cpu_fit: parts.iter().map(|(_, c)| c.cpu_fit).sum(),
        cpu_score: cpu_blocks + parts.iter().map(|(_, c)| c.cpu_queries).sum::<f64>(),
        bytes_per_example: parts.iter().map(|(_, c)| c.bytes_per_record).sum(),
        settings,
        ..figure
    }
}

#[cfg(test)]
mod tests;
