//! Attention for the packed route: the arithmetic of [`Attention`] on products that read their operands in place.
//!
//! Within a block of query rows, strips of [`STRIP`] rows meet only the keys up to their own end, so that little above the
//! diagonal is computed. Keys and values are transposed once per head, where a product needs their columns as rows.
//! Probabilities have the layout of the exact route; what strips never see is left as it was and never read. Every sequence
//! is by itself, so its bits are its own.

use std::ops::Range;

use ascribe_linalg::elementwise::{masked_softmax, masked_softmax_backward, soft_cap, soft_cap_backward};
use ascribe_linalg::packed::{Operand, multiply_direct, transpose_scaled};

use super::attention::{Attention, blocks};

/// Query rows per strip.
const STRIP: usize = 32;

/// Buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Transposed keys or values of a head, `[dh, T]`.
    turned: Vec<f32>,
    /// The other one.
    other: Vec<f32>,
    /// Gradients of a block's scores, `[rows, keys met]`.
    d_scores: Vec<f32>,
    /// A strip's capped scores.
    capped: Vec<f32>,
}

/// Rows of a strip within its block, and the columns of the block that it meets.
struct Strip {
    rows: Range<usize>,
    columns: usize,
}

/// Strips of a block of `rows` query rows that begin `first` columns behind the first key they may see.
fn strips(causal: bool, rows: usize, first: usize, columns: usize) -> impl Iterator<Item = Strip> {
    (0..rows).step_by(STRIP).map(move |start| {
        let end = (start + STRIP).min(rows);
        Strip { rows: start..end, columns: if causal { first + end } else { columns } }
    })
}

/// `out ← factor · columnsᵀ`: `columns` of `t` rows of `stride` numbers become `[width, t]`.
fn transpose(rows: &[f32], stride: usize, columns: Range<usize>, t: usize, factor: f32, out: &mut Vec<f32>) {
    out.resize((columns.len() * t).max(out.len()), 0.0);
    transpose_scaled([t, columns.len()], factor, (&rows[columns.start..], stride), (out, t));
}

impl Attention {
    /// [`Attention::forward`] on direct products.
    pub fn forward_direct(&self, t: usize, qkv: &[f32], probabilities: &mut [f32], out: &mut [f32], own: &mut Buffers) {
        let (w, stride, width) = (self.heads.width, self.heads.stride(), self.heads.queries * self.heads.width);
        let mut rest = probabilities;
        for h in 0..self.heads.queries {
            let [query, key, value] = self.columns(h);
            if h % (self.heads.queries / self.heads.keys) == 0 {
                transpose(qkv, stride, key, t, self.scale, &mut own.turned);
            }
            for block in blocks(t) {
                let keys = self.keys(&block, t);
                let (n, first) = (keys.len(), block.start - keys.start);
                let p;
                (p, rest) = rest.split_at_mut(block.len() * n);
                for Strip { rows, columns } in strips(self.causal, block.len(), block.start - keys.start, n) {
                    let m = rows.len();
                    let p = &mut p[rows.start * n..(rows.end - 1) * n + columns];
                    let q = Operand::rows(&qkv[(block.start + rows.start) * stride + query.start..], stride);
                    multiply_direct([m, w, columns], q, (&own.turned[keys.start..], t), 0.0, (&mut *p, n));
                    if let Some(cap) = self.soft_cap {
                        p.chunks_mut(n).for_each(|row| soft_cap(&mut row[..columns], cap));
                    }
                    let last = if self.causal { first + rows.start } else { columns };
                    masked_softmax(p, n, columns, last, self.window);
                    let v = (&qkv[keys.start * stride + value.start..], stride);
                    let out = &mut out[(block.start + rows.start) * width + h * w..];
                    multiply_direct([m, columns, w], Operand::rows(p, n), v, 0.0, (out, width));
                }
            }
        }
    }

    /// [`Attention::backward`] on direct products.
    pub fn backward_direct(
        &self,
        t: usize,
        qkv: &[f32],
        probabilities: &[f32],
        d_out: &[f32],
        d_qkv: &mut [f32],
        own: &mut Buffers,
    ) {
        let stride = self.heads.stride();
        d_qkv[..t * stride].fill(0.0);
        let mut rest = probabilities;
        for h in 0..self.heads.queries {
            let [_, key, value] = self.columns(h);
            if h % (self.heads.queries / self.heads.keys) == 0 {
                transpose(qkv, stride, value, t, 1.0, &mut own.turned);
                if self.soft_cap.is_some() {
                    transpose(qkv, stride, key, t, self.scale, &mut own.other);
                }
            }
            for block in blocks(t) {
                let n = self.keys(&block, t).len();
                let p;
                (p, rest) = rest.split_at(block.len() * n);
                own.d_scores.resize((block.len() * n).max(own.d_scores.len()), 0.0);
                self.score_gradients(h, t, &block, qkv, p, d_out, own);
                self.block_gradients(h, t, &block, qkv, p, d_out, d_qkv, &own.d_scores);
            }
        }
    }

