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
    // One by name: the same object, and a line in words for each of its methods.
    let (ok, one) = parsed(&["bench", "list", "mnist-lr", "--format", "json"]);
    assert!(ok && one["settings"] == json!([lr]), "{one}");
    let words = stdout(&run(&["bench", "list", "mnist-lr"]));
    for method in lr["methods"].as_array().unwrap() {
        let line = words.lines().find(|line| line.trim_start().split(' ').next() == method["name"].as_str());
        assert!(line.is_some_and(|line| line.contains(method["about"].as_str().unwrap())), "{method}: {words}");
    }
    let gates = lr["gates"].as_array().unwrap();
    assert!(gates.len() >= 8 && gates.iter().all(|gate| words.contains(gate.as_str().unwrap())), "{words}");
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
        (&["bench", "list", "mnist-xl", "--format", "json"][..], "mnist-lr, mnist-mlp"),
        (&["bench", "run", "facts", "--methods", "bm26", "--format", "json"], "--methods: expected one of combined"),
        (&["bench", "run", "no/suite.toml", "--format", "json"], "no/suite.toml"),
        (&["bench", "bank", "facts", "--format", "json"], "{\"trained\":0}"),
    ] {
        let (ok, value) = parsed(args);
        let text = value.to_string();
        assert!(text.contains(want) && ok == text.contains("trained"), "{args:?}: {text}");
    }
}

#[test]
fn registering_a_dataset_in_parts_gains_nothing_under_group_values_and_something_under_others() {
    let drawn = ["--queries", "3", "--sizes", "6", "--pairs", "8", "--split", "austen-novels:3", "--format", "json"];
    let of = |value: &str| {
        let (ok, report) = parsed(&[&["values", "--game", "bigram", "--value", value], &drawn[..]].concat());
        assert!(ok, "{report}");
        report
    };
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    let group = of("fgsv");
    let split = &group["splits"][0];
    assert!(number(&split["gain"]).abs() <= 4.0 * number(&split["std_error"]), "{split}");
    assert!(
        number(&split["std_error"]) > 0.0
            && group["exact"] == false
            && group["players"].as_array().unwrap().len() == 12
    );
    // Twelve players: the table of all 4,096 sets, nothing drawn. One more part and orders are drawn.
    let exact = of("shapley");
    assert!(exact["exact"] == true && exact["utilities"] == 4096 && number(&exact["splits"][0]["std_error"]) == 0.0);
    assert!(number(&exact["splits"][0]["gain"]).abs() > 1e-6, "{exact}");
    let (ok, error) = parsed(&["values", "--game", "bigram", "--split", "nobody:2", "--format", "json"]);
    assert!(!ok && error["error"].as_str().unwrap().contains("--split: expected a dataset among"), "{error}");
}

#[test]
fn self_influence_of_a_setting_lists_classes_and_the_largest_examples() {
    let (ok, report) = parsed(&[
        "self-influence",
        "--setting",
        "mnist-lr",
        "--methods",
        "grad_dot,grad_cos",
        "--examples",
        "40",
        "--top",
        "2",
        "--format",
        "json",
    ]);
    assert!(ok, "{report}");
    let methods = report["methods"].as_array().unwrap();
    assert_eq!(methods.len(), 2);
    let top = methods[0]["top"].as_array().unwrap();
    assert!(
        top.len() == 2
            && top[0]["value"].as_f64() >= top[1]["value"].as_f64()
            && top[0]["dataset"].as_str().unwrap().starts_with("class ")
    );
    // Everybody's cosine with himself is 1.
    assert!((methods[1]["top"][0]["value"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{report}");
    let (ok, error) = parsed(&["self-influence", "--setting", "mnist-lr", "--methods", "nobody", "--format", "json"]);
    assert!(!ok && error["error"].as_str().unwrap().contains("--methods: expected some of grad_dot"), "{error}");
}
