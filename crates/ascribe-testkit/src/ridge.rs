//! Ridge regression: the model whose leave-one-out changes are known exactly.
//!
//! Loss `½ Σ_i (x_iᵀθ − y_i)² + ½ λ ‖θ‖²`, minimiser `θ = H⁻¹ Xᵀy` with `H = XᵀX + λI`. Leaving record i out moves it by
//! exactly `θ₋ᵢ − θ = H⁻¹ x_i (x_iᵀθ − y_i) / (1 − x_iᵀH⁻¹x_i)` (Sherman–Morrison): the influence function times a
//! leverage factor. A method that claims influence can be held against that, and against the plain refit.

use ndarray::{Array1, Array2, Axis};

/// A fitted ridge regression with everything a test may ask of it, in f64.
#[derive(Clone, Debug)]
pub struct Ridge {
    /// Inputs `[n, d]`.
    pub x: Array2<f64>,
    /// Targets `[n]`.
    pub y: Array1<f64>,
    /// Ridge λ.
    pub lambda: f64,
    /// Minimiser `[d]`.
    pub theta: Array1<f64>,
    /// `XᵀX + λI`, `[d, d]`.
    pub hessian: Array2<f64>,
}

impl Ridge {
    /// Fits by Gaussian elimination.
    ///
    /// # Panics
    /// If the shapes differ or `lambda` is not positive.
    pub fn fit(x: Array2<f64>, y: Array1<f64>, lambda: f64) -> Self {
        assert_eq!(x.nrows(), y.len(), "one target per input");
        assert!(lambda > 0.0, "a positive ridge keeps the Hessian invertible");
        let hessian = x.t().dot(&x) + Array2::<f64>::eye(x.ncols()) * lambda;
        let theta = solve(&hessian, &x.t().dot(&y));
        Self { x, y, lambda, theta, hessian }
    }

    /// A fixed small instance: 12 inputs of dimension 4.
    pub fn toy() -> Self {
        let x = Array2::from_shape_fn((12, 4), |(i, j)| ((1 + i * 4 + j) as f64 * 0.9).sin());
        let y = Array1::from_shape_fn(12, |i| (i as f64 * 1.7).cos() + 0.1 * i as f64);
        Self::fit(x, y, 0.5)
    }

    /// Gradients of the single losses at the minimiser, `(x_iᵀθ − y_i) x_i`, `[n, d]`.
    pub fn gradients(&self) -> Array2<f64> {
        let residuals = self.x.dot(&self.theta) - &self.y;
        &self.x * &residuals.insert_axis(Axis(1))
    }

    /// `x_iᵀ H⁻¹ x_i`, `[n]`: how far the exact change exceeds the first-order one is `1/(1 − leverage)`.
    pub fn leverages(&self) -> Array1<f64> {
        self.x.rows().into_iter().map(|row| row.dot(&solve(&self.hessian, &row.to_owned()))).collect()
    }

    /// First-order change of the loss at `(query_x, query_y)` when record i is left out: `q ᵀ H⁻¹ g_i`, `[n]`.
    ///
    /// Positive = the loss grows without the record = proponent.
    pub fn influence(&self, query_x: &Array1<f64>, query_y: f64) -> Array1<f64> {
        let query_gradient = query_x * (query_x.dot(&self.theta) - query_y);
        self.gradients().dot(&solve(&self.hessian, &query_gradient))
    }

    /// The minimiser without record i, by refitting.
    pub fn refit_without(&self, i: usize) -> Array1<f64> {
        let kept: Vec<usize> = (0..self.x.nrows()).filter(|&row| row != i).collect();
        Self::fit(self.x.select(Axis(0), &kept), self.y.select(Axis(0), &kept), self.lambda).theta
    }
}

/// Solves `a · z = b` by Gaussian elimination with partial pivoting: slow, plain, and nobody else's code.
///
/// # Panics
/// If a pivot vanishes.
pub fn solve(a: &Array2<f64>, b: &Array1<f64>) -> Array1<f64> {
    let n = b.len();
    assert_eq!(a.dim(), (n, n), "a square system");
    let (mut a, mut b) = (a.clone(), b.clone());
    for column in 0..n {
        let pivot = (column..n).max_by(|&p, &q| a[[p, column]].abs().total_cmp(&a[[q, column]].abs()));
        let pivot = pivot.expect("a column has rows");
        assert!(a[[pivot, column]] != 0.0, "the system is singular at column {column}");
        for k in 0..n {
            a.swap([column, k], [pivot, k]);
        }
        b.swap(column, pivot);
        for row in column + 1..n {
            let factor = a[[row, column]] / a[[column, column]];
            for k in column..n {
                let above = a[[column, k]];
                a[[row, k]] -= factor * above;
            }
            b[row] -= factor * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| a[[row, k]] * b[k]).sum();
        b[row] = (b[row] - known) / a[[row, row]];
    }
    b
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;

    fn distance(a: &Array1<f64>, b: &Array1<f64>) -> f64 {
        (a - b).mapv(f64::abs).sum()
    }

    #[test]
    fn hand_computed_system() {
        // 2a + b = 5, a + 3b = 10 → a = 1, b = 3; the zero pivot of the second system needs a row swap.
        let a = ndarray::arr2(&[[2.0, 1.0], [1.0, 3.0]]);
        assert!(distance(&solve(&a, &arr1(&[5.0, 10.0])), &arr1(&[1.0, 3.0])) < 1e-12);
        let swapped = ndarray::arr2(&[[0.0, 1.0], [2.0, 0.0]]);
        assert_eq!(solve(&swapped, &arr1(&[3.0, 8.0])), arr1(&[4.0, 3.0]));
    }

    #[test]
    fn the_gradient_vanishes_at_the_minimiser() {
        let ridge = Ridge::toy();
        let total = ridge.gradients().sum_axis(Axis(0)) + &ridge.theta * ridge.lambda;
        assert!(total.mapv(f64::abs).sum() < 1e-12);
    }

    #[test]
    fn refit_moves_by_the_closed_form() {
        let ridge = Ridge::toy();
        let (gradients, leverages) = (ridge.gradients(), ridge.leverages());
        for i in 0..ridge.x.nrows() {
            let step = solve(&ridge.hessian, &gradients.row(i).to_owned()) / (1.0 - leverages[i]);
            assert!(distance(&(&ridge.theta + &step), &ridge.refit_without(i)) < 1e-10, "record {i}");
        }
    }

    #[test]
    fn influence_has_the_sign_of_the_refit() {
        let ridge = Ridge::toy();
        let (query_x, query_y) = (arr1(&[0.3, -0.2, 0.9, 0.1]), 2.0);
        let loss = |theta: &Array1<f64>| 0.5 * (query_x.dot(theta) - query_y).powi(2);
        let influence = ridge.influence(&query_x, query_y);
        let (leverages, now) = (ridge.leverages(), loss(&ridge.theta));
        for i in 0..ridge.x.nrows() {
            let change = loss(&ridge.refit_without(i)) - now;
            // The loss is quadratic, so the first-order change with the leverage factor misses only the square term.
            let first = influence[i] / (1.0 - leverages[i]);
            let moved = query_x.dot(&(&ridge.refit_without(i) - &ridge.theta));
            assert!((change - first - 0.5 * moved * moved).abs() < 1e-10, "record {i}: {change} against {first}");
        }
    }
}
