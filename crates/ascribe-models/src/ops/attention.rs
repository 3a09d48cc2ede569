//! Attention with grouped heads over one sequence: causal, in a window, or in both directions.
//!
//! Rows of `qkv` `[T, (H + 2·Hkv)·dh]` hold the (already turned) queries, keys and values of a position. Query rows are
//! taken in blocks of [`BLOCK`], and a block meets only the keys that some row of it sees: most of the products above the
//! diagonal, or outside the window, are never computed. Probabilities are kept for the way back: head after head, block after
//! block, `[rows, keys met]`.

use std::ops::Range;

use ascribe_linalg::elementwise::{banded_softmax, causal_softmax, soft_cap, soft_cap_backward, softmax_backward};
use ascribe_linalg::{Threads, gemm};
use ndarray::{ArrayView2, s};

use super::{matrix, matrix_mut};
use crate::arch::QkvOrder;

/// Query rows per block; 128 measured best of 32, 64 and 128. Part of the definition of the results: another block is another
/// product shape.
pub(crate) const BLOCK: usize = 128;

/// Heads and their width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads, H.
    pub queries: usize,
    /// Key and value heads, Hkv.
    pub keys: usize,
    /// Width of a head, dh.
    pub width: usize,
}

impl Heads {
    /// Numbers per row of `qkv`.
    pub const fn stride(self) -> usize {
        (self.queries + 2 * self.keys) * self.width
    }
}

/// Everything that a layer's attention is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub heads: Heads,
    /// Order of the columns of a row.
    pub order: QkvOrder,
    /// Factor of the scores.
    pub scale: f32,
    /// `s ← c·tanh(s/c)` before the mask.
    pub soft_cap: Option<f32>,
    /// False where every position sees every other.
    pub causal: bool,
    /// How many last positions a query sees, itself included; `usize::MAX` for all.
    pub window: usize,
}

impl Attention {
    /// Causal, without a window or anything else.
    pub fn plain(heads: Heads) -> Self {
        let scale = 1.0 / (heads.width as f32).sqrt();
        Self { heads, order: QkvOrder::Blocked, scale, soft_cap: None, causal: true, window: usize::MAX }
    }

    /// Columns of the query, key and value of query head `h` in a row of `qkv`.
    pub(super) fn columns(&self, h: usize) -> [Range<usize>; 3] {
        let Heads { queries, keys, width: w } = self.heads;
        let [query, key, value] = match self.order {
            QkvOrder::Blocked => {
                let key = (queries + h / (queries / keys)) * w;
                [h * w, key, key + keys * w]
            }
            QkvOrder::Interleaved => [3 * h * w, (3 * h + 1) * w, (3 * h + 2) * w],
        };
        [query..query + w, key..key + w, value..value + w]
    }

    /// Keys that some query of `block` sees.
    pub(super) fn keys(&self, block: &Range<usize>, t: usize) -> Range<usize> {
        if self.causal { (block.start + 1).saturating_sub(self.window)..block.end } else { 0..t }
    }

    /// Numbers that the probabilities of `t` positions take.
    pub fn probabilities_len(&self, t: usize) -> usize {
        self.heads.queries * blocks(t).map(|block| block.len() * self.keys(&block, t).len()).sum::<usize>()
    }

    /// Numbers of scratch that [`Attention::backward`] needs.
    pub fn scratch_len(&self, t: usize) -> usize {
        if self.soft_cap.is_some() { 2 * BLOCK.min(t) * t } else { BLOCK.min(t) * t }
    }

    /// Scores of a block before the mask.
    pub(super) fn scores(&self, q: ArrayView2<'_, f32>, k: ArrayView2<'_, f32>, scores: &mut [f32]) {
        let (rows, columns) = (q.nrows(), k.nrows());
        gemm(self.scale, q, k.t(), 0.0, matrix_mut(scores, rows, columns), Threads::One);
        if let Some(cap) = self.soft_cap {
            soft_cap(scores, cap);
        }
    }

    /// `out ← softmax(mask(cap(scale·q·kᵀ)))·v`; `out` is `[T, H·dh]`, `probabilities` is filled for the way back.
    pub fn forward(&self, t: usize, qkv: &[f32], probabilities: &mut [f32], out: &mut [f32]) {
        let mut rest = probabilities;
        for h in 0..self.heads.queries {
            for block in blocks(t) {
                let p;
                (p, rest) = rest.split_at_mut(block.len() * self.keys(&block, t).len());
                self.block_forward(h, block, t, qkv, p, out);
            }
        }
    }

