//! The bench from the command line: what is listed, the JSON that other programs read, errors that say what would do.

use std::fs;

use serde_json::{Value, json};

use crate::common::{run, stdout};

fn parsed(args: &[&str]) -> (bool, Value) {
    let output = run(args);
    let text = stdout(&output);
    (output.status.success(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}")))
}

#[test]
fn shipped_settings_are_listed_with_banks_and_methods() {
    let (ok, listed) = parsed(&["bench", "list", "--format", "json"]);
    assert!(ok);
    let settings = listed["settings"].as_array().unwrap();
    for name in ["mnist-lr", "mnist-mlp", "gpt-small", "datasets-shapley", "facts"] {
        let setting = settings.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("{name} in {listed}"));
        let methods = setting["methods"].as_array().unwrap();
        assert!(methods.iter().any(|m| m["quick"] == true), "{setting}");
        assert!(
            methods.iter().all(|m| !m["about"].as_str().unwrap().is_empty() && m["source"].is_string()),
            "{setting}"
        );
    }
    // A game of datasets has methods of its own.
    let game = settings.iter().find(|s| s["name"] == "datasets-shapley").unwrap();
    let names: Vec<&str> = game["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    for name in ["calibrated_game", "bigram_game", "trajectory_fisher", "fisher_final", "bm25_top20", "random"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(!names.contains(&"magic"), "{names:?}");
    let gpt = settings.iter().find(|s| s["name"] == "gpt-small").unwrap();
    assert_eq!(gpt["protocols"], json!(["removal", "tail_patch"]));
    let lr = settings.iter().find(|s| s["name"] == "mnist-lr").unwrap();
    assert!(lr["banks"].as_array().unwrap().iter().all(|bank| bank["complete"] == bank["seeds"]), "{lr}");
}

#[test]
fn a_fact_set_of_ones_own_gives_the_figures_of_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let corpora = dir.path().join("corpora");
    fs::create_dir(&corpora).unwrap();
    let record = |id: &str, text: &str| json!({ "id": id, "text": text, "meta": { "owner": "x" } }).to_string();
    let texts: Vec<String> = (0..12).map(|i| record(&format!("a/{i}"), &format!("word{i} stands here"))).collect();
    fs::write(corpora.join("a.jsonl"), texts.join("\n")).unwrap();
    let queries = dir.path().join("set.jsonl");
    let query = json!({ "id": "1", "query": "where is word7?", "answer": "here", "sources": ["a/7"], "lang": "en" });
    fs::write(&queries, query.to_string()).unwrap();
    let (corpora, queries) = (corpora.to_str().unwrap(), queries.to_str().unwrap());
    let args =
        ["bench", "facts", "--corpora", corpora, "--queries", queries, "--methods", "bm25,random", "--format", "json"];
    let (ok, report) = parsed(&args);
    assert!(ok, "{report}");
    let bm25 = &report["methods"]["bm25"];
    for key in ["recall_at_10", "low", "high", "cpu_seconds", "bytes_per_example"] {
        assert!(bm25[key].is_number(), "{key}: {bm25}");
    }
    assert_eq!(bm25["recall_at_10"], 1.0);
    assert_eq!(bm25["extra"]["hit_at_1@set"], 1.0);
    assert!(report["methods"]["random"]["recall_at_10"].is_number());

    fs::write(queries, "{\"id\":\"1\",\"query\":\"?\",\"answer\":\"!\",\"sources\":[\"a/99\"]}\n").unwrap();
    let (ok, error) = parsed(&args);
    let text = error["error"].as_str().unwrap();
    assert!(!ok && text.contains("set.jsonl, line 1, field `sources`") && text.contains("a/99"), "{text}");
}

#[test]
fn unknown_names_are_answered_with_the_known_ones() {
    for (args, want) in [
        (&["bench", "run", "mnist-xl", "--format", "json"][..], "mnist-lr, mnist-mlp"),
        (&["bench", "run", "facts", "--methods", "bm26", "--format", "json"], "--methods: expected one of combined"),
        (&["bench", "run", "no/suite.toml", "--format", "json"], "no/suite.toml"),
        (&["bench", "bank", "facts", "--format", "json"], "{\"trained\":0}"),
    ] {
        let (ok, value) = parsed(args);
        let text = value.to_string();
        assert!(text.contains(want) && ok == text.contains("trained"), "{args:?}: {text}");
    }
}
