//! `ascribe bench search` and `ascribe search`: the contract that outside checks rely on.

use std::path::Path;

use serde_json::Value;

use crate::common::{repository, run, stdout};

/// A `.npy` file of f32 numbers, as NumPy writes it.
fn write_npy(path: &Path, rows: &[Vec<f32>]) {
    let shape = format!("({}, {})", rows.len(), rows[0].len());
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    header += &" ".repeat(63 - (10 + header.len()) % 64);
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.concat().iter().flat_map(|x| x.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

fn json(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn ids(report: &Value) -> Vec<Vec<u64>> {
    let of = |query: &Value| query["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    report["queries"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_store_is_measured_and_then_searched_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (store, queries) = (store.to_str().unwrap(), dir.path().join("queries.npy"));
    let bench = ["bench", "search", "--rows", "700", "--dim", "48", "--dir", store, "--format", "json", "-q"];
    let report = json(&bench);
    assert_eq!(report["certified_equals_exact"], Value::Bool(true));
    assert!(report["read_gb_s"].as_f64().unwrap() > 0.0 && report["scan_gb_s"].as_f64().unwrap() > 0.0);
    let hnsw = report["hnsw"].as_array().unwrap();
    assert!(hnsw.iter().all(|point| point["ef"].as_u64().unwrap() >= 10 && point["qps"].as_f64().unwrap() > 0.0));
    assert!(hnsw.last().unwrap()["recall"].as_f64().unwrap() > 0.95);

    let rows = |q: usize| (0..48).map(|j| ((q * 31 + j * 7) % 13) as f32 - 6.0).collect();
    write_npy(&queries, &(0..6).map(rows).collect::<Vec<Vec<f32>>>());
    let queries = queries.to_str().unwrap();
    let search = |more: &[&str]| {
        let common = ["search", "--store", store, "--queries", queries, "--k", "10", "--format", "json", "-q"];
        json(&[&common[..], more].concat())
    };
    let exact = search(&["--mode", "exact"]);
    assert_eq!((ids(&exact).len(), ids(&exact)[0].len()), (6, 10));
    assert_eq!((&exact["generation"], &exact["rows"]), (&Value::from(0), &Value::from(700)));
    for companion in [&[][..], &["--companion", "int4"], &["--companion", "f16"]] {
        let certified = search(&[&["--mode", "certified"], companion].concat());
        assert_eq!(certified["proven"], Value::Bool(true));
        for (a, b) in exact["queries"].as_array().unwrap().iter().zip(certified["queries"].as_array().unwrap()) {
            assert_eq!((&a["ids"], &a["scores"], &a["rows"]), (&b["ids"], &b["scores"], &b["rows"]));
            assert!(b["rows_rescored"].as_u64().unwrap() >= 10);
        }
    }
    let ann = search(&["--mode", "ann", "--recall", "0.9"]);
    let (found, truth) = (ids(&ann), ids(&exact));
    let common = found.iter().flatten().filter(|id| truth.iter().flatten().any(|t| t == *id)).count();
    assert!(common >= 40, "{common} of 60");
    assert_eq!(ann["proven"], Value::Bool(ann["mode"] == "exact"));
    let filtered = search(&["--mode", "certified", "--dataset", "3,4"]);
    assert!(ids(&filtered).iter().flatten().all(|id| [3, 4].contains(&(id >> 32))));
    // Owners and licences stand for the datasets that the shipped registry lists under them, in every mode.
    let registry = repository().join("datasets");
    let registry = ["--registry", registry.to_str().unwrap()];
    for (by, datasets) in
        [(["--licence", "PSF-2.0"], "6,7"), (["--licence", "MIT"], "0,2,9"), (["--owner", "Julia Silge"], "0")]
    {
        let truth = ids(&search(&["--mode", "exact", "--dataset", datasets]));
        for mode in ["exact", "certified", "ann"] {
            let found = search(&[&["--mode", mode, "--recall", "0.9"], &registry[..], &by].concat());
            let found = ids(&found);
            assert!(found.iter().flatten().all(|id| datasets.contains(&(id >> 32).to_string())), "{by:?} {mode}");
            let common = found.iter().flatten().filter(|id| truth.iter().flatten().any(|t| t == *id)).count();
            assert!(common >= if mode == "ann" { 48 } else { 60 }, "{common} of 60 {by:?} {mode}");
        }
    }
}

#[test]
fn what_is_wrong_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let store = store.to_str().unwrap();
    json(&["bench", "search", "--rows", "60", "--dim", "16", "--dir", store, "--no-hnsw", "--format", "json", "-q"]);
    let queries = dir.path().join("queries.npy");
    let path = queries.to_str().unwrap();
    let fails = |args: &[&str], expected: &str| {
        let output = run(&[&["search", "--store", store, "--queries", path], args].concat());
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(expected), "{text}");
    };
    fails(&[], "queries.npy");
    write_npy(&queries, &[vec![1.0; 15]]);
    fails(&[], "expected 16 numbers, found 15");
    write_npy(&queries, &[vec![1.0; 16]]);
    fails(&["--k", "61"], "expected at most 60");
    fails(&["--owner", "x"], "--registry");
    std::fs::write(&queries, b"not numpy").unwrap();
    fails(&[], "queries.npy");
}
