//! Forward mode by hand: how hidden states move when the tracked weights move along directions.
//!
//! The pass reads the tape of an ordinary way up and walks beside it: a product gives `ẋ·Wᵀ + x·Vᵀ`, norms and
//! non-linearities their derivatives, sums their sums. All directions go together. Losses live in `head`.

use ascribe_linalg::elementwise::{activate_backward, activate_mul_backward, add_assign};
use ascribe_linalg::packed::{PackedMatrix, Precision, RoundedRows, Rows};
use ndarray::{ArrayView2, s};

use super::TappedDecoder;
use crate::arch::{QkNorm, Topology};
use crate::decoder::{LayerTape, Module, Pass, Span, Workspace, put_columns, some, take_columns};
use crate::layout::NormLayout;
use crate::ops::norm::NormTape;
use crate::ops::tangent::Buffers;

/// A tap's part of one direction.
#[derive(Debug)]
struct Direction {
    /// `Vᵀ` without the bias's column, `[I, O]`.
    weight: PackedMatrix,
    /// `[O]`, or empty.
    bias: Vec<f32>,
}

/// Directions `[R, P]`, packed tap by tap. Memory: that of the directions once more.
#[derive(Debug)]
pub(super) struct Directions {
    pub n: usize,
    /// Per tap and direction.
    parts: Vec<Vec<Direction>>,
}

impl Directions {
    /// Packs `flat` `[R, P]` (checked by the caller).
    pub fn new(tapped: &TappedDecoder<'_>, flat: ArrayView2<'_, f32>) -> Self {
        let parts = tapped.taps.iter().map(|tap| {
            let part = |row: ndarray::ArrayView1<'_, f32>| {
                let v = row.slice(s![tap.range()]).to_owned();
                let v = v.into_shape_with_order((tap.n_out, tap.n_in)).expect("a tap's range has its shape");
                let fan = tap.n_in - usize::from(tap.has_bias);
                let weight = PackedMatrix::new(Precision::F32, v.slice(s![.., ..fan]).t());
                let bias = if tap.has_bias { v.column(fan).to_vec() } else { vec![] };
                Direction { weight, bias }
            };
            flat.rows().into_iter().map(part).collect()
        });
        Self { n: flat.nrows(), parts: parts.collect() }
    }

    /// `y += x·Vᵀ` for direction `r` of tap `at`: x `[n, I]`, y rows `stride` apart.
    pub fn add(&self, at: usize, r: usize, n: usize, x: &[f32], y: &mut [f32], stride: usize) {
        let Direction { weight, bias } = &self.parts[at][r];
        let fan = x.len() / n.max(1);
        let x = Rows::new(n, fan, fan, x);
        match &bias[..] {
            [] => weight.multiply(&x, 1.0, y, stride),
            bias => weight.multiply_with_bias(&x, bias, 1.0, y, stride),
        }
    }
}

/// Changes of activations, `[R]` of `[N, width]` each, and the memory of the parts.
#[derive(Debug, Default)]
pub(super) struct Tangents {
    /// Of the residual stream, at last of the final hidden states.
    pub x: Vec<f32>,
    /// Of a module's input of width d, or of a sublayer's normed output.
    input: Vec<f32>,
    /// Of a fused output.
    wide: Vec<f32>,
    /// Of the inputs of output and down projections.
    narrow: Vec<f32>,
    /// Of a sublayer's output.
    side: Vec<f32>,
    /// Derivatives of the feed-forward's non-linearity.
    slopes: Vec<f32>,
    ones: Vec<f32>,
    heads: Vec<f32>,
    gain: Vec<f32>,
    attention: Buffers,
    rounded: RoundedRows,
}

/// A walk beside one pass.
pub(super) struct Walk<'a, 'm> {
    pub tapped: &'a TappedDecoder<'m>,
    pub pass: Pass<'a>,
    pub directions: &'a Directions,
    /// Rows of the pass.
    pub n: usize,
}

fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Walk<'_, '_> {
    /// Leaves the changes of the final hidden states in `out.x`, `[R, N, d]`, after a way up that left its tape in `ws`.
    pub fn run(&self, ws: &Workspace, out: &mut Tangents) {
        let d = self.pass.model.config.hidden_size;
        room(&mut out.x, self.directions.n * self.n * d).fill(0.0);
        for (l, tape) in ws.layers.iter().enumerate().take(self.pass.model.config.num_hidden_layers) {
            self.attention(l, &ws.spans, tape, out);
            self.feed_forward(l, tape, out);
        }
        let Tangents { x, input, gain, .. } = out;
        self.norm(some(&self.pass.model.layout.norm), &ws.x_out, &ws.out_norm, d, x, input, gain);
        std::mem::swap(x, input);
    }

    /// `y ← ẋ·Wᵀ + x·Vᵀ` for all directions; `x` is what the module saw.
    fn linear(&self, module: Module, x: &[f32], d_x: &[f32], y: &mut Vec<f32>, rounded: &mut RoundedRows) {
        let (fan, n, n_directions) = (self.pass.model.fan(module), self.n, self.directions.n);
        let y = room(y, n_directions * n * fan.output);
        self.pass.tangent(module, n_directions * n, &d_x[..n_directions * n * fan.input], y, rounded);
        for (at, tap) in self.tapped.taps_of(module) {
            for (r, y) in y.chunks_exact_mut(n * fan.output).enumerate() {
                self.directions.add(at, r, n, &x[..n * fan.input], &mut y[tap.columns.start..], fan.output);
            }
        }
    }

    /// `out ← ∂norm·d_x` for all directions of `[N, width]`.
    #[allow(clippy::too_many_arguments)] // the norm, its tape, the changes on either side and memory
    fn norm(
        &self,
        norm: &NormLayout,
        x: &[f32],
        stats: &NormTape,
        width: usize,
        d_x: &[f32],
        out: &mut Vec<f32>,
        scratch: &mut Vec<f32>,
    ) {
        let (op, len) = (self.pass.model.norm_op(norm), self.n * width);
        let out = room(out, self.directions.n * len);
        for (out, d_x) in out.chunks_exact_mut(len).zip(d_x.chunks_exact(len)) {
            op.tangent(&x[..len], stats, d_x, out, scratch);
        }
    }

    /// A sublayer's entrance: its norm, or nothing; the changes go into `input`.
    fn enter(&self, norm: Option<&NormLayout>, x: &[f32], stats: &NormTape, out: &mut Tangents) {
        let d = self.pass.model.config.hidden_size;
        let Tangents { x: d_x, input, gain, .. } = out;
        match norm {
            Some(norm) => self.norm(norm, x, stats, d, d_x, input, gain),
            None => room(input, self.directions.n * self.n * d).copy_from_slice(&d_x[..self.directions.n * self.n * d]),
        }
    }

    /// From the layer's entrance to the residual stream after attention (where the topology is parallel: to `side`).
    fn attention(&self, l: usize, spans: &[Span], tape: &LayerTape, out: &mut Tangents) {
        let (model, n, n_directions) = (self.pass.model, self.n, self.directions.n);
        let (c, layout) = (&model.config, &model.layout.layers[l]);
        self.enter(layout.attn_norm.as_ref(), &tape.x_in, &tape.attn_norm, out);
        let entrance = if layout.attn_norm.is_some() { &tape.attn_in } else { &tape.x_in };
        let Tangents { input, wide, rounded, .. } = &mut *out;
        self.linear(Module::Qkv(l), entrance, input, wide, rounded);
        self.head_norms(l, tape, out);
        let Tangents { wide, narrow: mixed, attention: buffers, .. } = &mut *out;
        let (stride, q, attention) = (c.qkv_width(), c.query_width(), model.attention(l));
        let mixed = room(mixed, n_directions * n * q);
        let mut rest = &tape.probabilities[..];
        for span in spans {
            let probabilities;
            (probabilities, rest) = rest.split_at(attention.probabilities_len(span.len));
            for wide in wide.chunks_exact_mut(n * stride).take(n_directions) {
                model.turn(l, &mut wide[span.of(stride)], 1.0);
            }
            let (d_qkv, d_mixed) = (&wide[span.of(stride).start..], &mut mixed[span.of(q).start..]);
            let (d_qkv, d_mixed) = ((d_qkv, n * stride), (d_mixed, n * q));
            let qkv = &tape.qkv[span.of(stride)];
            attention.tangent(span.len, n_directions, qkv, probabilities, d_qkv, d_mixed, buffers);
        }
        let Tangents { narrow, side, rounded, .. } = &mut *out;
        self.linear(Module::O(l), &tape.mixed, narrow, side, rounded);
        self.leave(layout.attn_post.as_ref(), &tape.attn_out, &tape.attn_post, out);
    }

    /// A sublayer's exit: its output, normed where the family norms it, joins the residual stream.
    fn leave(&self, norm: Option<&NormLayout>, x: &[f32], stats: &NormTape, out: &mut Tangents) {
        let d = self.pass.model.config.hidden_size;
        let len = self.directions.n * self.n * d;
        let Tangents { x: d_x, input, side, gain, .. } = out;
        match norm {
            Some(norm) => {
                self.norm(norm, x, stats, d, side, input, gain);
                add_assign(&mut d_x[..len], &input[..len]);
            }
            // In the parallel topology the feed-forward still wants the stream as it was.
            None if self.pass.model.config.arch.topology == Topology::Parallel => {}
            None => add_assign(&mut d_x[..len], &side[..len]),
        }
    }

    /// Changes of queries and keys through their norms, where the family has them.
    fn head_norms(&self, l: usize, tape: &LayerTape, out: &mut Tangents) {
        let model = self.pass.model;
        if model.config.arch.qk_norm == QkNorm::None {
            return;
        }
        let (stride, layer, n) = (model.config.qkv_width(), &model.layout.layers[l], self.n);
        let Tangents { wide, heads, gain, .. } = out;
        let [queries, keys] = model.normed_columns();
        let halves =
            [(queries, &layer.q_norm, &tape.q_raw, &tape.q_norm), (keys, &layer.k_norm, &tape.k_raw, &tape.k_norm)];
        for (columns, norm, raw, stats) in halves {
            let (op, len) = (model.norm_op(some(norm)), n * columns.len());
            for wide in wide.chunks_exact_mut(n * stride).take(self.directions.n) {
                let (before, after) = room(heads, 2 * len).split_at_mut(len);
                take_columns(wide, stride, &columns, before);
                op.tangent(&raw[..len], stats, before, after, gain);
                put_columns(after, wide, stride, &columns);
            }
        }
    }

    /// From the residual stream before the feed-forward to the one after it.
    fn feed_forward(&self, l: usize, tape: &LayerTape, out: &mut Tangents) {
        let (model, n, n_directions) = (self.pass.model, self.n, self.directions.n);
        let (c, layout) = (&model.config, &model.layout.layers[l]);
        let (d, f, is_parallel) = (c.hidden_size, c.intermediate_size, c.arch.topology == Topology::Parallel);
        let before = if is_parallel { &tape.x_in } else { &tape.x_mid };
        self.enter(layout.mlp_norm.as_ref(), before, &tape.mlp_norm, out);
        let entrance = if layout.mlp_norm.is_some() { &tape.mlp_in } else { before };
        let Tangents { input, wide, rounded, .. } = &mut *out;
        self.linear(Module::Up(l), entrance, input, wide, rounded);
        self.activate(f, tape, out);
        if is_parallel {
            let len = n_directions * n * d;
            add_assign(&mut out.x[..len], &out.side[..len]);
        }
        let Tangents { narrow, side, rounded, .. } = &mut *out;
        self.linear(Module::Down(l), &tape.act, narrow, side, rounded);
        match &layout.mlp_post {
            None => {
                let len = n_directions * n * d;
                add_assign(&mut out.x[..len], &out.side[..len]);
            }
            norm => self.leave(norm.as_ref(), &tape.mlp_out, &tape.mlp_post, out),
        }
    }

    /// Changes of the non-linearity's output, `[R, N, f]`, into `narrow`.
    fn activate(&self, f: usize, tape: &LayerTape, out: &mut Tangents) {
        let (model, n, n_directions) = (self.pass.model, self.n, self.directions.n);
        let Tangents { wide, narrow, slopes, ones, .. } = out;
        let is_gated = model.config.arch.gated;
        let width = if is_gated { 2 * f } else { f };
        let (slopes, ones) = (room(slopes, n * width), room(ones, n * f));
        ones.fill(1.0);
        if is_gated {
            activate_mul_backward(model.act(), &tape.gate_up[..n * width], f, ones, slopes);
        } else {
            activate_backward(model.act(), &tape.gate_up[..n * width], ones, slopes);
        }
        let rows = room(narrow, n_directions * n * f).chunks_exact_mut(f);
        for ((out, d), slopes) in rows.zip(wide.chunks_exact(width)).zip(slopes.chunks_exact(width).cycle()) {
            if is_gated {
                let ((d_gate, d_up), (gate, up)) = (d.split_at(f), slopes.split_at(f));
                for i in 0..f {
                    out[i] = gate[i] * d_gate[i] + up[i] * d_up[i];
                }
            } else {
                out.iter_mut().zip(d).zip(slopes).for_each(|((out, d), slope)| *out = d * slope);
            }
        }
    }
}
