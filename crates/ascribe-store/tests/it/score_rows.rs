//! Score files of other tools: the same rows out of every container, and refusals that name the row.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float32Array, Float64Array, Int16Array, Int64Array, LargeStringArray, RecordBatch,
    StringArray, StringViewArray, UInt32Array,
};
use arrow::datatypes::Int8Type;
use ascribe_store::StoreError;
use ascribe_store::score_rows::{Label, Revenues, ScoreRows};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;

/// Ordinals as they are; names `a`, `b`, `c` as 0, 1, 2; anything else 99.
fn resolve(label: Label<'_>) -> u32 {
    match label {
        Label::Number(n) => n as u32,
        Label::Text(text) => ["a", "b", "c"].iter().position(|name| *name == text).map_or(99, |at| at as u32),
    }
}

fn read(path: &Path, method: Option<&str>) -> Result<Vec<(String, u32, f64)>, StoreError> {
    let rows = ScoreRows::open(path, method)?;
    let mut found = Vec::new();
    for part in 0..rows.n_parts() {
        rows.read_part(part, &resolve, &mut |batch| {
            for ((query, dataset), score) in batch.queries.iter().zip(&batch.datasets).zip(&batch.scores) {
                found.push((rows.query_text(*query).unwrap_or_else(|| query.to_string()), *dataset, *score));
            }
            Ok(())
        })?;
    }
    found.sort_by(|a, b| a.partial_cmp(b).unwrap());
    Ok(found)
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn parquet(path: &Path, batch: &RecordBatch, compression: Compression, group: usize) {
    let properties = WriterProperties::builder().set_compression(compression).set_max_row_group_row_count(Some(group));
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties.build())).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn arrow_file(path: &Path, batch: &RecordBatch) {
    let mut writer = arrow::ipc::writer::FileWriter::try_new(File::create(path).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
}

fn arrow_stream(path: &Path, batch: &RecordBatch) {
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(File::create(path).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
}

fn npy(path: &Path, shape: (usize, usize), fortran: bool, values: &[f64]) {
    let order = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': '<f8', 'fortran_order': {order}, 'shape': ({}, {}), }}\n", shape.0, shape.1);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

/// Two responses by three datasets, row-major.
const VALUES: [f64; 6] = [0.5, -1.25, 0.0, 3.0, 1e-300, -0.0];

fn numbers() -> RecordBatch {
    batch(vec![
        ("score", Arc::new(Float64Array::from(VALUES.to_vec())) as ArrayRef),
        ("note", Arc::new(StringArray::from(vec!["x"; 6]))),
        ("query_id", Arc::new(UInt32Array::from(vec![0, 0, 0, 1, 1, 1]))),
        ("dataset_id", Arc::new(Int64Array::from(vec![0, 1, 2, 0, 1, 2]))),
    ])
}

#[test]
fn every_container_gives_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let expected: Vec<(String, u32, f64)> =
        (0..6).map(|n| ((n / 3).to_string(), n as u32 % 3, VALUES[n])).collect::<Vec<_>>();
    let mut expected = expected;
    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
        Compression::GZIP(Default::default()),
    ] {
        for group in [1, 4, 100] {
            parquet(&at("p"), &numbers(), compression, group);
            assert_eq!(read(&at("p"), None).unwrap(), expected, "{compression:?} {group}");
        }
    }
    arrow_file(&at("f"), &numbers());
    assert_eq!(read(&at("f"), None).unwrap(), expected);
    arrow_stream(&at("s"), &numbers());
    assert_eq!(read(&at("s"), None).unwrap(), expected);
    npy(&at("n"), (2, 3), false, &VALUES);
    assert_eq!(read(&at("n"), None).unwrap(), expected);
    let turned: Vec<f64> = (0..6).map(|n| VALUES[n % 2 * 3 + n / 2]).collect();
    npy(&at("n"), (2, 3), true, &turned);
    assert_eq!(read(&at("n"), None).unwrap(), expected);
    let names = ["a", "b", "c"];
    let lines: String = (0..6).map(|n| format!("{},{:?},\"{}\"\r\n", n / 3, VALUES[n], names[n % 3])).collect();
    fs::write(at("c"), format!("\u{feff}Response,Score,dataset\r\n{lines}")).unwrap();
    assert_eq!(read(&at("c"), None).unwrap(), expected);
}

#[test]
fn names_in_every_type_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let queries = vec!["q1", "q2", "q1"];
    let datasets = vec!["a", "zz", "c"];
    let scores: ArrayRef = Arc::new(Float32Array::from(vec![1.5f32, 2.0, 3.0]));
    let expected = vec![("q1".to_owned(), 0, 1.5), ("q1".to_owned(), 2, 3.0), ("q2".to_owned(), 99, 2.0)];
    let texts: [(ArrayRef, ArrayRef); 4] = [
        (Arc::new(StringArray::from(queries.clone())), Arc::new(LargeStringArray::from(datasets.clone()))),
        (Arc::new(StringViewArray::from(queries.clone())), Arc::new(StringArray::from(datasets.clone()))),
        (
            Arc::new(queries.iter().copied().collect::<DictionaryArray<Int8Type>>()),
            Arc::new(datasets.iter().copied().collect::<DictionaryArray<Int8Type>>()),
        ),
        (Arc::new(StringArray::from(queries)), Arc::new(StringViewArray::from(datasets))),
    ];
    for (query, dataset) in texts {
        let found = batch(vec![("response", query), ("dataset", dataset), ("influence", Arc::clone(&scores))]);
        arrow_file(&path, &found);
        assert_eq!(read(&path, None).unwrap(), expected);
        parquet(&path, &found, Compression::SNAPPY, 2);
        assert_eq!(read(&path, None).unwrap(), expected);
    }
}

