//! What a decoder looks like: Hugging Face `config.json` of a `LlamaForCausalLM`, read strictly.
//!
//! A field that changes the arithmetic and is not supported is refused by name; fields about generation or bookkeeping
//! are ignored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::arch::Arch;
use crate::error::ModelError;

/// Name of the configuration file in a model folder.
pub const CONFIG_FILE: &str = "config.json";

/// A configuration file larger than this is not one.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// No width, depth or vocabulary beyond this is believed.
const MAX_SIZE: usize = 1 << 24;

/// Sizes and constants of a Llama-type decoder: RMSNorm, rotary positions (half layout), grouped causal attention,
/// SwiGLU, no biases.
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
    /// Width of a head; even.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
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
        let reader = Reader { fields, path };
        reader.refuse_what_is_not_supported()?;
        let heads = reader.size("num_attention_heads", None)?;
        let hidden = reader.size("hidden_size", None)?;
        let head_dim = reader.size("head_dim", Some(hidden / heads))?;
        let config = Self {
            vocab_size: reader.size("vocab_size", None)?,
            hidden_size: hidden,
            intermediate_size: reader.size("intermediate_size", None)?,
            num_hidden_layers: reader.size("num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: reader.size("num_key_value_heads", Some(heads))?,
            head_dim,
            max_position_embeddings: reader.size("max_position_embeddings", Some(2048))?,
            rope_theta: reader.rope_theta()?,
            rms_norm_eps: reader.positive("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: reader.flag("tie_word_embeddings", false)?,
            initializer_range: reader.positive("initializer_range", 0.02)?,
            bos_token_id: reader.token("bos_token_id"),
            eos_token_id: reader.token("eos_token_id"),
            arch: Arch::llama(),
        };
        config.check(path)?;
        Ok(config)
    }

    /// The Hugging Face form: `transformers` opens a folder with it.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": null,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        for (name, token) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if let Some(token) = token {
                value[name] = token.into();
            }
        }
        value
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
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.num_attention_heads);
            return fail("num_key_value_heads", expected, self.num_key_value_heads.to_string());
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail("head_dim", "an even width (rotary positions turn pairs)".into(), self.head_dim.to_string());
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
        // The rotary tables have this size, and nothing in the weights file vouches for it.
        if self.max_position_embeddings * self.head_dim > 1 << 28 {
            let expected = format!("at most 2^28 / head_dim {}", self.head_dim);
            return fail("max_position_embeddings", expected, self.max_position_embeddings.to_string());
        }
        // Past this a file size would overflow before it is compared with the real one.
        if self.num_parameters_checked().is_none_or(|n| n > 1 << 40) {
            return fail("hidden_size", "fewer than 2^40 parameters in all".into(), self.hidden_size.to_string());
        }
        Ok(())
    }

    /// Numbers in all tensors (a tied output layer counts once).
    pub fn num_parameters(&self) -> usize {
        self.num_parameters_checked().unwrap_or(usize::MAX)
    }

    fn num_parameters_checked(&self) -> Option<usize> {
        let d = self.hidden_size;
        let attention = d.checked_mul(2 * self.query_width() + 2 * self.key_width())?;
        let feed_forward = d.checked_mul(3)?.checked_mul(self.intermediate_size)?;
        let layer = attention.checked_add(feed_forward)?.checked_add(2 * d)?;
        let embedding = self.vocab_size.checked_mul(d)?;
        let copies = if self.tie_word_embeddings { 1 } else { 2 };
        layer.checked_mul(self.num_hidden_layers)?.checked_add(embedding.checked_mul(copies)?)?.checked_add(d)
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

struct Reader<'a> {
    fields: &'a Map<String, Value>,
    path: &'a Path,
}

