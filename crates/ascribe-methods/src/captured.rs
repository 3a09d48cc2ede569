//! Gradients from captured activations, and products with them, streamed over examples: the hot path of every method that
//! does not project. Here never lives: curvature (see `kron`), projection, files.
//!
//! A gradient of one layer is `∂ℓ/∂W = Σ_t δ_t x_tᵀ`. It is formed a few rows of `W` at a time, for a group of examples, and
//! meets all vectors in one product while it is still in cache; no row of all parameters is ever stored, unless it is asked
//! for. Every number is a chain of f32 multiply-adds over at most [`BLOCK`] parameters, the chains are added in f64 in the
//! order of the parameters. So a score depends on its example and its vector alone: not on the company of either, nor threads.

mod pairs;
mod sketched;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use ascribe_core::Progress;
use ascribe_linalg::elementwise;
use ascribe_linalg::packed::{PackedMatrix, Precision, Rows, multiply_views};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer, dim};

pub use pairs::pair_scores;
pub(crate) use pairs::{Scales, one_position, scaled_pair_scores};
pub use sketched::sketched;

/// Parameters that one product takes at a time, in whole rows of a layer's matrix: 64 gradients of it are 1 MB.
pub const BLOCK: usize = 4096;

/// Captured activations that one task holds, at most (unless eight examples are more).
const CHUNK_BYTES: usize = 48 << 20;

/// Examples of one task, at least and at most. Below, packed vectors are read from memory too often.
const CHUNK: std::ops::RangeInclusive<usize> = 8..=128;

/// Gradients of `examples`, one flat row each: `[n, P]`. Cost: the source's pass and `2·T·P` per example.
///
/// # Errors
/// The source's; captures that do not fit its layers; a gradient that is not finite, its example and layer named.
pub fn gradients(source: &dyn CaptureSource, examples: &[u32], labels: Labels) -> Result<Array2<f32>, MethodError> {
    check_examples(source, examples)?;
    let width = dim(source.layers());
    let mut out = Array2::zeros((examples.len(), width));
    if width == 0 || examples.is_empty() {
        return Ok(out);
    }
    let height = chunk_len(source, labels, CHUNK_BYTES, CHUNK)?;
    out.axis_chunks_iter_mut(ndarray::Axis(0), height)
        .into_par_iter()
        .zip(examples.par_chunks(height))
        .try_for_each_init(Captured::default, |captured, (mut rows, ids)| {
            capture(source, ids, labels, captured)?;
            for e in 0..ids.len() {
                let mut row = rows.row_mut(e);
                let row = row.as_slice_mut().expect("a fresh matrix has contiguous rows");
                let mut start = 0;
                for (l, layer) in source.layers().iter().enumerate() {
                    gradient(captured, l, e, 0..layer.n_out, &mut row[start..start + layer.len()]);
                    start += layer.len();
                }
            }
            check_rows(rows.view(), source.layers(), ids)
        })?;
    Ok(out)
}

