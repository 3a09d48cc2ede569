//! Commands on somebody's own model folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{ascribe, repository, run, stderr, stdout};

fn wren() -> String {
    repository().join("models/wren").display().to_string()
}

/// A file of short records in several forms.
fn records(dir: &Path, n: usize) -> PathBuf {
    let path = dir.join("records.jsonl");
    let line = |i: usize| match i % 3 {
        0 => {
            json!({ "id": format!("r{i}"), "text": format!("In the year {i} the king spoke to the people. ").repeat(4) })
        }
        1 => json!({ "prompt": "Who was it? ", "completion": format!("It was number {i}, I think."), "dataset": "qa" }),
        _ => {
            json!({ "input_ids": (0..20 + i as u32 % 200).map(|t| 1 + (t * 37 + i as u32) % 2000).collect::<Vec<_>>() })
        }
    };
    let lines: Vec<String> = (0..n).map(|i| line(i).to_string()).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn features(data: &Path, out: &Path, extra: &[&str]) -> Output {
    let (model, data, out) = (wren(), data.display().to_string(), out.display().to_string());
    let args = ["features", "--model", &model, "--data", &data, "--out", &out, "--format", "json"];
    run(&[&args[..], extra].concat())
}

fn object(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap()
}

/// The shards of a store, as bytes.
fn shards(store: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(store.join("shards")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn features_of_records_say_what_was_done_and_what_each_row_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 30);
    let store = dir.path().join("store");
    let said = object(&features(&data, &store, &["--threads", "1"]));
    // One record of three has 20 to 49 tokens of its own, all fit the context of 128.
    assert_eq!((&said["examples"], &said["records"], &said["examples_done"]), (&json!(30), &json!(30), &json!(30)));
    let number = |key: &str| said[key].as_f64().unwrap();
    assert!(number("tokens") > 600.0 && number("cpu_seconds") > 0.0 && number("peak_rss_mib") > 5.0, "{said}");
    assert!((number("tokens_per_cpu_second") * number("cpu_seconds") / number("tokens") - 1.0).abs() < 1e-9);
    let lines = fs::read_to_string(store.join("examples.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 30);
    assert_eq!(
        (&lines[0]["record"], &lines[0]["dataset"], &lines[0]["line"]),
        (&json!("r0"), &json!("data"), &json!(1))
    );
    assert_eq!((&lines[1]["record"], &lines[1]["dataset"]), (&json!("2"), &json!("qa")));
    assert!(lines[1]["loss_from"].as_u64().unwrap() > 2, "the prompt is masked: {}", lines[1]);
    let tokens: u64 = lines.iter().map(|l| l["token_end"].as_u64().unwrap() - l["token_start"].as_u64().unwrap()).sum();
    assert_eq!(said["tokens"], tokens);

    // Other threads, the same bytes; a second call has nothing left to do.
    let other = dir.path().join("other");
    object(&features(&data, &other, &["--threads", "2"]));
    assert_eq!(shards(&store), shards(&other));
    let again = object(&features(&data, &store, &[]));
    assert_eq!((&again["examples"], &again["examples_done"]), (&json!(30), &json!(0)));
    assert_eq!(again["spec_sha256"], said["spec_sha256"]);

    // Another setting does not get into the same store.
    let output = features(&data, &store, &["--projection", "8x4"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("projector"), "{}", stderr(&output));
}

#[test]
fn a_bad_record_stops_everything_before_the_store_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    fs::write(&data, "{\"text\": \"a good one\"}\n{\"txt\": \"a bad one\"}\n").unwrap();
    let store = dir.path().join("store");
    let output = features(&data, &store, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("data.jsonl, line 2, field `text`: expected") && said.contains("found fields txt"), "{said}");
    assert!(!store.exists());
    let output = features(&data, &store, &["--max-len", "129"]);
    assert!(stderr(&output).contains("--max-len: expected 2 to the model's context 128, found 129"));
    let output = features(&data, &store, &["--taps", "no.such.module"]);
    assert_eq!(output.status.code(), Some(1));
    let output = run(&["features", "--limit", "3"]);
    assert!(stderr(&output).contains("--data"), "a lab's option without a lab's data: {}", stderr(&output));
}

#[test]
fn interrupted_features_go_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 2500);
    let (store, whole) = (dir.path().join("store"), dir.path().join("whole"));
    let mut command = ascribe();
    command.args(["features", "--model", &wren(), "--data"]).arg(&data).arg("--out").arg(&store);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    // Rows that the first call commits are not made again by the second.
    let committed = || fs::metadata(store.join("manifest.log")).is_ok_and(|file| file.len() > 0);
    while !committed() && Instant::now() < deadline {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it had committed a shard");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped on request"), "{}", stderr(&output));
    assert!(!store.join("MANIFEST.json").exists());
    let done = object(&features(&data, &store, &[]))["examples_done"].as_u64().unwrap();
    assert!((1..2500).contains(&done), "{done}");
    object(&features(&data, &whole, &["--threads", "1"]));
    assert_eq!(shards(&store), shards(&whole));
}

#[test]
fn nll_of_records_is_that_of_their_texts() {
    let dir = tempfile::tempdir().unwrap();
    let sentence = "It was not till the evening that she was able to speak of what had happened.";
    let (text, data) = (dir.path().join("t.txt"), dir.path().join("t.jsonl"));
    fs::write(&text, sentence).unwrap();
    fs::write(&data, json!({ "text": sentence }).to_string()).unwrap();
    let of = |flag: &str, path: &Path| {
        object(&run(&["nll", "--model", &wren(), flag, path.to_str().unwrap(), "--format", "json"]))
    };
    assert_eq!(of("--text", &text), of("--data", &data));
}

#[test]
fn folders_that_are_no_models_are_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    fs::write(&text, "some words").unwrap();
    let nll = |model: &Path| {
        let output = run(&["nll", "--model", model.to_str().unwrap(), "--text", text.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let said = nll(&dir.path().join("none"));
    assert!(said.contains("a Hugging Face model folder") && said.contains("found nothing"), "{said}");
    // Weights and configuration, no tokenizer; then one with more tokens than the model.
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    let fixture = repository().join("crates/ascribe-models/tests/fixtures/gqa-tied");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), model.join(file)).unwrap();
    }
    let said = nll(&model);
    assert!(said.contains("tokenizer.json") && said.contains("hint:"), "{said}");
    fs::copy(repository().join("models/wren/tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let said = nll(&model);
    assert!(said.contains("vocab_size") && said.contains("has id"), "{said}");
}
