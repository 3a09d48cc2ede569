//! The shard job: joined, it is the exact search and the sums of the store, however it was cut.

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_index::shard_job::{Partial, ShardJob, run_all, run_opened};
use ascribe_index::{Effort, ExactIndex, IndexError, VectorIndex};
use ascribe_store::features::{Deletion, Snapshot, delete};
use ascribe_store::{FeatureStore, FeatureWriter};
use ascribe_testkit::{MemoryReader, gradient_spec, toy_rows};
use ndarray::s;

fn store(dir: &std::path::Path, rows_per_shard: u32) -> FeatureStore {
    let (ids, rows) = toy_rows(500, 24, 5);
    let reader = MemoryReader::new(gradient_spec(&[24]), ids, rows, 64);
    let mut writer =
        FeatureWriter::create_or_resume(dir, reader.spec(), RowType::F32, rows_per_shard, reader.n_rows()).unwrap();
    writer.push(reader.ids(), reader.rows().view()).unwrap();
    writer.finish().unwrap()
}

#[test]
fn joined_it_is_the_exact_search_and_the_sums() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 70);
    let queries = store.block(0).unwrap().rows.slice(s![..6, ..]).to_owned();
    let answer = run_all(&store, queries.view(), 7).unwrap().finish();
    let exact = ExactIndex::new(&store).unwrap().search_many(queries.view(), 7, Effort::default()).unwrap();
    for (ours, theirs) in answer.hits.iter().zip(&exact) {
        let ours: Vec<_> = ours.iter().map(|hit| (hit.id, hit.score.to_bits())).collect();
        let theirs: Vec<_> = theirs.iter().map(|hit| (hit.id.to_u64(), hit.score.to_bits())).collect();
        assert_eq!(ours, theirs);
    }
    // A second route to the sums: through the store's own per-dataset sums.
    let sums = store.dataset_sums().unwrap().sums();
    for of in &answer.datasets {
        for (query, &score) in queries.rows().into_iter().zip(&of.scores) {
            let row = sums.row(of.dataset as usize);
            let other: f64 = query.iter().zip(row).map(|(&q, &g)| f64::from(q) * g).sum();
            let size: f64 = query.iter().zip(row).map(|(&q, &g)| (f64::from(q) * g).abs()).sum();
            assert!((score - other).abs() <= 1e-12 * size.max(1.0), "{score} against {other}");
        }
    }
    assert_eq!(answer.datasets.iter().map(|of| of.rows).sum::<u64>(), store.n_rows());
}

#[test]
fn cuts_threads_and_order_leave_no_trace() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (few, many) = (store(one.path(), 400), store(other.path(), 33));
    let queries = few.block(0).unwrap().rows.slice(s![..3, ..]).to_owned();
    let whole = run_all(&few, queries.view(), 5).unwrap().to_bytes();
    let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    for n in [1, 3] {
        assert_eq!(threads(n).install(|| run_all(&many, queries.view(), 5).unwrap().to_bytes()), whole);
    }
    let mut backwards = Partial::new(3, 5);
    for shard in (0..many.n_shards()).rev() {
        backwards.merge(ShardJob::new(&many, shard, queries.view(), 5).unwrap().run().unwrap());
    }
    assert_eq!(backwards.to_bytes(), whole);
    // Nothing is open but the shard that a thread works on.
    let snapshot = Snapshot::open(other.path()).unwrap();
    let opened = |shards| {
        run_opened(&snapshot, shards, |shard| snapshot.map_shard(other.path(), shard), queries.view(), 5).unwrap()
    };
    assert_eq!(opened(0..many.n_shards()).to_bytes(), whole);
    let mut halves = opened(7..many.n_shards());
    halves.merge(opened(0..7));
    assert_eq!(halves.to_bytes(), whole);
}

#[test]
fn a_job_is_named_by_what_it_depends_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path(), 100);
    let queries = first.block(0).unwrap().rows.slice(s![..2, ..]).to_owned();
    let other = &queries * 2.0;
    let name = |store: &FeatureStore, shard, q: &ndarray::Array2<f32>, k| {
        ShardJob::new(store, shard, q.view(), k).unwrap().name()
    };
    let named = name(&first, 0, &queries, 3);
    assert_eq!(named, name(&first, 0, &queries, 3));
    let others = [name(&first, 1, &queries, 3), name(&first, 0, &other, 3), name(&first, 0, &queries, 4)];
    assert!(!others.contains(&named));
    let first_dataset = Deletion { datasets: [0].into(), ..Deletion::default() };
    delete(dir.path(), &first_dataset).unwrap();
    let second = FeatureStore::open(dir.path(), None).unwrap();
    assert_ne!(named, name(&second, 0, &queries, 3));
    let answer = run_all(&second, queries.view(), 3).unwrap().finish();
    assert!(answer.datasets.iter().all(|of| of.dataset != 0), "deleted rows count nowhere");
    let refused = ShardJob::new(&second, 0, queries.slice(s![.., ..20]), 3);
    assert!(matches!(refused, Err(IndexError::DimMismatch { .. })));
}
