//! Methods on gradients as Adam sees them: every number in units of the root of its second moment, before any projection.

use ascribe_core::Progress;
use ascribe_linalg::{Sjlt, TwoSided};
use ascribe_methods::captured;
use ascribe_methods::less::{self, Adam};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::rows::{self, InMemory};
use ascribe_methods::source::{CaptureSource, Labels, Layer};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde_json::json;

use super::super::lab::{DecoderLab, Lab, Quantity, Which};
use super::rows::{Rows, columns};
use super::{Timed, clocked, lacks};
use crate::error::EngineError;

/// Numbers of a LESS row.
const LESS_DIM: usize = 8192;
const SEED: u64 = 7;
/// Gradients in memory, in numbers.
const CHUNK: usize = 32 << 20;

/// LESS at the final weights: `cos(P q, P Γ(g))`. The model folder keeps second moments only, so Γ has none of the first.
pub(super) fn less(lab: &dyn Lab, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let Some(decoder) = lab.decoder() else { return Err(lacks("Adam's moments")) };
    let view = lab.model(Which::Final(0))?;
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let moments = decoder.second_moments()?;
    let recipe = &decoder.data.recipe.train;
    let adam = Adam { beta1: recipe.beta1, beta2: recipe.beta2, eps: recipe.eps };
    let sketch = |source: &dyn CaptureSource, steps: bool| -> Result<Array2<f32>, EngineError> {
        let tokens = decoder.data.recipe.corpus.seq_len as f32;
        let zeros = vec![0.0; if steps { moments.len() } else { 0 }];
        map_gradients(
            source,
            LESS_DIM,
            |rows| {
                // The optimiser saw means over tokens; captured losses are sums.
                rows.mapv_inplace(|g| g / tokens);
                if steps {
                    less::adam_steps(rows.view_mut(), &zeros, &moments, adam)?;
                }
                Ok(())
            },
            |row, out| Sjlt::new(SEED, "less", LESS_DIM, 1).add(0, row, out),
        )
    };
    let (mut fit, mut score) = (0.0, 0.0);
    let kept = clocked(&mut fit, || sketch(train.as_ref(), true))?;
    let query_rows = clocked(&mut score, || sketch(queries.as_ref(), false))?;
    let values = clocked(&mut score, || {
        let reader = InMemory::new(kept.view());
        Ok(rows::score(&reader, query_rows.view(), None, Normalisation::Cosine, progress)?.values)
    })?;
    let mut timed = Timed { bytes: 4.0 * LESS_DIM as f64, ..Timed::new(values, fit, score) };
    timed.settings = json!({ "dim": LESS_DIM, "checkpoints": 1 });
    Ok(timed)
}

/// Gradients divided by the root of Adam's second moments, then projected to `k × k` per module: TrackStar's rows.
pub(super) fn normalized_rows(decoder: &DecoderLab, source: &dyn CaptureSource, k: usize) -> Result<Rows, EngineError> {
    let scales: Vec<f32> = decoder.second_moments()?.iter().map(|v| 1.0 / (v.sqrt() + 1e-8)).collect();
    let layers = source.layers().to_vec();
    let projectors: Vec<TwoSided> =
        layers.iter().map(|l| TwoSided::new(SEED, &l.name, l.n_in, l.n_out, k, k)).collect();
    let small: Vec<Layer> = layers
        .iter()
        .zip(&projectors)
        .map(|(l, p)| Layer { name: l.name.clone(), n_out: p.p_out.ncols(), n_in: p.p_in.ncols() })
        .collect();
    let width = small.iter().map(Layer::len).sum();
    let values = map_gradients(
        source,
        width,
        |rows| {
            for mut row in rows.rows_mut() {
                row.iter_mut().zip(&scales).for_each(|(g, s)| *g *= s);
            }
            Ok(())
        },
        |row, out| {
            let (mut from, mut to) = (0, 0);
            for ((layer, small), projector) in layers.iter().zip(&small).zip(&projectors) {
                let matrix = ArrayView2::from_shape((layer.n_out, layer.n_in), &row[from..from + layer.len()])
                    .expect("a layer's numbers are its matrix");
                let projected = projector.p_out.t().dot(&matrix).dot(&projector.p_in);
                out[to..to + small.len()].iter_mut().zip(&projected).for_each(|(o, v)| *o = *v);
                from += layer.len();
                to += small.len();
            }
        },
    )?;
    let named: Vec<(String, usize)> = small.iter().map(|l| (l.name.clone(), l.len())).collect();
    Ok(Rows { layers: small, values, columns: columns(&named) })
}

/// `[N, width]`: gradients of all examples, a chunk at a time through `change`, then row by row through `project`.
fn map_gradients(
    source: &dyn CaptureSource,
    width: usize,
    change: impl Fn(&mut Array2<f32>) -> Result<(), EngineError>,
    project: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Result<Array2<f32>, EngineError> {
    let ids: Vec<u32> = (0..source.len() as u32).collect();
    let dim: usize = source.layers().iter().map(Layer::len).sum();
    let mut out = Array2::zeros((ids.len(), width));
    for part in ids.chunks((CHUNK / dim.max(1)).clamp(8, 512)) {
        let mut full = captured::gradients(source, part, Labels::Given)?;
        change(&mut full)?;
        let first = part[0] as usize;
        let mut target = out.slice_mut(s![first..first + part.len(), ..]);
        let pairs: Vec<_> = target.axis_iter_mut(Axis(0)).zip(full.axis_iter(Axis(0))).collect();
        pairs.into_par_iter().for_each(|(mut target, row)| {
            let row = row.to_slice().expect("fresh rows are contiguous");
            project(row, target.as_slice_mut().expect("rows of a standard array are contiguous"));
        });
    }
    Ok(out)
}
