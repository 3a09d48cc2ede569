//! Layer normalisation of rows and its backward (RMS normalisation stands in `vector`), and sums over rows for biases.

use super::dispatch::{LANES, kernel, sum_lanes};

/// `Σ f(xᵢ)` in [`LANES`] lanes.
#[inline(always)]
fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    sum_lanes(lanes)
}

kernel! {
    /// Layer normalisation of rows `[n, d]`: `out = (x − mean)·inv·gain + bias`, `inv = 1/√(var + eps)` with the variance
    /// divided by `d`; `mean` and `inv` are kept for the way back.
    ///
    /// # Panics
    /// If lengths do not fit `n = inv.len()`, `d = gain.len()`.
    pub fn layer_norm / layer_norm_at (
        x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32], mean: &mut [f32], inv: &mut [f32],
    ) {
        let d = gain.len();
        assert!(x.len() == d * inv.len() && out.len() == x.len(), "rows of a norm have the width of its gain");
        assert!(bias.len() == d && mean.len() == inv.len(), "a bias per column, a mean per row");
        let stats = mean.iter_mut().zip(inv);
        for ((x, out), (mean, inv)) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).zip(stats) {
            let m = lane_sum(x, |x| x) / d as f32;
            let scale = 1.0 / (lane_sum(x, |x| (x - m) * (x - m)) / d as f32 + eps).sqrt();
            (*mean, *inv) = (m, scale);
            for (((out, &x), &g), &b) in out.iter_mut().zip(x).zip(gain).zip(bias) {
                *out = (x - m) * scale * g + b;
            }
        }
    }
}

kernel! {
    /// Backward of [`layer_norm`]: `d_x += inv·(a − mean(a) − x̂·mean(a∘x̂))` with `a = d_out∘gain`, `x̂ = (x − mean)·inv`;
    /// `d_gain += Σ d_out∘x̂`, `d_bias += Σ d_out`, each only where it is not empty.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn layer_norm_backward / layer_norm_backward_at (
        x: &[f32], gain: &[f32], mean: &[f32], inv: &[f32], d_out: &[f32], d_x: &mut [f32], d_gain: &mut [f32],
        d_bias: &mut [f32],
    ) {
        let d = gain.len();
        assert!(x.len() == d * inv.len() && d_out.len() == x.len() && d_x.len() == x.len(), "rows of a norm");
        assert!(mean.len() == inv.len(), "a mean per row");
        let all = |side: &[f32]| side.is_empty() || side.len() == d;
        assert!(all(d_gain) && all(d_bias), "a gradient for every gain and bias, or for none");
        let rows = x.chunks_exact(d).zip(d_out.chunks_exact(d)).zip(d_x.chunks_exact_mut(d));
        for (((x, d_out), d_x), (&mean, &inv)) in rows.zip(mean.iter().zip(inv)) {
            let (mut plain, mut along) = ([0.0f32; LANES], [0.0f32; LANES]);
            let (x_chunks, x_rest) = x.as_chunks::<LANES>();
            let (o_chunks, o_rest) = d_out.as_chunks::<LANES>();
            let (g_chunks, g_rest) = gain.as_chunks::<LANES>();
            for ((x, o), g) in x_chunks.iter().zip(o_chunks).zip(g_chunks) {
                for i in 0..LANES {
                    let a = o[i] * g[i];
                    plain[i] += a;
                    along[i] += a * (x[i] - mean);
                }
            }
            for (i, ((&x, &o), &g)) in x_rest.iter().zip(o_rest).zip(g_rest).enumerate() {
                plain[i] += o * g;
                along[i] += o * g * (x - mean);
            }
            let mean_a = sum_lanes(plain) / d as f32;
            let mean_ax = sum_lanes(along) * inv / d as f32;
            for (((&x, &o), &g), d_x) in x.iter().zip(d_out).zip(gain).zip(d_x) {
                *d_x += inv * (o * g - mean_a - (x - mean) * inv * mean_ax);
            }
            for ((d_gain, &x), &o) in d_gain.iter_mut().zip(x).zip(d_out) {
                *d_gain += o * ((x - mean) * inv);
            }
            for (d_bias, &o) in d_bias.iter_mut().zip(d_out) {
                *d_bias += o;
            }
        }
    }
}

