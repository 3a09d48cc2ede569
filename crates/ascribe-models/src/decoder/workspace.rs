//! Memory of one pass over one sequence, kept and reused: nothing is allocated inside the passes.

use std::sync::{Arc, Mutex};

use super::Decoder;
use crate::ops::attention;

/// What one layer leaves for the way back.
#[derive(Debug, Default)]
pub(crate) struct LayerTape {
    /// Residual stream at the entrance, `[T, d]`.
    pub x_in: Vec<f32>,
    /// Inverse root mean squares of its rows, `[T]`.
    pub attn_inv: Vec<f32>,
    /// Normed, `[T, d]`: input of q, k, v.
    pub attn_in: Vec<f32>,
    /// Turned queries and keys, and values, `[T, (H + 2·Hkv)·dh]`.
    pub qkv: Vec<f32>,
    /// Attention probabilities (layout of `ops::attention`).
    pub probabilities: Vec<f32>,
    /// Input of the output projection, `[T, H·dh]`.
    pub mixed: Vec<f32>,
    /// Residual stream between attention and feed-forward, `[T, d]`.
    pub x_mid: Vec<f32>,
    /// Inverse root mean squares, `[T]`.
    pub mlp_inv: Vec<f32>,
    /// Normed, `[T, d]`: input of gate and up.
    pub mlp_in: Vec<f32>,
    /// Gates and ups, `[T, 2f]`.
    pub gate_up: Vec<f32>,
    /// Input of the down projection, `[T, f]`.
    pub act: Vec<f32>,
}

/// Tapes of all layers and scratch.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    positions: usize,
    pub layers: Vec<LayerTape>,
    /// Residual stream after the last layer, `[T, d]`.
    pub x_out: Vec<f32>,
    /// Inverse root mean squares, `[T]`.
    pub out_inv: Vec<f32>,
    /// Final normed hidden state, `[T, d]`.
    pub hidden: Vec<f32>,
    /// Logits of one chunk of rows, `[HEAD_ROWS, V]`.
    pub logits: Vec<f32>,
    /// Losses of one chunk.
    pub nll: Vec<f32>,
    /// Gradient of the residual stream, `[T, d]`.
    pub d_x: Vec<f32>,
    /// Gradient of a module's input, `[T, max(d, H·dh)]`.
    pub d_in: Vec<f32>,
    /// Gradient of `act`, `[T, f]`.
    pub d_act: Vec<f32>,
    /// Gradient of a fused output, `[T, max(2f, (H + 2·Hkv)·dh)]`.
    pub d_wide: Vec<f32>,
    /// Attention's scratch.
    pub d_scores: Vec<f32>,
}

impl Workspace {
    /// Makes room for `t` positions; grows, never shrinks.
    pub fn ensure(&mut self, decoder: &Decoder, t: usize) {
        if t <= self.positions && !self.layers.is_empty() {
            return;
        }
        let c = &decoder.config;
        let (d, f, q, qkv) = (c.hidden_size, c.intermediate_size, c.query_width(), c.qkv_width());
        let room = |width: usize| vec![0.0f32; t * width];
        let tape = |_| LayerTape {
            x_in: room(d),
            attn_inv: room(1),
            attn_in: room(d),
            qkv: room(qkv),
            probabilities: vec![0.0; attention::probabilities_len(decoder.heads(), t)],
            mixed: room(q),
            x_mid: room(d),
            mlp_inv: room(1),
            mlp_in: room(d),
            gate_up: room(2 * f),
            act: room(f),
        };
        let head_rows = super::forward::HEAD_ROWS.min(t);
        *self = Self {
            positions: t,
            layers: (0..c.num_hidden_layers).map(tape).collect(),
            x_out: room(d),
            out_inv: room(1),
            hidden: room(d),
            logits: vec![0.0; head_rows * c.vocab_size],
            nll: vec![0.0; head_rows],
            d_x: room(d),
            d_in: room(d.max(q)),
            d_act: room(f),
            d_wide: room((2 * f).max(qkv)),
            d_scores: vec![0.0; attention::scratch_len(t)],
        };
    }

    /// The final hidden states of the last pass over `t` tokens.
    pub fn hidden(&self, t: usize, d: usize) -> &[f32] {
        &self.hidden[..t * d]
    }
}

/// Workspaces between two uses. A clone of a decoder shares nothing but an empty pool's cost.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Arc<Mutex<Vec<Workspace>>>,
}

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Pool {
    /// Lends a workspace to `work`; every parallel caller has its own.
    pub fn with<R>(&self, decoder: &Decoder, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let lent = self.free.lock().map_or(None, |mut free| free.pop());
        let mut workspace = lent.unwrap_or_default();
        workspace.ensure(decoder, 1);
        let result = work(&mut workspace);
        if let Ok(mut free) = self.free.lock() {
            free.push(workspace);
        }
        result
    }
}
