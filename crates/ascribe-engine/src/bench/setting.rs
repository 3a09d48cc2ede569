//! Setting files: what is trained, on what data, and which retrain banks are its truth.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::Digest;
use ascribe_models::vision::{ClassifierConfig, ClassifierRecipe, ImageSet, Normalization};
use serde::{Deserialize, Serialize};

use super::bank::{BankPlan, Draw, Players, RETRAIN_BANK_FORMAT_VERSION};
use super::gates::GateSettings;
use super::protocols::ProtocolSettings;
use super::tuned::TunedSubject;
use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::train::vision::{ImageData, ImageFiles};

/// Folder of the settings below the home folder.
pub const SETTINGS_DIR: &str = "benches/settings";
/// The file in a setting's folder.
pub const SETTING_FILE: &str = "setting.toml";

/// In the place of a method's name: every method.
pub const ALL_METHODS: &str = "all";

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Its name, as on the command line.
    pub name: String,
    /// What it is, in a sentence.
    pub about: String,
    /// What is trained and explained.
    pub subject: Subject,
    /// Retrain banks by name; each lives in `banks/NAME` beside the setting.
    #[serde(default)]
    pub banks: BTreeMap<String, BankSettings>,
    /// The bank that gives the main figure; without a name the first one over subsets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main_bank: Option<String>,
    /// Methods that run when none is named: those that together show the setting in a minute or two on two cores. Empty for
    /// all.
    #[serde(default)]
    pub quick: Vec<String>,
    /// The methods that can run at all; empty for all of its kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// What can be run besides the banks.
    #[serde(default)]
    pub protocols: ProtocolSettings,
    /// What its methods have to reach.
    #[serde(default)]
    pub gates: Vec<GateSettings>,
    /// Folder of the file.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Dampings that the first half of the queries chose, by method (`damping.json` beside the file).
    #[serde(skip)]
    pub dampings: BTreeMap<String, f64>,
}

/// What is trained and explained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Subject {
    /// A classifier on images.
    Images(Box<ImageSubject>),
    /// A decoder on registered datasets: the model folder's `recipe.toml` says all.
    Decoder {
        /// Folder under `models/`.
        model: String,
    },
    /// A model of somebody else's, tuned on registered datasets.
    Tuned(Box<TunedSubject>),
    /// Fact tracing: no training, the truth is where a fact is stated.
    Facts {
        /// Folder of records, relative to the setting's.
        corpora: PathBuf,
        /// Query files, relative to the setting's folder.
        queries: Vec<PathBuf>,
        /// Folder under `models/`.
        model: String,
    },
}

/// A classifier, its training images and its queries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSubject {
    /// `kind` and sizes of the network, as in its `config.json`.
    pub model: toml::Table,
    /// Training images.
    pub data: ImageData,
    /// Images whose predictions are explained.
    pub queries: ImageFiles,
    /// How it is trained.
    pub train: ClassifierRecipe,
    /// Epochs after which the weights are kept, ascending.
    #[serde(default)]
    pub checkpoint_epochs: Vec<u32>,
}

/// A bank of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankSettings {
    /// Who is in or out.
    pub players: PlayerKind,
    /// How the subsets are drawn.
    pub draw: Draw,
    /// Seeds of the trainings.
    pub seeds: Vec<u64>,
    /// Classifiers only: train on all images in their own places, those left out with weight 0, instead of on the kept
    /// ones alone.
    #[serde(default)]
    pub replay: bool,
}

/// Who is in or out of a subset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlayerKind {
    /// Single examples.
    Examples,
    /// Whole datasets.
    Datasets,
}

/// An opened image subject.
#[derive(Clone, Debug)]
pub struct Images {
    /// Network.
    pub config: ClassifierConfig,
    /// Training images.
    pub train: ImageSet,
    /// Query images.
    pub queries: ImageSet,
    /// SHA-256 over all four files and the normalisation.
    pub digest: Digest,
}

