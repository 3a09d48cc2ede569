//! Classifiers as a lab: models are trained when they are asked for, in seconds, always to the same bytes.

use std::path::Path;

use ascribe_core::Digest;
use ascribe_linalg::Stream;
use ascribe_methods::source::{CaptureSource, Operator};
use ascribe_models::vision::{Classifier, ClassifierRecipe, ClassifierTrainer, Curvature, Objective, Optimizer};
use ndarray::Array2;

use super::{Lab, Quantity, Stretch, View, Which};
use crate::bench::images::{ImageCurvature, ImageSource, QueryMeasure, places};
use crate::bench::setting::{ImageSubject, Images};
use crate::error::EngineError;

/// A classifier's setting, opened.
#[derive(Clone, Debug)]
pub struct ImageLab {
    /// Network and recipe.
    pub subject: ImageSubject,
    /// Images.
    pub images: Images,
}

struct ImageView<'a> {
    lab: &'a ImageLab,
    model: Classifier,
}

impl ImageLab {
    /// Opens images and queries; relative paths are relative to `dir`.
    ///
    /// # Errors
    /// See [`ImageSubject::open`]; kept epochs without an epoch-wise recipe, or beyond its end.
    pub fn open(subject: &ImageSubject, dir: &Path) -> Result<Self, EngineError> {
        Self::new(subject.clone(), subject.open(dir)?)
    }

    /// A lab of opened images.
    ///
    /// # Errors
    /// Kept epochs without an epoch-wise recipe, or that do not end with the last epoch.
    pub fn new(subject: ImageSubject, images: Images) -> Result<Self, EngineError> {
        let epochs = &subject.checkpoint_epochs;
        let rising = epochs.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || subject.train.steps.is_some() || epochs.last().is_some_and(|&last| last != subject.train.epochs) {
            let expected = format!("rising epochs that end with {}", subject.train.epochs);
            return Err(EngineError::Setting { setting: "checkpoint_epochs", expected, found: format!("{epochs:?}") });
        }
        Ok(Self { subject, images })
    }

    /// The same with the first `n` queries only.
    ///
    /// # Errors
    /// The images'.
    pub fn limited(mut self, n: usize) -> Result<Self, EngineError> {
        self.images.queries = self.images.queries.first(n)?;
        Ok(self)
    }

    /// The recipe of the `offset`-th model.
    pub fn recipe(&self, offset: u64) -> ClassifierRecipe {
        // Banks count their seeds from 1; so do models.
        ClassifierRecipe { seed: 1 + self.subject.train.seed + offset, ..self.subject.train.clone() }
    }

    /// Trains the `offset`-th model, up to the end of `epoch` if one is given.
    ///
    /// # Errors
    /// The trainer's.
    pub fn train(&self, offset: u64, epoch: Option<u32>) -> Result<Classifier, EngineError> {
        self.train_on(places(&self.images.train), offset, epoch)
    }

    /// Trains the `offset`-th model on a half of the examples that only this model has. Banks draw theirs from other streams, so
    /// no half of a bank is among them.
    ///
    /// # Errors
    /// The trainer's.
    pub fn train_on_half(&self, offset: u64) -> Result<Classifier, EngineError> {
        let mut members = places(&self.images.train);
        Stream::new(offset, "bench/half").shuffle(&mut members);
        members.truncate(members.len().div_ceil(2));
        members.sort_unstable();
        self.train_on(members, offset, None)
    }

    fn train_on(&self, members: Vec<u32>, offset: u64, epoch: Option<u32>) -> Result<Classifier, EngineError> {
        let per_epoch = self.subject.train.steps_per_epoch(members.len());
        let mut trainer = ClassifierTrainer::new(self.images.config.clone(), self.recipe(offset), members)?;
        let last = epoch.map_or(trainer.total_steps(), |epoch| u64::from(epoch) * per_epoch);
        while trainer.step_count() < last {
            trainer.step(&self.images.train)?;
        }
        Ok(trainer.into_classifier())
    }
}

