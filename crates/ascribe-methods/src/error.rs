//! What a method refuses, and what to do about it. Here lives the one error type of this crate.

use ascribe_linalg::LinalgError;

/// An input that a method cannot work on.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// The feature reader failed.
    #[error("block {block_idx} of the feature rows cannot be read")]
    Read {
        /// Block of the reader.
        block_idx: usize,
        /// The medium's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// NaN or an infinity in a feature row.
    #[error(
        "{rows}, row {row} (block {block_idx}, {example}), module {module}: expected a finite number, found {found}"
    )]
    NotFinite {
        /// Which rows: `training rows`, `query rows`, …
        rows: &'static str,
        /// Row, counted over all blocks.
        row: usize,
        /// Block of the reader (0 for rows in memory).
        block_idx: usize,
        /// Example, as `dataset:idx`, or `query n`.
        example: String,
        /// Module of the column.
        module: String,
        /// What stands there.
        found: f64,
    },
    /// A reader gave another number of rows than it promised.
    #[error("the feature reader promised {expected} rows and gave {found}")]
    RowCount {
        /// Promised.
        expected: u64,
        /// Given.
        found: u64,
    },
    /// Two inputs do not fit each other.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// What does not fit.
        what: &'static str,
        /// Expected shape or value.
        expected: String,
        /// Found shape or value.
        found: String,
    },
    /// Nothing to work on.
    #[error("{what} is empty")]
    Empty {
        /// What is empty.
        what: &'static str,
    },
    /// A parameter is out of its range.
    #[error("{field} must be {expected}, found {found}")]
    Parameter {
        /// Name of the parameter.
        field: &'static str,
        /// Allowed values.
        expected: &'static str,
        /// What was given.
        found: f64,
    },
    /// A number that is NaN or infinite where a score, a truth or a weight was expected.
    #[error("{what}, row {row}, column {column}: expected a finite number, found {found}")]
    BadValue {
        /// Which table.
        what: String,
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// What stands there.
        found: f64,
    },
    /// A curvature block cannot be factored.
    #[error(
        "curvature of module {module} cannot be inverted with damping {damping_rel} (hint: a larger damping helps)"
    )]
    Factor {
        /// The module.
        module: String,
        /// Relative damping that was asked for.
        damping_rel: f64,
        /// What the kernel says.
        #[source]
        source: LinalgError,
    },
    /// Something would take more memory than was allowed.
    #[error("{what} needs {bytes} bytes, more than the limit of {limit} (hint: {hint})")]
    TooLarge {
        /// What would take it.
        what: String,
        /// Bytes it needs.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
        /// What to do.
        hint: &'static str,
    },
    /// A curvature matrix of many modules cannot be inverted.
    #[error("{what} cannot be inverted (hint: {hint})")]
    Curvature {
        /// Which matrix.
        what: String,
        /// What to do.
        hint: &'static str,
        /// What the kernel says.
        #[source]
        source: LinalgError,
    },
    /// An iteration met something that it cannot go on with.
    #[error("{method}, query {query}, step {step}: {found} (hint: {hint})")]
    Iteration {
        /// The algorithm.
        method: &'static str,
        /// Row of the query.
        query: usize,
        /// Step, from 1; 0 before the first.
        step: usize,
        /// What was met.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// A model refused a pass.
    #[error("the model failed at {at}")]
    Model {
        /// Which pass, of which examples.
        at: String,
        /// The model's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl MethodError {
    /// A [`MethodError::Shape`] from anything printable.
    pub(crate) fn shape(what: &'static str, expected: impl std::fmt::Debug, found: impl std::fmt::Debug) -> Self {
        Self::Shape { what, expected: format!("{expected:?}"), found: format!("{found:?}") }
    }
}
