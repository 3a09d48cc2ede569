//! The numbers of a training run as somebody gives them, and the recipe that follows for a given number of examples.

use ascribe_models::{Schedule, TrainRecipe};

use crate::error::EngineError;

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Passes over the examples; the last batch of the run may go on into the next pass.
    Epochs(f64),
    /// Optimiser steps.
    Steps(u32),
}

/// Numbers of a run. Field by field what [`TrainRecipe`] holds, before the number of examples is known.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSettings {
    /// Length.
    pub length: Length,
    /// Sequences per step.
    pub batch: u32,
    /// Sequences whose gradients are added one after another; groups run in parallel.
    pub micro_batch: u32,
    /// Highest learning rate.
    pub lr: f64,
    /// Last learning rate as a part of the highest.
    pub lr_floor_rel: f64,
    /// Part of the steps that warm up.
    pub warmup_part: f64,
    /// What comes after.
    pub schedule: Schedule,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Longest gradient; 0 for any.
    pub clip_norm: f64,
    /// Seed of the order, of fresh weights and fresh adapters.
    pub seed: u64,
    /// A checkpoint every so many steps; 0 for none.
    pub checkpoint_every: u32,
    /// The held-out loss every so many steps; 0 for the first and the last alone.
    pub eval_every: u32,
}

impl TrainSettings {
    /// The recipe for `n_examples`.
    ///
    /// # Errors
    /// [`EngineError::Setting`] or a recipe's own refusal, naming the number.
    pub fn recipe(&self, n_examples: usize) -> Result<TrainRecipe, EngineError> {
        let setting = |setting, expected: &str, found: String| {
            Err(EngineError::Setting { setting, expected: expected.into(), found })
        };
        let steps = match self.length {
            Length::Steps(steps) => f64::from(steps),
            Length::Epochs(epochs) if epochs.is_finite() && epochs > 0.0 => {
                (epochs * n_examples as f64 / f64::from(self.batch.max(1))).ceil()
            }
            Length::Epochs(epochs) => return setting("--epochs", "a positive number", epochs.to_string()),
        };
        if !(1.0..=f64::from(u32::MAX)).contains(&steps) {
            return setting("--steps", "1 to 4294967295", steps.to_string());
        }
        for (name, part) in [("--warmup", self.warmup_part), ("--lr-floor", self.lr_floor_rel)] {
            if !(0.0..=1.0).contains(&part) {
                return setting(name, "a part from 0 to 1", part.to_string());
            }
        }
        let steps = steps as u32;
        let checkpoints = match self.checkpoint_every {
            0 => vec![],
            every => (every..=steps).step_by(every as usize).collect(),
        };
        let recipe = TrainRecipe {
            steps,
            batch: self.batch,
            micro_batch: self.micro_batch,
            lr_peak: self.lr,
            lr_floor: self.lr * self.lr_floor_rel,
            warmup_steps: (self.warmup_part * f64::from(steps)).round() as u32,
            schedule: self.schedule,
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            // A gradient is never longer than that, so nothing is shortened.
            clip_norm: if self.clip_norm == 0.0 { f64::MAX } else { self.clip_norm },
            init_seed: self.seed,
            checkpoint_steps: checkpoints,
        };
        recipe.validate()?;
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn settings() -> TrainSettings {
        TrainSettings {
            length: Length::Epochs(2.0),
            batch: 8,
            micro_batch: 4,
            lr: 1e-3,
            lr_floor_rel: 0.1,
            warmup_part: 0.1,
            schedule: Schedule::Linear,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip_norm: 0.0,
            seed: 1,
            checkpoint_every: 10,
            eval_every: 0,
        }
    }

    #[test]
    fn epochs_become_steps() {
        let recipe = settings().recipe(101).unwrap();
        // 202 sequences in batches of 8.
        assert_eq!((recipe.steps, recipe.warmup_steps), (26, 3));
        assert_eq!(recipe.checkpoint_steps, [10, 20]);
        assert!((recipe.lr_floor - 1e-4).abs() < 1e-12);
        assert_eq!((recipe.clip_norm / 1e3).min(1.0), 1.0);
        let steps = TrainSettings { length: Length::Steps(5), ..settings() };
        assert_eq!(steps.recipe(1_000_000).unwrap().steps, 5);
    }

    #[test]
    fn impossible_settings_are_named() {
        let cases = [
            ("--epochs", TrainSettings { length: Length::Epochs(-1.0), ..settings() }),
            ("--steps", TrainSettings { length: Length::Steps(0), ..settings() }),
            ("--warmup", TrainSettings { warmup_part: 1.5, ..settings() }),
            ("--lr-floor", TrainSettings { lr_floor_rel: f64::NAN, ..settings() }),
            ("`lr_peak`", TrainSettings { lr: 0.0, ..settings() }),
            ("`micro_batch`", TrainSettings { micro_batch: 0, ..settings() }),
        ];
        for (name, bad) in cases {
            let message = bad.recipe(10).unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
    }
}
