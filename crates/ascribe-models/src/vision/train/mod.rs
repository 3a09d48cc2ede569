//! Training of classifiers: SGD, Adam, AdamW over mean cross-entropy, the same bytes for any number of threads.
//!
//! The trainer knows the set's members it may see and orders them itself: an image's place in an epoch is decided by a key of
//! its own, so leaving images out keeps the order of the rest and a retraining differs by its data, not by a new shuffle.
//! A step's number alone decides its batch, so a resumed run makes the same bytes.

mod pass;
mod recipe;
mod replay;
mod state;

use std::path::Path;

use ascribe_core::{Digest, RowType};
use ascribe_linalg::Stream;
use ascribe_linalg::elementwise::{AdamStep, SgdStep, adam_update, sgd_update, sum_squares};
use rayon::prelude::*;

#[cfg(test)]
pub(crate) use recipe::tests::recipe as test_recipe;
pub use recipe::{ClassifierRecipe, Optimizer, Schedule};
pub use replay::{Metagradients, Replay};

use super::config::{ClassifierConfig, ClassifierKind};
use super::data::ImageSet;
use super::{Classifier, Objective, tensors};
use crate::error::ModelError;
use crate::weights;
use pass::BatchPass;

/// Parameters per task of the update; networks below it are updated on the calling thread.
const PIECE: usize = 1 << 16;

/// Numbers of a batch's activations at most: 16 GiB, and as much again for their gradients.
const MAX_BATCH_NUMBERS: usize = 1 << 32;

/// What one step did.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClassifierStep {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean cross-entropy of the batch in nats, before the update.
    pub loss: f64,
    /// Images of the batch that were classified as labelled, before the update.
    pub correct: usize,
    /// Images of the batch.
    pub images: usize,
    /// Length of the mean gradient (without weight decay).
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
}

/// A classifier under training.
#[derive(Clone, Debug)]
pub struct ClassifierTrainer {
    model: Classifier,
    recipe: ClassifierRecipe,
    members: Vec<u32>,
    step: u64,
    first_moments: Vec<f32>,
    /// Empty for SGD.
    second_moments: Vec<f32>,
    /// One per image of the set, in a replay; a trainer with weights is not saved.
    weights: Option<Vec<f32>>,
    pass: BatchPass,
    /// The epoch whose order is at hand.
    order: Option<(u64, Vec<u32>)>,
}

impl ClassifierTrainer {
    /// Fresh weights under `recipe.seed`, to be trained on the images `members` of a set.
    ///
    /// # Errors
    /// [`ModelError::Config`], [`ModelError::Recipe`].
    pub fn new(config: ClassifierConfig, recipe: ClassifierRecipe, members: Vec<u32>) -> Result<Self, ModelError> {
        let model = Classifier::init(config, recipe.seed)?;
        Self::from_classifier(model, recipe, members)
    }

    /// Goes on from given weights, step 0, moments zero.
    ///
    /// # Errors
    /// [`ModelError::Recipe`] for a recipe that cannot be carried out on that many members.
    pub fn from_classifier(
        mut model: Classifier,
        recipe: ClassifierRecipe,
        members: Vec<u32>,
    ) -> Result<Self, ModelError> {
        recipe.validate()?;
        if members.is_empty() || recipe.total_steps(members.len()) == 0 {
            let expected = format!("enough images for a batch of {}", recipe.batch);
            return Err(ModelError::Recipe { field: "members", expected, found: members.len().to_string() });
        }
        model.file_digest = None;
        let len = model.parameters.len();
        let second = if matches!(recipe.optimizer, Optimizer::Sgd { .. }) { 0 } else { len };
        let batch = match recipe.steps {
            Some(_) => recipe.batch as usize,
            None => (recipe.batch as usize).min(members.len()),
        };
        if batch.saturating_mul(model.network.numbers()) > MAX_BATCH_NUMBERS {
            let expected = format!("at most {} images of this network", MAX_BATCH_NUMBERS / model.network.numbers());
            return Err(ModelError::Recipe { field: "batch", expected, found: batch.to_string() });
        }
        let pass = BatchPass::new(&model.network, batch);
        let (first_moments, second_moments) = (vec![0.0; len], vec![0.0; second]);
        let weights = None;
        Ok(Self { model, recipe, members, step: 0, first_moments, second_moments, weights, pass, order: None })
    }

