//! Score files: order, round trip, fixed bytes, damage, hostile input.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ascribe_core::{DatasetScores, Digest, ExampleId, QueryId, RecordId, ScoreTable};
use ascribe_store::{DatasetScoresView, Level, ScoreFileMeta, ScoreTableView, ScoreWriter, StoreError, read_scores};
use ndarray::{Array2, array};

use crate::common::poke;

pub fn meta() -> ScoreFileMeta {
    let methods = BTreeMap::from([
        ("block_fisher".to_owned(), Digest::of(b"block_fisher spec")),
        ("bm25".to_owned(), Digest::of(b"bm25 spec")),
    ]);
    ScoreFileMeta { spec: Digest::of(b"spec"), corpus: Digest::of(b"corpus"), methods }
}

fn examples(method: &str, values: Array2<f32>) -> ScoreTable {
    let spec = meta().methods[method];
    let queries = (0..values.nrows() as u32).map(QueryId).collect();
    let examples = (0..values.ncols() as u32).map(|i| ExampleId { dataset: i % 2, idx: i / 2 }).collect();
    ScoreTable { method: method.into(), spec, queries, examples, values }
}

fn datasets(method: &str, values: Array2<f64>) -> DatasetScores {
    let queries = (0..values.nrows() as u32).map(QueryId).collect();
    DatasetScores { method: method.into(), spec: meta().methods[method], queries, values }
}

fn record_of(id: ExampleId) -> Option<RecordId> {
    (id.dataset == 0).then_some(RecordId { dataset: 0, row: id.idx * 10 })
}

pub fn write_toy(path: &Path) {
    let mut writer = ScoreWriter::create(path, &meta()).unwrap();
    let values = array![[0.5f32, 2.0, -1.0, 2.0, 0.0], [-3.0, -2.0, -1.0, -5.0, -4.0]];
    writer.push_examples(&examples("block_fisher", values), Some(3), &record_of).unwrap();
    writer.push_datasets(&datasets("block_fisher", array![[1.0 / 3.0, 4.0], [-8.0, -7.0]])).unwrap();
    writer.push_datasets(&datasets("bm25", array![[1.0, 1.0], [0.0, 2.0]])).unwrap();
    assert_eq!(writer.finish().unwrap().n_rows, 14);
}

#[test]
fn top_rows_come_best_first_with_ties_by_example() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scores.parquet");
    write_toy(&path);
    let file = read_scores(&path).unwrap();
    assert_eq!(file.meta, meta());
    let top = |q| {
        let rows = file.top_examples("block_fisher", QueryId(q));
        rows.map(|r| (r.example().unwrap().to_string(), r.score, r.rank)).collect::<Vec<_>>()
    };
    // Columns are examples 0:0, 1:0, 0:1, 1:1, 0:2; the two scores of 2.0 are at 1:0 and 1:1.
    assert_eq!(top(0), [("1:0".to_owned(), 2.0, 1), ("1:1".to_owned(), 2.0, 2), ("0:0".to_owned(), 0.5, 3)]);
    assert_eq!(top(1), [("0:1".to_owned(), -1.0, 1), ("1:0".to_owned(), -2.0, 2), ("0:0".to_owned(), -3.0, 3)]);
    let third = file.top_examples("block_fisher", QueryId(0)).nth(2).unwrap();
    assert_eq!(third.record(), Some(RecordId { dataset: 0, row: 0 }));
    assert_eq!(file.top_examples("block_fisher", QueryId(0)).next().unwrap().record(), None);
    assert_eq!(
        file.datasets("block_fisher").unwrap(),
        datasets("block_fisher", array![[1.0 / 3.0, 4.0], [-8.0, -7.0]])
    );
    let ranks: Vec<_> = file.rows_of("bm25", Level::Dataset).map(|r| (r.dataset, r.rank)).collect();
    assert_eq!(ranks, [(0, 1), (1, 2), (1, 1), (0, 2)], "ties go to the lower ordinal");
    assert!(matches!(file.datasets("trackstar"), Err(StoreError::Malformed { .. })));
    assert!(file.examples("block_fisher").is_err(), "a top-k file is not a whole table");
}

