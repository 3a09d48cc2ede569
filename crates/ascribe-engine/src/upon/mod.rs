//! `ascribe self-influence`: what training examples do upon themselves.
//!
//! `s(z) = ⟨g_z, M g_z⟩` with the metric of the method: large for examples that the model fits alone, which are wrong labels, rarities
//! and what it knows by heart. Source: TracIn, arXiv:2002.08484, section 4; Koh and Liang, arXiv:1703.04730, section 5.4. Of a run of the
//! walk, of any feature store, or of every method of a bench setting; per example, per record and per dataset. Here lives: where rows come
//! from, and the table. The mathematics is that of methods; `bench::methods::self_influence` has the catalogue's.

mod sources;

use std::collections::BTreeMap;
use std::path::PathBuf;

use ascribe_core::{DatasetScores, Digest, ExampleId, Progress, QueryId, RecordId, ScoreTable};
use ascribe_store::{ScoreFileMeta, ScoreWriter};
use ndarray::Array2;
use serde::Serialize;

use crate::error::EngineError;
use crate::files;
use crate::home::Home;

/// What is looked at.
#[derive(Clone, Debug)]
pub enum UponSource {
    /// A run of the walk: gradients and block-Fisher influence, at the last checkpoint and summed over all.
    Run {
        /// Model folder under `models/`.
        model: String,
        /// Run folder.
        out: PathBuf,
    },
    /// Rows of a feature store: plain and through their own block Fisher matrix.
    Store {
        /// Folder of the store.
        dir: PathBuf,
        /// Damping, relative to the mean eigenvalue of each module.
        damping_rel: f64,
    },
    /// Methods of a bench setting.
    Setting {
        /// Its name.
        name: String,
        /// Methods; all that are no controls if none is named.
        methods: Vec<String>,
        /// Evenly spread training examples that are looked at; all without.
        examples: Option<usize>,
    },
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct UponRequest {
    /// What is looked at.
    pub source: UponSource,
    /// Examples and records listed per method, largest first.
    pub top: usize,
    /// File to write: `.parquet` (a score file whose one query, 0, stands for the example itself) or `.json` (everything).
    pub write: Option<PathBuf>,
}

/// One example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UponExample {
    /// Its number in the setting, or within its dataset.
    pub example: u32,
    /// Its dataset (of images: its class).
    pub dataset: String,
    /// The record that fills most of it, where records are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Its self-influence.
    pub value: f64,
}

/// A record, over the examples whose main record it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UponRecord {
    /// The record.
    pub record: String,
    /// Its dataset.
    pub dataset: String,
    /// Examples.
    pub examples: usize,
    /// Mean over them.
    pub mean: f64,
    /// Largest of them.
    pub largest: f64,
}

/// A dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UponDataset {
    /// Its name.
    pub dataset: String,
    /// Examples looked at.
    pub examples: usize,
    /// Mean.
    pub mean: f64,
    /// Middle value (the lower of two).
    pub median: f64,
    /// Largest.
    pub largest: f64,
}

/// One method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UponMethod {
    /// Name.
    pub method: String,
    /// In words.
    pub about: String,
    /// CPU seconds.
    pub cpu_seconds: f64,
    /// Examples looked at.
    pub examples: usize,
    /// Per dataset, in the order of datasets.
    pub datasets: Vec<UponDataset>,
    /// Examples with the largest values.
    pub top: Vec<UponExample>,
    /// Records with the largest mean; empty where records are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<UponRecord>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UponReport {
    /// What was looked at, in words.
    pub of: String,
    /// By method.
    pub methods: Vec<UponMethod>,
    /// Methods that have none here, with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The written file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<PathBuf>,
}

/// Values of a method before they are told.
pub(crate) struct Measured {
    pub method: String,
    pub about: String,
    pub cpu_seconds: f64,
    /// In the order of [`Collection::ids`]; may be shorter.
    pub values: Vec<f64>,
}

