//! A source of captures seen through two matrices per layer: `x → P_in x`, `δ → P_out δ`, hence `g → P_out g P_inᵀ`.
//!
//! Every method that runs on captures runs on projected gradients through this wrapper. With orthonormal rows (eigenvectors
//! of K-FAC's covariances) it is the PCA form of LoGra (arXiv:2405.13954, section 4.1); with all eigenvectors it is the basis
//! in which EK-FAC is diagonal. Here never lives: where the matrices come from.

use ascribe_linalg::packed::{PackedMatrix, Precision, Rows};
use ascribe_linalg::{Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::captured::{Spare, check_vectors};
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer, LayerCapture};

/// Two matrices that make a layer smaller (or turn it).
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    /// `P_in`, `[k_in, n_in]`.
    pub input: Array2<f64>,
    /// `P_out`, `[k_out, n_out]`.
    pub output: Array2<f64>,
}

/// A source whose layers are `[k_out, k_in]`. Products are f32, one chain per number: no example feels its company.
pub struct Projected<'a> {
    inner: &'a dyn CaptureSource,
    layers: Vec<Layer>,
    bases: &'a [Basis],
    packed: Vec<[PackedMatrix; 2]>,
    /// Memory of passes that ended.
    spare: Spare,
}

impl<'a> Projected<'a> {
    /// Wraps `inner`, one basis per layer. Cost per position and layer: `2(k_in·n_in + k_out·n_out)` on top of the pass.
    ///
    /// # Errors
    /// [`MethodError::Shape`] when a basis does not fit its layer, [`MethodError::BadValue`] when it is not finite.
    pub fn new(inner: &'a dyn CaptureSource, bases: &'a [Basis]) -> Result<Self, MethodError> {
        if bases.len() != inner.layers().len() {
            return Err(MethodError::shape("bases, one per layer", inner.layers().len(), bases.len()));
        }
        let mut layers = Vec::with_capacity(bases.len());
        let mut packed = Vec::with_capacity(bases.len());
        for (layer, basis) in inner.layers().iter().zip(bases) {
            let (expected, found) = ((layer.n_in, layer.n_out), (basis.input.ncols(), basis.output.ncols()));
            if expected != found {
                return Err(MethodError::shape("columns of a basis, inputs and outputs", expected, found));
            }
            for side in [&basis.input, &basis.output] {
                crate::dot::check_finite(&format!("basis of {}", layer.name), side.view())?;
            }
            layers.push(Layer { name: layer.name.clone(), n_out: basis.output.nrows(), n_in: basis.input.nrows() });
            let pack = |side: &Array2<f64>| PackedMatrix::new(Precision::F32, side.mapv(|v| v as f32).t());
            packed.push([pack(&basis.input), pack(&basis.output)]);
        }
        Ok(Self { inner, layers, bases, packed, spare: Spare::default() })
    }

    /// Flat vectors of the wrapped layers, `[R, P]`, as vectors of these: `P_out V P_inᵀ` per layer, in f64.
    ///
    /// # Errors
    /// Vectors of another length or not finite.
    pub fn project(&self, vectors: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        check_vectors(self.inner.layers(), vectors)?;
        let mut out = Array2::<f32>::zeros((vectors.nrows(), crate::source::dim(&self.layers)));
        let rows: Vec<_> = out.rows_mut().into_iter().zip(vectors.rows()).collect();
        rows.into_par_iter().for_each(|(mut to, from)| {
            let (mut start, mut first) = (0, 0);
            for ((layer, basis), own) in self.inner.layers().iter().zip(self.bases).zip(&self.layers) {
                let v = from.slice(s![start..start + layer.len()]).mapv(f64::from);
                let v = v.into_shape_with_order((layer.n_out, layer.n_in)).expect("a layer's part of a flat vector");
                let (mut half, mut whole) =
                    (Array2::zeros((layer.n_out, own.n_in)), Array2::zeros((own.n_out, own.n_in)));
                gemm_f64(1.0, v.view(), basis.input.t(), 0.0, half.view_mut(), Threads::One);
                gemm_f64(1.0, basis.output.view(), half.view(), 0.0, whole.view_mut(), Threads::One);
                to.slice_mut(s![first..first + own.len()]).iter_mut().zip(&whole).for_each(|(to, &v)| *to = v as f32);
                start += layer.len();
                first += own.len();
            }
        });
        Ok(out)
    }
}

impl CaptureSource for Projected<'_> {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let mut whole = self.spare.take();
        crate::captured::capture(self.inner, examples, labels, &mut whole)?;
        out.starts.clone_from(&whole.starts);
        out.losses.clone_from(&whole.losses);
        out.layers.resize_with(self.layers.len(), LayerCapture::default);
        for ((seen, packed), own) in whole.layers.iter().zip(&self.packed).zip(&mut out.layers) {
            multiply(&seen.x, &packed[0], &mut own.x);
            multiply(&seen.delta, &packed[1], &mut own.delta);
        }
        self.spare.give(whole);
        Ok(())
    }
}

/// `out ← rows · Pᵀ`, in the memory of `out` where it fits.
fn multiply(rows: &Array2<f32>, packed: &PackedMatrix, out: &mut Array2<f32>) {
    let (m, k) = rows.dim();
    if out.dim() != (m, packed.n()) {
        *out = Array2::zeros((m, packed.n()));
    }
    let data = rows.as_slice().expect("checked captures are row-major");
    let to = out.as_slice_mut().expect("a fresh matrix is row-major");
    packed.multiply(&Rows::new(m, k, k, data), 0.0, to, packed.n());
}
