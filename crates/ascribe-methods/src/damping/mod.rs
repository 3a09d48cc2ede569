//! Damping chosen by evidence: how likely held-out gradients are under the damped curvature of the others.
//!
//! Curvature `H = E[ggᵀ]` is the covariance of a Gaussian with mean zero, so a damping can be judged as any covariance
//! estimate is: fit `H_A` on one half of the examples and take the log-likelihood of the other half's gradients,
//!
//! `L(λ) = −½[log det(H_A + λ) + tr((H_A + λ)⁻¹ H_B)]` nats per example (without the constant `−½d·log 2π`),
//!
//! then the same with the halves exchanged; the mean of both is maximised over a grid of `λ`, refined around its best point.
//! In the eigenbasis of `H_A` one pass over the held-out half gives the whole curve. λ is relative to the module's mean
//! eigenvalue over both halves. Too small a damping trusts directions that few examples have shown, too large a one gives up
//! those that many have; the curve says where that changes, module by module, without retraining.
//!
//! Here lives: the criterion, the split, the curves of block Fisher and Kronecker factors. Here never lives: retraining as a
//! judge (see `combine`), files.

mod halves;
#[cfg(test)]
mod tests;

use ascribe_core::{FeatureReader, Progress};
use ascribe_linalg::{Stream, SymmetricEigen, sum};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::block_fisher::Covariance;
use crate::blocks;
use crate::error::MethodError;
use crate::kron::{self, Kron};
use crate::source::CaptureSource;
use halves::{Half, Picked};

/// Name of the criterion, for files.
pub const CRITERION: &str = "held_out_gaussian_log_likelihood";

/// Steps of the golden section: 24 narrow two steps of a grid 10⁵-fold.
const REFINEMENTS: usize = 24;

/// Where a damping is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Seed of the split into halves.
    pub seed: u64,
    /// Smallest damping, relative to a module's mean eigenvalue. Default 1e-6.
    pub from_rel: f64,
    /// Largest, likewise. Default 100.
    pub to_rel: f64,
    /// Points of the grid per factor of ten. Default 2.
    pub per_decade: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, from_rel: 1e-6, to_rel: 100.0, per_decade: 2 }
    }
}

/// One damping and what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// λ relative to the module's mean eigenvalue.
    pub damping_rel: f64,
    /// Held-out log-likelihood in nats per example, without the constant.
    pub log_likelihood: f64,
}

/// The criterion over the grid, for one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The module.
    pub module: String,
    /// Mean eigenvalue over both halves.
    pub mean_eigenvalue: f64,
    /// The grid, rising. Empty for a module without gradients.
    pub points: Vec<Point>,
    /// The best damping, between points of the grid; 0 for a module without gradients.
    pub chosen: Point,
    /// True when the best point is an end of the grid: the true optimum lies outside.
    pub at_edge: bool,
}

/// What one half says about the other in one module: eigenvalues `[d]`, and the held-out second moment along each eigenvector.
#[derive(Clone, Debug)]
pub struct Fold {
    /// Eigenvalues of the fitted half (negative ones count as zero).
    pub values: Vec<f64>,
    /// `v_jᵀ H_held_out v_j`.
    pub held_out: Vec<f64>,
}

