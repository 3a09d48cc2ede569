//! LiSSA: a Neumann series with products of batches. Source: arXiv:1602.03943; for influence arXiv:1703.04730, §3.
//!
//! `r_j = v + r_{j−1} − (H_B + λ) r_{j−1} / s`, answer `r_J / s`. The mean over batches converges to `(H + λ)⁻¹v` when no
//! batch has an eigenvalue above `2s`; what `J` steps leave over along an eigenvalue `e` is `(1 − (e + λ)/s)^J`.

use ascribe_core::{NoProgress, Progress};
use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::batches::Batches;
use super::{InverseCurvature, rows};
use crate::error::MethodError;
use crate::source::Operator;

/// Power-iteration steps per batch for [`Scale::Estimated`].
const POWER_STEPS: usize = 12;

/// Batches that [`Scale::Estimated`] looks at.
const POWER_BATCHES: usize = 8;

/// The scale `s`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Scale {
    /// As given; a peer's default is 50.
    Fixed {
        /// `s`, in units of the curvature.
        value: f64,
    },
    /// The largest eigenvalue that power iterations find on a few batches, plus damping, times a margin.
    Estimated {
        /// Factor above the largest eigenvalue found.
        margin: f64,
    },
}

/// Options of [`Lissa`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LissaOptions {
    /// Added to the curvature. 0.01.
    pub damping: f64,
    /// Steps `J`. 1,000; a peer's default of 5,000 with `s` = 50 reaches as far as 1,000 with `s` = 10.
    pub depth: usize,
    /// Examples per batch, 0 for all. 64.
    pub batch: usize,
    /// The scale. Estimated with a margin of 1.5 by default.
    pub scale: Scale,
    /// Independent runs that are averaged. 1.
    pub repeats: usize,
    /// Seed of the batches.
    pub seed: u64,
}

impl Default for LissaOptions {
    fn default() -> Self {
        Self { damping: 0.01, depth: 1_000, batch: 64, scale: Scale::Estimated { margin: 1.5 }, repeats: 1, seed: 0 }
    }
}

/// `(H + λ)⁻¹` by stochastic Neumann steps, all queries on the same batches.
///
/// Sums in f64. Memory `24·Q·P` bytes. Cost `repeats·depth` products of a batch with all queries. Bytes depend on the seed,
/// never on threads or other queries.
#[derive(Clone)]
pub struct Lissa<'a> {
    operator: &'a dyn Operator,
    options: LissaOptions,
    scale: f64,
}

impl<'a> Lissa<'a> {
    /// Fixes the scale; runs the power iterations if it is to be estimated.
    ///
    /// # Errors
    /// Parameters out of range; no curvature at all; the operator's.
    pub fn new(operator: &'a dyn Operator, options: &LissaOptions) -> Result<Self, MethodError> {
        rows::check_damping(options.damping)?;
        rows::check_count("depth", options.depth)?;
        rows::check_count("repeats", options.repeats)?;
        let scale = match options.scale {
            Scale::Fixed { value } => value,
            Scale::Estimated { margin } => {
                rows::check_positive("margin", margin)?;
                margin * (largest_eigenvalue(operator, options.batch, options.seed)? + options.damping)
            }
        };
        rows::check_positive("scale", scale)?;
        Ok(Self { operator, options: options.clone(), scale })
    }

    /// The scale in use.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Solves for every row of `queries`, `[Q, P]`.
    ///
    /// # Errors
    /// Shapes; NaN; [`MethodError::Iteration`] naming the query whose series grows faster than a convergent one can; the
    /// operator's.
    pub fn run(&self, queries: ArrayView2<'_, f32>, progress: &dyn Progress) -> Result<Array2<f32>, MethodError> {
        rows::check("query vectors", queries, self.operator.dim())?;
        let mut mean = Array2::<f64>::zeros(queries.dim());
        progress.start("LiSSA", (self.options.repeats * self.options.depth) as u64, "steps");
        for repeat in 0..self.options.repeats {
            let name = format!("inverse/lissa/{repeat}");
            let mut batches = Batches::new(self.operator.n_examples(), self.options.batch, self.options.seed, &name);
            let series = self.series(queries, &mut batches, progress)?;
            mean.scaled_add(1.0 / (self.scale * self.options.repeats as f64), &series);
        }
        progress.finish("queries solved");
        Ok(rows::narrow(&mean))
    }

    fn series(
        &self,
        queries: ArrayView2<'_, f32>,
        batches: &mut Batches,
        progress: &dyn Progress,
    ) -> Result<Array2<f64>, MethodError> {
        let norms: Vec<f64> = queries.rows().into_iter().map(rows::norm32).collect();
        let queries = queries.as_standard_layout().into_owned();
        let mut series = rows::widen(queries.view());
        let (damping, shrink) = (self.options.damping, 1.0 / self.scale);
        for step in 1..=self.options.depth {
            if progress.stop_requested() {
                return Err(MethodError::Stopped);
            }
            let rounded = rows::narrow(&series);
            let product = rows::apply(self.operator, batches.next().as_deref(), rounded.view())?;
            let v = queries.as_slice().expect("row-major");
            let lengths = rows::each_pair(&mut series, &product, |q, r, hr| {
                let v = &v[q * r.len()..(q + 1) * r.len()];
                for ((r, &hr), &v) in r.iter_mut().zip(hr).zip(v) {
                    *r += f64::from(v) - (f64::from(hr) + damping * *r) * shrink;
                }
                ascribe_linalg::sum::sum_by(r.len(), |i| r[i] * r[i]).sqrt()
            });
            // Without an eigenvalue below 0 or above 2s no step lengthens r by more than ‖v‖; a thousandth for rounding.
            let bound = |q: usize| (step + 1) as f64 * norms[q] * 1.001;
            if let Some(query) = (0..lengths.len()).find(|&q| !lengths[q].is_finite() || lengths[q] > bound(q)) {
                return Err(MethodError::Iteration {
                    method: "LiSSA",
                    query,
                    step,
                    found: format!("the series diverges, ‖r‖ = {:.3e}·‖v‖", lengths[query] / norms[query]),
                    hint: "a larger scale (above half of every batch's largest eigenvalue), larger batches, or more damping",
                });
            }
            progress.advance(1);
        }
        Ok(series)
    }
}

impl InverseCurvature for Lissa<'_> {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        self.run(rows, &NoProgress)
    }
}

/// The largest eigenvalue that power iterations from a seeded start find on a few batches of `batch` examples (0 = all).
///
/// Never above the true one of the batches seen; batches that are not seen may have a larger one.
///
/// # Errors
/// NaN; the operator's.
pub fn largest_eigenvalue(operator: &dyn Operator, batch: usize, seed: u64) -> Result<f64, MethodError> {
    let mut batches = Batches::new(operator.n_examples(), batch, seed, "inverse/lissa/power");
    let mut stream = Stream::new(seed, "inverse/lissa/start");
    let start = Array2::from_shape_fn((1, operator.dim()), |_| stream.normal() as f32);
    let n_batches = if batches.is_full() { 1 } else { POWER_BATCHES };
    let mut largest = 0.0f64;
    let mut direction = start;
    for _ in 0..n_batches {
        let examples = batches.next();
        for _ in 0..POWER_STEPS {
            let length = rows::norm32(direction.row(0));
            if length == 0.0 {
                break;
            }
            direction.mapv_inplace(|v| (f64::from(v) / length) as f32);
            direction = rows::apply(operator, examples.as_deref(), direction.view())?;
            largest = largest.max(rows::norm32(direction.row(0)));
        }
    }
    Ok(largest)
}
