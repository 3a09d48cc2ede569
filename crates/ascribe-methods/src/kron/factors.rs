//! Fitted factors: eigenvectors and eigenvalues of every layer, as numbers and as named tensors. Inversion: see `inverse`.

use ascribe_core::Progress;
use ascribe_linalg::SymmetricEigen;
use ndarray::{Array1, Array2, ArrayD, Axis, s};
use rayon::prelude::*;

use super::covariance::{Moments, moments};
use super::eigenvalues::mean_squares;
use super::{Kind, Options};
use crate::error::MethodError;
use crate::projected::{Basis, Projected};
use crate::source::{CaptureSource, Labels, Layer};

/// Curvature of one layer.
#[derive(Clone, Debug)]
pub struct LayerFactors {
    /// The layer.
    pub layer: Layer,
    /// Mean positions per example, `T̄`.
    pub positions: f64,
    /// Eigenvalues of the input side in rising order, negative ones (rounding) set to zero.
    pub input_values: Vec<f64>,
    /// Eigenvalues of the output side, likewise.
    pub output_values: Vec<f64>,
    /// Rows are eigenvectors: `Q_A`, `Q_S`.
    pub basis: Basis,
    /// Measured eigenvalues `[n_out, n_in]`; `None` for K-FAC.
    pub corrected: Option<Array2<f64>>,
}

impl LayerFactors {
    /// Λ, `[n_out, n_in]`: eigenvalue of row a of `Q_S` with row b of `Q_A`, per example, never negative.
    pub fn eigenvalues(&self) -> Array2<f64> {
        self.corrected.clone().unwrap_or_else(|| {
            Array2::from_shape_fn((self.layer.n_out, self.layer.n_in), |(a, b)| {
                self.positions * self.output_values[a] * self.input_values[b]
            })
        })
    }

    /// Below this an eigenvalue is rounding: of f64 covariances, or of gradients turned in f32 (their squares).
    pub(super) fn noise(&self, eigenvalues: &Array2<f64>) -> f64 {
        let largest = eigenvalues.iter().fold(0.0f64, |m, &v| m.max(v));
        match self.corrected {
            None => (self.layer.n_in + self.layer.n_out) as f64 * f64::EPSILON * largest,
            Some(_) => 8.0 * f64::from(f32::EPSILON).powi(2) * eigenvalues.sum(),
        }
    }
}

/// Curvature of all layers.
#[derive(Clone, Debug)]
pub struct Kron {
    kind: Kind,
    n_examples: usize,
    layers: Vec<LayerFactors>,
}

/// A fitted curvature as tensors: names are `LAYER/input_vectors`, `…/output_vectors`, `…/input_values`,
/// `…/output_values`, `…/positions`, and `…/eigenvalues` unless it is K-FAC.
pub type Parts = Vec<(String, ArrayD<f64>)>;

impl Kron {
    /// Fits factors over all examples of `source`. Cost and memory: see the module.
    ///
    /// # Errors
    /// No examples; captures that are not finite (example and layer named); the source's; an eigenvalue iteration that
    /// does not converge; a request to stop.
    pub fn fit(source: &dyn CaptureSource, options: &Options, progress: &dyn Progress) -> Result<Self, MethodError> {
        let n = source.len();
        progress.start("fit covariances", n as u64, "examples");
        let moments = moments(source, options.kind, options.labels, progress)?;
        progress.finish("covariances fitted");
        let mut layers = decompose(source.layers(), &moments)?;
        if options.kind != Kind::Kfac {
            let bases: Vec<Basis> = layers.iter().map(|l| l.basis.clone()).collect();
            let single: Vec<bool> = moments.iter().map(|m| m.single).collect();
            let turned = Projected::new(source, &bases)?;
            progress.start("fit eigenvalues", n as u64, "examples");
            let labels = if options.redraw { options.labels.redrawn() } else { options.labels };
            let values = mean_squares(&turned, &single, labels, progress)?;
            progress.finish("eigenvalues fitted");
            layers.iter_mut().zip(values).for_each(|(l, v)| l.corrected = Some(v));
        }
        Ok(Self { kind: options.kind, n_examples: n, layers })
    }

