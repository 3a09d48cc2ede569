//! Exact search: every row is looked at, and no rounding can hide one.
//!
//! A block of rows is scored in f32 by one matrix product for all queries. The error of an f32 dot product of `d` terms
//! is at most `γ·‖q‖·‖x‖` with `γ = d·u/(1 − d·u)`, `u = 2⁻²⁴`, in whatever order it is summed (Higham, Accuracy and
//! Stability of Numerical Algorithms, §3.1, with Cauchy–Schwarz). So each f32 score is an interval. Rows whose upper end
//! lies below the k-th best lower end cannot be among the k best; all others are scored again in f64. The hits are those
//! of an f64 scan, at the price of an f32 one.

use ascribe_core::{FeatureReader, Features};
use ascribe_linalg::elementwise::{dot, sum_squares};
use ascribe_linalg::{Threads, gemm, sum};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::error::IndexError;
use crate::{Effort, Filter, Hit, VectorIndex, check_queries};

/// Queries of one product: enough to be bound by arithmetic, and 32 × 1,024 scores stay in the cache.
const QUERY_GROUP: usize = 64;
/// Up to this many queries a matrix product spends more time on packing the rows than on multiplying.
const FEW_QUERIES: usize = 32;

/// Exact search over any reader. Holds nothing but the reader.
#[derive(Debug)]
pub struct ExactIndex<'r, R> {
    reader: &'r R,
}

impl<'r, R: FeatureReader> ExactIndex<'r, R> {
    /// An index over all rows of `reader`.
    ///
    /// # Errors
    /// [`IndexError::EmptyStore`] if it has none.
    pub fn new(reader: &'r R) -> Result<Self, IndexError> {
        if reader.n_rows() == 0 {
            return Err(IndexError::EmptyStore);
        }
        Ok(Self { reader })
    }
}

impl<R: FeatureReader> VectorIndex for ExactIndex<'_, R> {
    fn n_rows(&self) -> u64 {
        self.reader.n_rows()
    }

    fn dim(&self) -> usize {
        self.reader.spec().dim
    }

    /// Streams the blocks over rayon's current pool. Cost `2·Q·N·dim` in f32; memory: one block of scores per thread.
    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        _effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        check_queries(queries, k, self.n_rows(), self.dim())?;
        if k == 0 {
            return Ok(vec![Vec::new(); queries.nrows()]);
        }
        let queries = queries.as_standard_layout();
        let query_norms: Vec<f64> = queries.rows().into_iter().map(|q| norm(&q)).collect();
        let blocks: Vec<BlockHits> = (0..self.reader.n_blocks())
            .into_par_iter()
            .map(|block_idx| {
                let block = self.reader.block(block_idx).map_err(IndexError::reader)?;
                best_of_block(&block, queries.view(), &query_norms, k, filter)
                    .map_err(|row| self.name_row(block_idx, row))
            })
            .collect::<Result<_, IndexError>>()?;
        Ok(merge(blocks, queries.nrows(), k))
    }
}

impl<R: FeatureReader> ExactIndex<'_, R> {
    /// The error for a row that is not finite, with its place in the whole store.
    fn name_row(&self, block_idx: usize, row_in_block: usize) -> IndexError {
        let n_rows = |block_idx| self.reader.block(block_idx).map(|block| block.ids.len() as u64);
        let before = (0..block_idx).try_fold(0, |sum, i| n_rows(i).map(|n| sum + n));
        match before {
            Ok(before) => IndexError::RowNotFinite { row: before + row_in_block as u64 },
            Err(error) => IndexError::reader(error),
        }
    }
}

/// Hits of one block; rows count from the block's first.
struct BlockHits {
    n_rows: usize,
    /// Per query.
    hits: Vec<Vec<Hit>>,
}

/// The k best rows of one block for every query, scored in f64; on failure the row that is not finite.
fn best_of_block(
    block: &Features<'_>,
    queries: ArrayView2<'_, f32>,
    query_norms: &[f64],
    k: usize,
    filter: &Filter,
) -> Result<BlockHits, usize> {
    let standard = block.rows.as_standard_layout();
    let row_norms: Vec<f64> = standard.rows().into_iter().map(|x| norm(&x)).collect();
    if let Some(row) = row_norms.iter().position(|n| !n.is_finite()) {
        return Err(row);
    }
    let (n_rows, gamma) = (row_norms.len(), gamma(queries.ncols()));
    let allowed: Vec<usize> = (0..n_rows).filter(|&n| filter.is_all() || filter.allows(block.ids[n])).collect();
    if allowed.is_empty() {
        return Ok(BlockHits { n_rows, hits: vec![Vec::new(); queries.nrows()] });
    }
    let mut hits = Vec::with_capacity(queries.nrows());
    for start in (0..queries.nrows()).step_by(QUERY_GROUP) {
        let group = queries.slice(s![start..(start + QUERY_GROUP).min(queries.nrows()), ..]); // [G, dim]
        let scores = scores(group, standard.view()); // [G, n]
        for (line, i) in scores.rows().into_iter().zip(start..) {
            let (query, query_norm) = (queries.row(i), query_norms[i]);
            let bound = |n: usize| gamma * query_norm * row_norms[n];
            let query = query.as_slice().expect("queries are in standard layout");
            let line = line.as_slice().expect("scores are in standard layout");
            let mut best: Vec<Hit> = candidates(line, &allowed, bound, k)
                .into_iter()
                .map(|n| {
                    let row = standard.row(n);
                    let score = sum::dot(query, row.as_slice().expect("rows are in standard layout"));
                    Hit { row: n as u64, id: block.ids[n], score }
                })
                .collect();
            best.sort_unstable_by(Hit::rank);
            best.truncate(k);
            hits.push(best);
        }
    }
    Ok(BlockHits { n_rows, hits })
}

