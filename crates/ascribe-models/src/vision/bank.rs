//! Banks of models: the same network trained on many subsets, each model on one thread, many side by side.
//!
//! What a subset means (leave-one-out, halves, planted noise) and what is measured on its model is the caller's.

use rayon::prelude::*;

use super::config::ClassifierConfig;
use super::data::ImageSet;
use super::train::{ClassifierRecipe, ClassifierTrainer};
use crate::error::ModelError;

/// One model of a bank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BankJob {
    /// Images that it sees.
    pub members: Vec<u32>,
    /// Seed of its weights and order, instead of the recipe's.
    pub seed: u64,
}

/// Trains a model per job and returns what `measure` makes of each, in the order of the jobs. Models do not outlive their
/// measurement, so memory is that of the threads.
///
/// A model's bytes are those of [`ClassifierTrainer::run`] with its members and seed, whatever the number of threads.
///
/// # Errors
/// Of the first job in order that failed: [`ModelError::Config`], [`ModelError::Recipe`], [`ModelError::Mismatch`],
/// [`ModelError::Diverged`], or what `measure` returns.
pub fn train_bank<R: Send>(
    config: &ClassifierConfig,
    recipe: &ClassifierRecipe,
    set: &ImageSet,
    jobs: &[BankJob],
    measure: impl Fn(usize, &ClassifierTrainer) -> Result<R, ModelError> + Sync,
) -> Result<Vec<R>, ModelError> {
    let train = |(i, job): (usize, &BankJob)| {
        let recipe = ClassifierRecipe { seed: job.seed, ..recipe.clone() };
        let mut trainer = ClassifierTrainer::new(config.clone(), recipe, job.members.clone())?;
        trainer.run(set, |_, _| Ok::<(), ModelError>(()))?;
        measure(i, &trainer)
    };
    // All results first: the error that is returned must not depend on which thread was faster.
    let results: Vec<Result<R, ModelError>> = jobs.par_iter().enumerate().map(train).collect();
    results.into_iter().collect()
}
