//! Exact scores of chosen rows: the second half of every approximate search.

use ascribe_core::FeatureReader;
use ascribe_linalg::elementwise::sum_squares;
use ascribe_linalg::sum;
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::Hit;
use crate::error::IndexError;

/// Where the rows of a reader are and how long they are: one pass over everything.
pub struct RowMap {
    /// `starts[i]..starts[i + 1]` are the rows of block i.
    pub starts: Vec<u64>,
    /// Euclidean norm of each row.
    pub norms: Vec<f64>,
}

impl RowMap {
    pub fn new<R: FeatureReader>(reader: &R) -> Result<Self, IndexError> {
        let per_block: Vec<Vec<f64>> = (0..reader.n_blocks())
            .into_par_iter()
            .map(|block_idx| {
                let block = reader.block(block_idx).map_err(IndexError::reader)?;
                let standard = block.rows.as_standard_layout();
                let norm = |row: ndarray::ArrayView1<'_, f32>| {
                    sum_squares(row.as_slice().expect("rows are in standard layout")).sqrt()
                };
                Ok(standard.rows().into_iter().map(norm).collect())
            })
            .collect::<Result<_, IndexError>>()?;
        let mut map = Self { starts: vec![0], norms: Vec::new() };
        for norms in per_block {
            map.norms.extend(norms);
            map.starts.push(map.norms.len() as u64);
        }
        match map.norms.iter().position(|norm| !norm.is_finite()) {
            Some(row) => Err(IndexError::RowNotFinite { row: row as u64 }),
            None => Ok(map),
        }
    }
}

/// The `k` best of each query's candidate rows (ascending, without repeats), scored in f64.
///
/// Each block is read once for all queries. Cost `Σ candidates · dim`.
pub fn rerank<R: FeatureReader>(
    reader: &R,
    starts: &[u64],
    queries: ArrayView2<'_, f32>,
    rows: &[Vec<u64>],
    k: usize,
) -> Result<Vec<Vec<Hit>>, IndexError> {
    let per_block: Vec<Vec<Vec<Hit>>> = (0..reader.n_blocks())
        .into_par_iter()
        .map(|block_idx| {
            let range = starts[block_idx]..starts[block_idx + 1];
            let inside =
                |rows: &Vec<u64>| rows.partition_point(|&r| r < range.start)..rows.partition_point(|&r| r < range.end);
            if rows.iter().all(|rows| inside(rows).is_empty()) {
                return Ok(vec![Vec::new(); rows.len()]);
            }
            let block = reader.block(block_idx).map_err(IndexError::reader)?;
            let standard = block.rows.as_standard_layout();
            let score = |query: &[f32], row: u64| {
                let n = (row - range.start) as usize;
                let score = sum::dot(query, standard.row(n).as_slice().expect("rows are in standard layout"));
                Hit { row, id: block.ids[n], score }
            };
            Ok(queries
                .rows()
                .into_iter()
                .zip(rows)
                .map(|(query, rows)| {
                    let query = query.as_slice().expect("queries are in standard layout");
                    rows[inside(rows)].iter().map(|&row| score(query, row)).collect()
                })
                .collect())
        })
        .collect::<Result<_, IndexError>>()?;
    let mut best: Vec<Vec<Hit>> = vec![Vec::new(); rows.len()];
    for block in per_block {
        best.iter_mut().zip(block).for_each(|(all, some)| all.extend(some));
    }
    for all in &mut best {
        all.sort_unstable_by(Hit::rank);
        all.truncate(k);
    }
    Ok(best)
}
