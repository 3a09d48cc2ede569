//! Forward mode of attention: how the mixed values of one sequence change when queries, keys and values do.

use std::ops::Range;

use ascribe_linalg::elementwise::{soft_cap_backward, softmax_backward};
use ascribe_linalg::{Threads, gemm};
use ndarray::s;

use super::attention::{Attention, blocks};
use super::{matrix, matrix_mut};

/// Buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Probabilities of a block, zeros where nothing is seen.
    p: Vec<f32>,
    /// Capped scores of a block.
    scores: Vec<f32>,
    /// Changes of a block's scores, then of its probabilities.
    d_scores: Vec<f32>,
}

impl Attention {
    /// Columns of a block's probabilities that its row `i` sees.
    fn seen(&self, block: &Range<usize>, keys: &Range<usize>, i: usize) -> Range<usize> {
        if !self.causal {
            return 0..keys.len();
        }
        let end = block.start + i + 1;
        end.saturating_sub(self.window).max(keys.start) - keys.start..end - keys.start
    }

    /// `d_out ← (∂out/∂qkv)·d_qkv` for `n_directions` changes one behind the other: `d_qkv` `[R]` of `[T, stride]` with
    /// `d_step` numbers from one to the next, `d_out` `[R]` of `[T, H·dh]` with `out_step`.
    ///
    /// `probabilities` are those that either route's way up left; what no row sees may hold anything. Cost per direction: four
    /// products `[T, dh, T]` per head.
    #[allow(clippy::too_many_arguments)] // a sequence's tape, the changes on either side and their steps
    pub fn tangent(
        &self,
        t: usize,
        n_directions: usize,
        qkv: &[f32],
        probabilities: &[f32],
        (d_qkv, d_step): (&[f32], usize),
        (d_out, out_step): (&mut [f32], usize),
        own: &mut Buffers,
    ) {
        let (width, stride) = (self.heads.width, self.heads.stride());
        let qkv = matrix(qkv, t, stride);
        let mut rest = probabilities;
        for h in 0..self.heads.queries {
            let [query, key, value] = self.columns(h);
            for block in blocks(t) {
                let keys = self.keys(&block, t);
                let (rows, columns) = (block.len(), keys.len());
                let p;
                (p, rest) = rest.split_at(rows * columns);
                self.clean(&block, &keys, p, &mut own.p);
                let q = qkv.slice(s![block.clone(), query.clone()]);
                let k = qkv.slice(s![keys.clone(), key.clone()]);
                let v = qkv.slice(s![keys.clone(), value.clone()]);
                own.scores.resize(rows * columns, 0.0);
                own.d_scores.resize(rows * columns, 0.0);
                if self.soft_cap.is_some() {
                    self.scores(q, k, &mut own.scores);
                }
                for r in 0..n_directions {
                    let d_qkv = matrix(&d_qkv[r * d_step..], t, stride);
                    let d_q = d_qkv.slice(s![block.clone(), query.clone()]);
                    let d_k = d_qkv.slice(s![keys.clone(), key.clone()]);
                    let d_v = d_qkv.slice(s![keys.clone(), value.clone()]);
                    let d_scores = &mut own.d_scores[..];
                    gemm(self.scale, d_q, k.t(), 0.0, matrix_mut(d_scores, rows, columns), Threads::One);
                    gemm(self.scale, q, d_k.t(), 1.0, matrix_mut(d_scores, rows, columns), Threads::One);
                    if let Some(cap) = self.soft_cap {
                        soft_cap_backward(&own.scores, cap, d_scores);
                    }
                    // The Jacobian of softmax is symmetric.
                    softmax_backward(&own.p, d_scores, columns, 1.0);
                    let mut d_out = matrix_mut(&mut d_out[r * out_step..], t, self.heads.queries * width);
                    let mut d_out = d_out.slice_mut(s![block.clone(), h * width..(h + 1) * width]);
                    gemm(1.0, matrix(d_scores, rows, columns), v, 0.0, d_out.view_mut(), Threads::One);
                    gemm(1.0, matrix(&own.p, rows, columns), d_v, 1.0, d_out, Threads::One);
                }
            }
        }
    }

    /// A block's probabilities with zeros where a row sees nothing.
    fn clean(&self, block: &Range<usize>, keys: &Range<usize>, p: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.resize(p.len(), 0.0);
        for (i, (out, p)) in out.chunks_exact_mut(keys.len()).zip(p.chunks_exact(keys.len())).enumerate() {
            let seen = self.seen(block, keys, i);
            out[seen.clone()].copy_from_slice(&p[seen]);
        }
    }
}
