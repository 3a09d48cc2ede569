//! A classifier's convolutions and dense layers as matrices `[out, in]` with the bias as a last input column: the coordinates
//! of curvature methods, and the way between them and the flat parameters. What a layer saw stands in `capture`.

use std::ops::Range;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::Classifier;
use super::data::ImageSet;
use super::gradient::finite;
use super::loss::Objective;
use super::network::Op;
use crate::error::ModelError;

/// A convolution or dense layer as a matrix. Gains and biases of norms are in no such layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayer {
    /// PyTorch's name of the module.
    pub name: String,
    /// Outputs (a convolution's channels).
    pub n_out: usize,
    /// Inputs (a convolution's `C·k·k`), the constant 1 of a bias included.
    pub n_in: usize,
    /// True with a bias: the last input is always 1.
    pub bias: bool,
    /// Positions that an image has in the layer: 1 for a dense layer.
    pub positions: usize,
    /// Place among the network's nodes.
    pub(super) node: usize,
    weight: Range<usize>,
    bias_range: Range<usize>,
}

impl LinearLayer {
    /// Numbers of the matrix.
    pub fn len(&self) -> usize {
        self.n_out * self.n_in
    }

    /// True for a layer without weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Inputs without the constant of the bias.
    pub(super) fn fan_in(&self) -> usize {
        self.n_in - usize::from(self.bias)
    }
}

impl Classifier {
    /// The layers from the image to the logits.
    pub fn linear_layers(&self) -> Vec<LinearLayer> {
        let layer = |(node, n): (usize, &super::network::Node)| {
            let (weight, bias, n_out, fan_in, positions) = match &n.op {
                Op::Conv { conv, weight, bias } => (weight, bias, conv.channels_out, conv.patch(), conv.area()),
                Op::Dense { fan_in, fan_out, weight, bias } => (weight, bias, *fan_out, *fan_in, 1),
                _ => return None,
            };
            Some(LinearLayer {
                name: n.name.clone(),
                n_out,
                n_in: fan_in + usize::from(bias.is_some()),
                bias: bias.is_some(),
                positions,
                node,
                weight: weight.clone(),
                bias_range: bias.clone().unwrap_or_default(),
            })
        };
        self.network.nodes.iter().enumerate().filter_map(layer).collect()
    }

    /// Numbers of all layers' matrices, one after the other: the length of a vector in layer form.
    pub fn layer_dim(&self) -> usize {
        self.linear_layers().iter().map(LinearLayer::len).sum()
    }

    /// A vector over the flat parameters in layer form: per layer `[n_out, n_in]` row-major. What belongs to norms is left
    /// out.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for a vector of another length.
    pub fn to_layers(&self, flat: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.check_len("numbers of a parameter vector", self.parameters.len(), flat.len())?;
        let mut out = Vec::with_capacity(flat.len());
        for layer in self.linear_layers() {
            for (o, row) in flat[layer.weight.clone()].chunks_exact(layer.fan_in()).enumerate() {
                out.extend_from_slice(row);
                if layer.bias {
                    out.push(flat[layer.bias_range.start + o]);
                }
            }
        }
        Ok(out)
    }

    /// A vector in layer form as one over the flat parameters, 0 where a norm's are.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for a vector of another length.
    pub fn from_layers(&self, vector: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.check_len("numbers of a vector in layer form", self.layer_dim(), vector.len())?;
        let mut flat = vec![0.0; self.parameters.len()];
        let mut rest = vector;
        for layer in self.linear_layers() {
            let (matrix, behind) = rest.split_at(layer.len());
            rest = behind;
            for (o, row) in matrix.chunks_exact(layer.n_in).enumerate() {
                let fan_in = layer.fan_in();
                flat[layer.weight.start + o * fan_in..][..fan_in].copy_from_slice(&row[..fan_in]);
                if layer.bias {
                    flat[layer.bias_range.start + o] = row[fan_in];
                }
            }
        }
        Ok(flat)
    }

    /// [`Classifier::gradients`] in layer form, `[n, P]`.
    ///
    /// # Errors
    /// As [`Classifier::gradients`].
    pub fn layer_gradients(
        &self,
        set: &ImageSet,
        ids: &[u32],
        objective: Objective<'_>,
    ) -> Result<Array2<f32>, ModelError> {
        self.rows_in_layers(&self.gradients(set, ids, objective)?)
    }

