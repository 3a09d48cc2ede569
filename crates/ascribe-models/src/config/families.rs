//! From the fields of a family's `config.json` to sizes and [`Arch`]. Defaults of absent fields are those of Hugging Face
//! `transformers`, because files on the Hub rely on them. The other way lives in `write`.

use serde_json::{Value, json};

use super::reader::Reader;
use super::{DecoderConfig, rope};
use crate::arch::{Activation, Arch, Family, NormKind, Positions, QkNorm, QkvOrder, Topology};
use crate::error::ModelError;

/// `model_type`, family, and the classes whose weights are understood.
const KINDS: [(&str, Family, &[&str]); 11] = [
    ("llama", Family::Llama, &["LlamaForCausalLM", "LlamaModel"]),
    ("mistral", Family::Mistral, &["MistralForCausalLM", "MistralModel"]),
    ("qwen2", Family::Qwen2, &["Qwen2ForCausalLM", "Qwen2Model"]),
    ("qwen3", Family::Qwen3, &["Qwen3ForCausalLM", "Qwen3Model"]),
    ("olmo2", Family::Olmo2, &["Olmo2ForCausalLM", "Olmo2Model"]),
    ("gpt2", Family::Gpt2, &["GPT2LMHeadModel", "GPT2Model"]),
    ("gpt_neox", Family::GptNeox, &["GPTNeoXForCausalLM", "GPTNeoXModel"]),
    ("gemma2", Family::Gemma2, &["Gemma2ForCausalLM", "Gemma2Model"]),
    ("gemma3_text", Family::Gemma3, &["Gemma3ForCausalLM", "Gemma3TextModel"]),
    ("gemma3", Family::Gemma3, &["Gemma3ForConditionalGeneration", "Gemma3Model", "Gemma3ForCausalLM"]),
    ("bert", Family::Bert, &["BertModel", "BertForMaskedLM", "BertForPreTraining"]),
];

/// `model_type` and class under which a family is written.
pub(super) fn kind_of(family: Family) -> (&'static str, &'static str) {
    let (model_type, _, classes) = KINDS.iter().find(|kind| kind.1 == family).expect("the table has every family");
    (model_type, classes[0])
}

/// Reads the configuration of any family. Whether the sizes fit together is checked by the caller.
pub(super) fn read(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    let model_type = reader.get("model_type").and_then(Value::as_str);
    let Some(&(_, family, classes)) = KINDS.iter().find(|kind| Some(kind.0) == model_type) else {
        let names: Vec<String> = KINDS.iter().map(|kind| format!("\"{}\"", kind.0)).collect();
        return Err(reader.fail("model_type", format!("one of {}", names.join(", "))));
    };
    if let Some(found) = reader.get("architectures")
        && found.as_array().is_none_or(|found| !found.iter().all(|class| classes.iter().any(|known| class == known)))
    {
        return Err(reader.fail("architectures", format!("one of {classes:?}")));
    }
    reader.only("quantization_config", &Value::Null, "nothing (weights are f32, bf16 or f16)")?;
    for field in ["is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"] {
        reader.only(field, &json!(false), "false")?;
    }
    match family {
        Family::Llama => llama(reader),
        Family::Mistral => mistral(reader),
        Family::Qwen2 | Family::Qwen3 => qwen(reader, family),
        Family::Olmo2 => olmo2(reader),
        Family::Gpt2 => gpt2(reader),
        Family::GptNeox => gpt_neox(reader),
        Family::Gemma2 => gemma2(reader),
        Family::Gemma3 if model_type == Some("gemma3") => gemma3_with_images(reader),
        Family::Gemma3 => gemma3(reader),
        Family::Bert => bert(reader),
    }
}

/// What families that spell their sizes like Llama assume of absent fields.
struct Defaults {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    n_layers: Option<usize>,
    n_heads: Option<usize>,
    /// None: as many as query heads.
    n_kv_heads: Option<usize>,
    /// None: the width of the model shared evenly.
    head_dim: Option<usize>,
    context: usize,
    eps_field: &'static str,
    eps: f64,
    tied: bool,
}

const DEFAULTS: Defaults = Defaults {
    vocab_size: None,
    hidden_size: None,
    intermediate_size: None,
    n_layers: None,
    n_heads: None,
    n_kv_heads: None,
    head_dim: None,
    context: 2048,
    eps_field: "rms_norm_eps",
    eps: 1e-6,
    tied: false,
};

