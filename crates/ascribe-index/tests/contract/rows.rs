//! Rows with structure, and the plain way to search them.

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_index::Hit;
use ascribe_linalg::{Stream, sum};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, ArrayView1};

/// `n` rows around `n_centres` centres; every 50th is ten times as long as the others.
pub fn clustered(n: usize, dim: usize, n_centres: usize, seed: u64) -> MemoryReader {
    let mut stream = Stream::new(seed, "index-test/rows");
    let centres = Array2::from_shape_fn((n_centres, dim), |_| stream.normal());
    let rows = Array2::from_shape_fn((n, dim), |(i, j)| {
        let length = if i % 50 == 7 { 10.0 } else { 1.0 };
        (length * (centres[(i % n_centres, j)] + 0.7 * stream.normal())) as f32
    });
    let ids = (0..n as u32).map(|i| ExampleId { dataset: i % 4, idx: i / 4 }).collect();
    MemoryReader::new(gradient_spec(&[dim]), ids, rows, 64)
}

/// Queries near the centres, in the same space.
pub fn queries(reader: &MemoryReader, n: usize, seed: u64) -> Array2<f32> {
    let mut stream = Stream::new(seed, "index-test/queries");
    Array2::from_shape_fn((n, reader.spec().dim), |(q, j)| {
        reader.rows()[(q * 37 % reader.rows().nrows(), j)] + 0.5 * stream.normal() as f32
    })
}

/// Scores every row in f64 and sorts.
pub fn brute_force(reader: &MemoryReader, query: ArrayView1<'_, f32>, k: usize) -> Vec<Hit> {
    let query = query.to_vec();
    let mut hits: Vec<Hit> = reader
        .rows()
        .rows()
        .into_iter()
        .enumerate()
        .map(|(row, x)| Hit { row: row as u64, id: reader.ids()[row], score: sum::dot(&query, &x.to_vec()) })
        .collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
    hits.truncate(k);
    hits
}
