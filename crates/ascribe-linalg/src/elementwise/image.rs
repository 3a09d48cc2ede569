//! Kernels of image classifiers: dense rows whose bits do not depend on their neighbours, rectifiers, channel statistics,
//! the update of stochastic gradient descent. Layers and models stand elsewhere.

use super::dispatch::{LANES, kernel, sum_lanes};

/// Rows of inputs that share one reading of the weights. Not part of the results: a row's sums are its own.
const SHARED_ROWS: usize = 8;

/// `R` rows of inputs against every row of `w`: the dot products of [`super::dot`], bit for bit.
#[inline(always)]
fn dense_block<const R: usize>(x: &[f32], w: &[f32], bias: &[f32], fan_in: usize, fan_out: usize, y: &mut [f32]) {
    let n_chunks = fan_in / LANES;
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * fan_in..(r + 1) * fan_in]);
    let chunks: [&[[f32; LANES]]; R] = std::array::from_fn(|r| &rows[r].as_chunks::<LANES>().0[..n_chunks]);
    for o in 0..fan_out {
        let w = &w[o * fan_in..(o + 1) * fan_in];
        let (w_chunks, w_rest) = w.as_chunks::<LANES>();
        let mut lanes = [[0.0f32; LANES]; R];
        for (k, w) in w_chunks.iter().enumerate() {
            for r in 0..R {
                let x = &chunks[r][k];
                for i in 0..LANES {
                    lanes[r][i] += x[i] * w[i];
                }
            }
        }
        for r in 0..R {
            let rest = &rows[r][n_chunks * LANES..];
            for ((lane, &x), &w) in lanes[r].iter_mut().zip(rest).zip(w_rest) {
                *lane += x * w;
            }
            y[r * fan_out + o] = sum_lanes(lanes[r]) + if bias.is_empty() { 0.0 } else { bias[o] };
        }
    }
}

kernel! {
    /// Dense layer `y = x·Wᵀ + b` on rows: x `[n, I]`, W `[O, I]`, b `[O]` or empty, y `[n, O]`.
    ///
    /// Every number is one dot product in fixed lanes, so a row's bits do not depend on how many rows come with it (a
    /// general matrix product does not promise that). Cost `2·n·I·O`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn dense_rows / dense_rows_at (
        x: &[f32], w: &[f32], bias: &[f32], fan_in: usize, fan_out: usize, y: &mut [f32],
    ) {
        assert_eq!(w.len(), fan_in * fan_out, "weights of a dense layer");
        assert!(bias.is_empty() || bias.len() == fan_out, "a bias for every output");
        assert_eq!(x.len() * fan_out, y.len() * fan_in, "as many rows out as in");
        let blocks = x.chunks(SHARED_ROWS * fan_in).zip(y.chunks_mut(SHARED_ROWS * fan_out));
        for (x, y) in blocks {
            if x.len() == SHARED_ROWS * fan_in {
                dense_block::<SHARED_ROWS>(x, w, bias, fan_in, fan_out, y);
                continue;
            }
            for (x, y) in x.chunks_exact(fan_in).zip(y.chunks_exact_mut(fan_out)) {
                dense_block::<1>(x, w, bias, fan_in, fan_out, y);
            }
        }
    }
}

kernel! {
    /// Input gradient of a dense layer on rows: `d_x += d_y·W`, summed over outputs in their order, zeros skipped.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn dense_rows_backward / dense_rows_backward_at (
        d_y: &[f32], w: &[f32], fan_in: usize, fan_out: usize, d_x: &mut [f32],
    ) {
        assert_eq!(w.len(), fan_in * fan_out, "weights of a dense layer");
        assert_eq!(d_x.len() * fan_out, d_y.len() * fan_in, "as many rows out as in");
        for (d_y, d_x) in d_y.chunks_exact(fan_out).zip(d_x.chunks_exact_mut(fan_in)) {
            for (&d, w) in d_y.iter().zip(w.chunks_exact(fan_in)) {
                // A rectifier leaves many exact zeros; NaN is not equal to zero and goes on.
                if d != 0.0 {
                    for (d_x, &w) in d_x.iter_mut().zip(w) {
                        *d_x += d * w;
                    }
                }
            }
        }
    }
}

kernel! {
    /// Outer product `out ← a·bᵀ`, row-major `[a.len(), b.len()]`: one example's weight gradient of a dense layer.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn outer / outer_at (a: &[f32], b: &[f32], out: &mut [f32]) {
        assert_eq!(out.len(), a.len() * b.len(), "one number per pair");
        if b.is_empty() {
            return;
        }
        for (&a, out) in a.iter().zip(out.chunks_exact_mut(b.len())) {
            for (out, &b) in out.iter_mut().zip(b) {
                *out = a * b;
            }
        }
    }
}

