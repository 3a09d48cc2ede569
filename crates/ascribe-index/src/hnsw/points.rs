//! From rows and queries to points: projected and brought to length 1.

use ascribe_core::FeatureReader;
use ascribe_linalg::{Stream, Threads, gemm};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::candidates::Blocks;
use crate::error::IndexError;

/// Name of the random stream of the projection.
const STREAM_NAME: &str = "index/hnsw/projection";

/// Rows `[n, dim]` → `[n, d]` by a seeded matrix of ±1/√d; the identity if rows are no longer than that.
pub struct Projection {
    /// `[dim, d]`.
    matrix: Option<Array2<f32>>,
    /// Numbers of a point.
    pub point_dim: usize,
}

impl Projection {
    /// From rows of `dim` numbers to points of `point_dim`.
    pub fn new(dim: usize, point_dim: usize, seed: u64) -> Self {
        let d = point_dim;
        if dim <= d {
            return Self { matrix: None, point_dim: dim };
        }
        let (stream, scale) = (Stream::new(seed, STREAM_NAME), 1.0 / (d as f32).sqrt());
        // Sign (i, j) is bit (i·d + j) of the stream, 64 to a word.
        let matrix = Array2::from_shape_fn((dim, d), |(i, j)| {
            let bit = (i * d + j) as u64;
            if stream.at(bit / 64) >> (bit % 64) & 1 == 0 { scale } else { -scale }
        });
        Self { matrix: Some(matrix), point_dim }
    }

    /// How far projecting may take the cosine of two points from that of their rows: four standard errors, `4/√d`; nothing
    /// but rounding if rows are not projected.
    pub fn angle_error(&self) -> f64 {
        if self.matrix.is_some() { 4.0 / (self.point_dim as f64).sqrt() } else { 1e-5 }
    }

    /// `[n, dim] → [n, d]`, rows of length 1 (zero rows stay zero).
    pub fn points(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        // Brought to length 1 before the product too: numbers near the end of f32 must not overflow in it.
        let unit = unit_rows(rows.to_owned());
        match &self.matrix {
            None => unit,
            Some(matrix) => {
                let mut out = Array2::zeros((rows.nrows(), matrix.ncols()));
                gemm(1.0, unit.view(), matrix.view(), 0.0, out.view_mut(), Threads::One);
                unit_rows(out)
            }
        }
    }

    /// The points of all rows of a reader `[N, d]`; blocks run in parallel, each product on one thread.
    ///
    /// # Errors
    /// The reader's.
    pub fn all_points<R: FeatureReader>(&self, reader: &R, at: &Blocks) -> Result<Array2<f32>, IndexError> {
        let blocks: Vec<Array2<f32>> = (0..reader.n_blocks())
            .into_par_iter()
            .map(|i| Ok(self.points(reader.block(i).map_err(IndexError::reader)?.rows.view())))
            .collect::<Result<_, IndexError>>()?;
        let mut points = Array2::zeros((reader.n_rows() as usize, self.point_dim));
        for (block, &start) in blocks.iter().zip(&at.starts) {
            let start = start as usize;
            points.slice_mut(s![start..start + block.nrows(), ..]).assign(block);
        }
        Ok(points)
    }
}

fn unit_rows(mut rows: Array2<f32>) -> Array2<f32> {
    for mut row in rows.rows_mut() {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.mapv_inplace(|x| (f64::from(x) / norm) as f32);
        }
    }
    rows
}

/// Rows sorted by norm, longest first (ties by row), cut into `n_ranges` runs of about equal size.
pub fn norm_ranges(norms: &[f64], n_ranges: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..norms.len()).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]).then(a.cmp(&b)));
    let n_ranges = n_ranges.clamp(1, order.len().max(1));
    let cut = |i: usize| i * order.len() / n_ranges;
    let mut runs: Vec<Vec<usize>> = (0..n_ranges).map(|i| order[cut(i)..cut(i + 1)].to_vec()).collect();
    // Inserted in the order of the store: neighbours in norm are no better company than neighbours in text.
    runs.iter_mut().for_each(|run| run.sort_unstable());
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_disjoint_complete_and_ordered_by_norm() {
        let norms: Vec<f64> = (0..103u32).map(|i| f64::from((i * 37) % 50)).collect();
        for n_ranges in [1, 2, 10, 103, 500] {
            let runs = norm_ranges(&norms, n_ranges);
            assert_eq!(runs.len(), n_ranges.min(103));
            let mut all = runs.concat();
            all.sort_unstable();
            assert_eq!(all, (0..103).collect::<Vec<_>>());
            for pair in runs.windows(2) {
                let least = pair[0].iter().map(|&i| norms[i]).fold(f64::INFINITY, f64::min);
                assert!(pair[1].iter().all(|&i| norms[i] <= least));
            }
            let (longest, shortest) = (runs.iter().map(Vec::len).max(), runs.iter().map(Vec::len).min());
            assert!(longest.unwrap() - shortest.unwrap() <= 1);
        }
    }

    #[test]
    fn the_projection_keeps_angles_on_average_and_its_signs_are_pinned() {
        let (dim, d, n_seeds) = (300, 64, 200);
        let u = Array2::from_shape_fn((1, dim), |(_, j)| ((j % 7) as f32 - 3.0) * 1e18);
        let v = Array2::from_shape_fn((1, dim), |(_, j)| ((j % 5) as f32 - 1.0) / 10.0);
        let unit = |x: &Array2<f32>| unit_rows(x.clone());
        let exact = f64::from(unit(&u).row(0).dot(&unit(&v).row(0)));
        let cosines = (0..n_seeds).map(|seed| {
            let p = Projection::new(dim, d, seed);
            f64::from(p.points(u.view()).row(0).dot(&p.points(v.view()).row(0)))
        });
        let mean = cosines.sum::<f64>() / n_seeds as f64;
        // One cosine has a standard deviation of at most √(2/d); five standard errors of the mean.
        assert!((mean - exact).abs() < 5.0 * (2.0 / (d * n_seeds as usize) as f64).sqrt(), "{mean} {exact}");
        let signs = Projection::new(dim, d, 7).matrix.unwrap();
        let word = Stream::new(7, STREAM_NAME).at(1);
        assert!((0..64).all(|b| (signs[(1, b)] < 0.0) == (word >> b & 1 == 1)));
        assert!(Projection::new(64, d, 7).matrix.is_none(), "short rows are not projected");
    }

    #[test]
    fn zero_rows_stay_zero_and_others_have_length_one() {
        let rows = ndarray::arr2(&[[0.0f32, 0.0, 0.0], [3.0, 0.0, -4.0], [1e-30, 1e-30, 0.0]]);
        let points = Projection::new(3, 8, 0).points(rows.view());
        assert_eq!(points.row(0).to_vec(), [0.0; 3]);
        assert_eq!(points.row(1).to_vec(), [0.6, 0.0, -0.8]);
        assert!((points.row(2).dot(&points.row(2)) - 1.0).abs() < 1e-6);
    }
}
