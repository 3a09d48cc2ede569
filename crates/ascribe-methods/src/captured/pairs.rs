//! Products of gradients with gradients from activations alone, where every layer sees one position per example.
//!
//! There `∂ℓ/∂W = δ xᵀ`, so `⟨g, g'⟩ = Σ_l (x_l·x'_l)(δ_l·δ'_l)`: two small products per layer instead of one over its whole
//! matrix. 785 × 128 weights cost 913 multiply-adds a pair instead of 100,480, and no gradient is formed.

use ascribe_core::Progress;
use ascribe_linalg::packed::{PackedMatrix, Precision, Rows};
use ndarray::{Array2, s};

use super::{all_examples, capture, not_finite, stream};
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels};

/// `out[r, i] = ⟨q_r, g_i⟩` of every query's gradient with every training gradient, `[Q, N]`; `None` where a layer sees several
/// positions of an example (text, convolutions), and [`super::score`] is the cheaper way.
///
/// Each of the two products is a chain of f32 multiply-adds, products and layers are added in f64. Bytes depend neither on threads
/// nor on other queries or examples. Cost: one pass of both sources and `2·Σ_l (n_in + n_out)` per pair; memory: `4·Q·N` bytes of
/// scores, the queries' activations, captures of a chunk per thread.
///
/// # Errors
/// Sources of other layers; the sources'; a score that is not finite, its example named; a request to stop.
pub fn pair_scores(
    queries: &dyn CaptureSource,
    train: &dyn CaptureSource,
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Option<Array2<f32>>, MethodError> {
    let one = |l: &crate::source::Layer| vec![Scales { input: vec![1.0; l.n_in], output: vec![1.0; l.n_out] }];
    let terms: Vec<Vec<Scales>> = queries.layers().iter().map(one).collect();
    scaled_pair_scores(queries, train, &terms, labels, progress)
}

/// One term of a layer: what the queries' activations are multiplied by, number by number.
pub(crate) struct Scales {
    /// Of `x`, `[n_in]`.
    pub input: Vec<f64>,
    /// Of `δ`, `[n_out]`.
    pub output: Vec<f64>,
}

/// True if every layer sees one position of the first example; true without examples.
pub(crate) fn one_position(source: &dyn CaptureSource, labels: Labels) -> Result<bool, MethodError> {
    if source.is_empty() {
        return Ok(true);
    }
    let mut captured = Captured::default();
    capture(source, &[0], labels, &mut captured)?;
    Ok(single(&captured))
}

/// [`pair_scores`] with `Σ_l Σ_r (v_r⊙x_l·x'_l)(u_r⊙δ_l·δ'_l)` in the place of one product per layer: `terms`, one list per layer.
pub(crate) fn scaled_pair_scores(
    queries: &dyn CaptureSource,
    train: &dyn CaptureSource,
    terms: &[Vec<Scales>],
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Option<Array2<f32>>, MethodError> {
    if queries.layers() != train.layers() {
        let shapes = |source: &dyn CaptureSource| -> Vec<_> {
            source.layers().iter().map(|l| (l.name.clone(), l.n_out, l.n_in)).collect()
        };
        return Err(MethodError::shape("layers of the queries", shapes(train), shapes(queries)));
    }
    let (n_queries, n) = (queries.len(), train.len());
    if n_queries == 0 || n == 0 {
        return Ok(Some(Array2::zeros((n_queries, n))));
    }
    if !one_position(train, labels)? {
        return Ok(None);
    }
    let mut captured = Captured::default();
    capture(queries, &all_examples(queries)?, labels, &mut captured)?;
    if !single(&captured) {
        return Ok(None);
    }
    check_finite(&captured, train)?;
    let pack = |rows: &Array2<f32>, scales: &[f64]| {
        let mut rows = rows.to_owned();
        for mut row in rows.rows_mut() {
            row.iter_mut().zip(scales).for_each(|(v, &scale)| *v = (f64::from(*v) * scale) as f32);
        }
        PackedMatrix::new(Precision::F32, rows.t())
    };
    let layers = captured.layers.iter().zip(terms);
    let packed: Vec<Vec<[PackedMatrix; 2]>> = layers
        .map(|(l, terms)| terms.iter().map(|by| [pack(&l.x, &by.input), pack(&l.delta, &by.output)]).collect())
        .collect();
    progress.start("score gradients", n as u64, "examples");
    let parts = stream(train, labels, progress, |ids, captured| {
        if !single(captured) {
            return Ok(None);
        }
        let scores = pairs(captured, &packed, n_queries);
        match scores.indexed_iter().find(|(_, v)| !v.is_finite()) {
            None => Ok(Some((ids[0] as usize, scores))),
            Some(((e, _), &found)) => Err(not_finite(ids[e], broken_layer(captured, train, e), found)),
        }
    })?;
    let mut out = Array2::<f32>::zeros((n_queries, n));
    for part in parts {
        let Some((first, scores)) = part else { return Ok(None) };
        let mut target = out.slice_mut(s![.., first..first + scores.nrows()]);
        ndarray::Zip::from(&mut target).and(scores.t()).for_each(|to, &v| *to = v as f32);
    }
    progress.finish("gradients scored");
    Ok(Some(out))
}

/// True if every example has exactly one row in every layer.
pub(super) fn single(captured: &Captured) -> bool {
    captured.starts.iter().all(|starts| starts.iter().enumerate().all(|(e, &start)| start == e))
}

/// `[n, Q]` for the examples of one capture.
fn pairs(captured: &Captured, packed: &[Vec<[PackedMatrix; 2]>], n_queries: usize) -> Array2<f64> {
    let n = captured.n_examples();
    let mut total = Array2::<f64>::zeros((n, n_queries));
    let (mut inputs, mut outputs) = (vec![0.0f32; n * n_queries], vec![0.0f32; n * n_queries]);
    for (layer, terms) in captured.layers.iter().zip(packed) {
        for [x, delta] in terms {
            for (side, packed, out) in [(&layer.x, x, &mut inputs), (&layer.delta, delta, &mut outputs)] {
                let width = side.ncols();
                let rows = side.as_slice().expect("checked captures are row-major");
                packed.multiply(&Rows::new(n, width, width, rows), 0.0, out, n_queries);
            }
            let products = inputs.iter().zip(&outputs);
            total.iter_mut().zip(products).for_each(|(to, (&a, &b))| *to += f64::from(a) * f64::from(b));
        }
    }
    total
}

/// Refuses activations of queries that are not finite.
fn check_finite(captured: &Captured, source: &dyn CaptureSource) -> Result<(), MethodError> {
    for (layer, seen) in source.layers().iter().zip(&captured.layers) {
        for side in [&seen.x, &seen.delta] {
            if let Some(((row, _), &v)) = side.indexed_iter().find(|(_, v)| !v.is_finite()) {
                return Err(MethodError::NotFinite {
                    rows: "query gradients",
                    row,
                    block_idx: 0,
                    example: format!("query {row}"),
                    module: layer.name.clone(),
                    found: f64::from(v),
                });
            }
        }
    }
    Ok(())
}

/// Name of the layer whose activations of example `e` are not finite.
fn broken_layer<'s>(captured: &Captured, source: &'s dyn CaptureSource, e: usize) -> &'s str {
    let broken = (0..source.layers().len()).find(|&l| {
        let (x, delta) = captured.rows(l, e);
        x.iter().chain(&delta).any(|v| !v.is_finite())
    });
    broken.map_or("all layers (an overflow)", |l| &source.layers()[l].name)
}