    /// Gradient in layer form `[n, P]` of `⟨d, logits⟩` for the rows `d` of `d_logits` `[n, C]`, one per image: the
    /// vector-Jacobian product of each image on its own.
    ///
    /// A row's bytes depend on its image and `d` alone.
    ///
    /// # Errors
    /// As [`Classifier::logits`]; [`ModelError::Mismatch`] for another shape of `d_logits`, [`ModelError::Diverged`] for one
    /// that is not finite.
    pub fn vjp(&self, set: &ImageSet, ids: &[u32], d_logits: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        self.check_images(set, ids)?;
        let shape = (ids.len(), self.network.n_classes());
        if d_logits.dim() != shape {
            let (what, expected) = ("shape of the gradients by the logits", format!("{shape:?}"));
            return Err(ModelError::Mismatch { what, expected, found: format!("{:?}", d_logits.dim()) });
        }
        finite(d_logits.iter().map(|&d| f64::from(d)).collect(), "gradient by the logits")?;
        let n_parameters = self.parameters.len();
        let mut flat = Array2::zeros((ids.len(), n_parameters));
        let rows = flat.as_slice_mut().expect("a fresh array is contiguous");
        let group = self.group();
        rows.par_chunks_mut(group * n_parameters).zip(ids.par_chunks(group)).enumerate().for_each(|(i, (out, ids))| {
            let given = d_logits.slice(ndarray::s![i * group..i * group + ids.len(), ..]);
            self.backward_given(set, ids, given, out);
        });
        self.rows_in_layers(&flat)
    }

    fn rows_in_layers(&self, flat: &Array2<f32>) -> Result<Array2<f32>, ModelError> {
        let mut out = Array2::zeros((flat.nrows(), self.layer_dim()));
        for (mut out, row) in out.rows_mut().into_iter().zip(flat.rows()) {
            let row = self.to_layers(row.as_slice().expect("rows of a fresh array are contiguous"))?;
            out.iter_mut().zip(row).for_each(|(out, x)| *out = x);
        }
        Ok(out)
    }

    pub(super) fn check_len(&self, what: &'static str, expected: usize, found: usize) -> Result<(), ModelError> {
        if expected == found {
            return Ok(());
        }
        Err(ModelError::Mismatch { what, expected: expected.to_string(), found: found.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use crate::vision::ops::differences::{inner, noise};
    use crate::vision::tests::{FIXTURES, Fixture};
    use crate::vision::{Classifier, ClassifierConfig, ClassifierKind, Objective};

    /// Two inputs, three classes: weights 0 to 5, biases 6 to 8, so row o is `[2o, 2o + 1, 6 + o]`.
    #[test]
    fn a_bias_is_the_last_column() {
        let config = ClassifierConfig::new([1, 1, 2], 3, ClassifierKind::LogisticRegression);
        let model = Classifier::init(config, 1).unwrap();
        let flat: Vec<f32> = (0..9u8).map(f32::from).collect();
        let layers = model.to_layers(&flat).unwrap();
        assert_eq!(layers, [0.0, 1.0, 6.0, 2.0, 3.0, 7.0, 4.0, 5.0, 8.0]);
        assert_eq!(model.from_layers(&layers).unwrap(), flat);
        assert!(model.to_layers(&flat[1..]).is_err() && model.from_layers(&layers[1..]).is_err());
    }

    #[test]
    fn every_weight_of_a_layer_comes_back_and_norms_are_zero() {
        for name in FIXTURES {
            let model = Fixture::open(name).model;
            let flat = noise("flat", model.parameters().len());
            let back = model.from_layers(&model.to_layers(&flat).unwrap()).unwrap();
            let zeros = back.iter().zip(&flat).filter(|(b, x)| b.to_bits() != x.to_bits()).count();
            assert_eq!(zeros, flat.len() - model.layer_dim(), "{name}");
            let norms: usize = model.parameter_slots().iter().filter(|s| s.name.contains(".1.")).count();
            assert_eq!(zeros > 0, norms > 0, "{name}");
        }
    }

    /// The gradient of the loss is the product with its own gradient by the logits.
    #[test]
    fn a_vector_jacobian_product_of_the_losses_gradient_is_the_gradient() {
        for name in FIXTURES {
            let Fixture { model, set, .. } = Fixture::open(name);
            let ids: Vec<u32> = (0..set.len() as u32).collect();
            let logits = model.logits(&set, &ids).unwrap();
            let mut d: Array2<f32> = Array2::zeros(logits.dim());
            for ((mut d, z), &id) in d.rows_mut().into_iter().zip(logits.rows()).zip(&ids) {
                let exps: Vec<f64> = z.iter().map(|&z| f64::from(z).exp()).collect();
                let sum: f64 = exps.iter().sum();
                d.iter_mut().zip(exps).for_each(|(d, e)| *d = (e / sum) as f32);
                d[set.labels()[id as usize] as usize] -= 1.0;
            }
            let ours = model.vjp(&set, &ids, d.view()).unwrap();
            let gradients = model.layer_gradients(&set, &ids, Objective::LOSS).unwrap();
            let difference = &ours - &gradients;
            let norm = |a: &Array2<f32>| inner(a.as_slice().unwrap(), a.as_slice().unwrap()).sqrt();
            assert!(norm(&difference) < 1e-5 * norm(&gradients), "{name}");
            assert!(model.vjp(&set, &ids[1..], d.view()).is_err());
            d[(0, 0)] = f32::NAN;
            assert!(model.vjp(&set, &ids, d.view()).is_err());
        }
    }
}
