//! GGUF files from outside: models written with llama.cpp's own package, and files that lie.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use ascribe_models::{Decoder, gguf};
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::{f32s, fixture, worst};

fn file(name: &str) -> PathBuf {
    fixture("gguf").join(format!("{name}.gguf"))
}

/// The logits that `transformers` computes in f64 from the same numbers (the script stands beside the files, and lets
/// `transformers` read most of them back).
#[test]
fn models_written_by_llama_cpps_package_are_the_same_models() {
    for name in MODELS {
        let (config, parameters) = gguf::open(&file(name)).unwrap();
        let decoder = Decoder::from_parameters(config, parameters).unwrap();
        let bytes = std::fs::read(fixture("gguf").join(format!("{name}.safetensors"))).unwrap();
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tokens: Vec<u32> = serde_json::from_str(&header.metadata().clone().unwrap()["tokens"]).unwrap();
        let logits = decoder.logits(&tokens).unwrap();
        let off = worst(logits.as_slice().unwrap(), &f32s(&reference, "logits"));
        assert!(off < 1e-5, "{name}: {off}");
    }
}

#[test]
fn what_a_gguf_file_does_not_hold_is_named() {
    let path = Path::new("model.gguf");
    let refused = |bytes: Vec<u8>, part: &str| {
        let message = gguf::read(Cursor::new(bytes), path).unwrap_err().to_string();
        assert!(message.contains("model.gguf") && message.contains(part), "{message}");
    };
    let whole = std::fs::read(file("llama")).unwrap();
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len(), "offsets must stay");
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    refused(renamed("blk.1.ffn_up", "blk.7.ffn_up"), "`blk.1.ffn_up.weight` is missing");
    refused(renamed("llama", "llamb"), "llama, qwen2, qwen3, gemma2, gemma3, gpt2, gptneox, olmo2");
    refused(renamed("llama.block_count", "llama.block_kount"), "`block_count`: expected an integer");
    refused(whole[..whole.len() - 256].to_vec(), "bytes of data to hold every tensor");
    let mut nan = whole.clone();
    let end = nan.len() - 4;
    nan[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(nan, "NaN");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a few bytes become, reading answers: with an error, or with finite weights.
    #[test]
    fn changed_bytes_never_panic(
        name in prop::sample::select(vec!["llama3", "qwen2", "types"]),
        changes in prop::collection::vec((0.0f64..1.0, any::<u8>()), 1..6),
        header_only in any::<bool>(),
        cut in 0.0f64..1.2,
    ) {
        let mut bytes = std::fs::read(file(name)).unwrap();
        let span = if header_only { bytes.len().min(4000) } else { bytes.len() };
        for (at, to) in changes {
            bytes[(at * span as f64) as usize] = to;
        }
        bytes.truncate((cut * bytes.len() as f64) as usize);
        if let Ok((_, parameters)) = gguf::read(Cursor::new(bytes), Path::new("model.gguf")) {
            prop_assert!(parameters.iter().all(|x| x.is_finite()));
        }
    }
}

const MODELS: [&str; 12] = [
    "llama",
    "llama3",
    "yarn",
    "qwen2",
    "qwen3",
    "olmo2",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "gptneox-sequential",
    "quantised",
];
