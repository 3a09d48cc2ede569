//! Where every parameter lies in the flat vector that weights, gradients and optimiser moments share.
//!
//! Order: embedding, learned positions; per layer the norm before attention, q, k, v, o, norms, feed-forward; last norm;
//! output layer if it is not tied. q, k, v (and gate, up) are neighbours, first their weights and then their biases, so one
//! slice is their fused matrix and another their fused bias. Names are those of Hugging Face files.

use std::ops::Range;

use crate::arch::{Arch, Family, NormKind, QkNorm, Topology};
use crate::config::DecoderConfig;

/// One tensor: Hugging Face name, shape, place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterSlot {
    /// Name in the weights file (`model.layers.0.self_attn.q_proj.weight`).
    pub name: String,
    /// `[rows, columns]`, or `[width]` for a norm or a bias.
    pub shape: Vec<usize>,
    /// Place in the flat vector.
    pub range: Range<usize>,
}

impl ParameterSlot {
    /// True for matrices: weight decay touches them and spares norms and biases.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// Places of a norm's parameters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NormLayout {
    /// Hugging Face name without `.weight`.
    pub name: String,
    pub gain: Range<usize>,
    pub bias: Option<Range<usize>>,
}

/// One linear layer of Hugging Face inside a fused one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LinearPart {
    /// Hugging Face name without `.weight` (`model.layers.0.self_attn.q_proj`).
    pub name: String,
    /// Its columns of the fused output.
    pub columns: Range<usize>,
}

/// Places of a linear layer, fused with its neighbours where they share the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LinearLayout {
    /// `[O, I]` row-major, or `[I, O]` where `transposed`.
    pub weight: Range<usize>,
    /// `[O]`.
    pub bias: Option<Range<usize>>,
    /// True for Conv1D weights.
    pub transposed: bool,
    pub parts: Vec<LinearPart>,
}

/// Places of the tensors of one layer. Which norms exist follows from the topology.
#[derive(Clone, Debug)]
pub(crate) struct LayerLayout {
    /// On the way into attention.
    pub attn_norm: Option<NormLayout>,
    pub qkv: LinearLayout,
    pub q_norm: Option<NormLayout>,
    pub k_norm: Option<NormLayout>,
    pub o: LinearLayout,
    /// On the way out of attention (`Post`, `Sandwich`), or after its residual sum (`Encoder`).
    pub attn_post: Option<NormLayout>,
    /// On the way into the feed-forward.
    pub mlp_norm: Option<NormLayout>,
    /// Gate and up, or up alone.
    pub up: LinearLayout,
    pub down: LinearLayout,
    /// On the way out of the feed-forward, or after its residual sum.
    pub mlp_post: Option<NormLayout>,
}

/// The order of all parameters.
#[derive(Clone, Debug)]
pub struct ParameterLayout {
    slots: Vec<ParameterSlot>,
    /// `[V, d]`; slot 0.
    pub(crate) embedding: Range<usize>,
    /// `[positions, d]`, learned.
    pub(crate) positions: Option<Range<usize>>,
    /// `[token types, d]`.
    pub(crate) token_types: Option<Range<usize>>,
    /// Norm of the embedded tokens (encoders).
    pub(crate) embedding_norm: Option<NormLayout>,
    pub(crate) layers: Vec<LayerLayout>,
    /// The last norm (not in encoders).
    pub(crate) norm: Option<NormLayout>,
    /// The output layer; its weight is the embedding's if they are tied. Unused in encoders.
    pub(crate) head: LinearLayout,
}

/// Hugging Face names of a family; `{}` stands for the layer.
struct Names {
    embedding: &'static str,
    positions: &'static str,
    layer: &'static str,
    attn_norm: &'static str,
    qkv: &'static [&'static str],
    qk_norm: [&'static str; 2],
    o: &'static str,
    attn_post: &'static str,
    mlp_norm: &'static str,
    up: &'static [&'static str],
    down: &'static str,
    mlp_post: &'static str,
    norm: &'static str,
    head: &'static str,
}

const LLAMA: Names = Names {
    embedding: "model.embed_tokens",
    positions: "",
    layer: "model.layers.",
    attn_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    o: "self_attn.o_proj",
    attn_post: "post_attention_layernorm",
    mlp_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    mlp_post: "post_feedforward_layernorm",
    norm: "model.norm",
    head: "lm_head",
};

const GEMMA: Names = Names { mlp_norm: "pre_feedforward_layernorm", ..LLAMA };

const GPT2: Names = Names {
    embedding: "transformer.wte",
    positions: "transformer.wpe",
    layer: "transformer.h.",
    attn_norm: "ln_1",
    qkv: &["attn.c_attn"],
    o: "attn.c_proj",
    mlp_norm: "ln_2",
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    norm: "transformer.ln_f",
    ..LLAMA
};

const GPT_NEOX: Names = Names {
    embedding: "gpt_neox.embed_in",
    layer: "gpt_neox.layers.",
    qkv: &["attention.query_key_value"],
    o: "attention.dense",
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    ..LLAMA
};

const BERT: Names = Names {
    embedding: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    layer: "encoder.layer.",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    o: "attention.output.dense",
    attn_post: "attention.output.LayerNorm",
    up: &["intermediate.dense"],
    down: "output.dense",
    mlp_post: "output.LayerNorm",
    ..LLAMA
};

