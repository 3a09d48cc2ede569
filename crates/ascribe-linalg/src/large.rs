//! One large symmetric matrix, factored in its own memory for one shift of its diagonal after another.
//!
//! The strict upper triangle keeps the matrix, the lower one takes the factor: an `n × n` curvature matrix of 7,850
//! parameters (493 MB) is swept over dampings without a second copy. Work is cut into blocks of [`BLOCK`] rows whose
//! products have shapes fixed by `n`, each on one thread, so threads do not change the bytes. Many small matrices side by
//! side belong to [`crate::chol`].

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::chol::Cholesky;
use crate::eigen::SymmetricEigen;
use crate::error::LinalgError;
use crate::gemm::{Threads, gemm_f64};

/// Rows and columns of a block.
pub const BLOCK: usize = 256;

/// Right-hand sides that are solved together; the last group is padded with zeros.
pub const GROUP: usize = 32;

/// Rows per task where a panel is solved.
const PANEL_ROWS: usize = 128;

/// A symmetric matrix `A` and, after [`LargeSymmetric::factor`], the Cholesky factor of `A + shift·I`.
#[derive(Clone, Debug)]
pub struct LargeSymmetric {
    /// Strictly above the diagonal: `A`. On and below it: the factor, once there is one.
    values: Array2<f64>,
    /// The diagonal of `A`.
    diagonal: Vec<f64>,
    /// Factors of the diagonal blocks; empty without a factor.
    corners: Vec<Cholesky>,
}

impl LargeSymmetric {
    /// Takes `a`, `[n, n]`, of which the diagonal and what stands above it are read. Needs no second copy if `a` is
    /// row-major.
    ///
    /// # Errors
    /// [`LinalgError::NotSquare`], [`LinalgError::NotFinite`].
    pub fn new(a: Array2<f64>) -> Result<Self, LinalgError> {
        let (rows, cols) = a.dim();
        if rows != cols {
            return Err(LinalgError::NotSquare { rows, cols });
        }
        for (row, values) in a.rows().into_iter().enumerate() {
            if let Some(past) = values.iter().skip(row).position(|v| !v.is_finite()) {
                return Err(LinalgError::NotFinite { row, col: row + past, found: values[row + past] });
            }
        }
        let values = if a.is_standard_layout() { a } else { a.as_standard_layout().into_owned() };
        Ok(Self { diagonal: values.diag().to_vec(), values, corners: Vec::new() })
    }

    /// Rows of the matrix.
    pub fn dim(&self) -> usize {
        self.diagonal.len()
    }

    /// The diagonal of `A`, without any shift.
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// Entry `(i, j)` of `A`, without any shift.
    ///
    /// # Panics
    /// If `i` or `j` is not below the dimension.
    pub fn entry(&self, i: usize, j: usize) -> f64 {
        if i == j { self.diagonal[i] } else { self.values[(i.min(j), i.max(j))] }
    }

    /// Whether a factor is there to solve with.
    pub fn is_factored(&self) -> bool {
        self.dim() == 0 || !self.corners.is_empty()
    }

