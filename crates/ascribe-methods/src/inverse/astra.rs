//! ASTRA: a preconditioner refined by a few passes of batches. Source: arXiv:2507.14740.
//!
//! `x₀ = (P + λ)⁻¹q`; then `r = (H_B + λ)x − q`, `m ← μm + (P + λ)⁻¹r`, `x ← x − ηm`. With EK-FAC as `P` the series starts at
//! the EK-FAC answer and removes what Kronecker factors cannot say.

use ascribe_core::{NoProgress, Progress};
use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::batches::Batches;
use super::{InverseCurvature, rows};
use crate::error::MethodError;
use crate::source::Operator;

/// Residuals may grow to this many times the first one before a run counts as divergent.
const DIVERGED: f64 = 100.0;

/// Power-iteration steps per batch for [`Step::Estimated`].
const POWER_STEPS: usize = 10;

/// Batches that [`Step::Estimated`] looks at.
const POWER_BATCHES: usize = 8;

/// The step size η.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    /// As given.
    Fixed {
        /// η.
        value: f64,
    },
    /// A fraction of `1/L`, where `L` is the largest eigenvalue of `(P + λ)⁻¹(H_B + λ)` that power iterations find on a few
    /// batches: one example with a large self-influence can make a batch's `L` hundreds of times the mean's.
    Estimated {
        /// The fraction.
        fraction: f64,
    },
}

/// Options of [`Astra`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AstraOptions {
    /// Added to the curvature; the preconditioner has its own, usually the same. 0.01.
    pub damping: f64,
    /// Passes over the examples. 5.
    pub passes: f64,
    /// Examples per batch, 0 for all. 256.
    pub batch: usize,
    /// Step size η. Half of the largest that contracts on every batch looked at, unless given.
    pub step: Step,
    /// The step size falls linearly to this fraction of itself, so that the noise of batches is averaged out. 0.1.
    pub step_last: f64,
    /// Momentum μ. 0.9.
    pub momentum: f64,
    /// Seed of the batches.
    pub seed: u64,
}

impl Default for AstraOptions {
    fn default() -> Self {
        Self {
            damping: 0.01,
            passes: 5.0,
            batch: 256,
            step: Step::Estimated { fraction: 0.5 },
            step_last: 0.1,
            momentum: 0.9,
            seed: 0,
        }
    }
}

/// Solutions, and the residuals seen on the way.
#[derive(Clone, Debug)]
pub struct AstraSolution {
    /// `[Q, P]`.
    pub rows: Array2<f32>,
    /// `[steps][Q]`: `‖(H_B + λ)x − q‖ / ‖q‖` on the step's batch, before the step.
    pub residuals: Vec<Vec<f64>>,
}

/// `(H + λ)⁻¹` refined from a preconditioner.
///
/// Sums in f64. Memory `36·Q·P` bytes and the preconditioner's. Cost: `passes` products over all examples with all queries
/// and one use of the preconditioner per step. Bytes depend on the seed, never on threads or other queries.
#[derive(Clone)]
pub struct Astra<'a> {
    operator: &'a dyn Operator,
    preconditioner: &'a dyn InverseCurvature,
    options: AstraOptions,
    step: f64,
}

impl<'a> Astra<'a> {
    /// Refines `preconditioner` by products with `operator`; looks for the step size if it is to be estimated.
    ///
    /// # Errors
    /// Parameters out of range; no curvature at all; the operator's and the preconditioner's.
    pub fn new(
        operator: &'a dyn Operator,
        preconditioner: &'a dyn InverseCurvature,
        options: &AstraOptions,
    ) -> Result<Self, MethodError> {
        rows::check_damping(options.damping)?;
        let (Step::Fixed { value } | Step::Estimated { fraction: value }) = options.step;
        rows::check_positive("step", value)?;
        rows::check_positive("passes", options.passes)?;
        let unit = |field, value: f64, expected, fits: bool| match fits {
            true => Ok(()),
            false => Err(MethodError::Parameter { field, expected, found: value }),
        };
        unit("momentum", options.momentum, "in [0, 1)", (0.0..1.0).contains(&options.momentum))?;
        unit("step_last", options.step_last, "in [0, 1]", (0.0..=1.0).contains(&options.step_last))?;
        let mut astra = Self { operator, preconditioner, options: options.clone(), step: value };
        if let Step::Estimated { fraction } = options.step {
            let largest = astra.largest_eigenvalue()?;
            rows::check_positive("largest eigenvalue of the preconditioned curvature", largest)?;
            astra.step = fraction / largest;
        }
        Ok(astra)
    }

    /// The step size in use, before it falls.
    pub fn step(&self) -> f64 {
        self.step
    }

