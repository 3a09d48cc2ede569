//! Damaged and foreign stores: each lie is refused with what, where, expected and found.

use std::fs;
use std::path::Path;

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_store::features::{Deletion, delete};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{copy, folder, ids, poke, rows, spec};

const N: usize = 20;

fn make(dir: &Path) {
    make_as(dir, RowType::F32);
}

fn make_as(dir: &Path, row_type: RowType) {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(5), row_type, 8, N as u64).unwrap();
    writer.push(&ids(0..N), rows(0..N, 5).view()).unwrap();
    writer.finish().unwrap();
}

fn resume(dir: &Path) -> Result<FeatureStore, StoreError> {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(5), RowType::F32, 8, N as u64)?;
    let from = writer.n_committed() as usize;
    writer.push(&ids(from..N), rows(from..N, 5).view())?;
    writer.finish()
}

/// Opens and reads everything, as an auditor does.
fn audit(dir: &Path) -> Result<(), StoreError> {
    let store = FeatureStore::open(dir, Some(&spec(5)))?;
    store.verify()?;
    store.dataset_sums().map(drop)
}

#[test]
fn one_flipped_bit_anywhere_is_found_and_its_file_named() {
    for row_type in [RowType::F32, RowType::Int4] {
        let dir = tempfile::tempdir().unwrap();
        make_as(dir.path(), row_type);
        // A second generation, so that there are tombstones.
        delete(dir.path(), &Deletion { examples: [ids(3..4)[0]].into(), ..Deletion::default() }).unwrap();
        flip_every_byte(dir.path());
    }
}

fn flip_every_byte(dir: &Path) {
    audit(dir).unwrap();
    let mut n_checked = 0;
    for (name, bytes) in folder(dir) {
        if name == "writer.lock" {
            assert!(bytes.is_empty());
            continue;
        }
        for (at, &byte) in bytes.iter().enumerate() {
            let changed = byte ^ (1 << (at % 8));
            poke(&dir.join(&name), at, changed);
            let error = audit(dir).err().unwrap_or_else(|| panic!("{name}: byte {at} changed unnoticed"));
            let file = name.rsplit('/').next().unwrap();
            assert!(error.to_string().contains(file), "{name}, byte {at}: the error names another file: {error}");
            n_checked += 1;
            poke(&dir.join(&name), at, byte);
        }
    }
    audit(dir).unwrap();
    assert!(n_checked > 5000, "only {n_checked} changes were tried");
}

#[test]
fn a_changed_shard_gives_no_row() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let path = dir.path().join("shards/s-000001.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let grad_start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    assert_eq!(grad_start % 64, 0, "the rows are aligned");
    bytes[grad_start + 17] ^= 4;
    fs::write(&path, bytes).unwrap();
    let store = FeatureStore::open(dir.path(), None).unwrap();
    store.block(0).unwrap();
    let error = store.block(1).err().unwrap();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    assert!(error.to_string().contains("s-000001"), "{error}");
    assert!(matches!(resume(dir.path()), Err(StoreError::WrongChecksum { .. })), "the writer went on over damage");
}

#[test]
fn a_cut_or_missing_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let path = dir.path().join("shards/s-000001.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = audit(dir.path()).unwrap_err();
    let (expected, found) = (bytes.len() as u64, bytes.len() as u64 - 1);
    let is_right = |e: &StoreError| matches!(e, StoreError::WrongLength { expected: a, found: b, .. } if (*a, *b) == (expected, found));
    assert!(is_right(&error), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(audit(dir.path()), Err(StoreError::Missing { path: p, .. }) if p == path));
    fs::write(&path, &bytes).unwrap();
    for name in ["store.json", "manifest.log", "dataset_sums-000000.safetensors", "side/s-000002.parquet"] {
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = audit(dir.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Missing { path: p, .. } if *p == path), "{error}");
        fs::write(&path, &bytes).unwrap();
    }
    audit(dir.path()).unwrap();
}