impl Lab for ImageLab {
    fn digest(&self) -> Digest {
        // Kept epochs make no other model, but other scores of methods that use them.
        let kept = &self.subject.checkpoint_epochs;
        Digest::of(format!("{} {} {kept:?}", self.images.digest, self.subject.recipe_digest()).as_bytes())
    }

    fn n_examples(&self) -> usize {
        self.images.train.len()
    }

    fn n_queries(&self) -> usize {
        self.images.queries.len()
    }

    fn model(&self, which: Which) -> Result<Box<dyn View + '_>, EngineError> {
        let model = match which {
            Which::Final(offset) => self.train(offset, None)?,
            Which::Half(offset) => self.train_on_half(offset)?,
            Which::Kept(index) => {
                let epochs = &self.subject.checkpoint_epochs;
                let epoch = epochs.get(index).ok_or_else(|| EngineError::Setting {
                    setting: "checkpoint",
                    expected: format!("one of the {} kept", epochs.len()),
                    found: index.to_string(),
                })?;
                self.train(0, Some(*epoch))?
            }
        };
        Ok(Box::new(ImageView { lab: self, model }))
    }

    fn stretches(&self) -> Vec<Stretch> {
        let recipe = &self.subject.train;
        let n = self.n_examples();
        let (per_epoch, total) = (recipe.steps_per_epoch(n), recipe.total_steps(n));
        let momentum = match recipe.optimizer {
            Optimizer::Sgd { momentum } => momentum,
            _ => 0.0,
        };
        let mut start = 0;
        let stretch = |&epoch: &u32| {
            let step = u64::from(epoch) * per_epoch;
            let learning_rate_sum = (start..step).map(|s| recipe.learning_rate(s, total)).sum();
            start = step;
            Stretch { step, learning_rate_sum, momentum, weight_decay: recipe.weight_decay }
        };
        self.subject.checkpoint_epochs.iter().map(stretch).collect()
    }

    fn labels(&self) -> Option<(&[u32], &[u32])> {
        Some((self.images.train.labels(), self.images.queries.labels()))
    }

    fn images(&self) -> Option<&ImageLab> {
        Some(self)
    }
}

fn measure(quantity: Quantity) -> QueryMeasure {
    match quantity {
        Quantity::Loss => QueryMeasure::Loss,
        Quantity::NegativeMargin => QueryMeasure::NegativeMargin,
    }
}

impl View for ImageView<'_> {
    fn train(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError> {
        Ok(Box::new(ImageSource::new(&self.model, &self.lab.images.train).of(measure(quantity))))
    }

    fn queries(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError> {
        Ok(Box::new(ImageSource::new(&self.model, &self.lab.images.queries).of(measure(quantity))))
    }

    fn curvature(&self) -> Result<Box<dyn Operator + '_>, EngineError> {
        Ok(Box::new(ImageCurvature::new(&self.model, &self.lab.images.train, Curvature::GaussNewton)))
    }

    fn hessian(&self) -> Result<Box<dyn Operator + '_>, EngineError> {
        Ok(Box::new(ImageCurvature::new(&self.model, &self.lab.images.train, Curvature::Hessian)))
    }

    fn embeddings(&self) -> Result<(Array2<f32>, Array2<f32>), EngineError> {
        let images = &self.lab.images;
        let train = self.model.embeddings(&images.train, &places(&images.train))?;
        Ok((train, self.model.embeddings(&images.queries, &places(&images.queries))?))
    }

    fn residuals(&self) -> Result<Vec<f32>, EngineError> {
        let train = &self.lab.images.train;
        let losses = self.model.losses(train, &places(train), Objective::LOSS)?;
        // 1 − p = 1 − e^{−loss}, without the cancellation.
        Ok(losses.into_iter().map(|loss| (-(-loss).exp_m1()).clamp(0.0, 1.0) as f32).collect())
    }
}
