//! The recipe files: what is trained (`recipe.toml`) and how it is attributed (`attribution.toml`).
//!
//! Two files because they have two lives: a change of damping must not look like a change of training.

use std::path::Path;

use ascribe_core::{Digest, RowType};
use ascribe_corpus::CorpusConfig;
use ascribe_models::TrainRecipe;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// `recipe.toml`: everything that decides the weights, besides the registered records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the model; its folder under `models/`.
    pub name: String,
    /// Seed of initialisation and order. A retrain bank uses `seed`, `seed + 1`, …
    pub seed: u64,
    /// Names of the registered datasets that it learns from; all of them if none are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<String>,
    /// Windows, split, vocabulary.
    pub corpus: CorpusConfig,
    /// Shape.
    pub model: ModelShape,
    /// Optimisation.
    pub train: TrainRecipe,
}

/// Shape of a Llama-type decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Width d.
    pub hidden_size: usize,
    /// Width of the gated layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
}

/// `attribution.toml`: the walk's settings, each chosen by a measurement named beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribution {
    /// Seed of projectors, bootstraps and splits.
    pub seed: u64,
    /// Columns kept on a module's input side.
    pub k_in: usize,
    /// Columns kept on a module's output side.
    pub k_out: usize,
    /// Track the (tied) embedding.
    pub embedding: bool,
    /// Track norm gains.
    pub norms: bool,
    /// Numbers at rest.
    pub row_type: RowType,
    /// Who chooses the damping of block Fisher. Only written down when it is not `fixed`.
    #[serde(default, skip_serializing_if = "DampingRule::is_fixed")]
    pub damping: DampingRule,
    /// Damping of the last checkpoint's block Fisher, relative to the block's mean eigenvalue.
    pub damping_rel: f64,
    /// Damping of the trajectory's block Fisher.
    pub trajectory_damping_rel: f64,
    /// Channels of the default method: names of methods, or parts of gradient methods (`walk::channels`).
    pub channels: Vec<String>,
    /// Half width of a share's 95 % interval of what was drawn by chance, above which a response is too noisy to pay. Only written
    /// down when it is not the default.
    #[serde(default = "noise_threshold", skip_serializing_if = "is_noise_threshold")]
    pub noise_threshold: f64,
    /// Examples kept per response and method in the score file.
    pub top_k: usize,
    /// Columns of the HNSW index's re-projection.
    pub hnsw_dim: usize,
    /// Level of all intervals, for example 0.9.
    pub interval_level: f64,
    /// Revenue that the demo splits, for example `1000.00 USD`.
    pub pool: String,
    /// First and last day of what the demo pays, `YYYY-MM-DD/YYYY-MM-DD`.
    pub period: String,
    /// Token address in the Merkle leaves.
    pub token: String,
}

fn noise_threshold() -> f64 {
    ascribe_methods::group::intervals::DEFAULT_THRESHOLD
}

fn is_noise_threshold(value: &f64) -> bool {
    *value == noise_threshold()
}

/// Who chooses the damping of block Fisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DampingRule {
    /// `damping_rel` and `trajectory_damping_rel`, the same for all modules.
    #[default]
    Fixed,
    /// The held-out likelihood of gradients, per module and checkpoint (`ascribe_methods::damping`).
    HeldOutLikelihood,
}

impl DampingRule {
    fn is_fixed(&self) -> bool {
        *self == Self::Fixed
    }
}

impl Recipe {
    /// Reads `recipe.toml`.
    ///
    /// # Errors
    /// The file, and the field that is wrong.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        read_toml(path)
    }

    /// SHA-256 over the JSON form: comments and spacing do not count.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self).expect("numbers and strings always serialise")
    }

    /// The decoder's configuration.
    pub fn decoder_config(&self) -> ascribe_models::DecoderConfig {
        let shape = &self.model;
        ascribe_models::DecoderConfig::llama(
            self.corpus.vocab_size,
            shape.hidden_size,
            shape.intermediate_size,
            shape.num_hidden_layers,
            shape.num_attention_heads,
            shape.num_key_value_heads,
            self.corpus.seq_len,
        )
    }
}

impl Attribution {
    /// Reads `attribution.toml`.
    ///
    /// # Errors
    /// The file, and the field that is wrong.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        read_toml(path)
    }

    /// SHA-256 over the JSON form: comments and spacing do not count.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self).expect("numbers and strings always serialise")
    }
}

fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    let text = std::fs::read_to_string(path).map_err(|e| EngineError::io(path, e))?;
    toml::from_str(&text).map_err(|e| EngineError::Recipe { path: path.into(), why: e.to_string() })
}