    /// Mean squares of other examples' gradients in this basis, per layer `[n_out, n_in]`: what Λ would be if it were measured
    /// on them. Cost: one pass of the source and `2(n_in² + n_out² + n_in·n_out)` per position.
    ///
    /// # Errors
    /// No examples, other layers, gradients that are not finite, the source's, a request to stop.
    pub fn measure(
        &self,
        source: &dyn CaptureSource,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<Array2<f64>>, MethodError> {
        if source.is_empty() {
            return Err(MethodError::Empty { what: "the set of examples to measure" });
        }
        let bases: Vec<Basis> = self.layers.iter().map(|l| l.basis.clone()).collect();
        let turned = Projected::new(source, &bases)?;
        progress.start("measure eigenvalues", source.len() as u64, "examples");
        // The route for several positions is right for one as well.
        let values = mean_squares(&turned, &vec![false; bases.len()], labels, progress)?;
        progress.finish("eigenvalues measured");
        Ok(values)
    }

    /// The kind that was fitted.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Examples that were averaged.
    pub fn n_examples(&self) -> usize {
        self.n_examples
    }

    /// Layers, in the order of flat vectors.
    pub fn layers(&self) -> &[LayerFactors] {
        &self.layers
    }

    /// Length of a flat vector.
    pub fn dim(&self) -> usize {
        self.layers.iter().map(|l| l.layer.len()).sum()
    }

    /// Plain layer descriptions.
    pub(crate) fn plain_layers(&self) -> Vec<Layer> {
        self.layers.iter().map(|l| l.layer.clone()).collect()
    }

    /// Mean of Λ per layer: what relative damping is relative to.
    pub fn mean_eigenvalues(&self) -> Vec<f64> {
        let mean = |l: &LayerFactors| l.eigenvalues().sum() / l.layer.len().max(1) as f64;
        self.layers.iter().map(mean).collect()
    }

    /// The `k_in`, `k_out` leading eigenvectors of every layer (fewer where a layer is smaller), largest eigenvalue first:
    /// bases for [`Projected`], LoGra's PCA projection (arXiv:2405.13954, section 4.1).
    ///
    /// # Errors
    /// [`MethodError::Parameter`] for a `k` of zero.
    pub fn leading(&self, k_in: usize, k_out: usize) -> Result<Vec<Basis>, MethodError> {
        for (field, k) in [("k_in", k_in), ("k_out", k_out)] {
            if k == 0 {
                return Err(MethodError::Parameter { field, expected: "at least 1", found: 0.0 });
            }
        }
        let top = |q: &Array2<f64>, k: usize| {
            let n = q.nrows();
            let mut rows = q.slice(s![n - k.min(n).., ..]).to_owned();
            rows.invert_axis(Axis(0));
            rows.as_standard_layout().into_owned()
        };
        let basis = |l: &LayerFactors| Basis { input: top(&l.basis.input, k_in), output: top(&l.basis.output, k_out) };
        Ok(self.layers.iter().map(basis).collect())
    }

    /// Named tensors for a factor file.
    pub fn to_parts(&self) -> Parts {
        let mut parts = Parts::new();
        for l in &self.layers {
            let mut push = |what: &str, tensor: ArrayD<f64>| parts.push((format!("{}/{what}", l.layer.name), tensor));
            push("input_vectors", l.basis.input.clone().into_dyn());
            push("output_vectors", l.basis.output.clone().into_dyn());
            push("input_values", Array1::from(l.input_values.clone()).into_dyn());
            push("output_values", Array1::from(l.output_values.clone()).into_dyn());
            push("positions", Array1::from(vec![l.positions]).into_dyn());
            if let Some(values) = &l.corrected {
                push("eigenvalues", values.clone().into_dyn());
            }
        }
        parts
    }

    /// Factors read back; tensors may come in any order.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, is not finite, or an eigenvalue that is negative; its name is named.
    pub fn from_parts(kind: Kind, n_examples: usize, layers: &[Layer], parts: &Parts) -> Result<Self, MethodError> {
        let take = |layer: &Layer, what: &str, shape: &[usize]| -> Result<ArrayD<f64>, MethodError> {
            let name = format!("{}/{what}", layer.name);
            let found = parts.iter().find(|(n, _)| *n == name);
            let Some((_, tensor)) = found else {
                return Err(MethodError::shape("tensors of a factor file", name, "none"));
            };
            if tensor.shape() != shape {
                let expected = format!("{name} {shape:?}");
                return Err(MethodError::shape("shape of a factor", expected, tensor.shape()));
            }
            let signed = what.ends_with("vectors");
            if let Some((i, &v)) = tensor.iter().enumerate().find(|(_, v)| !v.is_finite() || (!signed && **v < 0.0)) {
                return Err(MethodError::BadValue { what: name, row: i, column: 0, found: v });
            }
            Ok(tensor.clone())
        };
        let matrix = |layer: &Layer, what: &str, shape: [usize; 2]| {
            take(layer, what, &shape).map(|t| t.into_dimensionality().expect("its shape was checked"))
        };
        let read = |layer: &Layer| -> Result<LayerFactors, MethodError> {
            let values = |what: &str, n: usize| take(layer, what, &[n]).map(|t| t.iter().copied().collect::<Vec<_>>());
            let corrected = match kind {
                Kind::Kfac => None,
                _ => Some(matrix(layer, "eigenvalues", [layer.n_out, layer.n_in])?),
            };
            Ok(LayerFactors {
                positions: values("positions", 1)?[0],
                input_values: values("input_values", layer.n_in)?,
                output_values: values("output_values", layer.n_out)?,
                basis: Basis {
                    input: matrix(layer, "input_vectors", [layer.n_in; 2])?,
                    output: matrix(layer, "output_vectors", [layer.n_out; 2])?,
                },
                corrected,
                layer: layer.clone(),
            })
        };
        let layers: Vec<LayerFactors> = layers.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { kind, n_examples, layers })
    }
}

/// Eigenvectors of both sides of every layer, all side by side.
fn decompose(layers: &[Layer], moments: &[Moments]) -> Result<Vec<LayerFactors>, MethodError> {
    let eigens: Vec<SymmetricEigen> = (0..2 * layers.len())
        .into_par_iter()
        .map(|task| {
            let (layer, own) = (&layers[task / 2], &moments[task / 2]);
            let side = if task % 2 == 0 { &own.input } else { &own.output };
            SymmetricEigen::of(side.view()).map_err(|source| MethodError::Factor {
                module: layer.name.clone(),
                damping_rel: 0.0,
                source,
            })
        })
        .collect::<Result<_, _>>()?;
    let positive = |values: &[f64]| values.iter().map(|v| v.max(0.0)).collect::<Vec<_>>();
    let layer = |(i, layer): (usize, &Layer)| LayerFactors {
        layer: layer.clone(),
        positions: moments[i].positions,
        input_values: positive(&eigens[2 * i].values),
        output_values: positive(&eigens[2 * i + 1].values),
        basis: Basis { input: eigens[2 * i].vectors.clone(), output: eigens[2 * i + 1].vectors.clone() },
        corrected: None,
    };
    Ok(layers.iter().enumerate().map(layer).collect())
}
