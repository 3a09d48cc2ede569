//! A store that changes: appends, deletions, compaction, readers beside them, and kills between their steps.

use std::fs;
use std::path::Path;

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{Deletion, compact, delete, make_companion, merge};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};
use ndarray::Array2;
use proptest::prelude::*;

use crate::common::{copy, folder, ids, rows, spec};

const DIM: usize = 5;

fn build(dir: &Path, range: std::ops::Range<usize>, row_type: RowType) -> FeatureStore {
    let n = range.len() as u64;
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), row_type, 8, n).unwrap();
    writer.push(&ids(range.clone()), rows(range, DIM).view()).unwrap();
    writer.finish().unwrap()
}

fn append(dir: &Path, range: std::ops::Range<usize>) -> FeatureStore {
    let mut writer = FeatureWriter::append(dir, &spec(DIM), range.len() as u64).unwrap();
    let from = range.start + writer.n_committed() as usize;
    writer.push(&ids(from..range.end), rows(from..range.end, DIM).view()).unwrap();
    writer.finish().unwrap()
}

fn read(store: &FeatureStore) -> (Vec<ExampleId>, Vec<Vec<f32>>) {
    let (mut all_ids, mut all_rows) = (Vec::new(), Vec::new());
    for i in 0..store.n_blocks() {
        let block = store.block(i).unwrap();
        all_ids.extend(block.ids.iter().copied());
        all_rows.extend(block.rows.rows().into_iter().map(|r| r.to_vec()));
    }
    assert!(store.ids().eq(all_ids.iter().copied()));
    assert_eq!((store.n_rows() as usize, store.norms().count()), (all_ids.len(), all_ids.len()));
    (all_ids, all_rows)
}

fn expected(keep: impl Fn(usize) -> bool, n: usize) -> (Vec<ExampleId>, Vec<Vec<f32>>) {
    let kept: Vec<usize> = (0..n).filter(|&i| keep(i)).collect();
    let all = rows(0..n, DIM);
    (kept.iter().map(|&i| ids(i..i + 1)[0]).collect(), kept.iter().map(|&i| all.row(i).to_vec()).collect())
}

#[test]
fn appended_rows_stand_behind_the_others_and_sums_are_those_of_a_rebuild() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build(dir.path(), 0..19, RowType::F32);
    append(dir.path(), 19..30);
    let store = append(dir.path(), 30..37);
    assert_eq!(store.generation().generation, 2);
    assert_eq!(read(&store), expected(|_| true, 37));
    store.verify().unwrap();
    let rebuilt = build(whole.path(), 0..37, RowType::F32);
    assert_eq!(store.dataset_sums().unwrap(), rebuilt.dataset_sums().unwrap(), "the same bits");
    assert_eq!(store.entries().iter().map(|e| e.rows).collect::<Vec<_>>(), [8, 8, 3, 8, 3, 7]);
    assert!(!dir.path().join("MANIFEST-000000.json").exists(), "older generations are taken away");
    let error = FeatureWriter::append(dir.path(), &spec(DIM), 1).unwrap().push(&ids(3..4), rows(3..4, DIM).view());
    assert!(matches!(error, Err(StoreError::DuplicateExample { row: 37, .. })), "{error:?}");
    // A first build that is asked for again finds the store finished.
    let writer = FeatureWriter::create_or_resume(dir.path(), &spec(DIM), RowType::F32, 8, 19).unwrap();
    assert_eq!(writer.n_committed(), 19);
    assert_eq!(writer.finish().unwrap().n_rows(), 37);
}