fn names(family: Family) -> &'static Names {
    match family {
        Family::Gpt2 => &GPT2,
        Family::GptNeox => &GPT_NEOX,
        Family::Gemma2 | Family::Gemma3 => &GEMMA,
        Family::Bert => &BERT,
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Olmo2 => &LLAMA,
    }
}

impl ParameterLayout {
    /// The layout of `config`.
    pub fn new(config: &DecoderConfig) -> Self {
        let arch = &config.arch;
        let names = names(arch.family);
        let d = config.hidden_size;
        let mut places = Places { layer_norm: arch.norm == NormKind::Layer, ..Places::default() };
        let embedding = places.add(format!("{}.weight", names.embedding), vec![config.vocab_size, d]);
        let learned = arch.positions == crate::arch::Positions::Learned;
        let positions =
            learned.then(|| places.add(format!("{}.weight", names.positions), vec![config.max_position_embeddings, d]));
        let token_types = (arch.token_types > 0)
            .then(|| places.add("embeddings.token_type_embeddings.weight".into(), vec![arch.token_types, d]));
        let embedding_norm = arch.is_encoder().then(|| places.norm("embeddings.LayerNorm".into(), d));
        let layers = (0..config.num_hidden_layers).map(|l| places.layer(config, names, l)).collect();
        let norm = (!arch.is_encoder()).then(|| places.norm(names.norm.into(), d));
        let fan = (d, config.vocab_size);
        let head = if config.tie_word_embeddings || arch.is_encoder() {
            let parts = vec![LinearPart { name: names.head.into(), columns: 0..fan.1 }];
            LinearLayout { weight: embedding.clone(), bias: None, transposed: false, parts }
        } else {
            places.linear(&[(names.head.into(), fan.1)], fan.0, false, false)
        };
        Self { slots: places.slots, embedding, positions, token_types, embedding_norm, layers, norm, head }
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
    /// Norms have a bias.
    layer_norm: bool,
}

impl Places {
    fn layer(&mut self, config: &DecoderConfig, names: &Names, l: usize) -> LayerLayout {
        let arch: &Arch = &config.arch;
        let (d, f, q, kv) = (config.hidden_size, config.intermediate_size, config.query_width(), config.key_width());
        let name = |part: &str| format!("{}{l}.{part}", names.layer);
        let has_pre = matches!(arch.topology, Topology::Pre | Topology::Sandwich | Topology::Parallel);
        let has_post = matches!(arch.topology, Topology::Post | Topology::Sandwich | Topology::Encoder);
        let conv1d = arch.conv1d();
        let attn_norm = has_pre.then(|| self.norm(name(names.attn_norm), d));
        let qkv: Vec<(String, usize)> = match names.qkv {
            [fused] => vec![(name(fused), q + 2 * kv)],
            parts => parts.iter().map(|part| name(part)).zip([q, kv, kv]).collect(),
        };
        let qkv = self.linear(&qkv, d, arch.qkv_bias, conv1d);
        let qk_width = |full: usize| if arch.qk_norm == QkNorm::Full { full } else { config.head_dim };
        let has_qk = arch.qk_norm != QkNorm::None;
        let q_norm = has_qk.then(|| self.norm(name(names.qk_norm[0]), qk_width(q)));
        let k_norm = has_qk.then(|| self.norm(name(names.qk_norm[1]), qk_width(kv)));
        let o = self.linear(&[(name(names.o), d)], q, arch.o_bias, conv1d);
        let attn_post = has_post.then(|| self.norm(name(names.attn_post), d));
        let mlp_norm = has_pre.then(|| self.norm(name(names.mlp_norm), d));
        let up: Vec<(String, usize)> = names.up.iter().map(|part| (name(part), f)).collect();
        let up = self.linear(&up, d, arch.mlp_bias, conv1d);
        let down = self.linear(&[(name(names.down), d)], f, arch.mlp_bias, conv1d);
        let mlp_post = has_post.then(|| self.norm(name(names.mlp_post), d));
        LayerLayout { attn_norm, qkv, q_norm, k_norm, o, attn_post, mlp_norm, up, down, mlp_post }
    }

    fn linear(&mut self, parts: &[(String, usize)], fan_in: usize, bias: bool, transposed: bool) -> LinearLayout {
        let first = self.next;
        let mut columns = 0;
        let mut placed = vec![];
        for (name, width) in parts {
            let shape = if transposed { vec![fan_in, *width] } else { vec![*width, fan_in] };
            self.add(format!("{name}.weight"), shape);
            placed.push(LinearPart { name: name.clone(), columns: columns..columns + width });
            columns += width;
        }
        let weight = first..self.next;
        let first = self.next;
        if bias {
            for (name, width) in parts {
                self.add(format!("{name}.bias"), vec![*width]);
            }
        }
        LinearLayout { weight, bias: bias.then_some(first..self.next), transposed, parts: placed }
    }

    fn norm(&mut self, name: String, width: usize) -> NormLayout {
        let gain = self.add(format!("{name}.weight"), vec![width]);
        let bias = self.layer_norm.then(|| self.add(format!("{name}.bias"), vec![width]));
        NormLayout { name, gain, bias }
    }

    fn add(&mut self, name: String, shape: Vec<usize>) -> Range<usize> {
        let range = self.next..self.next + shape.iter().product::<usize>();
        self.next = range.end;
        self.slots.push(ParameterSlot { name, shape, range: range.clone() });
        range
    }
}
