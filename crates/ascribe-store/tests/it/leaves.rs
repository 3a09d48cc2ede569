//! Large shards: a few rows are checked without reading all, and a changed byte never gives a row.

use std::fs;

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_store::features::{Beside, FolderObjects, LEAVES_MIN_BYTES, RowCopies, pull, push};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{ids, poke, rows, spec};

const DIM: usize = 300;
const N: usize = 1500;

fn build(dir: &std::path::Path, row_type: RowType, per_shard: u32) {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), row_type, per_shard, N as u64).unwrap();
    writer.push(&ids(0..N), rows(0..N, DIM).view()).unwrap();
    writer.finish().unwrap();
}

#[test]
fn a_changed_byte_spoils_the_rows_beside_it_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), RowType::F32, 1400);
    let (shard, leaves) = (dir.path().join("shards/s-000000.safetensors"), dir.path().join("shards/s-000000.leaves"));
    assert!(fs::metadata(&shard).unwrap().len() >= LEAVES_MIN_BYTES && leaves.exists());
    assert!(!dir.path().join("shards/s-000001.leaves").exists(), "a small shard has none");
    let good = fs::read(&shard).unwrap();
    // In the middle of the numbers: row 700 or near it.
    let at = good.len() / 2;
    poke(&shard, at, good[at] ^ 1);
    let store = FeatureStore::open(dir.path(), None).unwrap();
    assert!(store.rows_at(0, &[0, 1, 400]).is_ok());
    let refused = store.block(0).map(drop).unwrap_err();
    assert!(matches!(&refused, StoreError::WrongChecksum { path, .. } if *path == shard), "{refused}");
    assert!(refused.to_string().contains("group"), "{refused}");
    assert!(matches!(store.shard_view(0), Err(StoreError::WrongChecksum { .. })));
    assert!(matches!(store.verify(), Err(StoreError::WrongChecksum { .. })));
    // Once the whole shard was found changed no row of it is handed out.
    assert!(store.rows_at(0, &[0]).is_err());
    drop(store);
    poke(&shard, at, good[at]);
    // Whatever byte is changed: all rows come out as they were, or none of those that were read from it.
    let plain = rows(0..N, DIM);
    for step in 0..60 {
        let at = (step * 48_611 + 13) % good.len();
        poke(&shard, at, good[at] ^ 0x10);
        let Ok(store) = FeatureStore::open(dir.path(), None) else {
            poke(&shard, at, good[at]);
            continue;
        };
        let (mut n_bad, mut first) = (0, 0);
        for block in 0..store.n_blocks() {
            let n = store.block_ids(block).unwrap().len();
            for place in (0..n).step_by(7) {
                match store.rows_at(block, &[place as u32]) {
                    Ok(found) => {
                        assert_eq!(found.rows.row(0), plain.row(first + place), "byte {at}");
                        assert_eq!(found.ids[0], ids(first + place..first + place + 1)[0], "byte {at}");
                    }
                    Err(error) => {
                        assert!(error.to_string().contains("s-000000"), "{error}");
                        n_bad += 1;
                    }
                }
            }
            first += n;
        }
        assert!(n_bad > 0 || store.verify().is_err(), "byte {at} changed unnoticed");
        drop(store);
        poke(&shard, at, good[at]);
    }
}