/// Who is looked at.
pub(crate) struct Collection {
    pub of: String,
    pub ids: Vec<ExampleId>,
    /// Names by ordinal.
    pub datasets: Vec<String>,
    /// The main record of each example with its name, where known.
    pub records: BTreeMap<ExampleId, (RecordId, String)>,
    /// What decides the values besides the method.
    pub spec: Digest,
    pub methods: Vec<Measured>,
    pub notes: Vec<String>,
}

/// Measures, tells and writes. Deterministic but for CPU seconds. Cost: of rows a pass per method; of a setting see
/// [`crate::bench::methods::self_influence`].
///
/// # Errors
/// A run, store or setting that does not open; an unknown method, or none that has self-influence; a value that is not finite (method
/// and example named); a file that is neither `.parquet` nor `.json`; a request to stop.
pub fn run(home: &Home, request: &UponRequest, progress: &dyn Progress) -> Result<UponReport, EngineError> {
    let ending = request.write.as_ref().map(|path| path.extension().and_then(|e| e.to_str()).unwrap_or("").to_owned());
    if let Some(found) = ending.as_ref().filter(|e| !["parquet", "json"].contains(&e.as_str())) {
        let expected = "a file that ends with .parquet or .json".to_owned();
        return Err(EngineError::Setting { setting: "--write", expected, found: format!("{found:?}") });
    }
    let found = match &request.source {
        UponSource::Run { model, out } => sources::of_run(home, model, out, progress)?,
        UponSource::Store { dir, damping_rel } => sources::of_store(dir, *damping_rel, progress)?,
        UponSource::Setting { name, methods, examples } => {
            sources::of_setting(home, name, methods, *examples, progress)?
        }
    };
    for method in &found.methods {
        if let Some(i) = method.values.iter().position(|v| !v.is_finite()) {
            let id = found.ids[i];
            return Err(EngineError::Scores {
                method: method.method.clone(),
                expected: "finite self-influence".into(),
                found: format!("{} for example {}:{}", method.values[i], id.dataset, id.idx),
            });
        }
    }
    let mut report = UponReport {
        of: found.of.clone(),
        methods: found.methods.iter().map(|m| told(&found, m, request.top)).collect(),
        notes: found.notes.clone(),
        written: request.write.clone(),
    };
    if let Some(path) = &request.write {
        match ending.as_deref() {
            Some("json") => {
                // The file has everybody.
                report.methods = found.methods.iter().map(|m| told(&found, m, usize::MAX)).collect();
                files::write_atomic(path, &[serde_json::to_vec_pretty(&report)?, b"\n".to_vec()].concat())?;
                report.methods = found.methods.iter().map(|m| told(&found, m, request.top)).collect();
            }
            _ => write_table(path, &found)?,
        }
    }
    Ok(report)
}

fn told(found: &Collection, method: &Measured, top: usize) -> UponMethod {
    let values = &method.values;
    let n_datasets = found.datasets.len();
    let mut of: Vec<Vec<f64>> = vec![Vec::new(); n_datasets];
    values.iter().zip(&found.ids).for_each(|(v, id)| of[id.dataset as usize].push(*v));
    let dataset = |(k, values): (usize, &Vec<f64>)| {
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(UponDataset {
            dataset: found.datasets[k].clone(),
            examples: values.len(),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            median: *sorted.get((values.len().checked_sub(1)?) / 2)?,
            largest: *sorted.last()?,
        })
    };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[b].total_cmp(&values[a]).then(found.ids[a].cmp(&found.ids[b])));
    let name = |id: &ExampleId| found.datasets[id.dataset as usize].clone();
    let example = |&i: &usize| {
        let id = found.ids[i];
        let record = found.records.get(&id).map(|(_, name)| name.clone());
        UponExample { example: id.idx, dataset: name(&id), record, value: values[i] }
    };
    UponMethod {
        method: method.method.clone(),
        about: method.about.clone(),
        cpu_seconds: method.cpu_seconds,
        examples: values.len(),
        datasets: of.iter().enumerate().filter_map(dataset).collect(),
        top: order.iter().take(top).map(example).collect(),
        records: records(found, values, top),
    }
}

