//! Inverse curvature: how an eigenvalue is inverted, and vectors through it. Here never lives: fitting.

use ascribe_core::Progress;
use ascribe_linalg::{LinalgError, Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::eigenvalues::weighted_squares;
use super::factors::{Kron, LayerFactors};
use crate::captured::check_vectors;
use crate::error::MethodError;
use crate::projected::{Basis, Projected};
use crate::source::{CaptureSource, Labels, Layer};

/// What stands in the place of `1/Λ`, with damping `λ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inverse {
    /// `1/(Λ + λ)`.
    #[default]
    Damped,
    /// `Λ/(Λ² + λ²)`: directions without curvature get nothing (Tikhonov).
    Tikhonov,
    /// `1/Λ` where `Λ > λ`, else 0.
    Pseudo,
    /// `1/((λ_A + π√λ)(λ_G + √λ/π))` with `π = √(mean λ_A / mean λ_G)`: K-FAC's factored damping (arXiv:1503.05671,
    /// section 6.3), which adds to each factor; `Λ` in the place of `λ_A·λ_G` where it was corrected.
    Factored,
}

/// λ per layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damping {
    /// The same number for all layers, in units of curvature (squared nats per squared parameter).
    Absolute(f64),
    /// Times the mean of Λ of the layer.
    Relative(f64),
    /// A number of its own for every layer, in units of curvature: as `damping` chooses them.
    PerLayer(Vec<f64>),
}

/// Curvature with one inverse.
pub struct Inverted<'a> {
    kron: &'a Kron,
    /// Per layer `[n_out, n_in]`, never negative.
    inverses: Vec<Array2<f64>>,
}

impl Kron {
    /// Inverts the eigenvalues. A layer without any curvature has inverse zero: its part of every score is zero.
    ///
    /// # Errors
    /// A damping that is negative, not finite or of another number of layers; [`MethodError::Factor`] when
    /// [`Inverse::Damped`] or [`Inverse::Factored`] meets an eigenvalue that is rounding noise without damping.
    pub fn inverse(&self, inverse: Inverse, damping: &Damping) -> Result<Inverted<'_>, MethodError> {
        let lambdas = self.lambdas(damping)?;
        let invert = |(layer, lambda): (&LayerFactors, &f64)| invert(layer, inverse, *lambda);
        let inverses = self.layers().iter().zip(&lambdas).map(invert).collect::<Result<_, _>>()?;
        Ok(Inverted { kron: self, inverses })
    }

    /// λ of every layer.
    fn lambdas(&self, damping: &Damping) -> Result<Vec<f64>, MethodError> {
        let n = self.layers().len();
        let lambdas = match damping {
            Damping::Absolute(lambda) => vec![*lambda; n],
            Damping::Relative(c) => self.mean_eigenvalues().iter().map(|mean| c * mean).collect(),
            Damping::PerLayer(lambdas) => lambdas.clone(),
        };
        if lambdas.len() != n {
            return Err(MethodError::shape("dampings, one per layer", n, lambdas.len()));
        }
        match lambdas.iter().find(|l| !l.is_finite() || **l < 0.0) {
            None => Ok(lambdas),
            Some(&found) => {
                Err(MethodError::Parameter { field: "damping", expected: "finite and not negative", found })
            }
        }
    }

    /// Multiplies one flat vector by `(Q_S ⊗ Q_A)ᵀ diag(multipliers) (Q_S ⊗ Q_A)`, in f64. Shapes depend on the layers alone.
    pub(super) fn apply(&self, row: &mut [f64], multipliers: &[Array2<f64>]) {
        let mut rest = row;
        for (l, multiplier) in self.layers().iter().zip(multipliers) {
            let (own, others) = rest.split_at_mut(l.layer.len());
            let shape = (l.layer.n_out, l.layer.n_in);
            let own = ArrayViewMut2::from_shape(shape, own).expect("a layer's part of a flat vector");
            apply_layer(&l.basis, own, multiplier);
            rest = others;
        }
    }
}

/// `V ← Q_Sᵀ[(Q_S V Q_Aᵀ) ⊙ M]Q_A`.
fn apply_layer(basis: &Basis, mut v: ArrayViewMut2<'_, f64>, multiplier: &Array2<f64>) {
    let (q_a, q_s) = (basis.input.view(), basis.output.view());
    let mut half = Array2::<f64>::zeros(v.dim());
    gemm_f64(1.0, v.view(), q_a.t(), 0.0, half.view_mut(), Threads::One);
    gemm_f64(1.0, q_s, half.view(), 0.0, v.view_mut(), Threads::One);
    v *= multiplier;
    gemm_f64(1.0, v.view(), q_a, 0.0, half.view_mut(), Threads::One);
    gemm_f64(1.0, q_s.t(), half.view(), 0.0, v.view_mut(), Threads::One);
}

