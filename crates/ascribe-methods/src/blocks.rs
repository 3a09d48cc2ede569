//! Feature rows in blocks of a fixed height, in f64: the one door through which rows enter every method.
//!
//! A store may be cut into shards of any size; here its rows are laid again into blocks of [`ROWS`], the last one padded
//! with zeros. Every product below therefore has one shape, and its bytes cannot depend on the cut. NaN stops here.

use ascribe_core::{Column, ExampleId, FeatureReader, Progress};
use ascribe_linalg::{Threads, gemm_f64};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::error::MethodError;

/// Rows per block. 512 rows of 9,000 columns are 37 MB in f64.
pub(crate) const ROWS: usize = 512;

/// Rows per product with a square matrix, and queries per product with rows.
pub(crate) const GROUP: usize = 32;

/// Rows per product with a wide matrix where there are no more: a quarter of the cost. One response against every example is one row.
const FEW: usize = 8;

/// Columns from which on the product's bits do not depend on how many rows it has (a test compares them); in small products its inner
/// order does.
const WIDE: usize = 1_024;

/// Rows that one task converts.
const CONVERT_ROWS: usize = 16;

/// One block of rows.
pub(crate) struct Block<'a> {
    /// Number of its first row, counted over the whole reader.
    pub first_row: usize,
    /// Ids of its rows; shorter than [`ROWS`] in the last block.
    pub ids: &'a [ExampleId],
    /// `[ROWS, D]`; zeros below the last row.
    pub rows: ArrayView2<'a, f64>,
}

/// Where rows of the reader's current block come from, for messages.
struct Origin<'a> {
    block_idx: usize,
    first_row: usize,
    columns: &'a [Column],
}