    /// The images of step `step`.
    fn batch(&mut self, step: u64) -> Vec<u32> {
        let (n, batch) = (self.members.len() as u64, u64::from(self.recipe.batch));
        if self.recipe.steps.is_some() {
            return (step * batch..(step + 1) * batch).map(|at| self.order(at / n)[(at % n) as usize]).collect();
        }
        let per_epoch = self.recipe.steps_per_epoch(self.members.len());
        let first = (step % per_epoch) * batch;
        let order = self.order(step / per_epoch);
        order[first as usize..(first + batch).min(n) as usize].to_vec()
    }

    fn order(&mut self, epoch: u64) -> &[u32] {
        let (known, order) = self.order.get_or_insert_with(|| (u64::MAX, vec![]));
        if *known != epoch {
            let stream = Stream::new(self.recipe.seed, &format!("order/epoch/{epoch}"));
            order.clone_from(&self.members);
            order.sort_by_cached_key(|&id| (stream.at(u64::from(id)), id));
            *known = epoch;
        }
        order
    }

    /// One optimiser step on the mean cross-entropy of its batch.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for a set that does not fit, [`ModelError::Recipe`] when the steps are used up,
    /// [`ModelError::Diverged`]; the weights are as before then.
    pub fn step(&mut self, set: &ImageSet) -> Result<ClassifierStep, ModelError> {
        self.model.check(set, &self.members, Objective::LOSS)?;
        self.checked_step(set)
    }

    fn checked_step(&mut self, set: &ImageSet) -> Result<ClassifierStep, ModelError> {
        let total = self.total_steps();
        if self.step >= total {
            let (expected, found) = (format!("at most {total}"), (self.step + 1).to_string());
            return Err(ModelError::Recipe { field: "steps", expected, found });
        }
        let ids = self.batch(self.step);
        let measured = self.pass.run(&self.model, set, &ids, self.weights.as_deref());
        let images = ids.len();
        let loss = measured.nats / images as f64;
        let grad_norm = self.squared_norm().sqrt() / images as f64;
        for (what, found) in [("loss", loss), ("gradient norm", grad_norm)] {
            if !found.is_finite() {
                let step = u32::try_from(self.step).unwrap_or(u32::MAX);
                return Err(ModelError::Diverged { step, what, found });
            }
        }
        let lr = self.recipe.learning_rate(self.step, total);
        self.update(lr, 1.0 / images as f64);
        if let ClassifierKind::ResNet9 { batch_norm_momentum, .. } = self.model.config.kind {
            self.pass.update_running(&self.model.network, batch_norm_momentum, &mut self.model.buffers);
        }
        self.step += 1;
        Ok(ClassifierStep { step: self.step, loss, correct: measured.correct, images, grad_norm, lr })
    }

