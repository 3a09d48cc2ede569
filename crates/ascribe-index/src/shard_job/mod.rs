//! One shard in, its best rows and its datasets' sums out: the unit of work that one machine, a cluster and a job array share.
//!
//! A [`ShardJob`] is pure and idempotent: its answer depends on the shard's bytes, the queries and `k`, and it has a name made of
//! exactly these ([`ShardJob::name`]), so whoever runs it twice has the same file twice. Answers ([`Partial`]) are joined in
//! any order and any grouping with the same bytes: best rows by a total order, sums exactly ([`ExactSum`]).
//!
//! A row's score is the f64 dot product in the fixed order of [`ascribe_linalg::sum::dot`], as everywhere in this crate; the score
//! of a dataset is the exact sum of its rows' scores, rounded once.

mod exact_sum;
mod partial;

use ascribe_core::FeatureReader as _;
use ascribe_linalg::sum;
use ascribe_store::FeatureStore;
use ndarray::ArrayView2;

pub use exact_sum::ExactSum;
pub use partial::{Answer, Best, DatasetAnswer, Partial};

use crate::check_queries;
use crate::error::IndexError;

/// The score of one row under every query, appended to `scores`; queries `[Q, dim]` in standard layout.
///
/// # Errors
/// [`IndexError::RowNotFinite`] with `row_idx` if a score is not finite.
///
/// # Panics
/// If the row or the queries are not contiguous, or not of one length.
pub fn score_row(
    row: &[f32],
    queries: ArrayView2<'_, f32>,
    row_idx: u64,
    scores: &mut Vec<f64>,
) -> Result<(), IndexError> {
    for query in queries.rows() {
        let score = sum::dot(query.to_slice().expect("queries are in standard layout"), row);
        if !score.is_finite() {
            return Err(IndexError::RowNotFinite { row: row_idx });
        }
        scores.push(score);
    }
    Ok(())
}

/// The work: one shard of a store under all queries.
#[derive(Debug)]
pub struct ShardJob<'s> {
    store: &'s FeatureStore,
    shard: usize,
    queries: ArrayView2<'s, f32>,
    k: usize,
}

impl<'s> ShardJob<'s> {
    /// The job of shard `shard` (of [`FeatureStore::n_shards`]): the `k` best rows for each of `queries` `[Q, dim]`.
    ///
    /// # Errors
    /// [`IndexError::DimMismatch`], [`IndexError::QueryNotFinite`], [`IndexError::TooMany`] if `k` exceeds the rows of the store.
    pub fn new(
        store: &'s FeatureStore,
        shard: usize,
        queries: ArrayView2<'s, f32>,
        k: usize,
    ) -> Result<Self, IndexError> {
        check_queries(queries, k, store.n_rows(), store.spec().dim)?;
        Ok(Self { store, shard, queries, k })
    }

    /// What the answer depends on, as one hash: the shard's bytes and deleted rows, the queries, `k`. Hex of a SHA-256.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn name(&self) -> String {
        let entry = &self.store.entries()[self.shard];
        let queries: Vec<u32> = self.queries.iter().map(|x| x.to_bits()).collect();
        let key = ("shard-job", self.store.manifest_blake3(), &entry.blake3, self.queries.dim(), queries, self.k);
        let digest = ascribe_core::Digest::of_json(&key).expect("numbers and strings become JSON");
        digest.to_string()
    }

    /// Does it. Cost `2·Q·n·dim` in f64.
    ///
    /// # Errors
    /// Those of reading the shard; [`IndexError::RowNotFinite`].
    pub fn run(&self) -> Result<Partial, IndexError> {
        let view = self.store.shard_view(self.shard)?;
        let queries = self.queries.as_standard_layout();
        let mut partial = Partial::new(queries.nrows(), self.k);
        let mut row = vec![0.0; self.store.spec().dim];
        let mut scores = Vec::with_capacity(queries.nrows());
        for i in (0..view.n_rows).filter(|&i| view.is_live(i)) {
            view.widen(i, &mut row);
            scores.clear();
            score_row(&row, queries.view(), i as u64, &mut scores)?;
            partial.push(view.id(i), &scores);
        }
        Ok(partial)
    }
}

/// Every shard's job, one after the other on this machine's threads, joined.
///
/// # Errors
/// As [`ShardJob::new`] and [`ShardJob::run`]; the first shard's error in the order of the rows.
pub fn run_all(store: &FeatureStore, queries: ArrayView2<'_, f32>, k: usize) -> Result<Partial, IndexError> {
    use rayon::prelude::*;
    let parts: Vec<Result<Partial, IndexError>> =
        (0..store.n_shards()).into_par_iter().map(|shard| ShardJob::new(store, shard, queries, k)?.run()).collect();
    let mut all = Partial::new(queries.nrows(), k);
    for part in parts {
        all.merge(part?);
    }
    Ok(all)
}
