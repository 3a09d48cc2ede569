//! What a model looks like: Hugging Face `config.json` of the families of [`Family`], read strictly.
//!
//! A field that changes the arithmetic and is not supported is refused by name; fields about generation or bookkeeping
//! are ignored. Which field means what in which family lives in `families`, the way back in `write`.

mod families;
mod reader;
mod rope;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::reader::Reader;
use crate::arch::{Arch, Family, NormKind, Positions, QkNorm, QkvOrder, RopeScaling, Topology};
use crate::error::ModelError;

/// Name of the configuration file in a model folder.
pub const CONFIG_FILE: &str = "config.json";

/// A configuration file larger than this is not one.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// No width, depth or vocabulary beyond this is believed.
const MAX_SIZE: usize = 1 << 24;

/// Names and places are made for every layer before a weights file vouches for them.
const MAX_LAYERS: usize = 1 << 12;

/// Sizes and constants of a model; what its family changes about the arithmetic of a Llama stands in `arch`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Rows of the embedding, V.
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Width of the feed-forward layer, f.
    pub intermediate_size: usize,
    /// Number of layers, L.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even where positions are rotary.
    pub head_dim: usize,
    /// Longest sequence; rows of learned positions.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies; unused where positions are learned.
    pub rope_theta: f64,
    /// Added to the mean square, or the variance, in every norm.
    pub rms_norm_eps: f64,
    /// True when the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// First token of a text, if the tokenizer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Last token of a text, if the tokenizer has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<u32>,
    /// What the family changes about the arithmetic.
    #[serde(default = "Arch::llama", skip_serializing_if = "Arch::is_plain_llama")]
    pub arch: Arch,
}

/// The JSON of the `config.json` of `dir`, and its path.
pub(crate) fn read_json(dir: &Path) -> Result<(Value, PathBuf), ModelError> {
    let path = dir.join(CONFIG_FILE);
    let size = std::fs::metadata(&path).map_err(ModelError::io("read", &path))?.len();
    if size > MAX_CONFIG_BYTES {
        let expected = format!("at most {MAX_CONFIG_BYTES} bytes of JSON");
        return Err(ModelError::Format { path, expected, found: format!("{size} bytes") });
    }
    let bytes = std::fs::read(&path).map_err(ModelError::io("read", &path))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| ModelError::Format {
        path: path.clone(),
        expected: "a JSON object".into(),
        found: error.to_string(),
    })?;
    Ok((value, path))
}