#[test]
fn levels_and_methods_are_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let make = |methods: Vec<&str>| {
        batch(vec![
            ("method", Arc::new(StringArray::from(methods)) as ArrayRef),
            ("level", Arc::new(StringArray::from(vec!["example", "dataset", "dataset"]))),
            ("query_id", Arc::new(Int16Array::from(vec![0, 1, 2]))),
            ("dataset_id", Arc::new(Int16Array::from(vec![0, 0, 0]))),
            ("score", Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]))),
        ])
    };
    arrow_file(&path, &make(vec!["x", "x", "x"]));
    assert_eq!(read(&path, None).unwrap(), [("1".to_owned(), 0, 2.0), ("2".to_owned(), 0, 3.0)]);
    arrow_file(&path, &make(vec!["x", "x", "y"]));
    let error = read(&path, None).unwrap_err().to_string();
    assert!(error.contains("`x` and `y`") && error.contains("--method"), "{error}");
    assert_eq!(read(&path, Some("y")).unwrap(), [("2".to_owned(), 0, 3.0)]);
}

#[test]
fn refusals_name_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let refuse = |words: &[&str]| {
        let error = read(&path, None).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error} lacks {words:?}");
    };
    let columns = |scores: ArrayRef| {
        batch(vec![
            ("query", Arc::new(Int64Array::from(vec![0, 1])) as ArrayRef),
            ("dataset", Arc::new(Int64Array::from(vec![0, 1]))),
            ("score", scores),
        ])
    };
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        parquet(&path, &columns(Arc::new(Float64Array::from(vec![1.0, bad]))), Compression::SNAPPY, 100);
        refuse(&["score", "a finite number", "row 1"]);
    }
    parquet(&path, &columns(Arc::new(Float64Array::from(vec![Some(1.0), None]))), Compression::SNAPPY, 100);
    refuse(&["score", "null", "row 1"]);
    parquet(&path, &columns(Arc::new(StringArray::from(vec!["1", "2"]))), Compression::SNAPPY, 100);
    refuse(&["score", "numbers"]);
    let negative = batch(vec![
        ("query", Arc::new(Int64Array::from(vec![0, -1])) as ArrayRef),
        ("dataset", Arc::new(Int64Array::from(vec![0, 1]))),
        ("score", Arc::new(Float64Array::from(vec![1.0, 2.0]))),
    ]);
    parquet(&path, &negative, Compression::SNAPPY, 100);
    refuse(&["response"]);
    let text = |text: &str, words: &[&str]| {
        fs::write(&path, text).unwrap();
        refuse(words);
    };
    text("", &["empty file"]);
    text("query,score\n1,2\n", &["column of the dataset", "dataset_id"]);
    text("query,dataset,score\n1,a,nan\n", &["finite", "line 2"]);
    text("query,dataset,score\n1,a,1e999\n", &["finite", "line 2"]);
    text("query,dataset,score\n1,a,0x1\n", &["finite"]);
    text("query,dataset,score\n1,a\n", &["3 as in the header", "line 2"]);
    text("query,dataset,score\n1,,1\n", &["a name or number"]);
    text("query,dataset,score\n1,\"a,1\n", &["quotation marks"]);
    text("PAR1 and then nothing of the kind", &["Parquet"]);
    text("ARROW1 and then nothing of the kind", &["Arrow file"]);
    npy(&path, (2, 3), false, &VALUES[..5]);
    refuse(&["6 values"]);
    npy(&path, (2, 2), false, &VALUES);
    refuse(&["4 values"]);
    npy(&path, (1, 2), false, &[1.0, f64::NAN]);
    refuse(&["[0, 1]"]);
    npy(&path, (usize::MAX, 2), false, &[]);
    refuse(&["values"]);
    let missing = read(&dir.path().join("no"), None).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
}

