//! `ascribe bench search` and `ascribe search`: the contract that outside checks rely on.

use std::path::Path;

use ascribe_core::{Column, Digest, ExampleId, FeatureSink as _, FeatureSpec, ProjectorSpec, RowType};
use ascribe_store::FeatureWriter;
use ndarray::Array2;
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

/// Ids that both found, query by query.
fn in_common(found: &[Vec<u64>], truth: &[Vec<u64>]) -> usize {
    assert_eq!(found.len(), truth.len());
    found.iter().zip(truth).map(|(found, truth)| found.iter().filter(|id| truth.contains(id)).count()).sum()
}

/// The answer is the graph's, not exact search in its place.
fn by_the_graph(report: &Value) {
    let said = ["mode", "nominated_by", "proven"].map(|name| &report[name]);
    assert_eq!(said, [&Value::from("ann"), &Value::from("hnsw"), &Value::from(false)]);
    assert!(report["recall"].as_f64().is_some_and(|recall| recall >= 0.9), "{report}");
}

#[test]
fn a_store_is_measured_and_then_searched_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (store, queries) = (store.to_str().unwrap(), dir.path().join("queries.npy"));
    let bench = ["bench", "search", "--rows", "700", "--dim", "48", "--dir", store, "--cold", "--format", "json", "-q"];
    let report = json(&bench);
    assert_eq!(report["certified_equals_exact"], Value::Bool(true));
    for figure in ["read_gb_s", "scan_gb_s", "certified_gb_s"] {
        assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    let one = &report["scans"][0];
    assert_eq!((&one["row_type"], &one["queries"], &one["gb_s"]), (&"int8".into(), &1.into(), &report["scan_gb_s"]));
    let cold = &report["cold"];
    let shards = std::fs::read_dir(dir.path().join("store/int8/shards")).unwrap().map(|entry| entry.unwrap());
    let shards = shards.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "safetensors"));
    assert_eq!(cold["bytes"].as_u64().unwrap(), shards.map(|entry| entry.metadata().unwrap().len()).sum::<u64>());
    for figure in ["read_gb_s", "scan_gb_s", "first_scan_gb_s"] {
        assert!(cold[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
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
    by_the_graph(&ann);
    let common = in_common(&ids(&ann), &ids(&exact));
    assert!(common >= 54, "{common} of 60");
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
            let report = search(&[&["--mode", mode, "--recall", "0.9"], &registry[..], &by].concat());
            let found = ids(&report);
            assert!(found.iter().flatten().all(|id| datasets.contains(&(id >> 32).to_string())), "{by:?} {mode}");
            if mode == "ann" {
                by_the_graph(&report);
                let common = in_common(&found, &truth);
                assert!(common >= 54, "{common} of 60 {by:?}");
            } else {
                assert_eq!(found, truth, "{by:?} {mode}");
            }
        }
    }
}

/// Scores by some modules are inner products over their columns alone, summed here by hand.
#[test]
fn a_search_by_modules_reads_their_columns_alone() {
    const N: usize = 90;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let columns = [("layers.0.up", 0, 7), ("layers.0.down", 7, 9), ("layers.1.up", 16, 8)];
    let spec = FeatureSpec {
        model: Digest::of(b"weights"),
        checkpoint: "final".into(),
        quantity: "gradient".into(),
        loss: "next_token_nll_sum".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: columns.map(|(name, start, len)| Column { name: name.into(), start, len }).to_vec(),
        dim: 24,
        corpus: Digest::of(b"corpus"),
    };
    let number = |i: usize, j: usize| ((i * 37 + j * 101 + i * i * j) % 211) as f32 / 16.0 - 6.5;
    let rows = Array2::from_shape_fn((N, 24), |(i, j)| number(i, j));
    let ids: Vec<ExampleId> = (0..N as u32).map(|i| ExampleId { dataset: i % 3, idx: i / 3 }).collect();
    let mut writer =
        FeatureWriter::create_or_resume(Path::new(&at("store")), &spec, RowType::F32, 32, N as u64).unwrap();
    writer.push(&ids, rows.view()).unwrap();
    writer.finish().unwrap();
    json(&["store", "convert", &at("store"), "--rows", "int8", "--companion", "--format", "json", "-q"]);
    let queries: Vec<Vec<f32>> = (0..3).map(|q| (0..24).map(|j| number(q + 200, j)).collect()).collect();
    write_npy(Path::new(&at("q.npy")), &queries);
    for (named, used, of) in [
        ("layers.0.down", &["layers.0.down"][..], vec![7..11, 11..16]),
        ("layers.1,layers.0.up", &["layers.0.up", "layers.1.up"], vec![0..7, 16..24]),
        ("layers", &["layers.0.up", "layers.0.down", "layers.1.up"], vec![0..16, 16..24]),
    ] {
        let best = |query: &Vec<f32>| {
            let product = |i: usize, j: usize| f64::from(query[j]) * f64::from(rows[(i, j)]);
            let score = |i| of.iter().cloned().flatten().map(|j| product(i, j)).sum::<f64>();
            let mut all: Vec<(f64, u64)> = (0..N).map(|i| (score(i), ids[i].to_u64())).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all
        };
        for mode in ["exact", "certified", "ann"] {
            let (store, file) = (at("store"), at("q.npy"));
            let search = ["search", "--store", &store, "--queries", &file, "--modules", named, "--mode", mode];
            let report = json(&[&search[..], &["--recall", "0.9", "--format", "json", "-q"]].concat());
            assert_eq!(report["modules"], serde_json::json!(used));
            if mode == "ann" {
                by_the_graph(&report);
            }
            for (query, hits) in queries.iter().zip(report["queries"].as_array().unwrap()) {
                let scores = hits["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap());
                let found = scores.zip(hits["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()));
                // Numbers of few bits: sums of any order are exact.
                let (found, best) = (found.collect::<Vec<_>>(), best(query));
                if mode == "ann" {
                    // Nominated by a graph of whole rows, scored by the modules: no score is another than by hand.
                    assert!(found.iter().all(|hit| best.contains(hit)) && found.is_sorted_by(|a, b| a.0 >= b.0));
                    let common = found.iter().filter(|hit| best[..10].contains(hit)).count();
                    assert!(common >= 8, "{common} of 10 by {named}");
                } else {
                    assert_eq!(found, best[..10], "{named} {mode}");
                }
            }
        }
    }
    let output = run(&["search", "--store", &at("store"), "--queries", &at("q.npy"), "--modules", "layers.2"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("layers.2") && text.contains("layers.0.up"), "{text}");
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