/// The inverse of one layer's eigenvalues.
fn invert(layer: &LayerFactors, inverse: Inverse, lambda: f64) -> Result<Array2<f64>, MethodError> {
    let values = layer.eigenvalues();
    if values.iter().all(|&v| v == 0.0) {
        return Ok(values);
    }
    let noise = layer.noise(&values);
    let whole = |values: Array2<f64>| match values.iter().position(|&v| v <= noise) {
        None => Ok(values.mapv(|v| 1.0 / v)),
        Some(pivot) => {
            let mean = layer.eigenvalues().sum() / layer.layer.len() as f64;
            let source = LinalgError::NotPositive { pivot, dim: layer.layer.len() };
            Err(MethodError::Factor { module: layer.layer.name.clone(), damping_rel: lambda / mean, source })
        }
    };
    match inverse {
        Inverse::Damped => whole(values + lambda),
        Inverse::Tikhonov if lambda > 0.0 => Ok(values.mapv(|v| v / (v * v + lambda * lambda))),
        // Without damping Tikhonov's is the pseudo-inverse.
        Inverse::Tikhonov | Inverse::Pseudo => {
            let floor = lambda.max(noise);
            Ok(values.mapv(|v| if v > floor { 1.0 / v } else { 0.0 }))
        }
        Inverse::Factored => whole(factored(layer, values, lambda)),
    }
}

/// `Λ + π√λ·λ_G + (√λ/π)·λ_A + λ`; `λ_G` carries the positions.
fn factored(layer: &LayerFactors, mut values: Array2<f64>, lambda: f64) -> Array2<f64> {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    let (mean_a, mean_g) = (mean(&layer.input_values), layer.positions * mean(&layer.output_values));
    let pi = (mean_a / mean_g).sqrt();
    let root = lambda.sqrt();
    for ((a, b), v) in values.indexed_iter_mut() {
        let (input, output) = (layer.input_values[b], layer.positions * layer.output_values[a]);
        *v += pi * root * output + root / pi * input + lambda;
    }
    values
}

impl Inverted<'_> {
    /// `(H + λ)⁻¹q` for every row of `queries`, `[Q, P]`, computed in f64 and narrowed once.
    ///
    /// A query does not feel the others. Cost `4·n_in·n_out·(n_in + n_out)` per query and layer; memory `8·P` per thread.
    ///
    /// # Errors
    /// Vectors of another length or not finite.
    pub fn solve(&self, queries: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        self.map(queries, &self.inverses)
    }

    /// `(H + λ)^{-½}q`, the symmetric root: the dot product of two such vectors is the influence, so a cosine of them is the
    /// cosine in the curvature's metric. Shapes, cost and errors as [`Inverted::solve`].
    ///
    /// # Errors
    /// As [`Inverted::solve`].
    pub fn solve_half(&self, queries: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        let roots: Vec<Array2<f64>> = self.inverses.iter().map(|m| m.mapv(f64::sqrt)).collect();
        self.map(queries, &roots)
    }

    /// `qᵀ(H + λ)⁻¹q` for every row of `vectors`, `[Q, P]`: squares of the lengths of unit-norm variants.
    ///
    /// # Errors
    /// As [`Inverted::solve`].
    pub fn self_influence_of(&self, vectors: ArrayView2<'_, f32>) -> Result<Vec<f64>, MethodError> {
        check_vectors(&self.layers(), vectors)?;
        let rows: Vec<_> = vectors.rows().into_iter().collect();
        let own = |row: ndarray::ArrayView1<'_, f32>| {
            let mut solved: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            self.kron.apply(&mut solved, &self.inverses);
            ascribe_linalg::sum::sum_by(solved.len(), |p| solved[p] * f64::from(row[p])).max(0.0)
        };
        Ok(rows.into_par_iter().map(own).collect())
    }

    /// `gᵀ(H + λ)⁻¹g` for every example's gradient, `[N]`, in the eigenbasis: `2(n_in² + n_out² + n_in·n_out)` per position.
    ///
    /// # Errors
    /// Layers that are not those of the fit; gradients that are not finite; the source's; a request to stop.
    pub fn self_influence(
        &self,
        source: &dyn CaptureSource,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>, MethodError> {
        if source.layers() != self.layers() {
            return Err(MethodError::shape("layers of the source", self.layers(), source.layers()));
        }
        let bases: Vec<Basis> = self.kron.layers().iter().map(|l| l.basis.clone()).collect();
        let turned = Projected::new(source, &bases)?;
        progress.start("self-influence", source.len() as u64, "examples");
        let values = weighted_squares(&turned, &self.inverses, labels, progress)?;
        progress.finish("self-influence taken");
        Ok(values)
    }

    /// What stands in the place of `1/Λ`, per layer `[n_out, n_in]`.
    pub fn inverses(&self) -> &[Array2<f64>] {
        &self.inverses
    }

    /// What was inverted.
    pub(super) fn factors(&self) -> &Kron {
        self.kron
    }

    fn layers(&self) -> Vec<Layer> {
        self.kron.plain_layers()
    }

    fn map(&self, queries: ArrayView2<'_, f32>, multipliers: &[Array2<f64>]) -> Result<Array2<f32>, MethodError> {
        check_vectors(&self.layers(), queries)?;
        let mut out = Array2::<f32>::zeros(queries.dim());
        let rows: Vec<_> = out.rows_mut().into_iter().zip(queries.rows()).collect();
        rows.into_par_iter().for_each(|(mut to, from)| {
            let mut row: Vec<f64> = from.iter().map(|&v| f64::from(v)).collect();
            self.kron.apply(&mut row, multipliers);
            to.iter_mut().zip(&row).for_each(|(to, &v)| *to = v as f32);
        });
        Ok(out)
    }
}