    /// Factors `A + shift·I`, forgetting an earlier factor. Cost `n³/3`, on rayon's current pool.
    ///
    /// # Errors
    /// [`LinalgError::NotPositive`], [`LinalgError::NotFinite`]. The matrix is whole and may be factored again.
    pub fn factor(&mut self, shift: f64) -> Result<(), LinalgError> {
        self.corners.clear();
        self.restore(shift);
        let n = self.dim();
        let mut corners = Vec::with_capacity(n.div_ceil(BLOCK));
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            let corner = Cholesky::factor(self.values.slice(s![start..end, start..end]));
            let corner = corner.map_err(|error| moved(error, start, n))?;
            let lower = corner.lower();
            for i in 0..end - start {
                self.values.slice_mut(s![start + i, start..=start + i]).assign(&lower.slice(s![i, ..=i]));
            }
            self.solve_panel(&corner, start, end);
            self.update_rest(start, end);
            corners.push(corner);
        }
        self.corners = corners;
        Ok(())
    }

    /// Replaces every row `x` of `rows`, `[r, n]`, by `(A + shift·I)⁻¹x`. Cost `2·r·n²`; groups of [`GROUP`] rows run side
    /// by side. A row's bytes do not depend on the other rows.
    ///
    /// # Panics
    /// Without a factor, or if a row has not `n` numbers.
    pub fn solve_rows(&self, mut rows: ArrayViewMut2<'_, f64>) {
        assert!(self.is_factored(), "a matrix is factored before it is solved with");
        assert_eq!(rows.ncols(), self.dim(), "a right-hand side has another length than the matrix");
        rows.axis_chunks_iter_mut(Axis(0), GROUP).into_par_iter().for_each(|mut chunk| {
            let used = chunk.nrows();
            let mut group = Array2::zeros((GROUP, self.dim()));
            group.slice_mut(s![..used, ..]).assign(&chunk);
            self.solve_group(&mut group);
            chunk.assign(&group.slice(s![..used, ..]));
        });
    }

    /// Eigenvalues and eigenvectors of `A`, without any shift. Cost about `9·n³` on one thread; memory for four more
    /// matrices of this size.
    ///
    /// # Errors
    /// [`LinalgError::NoConvergence`].
    pub fn eigen(&self) -> Result<SymmetricEigen, LinalgError> {
        let mut whole = self.values.t().to_owned();
        whole.diag_mut().iter_mut().zip(&self.diagonal).for_each(|(d, &a)| *d = a);
        SymmetricEigen::of(whole.view())
    }

    /// Writes the upper triangle into the lower one again, and the shifted diagonal.
    fn restore(&mut self, shift: f64) {
        let n = self.dim();
        for first in (0..n).step_by(BLOCK) {
            for row in first..n {
                let end = (first + BLOCK).min(row);
                // Column `row` of the upper triangle, one block of its rows at a time: that block stays in cache.
                for col in first..end {
                    self.values[(row, col)] = self.values[(col, row)];
                }
            }
        }
        for (i, &a) in self.diagonal.iter().enumerate() {
            self.values[(i, i)] = a + shift;
        }
    }

    /// `L[I, k] = A[I, k]·L[k, k]⁻ᵀ` for all rows below the block.
    fn solve_panel(&mut self, corner: &Cholesky, start: usize, end: usize) {
        let mut panel = self.values.slice_mut(s![end.., start..end]);
        panel.axis_chunks_iter_mut(Axis(0), PANEL_ROWS).into_par_iter().for_each(|rows| corner.whiten_rows(rows));
    }

    /// `A[I, J] −= L[I, k]·L[J, k]ᵀ` for what lies right of the block, on and below the diagonal.
    fn update_rest(&mut self, start: usize, end: usize) {
        let panel = self.values.slice(s![end.., start..end]).to_owned();
        let mut rest = self.values.slice_mut(s![end.., end..]);
        rest.axis_chunks_iter_mut(Axis(0), BLOCK).into_par_iter().enumerate().for_each(|(block, mut rows)| {
            let (first, height) = (block * BLOCK, rows.nrows());
            let own = panel.slice(s![first..first + height, ..]);
            let left = rows.slice_mut(s![.., ..first]);
            gemm_f64(-1.0, own, panel.slice(s![..first, ..]).t(), 1.0, left, Threads::One);
            let mut corner = Array2::zeros((height, height));
            gemm_f64(1.0, own, own.t(), 0.0, corner.view_mut(), Threads::One);
            for i in 0..height {
                let mut target = rows.slice_mut(s![i, first..=first + i]);
                target -= &corner.slice(s![i, ..=i]);
            }
        });
    }

    /// Both triangular solves for one padded group of rows.
    fn solve_group(&self, group: &mut Array2<f64>) {
        let n = self.dim();
        let starts: Vec<usize> = (0..n).step_by(BLOCK).collect();
        for (corner, &start) in self.corners.iter().zip(&starts) {
            let end = (start + BLOCK).min(n);
            let (solved, mut rest) = group.view_mut().split_at(Axis(1), start);
            let factor = self.values.slice(s![start..end, ..start]);
            let mut own = rest.slice_mut(s![.., ..end - start]);
            gemm_f64(-1.0, solved.view(), factor.t(), 1.0, own.view_mut(), Threads::One);
            corner.whiten_rows(own);
        }
        for (corner, &start) in self.corners.iter().zip(&starts).rev() {
            let end = (start + BLOCK).min(n);
            let (mut rest, solved) = group.view_mut().split_at(Axis(1), end);
            let factor: ArrayView2<'_, f64> = self.values.slice(s![end.., start..end]);
            let mut own = rest.slice_mut(s![.., start..]);
            gemm_f64(-1.0, solved.view(), factor, 1.0, own.view_mut(), Threads::One);
            corner.back_rows(own);
        }
    }
}

