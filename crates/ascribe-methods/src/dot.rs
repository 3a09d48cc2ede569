//! Inner products of query vectors with feature rows: the last step of every gradient method.
//!
//! Source: TracIn with one checkpoint (arXiv:2002.08484) when the query is a plain gradient; influence when it was
//! preconditioned first. Fits nothing; curvature lives in `block_fisher`.

use ascribe_core::{ExampleId, FeatureReader, Progress};
use ascribe_linalg::{Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::blocks::{self, Block, GROUP, ROWS};
use crate::error::MethodError;

/// Rows per product: with [`GROUP`] queries one task is a `32 × D × 128` product.
const TILE_ROWS: usize = 128;

/// Scores of every row against every query.
#[derive(Clone, Debug, PartialEq)]
pub struct ExampleScores {
    /// Ids of the columns, in the reader's order.
    pub examples: Vec<ExampleId>,
    /// `[Q, N]`, positive = proponent.
    pub values: Array2<f32>,
}

/// Scores every row against every query: `values[q, i] = w_i · ⟨query_q, row_i⟩`.
///
/// `queries` is `[Q, D]` f64 (a preconditioned or plain query gradient); `row_weights`, `[N]`, scales each row (`None` =
/// 1), as `block_fisher::row_weights` gives them. Returns `[Q, N]` in units of (query unit)·(row unit), narrowed to f32
/// once. Deterministic: bytes do not depend on threads, blocks, or other queries. Cost `2·Q·N·D`; memory `12·Q·N` bytes.
///
/// # Errors
/// Reader errors, shapes, NaN (row and module named).
pub fn score<R: FeatureReader>(
    reader: &R,
    queries: ArrayView2<'_, f64>,
    row_weights: Option<&[f64]>,
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    let n_rows = n_rows(reader)?;
    let mut values = Array2::<f32>::zeros((queries.nrows(), n_rows));
    let mut examples = Vec::with_capacity(n_rows);
    for_each_scores(reader, queries, row_weights, progress, |first_row, ids, scores| {
        examples.extend_from_slice(ids);
        let mut target = values.slice_mut(s![.., first_row..first_row + ids.len()]);
        ndarray::Zip::from(&mut target).and(&scores).for_each(|t, &v| *t = v as f32);
        Ok(())
    })?;
    Ok(ExampleScores { examples, values })
}

/// Streams the scores of [`score`] block by block: `take(first_row, ids, [Q, n] scores in f64)`.
///
/// For stores whose `[Q, N]` table would not fit: keep the best k, or write them out. Same bytes as [`score`] before the
/// narrowing to f32.
///
/// # Errors
/// As [`score`], and whatever `take` returns.
pub fn for_each_scores<R: FeatureReader>(
    reader: &R,
    queries: ArrayView2<'_, f64>,
    row_weights: Option<&[f64]>,
    progress: &dyn Progress,
    mut take: impl FnMut(usize, &[ExampleId], ArrayView2<'_, f64>) -> Result<(), MethodError>,
) -> Result<(), MethodError> {
    let dim = reader.spec().dim;
    if queries.ncols() != dim {
        return Err(MethodError::shape("columns of the query vectors", dim, queries.ncols()));
    }
    check_finite("query vectors", queries)?;
    if let Some(weights) = row_weights {
        let n_rows = n_rows(reader)?;
        if weights.len() != n_rows {
            return Err(MethodError::shape("row weights", n_rows, weights.len()));
        }
    }
    let groups = padded_groups(queries);
    let mut scores = Array2::<f64>::zeros((queries.nrows(), ROWS));
    progress.start("score", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        tiles(&groups, block, &mut scores);
        let n = block.ids.len();
        if let Some(weights) = row_weights {
            for (mut column, &w) in scores.axis_iter_mut(Axis(1)).zip(&weights[block.first_row..block.first_row + n]) {
                column *= w;
            }
        }
        take(block.first_row, block.ids, scores.slice(s![.., ..n]))
    })?;
    progress.finish("rows scored");
    Ok(())
}

/// Dataset-level scores: `[Q, D] · [K, D]ᵀ → [Q, K]`.
///
/// `sums` holds the exact per-dataset sums `G_k = Σ_{i∈k} ĝ_i` in f64. Since the score is linear in the row,
/// `values[q, k]` is exactly the sum of the example scores of dataset k. Cost `2·Q·K·D`.
///
/// # Errors
/// Shapes; NaN in either side.
pub fn dataset_scores(queries: ArrayView2<'_, f64>, sums: ArrayView2<'_, f64>) -> Result<Array2<f64>, MethodError> {
    if queries.ncols() != sums.ncols() {
        return Err(MethodError::shape("columns of the dataset sums", queries.ncols(), sums.ncols()));
    }
    check_finite("query vectors", queries)?;
    check_finite("dataset sums", sums)?;
    Ok(blocks::rows_times(queries, sums.t()))
}

/// Weighted sums of rows per dataset: `G_k = Σ_{i∈k} w_i ĝ_i`, `[K, D]` f64, rows added in the reader's order.
///
/// The dataset of a row is the one in its id. A store keeps the unweighted sums already; this one serves training-side
/// normalisation (`RelatIF`), and stores without sums. Cost `2·N·D`.
///
/// # Errors
/// Reader errors; a dataset ordinal of `n_datasets` or more; weights of another length.
pub fn dataset_sums<R: FeatureReader>(
    reader: &R,
    n_datasets: usize,
    row_weights: Option<&[f64]>,
    progress: &dyn Progress,
) -> Result<Array2<f64>, MethodError> {
    let n_rows = n_rows(reader)?;
    if row_weights.is_some_and(|w| w.len() != n_rows) {
        return Err(MethodError::shape("row weights", n_rows, row_weights.map_or(0, <[f64]>::len)));
    }
    let dim = reader.spec().dim;
    // Columns in stripes: each task adds all rows to its own stripe, in row order.
    const STRIPE: usize = 256;
    let mut stripes: Vec<Array2<f64>> =
        (0..dim.div_ceil(STRIPE)).map(|i| Array2::zeros((n_datasets, STRIPE.min(dim - i * STRIPE)))).collect();
    progress.start("sum per dataset", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        if let Some(id) = block.ids.iter().find(|id| id.dataset as usize >= n_datasets) {
            let found = format!("{} of example {id}", id.dataset);
            return Err(MethodError::shape("dataset ordinal", format!("below {n_datasets}"), found));
        }
        stripes.par_iter_mut().enumerate().for_each(|(i, stripe)| {
            let columns = block.rows.slice(s![.., i * STRIPE..i * STRIPE + stripe.ncols()]);
            for (row_idx, (id, row)) in block.ids.iter().zip(columns.rows()).enumerate() {
                let w = row_weights.map_or(1.0, |w| w[block.first_row + row_idx]);
                stripe.row_mut(id.dataset as usize).scaled_add(w, &row);
            }
        });
        Ok(())
    })?;
    progress.finish("rows summed");
    let views: Vec<_> = stripes.iter().map(|stripe| stripe.view()).collect();
    if views.is_empty() {
        return Ok(Array2::zeros((n_datasets, 0)));
    }
    ndarray::concatenate(Axis(1), &views).map_err(|e| MethodError::shape("stripes of dataset sums", dim, e.to_string()))
}

