//! Representer points: the last layer's logits as a weighted sum of training examples. Source: arXiv:1811.09720.
//!
//! The last layer is refitted with a ridge, `min_W (1/n) Σ_i ℓ(W f_i, y_i) + λ‖W‖²`. Where its gradient vanishes,
//! `W = Σ_i α_i f_iᵀ` with `α_i = −(1/(2λn)) ∂ℓ/∂logits`, so the logit of class c at a query is `Σ_i α_{i,c} ⟨f_i, f_q⟩`: every
//! training example's part in it is exact. Curvature of the whole network lives in `inverse`.

use ascribe_linalg::sum::sum_by;
use ascribe_linalg::{Threads, gemm_f64};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use crate::blocks;
use crate::error::MethodError;

/// Examples per task: sums over examples are made per block and added in their order.
const BLOCK: usize = 512;

/// Inner iterations of one Newton step, at most.
const INNER: usize = 250;

/// Halvings of a Newton step, at most.
const HALVINGS: usize = 40;

/// Options of [`Representer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepresenterOptions {
    /// Ridge λ in `(1/n) Σ ℓ + λ‖W‖²`. 0.003, the paper's for CIFAR-10.
    pub ridge: f64,
    /// The refit ends at `‖gradient‖ ≤ tolerance·(1 + ‖gradient at W = 0‖)`. 1e-10.
    pub tolerance: f64,
    /// Most Newton steps. 100; a handful is usual.
    pub steps: usize,
}

impl Default for RepresenterOptions {
    fn default() -> Self {
        Self { ridge: 0.003, tolerance: 1e-10, steps: 100 }
    }
}

/// What the last layer is fitted to.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// Classes, `[N]`, below the number given.
    Classes {
        /// Class of every example.
        labels: &'a [u32],
        /// Number of classes.
        n: usize,
    },
    /// Distributions over classes, `[N, C]`: the model's own predictions, as the paper suggests, so that the refit stays true to
    /// the model that is explained.
    Distributions(ArrayView2<'a, f32>),
}

/// A refitted last layer and the weights of its training examples.
///
/// All in f64. Memory `8·N·(F + 3·C)` bytes. Cost of a fit: a few tens of products `[N, F]·[F, C]` per Newton step. Bytes do
/// not depend on threads.
#[derive(Clone, Debug)]
pub struct Representer {
    features: Array2<f64>,
    /// `[C, F]`.
    weights: Array2<f64>,
    /// `[N, C]`.
    alphas: Array2<f64>,
    gradient_norm: f64,
    steps: usize,
}

/// The problem: features `[N, F]`, targets `[N, C]`, ridge.
struct Problem {
    features: Array2<f64>,
    targets: Array2<f64>,
    ridge: f64,
}

