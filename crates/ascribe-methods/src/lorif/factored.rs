//! Scores of factored rows against factored queries, module by module on whichever route is cheaper.

use ascribe_core::{ExampleId, FeatureReader, Progress};
use ascribe_linalg::{Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::layout::{Layout, Module};
use super::low_rank::LowRank;
use crate::block_fisher::{self, Preconditioner};
use crate::blocks::{self, Block, GROUP, ROWS};
use crate::dot::{self, ExampleScores};
use crate::error::MethodError;

/// One group of queries, ready for one module.
enum Side {
    /// `(H + λ)⁻¹ q` multiplied out, `[GROUP, o·i]`.
    Dense(Array2<f64>),
    /// Factors, column by column: `left[c] [GROUP, o]`, `right[c] [GROUP, i]`, and `Vᵀq` times what the inverse takes away, `[GROUP, r]`.
    Factors { left: Vec<Array2<f64>>, right: Vec<Array2<f64>>, inner: Array2<f64> },
}

/// Block-Fisher scores with low-rank curvature, straight from the factors where that is cheaper: `[Q, N]`, positive =
/// proponent. Equal to `dot::score` over [`Expanded`](super::Expanded) rows with preconditioned queries, to rounding.
///
/// `reader` and `queries` `[Q, stored]` hold factored rows of `layout`; `by` was fitted on rows multiplied out. Per pair and
/// module the factors cost `2c²(o + i) + 2r` and the dense route `2·o·i`; each module takes the cheaper one. Bytes depend on
/// neither threads, blocks nor the other queries.
///
/// # Errors
/// Columns that do not fit each other; reader errors; NaN.
pub fn score<R: FeatureReader>(
    reader: &R,
    queries: ArrayView2<'_, f32>,
    layout: &Layout,
    by: &LowRank,
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    if reader.spec().columns != layout.stored_columns() || by.columns() != layout.dense_columns() {
        let found = (reader.spec().columns.len(), by.columns().len());
        let expected = format!("{} modules as laid out", layout.modules().len());
        return Err(MethodError::shape("column groups of factored rows and curvature", expected, found));
    }
    let stored = blocks::query_rows(queries, &reader.spec().columns)?;
    let dense = layout.expand_rows(queries)?;
    let solved = block_fisher::precondition(by, dense.view())?;
    let dense = dense.mapv(f64::from);
    let starts: Vec<usize> = (0..queries.nrows()).step_by(GROUP).collect();
    let groups: Vec<Vec<Side>> = starts
        .par_iter()
        .map(|&q| {
            let rows = q..(q + GROUP).min(queries.nrows());
            let cut = |table: &Array2<f64>, start: usize, len: usize| {
                padded(table.slice(s![rows.clone(), start..start + len]))
            };
            let side = |(m, module): (usize, &Module)| match module.shape {
                Some(shape) if factors_pay(shape, layout.rank(), by.values(m).len()) => {
                    let stored = cut(&stored, module.stored.start, module.stored.len);
                    let mut inner =
                        blocks::rows_times(cut(&dense, module.dense.start, module.dense.len).view(), by.vectors(m).t());
                    for (mut column, taken) in inner.axis_iter_mut(Axis(1)).zip(by.taken(m)) {
                        column *= taken;
                    }
                    let (left, right) = columns_of(stored.view(), shape, layout.rank());
                    Side::Factors { left, right, inner }
                }
                _ => Side::Dense(cut(&solved, module.dense.start, module.dense.len)),
            };
            layout.modules().iter().enumerate().map(side).collect()
        })
        .collect();
    let mut values = Array2::<f32>::zeros((queries.nrows(), dot::n_rows(reader)?));
    let mut examples: Vec<ExampleId> = Vec::with_capacity(values.ncols());
    progress.start("score", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        let scores = block_scores(&groups, layout, by, block);
        for (group, scores) in scores.iter().enumerate() {
            for (i, row) in scores.rows().into_iter().enumerate().take(queries.nrows() - group * GROUP) {
                let columns = s![group * GROUP + i, block.first_row..block.first_row + block.ids.len()];
                values.slice_mut(columns).iter_mut().zip(row).for_each(|(to, &v)| *to = v as f32);
            }
        }
        examples.extend_from_slice(block.ids);
        Ok(())
    })?;
    progress.finish("rows scored");
    Ok(ExampleScores { examples, values })
}

