//! The retrain bank: the measured truth. For every seed, one training with all datasets and one without each of them;
//! the change of a response's loss is what the dataset was worth to it.
//!
//! Every finished training is one small file, so a bank can be stopped, resumed, shared between machines and committed
//! while it grows.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_core::{Digest, Progress};
use ascribe_corpus::Corpus;
use ascribe_models::Sequence;
use ndarray::{Array2, Array3};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;
use crate::recipe::Recipe;
use crate::train;

/// Version of a bank cell file.
pub const BANK_FORMAT_VERSION: u32 = 1;

/// One finished training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankCell {
    /// [`BANK_FORMAT_VERSION`].
    pub format_version: u32,
    /// Recipe that was trained.
    pub recipe: Digest,
    /// Corpus that it was trained on.
    pub corpus: Digest,
    /// Seed of initialisation and order.
    pub seed: u64,
    /// Name of the removed dataset, if any.
    pub removed: Option<String>,
    /// Examples left.
    pub n_examples: u64,
    /// Mean training loss of the last 50 steps, nats per token.
    pub train_loss: f64,
    /// Wall seconds of the training (of its last part, when it was resumed).
    pub seconds: f64,
    /// Weights that came out.
    pub weights: Digest,
    /// Summed nats of each query's response, in query order.
    pub query_nats: Vec<f64>,
}

/// All cells of a bank: losses `[seed][query]` with all data, and `[seed][query][dataset]` without each dataset.
#[derive(Clone, Debug)]
pub struct Bank {
    /// Seeds that are complete.
    pub seeds: Vec<u64>,
    /// Summed nats per response with all datasets, `[S, Q]`.
    pub full: Array2<f64>,
    /// Loss change per response when a dataset is absent, `[S, Q, K]`; positive = the dataset helped.
    pub change: Array3<f64>,
    /// SHA-256 over the digests of all cell files used, in order.
    pub digest: Digest,
}

/// File of one cell.
pub fn cell_path(dir: &Path, seed: u64, removed: Option<&str>) -> PathBuf {
    match removed {
        None => dir.join(format!("seed{seed}-all.json")),
        Some(name) => dir.join(format!("seed{seed}-without-{name}.json")),
    }
}

/// Trains every missing cell for `seeds`, seed by seed, and writes each as it is done. `shard = (i, n)` takes every n-th
/// cell from the i-th on, so that n processes, or n machines, share the work.
///
/// # Errors
/// From training or the disk; a cell of another recipe or corpus is an error that names it, not overwritten.
pub fn build(
    dir: &Path,
    corpus: &Corpus,
    recipe: &Recipe,
    seeds: &[u64],
    (shard, n_shards): (u64, u64),
    progress: &dyn Progress,
) -> Result<u64, EngineError> {
    let (mut trained, mut cell_idx) = (0, 0);
    for &seed in seeds {
        let removals = std::iter::once(None).chain((0..corpus.n_datasets() as u32).map(Some));
        for removed in removals {
            cell_idx += 1;
            if (cell_idx - 1) % n_shards != shard {
                continue;
            }
            let name = removed.map(|k| corpus.datasets[k as usize].name.as_str());
            let path = cell_path(dir, seed, name);
            if path.exists() {
                read_cell(&path, corpus, recipe)?;
                continue;
            }
            let cell = build_cell(dir, corpus, recipe, seed, removed, progress)?;
            files::write_atomic(&path, &[serde_json::to_vec_pretty(&cell)?, b"\n".to_vec()].concat())?;
            trained += 1;
        }
    }
    Ok(trained)
}

