//! Object stores: what is pushed is pulled and read the same; of two writers one commits; damage and loss are named.

use std::fs;
use std::path::Path;

use ascribe_core::{FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{Deletion, FolderObjects, Objects, RemoteStore, Snapshot, compact, delete, pull, push};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{copy, folder, ids, rows, spec};

const DIM: usize = 5;

fn build(dir: &Path) -> FeatureStore {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), RowType::Int8, 8, 20).unwrap();
    writer.push(&ids(0..20), rows(0..20, DIM).view()).unwrap();
    writer.finish().unwrap()
}

fn append(dir: &Path, range: std::ops::Range<usize>) -> FeatureStore {
    let mut writer = FeatureWriter::append(dir, &spec(DIM), range.len() as u64).unwrap();
    writer.push(&ids(range.clone()), rows(range, DIM).view()).unwrap();
    writer.finish().unwrap()
}

fn read<R: FeatureReader>(reader: &R) -> Vec<(u64, Vec<u32>)> {
    let mut all = Vec::new();
    for i in 0..reader.n_blocks() {
        let block = reader.block(i).unwrap();
        let bits = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|x| x.to_bits()).collect();
        all.extend(block.ids.iter().zip(block.rows.rows()).map(|(id, row)| (id.to_u64(), bits(row))));
    }
    all
}

/// Files that a pull must bring, lock aside.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    folder(dir).into_iter().filter(|(name, _)| name != "writer.lock").collect()
}

