//! Products with the curvature of a classifier's loss, for many vectors at once: Gauss–Newton `Jᵀ(diag p − p pᵀ)J v`
//! (arXiv:1301.3584) and the true Hessian, forward over reverse by hand (Pearlmutter's R-operator, 1994); products with the
//! Jacobian of the logits. What is solved with them is the methods' matter.
//!
//! Vectors are in layer form (`layers`): gains and biases of norms do not move, and norms use their running statistics.
//! Rectifiers and maxima are taken as locally linear, which they are but on a set of measure zero; so for logistic
//! regression the two matrices are the same, and for the others they differ by the curvature of the network itself.

mod dual;
mod whole;

use ndarray::{Array3, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

pub(super) use dual::{Dual, Vectors};

use super::Classifier;
use super::data::ImageSet;
use super::loss::Objective;
use crate::error::ModelError;

/// Which matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Curvature {
    /// `mean Jᵀ(diag p − p pᵀ)J`: the Fisher matrix of the model, never indefinite.
    GaussNewton,
    /// Second derivatives of the mean cross-entropy of the labels.
    Hessian,
}

/// Vectors that go through the network together; part of the definition of the bytes.
const MAX_VECTORS: usize = 32;

/// Images of one product at most; part of the definition of the bytes.
const MAX_BLOCK: usize = 128;

/// Numbers of a task's vectors and of its tangents, about; part of the definition of the bytes.
const TASK_NUMBERS: usize = 1 << 22;

/// Images whose sum is kept in f32; the stretches' sums are added in f64, in order.
const STRETCH: usize = 512;

/// Stretches whose sums wait to be added. Not part of the results.
const WAVE: usize = 4;

impl Classifier {
    /// `out[r] = H v[r]` for the mean over the images `ids`, without damping: `v` and `out` are `[R, P]` in layer form.
    ///
    /// The sum follows the places of the images, not their order in `ids`; its bytes do not depend on threads. Cost per image
    /// and vector about `4·P·T` for `T` positions (Hessian: `8·P·T`), as products shared by up to 128 images and 32 vectors.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for shapes that do not fit, no images, or a vector that is not finite;
    /// [`ModelError::Diverged`] if a product is not.
    pub fn curvature_products(
        &self,
        set: &ImageSet,
        ids: &[u32],
        kind: Curvature,
        v: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ModelError> {
        self.check_vectors(set, ids, v)?;
        let fail = |what, expected: String, found: String| Err(ModelError::Mismatch { what, expected, found });
        if out.dim() != v.dim() {
            return fail("shape of the products", format!("{:?}", v.dim()), format!("{:?}", out.dim()));
        }
        if ids.is_empty() {
            return fail("images of a mean", "at least one".into(), "none".into());
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let (vectors, _) = self.dual_sizes();
        let chunks = v.axis_chunks_iter(Axis(0), vectors).into_par_iter();
        chunks.zip(out.axis_chunks_iter_mut(Axis(0), vectors)).for_each(|(v, mut out)| {
            let sum = self.summed_products(set, &ids, kind, &Vectors::gather(self, v));
            out.iter_mut().zip(sum).for_each(|(out, x)| *out = x as f32);
        });
        match out.indexed_iter().find(|(_, x)| !x.is_finite()) {
            Some((_, &found)) => {
                Err(ModelError::Diverged { step: 0, what: "product with the curvature", found: f64::from(found) })
            }
            None => Ok(()),
        }
    }

    /// The products of one chunk of vectors, `[R, P]` flat, in f64.
    fn summed_products(&self, set: &ImageSet, ids: &[u32], kind: Curvature, v: &Vectors) -> Vec<f64> {
        let mut sum = vec![0.0; v.n_vectors * v.dim()];
        let stretches: Vec<&[u32]> = ids.chunks(STRETCH).collect();
        for wave in stretches.chunks(WAVE) {
            let partial = |ids: &&[u32]| {
                let mut out = v.zeros();
                let mut dual = Dual::new(self, self.dual_sizes().1.min(ids.len()), v.n_vectors);
                for ids in ids.chunks(dual.capacity()) {
                    dual.tangent(set, ids, v);
                    dual.adjoint(set, ids, None, kind, v, &mut out);
                }
                out
            };
            let parts: Vec<Vectors> = wave.par_iter().map(partial).collect();
            parts.iter().for_each(|part| part.add_to(&mut sum));
        }
        let share = 1.0 / ids.len() as f64;
        sum.iter_mut().for_each(|x| *x *= share);
        sum
    }

    /// Directional derivatives of the logits, `[n, R, C]`: how they move when the weights move along each row of `v`
    /// `[R, P]` (layer form).
    ///
    /// The bytes do not depend on threads; an image's numbers depend on its company by rounding only.
    ///
    /// # Errors
    /// As [`Self::curvature_products`].
    pub fn tangents(&self, set: &ImageSet, ids: &[u32], v: ArrayView2<'_, f32>) -> Result<Array3<f32>, ModelError> {
        self.check_vectors(set, ids, v)?;
        let mut out = Array3::zeros((ids.len(), v.nrows(), self.network.n_classes()));
        let (vectors, block) = self.dual_sizes();
        for (i, rows) in v.axis_chunks_iter(Axis(0), vectors).enumerate() {
            let rows = Vectors::gather(self, rows);
            let first = i * vectors;
            let mut part = out.slice_mut(s![.., first..first + rows.n_vectors, ..]);
            part.axis_chunks_iter_mut(Axis(0), block).into_par_iter().zip(ids.par_chunks(block)).for_each(
                |(mut out, ids)| {
                    let mut dual = Dual::new(self, ids.len(), rows.n_vectors);
                    let tangents = dual.tangent(set, ids, &rows);
                    out.iter_mut().zip(tangents).for_each(|(out, &x)| *out = x);
                },
            );
        }
        Ok(out)
    }

    /// Vectors of a task, and images of a product.
    pub(super) fn dual_sizes(&self) -> (usize, usize) {
        let vectors = (TASK_NUMBERS / self.layer_dim().max(1)).clamp(1, MAX_VECTORS);
        let block = (TASK_NUMBERS / (vectors * self.network.numbers().max(1))).clamp(1, MAX_BLOCK);
        (vectors, block)
    }

    fn check_vectors(&self, set: &ImageSet, ids: &[u32], v: ArrayView2<'_, f32>) -> Result<(), ModelError> {
        self.check(set, ids, Objective::LOSS)?;
        self.check_len("numbers of a vector in layer form", self.layer_dim(), v.ncols())?;
        match v.indexed_iter().find(|(_, x)| !x.is_finite()) {
            Some(((row, column), x)) => {
                let (what, expected) = ("vector of a curvature product", "finite numbers".into());
                Err(ModelError::Mismatch { what, expected, found: format!("{x} in row {row}, column {column}") })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