    /// All steps that are left; `on_step` sees each and may stop the run with an error of its own.
    ///
    /// # Errors
    /// As [`Self::step`], and what `on_step` returns.
    pub fn run<E: From<ModelError>>(
        &mut self,
        set: &ImageSet,
        mut on_step: impl FnMut(&ClassifierStep, &Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.model.check(set, &self.members, Objective::LOSS)?;
        while self.step < self.total_steps() {
            let report = self.checked_step(set)?;
            on_step(&report, self)?;
        }
        Ok(())
    }

    fn squared_norm(&self) -> f64 {
        let gradient = &self.pass.gradient;
        if gradient.len() <= PIECE {
            return sum_squares(gradient);
        }
        let squares: Vec<f64> = gradient.par_chunks(PIECE).map(sum_squares).collect();
        squares.into_iter().sum()
    }

    fn update(&mut self, lr: f64, grad_scale: f64) {
        let decay = self.recipe.weight_decay;
        let gradient = &mut self.pass.gradient;
        let (p, m, v) = (&mut self.model.parameters, &mut self.first_moments, &mut self.second_moments);
        match self.recipe.optimizer {
            Optimizer::Sgd { momentum } => {
                let step = SgdStep {
                    grad_scale: grad_scale as f32,
                    lr: lr as f32,
                    momentum: momentum as f32,
                    weight_decay: decay as f32,
                };
                if p.len() <= PIECE {
                    return sgd_update(&step, p, gradient, m);
                }
                let pieces = p.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).zip(m.par_chunks_mut(PIECE));
                pieces.for_each(|((p, g), m)| sgd_update(&step, p, g, m));
            }
            Optimizer::Adam { beta1, beta2, eps } | Optimizer::AdamW { beta1, beta2, eps } => {
                let coupled = matches!(self.recipe.optimizer, Optimizer::Adam { .. });
                let t = i32::try_from(self.step + 1).unwrap_or(i32::MAX);
                let step = AdamStep {
                    grad_scale: if coupled { 1.0 } else { grad_scale as f32 },
                    step_size: (lr / (1.0 - beta1.powi(t))) as f32,
                    keep: if coupled { 1.0 } else { (1.0 - lr * decay) as f32 },
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    inv_sqrt_correction: (1.0 / (1.0 - beta2.powi(t)).sqrt()) as f32,
                    eps: eps as f32,
                };
                type Pair<'r> = (&'r mut [f32], &'r mut [f32]);
                let piece = |((p, g), (m, v)): (Pair<'_>, Pair<'_>)| {
                    if coupled {
                        let both = g.iter_mut().zip(&*p);
                        both.for_each(|(g, &p)| *g = *g * grad_scale as f32 + decay as f32 * p);
                    }
                    adam_update(&step, p, g, m, v);
                };
                if p.len() <= PIECE {
                    return piece(((p, gradient), (m, v)));
                }
                let parameters = p.par_chunks_mut(PIECE).zip(gradient.par_chunks_mut(PIECE));
                let moments = m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE));
                parameters.zip(moments).for_each(piece);
            }
        }
    }

    /// The classifier as it is now.
    pub fn classifier(&self) -> &Classifier {
        &self.model
    }

    /// Ends the training.
    pub fn into_classifier(self) -> Classifier {
        self.model
    }

    /// The recipe.
    pub fn recipe(&self) -> &ClassifierRecipe {
        &self.recipe
    }

    /// Places of the images that are trained on.
    pub fn members(&self) -> &[u32] {
        &self.members
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.recipe.total_steps(self.members.len())
    }

    /// True after the last step of an epoch.
    pub fn epoch_done(&self) -> bool {
        self.step > 0 && self.step.is_multiple_of(self.recipe.steps_per_epoch(self.members.len()).max(1))
    }

    /// Adam's running means of squared gradients, flat; empty for SGD.
    pub fn second_moments(&self) -> &[f32] {
        &self.second_moments
    }

    /// Writes Adam's second moments as safetensors under the parameters' names; returns the SHA-256 of the file.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Recipe`] for an optimiser without them.
    pub fn save_second_moments(&self, path: &Path, row_type: RowType) -> Result<Digest, ModelError> {
        if self.second_moments.is_empty() {
            let expected = "adam or adamw, which keep second moments".into();
            return Err(ModelError::Recipe { field: "optimizer", expected, found: "sgd".into() });
        }
        let metadata = [
            ("format".into(), "pt".into()),
            ("quantity".into(), "adam_second_moment".into()),
            ("step".into(), self.step.to_string()),
        ];
        let tensors = tensors(self.model.parameter_slots(), &self.second_moments, "");
        weights::write_atomically(path, &weights::to_bytes(&tensors, row_type, &metadata.into()))
    }
}

#[cfg(test)]
mod tests;
