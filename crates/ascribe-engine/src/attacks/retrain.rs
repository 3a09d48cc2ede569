//! Attacks on a model that learned from them: the attacked registry is trained on, and the walk up to the scores runs again over it.
//!
//! Everything that follows from the records is made anew (weights, gradients, curvature, similarities, clusters of duplicates); the
//! calibration stays the one of the honest run, for an operator has no new retrain bank each time that somebody registers text.
//! Responses are the honest datasets' own, word for word the same as before, so that a gain is a part of the same pool.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::Progress;
use ascribe_registry::Registry;
use ndarray::Axis;
use serde::{Deserialize, Serialize};

use super::attack::AttackInfo;
use super::policies::{Policy, pool};
use super::{Bench, World};
use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::recipe::Recipe;
use crate::train;
use crate::train::run::{HELD_OUT_FILE, HeldOutRow, RUN_RECORD_FILE};
use crate::walk::stamps::Stamps;
use crate::walk::{Context, features, fit};

/// Attacks that are tried on a retrained model: those that add text which no look at the model chose.
pub const RETRAINED: [&str; 3] = ["exact_copy", "near_copy", "noise_farm"];

/// One attack on a model that was trained with what it added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrained {
    /// Name of the attack.
    pub attack: String,
    /// The dataset that is copied; `none` for farms.
    pub target: String,
    /// Training examples that the attacker's records became.
    pub trained_examples: u64,
    /// Training examples in all.
    pub examples: u64,
    /// Records that the search for duplicates gave to an earlier licence, and added records.
    pub caught: Option<(u64, u64)>,
    /// Held-out bits per byte of the honest datasets, mean: what the attack did to the model.
    pub bits_per_byte: f64,
    /// What the attacker's names get of the pool, by policy, in percent. Before the attack they got nothing.
    pub gain_percent: BTreeMap<String, Option<f64>>,
}

impl Bench<'_> {
    /// Trains on the attacked registry in a home of its own below the bench's folder, attributes with that model, and pays.
    ///
    /// Resumes wherever it was stopped. Cost: one training and one walk up to the factors.
    ///
    /// # Errors
    /// From the registry, the trainer, the walk; [`EngineError::Stopped`].
    pub(super) fn retrained(
        &self,
        attack: &AttackInfo,
        target: &str,
        progress: &dyn Progress,
    ) -> Result<Retrained, EngineError> {
        let dir = self.dir.join(format!("retrained/{}-{target}", attack.name));
        let home_dir = dir.join("home");
        // Registering is deterministic: after a stop it gives the licences that the trained model names.
        let world = self.registered(attack, target, &home_dir.join("datasets"), progress)?;
        let model_dir = self.train(&home_dir, progress)?;
        let home = Home::find(Some(&home_dir))?;
        let run_dir = dir.join("run");
        std::fs::create_dir_all(&run_dir).map_err(|e| EngineError::io(&run_dir, e))?;
        let context = Context::open(&home, &self.context.model_name, &run_dir, progress)?;
        self.check_responses(&context, &world)?;
        features::run(&context, progress)?;
        fit::run(&context, &mut Stamps::read(&run_dir), progress)?;
        let bench = Bench::open(&context, self.calibration.clone(), &self.options, &dir, progress)?;
        let honest: Vec<usize> = honest_responses(&context, &world);
        let gain = |paid: Option<ndarray::Array2<f64>>| {
            let paid = pool(&bench.honest, &paid?.select(Axis(0), &honest), false);
            let of = |name: &String| paid.get(name).copied().unwrap_or(0.0);
            Some(100.0 * world.attackers.iter().map(of).sum::<f64>())
        };
        let paid = bench.paid(&bench.honest, None)?;
        let names = Policy::all().into_iter().map(|(name, _, _)| name.to_owned());
        let owner = |d: &ascribe_corpus::Example| &bench.honest.datasets[d.id.dataset as usize].owner;
        let added = context.corpus.examples.iter().filter(|e| world.attackers.contains(owner(e)));
        Ok(Retrained {
            attack: attack.name.to_owned(),
            target: target.to_owned(),
            trained_examples: added.count() as u64,
            examples: context.corpus.examples.len() as u64,
            caught: world.caught,
            bits_per_byte: bits_per_byte(&model_dir, &self.honest)?,
            gain_percent: names.zip(paid.into_iter().map(gain)).collect(),
        })
    }

    /// The model of the honest run, its tokenizer included, trained on the registry of another home.
    fn train(&self, home_dir: &Path, progress: &dyn Progress) -> Result<std::path::PathBuf, EngineError> {
        let model_dir = home_dir.join("models").join(&self.context.model_name);
        for file in ["recipe.toml", "attribution.toml", "tokenizer.json"] {
            let to = model_dir.join(file);
            if !to.exists() {
                files::write_atomic(&to, &files::read(&self.context.model_dir.join(file))?)?;
            }
        }
        if !model_dir.join(RUN_RECORD_FILE).exists() {
            let recipe = Recipe::read(&model_dir.join("recipe.toml"))?;
            train::run::run(&Registry::open(&home_dir.join("datasets"))?, &recipe, &model_dir, progress)?;
        }
        Ok(model_dir)
    }

    /// The honest datasets' held-out responses must be those of the honest run.
    fn check_responses(&self, context: &Context, world: &World) -> Result<(), EngineError> {
        let texts = |context: &Context, queries: &[usize]| -> Vec<String> {
            queries.iter().map(|q| context.corpus.text_of(&context.corpus.queries[*q].spans)).collect()
        };
        let all: Vec<usize> = (0..self.n_responses()).collect();
        let (before, after) = (texts(self.context, &all), texts(context, &honest_responses(context, world)));
        if before == after {
            return Ok(());
        }
        let same = before.iter().zip(&after).filter(|(a, b)| a == b).count();
        let (expected, found) =
            (format!("the {} responses of the honest run", before.len()), format!("{same} of them"));
        Err(EngineError::Content { path: context.out.clone(), expected, found })
    }
}

/// Responses that were held out from datasets of others than the attacker.
fn honest_responses(context: &Context, world: &World) -> Vec<usize> {
    let datasets = context.registry.datasets();
    let theirs = |q: &ascribe_corpus::Query| world.attackers.contains(&datasets[q.dataset as usize].manifest.owner);
    let numbered = context.corpus.queries.iter().enumerate();
    numbered.filter(|(_, query)| !theirs(query)).map(|(q, _)| q).collect()
}

/// Mean held-out bits per byte over the datasets of the honest registry.
fn bits_per_byte(model_dir: &Path, honest: &World) -> Result<f64, EngineError> {
    let rows: Vec<HeldOutRow> = serde_json::from_slice(&files::read(&model_dir.join(HELD_OUT_FILE))?)?;
    let known = |row: &&HeldOutRow| honest.datasets.iter().any(|d| d.name == row.dataset);
    let rows: Vec<f64> = rows.iter().filter(known).map(|row| row.bits_per_byte).collect();
    Ok(rows.iter().sum::<f64>() / rows.len().max(1) as f64)
}
