//! The errors of this crate.

use std::path::PathBuf;

use ascribe_core::Digest;
use ascribe_store::StoreError;

/// What can be wrong with a search, a build or a kept index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The rows could not be read.
    #[error("cannot read the rows: {0}")]
    Reader(Box<dyn std::error::Error + Send + Sync>),
    /// A file of the index is not as it should be.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to search.
    #[error("the store has no rows: expected at least 1, found 0 (hint: was the corpus empty?)")]
    EmptyStore,
    /// More rows asked for than there are.
    #[error("cannot find the best {k} rows: expected at most {n_rows}, the rows of the store, found {k}")]
    TooMany {
        /// Rows asked for.
        k: usize,
        /// Rows in the store.
        n_rows: u64,
    },
    /// A vector of another length than the rows.
    #[error("{what}: expected {expected} numbers, found {found} (hint: was it made with another spec?)")]
    DimMismatch {
        /// Which vector.
        what: &'static str,
        /// Numbers per row.
        expected: usize,
        /// Numbers of the vector.
        found: usize,
    },
    /// A query with a number that is not finite.
    #[error("query {query}, column {column}: expected a finite number, found {found}")]
    QueryNotFinite {
        /// Position of the query in the batch.
        query: usize,
        /// Column.
        column: usize,
        /// `NaN`, `inf`.
        found: String,
    },
    /// A row that cannot be searched.
    #[error("row {row}: expected finite numbers with a finite norm, found others (hint: verify the store)")]
    RowNotFinite {
        /// The row.
        row: u64,
    },
    /// Bytes that are not the partial answer of a shard's job.
    #[error("a partial answer is not one: expected {expected} (hint: run the shard's job again)")]
    Partial {
        /// What should have stood there.
        expected: &'static str,
    },
    /// A companion that proves nothing.
    #[error(
        "the companion cannot certify a search: expected {expected}, found {found} (hint: `ascribe store convert`)"
    )]
    NoCompanion {
        /// What it should have.
        expected: &'static str,
        /// What it has.
        found: String,
    },
    /// Rows whose inner products are no scores.
    #[error(
        "the store: expected rows whose inner products are scores, found factors (LoRIF) (hint: multiply them out first: \
         `ascribe.score` and `Store.expand` in Python do)"
    )]
    Factors,
    /// A setting outside its range.
    #[error("{setting}: expected {expected}, found {found}")]
    BadSetting {
        /// Which.
        setting: &'static str,
        /// Its range.
        expected: &'static str,
        /// As given.
        found: usize,
    },
    /// A server beside us did not do what it was asked.
    #[error("the index at {address}: {reason}")]
    Backend {
        /// Where it is, without a password.
        address: String,
        /// Its words.
        reason: String,
    },
    /// The index belongs to other rows.
    #[error("{path} was built over other rows: expected {expected}, found {found} (hint: build the index again)")]
    SpecMismatch {
        /// The header.
        path: PathBuf,
        /// Spec hash and number of rows of the store.
        expected: RowsOf,
        /// Spec hash and number of rows that the index was built over.
        found: RowsOf,
    },
}

/// Which rows: enough to tell two stores apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowsOf {
    /// Hash of the feature spec.
    pub spec: Digest,
    /// Number of rows.
    pub n_rows: u64,
}

impl std::fmt::Display for RowsOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows of spec {}", self.n_rows, self.spec)
    }
}

impl IndexError {
    /// Wraps an error of a reader.
    pub fn reader(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Reader(Box::new(error))
    }
}