    /// Gradients of a block's scores, before their scale, into `own.d_scores` (times the scale).
    #[allow(clippy::too_many_arguments)] // one head and block of a sequence, and its five matrices
    fn score_gradients(
        &self,
        h: usize,
        t: usize,
        block: &Range<usize>,
        qkv: &[f32],
        p: &[f32],
        d_out: &[f32],
        own: &mut Buffers,
    ) {
        let (w, stride, width) = (self.heads.width, self.heads.stride(), self.heads.queries * self.heads.width);
        let query = self.columns(h)[0].clone();
        let keys = self.keys(block, t);
        let n = keys.len();
        let Buffers { turned, other, d_scores, capped } = own;
        for Strip { rows, columns } in strips(self.causal, block.len(), block.start - keys.start, n) {
            let m = rows.len();
            let d_o = Operand::rows(&d_out[(block.start + rows.start) * width + h * w..], width);
            let part = rows.start * n..(rows.end - 1) * n + columns;
            let d_s = &mut d_scores[part.clone()];
            multiply_direct([m, w, columns], d_o, (&turned[keys.start..], t), 0.0, (&mut *d_s, n));
            masked_softmax_backward(&p[part], d_s, n, columns, self.scale);
            if let Some(cap) = self.soft_cap {
                capped.resize((m * columns).max(capped.len()), 0.0);
                let q = Operand::rows(&qkv[(block.start + rows.start) * stride + query.start..], stride);
                multiply_direct([m, w, columns], q, (&other[keys.start..], t), 0.0, (&mut *capped, columns));
                for (scores, d_s) in capped.chunks_exact_mut(columns).zip(d_s.chunks_mut(n)) {
                    soft_cap(scores, cap);
                    soft_cap_backward(scores, cap, &mut d_s[..columns]);
                }
            }
        }
    }

    /// Adds a block's share of the gradients of queries, keys and values.
    #[allow(clippy::too_many_arguments)] // one head and block of a sequence, and its five matrices
    fn block_gradients(
        &self,
        h: usize,
        t: usize,
        block: &Range<usize>,
        qkv: &[f32],
        p: &[f32],
        d_out: &[f32],
        d_qkv: &mut [f32],
        d_scores: &[f32],
    ) {
        let (w, stride, width) = (self.heads.width, self.heads.stride(), self.heads.queries * self.heads.width);
        let [query, key, value] = self.columns(h);
        let keys = self.keys(block, t);
        let (n, first) = (keys.len(), block.start - keys.start);
        for Strip { rows, columns } in strips(self.causal, block.len(), first, n) {
            let d_s = Operand::rows(&d_scores[rows.start * n..], n);
            let k = (&qkv[keys.start * stride + key.start..], stride);
            let d_q = &mut d_qkv[(block.start + rows.start) * stride + query.start..];
            multiply_direct([rows.len(), columns, w], d_s, k, 0.0, (d_q, stride));
        }
        // Keys before the block meet all of its rows, those of a strip only the rows from that strip on.
        let before = if self.causal { first } else { n };
        let pieces = std::iter::once((0..before, 0))
            .chain((before..n).step_by(STRIP).map(|start| (start..(start + STRIP).min(n), start - before)));
        for (columns, row) in pieces.filter(|(columns, _)| !columns.is_empty()) {
            let (m, k, at) = (columns.len(), block.len() - row, keys.start + columns.start);
            let q_row = block.start + row;
            let corner = row * n + columns.start;
            let p = Operand::transposed(&p[corner..], n);
            let d_o = (&d_out[q_row * width + h * w..], width);
            multiply_direct([m, k, w], p, d_o, 1.0, (&mut d_qkv[at * stride + value.start..], stride));
            let d_s = Operand::transposed(&d_scores[corner..], n);
            let q = (&qkv[q_row * stride + query.start..], stride);
            multiply_direct([m, k, w], d_s, q, 1.0, (&mut d_qkv[at * stride + key.start..], stride));
        }
    }
}
