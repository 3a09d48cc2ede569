//! Classifiers of images and tables for influence benchmarks: logistic regression, MLP, LeNet, ResNet-9, in f32.
//!
//! Written by hand like the decoder: per-example gradients exact and independent of batch, order and threads (bit for bit),
//! taps, embeddings, deterministic training with resume, and banks of small models trained side by side. Batch normalisation
//! uses its running statistics everywhere but in a training step: with a batch's statistics an example's gradient would
//! depend on its neighbours and not be its own. Here never lives: what a gradient is used for, what a dataset is.
//!
//! ```
//! use ascribe_models::vision::{Classifier, ClassifierConfig, ClassifierKind, ImageSet, Normalization, Objective};
//!
//! # fn main() -> Result<(), ascribe_models::ModelError> {
//! let set = ImageSet::from_f32([1, 1, 2], vec![1.0, 0.0, 0.0, 2.0], vec![0, 2], &Normalization::default())?;
//! let config = ClassifierConfig::new([1, 1, 2], 3, ClassifierKind::LogisticRegression);
//! let model = Classifier::init(config, 7)?;
//! let gradients = model.gradients(&set, &[0, 1], Objective::LOSS)?; // [2 images, 3·2 weights + 3 biases]
//! // The bias gradient is p − e_y, and the weight gradient of column 0 the same times x₀ = 1.
//! assert_eq!(gradients[(0, 0)], gradients[(0, 6)]);
//! # Ok(())
//! # }
//! ```

pub mod bank;
mod capture;
pub mod config;
pub mod curvature;
pub mod data;
mod features;
mod gradient;
mod layers;
pub mod loss;
mod network;
mod ops;
mod pass;
pub mod train;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ascribe_core::{Digest, RowType};
use ascribe_linalg::Stream;
use ndarray::Array2;
use rayon::prelude::*;

pub use bank::{BankJob, train_bank};
pub use capture::LayerRows;
pub use config::{ClassifierConfig, ClassifierKind, Pooling, ResNet9Form};
pub use curvature::Curvature;
pub use data::{ImageSet, Normalization};
pub use features::{ClassifierStage, ClassifierTaps};
pub use layers::LinearLayer;
pub use loss::{Measure, Objective, Target};
pub use train::{ClassifierRecipe, ClassifierStep, ClassifierTrainer, Metagradients, Optimizer, Replay, Schedule};

use crate::config::CONFIG_FILE;
use crate::error::ModelError;
use crate::layout::ParameterSlot;
use crate::weights::{self, Tensor};
use network::{Network, Op};
use pass::Pool;

/// Name of the weights file in a model folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// What PyTorch's batch normalisation counts and nothing reads.
const IGNORED_SUFFIX: &str = ".num_batches_tracked";

/// Numbers of activations that a worker's group of examples may fill; keeps them in a core's cache. Not part of the results.
const GROUP_NUMBERS: usize = 1 << 17;

/// Examples of a group at most.
const MAX_GROUP: usize = 32;

/// A classifier with f32 weights.
#[derive(Clone, Debug)]
pub struct Classifier {
    pub(crate) config: ClassifierConfig,
    network: Arc<Network>,
    parameters: Vec<f32>,
    /// Running means and variances.
    buffers: Vec<f32>,
    pool: Pool,
    file_digest: Option<Digest>,
}