/// Nobody could say which of two columns is paid, so a file with two of one name is refused, whatever the case and the container.
#[test]
fn two_columns_of_one_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let ints = || Arc::new(Int64Array::from(vec![0, 1])) as ArrayRef;
    let floats = |by: f64| Arc::new(Float64Array::from(vec![by, 2.0 * by])) as ArrayRef;
    let refuse = |words: &str| {
        let error = read(&path, None).unwrap_err().to_string();
        assert!(error.contains("each name once") && error.contains(words), "{error}");
    };
    let twice = batch(vec![("query", ints()), ("dataset", ints()), ("score", floats(1.0)), ("Score", floats(-1.0))]);
    parquet(&path, &twice, Compression::SNAPPY, 100);
    refuse("`score` twice, as columns 3 and 4");
    arrow_file(&path, &twice);
    refuse("`score` twice");
    arrow_stream(&path, &twice);
    refuse("`score` twice");
    for (head, words) in [
        ("query,dataset,score,score", "`score` twice, as columns 3 and 4"),
        ("query,dataset,score, QUERY", "`query` twice, as columns 1 and 4"),
        ("dataset_id,query,dataset_id,score", "`dataset_id` twice"),
        ("query,dataset,score,method,method", "`method` twice"),
        ("query,revenue,dataset,score,revenue", "`revenue` twice"),
    ] {
        fs::write(&path, format!("{head}\n{}\n", vec!["1"; head.split(',').count()].join(","))).unwrap();
        refuse(words);
    }
    // Two names that are not read harm nobody, and of two names for one thing the first of the table counts.
    fs::write(&path, "note,note,value,score,query,dataset\nx,y,5,7,q,a\n").unwrap();
    assert_eq!(read(&path, None).unwrap(), [("q".to_owned(), 0, 7.0)]);
    fs::write(&path, b"PK\x03\x04 an archive of arrays").unwrap();
    let error = read(&path, None).unwrap_err().to_string();
    assert!(error.contains(".npz") && error.contains("numpy.save"), "{error}");
}

/// The column `revenue`: integers or texts, beside every row that counts, and never null or a float.
#[test]
fn revenue_comes_along() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let revenues = |path: &Path| -> Result<Vec<Revenues>, StoreError> {
        let rows = ScoreRows::open(path, None)?;
        let mut found = Vec::new();
        for part in 0..rows.n_parts() {
            rows.read_part(part, &resolve, &mut |batch| {
                found.push(batch.revenues.clone());
                Ok(())
            })?;
        }
        Ok(found)
    };
    let with = |revenue: ArrayRef| {
        batch(vec![
            ("level", Arc::new(StringArray::from(vec!["dataset", "example", "dataset"])) as ArrayRef),
            ("query", Arc::new(Int64Array::from(vec![0, 0, 1]))),
            ("dataset", Arc::new(Int64Array::from(vec![0, 1, 2]))),
            ("score", Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]))),
            ("Revenue", revenue),
        ])
    };
    parquet(&path, &with(Arc::new(Int64Array::from(vec![5, 6, 7]))), Compression::SNAPPY, 100);
    assert_eq!(revenues(&path).unwrap(), [Revenues::Integers(vec![5, 7])]);
    let texts = Revenues::Texts(vec!["0.1 USD".into(), "7".into()]);
    let words = vec!["0.1 USD", "no", "7"];
    for column in [
        Arc::new(StringArray::from(words.clone())) as ArrayRef,
        Arc::new(words.iter().copied().collect::<DictionaryArray<Int8Type>>()),
    ] {
        arrow_file(&path, &with(column));
        assert_eq!(revenues(&path).unwrap(), std::slice::from_ref(&texts));
    }
    fs::write(&path, "query,dataset,score,revenue\n0,a,1,0.1 USD\n1,b,2, 7\n").unwrap();
    assert_eq!(revenues(&path).unwrap(), [texts]);
    fs::write(&path, "query,dataset,score\n0,a,1\n").unwrap();
    assert_eq!(revenues(&path).unwrap(), [Revenues::None]);
    for bad in [
        Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0])) as ArrayRef,
        Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])),
        Arc::new(Int64Array::from(vec![1, -2, 3])),
        Arc::new(StringArray::from(vec!["1", "1", ""])),
    ] {
        parquet(&path, &with(bad), Compression::SNAPPY, 100);
        let error = revenues(&path).unwrap_err().to_string();
        assert!(error.contains("revenue"), "{error}");
    }
    fs::write(&path, "query,dataset,score,revenue\n0,a,1,\n").unwrap();
    assert!(revenues(&path).unwrap_err().to_string().contains("revenue"));
}

/// Flipped bits and cuts of every container: an error or rows, never a panic and never a number that is not finite.
#[test]
fn damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    let hush = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for container in 0..4 {
        match container {
            0 => parquet(&good, &numbers(), Compression::SNAPPY, 4),
            1 => arrow_file(&good, &numbers()),
            2 => arrow_stream(&good, &numbers()),
            _ => npy(&good, (2, 3), false, &VALUES),
        }
        let bytes = fs::read(&good).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&bad, &changed).unwrap();
            if let Ok(rows) = read(&bad, None) {
                assert!(rows.iter().all(|row| row.2.is_finite()));
            }
            fs::write(&bad, &bytes[..at]).unwrap();
            let _ = read(&bad, None);
        }
    }
    std::panic::set_hook(hush);
}

proptest! {
    /// Any bytes behind any magic: refused or read, never a panic.
    #[test]
    fn any_bytes(head in 0usize..5, tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let heads: [&[u8]; 5] = [b"PAR1", b"ARROW1\0\0", &[0xff; 4], b"\x93NUMPY\x01\x00", b"query,dataset,score\n"];
        fs::write(&path, [heads[head], &tail].concat()).unwrap();
        let _ = read(&path, None);
    }
}
