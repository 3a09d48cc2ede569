//! The forms in which the same weights come: written by us, in shards, under the names of base models and bigger ones,
//! with the buffers of old versions.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, RowType};
use ascribe_models::{Decoder, ModelError};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::fixture;

/// One of each family, and those that come in another form.
const FIXTURES: [&str; 13] = [
    "gqa-tied",
    "llama3-biases",
    "mistral-window",
    "qwen2-shards",
    "qwen3",
    "olmo2-f16",
    "gpt2-bf16",
    "gpt2-relu-untied",
    "neox-parallel",
    "neox-sequential",
    "gemma2-window",
    "gemma3",
    "bert",
];

/// Names and shapes of a safetensors file.
fn tensors(path: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect()
}

/// What `transformers` wrote, read by us, written by us, read again: same configuration, same weights, same names.
#[test]
fn every_family_is_written_as_it_was_read() {
    for name in FIXTURES {
        let decoder = Decoder::open(&fixture(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        decoder.save_config(dir.path()).unwrap();
        let digest = decoder.save(&path, RowType::F32, &BTreeMap::new()).unwrap();
        let again = Decoder::open(dir.path()).unwrap();
        assert_eq!(again.config(), decoder.config(), "{name}");
        assert_eq!(again.parameters(), decoder.parameters(), "{name}");
        assert_eq!(again.weights_digest(), digest, "{name}");

        let mut theirs = BTreeMap::new();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let file = entry.unwrap().path();
            let is_weights = file.file_name().unwrap().to_string_lossy().starts_with("model");
            if is_weights && file.extension().unwrap() == "safetensors" {
                theirs.extend(tensors(&file));
            }
        }
        // Not part of the hidden states.
        theirs.retain(|name, _| !name.starts_with("pooler."));
        assert_eq!(tensors(&path), theirs, "{name}");
    }
}

#[test]
fn shards_are_the_file_that_they_were_cut_from() {
    let cut = Decoder::open(&fixture("qwen2-shards")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    cut.save_config(dir.path()).unwrap();
    cut.save(&dir.path().join("model.safetensors"), RowType::F32, &BTreeMap::new()).unwrap();
    assert_eq!(Decoder::open(dir.path()).unwrap().parameters(), cut.parameters());
    let digests = (1..=3).flat_map(|i| {
        Digest::of(&std::fs::read(fixture("qwen2-shards").join(format!("model-0000{i}-of-00003.safetensors"))).unwrap())
            .0
    });
    assert_eq!(cut.weights_digest(), Digest::of(&digests.collect::<Vec<u8>>()));
}

/// A model that also sees images keeps its text half under `text_config`, and its weights under longer names.
#[test]
fn the_text_half_of_a_model_with_images_is_the_text_model() {
    let text: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("gemma3").join("config.json")).unwrap()).unwrap();
    let images = serde_json::json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text,
        "vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256,
    });
    let bytes = std::fs::read(fixture("gemma3").join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), images.to_string()).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    let (found, expected) = (Decoder::open(dir.path()).unwrap(), Decoder::open(&fixture("gemma3")).unwrap());
    assert_eq!(found.config(), expected.config());
    assert_eq!(found.parameters(), expected.parameters());
}

/// A tensor to put beside the weights: name, type, shape.
type Extra = (&'static str, Dtype, &'static [usize]);

/// From a name in a fixture to the name in another file.
type Rename<'a> = &'a dyn Fn(&str) -> String;

/// The fixture's folder with its tensors renamed and `extra` ones of zeros beside them.
fn rewritten(name: &str, rename: Rename<'_>, extra: &[Extra]) -> Result<Decoder, ModelError> {
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, TensorView<'_>)> =
        file.tensors().into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    let zeros = vec![0u8; 4096];
    for &(name, dtype, shape) in extra {
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        tensors.push((name.into(), TensorView::new(dtype, shape.to_vec(), &zeros[..len]).unwrap()));
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name).join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    Decoder::open(dir.path())
}

