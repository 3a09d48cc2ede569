//! Metadata of a GGUF file → [`DecoderConfig`]: what llama.cpp's architectures mean in our terms.
//!
//! Keys are those of llama.cpp (`llama.embedding_length`); what it fixes in code per architecture (windows of Gemma, the
//! place of the norms) is fixed here too. The converter of Hugging Face models in that project is the other half.

use std::collections::BTreeMap;
use std::path::Path;

use super::container::Value;
use crate::arch::{Activation, Arch, Family, NormKind, Positions, QkNorm, QkvOrder, RopeScaling, Topology};
use crate::config::DecoderConfig;
use crate::error::ModelError;

/// Architectures by llama.cpp's names.
const ARCHITECTURES: [(&str, Family); 8] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("gpt2", Family::Gpt2),
    ("gptneox", Family::GptNeox),
    ("olmo2", Family::Olmo2),
];

/// What the tensor table says and the metadata does not.
pub(crate) struct Tables<'a> {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// There is no output layer of its own.
    pub tied: bool,
    /// How many tensors there are.
    pub n_tensors: usize,
    /// True if a tensor of that name exists.
    pub has: &'a dyn Fn(&str) -> bool,
    /// Divisors of the rotary frequencies, if the file has them.
    pub rope_divisors: Option<&'a [f32]>,
}

/// The family of a file.
///
/// # Errors
/// [`ModelError::Config`] naming those that are read.
pub(crate) fn family(metadata: &BTreeMap<String, Value>, path: &Path) -> Result<Family, ModelError> {
    let name = metadata.get("general.architecture");
    let known = ARCHITECTURES.iter().find(|(known, _)| matches!(name, Some(Value::Text(name)) if name == known));
    known.map(|&(_, family)| family).ok_or_else(|| ModelError::Config {
        path: path.into(),
        field: "general.architecture",
        expected: ARCHITECTURES.map(|(name, _)| name).join(", "),
        found: shown(name),
    })
}

/// Reads the configuration.
///
/// # Errors
/// [`ModelError::Config`] naming the key that is missing, not supported, or at odds with another.
pub(crate) fn config(
    metadata: &BTreeMap<String, Value>,
    path: &Path,
    tables: &Tables<'_>,
) -> Result<DecoderConfig, ModelError> {
    let family = family(metadata, path)?;
    let meta = Meta { metadata, path, prefix: prefix(family) };
    if meta.find("expert_count").is_some_and(|n| *n != Value::Integer(0)) {
        return Err(meta.wrong("expert_count", "0 (mixtures of experts are not supported)"));
    }
    let heads = meta.size("attention.head_count", None)?;
    let hidden = meta.size("embedding_length", None)?;
    let head_dim = meta.size("attention.key_length", Some(hidden / heads.max(1)))?;
    if meta.size("attention.value_length", Some(head_dim))? != head_dim {
        return Err(meta.wrong("attention.value_length", "that of the keys"));
    }
    let layer_norm = matches!(family, Family::Gpt2 | Family::GptNeox);
    let eps = if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let mut config = DecoderConfig {
        vocab_size: tables.vocab_size,
        hidden_size: hidden,
        intermediate_size: meta.size("feed_forward_length", None)?,
        num_hidden_layers: meta.size("block_count", None)?,
        num_attention_heads: heads,
        num_key_value_heads: meta.size("attention.head_count_kv", Some(heads))?,
        head_dim,
        max_position_embeddings: meta.size("context_length", None)?,
        rope_theta: meta.number("rope.freq_base", Some(10_000.0))?,
        rms_norm_eps: narrow(meta.number(eps, None)?),
        tie_word_embeddings: tables.tied,
        initializer_range: 0.02,
        bos_token_id: meta.token("tokenizer.ggml.bos_token_id"),
        eos_token_id: meta.token("tokenizer.ggml.eos_token_id"),
        arch: Arch::llama(),
    };
    // A layer has tensors: a number of layers that the file does not vouch for is not laid out.
    if config.num_hidden_layers > tables.n_tensors {
        return Err(meta.wrong("block_count", format!("layers that {} tensors can make", tables.n_tensors)));
    }
    config.arch = meta.arch(family, &config, tables)?;
    config.validate().map_err(|error| match error {
        ModelError::Config { field, expected, found, .. } => {
            ModelError::Config { path: path.into(), field, expected, found }
        }
        other => other,
    })?;
    Ok(config)
}

