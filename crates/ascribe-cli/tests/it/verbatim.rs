//! Verbatim evidence from the command line: built over the shipped datasets and over files, found, scored, refused.

use std::fs;
use std::path::Path;

use ascribe_core::QueryId;
use ascribe_store::{Level, read_scores};
use serde_json::{Value, json};

use crate::common::{repository, run, stderr, stdout};

fn parsed(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn refused(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stdout(&output));
    stderr(&output)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Two files of records, one with a prompt, one with ids, and a blank line.
fn write_sources(dir: &Path) -> [String; 2] {
    let line = |value: Value| value.to_string() + "\n";
    let first = line(json!({ "id": "one", "text": "The quick brown fox jumps over the lazy dog." }))
        + "\n"
        + &line(json!({ "prompt": "Who jumps? ", "completion": "The quick brown fox." }));
    let second = line(json!({ "text": "天地玄黄，宇宙洪荒。The quick brown fox" }))
        + &line(json!({ "input_ids": [5, 6, 7, 8] }));
    [("a.jsonl", first), ("b.jsonl", second)].map(|(name, content)| {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_owned()
    })
}

#[test]
fn a_verse_is_found_where_it_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path());
    let built = parsed(&["verbatim", "build", "--out", out, "--format", "json"]);
    assert_eq!((&built["datasets"], &built["records"]), (&json!(10), &json!(13_038)));
    // Built once; the second call finds everything done.
    let again = parsed(&["verbatim", "build", "--out", out, "--format", "json"]);
    assert_eq!((&again["tokens"], &again["tokens_done"]), (&built["tokens"], &json!(0)));
    let records = fs::read_to_string(repository().join("datasets/kjv-bible/records.jsonl")).unwrap();
    let record: Value = serde_json::from_str(records.lines().nth(40).unwrap()).unwrap();
    let verse: String = record["text"].as_str().unwrap().chars().take(200).collect();
    let response = format!("As it is written: {verse} And so on.");
    let found = parsed(&["verbatim", "find", "--index", out, "--response", &response, "--format", "json"]);
    let best = &found["spans"][0];
    let place = best["places"].as_array().unwrap().iter().find(|p| p["row"] == 40).unwrap();
    assert_eq!((&place["dataset"], &place["source"]["id"]), (&json!("kjv-bible"), &record["id"]));
    let span = best["text"].as_str().unwrap();
    assert!(span.len() > 150 && response.contains(span), "{span}");
    assert_eq!(place["source"]["text"].as_str().unwrap(), span);
    let (start, end) = (place["source"]["byte_start"].as_u64().unwrap(), place["source"]["byte_end"].as_u64().unwrap());
    assert_eq!(&record["text"].as_str().unwrap()[start as usize..end as usize], span);
    assert!(found["note"].as_str().unwrap().contains("beside influence"));
    let verified = parsed(&["verbatim", "verify", out, "--format", "json"]);
    assert_eq!(verified["bytes"], built["bytes"]);
}

