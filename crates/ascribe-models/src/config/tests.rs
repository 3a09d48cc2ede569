//! Configurations of every family: what is read, what is written back, what is refused.

use serde_json::json;

use super::*;
use crate::arch::Activation;
use crate::layout::ParameterLayout;

fn tiny() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 11,
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    })
}

/// The sizes of [`tiny`] under another `model_type`, with `more` fields (null removes one).
fn kind(model_type: &str, more: Value) -> Value {
    let mut value = tiny();
    let fields = value.as_object_mut().unwrap();
    fields.remove("architectures");
    fields.remove("hidden_act");
    fields.insert("model_type".into(), model_type.into());
    for (name, value) in more.as_object().unwrap() {
        fields.insert(name.clone(), value.clone());
    }
    value
}

fn gpt2(more: Value) -> Value {
    let mut value = json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 3, "vocab_size": 11 });
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn read(value: &Value) -> Result<DecoderConfig, ModelError> {
    DecoderConfig::from_json(value, Path::new("config.json"))
}

/// One configuration of every family and notable variant.
fn every_kind() -> Vec<DecoderConfig> {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8});
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4});
    let alternating = json!(["full_attention", "sliding_attention"]);
    let values = [
        tiny(),
        kind("llama", json!({"rope_scaling": llama3, "attention_bias": true, "mlp_bias": true, "hidden_act": "gelu"})),
        kind("llama", json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": false})),
        kind("llama", json!({"rope_scaling": yarn})),
        kind("mistral", json!({"sliding_window": 5})),
        kind("mistral", json!({"sliding_window": null})),
        kind("qwen2", json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1})),
        kind("qwen3", json!({"head_dim": 6, "use_sliding_window": true, "layer_types": alternating})),
        kind("olmo2", json!({"attention_bias": true})),
        gpt2(json!({"n_inner": 20, "activation_function": "relu", "scale_attn_weights": false})),
        gpt2(json!({})),
        kind("gpt_neox", json!({"num_key_value_heads": 4, "rotary_pct": 1.0, "use_parallel_residual": false})),
        kind("gpt_neox", json!({"num_key_value_heads": 2, "num_attention_heads": 2, "rotary_pct": 0.5})),
        kind("gemma2", json!({"head_dim": 6, "query_pre_attn_scalar": 7, "sliding_window": 3})),
        kind(
            "gemma3_text",
            json!({"head_dim": 6, "sliding_window": 3, "num_hidden_layers": 6,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ),
        kind("bert", json!({"num_key_value_heads": 4, "type_vocab_size": 3})),
    ];
    values.iter().map(|value| read(value).unwrap()).collect()
}

#[test]
fn what_is_written_is_read_back() {
    for config in every_kind() {
        assert_eq!(read(&config.to_json()).unwrap(), config);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DecoderConfig>(&text).unwrap(), config);
    }
}

/// The sum that refuses sizes before anything is allocated is the sum of what is then allocated.
#[test]
fn parameters_are_counted_before_they_are_placed() {
    for config in every_kind() {
        assert_eq!(config.num_parameters(), ParameterLayout::new(&config).len(), "{config:?}");
    }
    // Embedding 88; per layer: q 64, k and v 32 each, o 64, three times 96, two norms of 8; last norm 8.
    assert_eq!(read(&tiny()).unwrap().num_parameters(), 88 + 2 * (192 + 288 + 16) + 8);
}

#[test]
fn unsupported_kinds_are_refused_by_name() {
    let cases = [
        ("model_type", json!("mixtral")),
        ("architectures", json!(["MistralForCausalLM"])),
        ("hidden_act", json!("mish")),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 8.0})),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": -1.0})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0, "truncate": false})),
        ("rope_scaling", json!(7)),
        ("rope_parameters", json!({"full_attention": {"rope_type": "default"}})),
        ("partial_rotary_factor", json!(0.5)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(3)),
        ("vocab_size", json!(-1)),
        ("hidden_size", json!(1u64 << 60)),
        ("num_hidden_layers", json!(5000)),
        ("rms_norm_eps", json!(0)),
        ("tie_word_embeddings", json!("yes")),
        ("intermediate_size", Value::Null),
        ("max_position_embeddings", json!(1u64 << 40)),
        ("quantization_config", json!({"bits": 4})),
        ("pretraining_tp", json!(2)),
    ];
    for (field, bad) in cases {
        let mut value = tiny();
        value[field] = bad.clone();
        let message = read(&value).unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")) && message.contains("expected"), "{field}: {message}");
    }
}