impl Reader<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn fail(&self, field: &'static str, expected: impl Into<String>) -> ModelError {
        let found = self.get(field).map_or_else(|| "nothing".into(), |v| v.to_string().chars().take(120).collect());
        ModelError::Config { path: self.path.into(), field, expected: expected.into(), found }
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), ModelError> {
        if self.get("model_type").and_then(Value::as_str) != Some("llama") {
            return Err(self.fail("model_type", "\"llama\" (the only kind that is supported)"));
        }
        if let Some(kinds) = self.get("architectures")
            && kinds.as_array().is_none_or(|kinds| kinds.iter().any(|kind| kind != "LlamaForCausalLM"))
        {
            return Err(self.fail("architectures", "[\"LlamaForCausalLM\"]"));
        }
        if self.get("hidden_act").is_some_and(|act| act != "silu") {
            return Err(self.fail("hidden_act", "\"silu\""));
        }
        for field in ["attention_bias", "mlp_bias"] {
            if self.flag(field, false)? {
                return Err(self.fail(field, "false (layers have no biases)"));
            }
        }
        let is_default = |scaling: &Value| {
            let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
            kind.is_none_or(|kind| kind == "default")
        };
        for field in ["rope_scaling", "rope_parameters"] {
            if self.get(field).is_some_and(|scaling| !is_default(scaling)) {
                return Err(self.fail(field, "null or rope_type \"default\""));
            }
        }
        if self.get("quantization_config").is_some() {
            return Err(self.fail("quantization_config", "nothing (weights are f32, bf16 or f16)"));
        }
        if self.get("pretraining_tp").is_some_and(|tp| tp != 1) {
            return Err(self.fail("pretraining_tp", "1"));
        }
        Ok(())
    }

    fn size(&self, field: &'static str, default: Option<usize>) -> Result<usize, ModelError> {
        let expected = || format!("an integer from 1 to {MAX_SIZE}");
        let size = match (self.get(field), default) {
            (Some(value), _) => value.as_u64().and_then(|n| usize::try_from(n).ok()),
            (None, default) => default,
        };
        size.filter(|n| (1..=MAX_SIZE).contains(n)).ok_or_else(|| self.fail(field, expected()))
    }

    fn positive(&self, field: &'static str, default: f64) -> Result<f64, ModelError> {
        let number = self.get(field).map_or(Some(default), Value::as_f64);
        number.filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| self.fail(field, "a positive number"))
    }

    fn flag(&self, field: &'static str, default: bool) -> Result<bool, ModelError> {
        self.get(field).map_or(Some(default), Value::as_bool).ok_or_else(|| self.fail(field, "true or false"))
    }

    /// The old place is `rope_theta`, the newer one `rope_parameters.rope_theta`.
    fn rope_theta(&self) -> Result<f64, ModelError> {
        match self.get("rope_parameters").and_then(|parameters| parameters.get("rope_theta")) {
            Some(value) if self.get("rope_theta").is_none() => {
                let theta = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
                theta.ok_or_else(|| self.fail("rope_parameters", "a positive rope_theta"))
            }
            _ => self.positive("rope_theta", 10_000.0),
        }
    }

    /// Bookkeeping only (several end tokens are possible there), so nothing is refused.
    fn token(&self, field: &str) -> Option<u32> {
        self.get(field).and_then(Value::as_u64).and_then(|token| u32::try_from(token).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 11,
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        })
    }

    fn read(value: &Value) -> Result<DecoderConfig, ModelError> {
        DecoderConfig::from_json(value, Path::new("config.json"))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = read(&tiny()).unwrap();
        assert_eq!(config.head_dim, 2);
        assert_eq!(read(&config.to_json()).unwrap(), config);
        // Embedding 88; per layer: q 64, k and v 32 each, o 64, three times 96, two norms of 8; last norm 8.
        assert_eq!(config.num_parameters(), 88 + 2 * (192 + 288 + 16) + 8);
    }

    #[test]
    fn unsupported_kinds_are_refused_by_name() {
        let cases = [
            ("model_type", json!("gpt2")),
            ("architectures", json!(["MistralForCausalLM"])),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(3)),
            ("vocab_size", json!(-1)),
            ("hidden_size", json!(1u64 << 60)),
            ("rms_norm_eps", json!(0)),
            ("tie_word_embeddings", json!("yes")),
            ("intermediate_size", Value::Null),
            ("max_position_embeddings", json!(1u64 << 40)),
        ];
        for (field, bad) in cases {
            let mut value = tiny();
            value[field] = bad.clone();
            let message = read(&value).unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")) && message.contains("expected"), "{field}: {message}");
        }
    }

    #[test]
    fn rotary_tables_stay_within_reason() {
        let mut value = tiny();
        value["head_dim"] = json!(64);
        value["max_position_embeddings"] = json!(1 << 23);
        let message = read(&value).unwrap_err().to_string();
        assert!(message.contains("`max_position_embeddings`") && message.contains("2^28 / head_dim 64"), "{message}");
    }

    #[test]
    fn newer_rope_parameters_are_understood() {
        let mut value = tiny();
        value["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5000.0});
        assert_eq!(read(&value).unwrap().rope_theta, 5000.0);
    }
}