impl DecoderConfig {
    /// A small decoder with the usual constants: rotary base 10,000, eps 10⁻⁵, tied embedding, fresh weights of 0.02.
    ///
    /// Heads share the width evenly. Nothing is checked here; [`DecoderConfig::validate`] does that, and so does
    /// everything that takes a configuration.
    pub fn llama(
        vocab_size: usize,
        hidden_size: usize,
        intermediate_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        num_key_value_heads: usize,
        max_position_embeddings: usize,
    ) -> Self {
        Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: hidden_size / num_attention_heads.max(1),
            max_position_embeddings,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_id: None,
            arch: Arch::llama(),
        }
    }

    /// Reads `config.json` of the model folder `dir`.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Format`] if it is no JSON object, [`ModelError::Config`] naming the field that is
    /// missing or not supported.
    pub fn from_file(dir: &Path) -> Result<Self, ModelError> {
        let (value, path) = read_json(dir)?;
        Self::from_json(&value, &path)
    }

    /// Reads the configuration out of a JSON object; `path` is for error messages only.
    ///
    /// # Errors
    /// As [`DecoderConfig::from_file`].
    pub fn from_json(value: &Value, path: &Path) -> Result<Self, ModelError> {
        let Value::Object(fields) = value else {
            let found = value.to_string().chars().take(60).collect();
            return Err(ModelError::Format { path: path.into(), expected: "a JSON object".into(), found });
        };
        let config = families::read(&Reader { fields, path })?;
        config.check(path)?;
        Ok(config)
    }

    /// The Hugging Face form: `transformers` opens a folder with it. Fields are spelled as in older files, which newer
    /// versions read too.
    pub fn to_json(&self) -> Value {
        write::to_json(self)
    }

    /// Checks what a hand-written configuration may get wrong.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.check(&PathBuf::from("<memory>"))
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let fail = |field, expected: String, found: String| {
            Err(ModelError::Config { path: path.into(), field, expected, found })
        };
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return fail(field, format!("1 to {MAX_SIZE}"), size.to_string());
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            return fail("num_hidden_layers", format!("at most {MAX_LAYERS}"), self.num_hidden_layers.to_string());
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.num_attention_heads);
            return fail("num_key_value_heads", expected, self.num_key_value_heads.to_string());
        }
        let numbers = [
            ("rope_theta", self.rope_theta),
            ("rms_norm_eps", self.rms_norm_eps),
            ("initializer_range", self.initializer_range),
        ];
        for (field, number) in numbers {
            if !(number.is_finite() && number > 0.0) {
                return fail(field, "a positive number".into(), number.to_string());
            }
        }
        if let Err((field, expected, found)) = self.check_arch() {
            return fail(field, expected, found);
        }
        // Past this a file size would overflow before it is compared with the real one.
        if self.num_parameters_checked().is_none_or(|n| n > 1 << 40) {
            return fail("hidden_size", "fewer than 2^40 parameters in all".into(), self.hidden_size.to_string());
        }
        Ok(())
    }

    /// What [`Arch`] may get wrong: field, expected, found.
    fn check_arch(&self) -> Result<(), (&'static str, String, String)> {
        let arch = &self.arch;
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if let Positions::Rotary { width, scaling, local_theta } = &arch.positions {
            if !width.is_multiple_of(2) || *width > self.head_dim || (*width == 0 && !self.head_dim.is_multiple_of(2)) {
                let found = if *width == 0 { self.head_dim } else { *width };
                return Err(("head_dim", "an even width (rotary positions turn pairs)".into(), found.to_string()));
            }
            // The rotary tables have this size, and nothing in the weights file vouches for it.
            if self.max_position_embeddings * self.head_dim > 1 << 28 {
                let expected = format!("at most 2^28 / head_dim {}", self.head_dim);
                return Err(("max_position_embeddings", expected, self.max_position_embeddings.to_string()));
            }
            check_scaling(scaling)?;
            if local_theta.is_some_and(|theta| !is_positive(theta)) {
                return Err(("rope_local_base_freq", "a positive number".into(), format!("{local_theta:?}")));
            }
        }
        if !arch.windows.is_empty() && arch.windows.len() != self.num_hidden_layers {
            let expected = format!("one window for each of {} layers", self.num_hidden_layers);
            return Err(("windows", expected, arch.windows.len().to_string()));
        }
        let is_fused = arch.qkv_order == QkvOrder::Interleaved || matches!(arch.family, Family::Gpt2 | Family::GptNeox);
        if is_fused && kv_heads != heads {
            return Err(("num_key_value_heads", format!("num_attention_heads {heads}"), kv_heads.to_string()));
        }
        if arch.is_encoder() != (arch.token_types > 0) || arch.token_types > MAX_SIZE {
            let expected = if arch.is_encoder() { format!("1 to {MAX_SIZE}") } else { "0 in a decoder".into() };
            return Err(("type_vocab_size", expected, arch.token_types.to_string()));
        }
        let factors = [
            ("query_pre_attn_scalar", arch.attention_scale),
            ("attn_logit_softcapping", arch.attention_softcap),
            ("final_logit_softcapping", arch.logit_softcap),
            ("embedding_scale", arch.embedding_scale),
        ];
        match factors.into_iter().find(|(_, factor)| factor.is_some_and(|factor| !is_positive(factor))) {
            Some((field, factor)) => Err((field, "a positive number".into(), format!("{factor:?}"))),
            None => Ok(()),
        }
    }

    /// Numbers in all tensors (a tied output layer counts once).
    pub fn num_parameters(&self) -> usize {
        self.num_parameters_checked().unwrap_or(usize::MAX)
    }

    /// The same sum as [`ParameterLayout`](crate::ParameterLayout)'s, in a type that sizes of 2²⁴ cannot overflow.
    fn num_parameters_checked(&self) -> Option<usize> {
        let arch = &self.arch;
        let [v, d, f, layers, heads, kv_heads, head, context] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
            self.max_position_embeddings,
        ]
        .map(|size| size.min(MAX_SIZE + 1) as u128);
        let if_so = |so: bool, n: u128| if so { n } else { 0 };
        let (q, kv, ups) = (heads * head, kv_heads * head, if arch.gated { 2 } else { 1 });
        let norm = |width: u128| width * if arch.norm == NormKind::Layer { 2 } else { 1 };
        let norms_per_layer = if arch.topology == Topology::Sandwich { 4 } else { 2 };
        let qk_norms = match arch.qk_norm {
            QkNorm::None => 0,
            QkNorm::PerHead => 2 * norm(head),
            QkNorm::Full => norm(q) + norm(kv),
        };
        let layer = d * (2 * q + 2 * kv + (ups + 1) * f)
            + if_so(arch.qkv_bias, q + 2 * kv)
            + if_so(arch.o_bias, d)
            + if_so(arch.mlp_bias, ups * f + d)
            + norms_per_layer * norm(d)
            + qk_norms;
        let encoder = arch.is_encoder();
        let total = v * d * if self.tie_word_embeddings || encoder { 1 } else { 2 }
            + if_so(arch.positions == Positions::Learned, context * d)
            + arch.token_types.min(MAX_SIZE + 1) as u128 * d
            + layers * layer
            + norm(d);
        usize::try_from(total).ok()
    }

    /// Width of all query heads together.
    pub(crate) const fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together (the values have the same).
    pub(crate) const fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of the fused query, key and value product.
    pub(crate) const fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.key_width()
    }
}

fn is_positive(number: f64) -> bool {
    number.is_finite() && number > 0.0
}

fn check_scaling(scaling: &RopeScaling) -> Result<(), (&'static str, String, String)> {
    let numbers = match *scaling {
        RopeScaling::None => vec![],
        RopeScaling::Linear { factor } => vec![factor],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            if high_freq_factor <= low_freq_factor {
                let expected = format!("high_freq_factor over low_freq_factor {low_freq_factor}");
                return Err(("rope_scaling", expected, high_freq_factor.to_string()));
            }
            vec![factor, low_freq_factor, high_freq_factor, original_max_position_embeddings as f64]
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings } => {
            if beta_fast < beta_slow {
                return Err((
                    "rope_scaling",
                    format!("beta_fast of beta_slow {beta_slow} or more"),
                    beta_fast.to_string(),
                ));
            }
            vec![factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings as f64]
        }
    };
    match numbers.into_iter().find(|&number| !is_positive(number)) {
        Some(number) => Err(("rope_scaling", "positive numbers".into(), number.to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
