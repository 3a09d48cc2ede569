//! Rows that the tests share.

use ascribe_core::ExampleId;
use ascribe_linalg::Stream;
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::Array2;

/// Gaussian rows with a decaying spectrum, like gradients: column j of a group has scale `1/(1 + j/8)`.
pub fn reader(n_rows: usize, groups: &[usize], n_datasets: usize) -> MemoryReader {
    let spec = gradient_spec(groups);
    let mut stream = Stream::new(11, "methods-test/rows");
    let columns = spec.columns.clone();
    let mut rows = Array2::zeros((n_rows, spec.dim));
    for mut row in rows.rows_mut() {
        for column in &columns {
            for j in 0..column.len {
                row[column.start + j] = (stream.normal() / (1.0 + j as f64 / 8.0)) as f32;
            }
        }
    }
    let per_dataset = n_rows.div_ceil(n_datasets).max(1);
    let id = |i: usize| ExampleId { dataset: (i / per_dataset) as u32, idx: (i % per_dataset) as u32 };
    MemoryReader::new(spec, (0..n_rows).map(id).collect(), rows, 100)
}

/// Gaussian query rows.
pub fn queries(n: usize, dim: usize) -> Array2<f32> {
    let mut stream = Stream::new(12, "methods-test/queries");
    Array2::from_shape_fn((n, dim), |_| stream.normal() as f32)
}

/// Runs `work` in a pool of its own.
pub fn with_threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(work)
}

/// Largest |a − b| over the largest |b|.
pub fn relative(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    let largest = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    (a - b).iter().fold(0.0f64, |m, v| m.max(v.abs())) / largest
}
