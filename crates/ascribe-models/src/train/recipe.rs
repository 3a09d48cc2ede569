//! How a decoder is trained: the numbers of a run, checked once, and the learning rate of every step.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// How the learning rate goes from the end of the warm-up to the last step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine from `lr_peak` to `lr_floor`.
    #[default]
    Cosine,
    /// A straight line from `lr_peak` to `lr_floor`.
    Linear,
    /// `lr_peak` throughout; `lr_floor` is not used.
    Constant,
}

impl Schedule {
    /// Recipes that were written before there was a choice say nothing, and their digests stay.
    fn is_cosine(&self) -> bool {
        *self == Self::Cosine
    }
}

/// Everything that decides the weights besides the data and the shape.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Optimiser steps.
    pub steps: u32,
    /// Sequences per step.
    pub batch: u32,
    /// Sequences whose gradients are added one after another; a batch's groups of this size run in parallel. Part of the
    /// definition of the weights' bytes.
    pub micro_batch: u32,
    /// Learning rate at the end of the warm-up.
    pub lr_peak: f64,
    /// Learning rate at the last step.
    pub lr_floor: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
    /// What comes after the warm-up.
    #[serde(default, skip_serializing_if = "Schedule::is_cosine")]
    pub schedule: Schedule,
    /// Decoupled weight decay of matrices; norms have none.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to AdamW's denominator.
    pub eps: f64,
    /// Longest gradient (over all parameters, mean loss per token); longer ones are shortened to it.
    pub clip_norm: f64,
    /// Seed of fresh weights.
    #[serde(default)]
    pub init_seed: u64,
    /// Steps after which the weights are kept as a checkpoint, ascending.
    pub checkpoint_steps: Vec<u32>,
}

impl TrainRecipe {
    /// Checks the recipe.
    ///
    /// # Errors
    /// [`ModelError::Recipe`] naming the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        let fail =
            |field, expected: &str, found: String| Err(ModelError::Recipe { field, expected: expected.into(), found });
        for (field, count) in [("steps", self.steps), ("batch", self.batch), ("micro_batch", self.micro_batch)] {
            if count == 0 {
                return fail(field, "at least 1", "0".into());
            }
        }
        if self.warmup_steps > self.steps {
            return fail("warmup_steps", "at most `steps`", self.warmup_steps.to_string());
        }
        for (field, number) in [("lr_peak", self.lr_peak), ("eps", self.eps), ("clip_norm", self.clip_norm)] {
            if !(number.is_finite() && number > 0.0) {
                return fail(field, "a positive number", number.to_string());
            }
        }
        for (field, number) in [("lr_floor", self.lr_floor), ("weight_decay", self.weight_decay)] {
            if !(number.is_finite() && number >= 0.0) {
                return fail(field, "a number that is not negative", number.to_string());
            }
        }
        if self.lr_floor > self.lr_peak {
            return fail("lr_floor", "at most `lr_peak`", self.lr_floor.to_string());
        }
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return fail(field, "a number in [0, 1)", beta.to_string());
            }
        }
        let ascending = self.checkpoint_steps.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.checkpoint_steps.iter().any(|&step| step == 0 || step > self.steps) {
            return fail(
                "checkpoint_steps",
                "ascending steps from 1 to `steps`",
                format!("{:?}", self.checkpoint_steps),
            );
        }
        Ok(())
    }

    /// Learning rate of step `step` (from 0): linear to `lr_peak` over the warm-up, then as [`Schedule`] says; the last step
    /// has `lr_floor` (unless the rate is constant).
    pub fn learning_rate(&self, step: u32) -> f64 {
        if step < self.warmup_steps {
            return self.lr_peak * f64::from(step + 1) / f64::from(self.warmup_steps);
        }
        let left = f64::from((self.steps - self.warmup_steps).max(2) - 1);
        let progress = (f64::from(step - self.warmup_steps) / left).min(1.0);
        let fall = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant => return self.lr_peak,
        };
        self.lr_floor + (self.lr_peak - self.lr_floor) * fall
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A recipe for tests.
    pub(crate) fn recipe(steps: u32) -> TrainRecipe {
        TrainRecipe {
            steps,
            batch: 5,
            micro_batch: 2,
            lr_peak: 3e-3,
            lr_floor: 3e-4,
            warmup_steps: 2.min(steps),
            schedule: Schedule::Cosine,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip_norm: 1.0,
            init_seed: 3,
            checkpoint_steps: vec![steps],
        }
    }

    #[test]
    fn the_learning_rate_climbs_then_falls_to_the_floor() {
        let recipe = TrainRecipe { warmup_steps: 10, ..recipe(101) };
        assert!((recipe.learning_rate(0) - 3e-4).abs() < 1e-12);
        assert!((recipe.learning_rate(9) - 3e-3).abs() < 1e-12);
        assert!((recipe.learning_rate(10) - 3e-3).abs() < 1e-12);
        // Half of the way down the cosine: the middle of peak and floor.
        assert!((recipe.learning_rate(55) - 1.65e-3).abs() < 1e-9);
        assert!((recipe.learning_rate(100) - 3e-4).abs() < 1e-12);
    }

    #[test]
    fn schedules_differ_after_the_warm_up_only() {
        let with = |schedule| TrainRecipe { warmup_steps: 10, schedule, ..recipe(101) };
        let (linear, constant) = (with(Schedule::Linear), with(Schedule::Constant));
        assert_eq!(linear.learning_rate(4), constant.learning_rate(4));
        assert!((linear.learning_rate(10) - 3e-3).abs() < 1e-12);
        // A third of the way from 3e-3 to 3e-4.
        assert!((linear.learning_rate(40) - 2.1e-3).abs() < 1e-9);
        assert!((linear.learning_rate(100) - 3e-4).abs() < 1e-12);
        assert!((10..101).all(|step| constant.learning_rate(step) == 3e-3));
    }

    #[test]
    fn recipes_of_before_read_and_write_as_they_did() {
        let json = serde_json::to_string(&recipe(4)).unwrap();
        assert!(!json.contains("schedule"), "{json}");
        assert_eq!(serde_json::from_str::<TrainRecipe>(&json).unwrap(), recipe(4));
        let linear = TrainRecipe { schedule: Schedule::Linear, ..recipe(4) };
        let json = serde_json::to_string(&linear).unwrap();
        assert!(json.contains("\"schedule\":\"linear\""), "{json}");
        assert_eq!(serde_json::from_str::<TrainRecipe>(&json).unwrap(), linear);
    }

    #[test]
    fn impossible_recipes_are_refused_by_field() {
        type Spoil = fn(&mut TrainRecipe);
        let cases: [(&str, Spoil); 8] = [
            ("steps", |r| r.steps = 0),
            ("micro_batch", |r| r.micro_batch = 0),
            ("warmup_steps", |r| r.warmup_steps = 1000),
            ("lr_peak", |r| r.lr_peak = f64::NAN),
            ("lr_floor", |r| r.lr_floor = 1.0),
            ("beta2", |r| r.beta2 = 1.0),
            ("clip_norm", |r| r.clip_norm = 0.0),
            ("checkpoint_steps", |r| r.checkpoint_steps = vec![2, 1]),
        ];
        for (field, spoil) in cases {
            let mut bad = recipe(4);
            spoil(&mut bad);
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")), "{field}: {message}");
        }
    }
}
