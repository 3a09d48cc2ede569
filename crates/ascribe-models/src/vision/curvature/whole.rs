//! The curvature of logistic regression as a matrix. Of one layer `z = Wx` it is the mean of `(diag p − p pᵀ) ⊗ x xᵀ` over the images:
//! a second moment of them for every pair of classes, weighted by what the probabilities say of the pair. Both matrices are this one.

use ascribe_linalg::{Threads, gemm};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::error::ModelError;
use crate::vision::Classifier;
use crate::vision::config::ClassifierKind;
use crate::vision::data::ImageSet;

/// Images whose moment is summed in f32; the stretches' sums are added in f64, in order. Part of the definition of the bytes.
const STRETCH: usize = 1024;

impl Classifier {
    /// The curvature of the mean cross-entropy over the images `ids`, `[P, P]` in layer form, without damping; `None` for a model that
    /// is not a logistic regression.
    ///
    /// It has `8·P²` bytes and costs `C(C + 1)·P²/C²` multiply-adds per image for `C` classes, a tenth of the products with a basis at
    /// ten. The sum follows the places of the images, not their order in `ids`; its bytes do not depend on threads.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for images of another shape, or none; [`ModelError::Diverged`] if an entry is not finite.
    pub fn whole_curvature(&self, set: &ImageSet, ids: &[u32]) -> Result<Option<Array2<f64>>, ModelError> {
        if self.config().kind != ClassifierKind::LogisticRegression {
            return Ok(None);
        }
        if ids.is_empty() {
            let (expected, found) = ("at least one".into(), "none".into());
            return Err(ModelError::Mismatch { what: "images of a mean", expected, found });
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let probabilities = softmax(self.logits(set, &ids)?.view());
        let images = self.embeddings(set, &ids)?;
        let layers = self.linear_layers();
        let [layer] = layers.as_slice() else { return Ok(None) };
        // The input of a bias is always 1.
        let mut inputs = Array2::<f32>::ones((ids.len(), layer.n_in));
        inputs.slice_mut(s![.., ..images.ncols()]).assign(&images);
        let mut whole = Array2::zeros((layer.len(), layer.len()));
        whole.axis_chunks_iter_mut(Axis(0), layer.n_in).into_par_iter().enumerate().for_each(|(o, mut stripe)| {
            for other in o..layer.n_out {
                let columns = other * layer.n_in..(other + 1) * layer.n_in;
                stripe.slice_mut(s![.., columns]).assign(&moment(&inputs, &probabilities, o, other));
            }
        });
        // A pair's moment is symmetric, so the pair the other way round has the same.
        for o in 1..layer.n_out {
            let (above, mut below) = whole.view_mut().split_at(Axis(0), o * layer.n_in);
            for other in 0..o {
                let (rows, columns) =
                    (other * layer.n_in..(other + 1) * layer.n_in, o * layer.n_in..(o + 1) * layer.n_in);
                let mirrored = above.slice(s![rows.clone(), columns]);
                below.slice_mut(s![..layer.n_in, rows]).assign(&mirrored);
            }
        }
        match whole.iter().find(|v| !v.is_finite()) {
            None => Ok(Some(whole)),
            Some(&found) => Err(ModelError::Diverged { step: 0, what: "curvature", found }),
        }
    }
}

/// `mean s_n x_n x_nᵀ` with `s = p_o(1 − p_o)` for one class, `−p_o p_other` for two.
fn moment(inputs: &Array2<f32>, probabilities: &Array2<f64>, o: usize, other: usize) -> Array2<f64> {
    let (n, width) = inputs.dim();
    let (mut sum, mut part) = (Array2::<f64>::zeros((width, width)), Array2::<f32>::zeros((width, width)));
    for first in (0..n).step_by(STRETCH) {
        let range = first..(first + STRETCH).min(n);
        let rows = inputs.slice(s![range.clone(), ..]);
        let mut weighted = rows.to_owned();
        for (mut row, p) in weighted.rows_mut().into_iter().zip(probabilities.slice(s![range, ..]).rows()) {
            let weight = if o == other { p[o] * (1.0 - p[o]) } else { -p[o] * p[other] };
            row.mapv_inplace(|x| x * weight as f32);
        }
        gemm(1.0, rows.t(), weighted.view(), 0.0, part.view_mut(), Threads::One);
        sum.zip_mut_with(&part, |sum, &v| *sum += f64::from(v));
    }
    sum.mapv_inplace(|v| v / n as f64);
    sum
}

/// Probabilities `[n, C]` in f64.
fn softmax(logits: ArrayView2<'_, f32>) -> Array2<f64> {
    let mut out = logits.mapv(f64::from);
    for mut row in out.rows_mut() {
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        row.mapv_inplace(|v| (v - largest).exp());
        let sum = row.sum();
        row.mapv_inplace(|v| v / sum);
    }
    out
}
