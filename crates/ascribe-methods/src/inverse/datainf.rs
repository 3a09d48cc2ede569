//! DataInf: the mean of inverses instead of the inverse of the mean. Source: arXiv:2310.00902.
//!
//! Per layer, `(H + λ)⁻¹ v ≈ (1/n) Σ_i (g_i g_iᵀ + λ)⁻¹ v = (1/λ)·[v − (1/n) Σ_i (g_i·v)/(λ + ‖g_i‖²)·g_i]`: a closed form, made
//! for the small blocks of adapters. Gradients are streamed; no `N × P` is ever stored.

use ascribe_core::{NoProgress, Progress};
use ascribe_linalg::packed::multiply_views;
use ascribe_linalg::sum::sum_by;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{InverseCurvature, rows};
use crate::captured;
use crate::error::MethodError;
use crate::source::{CaptureSource, Labels, dim};

/// Parameters per product: chains of f32 additions are no longer.
const STRIPE: usize = 4096;

/// Gradients in memory, in bytes, unless [`FEWEST`] are more.
const CHUNK_BYTES: usize = 64 << 20;

/// Fewest and most examples per block of gradients.
const FEWEST: usize = 8;
const MOST: usize = 256;

/// The ridge λ of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ridge {
    /// The same for all layers, in units of the curvature.
    Absolute {
        /// λ.
        value: f64,
    },
    /// `value · mean_i ‖g_i‖² / P_l`: a fraction of the mean eigenvalue of the layer's Fisher matrix.
    Relative {
        /// The fraction.
        value: f64,
    },
}

/// Options of [`DataInf`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataInfOptions {
    /// The ridge. Relative with 0.1, the paper's.
    pub ridge: Ridge,
}

impl Default for DataInfOptions {
    fn default() -> Self {
        Self { ridge: Ridge::Relative { value: 0.1 } }
    }
}

/// DataInf over a source: norms and ridges of every layer; gradients come again with every solve.
///
/// Memory `8·N` bytes per layer, and per solve `24·Q·P` bytes and about 64 MB of gradients. Cost: a pass of the source to fit;
/// per solve a pass and `4·Q·N·P`. A query's bytes depend neither on the others nor on threads.
pub struct DataInf<'a> {
    source: &'a dyn CaptureSource,
    ridges: Vec<f64>,
    /// `‖g_i‖²`, `[L][N]`.
    norms: Vec<Vec<f64>>,
}

/// A piece of one layer in the flat vector.
struct Stripe {
    layer: usize,
    columns: std::ops::Range<usize>,
}

impl<'a> DataInf<'a> {
    /// Takes the norms of all gradients (of the given labels) and fixes the ridges.
    ///
    /// # Errors
    /// No examples; a ridge that is not positive; the source's; NaN with its example and layer.
    pub fn fit(
        source: &'a dyn CaptureSource,
        options: &DataInfOptions,
        progress: &dyn Progress,
    ) -> Result<Self, MethodError> {
        let (Ridge::Absolute { value } | Ridge::Relative { value }) = options.ridge;
        rows::check_positive("ridge", value)?;
        if source.is_empty() {
            return Err(MethodError::Empty { what: "the set of training examples" });
        }
        let layers = source.layers();
        let mut norms = vec![Vec::with_capacity(source.len()); layers.len()];
        progress.start("gradient norms", source.len() as u64, "examples");
        for ids in chunks(source) {
            let gradients = captured::gradients(source, &ids, Labels::Given)?;
            let mut start = 0;
            for (layer, norms) in layers.iter().zip(&mut norms) {
                let part = gradients.slice(s![.., start..start + layer.len()]);
                norms.extend(part.rows().into_iter().map(|g| sum_by(g.len(), |i| f64::from(g[i]).powi(2))));
                start += layer.len();
            }
            advance(progress, ids.len())?;
        }
        progress.finish("norms taken");
        let mean = |norms: &Vec<f64>| ascribe_linalg::sum::sum(norms) / norms.len() as f64;
        let ridge = |(norms, len): (&Vec<f64>, usize)| match options.ridge {
            Ridge::Absolute { value } => value,
            Ridge::Relative { value } => value * mean(norms) / len.max(1) as f64,
        };
        let ridges = norms.iter().zip(layers.iter().map(crate::source::Layer::len)).map(ridge).collect();
        Ok(Self { source, ridges, norms })
    }

    /// λ per layer; 0 for a layer whose gradients are all zero under a relative ridge: its part of a solution is zero.
    pub fn ridges(&self) -> &[f64] {
        &self.ridges
    }

