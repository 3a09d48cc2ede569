//! What the benches share: named shapes and seeded inputs.
//!
//! `cargo bench -p ascribe-benches` runs them; throughput is in operations or bytes, so a figure can be held against the
//! machine's peak. What must be reached stands in `BARS.md`.

use ascribe_linalg::Stream;
use ascribe_models::{Decoder, DecoderConfig};
use ndarray::Array2;

/// Shapes `[m, k, n]` of the products in one pass of the shipped model over 128 tokens.
pub const SHAPES: [(&str, [usize; 3]); 5] = [
    ("qkv 128x128x384", [128, 128, 384]),
    ("gate-up 128x128x704", [128, 128, 704]),
    ("down 128x352x128", [128, 352, 128]),
    ("head 64x128x2048", [64, 128, 2048]),
    ("projection 128x384x16", [128, 384, 16]),
];

/// A matrix of seeded normal numbers.
pub fn normal(name: &str, rows: usize, columns: usize) -> Array2<f32> {
    let mut stream = Stream::new(1, name);
    Array2::from_shape_fn((rows, columns), |_| stream.normal() as f32)
}

/// A decoder of the shipped model's shape with fresh weights.
///
/// # Panics
/// If the shape is refused, which would be a defect here.
pub fn decoder() -> Decoder {
    Decoder::init(DecoderConfig::llama(2048, 128, 352, 3, 4, 4, 128), 1).expect("the shipped shape is valid")
}

/// `n` sequences of 128 seeded tokens.
pub fn sequences(n: usize) -> Vec<Vec<u32>> {
    let mut stream = Stream::new(2, "bench-tokens");
    (0..n).map(|_| (0..128).map(|_| stream.below(2048)).collect()).collect()
}
