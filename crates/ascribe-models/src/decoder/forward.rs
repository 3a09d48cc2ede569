//! The way up: tokens to hidden states to logits, leaving a tape.
//!
//! A pass takes a pack of sequences, their rows one below the other: linear layers and norms see all rows, attention each
//! sequence by itself. Where norms and residual sums stand is the topology's ([`Topology`]); everything else of a family is
//! read from the configuration inside the parts.

use std::ops::Range;

use ascribe_linalg::elementwise::{activate, activate_mul, add, add_assign, soft_cap};
use ascribe_linalg::packed::RoundedRows;

use super::products::{PackedWeights, Products};
use super::workspace::{LayerTape, Scratch, Span};
use super::{Decoder, Module, Workspace};
use crate::arch::{QkNorm, Topology};
use crate::layout::NormLayout;
use crate::ops::linear::Onto;
use crate::ops::norm::NormTape;

/// Rows of logits at a time in the exact route, and what a sink is shown at once in both, part of the definition of the
/// results: 64 rows of a 2,048-word vocabulary are half a MiB, which stays in the second cache.
const HEAD_ROWS: usize = 64;

/// Rows of logits at a time in the packed route, where they change no bit.
const PACKED_HEAD_ROWS: usize = 128;

/// A decoder on its way through a pack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass<'m> {
    pub model: &'m Decoder,
    pub(super) products: Products<'m>,
    /// False where no way back will follow: then the layers share the memory of one.
    keeps_tape: bool,
}

impl<'m> Pass<'m> {
    /// Products with the weights as they lie, each of the pack's own shape: a sequence's bits are its own only in a pack of
    /// one.
    pub fn exact(model: &'m Decoder) -> Self {
        Self { model, products: Products::Exact, keeps_tape: true }
    }

    /// [`Pass::exact`] for a way up that no way back follows; the same bits in less memory.
    pub fn only_up(model: &'m Decoder) -> Self {
        Self { keeps_tape: false, ..Self::exact(model) }
    }

    /// Products with packed weights: a sequence's bits are its own in any pack.
    pub fn packed(model: &'m Decoder, weights: &'m PackedWeights) -> Self {
        Self { model, products: Products::Packed(weights), keeps_tape: true }
    }

    /// Rows of logits at a time.
    pub(super) fn head_rows(&self) -> usize {
        if matches!(self.products, Products::Exact) { HEAD_ROWS } else { PACKED_HEAD_ROWS }
    }