kernel! {
    /// Adds `bias` to every row of `y` `[n, O]`.
    ///
    /// # Panics
    /// If `bias` is empty.
    pub fn add_bias / add_bias_at (y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, &b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

kernel! {
    /// `x ← max(x, 0)`; NaN stays NaN.
    pub fn relu / relu_at (x: &mut [f32]) {
        for x in x {
            *x = if *x < 0.0 { 0.0 } else { *x };
        }
    }
}

kernel! {
    /// Backward of [`relu`] from its output: `d ← d` where `y > 0`, else 0 (the slope at 0 is 0, as in PyTorch).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn relu_backward / relu_backward_at (y: &[f32], d: &mut [f32]) {
        assert_eq!(y.len(), d.len(), "a gradient for every number");
        for (d, &y) in d.iter_mut().zip(y) {
            *d = if y > 0.0 { *d } else { 0.0 };
        }
    }
}

kernel! {
    /// `y = scale_c·x + shift_c` on planes: x and y `[C, area]`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn channel_affine / channel_affine_at (x: &[f32], scale: &[f32], shift: &[f32], area: usize, y: &mut [f32]) {
        assert!(x.len() == scale.len() * area && y.len() == x.len() && shift.len() == scale.len(), "planes of channels");
        let planes = x.chunks_exact(area).zip(y.chunks_exact_mut(area));
        for ((x, y), (&scale, &shift)) in planes.zip(scale.iter().zip(shift)) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = scale * x + shift;
            }
        }
    }
}

kernel! {
    /// `d_x += a_c·d_y + b_c·(x − mean_c) + c_c` on planes `[C, area]`: the input gradient of a batch normalisation, with
    /// `b = c = 0` when its statistics are constants.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn channel_backward / channel_backward_at (
        x: &[f32], d_y: &[f32], mean: &[f32], a: &[f32], b: &[f32], c: &[f32], area: usize, d_x: &mut [f32],
    ) {
        assert!(x.len() == mean.len() * area && d_y.len() == x.len() && d_x.len() == x.len(), "planes of channels");
        assert!(a.len() == mean.len() && b.len() == mean.len() && c.len() == mean.len(), "numbers of channels");
        let planes = x.chunks_exact(area).zip(d_y.chunks_exact(area)).zip(d_x.chunks_exact_mut(area));
        for (i, ((x, d_y), d_x)) in planes.enumerate() {
            let (mean, a, b, c) = (mean[i], a[i], b[i], c[i]);
            for ((d_x, &x), &d_y) in d_x.iter_mut().zip(x).zip(d_y) {
                *d_x += a * d_y + b * (x - mean) + c;
            }
        }
    }
}

/// `Σ f(x, y)` in fixed lanes.
#[inline(always)]
fn sum_of(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += f(x, y);
    }
    sum_lanes(lanes)
}

kernel! {
    /// Adds each plane's sum to `sums`: x `[C, area]`; f32 within a plane, f64 across planes.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn channel_sums / channel_sums_at (x: &[f32], area: usize, sums: &mut [f64]) {
        assert_eq!(x.len(), sums.len() * area, "planes of channels");
        for (x, sum) in x.chunks_exact(area).zip(sums) {
            *sum += f64::from(sum_of(x, x, |x, _| x));
        }
    }
}

kernel! {
    /// Adds each plane's `Σ y·(x − mean_c)` to `sums`; x and y `[C, area]`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn channel_products / channel_products_at (x: &[f32], mean: &[f32], y: &[f32], area: usize, sums: &mut [f64]) {
        assert!(x.len() == sums.len() * area && y.len() == x.len() && mean.len() == sums.len(), "planes of channels");
        for (((x, y), &mean), sum) in x.chunks_exact(area).zip(y.chunks_exact(area)).zip(mean).zip(sums) {
            *sum += f64::from(sum_of(x, y, |x, y| y * (x - mean)));
        }
    }
}

kernel! {
    /// Adds each plane's `Σ (x − mean_c)²` to `sums`; x `[C, area]`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn channel_squares / channel_squares_at (x: &[f32], mean: &[f32], area: usize, sums: &mut [f64]) {
        assert!(x.len() == sums.len() * area && mean.len() == sums.len(), "planes of channels");
        for ((x, &mean), sum) in x.chunks_exact(area).zip(mean).zip(sums) {
            *sum += f64::from(sum_of(x, x, |x, _| (x - mean) * (x - mean)));
        }
    }
}

/// The numbers of one step of stochastic gradient descent, as PyTorch's `SGD` orders it.
#[derive(Clone, Copy, Debug)]
pub struct SgdStep {
    /// Factor on the gradient (averaging).
    pub grad_scale: f32,
    /// Learning rate.
    pub lr: f32,
    /// Factor on the velocity.
    pub momentum: f32,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f32,
}

