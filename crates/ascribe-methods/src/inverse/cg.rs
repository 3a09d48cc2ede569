//! Conjugate gradients on `H + λ` for many queries at once. Source: Hestenes and Stiefel 1952; for influence arXiv:1703.04730, §3.
//!
//! Every query has its own iteration; they share the products with the curvature, which cost most.

use ascribe_core::{NoProgress, Progress};
use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::{InverseCurvature, rows};
use crate::error::MethodError;
use crate::source::Operator;

/// What to do when a direction has no positive curvature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Indefinite {
    /// Refuse, naming the query.
    #[default]
    Refuse,
    /// Keep what the query has so far (truncated CG) and flag it.
    Stop,
}

/// Options of [`Cg`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgOptions {
    /// Added to the curvature. 0.01, the peers' default for a logistic regression.
    pub damping: f64,
    /// Most iterations. 100; a peer's default is 10, which a condition number of 1e4 does not forgive.
    pub iterations: usize,
    /// A query stops at `‖r‖ ≤ tolerance·‖v‖`. 1e-6: products are f32, less cannot be told from rounding.
    pub tolerance: f64,
    /// Curvature that is not positive along a direction.
    pub indefinite: Indefinite,
}

impl Default for CgOptions {
    fn default() -> Self {
        Self { damping: 0.01, iterations: 100, tolerance: 1e-6, indefinite: Indefinite::Refuse }
    }
}

/// How one query went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgQuery {
    /// Iterations that it took.
    pub iterations: usize,
    /// `‖(H + λ)x − v‖ / ‖v‖` as the recurrence carries it; [`super::residuals`] computes it afresh.
    pub residual: f64,
    /// Whether that is below the tolerance.
    pub converged: bool,
    /// Whether it stopped at a direction without positive curvature.
    pub indefinite: bool,
}

/// Solutions and how they were reached.
#[derive(Clone, Debug)]
pub struct CgSolution {
    /// `[Q, P]`.
    pub rows: Array2<f32>,
    /// Per query.
    pub queries: Vec<CgQuery>,
}

/// `(H + λ)⁻¹` by conjugate gradients.
///
/// Directions are rounded to f32 before each product, everything else is f64. Memory `36·Q·P` bytes. Cost: one product of
/// all unfinished queries per iteration, `12·Q·P` besides. A query's bytes do not depend on the others as far as the
/// operator's and the preconditioner's rows do not.
#[derive(Clone)]
pub struct Cg<'a> {
    operator: &'a dyn Operator,
    preconditioner: Option<&'a dyn InverseCurvature>,
    options: CgOptions,
}

/// The running state of the unfinished queries; row `a` of each belongs to query `active[a]`.
struct State {
    active: Vec<usize>,
    x: Array2<f64>,
    r: Array2<f64>,
    /// Directions, rounded: what is multiplied is what is stepped along.
    p: Array2<f32>,
    /// `rᵀM⁻¹r`.
    rho: Vec<f64>,
}

impl<'a> Cg<'a> {
    /// CG on `operator` plus damping, all examples in every product.
    ///
    /// # Errors
    /// Parameters out of range.
    pub fn new(operator: &'a dyn Operator, options: &CgOptions) -> Result<Self, MethodError> {
        rows::check_damping(options.damping)?;
        rows::check_positive("tolerance", options.tolerance)?;
        Ok(Self { operator, preconditioner: None, options: options.clone() })
    }

    /// The same with residuals passed through an approximate inverse of `H + λ`, which must be symmetric positive definite.
    pub fn with_preconditioner(mut self, preconditioner: &'a dyn InverseCurvature) -> Self {
        self.preconditioner = Some(preconditioner);
        self
    }

    /// Solves for every row of `queries`, `[Q, P]`. A query of zeros has the solution zero.
    ///
    /// # Errors
    /// Shapes; NaN; [`MethodError::Iteration`] naming the query whose direction has no positive curvature, if that is
    /// refused, or for which the preconditioner is not positive; the operator's.
    pub fn run(&self, queries: ArrayView2<'_, f32>, progress: &dyn Progress) -> Result<CgSolution, MethodError> {
        rows::check("query vectors", queries, self.operator.dim())?;
        let n = queries.nrows();
        let mut out = CgSolution { rows: Array2::zeros(queries.dim()), queries: vec![CgQuery::default(); n] };
        let norms: Vec<f64> = queries.rows().into_iter().map(rows::norm32).collect();
        for (report, &norm) in out.queries.iter_mut().zip(&norms) {
            report.converged = norm == 0.0;
            report.residual = if norm == 0.0 { 0.0 } else { 1.0 };
        }
        let active: Vec<usize> = (0..n).filter(|&q| norms[q] > 0.0).collect();
        let r = rows::widen(queries.select(Axis(0), &active).view());
        let (p, rho) = self.first_directions(&r, &active)?;
        let mut state = State { x: Array2::zeros(r.dim()), r, p, rho, active };
        progress.start("conjugate gradients", self.options.iterations as u64, "iterations");
        for step in 1..=self.options.iterations {
            if state.active.is_empty() {
                break;
            }
            if progress.stop_requested() {
                return Err(MethodError::Stopped);
            }
            let stopped = self.step(step, &mut state, &norms, &mut out.queries)?;
            self.retire(&mut state, &stopped, &mut out);
            self.turn(step, &mut state)?;
            progress.advance(1);
        }
        let all = vec![true; state.active.len()];
        self.retire(&mut state, &all, &mut out);
        progress.finish("queries solved");
        Ok(out)
    }