/// Sizes in Llama's spelling; positions are not read yet.
fn sizes(reader: &Reader<'_>, family: Family, defaults: &Defaults) -> Result<DecoderConfig, ModelError> {
    let heads = reader.size("num_attention_heads", defaults.n_heads)?;
    let hidden = reader.size("hidden_size", defaults.hidden_size)?;
    let kv_heads = if reader.is_null("num_key_value_heads") { None } else { defaults.n_kv_heads };
    let shared = defaults.head_dim.or_else(|| hidden.is_multiple_of(heads).then_some(hidden / heads));
    if shared.is_none() && reader.get("head_dim").is_none() {
        return Err(reader.fail("hidden_size", format!("a multiple of num_attention_heads {heads} (or a head_dim)")));
    }
    Ok(DecoderConfig {
        vocab_size: reader.size("vocab_size", defaults.vocab_size)?,
        hidden_size: hidden,
        intermediate_size: reader.size("intermediate_size", defaults.intermediate_size)?,
        num_hidden_layers: reader.layers(["num_hidden_layers"; 2], defaults.n_layers)?,
        num_attention_heads: heads,
        num_key_value_heads: reader.size("num_key_value_heads", Some(kv_heads.unwrap_or(heads)))?,
        head_dim: reader.size("head_dim", shared)?,
        max_position_embeddings: reader.size("max_position_embeddings", Some(defaults.context))?,
        rope_theta: 10_000.0,
        rms_norm_eps: reader.positive(defaults.eps_field, defaults.eps)?,
        tie_word_embeddings: reader.flag("tie_word_embeddings", defaults.tied)?,
        initializer_range: reader.positive("initializer_range", 0.02)?,
        bos_token_id: reader.token("bos_token_id"),
        eos_token_id: reader.token("eos_token_id"),
        arch: Arch { family, ..Arch::llama() },
    })
}

/// Turns whole heads, by one set of parameters.
fn rotary(reader: &Reader<'_>, config: &mut DecoderConfig) -> Result<(), ModelError> {
    let rope = rope::flat(reader, reader.positive("rope_theta", 10_000.0)?, config.max_position_embeddings)?;
    let partial = rope.partial.map_or_else(|| reader.positive("partial_rotary_factor", 1.0), Ok)?;
    if partial != 1.0 {
        return Err(reader.fail("partial_rotary_factor", "1 (whole heads are turned in this family)"));
    }
    config.rope_theta = rope.theta;
    config.arch.positions = Positions::Rotary { width: 0, scaling: rope.scaling, local_theta: None };
    Ok(())
}

/// The window of each layer that `sliding` names.
fn windows(reader: &Reader<'_>, sliding: &[bool], window: Option<usize>) -> Result<Vec<usize>, ModelError> {
    if !sliding.contains(&true) {
        return Ok(vec![]);
    }
    let window = window.ok_or_else(|| reader.fail("sliding_window", "a size, because some layers have a window"))?;
    Ok(sliding.iter().map(|&sliding| if sliding { window } else { 0 }).collect())
}

fn sliding_window(reader: &Reader<'_>, default: usize) -> Result<Option<usize>, ModelError> {
    if reader.is_null("sliding_window") { Ok(None) } else { reader.size("sliding_window", Some(default)).map(Some) }
}

fn llama(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    reader.only("pretraining_tp", &json!(1), "1")?;
    let mut config = sizes(reader, Family::Llama, &DEFAULTS)?;
    let attention_bias = reader.flag("attention_bias", false)?;
    (config.arch.qkv_bias, config.arch.o_bias) = (attention_bias, attention_bias);
    config.arch.mlp_bias = reader.flag("mlp_bias", false)?;
    config.arch.activation = reader.activation("hidden_act", Activation::Silu)?;
    rotary(reader, &mut config)?;
    Ok(config)
}

fn mistral(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { n_kv_heads: Some(8), context: 4096 * 32, ..DEFAULTS };
    let mut config = sizes(reader, Family::Mistral, &defaults)?;
    config.arch.activation = reader.activation("hidden_act", Activation::Silu)?;
    let window = sliding_window(reader, 4096)?;
    config.arch.windows = windows(reader, &vec![window.is_some(); n_layers(&config)], window)?;
    rotary(reader, &mut config)?;
    Ok(config)
}

