//! A vectorisable exponential, and what is built on it: softmax, cross-entropy rows, SwiGLU.

use super::dispatch::{LANES, kernel, max_lanes, sum_lanes};

/// `e^x` in f32, relative error below 2·10⁻⁷ on `[-87.3, 88]` (a test walks the range); arguments outside are clamped,
/// NaN stays NaN. Cephes' reduction and polynomial (`expf`), written without fused operations so that every
/// instruction set rounds alike.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts; the first has so few bits that n·part is exact.
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127);
    e * f32::from_bits((exponent << 23) as u32)
}

/// The last numbers of a row as a whole chunk: up to 15 exponentials one by one would cost more than the row before them.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    last
}

/// `exp(rest − max)` as a chunk, added to the lanes; lanes behind the rest get nothing.
#[inline(always)]
fn exp_last(rest: &[f32], max: f32, lanes: &mut [f32; LANES]) -> [f32; LANES] {
    let mut last = padded(rest);
    for i in 0..LANES {
        let e = exp(last[i] - max);
        last[i] = if i < rest.len() { e } else { 0.0 };
        lanes[i] += last[i];
    }
    last
}

/// The largest of a row (lanes, then the rest).
#[inline(always)]
pub(super) fn row_max(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    if !rest.is_empty() {
        let last = padded(rest);
        for i in 0..LANES {
            lanes[i] = if last[i] > lanes[i] { last[i] } else { lanes[i] };
        }
    }
    max_lanes(lanes)
}

/// `row ← exp(row − max)`; returns the sum of the new row.
#[inline(always)]
pub(super) fn exp_row(row: &mut [f32], max: f32) -> f32 {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - max);
            lanes[i] += chunk[i];
        }
    }
    if !rest.is_empty() {
        let last = exp_last(rest, max, &mut lanes);
        rest.copy_from_slice(&last[..rest.len()]);
    }
    sum_lanes(lanes)
}

/// Sum of `exp(row − max)` without touching the row.
#[inline(always)]
fn exp_sum(row: &[f32], max: f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp(chunk[i] - max);
        }
    }
    if !rest.is_empty() {
        exp_last(rest, max, &mut lanes);
    }
    sum_lanes(lanes)
}

#[inline(always)]
pub(super) fn scale_row(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

kernel! {
    /// Causal softmax over rows: row `i` of `[n_rows, n_cols]` keeps columns `0..=first_row + i`, the others become 0.
    ///
    /// # Panics
    /// If `scores.len()` is not a multiple of `n_cols`, or a row sees more than `n_cols` columns.
    pub fn causal_softmax / causal_softmax_at (scores: &mut [f32], n_cols: usize, first_row: usize) {
        for (i, row) in scores.chunks_exact_mut(n_cols).enumerate() {
            let (seen, hidden) = row.split_at_mut(first_row + i + 1);
            let max = row_max(seen);
            let sum = exp_row(seen, max);
            scale_row(seen, 1.0 / sum);
            hidden.fill(0.0);
        }
    }
}

kernel! {
    /// [`causal_softmax`] with a window: row `i` keeps the last `window` of the columns up to `first_row + i` (all columns if
    /// it lies beyond them), the others become 0. A row that sees nothing becomes 0.
    ///
    /// # Panics
    /// If `scores.len()` is not a multiple of `n_cols`.
    pub fn banded_softmax / banded_softmax_at (scores: &mut [f32], n_cols: usize, first_row: usize, window: usize) {
        for (i, row) in scores.chunks_exact_mut(n_cols).enumerate() {
            let end = first_row + i + 1;
            let (row, hidden) = row.split_at_mut(end.min(n_cols));
            hidden.fill(0.0);
            let (hidden, seen) = row.split_at_mut(end.saturating_sub(window).min(row.len()));
            hidden.fill(0.0);
            if !seen.is_empty() {
                let max = row_max(seen);
                let sum = exp_row(seen, max);
                scale_row(seen, 1.0 / sum);
            }
        }
    }
}

kernel! {
    /// Backward of a softmax: `dp ← scale · p ∘ (dp − Σ dp∘p)` per row of `n_cols`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn softmax_backward / softmax_backward_at (p: &[f32], dp: &mut [f32], n_cols: usize, scale: f32) {
        assert_eq!(p.len(), dp.len(), "probabilities and their gradients have one shape");
        for (p, dp) in p.chunks_exact(n_cols).zip(dp.chunks_exact_mut(n_cols)) {
            let dot = super::vector::dot_body(p, dp);
            for (d, &p) in dp.iter_mut().zip(p) {
                *d = scale * p * (*d - dot);
            }
        }
    }
}

