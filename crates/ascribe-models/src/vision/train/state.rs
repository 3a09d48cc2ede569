//! The state of an unfinished run on disk: weights, running statistics, moments, step; whole or not there.
//!
//! One safetensors file, written under another name and renamed. Its metadata carry a format version, the SHA-256 of all
//! numbers, and the recipe, network and members that they belong to.

use std::path::Path;

use ascribe_core::{Digest, RowType};
use serde::Serialize;

use super::{ClassifierRecipe, ClassifierTrainer};
use crate::error::ModelError;
use crate::layout::ParameterSlot;
use crate::train::Metadata;
use crate::vision::{Classifier, ClassifierConfig, build, tensors};
use crate::weights;

/// Version of the state file.
pub(crate) const CLASSIFIER_STATE_FORMAT_VERSION: u32 = 1;

const STATE_FILE: &str = "classifier-state.safetensors";

impl ClassifierTrainer {
    /// True if the folder holds the state of a run.
    pub fn has_state(dir: &Path) -> bool {
        dir.join(STATE_FILE).is_file()
    }

    /// Writes the state into `dir`; a crash leaves the last state or this one, whole.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save_state(&self, dir: &Path) -> Result<(), ModelError> {
        let parts = self.parts();
        let all: Vec<_> = parts.iter().flat_map(|(prefix, slots, flat)| tensors(slots, flat, prefix)).collect();
        let metadata = [
            ("format_version".into(), CLASSIFIER_STATE_FORMAT_VERSION.to_string()),
            ("step".into(), self.step.to_string()),
            ("recipe".into(), as_json(&self.recipe)),
            ("config".into(), as_json(&self.model.config)),
            ("members".into(), members_digest(&self.members).to_string()),
            ("sha256".into(), numbers_digest(&parts.map(|(_, _, flat)| flat)).to_string()),
        ];
        let bytes = weights::to_bytes(&all, RowType::F32, &metadata.into());
        weights::write_atomically(&dir.join(STATE_FILE), &bytes).map(|_| ())
    }

    /// Prefix, places and numbers of everything that a run keeps. SGD has no second moments: no tensors then.
    fn parts(&self) -> [(&'static str, &[ParameterSlot], &[f32]); 4] {
        let (network, model) = (&self.model.network, &self.model);
        let second = if self.second_moments.is_empty() { &[][..] } else { &network.parameters[..] };
        [
            ("weights.", &network.parameters, &model.parameters),
            ("buffers.", &network.buffers, &model.buffers),
            ("first_moment.", &network.parameters, &self.first_moments),
            ("second_moment.", second, &self.second_moments),
        ]
    }

    /// Goes on from the state in `dir`, which must be of this network, recipe and members.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Format`] for a torn or changed file, [`ModelError::Mismatch`] for the state of
    /// another run, and what [`Classifier::load`] refuses.
    pub fn resume(
        config: ClassifierConfig,
        recipe: ClassifierRecipe,
        members: Vec<u32>,
        dir: &Path,
    ) -> Result<Self, ModelError> {
        let path = dir.join(STATE_FILE);
        let network = build(&config)?;
        let numbers = network.n_parameters.saturating_mul(3).saturating_add(network.n_buffers);
        let bytes = weights::read_capped(&path, numbers)?;
        let file = weights::open(&bytes, &path)?;
        let metadata = Metadata::read(&bytes, &path)?;
        metadata.expect("format_version", &CLASSIFIER_STATE_FORMAT_VERSION.to_string())?;
        metadata.expect("recipe", &as_json(&recipe))?;
        metadata.expect("config", &as_json(&config))?;
        metadata.expect("members", &members_digest(&members).to_string())?;
        let total = recipe.total_steps(members.len());
        let step = metadata.get("step")?.parse().ok().filter(|&step| step <= total);
        let step = step.ok_or_else(|| ModelError::Mismatch {
            what: "step of the saved state",
            expected: format!("at most {total}"),
            found: metadata.get("step").unwrap_or_default(),
        })?;
        let fresh = Self::new(config.clone(), recipe.clone(), members.clone())?;
        let mut read = vec![];
        for (prefix, slots, flat) in fresh.parts() {
            let mut out = vec![0.0; flat.len()];
            for slot in slots {
                let name = format!("{prefix}{}", slot.name);
                weights::read_tensor(&file, &path, &name, &slot.shape, &mut out[slot.range.clone()])?;
            }
            read.push(out);
        }
        let found = numbers_digest(&[&read[0], &read[1], &read[2], &read[3]]).to_string();
        let expected = metadata.get("sha256")?;
        if found != expected {
            let (expected, found) = (format!("numbers of SHA-256 {expected}"), format!("SHA-256 {found}"));
            return Err(ModelError::Format { path, expected, found });
        }
        let [second_moments, first_moments, buffers, parameters] =
            [read.pop(), read.pop(), read.pop(), read.pop()].map(Option::unwrap_or_default);
        let model = Classifier::from_parameters(config, parameters, buffers)?;
        Ok(Self { step, first_moments, second_moments, ..Self::from_classifier(model, recipe, members)? })
    }
}

fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a struct of numbers and strings serialises")
}

fn numbers_digest(parts: &[&[f32]; 4]) -> Digest {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter()).flat_map(|x| x.to_le_bytes()).collect();
    Digest::of(&bytes)
}

fn members_digest(members: &[u32]) -> Digest {
    let bytes: Vec<u8> = members.iter().flat_map(|id| id.to_le_bytes()).collect();
    Digest::of(&bytes)
}
