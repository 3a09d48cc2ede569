//! TRAK: influence in the model that is linear in its margin's gradient.
//!
//! `f = log(p/(1 − p))` is the margin of the right answer, `φ = Pᵀ∇f` its projected gradient. With `Φ` the `[N, D]` matrix of
//! training rows and `Q = diag(1 − p_i)`, `τ(q, i) = φ(q)ᵀ (ΦᵀΦ + λI)⁻¹ φ_i · (1 − p_i)`; over models trained alike
//! `τ = (mean of the kernel scores) · (mean of 1 − p_i)`, two separate means. Source: Park et al., arXiv:2303.14186, section 3
//! (`λ = 0` there, and soft-thresholding as its last step). For a logistic regression the training loss has the gradient
//! `−(1 − p_i) φ_i` and the Hessian `Φᵀ diag(p(1 − p)) Φ`: with rows weighted by `√(p_i(1 − p_i))` in the kernel
//! ([`Kernel::fit_weighted`]) TRAK is exactly the influence of an example's loss on the query's margin; the paper drops these
//! weights.
//!
//! Positive = the example raises the query's margin. Here never lives: models, margins, projection.

use ascribe_core::{Column, ExampleId, FeatureReader, Progress};
use ascribe_linalg::{Cholesky, LinalgError};
use ndarray::{Array2, ArrayView2, ArrayViewMut1};
use serde::{Deserialize, Serialize};

use crate::block_fisher::{Covariance, Preconditioner};
use crate::blocks;
use crate::dot::{self, ExampleScores};
use crate::error::MethodError;
use crate::narrow;
use crate::rows::{OneGroup, Weighted};

/// `λ` of `ΦᵀΦ + λI`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ridge {
    /// `λ` itself, in units of squared rows summed over examples. The paper's is 0.
    Absolute {
        /// `λ ≥ 0`.
        lambda: f64,
    },
    /// `λ = part · mean(diag ΦᵀΦ)`.
    Relative {
        /// `part ≥ 0`.
        part: f64,
    },
}

impl Default for Ridge {
    /// A thousandth of the mean: too little to move scores of well-conditioned rows, enough for rows that are dependent.
    fn default() -> Self {
        Self::Relative { part: 1e-3 }
    }
}

/// What becomes of small scores, query by query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SoftThreshold {
    /// They stay.
    #[default]
    None,
    /// `sign(τ)·max(|τ| − value, 0)`.
    Absolute {
        /// Not negative.
        value: f64,
    },
    /// The same, with the largest `|τ|` but `keep` as value: at most `keep` scores of a query are not zero.
    Keep {
        /// Scores kept.
        keep: usize,
    },
}

/// `ΦᵀΦ + λI` of one model's rows, factored.
#[derive(Clone, Debug)]
pub struct Kernel {
    columns: Vec<Column>,
    lambda: f64,
    /// `None` when all rows are zero: then all scores are.
    factor: Option<Cholesky>,
}

impl Kernel {
    /// Fits the kernel of `reader`'s rows (all columns together). Cost `N·D² + D³/3`; memory `16·D²` bytes.
    ///
    /// # Errors
    /// A `λ` that is negative or not finite; rows that are linearly dependent with `λ = 0`; no rows; reader errors; NaN.
    pub fn fit<R: FeatureReader>(reader: &R, ridge: Ridge, progress: &dyn Progress) -> Result<Self, MethodError> {
        let group = OneGroup::new(reader);
        Self::of(&Covariance::fit(&group, progress)?, ridge)
    }

    /// The kernel `Φᵀ diag(w²) Φ + λI`: `w_i = √(p_i(1 − p_i))` makes it the Hessian of a logistic regression.
    ///
    /// # Errors
    /// As [`Kernel::fit`]; another number of weights than rows, or one that is not finite.
    pub fn fit_weighted<R: FeatureReader>(
        reader: &R,
        weights: &[f64],
        ridge: Ridge,
        progress: &dyn Progress,
    ) -> Result<Self, MethodError> {
        Self::fit(&Weighted::new(reader, weights)?, ridge, progress)
    }

