//! The state of an unfinished run on disk: weights, both moments, step, recipe; whole or not there.
//!
//! One safetensors file, written under another name and renamed. Its metadata carry a format version, the SHA-256 of all
//! numbers, and the recipe and shape that they belong to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, RowType};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use super::{TrainRecipe, Trainer, tensors};
use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::layout::{ParameterLayout, ParameterSlot};
use crate::lora::Adapter;
use crate::weights::{self, Tensor};

/// Version of the state file.
pub(crate) const TRAIN_STATE_FORMAT_VERSION: u32 = 1;

const STATE_FILE: &str = "train-state.safetensors";

/// Prefixes of the three copies of every tensor.
const PARTS: [&str; 3] = ["weights.", "adam_m.", "adam_v."];

impl Trainer {
    /// True if the folder holds the state of a run.
    pub fn has_state(dir: &Path) -> bool {
        dir.join(STATE_FILE).is_file()
    }

    /// Writes the state into `dir`; a crash leaves the last state or this one, whole.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save_state(&self, dir: &Path) -> Result<(), ModelError> {
        let parts = [self.subject.parameters(), &self.first_moments, &self.second_moments];
        let tensors: Vec<Tensor<'_>> =
            PARTS.iter().zip(parts).flat_map(|(prefix, flat)| tensors(&self.slots, flat, prefix)).collect();
        let mut metadata = BTreeMap::from([
            ("format_version".into(), TRAIN_STATE_FORMAT_VERSION.to_string()),
            ("step".into(), self.step.to_string()),
            ("recipe".into(), as_json(&self.recipe)),
            ("config".into(), as_json(self.decoder().config())),
            ("sha256".into(), numbers_digest(&parts).to_string()),
        ]);
        metadata.extend(self.subject.names().map(|(key, value)| (key.into(), value)));
        let bytes = weights::to_bytes(&tensors, RowType::F32, &metadata);
        weights::write_atomically(&dir.join(STATE_FILE), &bytes).map(|_| ())
    }

    /// Goes on from the state in `dir`, which must be of this shape and recipe.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Format`] for a torn or changed file, [`ModelError::Mismatch`] for the state of
    /// another run, and what [`Decoder::load`] refuses.
    pub fn resume(config: DecoderConfig, recipe: TrainRecipe, dir: &Path) -> Result<Self, ModelError> {
        config.validate()?;
        let len = ParameterLayout::new(&config).len();
        let state = State::read(dir, len)?;
        state.metadata.expect("config", &as_json(&config))?;
        let layout = ParameterLayout::new(&config);
        let [parameters, first_moments, second_moments] = state.vectors(layout.slots(), len)?;
        let decoder = Decoder::from_parameters(config, parameters)?;
        let trainer = Self { first_moments, second_moments, ..Self::from_decoder(decoder, recipe)? };
        trainer.at_step_of(&state)
    }

    /// Goes on from the state in `dir`, which must be of an adapter of these settings on this model.
    ///
    /// # Errors
    /// As [`Trainer::resume`].
    pub fn resume_adapter(
        decoder: Decoder,
        adapter: Adapter,
        recipe: TrainRecipe,
        dir: &Path,
    ) -> Result<Self, ModelError> {
        let mut trainer = Self::from_adapter(decoder, adapter, recipe)?;
        let state = State::read(dir, trainer.n_trained())?;
        state.metadata.expect("config", &as_json(trainer.decoder().config()))?;
        for (key, value) in trainer.subject.names() {
            state.metadata.expect(key, &value)?;
        }
        let [parameters, first_moments, second_moments] = state.vectors(&trainer.slots, trainer.n_trained())?;
        trainer.subject.merge(&parameters)?;
        Self { first_moments, second_moments, ..trainer }.at_step_of(&state)
    }

    fn at_step_of(mut self, state: &State) -> Result<Self, ModelError> {
        state.metadata.expect("recipe", &as_json(&self.recipe))?;
        let step = state.metadata.get("step")?;
        self.step = step.parse().ok().filter(|&step| step <= self.recipe.steps).ok_or(ModelError::Mismatch {
            what: "step of the saved state",
            expected: format!("at most {}", self.recipe.steps),
            found: step,
        })?;
        Ok(self)
    }
}

/// A state file in memory.
struct State {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: Metadata,
}

impl State {
    /// Reads the state of a run that trains `n_trained` numbers.
    fn read(dir: &Path, n_trained: usize) -> Result<Self, ModelError> {
        let path = dir.join(STATE_FILE);
        let bytes = weights::read_capped(&path, PARTS.len() * n_trained)?;
        let metadata = Metadata::read(&bytes, &path)?;
        metadata.expect("format_version", &TRAIN_STATE_FORMAT_VERSION.to_string())?;
        Ok(Self { path, bytes, metadata })
    }