/// `[G, dim] · [n, dim]ᵀ → [G, n]` in f32.
fn scores(queries: ArrayView2<'_, f32>, rows: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut scores = Array2::zeros((queries.nrows(), rows.nrows()));
    if queries.nrows() > FEW_QUERIES {
        gemm(1.0, rows, queries.t(), 0.0, scores.view_mut().reversed_axes(), Threads::One);
        return scores;
    }
    for (row, mut column) in rows.rows().into_iter().zip(scores.columns_mut()) {
        let row = row.as_slice().expect("rows are in standard layout");
        for (query, score) in queries.rows().into_iter().zip(&mut column) {
            *score = dot(query.as_slice().expect("queries are in standard layout"), row);
        }
    }
    scores
}

/// Rows of `allowed` that may be among its `k` best: their upper end reaches the k-th best lower end.
fn candidates(scores: &[f32], allowed: &[usize], bound: impl Fn(usize) -> f64, k: usize) -> Vec<usize> {
    let end = |n: usize, sign: f64| {
        let score = f64::from(scores[n]);
        // An f32 sum that overflowed says nothing: the row stays a candidate and lifts no threshold.
        if score.is_finite() { score + sign * bound(n) } else { sign * f64::INFINITY }
    };
    if allowed.len() <= k {
        return allowed.to_vec();
    }
    let mut lower: Vec<f64> = allowed.iter().map(|&n| end(n, -1.0)).collect();
    let (_, &mut threshold, _) = lower.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    allowed.iter().copied().filter(|&n| end(n, 1.0) >= threshold).collect()
}

/// Relative error bound of an f32 dot product. Two terms more than there are, which covers the f64 sums beside it and
/// results that are too small for f32's full precision.
fn gamma(dim: usize) -> f64 {
    let error = (dim + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
    if error < 0.5 { error / (1.0 - error) } else { f64::INFINITY }
}

fn norm(x: &ndarray::ArrayView1<'_, f32>) -> f64 {
    sum_squares(x.as_slice().expect("rows are in standard layout")).sqrt()
}

/// Joins the blocks in their order.
fn merge(blocks: Vec<BlockHits>, n_queries: usize, k: usize) -> Vec<Vec<Hit>> {
    let mut best: Vec<Vec<Hit>> = vec![Vec::new(); n_queries];
    let mut first_row = 0;
    for block in blocks {
        for (all, some) in best.iter_mut().zip(block.hits) {
            all.extend(some.into_iter().map(|hit| Hit { row: first_row + hit.row, ..hit }));
            // Kept short as we go, so that memory does not grow with the number of blocks.
            if all.len() >= 4 * k {
                all.sort_unstable_by(Hit::rank);
                all.truncate(k);
            }
        }
        first_row += block.n_rows as u64;
    }
    for all in &mut best {
        all.sort_unstable_by(Hit::rank);
        all.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_within_the_error_of_the_kth_stays_a_candidate() {
        let (scores, all) = ([1.0, 0.5, 0.999, 0.2], [0, 1, 2, 3]);
        assert_eq!(candidates(&scores, &all, |_| 0.0, 1), [0]);
        assert_eq!(candidates(&scores, &all, |_| 0.001, 1), [0, 2]);
        assert_eq!(candidates(&scores, &all, |_| 0.001, 2), [0, 2]);
        assert_eq!(candidates(&scores, &all, |_| 0.25, 2), [0, 1, 2]);
        assert_eq!(candidates(&[1.0, f32::NAN, f32::INFINITY, 0.0], &all, |_| 0.0, 1), [0, 1, 2]);
        assert_eq!(candidates(&scores, &all, |_| 0.0, 4), all);
        assert_eq!(candidates(&scores, &[1, 3], |_| 0.0, 1), [1]);
    }

    #[test]
    fn the_bound_covers_an_adversarial_sum() {
        // 4,096 terms that f32 rounds the same way each: one, then many halves of its last bit.
        let (dim, tiny) = (4096, f32::EPSILON / 2.0);
        let x: Vec<f32> = std::iter::once(1.0).chain(std::iter::repeat_n(tiny, dim - 1)).collect();
        let ones = vec![1.0f32; dim];
        let (single, exact) = (x.iter().sum::<f32>(), sum::dot(&x, &ones));
        assert_eq!(single, 1.0, "f32 from left to right loses every tiny term");
        let norms = sum::dot(&x, &x).sqrt() * sum::dot(&ones, &ones).sqrt();
        assert!((exact - f64::from(single)).abs() <= gamma(dim) * norms);
        assert!(gamma(1 << 25).is_infinite());
    }
}
