//! Full gradients of single examples, flat in the order of the parameters.

use ascribe_linalg::elementwise::{channel_sums, outer};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::Classifier;
use super::data::ImageSet;
use super::loss::Objective;
use super::network::{Network, Op};
use super::pass::{Rows, Sink};
use crate::error::ModelError;

/// Fills one flat gradient per example of a pass.
struct FullGradient<'a> {
    network: &'a Network,
    /// `[n, P]`.
    flat: &'a mut [f32],
}

impl FullGradient<'_> {
    fn part(&mut self, example: usize, range: &std::ops::Range<usize>) -> &mut [f32] {
        let start = example * self.network.n_parameters;
        &mut self.flat[start + range.start..start + range.end]
    }
}

impl Sink for FullGradient<'_> {
    fn wants(&self, node: usize) -> bool {
        matches!(self.network.nodes[node].op, Op::Conv { .. } | Op::Dense { .. } | Op::Norm { .. })
    }

    fn linear(&mut self, node: usize, example: usize, rows: Rows<'_>) {
        let network = self.network;
        let bias = match &network.nodes[node].op {
            Op::Conv { conv, weight, bias } => {
                conv.backward_weight(rows.x, rows.delta, 0.0, self.part(example, weight));
                bias
            }
            Op::Dense { weight, bias, .. } => {
                outer(rows.delta, rows.x, self.part(example, weight));
                bias
            }
            _ => unreachable!("only layers with weights are tapped"),
        };
        if let Some(bias) = bias {
            bias_gradient(&rows, self.part(example, bias));
        }
    }

    fn norm(&mut self, node: usize, example: usize, d_gain: &[f32], d_bias: &[f32]) {
        let network = self.network;
        if let Op::Norm { gain, bias, .. } = &network.nodes[node].op {
            self.part(example, gain).copy_from_slice(d_gain);
            self.part(example, bias).copy_from_slice(d_bias);
        }
    }
}

/// The sum of the output gradients over positions.
pub(super) fn bias_gradient(rows: &Rows<'_>, out: &mut [f32]) {
    if rows.positions() == 1 {
        return out.copy_from_slice(rows.delta);
    }
    let mut sums = vec![0.0; out.len()];
    channel_sums(rows.delta, rows.positions(), &mut sums);
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
}

impl Classifier {
    /// Gradient of each image's measure by all parameters, `[n, P]`, with frozen statistics of norms.
    ///
    /// A row's bytes depend on its image (and class) alone. Memory `4·n·P` bytes: call it for chunks of images, or use
    /// [`Self::gradients_into`] with one buffer.
    ///
    /// # Errors
    /// As [`Classifier::losses`]; [`ModelError::Diverged`] if a measure is not finite.
    pub fn gradients(&self, set: &ImageSet, ids: &[u32], objective: Objective<'_>) -> Result<Array2<f32>, ModelError> {
        let mut out = Array2::zeros((ids.len(), self.parameters.len()));
        let flat = out.as_slice_mut().expect("a fresh array is contiguous");
        self.gradients_into(set, ids, objective, flat)?;
        Ok(out)
    }

    /// [`Self::gradients`] into `out` (`n·P` numbers, row-major); returns the measured numbers.
    ///
    /// # Errors
    /// As [`Self::gradients`]; [`ModelError::Mismatch`] if `out` has another length.
    pub fn gradients_into(
        &self,
        set: &ImageSet,
        ids: &[u32],
        objective: Objective<'_>,
        out: &mut [f32],
    ) -> Result<Vec<f64>, ModelError> {
        self.check(set, ids, objective)?;
        let n_parameters = self.parameters.len();
        if ids.len().checked_mul(n_parameters) != Some(out.len()) {
            let (expected, found) = (format!("{} × {n_parameters}", ids.len()), out.len().to_string());
            return Err(ModelError::Mismatch { what: "numbers of the gradients", expected, found });
        }
        let group = self.group();
        let work = |(i, (flat, ids)): (usize, (&mut [f32], &[u32]))| {
            self.pool.with(self, |ws| {
                self.forward(set, ids, ws);
                let losses = self.measure(set, ids, i * group, objective, ws);
                self.backward(ids.len(), ws, &mut FullGradient { network: &self.network, flat });
                losses
            })
        };
        let groups = out.par_chunks_mut(group * n_parameters).zip(ids.par_chunks(group)).enumerate();
        let losses: Vec<Vec<f64>> = groups.map(work).collect();
        finite(losses.into_iter().flatten().collect(), "measure")
    }
}

impl Classifier {
    /// Flat gradients of `⟨d, logits⟩` for the rows of `d_logits`, one pass's images.
    pub(super) fn backward_given(&self, set: &ImageSet, ids: &[u32], d_logits: ArrayView2<'_, f32>, flat: &mut [f32]) {
        self.pool.with(self, |ws| {
            self.forward(set, ids, ws);
            let last = ws.gradients.len() - 1;
            ws.gradients[last].iter_mut().zip(&d_logits).for_each(|(out, &d)| *out = d);
            self.backward(ids.len(), ws, &mut FullGradient { network: &self.network, flat });
        });
    }
}

/// Refuses numbers that are none.
pub(super) fn finite(numbers: Vec<f64>, what: &'static str) -> Result<Vec<f64>, ModelError> {
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(&found) => Err(ModelError::Diverged { step: 0, what, found }),
        None => Ok(numbers),
    }
}