#[test]
fn what_only_some_families_know_is_refused_there() {
    let cases = [
        ("scale_attn_by_inverse_layer_idx", gpt2(json!({"scale_attn_by_inverse_layer_idx": true}))),
        ("add_cross_attention", gpt2(json!({"add_cross_attention": true}))),
        ("n_embd", gpt2(json!({"n_embd": 9}))),
        ("activation_function", gpt2(json!({"activation_function": "tanh"}))),
        ("position_embedding_type", kind("bert", json!({"position_embedding_type": "relative_key"}))),
        ("is_decoder", kind("bert", json!({"is_decoder": true}))),
        ("rotary_pct", kind("gpt_neox", json!({"num_key_value_heads": 4, "rotary_pct": 0.5}))),
        ("num_key_value_heads", kind("gpt_neox", json!({"rotary_pct": 1.0}))),
        ("layer_types", kind("qwen2", json!({"layer_types": ["full_attention"]}))),
        ("layer_types", kind("qwen3", json!({"layer_types": ["full_attention", "chunked_attention"]}))),
        ("sliding_window", kind("qwen2", json!({"layer_types": ["full_attention", "sliding_attention"]}))),
        ("use_bidirectional_attention", kind("gemma2", json!({"use_bidirectional_attention": true}))),
        ("rope_parameters", kind("gemma3_text", json!({"rope_parameters": {"rope_type": "default"}}))),
        ("text_config", kind("gemma3", json!({}))),
    ];
    for (field, value) in cases {
        let message = read(&value).unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")) && message.contains("expected"), "{field}: {message}");
    }
    let message = read(&kind("mixtral", json!({}))).unwrap_err().to_string();
    assert!(["llama", "gemma3_text", "bert", "mixtral"].iter().all(|name| message.contains(name)), "{message}");
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
fn both_spellings_of_rotary_positions_are_understood() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8});
    let old = read(&kind("llama", json!({"rope_theta": 5e5, "rope_scaling": scaling}))).unwrap();
    let mut newer = scaling;
    newer["rope_theta"] = json!(5e5);
    assert_eq!(read(&kind("llama", json!({"rope_parameters": newer}))).unwrap(), old);
    assert_eq!(old.rope_theta, 5e5);

    let old = json!({"num_key_value_heads": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "rotary_pct": 0.5,
        "rotary_emb_base": 100});
    let newer = json!({"num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5, "rope_type": "default"}});
    assert_eq!(read(&kind("gpt_neox", old)).unwrap(), read(&kind("gpt_neox", newer)).unwrap());

    let old =
        json!({"rope_theta": 7e5, "rope_local_base_freq": 9e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let newer = json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 9e3}}});
    let old = read(&kind("gemma3_text", old)).unwrap();
    assert_eq!(read(&kind("gemma3_text", newer)).unwrap(), old);
    let Positions::Rotary { scaling, local_theta, .. } = &old.arch.positions else { panic!("{old:?}") };
    assert_eq!((scaling, *local_theta), (&RopeScaling::Linear { factor: 8.0 }, Some(9e3)));

    // The dynamic kind changes nothing within the context.
    let dynamic = kind("llama", json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}));
    assert_eq!(read(&dynamic).unwrap().arch, Arch::llama());
}

/// Defaults of YaRN: rotations of 32 and 1, and cosines scaled by 0.1·ln(factor) + 1.
#[test]
fn yarn_has_the_defaults_of_its_paper() {
    let scaling = |more: Value| {
        let mut yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4});
        yarn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = read(&kind("llama", json!({ "rope_scaling": yarn }))).unwrap();
        let Positions::Rotary { scaling: RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. }, .. } =
            config.arch.positions
        else {
            panic!("another scaling was read");
        };
        (beta_fast, beta_slow, attention_factor)
    };
    assert_eq!(scaling(json!({})), (32.0, 1.0, 0.1 * 4f64.ln() + 1.0));
    assert_eq!(scaling(json!({"attention_factor": 1.5, "beta_fast": 8, "beta_slow": 2})), (8.0, 2.0, 1.5));
    assert_eq!(scaling(json!({"mscale": 0.7, "mscale_all_dim": 0.7})).2, 1.0);
    let read_as_json = read(&kind(
        "llama",
        json!({"rope_scaling": {"type": "yarn", "factor": null,
        "original_max_position_embeddings": 4}}),
    ));
    let Positions::Rotary { scaling: RopeScaling::Yarn { factor, .. }, .. } = read_as_json.unwrap().arch.positions
    else {
        panic!("another scaling was read");
    };
    assert_eq!(factor, 4.0, "16 positions, 4 before");
}

