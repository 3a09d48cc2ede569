//! Proof of equality: logits, losses and gradients of every parameter of every family, against `transformers` in f64 (the
//! script stands beside the fixtures).

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_models::{Decoder, Sequence};
use safetensors::SafeTensors;

use super::{f32s, fixture, worst};

/// Relative to the largest number of a tensor: sums of a few hundred f32 products.
const TOLERANCE: f32 = 1e-5;

const DECODERS: [&str; 21] = [
    "gqa-tied",
    "mha-tied",
    "gqa-untied",
    "mha-untied",
    "llama3-biases",
    "llama-yarn",
    "llama-linear",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen2-shards",
    "qwen3",
    "olmo2",
    "olmo2-f16",
    "gpt2",
    "gpt2-bf16",
    "gpt2-relu-untied",
    "neox-parallel",
    "neox-sequential",
    "gemma2-window",
    "gemma3",
];

/// What PyTorch computed, and of which tokens.
struct Reference {
    bytes: Vec<u8>,
    tokens: Vec<u32>,
    loss_from: usize,
}

impl Reference {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(fixture(name).join("reference.safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let tokens = serde_json::from_str(&metadata["tokens"]).unwrap();
        Self { tokens, loss_from: metadata["loss_from"].parse().unwrap(), bytes }
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        f32s(&SafeTensors::deserialize(&self.bytes).unwrap(), name)
    }

    /// Everything that differs by more than the tolerance.
    fn compare(&self, decoder: &Decoder) -> BTreeMap<String, f32> {
        let mut off = BTreeMap::new();
        let mut compare = |name: &str, ours: &[f32]| {
            let off_by = worst(ours, &self.numbers(name));
            if off_by.is_nan() || off_by >= TOLERANCE {
                off.insert(name.to_owned(), off_by);
            }
        };
        let sequence = Sequence { tokens: &self.tokens, loss_from: self.loss_from };
        compare("logits", decoder.logits(&self.tokens).unwrap().as_slice().unwrap());
        compare("token_nll", &decoder.token_nll(&self.tokens).unwrap());
        compare("loss", &[decoder.losses(&[sequence]).unwrap()[0] as f32]);
        let gradient = decoder.gradient_sum(&[sequence]).unwrap();
        for slot in decoder.parameter_layout().slots() {
            compare(&format!("grad.{}", slot.name), &gradient[slot.range.clone()]);
        }
        off
    }
}

#[test]
fn transformers_sees_the_same_model() {
    let mut wrong = BTreeMap::new();
    for name in DECODERS {
        let decoder = Decoder::open(&fixture(name)).unwrap();
        let off = Reference::read(name).compare(&decoder);
        if !off.is_empty() {
            wrong.insert(name, off);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The embedding of a text: the mean of the last hidden states.
#[test]
fn transformers_sees_the_same_encoder() {
    let encoder = Decoder::open(&fixture("bert")).unwrap();
    let reference = Reference::read("bert");
    let hidden = reference.numbers("hidden");
    let (n, d) = (reference.tokens.len(), encoder.config().hidden_size);
    let mean: Vec<f32> = (0..d).map(|i| hidden.iter().skip(i).step_by(d).sum::<f32>() / n as f32).collect();
    let ours = encoder.mean_hidden(&[Sequence::whole(&reference.tokens)]).unwrap();
    let off = worst(ours.as_slice().unwrap(), &mean);
    assert!(off < TOLERANCE, "{off}");
}

/// A fixture that no test asks for proves nothing.
#[test]
fn every_fixture_is_compared() {
    let of_another_test = ["bert", "gguf", "lora", "taps"];
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().join("reference.safetensors").exists() {
            let is_known = DECODERS.contains(&name.as_str()) || of_another_test.contains(&name.as_str());
            assert!(is_known, "{name} has a reference that nothing is compared with");
        }
    }
}
