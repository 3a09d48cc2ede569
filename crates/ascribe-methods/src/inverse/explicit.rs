//! The whole curvature matrix, formed and factored. Source: influence functions as they stand in arXiv:1703.04730, eq. 2.
//!
//! For models of a few thousand parameters this is the reference that every other algorithm is held against.

use ascribe_core::Progress;
use ascribe_linalg::{LargeSymmetric, LinalgError, SymmetricEigen};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{InverseCurvature, rows};
use crate::blocks;
use crate::error::MethodError;
use crate::source::Operator;

/// What to do with a matrix that is not positive definite after damping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotPositive {
    /// Refuse, with a hint.
    #[default]
    Refuse,
    /// Decompose; eigenvalues of `H` below zero count as zero, and where nothing is left with the damping, the direction is
    /// left out (pseudo-inverse).
    Clamp,
    /// Decompose; eigenvalues of `H` count with their absolute value (saddle-free), else as [`NotPositive::Clamp`].
    Absolute,
}

/// Options of [`Explicit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExplicitOptions {
    /// Added to the diagonal, in units of the curvature. 0.01, the peers' default for a logistic regression.
    pub damping: f64,
    /// Columns of the identity per product. 256: two blocks of 8 MB at 7,850 parameters.
    pub block_rows: usize,
    /// Largest matrix that is formed, in bytes. 2 GiB, which is 16,384 parameters.
    pub max_bytes: u64,
    /// Curvature that is not positive definite.
    pub not_positive: NotPositive,
}

impl Default for ExplicitOptions {
    fn default() -> Self {
        Self { damping: 0.01, block_rows: 256, max_bytes: 2 << 30, not_positive: NotPositive::Refuse }
    }
}

/// How the matrix is inverted.
#[derive(Clone, Debug)]
enum Route {
    Cholesky,
    Eigen { eigen: SymmetricEigen, inverses: Vec<f64> },
}

/// `(H + λI)⁻¹` with the whole `H` in memory.
///
/// `H` is what the operator has as a whole, or is formed from products with blocks of the identity in f32 (each entry has a relative
/// error of the operator's, about `1e-6` of the largest), symmetrised and factored in f64. Memory `8·P²` bytes (493 MB at P = 7,850)
/// and two blocks; four times that when it has to be decomposed. Cost: the operator's matrix or its `P` products, `P³/3`, and
/// `2·P²` per query. Bytes do not depend on threads or on other queries.
#[derive(Clone, Debug)]
pub struct Explicit {
    matrix: LargeSymmetric,
    route: Route,
    damping: f64,
    not_positive: NotPositive,
    max_bytes: u64,
    asymmetry: f64,
    negative: Option<usize>,
}

impl Explicit {
    /// Forms `H` over all examples and factors `H + λI`.
    ///
    /// # Errors
    /// [`MethodError::TooLarge`] naming the bytes; [`MethodError::Curvature`] when the matrix is not positive definite and
    /// that is refused; parameters; NaN; the operator's.
    pub fn form(
        operator: &dyn Operator,
        options: &ExplicitOptions,
        progress: &dyn Progress,
    ) -> Result<Self, MethodError> {
        rows::check_damping(options.damping)?;
        rows::check_count("block_rows", options.block_rows)?;
        let dim = operator.dim();
        let bytes = 8 * (dim as u64).saturating_mul(dim as u64);
        if bytes > options.max_bytes {
            let what = format!("the whole curvature matrix of {dim} parameters");
            let hint = "use CG, Arnoldi or EK-FAC, or raise max_bytes";
            return Err(MethodError::TooLarge { what, bytes, limit: options.max_bytes, hint });
        }
        let mut values = match operator.whole()? {
            Some(values) if values.dim() == (dim, dim) => values,
            Some(values) => return Err(MethodError::shape("the whole curvature matrix", (dim, dim), values.dim())),
            None => from_products(operator, options.block_rows, progress)?,
        };
        let asymmetry = symmetrise(&mut values);
        let matrix = LargeSymmetric::new(values).map_err(|source| curvature_error(options.damping, source))?;
        let mut explicit = Self {
            matrix,
            route: Route::Cholesky,
            damping: options.damping,
            not_positive: options.not_positive,
            max_bytes: options.max_bytes,
            asymmetry,
            negative: None,
        };
        explicit.set_damping(options.damping)?;
        Ok(explicit)
    }

    /// Factors the same matrix for another damping, in the same memory. Cost `P³/3`; `P` multiplications when the matrix was
    /// decomposed before.
    ///
    /// # Errors
    /// As [`Explicit::form`]. The matrix stays and may be damped again.
    pub fn set_damping(&mut self, damping: f64) -> Result<(), MethodError> {
        rows::check_damping(damping)?;
        self.damping = damping;
        if let Route::Eigen { eigen, inverses } = &mut self.route {
            *inverses = inverse_values(&eigen.values, damping, self.not_positive);
            return Ok(());
        }
        match (self.matrix.factor(damping), self.not_positive) {
            (Ok(()), _) => Ok(()),
            (Err(LinalgError::NotPositive { .. }), NotPositive::Clamp | NotPositive::Absolute) => self.decompose(),
            (Err(source), _) => Err(curvature_error(damping, source)),
        }
    }