    /// Weights and both moments, checked against the file's digest.
    fn vectors(&self, slots: &[ParameterSlot], len: usize) -> Result<[Vec<f32>; 3], ModelError> {
        let file = weights::open(&self.bytes, &self.path)?;
        let mut flat = PARTS.map(|_| vec![0.0f32; len]);
        for (prefix, flat) in PARTS.iter().zip(&mut flat) {
            for slot in slots {
                self.fill(&file, &format!("{prefix}{}", slot.name), slot, &mut flat[slot.range.clone()])?;
            }
        }
        let found = numbers_digest(&[&flat[0], &flat[1], &flat[2]]).to_string();
        let expected = self.metadata.get("sha256")?;
        if found != expected {
            let (expected, found) = (format!("numbers of SHA-256 {expected}"), format!("SHA-256 {found}"));
            return Err(ModelError::Format { path: self.path.clone(), expected, found });
        }
        Ok(flat)
    }

    fn fill(
        &self,
        file: &SafeTensors<'_>,
        name: &str,
        slot: &ParameterSlot,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        let Ok(view) = file.tensor(name) else { return Err(ModelError::MissingTensor { path, tensor }) };
        if view.dtype() != Dtype::F32 || view.shape() != slot.shape {
            let (expected, found) = (format!("F32 {:?}", slot.shape), format!("{:?} {:?}", view.dtype(), view.shape()));
            return Err(ModelError::Tensor { path, tensor, expected, found });
        }
        for (out, b) in out.iter_mut().zip(view.data().chunks_exact(4)) {
            *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        weights::check_finite(out, &self.path, name)
    }
}

fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a struct of numbers and strings serialises")
}

/// SHA-256 of the numbers' bytes.
fn numbers_digest(parts: &[&[f32]]) -> Digest {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter()).flat_map(|x| x.to_le_bytes()).collect();
    Digest::of(&bytes)
}

/// The metadata of a state file, and what it must say.
pub(crate) struct Metadata {
    path: PathBuf,
    entries: std::collections::HashMap<String, String>,
}

impl Metadata {
    pub fn read(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| ModelError::Format {
            path: path.into(),
            expected: "a safetensors header".into(),
            found: error.to_string(),
        })?;
        Ok(Self { path: path.into(), entries: header.metadata().clone().unwrap_or_default() })
    }

    pub fn get(&self, key: &str) -> Result<String, ModelError> {
        self.entries.get(key).cloned().ok_or_else(|| ModelError::Format {
            path: self.path.clone(),
            expected: format!("metadata entry `{key}`"),
            found: "none".into(),
        })
    }

    pub fn expect(&self, key: &'static str, expected: &str) -> Result<(), ModelError> {
        let found = self.get(key)?;
        if found == expected {
            return Ok(());
        }
        let what = match key {
            "recipe" => "recipe of the saved state (remove its folder to start anew)",
            "config" => "model shape of the saved state (remove its folder to start anew)",
            "members" => "members of the saved state (remove its folder to start anew)",
            "adapter" => "adapter of the saved state (remove its folder to start anew)",
            "base" => "model under the adapter of the saved state (remove its folder to start anew)",
            _ => "format version of the saved state",
        };
        Err(ModelError::Mismatch { what, expected: expected.into(), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{tiny_config, tokens};
    use crate::train::test_recipe;

    fn saved(dir: &Path) -> PathBuf {
        let mut trainer = Trainer::new(tiny_config(), test_recipe(3)).unwrap();
        trainer.step(&[&tokens(1, 8)]).unwrap();
        trainer.save_state(dir).unwrap();
        dir.join(STATE_FILE)
    }

    #[test]
    fn a_changed_bit_a_torn_end_and_another_recipe_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = saved(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let resume = |recipe| Trainer::resume(tiny_config(), recipe, dir.path()).map(|t| t.step_count());
        assert_eq!(resume(test_recipe(3)).unwrap(), 1);

        let message = resume(test_recipe(4)).unwrap_err().to_string();
        assert!(message.contains("recipe of the saved state") && message.contains("\"steps\":4"), "{message}");

        let mut changed = whole.clone();
        let last = changed.len() - 2;
        changed[last] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        let message = resume(test_recipe(3)).unwrap_err().to_string();
        assert!(message.contains("SHA-256") && message.contains(STATE_FILE), "{message}");

        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(resume(test_recipe(3)), Err(ModelError::Format { .. })));
    }
}
