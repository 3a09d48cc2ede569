//! Inverse curvature times vectors: `(H + λ)⁻¹ v` on the contracts of [`crate::source`], one algorithm per file.
//!
//! | file | needs | exact? |
//! |---|---|---|
//! | [`explicit`] | the whole matrix, `8·P²` bytes | yes |
//! | [`cg`] | full products, tens of them | to a tolerance |
//! | [`lissa`] | products of batches, thousands | in the mean, for enough steps |
//! | [`arnoldi`] | full products, about a hundred, once for all queries | in the kept subspace |
//! | [`datainf`] | one pass over gradients per set of queries | a closed form of another matrix |
//! | [`astra`] | a preconditioner and a few passes of batches | refines the preconditioner |
//!
//! All are [`InverseCurvature`]: rows in, rows out, positive when the curvature is. `score = ⟨(H + λ)⁻¹q, g⟩` with both gradients of a
//! loss is positive for a proponent. Kronecker-factored curvature lives in `kron`; here never lives: a model.

mod batches;
mod rows;

pub mod arnoldi;
pub mod astra;
pub mod cg;
pub mod datainf;
pub mod explicit;
pub mod lissa;
pub mod own;

pub use arnoldi::{Arnoldi, ArnoldiOptions};
pub use astra::{Astra, AstraOptions};
pub use cg::{Cg, CgOptions};
pub use datainf::{DataInf, DataInfOptions};
pub use explicit::{Explicit, ExplicitOptions};
pub use lissa::{Lissa, LissaOptions};
pub use own::{OwnInfluence, own_influence, own_influence_rows};

use ndarray::{Array2, ArrayView2};

use crate::error::MethodError;
use crate::kron::Inverted;
use crate::source::Operator;

/// Something that applies an inverse of curvature (damping included) to vectors: `[Q, P] → [Q, P]`.
///
/// Plain functions of that shape are inverses too, so any preconditioner plugs in as a closure.
pub trait InverseCurvature: Sync {
    /// `(H + λ)⁻¹ v` for every row `v`.
    ///
    /// # Errors
    /// Rows of another length than the curvature; NaN; what the algorithm meets.
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError>;
}

impl<F> InverseCurvature for F
where
    F: Fn(ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> + Sync,
{
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        self(rows)
    }
}

impl InverseCurvature for Inverted<'_> {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        Inverted::solve(self, rows)
    }
}

/// `‖(H + λ)x − v‖ / ‖v‖` for every query, over all examples: how good a solution really is, whatever algorithm gave it.
///
/// `solution` and `queries` are `[Q, P]`; 0 for a query of zeros with a solution of zeros. One product with the curvature.
///
/// # Errors
/// Shapes; NaN; the operator's.
pub fn residuals(
    operator: &dyn Operator,
    damping: f64,
    solution: ArrayView2<'_, f32>,
    queries: ArrayView2<'_, f32>,
) -> Result<Vec<f64>, MethodError> {
    rows::check("solutions", solution, operator.dim())?;
    rows::check("query vectors", queries, operator.dim())?;
    if solution.nrows() != queries.nrows() {
        return Err(MethodError::shape("rows of the solutions", queries.nrows(), solution.nrows()));
    }
    let product = rows::apply(operator, None, solution)?;
    let one = |q: usize| {
        let (x, v, hx) = (solution.row(q), queries.row(q), product.row(q));
        let squared = ascribe_linalg::sum::sum_by(v.len(), |i| {
            (f64::from(hx[i]) + damping * f64::from(x[i]) - f64::from(v[i])).powi(2)
        });
        rows::ratio(squared.sqrt(), rows::norm32(v))
    };
    Ok((0..queries.nrows()).map(one).collect())
}

/// Mean of the eigenvalues, `tr(H)/P`, from `n_probes` products with vectors of random signs (Hutchinson): the unit in which a
/// relative damping is given. Its relative error is about `√(2/n_probes)·‖H‖_F/tr(H)`: small where many directions matter.
///
/// # Errors
/// No probes; the operator's.
pub fn mean_eigenvalue(operator: &dyn Operator, n_probes: usize, seed: u64) -> Result<f64, MethodError> {
    if n_probes == 0 {
        return Err(MethodError::Empty { what: "the set of probes" });
    }
    let dim = operator.dim();
    let stream = ascribe_linalg::Stream::new(seed, "inverse/probes");
    let sign = |(r, i): (usize, usize)| if stream.at((r * dim + i) as u64) >> 63 == 0 { 1.0f32 } else { -1.0 };
    let probes = Array2::from_shape_fn((n_probes, dim), sign);
    let product = rows::apply(operator, None, probes.view())?;
    let quadratic = |r: usize| rows::dot32(probes.row(r), product.row(r));
    Ok((0..n_probes).map(quadratic).sum::<f64>() / (n_probes * dim.max(1)) as f64)
}

/// The damping that a training run itself stands for: `1 / Σ_t η_t/(1 − μ)`, plus weight decay.
///
/// Gradient descent over a path of length `S = Σ_t η_t/(1 − μ)` has moved a direction of curvature `h` by
/// `(1 − e^{−hS})/h` of its gradient, which `1/(h + 1/S)` follows within 30 % for every `h` (the function of SOURCE,
/// arXiv:2405.12186, with one segment). A run that was stopped early is explained by its path, whatever its weight decay: on
/// the MNIST logistic regression of `benches/`, `S` = 62, LDS is 0.58 with the weight decay of 0.001 alone and 0.84 with 0.01.
///
/// `total_lr` is the sum of the learning rates of all steps, `momentum` μ of heavy ball (0 for none).
///
/// # Errors
/// [`MethodError::Parameter`] for rates that do not sum to something positive, or a momentum outside `[0, 1)`.
pub fn path_damping(total_lr: f64, momentum: f64, weight_decay: f64) -> Result<f64, MethodError> {
    rows::check_positive("sum of the learning rates", total_lr)?;
    rows::check_damping(weight_decay)?;
    if !(0.0..1.0).contains(&momentum) {
        return Err(MethodError::Parameter { field: "momentum", expected: "in [0, 1)", found: momentum });
    }
    Ok((1.0 - momentum) / total_lr + weight_decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_damps_like_its_length() {
        // 100 steps of 0.1 with momentum 0.9 go as far as 1,000 without: S = 100.
        assert!((path_damping(10.0, 0.9, 0.001).unwrap() - 0.011).abs() < 1e-12);
        for curvature in [1e-4, 1e-2, 1e-1, 1.0, 30.0] {
            // Heavy ball on ½h x² − x from rest, in steps small enough to be a flow.
            let (mut x, mut m, h) = (0.0f64, 0.0f64, curvature);
            for _ in 0..10_000 {
                m = 0.9 * m + (h * x - 1.0);
                x -= 1e-3 * m;
            }
            let damped = 1.0 / (h + path_damping(10.0, 0.9, 0.0).unwrap());
            assert!((0.99..1.31).contains(&(x / damped)), "{h}: {x} against {damped}");
        }
        assert!(path_damping(0.0, 0.9, 0.0).unwrap_err().to_string().contains("learning rates"));
        assert!(path_damping(1.0, 1.0, 0.0).unwrap_err().to_string().contains("momentum"));
    }
}