    fn decompose(&mut self) -> Result<(), MethodError> {
        let bytes = 32 * (self.dim() as u64).pow(2);
        if bytes > 4 * self.max_bytes {
            let what = format!("the eigenvectors of {} parameters", self.dim());
            let hint = "raise the damping until the matrix is positive definite, or raise max_bytes";
            return Err(MethodError::TooLarge { what, bytes, limit: 4 * self.max_bytes, hint });
        }
        let eigen = self.matrix.eigen().map_err(|source| curvature_error(self.damping, source))?;
        let noise = noise_level(&eigen.values);
        self.negative = Some(eigen.values.iter().filter(|&&v| v < -noise).count());
        let inverses = inverse_values(&eigen.values, self.damping, self.not_positive);
        self.route = Route::Eigen { eigen, inverses };
        Ok(())
    }

    /// Parameters.
    pub fn dim(&self) -> usize {
        self.matrix.dim()
    }

    /// The damping that [`InverseCurvature::solve`] uses.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Mean of the eigenvalues of `H`: the unit of a relative damping.
    pub fn mean_diagonal(&self) -> f64 {
        ascribe_linalg::sum::sum(self.matrix.diagonal()) / self.dim().max(1) as f64
    }

    /// Entry of `H`, without damping.
    ///
    /// # Panics
    /// If an index is not below the dimension.
    pub fn entry(&self, i: usize, j: usize) -> f64 {
        self.matrix.entry(i, j)
    }

    /// Largest `|H_ij − H_ji|` of the products over the largest `|H_ij|`: rounding of an honest operator, about `1e-6`.
    pub fn asymmetry(&self) -> f64 {
        self.asymmetry
    }

    /// Eigenvalues of `H` that are negative beyond rounding; `None` where a Cholesky factor was enough.
    pub fn n_negative(&self) -> Option<usize> {
        self.negative
    }

    /// [`InverseCurvature::solve`] in f64.
    ///
    /// # Errors
    /// Rows of another length; NaN.
    pub fn solve_wide(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f64>, MethodError> {
        rows::check("query vectors", rows, self.dim())?;
        let mut wide = rows::widen(rows);
        match &self.route {
            Route::Cholesky => {
                if !self.matrix.is_factored() {
                    let source = LinalgError::NotPositive { pivot: 0, dim: self.dim() };
                    return Err(curvature_error(self.damping, source));
                }
                self.matrix.solve_rows(wide.view_mut());
                Ok(wide)
            }
            Route::Eigen { eigen, inverses } => {
                let mut rotated = blocks::rows_times(wide.view(), eigen.vectors.t());
                for mut row in rotated.rows_mut() {
                    row.iter_mut().zip(inverses).for_each(|(v, &inverse)| *v *= inverse);
                }
                Ok(blocks::rows_times(rotated.view(), eigen.vectors.view()))
            }
        }
    }
}

impl InverseCurvature for Explicit {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        Ok(rows::narrow(&self.solve_wide(rows)?))
    }
}

/// The matrix by products with blocks of the identity.
fn from_products(
    operator: &dyn Operator,
    block_rows: usize,
    progress: &dyn Progress,
) -> Result<Array2<f64>, MethodError> {
    let dim = operator.dim();
    let mut values = Array2::<f64>::zeros((dim, dim));
    let mut identity = Array2::<f32>::zeros((block_rows.min(dim), dim));
    progress.start("curvature matrix", dim as u64, "columns");
    for first in (0..dim).step_by(block_rows) {
        let n = block_rows.min(dim - first);
        // The last block keeps the shape of the others, rows of zeros below: one shape of products for all columns.
        identity.fill(0.0);
        (0..n).for_each(|i| identity[(i, first + i)] = 1.0);
        let product = rows::apply(operator, None, identity.view())?;
        let mut target = values.slice_mut(s![first..first + n, ..]);
        target.zip_mut_with(&product.slice(s![..n, ..]), |t, &v| *t = f64::from(v));
        progress.advance(n as u64);
        if progress.stop_requested() {
            return Err(MethodError::Stopped);
        }
    }
    progress.finish("curvature formed");
    Ok(values)
}

/// Puts `½(H + Hᵀ)` above the diagonal; returns the largest difference over the largest entry.
fn symmetrise(values: &mut Array2<f64>) -> f64 {
    const TILE: usize = 64;
    let n = values.nrows();
    let largest = values.as_slice().expect("made here").par_iter().fold(|| 0.0f64, |m, v| m.max(v.abs()));
    let largest = largest.reduce(|| 0.0, f64::max);
    let mut worst = 0.0f64;
    for first in (0..n).step_by(TILE) {
        for second in (first..n).step_by(TILE) {
            for i in first..(first + TILE).min(n) {
                for j in second.max(i + 1)..(second + TILE).min(n) {
                    let (upper, lower) = (values[(i, j)], values[(j, i)]);
                    worst = worst.max((upper - lower).abs());
                    values[(i, j)] = 0.5 * (upper + lower);
                }
            }
        }
    }
    rows::ratio(worst, largest)
}

/// Below this an eigenvalue is rounding: the products are f32, the decomposition backward stable.
fn noise_level(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    4.0 * f64::from(f32::EPSILON) * largest
}

fn inverse_values(values: &[f64], damping: f64, not_positive: NotPositive) -> Vec<f64> {
    let noise = noise_level(values);
    let one = |&value: &f64| {
        let value = if not_positive == NotPositive::Absolute { value.abs() } else { value.max(0.0) };
        // A direction without curvature and without damping has no inverse: it is left out.
        let value = if value <= noise && damping <= noise { return 0.0 } else { value };
        1.0 / (value + damping)
    };
    values.iter().map(one).collect()
}

fn curvature_error(damping: f64, source: LinalgError) -> MethodError {
    MethodError::Curvature {
        what: format!("the whole curvature matrix with damping {damping}"),
        hint: "raise the damping, use Gauss-Newton products, or not_positive = \"clamp\" or \"absolute\"",
        source,
    }
}
