//! Files that lie: whatever stands in a folder, loading answers with an error that names it, and never panics.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ascribe_core::RowType;
use ascribe_models::{Decoder, DecoderConfig, ModelError};
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::fixture;

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
    folder.refused(&["expected a whole safetensors file", "a header with EOF"]);
    let folder = Folder::new();
    std::fs::File::options().append(true).open(folder.weights()).unwrap().set_len(1 << 40).unwrap();
    folder.refused(&["expected a whole safetensors file", "1099511627776 bytes where the header says"]);
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

/// The three shards of a fixture and their index, to spoil.
struct Shards {
    dir: tempfile::TempDir,
}

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";

impl Shards {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture("qwen2-shards")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spoil_index(&self, spoil: impl FnOnce(&mut serde_json::Value)) {
        let mut index = serde_json::from_slice(&std::fs::read(self.path(INDEX)).unwrap()).unwrap();
        spoil(&mut index);
        std::fs::write(self.path(INDEX), index.to_string()).unwrap();
    }

    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        let message = Decoder::open(self.dir.path()).expect_err("a spoilt folder must be refused").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let embedding = "model.embed_tokens.weight";
    for outside in ["../model.safetensors", "/model.safetensors", "a/b.safetensors", "..", "a\\b.safetensors", "x.bin"]
    {
        let shards = Shards::new();
        shards.spoil_index(|index| index["weight_map"][embedding] = outside.into());
        shards.refused(&[INDEX, "expected shards that are .safetensors files of this folder"]);
    }
    let shards = Shards::new();
    shards.spoil_index(|index| index["weight_map"]["model.layers.9.x"] = FIRST.into());
    shards.refused(&[INDEX, "expected tensor `model.layers.9.x` in model-00001", "no such tensor there"]);

    let shards = Shards::new();
    shards.spoil_index(|index| index["weight_map"][embedding] = "model-00002-of-00003.safetensors".into());
    shards.refused(&[INDEX, "expected tensor `model.embed_tokens.weight` in model-00002", "found one in model-00001"]);

    let shards = Shards::new();
    shards.spoil_index(|index| drop(index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")));
    shards.refused(&[INDEX, "expected an entry for tensor `model.norm.weight`", "found none"]);

    let shards = Shards::new();
    std::fs::remove_file(shards.path("model-00003-of-00003.safetensors")).unwrap();
    shards.refused(&["cannot read", "model-00003-of-00003.safetensors"]);

    // The first shard once more under another name: its tensor is in two.
    let shards = Shards::new();
    std::fs::copy(shards.path(FIRST), shards.path("model-00004.safetensors")).unwrap();
    shards.spoil_index(|index| index["weight_map"]["more"] = "model-00004.safetensors".into());
    shards.refused(&[INDEX, "expected tensor `model.embed_tokens.weight` in model-00001", "only", "model-00004"]);

    for (text, part) in [
        ("[", "expected a JSON object"),
        ("{}", "expected a `weight_map`"),
        (r#"{"weight_map": {}}"#, "an empty one"),
        (r#"{"weight_map": {"a": 1}}"#, "expected a `weight_map`"),
    ] {
        std::fs::write(shards.path(INDEX), text).unwrap();
        shards.refused(&[INDEX, part]);
    }
    std::fs::File::create(shards.path(INDEX)).unwrap().set_len(1 << 40).unwrap();
    shards.refused(&[INDEX, "bytes of JSON", "found 1099511627776 bytes"]);
}

#[test]
fn headers_that_lie_are_refused() {
    let header = |text: &str, more: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(vec![0; more]);
        bytes
    };
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let cases: [(Vec<u8>, &str); 8] = [
        (vec![], "0 bytes"),
        ((1u64 << 40).to_le_bytes().to_vec(), "a header of 1099511627776 bytes"),
        (header("{", 0), "a header with EOF"),
        (header(one, 7), "bytes where the header says"),
        (header(one, 9), "bytes where the header says"),
        (header(&one.replace("[2]", "[3]"), 8), "a header with"),
        (header(&one.replace("[2]", "[18446744073709551615,2]"), 8), "a header with"),
        (
            header(
                &format!("{},{}", &one[..one.len() - 1], r#""a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#),
                16,
            ),
            "whole safetensors file",
        ),
    ];
    for (bytes, part) in cases {
        let folder = Folder::new();
        std::fs::write(folder.weights(), bytes).unwrap();
        folder.refused(&["model.safetensors", "expected a whole safetensors file", part]);
    }
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

    /// The same for a configuration of any family, and for an index.
    #[test]
    fn a_changed_byte_of_json_never_panics(at in 0usize..700, to in any::<u8>(), which in 0usize..5) {
        let shards = Shards::new();
        let (name, from) = [
            ("config.json", "gemma3"),
            ("config.json", "gpt2"),
            ("config.json", "neox-parallel"),
            ("config.json", "qwen2-shards"),
            (INDEX, "qwen2-shards"),
        ][which];
        let mut bytes = std::fs::read(fixture(from).join(name)).unwrap();
        let at = at % bytes.len();
        bytes[at] = to;
        std::fs::write(shards.path(name), bytes).unwrap();
        if let Ok(decoder) = Decoder::open(shards.dir.path()) {
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
