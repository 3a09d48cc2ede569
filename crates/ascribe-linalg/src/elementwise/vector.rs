//! Plain vector work: dot products, sums, RMS normalisation, rotary positions, the AdamW update.

use super::dispatch::{LANES, kernel, sum_lanes};

/// Dot product in [`LANES`] lanes.
#[inline(always)]
pub(super) fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    sum_lanes(lanes)
}

kernel! {
    /// `Σ a·b`, f32, fixed lanes.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot / dot_at (a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "a dot product of vectors of two lengths");
        dot_body(a, b)
    }
}

kernel! {
    /// `Σ x²` in f64, eight fixed lanes.
    pub fn sum_squares / sum_squares_at (x: &[f32]) -> f64 {
        let (chunks, rest) = x.as_chunks::<8>();
        let mut lanes = [0.0f64; 8];
        for chunk in chunks {
            for i in 0..8 {
                let x = f64::from(chunk[i]);
                lanes[i] += x * x;
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
    }
}

kernel! {
    /// `a ← a + b`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign / add_assign_at (a: &mut [f32], b: &[f32]) {
        assert_eq!(a.len(), b.len(), "a sum of vectors of two lengths");
        for (a, &b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

kernel! {
    /// `a ← factor · a`.
    pub fn scale / scale_at (a: &mut [f32], factor: f32) {
        for a in a {
            *a *= factor;
        }
    }
}

kernel! {
    /// RMS normalisation of rows `[n, d]`: `out = x · inv · gain`, `inv = 1/√(mean x² + eps)` kept for the way back.
    ///
    /// # Panics
    /// If lengths do not fit `n = inv.len()`, `d = gain.len()`.
    pub fn rms_norm / rms_norm_at (x: &[f32], gain: &[f32], eps: f32, out: &mut [f32], inv: &mut [f32]) {
        let d = gain.len();
        assert!(x.len() == d * inv.len() && out.len() == x.len(), "rows of a norm have the width of its gain");
        for ((x, out), inv) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).zip(inv) {
            *inv = 1.0 / (dot_body(x, x) / d as f32 + eps).sqrt();
            for ((out, &x), &g) in out.iter_mut().zip(x).zip(gain) {
                *out = x * *inv * g;
            }
        }
    }
}

kernel! {
    /// Backward of [`rms_norm`]: `d_x += inv·(a − x̂·mean(a∘x̂))` with `a = d_out∘gain`, `x̂ = x·inv`; `d_gain += Σ d_out∘x̂`,
    /// unless it is empty.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn rms_norm_backward / rms_norm_backward_at (
        x: &[f32], gain: &[f32], inv: &[f32], d_out: &[f32], d_x: &mut [f32], d_gain: &mut [f32],
    ) {
        let d = gain.len();
        assert!(x.len() == d * inv.len() && d_out.len() == x.len() && d_x.len() == x.len(), "rows of a norm");
        assert!(d_gain.is_empty() || d_gain.len() == d, "a gradient for every gain, or for none");
        let rows = x.chunks_exact(d).zip(d_out.chunks_exact(d)).zip(d_x.chunks_exact_mut(d)).zip(inv);
        for (((x, d_out), d_x), &inv) in rows {
            let mut lanes = [0.0f32; LANES];
            let (x_chunks, x_rest) = x.as_chunks::<LANES>();
            let (o_chunks, o_rest) = d_out.as_chunks::<LANES>();
            let (g_chunks, g_rest) = gain.as_chunks::<LANES>();
            for ((x, o), g) in x_chunks.iter().zip(o_chunks).zip(g_chunks) {
                for i in 0..LANES {
                    lanes[i] += o[i] * g[i] * x[i];
                }
            }
            for (((lane, &x), &o), &g) in lanes.iter_mut().zip(x_rest).zip(o_rest).zip(g_rest) {
                *lane += o * g * x;
            }
            let mean = sum_lanes(lanes) * inv / d as f32;
            for ((d_gain, &x), &o) in d_gain.iter_mut().zip(x).zip(d_out) {
                *d_gain += o * (x * inv);
            }
            for (((&x, &o), &g), d_x) in x.iter().zip(d_out).zip(gain).zip(d_x) {
                *d_x += inv * (o * g - x * inv * mean);
            }
        }
    }
}

kernel! {
    /// Rotary positions, half layout (`transformers`): in every row (length `stride`) head `h < n_heads` begins at
    /// `first + h·step`, and its first `2·half` numbers turn: `(a, b) ← (a·cos − sign·b·sin, b·cos + sign·a·sin)`. `cos`,
    /// `sin` are `[n, half]`. `sign = 1` rotates, `sign = −1` is the transpose, hence the backward (and undoes a rotation).
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn rotate / rotate_at (
        x: &mut [f32], stride: usize, first: usize, step: usize, n_heads: usize, half: usize, cos: &[f32], sin: &[f32],
        sign: f32,
    ) {
        assert!(n_heads == 0 || stride >= first + step * (n_heads - 1) + 2 * half, "a row holds all of its heads");
        let rows = x.chunks_exact_mut(stride).zip(cos.chunks_exact(half).zip(sin.chunks_exact(half)));
        for (row, (cos, sin)) in rows {
            for h in 0..n_heads {
                let (a, b) = row[first + h * step..][..2 * half].split_at_mut(half);
                for i in 0..half {
                    let s = sign * sin[i];
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * s;
                    b[i] = y * cos[i] + x * s;
                }
            }
        }
    }
}

/// The numbers of one AdamW step (arXiv:1711.05101, as PyTorch orders it).
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Factor on the gradient (clipping and averaging).
    pub grad_scale: f32,
    /// `lr / (1 − β₁ᵗ)`.
    pub step_size: f32,
    /// `1 − lr · weight_decay` (1 where nothing decays).
    pub keep: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    pub inv_sqrt_correction: f32,
    /// Added to the denominator.
    pub eps: f32,
}

kernel! {
    /// One AdamW update of parameters `p` with gradient `g` and moments `m`, `v`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adam_update / adam_update_at (step: &AdamStep, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        assert!(p.len() == g.len() && g.len() == m.len() && m.len() == v.len(), "one gradient and moment per number");
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * step.grad_scale;
            *m = step.beta1 * *m + (1.0 - step.beta1) * g;
            *v = step.beta2 * *v + (1.0 - step.beta2) * (g * g);
            let denominator = v.sqrt() * step.inv_sqrt_correction + step.eps;
            *p = step.keep * *p - step.step_size * (*m / denominator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, level};
    use super::*;
    use crate::rng::Stream;

    fn noise(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(12, name);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    const STEP: AdamStep = AdamStep {
        grad_scale: 0.5,
        step_size: 0.01,
        keep: 0.99,
        beta1: 0.9,
        beta2: 0.95,
        inv_sqrt_correction: 1.2,
        eps: 1e-8,
    };

    /// Everything in this file at one level, as one list of numbers.
    fn everything(l: Level, d: usize) -> Vec<f32> {
        let (x, gain, d_out) = (noise("x", 3 * d), noise("gain", d), noise("dout", 3 * d));
        let (mut out, mut inv) = (vec![0.0; 3 * d], vec![0.0; 3]);
        rms_norm_at(l, &x, &gain, 1e-5, &mut out, &mut inv);
        let (mut d_x, mut d_gain) = (noise("dx", 3 * d), vec![0.0; d]);
        rms_norm_backward_at(l, &x, &gain, &inv, &d_out, &mut d_x, &mut d_gain);
        let half = d / 2;
        let (cos, sin) = (noise("cos", 3 * half), noise("sin", 3 * half));
        let mut turned = x.clone();
        if half > 0 {
            rotate_at(l, &mut turned, d, 0, 2 * half, 1, half, &cos, &sin, -1.0);
        }
        let (mut p, mut m, mut v) = (x.clone(), noise("m", 3 * d), vec![0.1; 3 * d]);
        adam_update_at(l, &STEP, &mut p, &d_out, &mut m, &mut v);
        add_assign_at(l, &mut m, &x);
        scale_at(l, &mut m, 0.3);
        let sums = vec![dot_at(l, &x, &d_out), sum_squares_at(l, &x) as f32];
        [out, inv, d_x, d_gain, turned, p, m, v, sums].concat()
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        for d in [1, 16, 31, 128, 341] {
            let bits = |l| everything(l, d).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            for better in [Level::V3, Level::V4].into_iter().filter(|&l| l <= level()) {
                assert_eq!(bits(better), bits(Level::Portable), "{better:?} {d}");
            }
        }
    }

    #[test]
    fn rms_norm_gradient_agrees_with_finite_differences() {
        let d = 5;
        let (x, gain, d_out) = (noise("x", d), noise("gain", d), noise("dout", d));
        let (mut out, mut inv) = (vec![0.0; d], vec![0.0]);
        rms_norm(&x, &gain, 1e-5, &mut out, &mut inv);
        let (mut d_x, mut d_gain) = (vec![0.0; d], vec![0.0; d]);
        rms_norm_backward(&x, &gain, &inv, &d_out, &mut d_x, &mut d_gain);
        // ⟨d_out, norm(x)⟩ in f64.
        let loss = |x: &[f64], gain: &[f64]| {
            let inv = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-5).sqrt();
            x.iter().zip(gain).zip(&d_out).map(|((x, g), &o)| x * inv * g * f64::from(o)).sum::<f64>()
        };
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (x64, g64, h) = (wide(&x), wide(&gain), 1e-5);
        for i in 0..d {
            let moved = |v: &[f64], by: f64| {
                let mut v = v.to_vec();
                v[i] += by;
                v
            };
            let by_x = (loss(&moved(&x64, h), &g64) - loss(&moved(&x64, -h), &g64)) / (2.0 * h);
            let by_gain = (loss(&x64, &moved(&g64, h)) - loss(&x64, &moved(&g64, -h))) / (2.0 * h);
            assert!((f64::from(d_x[i]) - by_x).abs() < 2e-6, "{} {by_x}", d_x[i]);
            assert!((f64::from(d_gain[i]) - by_gain).abs() < 2e-6, "{} {by_gain}", d_gain[i]);
        }
    }

    #[test]
    fn turning_back_undoes_the_turn() {
        let x = noise("x", 24);
        let angle = noise("angle", 6);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angle.iter().map(|a| (a.cos(), a.sin())).unzip();
        let mut y = x.clone();
        rotate(&mut y, 12, 0, 6, 2, 3, &cos, &sin, 1.0);
        assert_ne!(x, y);
        rotate(&mut y, 12, 0, 6, 2, 3, &cos, &sin, -1.0);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    /// First step from zero moments: m̂ = g, v̂ = g², so the parameter moves by lr·sign(g) after the decay.
    #[test]
    fn the_first_adam_step_has_the_size_of_the_learning_rate() {
        let (lr, wd) = (0.01f32, 0.1f32);
        let step = AdamStep {
            grad_scale: 1.0,
            step_size: lr / (1.0 - 0.9),
            keep: 1.0 - lr * wd,
            beta1: 0.9,
            beta2: 0.95,
            inv_sqrt_correction: 1.0 / (1.0f32 - 0.95).sqrt(),
            eps: 1e-8,
        };
        let (mut p, mut m, mut v) = (vec![2.0f32, -1.0], vec![0.0; 2], vec![0.0; 2]);
        adam_update(&step, &mut p, &[0.3, -4.0], &mut m, &mut v);
        assert!((p[0] - (2.0 * 0.999 - 0.01)).abs() < 1e-6 && (p[1] - (-0.999 + 0.01)).abs() < 1e-6, "{p:?}");
    }
}
