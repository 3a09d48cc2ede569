//! Models small enough to know everything about: a softmax regression that can be retrained exactly, and dense curvature.

use ascribe_linalg::Stream;
use ascribe_methods::MethodError;
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture, Operator};
use ascribe_testkit::ridge::solve;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};

/// Softmax regression with a bias, trained to the minimum of `(1/n) Σ ℓ + ½ ridge ‖W‖²`.
pub struct Softmax {
    /// `[n, F]`, the last column 1.
    pub x: Array2<f32>,
    pub labels: Vec<u32>,
    pub n_classes: usize,
    pub ridge: f64,
    /// `[C, F]` flat.
    pub theta: Array1<f64>,
    layers: Vec<Layer>,
}

/// Clouds that overlap, `[n, F]` with a last column of ones, and their labels.
pub fn clouds(seed: u64, n: usize, width: usize, n_classes: usize) -> (Array2<f32>, Vec<u32>) {
    let mut stream = Stream::new(seed, "softmax-test");
    let labels: Vec<u32> = (0..n).map(|_| stream.below(n_classes as u32)).collect();
    let x = Array2::from_shape_fn((n, width), |(i, j)| {
        let centre = if j == labels[i] as usize { 1.2 } else { 0.0 };
        if j + 1 == width { 1.0 } else { (stream.normal() + centre) as f32 }
    });
    (x, labels)
}

impl Softmax {
    pub fn fit(x: Array2<f32>, labels: Vec<u32>, n_classes: usize, ridge: f64) -> Self {
        let layers = vec![Layer { name: "fc".to_owned(), n_out: n_classes, n_in: x.ncols() }];
        let theta = Array1::zeros(n_classes * x.ncols());
        let mut model = Self { x, labels, n_classes, ridge, theta, layers };
        for _ in 0..30 {
            let mut hessian = model.hessian();
            hessian.diag_mut().mapv_inplace(|v| v + ridge);
            let step = solve(&hessian, &model.total_gradient(&model.theta));
            model.theta -= &step;
            if step.dot(&step).sqrt() < 1e-13 {
                return model;
            }
        }
        panic!("Newton's method did not converge");
    }

    pub fn dim(&self) -> usize {
        self.theta.len()
    }

    fn errors(&self, theta: &Array1<f64>, x: &[f32]) -> Vec<f64> {
        let width = x.len();
        let logits: Vec<f64> = (0..self.n_classes)
            .map(|c| x.iter().enumerate().map(|(j, &x)| theta[c * width + j] * f64::from(x)).sum())
            .collect();
        let largest = logits.iter().fold(f64::MIN, |m, v| m.max(*v));
        let total: f64 = logits.iter().map(|v| (v - largest).exp()).sum();
        logits.iter().map(|v| (v - largest).exp() / total).collect()
    }

    /// Loss of `(x, label)` in nats.
    pub fn loss(&self, theta: &Array1<f64>, x: &[f32], label: u32) -> f64 {
        -self.errors(theta, x)[label as usize].ln()
    }

    /// Gradient of it, `[P]`.
    pub fn gradient(&self, theta: &Array1<f64>, x: &[f32], label: u32) -> Array1<f64> {
        let mut delta = self.errors(theta, x);
        delta[label as usize] -= 1.0;
        Array1::from_shape_fn(self.dim(), |p| delta[p / x.len()] * f64::from(x[p % x.len()]))
    }

    /// Gradient of the whole objective.
    pub fn total_gradient(&self, theta: &Array1<f64>) -> Array1<f64> {
        let mut total = theta * self.ridge;
        for (x, &label) in self.x.rows().into_iter().zip(&self.labels) {
            total.scaled_add(1.0 / self.labels.len() as f64, &self.gradient(theta, x.as_slice().unwrap(), label));
        }
        total
    }