impl Setting {
    /// Reads a setting file.
    ///
    /// # Errors
    /// The file, and the field that is wrong.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let text = std::fs::read_to_string(path).map_err(|e| EngineError::io(path, e))?;
        let mut setting: Self =
            toml::from_str(&text).map_err(|e| EngineError::Recipe { path: path.into(), why: e.to_string() })?;
        setting.dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        setting.dampings = super::damping::kept(&setting.dir, &setting.name)?;
        Ok(setting)
    }

    /// The shipped setting of this name.
    ///
    /// # Errors
    /// An unknown name (the known ones are listed), or a file that does not parse.
    pub fn named(home: &Home, name: &str) -> Result<Self, EngineError> {
        let path = home.root().join(SETTINGS_DIR).join(name).join(SETTING_FILE);
        if !path.exists() {
            let expected = format!("one of {}", names(home)?.join(", "));
            return Err(EngineError::Setting { setting: "setting", expected, found: name.to_owned() });
        }
        Self::read(&path)
    }

    /// The methods that are run when these are asked for: of none, the quick ones; of `all`, every one (an empty list).
    pub fn asked<'s>(&'s self, methods: &'s [String]) -> &'s [String] {
        match methods {
            [] => &self.quick,
            names if names.iter().any(|name| name == ALL_METHODS) => &[],
            names => names,
        }
    }

    /// Folder of one of its banks.
    pub fn bank_dir(&self, bank: &str) -> PathBuf {
        self.dir.join("banks").join(bank)
    }

    /// The bank's settings.
    ///
    /// # Errors
    /// An unknown name; the known ones are listed.
    pub fn bank(&self, bank: &str) -> Result<&BankSettings, EngineError> {
        self.banks.get(bank).ok_or_else(|| EngineError::Setting {
            setting: "bank",
            expected: format!("one of {}", self.banks.keys().cloned().collect::<Vec<_>>().join(", ")),
            found: bank.to_owned(),
        })
    }

    /// The plan of a bank over `players`.
    pub fn plan(
        &self,
        bank: &str,
        draw: Draw,
        players: Players,
        data: Digest,
        recipe: Digest,
        n_queries: usize,
    ) -> BankPlan {
        let measure = match self.subject {
            Subject::Images(_) => "margin",
            Subject::Decoder { .. } | Subject::Tuned(_) | Subject::Facts { .. } => "negative_nats",
        };
        BankPlan {
            format_version: RETRAIN_BANK_FORMAT_VERSION,
            setting: self.name.clone(),
            players,
            draw,
            recipe,
            data,
            n_queries,
            measure: measure.to_owned(),
            command: format!("ascribe bench bank {} {bank}", self.name),
        }
    }
}

/// Names of the shipped settings, sorted.
///
/// # Errors
/// The operating system's.
pub fn names(home: &Home) -> Result<Vec<String>, EngineError> {
    let dir = home.root().join(SETTINGS_DIR);
    let entries = std::fs::read_dir(&dir).map_err(|e| EngineError::io(&dir, e))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join(SETTING_FILE).is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

impl ImageSubject {
    /// Opens images and queries; relative paths are relative to `dir`.
    ///
    /// # Errors
    /// Files that are no images or labels, or do not fit the network.
    pub fn open(&self, dir: &Path) -> Result<Images, EngineError> {
        let normalization = Normalization { mean: self.data.mean.clone(), std: self.data.std.clone() };
        let open = |images: &Path, labels: &Path| ImageSet::open(&dir.join(images), &dir.join(labels), &normalization);
        let train = open(&self.data.images, &self.data.labels)?;
        let queries = open(&self.queries.images, &self.queries.labels)?;
        let mut parts = vec![serde_json::to_string(&(&self.data.mean, &self.data.std))?];
        for path in [&self.data.images, &self.data.labels, &self.queries.images, &self.queries.labels] {
            parts.push(files::digest(&dir.join(path))?.to_string());
        }
        let config = crate::train::vision::network(&self.model, &train, dir)?;
        Ok(Images { config, train, queries, digest: Digest::of(parts.join("\n").as_bytes()) })
    }

    /// SHA-256 of network and recipe without its seed: what decides a bank's models besides data and seed.
    pub fn recipe_digest(&self) -> Digest {
        let recipe = ClassifierRecipe { seed: 0, ..self.train.clone() };
        Digest::of_json(&(&self.model, recipe)).expect("numbers and strings always serialise")
    }

    /// The recipe's digest in a bank's plan: replays make other models than trainings on the kept images.
    pub fn bank_digest(&self, bank: &BankSettings) -> Digest {
        let recipe = self.recipe_digest();
        if bank.replay { Digest::of(format!("replay of {recipe}").as_bytes()) } else { recipe }
    }
}