#[test]
fn other_names_and_old_buffers_are_the_same_weights() {
    let without = |prefix: &'static str| move |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
    let mask: &[usize] = &[1, 1, 24, 24];
    let cases: [(&str, Rename<'_>, &[Extra]); 9] = [
        ("gqa-tied", &without("model."), &[("layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[2])]),
        ("gqa-untied", &without("none."), &[("model.layers.1.self_attn.rotary_emb.inv_freq", Dtype::F32, &[2])]),
        (
            "gpt2",
            &without("transformer."),
            &[("h.0.attn.bias", Dtype::U8, mask), ("h.1.attn.masked_bias", Dtype::F32, &[])],
        ),
        ("gpt2", &without("none."), &[("transformer.h.0.attn.bias", Dtype::BOOL, mask)]),
        (
            "neox-parallel",
            &without("none."),
            &[
                ("gpt_neox.layers.0.attention.bias", Dtype::BOOL, mask),
                ("gpt_neox.layers.0.attention.masked_bias", Dtype::F32, &[]),
                ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", Dtype::F32, &[1]),
            ],
        ),
        ("bert", &without("none."), &[("embeddings.position_ids", Dtype::I64, &[1, 24])]),
        (
            "bert",
            &|name| {
                let old =
                    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
                format!("bert.{old}")
            },
            &[("cls.predictions.bias", Dtype::F32, &[29]), ("cls.seq_relationship.weight", Dtype::F32, &[2, 16])],
        ),
        (
            "gemma3",
            &|name| format!("language_model.{name}"),
            &[("vision_tower.vision_model.embeddings.patch_embedding.bias", Dtype::F32, &[3])],
        ),
        (
            "gemma3",
            &|name| name.replacen("model.", "model.language_model.", 1),
            &[("model.multi_modal_projector.mm_input_projection_weight", Dtype::F32, &[2, 2])],
        ),
    ];
    for (name, rename, extra) in cases {
        let found = rewritten(name, rename, extra).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.parameters(), Decoder::open(&fixture(name)).unwrap().parameters(), "{name}");
    }
}

#[test]
fn tensors_that_change_the_model_are_refused_by_name() {
    let same = |name: &str| name.to_owned();
    let refused = |name: &str, rename: Rename<'_>, extra: &[Extra], parts: &[&str]| {
        let message = rewritten(name, rename, extra).expect_err("a foreign tensor must be refused").to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    // An output layer of its own in a model that says it has none.
    let head: &[Extra] = &[("lm_head.weight", Dtype::F32, &[29, 16])];
    refused("gqa-tied", &same, head, &["`lm_head.weight`", "embedding", "tie_word_embeddings", "found 0 instead of"]);
    // Biases that the configuration does not know would be left out silently.
    let bias: &[Extra] = &[("model.layers.0.self_attn.q_proj.bias", Dtype::F32, &[16])];
    refused("gqa-tied", &same, bias, &["`model.layers.0.self_attn.q_proj.bias`", "does not belong"]);
    // The buffers of one family are weights in another.
    let bias: &[Extra] = &[("model.layers.0.attention.bias", Dtype::F32, &[16])];
    refused("gqa-tied", &same, bias, &["`model.layers.0.attention.bias`", "does not belong"]);
    // One weight under two names.
    let twice: &[Extra] = &[("norm.weight", Dtype::F32, &[16])];
    refused("gqa-tied", &same, twice, &["one tensor for `model.norm.weight`", "`norm.weight`"]);
}

#[test]
fn weights_of_another_family_are_recognised() {
    let cases = [
        ("gqa-tied", "gpt2", "gpt2"),
        ("gpt2", "gqa-tied", "llama or mistral"),
        ("gpt2", "neox-parallel", "gpt_neox"),
        ("gqa-tied", "bert", "bert"),
        ("neox-parallel", "qwen3", "qwen3"),
        ("qwen3", "olmo2", "olmo2"),
        ("bert", "qwen2", "qwen2"),
        ("olmo2", "gemma2-window", "gemma2"),
        ("gemma2-window", "gemma3", "gemma3_text"),
    ];
    for (config, weights, looks_like) in cases {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixture(config).join("config.json"), dir.path().join("config.json")).unwrap();
        std::fs::copy(fixture(weights).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let message = Decoder::open(dir.path()).unwrap_err().to_string();
        let hint = format!("look like {looks_like}");
        // Where all names exist in both, a shape tells.
        let told = message.contains("is missing") && message.contains(&hint);
        assert!(told || message.contains("expected shape"), "{config} with {weights}: {message}");
    }
}

#[test]
fn a_folder_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |part: &str| {
        let message = Decoder::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("expected model.safetensors") && message.contains(part), "{message}");
    };
    std::fs::copy(fixture("gpt2").join("config.json"), dir.path().join("config.json")).unwrap();
    refused("found none of them");
    std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    refused("an adapter without its base model");
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    refused("pickles are not read");
    for name in ["a.gguf", "b.gguf"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    refused("2 .gguf files");
}

/// GGUF files open like folders; their digest is that of the file.
#[test]
fn a_gguf_file_is_opened_alone_or_in_its_folder() {
    let path = fixture("gguf").join("llama.gguf");
    let alone = Decoder::open(&path).unwrap();
    assert_eq!(alone.weights_digest(), Digest::of(&std::fs::read(&path).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(&path, dir.path().join("any-name.gguf")).unwrap();
    assert_eq!(Decoder::open(dir.path()).unwrap().parameters(), alone.parameters());
}