    /// Hessian of the mean loss, without the ridge, by its formula.
    pub fn hessian(&self) -> Array2<f64> {
        let (n, width) = self.x.dim();
        let mut hessian = Array2::zeros((self.dim(), self.dim()));
        for x in self.x.rows() {
            let x = x.as_slice().unwrap();
            let p = self.errors(&self.theta, x);
            for ((a, b), h) in hessian.indexed_iter_mut() {
                let (c, d) = (a / width, b / width);
                let middle = if c == d { p[c] } else { 0.0 } - p[c] * p[d];
                *h += middle * f64::from(x[a % width]) * f64::from(x[b % width]) / n as f64;
            }
        }
        hessian
    }

    /// The same model trained without example `i`, the mean still over all (its weight is zero).
    pub fn refit_without(&self, i: usize) -> Array1<f64> {
        let n = self.labels.len();
        let kept: Vec<usize> = (0..n).filter(|&row| row != i).collect();
        let labels = kept.iter().map(|&row| self.labels[row]).collect();
        // (1/n) Σ_{n−1} + ½ r ‖W‖²  =  (n−1)/n · [(1/(n−1)) Σ + ½ r·n/(n−1) ‖W‖²]
        let ridge = self.ridge * n as f64 / (n - 1) as f64;
        Self::fit(self.x.select(Axis(0), &kept), labels, self.n_classes, ridge).theta
    }
}

impl CaptureSource for Softmax {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let ids: Vec<usize> = examples.iter().map(|&e| e as usize).collect();
        let x = self.x.select(Axis(0), &ids);
        let mut delta = Array2::zeros((ids.len(), self.n_classes));
        for (row, &id) in ids.iter().enumerate() {
            let mut errors = self.errors(&self.theta, self.x.row(id).as_slice().unwrap());
            errors[self.labels[id] as usize] -= 1.0;
            errors.iter().enumerate().for_each(|(c, &v)| delta[(row, c)] = v as f32);
        }
        let starts = vec![(0..=ids.len()).collect()];
        *out = Captured { starts, layers: vec![LayerCapture { x, delta }], losses: vec![0.0; ids.len()] };
        Ok(())
    }
}

impl Operator for Softmax {
    fn dim(&self) -> usize {
        self.theta.len()
    }

    fn n_examples(&self) -> usize {
        self.labels.len()
    }

    fn apply(
        &self,
        examples: Option<&[u32]>,
        v: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), MethodError> {
        let ids: Vec<usize> = match examples {
            Some(ids) => ids.iter().map(|&i| i as usize).collect(),
            None => (0..self.labels.len()).collect(),
        };
        let width = self.x.ncols();
        for (v, mut out) in v.rows().into_iter().zip(out.rows_mut()) {
            let mut total = vec![0.0f64; v.len()];
            for &id in &ids {
                let x = self.x.row(id);
                let p = self.errors(&self.theta, x.as_slice().unwrap());
                let z: Vec<f64> = (0..self.n_classes)
                    .map(|c| (0..width).map(|j| f64::from(v[c * width + j]) * f64::from(x[j])).sum())
                    .collect();
                let mean: f64 = p.iter().zip(&z).map(|(p, z)| p * z).sum();
                for c in 0..self.n_classes {
                    let d = p[c] * (z[c] - mean) / ids.len() as f64;
                    (0..width).for_each(|j| total[c * width + j] += d * f64::from(x[j]));
                }
            }
            out.iter_mut().zip(&total).for_each(|(to, &v)| *to = v as f32);
        }
        Ok(())
    }
}

/// Any symmetric matrix as an operator; example `i` has the curvature `H + wobble·(−1)^i·D` with a fixed diagonal `D`.
pub struct Dense {
    pub h: Array2<f64>,
    pub n: usize,
    pub wobble: f64,
}

impl Dense {
    pub fn new(h: Array2<f64>) -> Self {
        Self { h, n: 8, wobble: 0.0 }
    }