/// Reads all rows in order and hands them on in blocks of [`ROWS`].
///
/// # Errors
/// The reader's; NaN or infinity; a row or id count that does not fit; `stop_requested`; whatever `work` returns.
pub(crate) fn for_each<R: FeatureReader>(
    reader: &R,
    progress: &dyn Progress,
    mut work: impl FnMut(&Block<'_>) -> Result<(), MethodError>,
) -> Result<usize, MethodError> {
    let spec = reader.spec();
    check_columns(&spec.columns, spec.dim)?;
    let mut buffer = Array2::<f64>::zeros((ROWS, spec.dim));
    let mut ids: Vec<ExampleId> = Vec::with_capacity(ROWS);
    let mut first_row = 0;
    for block_idx in 0..reader.n_blocks() {
        let features =
            reader.block(block_idx).map_err(|source| MethodError::Read { block_idx, source: Box::new(source) })?;
        if features.rows.ncols() != spec.dim || features.rows.nrows() != features.ids.len() {
            let expected = (features.ids.len(), spec.dim);
            return Err(MethodError::shape("shape of a block of feature rows", expected, features.rows.dim()));
        }
        let mut taken = 0;
        while taken < features.ids.len() {
            let (filled, take) = (ids.len(), (ROWS - ids.len()).min(features.ids.len() - taken));
            let source = features.rows.slice(s![taken..taken + take, ..]);
            let chunk_ids = &features.ids[taken..taken + take];
            let origin = Origin { block_idx, first_row: first_row + filled, columns: &spec.columns };
            convert(source, buffer.slice_mut(s![filled..filled + take, ..]), chunk_ids, &origin)?;
            ids.extend_from_slice(chunk_ids);
            taken += take;
            if ids.len() == ROWS {
                work(&Block { first_row, ids: &ids, rows: buffer.view() })?;
                first_row += ROWS;
                progress.advance(ROWS as u64);
                ids.clear();
            }
            if progress.stop_requested() {
                return Err(MethodError::Stopped);
            }
        }
    }
    if !ids.is_empty() {
        buffer.slice_mut(s![ids.len().., ..]).fill(0.0);
        work(&Block { first_row, ids: &ids, rows: buffer.view() })?;
        progress.advance(ids.len() as u64);
    }
    let found = first_row + ids.len();
    if found as u64 != reader.n_rows() {
        return Err(MethodError::RowCount { expected: reader.n_rows(), found: found as u64 });
    }
    Ok(found)
}

/// f32 → f64 with a look at every number.
fn convert(
    source: ArrayView2<'_, f32>,
    mut target: ArrayViewMut2<'_, f64>,
    ids: &[ExampleId],
    origin: &Origin<'_>,
) -> Result<(), MethodError> {
    let finite = target
        .axis_chunks_iter_mut(Axis(0), CONVERT_ROWS)
        .into_par_iter()
        .zip(source.axis_chunks_iter(Axis(0), CONVERT_ROWS).into_par_iter())
        .map(|(mut to, from)| {
            // A branch-free fold: `x·0` is NaN for NaN and ±∞ and zero for the rest.
            let mut probe = 0.0f32;
            ndarray::Zip::from(&mut to).and(&from).for_each(|t, &f| {
                probe += f * 0.0;
                *t = f64::from(f);
            });
            probe == 0.0
        })
        .reduce(|| true, |a, b| a && b);
    if finite {
        return Ok(());
    }
    let bad = source.indexed_iter().find(|(_, x)| !x.is_finite());
    let ((row, column), &found) = bad.expect("the fold above saw a number that is not finite");
    Err(MethodError::NotFinite {
        rows: "training rows",
        row: origin.first_row + row,
        block_idx: origin.block_idx,
        example: format!("example {}", ids[row]),
        module: module_of(origin.columns, column),
        found: f64::from(found),
    })
}

/// Query rows `[Q, D]` as f64, checked like training rows.
///
/// # Errors
/// [`MethodError::Shape`] when the width is not that of the columns, [`MethodError::NotFinite`].
pub(crate) fn query_rows(rows: ArrayView2<'_, f32>, columns: &[Column]) -> Result<Array2<f64>, MethodError> {
    let dim = columns.iter().map(|c| c.len).sum::<usize>();
    if rows.ncols() != dim {
        return Err(MethodError::shape("columns of the query rows", dim, rows.ncols()));
    }
    if let Some(((row, column), &found)) = rows.indexed_iter().find(|(_, x)| !x.is_finite()) {
        return Err(MethodError::NotFinite {
            rows: "query rows",
            row,
            block_idx: 0,
            example: format!("query {row}"),
            module: module_of(columns, column),
            found: f64::from(found),
        });
    }
    Ok(rows.mapv(f64::from))
}

/// Column groups must cover `0..dim` in order, without gaps.
///
/// # Errors
/// [`MethodError::Shape`], naming where the first gap is.
pub(crate) fn check_columns(columns: &[Column], dim: usize) -> Result<(), MethodError> {
    let mut next = 0;
    for column in columns {
        if column.start != next || column.len == 0 {
            let found = format!("{} at {} with {} columns", column.name, column.start, column.len);
            return Err(MethodError::shape("column groups", format!("a group that starts at {next}"), found));
        }
        next += column.len;
    }
    if next != dim {
        return Err(MethodError::shape("columns covered by the groups", dim, next));
    }
    Ok(())
}

/// `rows · matrix`, `[r, n] · [n, m] → [r, m]`, in groups of [`GROUP`] rows padded with zeros, so that a row's bytes do
/// not depend on its neighbours. `matrix` may be a transposed view.
pub(crate) fn rows_times(rows: ArrayView2<'_, f64>, matrix: ArrayView2<'_, f64>) -> Array2<f64> {
    let height = if rows.nrows() <= FEW && matrix.ncols() >= WIDE { FEW } else { GROUP };
    let mut out = Array2::zeros((rows.nrows(), matrix.ncols()));
    let mut group = Array2::<f64>::zeros((height, rows.ncols()));
    let mut product = Array2::<f64>::zeros((height, matrix.ncols()));
    for (chunk, mut target) in rows.axis_chunks_iter(Axis(0), height).zip(out.axis_chunks_iter_mut(Axis(0), height)) {
        group.slice_mut(s![..chunk.nrows(), ..]).assign(&chunk);
        group.slice_mut(s![chunk.nrows().., ..]).fill(0.0);
        gemm_f64(1.0, group.view(), matrix, 0.0, product.view_mut(), Threads::One);
        target.assign(&product.slice(s![..chunk.nrows(), ..]));
    }
    out
}

fn module_of(columns: &[Column], column: usize) -> String {
    let module = columns.iter().find(|c| (c.start..c.start + c.len).contains(&column));
    module.map_or_else(|| format!("column {column}"), |c| format!("{} (its column {})", c.name, column - c.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;

    #[test]
    fn a_row_does_not_depend_on_its_neighbours_or_their_number() {
        // Lengths of one and of several blocks of the product, matrices narrow and wide, as they lie and transposed.
        for (n, m) in [
            (1, 1),
            (16, 12),
            (4_224, 12),
            (256, 1_023),
            (1, 1_024),
            (128, 1_024),
            (128, 3_001),
            (700, 2_000),
            (4_224, 1_100),
        ] {
            let mut stream = Stream::new(7, "blocks/rows_times");
            let rows = Array2::from_shape_fn((45, n), |_| stream.normal());
            let matrix = Array2::from_shape_fn((m, n), |_| stream.normal());
            let standing = matrix.t().as_standard_layout().into_owned();
            for matrix in [matrix.t(), standing.view()] {
                let many = rows_times(rows.view(), matrix);
                for few in [1, 3, 8] {
                    let some = rows_times(rows.slice(s![45 - few.., ..]), matrix);
                    assert_eq!(some, many.slice(s![45 - few.., ..]), "{few} rows, {n} x {m}");
                }
            }
        }
    }
}