#[test]
fn a_store_of_another_model_version_or_setting_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let mut other = spec(5);
    other.checkpoint = "step-000400".into();
    let error = FeatureStore::open(dir.path(), Some(&other)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::SpecMismatch { difference, .. } if difference.field == "checkpoint"));
    for part in [other.hash().to_string(), spec(5).hash().to_string(), "step-000400".into(), "final".into()] {
        assert!(text.contains(&part), "{text} does not say {part}");
    }
    let open = |row_type, per_shard, n| FeatureWriter::create_or_resume(dir.path(), &spec(5), row_type, per_shard, n);
    for (error, name) in [
        (open(RowType::Bf16, 8, 20).unwrap_err(), "row type"),
        (open(RowType::F32, 9, 20).unwrap_err(), "rows per shard"),
        (open(RowType::F32, 8, 21).unwrap_err(), "expected rows"),
    ] {
        assert!(matches!(error, StoreError::SettingMismatch { setting, .. } if setting == name), "{error}");
    }
    let path = dir.path().join("store.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format_version\": 2", "\"format_version\": 3")).unwrap();
    let error = FeatureStore::open(dir.path(), None).unwrap_err();
    assert!(matches!(error, StoreError::WrongVersion { expected: 2, found: 3, .. }), "{error}");
    assert!(error.to_string().contains("a newer program"), "{error}");
}

#[test]
fn a_torn_manifest_line_is_cut_off_and_the_store_ends_the_same() {
    let whole = tempfile::tempdir().unwrap();
    make(whole.path());
    let manifest = fs::read(whole.path().join("manifest.log")).unwrap();
    let last_line = manifest[..manifest.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    for len in (last_line..manifest.len()).step_by(13) {
        let dir = tempfile::tempdir().unwrap();
        copy(whole.path(), dir.path());
        for name in ["MANIFEST-000000.json", "CURRENT", "dataset_sums-000000.safetensors"] {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("manifest.log"), &manifest[..len]).unwrap();
        fs::write(dir.path().join("shards/s-000002.safetensors.tmp"), b"half a shard").unwrap();
        let error = FeatureStore::open(dir.path(), None).unwrap_err();
        assert!(matches!(error, StoreError::Unfinished { expected_rows: 20, found_rows: 16, .. }), "{error}");
        resume(dir.path()).unwrap();
        assert_eq!(folder(dir.path()), folder(whole.path()));
    }
    // A bad line with a good one after it is no tear.
    let dir = tempfile::tempdir().unwrap();
    copy(whole.path(), dir.path());
    fs::remove_file(dir.path().join("MANIFEST-000000.json")).unwrap();
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let mut bytes = manifest.clone();
    bytes[10] ^= 1;
    fs::write(dir.path().join("manifest.log"), bytes).unwrap();
    assert!(matches!(resume(dir.path()), Err(StoreError::Malformed { .. })));
}

#[test]
fn an_unfinished_store_is_not_readable_and_not_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = FeatureWriter::create_or_resume(dir.path(), &spec(5), RowType::F32, 8, 20).unwrap();
    writer.push(&ids(0..10), rows(0..10, 5).view()).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, StoreError::Unfinished { expected_rows: 20, found_rows: 10, .. }), "{error}");
    assert!(matches!(FeatureStore::open(dir.path(), None), Err(StoreError::Unfinished { found_rows: 8, .. })));
    let error = FeatureStore::open(&dir.path().join("nowhere"), None).unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
    /// Files are hostile: whatever a stranger did to one of them (cut, filled, spliced), opening never panics, and what opens
    /// has the rows that were written.
    #[test]
    fn no_damage_makes_a_reader_panic(
        which in 0usize..64, cut in 0usize..6000, at in 0usize..6000, fill in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
    ) {
        static WHOLE: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
        let whole = WHOLE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            make_as(dir.path(), RowType::Int8);
            delete(dir.path(), &Deletion { datasets: [1].into(), ..Deletion::default() }).unwrap();
            dir
        });
        let dir = tempfile::tempdir().unwrap();
        copy(whole.path(), dir.path());
        let names: Vec<String> = folder(dir.path()).into_keys().filter(|n| n != "writer.lock").collect();
        let path = dir.path().join(&names[which % names.len()]);
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(cut.max(1));
        let at = at % bytes.len();
        let end = (at + fill.len()).min(bytes.len());
        bytes.splice(at..end, fill);
        fs::write(&path, &bytes).unwrap();
        if audit(dir.path()).is_ok() {
            proptest::prop_assert!(bytes == fs::read(whole.path().join(&names[which % names.len()])).unwrap());
        }
        // A writer that takes the folder up refuses or goes on; it does not panic either.
        let _ = resume(dir.path());
    }
}