impl Classifier {
    /// Opens `config.json` and `model.safetensors` (a PyTorch `state_dict`: f32, bf16 or f16) of the folder `dir`.
    ///
    /// # Errors
    /// As [`Classifier::load`].
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::load(ClassifierConfig::from_file(dir)?, &dir.join(WEIGHTS_FILE))
    }

    /// Reads the weights of `config` from a safetensors file.
    ///
    /// # Errors
    /// A missing or foreign file; a missing, extra, misshapen or non-finite tensor, a negative variance: each names the
    /// file, the tensor, what was expected and what was found.
    pub fn load(config: ClassifierConfig, path: &Path) -> Result<Self, ModelError> {
        let network = build(&config)?;
        let bytes = weights::read_capped(path, network.n_parameters + network.n_buffers)?;
        let file = weights::open(&bytes, path)?;
        let mut parameters = vec![0.0; network.n_parameters];
        let mut buffers = vec![0.0; network.n_buffers];
        for slot in &network.parameters {
            weights::read_tensor(&file, path, &slot.name, &slot.shape, &mut parameters[slot.range.clone()])?;
        }
        for slot in &network.buffers {
            weights::read_tensor(&file, path, &slot.name, &slot.shape, &mut buffers[slot.range.clone()])?;
        }
        let known = |name: &str| network.parameters.iter().chain(&network.buffers).any(|slot| slot.name == name);
        let mut names = file.names();
        names.sort_unstable();
        if let Some(name) = names.into_iter().find(|name| !known(name) && !name.ends_with(IGNORED_SUFFIX)) {
            return Err(ModelError::ExtraTensor { path: path.into(), tensor: name.into() });
        }
        let mut model = Self::from_parts(config, network, parameters, buffers);
        model.check_variances(path)?;
        model.file_digest = Some(Digest::of(&bytes));
        Ok(model)
    }

    /// Fresh weights as PyTorch draws them by default: weights and biases of a layer uniform within `±1/√fan_in`, gains and
    /// variances 1, the rest 0. Each tensor draws the stream `init/{name}` of `seed`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration contradicts itself.
    pub fn init(config: ClassifierConfig, seed: u64) -> Result<Self, ModelError> {
        let network = build(&config)?;
        let mut parameters = vec![0.0f32; network.n_parameters];
        let mut buffers = vec![0.0f32; network.n_buffers];
        for node in &network.nodes {
            let (fan_in, weight, bias) = match &node.op {
                Op::Conv { conv, weight, bias } => (conv.patch(), weight, bias.as_ref()),
                Op::Dense { fan_in, weight, bias, .. } => (*fan_in, weight, bias.as_ref()),
                Op::Norm { gain, variance, .. } => {
                    parameters[gain.clone()].fill(1.0);
                    buffers[variance.clone()].fill(1.0);
                    continue;
                }
                _ => continue,
            };
            let bound = 1.0 / (fan_in as f64).sqrt();
            for (range, what) in [(Some(weight), "weight"), (bias, "bias")] {
                let mut stream = Stream::new(seed, &format!("init/{}.{what}", node.name));
                let draw = || ((2.0 * stream.uniform() - 1.0) * bound) as f32;
                parameters[range.cloned().unwrap_or_default()].fill_with(draw);
            }
        }
        Ok(Self::from_parts(config, network, parameters, buffers))
    }

    /// A classifier around given weights and running statistics, flat in the order of [`Self::parameter_slots`] and
    /// [`Self::buffer_slots`].
    ///
    /// # Errors
    /// A configuration that contradicts itself, other numbers of weights, a weight that is not finite.
    pub fn from_parameters(
        config: ClassifierConfig,
        parameters: Vec<f32>,
        buffers: Vec<f32>,
    ) -> Result<Self, ModelError> {
        let network = build(&config)?;
        for (what, expected, found) in [
            ("number of weights", network.n_parameters, parameters.len()),
            ("number of running statistics", network.n_buffers, buffers.len()),
        ] {
            if expected != found {
                return Err(ModelError::Mismatch { what, expected: expected.to_string(), found: found.to_string() });
            }
        }
        let memory = Path::new("<memory>");
        for (slots, flat) in [(&network.parameters, &parameters), (&network.buffers, &buffers)] {
            for slot in slots {
                weights::check_finite(&flat[slot.range.clone()], memory, &slot.name)?;
            }
        }
        let model = Self::from_parts(config, network, parameters, buffers);
        model.check_variances(memory)?;
        Ok(model)
    }

    fn from_parts(config: ClassifierConfig, network: Network, parameters: Vec<f32>, buffers: Vec<f32>) -> Self {
        Self { config, network: Arc::new(network), parameters, buffers, pool: Pool::default(), file_digest: None }
    }

    fn check_variances(&self, path: &Path) -> Result<(), ModelError> {
        for slot in self.network.buffers.iter().filter(|slot| slot.name.ends_with("running_var")) {
            if let Some(found) = self.buffers[slot.range.clone()].iter().find(|&&x| x < 0.0) {
                let (expected, found) = ("variances of at least 0".into(), found.to_string());
                return Err(ModelError::Tensor { path: path.into(), tensor: slot.name.clone(), expected, found });
            }
        }
        Ok(())
    }

    /// Writes the weights as a PyTorch `state_dict` in safetensors; returns the SHA-256 of the file.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save(
        &self,
        path: &Path,
        row_type: RowType,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Digest, ModelError> {
        let mut metadata = metadata.clone();
        metadata.entry("format".into()).or_insert_with(|| "pt".into());
        let tensors = [
            tensors(&self.network.parameters, &self.parameters, ""),
            tensors(&self.network.buffers, &self.buffers, ""),
        ];
        weights::write_atomically(path, &weights::to_bytes(&tensors.concat(), row_type, &metadata))
    }

    /// Writes `config.json` into `dir`.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save_config(&self, dir: &Path) -> Result<(), ModelError> {
        let text = format!("{:#}\n", self.config.to_json());
        weights::write_atomically(&dir.join(CONFIG_FILE), text.as_bytes()).map(|_| ())
    }

    /// What the network looks like.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// All weights, flat.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// Running means and variances of the norms, flat.
    pub fn buffers(&self) -> &[f32] {
        &self.buffers
    }

    /// Names, shapes and places of the weights.
    pub fn parameter_slots(&self) -> &[ParameterSlot] {
        &self.network.parameters
    }

    /// Names, shapes and places of the running statistics.
    pub fn buffer_slots(&self) -> &[ParameterSlot] {
        &self.network.buffers
    }

    /// SHA-256 of the weights file, if the weights came from one and were not changed.
    pub fn file_digest(&self) -> Option<Digest> {
        self.file_digest
    }

    /// Width of [`Self::embeddings`].
    pub fn embedding_width(&self) -> usize {
        self.network.values[self.network.embedding]
    }

    /// Floating-point operations of one image's forward pass (products only).
    pub fn flop_per_image(&self) -> f64 {
        self.network.flop()
    }

    /// Logits `[n, C]` of the images `ids` of `set`. An image's bytes depend on it alone.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for images of another shape or a place outside the set.
    pub fn logits(&self, set: &ImageSet, ids: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.value(set, ids, self.network.values.len() - 1)
    }

    /// What the last dense layer reads, `[n, width]`: the penultimate layer (for logistic regression the image itself).
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn embeddings(&self, set: &ImageSet, ids: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.value(set, ids, self.network.embedding)
    }

    fn value(&self, set: &ImageSet, ids: &[u32], value: usize) -> Result<Array2<f32>, ModelError> {
        self.check_images(set, ids)?;
        let len = self.network.values[value];
        let mut out = Array2::zeros((ids.len(), len));
        let group = self.group();
        let flat = out.as_slice_mut().expect("a fresh array is contiguous");
        flat.par_chunks_mut(group * len).zip(ids.par_chunks(group)).for_each(|(out, ids)| {
            self.pool.with(self, |ws| {
                self.forward(set, ids, ws);
                out.copy_from_slice(&ws.values[value][..out.len()]);
            });
        });
        Ok(out)
    }

    /// The measured number of each image, in nats.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] as [`Self::logits`], and for classes that the model does not have.
    pub fn losses(&self, set: &ImageSet, ids: &[u32], objective: Objective<'_>) -> Result<Vec<f64>, ModelError> {
        self.check(set, ids, objective)?;
        let group = self.group();
        let losses = ids.par_chunks(group).enumerate().flat_map_iter(|(i, ids)| {
            self.pool.with(self, |ws| {
                self.forward(set, ids, ws);
                self.measure(set, ids, i * group, objective, ws)
            })
        });
        Ok(losses.collect())
    }

    /// Share of the images whose largest logit is that of their label (the first of equals).
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub fn accuracy(&self, set: &ImageSet, ids: &[u32]) -> Result<f64, ModelError> {
        let logits = self.logits(set, ids)?;
        let right = logits.rows().into_iter().zip(ids).filter(|(row, id)| {
            let best = (0..row.len()).fold(0, |best, j| if row[j] > row[best] { j } else { best });
            best == set.labels()[**id as usize] as usize
        });
        Ok(right.count() as f64 / ids.len().max(1) as f64)
    }

    /// Examples that one worker takes together.
    fn group(&self) -> usize {
        (GROUP_NUMBERS / self.network.numbers().max(1)).clamp(1, MAX_GROUP)
    }

    fn check_images(&self, set: &ImageSet, ids: &[u32]) -> Result<(), ModelError> {
        let fail = |what, expected: String, found: String| Err(ModelError::Mismatch { what, expected, found });
        let (mine, theirs) = (self.config.input_shape, set.shape());
        let same = if self.network.has_convolutions() {
            mine == theirs
        } else {
            self.config.input_len() == theirs.iter().product::<usize>()
        };
        if !same {
            return fail("shape of the images", format!("{mine:?}"), format!("{theirs:?}"));
        }
        match ids.iter().find(|&&id| id as usize >= set.len()) {
            Some(id) => fail("place of an image", format!("below {}", set.len()), id.to_string()),
            None => Ok(()),
        }
    }

    fn check(&self, set: &ImageSet, ids: &[u32], objective: Objective<'_>) -> Result<(), ModelError> {
        self.check_images(set, ids)?;
        let n_classes = self.config.num_classes;
        let fail = |what, expected: String, found: String| Err(ModelError::Mismatch { what, expected, found });
        let foreign = |class: &u32| *class as usize >= n_classes;
        let found = match objective.target {
            Target::Label => ids.iter().map(|&id| set.labels()[id as usize]).find(foreign),
            Target::Given(given) if given.len() != ids.len() => {
                return fail("number of given classes", ids.len().to_string(), given.len().to_string());
            }
            Target::Given(given) => given.iter().copied().find(foreign),
            Target::Sampled { .. } => None,
        };
        match found {
            Some(class) => fail("class of an image", format!("below {n_classes}"), class.to_string()),
            None => Ok(()),
        }
    }
}

fn build(config: &ClassifierConfig) -> Result<Network, ModelError> {
    config.validate()?;
    Network::new(config).map_err(|(field, expected, found)| ModelError::Config {
        path: "<memory>".into(),
        field,
        expected,
        found,
    })
}

/// The tensors of a flat vector, named `prefix + slot name`.
fn tensors<'a>(slots: &'a [ParameterSlot], flat: &'a [f32], prefix: &str) -> Vec<Tensor<'a>> {
    let tensor = |slot: &'a ParameterSlot| Tensor {
        name: format!("{prefix}{}", slot.name),
        shape: &slot.shape,
        numbers: &flat[slot.range.clone()],
    };
    slots.iter().map(tensor).collect()
}

#[cfg(test)]
mod tests;
