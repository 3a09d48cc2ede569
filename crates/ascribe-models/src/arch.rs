//! What distinguishes one family of transformers from another, as data: the passes read it, nobody asks for names.
//!
//! [`Arch`] stands beside the sizes in [`DecoderConfig`](crate::DecoderConfig). Reading it out of a `config.json` lives in
//! `config`, the order of the parameters in `layout`, the arithmetic in `decoder`.

use serde::{Deserialize, Serialize};

/// The families that are read and run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2 and 3, SmolLM2 and everything else that says `llama`.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: a norm on every query and key head.
    Qwen3,
    /// OLMo 2: norms after the sublayers, and over all queries and all keys.
    Olmo2,
    /// GPT-2.
    Gpt2,
    /// GPT-NeoX: Pythia.
    GptNeox,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text.
    Gemma3,
    /// BERT and MiniLM encoders, for embeddings.
    Bert,
}

impl Family {
    /// The `model_type` of Hugging Face.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Olmo2 => "olmo2",
            Self::Gpt2 => "gpt2",
            Self::GptNeox => "gpt_neox",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Bert => "bert",
        }
    }
}

/// How rows are normed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x/rms(x)·g`.
    Rms,
    /// `x/rms(x)·(1 + g)`.
    RmsPlusOne,
    /// `(x − mean)/std·g + b`.
    Layer,
}

/// Where the norms of a layer stand; A is attention, M the feed-forward.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// `y = x + A(n₁x)`, `y + M(n₂y)`.
    Pre,
    /// `y = x + n₁A(x)`, `y + n₂M(y)`.
    Post,
    /// `y = x + n₁'A(n₁x)`, `y + n₂'M(n₂y)`.
    Sandwich,
    /// `x + A(n₁x) + M(n₂x)`.
    Parallel,
    /// `y = n₁(x + A(x))`, `n₂(y + M(y))`, both directions, token types: an encoder.
    Encoder,
}

/// The non-linearity of the feed-forward layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// `x·Φ(x)`, exact.
    Gelu,
    /// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// The order of the columns of the fused query, key and value product.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkvOrder {
    /// All queries, all keys, all values.
    Blocked,
    /// Head after head: query, key, value (GPT-NeoX).
    Interleaved,
}

/// Norm of queries and keys before they are turned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    None,
    /// One gain of a head's width, every head by itself.
    PerHead,
    /// One gain over all heads, which are normed together.
    Full,
}

/// How a model knows positions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Positions {
    /// The first `width` numbers of each query and key head are turned.
    Rotary {
        /// Turned numbers per head, even; 0 for the whole head.
        width: usize,
        /// Change of the frequencies.
        scaling: RopeScaling,
        /// Base of the frequencies in layers with a window, where it differs (and is not scaled there).
        local_theta: Option<f64>,
    },
    /// A learned vector per position is added to the embedding.
    Learned,
}

/// Change of rotary frequencies for long contexts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Divided by `factor`.
    Linear {
        /// How much longer the context became.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, between them a ramp.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths over `original / low` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths under `original / high` are kept.
        high_freq_factor: f64,
        /// Context before the change.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// How much longer the context became.
        factor: f64,
        /// Rotations over which frequencies are kept.
        beta_fast: f64,
        /// Rotations under which frequencies are divided.
        beta_slow: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Context before the change.
        original_max_position_embeddings: usize,
    },
}

/// Everything about a family that changes the arithmetic, beside the sizes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// Names of tensors follow the family.
    pub family: Family,
    /// Kind of all norms.
    pub norm: NormKind,
    /// Places of the norms.
    pub topology: Topology,
    /// The feed-forward's non-linearity.
    pub activation: Activation,
    /// True for `down(act(gate x)·up x)`, false for `down(act(up x))`.
    pub gated: bool,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Bias on attention's output projection.
    pub o_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Column order of the fused product.
    pub qkv_order: QkvOrder,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Positions.
    pub positions: Positions,
    /// Per layer, how many last positions a query sees, itself included; 0 for all. Empty means all layers 0.
    pub windows: Vec<usize>,
    /// Factor of the scores; none means `1/√head_dim`.
    pub attention_scale: Option<f64>,
    /// `s ← c·tanh(s/c)` on attention scores, before the mask.
    pub attention_softcap: Option<f64>,
    /// The same on logits.
    pub logit_softcap: Option<f64>,
    /// Factor of embedded tokens.
    pub embedding_scale: Option<f64>,
    /// Rows of the token type table (encoders), else 0.
    pub token_types: usize,
}

impl Arch {
    /// A plain Llama.
    pub fn llama() -> Self {
        Self {
            family: Family::Llama,
            norm: NormKind::Rms,
            topology: Topology::Pre,
            activation: Activation::Silu,
            gated: true,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qkv_order: QkvOrder::Blocked,
            qk_norm: QkNorm::None,
            positions: Positions::Rotary { width: 0, scaling: RopeScaling::None, local_theta: None },
            windows: vec![],
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            embedding_scale: None,
            token_types: 0,
        }
    }

    /// True for what [`Arch::llama`] gives.
    pub fn is_plain_llama(&self) -> bool {
        *self == Self::llama()
    }

    /// How many last positions a query of layer `l` sees; `usize::MAX` for all.
    pub fn window(&self, l: usize) -> usize {
        match self.windows.get(l) {
            None | Some(0) => usize::MAX,
            Some(&window) => window,
        }
    }

    /// True if weights of linear layers are stored `[in, out]` (GPT-2's Conv1D), false for `[out, in]`.
    pub fn conv1d(&self) -> bool {
        self.family == Family::Gpt2
    }

    /// True for encoders: every position sees every other, and there is no output layer.
    pub fn is_encoder(&self) -> bool {
        self.topology == Topology::Encoder
    }
}