fn qwen(reader: &Reader<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    let is_third = family == Family::Qwen3;
    let head_dim = is_third.then_some(128);
    let defaults = Defaults { n_kv_heads: Some(32), head_dim, context: 32_768, ..DEFAULTS };
    let mut config = sizes(reader, family, &defaults)?;
    config.arch.activation = reader.activation("hidden_act", Activation::Silu)?;
    if is_third {
        let bias = reader.flag("attention_bias", false)?;
        (config.arch.qkv_bias, config.arch.o_bias) = (bias, bias);
        config.arch.qk_norm = QkNorm::PerHead;
    } else {
        config.arch.qkv_bias = true;
    }
    let window = if reader.flag("use_sliding_window", false)? { sliding_window(reader, 4096)? } else { None };
    let sliding = match reader.layer_types(n_layers(&config))? {
        Some(sliding) => sliding,
        None => {
            // 0 is a size here: every layer has a window.
            let first = reader.get("max_window_layers").map_or(Some(28), Value::as_u64);
            let first = first.ok_or_else(|| reader.fail("max_window_layers", "a number of layers"))?;
            (0..n_layers(&config) as u64).map(|l| window.is_some() && l >= first).collect()
        }
    };
    config.arch.windows = windows(reader, &sliding, window)?;
    rotary(reader, &mut config)?;
    Ok(config)
}

fn olmo2(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = sizes(reader, Family::Olmo2, &Defaults { eps: 1e-5, ..DEFAULTS })?;
    let bias = reader.flag("attention_bias", false)?;
    (config.arch.qkv_bias, config.arch.o_bias) = (bias, bias);
    config.arch.activation = reader.activation("hidden_act", Activation::Silu)?;
    config.arch.topology = Topology::Post;
    config.arch.qk_norm = QkNorm::Full;
    rotary(reader, &mut config)?;
    Ok(config)
}

fn gpt2(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    reader.only("scale_attn_by_inverse_layer_idx", &json!(false), "false")?;
    let hidden = reader.size_of_two(["n_embd", "hidden_size"], None)?;
    let heads = reader.size_of_two(["n_head", "num_attention_heads"], None)?;
    if !hidden.is_multiple_of(heads) {
        return Err(reader.fail("n_embd", format!("a multiple of n_head {heads}")));
    }
    let scaled = reader.flag("scale_attn_weights", true)?;
    Ok(DecoderConfig {
        vocab_size: reader.size("vocab_size", None)?,
        hidden_size: hidden,
        intermediate_size: reader.size("n_inner", Some(4 * hidden))?,
        num_hidden_layers: reader.layers(["n_layer", "num_hidden_layers"], None)?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden / heads,
        max_position_embeddings: reader.size_of_two(["n_positions", "max_position_embeddings"], Some(1024))?,
        rope_theta: 10_000.0,
        rms_norm_eps: reader.positive("layer_norm_epsilon", 1e-5)?,
        tie_word_embeddings: reader.flag("tie_word_embeddings", true)?,
        initializer_range: reader.positive("initializer_range", 0.02)?,
        bos_token_id: reader.token("bos_token_id"),
        eos_token_id: reader.token("eos_token_id"),
        arch: Arch {
            activation: reader.activation("activation_function", Activation::GeluTanh)?,
            attention_scale: (!scaled).then_some(1.0),
            ..layer_normed(Family::Gpt2, Topology::Pre)
        },
    })
}

/// LayerNorm, biases everywhere, a feed-forward without a gate, learned positions.
fn layer_normed(family: Family, topology: Topology) -> Arch {
    Arch {
        family,
        topology,
        norm: NormKind::Layer,
        gated: false,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        positions: Positions::Learned,
        ..Arch::llama()
    }
}

fn gpt_neox(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = sizes(reader, Family::GptNeox, &Defaults { eps_field: "layer_norm_eps", eps: 1e-5, ..DEFAULTS })?;
    let rope = rope::flat(reader, reader.positive("rotary_emb_base", 10_000.0)?, config.max_position_embeddings)?;
    let partial = rope.partial.map_or_else(|| reader.positive("rotary_pct", 0.25), Ok)?;
    // Truncated, as Python's `int` does.
    let width = (config.head_dim as f64 * partial) as usize;
    if width == 0 || width > config.head_dim || !width.is_multiple_of(2) {
        return Err(reader.fail("rotary_pct", format!("an even part of head width {}, got {width}", config.head_dim)));
    }
    let parallel = reader.flag("use_parallel_residual", true)?;
    let bias = reader.flag("attention_bias", true)?;
    config.rope_theta = rope.theta;
    config.arch = Arch {
        activation: reader.activation("hidden_act", Activation::Gelu)?,
        qkv_order: QkvOrder::Interleaved,
        qkv_bias: bias,
        o_bias: bias,
        positions: Positions::Rotary {
            width: if width == config.head_dim { 0 } else { width },
            scaling: rope.scaling,
            local_theta: None,
        },
        ..layer_normed(Family::GptNeox, if parallel { Topology::Parallel } else { Topology::Pre })
    };
    Ok(config)
}

