//! What a kernel refuses. Here lives the one error type of this crate.

/// A matrix that cannot be factored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LinalgError {
    /// A factorisation needs as many rows as columns.
    #[error("a factorisation needs a square matrix, found {rows} × {cols}")]
    NotSquare {
        /// Rows found.
        rows: usize,
        /// Columns found.
        cols: usize,
    },
    /// NaN or an infinity stands in the lower triangle.
    #[error("entry ({row}, {col}) of the matrix is {found}, expected a finite number")]
    NotFinite {
        /// Row of the first bad entry.
        row: usize,
        /// Column of the first bad entry.
        col: usize,
        /// What stands there.
        found: f64,
    },
    /// The matrix is not positive definite.
    #[error("pivot {pivot} of {dim} is not positive: the matrix is singular or indefinite (hint: raise the damping)")]
    NotPositive {
        /// First pivot that is not positive, from 0.
        pivot: usize,
        /// Rows of the matrix.
        dim: usize,
    },
    /// The eigenvalue iteration did not settle.
    #[error("the eigenvalues of a {dim} × {dim} matrix did not converge")]
    NoConvergence {
        /// Rows of the matrix.
        dim: usize,
    },
    /// Stored bytes of a row have another length.
    #[error("a coded row: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes that the codec writes.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A byte that no encoder writes.
    #[error("a coded row, group {group}, byte {byte}: no encoder writes {found}")]
    BadCode {
        /// Group of the row.
        group: usize,
        /// Byte of the row, or first byte of the scale.
        byte: usize,
        /// The byte, or the scale.
        found: f64,
    },
}
