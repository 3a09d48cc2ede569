//! Memory of one pass over a pack of sequences, kept and reused: nothing of any size is allocated inside the passes.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use ascribe_linalg::packed::RoundedRows;

use super::Decoder;
use crate::arch::{NormKind, QkNorm, Topology};
use crate::ops::norm::NormTape;
use crate::ops::short::Buffers;

/// The rows of one sequence within a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// Index of the sequence among those of the call.
    pub sequence: usize,
    /// Its first row.
    pub start: usize,
    /// Its length.
    pub len: usize,
}

impl Span {
    /// Its rows in a matrix of `width` columns.
    pub fn of(&self, width: usize) -> Range<usize> {
        self.start * width..(self.start + self.len) * width
    }
}

/// What one layer leaves for the way back; what its topology does not have stays empty.
#[derive(Debug, Default)]
pub(crate) struct LayerTape {
    /// Residual stream at the entrance, `[N, d]`.
    pub x_in: Vec<f32>,
    pub attn_norm: NormTape,
    /// Normed, `[N, d]`: input of q, k, v.
    pub attn_in: Vec<f32>,
    /// Queries before their norm, `[N, H·dh]`.
    pub q_raw: Vec<f32>,
    pub q_norm: NormTape,
    /// Keys before their norm, `[N, Hkv·dh]`.
    pub k_raw: Vec<f32>,
    pub k_norm: NormTape,
    /// Turned queries and keys, and values, `[N, (H + 2·Hkv)·dh]`.
    pub qkv: Vec<f32>,
    /// Attention probabilities (layout of `ops::attention`), sequence after sequence.
    pub probabilities: Vec<f32>,
    /// Input of the output projection, `[N, H·dh]`.
    pub mixed: Vec<f32>,
    /// What the norm after attention saw, `[N, d]`.
    pub attn_out: Vec<f32>,
    pub attn_post: NormTape,
    /// Residual stream between attention and feed-forward, `[N, d]`.
    pub x_mid: Vec<f32>,
    pub mlp_norm: NormTape,
    /// Normed, `[N, d]`: input of gate and up.
    pub mlp_in: Vec<f32>,
    /// Gates and ups, `[N, 2f]`, or ups alone, `[N, f]`.
    pub gate_up: Vec<f32>,
    /// Input of the down projection, `[N, f]`.
    pub act: Vec<f32>,
    /// What the norm after the feed-forward saw, `[N, d]`.
    pub mlp_out: Vec<f32>,
    pub mlp_post: NormTape,
}

impl LayerTape {
    fn new(decoder: &Decoder, rows: usize) -> Self {
        let c = &decoder.config;
        let (d, topology) = (c.hidden_size, c.arch.topology);
        let room = |width: usize| vec![0.0f32; rows * width];
        let room_if = |wanted: bool, width: usize| if wanted { room(width) } else { vec![] };
        let has_pre = matches!(topology, Topology::Pre | Topology::Sandwich | Topology::Parallel);
        let has_post = matches!(topology, Topology::Post | Topology::Sandwich | Topology::Encoder);
        let has_qk = c.arch.qk_norm != QkNorm::None;
        let gate_up = if c.arch.gated { 2 * c.intermediate_size } else { c.intermediate_size };
        let norm = |wanted: bool, per_row: usize| NormTape::new(if wanted { rows * per_row } else { 0 });
        let heads = |n: usize| if c.arch.qk_norm == QkNorm::PerHead { n } else { 1 };
        Self {
            x_in: room(d),
            attn_norm: norm(has_pre, 1),
            attn_in: room_if(has_pre, d),
            q_raw: room_if(has_qk, c.query_width()),
            q_norm: norm(has_qk, heads(c.num_attention_heads)),
            k_raw: room_if(has_qk, c.key_width()),
            k_norm: norm(has_qk, heads(c.num_key_value_heads)),
            qkv: room(c.qkv_width()),
            probabilities: vec![],
            mixed: room(c.query_width()),
            attn_out: room_if(has_post, d),
            attn_post: norm(has_post, 1),
            x_mid: room_if(topology != Topology::Parallel, d),
            mlp_norm: norm(has_pre, 1),
            mlp_in: room_if(has_pre, d),
            gate_up: room(gate_up),
            act: room(c.intermediate_size),
            mlp_out: room_if(has_post, d),
            mlp_post: norm(has_post, 1),
        }
    }
}

/// Tapes of all layers and scratch.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    rows: usize,
    /// The sequences of the pass.
    pub spans: Vec<Span>,
    pub layers: Vec<LayerTape>,
    /// Residual stream after the last layer, `[N, d]`.
    pub x_out: Vec<f32>,
    pub out_norm: NormTape,
    /// Final normed hidden state, `[N, d]`.
    pub hidden: Vec<f32>,
    /// Hidden states of the rows of one chunk of logits, on the way down their gradients, `[chunk, d]`.
    pub head: Vec<f32>,
    /// Logits of one chunk, `[chunk, V]`.
    pub logits: Vec<f32>,
    /// Capped logits of one chunk, where logits are capped.
    pub capped: Vec<f32>,
    /// Losses of one chunk.
    pub nll: Vec<f32>,
    /// Gradient of the residual stream, `[N, d]`.
    pub d_x: Vec<f32>,
    /// Memory of the parts of a layer.
    pub scratch: Scratch,
}