    fn of(covariance: &Covariance, ridge: Ridge) -> Result<Self, MethodError> {
        let (field, value) = match ridge {
            Ridge::Absolute { lambda } => ("lambda", lambda),
            Ridge::Relative { part } => ("part of the mean diagonal", part),
        };
        if !(value.is_finite() && value >= 0.0) {
            return Err(MethodError::Parameter { field, expected: "finite and not negative", found: value });
        }
        let n = covariance.n_rows() as f64;
        let mean = covariance.mean_diagonals()[0];
        let lambda = match ridge {
            Ridge::Absolute { lambda } => lambda,
            Ridge::Relative { part } => part * mean * n,
        };
        let columns = covariance.columns().to_vec();
        if mean == 0.0 {
            return Ok(Self { columns, lambda, factor: None });
        }
        let mut kernel = covariance.block(0).mapv(|h| h * n);
        kernel.diag_mut().mapv_inplace(|d| d + lambda);
        let error = |source| MethodError::Factor {
            module: "row (the TRAK kernel)".to_owned(),
            damping_rel: lambda / (mean * n),
            source,
        };
        let factor = Cholesky::factor(kernel.view()).map_err(error)?;
        // A squared pivot over its diagonal entry is the part of the column that those before it do not explain. At rounding
        // level the column is dependent, and what a solve would say of it is noise.
        let dim = kernel.nrows();
        let noise = dim as f64 * f64::EPSILON;
        let dependent = |(&pivot, &entry): (&f64, &f64)| pivot * pivot <= noise * entry;
        if let Some(pivot) = factor.diagonal().iter().zip(kernel.diag()).position(dependent) {
            return Err(error(LinalgError::NotPositive { pivot, dim }));
        }
        Ok(Self { columns, lambda, factor: Some(factor) })
    }

    /// The `λ` that was added.
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// `(ΦᵀΦ + λI)⁻¹ φ(q)`, `[Q, D]` → `[Q, D]`: products with training rows are kernel scores. Cost `2·Q·D²`.
    ///
    /// # Errors
    /// Width of the rows; NaN.
    pub fn precondition(&self, queries: ArrayView2<'_, f32>) -> Result<Array2<f64>, MethodError> {
        let mut out = blocks::query_rows(queries, &self.columns)?;
        self.solve(0, out.view_mut());
        Ok(out)
    }
}

impl Preconditioner for Kernel {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn solve(&self, _: usize, mut rows: ndarray::ArrayViewMut2<'_, f64>) {
        match &self.factor {
            Some(factor) => factor.solve_rows(rows),
            None => rows.fill(0.0),
        }
    }

    fn whiten(&self, _: usize, mut rows: ndarray::ArrayViewMut2<'_, f64>) {
        match &self.factor {
            Some(factor) => factor.whiten_rows(rows),
            None => rows.fill(0.0),
        }
    }
}

/// Kernel scores `φ(q)ᵀ(…)⁻¹φ_i`, `[Q, N]`, of the models so far.
#[derive(Clone, Debug, Default)]
enum Kernels {
    #[default]
    None,
    /// One model's as they come.
    One(Array2<f32>),
    /// Sums over several.
    Many(Array2<f64>),
}

impl Kernels {
    fn dim(&self) -> (usize, usize) {
        match self {
            Self::None => (0, 0),
            Self::One(kernel) => kernel.dim(),
            Self::Many(kernel) => kernel.dim(),
        }
    }

    fn add(&mut self, scores: Array2<f32>) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(scores),
            Self::One(first) => {
                let mut sum = first.mapv(f64::from);
                sum.zip_mut_with(&scores, |sum, &v| *sum += f64::from(v));
                Self::Many(sum)
            }
            Self::Many(mut sum) => {
                sum.zip_mut_with(&scores, |sum, &v| *sum += f64::from(v));
                Self::Many(sum)
            }
        };
    }
}

/// Models trained alike, added one by one: only sums are kept, `8·Q·N` bytes, half of it for one model. [`Ensemble::scores`] may be
/// asked after each model.
#[derive(Clone, Debug, Default)]
pub struct Ensemble {
    n_models: usize,
    kernels: Kernels,
    /// `Σ_m (1 − p_m,i)`, `[N]`.
    residuals: Vec<f64>,
    examples: Vec<ExampleId>,
}

impl Ensemble {
    /// No model yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Models added.
    pub fn n_models(&self) -> usize {
        self.n_models
    }

    /// Adds a model: its training rows, its query rows `[Q, D]`, and `1 − p_i` for every training example, `[N]`. The width `D`
    /// may differ between models. Cost: that of [`Kernel::fit`] and `2·Q·N·D`.
    ///
    /// # Errors
    /// As [`Kernel::fit`]; `1 − p` outside of 0 … 1; other queries or examples than those of the models before. After an error
    /// the sums are as they were.
    pub fn add<R: FeatureReader>(
        &mut self,
        reader: &R,
        queries: ArrayView2<'_, f32>,
        residuals: &[f32],
        ridge: Ridge,
        progress: &dyn Progress,
    ) -> Result<(), MethodError> {
        let kernel = Kernel::fit(reader, ridge, progress)?;
        self.add_fitted(&kernel, reader, queries, residuals, progress)
    }

