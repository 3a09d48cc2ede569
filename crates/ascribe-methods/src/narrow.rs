//! Inner products of query vectors with rows in f32: half the time of [`dot::score`], for scores that are narrowed to f32 in any case.
//!
//! Rows are f32, so products with them are: chains of multiply-adds over [`CHAIN`] numbers, added in f64 and narrowed once. A score is
//! within some `10⁻⁷·‖v‖‖row‖` of that in f64. Money reads [`dot::score`].

use ascribe_core::{FeatureReader, Progress};
use ascribe_linalg::packed::{PackedMatrix, Precision, Rows};
use ascribe_linalg::sum::sum_by;
use ndarray::{Array2, ArrayView1, ArrayView2, s};
use rayon::prelude::*;

use crate::blocks;
use crate::dot::{self, ExampleScores};
use crate::error::MethodError;

/// Numbers of a row that make one chain of f32 multiply-adds; chains are added in f64. Part of the definition of the bytes.
const CHAIN: usize = 512;

/// Rows per task.
const TASK: usize = 128;

/// `⟨v_q, row_i⟩`, `[Q, N]`, like [`dot::score`] without weights: every query's vector is brought to a largest number of 1 and back, so
/// that none leaves the range of f32. A score is a sum of its own, whatever its company. Cost `2·Q·N·D` in f32; memory `4·Q·N` bytes.
///
/// # Errors
/// As [`dot::score`].
pub(crate) fn score<R: FeatureReader>(
    reader: &R,
    vectors: ArrayView2<'_, f64>,
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    let (n_queries, width) = vectors.dim();
    if width != reader.spec().dim {
        return Err(MethodError::shape("columns of the query vectors", reader.spec().dim, width));
    }
    dot::check_finite("query vectors", vectors)?;
    let n_rows = dot::n_rows(reader)?;
    let (mut examples, mut values) = (Vec::with_capacity(n_rows), Array2::<f32>::zeros((n_queries, n_rows)));
    let top = |row: ArrayView1<'_, f64>| row.iter().fold(f64::MIN_POSITIVE, |top, v| top.max(v.abs()));
    let largest: Vec<f64> = vectors.rows().into_iter().map(top).collect();
    let mut narrow = Array2::<f32>::zeros((n_queries, width));
    for ((mut to, row), largest) in narrow.rows_mut().into_iter().zip(vectors.rows()).zip(&largest) {
        to.iter_mut().zip(row).for_each(|(to, v)| *to = (v / largest) as f32);
    }
    let chain = |start: usize| {
        let part = narrow.slice(s![.., start..(start + CHAIN).min(width)]);
        (start, part.ncols(), PackedMatrix::new(Precision::F32, part.t()))
    };
    let chains: Vec<(usize, usize, PackedMatrix)> = (0..width).step_by(CHAIN).map(chain).collect();
    progress.start("score", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        examples.extend_from_slice(block.ids);
        let rows = block.rows.slice(s![..block.ids.len(), ..]).mapv(|v| v as f32);
        let rows = rows.as_slice().expect("a fresh matrix is row-major");
        let tasks: Vec<Vec<f32>> =
            rows.par_chunks(TASK * width.max(1)).map(|rows| task(rows, width, &chains, &largest)).collect();
        for (task, part) in tasks.iter().enumerate() {
            let first = block.first_row + task * TASK;
            let part = ArrayView2::from_shape((part.len() / n_queries.max(1), n_queries), part).expect("whole rows");
            values.slice_mut(s![.., first..first + part.nrows()]).assign(&part.t());
        }
        // Numbers at the end of f32's range can leave it on their way to a score that does not.
        let mut new = values.slice_mut(s![.., block.first_row..block.first_row + block.ids.len()]);
        for ((q, i), value) in new.indexed_iter_mut().filter(|(_, value)| !value.is_finite()) {
            *value = sum_by(width, |j| vectors[(q, j)] * f64::from(rows[i * width + j])) as f32;
        }
        Ok(())
    })?;
    progress.finish("rows scored");
    Ok(ExampleScores { examples, values })
}