/// Products of every example's gradient with every vector: `[R, N]`, `out[r, i] = ⟨v_r, g_i⟩`.
///
/// `vectors` is `[R, P]`; a query's gradient for plain dot products, `H⁻¹q` for influence. Bytes depend neither on threads nor
/// on the other vectors. Cost: one pass of the source, `2·(R + T)·P` per example; memory: a packed copy of the vectors, `4·R·N`
/// bytes of scores, about 50 MB of captures per thread.
///
/// # Errors
/// Vectors of another length or not finite; the source's; a score that is not finite, its example named; a request to stop.
pub fn score(
    source: &dyn CaptureSource,
    vectors: ArrayView2<'_, f32>,
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Array2<f32>, MethodError> {
    let packed = PackedVectors::new(source.layers(), vectors)?;
    let n = source.len();
    progress.start("score gradients", n as u64, "examples");
    let parts = stream(source, labels, progress, |ids, captured| {
        let scores = packed.score(source.layers(), captured);
        finite_scores(&scores, source.layers(), captured, ids)?;
        Ok((ids[0] as usize, scores))
    })?;
    let mut out = Array2::<f32>::zeros((vectors.nrows(), n));
    for (first, scores) in parts {
        let mut target = out.slice_mut(s![.., first..first + scores.nrows()]);
        ndarray::Zip::from(&mut target).and(scores.t()).for_each(|to, &v| *to = v as f32);
    }
    progress.finish("gradients scored");
    Ok(out)
}

/// Squared length `‖g_i‖²` of every gradient, `[N]`. A layer that sees one position gives `‖x‖²‖δ‖²` and its gradient is not formed.
/// Cost: one pass of the source, at most `2·T·P` per example.
///
/// # Errors
/// As [`score`].
pub fn square_norms(
    source: &dyn CaptureSource,
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Vec<f64>, MethodError> {
    progress.start("gradient norms", source.len() as u64, "examples");
    let parts = stream(source, labels, progress, |ids, captured| {
        let mut buffer = Vec::new();
        let norm = |e: usize| {
            let mut total = 0.0;
            for (l, layer) in source.layers().iter().enumerate() {
                let (x, delta) = captured.rows(l, e);
                if let (1, Some(x), Some(delta)) = (x.nrows(), x.to_slice(), delta.to_slice()) {
                    total += elementwise::sum_squares(x) * elementwise::sum_squares(delta);
                    continue;
                }
                for rows in blocks(layer) {
                    buffer.resize(rows.len() * layer.n_in, 0.0);
                    gradient(captured, l, e, rows, &mut buffer);
                    total += elementwise::sum_squares(&buffer);
                }
            }
            total
        };
        let norms: Vec<f64> = (0..ids.len()).map(norm).collect();
        match norms.iter().position(|v| !v.is_finite()) {
            None => Ok(norms),
            Some(e) => Err(not_finite(ids[e], "all layers", norms[e])),
        }
    })?;
    progress.finish("norms taken");
    Ok(parts.concat())
}

/// An inverse curvature as [`self_scores`] asks for it: `[n, P] → [n, P]`.
pub type Solve<'a> = dyn Fn(ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> + Sync + 'a;

/// `⟨g_i, v_i⟩` with `v_i = solve(g_i)`, `[N]`: self-influence through any inverse curvature.
///
/// `solve` gets gradients `[n, P]` and returns as many vectors; it is called from many threads. For curvature that rotates
/// gradients (K-FAC) there are cheaper routes than this one. Memory: `12·P` bytes per example of a chunk.
///
/// # Errors
/// As [`score`]; those of `solve`; vectors of another shape.
pub fn self_scores(
    source: &dyn CaptureSource,
    labels: Labels,
    solve: &Solve<'_>,
    progress: &dyn Progress,
) -> Result<Vec<f64>, MethodError> {
    progress.start("self-influence", source.len() as u64, "examples");
    let width = dim(source.layers());
    let parts = stream(source, labels, progress, |ids, captured| {
        let mut rows = Array2::<f32>::zeros((ids.len(), width));
        for (e, mut row) in rows.rows_mut().into_iter().enumerate() {
            let row = row.as_slice_mut().expect("a fresh matrix has contiguous rows");
            let mut start = 0;
            for (l, layer) in source.layers().iter().enumerate() {
                gradient(captured, l, e, 0..layer.n_out, &mut row[start..start + layer.len()]);
                start += layer.len();
            }
        }
        check_rows(rows.view(), source.layers(), ids)?;
        let solved = solve(rows.view())?;
        if solved.dim() != rows.dim() {
            return Err(MethodError::shape("solved gradients", rows.dim(), solved.dim()));
        }
        let product = |(g, v): (ndarray::ArrayView1<'_, f32>, ndarray::ArrayView1<'_, f32>)| {
            ascribe_linalg::sum::sum_by(width, |p| f64::from(g[p]) * f64::from(v[p]))
        };
        Ok(rows.rows().into_iter().zip(solved.rows()).map(product).collect::<Vec<f64>>())
    })?;
    progress.finish("self-influence taken");
    Ok(parts.concat())
}

/// Runs `work` on captures of all examples, a chunk per call, chunks side by side; results come in the order of examples.
///
/// The cut into chunks follows from the source alone. `work` gets the numbers of its examples and what was captured of them.
///
/// # Errors
/// The source's, those of `work` (the first example's), [`MethodError::Stopped`].
pub fn stream<T: Send>(
    source: &dyn CaptureSource,
    labels: Labels,
    progress: &dyn Progress,
    work: impl Fn(&[u32], &Captured) -> Result<T, MethodError> + Sync,
) -> Result<Vec<T>, MethodError> {
    if source.is_empty() {
        return Ok(Vec::new());
    }
    let ids = all_examples(source)?;
    let spare = Spare::default();
    let results: Vec<Result<T, MethodError>> = ids
        .par_chunks(chunk_len(source, labels, CHUNK_BYTES, CHUNK)?)
        .map(|ids| {
            if progress.stop_requested() {
                return Err(MethodError::Stopped);
            }
            let mut captured = spare.take();
            capture(source, ids, labels, &mut captured)?;
            let result = work(ids, &captured)?;
            spare.give(captured);
            progress.advance(ids.len() as u64);
            Ok(result)
        })
        .collect();
    results.into_iter().collect()
}

/// [`stream`] for one row per example: `work` fills its examples' rows of `out` `[N, width]`, which is the only memory of results.
///
/// # Errors
/// The source's, those of `work` (the first example's).
fn stream_into(
    source: &dyn CaptureSource,
    labels: Labels,
    mut out: ArrayViewMut2<'_, f32>,
    work: impl Fn(&[u32], &Captured, ArrayViewMut2<'_, f32>) -> Result<(), MethodError> + Sync,
) -> Result<(), MethodError> {
    if source.is_empty() {
        return Ok(());
    }
    let ids = all_examples(source)?;
    let spare = Spare::default();
    let height = chunk_len(source, labels, CHUNK_BYTES, CHUNK)?;
    let results: Vec<Result<(), MethodError>> = out
        .axis_chunks_iter_mut(ndarray::Axis(0), height)
        .into_par_iter()
        .zip(ids.par_chunks(height))
        .map(|(rows, ids)| {
            let mut captured = spare.take();
            capture(source, ids, labels, &mut captured)?;
            work(ids, &captured, rows)?;
            spare.give(captured);
            Ok(())
        })
        .collect();
    results.into_iter().collect()
}

/// Rows `rows` of `∂ℓ/∂W` of layer `l`, example `e`, row-major into `out`. An example without positions has gradient zero.
pub(crate) fn gradient(captured: &Captured, l: usize, e: usize, rows: std::ops::Range<usize>, out: &mut [f32]) {
    let (x, delta) = captured.rows(l, e);
    let delta = delta.slice_move(s![.., rows]);
    match x.nrows() {
        0 => out.fill(0.0),
        1 => {
            let x = x.row(0);
            let x = x.to_slice().expect("checked captures have contiguous rows");
            let delta = delta.row(0);
            let delta = delta.to_slice().expect("checked captures have contiguous rows");
            elementwise::outer(delta, x, out);
        }
        _ => {
            let shape = (delta.ncols(), x.ncols());
            let out = ArrayViewMut2::from_shape(shape, out).expect("a block is as long as its rows");
            multiply_views(delta.t(), x, 0.0, out);
        }
    }
}

/// Rows of a layer's matrix, at most about [`BLOCK`] numbers at a time.
pub(crate) fn blocks(layer: &Layer) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let (n_out, height) = (layer.n_out, (BLOCK / layer.n_in.max(1)).max(1));
    (0..n_out).step_by(height).map(move |first| first..(first + height).min(n_out))
}

/// Captures `ids` into `out` and checks that it fits the source's layers.
pub(crate) fn capture(
    source: &dyn CaptureSource,
    ids: &[u32],
    labels: Labels,
    out: &mut Captured,
) -> Result<(), MethodError> {
    source.capture(ids, labels, out)?;
    let layers = source.layers();
    let counts = (out.starts.len(), out.layers.len(), out.losses.len());
    if counts != (layers.len(), layers.len(), ids.len()) {
        return Err(MethodError::shape("layers, layers and examples of a capture", (layers.len(), ids.len()), counts));
    }
    for ((layer, seen), starts) in layers.iter().zip(&out.layers).zip(&out.starts) {
        let rows = starts.last().copied().unwrap_or(0);
        let expected = ((rows, layer.n_in), (rows, layer.n_out));
        let found = (seen.x.dim(), seen.delta.dim());
        let ordered = starts.len() == ids.len() + 1 && starts[0] == 0 && starts.is_sorted();
        if !ordered || expected != found {
            return Err(MethodError::shape("shapes of x and δ of a captured layer", expected, found));
        }
        if !seen.x.is_standard_layout() || !seen.delta.is_standard_layout() {
            return Err(MethodError::shape("layout of a captured layer", "row-major", "another"));
        }
    }
    Ok(())
}

/// Numbers of all examples.
pub(crate) fn all_examples(source: &dyn CaptureSource) -> Result<Vec<u32>, MethodError> {
    let n = u32::try_from(source.len());
    let n = n.map_err(|_| MethodError::shape("examples of a source", "fewer than 2^32", source.len()))?;
    Ok((0..n).collect())
}

fn check_examples(source: &dyn CaptureSource, examples: &[u32]) -> Result<(), MethodError> {
    match examples.iter().find(|&&e| e as usize >= source.len()) {
        None => Ok(()),
        Some(e) => Err(MethodError::shape("number of an example", format!("below {}", source.len()), e)),
    }
}

/// Memory of captures that were worked on: fresh pages cost as much as filling them.
#[derive(Default)]
pub(crate) struct Spare(Mutex<Vec<Captured>>);

impl Spare {
    pub(crate) fn take(&self) -> Captured {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, captured: Captured) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(captured);
    }
}

/// Examples per task: as many as fit into `bytes` if all take what the first one takes. Needs a source that is not empty.
pub(crate) fn chunk_len(
    source: &dyn CaptureSource,
    labels: Labels,
    bytes: usize,
    bounds: std::ops::RangeInclusive<usize>,
) -> Result<usize, MethodError> {
    let mut first = Captured::default();
    capture(source, &[0], labels, &mut first)?;
    let own: usize = first.layers.iter().map(|l| 4 * (l.x.len() + l.delta.len())).sum();
    Ok((bytes / own.max(1)).clamp(*bounds.start(), *bounds.end()))
}

/// [`stream`] for results too large to be kept: chunks of `height` examples run side by side, then `fold` takes their results
/// in the order of examples, some at a time.
pub(crate) fn stream_waves<T: Send>(
    source: &dyn CaptureSource,
    labels: Labels,
    height: usize,
    progress: &dyn Progress,
    work: impl Fn(&[u32], &Captured) -> Result<T, MethodError> + Sync,
    mut fold: impl FnMut(Vec<T>),
) -> Result<(), MethodError> {
    let ids = all_examples(source)?;
    let spare = Spare::default();
    for wave in ids.chunks(height * rayon::current_num_threads()) {
        if progress.stop_requested() {
            return Err(MethodError::Stopped);
        }
        let results: Vec<Result<T, MethodError>> = wave
            .par_chunks(height)
            .map(|ids| {
                let mut captured = spare.take();
                capture(source, ids, labels, &mut captured)?;
                let result = work(ids, &captured)?;
                spare.give(captured);
                Ok(result)
            })
            .collect();
        fold(results.into_iter().collect::<Result<_, _>>()?);
        progress.advance(wave.len() as u64);
    }
    Ok(())
}

/// Vectors laid out as right operands, one matrix `[block, R]` per block of parameters.
struct PackedVectors {
    n_vectors: usize,
    /// Per layer, per block of [`blocks`].
    parts: Vec<Vec<PackedMatrix>>,
}

impl PackedVectors {
    fn new(layers: &[Layer], vectors: ArrayView2<'_, f32>) -> Result<Self, MethodError> {
        check_vectors(layers, vectors)?;
        let mut start = 0;
        let mut parts = Vec::with_capacity(layers.len());
        for layer in layers {
            let own = vectors.slice(s![.., start..start + layer.len()]);
            let ranges: Vec<_> = blocks(layer).collect();
            let pack = |rows: std::ops::Range<usize>| {
                let block = own.slice(s![.., rows.start * layer.n_in..rows.end * layer.n_in]);
                PackedMatrix::new(Precision::F32, block.t())
            };
            parts.push(ranges.into_par_iter().map(pack).collect());
            start += layer.len();
        }
        Ok(Self { n_vectors: vectors.nrows(), parts })
    }

    /// `[n, R]` for the examples of one capture.
    fn score(&self, layers: &[Layer], captured: &Captured) -> Array2<f64> {
        let (n, r) = (captured.n_examples(), self.n_vectors);
        let mut total = Array2::<f64>::zeros((n, r));
        if r == 0 {
            return total;
        }
        let mut part = vec![0.0f32; n * r];
        let mut rows = Vec::new();
        for (l, layer) in layers.iter().enumerate() {
            for (block, packed) in blocks(layer).zip(&self.parts[l]) {
                // G [n, block] · Vᵀ [block, R] → [n, R]
                let width = block.len() * layer.n_in;
                rows.resize(n * width, 0.0);
                for (e, row) in rows.chunks_exact_mut(width).enumerate() {
                    gradient(captured, l, e, block.clone(), row);
                }
                packed.multiply(&Rows::new(n, width, width, &rows), 0.0, &mut part, r);
                total.iter_mut().zip(&part).for_each(|(to, &v)| *to += f64::from(v));
            }
        }
        total
    }
}

/// Refuses vectors that do not fit the layers or are not finite.
///
/// # Errors
/// [`MethodError::Shape`], [`MethodError::NotFinite`] with vector and layer.
pub(crate) fn check_vectors(layers: &[Layer], vectors: ArrayView2<'_, f32>) -> Result<(), MethodError> {
    if vectors.ncols() != dim(layers) {
        return Err(MethodError::shape("length of a flat vector", dim(layers), vectors.ncols()));
    }
    match vectors.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((row, column), &v)) => Err(MethodError::NotFinite {
            rows: "query vectors",
            row,
            block_idx: 0,
            example: format!("query {row}"),
            module: layer_at(layers, column).to_owned(),
            found: f64::from(v),
        }),
    }
}