#[test]
fn an_append_resumes_and_is_kept_apart_from_other_changes() {
    let (dir, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build(dir.path(), 0..10, RowType::Bf16);
    copy(dir.path(), plain.path());
    append(plain.path(), 10..40);
    {
        let mut writer = FeatureWriter::append(dir.path(), &spec(DIM), 30).unwrap();
        writer.push(&ids(10..31), rows(10..31, DIM).view()).unwrap();
        // Dropped as by a kill: two shards are committed, five rows are lost.
    }
    let before = FeatureStore::open(dir.path(), None).unwrap();
    assert_eq!((before.n_rows(), before.generation().generation), (10, 0), "readers see the finished generation");
    before.verify().unwrap();
    let other = FeatureWriter::append(dir.path(), &spec(DIM), 29).unwrap_err();
    assert!(matches!(other, StoreError::SettingMismatch { setting: "rows to append", .. }), "{other}");
    let what = Deletion { datasets: [0].into(), ..Deletion::default() };
    assert!(matches!(delete(dir.path(), &what), Err(StoreError::Pending { expected_rows: 30, .. })));
    assert!(matches!(compact(dir.path()), Err(StoreError::Pending { .. })));
    assert_eq!(FeatureWriter::append(dir.path(), &spec(DIM), 30).unwrap().n_committed(), 16);
    append(dir.path(), 10..40);
    assert_eq!(folder(dir.path()), folder(plain.path()), "the bytes differ from an uninterrupted append");
}

#[test]
fn deleted_rows_are_gone_from_every_answer_and_compaction_takes_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..40, RowType::F32);
    let held = FeatureStore::open(dir.path(), None).unwrap();
    let gone = [ids(4..5)[0], ids(17..18)[0], ids(39..40)[0]];
    let keep = |i: usize| i % 3 != 1 && ![4, 17, 39].contains(&i);
    delete(dir.path(), &Deletion { examples: [gone[1], gone[2]].into(), ..Deletion::default() }).unwrap();
    delete(dir.path(), &Deletion { datasets: [1].into(), ..Deletion::default() }).unwrap();
    let store = FeatureStore::open(dir.path(), None).unwrap();
    assert_eq!(read(&store), expected(keep, 40));
    assert_eq!((store.verify().unwrap().n_dead, store.generation().generation), (15, 2));
    let twice = delete(dir.path(), &Deletion { examples: [gone[1]].into(), ..Deletion::default() });
    assert!(matches!(twice, Err(StoreError::NoSuchRow { .. })), "{twice:?}");
    let sums = store.dataset_sums().unwrap();
    assert_eq!(sums.sums().row(1).sum(), 0.0);
    let after = compact(dir.path()).unwrap();
    assert_eq!((after.generation, after.n_dead, after.n_rows), (3, 0, 25));
    let packed = FeatureStore::open(dir.path(), None).unwrap();
    assert_eq!(read(&packed), expected(keep, 40));
    packed.verify().unwrap();
    assert_eq!(packed.entries().iter().map(|e| e.rows).collect::<Vec<_>>(), [8, 8, 8, 1]);
    assert_eq!(fs::read_dir(dir.path().join("shards")).unwrap().count(), 4, "old shards stayed");
    assert_eq!(packed.dataset_sums().unwrap(), sums);
    // Equal to a rebuild without them.
    let rebuilt = tempfile::tempdir().unwrap();
    let (kept_ids, kept_rows) = expected(keep, 40);
    let mut writer = FeatureWriter::create_or_resume(rebuilt.path(), &spec(DIM), RowType::F32, 8, 25).unwrap();
    let flat = Array2::from_shape_vec((25, DIM), kept_rows.concat()).unwrap();
    writer.push(&kept_ids, flat.view()).unwrap();
    let rebuilt = writer.finish().unwrap().dataset_sums().unwrap();
    assert!(rebuilt.distance(&sums) < 1e-28, "{}", rebuilt.distance(&sums));
    assert_eq!(rebuilt.sums(), sums.sums());
    // The reader from before all this still has its generation, whole.
    assert_eq!(read(&held), expected(|_| true, 40));
    assert_eq!(held.dataset_sums().unwrap().counts, [14, 13, 13]);
    assert_eq!(compact(dir.path()).unwrap(), after, "nothing to do, nothing done");
    // A deleted example may come again.
    append(dir.path(), 4..5);
    assert_eq!(FeatureStore::open(dir.path(), None).unwrap().n_rows(), 26);
}

