//! Top-k over feature rows by inner product: exact, certified through rows in few bits, and approximate with exact re-ranking.
//!
//! Here lives how the best rows of a store are found and how well an approximate search finds them. Here never lives:
//! how rows are kept (store), what a query vector means or which way is up (methods; positive is a proponent, and whoever
//! wants opponents asks with the negated query), or what follows from a hit.
//!
//! Whatever finds a row, its score is computed the same way: the f64 dot product in the fixed order of
//! [`ascribe_linalg::sum::dot`] over the row as stored. Two indexes that both find a row give it the same bytes.
//!
//! ```
//! use ascribe_index::{Effort, ExactIndex, HnswIndex, HnswParams, VectorIndex, recall_at_k};
//! use ascribe_testkit::{MemoryReader, gradient_spec, toy_rows};
//!
//! let (ids, rows) = toy_rows(200, 16, 4);
//! let queries = rows.slice(ndarray::s![..3, ..]).to_owned();
//! let reader = MemoryReader::new(gradient_spec(&[16]), ids, rows, 64);
//! let (exact, hnsw) = (ExactIndex::new(&reader)?, HnswIndex::build(&reader, HnswParams::default())?);
//! let best = exact.search(queries.row(0), 5, Effort::default())?;
//! assert!(best.windows(2).all(|pair| pair[0].score >= pair[1].score));
//! assert_eq!(recall_at_k(&hnsw, &exact, queries.view(), 5, Effort::new(200))?.min, 1.0);
//! # Ok::<(), ascribe_index::IndexError>(())
//! ```

pub mod backend;
mod candidates;
pub mod certified;
pub mod error;
pub mod exact;
pub mod filter;
pub mod hnsw;
pub mod recall;
pub mod shard_job;

use ascribe_core::{ExampleId, FeatureSpec, ProjectorSpec};
use ndarray::{ArrayView1, ArrayView2};

pub use certified::{Certificate, CertifiedIndex};
pub use error::IndexError;
pub use exact::ExactIndex;
pub use filter::Filter;
pub use hnsw::{GraphBuilder, HnswIndex, HnswParams, Metric, RecallCurve};
pub use recall::{Recall, recall_at_k};

/// Refuses rows that must be multiplied out before they are dotted, summed or averaged. Every way to scores and moments that
/// reads a store's rows as they are asks first: such a number would look like any other.
///
/// # Errors
/// [`IndexError::Factors`] if the rows of `spec` are factors.
pub const fn refuse_factors(spec: &FeatureSpec) -> Result<(), IndexError> {
    match spec.projector {
        ProjectorSpec::Factored { .. } => Err(IndexError::Factors),
        _ => Ok(()),
    }
}

/// A row that was found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Hit {
    /// Its place in the store.
    pub row: u64,
    /// Its example.
    pub id: ExampleId,
    /// Its inner product with the query.
    pub score: f64,
}

impl Hit {
    /// Better first: higher score, then lower id, then lower row.
    pub fn rank(&self, other: &Self) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id)).then(self.row.cmp(&other.row))
    }
}

/// How hard an approximate index tries. Exact ones do not look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Rows that each graph nominates. At least `k` is taken.
    pub ef: usize,
    /// Nominees that are scored exactly. At least `k` is taken.
    pub n_exact: usize,
}

impl Effort {
    /// Nominations of `ef` rows by each graph, eight times as many exact scores.
    pub const fn new(ef: usize) -> Self {
        Self { ef, n_exact: 8 * ef }
    }
}

impl Default for Effort {
    /// Recall@10 is 0.96 on the 9,000 rows of the throughput example.
    fn default() -> Self {
        Self::new(32)
    }
}

/// Finds the rows with the largest inner product.
///
/// One suite of tests (`tests/contract`) runs over every implementation.
pub trait VectorIndex {
    /// Rows that are searched.
    fn n_rows(&self) -> u64;

    /// Numbers per row and per query.
    fn dim(&self) -> usize;

    /// The `k` best rows that `filter` allows for each query of `[Q, dim]`, best first, ties by id; all of them where it
    /// allows fewer.
    ///
    /// The answer for a query does not depend on its neighbours in the batch nor on the number of threads.
    ///
    /// # Errors
    /// [`IndexError::TooMany`] if `k` exceeds the rows, [`IndexError::DimMismatch`], [`IndexError::QueryNotFinite`],
    /// and those of the reader.
    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError>;

    /// [`VectorIndex::search_filtered`] among all rows.
    ///
    /// # Errors
    /// The same.
    fn search_many(&self, queries: ArrayView2<'_, f32>, k: usize, effort: Effort) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.search_filtered(queries, k, effort, &Filter::default())
    }

    /// The `k` best rows for one query `[dim]`.
    ///
    /// # Errors
    /// As [`VectorIndex::search_many`].
    fn search(&self, query: ArrayView1<'_, f32>, k: usize, effort: Effort) -> Result<Vec<Hit>, IndexError> {
        let batch = query.insert_axis(ndarray::Axis(0));
        Ok(self.search_many(batch, k, effort)?.pop().unwrap_or_default())
    }
}

/// What every index checks of a batch before it searches.
///
/// # Errors
/// [`IndexError::TooMany`], [`IndexError::DimMismatch`], [`IndexError::QueryNotFinite`].
pub fn check_queries(queries: ArrayView2<'_, f32>, k: usize, n_rows: u64, dim: usize) -> Result<(), IndexError> {
    if queries.ncols() != dim {
        return Err(IndexError::DimMismatch { what: "query", expected: dim, found: queries.ncols() });
    }
    if k as u64 > n_rows {
        return Err(IndexError::TooMany { k, n_rows });
    }
    match queries.indexed_iter().find(|(_, x)| !x.is_finite()) {
        Some(((query, column), x)) => Err(IndexError::QueryNotFinite { query, column, found: x.to_string() }),
        None => Ok(()),
    }
}
