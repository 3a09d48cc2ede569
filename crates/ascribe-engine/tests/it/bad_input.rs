//! Input that is wrong: refused before anything is written, in words that say what, where, expected and found.

use std::fs;
use std::path::Path;

use ascribe_core::Digest;
use ascribe_engine::{EngineError, bank, files, train};
use ascribe_registry::prepare::license_dataset;
use ascribe_registry::{LicenceDigest, LicenceKey};

use crate::common::{Tiny, assert_nothing_half_written, different, finished, grant, timeless};

/// The walk's refusal of a spoilt home. Nothing may have been written.
fn refusal(tiny: &Tiny) -> String {
    let out = tiny.root().join("fresh");
    let error = tiny.demo(&out).expect_err("the walk should refuse this home");
    let left = if out.exists() { files::list(&out).unwrap() } else { vec![] };
    assert!(left.is_empty(), "written before the refusal: {left:?}");
    error.to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

fn records(tiny: &Tiny) -> std::path::PathBuf {
    tiny.datasets().join("austen-novels/records.jsonl")
}

/// First line of a record file.
fn first_line(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let end = bytes.iter().position(|b| *b == b'\n').unwrap();
    bytes[..=end].to_vec()
}

#[test]
fn a_changed_dataset_byte() {
    let tiny = finished().tiny.copy();
    let mut bytes = fs::read(records(&tiny)).unwrap();
    // A letter of a text, so that the line stays what a line should be.
    let at = (1000..).find(|&i| bytes[i].is_ascii_lowercase() && bytes[i - 1] == b' ').unwrap();
    bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
    fs::write(records(&tiny), bytes).unwrap();
    assert_says(&refusal(&tiny), &["austen-novels", "content", "expected", "found"]);
}

#[test]
fn a_licence_newer_than_the_training_run() {
    let tiny = finished().tiny.copy();
    let old = tiny.registry().dataset("zh-classics").unwrap().licence.digest();
    let newer = ascribe_registry::prepare::Grant { supersedes: old, ..grant(2) };
    assert_ne!(old, LicenceDigest::default());
    license_dataset(&tiny.datasets(), "zh-classics", &LicenceKey::demo("Chen"), newer).unwrap();
    assert_says(&refusal(&tiny), &["zh-classics", "newer than the training run", "expected", "found 3"]);
}

#[test]
fn an_empty_dataset() {
    let tiny = finished().tiny.copy();
    fs::write(records(&tiny), b"").unwrap();
    assert_says(&refusal(&tiny), &["austen-novels/records.jsonl", "expected at least one record", "found none"]);
}

#[test]
fn a_line_that_is_not_utf_8() {
    let tiny = finished().tiny.copy();
    let mut bytes = fs::read(records(&tiny)).unwrap();
    let second = first_line(&records(&tiny)).len();
    bytes[second + 60] = 0xFF;
    fs::write(records(&tiny), bytes).unwrap();
    let parts = ["austen-novels/records.jsonl:2", "expected UTF-8", "found byte 0xff", "offset 60"];
    assert_says(&refusal(&tiny), &parts);
}

#[test]
fn duplicate_record_ids() {
    let tiny = finished().tiny.copy();
    let first = first_line(&records(&tiny));
    let bytes = fs::read(records(&tiny)).unwrap();
    let n_lines = bytes.iter().filter(|b| **b == b'\n').count();
    fs::write(records(&tiny), [bytes, first].concat()).unwrap();
    let line = format!("austen-novels/records.jsonl:{}", n_lines + 1);
    assert_says(&refusal(&tiny), &[line.as_str(), "duplicate record id", "first seen on line 1"]);
}

#[test]
fn a_missing_file() {
    let cases = [
        "datasets/austen-novels/records.jsonl",
        "datasets/zh-classics/licence.json",
        "datasets/zh-classics/terms.txt",
        "datasets/licences.log",
        "models/tiny/model.safetensors",
        "models/tiny/tokenizer.json",
        "models/tiny/recipe.toml",
        "models/tiny/attribution.toml",
        "models/tiny/run.json",
        "models/tiny/checkpoints/step-000015.safetensors",
    ];
    for case in cases {
        let tiny = finished().tiny.copy();
        fs::remove_file(tiny.root().join(case)).unwrap();
        assert_says(&refusal(&tiny), &[case.rsplit('/').next().unwrap()]);
    }
}

#[test]
fn a_changed_model_file() {
    let cases =
        ["model.safetensors", "config.json", "checkpoints/step-000030.safetensors", "second_moments.safetensors"];
    for case in cases {
        let tiny = finished().tiny.copy();
        let path = tiny.model().join(case);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_says(&refusal(&tiny), &[case, "expected SHA-256", "found", "not the file that the training run wrote"]);
    }
}

#[test]
fn another_recipe() {
    let tiny = finished().tiny.copy();
    let path = tiny.model().join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("warmup_steps = 4", "warmup_steps = 5")).unwrap();
    assert_says(&refusal(&tiny), &["recipe.toml", "expected SHA-256", "not the recipe that the training run used"]);
    fs::write(&path, text.replace("batch = 8", "batches = 8")).unwrap();
    assert_says(&refusal(&tiny), &["recipe.toml", "batches", "expected"]);
}