kernel! {
    /// Negative log-likelihood (nats) of `targets` under rows of logits `[n, n_cols]`; the logits stay as they are.
    ///
    /// # Panics
    /// If a target is not a column, or lengths differ.
    pub fn cross_entropy / cross_entropy_at (logits: &[f32], n_cols: usize, targets: &[u32], nll: &mut [f32]) {
        assert_eq!(logits.len(), n_cols * targets.len(), "one row of logits per target");
        assert_eq!(targets.len(), nll.len(), "one loss per target");
        for ((row, &target), nll) in logits.chunks_exact(n_cols).zip(targets).zip(nll) {
            let max = row_max(row);
            *nll = log_of(exp_sum(row, max)) + (max - row[target as usize]);
        }
    }
}

kernel! {
    /// [`cross_entropy`] that also replaces the logits by their gradient `softmax − one_hot(target)`.
    ///
    /// # Panics
    /// If a target is not a column, or lengths differ.
    pub fn cross_entropy_backward / cross_entropy_backward_at (
        logits: &mut [f32], n_cols: usize, targets: &[u32], nll: &mut [f32],
    ) {
        assert_eq!(logits.len(), n_cols * targets.len(), "one row of logits per target");
        assert_eq!(targets.len(), nll.len(), "one loss per target");
        for ((row, &target), nll) in logits.chunks_exact_mut(n_cols).zip(targets).zip(nll) {
            let max = row_max(row);
            let at_target = row[target as usize];
            let sum = exp_row(row, max);
            *nll = log_of(sum) + (max - at_target);
            scale_row(row, 1.0 / sum);
            row[target as usize] -= 1.0;
        }
    }
}

/// One logarithm per row: exact enough to be worth f64, rare enough to be free.
#[inline(always)]
fn log_of(sum: f32) -> f32 {
    f64::from(sum).ln() as f32
}

kernel! {
    /// SwiGLU: `out = silu(gate) · up`, where each row of `gate_up` `[n, 2·width]` is gates then ups; `out` is `[n, width]`.
    ///
    /// # Panics
    /// If `gate_up` is not twice as long as `out`.
    pub fn silu_mul / silu_mul_at (gate_up: &[f32], width: usize, out: &mut [f32]) {
        assert_eq!(gate_up.len(), 2 * out.len(), "a gate and an up for every output");
        for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *out = g / (1.0 + exp(-g)) * u;
            }
        }
    }
}