/// The error of a diagonal block, in numbers of the whole matrix.
fn moved(error: LinalgError, start: usize, n: usize) -> LinalgError {
    match error {
        LinalgError::NotPositive { pivot, .. } => LinalgError::NotPositive { pivot: start + pivot, dim: n },
        LinalgError::NotFinite { row, col, found } => {
            LinalgError::NotFinite { row: start + row, col: start + col, found }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use ndarray::arr2;

    fn positive_definite(n: usize) -> Array2<f64> {
        let mut stream = Stream::new(n as u64, "large-test");
        let g = Array2::from_shape_fn((n + n / 2 + 1, n), |_| stream.normal());
        let mut a = Array2::zeros((n, n));
        gemm_f64(1.0 / (n + 1) as f64, g.t(), g.view(), 0.0, a.view_mut(), Threads::One);
        a + Array2::<f64>::eye(n) * 0.1
    }

    fn rows(r: usize, n: usize) -> Array2<f64> {
        let mut stream = Stream::new(5, "large-rhs");
        Array2::from_shape_fn((r, n), |_| stream.normal())
    }

    #[test]
    fn a_two_by_two_by_hand() {
        // [[4, 2], [2, 5]]·(1, 1) = (6, 7); with a shift of 1: [[5, 2], [2, 6]]·(1, 1) = (7, 8). NaN below is never read.
        let mut matrix = LargeSymmetric::new(arr2(&[[4.0, 2.0], [f64::NAN, 5.0]])).unwrap();
        for (shift, rhs) in [(0.0, [6.0, 7.0]), (1.0, [7.0, 8.0]), (0.0, [6.0, 7.0])] {
            matrix.factor(shift).unwrap();
            let mut x = arr2(&[rhs]);
            matrix.solve_rows(x.view_mut());
            assert!(x.iter().all(|v| (v - 1.0).abs() < 8.0 * f64::EPSILON), "{x}");
        }
        assert_eq!((matrix.entry(1, 0), matrix.entry(1, 1)), (2.0, 5.0));
    }

    #[test]
    fn agrees_with_the_small_solver_and_keeps_the_matrix() {
        for n in [1, 7, 255, 256, 257, 600] {
            let a = positive_definite(n);
            let mut large = LargeSymmetric::new(a.clone()).unwrap();
            for shift in [0.0, 0.5] {
                large.factor(shift).unwrap();
                let small = Cholesky::factor((&a + &(Array2::<f64>::eye(n) * shift)).view()).unwrap();
                let (mut x, mut y) = (rows(35, n), rows(35, n));
                large.solve_rows(x.view_mut());
                small.solve_rows(y.view_mut());
                // Both backward stable; the condition number is below 100.
                let worst = (&x - &y).iter().fold(0.0f64, |m, v| m.max(v.abs()));
                assert!(worst < 1e3 * (n + 1) as f64 * f64::EPSILON, "n = {n}, shift {shift}: {worst}");
            }
            assert!((0..n).all(|i| (0..n).all(|j| large.entry(i, j) == a[(i.min(j), i.max(j))])), "n = {n}");
        }
    }

    #[test]
    fn neither_threads_nor_neighbours_change_a_row() {
        let a = positive_definite(520);
        let solve = |n_threads: usize, r: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let mut large = LargeSymmetric::new(a.clone()).unwrap();
                large.factor(0.01).unwrap();
                let mut x = rows(r, 520);
                large.solve_rows(x.view_mut());
                x
            })
        };
        let many = solve(2, 40);
        assert_eq!(many, solve(1, 40));
        assert_eq!(many.slice(s![..3, ..]).to_owned(), solve(3, 3));
    }

    #[test]
    fn what_is_not_positive_definite_names_the_pivot_and_can_be_shifted() {
        let mut a = positive_definite(300);
        a[(280, 280)] = -5.0;
        let mut large = LargeSymmetric::new(a).unwrap();
        assert_eq!(large.factor(0.0).unwrap_err(), LinalgError::NotPositive { pivot: 280, dim: 300 });
        assert!(!large.is_factored());
        large.factor(20.0).unwrap();
        let eigen = large.eigen().unwrap();
        assert!(eigen.values[0] < -5.0 && eigen.values[1] > 0.0);
        let sum: f64 = eigen.values.iter().sum();
        let trace: f64 = large.diagonal().iter().sum();
        assert!((sum - trace).abs() < 1e-11 * trace.abs());
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(matches!(LargeSymmetric::new(Array2::zeros((2, 3))), Err(LinalgError::NotSquare { .. })));
        let nan = arr2(&[[1.0, f64::INFINITY], [0.0, 1.0]]);
        assert!(matches!(LargeSymmetric::new(nan), Err(LinalgError::NotFinite { row: 0, col: 1, .. })));
        let mut none = LargeSymmetric::new(Array2::zeros((0, 0))).unwrap();
        none.factor(1.0).unwrap();
        none.solve_rows(Array2::zeros((2, 0)).view_mut());
    }
}
