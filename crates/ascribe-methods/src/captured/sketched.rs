//! Gradients through a sparse transform with one place for every parameter (TRAK's rows), none of them stored.

use ascribe_linalg::elementwise::dispatch::LANES;
use ascribe_linalg::elementwise::scatter_outer;
use ndarray::{Array2, ArrayViewMut2, s};

use super::pairs::single;
use super::{blocks, finite_rows, gradient, stream_into};
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, dim};

/// Examples whose gradients of one position are made side by side. Each is a sum of its own, so the width of a group is not part of the
/// results.
const ABREAST: usize = LANES;

/// `out[i, place_p] += sign_p · g_ip` for every parameter `p`, `[N, width]`: rows of all examples.
///
/// `table` has place and sign of every parameter. Numbers of a place are added in f32 in the order of the parameters, so a row depends
/// on its example alone. Cost: one pass of the source and `2·T·P` per example; where a layer sees one position its gradient `δ xᵀ` is
/// added number by number as it is made.
///
/// # Errors
/// A table of another length, or with a place outside of `width`; the source's; a row that is not finite, its example named.
pub fn sketched(
    source: &dyn CaptureSource,
    labels: Labels,
    table: &[(u32, f32)],
    width: usize,
) -> Result<Array2<f32>, MethodError> {
    if table.len() != dim(source.layers()) {
        return Err(MethodError::shape("places of a sparse transform", dim(source.layers()), table.len()));
    }
    if let Some((place, _)) = table.iter().find(|(place, _)| *place as usize >= width) {
        return Err(MethodError::shape("place of a sparse transform", format!("below {width}"), place));
    }
    let mut out = Array2::<f32>::zeros((source.len(), width));
    stream_into(source, labels, out.view_mut(), |ids, captured, mut rows| {
        if single(captured) {
            abreast(source, captured, table, rows.view_mut());
        } else {
            let mut buffer = Vec::new();
            for (e, mut row) in rows.rows_mut().into_iter().enumerate() {
                let row = row.as_slice_mut().expect("a fresh matrix has contiguous rows");
                one(source, captured, e, table, &mut buffer, row);
            }
        }
        finite_rows(rows.view(), source.layers(), captured, ids)
    })?;
    Ok(out)
}

/// Gradients of examples that every layer sees once, [`ABREAST`] of them at a time, number by number and never formed.
fn abreast(source: &dyn CaptureSource, captured: &Captured, table: &[(u32, f32)], mut rows: ArrayViewMut2<'_, f32>) {
    let (n, width) = rows.dim();
    let mut sums = vec![[0.0f32; ABREAST]; width];
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for first in (0..n).step_by(ABREAST) {
        let examples = first..n.min(first + ABREAST);
        sums.fill([0.0; ABREAST]);
        let mut rest = table;
        for (layer, seen) in source.layers().iter().zip(&captured.layers) {
            let (own, others) = rest.split_at(layer.len());
            rest = others;
            turned(&seen.x, examples.clone(), &mut inputs);
            turned(&seen.delta, examples.clone(), &mut outputs);
            scatter_outer(&outputs, &inputs, own, &mut sums);
        }
        for (e, mut row) in examples.clone().zip(rows.slice_mut(s![examples, ..]).rows_mut()) {
            row.iter_mut().zip(&sums).for_each(|(to, sum)| *to = sum[e - first]);
        }
    }
}

/// Columns of `examples` side by side, zeros behind the last one.
fn turned(rows: &Array2<f32>, examples: std::ops::Range<usize>, out: &mut Vec<[f32; ABREAST]>) {
    out.clear();
    out.resize(rows.ncols(), [0.0; ABREAST]);
    for (e, row) in rows.slice(s![examples, ..]).rows().into_iter().enumerate() {
        out.iter_mut().zip(row).for_each(|(to, &v)| to[e] = v);
    }
}

/// Adds the gradient of example `e` to `row`, a few rows of a layer's matrix at a time.
fn one(
    source: &dyn CaptureSource,
    captured: &Captured,
    e: usize,
    table: &[(u32, f32)],
    buffer: &mut Vec<f32>,
    row: &mut [f32],
) {
    let mut rest = table;
    for (l, layer) in source.layers().iter().enumerate() {
        let (own, others) = rest.split_at(layer.len());
        rest = others;
        for range in blocks(layer) {
            buffer.resize(range.len() * layer.n_in, 0.0);
            gradient(captured, l, e, range.clone(), buffer);
            let places = &own[range.start * layer.n_in..range.end * layer.n_in];
            places.iter().zip(&*buffer).for_each(|(&(place, sign), &v)| row[place as usize] += v * sign);
        }
    }
}
