//! What an evaluation refuses. Here lives the one error type of this crate.

/// An input that cannot be evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EvalError {
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
    /// NaN or an infinity.
    #[error("{what}, row {row}, column {column}: expected a finite number, found {found}")]
    NotFinite {
        /// Which table.
        what: &'static str,
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// What stands there.
        found: f64,
    },
    /// Nothing to evaluate.
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
}

impl EvalError {
    /// A [`EvalError::Shape`] from anything printable.
    pub(crate) fn shape(what: &'static str, expected: impl std::fmt::Debug, found: impl std::fmt::Debug) -> Self {
        Self::Shape { what, expected: format!("{expected:?}"), found: format!("{found:?}") }
    }
}

/// Refuses NaN and infinities with their place.
pub(crate) fn check_finite(what: &'static str, values: ndarray::ArrayView2<'_, f64>) -> Result<(), EvalError> {
    match values.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((row, column), &found)) => Err(EvalError::NotFinite { what, row, column, found }),
    }
}
