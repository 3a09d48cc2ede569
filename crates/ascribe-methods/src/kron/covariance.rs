//! First pass: second moments of inputs and output gradients of every layer. Here never lives: what is done with them.

use ascribe_core::Progress;
use ascribe_linalg::{Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::Kind;
use crate::captured::{chunk_len, gradient, not_finite, stream_waves};
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer};

/// Rows of a covariance that one task owns.
const PANEL: usize = 128;

/// Captured activations of one chunk, at most; one more copy is made in f64.
const CHUNK_BYTES: usize = 16 << 20;

/// Second moments of one layer.
pub(super) struct Moments {
    /// `[n_in, n_in]`.
    pub input: Array2<f64>,
    /// `[n_out, n_out]`.
    pub output: Array2<f64>,
    /// Mean positions per example, `T̄`.
    pub positions: f64,
    /// True when every example has exactly one position.
    pub single: bool,
}

/// What one chunk of examples adds to one layer: rows whose outer products are summed.
struct Side {
    input: Array2<f64>,
    output: Array2<f64>,
    positions: usize,
    single: bool,
}

/// Rows `first..` of one lower triangle.
struct Panel {
    layer: usize,
    of_input: bool,
    first: usize,
    /// `[≤ PANEL, first + ≤ PANEL]`.
    total: Array2<f64>,
}

/// Means over positions of `xxᵀ` and `δδᵀ`, or for Shampoo means over examples of `gᵀg` and `ggᵀ`.
///
/// f64 products, chunks of examples added in order; the cut follows from the source's first example.
///
/// # Errors
/// No examples; no positions at all; captures that are not finite; the source's; a request to stop.
pub(super) fn moments(
    source: &dyn CaptureSource,
    kind: Kind,
    labels: Labels,
    progress: &dyn Progress,
) -> Result<Vec<Moments>, MethodError> {
    if source.is_empty() {
        return Err(MethodError::Empty { what: "the set of training examples" });
    }
    let layers = source.layers();
    let mut panels: Vec<Panel> = Vec::new();
    for (l, layer) in layers.iter().enumerate() {
        for (of_input, n) in [(true, layer.n_in), (false, layer.n_out)] {
            for first in (0..n).step_by(PANEL) {
                let height = PANEL.min(n - first);
                panels.push(Panel { layer: l, of_input, first, total: Array2::zeros((height, first + height)) });
            }
        }
    }
    let mut counts = vec![(0usize, true); layers.len()];
    // Shampoo's rows are whole gradients: few at a time.
    let longest = if kind == Kind::ShampooEvc { 16 } else { 256 };
    let height = chunk_len(source, labels, CHUNK_BYTES, 4..=longest)?;
    stream_waves(
        source,
        labels,
        height,
        progress,
        |ids, captured| (0..layers.len()).map(|l| side(&layers[l], l, kind, ids, captured)).collect(),
        |wave: Vec<Vec<Side>>| {
            panels.par_iter_mut().for_each(|panel| wave.iter().for_each(|sides| panel.add(&sides[panel.layer])));
            for (l, side) in wave.iter().flat_map(|sides| sides.iter().enumerate()) {
                counts[l].0 += side.positions;
                counts[l].1 &= side.single;
            }
        },
    )?;
    let scales: Vec<f64> = counts
        .iter()
        .map(|&(positions, _)| if kind == Kind::ShampooEvc { source.len() } else { positions } as f64)
        .collect();
    Ok(collect(layers, &panels, &counts, &scales, source.len()))
}

impl Panel {
    fn add(&mut self, side: &Side) {
        let rows = if self.of_input { &side.input } else { &side.output };
        let (height, width) = self.total.dim();
        let left = rows.slice(s![.., self.first..self.first + height]);
        gemm_f64(1.0, left.t(), rows.slice(s![.., ..width]), 1.0, self.total.view_mut(), Threads::One);
    }
}

/// Rows of one layer in f64, looked at once for NaN.
fn side(layer: &Layer, l: usize, kind: Kind, ids: &[u32], captured: &Captured) -> Result<Side, MethodError> {
    let starts = &captured.starts[l];
    let seen = &captured.layers[l];
    for (rows, place) in [(&seen.x, "x"), (&seen.delta, "δ")] {
        if let Some(((t, _), &v)) = rows.indexed_iter().find(|(_, v)| !v.is_finite()) {
            let e = starts.partition_point(|&start| start <= t) - 1;
            return Err(not_finite(ids[e], &format!("{} ({place})", layer.name), f64::from(v)));
        }
    }
    let positions = seen.x.nrows();
    let single = starts.windows(2).all(|w| w[1] - w[0] == 1);
    let wide = |rows: ArrayView2<'_, f32>| rows.mapv(f64::from);
    let (input, output) = match kind {
        Kind::ShampooEvc => gradient_rows(layer, l, captured),
        _ => (wide(seen.x.view()), wide(seen.delta.view())),
    };
    Ok(Side { input, output, positions, single })
}

/// Rows whose second moments are `Σ gᵀg` and `Σ ggᵀ`: those of g and those of gᵀ; for one position `x‖δ‖` and `δ‖x‖`.
fn gradient_rows(layer: &Layer, l: usize, captured: &Captured) -> (Array2<f64>, Array2<f64>) {
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut g = vec![0.0f32; layer.len()];
    for e in 0..captured.n_examples() {
        let (x, delta) = captured.rows(l, e);
        if x.nrows() == 1 {
            let length = |v: ArrayView2<'_, f32>| v.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
            let (x_len, delta_len) = (length(x), length(delta));
            input.extend(x.iter().map(|&v| f64::from(v) * delta_len));
            output.extend(delta.iter().map(|&v| f64::from(v) * x_len));
            continue;
        }
        gradient(captured, l, e, 0..layer.n_out, &mut g);
        input.extend(g.iter().map(|&v| f64::from(v)));
        for i in 0..layer.n_in {
            output.extend((0..layer.n_out).map(|o| f64::from(g[o * layer.n_in + i])));
        }
    }
    let rows = |data: Vec<f64>, n: usize| {
        Array2::from_shape_vec((data.len() / n.max(1), n), data).expect("whole rows were pushed")
    };
    (rows(input, layer.n_in), rows(output, layer.n_out))
}

/// Triangles to whole matrices, sums to means.
fn collect(
    layers: &[Layer],
    panels: &[Panel],
    counts: &[(usize, bool)],
    scales: &[f64],
    n_examples: usize,
) -> Vec<Moments> {
    let mut out: Vec<Moments> = layers
        .iter()
        .zip(counts)
        .map(|(layer, &(positions, single))| Moments {
            input: Array2::zeros((layer.n_in, layer.n_in)),
            output: Array2::zeros((layer.n_out, layer.n_out)),
            positions: positions as f64 / n_examples as f64,
            single,
        })
        .collect();
    for panel in panels {
        let own = &mut out[panel.layer];
        let target = if panel.of_input { &mut own.input } else { &mut own.output };
        // A layer without any position has moments zero.
        let scale = scales[panel.layer].max(1.0);
        for ((i, j), &value) in panel.total.indexed_iter() {
            let row = panel.first + i;
            if j <= row {
                target[(row, j)] = value / scale;
                target[(j, row)] = value / scale;
            }
        }
    }
    out
}