fn build_cell(
    dir: &Path,
    corpus: &Corpus,
    recipe: &Recipe,
    seed: u64,
    removed: Option<u32>,
    progress: &dyn Progress,
) -> Result<BankCell, EngineError> {
    let started = Instant::now();
    let name = removed.map(|k| corpus.datasets[k as usize].name.clone());
    let state = dir.join(format!(".state-seed{seed}-{}", name.as_deref().unwrap_or("all")));
    let mut losses = Vec::new();
    let trainer = train::train(corpus, recipe, seed, removed, Some(&state), progress, |report, _| {
        losses.push(report.loss);
        Ok(())
    })?;
    let tail = &losses[losses.len().saturating_sub(50)..];
    let n_examples = corpus.examples.iter().filter(|e| Some(e.id.dataset) != removed).count() as u64;
    let cell = BankCell {
        format_version: BANK_FORMAT_VERSION,
        recipe: recipe.digest(),
        corpus: corpus.manifest.digest(),
        seed,
        removed: name,
        n_examples,
        train_loss: tail.iter().sum::<f64>() / tail.len().max(1) as f64,
        seconds: started.elapsed().as_secs_f64(),
        weights: trainer.decoder().weights_digest(),
        query_nats: trainer.decoder().losses(&query_sequences(corpus))?,
    };
    if state.exists() {
        std::fs::remove_dir_all(&state).map_err(|e| EngineError::io(&state, e))?;
    }
    Ok(cell)
}

/// The queries as the model sees them: loss on the response only.
pub fn query_sequences(corpus: &Corpus) -> Vec<Sequence<'_>> {
    let loss_from = corpus.manifest.config.prompt_len;
    corpus.queries.iter().map(|q| Sequence { tokens: &q.tokens, loss_from }).collect()
}

fn read_cell(path: &Path, corpus: &Corpus, recipe: &Recipe) -> Result<BankCell, EngineError> {
    let content = |expected: String, found: String| EngineError::Content { path: path.into(), expected, found };
    let cell: BankCell = serde_json::from_slice(&files::read(path)?)
        .map_err(|e| content("a bank cell".into(), format!("other content ({e})")))?;
    let (recipe, manifest) = (recipe.digest(), corpus.manifest.digest());
    if cell.format_version != BANK_FORMAT_VERSION {
        return Err(content(format!("format version {BANK_FORMAT_VERSION}"), cell.format_version.to_string()));
    }
    if cell.recipe != recipe {
        return Err(content(format!("a cell of recipe {recipe}"), format!("recipe {}", cell.recipe)));
    }
    if cell.corpus != manifest {
        return Err(content(format!("a cell of corpus {manifest}"), format!("corpus {}", cell.corpus)));
    }
    if cell.query_nats.len() != corpus.queries.len() {
        return Err(content(format!("{} query losses", corpus.queries.len()), cell.query_nats.len().to_string()));
    }
    if let Some(q) = cell.query_nats.iter().position(|l| !l.is_finite()) {
        return Err(content("finite losses".into(), format!("{} for query {q}", cell.query_nats[q])));
    }
    Ok(cell)
}

impl Bank {
    /// Reads all complete seeds, lowest first. Seeds with a missing cell are left out; without any, `None`.
    ///
    /// # Errors
    /// A cell of another recipe or corpus, or one that does not parse.
    pub fn read(dir: &Path, corpus: &Corpus, recipe: &Recipe) -> Result<Option<Self>, EngineError> {
        let names: Vec<Option<&str>> =
            std::iter::once(None).chain(corpus.datasets.iter().map(|d| Some(d.name.as_str()))).collect();
        let mut seeds = Vec::new();
        let mut seed = recipe.seed;
        while names.iter().all(|n| cell_path(dir, seed, *n).exists()) {
            seeds.push(seed);
            seed += 1;
        }
        if seeds.is_empty() {
            return Ok(None);
        }
        let (n_queries, n_datasets) = (corpus.queries.len(), corpus.n_datasets());
        let mut full = Array2::zeros((seeds.len(), n_queries));
        let mut change = Array3::zeros((seeds.len(), n_queries, n_datasets));
        let mut digests = Vec::new();
        for (s, &seed) in seeds.iter().enumerate() {
            for (c, name) in names.iter().enumerate() {
                let path = cell_path(dir, seed, *name);
                let cell = read_cell(&path, corpus, recipe)?;
                digests.extend_from_slice(&files::digest(&path)?.0);
                for (q, &nats) in cell.query_nats.iter().enumerate() {
                    match c.checked_sub(1) {
                        None => full[(s, q)] = nats,
                        Some(k) => change[(s, q, k)] = nats - full[(s, q)],
                    }
                }
            }
        }
        Ok(Some(Self { seeds, full, change, digest: Digest::of(&digests) }))
    }
}
