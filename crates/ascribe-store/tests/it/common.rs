//! A toy spec, toy rows, and folders as values.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ascribe_core::{Column, Digest, ExampleId, FeatureSpec, ProjectorSpec};
use ndarray::Array2;

/// A spec of `dim` columns in two modules.
pub fn spec(dim: usize) -> FeatureSpec {
    let cut = dim / 2;
    FeatureSpec {
        model: Digest::of(b"weights"),
        checkpoint: "final".into(),
        quantity: "gradient".into(),
        loss: "next_token_nll_sum".into(),
        normalizer: "none".into(),
        projector: ProjectorSpec::TwoSided { seed: 7, k_in: 4, k_out: 4, version: 1 },
        columns: vec![
            Column { name: "layers.0.attn.qkv".into(), start: 0, len: cut },
            Column { name: "layers.0.mlp.up".into(), start: cut, len: dim - cut },
        ],
        dim,
        corpus: Digest::of(b"corpus manifest"),
    }
}

/// Row `i`: numbers of several magnitudes and both signs, a pure function of `(i, column)`.
pub fn rows(range: std::ops::Range<usize>, dim: usize) -> Array2<f32> {
    Array2::from_shape_fn((range.len(), dim), |(i, j)| {
        let x = ((range.start + i) as u64 * 0x9E37_79B9 + j as u64).wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        (x as f32 / (1u32 << 23) as f32 - 1.0) * [1e-3, 1.0, 30.0][j % 3]
    })
}

/// Three datasets, interleaved.
pub fn ids(range: std::ops::Range<usize>) -> Vec<ExampleId> {
    range.map(|i| ExampleId { dataset: (i % 3) as u32, idx: (i / 3) as u32 }).collect()
}

/// Every file below `dir` with its bytes.
pub fn folder(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in folder(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Changes one byte of a file in place. (Writing the whole file anew makes some file systems sync it each time.)
pub fn poke(path: &Path, at: usize, byte: u8) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[byte]).unwrap();
}