kernel! {
    /// `velocity ← momentum·velocity + (scale·g + decay·p)`, then `p ← p − lr·velocity`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sgd_update / sgd_update_at (step: &SgdStep, p: &mut [f32], g: &[f32], velocity: &mut [f32]) {
        assert!(p.len() == g.len() && g.len() == velocity.len(), "one gradient and velocity per number");
        for ((p, &g), v) in p.iter_mut().zip(g).zip(velocity) {
            *v = step.momentum * *v + (g * step.grad_scale + step.weight_decay * *p);
            *p -= step.lr * *v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, level};
    use super::super::dot;
    use super::*;
    use crate::rng::Stream;

    fn noise(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(21, name);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    fn bits(v: &[f32]) -> Vec<u32> {
        v.iter().map(|x| x.to_bits()).collect()
    }

    /// Runs `f` on every level this processor has and expects equal bytes.
    fn twins(f: impl Fn(Level) -> Vec<f32>) {
        let portable = f(Level::Portable);
        for better in [Level::V3, Level::V4] {
            if better <= level() {
                assert_eq!(bits(&f(better)), bits(&portable), "{better:?}");
            }
        }
    }

    #[test]
    fn dense_rows_are_dot_products_whatever_their_number() {
        for (fan_in, fan_out) in [(1, 1), (5, 3), (16, 4), (37, 10), (784, 7)] {
            let (w, b) = (noise("w", fan_in * fan_out), noise("b", fan_out));
            let x = noise("x", 19 * fan_in);
            let mut all = vec![f32::NAN; 19 * fan_out];
            dense_rows(&x, &w, &b, fan_in, fan_out, &mut all);
            for (x, y) in x.chunks(fan_in).zip(all.chunks(fan_out)) {
                let exact: Vec<f32> = w.chunks(fan_in).zip(&b).map(|(w, b)| dot(x, w) + b).collect();
                assert_eq!(bits(y), bits(&exact));
            }
            let mut part = vec![f32::NAN; 11 * fan_out];
            dense_rows(&x[8 * fan_in..], &w, &b, fan_in, fan_out, &mut part);
            assert_eq!(bits(&part), bits(&all[8 * fan_out..]));
        }
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        let (x, y, w) = (noise("x", 11 * 36), noise("y", 11 * 36), noise("w", 36 * 20));
        let (mean, scale, shift) = (noise("mean", 11), noise("scale", 11), noise("shift", 11));
        twins(|l| {
            let mut out = vec![0.0; 11 * 20];
            dense_rows_at(l, &x, &w, &mean[..0], 36, 20, &mut out);
            let mut back = y.clone();
            dense_rows_backward_at(l, &out, &w, 36, 20, &mut back);
            out.extend(back);
            let mut product = vec![0.0; 36 * 11];
            outer_at(l, &w[..36], &mean, &mut product);
            out.extend(product);
            out
        });
        twins(|l| {
            let mut out = vec![0.0; x.len()];
            channel_affine_at(l, &x, &scale, &shift, 36, &mut out);
            relu_at(l, &mut out);
            let mut d = y.clone();
            relu_backward_at(l, &out, &mut d);
            channel_backward_at(l, &x, &y, &mean, &scale, &shift, &mean, 36, &mut d);
            let mut sums = vec![0.0; 11];
            channel_sums_at(l, &x, 36, &mut sums);
            channel_products_at(l, &x, &mean, &y, 36, &mut sums);
            channel_squares_at(l, &x, &mean, 36, &mut sums);
            out.extend(d);
            out.extend(sums.iter().map(|&x| x as f32));
            out
        });
        twins(|l| {
            let (mut p, mut v) = (x.clone(), y.clone());
            let step = SgdStep { grad_scale: 0.1, lr: 0.3, momentum: 0.9, weight_decay: 0.01 };
            add_bias_at(l, &mut p, &mean);
            sgd_update_at(l, &step, &mut p, &y, &mut v);
            p.extend(v);
            p
        });
    }

    /// Worked out by hand: PyTorch's rule with momentum 0.5, decay 0.1, rate 0.2 from p = 1, g = 2, v = 4.
    #[test]
    fn a_step_of_descent_by_hand() {
        let (mut p, mut v) = ([1.0f32], [4.0f32]);
        let step = SgdStep { grad_scale: 0.5, lr: 0.2, momentum: 0.5, weight_decay: 0.1 };
        sgd_update(&step, &mut p, &[2.0], &mut v);
        // v = 0.5·4 + (0.5·2 + 0.1·1) = 3.1; p = 1 − 0.2·3.1 = 0.38
        assert!((v[0] - 3.1).abs() < 1e-6 && (p[0] - 0.38).abs() < 1e-6, "{v:?} {p:?}");
    }

    #[test]
    fn rectifiers_keep_nan_and_are_flat_at_zero() {
        let mut x = [-1.0, 0.0, 2.0, f32::NAN];
        relu(&mut x);
        assert_eq!(x[..3], [0.0, 0.0, 2.0]);
        assert!(x[3].is_nan());
        let mut d = [1.0, 1.0, 1.0];
        relu_backward(&x[..3], &mut d);
        assert_eq!(d, [0.0, 0.0, 1.0]);
    }
}
