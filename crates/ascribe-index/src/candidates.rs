//! Exact scores of chosen rows: the second half of every approximate search.

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_linalg::elementwise::sum_squares;
use ascribe_linalg::sum;
use rayon::prelude::*;

use crate::Hit;
use crate::error::IndexError;

/// Where the rows of a reader are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blocks {
    /// `starts[i]..starts[i + 1]` are the rows of block i.
    pub starts: Vec<u64>,
}

impl Blocks {
    /// Reads the ids of all rows; they come beside.
    ///
    /// # Errors
    /// The reader's.
    pub fn of<R: FeatureReader>(reader: &R) -> Result<(Self, Vec<ExampleId>), IndexError> {
        let (mut starts, mut ids) = (vec![0], Vec::new());
        for block_idx in 0..reader.n_blocks() {
            ids.extend_from_slice(&reader.block_ids(block_idx).map_err(IndexError::reader)?);
            starts.push(ids.len() as u64);
        }
        Ok((Self { starts }, ids))
    }

    /// Block of a row that exists.
    pub fn block_of(&self, row: u64) -> usize {
        self.starts.partition_point(|&start| start <= row) - 1
    }
}

/// Euclidean norm of every row: one pass over everything.
///
/// # Errors
/// [`IndexError::RowNotFinite`], the reader's.
pub fn norms<R: FeatureReader>(reader: &R) -> Result<Vec<f64>, IndexError> {
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
    let norms = per_block.concat();
    match norms.iter().position(|norm| !norm.is_finite()) {
        Some(row) => Err(IndexError::RowNotFinite { row: row as u64 }),
        None => Ok(norms),
    }
}

/// The `k` best of a query's candidate rows (ascending, without repeats), scored in f64 by the rows as stored. With `cosine`
/// products are divided by both norms (and are 0 where one is 0).
///
/// Cost: one row of memory and `2·dim` operations each.
///
/// # Errors
/// The reader's.
pub fn rerank<R: FeatureReader>(
    reader: &R,
    blocks: &Blocks,
    query: &[f32],
    rows: &[u64],
    k: usize,
    cosine: bool,
) -> Result<Vec<Hit>, IndexError> {
    let query_norm = if cosine { sum_squares(query).sqrt() } else { 1.0 };
    let mut best = Vec::with_capacity(rows.len());
    let mut at = 0;
    while at < rows.len() {
        let block_idx = blocks.block_of(rows[at]);
        let (start, end) = (blocks.starts[block_idx], blocks.starts[block_idx + 1]);
        let n = rows[at..].partition_point(|&row| row < end);
        let places: Vec<u32> = rows[at..at + n].iter().map(|&row| (row - start) as u32).collect();
        let found = reader.rows_at(block_idx, &places).map_err(IndexError::reader)?;
        let standard = found.rows.as_standard_layout();
        for (i, x) in standard.rows().into_iter().enumerate() {
            let x = x.as_slice().expect("rows are in standard layout");
            let product = sum::dot(query, x);
            let length = if cosine { query_norm * sum_squares(x).sqrt() } else { 1.0 };
            let score = if length > 0.0 { product / length } else { 0.0 };
            best.push(Hit { row: rows[at + i], id: found.ids[i], score });
        }
        at += n;
    }
    best.sort_unstable_by(Hit::rank);
    best.truncate(k);
    Ok(best)
}
