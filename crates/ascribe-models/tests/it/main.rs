//! The crate from outside: PyTorch's `transformers` as reference, and files that lie.
#![allow(clippy::unwrap_used)] // clippy exempts test functions, not what they call

mod equality;
mod files;
mod gguf;
mod hostile;
mod lora;
mod magic;
mod published;
mod taps;

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Largest difference relative to the largest number.
fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs() / scale))
}