/// Memory of the parts of a layer, on either way.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// A sublayer's normed output on the way up, the gradient of its output on the way down, `[N, d]`.
    pub side: Vec<f32>,
    /// Gradient of a module's input, `[N, max(d, H·dh)]`.
    pub d_in: Vec<f32>,
    /// Gradient of `act`, `[N, f]`.
    pub d_act: Vec<f32>,
    /// Gradient of a fused output, `[N, max(2f, (H + 2·Hkv)·dh)]`.
    pub d_wide: Vec<f32>,
    /// Gradients of queries or keys around their norm, twice `[N, H·dh]`.
    pub d_heads: Vec<f32>,
    /// Attention's scratch.
    pub d_scores: Vec<f32>,
    /// Gains of a norm as they multiply.
    pub gain: Vec<f32>,
    /// The same in the packed route.
    pub attention: Buffers,
    /// Rows of a product rounded to bf16.
    pub rounded: RoundedRows,
}

impl Workspace {
    /// Makes room for a pass over the sequences `(index, tokens)`, `head_rows` rows of logits at a time, and sets its spans.
    /// With `tape` every layer has memory of its own, without it one serves all. Grows; shrinks only when a longer pass
    /// without a tape comes along.
    pub fn ensure<'s>(
        &mut self,
        decoder: &Decoder,
        sequences: impl Iterator<Item = (usize, &'s [u32])>,
        head_rows: usize,
        tape: bool,
    ) {
        self.spans.clear();
        let mut rows = 0;
        for (sequence, tokens) in sequences {
            self.spans.push(Span { sequence, start: rows, len: tokens.len() });
            rows += tokens.len();
        }
        let n_layers = decoder.config.num_hidden_layers;
        let wanted = if tape { n_layers } else { 1 };
        if rows > self.rows || self.layers.len() < wanted {
            let spans = std::mem::take(&mut self.spans);
            *self = Self::new(decoder, rows.max(self.rows), wanted);
            self.spans = spans;
        }
        let mut d_scores = 0;
        for l in 0..n_layers {
            let attention = decoder.attention(l);
            if tape {
                let len = self.spans.iter().map(|span| attention.probabilities_len(span.len)).sum();
                grow(&mut self.layers[l].probabilities, len);
            }
            d_scores = self.spans.iter().map(|span| attention.scratch_len(span.len)).max().unwrap_or(0).max(d_scores);
        }
        grow(&mut self.scratch.d_scores, d_scores);
        let (c, chunk) = (&decoder.config, head_rows.min(rows));
        if !c.arch.is_encoder() {
            grow(&mut self.head, chunk * c.hidden_size);
            grow(&mut self.logits, chunk * c.vocab_size);
            grow(&mut self.capped, if c.arch.logit_softcap.is_some() { chunk * c.vocab_size } else { 0 });
            grow(&mut self.nll, chunk);
        }
    }

    fn new(decoder: &Decoder, rows: usize, n_layers: usize) -> Self {
        let c = &decoder.config;
        let (d, f, q, qkv) = (c.hidden_size, c.intermediate_size, c.query_width(), c.qkv_width());
        let room = |width: usize| vec![0.0f32; rows * width];
        let has_qk = c.arch.qk_norm != QkNorm::None;
        let is_plain = c.arch.topology == Topology::Pre;
        let wide = if c.arch.gated { 2 * f } else { f };
        Self {
            rows,
            spans: vec![],
            layers: (0..n_layers).map(|_| LayerTape::new(decoder, rows)).collect(),
            x_out: room(d),
            out_norm: NormTape::new(rows),
            hidden: room(d),
            d_x: room(d),
            scratch: Scratch {
                side: if is_plain { vec![] } else { room(d) },
                d_in: room(d.max(q)),
                d_act: room(f),
                d_wide: room(wide.max(qkv)),
                d_heads: if has_qk { room(2 * q) } else { vec![] },
                d_scores: vec![],
                gain: Vec::with_capacity(if c.arch.norm == NormKind::RmsPlusOne { d.max(q) } else { 0 }),
                ..Scratch::default()
            },
            ..Self::default()
        }
    }

    /// Rows of the pass.
    pub fn n(&self) -> usize {
        self.spans.last().map_or(0, |span| span.start + span.len)
    }

    /// The final hidden states of the last pass over one sequence of `t` tokens.
    pub fn hidden(&self, t: usize, d: usize) -> &[f32] {
        &self.hidden[..t * d]
    }
}

fn grow(memory: &mut Vec<f32>, len: usize) {
    if memory.len() < len {
        memory.resize(len, 0.0);
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
    pub fn with<R>(&self, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let lent = self.free.lock().map_or(None, |mut free| free.pop());
        let mut workspace = lent.unwrap_or_default();
        let result = work(&mut workspace);
        if let Ok(mut free) = self.free.lock() {
            free.push(workspace);
        }
        result
    }
}