/// The curve of one module from its folds. Cost `d` per point and fold.
///
/// # Errors
/// No folds, folds of different lengths, numbers that are not finite, an empty or reversed grid.
pub fn curve(module: &str, folds: &[Fold], options: &Options) -> Result<Curve, MethodError> {
    let grid = grid(options)?;
    let mut total = 0.0;
    for fold in folds {
        if fold.values.len() != fold.held_out.len() {
            return Err(MethodError::shape("held-out moments of a fold", fold.values.len(), fold.held_out.len()));
        }
        for (column, &found) in fold.values.iter().chain(&fold.held_out).enumerate() {
            if !found.is_finite() {
                return Err(MethodError::BadValue { what: format!("spectrum of {module}"), row: 0, column, found });
            }
        }
        total += sum::sum(&fold.values).max(0.0) / fold.values.len().max(1) as f64;
    }
    if folds.is_empty() {
        return Err(MethodError::Empty { what: "the list of folds" });
    }
    let mean = total / folds.len() as f64;
    let none = Point { damping_rel: 0.0, log_likelihood: 0.0 };
    let mut out =
        Curve { module: module.to_owned(), mean_eigenvalue: mean, points: Vec::new(), chosen: none, at_edge: false };
    if mean == 0.0 {
        return Ok(out);
    }
    let at = |damping_rel: f64| Point { damping_rel, log_likelihood: log_likelihood(folds, damping_rel * mean) };
    out.points = grid.iter().map(|&rel| at(rel)).collect();
    let better = |a: &usize, b: &usize| out.points[*a].log_likelihood.total_cmp(&out.points[*b].log_likelihood);
    // The largest damping wins a tie.
    let best = (0..out.points.len()).max_by(better).expect("a grid has points");
    out.at_edge = best == 0 || best + 1 == out.points.len();
    out.chosen = out.points[best];
    if !out.at_edge {
        let refined = golden(grid[best - 1], grid[best + 1], &at);
        if refined.log_likelihood > out.chosen.log_likelihood {
            out.chosen = refined;
        }
    }
    Ok(out)
}