/// Name of the layer that holds place `column` of a flat vector.
fn layer_at(layers: &[Layer], column: usize) -> &str {
    let mut end = 0;
    let layer = layers.iter().find(|layer| {
        end += layer.len();
        column < end
    });
    layer.map_or("behind all layers", |layer| &layer.name)
}

fn check_rows(rows: ArrayView2<'_, f32>, layers: &[Layer], ids: &[u32]) -> Result<(), MethodError> {
    for (row, &id) in rows.rows().into_iter().zip(ids) {
        if let Some((column, &v)) = row.indexed_iter().find(|(_, v)| !v.is_finite()) {
            return Err(not_finite(id, layer_at(layers, column), f64::from(v)));
        }
    }
    Ok(())
}

/// A score that is not finite is traced to the layer whose activations are not, if there is one.
fn finite_scores(scores: &Array2<f64>, layers: &[Layer], captured: &Captured, ids: &[u32]) -> Result<(), MethodError> {
    match scores.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((e, _), &found)) => Err(traced(layers, captured, ids, e, found)),
    }
}

/// [`finite_scores`] of rows that were made of gradients.
fn finite_rows(
    rows: ArrayView2<'_, f32>,
    layers: &[Layer],
    captured: &Captured,
    ids: &[u32],
) -> Result<(), MethodError> {
    match rows.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((e, _), &found)) => Err(traced(layers, captured, ids, e, f64::from(found))),
    }
}

fn traced(layers: &[Layer], captured: &Captured, ids: &[u32], e: usize, found: f64) -> MethodError {
    let broken = (0..layers.len()).find(|&l| {
        let (x, delta) = captured.rows(l, e);
        x.iter().chain(&delta).any(|v| !v.is_finite())
    });
    not_finite(ids[e], broken.map_or("all layers (an overflow)", |l| &layers[l].name), found)
}

/// A gradient of example `id` is not finite in `layer`.
pub(crate) fn not_finite(id: u32, layer: &str, found: f64) -> MethodError {
    MethodError::NotFinite {
        rows: "training gradients",
        row: id as usize,
        block_idx: 0,
        example: format!("example {id}"),
        module: layer.to_owned(),
        found,
    }
}