#[test]
fn what_is_pushed_is_pulled_and_read_the_same() {
    let (dir, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = FolderObjects::new(bucket.path());
    assert!(matches!(RemoteStore::open(&objects), Err(StoreError::Missing { .. })));
    assert_eq!(push(&build(dir.path()), &objects, &NoProgress).unwrap(), 0);
    let after_first = folder(bucket.path());
    assert_eq!(push(&FeatureStore::open(dir.path(), None).unwrap(), &objects, &NoProgress).unwrap(), 0);
    assert_eq!(folder(bucket.path()), after_first, "pushed again, nothing is sent");
    // Several local generations later, one commit.
    append(dir.path(), 20..27);
    delete(dir.path(), &Deletion { datasets: [1].into(), ..Deletion::default() }).unwrap();
    let store = FeatureStore::open(dir.path(), None).unwrap();
    assert_eq!(push(&store, &objects, &NoProgress).unwrap(), 1);
    let kept: Vec<_> = after_first.keys().filter(|name| *name != "CURRENT").collect();
    let now = folder(bucket.path());
    assert!(kept.iter().all(|name| now[*name] == after_first[*name]), "an object was written twice");
    let remote = RemoteStore::open(&objects).unwrap();
    assert_eq!(read(&remote), read(&store));
    assert_eq!(remote.dataset_sums().unwrap(), store.dataset_sums().unwrap());
    let (snapshot, local) = (Snapshot::read(&objects).unwrap(), Snapshot::open(dir.path()).unwrap());
    assert_eq!((local.manifest_blake3(), local.entries()), (store.manifest_blake3(), store.entries()));
    assert_eq!((snapshot.manifest_blake3(), snapshot.entries()), (store.manifest_blake3(), store.entries()));
    for i in 0..store.n_shards() {
        let (fetched, view) = (snapshot.fetch_shard(&objects, i).unwrap(), store.shard_view(i).unwrap());
        let mapped = local.map_shard(dir.path(), i).unwrap();
        for theirs in [fetched.view().unwrap(), mapped.view().unwrap(), mapped.view_of(std::iter::once(0..1)).unwrap()]
        {
            assert_eq!((theirs.rows, theirs.ids, theirs.dead), (view.rows, view.ids, view.dead));
        }
        assert!(objects.get(&snapshot.side_key(i)).unwrap().is_some());
    }
    let copy_dir = tempfile::tempdir().unwrap();
    let pulled = pull(&objects, copy_dir.path(), &NoProgress).unwrap();
    assert_eq!(read(&pulled), read(&store));
    assert_eq!(files(copy_dir.path()), files(dir.path()));
    pulled.verify().unwrap();
    // A pull that was cut off goes on; another folder's content is not overwritten.
    fs::remove_file(copy_dir.path().join("MANIFEST-000002.json")).unwrap();
    fs::remove_file(copy_dir.path().join("shards/s-000001.safetensors")).unwrap();
    pull(&objects, copy_dir.path(), &NoProgress).unwrap().verify().unwrap();
    assert_eq!(files(copy_dir.path()), files(dir.path()));
    compact(dir.path()).unwrap();
    push(&FeatureStore::open(dir.path(), None).unwrap(), &objects, &NoProgress).unwrap();
    let error = pull(&objects, copy_dir.path(), &NoProgress).unwrap_err();
    assert!(matches!(error, StoreError::SettingMismatch { setting: "content", .. }), "{error}");
}

#[test]
fn of_two_writers_on_two_machines_one_commits() {
    let (a, b, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = FolderObjects::new(bucket.path());
    push(&build(a.path()), &objects, &NoProgress).unwrap();
    copy(a.path(), b.path());
    append(a.path(), 20..30);
    append(b.path(), 30..40);
    let outcomes: Vec<Result<u64, StoreError>> = std::thread::scope(|scope| {
        let push_from = |dir: &Path| push(&FeatureStore::open(dir, None).unwrap(), &objects, &NoProgress);
        let threads = [a.path(), b.path()].map(|dir| scope.spawn(move || push_from(dir)));
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let winners: Vec<usize> = (0..2).filter(|&i| outcomes[i].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    assert!(outcomes.iter().flatten().all(|&n| n == 1));
    assert!(matches!(outcomes[1 - winners[0]], Err(StoreError::Conflict { .. })), "{outcomes:?}");
    let won = [a.path(), b.path()][winners[0]];
    assert_eq!(read(&RemoteStore::open(&objects).unwrap()), read(&FeatureStore::open(won, None).unwrap()));
    // The loser is told again, however often it tries.
    let lost = FeatureStore::open([a.path(), b.path()][1 - winners[0]], None).unwrap();
    assert!(matches!(push(&lost, &objects, &NoProgress), Err(StoreError::Conflict { .. })));
}

#[test]
fn a_changed_or_lost_object_is_named_and_gives_no_row() {
    let (dir, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = FolderObjects::new(bucket.path());
    let store = build(dir.path());
    push(&store, &objects, &NoProgress).unwrap();
    let audit = || -> Result<(), StoreError> {
        let remote = RemoteStore::open(&objects)?;
        for i in 0..remote.n_blocks() {
            remote.block(i)?;
        }
        remote.dataset_sums()?;
        pull(&objects, tempfile::tempdir().unwrap().path(), &NoProgress).map(drop)
    };
    audit().unwrap();
    let mut n_checked = 0;
    for (name, bytes) in folder(bucket.path()) {
        let path = bucket.path().join(&name);
        for at in (0..bytes.len()).step_by(97) {
            let mut changed = bytes.clone();
            changed[at] ^= 16;
            fs::write(&path, &changed).unwrap();
            let error = audit().err().unwrap_or_else(|| panic!("{name}: byte {at} changed unnoticed"));
            assert!(error.to_string().contains(name.rsplit('/').next().unwrap()), "{name}: {error}");
            n_checked += 1;
        }
        fs::remove_file(&path).unwrap();
        // A lost `CURRENT` is only a lost hint while the first commit is there.
        assert!(audit().is_err() || name == "CURRENT", "{name} was lost unnoticed");
        fs::write(&path, &bytes).unwrap();
    }
    audit().unwrap();
    assert!(n_checked > 50, "only {n_checked} changes were tried");
    assert!(objects.put_new("CURRENT", b"x").is_ok_and(|made| !made));
}
