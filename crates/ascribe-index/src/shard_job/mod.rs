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

use std::ops::Range;

use ascribe_core::FeatureReader as _;
use ascribe_linalg::sum;
use ascribe_store::features::{ShardView, SingleShard, Snapshot};
use ascribe_store::{FeatureStore, StoreError};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::Serialize;

pub use exact_sum::ExactSum;
pub use partial::{Answer, Best, DatasetAnswer, Partial};

use crate::check_queries;
use crate::error::IndexError;

/// Rows that are scored together: every query is read once for so many.
pub const ROWS_AT_ONCE: usize = 16;

/// The scores of `rows` `[n, dim]` under `queries` `[Q, dim]`, both in standard layout, appended to `scores` row by row: `n·Q` numbers.
///
/// Each is the dot product in the fixed order of [`ascribe_linalg::sum::dot`], whatever rows stand beside it. `numbers` are the rows'
/// places, for errors. Cost `n·Q·dim` multiply-adds in f64.
///
/// # Errors
/// [`IndexError::RowNotFinite`] with the first row that has a score that is not finite.
///
/// # Panics
/// If rows or queries are not contiguous or not of one length, or if there are fewer numbers than rows.
pub fn score_rows(
    rows: ArrayView2<'_, f32>,
    queries: ArrayView2<'_, f32>,
    numbers: &[usize],
    scores: &mut Vec<f64>,
) -> Result<(), IndexError> {
    let (dim, n_queries) = (rows.ncols(), queries.nrows());
    let all = rows.to_slice().expect("rows are in standard layout");
    for (chunk, numbers) in numbers[..rows.nrows()].chunks(ROWS_AT_ONCE).enumerate() {
        let row = |i: usize| &all[(chunk * ROWS_AT_ONCE + i) * dim..][..dim];
        let start = scores.len();
        scores.resize(start + numbers.len() * n_queries, 0.0);
        let out = &mut scores[start..];
        let in_fours = numbers.len() - numbers.len() % 4;
        for (q, query) in queries.rows().into_iter().enumerate() {
            let query = query.to_slice().expect("queries are in standard layout");
            for i in (0..in_fours).step_by(4) {
                let four = sum::dot4(query, [row(i), row(i + 1), row(i + 2), row(i + 3)]);
                for (j, score) in four.into_iter().enumerate() {
                    out[(i + j) * n_queries + q] = score;
                }
            }
            for i in in_fours..numbers.len() {
                out[i * n_queries + q] = sum::dot(query, row(i));
            }
        }
        if let Some(bad) = not_finite(out) {
            return Err(IndexError::RowNotFinite { row: numbers[bad / n_queries] as u64 });
        }
    }
    Ok(())
}

/// The first of these scores that is not finite.
// Compiled here, where numbers are optimised: the engine that calls it is built without.
#[inline(never)]
pub fn not_finite(scores: &[f64]) -> Option<usize> {
    scores.iter().position(|score| !score.is_finite())
}

/// Hands the scores of each of the rows `numbers` of a shard to `take`, in their order; `queries` are in standard layout.
///
/// # Errors
/// [`IndexError::RowNotFinite`].
///
/// # Panics
/// If rows and queries are not of one length, or a row is behind the shard's end.
pub fn scores_of(
    view: &ShardView<'_>,
    numbers: &[usize],
    queries: ArrayView2<'_, f32>,
    mut take: impl FnMut(usize, &[f64]),
) -> Result<(), IndexError> {
    let n_queries = queries.nrows();
    let mut rows = Array2::<f32>::zeros((ROWS_AT_ONCE, view.dim));
    let mut scores = Vec::with_capacity(ROWS_AT_ONCE * n_queries);
    for numbers in numbers.chunks(ROWS_AT_ONCE) {
        for (&i, mut row) in numbers.iter().zip(rows.rows_mut()) {
            view.widen(i, row.as_slice_mut().expect("a row of a matrix in standard layout"));
        }
        scores.clear();
        score_rows(rows.slice(s![..numbers.len(), ..]), queries, numbers, &mut scores)?;
        for (place, &i) in numbers.iter().enumerate() {
            take(i, &scores[place * n_queries..(place + 1) * n_queries]);
        }
    }
    Ok(())
}

/// The answer of one shard, wherever it was read from: the work of a [`ShardJob`] behind the reading. `queries` are in standard
/// layout. Cost `Q·n·dim` multiply-adds in f64.
///
/// # Errors
/// [`IndexError::RowNotFinite`].
///
/// # Panics
/// If rows and queries are not of one length.
pub fn run_view(view: &ShardView<'_>, queries: ArrayView2<'_, f32>, k: usize) -> Result<Partial, IndexError> {
    let mut partial = Partial::new(queries.nrows(), k);
    let live: Vec<usize> = (0..view.n_rows).filter(|&i| view.is_live(i)).collect();
    scores_of(view, &live, queries, |i, scores| partial.push(view.id(i), scores))?;
    Ok(partial)
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
        run_view(&view, self.queries.as_standard_layout().view(), self.k)
    }
}

/// Every shard's job on this machine's threads, joined.
///
/// # Errors
/// As [`ShardJob::new`] and [`ShardJob::run`]; the first shard's error in the order of the rows.
pub fn run_all(store: &FeatureStore, queries: ArrayView2<'_, f32>, k: usize) -> Result<Partial, IndexError> {
    let parts: Vec<Result<Partial, IndexError>> =
        (0..store.n_shards()).into_par_iter().map(|shard| ShardJob::new(store, shard, queries, k)?.run()).collect();
    let mut all = Partial::new(queries.nrows(), k);
    for part in parts {
        all.merge(part?);
    }
    Ok(all)
}

/// The same over a generation of which nothing is open: `open` maps or fetches a shard when its turn comes, and it is let go of when
/// it is done. So a thread has one shard at a time, however many there are.
///
/// # Errors
/// As [`run_all`]; those of `open`.
///
/// # Panics
/// If a shard is behind the last one.
pub fn run_opened(
    snapshot: &Snapshot,
    shards: Range<usize>,
    open: impl Fn(usize) -> Result<SingleShard, StoreError> + Sync,
    queries: ArrayView2<'_, f32>,
    k: usize,
) -> Result<Partial, IndexError> {
    check_queries(queries, k, snapshot.generation().n_rows, snapshot.header().spec.dim)?;
    let queries = queries.as_standard_layout();
    let job = |shard: usize| run_view(&open(shard)?.view()?, queries.view(), k);
    let parts: Vec<Result<Partial, IndexError>> = shards.into_par_iter().map(job).collect();
    let mut all = Partial::new(queries.nrows(), k);
    for part in parts {
        all.merge(part?);
    }
    Ok(all)
}

/// The file of a finished scoring job: equal bytes for equal rows and queries, wherever it ran.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Scored<'a> {
    /// The store's uuid.
    pub store: &'a str,
    /// The generation's manifest: it pins every row.
    pub manifest_blake3: &'a str,
    /// BLAKE3 of the query file.
    pub queries_blake3: &'a str,
    /// Rows asked for per query.
    pub k: usize,
    /// Rows that were scored.
    pub rows: u64,
    /// Sums of datasets and best rows.
    #[serde(flatten)]
    pub answer: Answer,
}

impl Scored<'_> {
    /// One line of JSON.
    ///
    /// # Errors
    /// None that is known: it is made of numbers and texts.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