/// Curves of block Fisher, one per module of the reader.
///
/// Cost: the rows are read three times; `N·Σd_m²` for the halves' moments, `11·Σd_m³` each for eigenvectors and held-out
/// moments. Memory `5·8·Σd_m²` bytes. Which half a row is in depends on its id and the seed alone.
///
/// # Errors
/// Reader errors, NaN (row and module named), a half without rows, an eigenvalue iteration that does not converge.
pub fn block_fisher<R: FeatureReader>(
    reader: &R,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Curve>, MethodError> {
    grid(options)?;
    let fit = |second: bool| Covariance::fit(&Half::new(reader, options.seed, second)?, progress);
    let halves = [fit(false)?, fit(true)?];
    let columns = &reader.spec().columns;
    progress.start("choose damping", columns.len() as u64, "modules");
    let curves = (0..columns.len())
        .into_par_iter()
        .map(|m| {
            let folds = [fold(&halves, m, 0)?, fold(&halves, m, 1)?];
            progress.advance(1);
            curve(&columns[m].name, &folds, options)
        })
        .collect::<Vec<Result<_, _>>>();
    progress.finish("damping chosen");
    curves.into_iter().collect()
}

/// Curves of Kronecker factors, one per layer: factors of one half, eigenvalues of the other measured in their basis.
///
/// λ stands in `1/(Λ + λ)` ([`kron::Inverse::Damped`]); [`per_layer`] makes it a [`kron::Damping`]. Cost: two fits and two
/// more passes over half of the examples.
///
/// # Errors
/// Those of [`Kron::fit`]; a half without examples.
pub fn kron(
    source: &dyn CaptureSource,
    fit: &kron::Options,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Curve>, MethodError> {
    grid(options)?;
    let halves = [Picked::half(source, options.seed, false)?, Picked::half(source, options.seed, true)?];
    let mut folds: Vec<Vec<Fold>> = vec![Vec::new(); source.layers().len()];
    for side in 0..2 {
        let factors = Kron::fit(&halves[side], fit, progress)?;
        let held_out = factors.measure(&halves[1 - side], fit.labels, progress)?;
        for ((layer, held_out), folds) in factors.layers().iter().zip(held_out).zip(&mut folds) {
            let values = layer.eigenvalues().into_iter().collect();
            folds.push(Fold { values, held_out: held_out.into_iter().collect() });
        }
    }
    let layers = source.layers().iter().zip(&folds);
    layers.map(|(layer, folds)| curve(&layer.name, folds, options)).collect()
}

/// The chosen dampings in units of curvature, for factors fitted on all examples.
///
/// # Errors
/// Curves of other layers.
pub fn per_layer(curves: &[Curve], factors: &Kron) -> Result<kron::Damping, MethodError> {
    let expected: Vec<&str> = factors.layers().iter().map(|l| l.layer.name.as_str()).collect();
    let found: Vec<&str> = curves.iter().map(|c| c.module.as_str()).collect();
    if expected != found {
        return Err(MethodError::shape("layers of the damping curves", expected, found));
    }
    let means = factors.mean_eigenvalues();
    Ok(kron::Damping::PerLayer(curves.iter().zip(means).map(|(c, mean)| c.chosen.damping_rel * mean).collect()))
}

/// True for examples of the second half: a seeded coin per example.
pub(crate) fn in_second_half(seed: u64, example: u64) -> bool {
    Stream::new(seed, "damping/halves").at(example) >> 63 == 1
}

/// Eigenvalues of one half's block and the other half's moments along its eigenvectors.
fn fold(halves: &[Covariance; 2], module: usize, side: usize) -> Result<Fold, MethodError> {
    let (own, other) = (halves[side].block(module), halves[1 - side].block(module));
    let eigen = SymmetricEigen::of(own).map_err(|source| MethodError::Factor {
        module: halves[side].columns()[module].name.clone(),
        damping_rel: 0.0,
        source,
    })?;
    Ok(Fold { held_out: moments_along(&eigen.vectors, other), values: eigen.values })
}

/// `v_jᵀ H v_j` for every row `v_j`.
fn moments_along(vectors: &Array2<f64>, h: ArrayView2<'_, f64>) -> Vec<f64> {
    let products = blocks::rows_times(vectors.view(), h);
    let moment = |(v, hv): (ndarray::ArrayView1<'_, f64>, ndarray::ArrayView1<'_, f64>)| {
        sum::sum_by(v.len(), |i| v[i] * hv[i]).max(0.0)
    };
    vectors.rows().into_iter().zip(products.rows()).map(moment).collect()
}

/// Mean over folds of `−½ Σ_j [log(v_j + λ) + h_j/(v_j + λ)]`.
fn log_likelihood(folds: &[Fold], lambda: f64) -> f64 {
    let of = |fold: &Fold| {
        let term = |j: usize| {
            let damped = fold.values[j].max(0.0) + lambda;
            damped.ln() + fold.held_out[j] / damped
        };
        -0.5 * sum::sum_by(fold.values.len(), term)
    };
    folds.iter().map(of).sum::<f64>() / folds.len() as f64
}

/// Points from `from_rel` to at least `to_rel`, equal steps on a logarithmic scale.
fn grid(options: &Options) -> Result<Vec<f64>, MethodError> {
    let positive = |v: f64| v.is_finite() && v > 0.0;
    if !positive(options.from_rel) {
        return Err(MethodError::Parameter { field: "from_rel", expected: "positive", found: options.from_rel });
    }
    if !positive(options.to_rel) || options.to_rel <= options.from_rel {
        return Err(MethodError::Parameter { field: "to_rel", expected: "above from_rel", found: options.to_rel });
    }
    if options.per_decade == 0 || options.per_decade > 1000 {
        let found = options.per_decade as f64;
        return Err(MethodError::Parameter { field: "per_decade", expected: "from 1 to 1000", found });
    }
    let steps = ((options.to_rel / options.from_rel).log10() * options.per_decade as f64 - 1e-9).ceil() as i32;
    let at = |i: i32| options.from_rel * 10f64.powf(f64::from(i) / options.per_decade as f64);
    Ok((0..=steps.max(1)).map(at).collect())
}

/// Golden section search for the maximum between two dampings, on a logarithmic scale.
fn golden(low: f64, high: f64, at: &dyn Fn(f64) -> Point) -> Point {
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (low.ln(), high.ln());
    let inner = |low: f64, high: f64| (high - ratio * (high - low), low + ratio * (high - low));
    let (a, b) = inner(low, high);
    let (mut left, mut right) = (at(a.exp()), at(b.exp()));
    for _ in 0..REFINEMENTS {
        let (a, b) = inner(low, high);
        if left.log_likelihood > right.log_likelihood {
            high = b;
            right = left;
            left = at(inner(low, high).0.exp());
        } else {
            low = a;
            left = right;
            right = at(inner(low, high).1.exp());
        }
    }
    if left.log_likelihood > right.log_likelihood { left } else { right }
}
