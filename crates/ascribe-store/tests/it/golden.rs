//! Files of every format version, opened for ever. `cargo test -p ascribe-store -- --ignored make_golden` made them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{Column, FeatureReader, FeatureSink, FeatureSpec, NoProgress, ProjectorSpec, RowType};
use ascribe_store::features::{DatasetTerms, Deletion, compact, convert, delete, make_companion, relicense};
use ascribe_store::{FactorFile, FeatureStore, FeatureWriter, Level, StoreError, read_scores};

use crate::common::{copy, ids, rows, spec};
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

/// Stores of every row type, and of factored rows, of the present version.
fn kinds() -> Vec<(String, RowType, FeatureSpec)> {
    let factored = ProjectorSpec::Factored { seed: 7, k_in: 4, k_out: 3, rank: 1, version: 1 };
    let columns = vec![Column { name: "layers.0.up".into(), start: 0, len: 7 }];
    let factored = FeatureSpec { projector: factored, columns, dim: 7, ..spec(7) };
    let plain = RowType::ALL.into_iter().map(|row_type| (row_type.name().to_owned(), row_type, spec(9)));
    let factors = [RowType::F32, RowType::Int4].map(|t| (format!("lorif-{}", t.name()), t, factored.clone()));
    plain.chain(factors).collect()
}

fn golden_kind(name: &str) -> PathBuf {
    golden_of("feature_rows", "v2").join(name)
}

/// What lies beside the stores: inner products of every live row with a query, as the writer of the files had them.
const SCORES: &str = "scores.json";

fn query(dim: usize) -> Vec<f64> {
    (0..dim).map(|j| f64::from((j * 5 % 7) as u32) - 2.5).collect()
}

/// Ids and scores of all live rows, in their order.
fn scores(store: &FeatureStore) -> Vec<(u64, f64)> {
    let query = query(store.spec().dim);
    let product = |row: ndarray::ArrayView1<'_, f32>| row.iter().zip(&query).map(|(&x, q)| f64::from(x) * q).sum();
    let of = |i| {
        let block = store.block(i).unwrap();
        let pairs = block.ids.iter().zip(block.rows.rows()).map(|(id, row)| (id.to_u64(), product(row)));
        pairs.collect::<Vec<(u64, f64)>>()
    };
    (0..store.n_blocks()).flat_map(of).collect()
}

/// Run by hand, once for a version.
#[test]
#[ignore = "makes the golden files of every row type of the present version"]
fn make_golden_rows() {
    let mut all = BTreeMap::new();
    for (name, row_type, spec) in kinds() {
        let (dir, dim) = (golden_kind(&name), spec.dim);
        let _ = fs::remove_dir_all(&dir);
        let mut writer = FeatureWriter::create_or_resume(&dir, &spec, row_type, 4, 6).unwrap();
        writer.push(&ids(0..6), rows(0..6, dim).view()).unwrap();
        writer.finish().unwrap();
        let owner = |dataset, owner: &str, licence: &str| DatasetTerms {
            dataset,
            owner: Some(owner.into()),
            licence: Some(licence.into()),
            ..DatasetTerms::default()
        };
        relicense(&dir, &[owner(0, "Arbour", "MIT"), owner(2, "Moss", "CC0-1.0")]).unwrap();
        let mut writer = FeatureWriter::append(&dir, &spec, 2).unwrap();
        writer.push(&ids(6..8), rows(6..8, dim).view()).unwrap();
        writer.finish().unwrap();
        delete(&dir, &Deletion { examples: [ids(2..3)[0]].into(), ..Deletion::default() }).unwrap();
        all.insert(name, scores(&FeatureStore::open(&dir, None).unwrap()));
    }
    fs::write(golden_kind(SCORES), serde_json::to_vec_pretty(&all).unwrap()).unwrap();
}

/// Every row type opens, is verified, scores as it did when it was written, and is carried over without a changed number.
#[test]
fn stores_of_every_row_type_open_and_score_the_same() {
    let text = fs::read(golden_kind(SCORES)).unwrap();
    let expected: BTreeMap<String, Vec<(u64, f64)>> = serde_json::from_slice(&text).unwrap();
    assert_eq!(expected.len(), 7);
    for (name, row_type, spec) in kinds() {
        let store = FeatureStore::open(&golden_kind(&name), Some(&spec)).unwrap();
        assert_eq!((store.row_type(), store.generation().generation), (row_type, 3), "{name}");
        let report = store.verify().unwrap();
        assert_eq!((report.n_rows, report.n_dead, report.n_shards), (7, 1, 3), "{name}");
        assert_eq!(scores(&store), expected[&name], "{name}");
        let owners = store.owner_sums().unwrap();
        assert_eq!((owners.owners, owners.sums.counts), (vec!["Arbour".into(), "Moss".into()], vec![3, 1]), "{name}");
        assert_eq!(store.terms().of_dataset(2).unwrap().licence.as_deref(), Some("CC0-1.0"));
        // What an upgrade does, too: the same rows in a store of the newest version.
        let dir = tempfile::tempdir().unwrap();
        let new = convert(&store, dir.path(), row_type, &NoProgress).unwrap();
        assert_eq!(scores(&new), expected[&name], "{name}");
        assert!(store.ids().eq(new.ids()) && store.norms().eq(new.norms()), "{name}");
        assert_eq!(new.verify().unwrap().n_dead, 0);
        assert_eq!(new.owner_sums().unwrap().sums.counts, [3, 1]);
        assert_eq!(new.dataset_sums().unwrap().counts, store.dataset_sums().unwrap().counts);
        assert!(new.dataset_sums().unwrap().distance(&store.dataset_sums().unwrap()) < 1e-28, "{name}");
        // And it can still be changed: a copy of the old files takes rows and gives some up.
        let dir = tempfile::tempdir().unwrap();
        copy(&golden_kind(&name), dir.path());
        let mut writer = FeatureWriter::append(dir.path(), &spec, 1).unwrap();
        writer.push(&ids(8..9), rows(8..9, spec.dim).view()).unwrap();
        writer.finish().unwrap();
        delete(dir.path(), &Deletion { datasets: [1].into(), ..Deletion::default() }).unwrap();
        compact(dir.path()).unwrap();
        let changed = FeatureStore::open(dir.path(), None).unwrap();
        assert_eq!(changed.verify().unwrap().n_rows, 5, "{name}");
        let kept = expected[&name].iter().filter(|(id, _)| id >> 32 != 1);
        assert!(scores(&changed).iter().zip(kept).all(|(a, b)| a == b), "{name}");
    }
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
