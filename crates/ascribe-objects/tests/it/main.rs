//! One suite over every object store: what is pushed is pulled and read the same, and of two writers one commits.

#![allow(clippy::unwrap_used)] // tests may panic

use std::path::Path;
use std::sync::Arc;

use ascribe_core::{
    Column, Digest, ExampleId, FeatureReader, FeatureSink, FeatureSpec, NoProgress, ProjectorSpec, RowType,
};
use ascribe_objects::Bucket;
use ascribe_store::features::{Objects, RemoteStore, pull, push};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};
use ndarray::Array2;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

const DIM: usize = 5;

fn spec() -> FeatureSpec {
    FeatureSpec {
        model: Digest::of(b"weights"),
        checkpoint: "final".into(),
        quantity: "gradient".into(),
        loss: "next_token_nll_sum".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::Identity,
        columns: vec![Column { name: "m".into(), start: 0, len: DIM }],
        dim: DIM,
        corpus: Digest::of(b"corpus"),
    }
}

fn fill(writer: &mut FeatureWriter, range: std::ops::Range<u32>) {
    let ids: Vec<ExampleId> = range.clone().map(|idx| ExampleId { dataset: idx % 2, idx }).collect();
    let rows = Array2::from_shape_fn((ids.len(), DIM), |(i, j)| (range.start as usize + i) as f32 - 0.37 * j as f32);
    writer.push(&ids, rows.view()).unwrap();
}

fn build(dir: &Path) -> FeatureStore {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(), RowType::Bf16, 4, 10).unwrap();
    fill(&mut writer, 0..10);
    writer.finish().unwrap()
}

fn append(dir: &Path, range: std::ops::Range<u32>) -> FeatureStore {
    let mut writer = FeatureWriter::append(dir, &spec(), u64::from(range.end - range.start)).unwrap();
    fill(&mut writer, range);
    writer.finish().unwrap()
}

fn read<R: FeatureReader>(reader: &R) -> Vec<(u64, Vec<f32>)> {
    let blocks = (0..reader.n_blocks()).map(|i| reader.block(i).unwrap());
    let pairs = blocks.flat_map(|b| {
        let rows: Vec<Vec<f32>> = b.rows.rows().into_iter().map(|r| r.to_vec()).collect();
        b.ids.iter().map(|id| id.to_u64()).zip(rows).collect::<Vec<_>>()
    });
    pairs.collect()
}

fn conforms(objects: &dyn Objects) {
    assert!(objects.get("none").unwrap().is_none() && objects.len("none").unwrap().is_none());
    assert!(objects.put_new("a/b", b"first").unwrap());
    assert!(!objects.put_new("a/b", b"second").unwrap(), "created twice");
    assert_eq!((objects.get("a/b").unwrap().unwrap(), objects.len("a/b").unwrap()), (b"first".to_vec(), Some(5)));
    objects.put("a/b", b"third").unwrap();
    assert_eq!(objects.get("a/b").unwrap().unwrap(), b"third");

    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    push(&build(a.path()), objects, &NoProgress).unwrap();
    let pulled = pull(objects, b.path(), &NoProgress).unwrap();
    pulled.verify().unwrap();
    drop(pulled);
    let (ours, theirs) = (append(a.path(), 10..17), append(b.path(), 20..26));
    let outcomes = std::thread::scope(|scope| {
        [&ours, &theirs].map(|store| scope.spawn(|| push(store, objects, &NoProgress))).map(|t| t.join().unwrap())
    });
    let winners: Vec<usize> = (0..2).filter(|&i| outcomes[i].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    assert!(matches!(outcomes[1 - winners[0]], Err(StoreError::Conflict { .. })), "{outcomes:?}");
    let won = [&ours, &theirs][winners[0]];
    assert_eq!(read(&RemoteStore::open(objects).unwrap()), read(won));
    assert_eq!(read(&pull(objects, c.path(), &NoProgress).unwrap()), read(won));
}

#[test]
fn in_memory() {
    conforms(&Bucket::new(Arc::new(InMemory::new()), "stores/toy"));
}

#[test]
fn on_a_local_file_system() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&Bucket::new(Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap()), ""));
}

/// Any server: `ASCRIBE_TEST_OBJECTS` is its address (`az://rows/x`), and what else it takes is in the environment.
#[test]
#[ignore = "needs a server and its address in the environment"]
fn on_a_server() {
    let address = std::env::var("ASCRIBE_TEST_OBJECTS").expect("an address");
    let objects = ascribe_objects::open(&address, &|name| std::env::var(name).ok()).unwrap();
    conforms(&*objects);
}
