//! Fact tracing on the shipped model with a handful of records. The shipped sets are run by the bench itself.

use std::path::Path;

use ascribe_core::NoProgress;

use super::*;
use crate::files;

const RECORDS: [(&str, &str); 5] = [
    ("zoo/cat", "The cat is a small animal that hunts mice at night."),
    ("zoo/dog", "The dog is an animal that guards the house."),
    ("law/pact", "A pact is an agreement between two parties under the statute."),
    ("law/fine", "A fine is money that is paid to the court."),
    ("sea/tide", "The tide is the rise of the sea under the moon."),
];

fn request(dir: &Path) -> FactsRequest {
    let write = |name: &str, lines: Vec<String>| {
        files::write_atomic(&dir.join(name), lines.join("\n").as_bytes()).unwrap();
    };
    let record = |(id, text): &(&str, &str)| json!({ "id": id, "text": text }).to_string();
    write("corpora/all.jsonl", RECORDS.iter().map(record).collect());
    let query = |(query, answer, source): &(&str, &str, &str)| {
        json!({ "id": query, "query": query, "answer": answer, "sources": [source] }).to_string()
    };
    let animals = [("Who hunts mice at night?", "cat", "zoo/cat"), ("Who guards the house?", "dog", "zoo/dog")];
    write("animals.jsonl", animals.iter().map(query).collect());
    write("law.jsonl", [("What is paid to the court?", "a fine", "law/fine")].iter().map(query).collect());
    FactsRequest {
        name: "toy".into(),
        about: "a toy".into(),
        corpora: dir.join("corpora"),
        queries: vec![dir.join("animals.jsonl"), dir.join("law.jsonl")],
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/wren"),
        encoder: None,
        methods: Vec::new(),
        k: 2,
        limit: None,
    }
}

#[test]
fn words_find_what_shares_words_and_every_method_reports() {
    let dir = tempfile::tempdir().unwrap();
    let report = run(&request(dir.path()), &NoProgress).unwrap();
    assert_eq!((report.queries, report.examples), (3, 5));
    let names: Vec<&str> = report.methods.keys().map(String::as_str).collect();
    assert_eq!(names, ["bm25", "bm25_answer", "combined", "embedding", "influence", "random"]);
    let bm25 = &report.methods["bm25"];
    assert_eq!((bm25.metric.as_str(), bm25.value, bm25.n), ("recall_at_2", Some(1.0), 3));
    for name in ["hit_at_1", "hit_at_2", "mrr", "hit_at_1@animals", "mrr@law", "recall_at_2@law"] {
        assert_eq!(bm25.figure(name), Some(1.0), "{name}");
    }
    for (name, figure) in &report.methods {
        let value = figure.value.unwrap();
        assert!((0.0..=1.0).contains(&value), "{name} {value}");
        assert!(figure.low.unwrap() <= value && value <= figure.high.unwrap(), "{name}");
        assert_eq!(figure.bytes_per_example == 0.0, name == "random", "{name}");
    }
    // Rows of the gradient stage: as many f32 as its columns, one window per record.
    let influence = &report.methods["influence"];
    assert_eq!(influence.bytes_per_example, 4.0 * influence.settings["dim"].as_f64().unwrap());
    // A record asked for in its own words is found by its gradient too.
    assert!(influence.figure("mrr").unwrap() > 0.4, "{influence:?}");
}

#[test]
fn the_result_does_not_depend_on_company() {
    let dir = tempfile::tempdir().unwrap();
    let all = run(&request(dir.path()), &NoProgress).unwrap();
    let alone = FactsRequest { methods: vec!["influence".into()], ..request(dir.path()) };
    let alone = run(&alone, &NoProgress).unwrap();
    assert_eq!(alone.methods.len(), 1);
    assert_eq!(alone.methods["influence"].extra, all.methods["influence"].extra);
    // The own model as an outside encoder finds what it finds as itself.
    let twice = FactsRequest {
        methods: vec!["encoder".into(), "embedding".into()],
        encoder: Some(request(dir.path()).model),
        ..request(dir.path())
    };
    let twice = run(&twice, &NoProgress).unwrap();
    assert_eq!(twice.methods["encoder"].extra, twice.methods["embedding"].extra);
    let limited =
        run(&FactsRequest { limit: Some(1), methods: vec!["bm25".into()], ..request(dir.path()) }, &NoProgress);
    assert_eq!(limited.unwrap().queries, 2);
}

#[test]
fn what_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut FactsRequest)| {
        let mut request = request(dir.path());
        change(&mut request);
        run(&request, &NoProgress).unwrap_err().to_string()
    };
    let error = refused(&|r| r.methods = vec!["bm26".into()]);
    assert!(error.contains("--methods: expected one of combined") && error.contains("bm26"), "{error}");
    let error = refused(&|r| r.methods = vec!["encoder".into()]);
    assert!(error.contains("--encoder"), "{error}");
    for k in [0, 6] {
        let error = refused(&|r| r.k = k);
        assert!(error.contains("--k: expected 1 to 5, the number of records"), "{error}");
    }
}

#[test]
fn orders_by_hand() {
    let scores = ndarray::arr1(&[0.5, 2.0, 0.5, -1.0]);
    assert_eq!(ordered(scores.view(), |v| *v), [1, 0, 2, 3]);
    // 0: 1/61 + 1/63, 1: 1/62 + 1/62, 2: 1/63 + 1/61: the first two are equal ends around the middle, which is smaller.
    assert_eq!(fused(&[&[0, 1, 2], &[2, 1, 0]]), [0, 2, 1]);
    assert_eq!(fused(&[&[0, 1, 2], &[1, 0, 2], &[1, 2, 0]]), [1, 0, 2]);
}