#[test]
fn copies_are_the_rows_of_the_map_and_a_changed_byte_gives_none() {
    for row_type in RowType::ALL {
        let dir = tempfile::tempdir().unwrap();
        // The first shard has leaves in f32, the second has none.
        build(dir.path(), row_type, 1400);
        let mapped = FeatureStore::open(dir.path(), None).unwrap();
        let mut copies = RowCopies::new();
        for (shard, wanted) in
            [(0, vec![3, 1399, 700]), (1, vec![0]), (0, (0..1400).step_by(17).collect()), (1, vec![])]
        {
            // Opened anew: nothing is checked yet.
            let store = FeatureStore::open(dir.path(), None).unwrap();
            let all = mapped.shard_view(shard).unwrap();
            for beside in [Beside::Ids, Beside::Bounds, Beside::Ids] {
                store.copy_rows(shard, &wanted, beside, &mut copies).unwrap();
                let found = copies.view();
                assert_eq!((found.n_rows, found.dim, found.row_type), (wanted.len(), all.dim, all.row_type));
                assert_eq!(
                    (found.ids.is_empty(), found.norm.is_empty()),
                    match beside {
                        _ if wanted.is_empty() => (true, true),
                        Beside::Ids => (false, true),
                        Beside::Bounds => (true, false),
                    }
                );
                for (i, &row) in wanted.iter().enumerate() {
                    let row = row as usize;
                    assert_eq!(found.row(i), all.row(row), "{row_type:?}, row {row}");
                    assert_eq!(found.scale.map(|s| s[i]), all.scale.map(|s| s[row]));
                    if beside == Beside::Ids {
                        assert_eq!(found.id(i), all.id(row));
                    } else {
                        assert_eq!(
                            (found.norm[i], found.error.map(|e| e[i])),
                            (all.norm[row], all.error.map(|e| e[row]))
                        );
                    }
                }
            }
        }
        let store = FeatureStore::open(dir.path(), None).unwrap();
        assert!(matches!(store.copy_rows(2, &[0], Beside::Ids, &mut copies), Err(StoreError::Shape { .. })));
        let shard = dir.path().join("shards/s-000000.safetensors");
        let good = fs::read(&shard).unwrap();
        poke(&shard, good.len() / 2, good[good.len() / 2] ^ 1);
        let store = FeatureStore::open(dir.path(), None).unwrap();
        let middle: Vec<u32> = (600..800).collect();
        let refused = store.copy_rows(0, &middle, Beside::Ids, &mut copies).unwrap_err();
        assert!(matches!(&refused, StoreError::WrongChecksum { path, .. } if *path == shard), "{refused}");
    }
}

#[test]
fn leaves_that_are_gone_or_changed_cost_time_only() {
    for row_type in [RowType::F32, RowType::Int8] {
        let dir = tempfile::tempdir().unwrap();
        build(dir.path(), row_type, 5000);
        let has_leaves = row_type == RowType::F32;
        let leaves = dir.path().join("shards/s-000000.leaves");
        assert_eq!(leaves.exists(), has_leaves);
        let read = || {
            let store = FeatureStore::open(dir.path(), None).unwrap();
            store.rows_at(1, &[3, 77]).unwrap().rows.into_owned()
        };
        let plain = read();
        if has_leaves {
            let bytes = fs::read(&leaves).unwrap();
            poke(&leaves, 40, bytes[40] ^ 1);
            assert_eq!(read(), plain);
            let told = FeatureStore::open(dir.path(), None).unwrap().verify().unwrap_err();
            assert!(told.to_string().contains("s-000000.leaves") && told.to_string().contains("delete"), "{told}");
            fs::write(&leaves, b"").unwrap();
            assert_eq!(read(), plain);
            fs::remove_file(&leaves).unwrap();
        }
        assert_eq!(read(), plain);
        FeatureStore::open(dir.path(), None).unwrap().verify().unwrap();
    }
}

#[test]
fn what_is_pulled_has_leaves_again() {
    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    build(a.path(), RowType::F32, 5000);
    let objects = FolderObjects::new(b.path());
    push(&FeatureStore::open(a.path(), None).unwrap(), &objects, &ascribe_core::NoProgress).unwrap();
    pull(&objects, c.path(), &ascribe_core::NoProgress).unwrap().verify().unwrap();
    let name = "shards/s-000000.leaves";
    assert_eq!(fs::read(a.path().join(name)).unwrap(), fs::read(c.path().join(name)).unwrap());
}
