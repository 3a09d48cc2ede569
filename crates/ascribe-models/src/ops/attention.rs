//! Causal attention with grouped heads over one sequence.
//!
//! Rows of `qkv` `[T, (H + 2·Hkv)·dh]` hold the (already turned) queries, keys and values of a position. Query rows are
//! taken in blocks of [`BLOCK`], and a block sees only the keys up to its own end: most of the products above the diagonal
//! are never computed. Probabilities are kept for the way back: head after head, block after block, `[rows, end of block]`.

use std::ops::Range;

use ascribe_linalg::elementwise::{causal_softmax, softmax_backward};
use ascribe_linalg::{Threads, gemm};
use ndarray::s;

use super::{matrix, matrix_mut};

/// Query rows per block; 128 measured best of 32, 64 and 128. Part of the definition of the results: another block is another
/// product shape.
const BLOCK: usize = 128;

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

    fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Columns of the query, key and value of query head `h` in a row of `qkv`.
    const fn columns(self, h: usize) -> [Range<usize>; 3] {
        let w = self.width;
        let group = h / (self.queries / self.keys);
        let key = (self.queries + group) * w;
        let value = key + self.keys * w;
        [h * w..(h + 1) * w, key..key + w, value..value + w]
    }
}

/// Numbers that the probabilities of `t` positions take.
pub(crate) fn probabilities_len(heads: Heads, t: usize) -> usize {
    heads.queries * blocks(t).map(|block| block.len() * block.end).sum::<usize>()
}

fn blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(t))
}

/// `out ← softmax(q·kᵀ/√dh, causal)·v`; `out` is `[T, H·dh]`, `probabilities` is filled for [`backward`].
pub(crate) fn forward(heads: Heads, t: usize, qkv: &[f32], probabilities: &mut [f32], out: &mut [f32]) {
    let qkv = matrix(qkv, t, heads.stride());
    let mut out = matrix_mut(out, t, heads.queries * heads.width);
    let mut rest = probabilities;
    for h in 0..heads.queries {
        let [query, key, value] = heads.columns(h);
        for block in blocks(t) {
            let end = block.end;
            let p;
            (p, rest) = rest.split_at_mut(block.len() * end);
            let q = qkv.slice(s![block.clone(), query.clone()]);
            let k = qkv.slice(s![..end, key.clone()]);
            gemm(heads.scale(), q, k.t(), 0.0, matrix_mut(p, block.len(), end), Threads::One);
            causal_softmax(p, end, block.start);
            let v = qkv.slice(s![..end, value.clone()]);
            let out = out.slice_mut(s![block.clone(), query.clone()]);
            gemm(1.0, matrix(p, block.len(), end), v, 0.0, out, Threads::One);
        }
    }
}

/// Backward of [`forward`]: `d_qkv` `[T, stride]` from `d_out` `[T, H·dh]`. `scratch` holds `BLOCK·T` numbers or more
/// (see [`scratch_len`]).
pub(crate) fn backward(
    heads: Heads,
    t: usize,
    qkv: &[f32],
    probabilities: &[f32],
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut [f32],
) {
    d_qkv[..t * heads.stride()].fill(0.0);
    let qkv = matrix(qkv, t, heads.stride());
    let d_out = matrix(d_out, t, heads.queries * heads.width);
    let mut d_qkv = matrix_mut(d_qkv, t, heads.stride());
    let mut rest = probabilities;
    for h in 0..heads.queries {
        let [query, key, value] = heads.columns(h);
        for block in blocks(t) {
            let (rows, end) = (block.len(), block.end);
            let p;
            (p, rest) = rest.split_at(rows * end);
            let d_o = d_out.slice(s![block.clone(), query.clone()]);
            let d_v = d_qkv.slice_mut(s![..end, value.clone()]);
            gemm(1.0, matrix(p, rows, end).t(), d_o, 1.0, d_v, Threads::One);
            let d_scores = &mut scratch[..rows * end];
            let v = qkv.slice(s![..end, value.clone()]);
            gemm(1.0, d_o, v.t(), 0.0, matrix_mut(d_scores, rows, end), Threads::One);
            softmax_backward(p, d_scores, end, heads.scale());
            let d_scores = matrix(d_scores, rows, end);
            let k = qkv.slice(s![..end, key.clone()]);
            gemm(1.0, d_scores, k, 0.0, d_qkv.slice_mut(s![block.clone(), query.clone()]), Threads::One);
            let q = qkv.slice(s![block.clone(), query.clone()]);
            gemm(1.0, d_scores.t(), q, 1.0, d_qkv.slice_mut(s![..end, key.clone()]), Threads::One);
        }
    }
}

/// Numbers of scratch that [`backward`] needs.
pub(crate) fn scratch_len(t: usize) -> usize {
    BLOCK.min(t) * t
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;

    /// Plain f64 attention, one position after another.
    fn reference(heads: Heads, t: usize, qkv: &[f64]) -> Vec<f64> {
        let (w, stride) = (heads.width, heads.stride());
        let mut out = vec![0.0; t * heads.queries * w];
        for h in 0..heads.queries {
            let [q, k, v] = heads.columns(h).map(|r| r.start);
            for i in 0..t {
                let weight = |j: usize| {
                    let dot: f64 = (0..w).map(|c| qkv[i * stride + q + c] * qkv[j * stride + k + c]).sum();
                    (dot / (w as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = (0..=i).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..w {
                    let mixed: f64 = (0..=i).map(|j| weights[j] * qkv[j * stride + v + c]).sum();
                    out[i * heads.queries * w + h * w + c] = mixed / sum;
                }
            }
        }
        out
    }

    /// Values against the f64 reference, gradients against its finite differences.
    fn check(heads: Heads, t: usize) {
        let mut stream = Stream::new(5, "attention");
        let mut noise = |n: usize| (0..n).map(|_| (stream.normal() * 0.8) as f32).collect::<Vec<_>>();
        let (qkv, d_out) = (noise(t * heads.stride()), noise(t * heads.queries * heads.width));
        let (mut p, mut out) = (vec![0.0; probabilities_len(heads, t)], vec![f32::NAN; d_out.len()]);
        forward(heads, t, &qkv, &mut p, &mut out);
        let wide: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
        for (a, b) in out.iter().zip(reference(heads, t, &wide)) {
            assert!((f64::from(*a) - b).abs() < 2e-6, "{a} {b}");
        }
        let (mut d_qkv, mut scratch) = (vec![f32::NAN; qkv.len()], vec![0.0; scratch_len(t)]);
        backward(heads, t, &qkv, &p, &d_out, &mut d_qkv, &mut scratch);
        let loss =
            |qkv: &[f64]| -> f64 { reference(heads, t, qkv).iter().zip(&d_out).map(|(a, &b)| a * f64::from(b)).sum() };
        // Every number of a short sequence, a sample of a long one.
        for i in (0..qkv.len()).step_by(1 + qkv.len() / 100) {
            let moved = |h: f64| {
                let mut moved = wide.clone();
                moved[i] += h;
                loss(&moved)
            };
            let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((quotient - f64::from(d_qkv[i])).abs() < 2e-5, "{i}: {quotient} {}", d_qkv[i]);
        }
    }

    #[test]
    fn values_and_gradients_agree_with_a_plain_transcription() {
        check(Heads { queries: 2, keys: 2, width: 4 }, 5);
        check(Heads { queries: 4, keys: 2, width: 2 }, 3);
        check(Heads { queries: 2, keys: 1, width: 4 }, BLOCK + 3);
        check(Heads { queries: 1, keys: 1, width: 2 }, 1);
    }
}
