//! Stdout is data, stderr is talk, the exit code tells.

use ascribe_engine::lab::model::LabModel;
use ascribe_engine::nll;

use crate::common::{repository, run, stderr, stdout};

#[test]
fn an_error_in_text_and_in_json() {
    let args = ["--home", "no/such/folder", "registry", "verify"];
    let text = run(&args);
    assert_eq!(text.status.code(), Some(1));
    assert_eq!(stdout(&text), "", "an error is talk");
    insta::assert_snapshot!("error-text", stderr(&text));
    let json = run(&[&args[..], &["--format", "json"]].concat());
    assert_eq!(json.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
    insta::assert_json_snapshot!("error-json", value);
    assert_eq!(value.as_object().unwrap().len(), 1);
    assert!(stderr(&json).contains(value["error"].as_str().unwrap()));
}

#[test]
fn a_model_that_is_not_there() {
    let output = run(&["registry", "verify", "--model", "no-such-model", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let message = value["error"].as_str().unwrap();
    assert!(message.contains("models/no-such-model/run.json") && message.contains("missing"), "{message}");
}

#[test]
fn arguments_that_make_no_sense_are_the_users_fault() {
    for args in [&["frobnicate"][..], &["demo", "--threads", "many"], &["bank", "build", "--shard", "2/2"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("error:") && stdout(&output).is_empty());
    }
    assert!(stderr(&run(&["bank", "build", "--shard", "2/2"])).contains("expected i/n with i below n"));
}

#[test]
fn the_shipped_registry_verifies() {
    let output = run(&["registry", "verify", "--format", "json", "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut value: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(value["datasets"].as_array().unwrap().len() >= 10);
    for dataset in value["datasets"].as_array().unwrap() {
        assert_eq!(dataset["used_by_run"], true, "{dataset}");
        assert_eq!(dataset["demo_key"], true, "{dataset}");
    }
    // What was verified is fixed; the id of the training run follows from when it ran.
    assert!(value["run"].as_str().unwrap().starts_with("wren-"), "{value}");
    value["run"] = "[training run]".into();
    insta::assert_json_snapshot!("registry-verify", value);
}

#[test]
fn nll_is_the_librarys_and_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    let sentence = "It was not till the evening that she was able to speak of what had happened. ";
    std::fs::write(&text, sentence.repeat(12)).unwrap();
    let model = repository().join("models/wren");
    let of = |extra: &[&str]| -> serde_json::Value {
        let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
        let output = run(&[&["nll", "--model", model, "--text", text, "--format", "json"], extra].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let (one, two) = (of(&["--threads", "1"]), of(&["--threads", "2"]));
    assert_eq!(one, two);
    let library = nll::run(&LabModel::open(&model).unwrap(), &text, ascribe_corpus::SpecialTokens::AsFile).unwrap();
    assert_eq!(one["nll"].as_f64().unwrap().to_bits(), library.nll.to_bits());
    assert_eq!(one["tokens"], library.tokens);
    // Better than guessing among 2,048 tokens by far, and no miracle.
    assert!((0.5..5.0).contains(&library.nll), "{}", library.nll);
    assert!(library.tokens > 100);
}

#[test]
fn nll_refuses_a_text_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    for (bytes, said) in [(&b"ab\xFFcd"[..], "another byte at offset 2"), (b"", "expected at least two tokens")] {
        std::fs::write(&text, bytes).unwrap();
        let output = run(&["nll", "--model", "models/wren", "--text", text.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(said) && stderr(&output).contains("text.txt"), "{}", stderr(&output));
    }
}