impl Representer {
    /// Refits the last layer to `features`, `[N, F]` (with a column of ones if it has a bias), from `W = 0`.
    ///
    /// # Errors
    /// No examples; shapes; NaN; a label that is no class; a distribution that is negative or does not sum to 1 within 1e-4;
    /// parameters; [`MethodError::Iteration`] when the tolerance is not reached.
    pub fn fit(
        features: ArrayView2<'_, f32>,
        targets: Targets<'_>,
        options: &RepresenterOptions,
    ) -> Result<Self, MethodError> {
        for (field, value) in [("ridge", options.ridge), ("tolerance", options.tolerance)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(MethodError::Parameter { field, expected: "finite and positive", found: value });
            }
        }
        if features.is_empty() {
            return Err(MethodError::Empty { what: "the table of features" });
        }
        let features = features.mapv(f64::from);
        crate::dot::check_finite("features", features.view())?;
        let targets = distributions(targets, features.nrows())?;
        let problem = Problem { features, targets, ridge: options.ridge };
        let (weights, gradient_norm, steps) = problem.minimise(options)?;
        let errors = problem.errors(&problem.logits(&weights));
        let alphas = errors * (-1.0 / (2.0 * options.ridge * problem.features.nrows() as f64));
        Ok(Self { features: problem.features, weights, alphas, gradient_norm, steps })
    }

    /// The refitted weights, `[C, F]`.
    pub fn weights(&self) -> ArrayView2<'_, f64> {
        self.weights.view()
    }

    /// `α_i`, `[N, C]`: positive where an example speaks for a class.
    pub fn alphas(&self) -> ArrayView2<'_, f64> {
        self.alphas.view()
    }

    /// Length of the gradient that was left, and the Newton steps that it took.
    pub fn convergence(&self) -> (f64, usize) {
        (self.gradient_norm, self.steps)
    }

    /// Every example's part in the logit of a class at each query: `α_{i,c} ⟨f_i, f_q⟩`, `[Q, N]`, positive = speaks for it.
    ///
    /// `queries` is `[Q, F]`, `classes` the class of each that is explained (its label, or what the model says). A row's sum is
    /// the refitted logit. Cost `2·Q·N·F`.
    ///
    /// # Errors
    /// Shapes; NaN; a class that does not exist.
    pub fn score(&self, queries: ArrayView2<'_, f32>, classes: &[u32]) -> Result<Array2<f32>, MethodError> {
        let n_classes = self.alphas.ncols();
        if queries.ncols() != self.features.ncols() {
            return Err(MethodError::shape("width of the query features", self.features.ncols(), queries.ncols()));
        }
        if queries.nrows() != classes.len() {
            return Err(MethodError::shape("classes, one per query", queries.nrows(), classes.len()));
        }
        if let Some(class) = classes.iter().find(|&&c| c as usize >= n_classes) {
            return Err(MethodError::shape("class of a query", format!("below {n_classes}"), class));
        }
        let queries = queries.mapv(f64::from);
        crate::dot::check_finite("query features", queries.view())?;
        let mut scores = blocks::rows_times(queries.view(), self.features.t());
        for (mut row, &class) in scores.rows_mut().into_iter().zip(classes) {
            row *= &self.alphas.column(class as usize);
        }
        Ok(scores.mapv(|v| v as f32))
    }
}

fn distributions(targets: Targets<'_>, n: usize) -> Result<Array2<f64>, MethodError> {
    match targets {
        Targets::Classes { labels, n: n_classes } => {
            if labels.len() != n {
                return Err(MethodError::shape("labels, one per example", n, labels.len()));
            }
            if let Some((row, class)) = labels.iter().enumerate().find(|&(_, &c)| c as usize >= n_classes) {
                let found = format!("{class} of example {row}");
                return Err(MethodError::shape("label of an example", format!("below {n_classes}"), found));
            }
            let mut out = Array2::zeros((n, n_classes));
            labels.iter().enumerate().for_each(|(row, &class)| out[(row, class as usize)] = 1.0);
            Ok(out)
        }
        Targets::Distributions(given) => {
            if given.nrows() != n {
                return Err(MethodError::shape("distributions, one per example", n, given.nrows()));
            }
            let out = given.mapv(f64::from);
            for (row, p) in out.rows().into_iter().enumerate() {
                let sum = p.sum();
                if let Some(column) = p.iter().position(|v| v.is_nan() || *v < 0.0) {
                    return Err(MethodError::BadValue {
                        what: "distributions over classes".to_owned(),
                        row,
                        column,
                        found: p[column],
                    });
                }
                if (sum - 1.0).abs() > 1e-4 {
                    return Err(MethodError::shape("sum of a distribution", 1.0, format!("{sum} in row {row}")));
                }
            }
            Ok(out)
        }
    }
}

impl Problem {
    /// `[N, F]·[F, C] → [N, C]`.
    fn logits(&self, weights: &Array2<f64>) -> Array2<f64> {
        let mut out = Array2::zeros(self.targets.dim());
        let features = self.features.axis_chunks_iter(Axis(0), BLOCK).into_par_iter();
        out.axis_chunks_iter_mut(Axis(0), BLOCK).into_par_iter().zip(features).for_each(|(part, rows)| {
            gemm_f64(1.0, rows, weights.t(), 0.0, part, Threads::One);
        });
        out
    }