kernel! {
    /// `sum[j] += Σ_i rows[i][j]`, row after row; `rows` is `[n, sum.len()]`.
    ///
    /// # Panics
    /// If the rows do not have the width of the sum.
    pub fn sum_rows / sum_rows_at (rows: &[f32], sum: &mut [f32]) {
        assert!(rows.len().is_multiple_of(sum.len()), "whole rows");
        for row in rows.chunks_exact(sum.len()) {
            for (sum, &x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

kernel! {
    /// `out ← x + row` for every row of `x` `[n, row.len()]`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn add_row / add_row_at (x: &[f32], row: &[f32], out: &mut [f32]) {
        assert!(x.len() == out.len() && x.len().is_multiple_of(row.len()), "whole rows");
        for (x, out) in x.chunks_exact(row.len()).zip(out.chunks_exact_mut(row.len())) {
            for ((out, &x), &b) in out.iter_mut().zip(x).zip(row) {
                *out = x + b;
            }
        }
    }
}

kernel! {
    /// `out ← a + b`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add / add_at (a: &[f32], b: &[f32], out: &mut [f32]) {
        assert!(a.len() == b.len() && a.len() == out.len(), "a sum of vectors of two lengths");
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, level};
    use super::*;
    use crate::rng::Stream;

    fn noise(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(14, name);
        (0..n).map(|_| (stream.normal() + 0.5) as f32).collect()
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        for d in [1, 16, 31, 341] {
            let (x, gain, bias, d_out) = (noise("x", 3 * d), noise("gain", d), noise("bias", d), noise("dout", 3 * d));
            let everything = |l: Level| {
                let (mut out, mut mean, mut inv) = (vec![0.0; 3 * d], vec![0.0; 3], vec![0.0; 3]);
                layer_norm_at(l, &x, &gain, &bias, 1e-5, &mut out, &mut mean, &mut inv);
                let (mut d_x, mut d_gain, mut d_bias) = (noise("dx", 3 * d), vec![0.0; d], vec![0.0; d]);
                layer_norm_backward_at(l, &x, &gain, &mean, &inv, &d_out, &mut d_x, &mut d_gain, &mut d_bias);
                sum_rows_at(l, &d_out, &mut d_bias);
                let (mut shifted, mut sum) = (vec![0.0; 3 * d], vec![0.0; 3 * d]);
                add_row_at(l, &x, &bias, &mut shifted);
                add_at(l, &x, &d_out, &mut sum);
                let all = [out, mean, inv, d_x, d_gain, d_bias, shifted, sum].concat();
                all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for better in [Level::V3, Level::V4].into_iter().filter(|&l| l <= level()) {
                assert_eq!(everything(better), everything(Level::Portable), "{better:?} {d}");
            }
        }
    }

    #[test]
    fn layer_norm_and_its_gradient_agree_with_f64_and_finite_differences() {
        let d = 21;
        let (x, gain, bias, d_out) = (noise("x", d), noise("gain", d), noise("bias", d), noise("dout", d));
        let (mut out, mut mean, mut inv) = (vec![0.0; d], vec![0.0], vec![0.0]);
        layer_norm(&x, &gain, &bias, 1e-5, &mut out, &mut mean, &mut inv);
        let (mut d_x, mut d_gain, mut d_bias) = (vec![0.0; d], vec![0.0; d], vec![0.0; d]);
        layer_norm_backward(&x, &gain, &mean, &inv, &d_out, &mut d_x, &mut d_gain, &mut d_bias);
        let mut again = vec![0.0; d];
        layer_norm_backward(&x, &gain, &mean, &inv, &d_out, &mut again, &mut [], &mut []);
        assert_eq!(again, d_x);
        let normed = |x: &[f64], g: &[f64], b: &[f64]| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / d as f64;
            let inv = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64 + 1e-5).sqrt();
            x.iter().zip(g).zip(b).map(|((x, g), b)| (x - mean) * inv * g + b).collect()
        };
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let at = [wide(&x), wide(&gain), wide(&bias)];
        for (a, b) in out.iter().zip(normed(&at[0], &at[1], &at[2])) {
            assert!((f64::from(*a) - b).abs() < 2e-6, "{a} {b}");
        }
        let loss = |at: &[Vec<f64>; 3]| -> f64 {
            normed(&at[0], &at[1], &at[2]).iter().zip(&d_out).map(|(y, &o)| y * f64::from(o)).sum()
        };
        for (which, got) in [&d_x, &d_gain, &d_bias].into_iter().enumerate() {
            for i in 0..d {
                let moved = |h: f64| {
                    let mut at = at.clone();
                    at[which][i] += h;
                    loss(&at)
                };
                let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(got[i]) - quotient).abs() < 5e-6, "{which} {i}: {} {quotient}", got[i]);
            }
        }
    }
}