    /// Solves for every row of `queries`, `[Q, P]`.
    ///
    /// # Errors
    /// Shapes; NaN; the source's.
    pub fn run(&self, queries: ArrayView2<'_, f32>, progress: &dyn Progress) -> Result<Array2<f32>, MethodError> {
        rows::check("query vectors", queries, dim(self.source.layers()))?;
        let stripes = self.stripes();
        // Right operands of the products must have rows without gaps: [P, Q].
        let transposed = queries.t().as_standard_layout().into_owned();
        let n_queries = queries.nrows();
        let mut sums: Vec<Array2<f64>> =
            stripes.iter().map(|stripe| Array2::zeros((n_queries, stripe.columns.len()))).collect();
        progress.start("DataInf", self.source.len() as u64, "examples");
        for ids in chunks(self.source) {
            if n_queries == 0 {
                break;
            }
            let gradients = captured::gradients(self.source, &ids, Labels::Given)?;
            let weights = self.weights(&ids, &stripes, gradients.view(), transposed.view());
            sums.par_iter_mut().zip(&stripes).for_each(|(sum, stripe)| {
                // [Q, C] · [C, stripe]
                let mut part = Array2::<f32>::zeros(sum.dim());
                let rows = gradients.slice(s![.., stripe.columns.clone()]);
                multiply_views(weights[stripe.layer].t(), rows, 0.0, part.view_mut());
                sum.zip_mut_with(&part, |total, &v| *total += f64::from(v));
            });
            advance(progress, ids.len())?;
        }
        progress.finish("queries solved");
        let n = self.source.len() as f64;
        let mut out = Array2::<f32>::zeros(queries.dim());
        for (sum, stripe) in sums.iter().zip(&stripes) {
            let ridge = self.ridges[stripe.layer];
            let mut target = out.slice_mut(s![.., stripe.columns.clone()]);
            let given = queries.slice(s![.., stripe.columns.clone()]);
            ndarray::Zip::from(&mut target).and(&given).and(sum).for_each(|to, &v, &sum| {
                *to = if ridge > 0.0 { ((f64::from(v) - sum / n) / ridge) as f32 } else { 0.0 };
            });
        }
        Ok(out)
    }

    /// `(g_i·v_q) / (λ + ‖g_i‖²)` per layer, `[C, Q]`.
    fn weights(
        &self,
        ids: &[u32],
        stripes: &[Stripe],
        gradients: ArrayView2<'_, f32>,
        queries: ArrayView2<'_, f32>,
    ) -> Vec<Array2<f32>> {
        let shape = (ids.len(), queries.ncols());
        let products: Vec<Array2<f32>> = stripes
            .par_iter()
            .map(|stripe| {
                // [C, stripe] · [stripe, Q]
                let mut product = Array2::zeros(shape);
                let columns = stripe.columns.clone();
                let right = queries.slice(s![columns.clone(), ..]);
                multiply_views(gradients.slice(s![.., columns]), right, 0.0, product.view_mut());
                product
            })
            .collect();
        let mut totals = vec![Array2::<f64>::zeros(shape); self.ridges.len()];
        for (product, stripe) in products.iter().zip(stripes) {
            totals[stripe.layer].zip_mut_with(product, |total, &v| *total += f64::from(v));
        }
        let divide = |(layer, mut total): (usize, Array2<f64>)| {
            for (mut row, &id) in total.rows_mut().into_iter().zip(ids) {
                let length = self.ridges[layer] + self.norms[layer][id as usize];
                row.mapv_inplace(|v| rows::ratio(v, length));
            }
            rows::narrow(&total)
        };
        totals.into_iter().enumerate().map(divide).collect()
    }

    fn stripes(&self) -> Vec<Stripe> {
        let mut start = 0;
        let mut stripes = Vec::new();
        for (layer, shape) in self.source.layers().iter().enumerate() {
            for first in (0..shape.len()).step_by(STRIPE) {
                let end = (first + STRIPE).min(shape.len());
                stripes.push(Stripe { layer, columns: start + first..start + end });
            }
            start += shape.len();
        }
        stripes
    }
}

impl InverseCurvature for DataInf<'_> {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        self.run(rows, &NoProgress)
    }
}

/// Numbers of all examples, in blocks whose length follows from the source alone.
fn chunks(source: &dyn CaptureSource) -> Vec<Vec<u32>> {
    let height = (CHUNK_BYTES / (4 * dim(source.layers())).max(1)).clamp(FEWEST, MOST);
    let all: Vec<u32> = (0..source.len() as u32).collect();
    all.chunks(height).map(<[u32]>::to_vec).collect()
}

fn advance(progress: &dyn Progress, n: usize) -> Result<(), MethodError> {
    progress.advance(n as u64);
    if progress.stop_requested() { Err(MethodError::Stopped) } else { Ok(()) }
}