/// Products `[n, Q]` of a task's rows with every query's vector: chains in f32, their sums in f64, narrowed once.
fn task(rows: &[f32], width: usize, chains: &[(usize, usize, PackedMatrix)], largest: &[f64]) -> Vec<f32> {
    let (n, n_queries) = (rows.len() / width.max(1), largest.len());
    let mut part = vec![0.0f32; n * n_queries];
    let multiply = |(start, len, packed): &(usize, usize, PackedMatrix), part: &mut [f32]| {
        packed.multiply(&Rows::new(n, *len, width, &rows[*start..]), 0.0, part, n_queries);
    };
    let scale = |v: f64, q: usize| (v * largest[q]) as f32;
    if let [one] = chains {
        multiply(one, &mut part);
        for row in part.chunks_exact_mut(n_queries.max(1)) {
            row.iter_mut().enumerate().for_each(|(q, v)| *v = scale(f64::from(*v), q));
        }
        return part;
    }
    let mut total = vec![0.0f64; n * n_queries];
    for chain in chains {
        multiply(chain, &mut part);
        total.iter_mut().zip(&part).for_each(|(to, &v)| *to += f64::from(v));
    }
    for (row, sums) in part.chunks_exact_mut(n_queries.max(1)).zip(total.chunks_exact(n_queries.max(1))) {
        row.iter_mut().zip(sums).enumerate().for_each(|(q, (v, &sum))| *v = scale(sum, q));
    }
    part
}

#[cfg(test)]
mod tests {
    use ascribe_core::NoProgress;
    use ascribe_linalg::Stream;

    use super::*;
    use crate::rows::InMemory;

    /// One chain and several, few queries and none; vectors far beyond the range of f32's squares.
    #[test]
    fn scores_are_those_in_f64() {
        for (n, d, q, size) in [(700, 49, 35, 1.0), (130, CHAIN + 9, 3, 1e-30), (5, 2 * CHAIN, 1, 1e30), (3, 4, 0, 1.0)]
        {
            let mut stream = Stream::new(3, "narrow");
            let rows = Array2::from_shape_fn((n, d), |_| stream.normal() as f32);
            let vectors = Array2::from_shape_fn((q, d), |_| size * stream.normal());
            let reader = InMemory::new(rows.view());
            let found = score(&reader, vectors.view(), &NoProgress).unwrap();
            let exact = dot::score(&reader, vectors.view(), None, &NoProgress).unwrap();
            assert_eq!((&found.examples, found.values.dim()), (&exact.examples, (q, n)));
            // A chain of at most CHAIN roundings, each of half an ulp of at most ‖v‖‖row‖, that add up like a random walk.
            let length = |row: ArrayView1<'_, f64>| row.dot(&row).sqrt();
            let walk = f64::from(f32::EPSILON) * (d.min(CHAIN) as f64).sqrt();
            for ((k, i), &v) in found.values.indexed_iter() {
                let bound = walk * length(vectors.row(k)) * length(rows.row(i).mapv(f64::from).view());
                let off = f64::from((v - exact.values[(k, i)]).abs());
                assert!(off < bound, "{n} x {d}, {q} queries, {k} {i}: {off} of {bound}");
            }
        }
        let rows = Array2::from_shape_fn((3, 40), |(i, j)| if (i + j) % 2 == 0 { 3e38f32 } else { -2.5e38 });
        let vectors = Array2::from_elem((2, 40), 1e-3);
        let found = score(&InMemory::new(rows.view()), vectors.view(), &NoProgress).unwrap();
        assert!(found.values.iter().all(|&v| (v / 1e36 - 1.0).abs() < 1e-6), "{}", found.values);
        let rows = Array2::<f32>::zeros((3, 4));
        let text = |vectors: Array2<f64>| {
            score(&InMemory::new(rows.view()), vectors.view(), &NoProgress).unwrap_err().to_string()
        };
        assert!(text(Array2::zeros((2, 5))).contains("columns of the query vectors"));
        assert!(text(Array2::from_elem((2, 4), f64::NAN)).contains("query vectors"));
    }
}