    /// `p − y`, `[N, C]`: ∂ℓ/∂logits.
    fn errors(&self, logits: &Array2<f64>) -> Array2<f64> {
        probabilities(logits) - &self.targets
    }

    fn loss(&self, weights: &Array2<f64>, logits: &Array2<f64>) -> f64 {
        let one = |i: usize| {
            let (row, y) = (logits.row(i), self.targets.row(i));
            let largest = row.fold(f64::NEG_INFINITY, |m, &v| m.max(v));
            let log_sum = largest + row.iter().map(|v| (v - largest).exp()).sum::<f64>().ln();
            y.iter().zip(row).map(|(&y, &v)| y * (log_sum - v)).sum::<f64>()
        };
        sum_by(logits.nrows(), one) / logits.nrows() as f64 + self.ridge * squares(weights)
    }

    /// `(1/n) Σ_i d_i f_iᵀ + 2λ W`, `[C, F]`.
    fn pull(&self, d: &Array2<f64>, weights: &Array2<f64>) -> Array2<f64> {
        let parts: Vec<Array2<f64>> = d
            .axis_chunks_iter(Axis(0), BLOCK)
            .into_par_iter()
            .zip(self.features.axis_chunks_iter(Axis(0), BLOCK).into_par_iter())
            .map(|(d, rows)| {
                let mut part = Array2::zeros(weights.dim());
                gemm_f64(1.0 / self.features.nrows() as f64, d.t(), rows, 0.0, part.view_mut(), Threads::One);
                part
            })
            .collect();
        parts.iter().fold(weights * (2.0 * self.ridge), |sum, part| sum + part)
    }

    /// The Hessian times `v`: `(1/n) Σ_i (diag p_i − p_i p_iᵀ) v f_i f_iᵀ + 2λ v`.
    fn curve(&self, p: &Array2<f64>, v: &Array2<f64>) -> Array2<f64> {
        let mut d = self.logits(v);
        for (mut d, p) in d.rows_mut().into_iter().zip(p.rows()) {
            let mean = p.dot(&d);
            d.zip_mut_with(&p, |d, &p| *d = p * (*d - mean));
        }
        self.pull(&d, v)
    }

    /// Newton's method, each step solved by conjugate gradients, with halving until the loss falls enough (Armijo).
    fn minimise(&self, options: &RepresenterOptions) -> Result<(Array2<f64>, f64, usize), MethodError> {
        let mut weights = Array2::<f64>::zeros((self.targets.ncols(), self.features.ncols()));
        let mut logits = self.logits(&weights);
        let mut loss = self.loss(&weights, &logits);
        let mut gradient = self.pull(&self.errors(&logits), &weights);
        let goal = options.tolerance * (1.0 + squares(&gradient).sqrt());
        for step in 0..=options.steps {
            let length = squares(&gradient).sqrt();
            if length <= goal {
                return Ok((weights, length, step));
            }
            if step == options.steps {
                break;
            }
            let p = probabilities(&logits);
            let direction = self.newton_direction(&p, &gradient, length);
            let slope = product(&gradient, &direction);
            let mut size = 1.0;
            for halving in 0..HALVINGS {
                let tried = &weights + &(&direction * size);
                let tried_logits = self.logits(&tried);
                let tried_loss = self.loss(&tried, &tried_logits);
                // Near the minimum the loss itself cannot resolve a step any more: its rounding is allowed for.
                let rounding = 8.0 * f64::EPSILON * loss.abs();
                if tried_loss <= loss + 1e-4 * size * slope + rounding || halving + 1 == HALVINGS {
                    (weights, logits, loss) = (tried, tried_logits, tried_loss);
                    break;
                }
                size *= 0.5;
            }
            gradient = self.pull(&self.errors(&logits), &weights);
        }
        Err(MethodError::Iteration {
            method: "representer refit",
            query: 0,
            step: options.steps,
            found: format!("a gradient of length {:.3e}, the goal is {goal:.3e}", squares(&gradient).sqrt()),
            hint: "more steps, a larger tolerance or a larger ridge",
        })
    }