fn gemma2(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults { n_kv_heads: Some(4), head_dim: Some(256), context: 8192, tied: true, ..DEFAULTS };
    let mut config = sizes(reader, Family::Gemma2, &defaults)?;
    gemma(reader, &mut config, 2)?;
    config.arch.attention_softcap = reader.positive_or_null("attn_logit_softcapping", Some(50.0))?;
    config.arch.logit_softcap = reader.positive_or_null("final_logit_softcapping", Some(30.0))?;
    rotary(reader, &mut config)?;
    Ok(config)
}

/// What Gemma 2 and 3 share; every `pattern`-th layer sees everything.
fn gemma(reader: &Reader<'_>, config: &mut DecoderConfig, pattern: usize) -> Result<(), ModelError> {
    let bias = reader.flag("attention_bias", false)?;
    let arch = &mut config.arch;
    arch.norm = NormKind::RmsPlusOne;
    arch.topology = Topology::Sandwich;
    arch.activation = reader.activation("hidden_activation", Activation::GeluTanh)?;
    (arch.qkv_bias, arch.o_bias) = (bias, bias);
    arch.attention_scale = Some(reader.positive("query_pre_attn_scalar", 256.0)?.powf(-0.5));
    arch.embedding_scale = Some((config.hidden_size as f64).sqrt());
    let layers = config.num_hidden_layers;
    let alternating = || (1..=layers).map(|l| !l.is_multiple_of(pattern)).collect();
    let sliding = reader.layer_types(layers)?.unwrap_or_else(alternating);
    arch.windows = windows(reader, &sliding, sliding_window(reader, 4096)?)?;
    Ok(())
}

fn gemma3(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    // The published configurations leave out what is as it was in the first one.
    let defaults = Defaults {
        vocab_size: Some(262_208),
        hidden_size: Some(2304),
        intermediate_size: Some(9216),
        n_layers: Some(26),
        n_heads: Some(8),
        n_kv_heads: Some(4),
        head_dim: Some(256),
        context: 131_072,
        tied: true,
        ..DEFAULTS
    };
    let mut config = sizes(reader, Family::Gemma3, &defaults)?;
    gemma(reader, &mut config, reader.size("sliding_window_pattern", Some(6))?)?;
    config.arch.qk_norm = QkNorm::PerHead;
    // `attn_logit_softcapping` stands in these files too, but the family's attention does not use it.
    config.arch.logit_softcap = reader.positive_or_null("final_logit_softcapping", None)?;
    let (global, local_theta) = rope::global_and_local(reader, config.max_position_embeddings)?;
    if global.partial.is_some_and(|partial| partial != 1.0) {
        return Err(reader.fail("rope_parameters", "no partial_rotary_factor but 1"));
    }
    config.rope_theta = global.theta;
    config.arch.positions = Positions::Rotary { width: 0, scaling: global.scaling, local_theta: Some(local_theta) };
    Ok(config)
}

/// The text half of a model that also sees images.
fn gemma3_with_images(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    let Some(Value::Object(fields)) = reader.get("text_config") else {
        return Err(reader.fail("text_config", "an object"));
    };
    let text = Reader { fields, path: reader.path };
    text.only("model_type", &json!("gemma3_text"), "\"gemma3_text\"")?;
    text.only("quantization_config", &Value::Null, "nothing (weights are f32, bf16 or f16)")?;
    text.only("use_bidirectional_attention", &json!(false), "false")?;
    let mut config = gemma3(&text)?;
    config.tie_word_embeddings = reader.flag("tie_word_embeddings", config.tie_word_embeddings)?;
    Ok(config)
}

fn bert(reader: &Reader<'_>) -> Result<DecoderConfig, ModelError> {
    reader.only("is_decoder", &json!(false), "false (an encoder)")?;
    reader.only("position_embedding_type", &json!("absolute"), "\"absolute\"")?;
    let defaults = Defaults { context: 512, eps_field: "layer_norm_eps", eps: 1e-12, tied: true, ..DEFAULTS };
    let mut config = sizes(reader, Family::Bert, &defaults)?;
    config.arch = Arch {
        activation: reader.activation("hidden_act", Activation::Gelu)?,
        token_types: reader.size("type_vocab_size", Some(2))?,
        ..layer_normed(Family::Bert, Topology::Encoder)
    };
    Ok(config)
}

fn n_layers(config: &DecoderConfig) -> usize {
    config.num_hidden_layers
}
