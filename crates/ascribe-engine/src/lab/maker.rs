//! What turns records into rows: the gradient stage on the processor or on a device, or the mean of the last hidden states.
//!
//! Reading records and writing stores live elsewhere.

use ascribe_core::{Column, Digest, FeatureSpec, ProjectorSpec};
use ascribe_models::features::{Example, Memory, Precision};
use ascribe_models::graph::{GraphStage, Numbers, Place, Placement};
use ascribe_models::{Decoder, GradientStage, Sequence};
use ndarray::Array2;

use super::data::{LabData, Window};
use super::features::FeaturesRequest;
use super::model::LabModel;
use crate::error::EngineError;

/// Positions of a batch on a device.
const DEVICE_BATCH_TOKENS: usize = 16 << 10;

/// Makes rows.
pub(super) enum Maker<'m> {
    /// Gradients, the same bytes for any threads and any company.
    Gradients(GradientStage<'m>),
    /// The same gradients from a device, to rounding.
    Device(GradientStage<'m>, Box<GraphStage<'m>>),
    /// Mean hidden states.
    Embeddings(&'m Decoder),
}

impl<'m> Maker<'m> {
    /// What `request` asks for.
    ///
    /// # Errors
    /// Taps that fit nothing, moments of another model, a device that is not there or cannot do it.
    pub fn new(request: &FeaturesRequest, model: &'m LabModel) -> Result<Self, EngineError> {
        if request.embeddings {
            if request.cuda.is_some() {
                return Err(EngineError::Setting {
                    setting: "--device",
                    expected: "cpu beside --embeddings".into(),
                    found: "a CUDA device".into(),
                });
            }
            return Ok(Self::Embeddings(model.decoder()));
        }
        let stage = model.stage(&request.taps, &request.subject)?;
        let Some(ordinal) = request.cuda else { return Ok(Self::Gradients(stage)) };
        let numbers = match request.taps.precision {
            Precision::F32 => Numbers::F32,
            Precision::Bf16 => Numbers::Bf16,
        };
        let placement = Placement { place: Place::Cuda(ordinal), numbers, batch_tokens: DEVICE_BATCH_TOKENS };
        let device = GraphStage::new(model.decoder(), &stage, placement)?;
        Ok(Self::Device(stage, Box::new(device)))
    }

    /// What a progress bar calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embeddings(_) => "embeddings",
            _ => "gradients",
        }
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        match self {
            Self::Gradients(stage) | Self::Device(stage, _) => stage.dim(),
            Self::Embeddings(decoder) => decoder.config().hidden_size,
        }
    }

    /// What rows are comparable with.
    pub fn spec(&self, corpus: Digest) -> FeatureSpec {
        match self {
            Self::Gradients(stage) | Self::Device(stage, _) => stage.spec("final", corpus),
            Self::Embeddings(decoder) => FeatureSpec {
                model: decoder.weights_digest(),
                checkpoint: "final".into(),
                quantity: "hidden_mean".into(),
                loss: "none".into(),
                normalizer: "none".into(),
                projector: ProjectorSpec::Identity,
                columns: vec![Column { name: "hidden".into(), start: 0, len: self.dim() }],
                dim: self.dim(),
                corpus,
            },
        }
    }

    /// Memory of the passes.
    pub fn memory(&self, longest: usize) -> Memory {
        match self {
            Self::Gradients(stage) | Self::Device(stage, _) => stage.memory(longest),
            // One layer's tape and no probabilities: far less than the workspace of a pass that comes back.
            Self::Embeddings(decoder) => Memory {
                weights: 4 * decoder.parameters().len(),
                packed: 0,
                projectors: 0,
                per_thread: ascribe_models::memory::workspace_bytes(decoder.config(), longest, longest) as usize,
            },
        }
    }

    /// Rows of `windows`, `[n, dim]`.
    ///
    /// # Errors
    /// A row that is not finite; a device that fails.
    pub fn rows(&self, data: &LabData, windows: &[&Window]) -> Result<Array2<f32>, EngineError> {
        let sequences = || windows.iter().map(|window| data.sequence(window)).collect::<Vec<Sequence<'_>>>();
        let mut rows = Array2::zeros((windows.len(), self.dim()));
        match self {
            Self::Gradients(stage) => {
                // Labels that are drawn belong to the example, whatever else is computed with it.
                let examples: Vec<Example<'_>> =
                    windows.iter().map(|window| Example::numbered(data.sequence(window), window.id.to_u64())).collect();
                stage.rows_of(&examples, rows.view_mut())?;
            }
            Self::Device(_, device) => {
                device.rows(&sequences(), rows.view_mut())?;
            }
            Self::Embeddings(decoder) => rows = decoder.mean_hidden(&sequences())?,
        }
        Ok(rows)
    }
}