    /// `−H⁻¹·gradient` to a residual that shrinks with the gradient, so that convergence stays superlinear.
    fn newton_direction(&self, p: &Array2<f64>, gradient: &Array2<f64>, length: f64) -> Array2<f64> {
        let goal = length * (length.sqrt()).min(0.1);
        let mut x = Array2::<f64>::zeros(gradient.dim());
        let mut r = -gradient;
        let mut direction = r.clone();
        let mut rho = squares(&r);
        for _ in 0..INNER {
            if rho.sqrt() <= goal {
                break;
            }
            let curved = self.curve(p, &direction);
            // Positive: the Hessian is at least 2λ.
            let alpha = rho / product(&direction, &curved);
            x.scaled_add(alpha, &direction);
            r.scaled_add(-alpha, &curved);
            let next = squares(&r);
            direction = &r + &(&direction * (next / rho));
            rho = next;
        }
        x
    }
}

/// Softmax of every row.
fn probabilities(logits: &Array2<f64>) -> Array2<f64> {
    let mut out = logits.clone();
    for mut row in out.rows_mut() {
        let largest = row.fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        row.mapv_inplace(|v| (v - largest).exp());
        let sum = row.sum();
        row.mapv_inplace(|v| v / sum);
    }
    out
}

fn product(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    let (a, b) = (a.slice(s![.., ..]), b.slice(s![.., ..]));
    let width = a.ncols().max(1);
    sum_by(a.len(), |i| a[(i / width, i % width)] * b[(i / width, i % width)])
}