#[test]
fn settings_that_are_out_of_range() {
    let tiny = finished().tiny.copy();
    let path = tiny.model().join("attribution.toml");
    let text = fs::read_to_string(&path).unwrap();
    let cases = [
        ("seed = 7", "seeds = 7", "seeds"),
        ("row_type = \"f32\"", "row_type = \"f23\"", "f23"),
        ("channels = [\"trajectory_fisher\"", "channels = [\"fisher_of_men\"", "fisher_of_men"),
    ];
    for (from, to, named) in cases {
        assert!(text.contains(from));
        fs::write(&path, text.replace(from, to)).unwrap();
        assert_says(&refusal(&tiny), &["attribution.toml", named, "expected"]);
    }
}

/// Puts a NaN into the first number of `model.safetensors`; returns the tensor that it fell into.
fn put_nan(tiny: &Tiny) -> String {
    let path = tiny.model().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let first = header.as_object().unwrap().iter().find(|(_, t)| t["data_offsets"][0] == 0).unwrap();
    assert_eq!(first.1["dtype"], "F32");
    bytes[8 + header_len..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    first.0.clone()
}

#[test]
fn nan_in_weights() {
    let tiny = finished().tiny.copy();
    let tensor = put_nan(&tiny);
    assert_says(&refusal(&tiny), &["model.safetensors", "expected SHA-256", "found"]);
    // Even if the record of the training run vouches for it. The checkpoints before it are good, so their rows are made.
    tiny.forge_record();
    let out = tiny.root().join("fresh");
    let message = tiny.demo(&out).unwrap_err().to_string();
    assert_says(&message, &["model.safetensors", &tensor, "expected finite numbers", "found NaN", "element 0"]);
    assert_nothing_half_written(&out);
}

#[test]
fn a_store_of_another_model() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.model().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let n = bytes.len();
    bytes[n - 4] ^= 1; // last bit of the last number's fraction
    fs::write(&path, bytes).unwrap();
    tiny.forge_record();
    let before = timeless(&tiny.out());
    let message = tiny.demo(&tiny.out()).unwrap_err().to_string();
    assert_says(&message, &["store/final", "made for another spec", "field `model` differs", "expected", "found"]);
    assert_eq!(different(&timeless(&tiny.out()), &before), Vec::<String>::new(), "the refusal changed the folder");
}

#[test]
fn a_truncated_shard() {
    let tiny = finished().tiny.copy_with_run();
    let name = "store/final/shards/s-000000.safetensors";
    let path = tiny.out().join(name);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let message = tiny.demo(&tiny.out()).unwrap_err().to_string();
    let (expected, found) = (whole.len().to_string(), (whole.len() - 100).to_string());
    assert_says(&message, &[name, "expected", &expected, "found", &found]);
    assert_eq!(fs::read(&path).unwrap(), whole[..whole.len() - 100], "the walk touched what it could not read");
    // A bit that changed without changing the length.
    let mut bytes = whole.clone();
    let n = bytes.len();
    bytes[n - 50] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_says(&tiny.demo(&tiny.out()).unwrap_err().to_string(), &[name, "expected", "found"]);
    fs::write(&path, whole).unwrap();
    tiny.demo(&tiny.out()).unwrap();
}

#[test]
fn a_damaged_part_of_a_run_that_can_be_made_again_is_made_again() {
    let tiny = finished().tiny.copy_with_run();
    for name in ["scores.parquet", "eval.json", "shares.json", "factors/final.safetensors", "index/recall.json"] {
        let path = tiny.out().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    tiny.demo(&tiny.out()).unwrap();
    assert_eq!(different(&timeless(&tiny.out()), &timeless(&finished().tiny.out())), Vec::<String>::new());
}

#[test]
fn a_bank_of_another_recipe_or_none() {
    let tiny = finished().tiny.copy();
    let path = bank::cell_path(&tiny.model().join("bank"), 1, Some("zh-classics"));
    let text = fs::read_to_string(&path).unwrap();
    let (recipe, other) = (tiny.recipe().digest(), Digest::of(b"another recipe"));
    fs::write(&path, text.replace(&recipe.to_string(), &other.to_string())).unwrap();
    let expected = format!("expected a cell of recipe {recipe}, found recipe {other}");
    assert_says(&refusal(&tiny), &["seed1-without-zh-classics.json", &expected]);
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert_says(&refusal(&tiny), &["seed1-without-zh-classics.json", "expected a bank cell"]);
    // Without that cell no seed from the first on is whole.
    fs::remove_file(&path).unwrap();
    assert_says(&refusal(&tiny), &["bank", "expected one complete seed", "found none", "hint: ascribe bank build"]);
}

#[test]
fn a_dataset_too_small_to_hold_anything_out() {
    let tiny = finished().tiny.copy();
    let mut recipe = tiny.recipe();
    recipe.corpus.queries_per_dataset = 4000;
    let error = train::run::run(&tiny.registry(), &recipe, &tiny.model(), &ascribe_core::NoProgress).unwrap_err();
    assert!(matches!(error, EngineError::Corpus(_)), "{error}");
    assert_says(&error.to_string(), &["austen-novels", "expected", "4002", "found", "hint"]);
}
