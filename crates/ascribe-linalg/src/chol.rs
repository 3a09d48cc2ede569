//! Cholesky factors of symmetric positive definite f64 matrices, through faer, on the calling thread.
//!
//! Callers factor many blocks side by side in their own parallel loop; one factorisation never spawns work, so its
//! bytes do not depend on threads. Right-hand sides are solved in groups of fixed size, the last one padded with zeros:
//! the answer for a row does not depend on the rows beside it.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Mat, MatMut, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::error::LinalgError;

/// Right-hand sides per call of the solver.
pub const GROUP: usize = 32;

/// Right-hand sides per call where there are no more: a quarter of the cost, the same bits (a test compares them). One response's
/// gradient is one row.
const FEW: usize = 8;

/// Rows per call when whitening: it runs over whole stores, and the factor is read once per call.
pub const WHITEN_GROUP: usize = 128;

/// `A = L·Lᵀ`.
#[derive(Clone, Debug)]
pub struct Cholesky {
    /// Lower triangle; what stands above the diagonal is never read.
    lower: Mat<f64>,
}

impl Cholesky {
    /// Factors `a`, `[n, n]`; only the lower triangle is read. Cost `n³/3`.
    ///
    /// # Errors
    /// [`LinalgError::NotSquare`], [`LinalgError::NotFinite`], [`LinalgError::NotPositive`].
    pub fn factor(a: ArrayView2<'_, f64>) -> Result<Self, LinalgError> {
        let n = check_symmetric_input(a)?;
        let mut lower = Mat::from_fn(n, n, |i, j| if i >= j { a[(i, j)] } else { 0.0 });
        let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
        cholesky_in_place(lower.as_mut(), Default::default(), Par::Seq, MemStack::new(&mut memory), Default::default())
            .map_err(|LltError::NonPositivePivot { index }| LinalgError::NotPositive { pivot: index, dim: n })?;
        Ok(Self { lower })
    }

    /// A factor read back from [`Cholesky::lower`].
    ///
    /// # Errors
    /// [`LinalgError::NotSquare`], [`LinalgError::NotFinite`], or [`LinalgError::NotPositive`] when a diagonal entry is
    /// not positive.
    pub fn from_lower(lower: ArrayView2<'_, f64>) -> Result<Self, LinalgError> {
        let n = check_symmetric_input(lower)?;
        if let Some(pivot) = (0..n).find(|&i| lower[(i, i)] <= 0.0) {
            return Err(LinalgError::NotPositive { pivot, dim: n });
        }
        Ok(Self { lower: Mat::from_fn(n, n, |i, j| if i >= j { lower[(i, j)] } else { 0.0 }) })
    }

    /// Rows of the matrix.
    pub fn dim(&self) -> usize {
        self.lower.nrows()
    }

    /// `L`, `[n, n]`, zeros above the diagonal.
    pub fn lower(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.dim(), self.dim()), |(i, j)| if i >= j { self.lower[(i, j)] } else { 0.0 })
    }

    /// The diagonal of `L`, `[n]`.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.dim()).map(|i| self.lower[(i, i)]).collect()
    }

    /// Replaces every row `x` of `rows`, `[r, n]`, by `A⁻¹x`. Cost `2·r·n²`.
    ///
    /// # Panics
    /// If a row has not `n` numbers.
    pub fn solve_rows(&self, rows: ArrayViewMut2<'_, f64>) {
        self.each_group(rows, GROUP, true, true);
    }

    /// Replaces every row `x` of `rows`, `[r, n]`, by `L⁻¹x`, so that `‖L⁻¹x‖² = xᵀA⁻¹x`. Cost `r·n²`.
    ///
    /// # Panics
    /// If a row has not `n` numbers.
    pub fn whiten_rows(&self, rows: ArrayViewMut2<'_, f64>) {
        self.each_group(rows, WHITEN_GROUP, true, false);
    }

    /// Replaces every row `x` of `rows`, `[r, n]`, by `L⁻ᵀx`: the second half of a solve. Cost `r·n²`.
    ///
    /// # Panics
    /// If a row has not `n` numbers.
    pub fn back_rows(&self, rows: ArrayViewMut2<'_, f64>) {
        self.each_group(rows, GROUP, false, true);
    }

    fn each_group(&self, mut rows: ArrayViewMut2<'_, f64>, height: usize, forth: bool, back: bool) {
        let n = self.dim();
        assert_eq!(rows.ncols(), n, "a right-hand side has another length than the matrix");
        if n == 0 {
            return;
        }
        let height = if rows.nrows() <= FEW { FEW } else { height };
        let mut group = vec![0.0f64; height * n];
        for mut chunk in rows.axis_chunks_iter_mut(ndarray::Axis(0), height) {
            group.fill(0.0);
            for (row, slot) in chunk.rows().into_iter().zip(group.chunks_exact_mut(n)) {
                row.iter().zip(slot).for_each(|(&x, s)| *s = x);
            }
            // Row-major [height, n] is column-major [n, height].
            let mut rhs = MatMut::from_column_major_slice_mut(&mut group, n, height);
            if forth {
                solve_lower_triangular_in_place(self.lower.as_ref(), rhs.as_mut(), Par::Seq);
            }
            if back {
                solve_upper_triangular_in_place(self.lower.transpose(), rhs.as_mut(), Par::Seq);
            }
            for (mut row, slot) in chunk.rows_mut().into_iter().zip(group.chunks_exact(n)) {
                row.iter_mut().zip(slot).for_each(|(x, &s)| *x = s);
            }
        }
    }
}

