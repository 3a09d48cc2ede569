//! How a classifier is trained: the numbers of a run, checked once, and the learning rate of every step.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// The rule of a step, with the constants that only it has. Weight decay touches every parameter, as in PyTorch.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent: `v ← μv + g + λp`, `p ← p − lr·v`.
    Sgd {
        /// μ.
        momentum: f64,
    },
    /// Adam with `g + λp` as its gradient (arXiv:1412.6980).
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        eps: f64,
    },
    /// Adam with decoupled decay (arXiv:1711.05101).
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        eps: f64,
    },
}

/// How the learning rate falls, after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// `lr·(1 − step/steps)`.
    Linear,
    /// Half a cosine to 0.
    Cosine,
}

/// Everything that decides the weights besides the data and the network.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierRecipe {
    /// Passes over the members.
    pub epochs: u32,
    /// Images per step. Products and sums run over the whole batch, so it is part of the definition of the bytes.
    pub batch: u32,
    /// Leave out an epoch's last batch if it is not full.
    #[serde(default)]
    pub drop_last: bool,
    /// Exactly this many steps of full batches that go on into the next epoch, instead of what `epochs` says: removing
    /// images then does not shorten the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// The rule.
    pub optimizer: Optimizer,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup_steps: u32,
    /// λ.
    #[serde(default)]
    pub weight_decay: f64,
    /// Seed of fresh weights and of the order.
    #[serde(default)]
    pub seed: u64,
}

impl ClassifierRecipe {
    /// Checks the recipe.
    ///
    /// # Errors
    /// [`ModelError::Recipe`] naming the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        let fail =
            |field, expected: &str, found: String| Err(ModelError::Recipe { field, expected: expected.into(), found });
        for (field, count) in [("epochs", self.epochs), ("batch", self.batch), ("steps", self.steps.unwrap_or(1))] {
            if count == 0 {
                return fail(field, "at least 1", "0".into());
            }
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return fail("lr", "a positive number", self.lr.to_string());
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return fail("weight_decay", "a number that is not negative", self.weight_decay.to_string());
        }
        let decays = match self.optimizer {
            Optimizer::Sgd { momentum } => vec![("momentum", momentum)],
            Optimizer::Adam { beta1, beta2, eps } | Optimizer::AdamW { beta1, beta2, eps } => {
                if !(eps.is_finite() && eps > 0.0) {
                    return fail("eps", "a positive number", eps.to_string());
                }
                vec![("beta1", beta1), ("beta2", beta2)]
            }
        };
        match decays.into_iter().find(|(_, decay)| !(0.0..1.0).contains(decay)) {
            Some((field, found)) => fail(field, "a number in [0, 1)", found.to_string()),
            None => Ok(()),
        }
    }

    /// Steps of one epoch over `n` members.
    pub fn steps_per_epoch(&self, n: usize) -> u64 {
        let (n, batch) = (n as u64, u64::from(self.batch));
        if self.drop_last { n / batch } else { n.div_ceil(batch) }
    }

    /// Steps of the whole run over `n` members.
    pub fn total_steps(&self, n: usize) -> u64 {
        self.steps.map_or_else(|| u64::from(self.epochs) * self.steps_per_epoch(n), u64::from)
    }

    /// Learning rate of step `step` (from 0) of `total`.
    pub fn learning_rate(&self, step: u64, total: u64) -> f64 {
        let warmup = u64::from(self.warmup_steps);
        if step < warmup {
            return self.lr * (step + 1) as f64 / warmup as f64;
        }
        let progress = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Linear => self.lr * (1.0 - progress),
            Schedule::Cosine => self.lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A recipe for tests.
    pub(crate) fn recipe(epochs: u32) -> ClassifierRecipe {
        ClassifierRecipe {
            epochs,
            batch: 8,
            drop_last: false,
            steps: None,
            optimizer: Optimizer::Sgd { momentum: 0.9 },
            lr: 0.05,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            weight_decay: 1e-3,
            seed: 3,
        }
    }

    #[test]
    fn steps_and_rates_by_hand() {
        let r = recipe(3);
        assert_eq!((r.steps_per_epoch(20), r.total_steps(20)), (3, 9));
        let dropping = ClassifierRecipe { drop_last: true, ..recipe(3) };
        assert_eq!((dropping.steps_per_epoch(20), dropping.steps_per_epoch(7)), (2, 0));
        assert_eq!(ClassifierRecipe { steps: Some(5), ..recipe(3) }.total_steps(20), 5);
        let rate = |schedule, warmup_steps, step| {
            ClassifierRecipe { lr: 1.0, schedule, warmup_steps, ..recipe(3) }.learning_rate(step, 10)
        };
        assert_eq!([0, 5, 9].map(|step| rate(Schedule::Linear, 0, step)), [1.0, 0.5, 1.0 - 0.9]);
        assert_eq!([0, 1, 2, 6].map(|step| rate(Schedule::Linear, 2, step)), [0.5, 1.0, 1.0, 0.5]);
        assert!((rate(Schedule::Cosine, 0, 5) - 0.5).abs() < 1e-15);
        assert_eq!(rate(Schedule::Constant, 0, 9), 1.0);
    }

    #[test]
    fn impossible_recipes_are_refused_by_field() {
        type Spoil = fn(&mut ClassifierRecipe);
        let cases: [(&str, Spoil); 8] = [
            ("epochs", |r| r.epochs = 0),
            ("batch", |r| r.batch = 0),
            ("steps", |r| r.steps = Some(0)),
            ("lr", |r| r.lr = f64::INFINITY),
            ("weight_decay", |r| r.weight_decay = -1.0),
            ("momentum", |r| r.optimizer = Optimizer::Sgd { momentum: 1.0 }),
            ("eps", |r| r.optimizer = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 0.0 }),
            ("beta2", |r| r.optimizer = Optimizer::AdamW { beta1: 0.9, beta2: -0.1, eps: 1e-8 }),
        ];
        for (field, spoil) in cases {
            let mut bad = recipe(1);
            spoil(&mut bad);
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")), "{field}: {message}");
        }
    }
}
