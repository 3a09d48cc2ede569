//! `ascribe store`: every command on a small store, and what it refuses.

use std::path::Path;

use ascribe_core::{Column, Digest, ExampleId, FeatureReader, FeatureSink, FeatureSpec, ProjectorSpec, RowType};
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::Array2;
use serde_json::Value;

use crate::common::{run, stderr, stdout};

const DIM: usize = 20;

fn spec() -> FeatureSpec {
    let column = |name: &str, start| Column { name: name.into(), start, len: DIM / 2 };
    FeatureSpec {
        model: Digest::of(b"weights"),
        checkpoint: "final".into(),
        quantity: "gradient".into(),
        loss: "next_token_nll_sum".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: vec![column("layers.0.up", 0), column("layers.0.down", DIM / 2)],
        dim: DIM,
        corpus: Digest::of(b"corpus"),
    }
}

fn number(dataset: u32, idx: u32, j: usize) -> f32 {
    let word = (u64::from(dataset) << 40 | u64::from(idx) << 20 | j as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    word as f32 / (1u32 << 23) as f32 - 1.0
}

/// Three datasets, of which `dataset % parts` says who builds them.
fn push(writer: &mut FeatureWriter, ids: &[ExampleId]) {
    let rows = Array2::from_shape_fn((ids.len(), DIM), |(i, j)| number(ids[i].dataset, ids[i].idx, j));
    writer.push(ids, rows.view()).unwrap();
}

fn ids(datasets: &[u32], from: u32, to: u32) -> Vec<ExampleId> {
    datasets.iter().flat_map(|&dataset| (from..to).map(move |idx| ExampleId { dataset, idx })).collect()
}

fn build(dir: &Path, ids: &[ExampleId]) {
    build_of(dir, &spec(), ids);
}

fn build_of(dir: &Path, spec: &FeatureSpec, ids: &[ExampleId]) {
    let mut writer = FeatureWriter::create_or_resume(dir, spec, RowType::F32, 16, ids.len() as u64).unwrap();
    push(&mut writer, ids);
    writer.finish().unwrap();
}

fn object(args: &[&str]) -> Value {
    let output = run(&[args, &["--quiet", "--format", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn refused(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    stderr(&output)
}

#[test]
fn a_store_through_all_its_commands() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    build(Path::new(&at("p0")), &ids(&[0, 2], 0, 30));
    build(Path::new(&at("p1")), &ids(&[1], 0, 25));
    build(Path::new(&at("whole")), &ids(&[0, 1, 2], 0, 25));
    let merged = object(&["store", "merge", &at("p1"), &at("p0"), "--out", &at("store")]);
    assert_eq!((merged["n_rows"].as_u64(), merged["row_type"].as_str()), (Some(85), Some("f32")));
    let companion = object(&["store", "convert", &at("store"), "--rows", "int8", "--companion"]);
    assert_eq!(companion["row_type"], "int8");
    let curvature = object(&["store", "curvature", &at("store")]);
    assert_eq!((curvature["how"].as_str(), curvature["n_rows"].as_u64()), (Some("fitted"), Some(85)));
    assert_eq!(object(&["store", "curvature", &at("store")])["how"], "kept");
    let verified = object(&["store", "verify", &at("store")]);
    assert_eq!((verified["n_rows"].as_u64(), verified["companions"][0].as_str()), (Some(85), Some("int8")));
    let deleted = object(&["store", "delete", &at("store"), "--dataset", "1", "--example", "0:7", "--example", "2:29"]);
    assert_eq!((deleted["n_rows"].as_u64(), deleted["n_dead"].as_u64()), (Some(58), Some(27)));
    let stats = object(&["store", "stats", &at("store")]);
    assert_eq!((stats["generation"].as_u64(), stats["datasets"].as_array().unwrap().len()), (Some(1), 2));
    assert_eq!(stats["companions"][0], serde_json::json!(["int8", "current"]));
    let packed = object(&["store", "compact", &at("store")]);
    assert_eq!((packed["n_rows"].as_u64(), packed["n_dead"].as_u64()), (Some(58), Some(0)));
    assert_eq!(object(&["store", "stats", &at("store")])["companions"][0][1], "stale");
    assert!(refused(&["store", "verify", &at("store")]).contains("store convert DIR --rows int8 --companion"));
    object(&["store", "convert", &at("store"), "--rows", "int8", "--companion"]);
    object(&["store", "verify", &at("store")]);
    let exported = object(&["store", "export", &at("store"), "--out", &at("rows.npy")]);
    assert_eq!(exported["files"].as_array().unwrap().len(), 2);
    object(&["store", "push", &at("store"), "--to", &at("shared")]);
    let pulled = object(&["store", "pull", &at("shared"), "--out", &at("pulled")]);
    assert_eq!(pulled["n_rows"].as_u64(), Some(58));
    object(&["store", "verify", &at("pulled")]);
}

/// Curvature that was brought up to date equals curvature that is fitted anew, within 1e-12 of the largest moment.
#[test]
fn curvature_follows_appends_and_deletions() {
    let dir = tempfile::tempdir().unwrap();
    let (store, again) = (dir.path().join("store"), dir.path().join("again"));
    build(&store, &ids(&[0, 1], 0, 40));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    object(&["store", "curvature", &text(&store)]);
    let mut writer = FeatureWriter::append(&store, &spec(), 30).unwrap();
    push(&mut writer, &ids(&[2], 0, 30));
    writer.finish().unwrap();
    assert_eq!(object(&["store", "curvature", &text(&store)])["how"], "updated");
    object(&["store", "delete", &text(&store), "--dataset", "0", "--example", "1:3"]);
    object(&["store", "compact", &text(&store)]);
    let kept = object(&["store", "curvature", &text(&store)]);
    assert_eq!((kept["how"].as_str(), kept["n_rows"].as_u64()), (Some("kept"), Some(69)));
    let left: Vec<ExampleId> = FeatureStore::open(&store, None).unwrap().ids().collect();
    build(&again, &left);
    assert_eq!(object(&["store", "curvature", &text(&again)])["how"], "fitted");
    let moments = |dir: &Path| {
        let file = ascribe_store::FactorFile::read(&dir.join("curvature.safetensors"), None).unwrap();
        file.tensors.into_values().map(|t| t.as_f64().unwrap().clone()).collect::<Vec<_>>()
    };
    for (a, b) in moments(&store).iter().zip(&moments(&again)) {
        let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let gap = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(gap <= 1e-12 * largest, "{gap} of {largest}");
    }
    assert_eq!(FeatureStore::open(&store, None).unwrap().n_rows(), 69);
}

/// Owners come, sell and go; curvature and sums follow, and every number is the one of a store that was built so.
#[test]
fn datasets_are_added_relicensed_and_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (store, supplier) = (at("store"), at("supplier"));
    build(Path::new(&store), &ids(&[0, 1], 0, 30));
    let other = FeatureSpec { corpus: Digest::of(b"of the supplier"), ..spec() };
    build_of(Path::new(&supplier), &other, &ids(&[0, 4], 50, 70));
    object(&["store", "curvature", &store]);
    object(&["store", "relicense", &store, "--dataset", "0", "--owner", "Arbour", "--licence", "MIT"]);
    let told = object(&["store", "relicense", &store, "--dataset", "1", "--owner", "Moss", "--name", "odes"]);
    assert_eq!((told["generation"].as_u64(), told["owners"][1]["rows"].as_u64()), (Some(2), Some(30)));
    assert_eq!(object(&["store", "curvature", &store])["how"], "kept", "the moments followed");
    let added = object(&["store", "add", &store, &supplier, "--as", "4:7", "--owner", "Birch", "--licence", "CC0-1.0"]);
    assert_eq!((added["n_rows"].as_u64(), added["curvature"].as_str()), (Some(100), Some("updated")));
    let here = added["datasets"].as_array().unwrap().iter().map(|d| (d["from"].as_u64(), d["dataset"].as_u64()));
    assert!(here.eq([(Some(0), Some(2)), (Some(4), Some(7))]), "{added}");
    assert_eq!(added["datasets"][0]["corpus"], Digest::of(b"of the supplier").to_string());
    object(&["store", "relicense", &store, "--dataset", "7", "--owner", "Arbour"]);
    object(&["store", "delete", &store, "--dataset", "1", "--example", "0:3"]);
    object(&["store", "compact", &store]);
    assert_eq!(object(&["store", "curvature", &store])["how"], "kept");
    object(&["store", "verify", &store]);
    // Scores by sums are sums of scores, here summed one by one.
    build(Path::new(&at("few")), &ids(&[1], 0, 4));
    object(&["store", "export", &at("few"), "--out", &at("q.npy")]);
    let sums = object(&["store", "sums", &store, "--queries", &at("q.npy")]);
    let owners: Vec<&str> = sums["owners"].as_array().unwrap().iter().map(|o| o["owner"].as_str().unwrap()).collect();
    assert_eq!(owners, ["Arbour", "Birch", "Moss"]);
    assert_eq!(sums["owners"][2]["rows"], 0, "withdrawn, and still known");
    // The rows that are left: dataset 0 without its third, and the supplier's two under their new numbers.
    let left = |dataset: u32| match dataset {
        0 => ids(&[0], 0, 30).into_iter().filter(|id| id.idx != 3).collect(),
        2 => ids(&[0], 50, 70),
        _ => ids(&[4], 50, 70),
    };
    for query in 0..4 {
        let score = |id: &ExampleId| -> f64 {
            (0..DIM).map(|j| f64::from(number(1, query, j)) * f64::from(number(id.dataset, id.idx, j))).sum()
        };
        let of = |dataset: u32| left(dataset).iter().map(score).sum::<f64>();
        let found = &sums["queries"][query as usize];
        for (place, expected) in [(0, of(0)), (1, of(2)), (2, of(7))] {
            assert!((found["datasets"][place].as_f64().unwrap() - expected).abs() < 1e-12, "{found} {expected}");
        }
        for (place, expected) in [(0, of(0) + of(7)), (1, of(2)), (2, 0.0)] {
            assert!((found["owners"][place].as_f64().unwrap() - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
    owners_are_searched(&store, &at("q.npy"));
    let text = refused(&["store", "add", &store, &supplier, "--as", "0:2"]);
    assert!(text.contains("an ordinal of its own") && text.contains("0 as 2"), "{text}");
    assert!(refused(&["store", "add", &store, &supplier, "--as", "0"]).contains("THERE:HERE"));
    assert!(refused(&["store", "relicense", &store, "--dataset", "9", "--owner", "x"]).contains("dataset 9"));
    assert!(refused(&["store", "relicense", &store, "--owner", "x"]).contains("--dataset"));
}

/// A search keeps to owners and licences that the store was told, in every mode, and says whose a hit is.
fn owners_are_searched(store: &str, queries: &str) {
    for (by, kept) in [(["--owner", "Arbour"], &[0u64, 7][..]), (["--licence", "CC0-1.0"], &[2, 7])] {
        for mode in ["exact", "certified", "ann"] {
            let found = object(
                &[&["search", "--store", store, "--queries", queries, "--k", "9", "--mode", mode], &by[..]].concat(),
            );
            for query in found["queries"].as_array().unwrap() {
                let datasets = query["datasets"].as_array().unwrap();
                assert!(datasets.len() == 9 && datasets.iter().all(|d| kept.contains(&d.as_u64().unwrap())), "{query}");
                let whose = datasets.iter().map(|d| if d == 2 { "Birch" } else { "Arbour" });
                assert!(query["owners"].as_array().unwrap().iter().eq(whose), "{query}");
            }
        }
    }
    let text = refused(&["search", "--store", store, "--queries", queries, "--owner", "Reed"]);
    assert!(text.contains("Arbour, Birch, Moss") && text.contains("Reed"), "{text}");
}

/// Names, owners and licences of a whole registry.
#[test]
fn a_registry_says_whose_the_datasets_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store").to_string_lossy().into_owned();
    build(Path::new(&store), &ids(&[0, 2, 6, 11], 0, 5));
    let registry = crate::common::repository().join("datasets");
    let told = object(&["store", "relicense", &store, "--registry", registry.to_str().unwrap()]);
    assert_eq!(told["without_owner"], serde_json::json!([11]), "the registry has ten");
    let stats = object(&["store", "stats", &store]);
    let names: Vec<&str> = stats["datasets"].as_array().unwrap().iter().filter_map(|d| d["name"].as_str()).collect();
    assert_eq!(names.len(), 3);
    // The second time by name: nothing changes.
    let again = object(&["store", "relicense", &store, "--registry", registry.to_str().unwrap()]);
    assert_eq!(again["generation"], told["generation"]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    assert!(refused(&["store", "verify", &at("none")]).contains("no feature store"));
    build(Path::new(&at("store")), &ids(&[0], 0, 5));
    let text = refused(&["store", "delete", &at("store"), "--dataset", "4"]);
    assert!(text.contains("a row of dataset 4") && text.contains("nothing was changed"), "{text}");
    assert!(refused(&["store", "delete", &at("store"), "--example", "1"]).contains("DATASET:N"));
    assert!(refused(&["store", "export", &at("store"), "--out", &at("rows.csv")]).contains(".parquet"));
    assert!(refused(&["store", "convert", &at("store"), "--rows", "int8"]).contains("--companion"));
    let wide = refused(&["store", "convert", &at("store"), "--rows", "f32", "--companion"]);
    assert!(wide.contains("narrower than f32"), "{wide}");
    object(&["store", "verify", &at("store")]);
}

/// A changed byte in what lies beside the rows is named as one in the rows is.
#[test]
fn what_lies_beside_the_rows_is_verified_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    build(Path::new(&at("store")), &ids(&[0, 1, 2], 0, 40));
    let bare = object(&["store", "verify", &at("store")]);
    assert_eq!(bare["beside"].as_array().map(Vec::len), Some(0));
    object(&["store", "curvature", &at("store")]);
    build(Path::new(&at("few")), &ids(&[1], 0, 4));
    object(&["store", "export", &at("few"), "--out", &at("q.npy")]);
    object(&["search", "--store", &at("store"), "--queries", &at("q.npy"), "--k", "3", "--mode", "ann"]);
    let whole = object(&["store", "verify", &at("store")]);
    assert_eq!(whole["beside"], serde_json::json!(["curvature.safetensors", "hnsw"]));
    assert!(whole["bytes"].as_u64() > bare["bytes"].as_u64());
    for name in ["curvature.safetensors", "hnsw/graph-000.bin", "hnsw/index.json"] {
        let path = dir.path().join("store").join(name);
        let bytes = std::fs::read(&path).unwrap();
        for at_byte in [bytes.len() / 2, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at_byte] ^= 1;
            std::fs::write(&path, changed).unwrap();
            let text = refused(&["store", "verify", &at("store")]);
            assert!(text.contains(name), "byte {at_byte} of {name}: {text}");
        }
        std::fs::write(&path, bytes).unwrap();
    }
    // Rows that the graph does not know make it old, not damaged; so do they the moments.
    let mut writer = FeatureWriter::append(Path::new(&at("store")), &spec(), 40).unwrap();
    push(&mut writer, &ids(&[3], 0, 40));
    writer.finish().unwrap();
    assert_eq!(object(&["store", "verify", &at("store")])["n_rows"], 160);
}

/// Whitened factors: scores are those of the whitened rows, taken from the file beside them; what does not know of it refuses them.
#[test]
fn whitened_factors_are_searched_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (k_in, k_out) = (4, 3);
    let column = |name: &str, start, len| Column { name: name.into(), start, len };
    let columns = vec![column("layers.0.up", 0, 12), column("norm", 12, 8)];
    let projector = ProjectorSpec::TwoSided { seed: 7, k_in, k_out, version: 1 };
    let all = ids(&[0, 1], 0, 30);
    build_of(Path::new(&at("dense")), &FeatureSpec { projector, columns, ..spec() }, &all);
    build(Path::new(&at("few")), &ids(&[2], 0, 3));
    object(&["store", "export", &at("few"), "--out", &at("q.npy")]);
    let (dense, queries) = (at("dense"), at("q.npy"));
    for (rank, rows, apart) in [("3", "f32", 1e-5), ("3", "int8", 0.05), ("1", "f32", 1.0)] {
        let out = at(&format!("{rank}-{rows}"));
        object(&["store", "convert", &dense, "--rows", rows, "--factors", rank, "--out", &out]);
        object(&["store", "convert", &dense, "--rows", rows, "--factors", rank, "--out", &out]);
        assert_eq!(object(&["store", "verify", &out])["beside"], serde_json::json!(["whitening.safetensors"]));
        let whole = whitened_scores(Path::new(&out), &all);
        let size = whole.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
        let found = object(&["search", "--store", &out, "--queries", &queries, "--k", "60", "--mode", "exact"]);
        for (hits, whole) in found["queries"].as_array().unwrap().iter().zip(&whole) {
            for (row, score) in hits["rows"].as_array().unwrap().iter().zip(hits["scores"].as_array().unwrap()) {
                let gap = (score.as_f64().unwrap() - whole[row.as_u64().unwrap() as usize]).abs() / size;
                assert!(gap <= apart, "rank {rank} in {rows}: {gap}");
            }
        }
    }
    let out = at("3-f32");
    for door in [
        &["search", "--store", &out, "--queries", &queries, "--k", "2", "--mode", "certified"][..],
        &["search", "--store", &out, "--queries", &queries, "--k", "2", "--mode", "ann"],
        &["score", "--store", &out, "--queries", &queries, "--k", "2", "--out", &at("none")],
        &["store", "curvature", &out],
        &["store", "convert", &out, "--rows", "f32", "--factors", "1", "--out", &at("none")],
        &["store", "convert", &dense, "--rows", "f32", "--factors", "4", "--out", &at("none")],
    ] {
        let text = refused(door);
        assert!(
            ["--mode exact", "LoRIF", "two-sided", "a rank from 1 to 3"].iter().any(|w| text.contains(w)),
            "{text}"
        );
    }
    whitening_is_kept(&out, &queries, &dir.path().join("moved"));
}

/// Inner products of whitened rows and queries, by the matrices of the file and no factors.
fn whitened_scores(store: &Path, all: &[ExampleId]) -> Vec<Vec<f64>> {
    let file = ascribe_store::FactorFile::read(&store.join("whitening.safetensors"), None).unwrap();
    let side = |name: &str| {
        let numbers = file.tensors[name].as_f64().unwrap().clone();
        numbers.into_dimensionality::<ndarray::Ix2>().unwrap()
    };
    let white = |id: &ExampleId| {
        let row: Vec<f64> = (0..DIM).map(|j| f64::from(number(id.dataset, id.idx, j))).collect();
        let of = |range: std::ops::Range<usize>, o: usize, name: &str| {
            let matrix = Array2::from_shape_vec((o, range.len() / o), row[range].to_vec()).unwrap();
            side(&format!("{name}/left"))
                .dot(&matrix)
                .dot(&side(&format!("{name}/right")))
                .into_iter()
                .collect::<Vec<_>>()
        };
        [of(0..12, 3, "layers.0.up"), of(12..20, 1, "norm")].concat()
    };
    let rows: Vec<Vec<f64>> = all.iter().map(white).collect();
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum();
    ids(&[2], 0, 3).iter().map(|id| rows.iter().map(|row| product(&white(id), row)).collect()).collect()
}

/// The whitening goes where the rows go; a changed or missing one is named.
fn whitening_is_kept(store: &str, queries: &str, moved: &Path) {
    let at = |name: &str| moved.join(name).to_string_lossy().into_owned();
    let search = |store: &str| {
        object(&["search", "--store", store, "--queries", queries, "--k", "5", "--mode", "exact"])["queries"].clone()
    };
    object(&["store", "convert", store, "--rows", "f32", "--out", &at("same")]);
    object(&["store", "push", store, "--to", &at("shared")]);
    object(&["store", "pull", &at("shared"), "--out", &at("pulled")]);
    assert_eq!((search(&at("same")), search(&at("pulled"))), (search(store), search(store)));
    let path = moved.join("pulled/whitening.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let ask = ["search", "--store", &at("pulled"), "--queries", queries, "--k", "5", "--mode", "exact"];
    assert!(
        refused(&ask).contains("whitening.safetensors")
            && refused(&["store", "verify", &at("pulled")]).contains("whitening")
    );
    std::fs::remove_file(&path).unwrap();
    assert!(refused(&ask).contains("whitening.safetensors is missing"));
}

/// Factors that are dotted as if they were gradients give numbers like any other: every door asks first.
#[test]
fn factored_rows_are_scored_by_nobody_who_does_not_multiply_them_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let projector = ProjectorSpec::Factored { seed: 1, k_in: 6, k_out: 4, rank: 1, version: 1 };
    build_of(Path::new(&at("store")), &FeatureSpec { projector, ..spec() }, &ids(&[0, 1], 0, 20));
    build(Path::new(&at("few")), &ids(&[1], 0, 4));
    object(&["store", "export", &at("few"), "--out", &at("q.npy")]);
    let (store, queries, out) = (at("store"), at("q.npy"), at("out.json"));
    for door in [
        &["score", "--store", &store, "--queries", &queries, "--k", "2", "--out", &out][..],
        &["search", "--store", &store, "--queries", &queries, "--k", "2", "--mode", "exact"],
        &["search", "--store", &store, "--queries", &queries, "--k", "2", "--mode", "ann"],
        &["store", "curvature", &store],
    ] {
        let text = refused(door);
        assert!(text.contains("found factors (LoRIF)") && text.contains("multiply them out"), "{door:?}: {text}");
    }
    assert!(!Path::new(&out).exists() && !dir.path().join("store/curvature.safetensors").exists());
    // Rows as such are kept, checked and taken elsewhere as any others.
    assert_eq!(object(&["store", "verify", &store])["n_rows"], 40);
    object(&["store", "export", &store, "--out", &at("rows.npy")]);
}

#[test]
fn a_store_is_scored_in_parts_with_the_bytes_of_one_job() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    build(Path::new(&at("store")), &ids(&[0, 1, 2], 0, 30));
    build(Path::new(&at("few")), &ids(&[1], 0, 4));
    object(&["store", "export", &at("few"), "--out", &at("q.npy")]);
    let score = |shard: &[&str], out: &str| {
        let (store, queries, out) = (at("store"), at("q.npy"), at(out));
        let common = ["score", "--store", &store, "--queries", &queries, "--k", "5", "--out", &out];
        object(&[&common[..], shard].concat())
    };
    assert_eq!(score(&[], "whole.json")["rows"], 90);
    let rows: u64 =
        (0..3).map(|i| score(&["--shard", &format!("{i}/3")], &format!("part{i}"))["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 90);
    let parts = [at("part2"), at("part0"), at("part1")];
    object(&["score", "--join", &parts[0], &parts[1], &parts[2], "--out", &at("joined.json")]);
    assert_eq!(std::fs::read(at("joined.json")).unwrap(), std::fs::read(at("whole.json")).unwrap());
    // A second route: scores by hand, and none of the rows has a greater one than the best.
    let whole: Value = serde_json::from_slice(&std::fs::read(at("whole.json")).unwrap()).unwrap();
    for (query, hits) in whole["hits"].as_array().unwrap().iter().enumerate() {
        let scored = |dataset: u32, idx: u32| -> f64 {
            let query = query as u32;
            (0..DIM).map(|j| f64::from(number(1, query, j)) * f64::from(number(dataset, idx, j))).sum()
        };
        let best = hits.as_array().unwrap()[0].clone();
        let id = best["id"].as_u64().unwrap();
        let expected = scored((id >> 32) as u32, id as u32);
        assert!((best["score"].as_f64().unwrap() - expected).abs() < 1e-12, "{best} {expected}");
        let greatest = ids(&[0, 1, 2], 0, 30).into_iter().map(|id| scored(id.dataset, id.idx)).fold(f64::MIN, f64::max);
        assert!((expected - greatest).abs() < 1e-12, "{expected} {greatest}");
    }
    let join = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| at(name)).collect();
        let out = at("none.json");
        let files: Vec<&str> = names.iter().map(String::as_str).collect();
        refused(&[&["score", "--join"], &files[..], &["--out", &out]].concat())
    };
    assert!(join(&["part0", "part2"]).contains("no part 1"));
    assert!(join(&["part0", "part0", "part2"]).contains("every part once"));
    score(&["--shard", "0/2"], "other0");
    assert!(join(&["part1", "other0"]).contains("a part of the job"));
    assert!(join(&["whole.json"]).contains("expected a part"));
    let more = ["score", "--store", &at("store"), "--queries", &at("q.npy"), "--shard", "0/99", "--out", &at("x")];
    assert!(refused(&more).contains("the 6 shards"));
    assert!(refused(&more[..5]).contains("--out"));
}

#[test]
fn a_cluster_needs_its_command() {
    let output = crate::common::ascribe()
        .args(["cluster", "score", "--help"])
        .env("ASCRIBE_CLUSTER", "/nowhere/ascribe-cluster")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere/ascribe-cluster cannot be started"), "{}", stderr(&output));
    // What it is given reaches it as it is: `echo` in its place says so.
    let output = crate::common::ascribe()
        .args(["score", "--cluster", "df://h:1", "--store", "s3://b/s", "--queries", "q.npy", "--out", "o.json"])
        .env("ASCRIBE_CLUSTER", "/bin/echo")
        .output()
        .unwrap();
    let wanted = "score --cluster df://h:1 --store s3://b/s --queries q.npy --k 10 --out o.json\n";
    assert_eq!(stdout(&output), wanted);
}
