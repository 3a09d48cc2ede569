//! The crate from outside: PyTorch's `transformers` as reference, and files that lie.
#![allow(clippy::unwrap_used)] // clippy exempts test functions, not what they call

mod gguf;
mod lora;
mod taps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::RowType;
use ascribe_models::{Decoder, DecoderConfig, ModelError, Sequence};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Largest difference relative to the largest number.
fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs() / scale))
}

/// Logits, losses and gradients of every parameter, against `transformers` in f64 (the script stands beside the files).
#[test]
fn transformers_sees_the_same_model() {
    for name in ["gqa-tied", "mha-tied", "gqa-untied", "mha-untied"] {
        let decoder = Decoder::load(&fixture(name), "model.safetensors").unwrap();
        let bytes = std::fs::read(fixture(name).join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let tokens: Vec<u32> = serde_json::from_str(&metadata["tokens"]).unwrap();
        let sequence = Sequence { tokens: &tokens, loss_from: metadata["loss_from"].parse().unwrap() };

        let logits = decoder.logits(&tokens).unwrap();
        assert!(worst(logits.as_slice().unwrap(), &f32s(&file, "logits")) < 1e-5, "{name}");
        assert!(worst(&decoder.token_nll(&tokens).unwrap(), &f32s(&file, "token_nll")) < 1e-5, "{name}");
        let loss = decoder.losses(&[sequence]).unwrap()[0];
        assert!((loss / f64::from(f32s(&file, "loss")[0]) - 1.0).abs() < 1e-6, "{name}: {loss}");
        let gradient = decoder.gradient_sum(&[sequence]).unwrap();
        for slot in decoder.parameter_layout().slots() {
            let off = worst(&gradient[slot.range.clone()], &f32s(&file, &format!("grad.{}", slot.name)));
            assert!(off < 1e-5, "{name} {}: {off}", slot.name);
        }
    }
}

/// A model folder to spoil.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let decoder = Decoder::load(&fixture("gqa-tied"), "model.safetensors").unwrap();
        decoder.save_config(dir.path()).unwrap();
        decoder.save(&dir.path().join("model.safetensors"), RowType::F32, &BTreeMap::new()).unwrap();
        Self { dir }
    }

    fn weights(&self) -> PathBuf {
        self.dir.path().join("model.safetensors")
    }

    fn load(&self) -> Result<Decoder, ModelError> {
        Decoder::load(self.dir.path(), "model.safetensors")
    }

    /// The refusal's text; it must contain all of `parts`.
    #[track_caller]
    fn refused(&self, parts: &[&str]) -> ModelError {
        let error = self.load().expect_err("a spoilt folder must be refused");
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        error
    }

    fn spoil_bytes(&self, spoil: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.weights()).unwrap();
        spoil(&mut bytes);
        std::fs::write(self.weights(), bytes).unwrap();
    }

    fn spoil_header(&self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len(), "offsets must stay");
        self.spoil_bytes(|bytes| {
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        });
    }

    fn spoil_config(&self, field: &str, value: serde_json::Value) {
        let path = self.dir.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(path, config.to_string()).unwrap();
    }
}

#[test]
fn nan_in_the_weights_is_named() {
    let folder = Folder::new();
    folder.spoil_bytes(|bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    folder.refused(&["model.safetensors", "`model.norm.weight`", "expected finite numbers", "NaN at element 15"]);
}

#[test]
fn torn_foreign_and_missing_files_are_named() {
    let folder = Folder::new();
    folder.spoil_bytes(|bytes| bytes.truncate(bytes.len() - 1));
    folder.refused(&["model.safetensors", "expected a whole safetensors file"]);
    folder.spoil_bytes(|bytes| bytes.truncate(3));
    folder.refused(&["expected a whole safetensors file"]);
    folder.spoil_bytes(|bytes| *bytes = vec![0xff; 64]);
    folder.refused(&["expected a whole safetensors file"]);
    std::fs::File::create(folder.weights()).unwrap().set_len(1 << 40).unwrap();
    folder.refused(&["expected at most", "bytes for this configuration", "found 1099511627776"]);
    std::fs::remove_file(folder.weights()).unwrap();
    assert!(matches!(folder.refused(&["cannot read", "model.safetensors"]), ModelError::Io { .. }));
    std::fs::write(folder.dir.path().join("config.json"), "[1, 2").unwrap();
    folder.refused(&["config.json", "expected a JSON object"]);
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    let folder = Folder::new();
    folder.spoil_header("model.layers.1.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight");
    folder.refused(&["`model.layers.1.mlp.up_proj.weight` is missing"]);
    let folder = Folder::new();
    folder.spoil_config("num_hidden_layers", 1.into());
    folder.refused(&["`model.layers.1.", "does not belong to this configuration"]);
    let folder = Folder::new();
    folder.spoil_config("intermediate_size", 21.into());
    folder.refused(&["gate_proj", "expected shape [21, 16], found shape [20, 16]"]);
    let folder = Folder::new();
    folder.spoil_header("\"dtype\":\"F32\"", "\"dtype\":\"I32\"");
    folder.refused(&["embed_tokens", "expected F32, BF16 or F16, found I32"]);
}

#[test]
fn another_architecture_is_refused_with_what_is_supported() {
    let folder = Folder::new();
    folder.spoil_config("model_type", "mixtral".into());
    folder.refused(&["config.json", "`model_type`", "one of \"llama\", \"mistral\"", "\"bert\"", "mixtral"]);
}

/// A tied file that repeats its embedding as output layer is one that `transformers` accepts; so do we.
#[test]
fn a_repeated_tied_embedding_is_no_extra_tensor() {
    let folder = Folder::new();
    let bytes = std::fs::read(folder.weights()).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.tensors();
    let embedding = file.tensor("model.embed_tokens.weight").unwrap();
    tensors.push(("lm_head.weight".into(), embedding));
    std::fs::write(folder.weights(), safetensors::serialize(tensors, None).unwrap()).unwrap();
    folder.load().unwrap();
}

#[test]
fn a_failed_write_leaves_nothing_and_names_the_file() {
    let folder = Folder::new();
    let decoder = folder.load().unwrap();
    let target = folder.dir.path().join("full");
    std::fs::create_dir(&target).unwrap();
    // A folder stands where the file should go: the rename at the end fails.
    let error = decoder.save(&target, RowType::F32, &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("cannot write") && error.to_string().contains("full"), "{error}");
    let left: Vec<_> = std::fs::read_dir(folder.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

proptest! {
    // Every case writes two files and waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever one byte becomes, loading answers: with an error, or with finite weights.
    #[test]
    fn a_changed_byte_never_panics(at in 0usize..4000, to in any::<u8>()) {
        let folder = Folder::new();
        folder.spoil_bytes(|bytes| bytes[at] = to);
        if let Ok(decoder) = folder.load() {
            prop_assert!(decoder.parameters().iter().all(|x| x.is_finite()));
        }
    }

    /// A configuration of any sizes is either refused or consistent with its own layout.
    #[test]
    fn configurations_never_overflow(
        sizes in prop::collection::vec(prop_oneof![0usize..70, any::<usize>()], 7),
    ) {
        let [v, d, f, l, h, k, t] = sizes[..] else { unreachable!("seven sizes were drawn") };
        let config = DecoderConfig::llama(v, d, f, l.min(100), h, k, t);
        if config.validate().is_ok() && config.num_parameters() < 1 << 20 {
            let decoder = Decoder::init(config.clone(), 1);
            prop_assert!(decoder.is_ok_and(|decoder| decoder.parameters().len() == config.num_parameters()));
        }
    }
}
