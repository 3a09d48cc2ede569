//! Damaged and foreign stores: each lie is refused with what, where, expected and found.

use std::fs;
use std::path::Path;

use ascribe_core::{FeatureReader, FeatureSink, RowType};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};

use crate::common::{copy, folder, ids, poke, rows, spec};

const N: usize = 20;

fn make(dir: &Path) {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(5), RowType::F32, 8, N as u64).unwrap();
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
fn one_flipped_bit_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    audit(dir.path()).unwrap();
    let mut n_checked = 0;
    for (name, bytes) in folder(dir.path()) {
        if name == "writer.lock" {
            assert!(bytes.is_empty());
            continue;
        }
        for (at, &byte) in bytes.iter().enumerate() {
            let changed = byte ^ (1 << (at % 8));
            poke(&dir.path().join(&name), at, changed);
            // JSON has bytes without meaning: blanks, and the case of exponent and hex letters. Those that change no
            // value may pass; a store that opens must then still say the same.
            let is_blank = matches!(byte, b' ' | b'\n') || matches!(changed, b' ' | b'\n');
            let may_pass = name.ends_with(".json") && (is_blank || byte.is_ascii_hexdigit());
            match audit(dir.path()) {
                Ok(()) => assert!(may_pass, "{name}: byte {at} changed unnoticed"),
                Err(_) => n_checked += 1,
            }
            poke(&dir.path().join(&name), at, byte);
        }
    }
    audit(dir.path()).unwrap();
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
    for name in ["store.json", "manifest.log", "dataset_sums.safetensors", "side/s-000002.parquet"] {
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
    fs::write(&path, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    let error = FeatureStore::open(dir.path(), None).unwrap_err();
    assert!(matches!(error, StoreError::WrongVersion { expected: 1, found: 2, .. }), "{error}");
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
        fs::remove_file(dir.path().join("MANIFEST.json")).unwrap();
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
    fs::remove_file(dir.path().join("MANIFEST.json")).unwrap();
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
