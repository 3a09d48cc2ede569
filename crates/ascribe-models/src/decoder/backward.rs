//! The way down: loss to logit gradients to activation gradients, stopping at every tap.
//!
//! The pass never forms a weight gradient. At each linear layer it shows the [`Sink`] the input and the output gradient;
//! the sink decides what becomes of them (the full product for training, a projection for features).

use std::ops::Range;

use ascribe_linalg::elementwise::{activate_backward, activate_mul_backward, add_assign, scale, soft_cap_backward};

use super::forward::{Pass, head_pieces, put_columns, some, take_columns};
use super::products::Products;
use super::workspace::{LayerTape, Scratch, Span};
use super::{Decoder, Objective, Sequence, Workspace};
use crate::arch::{QkNorm, Topology};
use crate::layout::NormLayout;
use crate::ops::norm::NormTape;

pub(crate) use crate::ops::norm::NormGradient;

/// A linear layer, fused with its neighbours where they share the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Module {
    /// Query, key and value of a layer.
    Qkv(usize),
    /// Attention output of a layer.
    O(usize),
    /// Gate and up of a layer, or up alone.
    Up(usize),
    /// Down of a layer.
    Down(usize),
    /// The output layer.
    Head,
}

/// A norm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Norm {
    /// Before attention.
    Attn(usize),
    /// Of the queries.
    Query(usize),
    /// Of the keys.
    Key(usize),
    /// After attention.
    AttnPost(usize),
    /// Before the feed-forward.
    Mlp(usize),
    /// After the feed-forward.
    MlpPost(usize),
    /// The last one.
    Out,
}

/// Rows of a linear layer's input and output gradient that belong together: positions of one sequence of the pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// Index of the sequence within the pass.
    pub sequence: usize,
    /// Position of the first row within the sequence; the others follow.
    pub first: usize,
    /// Inputs `[n, I]`.
    pub x: &'a [f32],
    /// Gradients of the outputs `[n, O]`.
    pub delta: &'a [f32],
}

/// What becomes of a pass's gradients. Every call adds: the head comes in several chunks of rows.
pub(crate) trait Sink {
    /// `n` rows of a linear layer.
    fn linear(&mut self, module: Module, n: usize, rows: Rows<'_>);
    /// Where the gradient of a norm's parameters is added for a sequence of the pass.
    fn norm(&mut self, norm: Norm, sequence: usize) -> NormGradient<'_>;
    /// Gradient of the embedded rows of a sequence, `[T, d]`: row t belongs to `tokens[t]` and to position t.
    fn embedding(&mut self, sequence: usize, tokens: &[u32], d_x: &[f32]);
    /// False if nothing below the first layer's query, key and value is asked for: the pass ends there.
    fn wants_input_gradient(&self) -> bool {
        true
    }
    /// The last module that is asked for, if neither norms nor linear modules nor the embedding are wanted below it: the pass
    /// ends once it was shown. A pass visits the head, then from the last layer to the first down, up, o and qkv.
    fn ends_at(&self) -> Option<Module> {
        if self.wants_input_gradient() { None } else { Some(Module::Qkv(0)) }
    }
}

impl Decoder {
    /// One forward and backward pass; returns the summed loss of the counted positions.
    ///
    /// The gradient that the sink sees is that of the *sum*. Nothing reaches the sink if nothing counts.
    pub(crate) fn backward(&self, sequence: Sequence<'_>, ws: &mut Workspace, sink: &mut impl Sink) -> f64 {
        let mut loss = [0.0];
        Pass::exact(self).backward(&[sequence.into()], ws, sink, &mut loss);
        loss[0]
    }