    fn first_directions(&self, r: &Array2<f64>, active: &[usize]) -> Result<(Array2<f32>, Vec<f64>), MethodError> {
        let z = self.precondition(r)?;
        let rho = self.rho(0, r, &z, active)?;
        Ok((rows::narrow(&z), rho))
    }

    /// `M⁻¹r`.
    fn precondition(&self, r: &Array2<f64>) -> Result<Array2<f64>, MethodError> {
        match self.preconditioner {
            None => Ok(r.clone()),
            Some(inverse) => {
                let z = inverse.solve(rows::narrow(r).view())?;
                rows::check("preconditioned residuals", z.view(), r.ncols())?;
                Ok(rows::widen(z.view()))
            }
        }
    }

    fn rho(&self, step: usize, r: &Array2<f64>, z: &Array2<f64>, active: &[usize]) -> Result<Vec<f64>, MethodError> {
        let rho: Vec<f64> = r.rows().into_iter().zip(z.rows()).map(|(r, z)| rows::dot(r, z)).collect();
        match rho.iter().zip(r.rows()).position(|(&rho, r)| rho <= 0.0 && rows::norm(r) > 0.0) {
            None => Ok(rho),
            Some(at) => Err(MethodError::Iteration {
                method: "conjugate gradients",
                query: active[at],
                step,
                found: format!("a preconditioner with rᵀM⁻¹r = {:e}", rho[at]),
                hint: "the preconditioner must be symmetric and positive definite",
            }),
        }
    }

    /// One step along every direction. Returns which of the active queries are done.
    fn step(
        &self,
        step: usize,
        state: &mut State,
        norms: &[f64],
        reports: &mut [CgQuery],
    ) -> Result<Vec<bool>, MethodError> {
        let product = rows::apply(self.operator, None, state.p.view())?;
        let damping = self.options.damping;
        let curved = |(p, hp): (ndarray::ArrayView1<'_, f32>, _)| rows::dot32(p, hp) + damping * rows::dot32(p, p);
        let curvature: Vec<f64> = state.p.rows().into_iter().zip(product.rows()).map(curved).collect();
        let flat = |a: usize| curvature[a] <= 0.0 || !curvature[a].is_finite();
        if let (Indefinite::Refuse, Some(at)) =
            (self.options.indefinite, (0..curvature.len()).find(|&a| flat(a) && state.rho[a] > 0.0))
        {
            return Err(MethodError::Iteration {
                method: "conjugate gradients",
                query: state.active[at],
                step,
                found: format!("a direction with pᵀ(H + λ)p = {:e}", curvature[at]),
                hint: "the curvature is indefinite: raise the damping, use Gauss-Newton products, or indefinite = \"stop\"",
            });
        }
        let alphas: Vec<f64> =
            (0..curvature.len()).map(|a| if flat(a) { 0.0 } else { state.rho[a] / curvature[a] }).collect();
        rows::each_pair(&mut state.x, &state.p, |a, x, p| {
            x.iter_mut().zip(p).for_each(|(x, &p)| *x += alphas[a] * f64::from(p));
        });
        let p = state.p.as_slice().expect("row-major");
        rows::each_pair(&mut state.r, &product, |a, r, hp| {
            let p = &p[a * r.len()..(a + 1) * r.len()];
            for ((r, &hp), &p) in r.iter_mut().zip(hp).zip(p) {
                *r -= alphas[a] * (f64::from(hp) + damping * f64::from(p));
            }
        });
        let mut stopped = Vec::with_capacity(curvature.len());
        for (a, &q) in state.active.iter().enumerate() {
            let residual = rows::norm(state.r.row(a)) / norms[q];
            let (converged, indefinite) = (residual <= self.options.tolerance, flat(a));
            let iterations = if indefinite { step - 1 } else { step };
            reports[q] = CgQuery { iterations, residual, converged, indefinite };
            stopped.push(converged || indefinite);
        }
        Ok(stopped)
    }

    /// Writes out the stopped queries and keeps the others.
    fn retire(&self, state: &mut State, stopped: &[bool], out: &mut CgSolution) {
        if !stopped.contains(&true) {
            return;
        }
        for (a, &q) in state.active.iter().enumerate().filter(|&(a, _)| stopped[a]) {
            out.rows.row_mut(q).assign(&rows::narrow_row(state.x.row(a)));
        }
        let keep: Vec<usize> = (0..stopped.len()).filter(|&a| !stopped[a]).collect();
        *state = State {
            active: keep.iter().map(|&a| state.active[a]).collect(),
            x: state.x.select(Axis(0), &keep),
            r: state.r.select(Axis(0), &keep),
            p: state.p.select(Axis(0), &keep),
            rho: keep.iter().map(|&a| state.rho[a]).collect(),
        };
    }

    /// New directions, conjugate to the old ones.
    fn turn(&self, step: usize, state: &mut State) -> Result<(), MethodError> {
        let z = self.precondition(&state.r)?;
        let rho = self.rho(step, &state.r, &z, &state.active)?;
        let betas: Vec<f64> = rho.iter().zip(&state.rho).map(|(&new, &old)| rows::ratio(new, old)).collect();
        rows::each_pair(&mut state.p, &z, |a, p, z| {
            p.iter_mut().zip(z).for_each(|(p, &z)| *p = (z + betas[a] * f64::from(*p)) as f32);
        });
        state.rho = rho;
        Ok(())
    }
}

impl InverseCurvature for Cg<'_> {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        Ok(self.run(rows, &NoProgress)?.rows)
    }
}