    /// [`Attention::forward`] without a way back: `scratch` holds [`Attention::scratch_len`] numbers or more, whatever
    /// the number of heads.
    pub fn forward_only(&self, t: usize, qkv: &[f32], scratch: &mut [f32], out: &mut [f32]) {
        for h in 0..self.heads.queries {
            for block in blocks(t) {
                let len = block.len() * self.keys(&block, t).len();
                self.block_forward(h, block, t, qkv, &mut scratch[..len], out);
            }
        }
    }

    /// One head of one block of query rows; `p` is `[rows, keys met]`.
    fn block_forward(&self, h: usize, block: Range<usize>, t: usize, qkv: &[f32], p: &mut [f32], out: &mut [f32]) {
        let (width, [query, key, value]) = (self.heads.width, self.columns(h));
        let (qkv, keys) = (matrix(qkv, t, self.heads.stride()), self.keys(&block, t));
        let mut out = matrix_mut(out, t, self.heads.queries * width);
        let q = qkv.slice(s![block.clone(), query]);
        self.scores(q, qkv.slice(s![keys.clone(), key]), p);
        match (self.causal, self.window) {
            (true, usize::MAX) => causal_softmax(p, keys.len(), block.start),
            (true, window) => banded_softmax(p, keys.len(), block.start - keys.start, window),
            (false, _) => banded_softmax(p, keys.len(), keys.len(), usize::MAX),
        }
        let v = qkv.slice(s![keys.clone(), value]);
        let out = out.slice_mut(s![block.clone(), h * width..(h + 1) * width]);
        gemm(1.0, matrix(p, block.len(), keys.len()), v, 0.0, out, Threads::One);
    }

    /// Backward of [`Attention::forward`]: `d_qkv` `[T, stride]` from `d_out` `[T, H·dh]`. `scratch` holds
    /// [`Attention::scratch_len`] numbers or more.
    pub fn backward(
        &self,
        t: usize,
        qkv: &[f32],
        probabilities: &[f32],
        d_out: &[f32],
        d_qkv: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (width, stride) = (self.heads.width, self.heads.stride());
        d_qkv[..t * stride].fill(0.0);
        let qkv = matrix(qkv, t, stride);
        let d_out = matrix(d_out, t, self.heads.queries * width);
        let mut d_qkv = matrix_mut(d_qkv, t, stride);
        let mut rest = probabilities;
        for h in 0..self.heads.queries {
            let [query, key, value] = self.columns(h);
            for block in blocks(t) {
                let keys = self.keys(&block, t);
                let (rows, columns) = (block.len(), keys.len());
                let p;
                (p, rest) = rest.split_at(rows * columns);
                let d_o = d_out.slice(s![block.clone(), h * width..(h + 1) * width]);
                let d_v = d_qkv.slice_mut(s![keys.clone(), value.clone()]);
                gemm(1.0, matrix(p, rows, columns).t(), d_o, 1.0, d_v, Threads::One);
                let (d_scores, scores) = scratch.split_at_mut(rows * columns);
                let v = qkv.slice(s![keys.clone(), value.clone()]);
                gemm(1.0, d_o, v.t(), 0.0, matrix_mut(d_scores, rows, columns), Threads::One);
                softmax_backward(p, d_scores, columns, self.scale);
                let k = qkv.slice(s![keys.clone(), key.clone()]);
                let q = qkv.slice(s![block.clone(), query.clone()]);
                if let Some(cap) = self.soft_cap {
                    let scores = &mut scores[..rows * columns];
                    self.scores(q, k, scores);
                    soft_cap_backward(scores, cap, d_scores);
                }
                let d_scores = matrix(d_scores, rows, columns);
                gemm(1.0, d_scores, k, 0.0, d_qkv.slice_mut(s![block.clone(), query.clone()]), Threads::One);
                gemm(1.0, d_scores.t(), q, 1.0, d_qkv.slice_mut(s![keys, key.clone()]), Threads::One);
            }
        }
    }
}