    /// [`Ensemble::add`] with a kernel that was fitted before.
    ///
    /// # Errors
    /// As [`Ensemble::add`].
    pub fn add_fitted<R: FeatureReader>(
        &mut self,
        kernel: &Kernel,
        reader: &R,
        queries: ArrayView2<'_, f32>,
        residuals: &[f32],
        progress: &dyn Progress,
    ) -> Result<(), MethodError> {
        let shape = (queries.nrows(), dot::n_rows(reader)?);
        if residuals.len() != shape.1 {
            return Err(MethodError::shape("residuals 1 − p, one per training row", shape.1, residuals.len()));
        }
        if let Some(column) = residuals.iter().position(|r| !(0.0..=1.0).contains(r)) {
            let found = f64::from(residuals[column]);
            return Err(MethodError::BadValue { what: "residuals 1 − p".to_owned(), row: 0, column, found });
        }
        if self.n_models > 0 && self.kernels.dim() != shape {
            return Err(MethodError::shape("queries and examples of a model", self.kernels.dim(), shape));
        }
        let vectors = kernel.precondition(queries)?;
        let ExampleScores { examples, values: scores } = narrow::score(reader, vectors.view(), progress)?;
        if self.n_models == 0 {
            (self.residuals, self.examples) = (vec![0.0; shape.1], examples);
        } else if self.examples != examples {
            let expected = "the examples of the first model".to_owned();
            return Err(MethodError::shape("order of examples in a model", expected, "others"));
        }
        self.kernels.add(scores);
        self.residuals.iter_mut().zip(residuals).for_each(|(sum, &r)| *sum += f64::from(r));
        self.n_models += 1;
        Ok(())
    }

    /// The scores of the models so far, `[Q, N]`, in units of margin. Of a copy of the sums where [`Ensemble::into_scores`] needs none.
    ///
    /// # Errors
    /// No model; a threshold that is negative or not finite.
    pub fn scores(&self, soft: SoftThreshold) -> Result<ExampleScores, MethodError> {
        self.clone().into_scores(soft)
    }

    /// [`Ensemble::scores`] in the memory of one model's kernel scores, when no model is to follow.
    ///
    /// # Errors
    /// As [`Ensemble::scores`].
    pub fn into_scores(self, soft: SoftThreshold) -> Result<ExampleScores, MethodError> {
        if let SoftThreshold::Absolute { value } = soft
            && !(value.is_finite() && value >= 0.0)
        {
            let expected = "finite and not negative";
            return Err(MethodError::Parameter { field: "soft threshold", expected, found: value });
        }
        let m = self.n_models as f64;
        let residuals: Vec<f64> = self.residuals.iter().map(|r| r / m).collect();
        let mut values = match self.kernels {
            Kernels::None => return Err(MethodError::Empty { what: "the ensemble of models" }),
            Kernels::One(mut values) => {
                for mut row in values.rows_mut() {
                    row.iter_mut().zip(&residuals).for_each(|(v, r)| *v = (f64::from(*v) * r) as f32);
                }
                values
            }
            Kernels::Many(sums) => {
                let mut values = Array2::<f32>::zeros(sums.dim());
                for (mut to, from) in values.rows_mut().into_iter().zip(sums.rows()) {
                    to.iter_mut().zip(from).zip(&residuals).for_each(|((to, k), r)| *to = ((k / m) * r) as f32);
                }
                values
            }
        };
        values.rows_mut().into_iter().for_each(|row| shrink(row, soft));
        Ok(ExampleScores { examples: self.examples, values })
    }
}

/// TRAK with one model. As an [`Ensemble`] of one.
///
/// # Errors
/// As [`Ensemble::add`] and [`Ensemble::scores`].
pub fn score<R: FeatureReader>(
    reader: &R,
    queries: ArrayView2<'_, f32>,
    residuals: &[f32],
    ridge: Ridge,
    soft: SoftThreshold,
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    let mut one = Ensemble::new();
    one.add(reader, queries, residuals, ridge, progress)?;
    one.into_scores(soft)
}

fn shrink(mut row: ArrayViewMut1<'_, f32>, soft: SoftThreshold) {
    let value = match soft {
        SoftThreshold::None => return,
        SoftThreshold::Absolute { value } => value,
        SoftThreshold::Keep { keep } => {
            let mut sizes: Vec<f32> = row.iter().map(|v| v.abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            sizes.get(keep).map_or(0.0, |&size| f64::from(size))
        }
    };
    row.mapv_inplace(|v| v.signum() * (f64::from(v.abs()) - value).max(0.0) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_by_hand() {
        let check = |soft, expected: [f32; 4]| {
            let mut row = ndarray::arr1(&[3.0f32, -2.0, 0.5, -0.25]);
            shrink(row.view_mut(), soft);
            assert_eq!(row, ndarray::arr1(&expected), "{soft:?}");
        };
        check(SoftThreshold::None, [3.0, -2.0, 0.5, -0.25]);
        check(SoftThreshold::Absolute { value: 1.0 }, [2.0, -1.0, 0.0, 0.0]);
        check(SoftThreshold::Keep { keep: 2 }, [2.5, -1.5, 0.0, 0.0]);
        check(SoftThreshold::Keep { keep: 9 }, [3.0, -2.0, 0.5, -0.25]);
        check(SoftThreshold::Keep { keep: 0 }, [0.0; 4]);
    }
}