/// Files on the Hub leave these out.
#[test]
fn absent_fields_mean_what_transformers_takes_them_for() {
    let mistral = read(&kind("mistral", json!({}))).unwrap();
    assert_eq!(mistral.arch.windows, [4096, 4096]);
    let mut value = kind("mistral", json!({"num_attention_heads": 8, "hidden_size": 16, "num_key_value_heads": null}));
    assert_eq!(read(&value).unwrap().num_key_value_heads, 8);
    value["num_attention_heads"] = json!(16);
    value["hidden_size"] = json!(32);
    value.as_object_mut().unwrap().remove("num_key_value_heads");
    assert_eq!(read(&value).unwrap().num_key_value_heads, 8);

    let gpt2 = read(&gpt2(json!({}))).unwrap();
    assert_eq!((gpt2.intermediate_size, gpt2.max_position_embeddings, gpt2.rms_norm_eps), (32, 1024, 1e-5));
    assert_eq!((gpt2.arch.activation, gpt2.tie_word_embeddings), (Activation::GeluTanh, true));

    let gemma2 = read(&kind("gemma2", json!({}))).unwrap();
    assert_eq!((gemma2.head_dim, gemma2.arch.attention_scale), (256, Some(1.0 / 16.0)));
    assert_eq!((gemma2.arch.attention_softcap, gemma2.arch.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(gemma2.arch.windows, [4096, 0]);
    let uncapped = kind("gemma2", json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}));
    assert_eq!(read(&uncapped).unwrap().arch.logit_softcap, None);

    // The published 4B model says no more about its text half.
    let text = json!({"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024});
    let images =
        json!({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text});
    let gemma3 = read(&images).unwrap();
    assert_eq!((gemma3.vocab_size, gemma3.num_attention_heads, gemma3.num_key_value_heads), (262_208, 8, 4));
    assert_eq!((gemma3.rope_theta, gemma3.max_position_embeddings), (1e6, 131_072));
    assert_eq!((gemma3.arch.windows[4], gemma3.arch.windows[5], gemma3.arch.windows[33]), (1024, 0, 1024));

    let bert = read(&kind("bert", json!({"num_key_value_heads": null, "rms_norm_eps": 1.0}))).unwrap();
    assert_eq!((bert.rms_norm_eps, bert.arch.token_types, bert.arch.activation), (1e-12, 2, Activation::Gelu));
}

#[test]
fn contradictory_hand_made_configurations_are_refused() {
    let refuse = |field: &str, spoil: &dyn Fn(&mut DecoderConfig)| {
        let mut config = read(&tiny()).unwrap();
        config.validate().unwrap();
        spoil(&mut config);
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")), "{field}: {message}");
    };
    refuse("windows", &|config| config.arch.windows = vec![1]);
    refuse("type_vocab_size", &|config| config.arch.token_types = 2);
    refuse("type_vocab_size", &|config| config.arch.topology = Topology::Encoder);
    refuse("num_key_value_heads", &|config| config.arch.qkv_order = QkvOrder::Interleaved);
    refuse("attn_logit_softcapping", &|config| config.arch.attention_softcap = Some(0.0));
    refuse("embedding_scale", &|config| config.arch.embedding_scale = Some(f64::NAN));
    refuse("head_dim", &|config| {
        config.arch.positions = Positions::Rotary { width: 4, scaling: RopeScaling::None, local_theta: None };
    });
    refuse("rope_scaling", &|config| {
        let scaling = RopeScaling::Linear { factor: f64::INFINITY };
        config.arch.positions = Positions::Rotary { width: 0, scaling, local_theta: None };
    });
    refuse("rope_local_base_freq", &|config| {
        let local_theta = Some(-1.0);
        config.arch.positions = Positions::Rotary { width: 0, scaling: RopeScaling::None, local_theta };
    });
}
