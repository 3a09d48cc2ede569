//! Second pass: mean squares of gradients in a turned basis, and weighted sums of such squares. Here never lives: the basis.

use ascribe_core::Progress;
use ascribe_linalg::packed::{PackedMatrix, Precision, Rows, multiply_views};
use ndarray::{Array2, s};

use crate::captured::{blocks, chunk_len, gradient, not_finite, stream, stream_waves};
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer};

/// Captured activations of one chunk, at most.
const CHUNK_BYTES: usize = 16 << 20;

/// Examples of one chunk, whose squares are summed in f32 before they enter an f64 total.
const CHUNK: std::ops::RangeInclusive<usize> = 4..=64;

/// `E[g²_ab]` per layer, `[n_out, n_in]`; `turned` hands out activations in the basis that is meant.
///
/// `single[l]` says that every example has one position in layer l; then squares of the parts are multiplied, 64 examples
/// at a time. Cost: a pass and `2·T·P` per example.
///
/// # Errors
/// Gradients that are not finite; the source's; a request to stop.
pub(super) fn mean_squares(
    turned: &dyn CaptureSource,
    single: &[bool],
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Vec<Array2<f64>>, MethodError> {
    let layers = turned.layers();
    let mut totals: Vec<Array2<f64>> = layers.iter().map(|l| Array2::zeros((l.n_out, l.n_in))).collect();
    let height = chunk_len(turned, labels, CHUNK_BYTES, CHUNK)?;
    let work = |ids: &[u32], captured: &Captured| {
        let sums: Vec<Array2<f32>> = (0..layers.len()).map(|l| squares(turned, l, single[l], captured)).collect();
        for (layer, sum) in layers.iter().zip(&sums) {
            if let Some(&v) = sum.iter().find(|v| !v.is_finite()) {
                return Err(not_finite(
                    ids[0],
                    &format!("{} (of this or the next {})", layer.name, ids.len()),
                    f64::from(v),
                ));
            }
        }
        Ok(sums)
    };
    stream_waves(turned, labels, height, progress, work, |wave| {
        for sums in &wave {
            for (total, sum) in totals.iter_mut().zip(sums) {
                total.zip_mut_with(sum, |to, &v| *to += f64::from(v));
            }
        }
    })?;
    let n = turned.len() as f64;
    totals.iter_mut().for_each(|t| t.mapv_inplace(|v| v / n));
    Ok(totals)
}

/// `Σ_e g²` of one layer over the examples of a capture.
fn squares(turned: &dyn CaptureSource, l: usize, single: bool, captured: &Captured) -> Array2<f32> {
    let layer = &turned.layers()[l];
    let mut out = Array2::<f32>::zeros((layer.n_out, layer.n_in));
    if single {
        let seen = &captured.layers[l];
        let square = |v: f32| v * v;
        // (δ²)ᵀ [n_out, n] · x² [n, n_in]
        multiply_views(seen.delta.mapv(square).t(), seen.x.mapv(square).view(), 0.0, out.view_mut());
        return out;
    }
    let mut g = Vec::new();
    for rows in blocks(layer) {
        g.resize(rows.len() * layer.n_in, 0.0);
        let mut target = out.slice_mut(s![rows.clone(), ..]);
        let target = target.as_slice_mut().expect("whole rows of a fresh matrix");
        for e in 0..captured.n_examples() {
            gradient(captured, l, e, rows.clone(), &mut g);
            target.iter_mut().zip(&g).for_each(|(to, &v)| *to += v * v);
        }
    }
    out
}

/// `Σ_ab w_ab·g²_ab` over all layers, `[N]`: self-influence when `w` is an inverse in this basis.
///
/// An example with one position in a layer costs `2·n_in·n_out` in f32 (`Σ_a δ_a² (w x²)_a`), others form their gradient.
///
/// # Errors
/// As [`mean_squares`].
pub(super) fn weighted_squares(
    turned: &dyn CaptureSource,
    weights: &[Array2<f64>],
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Vec<f64>, MethodError> {
    let weights: Vec<Weights<'_>> = weights.iter().map(Weights::new).collect();
    let parts = stream(turned, labels, progress, |ids, captured| {
        let mut totals = vec![0.0f64; ids.len()];
        for (l, w) in weights.iter().enumerate() {
            w.add(&turned.layers()[l], l, captured, &mut totals);
        }
        match totals.iter().position(|v| !v.is_finite()) {
            None => Ok(totals),
            Some(e) => Err(not_finite(ids[e], "all layers", totals[e])),
        }
    })?;
    Ok(parts.concat())
}

/// Weights of one layer, as they are and packed for `x² → w x²`, there divided by the largest.
struct Weights<'a> {
    whole: &'a Array2<f64>,
    largest: f64,
    packed: PackedMatrix,
}

impl<'a> Weights<'a> {
    fn new(whole: &'a Array2<f64>) -> Self {
        let largest = whole.iter().fold(0.0f64, |m, &w| m.max(w));
        let scaled = whole.mapv(|w| if largest > 0.0 { (w / largest) as f32 } else { 0.0 });
        Self { whole, largest, packed: PackedMatrix::new(Precision::F32, scaled.t()) }
    }

    /// Adds the layer's part of every example's sum.
    fn add(&self, layer: &Layer, l: usize, captured: &Captured, totals: &mut [f64]) {
        let square = |v: &f32| v * v;
        let mut product = vec![0.0f32; layer.n_out];
        for (e, total) in totals.iter_mut().enumerate() {
            let (x, delta) = captured.rows(l, e);
            if x.nrows() != 1 {
                *total += self.sum(layer, l, e, captured);
                continue;
            }
            let squares: Vec<f32> = x.iter().map(square).collect();
            self.packed.multiply(&Rows::new(1, layer.n_in, layer.n_in, &squares), 0.0, &mut product, layer.n_out);
            let part: f64 = delta.iter().zip(&product).map(|(d, &p)| f64::from(square(d)) * f64::from(p)).sum();
            *total += self.largest * part;
        }
    }

    fn sum(&self, layer: &Layer, l: usize, e: usize, captured: &Captured) -> f64 {
        let mut g = Vec::new();
        let mut total = 0.0f64;
        for rows in blocks(layer) {
            g.resize(rows.len() * layer.n_in, 0.0);
            gradient(captured, l, e, rows.clone(), &mut g);
            let w = self.whole.slice(s![rows, ..]);
            let w = w.as_slice().expect("whole rows of a weight matrix");
            total += ascribe_linalg::sum::sum_by(g.len(), |i| w[i] * f64::from(g[i]) * f64::from(g[i]));
        }
        total
    }
}
