//! Decoders and encoders as candle graphs: the independent second route of the hand-written passes, for every family.
//!
//! [`GraphDecoder`]: three routes through the same weights: candle's composed operators in f32 and f64, and, for a plain Llama, our kernels
//! as candle operators. Logits, hidden states, losses and full gradients must agree; speed is not its purpose.
//!
//! [`GraphStage`]: projected gradient rows from batches on a device, with ways back of our own.

mod fused;
mod net;
mod rates;
mod stage;
mod tables;

use candle_core::DType;
use ndarray::Array2;

use crate::decoder::{Decoder, Sequence};
use crate::error::ModelError;
use net::Net;
pub use rates::{DeviceRate, device_rate, product_rate};
pub(crate) use stage::{BlockPlan, SitePlan, TapPlan};
pub use stage::{GraphStage, Numbers, Place, Placement, RowBlock};

/// Which operators a graph is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GraphKind {
    /// Our kernels, wrapped as candle operators with their own backward passes, f32. A plain Llama only.
    Fused,
    /// candle's composed operators, f32: what a user of candle would write.
    Stock,
    /// The same in f64: the reference.
    StockF64,
}

/// A model as a graph of candle tensors.
pub struct GraphDecoder<'m> {
    decoder: &'m Decoder,
    net: Net<'m>,
}

impl<'m> GraphDecoder<'m> {
    /// Copies the weights into variables.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if `kind` is fused and the family is not a plain Llama; [`ModelError::Graph`].
    pub fn new(decoder: &'m Decoder, kind: GraphKind) -> Result<Self, ModelError> {
        let arch = &decoder.config().arch;
        if kind == GraphKind::Fused && !arch.is_plain_llama() {
            return Err(ModelError::Mismatch {
                what: "graph kind",
                expected: "Stock or StockF64 (the fused operators are those of a plain Llama)".into(),
                found: format!("Fused for {:?}", arch.family),
            });
        }
        Ok(Self { decoder, net: Net::new(decoder, kind)? })
    }

    /// Logits `[T, V]`.
    ///
    /// # Errors
    /// What the decoder refuses, and [`ModelError::Graph`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.decoder.check(&[Sequence::whole(tokens)])?;
        array(&self.net.head(&self.net.hidden(tokens)?)?)
    }

    /// Final hidden states `[T, d]`, normed where the family norms them.
    ///
    /// # Errors
    /// What the decoder refuses, and [`ModelError::Graph`].
    pub fn hidden(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.decoder.check_tokens(&[Sequence::whole(tokens)])?;
        array(&self.net.hidden(tokens)?)
    }

    /// Summed loss of the counted positions and its gradient, flat in the order of the decoder's layout.
    ///
    /// # Errors
    /// What the decoder refuses; [`ModelError::Graph`], also when a parameter got no gradient.
    pub fn loss_and_gradient(&self, sequence: Sequence<'_>) -> Result<(f64, Vec<f32>), ModelError> {
        self.decoder.check(&[sequence])?;
        let loss = self.net.loss(sequence)?;
        let gradients = loss.backward()?;
        let mut flat = vec![0.0; self.decoder.parameter_layout().len()];
        for (range, var) in self.net.vars() {
            let gradient = gradients.get(var).ok_or_else(|| {
                let mut slots = self.decoder.parameter_layout().slots().iter();
                let name = slots.find(|slot| slot.range.start == range.start).map_or("", |slot| &slot.name);
                ModelError::Graph(candle_core::Error::Msg(format!("no gradient reached `{name}`")))
            })?;
            let numbers = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            flat[range.clone()].copy_from_slice(&numbers);
        }
        Ok((loss.to_dtype(DType::F64)?.to_scalar()?, flat))
    }
}

fn array(matrix: &candle_core::Tensor) -> Result<Array2<f32>, ModelError> {
    let matrix = matrix.to_dtype(DType::F32)?;
    let numbers = matrix.flatten_all()?.to_vec1::<f32>()?;
    Ok(Array2::from_shape_vec(matrix.dims2()?, numbers).expect("as many numbers as the shape says"))
}

#[cfg(test)]
pub(crate) mod families;
#[cfg(test)]
mod tests;