#[test]
fn files_are_searched_scored_and_watched() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = write_sources(dir.path());
    let index = dir.path().join("index");
    let index = text(&index);
    let build = ["verbatim", "build", "--data", &a, &b, "--out", index, "--shard-tokens", "20", "--format", "json"];
    let built = parsed(&build);
    assert_eq!((&built["datasets"], &built["records"]), (&json!(2), &json!(4)));
    assert!(built["shards"].as_u64().unwrap() >= 2);
    let response = "A quick brown fox jumps";
    let find = ["verbatim", "find", "--index", index, "--response", response, "--min-tokens", "3", "--format", "json"];
    let found = parsed(&find);
    let best = &found["spans"][0];
    assert!(best["text"].as_str().unwrap().ends_with("quick brown fox jumps"), "{best}");
    assert_eq!((&best["count"], &best["datasets"][0]["dataset"]), (&json!(1), &json!("a")));
    assert_eq!(best["places"][0]["source"]["after"], " over the lazy dog.");
    let ids =
        parsed(&["verbatim", "find", "--index", index, "--tokens", "5,6,7", "--min-tokens", "2", "--format", "json"]);
    assert_eq!((&ids["spans"][0]["places"][0]["row"], &ids["spans"][0]["text"]), (&json!(1), &Value::Null));
    let words = stdout(&run(&find[..find.len() - 2]));
    assert!(
        words.contains("quick brown fox jumps] over the lazy dog.") && words.contains("beside influence"),
        "{words}"
    );

    let queries = dir.path().join("queries.jsonl");
    let (one, two) = (json!({ "text": response }), json!({ "prompt": "the lazy dog ", "completion": "xyzzy" }));
    fs::write(&queries, format!("{one}\n{two}\n")).unwrap();
    let scores = dir.path().join("scores.parquet");
    let score = ["verbatim", "score", "--index", index, "--queries", text(&queries), "--out", text(&scores)];
    let report = parsed(&[&score[..], &["--min-tokens", "3", "--format", "json"]].concat());
    assert_eq!((&report["queries"], &report["datasets"]), (&json!(2), &json!(2)));
    let file = read_scores(&scores).unwrap();
    let table = file.datasets("verbatim").unwrap();
    let run_tokens = best["end"].as_u64().unwrap() - best["start"].as_u64().unwrap();
    assert_eq!(table.values[(0, 0)], run_tokens as f64);
    assert!(table.values[(0, 1)] >= 3.0 && table.values[(0, 1)] < table.values[(0, 0)]);
    assert_eq!(table.values.row(1).to_vec(), [0.0, 0.0], "the prompt does not count");
    let top = file.top_examples("verbatim", QueryId(0)).next().unwrap();
    assert_eq!((top.dataset, top.example_idx, top.record_row, top.score), (0, Some(0), Some(0), run_tokens as f64));
    assert_eq!(file.rows_of("verbatim", Level::Example).filter(|row| row.query == QueryId(1)).count(), 0);

    // The source is changed after the build: nothing is shown that was not checked.
    fs::write(&a, fs::read_to_string(&a).unwrap().replace("quick brown fox", "quick brown cat")).unwrap();
    let error = refused(&find);
    assert!(error.contains("a.jsonl") && error.contains("changed after the index was built"), "{error}");
    let error = refused(&build);
    assert!(error.contains("sources") && error.contains("expected"), "{error}");
    // Without the source the place is still told.
    fs::remove_file(&a).unwrap();
    let found = parsed(&find);
    assert_eq!(
        (&found["spans"][0]["places"][0]["row"], &found["spans"][0]["places"][0]["source"]),
        (&json!(0), &Value::Null)
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = write_sources(dir.path());
    let out = dir.path().join("out");
    let out = text(&out);
    let bad = dir.path().join("bad.jsonl");
    fs::write(&bad, "{\"text\":\"fine\"}\n{\"text\":3}\n").unwrap();
    let error = refused(&["verbatim", "build", "--data", text(&bad), "--out", out]);
    assert!(error.contains("bad.jsonl, line 2, field `text`: expected a text, found 3"), "{error}");
    let error = refused(&["verbatim", "find", "--index", out, "--response", "x"]);
    assert!(error.contains("unfinished"), "{error}");
    let error = refused(&["verbatim", "build", "--data", &a, &a, "--out", out]);
    assert!(error.contains("a twice"), "{error}");
    let error = refused(&["verbatim", "find", "--index", text(dir.path()), "--response", "x"]);
    assert!(error.contains("verbatim.json is missing (hint: build the index first)"), "{error}");
    refused(&["verbatim", "find", "--index", out]);
    refused(&["verbatim", "find", "--index", out, "--response", "x", "--min-tokens", "0"]);
    let other = dir.path().join("other");
    parsed(&["verbatim", "build", "--data", &b, "--out", text(&other), "--format", "json"]);
    fs::write(other.join("tokenizer.json"), fs::read_to_string(other.join("tokenizer.json")).unwrap() + " ").unwrap();
    let error = refused(&["verbatim", "find", "--index", text(&other), "--response", "x"]);
    assert!(error.contains("tokenizer.json: expected SHA-256"), "{error}");
}
