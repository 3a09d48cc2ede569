//! The way up: tokens to hidden states to logits, leaving a tape.

use std::ops::Range;

use ascribe_linalg::elementwise::{rms_norm, silu_mul};

use super::{Decoder, Module, Norm, Workspace};
use crate::ops::{attention, linear};

/// Rows of logits at a time: 64 rows of a 2,048-word vocabulary are half a MiB, which stays in the second cache.
pub(crate) const HEAD_ROWS: usize = 64;

impl Decoder {
    /// Fills the workspace with the pass over `tokens` (checked by the caller), up to the final hidden state.
    pub(crate) fn forward(&self, tokens: &[u32], ws: &mut Workspace) {
        let (t, d) = (tokens.len(), self.config.hidden_size);
        ws.ensure(self, t);
        let embedding = &self.parameters[self.layout.embedding.clone()];
        for (x, &token) in ws.layers[0].x_in.chunks_exact_mut(d).zip(tokens) {
            x.copy_from_slice(&embedding[token as usize * d..(token as usize + 1) * d]);
        }
        for l in 0..self.config.num_hidden_layers {
            self.layer_forward(l, t, ws);
        }
        let gain = &self.parameters[self.norm_layout(Norm::Out).gain.clone()];
        let eps = self.config.rms_norm_eps as f32;
        rms_norm(&ws.x_out[..t * d], gain, eps, &mut ws.hidden[..t * d], &mut ws.out_inv[..t]);
    }

    fn layer_forward(&self, l: usize, t: usize, ws: &mut Workspace) {
        let c = &self.config;
        let (d, f, eps) = (c.hidden_size, c.intermediate_size, c.rms_norm_eps as f32);
        let (own, above) = ws.layers.split_at_mut(l + 1);
        let tape = &mut own[l];
        let x_next = above.first_mut().map_or(&mut ws.x_out, |next| &mut next.x_in);

        let gain = &self.parameters[self.norm_layout(Norm::Attn(l)).gain.clone()];
        rms_norm(&tape.x_in[..t * d], gain, eps, &mut tape.attn_in[..t * d], &mut tape.attn_inv[..t]);
        let (qkv, stride) = (Module::Qkv(l), c.qkv_width());
        linear::forward(self.weight(qkv), self.fan(qkv), t, &tape.attn_in, 0.0, &mut tape.qkv);
        let turned = c.num_attention_heads + c.num_key_value_heads;
        self.rotary.apply(&mut tape.qkv[..t * stride], stride, turned, 1.0);
        attention::forward(self.heads(), t, &tape.qkv, &mut tape.probabilities, &mut tape.mixed);
        tape.x_mid[..t * d].copy_from_slice(&tape.x_in[..t * d]);
        let o = Module::O(l);
        linear::forward(self.weight(o), self.fan(o), t, &tape.mixed, 1.0, &mut tape.x_mid);

        let gain = &self.parameters[self.norm_layout(Norm::Mlp(l)).gain.clone()];
        rms_norm(&tape.x_mid[..t * d], gain, eps, &mut tape.mlp_in[..t * d], &mut tape.mlp_inv[..t]);
        let gate_up = Module::Up(l);
        linear::forward(self.weight(gate_up), self.fan(gate_up), t, &tape.mlp_in, 0.0, &mut tape.gate_up);
        silu_mul(&tape.gate_up[..t * 2 * f], f, &mut tape.act[..t * f]);
        x_next[..t * d].copy_from_slice(&tape.x_mid[..t * d]);
        let down = Module::Down(l);
        linear::forward(self.weight(down), self.fan(down), t, &tape.act, 1.0, x_next);
    }

    /// Hands the logits of the positions `rows` to `take`, chunk after chunk, `[chunk, V]`.
    pub(crate) fn head_forward(
        &self,
        rows: Range<usize>,
        ws: &mut Workspace,
        mut take: impl FnMut(Range<usize>, &mut [f32]),
    ) {
        let fan = self.fan(Module::Head);
        for start in rows.clone().step_by(HEAD_ROWS) {
            let chunk = start..(start + HEAD_ROWS).min(rows.end);
            let hidden = &ws.hidden[start * fan.input..];
            linear::forward(self.weight(Module::Head), fan, chunk.len(), hidden, 0.0, &mut ws.logits);
            let logits = &mut ws.logits[..chunk.len() * fan.output];
            take(chunk, logits);
        }
    }
}
