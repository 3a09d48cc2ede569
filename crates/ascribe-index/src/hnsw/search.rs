//! Searching: each graph nominates, the store decides.

use ascribe_core::FeatureReader;
use ndarray::ArrayView2;
use rayon::prelude::*;

use super::HnswIndex;
use crate::candidates::rerank;
use crate::error::IndexError;
use crate::{Effort, Hit, VectorIndex, check_queries};

/// A row that a graph named.
struct Nominee {
    row: u64,
    /// Its product with the query (of length 1), as the points have it.
    estimate: f64,
    /// What the product hardly lies below.
    least: f64,
}

impl<R: FeatureReader> VectorIndex for HnswIndex<'_, R> {
    fn n_rows(&self) -> u64 {
        self.reader.n_rows()
    }

    fn dim(&self) -> usize {
        self.reader.spec().dim
    }

    /// Each graph nominates `effort.ef` rows; the `effort.n_exact` best of them by estimate, and all orphans, are scored
    /// exactly.
    fn search_many(&self, queries: ArrayView2<'_, f32>, k: usize, effort: Effort) -> Result<Vec<Vec<Hit>>, IndexError> {
        check_queries(queries, k, self.n_rows(), self.dim())?;
        let queries = queries.as_standard_layout();
        let points = self.projection.points(queries.view());
        let rows: Vec<Vec<u64>> = (0..queries.nrows())
            .into_par_iter()
            .map(|q| self.nominate(points.row(q).as_slice().expect("points are in standard layout"), k, effort))
            .collect();
        rerank(self.reader, &self.map.starts, queries.view(), &rows, k)
    }
}

impl<R: FeatureReader> HnswIndex<'_, R> {
    /// Rows worth an exact score, ascending.
    fn nominate(&self, point: &[f32], k: usize, effort: Effort) -> Vec<u64> {
        let (ef, n_exact) = (effort.ef.max(k), effort.n_exact.max(k));
        let slack = self.projection.angle_error();
        let mut nominees: Vec<Nominee> = Vec::new();
        for (graph, &max_norm) in self.graphs.iter().zip(&self.max_norms) {
            if k > 0 && nominees.len() >= k {
                // With a query of length 1 no product exceeds the row's norm, and norms only fall from here on.
                let by_least = |a: &Nominee, b: &Nominee| b.least.total_cmp(&a.least);
                let (_, kth, _) = nominees.select_nth_unstable_by(k - 1, by_least);
                if max_norm < kth.least {
                    break;
                }
            }
            nominees.extend(graph.search(point, ef, ef).into_iter().map(|neighbour| {
                // Points have length 1: d² = 2 − 2·cos.
                let cosine = 1.0 - f64::from(neighbour.distance).powi(2) / 2.0;
                let norm = self.map.norms[neighbour.d_id];
                Nominee { row: neighbour.d_id as u64, estimate: cosine * norm, least: (cosine - slack) * norm }
            }));
        }
        nominees.sort_unstable_by(|a, b| b.estimate.total_cmp(&a.estimate).then(a.row.cmp(&b.row)));
        nominees.truncate(n_exact);
        let mut rows: Vec<u64> =
            nominees.into_iter().map(|nominee| nominee.row).chain(self.orphans.iter().copied()).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }
}