    pub fn diagonal(values: &[f64]) -> Self {
        Self::new(Array2::from_diag(&Array1::from(values.to_vec())))
    }

    /// Eigenvalues from `smallest` to `largest` in equal ratios, in a random basis.
    pub fn with_spectrum(dim: usize, smallest: f64, largest: f64) -> Self {
        let mut stream = Stream::new(4, "dense-test");
        let mut basis: Vec<Array1<f64>> = Vec::new();
        while basis.len() < dim {
            let mut v = Array1::from_shape_fn(dim, |_| stream.normal());
            for _ in 0..2 {
                for b in &basis {
                    v = &v - &(b * b.dot(&v));
                }
            }
            basis.push(&v / v.dot(&v).sqrt());
        }
        let mut h = Array2::zeros((dim, dim));
        for (i, b) in basis.iter().enumerate() {
            let value = smallest * (largest / smallest).powf(i as f64 / (dim - 1).max(1) as f64);
            for ((a, c), h) in h.indexed_iter_mut() {
                *h += value * b[a] * b[c];
            }
        }
        Self::new(h)
    }

    /// `(H + damping)⁻¹ v` by elimination.
    pub fn exact(&self, damping: f64, v: ndarray::ArrayView1<'_, f32>) -> Array1<f64> {
        let mut h = self.h.clone();
        h.diag_mut().mapv_inplace(|d| d + damping);
        solve(&h, &v.mapv(f64::from))
    }
}

impl Operator for Dense {
    fn dim(&self) -> usize {
        self.h.nrows()
    }

    fn n_examples(&self) -> usize {
        self.n
    }

    fn apply(
        &self,
        examples: Option<&[u32]>,
        v: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), MethodError> {
        let sign = |i: &u32| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        let tilt = examples.map_or(0.0, |ids| ids.iter().map(sign).sum::<f64>() / ids.len() as f64) * self.wobble;
        for (v, mut out) in v.rows().into_iter().zip(out.rows_mut()) {
            let wide = v.mapv(f64::from);
            let product = self.h.dot(&wide);
            for (i, to) in out.iter_mut().enumerate() {
                *to = (product[i] + tilt * self.h[(i, i)] * wide[i]) as f32;
            }
        }
        Ok(())
    }
}

/// Layers with random captures; example `e` has `e % 3 + 1` positions.
pub struct Random {
    pub layers: Vec<Layer>,
    pub n: usize,
    /// Layers whose gradients are zero.
    pub silent: Vec<usize>,
}

impl Random {
    pub fn new(n: usize, shapes: &[(usize, usize)]) -> Self {
        let layer = |(i, &(n_out, n_in)): (usize, &(usize, usize))| Layer { name: format!("fc{i}"), n_out, n_in };
        Self { layers: shapes.iter().enumerate().map(layer).collect(), n, silent: Vec::new() }
    }
}

impl CaptureSource for Random {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.n
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        *out = Captured { losses: vec![0.0; examples.len()], ..Captured::default() };
        for (l, layer) in self.layers.iter().enumerate() {
            let mut starts = vec![0];
            let (mut x, mut delta) = (Vec::new(), Vec::new());
            for &e in examples {
                let mut stream = Stream::new(u64::from(e), &layer.name);
                let loud = if self.silent.contains(&l) { 0.0 } else { 1.0 };
                for _ in 0..e % 3 + 1 {
                    x.extend((0..layer.n_in).map(|_| stream.normal() as f32));
                    delta.extend((0..layer.n_out).map(|_| (loud * stream.normal()) as f32));
                }
                starts.push(x.len() / layer.n_in);
            }
            let rows = *starts.last().unwrap();
            let x = Array2::from_shape_vec((rows, layer.n_in), x).unwrap();
            let delta = Array2::from_shape_vec((rows, layer.n_out), delta).unwrap();
            out.layers.push(LayerCapture { x, delta });
            out.starts.push(starts);
        }
        Ok(())
    }
}
