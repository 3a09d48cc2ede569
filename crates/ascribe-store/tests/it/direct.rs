//! Shards that are written past the page cache: the bytes of those that are written plainly.

use std::path::Path;

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_store::FeatureWriter;

use crate::common::{folder, ids, rows, spec};

/// Rows of f32 are longer than what multiplies to whole blocks, and a shard of them than what goes past the page cache by itself.
const DIM: usize = 1027;
const PER_SHARD: u32 = 1100;
const N: usize = 3 * 1100 + 211;

fn write(dir: &Path, row_type: RowType, push: usize, direct_from: Option<usize>) {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), row_type, PER_SHARD, N as u64).unwrap();
    if let Some(min_bytes) = direct_from {
        writer = writer.direct_from(min_bytes);
    }
    for start in (0..N).step_by(push) {
        let range = start..(start + push).min(N);
        writer.push(&ids(range.clone()), rows(range, DIM).view()).unwrap();
    }
    let store = writer.finish().unwrap();
    assert_eq!(store.verify().unwrap().n_rows, N as u64);
    if row_type == RowType::F32 {
        assert_eq!(store.block(0).unwrap().rows.row(5), rows(5..6, DIM).row(0));
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_way_to_the_disk() {
    for row_type in RowType::ALL {
        let plain = tempfile::tempdir().unwrap();
        write(plain.path(), row_type, 128, Some(usize::MAX));
        let plain = folder(plain.path());
        for (push, direct_from) in [(128, Some(0)), (N, Some(0)), (97, None)] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), row_type, push, direct_from);
            assert!(folder(dir.path()) == plain, "{} in pushes of {push}, {direct_from:?}", row_type.name());
        }
    }
}

/// `/dev/shm` is a file system in memory: what it makes of direct writing differs from system to system.
#[cfg(target_os = "linux")]
#[test]
fn a_file_system_in_memory_takes_the_same_bytes() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let plain = tempfile::tempdir().unwrap();
    write(plain.path(), RowType::F32, 128, Some(usize::MAX));
    write(memory.path(), RowType::F32, 128, Some(0));
    assert!(folder(memory.path()) == folder(plain.path()));
}