pub(super) fn blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(t))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ascribe_linalg::Stream;

    /// Plain f64 attention, one position after another.
    pub fn reference(spec: &Attention, t: usize, qkv: &[f64]) -> Vec<f64> {
        let (w, stride, width) = (spec.heads.width, spec.heads.stride(), spec.heads.queries * spec.heads.width);
        let mut out = vec![0.0; t * width];
        for h in 0..spec.heads.queries {
            let [q, k, v] = spec.columns(h).map(|r| r.start);
            for i in 0..t {
                let weight = |j: usize| {
                    let dot: f64 = (0..w).map(|c| qkv[i * stride + q + c] * qkv[j * stride + k + c]).sum();
                    let score = dot * f64::from(spec.scale);
                    spec.soft_cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh()).exp()
                };
                let seen = if spec.causal { (i + 1).saturating_sub(spec.window)..i + 1 } else { 0..t };
                let weights: Vec<f64> = seen.clone().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..w {
                    let mixed: f64 = seen.clone().zip(&weights).map(|(j, p)| p * qkv[j * stride + v + c]).sum();
                    out[i * width + h * w + c] = mixed / sum;
                }
            }
        }
        out
    }

    /// Values against the f64 reference, gradients against its finite differences.
    fn check(spec: Attention, t: usize) {
        let mut stream = Stream::new(5, "attention");
        let mut noise = |n: usize| (0..n).map(|_| (stream.normal() * 0.8) as f32).collect::<Vec<_>>();
        let (qkv, d_out) = (noise(t * spec.heads.stride()), noise(t * spec.heads.queries * spec.heads.width));
        let (mut p, mut out) = (vec![f32::NAN; spec.probabilities_len(t)], vec![f32::NAN; d_out.len()]);
        spec.forward(t, &qkv, &mut p, &mut out);
        let wide: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
        for (a, b) in out.iter().zip(reference(&spec, t, &wide)) {
            assert!((f64::from(*a) - b).abs() < 2e-6, "{spec:?}: {a} {b}");
        }
        let (mut d_qkv, mut scratch) = (vec![f32::NAN; qkv.len()], vec![f32::NAN; spec.scratch_len(t)]);
        let mut again = vec![f32::NAN; out.len()];
        spec.forward_only(t, &qkv, &mut scratch, &mut again);
        assert_eq!(again, out);
        spec.backward(t, &qkv, &p, &d_out, &mut d_qkv, &mut scratch);
        direct(&spec, t, &qkv, &d_out, &out, &d_qkv);
        let loss =
            |qkv: &[f64]| -> f64 { reference(&spec, t, qkv).iter().zip(&d_out).map(|(a, &b)| a * f64::from(b)).sum() };
        // Every number of a short sequence, a sample of a long one.
        for i in (0..qkv.len()).step_by(1 + qkv.len() / 100) {
            let moved = |h: f64| {
                let mut moved = wide.clone();
                moved[i] += h;
                loss(&moved)
            };
            let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((quotient - f64::from(d_qkv[i])).abs() < 2e-5, "{spec:?} {i}: {quotient} {}", d_qkv[i]);
        }
    }

    /// The packed route's products against those of this file; its bits do not depend on what its buffers held.
    fn direct(spec: &Attention, t: usize, qkv: &[f32], d_out: &[f32], out: &[f32], d_qkv: &[f32]) {
        let mut own = crate::ops::short::Buffers::default();
        let mut run = |dirt: f32| {
            let (mut p, mut got) = (vec![dirt; spec.probabilities_len(t)], vec![dirt; out.len()]);
            spec.forward_direct(t, qkv, &mut p, &mut got, &mut own);
            let mut d_got = vec![dirt; qkv.len()];
            spec.backward_direct(t, qkv, &p, d_out, &mut d_got, &mut own);
            (got, d_got)
        };
        let (got, d_got) = run(f32::NAN);
        for (a, b) in got.iter().zip(out).chain(d_got.iter().zip(d_qkv)) {
            assert!((a - b).abs() < 3e-6 * (1.0 + b.abs()), "{spec:?} {t}: {a} {b}");
        }
        assert_eq!(run(7.0), (got, d_got));
    }

    #[test]
    fn values_and_gradients_agree_with_a_plain_transcription() {
        check(Attention::plain(Heads { queries: 2, keys: 2, width: 4 }), 5);
        check(Attention::plain(Heads { queries: 4, keys: 2, width: 2 }), 3);
        check(Attention::plain(Heads { queries: 2, keys: 1, width: 4 }), BLOCK + 3);
        check(Attention::plain(Heads { queries: 1, keys: 1, width: 2 }), 1);
    }

    #[test]
    fn windows_caps_scales_orders_and_both_directions_agree_too() {
        let plain = Attention::plain(Heads { queries: 2, keys: 1, width: 4 });
        let full = Attention::plain(Heads { queries: 3, keys: 3, width: 4 });
        for t in [1, 2, 7, BLOCK + 5] {
            check(Attention { window: 3, ..plain }, t);
            check(Attention { window: 1, ..plain }, t);
            check(Attention { window: BLOCK + 2, ..plain }, t);
            check(Attention { soft_cap: Some(0.7), scale: 0.9, ..plain }, t);
            check(Attention { soft_cap: Some(2.0), window: 4, ..plain }, t);
            check(Attention { order: QkvOrder::Interleaved, ..full }, t);
            check(Attention { causal: false, ..full }, t);
        }
    }
}