#[test]
fn whole_tables_come_back_exactly_and_the_bytes_are_fixed() {
    let dir = tempfile::tempdir().unwrap();
    let table =
        examples("bm25", Array2::from_shape_fn((9, 10_000), |(q, n)| ((q * 7919 + n * 31) % 1013) as f32 / 7.0));
    let write = |name: &str| {
        let path = dir.path().join(name);
        let mut writer = ScoreWriter::create(&path, &meta()).unwrap();
        writer.push_examples(&table, None, &|_| None).unwrap();
        let written = writer.finish().unwrap();
        assert_eq!(written.n_rows, 90_000);
        path
    };
    let (a, b) = (write("a.parquet"), write("b.parquet"));
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    let back = read_scores(&a).unwrap().examples("bm25").unwrap();
    let mut order: Vec<usize> = (0..10_000).collect();
    order.sort_by_key(|&n| table.examples[n]);
    for (at, n) in order.into_iter().enumerate() {
        assert_eq!(back.examples[at], table.examples[n]);
        assert_eq!(back.values.column(at), table.values.column(n));
    }
}

#[test]
fn borrowed_tables_with_any_strides_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let table = examples("bm25", Array2::from_shape_fn((3, 50), |(q, n)| ((q * 7919 + n * 31) % 7) as f32));
    let sums = datasets("bm25", array![[1.0, 2.0], [4.0, 3.0], [5.0, 5.0]]);
    let (owned, borrowed) = (dir.path().join("owned.parquet"), dir.path().join("borrowed.parquet"));
    let mut writer = ScoreWriter::create(&owned, &meta()).unwrap();
    writer.push_examples(&table, Some(20), &record_of).unwrap();
    writer.push_datasets(&sums).unwrap();
    writer.finish().unwrap();
    let mut writer = ScoreWriter::create(&borrowed, &meta()).unwrap();
    let (turned, packed) = (table.values.t().as_standard_layout().into_owned(), table.examples.clone());
    let view = ScoreTableView {
        method: "bm25",
        spec: table.spec,
        queries: &table.queries,
        values: turned.t(),
        example_of: &|n| ExampleId::from_u64(packed[n].to_u64()),
    };
    writer.push_examples_view(&view, Some(20), &record_of).unwrap();
    let view =
        DatasetScoresView { method: "bm25", spec: sums.spec, queries: &sums.queries, values: sums.values.view() };
    writer.push_datasets_view(view).unwrap();
    let queries = &table.queries[..2];
    let short =
        ScoreTableView { method: "bm25", spec: table.spec, queries, values: turned.t(), example_of: &|_| packed[0] };
    assert!(matches!(writer.push_examples_view(&short, None, &record_of), Err(StoreError::Shape { .. })));
    writer.finish().unwrap();
    assert_eq!(fs::read(&owned).unwrap(), fs::read(&borrowed).unwrap());
}

#[test]
fn bad_tables_are_refused_and_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scores.parquet");
    let mut writer = ScoreWriter::create(&path, &meta()).unwrap();
    let nan = examples("bm25", array![[1.0, f32::NAN]]);
    let error = writer.push_examples(&nan, Some(1), &|_| None).unwrap_err();
    assert_eq!(error.to_string(), "method `bm25`, query 0, example 1:0: expected a finite number, found NaN");
    let error = writer.push_datasets(&datasets("bm25", array![[1.0, f64::INFINITY]])).unwrap_err();
    assert!(matches!(error, StoreError::NotFinite { .. }), "{error}");
    let mut undeclared = datasets("bm25", array![[1.0]]);
    undeclared.method = "random".into();
    assert!(matches!(writer.push_datasets(&undeclared), Err(StoreError::Shape { .. })));
    let mut foreign = datasets("bm25", array![[1.0]]);
    foreign.spec = Digest::of(b"another spec");
    assert!(matches!(writer.push_datasets(&foreign), Err(StoreError::Shape { .. })));
    let mut short = examples("bm25", array![[1.0, 2.0]]);
    short.examples.pop();
    assert!(matches!(writer.push_examples(&short, None, &|_| None), Err(StoreError::Shape { .. })));
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something half written stayed");
    let mut writer = ScoreWriter::create(&path, &meta()).unwrap();
    writer.push_datasets(&datasets("bm25", array![[1.0]])).unwrap();
    assert!(matches!(writer.push_datasets(&datasets("bm25", array![[1.0]])), Err(StoreError::Shape { .. })));
}

#[test]
fn one_flipped_bit_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scores.parquet");
    write_toy(&path);
    let bytes = fs::read(&path).unwrap();
    for (at, &byte) in bytes.iter().enumerate() {
        poke(&path, at, byte ^ (1 << (at % 8)));
        let error = read_scores(&path).unwrap_err();
        let is_right = matches!(error, StoreError::WrongChecksum { .. } | StoreError::Malformed { .. });
        assert!(is_right, "byte {at}: {error}");
        poke(&path, at, byte);
    }
    for len in [0, 4, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(matches!(read_scores(&path), Err(StoreError::Malformed { .. })), "cut to {len} bytes");
    }
    assert!(matches!(read_scores(&dir.path().join("none")), Err(StoreError::Missing { .. })));
}
