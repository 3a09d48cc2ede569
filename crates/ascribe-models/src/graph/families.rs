//! Tiny models of every family, for tests: the table that the graph, the passes and the stages are compared over.

use ascribe_linalg::Stream;

use crate::arch::{Activation, Arch, Family, NormKind, Positions, QkNorm, QkvOrder, RopeScaling, Topology};
use crate::config::DecoderConfig;
use crate::decoder::Decoder;

fn rotary(width: usize, scaling: RopeScaling, local_theta: Option<f64>) -> Positions {
    Positions::Rotary { width, scaling, local_theta }
}

fn llama() -> DecoderConfig {
    DecoderConfig { head_dim: 4, ..DecoderConfig::llama(13, 8, 12, 2, 4, 2, 80) }
}

fn with(arch: Arch) -> DecoderConfig {
    DecoderConfig { arch, ..llama() }
}

/// As many key heads as query heads.
fn all_heads(arch: Arch) -> DecoderConfig {
    DecoderConfig { num_key_value_heads: 4, ..with(arch) }
}

fn untied(config: DecoderConfig) -> DecoderConfig {
    DecoderConfig { tie_word_embeddings: false, ..config }
}

fn biased() -> Arch {
    Arch { qkv_bias: true, o_bias: true, mlp_bias: true, ..Arch::llama() }
}

/// A tiny configuration of every family and variant: 13 words, width 8, two layers.
pub(crate) fn families() -> Vec<(&'static str, DecoderConfig)> {
    [llamas(), older(), gemmas()].into_iter().flatten().collect()
}

fn llamas() -> Vec<(&'static str, DecoderConfig)> {
    let base = Arch::llama();
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.13,
        original_max_position_embeddings: 20,
    };
    let turned = |scaling, arch| with(Arch { positions: rotary(0, scaling, None), ..arch });
    let qwen3 = Arch { family: Family::Qwen3, qk_norm: QkNorm::PerHead, ..base.clone() };
    let olmo2 = Arch { family: Family::Olmo2, topology: Topology::Post, qk_norm: QkNorm::Full, ..base.clone() };
    vec![
        ("llama", llama()),
        ("llama, one key head, untied", untied(DecoderConfig { num_key_value_heads: 1, ..llama() })),
        ("llama, wide heads", DecoderConfig { head_dim: 6, ..llama() }),
        ("llama 3, biases", turned(llama3, biased())),
        ("llama, yarn", DecoderConfig { head_dim: 8, ..turned(yarn, base.clone()) }),
        ("mistral", with(Arch { family: Family::Mistral, windows: vec![4, 4], ..base.clone() })),
        ("qwen 2", with(Arch { family: Family::Qwen2, qkv_bias: true, ..base })),
        ("qwen 3", DecoderConfig { head_dim: 6, ..with(qwen3) }),
        ("olmo 2", untied(with(olmo2))),
    ]
}

/// Families with LayerNorm and biases.
fn older() -> Vec<(&'static str, DecoderConfig)> {
    let plain = Arch { norm: NormKind::Layer, activation: Activation::Gelu, gated: false, ..biased() };
    let neox = Arch {
        family: Family::GptNeox,
        topology: Topology::Parallel,
        qkv_order: QkvOrder::Interleaved,
        positions: rotary(2, RopeScaling::None, None),
        ..plain.clone()
    };
    let learned = Arch { positions: Positions::Learned, ..plain };
    let gpt2 = Arch { family: Family::Gpt2, activation: Activation::GeluTanh, ..learned.clone() };
    let bert = Arch { family: Family::Bert, topology: Topology::Encoder, token_types: 2, ..learned };
    vec![
        ("gpt 2", all_heads(gpt2.clone())),
        ("gpt 2, relu", all_heads(Arch { activation: Activation::Relu, ..gpt2 })),
        ("gpt-neox", untied(all_heads(neox.clone()))),
        ("gpt-neox, sequential", all_heads(Arch { topology: Topology::Pre, ..neox })),
        ("bert", all_heads(bert)),
    ]
}

fn gemmas() -> Vec<(&'static str, DecoderConfig)> {
    let gemma2 = Arch {
        family: Family::Gemma2,
        norm: NormKind::RmsPlusOne,
        topology: Topology::Sandwich,
        activation: Activation::GeluTanh,
        windows: vec![5, 0],
        attention_scale: Some(0.3),
        attention_softcap: Some(2.0),
        logit_softcap: Some(3.0),
        embedding_scale: Some(8f64.sqrt()),
        ..Arch::llama()
    };
    let gemma3 = Arch {
        family: Family::Gemma3,
        qk_norm: QkNorm::PerHead,
        positions: rotary(0, RopeScaling::Linear { factor: 8.0 }, Some(100.0)),
        attention_softcap: None,
        logit_softcap: None,
        ..gemma2.clone()
    };
    // Heads of 8: normed heads of 4 numbers are sometimes so short that f32 loses the fifth digit of a gradient.
    vec![("gemma 2", with(gemma2)), ("gemma 3", DecoderConfig { head_dim: 8, ..with(gemma3) })]
}

/// A model with no parameter at a special value: gains around 1 (around 0 where 1 is added), biases around 0.
pub(crate) fn noisy(config: &DecoderConfig, seed: u64) -> Decoder {
    let layout = crate::layout::ParameterLayout::new(config);
    let mut parameters = vec![0.0f32; layout.len()];
    for slot in layout.slots() {
        let mut stream = Stream::new(seed, &slot.name);
        let is_gain = slot.shape.len() == 1 && slot.name.ends_with("weight");
        let center = if is_gain && config.arch.norm != NormKind::RmsPlusOne { 1.0 } else { 0.0 };
        parameters[slot.range.clone()].fill_with(|| (center + 0.25 * stream.normal()) as f32);
    }
    Decoder::from_parameters(config.clone(), parameters).unwrap()
}