    /// Fills the workspace with the pass over the pack `(index, tokens)` (checked by the caller), up to the final hidden
    /// state.
    pub fn forward<'s>(&self, pack: impl Iterator<Item = (usize, &'s [u32])> + Clone, ws: &mut Workspace) {
        ws.ensure(self.model, pack.clone(), self.head_rows(), self.keeps_tape);
        self.embed(pack, ws);
        let n_layers = self.model.config.num_hidden_layers;
        for l in 0..n_layers {
            self.layer_forward(l, ws);
            if !self.keeps_tape && l + 1 < n_layers {
                std::mem::swap(&mut ws.layers[0].x_in, &mut ws.x_out);
            }
        }
        let len = ws.n() * self.model.config.hidden_size;
        match &self.model.layout.norm {
            Some(norm) => {
                self.norm(norm, &ws.x_out[..len], &mut ws.hidden[..len], &mut ws.out_norm, &mut ws.scratch.gain);
            }
            None => ws.hidden[..len].copy_from_slice(&ws.x_out[..len]),
        }
    }

    fn embed<'s>(&self, pack: impl Iterator<Item = (usize, &'s [u32])>, ws: &mut Workspace) {
        let Decoder { config, layout, parameters, .. } = self.model;
        let (d, n) = (config.hidden_size, ws.n());
        let embedding = &parameters[layout.embedding.clone()];
        let x = &mut ws.layers[0].x_in[..n * d];
        for ((_, tokens), span) in pack.zip(&ws.spans) {
            let rows = &mut x[span.of(d)];
            for (x, &token) in rows.chunks_exact_mut(d).zip(tokens) {
                x.copy_from_slice(&embedding[token as usize * d..(token as usize + 1) * d]);
            }
            if let Some(positions) = &layout.positions {
                add_assign(rows, &parameters[positions.clone()][..span.len * d]);
            }
        }
        if let Some(factor) = config.arch.embedding_scale {
            ascribe_linalg::elementwise::scale(x, factor as f32);
        }
        if let Some(types) = &layout.token_types {
            // Every token is of the first type.
            let first = &parameters[types.clone()][..d];
            x.chunks_exact_mut(d).for_each(|row| add_assign(row, first));
        }
        if let Some(norm) = &layout.embedding_norm {
            let (summed, tape) = (&mut ws.x_out[..n * d], &mut ws.out_norm);
            summed.copy_from_slice(x);
            self.norm(norm, summed, x, tape, &mut ws.scratch.gain);
        }
    }

    fn layer_forward(&self, l: usize, ws: &mut Workspace) {
        let (d, n) = (self.model.config.hidden_size, ws.n());
        let (own, above) = ws.layers.split_at_mut(if self.keeps_tape { l + 1 } else { 1 });
        let tape = own.last_mut().expect("a workspace has at least one layer");
        let above = above.first_mut().filter(|_| self.keeps_tape);
        let x_next = &mut above.map_or(&mut ws.x_out, |next| &mut next.x_in)[..n * d];
        self.attention_forward(l, &ws.spans, tape, &mut ws.scratch);
        let layout = &self.model.layout.layers[l];
        let (o, down) = (Module::O(l), Module::Down(l));
        let (mixed, x_in) = (&tape.mixed[..], &tape.x_in[..n * d]);
        match self.model.config.arch.topology {
            Topology::Pre => {
                self.linear(o, n, mixed, Onto::Residual(x_in), &mut tape.x_mid, &mut ws.scratch.rounded);
                self.feed_forward(l, n, tape, &mut ws.scratch);
                self.linear(down, n, &tape.act, Onto::Residual(&tape.x_mid), x_next, &mut ws.scratch.rounded);
            }
            Topology::Parallel => {
                self.linear(o, n, mixed, Onto::Residual(x_in), x_next, &mut ws.scratch.rounded);
                self.feed_forward(l, n, tape, &mut ws.scratch);
                self.linear(down, n, &tape.act, Onto::Itself, x_next, &mut ws.scratch.rounded);
            }
            Topology::Post | Topology::Sandwich => {
                let Scratch { side, gain, rounded, .. } = &mut ws.scratch;
                let side = &mut side[..n * d];
                self.linear(o, n, mixed, Onto::Fresh, &mut tape.attn_out, rounded);
                self.norm(some(&layout.attn_post), &tape.attn_out[..n * d], side, &mut tape.attn_post, gain);
                add(x_in, side, &mut tape.x_mid[..n * d]);
                self.feed_forward(l, n, tape, &mut ws.scratch);
                let Scratch { side, gain, rounded, .. } = &mut ws.scratch;
                let side = &mut side[..n * d];
                self.linear(down, n, &tape.act, Onto::Fresh, &mut tape.mlp_out, rounded);
                self.norm(some(&layout.mlp_post), &tape.mlp_out[..n * d], side, &mut tape.mlp_post, gain);
                add(&tape.x_mid[..n * d], side, x_next);
            }
            Topology::Encoder => {
                let (attn_out, x_mid) = (&mut tape.attn_out[..n * d], &mut tape.x_mid[..n * d]);
                self.linear(o, n, mixed, Onto::Residual(x_in), attn_out, &mut ws.scratch.rounded);
                self.norm(some(&layout.attn_post), attn_out, x_mid, &mut tape.attn_post, &mut ws.scratch.gain);
                self.feed_forward(l, n, tape, &mut ws.scratch);
                let mlp_out = &mut tape.mlp_out[..n * d];
                self.linear(down, n, &tape.act, Onto::Residual(&tape.x_mid), mlp_out, &mut ws.scratch.rounded);
                self.norm(some(&layout.mlp_post), mlp_out, x_next, &mut tape.mlp_post, &mut ws.scratch.gain);
            }
        }
    }

    /// From the layer's entrance to the input of the output projection, `tape.mixed`.
    fn attention_forward(&self, l: usize, spans: &[Span], tape: &mut LayerTape, scratch: &mut Scratch) {
        let c = &self.model.config;
        let n = spans.last().map_or(0, |span| span.start + span.len);
        let (len, stride) = (n * c.hidden_size, c.qkv_width());
        let input = match &self.model.layout.layers[l].attn_norm {
            Some(norm) => {
                let out = &mut tape.attn_in[..len];
                self.norm(norm, &tape.x_in[..len], out, &mut tape.attn_norm, &mut scratch.gain);
                &*out
            }
            None => &tape.x_in[..len],
        };
        self.linear(Module::Qkv(l), n, input, Onto::Fresh, &mut tape.qkv, &mut scratch.rounded);
        self.head_norms(l, n, tape, scratch);
        let attention = self.model.attention(l);
        let mut rest = &mut tape.probabilities[..];
        for span in spans {
            let (rows, mixed) = (&mut tape.qkv[span.of(stride)], &mut tape.mixed[span.of(c.query_width())]);
            self.model.turn(l, rows, 1.0);
            if !self.keeps_tape {
                attention.forward_only(span.len, rows, &mut scratch.d_scores, mixed);
                continue;
            }
            let probabilities;
            (probabilities, rest) = rest.split_at_mut(attention.probabilities_len(span.len));
            match self.products {
                Products::Exact => attention.forward(span.len, rows, probabilities, mixed),
                Products::Packed(_) => {
                    attention.forward_direct(span.len, rows, probabilities, mixed, &mut scratch.attention);
                }
            }
        }
    }

    /// Norms of queries and keys, where the family has them.
    fn head_norms(&self, l: usize, n: usize, tape: &mut LayerTape, scratch: &mut Scratch) {
        if self.model.config.arch.qk_norm == QkNorm::None {
            return;
        }
        let (stride, layer) = (self.model.config.qkv_width(), &self.model.layout.layers[l]);
        let [queries, keys] = self.model.normed_columns();
        let halves = [
            (queries, &layer.q_norm, &mut tape.q_raw, &mut tape.q_norm),
            (keys, &layer.k_norm, &mut tape.k_raw, &mut tape.k_norm),
        ];
        for (columns, norm, raw, stats) in halves {
            let raw = &mut raw[..n * columns.len()];
            let out = &mut scratch.d_heads[..n * columns.len()];
            take_columns(&tape.qkv[..n * stride], stride, &columns, raw);
            self.norm(some(norm), raw, out, stats, &mut scratch.gain);
            put_columns(out, &mut tape.qkv[..n * stride], stride, &columns);
        }
    }

    /// From the residual stream before the feed-forward to the input of the down projection, `tape.act`.
    fn feed_forward(&self, l: usize, n: usize, tape: &mut LayerTape, scratch: &mut Scratch) {
        let c = &self.model.config;
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let entrance = if c.arch.topology == Topology::Parallel { &tape.x_in } else { &tape.x_mid };
        let input = match &self.model.layout.layers[l].mlp_norm {
            Some(norm) => {
                let out = &mut tape.mlp_in[..n * d];
                self.norm(norm, &entrance[..n * d], out, &mut tape.mlp_norm, &mut scratch.gain);
                &*out
            }
            None => &entrance[..n * d],
        };
        self.linear(Module::Up(l), n, input, Onto::Fresh, &mut tape.gate_up, &mut scratch.rounded);
        let act = self.model.act();
        if c.arch.gated {
            activate_mul(act, &tape.gate_up[..n * 2 * f], f, &mut tape.act[..n * f]);
        } else {
            activate(act, &tape.gate_up[..n * f], &mut tape.act[..n * f]);
        }
    }

    /// `y ← x·Wᵀ + b + onto` for the `n` rows of a pass.
    fn linear(&self, module: Module, n: usize, x: &[f32], onto: Onto<'_>, y: &mut [f32], rounded: &mut RoundedRows) {
        self.products.forward(self.model, module, n, x, onto, y, rounded);
    }

    /// `y ← x·Wᵀ` for `n` rows of changes of a module's input.
    pub fn tangent(&self, module: Module, n: usize, x: &[f32], y: &mut [f32], rounded: &mut RoundedRows) {
        self.products.tangent(self.model, module, n, x, y, rounded);
    }

    /// `d_x ← d_y·W` for the `n` rows of a pass.
    pub fn linear_backward(&self, module: Module, n: usize, d_y: &[f32], d_x: &mut [f32], rounded: &mut RoundedRows) {
        self.products.backward_input(self.model, module, n, d_y, d_x, rounded);
    }

    /// `out ← norm(x)`.
    fn norm(&self, norm: &NormLayout, x: &[f32], out: &mut [f32], tape: &mut NormTape, scratch: &mut Vec<f32>) {
        self.model.norm_op(norm).forward(x, out, tape, scratch);
    }

    /// Logits of the `n` rows in `ws.head`, capped where the family caps them, into `ws.logits`.
    pub fn logits(&self, n: usize, ws: &mut Workspace) {
        let Workspace { head, logits, scratch, .. } = ws;
        self.linear(Module::Head, n, head, Onto::Fresh, logits, &mut scratch.rounded);
        if let Some(cap) = self.model.config.arch.logit_softcap {
            soft_cap(&mut logits[..n * self.model.config.vocab_size], cap as f32);
        }
    }

    /// Hands the logits of the rows `rows` to `take`, chunk after chunk, `[chunk, V]`.
    pub fn head_forward(&self, rows: Range<usize>, ws: &mut Workspace, mut take: impl FnMut(Range<usize>, &mut [f32])) {
        let (d, step) = (self.model.config.hidden_size, self.head_rows());
        for start in rows.clone().step_by(step) {
            let chunk = start..(start + step).min(rows.end);
            ws.head[..chunk.len() * d].copy_from_slice(&ws.hidden[chunk.start * d..chunk.end * d]);
            self.logits(chunk.len(), ws);
            let len = chunk.len() * self.model.config.vocab_size;
            take(chunk, &mut ws.logits[..len]);
        }
    }
}

