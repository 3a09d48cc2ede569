//! The way down: loss to logit gradients to activation gradients, stopping at every tap.
//!
//! The pass never forms a weight gradient. At each linear layer it shows the [`Sink`] the input and the output gradient;
//! the sink decides what becomes of them (the full product for training, a projection for features).

use ascribe_linalg::elementwise::{rms_norm_backward, silu_mul_backward};

use super::{Decoder, Objective, Sequence, Workspace};
use crate::ops::{attention, linear};

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

/// Where the gradients of a norm's parameters are added.
pub(crate) struct NormGradient<'a> {
    /// `[width]`.
    pub gain: &'a mut [f32],
    /// `[width]`, or empty where the norm has no bias.
    pub bias: &'a mut [f32],
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
}

impl Decoder {
    /// One forward and backward pass; returns the summed loss of the counted positions.
    ///
    /// The gradient that the sink sees is that of the *sum*. Nothing reaches the sink if nothing counts.
    pub(crate) fn backward(&self, sequence: Sequence<'_>, ws: &mut Workspace, sink: &mut impl Sink) -> f64 {
        if sequence.predicting().is_empty() {
            return 0.0;
        }
        self.forward(sequence.tokens, ws);
        self.descend(&sequence.into(), ws, sink)
    }

    /// The way down for one objective after [`Decoder::forward`] over its tokens; returns its loss.
    ///
    /// The tape stays as it is, so several objectives of one sequence may follow one forward pass.
    pub(crate) fn descend(&self, objective: &Objective<'_>, ws: &mut Workspace, sink: &mut impl Sink) -> f64 {
        if objective.predicting.is_empty() {
            return 0.0;
        }
        let (tokens, t, d) = (objective.tokens, objective.tokens.len(), self.config.hidden_size);
        let loss = self.head_backward(objective, ws, sink);
        let gain = &self.parameters[self.norm_layout(Norm::Out).gain.clone()];
        ws.d_x[..t * d].fill(0.0);
        rms_norm_backward(
            &ws.x_out[..t * d],
            gain,
            &ws.out_inv[..t],
            &ws.d_in[..t * d],
            &mut ws.d_x[..t * d],
            sink.norm(Norm::Out, 0).gain,
        );
        for l in (0..self.config.num_hidden_layers).rev() {
            self.feed_forward_backward(l, t, ws, sink);
            self.attention_backward(l, t, ws, sink);
        }
        if sink.wants_input_gradient() {
            sink.embedding(0, tokens, &ws.d_x[..t * d]);
        }
        loss
    }

    /// Leaves the gradient of the final hidden state in `ws.d_in`.
    fn head_backward(&self, objective: &Objective<'_>, ws: &mut Workspace, sink: &mut impl Sink) -> f64 {
        let fan = self.fan(Module::Head);
        let (d, predicting) = (fan.input, objective.predicting.clone());
        ws.d_in[..predicting.start * d].fill(0.0);
        ws.d_in[predicting.end * d..objective.tokens.len() * d].fill(0.0);
        let mut loss = 0.0;
        for start in predicting.clone().step_by(super::forward::HEAD_ROWS) {
            let end = (start + super::forward::HEAD_ROWS).min(predicting.end);
            let n = end - start;
            let hidden = &ws.hidden[start * d..end * d];
            linear::forward(self.weight(Module::Head), fan, n, hidden, 0.0, &mut ws.logits);
            let logits = &mut ws.logits[..n * fan.output];
            objective.backward(start, fan.output, logits, &mut ws.nll[..n]);
            loss += ws.nll[..n].iter().map(|&nats| f64::from(nats)).sum::<f64>();
            sink.linear(Module::Head, n, Rows { sequence: 0, first: start, x: hidden, delta: logits });
            linear::backward_input(self.weight(Module::Head), fan, n, logits, &mut ws.d_in[start * d..end * d]);
        }
        loss
    }

    fn feed_forward_backward(&self, l: usize, t: usize, ws: &mut Workspace, sink: &mut impl Sink) {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        let tape = &ws.layers[l];
        let (down, gate_up) = (Module::Down(l), Module::Up(l));
        sink.linear(down, t, whole(&tape.act[..t * f], &ws.d_x[..t * d]));
        linear::backward_input(self.weight(down), self.fan(down), t, &ws.d_x, &mut ws.d_act);
        let d_gate_up = &mut ws.d_wide[..t * 2 * f];
        silu_mul_backward(&tape.gate_up[..t * 2 * f], f, &ws.d_act[..t * f], d_gate_up);
        sink.linear(gate_up, t, whole(&tape.mlp_in[..t * d], d_gate_up));
        linear::backward_input(self.weight(gate_up), self.fan(gate_up), t, d_gate_up, &mut ws.d_in);
        rms_norm_backward(
            &tape.x_mid[..t * d],
            &self.parameters[self.norm_layout(Norm::Mlp(l)).gain.clone()],
            &tape.mlp_inv[..t],
            &ws.d_in[..t * d],
            &mut ws.d_x[..t * d],
            sink.norm(Norm::Mlp(l), 0).gain,
        );
    }

    fn attention_backward(&self, l: usize, t: usize, ws: &mut Workspace, sink: &mut impl Sink) {
        let c = &self.config;
        let (d, stride) = (c.hidden_size, c.qkv_width());
        let tape = &ws.layers[l];
        let (o, qkv) = (Module::O(l), Module::Qkv(l));
        sink.linear(o, t, whole(&tape.mixed[..t * c.query_width()], &ws.d_x[..t * d]));
        linear::backward_input(self.weight(o), self.fan(o), t, &ws.d_x, &mut ws.d_in);
        let d_qkv = &mut ws.d_wide[..t * stride];
        attention::backward(self.heads(), t, &tape.qkv, &tape.probabilities, &ws.d_in, d_qkv, &mut ws.d_scores);
        self.rotary.apply(d_qkv, stride, c.num_attention_heads + c.num_key_value_heads, -1.0);
        sink.linear(qkv, t, whole(&tape.attn_in[..t * d], d_qkv));
        if l == 0 && !sink.wants_input_gradient() {
            return;
        }
        linear::backward_input(self.weight(qkv), self.fan(qkv), t, d_qkv, &mut ws.d_in);
        rms_norm_backward(
            &tape.x_in[..t * d],
            &self.parameters[self.norm_layout(Norm::Attn(l)).gain.clone()],
            &tape.attn_inv[..t],
            &ws.d_in[..t * d],
            &mut ws.d_x[..t * d],
            sink.norm(Norm::Attn(l), 0).gain,
        );
    }
}

/// All rows of the pass's only sequence.
fn whole<'a>(x: &'a [f32], delta: &'a [f32]) -> Rows<'a> {
    Rows { sequence: 0, first: 0, x, delta }
}
