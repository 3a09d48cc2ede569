//! What is trained: every weight of a decoder, or the weights of an adapter on one whose own stay as they are.
//! The optimiser sees a flat vector and its slots either way.

use ascribe_core::Digest;

use crate::decoder::{Decoder, Sequence};
use crate::error::ModelError;
use crate::gradient::FullGradient;
use crate::layout::ParameterSlot;
use crate::lora::AdaptedDecoder;

/// What is trained.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// All weights.
    Whole(Box<Decoder>),
    /// An adapter; `base` is the digest of the weights under it.
    Adapter { adapted: Box<AdaptedDecoder>, base: Digest },
}

impl Subject {
    /// The decoder that the passes run on.
    pub fn decoder(&self) -> &Decoder {
        match self {
            Self::Whole(decoder) => decoder,
            Self::Adapter { adapted, .. } => adapted.decoder(),
        }
    }

    /// Tensors of the flat vector, in order, without gaps.
    pub fn slots(&self) -> Vec<ParameterSlot> {
        match self {
            Self::Whole(decoder) => decoder.parameter_layout().slots().to_vec(),
            Self::Adapter { adapted, .. } => {
                let slots = adapted.adapter().slots().into_iter();
                slots.map(|s| ParameterSlot { name: s.name, shape: s.shape.to_vec(), range: s.range }).collect()
            }
        }
    }

    /// The trained weights, flat.
    pub fn parameters(&self) -> &[f32] {
        match self {
            Self::Whole(decoder) => decoder.parameters(),
            Self::Adapter { adapted, .. } => adapted.adapter().parameters(),
        }
    }

    /// The trained weights to change: a decoder's own, or `copy` of an adapter's (merging reads those). [`Subject::merge`]
    /// ends the change.
    pub fn parameters_mut<'a>(&'a mut self, copy: &'a mut Vec<f32>) -> &'a mut [f32] {
        match self {
            Self::Whole(decoder) => decoder.parameters_mut(),
            Self::Adapter { adapted, .. } => {
                copy.extend_from_slice(adapted.adapter().parameters());
                copy
            }
        }
    }

    /// Puts an adapter's changed weights into the model.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] if they lead to a weight that is not finite.
    pub fn merge(&mut self, copy: &[f32]) -> Result<(), ModelError> {
        match self {
            Self::Whole(_) => Ok(()),
            Self::Adapter { adapted, .. } => adapted.set_parameters(copy),
        }
    }

    /// Adds the gradients of a group's summed losses to `flat`, one sequence after another; returns the sum of the losses.
    pub fn add_gradient(&self, group: &[Sequence<'_>], flat: &mut [f32]) -> f64 {
        match self {
            Self::Whole(decoder) => decoder.pool().with(|ws| {
                let mut sink = FullGradient::new(decoder, flat);
                group.iter().map(|&sequence| decoder.backward(sequence, ws, &mut sink)).sum::<f64>()
            }),
            Self::Adapter { adapted, .. } => {
                group.iter().map(|&sequence| adapted.add_gradient(sequence, flat)).sum::<f64>()
            }
        }
    }

    /// What a saved state must agree with besides recipe and shape.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        let names = match self {
            Self::Whole(_) => vec![],
            Self::Adapter { adapted, base } => {
                vec![("adapter", adapted.adapter().config().to_json(false).to_string()), ("base", base.to_string())]
            }
        };
        names.into_iter()
    }
}