/// The file holds f32; the configuration was written in decimal: 1e-5 and not 9.999999747e-6.
fn narrow(number: f64) -> f64 {
    (number as f32).to_string().parse().unwrap_or(number)
}

fn prefix(family: Family) -> &'static str {
    ARCHITECTURES.iter().find(|(_, known)| *known == family).map_or("", |(name, _)| name)
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".into(), |value| format!("{value:?}").chars().take(80).collect())
}

struct Meta<'a> {
    metadata: &'a BTreeMap<String, Value>,
    path: &'a Path,
    prefix: &'static str,
}

impl Meta<'_> {
    /// The value of `{architecture}.{key}`.
    fn find(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.prefix))
    }

    fn wrong(&self, field: &'static str, expected: impl Into<String>) -> ModelError {
        let found = shown(self.find(field));
        ModelError::Config { path: self.path.into(), field, expected: expected.into(), found }
    }

    fn size(&self, key: &'static str, default: Option<usize>) -> Result<usize, ModelError> {
        let integer = |value: &Value| match value {
            Value::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        let size = match self.find(key) {
            None => default,
            // One number per layer: they must agree, for all layers have one shape.
            Some(Value::List(list)) if list.iter().all(|n| *n == list[0]) => list.first().and_then(integer),
            Some(value) => integer(value),
        };
        size.filter(|n| (1..=1 << 24).contains(n))
            .ok_or_else(|| self.wrong(key, "an integer from 1 to 16777216, one for all layers"))
    }

    fn number(&self, key: &'static str, default: Option<f64>) -> Result<f64, ModelError> {
        let number = match self.find(key) {
            None => default,
            Some(Value::Float(x)) => Some(*x),
            Some(_) => None,
        };
        number.filter(|x| x.is_finite()).ok_or_else(|| self.wrong(key, "a finite number"))
    }

    fn token(&self, key: &str) -> Option<u32> {
        match self.metadata.get(key) {
            Some(Value::Integer(n)) => u32::try_from(*n).ok(),
            _ => None,
        }
    }

    fn arch(&self, family: Family, config: &DecoderConfig, tables: &Tables<'_>) -> Result<Arch, ModelError> {
        let has = |part: &str| (tables.has)(&format!("blk.0.{part}.bias"));
        let llama = Arch {
            family,
            qkv_bias: has("attn_q"),
            o_bias: has("attn_output"),
            mlp_bias: has("ffn_up"),
            ..Arch::llama()
        };
        let llama = match family {
            Family::Gpt2 => llama,
            _ => Arch { positions: self.rotary(family, config, tables)?, ..llama },
        };
        Ok(match family {
            Family::Llama => Arch { windows: self.windows(config, 0, 1)?, ..llama },
            Family::Qwen3 => Arch { qk_norm: QkNorm::PerHead, ..llama },
            Family::Olmo2 => {
                Arch { topology: Topology::Post, qk_norm: QkNorm::Full, windows: self.windows(config, 0, 4)?, ..llama }
            }
            Family::Gemma2 | Family::Gemma3 => self.gemma(family, config, llama)?,
            Family::Gpt2 => Arch {
                norm: NormKind::Layer,
                activation: self.activation(Activation::GeluTanh)?,
                gated: false,
                qkv_bias: true,
                o_bias: true,
                mlp_bias: true,
                positions: Positions::Learned,
                ..llama
            },
            Family::GptNeox => Arch {
                norm: NormKind::Layer,
                topology: if self.flag("use_parallel_residual", true)? { Topology::Parallel } else { Topology::Pre },
                // llama.cpp runs the tanh form; the models were trained with the exact one, and so they are run here.
                activation: self.activation(Activation::Gelu)?,
                gated: false,
                qkv_bias: has("attn_qkv"),
                o_bias: has("attn_output"),
                mlp_bias: has("ffn_up"),
                qkv_order: QkvOrder::Interleaved,
                ..llama
            },
            _ => llama,
        })
    }

    /// Gemma: norms of `1 + gain` before and after, scaled embedding, soft caps, local and global layers.
    fn gemma(&self, family: Family, config: &DecoderConfig, llama: Arch) -> Result<Arch, ModelError> {
        let third = family == Family::Gemma3;
        // The largest of either generation divides by the width per head of the stream, the others by the head's own width.
        let per_head = if config.num_hidden_layers == if third { 62 } else { 46 } {
            config.hidden_size / config.num_attention_heads
        } else {
            config.head_dim
        };
        let cap = |key, default: f64| -> Result<Option<f64>, ModelError> {
            Ok(Some(self.number(key, Some(default))?).filter(|&cap| cap > 0.0))
        };
        let period = if third { 6 } else { 2 };
        let default_window = if third { 0 } else { 4096 };
        Ok(Arch {
            norm: NormKind::RmsPlusOne,
            topology: Topology::Sandwich,
            activation: Activation::GeluTanh,
            qk_norm: if third { QkNorm::PerHead } else { QkNorm::None },
            windows: self.windows(config, default_window, period)?,
            attention_scale: Some(match self.number("attention.scale", Some(0.0))? {
                scale if scale > 0.0 => scale,
                _ => (per_head as f64).powf(-0.5),
            }),
            attention_softcap: cap("attn_logit_softcapping", if third { 0.0 } else { 50.0 })?,
            logit_softcap: cap("final_logit_softcapping", if third { 0.0 } else { 30.0 })?,
            embedding_scale: Some((config.hidden_size as f64).sqrt()),
            ..llama
        })
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, ModelError> {
        match self.find(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn activation(&self, default: Activation) -> Result<Activation, ModelError> {
        match self.find("hidden_activation") {
            None => Ok(default),
            Some(Value::Text(name)) => match name.as_str() {
                "gelu" => Ok(Activation::Gelu),
                "gelu_new" | "gelu_fast" | "gelu_tanh" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
                "relu" => Ok(Activation::Relu),
                "silu" => Ok(Activation::Silu),
                _ => Err(self.wrong("hidden_activation", "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu or silu")),
            },
            Some(_) => Err(self.wrong("hidden_activation", "a name")),
        }
    }

    /// The window of each layer: in each `period` all layers but the last have one, and all have one if the period is 1
    /// here (which only Mistral's files, of architecture `llama`, mean).
    fn windows(&self, config: &DecoderConfig, default: usize, period: usize) -> Result<Vec<usize>, ModelError> {
        let key = "attention.sliding_window";
        let window = match self.find(key) {
            None | Some(Value::Integer(0)) if default == 0 => return Ok(vec![]),
            Some(Value::Integer(0)) => return Ok(vec![]),
            _ => self.size(key, Some(default))?,
        };
        let n_layers = config.num_hidden_layers;
        let key = "attention.sliding_window_pattern";
        let local = |period: usize| (0..n_layers).map(move |l| period == 0 || l % period < period - 1).collect();
        let local: Vec<bool> = match self.find(key) {
            None if period == 1 => vec![true; n_layers],
            None => local(period),
            Some(Value::Integer(n)) if (0..=1 << 16).contains(n) => local(*n as usize),
            Some(Value::List(flags)) if flags.len() == n_layers => {
                let flag = |value: &Value| match value {
                    Value::Bool(flag) => Ok(*flag),
                    Value::Integer(n) => Ok(*n != 0),
                    _ => Err(self.wrong(key, "truth values")),
                };
                flags.iter().map(flag).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(self.wrong(key, "a period, or one truth value per layer")),
        };
        Ok(local.into_iter().map(|local| if local { window } else { 0 }).collect())
    }

    fn rotary(&self, family: Family, config: &DecoderConfig, tables: &Tables<'_>) -> Result<Positions, ModelError> {
        let width = self.size("rope.dimension_count", Some(config.head_dim))?;
        if width > config.head_dim || !width.is_multiple_of(2) || (family == Family::Llama && width != config.head_dim)
        {
            let expected = format!("an even part of a head of {} (all of it for llama)", config.head_dim);
            return Err(self.wrong("rope.dimension_count", expected));
        }
        let scaling = match tables.rope_divisors {
            Some(divisors) => self.llama3(divisors, config)?,
            None => self.scaling(config)?,
        };
        let local = match family {
            Family::Gemma3 => Some(self.number("rope.freq_base_swa", Some(10_000.0))?),
            // Local layers turn as they did before the context grew.
            Family::Olmo2 if scaling != RopeScaling::None => {
                Some(self.number("rope.freq_base_swa", Some(config.rope_theta))?)
            }
            _ => None,
        };
        let width = if width == config.head_dim { 0 } else { width };
        Ok(Positions::Rotary { width, scaling, local_theta: local })
    }

    fn scaling(&self, config: &DecoderConfig) -> Result<RopeScaling, ModelError> {
        let kind = match self.find("rope.scaling.type") {
            None => match self.number("rope.scale_linear", Some(0.0))? {
                factor if factor > 0.0 && factor != 1.0 => return Ok(RopeScaling::Linear { factor }),
                _ => return Ok(RopeScaling::None),
            },
            Some(Value::Text(kind)) => kind.as_str(),
            Some(_) => return Err(self.wrong("rope.scaling.type", "a name")),
        };
        let factor = || {
            let factor = self.number("rope.scaling.factor", None)?;
            if factor > 0.0 { Ok(factor) } else { Err(self.wrong("rope.scaling.factor", "a positive number")) }
        };
        match kind {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "yarn" => {
                let factor = factor()?;
                let context = Some(config.max_position_embeddings);
                let attention = self.number("rope.scaling.attn_factor", Some(1.0))?;
                Ok(RopeScaling::Yarn {
                    factor,
                    beta_fast: self.number("rope.scaling.yarn_beta_fast", Some(32.0))?,
                    beta_slow: self.number("rope.scaling.yarn_beta_slow", Some(1.0))?,
                    attention_factor: attention * (0.1 * factor.ln() + 1.0),
                    original_max_position_embeddings: self.size("rope.scaling.original_context_length", context)?,
                })
            }
            _ => Err(self.wrong("rope.scaling.type", "none, linear or yarn")),
        }
    }

    /// Llama 3 keeps the result of its formula, one divisor per frequency: the constants are found again and put to the test.
    fn llama3(&self, divisors: &[f32], config: &DecoderConfig) -> Result<RopeScaling, ModelError> {
        let context = self.size("rope.scaling.original_context_length", Some(8192))?;
        let factor = f64::from(divisors.iter().fold(1.0f32, |max, &x| max.max(x)));
        let (low, high) = (1.0, 4.0);
        let width = 2 * divisors.len();
        for (i, &divisor) in divisors.iter().enumerate() {
            let frequency = config.rope_theta.powf(-2.0 * i as f64 / width as f64);
            let turns = context as f64 * frequency / std::f64::consts::TAU;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
            if (f64::from(divisor) - expected).abs() > 1e-3 * expected {
                return Err(ModelError::Tensor {
                    path: self.path.into(),
                    tensor: "rope_freqs.weight".into(),
                    expected: format!("divisors of Llama 3 (low 1, high 4, context {context}): {expected} at {i}"),
                    found: divisor.to_string(),
                });
            }
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: context,
        })
    }
}
