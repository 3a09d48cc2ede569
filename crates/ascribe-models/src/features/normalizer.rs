//! Optimiser-state scaling of gradients: every number divided by the root of its second moment.
//! How moments come about lives in `train`; this reads them from a file or a trainer.

use std::path::Path;

use ascribe_core::Digest;
use ndarray::Array2;

use super::block::{Block, Side};
use super::plan::mismatch;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::weights;

/// `g → g/(√v̂ + ε)` with Adam's bias-corrected second moments (arXiv:1412.6980; as a feature: arXiv:2410.17413, section 3).
#[derive(Clone, Debug)]
pub struct Normalizer {
    /// Second moments, flat in the order of the decoder's parameters, bias-corrected.
    moments: Vec<f32>,
    eps: f32,
    digest: Digest,
}

impl Normalizer {
    /// From second moments in the order of [`Decoder::parameter_layout`]. `step` is the number of updates that made them:
    /// they are divided by `1 − β₂^step`; `None` takes them as they are.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for another number of moments, one that is negative or not finite, or an `eps` that is not
    /// positive.
    pub fn adam(
        decoder: &Decoder,
        mut moments: Vec<f32>,
        step: Option<(u32, f64)>,
        eps: f32,
    ) -> Result<Self, ModelError> {
        if moments.len() != decoder.layout.len() {
            let (expected, found) = (decoder.layout.len().to_string(), moments.len().to_string());
            return Err(mismatch("number of second moments", expected, found));
        }
        if let Some(i) = moments.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            let slot = decoder.layout.slots().iter().find(|slot| slot.range.contains(&i));
            let name = slot.map_or("", |slot| slot.name.as_str());
            return Err(mismatch(
                "second moment",
                "a finite number of at least 0".into(),
                format!("{} in `{name}`", moments[i]),
            ));
        }
        if !(eps.is_finite() && eps > 0.0) {
            return Err(mismatch("eps of the second moments", "a positive number".into(), eps.to_string()));
        }
        if let Some((step, beta2)) = step {
            let correction = 1.0 - beta2.powi(step.max(1).min(i32::MAX as u32) as i32);
            if !(correction > 0.0 && correction <= 1.0) {
                return Err(mismatch("beta2 of the second moments", "a number in [0, 1)".into(), beta2.to_string()));
            }
            moments.iter_mut().for_each(|v| *v = (f64::from(*v) / correction) as f32);
        }
        let bytes: Vec<u8> = moments.iter().chain([&eps]).flat_map(|x| x.to_le_bytes()).collect();
        Ok(Self { moments, eps, digest: Digest::of(&bytes) })
    }

    /// From a safetensors file that holds one tensor per parameter under `prefix` + its Hugging Face name (a training state
    /// has them under `adam_v.`); other tensors are left alone.
    ///
    /// # Errors
    /// [`ModelError::Io`], and what [`Decoder::load`] says of a file that is torn, or lacks or misshapes a tensor; what
    /// [`Normalizer::adam`] refuses.
    pub fn from_file(
        decoder: &Decoder,
        path: &Path,
        prefix: &str,
        step: Option<(u32, f64)>,
        eps: f32,
    ) -> Result<Self, ModelError> {
        // A training state holds weights and both moments.
        let bytes = weights::read_capped(path, 4 * decoder.layout.len())?;
        let file = weights::open(&bytes, path)?;
        let moments = weights::fill(&file, path, &decoder.layout, prefix)?;
        Self::adam(decoder, moments, step, eps)
    }

    /// Name in a feature spec: rows of different moments must not be compared.
    pub fn spec_name(&self) -> String {
        format!("adam_v:{}", self.digest)
    }

    /// Factors of one parameter of the layout.
    pub(super) fn factors(&self, place: std::ops::Range<usize>) -> impl Iterator<Item = f32> + '_ {
        self.moments[place].iter().map(|v| 1.0 / (v.sqrt() + self.eps))
    }

    /// Factors of a block's gradient, after its masks, `[O, I]`.
    pub(super) fn matrix(&self, decoder: &Decoder, block: &Block, transposed: bool) -> Result<Array2<f32>, ModelError> {
        let (fan_in, fan_out) = (block.input.fan(), block.output.fan());
        let mut flat = Vec::with_capacity(fan_in * fan_out);
        // A fused block is several tensors, one under the other.
        for name in block.parameter.split('+') {
            let name = format!("{name}.weight");
            let tied =
                decoder.config.tie_word_embeddings && name == format!("{}.weight", decoder.layout.head.parts[0].name);
            let slot = decoder.layout.slots().iter().find(|slot| slot.name == name);
            let place = match slot {
                Some(slot) => slot.range.clone(),
                None if tied => decoder.layout.embedding.clone(),
                None => return Err(mismatch("second moments", format!("a parameter `{name}`"), "none".into())),
            };
            flat.extend(self.factors(place));
        }
        let shape = if transposed { (fan_in, fan_out) } else { (fan_out, fan_in) };
        let whole = Array2::from_shape_vec(shape, flat).map_err(|error| {
            mismatch("second moments", format!("{shape:?} numbers of `{}`", block.parameter), error.to_string())
        })?;
        let whole = if transposed { whole.reversed_axes() } else { whole };
        let kept = |side: &Side| match side {
            Side::Pick { kept, .. } => kept.clone(),
            other => (0..other.fan()).collect(),
        };
        let (rows, columns) = (kept(&block.output), kept(&block.input));
        Ok(Array2::from_shape_fn((rows.len(), columns.len()), |(i, j)| whole[(rows[i], columns[j])]))
    }
}