fn squares(a: &Array2<f64>) -> f64 {
    product(a, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    fn toy(n: usize, f: usize, c: usize) -> (Array2<f32>, Vec<u32>) {
        let mut stream = Stream::new(3, "representer-test");
        let labels: Vec<u32> = (0..n).map(|i| (i % c) as u32).collect();
        let features = Array2::from_shape_fn((n, f), |(i, j)| {
            let centre = if j % c == i % c { 0.8 } else { 0.0 };
            if j + 1 == f { 1.0 } else { (stream.normal() + centre) as f32 }
        });
        (features, labels)
    }

    #[test]
    fn two_examples_by_hand() {
        // One feature, two classes, f = 1 and −1 with labels 0 and 1: by symmetry W = (w, −w), p_0 = σ(2w) at f = 1, and
        // the gradient −(1 − σ(2w)) + 2λw vanishes. With λ = 0.25 and w = u: 1 − σ(2u) = u/2.
        let features = arr2(&[[1.0f32], [-1.0]]);
        let options = RepresenterOptions { ridge: 0.25, ..Default::default() };
        let fit = Representer::fit(features.view(), Targets::Classes { labels: &[0, 1], n: 2 }, &options).unwrap();
        let w = fit.weights()[(0, 0)];
        assert!((1.0 / (1.0 + (2.0 * w).exp()) - 0.5 * w).abs() < 1e-9, "{w}");
        // α of the first example for class 0: (1 − p)/(2·0.25·2) = 1 − p = w/2; both examples carry the same part of the logit.
        assert!((fit.alphas()[(0, 0)] - 0.5 * w).abs() < 1e-9);
        let scores = fit.score(arr2(&[[2.0f32]]).view(), &[0]).unwrap();
        assert!((f64::from(scores[(0, 0)]) - w).abs() < 1e-6 && (f64::from(scores[(0, 1)]) - w).abs() < 1e-6);
    }

    #[test]
    fn parts_sum_to_the_logits_and_the_gradient_vanishes() {
        let (features, labels) = toy(700, 9, 4);
        let options = RepresenterOptions::default();
        let fit = Representer::fit(features.view(), Targets::Classes { labels: &labels, n: 4 }, &options).unwrap();
        let (gradient, steps) = fit.convergence();
        assert!(gradient < 1e-9 && steps < 20, "{gradient} after {steps}");
        let queries = features.slice(s![..8, ..]);
        let classes: Vec<u32> = (0..8).map(|q| q % 4).collect();
        let scores = fit.score(queries, &classes).unwrap();
        for (q, &class) in classes.iter().enumerate() {
            let logit = queries.row(q).mapv(f64::from).dot(&fit.weights().row(class as usize));
            let sum: f64 = scores.row(q).iter().map(|&v| f64::from(v)).sum();
            // 700 parts, each rounded to f32.
            let parts: f64 = scores.row(q).iter().map(|v| f64::from(v.abs())).sum();
            assert!((logit - sum).abs() < 1e-7 * parts + 1e-6, "{logit} {sum}");
        }
        // The second route to the gradient: finite differences of the loss.
        let targets = distributions(Targets::Classes { labels: &labels, n: 4 }, 700).unwrap();
        let problem = Problem { features: features.mapv(f64::from), targets, ridge: 0.003 };
        let start = Array2::from_shape_fn((4, 9), |(c, f)| 0.1 * (c as f64 - 1.5) + 0.02 * f as f64);
        let gradient = problem.pull(&problem.errors(&problem.logits(&start)), &start);
        let at = |w: &Array2<f64>| problem.loss(w, &problem.logits(w));
        let (mut up, mut down) = (start.clone(), start.clone());
        up[(2, 3)] += 1e-5;
        down[(2, 3)] -= 1e-5;
        assert!(((at(&up) - at(&down)) / 2e-5 - gradient[(2, 3)]).abs() < 1e-8);
        // And to the Hessian: differences of the gradient.
        let v = Array2::from_shape_fn((4, 9), |(c, f)| ((c * 9 + f) as f64).sin());
        let gradient_at = |w: &Array2<f64>| problem.pull(&problem.errors(&problem.logits(w)), w);
        let moved = (gradient_at(&(&start + &(&v * 1e-5))) - gradient_at(&(&start - &(&v * 1e-5)))) / 2e-5;
        let exact = problem.curve(&probabilities(&problem.logits(&start)), &v);
        assert!((&moved - &exact).iter().all(|e| e.abs() < 1e-7));
    }

    #[test]
    fn soft_targets_and_threads() {
        let (features, _) = toy(1_100, 6, 3);
        let soft = Array2::from_shape_fn((1_100, 3), |(i, c)| if i % 3 == c { 0.8f32 } else { 0.1 });
        let fit = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let targets = Targets::Distributions(soft.view());
            pool.install(|| Representer::fit(features.view(), targets, &RepresenterOptions::default()).unwrap())
        };
        assert_eq!(fit(1).alphas(), fit(3).alphas());
        // Of one sort only: every alpha of the class is about zero or speaks for it.
        assert!(fit(1).alphas().column(0).iter().step_by(3).filter(|a| **a > 0.0).count() > 200);
    }

    #[test]
    fn bad_input_is_named() {
        let (features, labels) = toy(6, 3, 2);
        let options = RepresenterOptions::default();
        let error = |f: ArrayView2<'_, f32>, t: Targets<'_>, o: &RepresenterOptions| {
            Representer::fit(f, t, o).unwrap_err().to_string()
        };
        let classes = Targets::Classes { labels: &labels, n: 2 };
        assert!(error(features.view(), Targets::Classes { labels: &labels, n: 1 }, &options).contains("example 1"));
        assert!(error(Array2::zeros((0, 3)).view(), classes, &options).contains("is empty"));
        let zero = RepresenterOptions { ridge: 0.0, ..options.clone() };
        assert!(error(features.view(), classes, &zero).contains("ridge"));
        let few = RepresenterOptions { steps: 1, ..options.clone() };
        assert!(error(features.view(), classes, &few).contains("more steps"));
        let mut nan = features.clone();
        nan[(2, 1)] = f32::NAN;
        assert!(error(nan.view(), classes, &options).contains("features, row 2, column 1"));
        let off = Array2::from_elem((6, 2), 0.7f32);
        assert!(error(features.view(), Targets::Distributions(off.view()), &options).contains("sum of a distribution"));
        let fit = Representer::fit(features.view(), classes, &options).unwrap();
        assert!(fit.score(features.view(), &[0, 1]).is_err());
        assert!(fit.score(features.slice(s![..1, ..]), &[2]).unwrap_err().to_string().contains("below 2"));
    }
}