/// Refuses NaN and infinities with their place.
pub(crate) fn check_finite(what: &str, values: ArrayView2<'_, f64>) -> Result<(), MethodError> {
    match values.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((row, column), &found)) => Err(MethodError::BadValue { what: what.to_owned(), row, column, found }),
    }
}

/// The reader's row count as a `usize`.
pub(crate) fn n_rows<R: FeatureReader>(reader: &R) -> Result<usize, MethodError> {
    let n = reader.n_rows();
    usize::try_from(n).map_err(|_| MethodError::shape("rows of the reader", "fewer than 2^64 addresses", n))
}

/// Queries in groups of [`GROUP`], the last one padded with zeros: every product has one shape.
fn padded_groups(queries: ArrayView2<'_, f64>) -> Vec<Array2<f64>> {
    let pad = |chunk: ArrayView2<'_, f64>| {
        let mut group = Array2::zeros((GROUP, chunk.ncols()));
        group.slice_mut(s![..chunk.nrows(), ..]).assign(&chunk);
        group
    };
    queries.axis_chunks_iter(Axis(0), GROUP).map(pad).collect()
}

/// `scores[q, i] = ⟨query_q, row_i⟩` for one block; `scores` is `[Q, ROWS]`.
fn tiles(groups: &[Array2<f64>], block: &Block<'_>, scores: &mut Array2<f64>) {
    let n_tiles = ROWS / TILE_ROWS;
    let products: Vec<Array2<f64>> = (0..groups.len() * n_tiles)
        .into_par_iter()
        .map(|task| {
            let (group, tile) = (&groups[task / n_tiles], task % n_tiles);
            let rows = block.rows.slice(s![tile * TILE_ROWS..(tile + 1) * TILE_ROWS, ..]);
            let mut product = Array2::zeros((TILE_ROWS, GROUP));
            // [128, D] · [D, 32] → [128, 32]
            gemm_f64(1.0, rows, group.t(), 0.0, product.view_mut(), Threads::One);
            product
        })
        .collect();
    for (task, product) in products.iter().enumerate() {
        let (first_query, first) = (task / n_tiles * GROUP, task % n_tiles * TILE_ROWS);
        let n_queries = GROUP.min(scores.nrows() - first_query);
        let target = s![first_query..first_query + n_queries, first..first + TILE_ROWS];
        scores.slice_mut(target).assign(&product.slice(s![.., ..n_queries]).t());
    }
}
