//! From sizes and [`Arch`] to a `config.json` that Hugging Face `transformers` opens. Reading lives in `families`.

use serde_json::{Value, json};

use super::{DecoderConfig, families, rope};
use crate::arch::{Activation, Family, Positions, RopeScaling, Topology};

/// The `config.json` of any family.
pub(super) fn to_json(config: &DecoderConfig) -> Value {
    let mut value = match config.arch.family {
        Family::Llama => llama(config),
        Family::Gpt2 => gpt2(config),
        Family::GptNeox => gpt_neox(config),
        Family::Bert => bert(config),
        Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Olmo2 => like_llama(config),
        Family::Gemma2 | Family::Gemma3 => gemma(config),
    };
    let (model_type, class) = families::kind_of(config.arch.family);
    value["architectures"] = json!([class]);
    value["model_type"] = model_type.into();
    value["initializer_range"] = config.initializer_range.into();
    value["tie_word_embeddings"] = config.tie_word_embeddings.into();
    value["torch_dtype"] = "float32".into();
    value["use_cache"] = true.into();
    value["vocab_size"] = config.vocab_size.into();
    for (name, token) in [("bos_token_id", config.bos_token_id), ("eos_token_id", config.eos_token_id)] {
        if let Some(token) = token {
            value[name] = token.into();
        }
    }
    value
}

fn activation(config: &DecoderConfig) -> &'static str {
    match config.arch.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh if config.arch.family == Family::Gpt2 => "gelu_new",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::Relu => "relu",
    }
}

fn scaling(config: &DecoderConfig) -> Value {
    match &config.arch.positions {
        Positions::Rotary { scaling, .. } => rope::to_json(scaling),
        Positions::Learned => rope::to_json(&RopeScaling::None),
    }
}

fn llama(config: &DecoderConfig) -> Value {
    json!({
        "attention_bias": config.arch.qkv_bias,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": activation(config),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": config.arch.mlp_bias,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": scaling(config),
        "rope_theta": config.rope_theta,
    })
}

/// Llama's fields, and those of the family that say more.
fn like_llama(config: &DecoderConfig) -> Value {
    let mut value = llama(config);
    let fields = value.as_object_mut().expect("an object was written");
    fields.remove("mlp_bias");
    let family = config.arch.family;
    if matches!(family, Family::Mistral | Family::Qwen2) {
        fields.remove("attention_bias");
    }
    let window = config.arch.windows.iter().copied().find(|&window| window > 0);
    if family != Family::Olmo2 {
        value["sliding_window"] = window.into();
    }
    if matches!(family, Family::Qwen2 | Family::Qwen3) {
        value["use_sliding_window"] = window.is_some().into();
        // Older versions know no `layer_types`, only the first layer with a window.
        let first = config.arch.windows.iter().position(|&window| window > 0);
        value["max_window_layers"] = first.unwrap_or(config.num_hidden_layers).into();
        value["layer_types"] = layer_types(config);
    }
    value
}

fn layer_types(config: &DecoderConfig) -> Value {
    let kind = |l| if config.arch.window(l) == usize::MAX { "full_attention" } else { "sliding_attention" };
    (0..config.num_hidden_layers).map(kind).collect()
}

fn gemma(config: &DecoderConfig) -> Value {
    let arch = &config.arch;
    let mut value = llama(config);
    let fields = value.as_object_mut().expect("an object was written");
    fields.remove("mlp_bias");
    fields.remove("hidden_act");
    value["hidden_activation"] = activation(config).into();
    value["layer_types"] = layer_types(config);
    value["sliding_window"] = arch.windows.iter().copied().find(|&window| window > 0).into();
    // `transformers` wants an integer, and every published one is.
    let scale = arch.attention_scale.unwrap_or((config.head_dim as f64).powf(-0.5));
    let (scalar, whole) = (scale.powi(-2), scale.powi(-2).round());
    let is_whole = (scalar / whole - 1.0).abs() < 1e-12;
    value["query_pre_attn_scalar"] = if is_whole { json!(whole as u64) } else { json!(scalar) };
    value["attn_logit_softcapping"] = arch.attention_softcap.into();
    value["final_logit_softcapping"] = arch.logit_softcap.into();
    if let Positions::Rotary { local_theta: Some(theta), .. } = arch.positions {
        value["rope_local_base_freq"] = theta.into();
    }
    value
}

fn gpt2(config: &DecoderConfig) -> Value {
    json!({
        "activation_function": activation(config),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": config.rms_norm_eps,
        "n_embd": config.hidden_size,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_positions": config.max_position_embeddings,
        "resid_pdrop": 0.0,
        "scale_attn_weights": config.arch.attention_scale.is_none(),
    })
}

fn gpt_neox(config: &DecoderConfig) -> Value {
    let width = match config.arch.positions {
        Positions::Rotary { width, .. } if width > 0 => width,
        _ => config.head_dim,
    };
    let mut part = width as f64 / config.head_dim as f64;
    // The reader truncates the product; the quotient may be rounded down.
    if ((config.head_dim as f64 * part) as usize) < width {
        part = part.next_up();
    }
    json!({
        "attention_bias": config.arch.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_act": activation(config),
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "rope_scaling": scaling(config),
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": part,
        "use_parallel_residual": config.arch.topology == Topology::Parallel,
    })
}

fn bert(config: &DecoderConfig) -> Value {
    json!({
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": activation(config),
        "hidden_dropout_prob": 0.0,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "type_vocab_size": config.arch.token_types,
    })
}
