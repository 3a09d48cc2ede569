//! Station 6: exact top-k and an HNSW index over the same rows, and how many of the true best the index finds.

use std::path::Path;

use ascribe_core::{Digest, FeatureReader as _, Progress};
use ascribe_index::{Effort, ExactIndex, HnswIndex, HnswParams, recall_at_k};
use ascribe_methods::block_fisher::precondition;
use ascribe_store::FeatureStore;
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::features::{self, load_rows, open_train, query_dir};
use super::fit;
use super::stamps::Stamps;
use crate::error::EngineError;
use crate::files;

/// Folder of the index, relative to the run folder.
pub const INDEX_DIR: &str = "index/hnsw";
/// What was measured of it.
pub const RECALL_FILE: &str = "index/recall.json";
/// Rows asked for when recall is measured.
const RECALL_K: usize = 10;

/// The index beside exact search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexReport {
    /// Rows indexed.
    pub rows: u64,
    /// Numbers per row in the store.
    pub dim: u64,
    /// Candidates per graph that were re-ranked exactly.
    pub ef: u64,
    /// Mean recall@10 against exact search, over all responses.
    pub recall_at_10: f64,
    /// The worst response's.
    pub recall_at_10_worst: f64,
    /// Bytes of the store per example.
    pub bytes_per_example: f64,
}

impl IndexReport {
    /// Reads the report of a run folder.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn read(out: &Path) -> Result<Self, EngineError> {
        let path = out.join(RECALL_FILE);
        serde_json::from_slice(&files::read(&path)?).map_err(|e| EngineError::Content {
            path,
            expected: "an index report".into(),
            found: e.to_string(),
        })
    }
}

/// Builds the index over the last checkpoint's rows and measures it with the responses' preconditioned gradients: an
/// inner product with those is block-Fisher influence, so the neighbours found are the influential examples.
///
/// # Errors
/// From the store, the index, the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<(), EngineError> {
    let a = &context.attribution;
    let key = ("index", features::digest(context)?, stamps.outputs_digest(&["fit"]), a.hnsw_dim, a.seed);
    let key = Digest::of_json(&key)?;
    if stamps.is_done(&context.out, "index", key) {
        return Ok(());
    }
    let store = open_train(context, &context.last().name)?;
    progress.start("index", 0, "");
    let params = HnswParams { point_dim: a.hnsw_dim, seed: a.seed, ..HnswParams::default() };
    let index = HnswIndex::build(&store, params)?;
    let dir = context.out.join(INDEX_DIR);
    std::fs::create_dir_all(&dir).map_err(|e| EngineError::io(&dir, e))?;
    index.save(&dir)?;
    // Measured on what a later reader would load, not on what happens to be in memory.
    let index = HnswIndex::open(&store, &dir)?;
    let rows = load_rows(&FeatureStore::open(&context.out.join(query_dir(&context.last().name)), None)?)?;
    let queries = precondition(&fit::read(context, context.last())?, rows.view())?.mapv(|v| v as f32);
    let effort = Effort::default();
    let recall = recall_at_k(&index, &ExactIndex::new(&store)?, queries.view(), RECALL_K, effort)?;
    let report = IndexReport {
        rows: store.n_rows(),
        dim: store.spec().dim as u64,
        ef: effort.ef as u64,
        recall_at_10: recall.mean,
        recall_at_10_worst: recall.min,
        bytes_per_example: store.len_bytes() as f64 / store.n_rows() as f64,
    };
    files::write_atomic(
        &context.out.join(RECALL_FILE),
        &[serde_json::to_vec_pretty(&report)?, b"\n".to_vec()].concat(),
    )?;
    progress.finish(&format!("HNSW over {} rows, recall@10 {:.3} against exact search", report.rows, recall.mean));
    let mut paths: Vec<String> = files::list(&dir)?.into_iter().map(|p| format!("{INDEX_DIR}/{p}")).collect();
    paths.push(RECALL_FILE.to_owned());
    stamps.finish(&context.out, "index", key, &paths)
}
