//! Where every parameter lies in the flat vector that weights, gradients and optimiser moments share.
//!
//! Order: embedding; per layer input norm, q, k, v, o, post-attention norm, gate, up, down; last norm; output layer if it
//! is not tied. q, k, v (and gate, up) are neighbours, so one slice is their fused matrix.

use std::ops::Range;

use crate::config::DecoderConfig;

/// One tensor: Hugging Face name, shape, place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterSlot {
    /// Name in the weights file (`model.layers.0.self_attn.q_proj.weight`).
    pub name: String,
    /// `[rows, columns]`, or `[width]` for a norm.
    pub shape: Vec<usize>,
    /// Place in the flat vector.
    pub range: Range<usize>,
}

impl ParameterSlot {
    /// True for matrices: weight decay touches them and spares the norms.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// Places of the tensors of one layer, fused where they are used together.
#[derive(Clone, Debug)]
pub(crate) struct LayerLayout {
    pub attn_norm: Range<usize>,
    pub qkv: Range<usize>,
    pub o: Range<usize>,
    pub mlp_norm: Range<usize>,
    pub gate_up: Range<usize>,
    pub down: Range<usize>,
}

/// The order of all parameters.
#[derive(Clone, Debug)]
pub struct ParameterLayout {
    slots: Vec<ParameterSlot>,
    pub(crate) embedding: Range<usize>,
    pub(crate) layers: Vec<LayerLayout>,
    pub(crate) norm: Range<usize>,
    pub(crate) head: Range<usize>,
}

impl ParameterLayout {
    /// The layout of `config`.
    pub fn new(config: &DecoderConfig) -> Self {
        let mut places = Places::default();
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.query_width(), config.key_width());
        let embedding = places.matrix("model.embed_tokens.weight", config.vocab_size, d);
        let layers = (0..config.num_hidden_layers)
            .map(|l| {
                let name = |part: &str| format!("model.layers.{l}.{part}.weight");
                let attn_norm = places.norm(&name("input_layernorm"), d);
                let q = places.matrix(&name("self_attn.q_proj"), q, d);
                places.matrix(&name("self_attn.k_proj"), kv, d);
                let v = places.matrix(&name("self_attn.v_proj"), kv, d);
                let o = places.matrix(&name("self_attn.o_proj"), d, config.query_width());
                let mlp_norm = places.norm(&name("post_attention_layernorm"), d);
                let gate = places.matrix(&name("mlp.gate_proj"), f, d);
                let up = places.matrix(&name("mlp.up_proj"), f, d);
                let down = places.matrix(&name("mlp.down_proj"), d, f);
                LayerLayout { attn_norm, qkv: q.start..v.end, o, mlp_norm, gate_up: gate.start..up.end, down }
            })
            .collect();
        let norm = places.norm("model.norm.weight", d);
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            places.matrix("lm_head.weight", config.vocab_size, d)
        };
        Self { slots: places.slots, embedding, layers, norm, head }
    }

    /// All tensors, in order, without gaps.
    pub fn slots(&self) -> &[ParameterSlot] {
        &self.slots
    }

    /// Numbers in all.
    pub fn len(&self) -> usize {
        self.slots.last().map_or(0, |slot| slot.range.end)
    }

    /// True when there is nothing (no valid configuration gives that).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Default)]
struct Places {
    slots: Vec<ParameterSlot>,
    next: usize,
}

impl Places {
    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Range<usize> {
        self.add(name, vec![rows, columns])
    }

    fn norm(&mut self, name: &str, width: usize) -> Range<usize> {
        self.add(name, vec![width])
    }

    fn add(&mut self, name: &str, shape: Vec<usize>) -> Range<usize> {
        let range = self.next..self.next + shape.iter().product::<usize>();
        self.next = range.end;
        self.slots.push(ParameterSlot { name: name.into(), shape, range: range.clone() });
        range
    }
}
