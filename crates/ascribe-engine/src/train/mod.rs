//! Training and retraining: the same loop for the shipped model and for every model of a retrain bank.

pub mod order;
pub mod run;
pub mod vision;

use std::path::Path;

use ascribe_core::Progress;
use ascribe_corpus::Corpus;
use ascribe_models::{StepReport, Trainer};

use crate::error::EngineError;
use crate::recipe::Recipe;
use order::Sampler;

/// Steps between two saved optimiser states.
const STATE_EVERY_STEPS: u64 = 100;

/// Trains on the examples of all datasets except `removed`, under `seed`.
///
/// The number of steps is the recipe's whatever was removed: with one dataset gone the others are seen a little more
/// often, so that a loss change measures the data's worth and not a shorter training.
///
/// With `state_dir` the run resumes from the last saved state and saves as it goes; the result has the same bytes as an
/// uninterrupted run. `on_step` sees every step made in this call.
///
/// # Errors
/// From the trainer or the disk; [`EngineError::Stopped`] when the listener asked to stop (the state is saved).
pub fn train(
    corpus: &Corpus,
    recipe: &Recipe,
    seed: u64,
    removed: Option<u32>,
    state_dir: Option<&Path>,
    progress: &dyn Progress,
    on_step: impl FnMut(&StepReport, &Trainer) -> Result<(), EngineError>,
) -> Result<Trainer, EngineError> {
    let members: Vec<u32> = (0..corpus.examples.len() as u32)
        .filter(|&i| Some(corpus.examples[i as usize].id.dataset) != removed)
        .collect();
    train_members(corpus, recipe, seed, members, state_dir, progress, on_step)
}

/// [`train`] on the examples `members` (rising indices into the corpus) and on no others.
///
/// # Errors
/// As [`train`].
///
/// # Panics
/// If `members` is empty.
pub fn train_members(
    corpus: &Corpus,
    recipe: &Recipe,
    seed: u64,
    members: Vec<u32>,
    state_dir: Option<&Path>,
    progress: &dyn Progress,
    mut on_step: impl FnMut(&StepReport, &Trainer) -> Result<(), EngineError>,
) -> Result<Trainer, EngineError> {
    let mut sampler = Sampler::new(seed, members);
    let mut settings = recipe.train.clone();
    settings.init_seed = seed;
    let mut trainer = match state_dir {
        Some(dir) if Trainer::has_state(dir) => Trainer::resume(recipe.decoder_config(), settings, dir)?,
        _ => Trainer::new(recipe.decoder_config(), settings)?,
    };
    let steps = u64::from(recipe.train.steps);
    progress.start("train", steps, "steps");
    progress.advance(trainer.step_count());
    while trainer.step_count() < steps {
        let picks = sampler.batch(trainer.step_count(), recipe.train.batch as usize);
        let batch: Vec<&[u32]> = picks.iter().map(|&i| corpus.examples[i as usize].tokens.as_slice()).collect();
        let report = trainer.step(&batch)?;
        progress.advance(1);
        on_step(&report, &trainer)?;
        let stop = progress.stop_requested();
        if let Some(dir) = state_dir
            && (stop || trainer.step_count().is_multiple_of(STATE_EVERY_STEPS))
        {
            trainer.save_state(dir)?;
        }
        if stop {
            return Err(EngineError::Stopped);
        }
    }
    progress.finish("");
    Ok(trainer)
}
