//! Files of every format version, opened for ever. `cargo test -p ascribe-store -- --ignored make_golden` made them.

use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{Deletion, convert, delete, make_companion};
use ascribe_store::{FactorFile, FeatureStore, FeatureWriter, Level, StoreError, read_scores};

use crate::common::{ids, rows, spec};
use crate::factors::toy;
use crate::scores::{meta, write_toy};

fn golden(format: &str) -> PathBuf {
    golden_of(format, "v1")
}

fn golden_of(format: &str, version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(format).join(version)
}

/// Run by hand when a format gets a new version; the folders of old versions are never written again.
#[test]
#[ignore = "makes the golden files of the present versions"]
fn make_golden() {
    let features = golden_of("features", "v2");
    let _ = fs::remove_dir_all(&features);
    let mut writer = FeatureWriter::create_or_resume(&features, &spec(5), RowType::Bf16, 4, 6).unwrap();
    writer.push(&ids(0..6), rows(0..6, 5).view()).unwrap();
    let store = writer.finish().unwrap();
    for row_type in [RowType::Int8, RowType::Int4] {
        make_companion(&store, row_type, &NoProgress).unwrap();
    }
    let mut writer = FeatureWriter::append(&features, &spec(5), 2).unwrap();
    writer.push(&ids(6..8), rows(6..8, 5).view()).unwrap();
    writer.finish().unwrap();
    delete(&features, &Deletion { examples: [ids(2..3)[0]].into(), ..Deletion::default() }).unwrap();
    make_companion(&FeatureStore::open(&features, None).unwrap(), RowType::Int8, &NoProgress).unwrap();
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
fn a_feature_store_of_version_2_opens() {
    let store = FeatureStore::open(&golden_of("features", "v2"), Some(&spec(5))).unwrap();
    let report = store.verify().unwrap();
    assert_eq!((report.n_rows, report.n_dead, report.n_shards), (7, 1, 3));
    assert_eq!(store.generation().generation, 2);
    assert_eq!(store.generation().made_by, "delete");
    let kept = [ids(0..2), ids(3..8)].concat();
    assert!(store.ids().eq(kept));
    assert_eq!(store.block(0).unwrap().rows[(0, 1)], -0.70703125);
    assert_eq!(store.dataset_sums().unwrap().counts, [3, 3, 1]);
    let int8 = store.companion(RowType::Int8).unwrap();
    assert_eq!(int8.verify().unwrap().n_rows, 7);
    let view = int8.shard_view(0).unwrap();
    assert_eq!((view.dead, view.stride_bytes, view.ids[0]), (&[2u32][..], 64, ids(0..1)[0].to_u64()));
    assert!(matches!(store.companion(RowType::Int4), Err(StoreError::Stale { .. })), "it was made before the append");
}

/// The upgrade of a finished store of version 1: every row, norm and id as it was.
#[test]
fn a_feature_store_of_version_1_becomes_one_of_version_2() {
    let old = FeatureStore::open(&golden("features"), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let new = convert(&old, dir.path(), RowType::Bf16, &NoProgress).unwrap();
    assert_eq!((old.header().format_version, new.header().format_version), (1, 2));
    assert!(old.ids().eq(new.ids()) && old.norms().eq(new.norms()));
    for i in 0..old.n_blocks() {
        assert_eq!(old.block(i).unwrap().rows, new.block(i).unwrap().rows);
    }
    let (a, b) = (old.dataset_sums().unwrap(), new.dataset_sums().unwrap());
    assert_eq!(a.counts, b.counts);
    assert!(a.distance(&b) < 1e-14, "plain and compensated sums of six rows");
    // An old store is not changed in place.
    let error = FeatureWriter::append(&golden("features"), &spec(5), 1).unwrap_err();
    assert!(matches!(error, StoreError::WrongVersion { expected: 2, found: 1, .. }), "{error}");
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
