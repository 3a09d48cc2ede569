//! Recall, measured when an index is built and kept with it.

use ascribe_core::FeatureReader;
use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::{HnswIndex, Metric};
use crate::backend::{RECALL_K, measure};
use crate::candidates::Blocks;
use crate::error::IndexError;
use crate::{Effort, ExactIndex, Hit, VectorIndex};

/// Queries that are drawn.
const N_QUERIES: usize = 64;

/// Recall at rising efforts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecallCurve {
    /// Rows asked for; 0 if nothing was measured (an index of version 1).
    pub k: usize,
    /// Queries: rows of the store, each with as much noise again.
    pub n_queries: usize,
    /// By rising effort.
    pub points: Vec<RecallPoint>,
}

/// One measurement.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecallPoint {
    /// Candidates of each graph.
    pub ef: usize,
    /// Candidates that were scored exactly.
    pub n_exact: usize,
    /// Mean recall.
    pub recall: f64,
    /// The worst query's.
    pub worst: f64,
}

impl RecallCurve {
    /// The least effort whose measured recall is at least `recall`; none if no measured one was: then search exactly.
    pub fn effort_for(&self, recall: f64) -> Option<Effort> {
        let point = self.points.iter().find(|point| point.recall >= recall)?;
        Some(Effort { ef: point.ef, n_exact: point.n_exact })
    }
}

impl<R: FeatureReader> HnswIndex<'_, R> {
    /// What was measured when it was built.
    pub fn curve(&self) -> &RecallCurve {
        &self.curve
    }

    /// The least effort whose measured recall is at least `recall`; none if no measured one was: then search exactly.
    pub fn effort_for(&self, recall: f64) -> Option<Effort> {
        self.curve.effort_for(recall)
    }

    /// Recall at every effort, for queries that are rows of the reader with as much noise again.
    pub(super) fn measure(&self) -> Result<RecallCurve, IndexError> {
        let queries = drawn_queries(self.reader, &self.blocks, self.params.seed)?;
        self.measure_with(queries.view())
    }

    /// Recall at every effort for the queries `[Q, dim]`: measure with those that will be asked where they are known, and
    /// the curve is theirs ([`HnswIndex::set_curve`]).
    ///
    /// # Errors
    /// Those of a search.
    pub fn measure_with(&self, queries: ArrayView2<'_, f32>) -> Result<RecallCurve, IndexError> {
        let k = RECALL_K.min(self.reader.n_rows() as usize);
        measure(self, queries, &self.truth(queries, k)?)
    }

    /// Puts a curve in the place of the one that was measured at build.
    pub fn set_curve(&mut self, curve: RecallCurve) {
        self.curve = curve;
    }

    /// The true best rows by the metric.
    fn truth(&self, queries: ArrayView2<'_, f32>, k: usize) -> Result<Vec<Vec<Hit>>, IndexError> {
        match self.params.metric {
            Metric::InnerProduct => ExactIndex::new(self.reader)?.search_many(queries, k, Effort::default()),
            Metric::Cosine => {
                // Every row is a candidate.
                let rows: Vec<u64> = (0..self.reader.n_rows()).collect();
                let all = |q: usize| {
                    let query = queries.row(q).to_vec();
                    crate::candidates::rerank(self.reader, &self.blocks, &query, &rows, k, true)
                };
                (0..queries.nrows()).map(all).collect()
            }
        }
    }
}

/// Rows of a reader, each with noise of its own size: what recall is measured with where nobody knows the real queries.
///
/// # Errors
/// The reader's.
pub fn drawn_queries<R: FeatureReader>(reader: &R, blocks: &Blocks, seed: u64) -> Result<Array2<f32>, IndexError> {
    let (n, dim) = (reader.n_rows(), reader.spec().dim);
    let mut stream = Stream::new(seed, "index/hnsw/recall");
    let n_queries = N_QUERIES.min(n as usize);
    let mut queries = Array2::zeros((n_queries, dim));
    for mut query in queries.rows_mut() {
        let row = stream.below(u32::try_from(n).unwrap_or(u32::MAX));
        let block_idx = blocks.block_of(u64::from(row));
        let place = (u64::from(row) - blocks.starts[block_idx]) as u32;
        let found = reader.rows_at(block_idx, &[place]).map_err(IndexError::reader)?;
        let x = found.rows.row(0);
        let size = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / dim as f64).sqrt();
        for (q, &x) in query.iter_mut().zip(x) {
            let noisy = f64::from(x) + stream.normal() * size;
            *q = noisy.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        }
    }
    Ok(queries)
}