    /// The largest eigenvalue of `(P + λ)⁻¹(H_B + λ)` found on a few batches; Rayleigh quotients never exceed it.
    fn largest_eigenvalue(&self) -> Result<f64, MethodError> {
        let options = &self.options;
        let n = self.operator.n_examples();
        let mut batches = Batches::new(n, options.batch, options.seed, "inverse/astra/power");
        let mut stream = Stream::new(options.seed, "inverse/astra/start");
        let mut x = Array2::from_shape_fn((1, self.operator.dim()), |_| stream.normal() as f32);
        let mut largest = 0.0f64;
        for _ in 0..if batches.is_full() { 1 } else { POWER_BATCHES } {
            let examples = batches.next();
            for _ in 0..POWER_STEPS {
                let mut y = rows::apply(self.operator, examples.as_deref(), x.view())?;
                y.zip_mut_with(&x, |y, &x| *y = (f64::from(*y) + options.damping * f64::from(x)) as f32);
                let z = self.precondition(y.view())?;
                // yᵀz / xᵀy with y = (H_B + λ)x and z = (P + λ)⁻¹y.
                let (above, below) = (rows::dot32(y.row(0), z.row(0)), rows::dot32(x.row(0), y.row(0)));
                let length = rows::norm32(z.row(0));
                if below <= 0.0 || length == 0.0 {
                    break;
                }
                largest = largest.max(above / below);
                x = z.mapv(|v| (f64::from(v) / length) as f32);
            }
        }
        Ok(largest)
    }

    /// Steps that a run takes.
    pub fn n_steps(&self) -> usize {
        let n = self.operator.n_examples();
        let per_pass = match self.options.batch {
            0 => 1,
            batch => (n / batch.min(n.max(1))).max(1),
        };
        ((self.options.passes * per_pass as f64).round() as usize).max(1)
    }

    /// Solves for every row of `queries`, `[Q, P]`.
    ///
    /// # Errors
    /// Shapes; NaN; [`MethodError::Iteration`] naming the query whose residual runs away; the operator's and the
    /// preconditioner's.
    pub fn run(&self, queries: ArrayView2<'_, f32>, progress: &dyn Progress) -> Result<AstraSolution, MethodError> {
        rows::check("query vectors", queries, self.operator.dim())?;
        let queries = queries.as_standard_layout().into_owned();
        let norms: Vec<f64> = queries.rows().into_iter().map(rows::norm32).collect();
        let n_steps = self.n_steps();
        let options = &self.options;
        let mut batches = Batches::new(self.operator.n_examples(), options.batch, options.seed, "inverse/astra");
        let mut x = rows::widen(self.precondition(queries.view())?.view());
        let mut momentum = Array2::<f64>::zeros(x.dim());
        let mut residuals: Vec<Vec<f64>> = Vec::with_capacity(n_steps);
        progress.start("ASTRA", n_steps as u64, "steps");
        for step in 0..n_steps {
            if progress.stop_requested() {
                return Err(MethodError::Stopped);
            }
            let mut r = rows::apply(self.operator, batches.next().as_deref(), rows::narrow(&x).view())?;
            let lengths = self.residual(&mut r, &x, &queries);
            let relative: Vec<f64> = lengths.iter().zip(&norms).map(|(&r, &v)| rows::ratio(r, v)).collect();
            self.check_growth(step + 1, &relative, residuals.first())?;
            residuals.push(relative);
            let z = self.precondition(r.view())?;
            let done = step as f64 / n_steps as f64;
            let eta = self.step * (1.0 - done * (1.0 - options.step_last));
            rows::each_pair(&mut momentum, &z, |_, m, z| {
                m.iter_mut().zip(z).for_each(|(m, &z)| *m = options.momentum * *m + f64::from(z));
            });
            rows::each_pair(&mut x, &momentum, |_, x, m| x.iter_mut().zip(m).for_each(|(x, &m)| *x -= eta * m));
            progress.advance(1);
        }
        progress.finish("queries solved");
        Ok(AstraSolution { rows: rows::narrow(&x), residuals })
    }

    fn precondition(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        let z = self.preconditioner.solve(rows)?;
        rows::check("preconditioned vectors", z.view(), self.operator.dim())?;
        if z.nrows() != rows.nrows() {
            return Err(MethodError::shape("preconditioned vectors", rows.nrows(), z.nrows()));
        }
        Ok(z.as_standard_layout().into_owned())
    }

    /// Turns `H_B x` into `(H_B + λ)x − q`; returns the lengths.
    fn residual(&self, r: &mut Array2<f32>, x: &Array2<f64>, queries: &Array2<f32>) -> Vec<f64> {
        let q = queries.as_slice().expect("row-major");
        rows::each_pair(r, x, |row, r, x| {
            let q = &q[row * r.len()..(row + 1) * r.len()];
            for ((r, &x), &q) in r.iter_mut().zip(x).zip(q) {
                *r = (f64::from(*r) + self.options.damping * x - f64::from(q)) as f32;
            }
            ascribe_linalg::sum::sum_by(r.len(), |i| f64::from(r[i]).powi(2)).sqrt()
        })
    }

    fn check_growth(&self, step: usize, now: &[f64], first: Option<&Vec<f64>>) -> Result<(), MethodError> {
        let limit = |q: usize| DIVERGED * first.map_or(f64::INFINITY, |first| first[q].max(1.0));
        match (0..now.len()).find(|&q| !now[q].is_finite() || now[q] > limit(q)) {
            None => Ok(()),
            Some(query) => Err(MethodError::Iteration {
                method: "ASTRA",
                query,
                step,
                found: format!("the residual has grown to {:.3e}·‖q‖", now[query]),
                hint: "a smaller step, larger batches, or a preconditioner with more damping",
            }),
        }
    }
}

impl InverseCurvature for Astra<'_> {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        Ok(self.run(rows, &NoProgress)?.rows)
    }
}
