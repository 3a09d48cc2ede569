//! Factor files: round trip, fixed bytes, damage.

use std::fs;

use ascribe_core::Digest;
use ascribe_store::{FactorData, FactorFile, StoreError};
use ndarray::{Array, ArrayD, IxDyn};

use crate::common::poke;

pub fn toy() -> FactorFile {
    let mut file = FactorFile::new("block_fisher", Digest::of(b"spec"));
    file.metadata.insert("damping_rel".into(), "0.1".into());
    file.metadata.insert("n_rows".into(), "20".into());
    let f64s = Array::from_shape_fn(IxDyn(&[3, 5]), |i| (i[0] * 5 + i[1]) as f64 / 3.0);
    let f32s = Array::from_shape_fn(IxDyn(&[7]), |i| -(i[0] as f32) / 7.0);
    file.tensors.insert("layers.0/eigenvectors".into(), FactorData::F64(f64s));
    file.tensors.insert("layers.0/eigenvalues".into(), FactorData::F32(f32s));
    file.tensors.insert("temperature".into(), FactorData::F64(ArrayD::from_elem(IxDyn(&[]), 1.25)));
    file.tensors.insert("nothing".into(), FactorData::F64(ArrayD::zeros(IxDyn(&[0, 4]))));
    file
}

#[test]
fn what_is_read_is_what_was_written_and_the_bytes_are_fixed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    toy().write(&a).unwrap();
    let read = FactorFile::read(&a, Some(Digest::of(b"spec"))).unwrap();
    assert_eq!(read, toy());
    assert_eq!(read.tensors["temperature"].as_f64().unwrap().sum(), 1.25);
    assert!(read.tensors["temperature"].as_f32().is_none());
    read.write(&b).unwrap();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
}

#[test]
fn one_flipped_bit_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.safetensors");
    toy().write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    for (at, &byte) in bytes.iter().enumerate() {
        poke(&path, at, byte ^ (1 << (at % 8)));
        if let Ok(read) = FactorFile::read(&path, None) {
            // Blanks behind the JSON of the head mean nothing, and hex digits have two cases.
            assert_eq!(read, toy(), "byte {at} changed unnoticed");
        }
        poke(&path, at, byte);
    }
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(matches!(FactorFile::read(&path, None), Err(StoreError::Malformed { .. })));
}

#[test]
fn bad_content_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.safetensors");
    let mut bad = toy();
    bad.tensors.insert("lambda".into(), FactorData::F64(ArrayD::from_elem(IxDyn(&[2]), f64::NAN)));
    let error = bad.write(&path).unwrap_err();
    assert_eq!(error.to_string(), "tensor `lambda`, number 0: expected a finite number, found NaN");
    let mut bad = toy();
    bad.metadata.insert("ascribe.spec".into(), "mine".into());
    assert!(matches!(bad.write(&path), Err(StoreError::Malformed { .. })));
    assert!(!path.exists(), "a refused file was written");
    toy().write(&path).unwrap();
    let error = FactorFile::read(&path, Some(Digest::of(b"other"))).unwrap_err();
    assert!(matches!(error, StoreError::SettingMismatch { setting: "spec", .. }), "{error}");
    assert!(matches!(FactorFile::read(&dir.path().join("none"), None), Err(StoreError::Missing { .. })));
    let text = fs::read(&path).unwrap();
    let key = b"\"ascribe.format_version\":\"1\"";
    let at = text.windows(key.len()).position(|w| w == key).unwrap() + key.len() - 2;
    let mut newer = text.clone();
    newer[at] = b'3';
    fs::write(&path, newer).unwrap();
    assert!(matches!(FactorFile::read(&path, None), Err(StoreError::WrongVersion { expected: 1, found: 3, .. })));
}