/// Whether the factors of a module of this shape cost fewer operations per pair than its matrix.
fn factors_pay([o, i]: [usize; 2], rank: usize, eigenpairs: usize) -> bool {
    rank * rank * (o + i) + eigenpairs < o * i
}

/// Scores `[GROUP, ROWS]` of every group of queries against a block of stored rows; modules are added in their order.
fn block_scores(groups: &[Vec<Side>], layout: &Layout, by: &LowRank, block: &Block<'_>) -> Vec<Array2<f64>> {
    let mut totals = vec![Array2::<f64>::zeros((GROUP, ROWS)); groups.len()];
    for (m, module) in layout.modules().iter().enumerate() {
        let stored = block.rows.slice(s![.., module.stored.start..module.stored.start + module.stored.len]);
        let floor = by.floor(m);
        if floor == 0.0 {
            continue; // a module of zeros
        }
        let dense = match module.shape {
            Some(shape) => multiplied_out(stored, shape, layout.rank()),
            None => stored.to_owned(),
        };
        let any_factors = groups.first().is_some_and(|sides| matches!(sides[m], Side::Factors { .. }));
        let (left, right, inner) = match module.shape {
            Some(shape) if any_factors => {
                let (left, right) = columns_of(stored, shape, layout.rank());
                (left, right, blocks::rows_times(dense.view(), by.vectors(m).t()))
            }
            _ => (vec![], vec![], Array2::zeros((0, 0))),
        };
        totals.par_iter_mut().zip(groups).for_each(|(total, sides)| match &sides[m] {
            Side::Dense(query) => gemm_f64(1.0, query.view(), dense.t(), 1.0, total.view_mut(), Threads::One),
            Side::Factors { left: q_left, right: q_right, inner: q_inner } => {
                gemm_f64(-1.0 / floor, q_inner.view(), inner.t(), 1.0, total.view_mut(), Threads::One);
                let (mut a, mut b) = (Array2::zeros((GROUP, ROWS)), Array2::zeros((GROUP, ROWS)));
                for (q_l, q_r) in q_left.iter().zip(q_right) {
                    for (l, r) in left.iter().zip(&right) {
                        gemm_f64(1.0, q_l.view(), l.t(), 0.0, a.view_mut(), Threads::One);
                        gemm_f64(1.0, q_r.view(), r.t(), 0.0, b.view_mut(), Threads::One);
                        ndarray::Zip::from(&mut *total).and(&a).and(&b).for_each(|t, a, b| *t += a * b / floor);
                    }
                }
            }
        });
    }
    totals
}

/// The columns of the factors of stored rows: `[n, o]` and `[n, i]`, one each per rank.
fn columns_of(stored: ArrayView2<'_, f64>, [o, i]: [usize; 2], rank: usize) -> (Vec<Array2<f64>>, Vec<Array2<f64>>) {
    let side = |start: usize, len: usize| {
        let column =
            |c: usize| Array2::from_shape_fn((stored.nrows(), len), |(n, j)| stored[(n, start + j * rank + c)]);
        (0..rank).map(column).collect()
    };
    (side(0, o), side(o * rank, i))
}

/// `L·Rᵀ` of stored rows, `[n, o·i]`. Rounded to f32 like rows that are multiplied out once and for all.
fn multiplied_out(stored: ArrayView2<'_, f64>, [o, i]: [usize; 2], rank: usize) -> Array2<f64> {
    let mut out = Array2::zeros((stored.nrows(), o * i));
    let rows = out.outer_iter_mut().into_par_iter().zip(stored.outer_iter().into_par_iter());
    rows.for_each(|(mut to, from)| {
        for a in 0..o {
            for b in 0..i {
                let product = |c| from[a * rank + c] as f32 * from[(o + b) * rank + c] as f32;
                to[a * i + b] = f64::from((0..rank).map(product).sum::<f32>());
            }
        }
    });
    out
}

/// `[GROUP, n]` with zeros below the last row.
fn padded(rows: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut out = Array2::zeros((GROUP, rows.ncols()));
    out.slice_mut(s![..rows.nrows(), ..]).assign(&rows);
    out
}