/// Records by their mean, largest first.
fn records(found: &Collection, values: &[f64], top: usize) -> Vec<UponRecord> {
    let mut of: BTreeMap<RecordId, (&str, Vec<f64>)> = BTreeMap::new();
    for (value, id) in values.iter().zip(&found.ids) {
        if let Some((record, name)) = found.records.get(id) {
            of.entry(*record).or_insert((name, Vec::new())).1.push(*value);
        }
    }
    let one = |(id, (name, values)): (RecordId, (&str, Vec<f64>))| UponRecord {
        record: name.to_owned(),
        dataset: found.datasets[id.dataset as usize].clone(),
        examples: values.len(),
        mean: values.iter().sum::<f64>() / values.len() as f64,
        largest: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    };
    let mut all: Vec<UponRecord> = of.into_iter().map(one).collect();
    // Equal means stay in the order of records.
    all.sort_by(|a, b| b.mean.total_cmp(&a.mean));
    all.truncate(top);
    all
}

/// A score file with one query: every example upon itself, and the means of datasets.
fn write_table(path: &std::path::Path, found: &Collection) -> Result<(), EngineError> {
    let spec = |method: &str| Digest::of_json(&("self-influence", method, found.spec));
    let methods: BTreeMap<String, Digest> = found
        .methods
        .iter()
        .map(|m| Ok((m.method.clone(), spec(&m.method)?)))
        .collect::<Result<_, serde_json::Error>>()?;
    let meta = ScoreFileMeta { spec: found.spec, corpus: found.spec, methods };
    let mut writer = ScoreWriter::create(path, &meta)?;
    for method in &found.methods {
        let n = method.values.len();
        let values = Array2::from_shape_fn((1, n), |(_, i)| method.values[i] as f32);
        let table = ScoreTable {
            method: method.method.clone(),
            spec: spec(&method.method)?,
            queries: vec![QueryId(0)],
            examples: found.ids[..n].to_vec(),
            values,
        };
        writer.push_examples(&table, None, &|id| found.records.get(&id).map(|(record, _)| *record))?;
        let means = told(found, method, 0).datasets;
        let mean = |k: usize| means.iter().find(|d| d.dataset == found.datasets[k]).map_or(0.0, |d| d.mean);
        writer.push_datasets(&DatasetScores {
            method: method.method.clone(),
            spec: spec(&method.method)?,
            queries: vec![QueryId(0)],
            values: Array2::from_shape_fn((1, found.datasets.len()), |(_, k)| mean(k)),
        })?;
    }
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_by_hand() {
        let id = |dataset, idx| ExampleId { dataset, idx };
        let record = |dataset, row, name: &str| (RecordId { dataset, row }, name.to_owned());
        let found = Collection {
            of: "hand".into(),
            ids: vec![id(0, 0), id(0, 1), id(0, 2), id(1, 0)],
            datasets: vec!["a".into(), "b".into(), "c".into()],
            records: [
                (id(0, 0), record(0, 0, "a/0")),
                (id(0, 1), record(0, 0, "a/0")),
                (id(0, 2), record(0, 1, "a/1")),
            ]
            .into(),
            spec: Digest::of(b"hand"),
            methods: vec![],
            notes: vec![],
        };
        let method =
            Measured { method: "m".into(), about: String::new(), cpu_seconds: 0.0, values: vec![1.0, 5.0, 2.0, 5.0] };
        let told = told(&found, &method, 2);
        let a = &told.datasets[0];
        assert_eq!((a.examples, a.mean, a.median, a.largest), (3, 8.0 / 3.0, 2.0, 5.0));
        assert_eq!(
            (told.datasets.len(), told.datasets[1].mean),
            (2, 5.0),
            "nothing is said of a dataset without examples"
        );
        // Equal values: the earlier example first.
        assert_eq!(told.top.iter().map(|e| (e.dataset.as_str(), e.example)).collect::<Vec<_>>(), [("a", 1), ("b", 0)]);
        assert_eq!(told.top[0].record.as_deref(), Some("a/0"));
        assert_eq!(
            told.records.iter().map(|r| (r.record.as_str(), r.mean, r.examples)).collect::<Vec<_>>(),
            [("a/0", 3.0, 2), ("a/1", 2.0, 1)]
        );
    }
}