/// Pieces of at most [`HEAD_ROWS`] of the positions that predict.
pub(crate) fn head_pieces(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    positions.clone().step_by(HEAD_ROWS).map(move |start| start..(start + HEAD_ROWS).min(positions.end))
}

/// Neighbouring sequences of the lengths `lens` in packs of at most `rows` rows (a longer sequence is a pack of its own).
pub(crate) fn packs(lens: impl Iterator<Item = usize>, rows: usize) -> Vec<Range<usize>> {
    let mut packs: Vec<Range<usize>> = vec![];
    let mut room = 0;
    for (index, len) in lens.enumerate() {
        match packs.last_mut() {
            Some(pack) if len <= room => pack.end = index + 1,
            _ => {
                packs.push(index..index + 1);
                room = rows;
            }
        }
        room = room.saturating_sub(len);
    }
    packs
}

/// A norm that the topology says exists.
pub(crate) fn some(norm: &Option<NormLayout>) -> &NormLayout {
    norm.as_ref().expect("a pass asks for the norms of its own topology")
}

/// Copies `columns` of rows of `stride` into a matrix of their own.
pub(crate) fn take_columns(rows: &[f32], stride: usize, columns: &Range<usize>, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(stride).zip(out.chunks_exact_mut(columns.len())) {
        out.copy_from_slice(&row[columns.clone()]);
    }
}

/// The way back of [`take_columns`].
pub(crate) fn put_columns(part: &[f32], rows: &mut [f32], stride: usize, columns: &Range<usize>) {
    for (row, part) in rows.chunks_exact_mut(stride).zip(part.chunks_exact(columns.len())) {
        row[columns.clone()].copy_from_slice(part);
    }
}