/// Checks shape and finiteness of a lower triangle; returns its dimension.
pub(crate) fn check_symmetric_input(a: ArrayView2<'_, f64>) -> Result<usize, LinalgError> {
    let (rows, cols) = a.dim();
    if rows != cols {
        return Err(LinalgError::NotSquare { rows, cols });
    }
    for (row, values) in a.rows().into_iter().enumerate() {
        if let Some(col) = values.iter().take(row + 1).position(|v| !v.is_finite()) {
            return Err(LinalgError::NotFinite { row, col, found: values[col] });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use ndarray::{Array1, arr2};

    fn positive_definite(n: usize, seed: u64) -> Array2<f64> {
        let mut stream = Stream::new(seed, "chol-test");
        let g = Array2::from_shape_fn((2 * n + 1, n), |_| stream.normal());
        g.t().dot(&g) / n as f64 + Array2::<f64>::eye(n) * 0.1
    }

    #[test]
    fn a_two_by_two_by_hand() {
        // [[4, 2], [2, 5]] = L·Lᵀ with L = [[2, 0], [1, 2]]; A·[1, 1]ᵀ = [6, 7].
        let factor = Cholesky::factor(arr2(&[[4.0, f64::NAN], [2.0, 5.0]]).view()).unwrap();
        assert_eq!(factor.lower(), arr2(&[[2.0, 0.0], [1.0, 2.0]]));
        assert_eq!(factor.diagonal(), [2.0, 2.0]);
        let mut rhs = arr2(&[[6.0, 7.0]]);
        factor.solve_rows(rhs.view_mut());
        assert!((&rhs - 1.0).iter().all(|e| e.abs() < 4.0 * f64::EPSILON), "{rhs}");
        let mut rhs = arr2(&[[6.0, 7.0]]);
        factor.whiten_rows(rhs.view_mut());
        assert_eq!(rhs, arr2(&[[3.0, 2.0]]));
    }

    #[test]
    fn residuals_are_small_for_many_sizes() {
        for n in [0, 1, 2, 31, 64, 65, 150] {
            let a = positive_definite(n, n as u64);
            let factor = Cholesky::factor(a.view()).unwrap();
            let mut stream = Stream::new(7, "chol-rhs");
            let rhs = Array2::from_shape_fn((GROUP + 5, n), |_| stream.normal());
            let mut x = rhs.clone();
            factor.solve_rows(x.view_mut());
            // Backward stable: ‖Ax − b‖ ≤ c·n·eps·‖A‖‖x‖, with c of order 1.
            let bound = 4.0 * (n + 1) as f64 * f64::EPSILON * a.mapv(f64::abs).sum() * x.mapv(f64::abs).sum();
            let residual = (x.dot(&a) - &rhs).mapv(f64::abs).sum();
            assert!(residual <= bound, "n = {n}: {residual} > {bound}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        // One row alone goes through a call of another width than 45 do.
        for n in [3, 16, 70, 128, 256, 300] {
            let factor = Cholesky::factor(positive_definite(n, 3).view()).unwrap();
            let mut stream = Stream::new(9, "chol-rhs");
            let rows = Array2::from_shape_fn((45, n), |_| stream.normal());
            for work in [Cholesky::solve_rows, Cholesky::whiten_rows, Cholesky::back_rows] {
                let mut many = rows.clone();
                work(&factor, many.view_mut());
                for (row, one) in many.rows().into_iter().zip(rows.rows()) {
                    let mut one = one.to_owned().insert_axis(ndarray::Axis(0));
                    work(&factor, one.view_mut());
                    assert_eq!(row, one.row(0), "{n}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_names_the_pivot() {
        let singular = arr2(&[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        assert_eq!(Cholesky::factor(singular.view()).unwrap_err(), LinalgError::NotPositive { pivot: 1, dim: 3 });
        let indefinite = Array2::from_diag(&Array1::from(vec![1.0, 2.0, -1.0]));
        assert_eq!(Cholesky::factor(indefinite.view()).unwrap_err(), LinalgError::NotPositive { pivot: 2, dim: 3 });
        let nan = arr2(&[[1.0, 0.0], [f64::NAN, 1.0]]);
        assert!(matches!(Cholesky::factor(nan.view()), Err(LinalgError::NotFinite { row: 1, col: 0, .. })));
        assert_eq!(
            Cholesky::factor(Array2::zeros((2, 3)).view()).unwrap_err(),
            LinalgError::NotSquare { rows: 2, cols: 3 }
        );
    }

    #[test]
    fn a_factor_survives_export() {
        let factor = Cholesky::factor(positive_definite(12, 5).view()).unwrap();
        let again = Cholesky::from_lower(factor.lower().view()).unwrap();
        let (mut a, mut b) = (Array2::ones((1, 12)), Array2::ones((1, 12)));
        factor.solve_rows(a.view_mut());
        again.solve_rows(b.view_mut());
        assert_eq!(a, b);
        assert!(Cholesky::from_lower(Array2::zeros((2, 2)).view()).is_err());
    }
}