    /// The way down for one objective after [`Decoder::forward`] over its tokens; returns its loss.
    ///
    /// The tape stays as it is, so several objectives of one sequence may follow one forward pass.
    pub(crate) fn descend(&self, objective: &Objective<'_>, ws: &mut Workspace, sink: &mut impl Sink) -> f64 {
        if objective.predicting.is_empty() {
            return 0.0;
        }
        let mut loss = [0.0];
        Pass::exact(self).descend(std::slice::from_ref(objective), ws, sink, &mut loss);
        loss[0]
    }
}

/// The gradient of a sublayer's output: the residual stream's own, or one that a norm or a copy has set apart.
fn sublayer_gradient<'a>(topology: Topology, d_x: &'a [f32], side: &'a [f32]) -> &'a [f32] {
    if topology == Topology::Pre { d_x } else { side }
}

impl Pass<'_> {
    /// Forward and backward over a pack; `losses` receives the loss of each objective.
    ///
    /// Objectives of which nothing counts take no part.
    pub fn backward(&self, objectives: &[Objective<'_>], ws: &mut Workspace, sink: &mut impl Sink, losses: &mut [f64]) {
        let counted = objectives.iter().enumerate().filter(|(_, objective)| !objective.predicting.is_empty());
        let pack = counted.map(|(index, objective)| (index, objective.tokens));
        losses.fill(0.0);
        if pack.clone().next().is_some() {
            self.forward(pack, ws);
            self.descend(objectives, ws, sink, losses);
        }
    }

    /// The way down after [`Pass::forward`]: for every sequence of the pack the objective (and the place in `losses`) of its
    /// index. The tape stays as it is.
    pub fn descend(&self, objectives: &[Objective<'_>], ws: &mut Workspace, sink: &mut impl Sink, losses: &mut [f64]) {
        self.head_backward(objectives, ws, sink, losses);
        if sink.ends_at() != Some(Module::Head) {
            self.descend_from_hidden(|sequence| objectives[sequence].tokens, ws, sink);
        }
    }

    /// The way down from gradients of the final hidden states, which stand in the scratch memory's `d_in`, `[N, d]`; `tokens`
    /// are those of a sequence of the pack.
    pub fn descend_from_hidden<'t>(
        &self,
        tokens: impl Fn(usize) -> &'t [u32],
        ws: &mut Workspace,
        sink: &mut impl Sink,
    ) {
        let (n, d) = (ws.n(), self.model.config.hidden_size);
        ws.d_x[..n * d].fill(0.0);
        let norm = some(&self.model.layout.norm);
        let Workspace { spans, x_out, out_norm, d_x, scratch, .. } = ws;
        let Scratch { d_in, gain, .. } = scratch;
        self.norm_backward(Norm::Out, norm, spans, x_out, out_norm, d_in, d_x, gain, sink);
        for l in (0..self.model.config.num_hidden_layers).rev() {
            if !self.layer_backward(l, ws, sink) {
                return;
            }
        }
        if let Some(factor) = self.model.config.arch.embedding_scale {
            scale(&mut ws.d_x[..n * d], factor as f32);
        }
        for span in &ws.spans {
            sink.embedding(span.sequence, tokens(span.sequence), &ws.d_x[span.of(d)]);
        }
    }

    /// Leaves the gradients of the final hidden states in `d_in`. Only counted rows meet the output layer, as many at a time
    /// as its chunks hold, whichever sequences they belong to.
    fn head_backward(
        &self,
        objectives: &[Objective<'_>],
        ws: &mut Workspace,
        sink: &mut impl Sink,
        losses: &mut [f64],
    ) {
        let (n, d) = (ws.n(), self.model.config.hidden_size);
        ws.scratch.d_in[..n * d].fill(0.0);
        let mut chunk: Vec<(Span, Range<usize>)> = vec![];
        let mut taken = 0;
        for at in 0..ws.spans.len() {
            let span = ws.spans[at];
            losses[span.sequence] = 0.0;
            // What a sink is shown at once belongs to the sequence, not to the pack.
            for piece in head_pieces(objectives[span.sequence].predicting.clone()) {
                if taken + piece.len() > self.head_rows() {
                    self.head_chunk(&chunk, taken, objectives, ws, sink, losses);
                    chunk.clear();
                    taken = 0;
                }
                taken += piece.len();
                chunk.push((span, piece));
            }
        }
        if taken > 0 {
            self.head_chunk(&chunk, taken, objectives, ws, sink, losses);
        }
    }

    /// [`Pass::head_backward`] of one chunk of `n` positions.
    fn head_chunk(
        &self,
        chunk: &[(Span, Range<usize>)],
        n: usize,
        objectives: &[Objective<'_>],
        ws: &mut Workspace,
        sink: &mut impl Sink,
        losses: &mut [f64],
    ) {
        let (d, v) = (self.model.config.hidden_size, self.model.config.vocab_size);
        let in_pass = |(span, positions): &(Span, Range<usize>)| {
            (span.start + positions.start) * d..(span.start + positions.end) * d
        };
        let mut first = 0;
        for piece in chunk {
            let len = piece.1.len() * d;
            ws.head[first..first + len].copy_from_slice(&ws.hidden[in_pass(piece)]);
            first += len;
        }
        self.logits(n, ws);
        let cap = self.model.config.arch.logit_softcap;
        if cap.is_some() {
            ws.capped[..n * v].copy_from_slice(&ws.logits[..n * v]);
        }
        let mut first = 0;
        for (span, positions) in chunk {
            let rows = first..first + positions.len();
            first = rows.end;
            let (logits, nll) = (&mut ws.logits[rows.start * v..rows.end * v], &mut ws.nll[rows.clone()]);
            objectives[span.sequence].backward(positions.start, v, logits, nll);
            losses[span.sequence] += nll.iter().map(|&nats| f64::from(nats)).sum::<f64>();
            if let Some(cap) = cap {
                soft_cap_backward(&ws.capped[rows.start * v..rows.end * v], cap as f32, logits);
            }
            let x = &ws.head[rows.start * d..rows.end * d];
            let shown = Rows { sequence: span.sequence, first: positions.start, x, delta: logits };
            sink.linear(Module::Head, rows.len(), shown);
        }
        if sink.ends_at() == Some(Module::Head) {
            return;
        }
        let Workspace { head, logits, scratch, .. } = ws;
        self.linear_backward(Module::Head, n, logits, head, &mut scratch.rounded);
        let mut first = 0;
        for piece in chunk {
            let len = piece.1.len() * d;
            scratch.d_in[in_pass(piece)].copy_from_slice(&head[first..first + len]);
            first += len;
        }
    }

    /// True if the pass goes on below.
    fn layer_backward(&self, l: usize, ws: &mut Workspace, sink: &mut impl Sink) -> bool {
        let (n, d) = (ws.n(), self.model.config.hidden_size);
        let topology = self.model.config.arch.topology;
        let Workspace { spans, layers, d_x, scratch, .. } = ws;
        let (tape, d_x, layout) = (&layers[l], &mut d_x[..n * d], &self.model.layout.layers[l]);
        let post = |which, norm, x, stats, d_x: &mut [f32], scratch: &mut Scratch, sink: &mut _| {
            let side = &mut scratch.side[..n * d];
            side.fill(0.0);
            self.norm_backward(which, some(norm), spans, x, stats, d_x, side, &mut scratch.gain, sink);
            if topology == Topology::Encoder {
                d_x.copy_from_slice(side);
            }
        };
        match topology {
            Topology::Pre => {}
            Topology::Parallel => scratch.side[..n * d].copy_from_slice(d_x),
            Topology::Post | Topology::Sandwich | Topology::Encoder => {
                post(Norm::MlpPost(l), &layout.mlp_post, &tape.mlp_out, &tape.mlp_post, d_x, scratch, sink);
            }
        }
        if !self.feed_forward_backward(l, spans, tape, d_x, scratch, sink) {
            return false;
        }
        if matches!(topology, Topology::Post | Topology::Sandwich | Topology::Encoder) {
            post(Norm::AttnPost(l), &layout.attn_post, &tape.attn_out, &tape.attn_post, d_x, scratch, sink);
        }
        self.attention_backward(l, spans, tape, d_x, scratch, sink)
    }

    fn feed_forward_backward(
        &self,
        l: usize,
        spans: &[Span],
        tape: &LayerTape,
        d_x: &mut [f32],
        scratch: &mut Scratch,
        sink: &mut impl Sink,
    ) -> bool {
        let c = &self.model.config;
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (n, wide) = (d_x.len() / d, self.model.fan(Module::Up(l)).output);
        let layout = &self.model.layout.layers[l];
        let entrance = if c.arch.topology == Topology::Parallel { &tape.x_in } else { &tape.x_mid };
        let Scratch { side, d_in, d_act, d_wide, gain, rounded, .. } = scratch;
        let delta = sublayer_gradient(c.arch.topology, d_x, side);
        self.show(Module::Down(l), spans, &tape.act, delta, sink);
        if sink.ends_at() == Some(Module::Down(l)) {
            return false;
        }
        self.linear_backward(Module::Down(l), n, delta, d_act, rounded);
        let (gate_up, d_wide, d_act) = (&tape.gate_up[..n * wide], &mut d_wide[..n * wide], &d_act[..n * f]);
        if c.arch.gated {
            activate_mul_backward(self.model.act(), gate_up, f, d_act, d_wide);
        } else {
            activate_backward(self.model.act(), gate_up, d_act, d_wide);
        }
        let input = if layout.mlp_norm.is_some() { &tape.mlp_in } else { entrance };
        self.show(Module::Up(l), spans, input, d_wide, sink);
        if sink.ends_at() == Some(Module::Up(l)) {
            return false;
        }
        self.linear_backward(Module::Up(l), n, d_wide, d_in, rounded);
        let d_in = &d_in[..n * d];
        match &layout.mlp_norm {
            Some(norm) => {
                self.norm_backward(Norm::Mlp(l), norm, spans, entrance, &tape.mlp_norm, d_in, d_x, gain, sink)
            }
            None => add_assign(d_x, d_in),
        }
        true
    }

    fn attention_backward(
        &self,
        l: usize,
        spans: &[Span],
        tape: &LayerTape,
        d_x: &mut [f32],
        scratch: &mut Scratch,
        sink: &mut impl Sink,
    ) -> bool {
        let c = &self.model.config;
        let (d, q, stride) = (c.hidden_size, c.query_width(), c.qkv_width());
        let n = d_x.len() / d;
        let delta = sublayer_gradient(c.arch.topology, d_x, &scratch.side);
        self.show(Module::O(l), spans, &tape.mixed, delta, sink);
        if sink.ends_at() == Some(Module::O(l)) {
            return false;
        }
        self.linear_backward(Module::O(l), n, delta, &mut scratch.d_in, &mut scratch.rounded);
        let attention = self.model.attention(l);
        let mut rest = &tape.probabilities[..];
        for span in spans {
            let probabilities;
            (probabilities, rest) = rest.split_at(attention.probabilities_len(span.len));
            let (qkv, d_out) = (&tape.qkv[span.of(stride)], &scratch.d_in[span.of(q)]);
            let d_qkv = &mut scratch.d_wide[span.of(stride)];
            match self.products {
                Products::Exact => {
                    attention.backward(span.len, qkv, probabilities, d_out, d_qkv, &mut scratch.d_scores);
                }
                Products::Packed(_) => {
                    attention.backward_direct(span.len, qkv, probabilities, d_out, d_qkv, &mut scratch.attention);
                }
            }
            self.model.turn(l, d_qkv, -1.0);
        }
        self.head_norms_backward(l, spans, tape, scratch, sink);
        let layout = &self.model.layout.layers[l];
        let Scratch { d_in, d_wide, gain, rounded, .. } = scratch;
        let input = if layout.attn_norm.is_some() { &tape.attn_in } else { &tape.x_in };
        self.show(Module::Qkv(l), spans, input, d_wide, sink);
        if sink.ends_at() == Some(Module::Qkv(l)) {
            return false;
        }
        self.linear_backward(Module::Qkv(l), n, d_wide, d_in, rounded);
        let d_in = &d_in[..n * d];
        match &layout.attn_norm {
            Some(norm) => {
                self.norm_backward(Norm::Attn(l), norm, spans, &tape.x_in, &tape.attn_norm, d_in, d_x, gain, sink);
            }
            None => add_assign(d_x, d_in),
        }
        true
    }

    /// Turns the gradients of normed queries and keys in `d_wide` into those of the fused product.
    fn head_norms_backward(
        &self,
        l: usize,
        spans: &[Span],
        tape: &LayerTape,
        scratch: &mut Scratch,
        sink: &mut impl Sink,
    ) {
        if self.model.config.arch.qk_norm == QkNorm::None {
            return;
        }
        let n = spans.last().map_or(0, |span| span.start + span.len);
        let (stride, layer) = (self.model.config.qkv_width(), &self.model.layout.layers[l]);
        let [queries, keys] = self.model.normed_columns();
        let halves = [
            (Norm::Query(l), queries, &layer.q_norm, &tape.q_raw, &tape.q_norm),
            (Norm::Key(l), keys, &layer.k_norm, &tape.k_raw, &tape.k_norm),
        ];
        for (which, columns, norm, raw, stats) in halves {
            let len = n * columns.len();
            let (d_normed, d_raw) = scratch.d_heads.split_at_mut(len);
            let (d_wide, d_raw) = (&mut scratch.d_wide[..n * stride], &mut d_raw[..len]);
            take_columns(d_wide, stride, &columns, d_normed);
            d_raw.fill(0.0);
            let width = columns.len();
            self.rows_norm_backward(
                which,
                some(norm),
                spans,
                width,
                raw,
                stats,
                d_normed,
                d_raw,
                &mut scratch.gain,
                sink,
            );
            put_columns(d_raw, d_wide, stride, &columns);
        }
    }

    /// Backward of a norm over the residual stream.
    #[allow(clippy::too_many_arguments)] // tape, gradients and sink live in different places
    fn norm_backward(
        &self,
        which: Norm,
        norm: &NormLayout,
        spans: &[Span],
        x: &[f32],
        stats: &NormTape,
        d_out: &[f32],
        d_x: &mut [f32],
        scratch: &mut Vec<f32>,
        sink: &mut impl Sink,
    ) {
        let d = self.model.config.hidden_size;
        self.rows_norm_backward(which, norm, spans, d, x, stats, d_out, d_x, scratch, sink);
    }

    /// `d_x += normᵀ(d_out)`, sequence after sequence; a position has `width` numbers, one or more rows of the norm.
    #[allow(clippy::too_many_arguments)] // tape, gradients and sink live in different places
    fn rows_norm_backward(
        &self,
        which: Norm,
        norm: &NormLayout,
        spans: &[Span],
        width: usize,
        x: &[f32],
        stats: &NormTape,
        d_out: &[f32],
        d_x: &mut [f32],
        scratch: &mut Vec<f32>,
        sink: &mut impl Sink,
    ) {
        let op = self.model.norm_op(norm);
        let per_position = width / norm.gain.len();
        for span in spans {
            let numbers = span.of(width);
            let rows: Range<usize> = span.start * per_position..(span.start + span.len) * per_position;
            let into = sink.norm(which, span.sequence);
            op.backward(&x[numbers.clone()], (stats, rows), &d_out[numbers.clone()], &mut d_x[numbers], into, scratch);
        }
    }

    /// Shows a module's inputs and output gradients, sequence after sequence.
    fn show(&self, module: Module, spans: &[Span], x: &[f32], delta: &[f32], sink: &mut impl Sink) {
        let fan = self.model.fan(module);
        for span in spans {
            let (x, delta) = (&x[span.of(fan.input)], &delta[span.of(fan.output)]);
            sink.linear(module, span.len, Rows { sequence: span.sequence, first: 0, x, delta });
        }
    }
}