/// A kill between any two steps of a deletion or compaction: simulated by undoing the last steps one after the other.
#[test]
fn a_kill_between_the_steps_of_a_commit_leaves_the_old_or_the_new_state() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..20, RowType::F32);
    let before = folder(dir.path());
    delete(dir.path(), &Deletion { datasets: [2].into(), ..Deletion::default() }).unwrap();
    compact(dir.path()).unwrap();
    let after = folder(dir.path());
    let new: Vec<&String> = after.keys().filter(|name| before.get(*name) != after.get(*name)).collect();
    assert!(new.len() >= 7, "{new:?}");
    // Old files are still all there, and the first n of the new ones, in the order in which they are written.
    let order = |name: &&String| match name.as_str() {
        n if n.contains("s-0000") => 0,
        "manifest.log" => 1,
        n if n.starts_with("dataset_sums") || n.starts_with("tombstones") => 2,
        n if n.starts_with("MANIFEST") => 3,
        _ => 4,
    };
    let mut steps = new.clone();
    steps.sort_by_key(order);
    for n in 0..=steps.len() {
        let case = tempfile::tempdir().unwrap();
        // The state before the compaction, whole.
        for (name, bytes) in &before {
            let path = case.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let deleted = delete(case.path(), &Deletion { datasets: [2].into(), ..Deletion::default() }).unwrap();
        for name in steps.iter().take(n) {
            fs::write(case.path().join(name), &after[*name]).unwrap();
        }
        let is_committed = case.path().join("MANIFEST-000002.json").exists();
        let store = FeatureStore::open(case.path(), None).unwrap();
        assert_eq!(store.generation().generation, if is_committed { 2 } else { deleted.generation });
        assert_eq!(read(&store), expected(|i| i % 3 != 2, 20), "after {n} of {steps:?}");
        // The next writer clears what was left, and ends in the same state.
        compact(case.path()).unwrap();
        assert_eq!(folder(case.path()), after, "after {n} of {steps:?}");
    }
}

#[test]
fn a_reader_that_opens_while_others_compact_always_gets_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..60, RowType::F32);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let store = FeatureStore::open(dir.path(), None).unwrap();
                let (found, _) = read(&store);
                // Rows below 30 are never touched; the others go one by one, from the front.
                assert!(found.iter().take(30).eq(&ids(0..30)), "{found:?}");
                let left = found.len() - 30;
                assert_eq!(found[30..], ids(60 - left..60));
                store.dataset_sums().unwrap();
                seen.insert(store.generation().generation);
            }
            seen.len()
        });
        for i in 30..50 {
            delete(dir.path(), &Deletion { examples: [ids(i..i + 1)[0]].into(), ..Deletion::default() }).unwrap();
            compact(dir.path()).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 1, "the reader saw one generation only");
    });
}

#[test]
fn two_writers_cannot_both_commit() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..20, RowType::F32);
    let writer = FeatureWriter::append(dir.path(), &spec(DIM), 5).unwrap();
    let what = Deletion { datasets: [0].into(), ..Deletion::default() };
    assert!(matches!(delete(dir.path(), &what), Err(StoreError::Locked { .. })));
    assert!(matches!(compact(dir.path()), Err(StoreError::Locked { .. })));
    assert!(matches!(FeatureWriter::append(dir.path(), &spec(DIM), 5), Err(StoreError::Locked { .. })));
    drop(writer);
    // Where no lock holds (another machine): the name of the manifest decides.
    let mut writer = FeatureWriter::append(dir.path(), &spec(DIM), 5).unwrap();
    writer.push(&ids(20..25), rows(20..25, DIM).view()).unwrap();
    let other = fs::read(dir.path().join("MANIFEST-000000.json")).unwrap();
    fs::write(dir.path().join("MANIFEST-000001.json"), &other).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, StoreError::Conflict { generation: 1, .. }), "{error}");
    assert_eq!(fs::read(dir.path().join("MANIFEST-000001.json")).unwrap(), other);
}

#[test]
fn a_lost_manifest_or_pointer_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..20, RowType::F32);
    delete(dir.path(), &Deletion { datasets: [0].into(), ..Deletion::default() }).unwrap();
    for name in ["MANIFEST-000001.json", "CURRENT"] {
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = FeatureStore::open(dir.path(), None).unwrap_err();
        assert!(matches!(&error, StoreError::Missing { path: p, .. } if *p == path), "{error}");
        let error = FeatureWriter::create_or_resume(dir.path(), &spec(DIM), RowType::F32, 8, 20).unwrap_err();
        assert!(matches!(&error, StoreError::Missing { path: p, .. } if *p == path), "{error}");
        fs::write(&path, bytes).unwrap();
    }
    FeatureStore::open(dir.path(), None).unwrap();
}