kernel! {
    /// Backward of [`silu_mul`]: `d_gate = d_out·u·s·(1 + g·(1 − s))`, `d_up = d_out·g·s`, with `s = sigmoid(g)`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn silu_mul_backward / silu_mul_backward_at (
        gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32],
    ) {
        assert_eq!(gate_up.len(), 2 * d_out.len(), "a gate and an up for every output");
        assert_eq!(gate_up.len(), d_gate_up.len(), "a gradient for every gate and up");
        let rows = gate_up.chunks_exact(2 * width).zip(d_gate_up.chunks_exact_mut(2 * width));
        for ((row, d_row), d_out) in rows.zip(d_out.chunks_exact(width)) {
            let (gate, up) = row.split_at(width);
            let (d_gate, d_up) = d_row.split_at_mut(width);
            for i in 0..width.min(d_out.len()) {
                let s = 1.0 / (1.0 + exp(-gate[i]));
                let gs = gate[i] * s;
                d_gate[i] = d_out[i] * up[i] * (s + gs * (1.0 - s));
                d_up[i] = d_out[i] * gs;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, level};
    use super::*;
    use crate::rng::Stream;

    fn noise(n: usize, scale: f64) -> Vec<f32> {
        let mut stream = Stream::new(11, "exp-test");
        (0..n).map(|_| (stream.normal() * scale) as f32).collect()
    }

    #[test]
    fn exp_is_close_to_the_f64_one_over_its_whole_range() {
        let mut worst = 0.0f64;
        let mut x = -87.3f32;
        while x < 88.0 {
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
            x += 0.000_917;
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::INFINITY).is_finite());
    }

    /// Runs `f` on every level this processor has and expects equal bytes.
    fn twins(f: impl Fn(Level) -> Vec<f32>) {
        let portable = f(Level::Portable);
        for better in [Level::V3, Level::V4] {
            if better <= level() {
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&f(better)), bits(&portable), "{better:?}");
            }
        }
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        for width in [1, 15, 16, 37, 341] {
            let x = noise(4 * 2 * width, 3.0);
            let d = noise(4 * width, 1.0);
            twins(|l| {
                let mut out = vec![0.0; 4 * width];
                silu_mul_at(l, &x, width, &mut out);
                let mut back = vec![0.0; 8 * width];
                silu_mul_backward_at(l, &x, width, &d, &mut back);
                out.extend(back);
                out
            });
            twins(|l| {
                let mut logits = d.clone();
                let targets = [0, width as u32 - 1, 0, width as u32 / 2];
                let mut nll = vec![0.0; 8];
                cross_entropy_at(l, &logits, width, &targets, &mut nll[..4]);
                cross_entropy_backward_at(l, &mut logits, width, &targets, &mut nll[4..]);
                logits.extend(nll);
                logits
            });
        }
        let scores = noise(40 * 50, 2.0);
        twins(|l| {
            let mut p = scores.clone();
            causal_softmax_at(l, &mut p, 50, 10);
            let mut banded = scores.clone();
            banded_softmax_at(l, &mut banded, 50, 20, 7);
            let mut dp = noise(40 * 50, 0.5);
            softmax_backward_at(l, &p, &mut dp, 50, 0.3);
            p.extend(dp.into_iter().chain(banded));
            p
        });
    }

    #[test]
    fn softmax_rows_sum_to_one_and_see_only_the_past() {
        let mut p = noise(3 * 7, 2.0);
        causal_softmax(&mut p, 7, 4);
        for (i, row) in p.chunks(7).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!(row[4 + i + 1..].iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn a_window_hides_the_far_past_and_a_wide_one_nothing() {
        let scores = noise(5 * 9, 2.0);
        let (mut p, mut wide, mut causal) = (scores.clone(), scores.clone(), scores.clone());
        banded_softmax(&mut p, 9, 3, 2);
        banded_softmax(&mut wide, 9, 3, usize::MAX);
        causal_softmax(&mut causal, 9, 3);
        assert_eq!(wide, causal);
        for (i, row) in p.chunks(9).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!(row.iter().enumerate().all(|(j, &x)| (x != 0.0) == (2 + i..=3 + i).contains(&j)), "{i}: {row:?}");
        }
        // Beyond the last column every row sees all.
        let mut all = scores.clone();
        banded_softmax(&mut all, 9, 9, usize::MAX);
        assert!(all.iter().all(|&x| x > 0.0));
    }

    #[test]
    fn uniform_logits_cost_log_n() {
        let (logits, mut nll) = (vec![0.25f32; 10], [0.0f32]);
        cross_entropy(&logits, 10, &[3], &mut nll);
        assert!((nll[0] - 10f32.ln()).abs() < 1e-6);
    }

    /// Central differences in f64 of a plain f64 transcription: the gradient formula, not only the code, is checked.
    #[test]
    fn swiglu_gradient_agrees_with_finite_differences() {
        let f = |g: f64, u: f64| g / (1.0 + (-g).exp()) * u;
        for (g, u, d) in [(0.3, -1.2, 0.7), (-4.0, 2.0, 1.0), (6.5, 0.1, -2.0)] {
            let mut back = [0.0f32; 2];
            silu_mul_backward(&[g as f32, u as f32], 1, &[d as f32], &mut back);
            let h = 1e-5;
            let dg = d * (f(g + h, u) - f(g - h, u)) / (2.0 * h);
            let du = d * (f(g, u + h) - f(g, u - h)) / (2.0 * h);
            assert!((f64::from(back[0]) - dg).abs() < 1e-6 && (f64::from(back[1]) - du).abs() < 1e-6);
        }
    }
}
