//! Files of every format version, opened for ever. `cargo test -p ascribe-store -- --ignored make_golden` made them.

use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_store::{FactorFile, FeatureStore, FeatureWriter, Level, read_scores};

use crate::common::{ids, rows, spec};
use crate::factors::toy;
use crate::scores::{meta, write_toy};

fn golden(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(format).join("v1")
}

/// Run by hand when a format gets a new version; the folders of old versions are never written again.
#[test]
#[ignore = "makes the golden files of the present versions"]
fn make_golden() {
    let features = golden("features");
    fs::create_dir_all(&features).unwrap();
    let mut writer = FeatureWriter::create_or_resume(&features, &spec(5), RowType::Bf16, 4, 6).unwrap();
    writer.push(&ids(0..6), rows(0..6, 5).view()).unwrap();
    writer.finish().unwrap();
    fs::create_dir_all(golden("factors")).unwrap();
    toy().write(&golden("factors").join("factors.safetensors")).unwrap();
    fs::create_dir_all(golden("scores")).unwrap();
    write_toy(&golden("scores").join("scores.parquet"));
}

#[test]
fn a_feature_store_of_version_1_opens() {
    let store = FeatureStore::open(&golden("features"), Some(&spec(5))).unwrap();
    assert_eq!(store.verify().unwrap().n_rows, 6);
    let block = store.block(1).unwrap();
    assert_eq!(block.ids[..], ids(4..6));
    assert_eq!(block.rows, rows(4..6, 5).mapv(|x| half::bf16::from_f32(x).to_f32()));
    // Written down once, so that the toy rows themselves cannot drift along.
    assert_eq!(store.block(0).unwrap().rows[(0, 1)], -0.70703125);
    assert_eq!(store.dataset_sums().unwrap().counts, [2, 2, 2]);
}

#[test]
fn a_factor_file_of_version_1_opens() {
    let file = FactorFile::read(&golden("factors").join("factors.safetensors"), Some(toy().spec)).unwrap();
    assert_eq!(file, toy());
    assert_eq!(file.tensors["layers.0/eigenvectors"].as_f64().unwrap()[[2, 4]], 14.0 / 3.0);
}

#[test]
fn a_score_file_of_version_1_opens() {
    let file = read_scores(&golden("scores").join("scores.parquet")).unwrap();
    assert_eq!((file.meta.clone(), file.rows.len()), (meta(), 14));
    assert_eq!(file.rows_of("block_fisher", Level::Dataset).next().unwrap().score, 4.0);
}