#[test]
fn companions_follow_deletions_and_are_refused_when_stale() {
    let dir = tempfile::tempdir().unwrap();
    let store = build(dir.path(), 0..20, RowType::F32);
    assert!(matches!(store.companion(RowType::Int8), Err(StoreError::Missing { .. })));
    let int8 = make_companion(&store, RowType::Int8, &NoProgress).unwrap();
    int8.verify().unwrap();
    for i in 0..store.n_shards() {
        let (precise, coded) = (store.shard_view(i).unwrap(), int8.shard_view(i).unwrap());
        assert_eq!(precise.ids, coded.ids);
        let (mut a, mut b) = (vec![0.0; DIM], vec![0.0; DIM]);
        for row in 0..precise.n_rows {
            precise.widen(row, &mut a);
            coded.widen(row, &mut b);
            let gap = a.iter().zip(&b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
            assert!(gap <= f64::from(coded.error.unwrap()[row]) * (1.0 + 1e-5), "row {row}: {gap}");
            assert!(gap > 0.0 || a == b);
        }
    }
    assert!(matches!(FeatureStore::open(&dir.path().join("int8"), None), Err(StoreError::Malformed { .. })));
    assert!(matches!(int8.dataset_sums(), Err(StoreError::Missing { .. })));
    delete(dir.path(), &Deletion { datasets: [1].into(), ..Deletion::default() }).unwrap();
    let store = FeatureStore::open(dir.path(), None).unwrap();
    let int8 = store.companion(RowType::Int8).unwrap();
    assert!(int8.ids().eq(store.ids()) && int8.n_rows() == store.n_rows());
    assert_eq!(int8.shard_view(0).unwrap().dead, store.shard_view(0).unwrap().dead);
    // Made again after the deletion, it is the same and nothing happens.
    let bytes = folder(&dir.path().join("int8"));
    make_companion(&store, RowType::Int8, &NoProgress).unwrap();
    assert_eq!(folder(&dir.path().join("int8")), bytes);
    let grown = append(dir.path(), 20..23);
    assert!(matches!(grown.companion(RowType::Int8), Err(StoreError::Stale { row_type: "int8", .. })));
    assert_eq!(make_companion(&grown, RowType::Int8, &NoProgress).unwrap().n_rows(), grown.n_rows());
    assert!(matches!(make_companion(&grown, RowType::F32, &NoProgress), Err(StoreError::Shape { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// However rows are spread over stores and in whatever order these are given, merged bytes are those of one build.
    #[test]
    fn merging_depends_on_rows_only(
        n in 1usize..50, parts in 1usize..5, seed in any::<u64>(), row_type in prop::sample::select(RowType::ALL.to_vec()),
    ) {
        // Ids in ascending order, as a single build over a corpus has them.
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| ids(i..i + 1)[0]);
        let build_of = |dir: &Path, picked: &[usize]| {
            let all = rows(0..n, DIM);
            let block = Array2::from_shape_fn((picked.len(), DIM), |(i, j)| all[(picked[i], j)]);
            let block_ids: Vec<ExampleId> = picked.iter().map(|&i| ids(i..i + 1)[0]).collect();
            let mut writer =
                FeatureWriter::create_or_resume(dir, &spec(DIM), row_type, 8, picked.len() as u64).unwrap();
            writer.push(&block_ids, block.view()).unwrap();
            writer.finish().unwrap()
        };
        let whole = tempfile::tempdir().unwrap();
        build_of(whole.path(), &order);
        let dirs: Vec<_> = (0..parts).map(|_| tempfile::tempdir().unwrap()).collect();
        let part_of = |i: usize| (seed.rotate_left((i * 7) as u32) >> 11) as usize % parts;
        let mut stores: Vec<FeatureStore> = dirs.iter().enumerate().map(|(p, dir)| {
            let mut picked: Vec<usize> = order.iter().copied().filter(|&i| part_of(i) == p).collect();
            if seed & 1 == 1 {
                picked.reverse();
            }
            build_of(dir.path(), &picked)
        }).collect();
        if seed & 2 == 2 {
            stores.reverse();
        }
        let out = tempfile::tempdir().unwrap();
        merge(&stores, out.path(), &NoProgress).unwrap();
        prop_assert_eq!(folder(out.path()), folder(whole.path()));
    }
}

#[test]
fn stores_that_do_not_belong_together_are_not_merged() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = build(dirs[0].path(), 0..10, RowType::F32);
    let b = build(dirs[1].path(), 9..20, RowType::F32);
    let c = build(dirs[2].path(), 20..30, RowType::Int8);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    let open = |dir: &tempfile::TempDir| FeatureStore::open(dir.path(), None).unwrap();
    assert!(matches!(merge(&[a, b], &out, &NoProgress), Err(StoreError::DuplicateExample { .. })));
    let error = merge(&[open(&dirs[0]), c], &out, &NoProgress).unwrap_err();
    assert!(matches!(&error, StoreError::SettingMismatch { setting: "row type", .. }), "{error}");
    assert!(matches!(merge(&[], &out, &NoProgress), Err(StoreError::Shape { .. })));
    assert!(!out.exists(), "a refused merge wrote something");
}
