//! TrackStar: cosines of whitened rows, with curvature mixed from training rows and rows of the task.
//!
//! `φ = unit(R^{-½} · P[∇L ⊘ √V])`, `score = ⟨φ(q), φ(z)⟩`, with `R = λ R_eval + (1 − λ) R_train`, one block per module, and
//! `λ = σ_train[k] / (σ_eval[k] + σ_train[k])`: at this λ the k-th eigenvalues of the two parts are equal, so that the k strongest
//! directions of the task are damped like those of training. Source: Chang et al., arXiv:2410.17413, section 3 (k ≈ 1000 there).
//! Rows arrive divided by the root of the optimiser's second moments (`Normalizer` of models). Here never lives: that division.

use ascribe_core::{Column, FeatureReader, Progress};
use ascribe_linalg::SymmetricEigen;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::block_fisher::{Covariance, Factors, Preconditioner};
use crate::dot::ExampleScores;
use crate::error::MethodError;
use crate::normalise::Normalisation;
use crate::rows;

/// How much of the curvature is the task's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mix {
    /// λ as given, from 0 (training rows alone) to 1 (rows of the task alone).
    Given {
        /// λ.
        lambda: f64,
    },
    /// Where the k-th eigenvalues cross. Eigenvalues of all blocks are counted together; where either side has fewer than k that
    /// are not rounding noise, k is their smaller number.
    Crossing {
        /// k, from 1.
        rank: usize,
    },
}

/// Options of [`TrackStar::fit`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The mix.
    pub mix: Mix,
    /// Damping relative to the mean eigenvalue of each block: whitening a direction without any curvature is undefined.
    pub damping_rel: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { mix: Mix::Crossing { rank: 1000 }, damping_rel: 1e-3 }
    }
}

/// The fitted metric.
#[derive(Clone, Debug)]
pub struct TrackStar {
    factors: Factors,
    lambda: f64,
}

impl TrackStar {
    /// Mixes and factors the second moments of training rows and of rows of the task. Cost: `Σ d_m³/3`, and `18·Σ d_m³` for
    /// the eigenvalues of [`Mix::Crossing`].
    ///
    /// # Errors
    /// Other columns on the two sides; options out of range; curvature of zeros on both sides; a block that cannot be factored.
    pub fn fit(train: &Covariance, eval: &Covariance, options: Options) -> Result<Self, MethodError> {
        if train.columns() != eval.columns() {
            let names = |c: &Covariance| c.columns().iter().map(|c| c.name.clone()).collect::<Vec<_>>();
            return Err(MethodError::shape("column groups of the task's rows", names(train), names(eval)));
        }
        let lambda = match options.mix {
            Mix::Given { lambda } if (0.0..=1.0).contains(&lambda) => lambda,
            Mix::Given { lambda } => {
                return Err(MethodError::Parameter { field: "lambda of the mix", expected: "0 to 1", found: lambda });
            }
            Mix::Crossing { rank } => crossing(train, eval, rank)?,
        };
        let blocks =
            (0..train.columns().len()).map(|m| &train.block(m) * (1.0 - lambda) + &eval.block(m) * lambda).collect();
        let mixed = Covariance::from_parts(train.columns().to_vec(), train.n_rows(), blocks)?;
        Ok(Self { factors: mixed.cholesky(options.damping_rel)?, lambda })
    }

    /// The λ that was used.
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// Cosines of every row with every query, `[Q, N]`, in −1 … 1; a row without gradient has 0. Cost `2·Q·N·D + N·Σ d_m²`.
    ///
    /// # Errors
    /// Other columns; reader errors; NaN.
    pub fn score<R: FeatureReader>(
        &self,
        reader: &R,
        queries: ArrayView2<'_, f32>,
        progress: &dyn Progress,
    ) -> Result<ExampleScores, MethodError> {
        rows::score(reader, queries, Some(self), Normalisation::Cosine, progress)
    }
}

impl Preconditioner for TrackStar {
    fn columns(&self) -> &[Column] {
        self.factors.columns()
    }

    fn solve(&self, module: usize, rows: ArrayViewMut2<'_, f64>) {
        self.factors.solve(module, rows);
    }

    fn whiten(&self, module: usize, rows: ArrayViewMut2<'_, f64>) {
        self.factors.whiten(module, rows);
    }
}

/// λ at which the k-th eigenvalues cross; see [`Mix::Crossing`].
///
/// # Errors
/// `rank` 0; no eigenvalue above rounding noise on one of the sides; an eigenvalue iteration that does not converge.
pub fn crossing(train: &Covariance, eval: &Covariance, rank: usize) -> Result<f64, MethodError> {
    if rank == 0 {
        return Err(MethodError::Parameter { field: "rank of the crossing", expected: "at least 1", found: 0.0 });
    }
    let (train, eval) = (eigenvalues(train)?, eigenvalues(eval)?);
    let k = rank.min(train.len()).min(eval.len());
    if k == 0 {
        return Err(MethodError::Empty { what: "the curvature of training rows or of the task's rows" });
    }
    Ok(train[k - 1] / (eval[k - 1] + train[k - 1]))
}

/// Eigenvalues of all blocks above rounding noise, falling.
fn eigenvalues(covariance: &Covariance) -> Result<Vec<f64>, MethodError> {
    let of = |m: usize| {
        let values = SymmetricEigen::of(covariance.block(m)).map(|eigen| eigen.values);
        let name = || covariance.columns()[m].name.clone();
        values.map_err(|source| MethodError::Factor { module: name(), damping_rel: 0.0, source })
    };
    let blocks: Result<Vec<Vec<f64>>, MethodError> = (0..covariance.columns().len()).into_par_iter().map(of).collect();
    let mut all = Vec::new();
    for values in blocks? {
        let noise = values.len() as f64 * f64::EPSILON * values.last().copied().unwrap_or(0.0);
        all.extend(values.into_iter().filter(|&v| v > noise));
    }
    all.sort_by(|a, b| b.total_cmp(a));
    Ok(all)
}
