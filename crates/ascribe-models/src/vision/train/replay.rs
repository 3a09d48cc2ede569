//! A training run as a function of one weight per image, and its exact derivative (MAGIC, arXiv:2504.16430; metagradients, arXiv:2503.13751).
//!
//! With weights `w` a step's gradient is `(1/B) Σ_i w_i ∇ℓ_i(θ)` over its batch of B images, the denominator fixed: at `w = 1` it
//! is the trainer's own run, byte for byte, and a weight of 0 takes an image out without moving any other. The derivative of
//! a number measured after the last step by every `w_i` follows from the run backwards. With
//! `v_{t+1} = μ v_t + g_t + λ θ_t`, `θ_{t+1} = θ_t − η_t v_{t+1}` and adjoints `Θ_T = ∇φ`, `V_T = 0`:
//!
//! ```text
//! V'      = V_{t+1} − η_t Θ_{t+1}
//! ∂φ/∂w_i += (1/B) ⟨∇ℓ_i(θ_t), V'⟩            for the images i of batch t
//! Θ_t     = Θ_{t+1} + λ V' + (1/B) Σ_i w_i ∇²ℓ_i(θ_t) V'
//! V_t     = μ V'
//! ```
//!
//! Adam and AdamW have two moments and a division more to go back through (`adjoint`); their state is `(θ, m, v)`. Adam's division
//! by `√v` makes a run rough where gradients vanish: choose an ε that is not small against them.
//!
//! The weights on the way are made again from `√T` kept states. Nothing here approximates: what remains is f32 rounding, and
//! that the derivative of a run is not its finite change.

mod adjoint;

use ndarray::{Array2, Axis, s};
use rayon::prelude::*;

use self::adjoint::{AdamMoment, Adjoint, Moment, Rule};
use super::{ClassifierRecipe, ClassifierTrainer, Optimizer};
use crate::error::ModelError;
use crate::vision::Classifier;
use crate::vision::config::{ClassifierConfig, ClassifierKind};
use crate::vision::curvature::Vectors;
use crate::vision::data::ImageSet;
use crate::vision::loss::Objective;

/// A run over all images of a set that can be made again with other weights.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    config: ClassifierConfig,
    recipe: ClassifierRecipe,
    set: &'a ImageSet,
}

/// Where a run ended, and how that depends on its images.
#[derive(Clone, Debug)]
pub struct Metagradients {
    /// The trained classifier.
    pub classifier: Classifier,
    /// `[Q, N]`: derivative of query q's measured number by the weight of image i, in nats. For a margin (or minus a loss)
    /// positive means that the image helps.
    pub values: Array2<f64>,
}

/// A run's numbers before a step.
struct State {
    step: u64,
    parameters: Vec<f32>,
    first_moments: Vec<f32>,
    second_moments: Vec<f32>,
}

impl<'a> Replay<'a> {
    /// A run of `recipe` over all images of `set`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a network with batch normalisation, where an image's loss depends on its neighbours;
    /// as [`ClassifierTrainer::new`].
    pub fn new(config: ClassifierConfig, recipe: ClassifierRecipe, set: &'a ImageSet) -> Result<Self, ModelError> {
        if matches!(config.kind, ClassifierKind::ResNet9 { .. }) {
            let expected = "a network without batch normalisation".into();
            let found = "resnet9".into();
            return Err(ModelError::Config { path: "<memory>".into(), field: "model_type", expected, found });
        }
        let replay = Self { config, recipe, set };
        replay.trainer(None).map(|_| replay)
    }

    /// Trains with `weights` (one per image of the set; all 1 if `None`).
    ///
    /// With all weights 1 these are the bytes of [`ClassifierTrainer::run`].
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for another number of weights or one that is not finite; as [`ClassifierTrainer::run`].
    pub fn train(&self, weights: Option<&[f32]>) -> Result<Classifier, ModelError> {
        let mut trainer = self.trainer(weights)?;
        trainer.run(self.set, |_, _| Ok::<(), ModelError>(()))?;
        Ok(trainer.into_classifier())
    }

    /// Trains with `weights` and takes the derivative of the measured number of every image `ids` of `queries` by every
    /// weight.
    ///
    /// The bytes do not depend on threads. Cost: two runs, and per step about `8·B·P` operations per query; memory `8·P`
    /// bytes per query and `8·P·√T`.
    ///
    /// # Errors
    /// As [`Self::train`] and [`Classifier::gradients`]; [`ModelError::Diverged`] if a derivative is not finite.
    pub fn metagradients(
        &self,
        weights: Option<&[f32]>,
        queries: &ImageSet,
        ids: &[u32],
        objective: Objective<'_>,
    ) -> Result<Metagradients, ModelError> {
        let mut trainer = self.trainer(weights)?;
        trainer.model.check(self.set, &trainer.members, Objective::LOSS)?;
        let stride = trainer.total_steps().isqrt().max(1);
        let mut states = vec![];
        while trainer.step < trainer.total_steps() {
            if trainer.step.is_multiple_of(stride) {
                states.push(State::of(&trainer));
            }
            trainer.checked_step(self.set)?;
        }
        let classifier = trainer.model.clone();
        let gradients = classifier.layer_gradients(queries, ids, objective)?;
        let (vectors, block) = classifier.dual_sizes();
        let rule = Rule { optimizer: self.recipe.optimizer, decay: self.recipe.weight_decay };
        let adjoint = |rows| Adjoint::new(Vectors::gather(&classifier, rows), rule, self.set.len());
        let mut adjoints: Vec<Adjoint> = gradients.axis_chunks_iter(Axis(0), vectors).map(adjoint).collect();
        for state in states.into_iter().rev() {
            let moments = self.moments(&mut trainer, state, stride, weights)?;
            adjoints.par_iter_mut().for_each(|adjoint| adjoint.back(self.set, &moments, rule, block));
        }
        let mut values = Array2::zeros((ids.len(), self.set.len()));
        for (i, adjoint) in adjoints.iter().enumerate() {
            let first = i * vectors;
            values.slice_mut(s![first..first + adjoint.by_image.nrows(), ..]).assign(&adjoint.by_image);
        }
        match values.iter().find(|x| !x.is_finite()) {
            Some(&found) => Err(ModelError::Diverged { step: 0, what: "derivative by an image's weight", found }),
            None => Ok(Metagradients { classifier, values }),
        }
    }

    fn trainer(&self, weights: Option<&[f32]>) -> Result<ClassifierTrainer, ModelError> {
        let members = (0..self.set.len() as u32).collect();
        let mut trainer = ClassifierTrainer::new(self.config.clone(), self.recipe.clone(), members)?;
        if let Some(weights) = weights {
            trainer.model.check_len("number of image weights", self.set.len(), weights.len())?;
            if let Some(i) = weights.iter().position(|w| !w.is_finite()) {
                let (what, expected) = ("weight of an image", "a finite number".into());
                let found = format!("{} for image {i}", weights[i]);
                return Err(ModelError::Mismatch { what, expected, found });
            }
            trainer.weights = Some(weights.to_vec());
        }
        Ok(trainer)
    }

    /// Up to `stride` steps from `state` on, made again.
    fn moments(
        &self,
        trainer: &mut ClassifierTrainer,
        state: State,
        stride: u64,
        weights: Option<&[f32]>,
    ) -> Result<Vec<Moment>, ModelError> {
        let total = trainer.total_steps();
        trainer.step = state.step;
        trainer.model.parameters = state.parameters;
        (trainer.first_moments, trainer.second_moments) = (state.first_moments, state.second_moments);
        let mut moments = vec![];
        for step in state.step..total.min(state.step + stride) {
            let batch = trainer.batch(step);
            let share = 1.0 / batch.len() as f32;
            let weight = |&id: &u32| share * weights.map_or(1.0, |w| w[id as usize]);
            let shares = batch.iter().map(weight).collect();
            let lr = self.recipe.learning_rate(step, total) as f32;
            moments.push(Moment { model: trainer.model.clone(), batch, shares, lr, adam: None });
            trainer.checked_step(self.set)?;
            if let Some(moment) = moments.last_mut() {
                moment.adam = self.adam_moment(trainer, moment)?;
            }
        }
        Ok(moments)
    }

    /// What Adam's way back needs of the step that the trainer has just done.
    fn adam_moment(&self, trainer: &ClassifierTrainer, moment: &Moment) -> Result<Option<AdamMoment>, ModelError> {
        let (beta1, beta2, coupled) = match self.recipe.optimizer {
            Optimizer::Sgd { .. } => return Ok(None),
            Optimizer::Adam { beta1, beta2, .. } => (beta1, beta2, true),
            Optimizer::AdamW { beta1, beta2, .. } => (beta1, beta2, false),
        };
        let t = i32::try_from(trainer.step).unwrap_or(i32::MAX);
        // A coupled rule has left the mean gradient with its decay in the pass, the other one the batch's sum.
        let scale = if coupled { 1.0 } else { 1.0 / moment.batch.len() as f32 };
        let gradient: Vec<f32> = trainer.pass.gradient.iter().map(|g| g * scale).collect();
        let layers = |flat: &[f32]| -> Result<Vec<Vec<f32>>, ModelError> {
            let row = trainer.model.to_layers(flat)?;
            let row = ndarray::ArrayView2::from_shape((1, row.len()), &row).expect("a row is a matrix of one row");
            Ok(Vectors::gather(&trainer.model, row).layers)
        };
        Ok(Some(AdamMoment {
            gradient: layers(&gradient)?,
            first: layers(&trainer.first_moments)?,
            second: layers(&trainer.second_moments)?,
            step_size: f64::from(moment.lr) / (1.0 - beta1.powi(t)),
            correction: 1.0 / (1.0 - beta2.powi(t)).sqrt(),
        }))
    }
}

impl State {
    fn of(trainer: &ClassifierTrainer) -> Self {
        let (first_moments, second_moments) = (trainer.first_moments.clone(), trainer.second_moments.clone());
        Self { step: trainer.step, parameters: trainer.model.parameters.clone(), first_moments, second_moments }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{clouds, mlp};
    use super::*;
    use crate::vision::curvature::Curvature;
    use crate::vision::ops::differences::inner;
    use crate::vision::train::{Schedule, test_recipe};

    fn lr() -> ClassifierConfig {
        ClassifierConfig::new([1, 1, 2], 3, ClassifierKind::LogisticRegression)
    }

    fn all(set: &ImageSet) -> Vec<u32> {
        (0..set.len() as u32).collect()
    }

    #[test]
    fn weights_of_one_are_the_trainers_own_run() {
        let set = clouds(30);
        let mut trainer = ClassifierTrainer::new(mlp(), test_recipe(3), all(&set)).unwrap();
        trainer.run(&set, |_, _| Ok::<(), ModelError>(())).unwrap();
        let replay = Replay::new(mlp(), test_recipe(3), &set).unwrap();
        let own = trainer.classifier().parameters();
        assert_eq!(replay.train(None).unwrap().parameters(), own);
        assert_eq!(replay.train(Some(&[1.0; 30])).unwrap().parameters(), own);
        let meta = replay.metagradients(None, &set, &[0], Objective::LOSS).unwrap();
        assert_eq!(meta.classifier.parameters(), own);
    }

    /// After one step `φ(θ₀ − η/B Σ w ∇ℓ)`: its derivative is `−η/B ⟨∇φ(θ₁), ∇ℓ_i(θ₀)⟩`, momentum or not.
    #[test]
    fn one_step_has_its_closed_form() {
        let set = clouds(12);
        let recipe = ClassifierRecipe { batch: 12, schedule: Schedule::Constant, lr: 0.3, ..test_recipe(1) };
        let start = Classifier::init(mlp(), recipe.seed).unwrap();
        let replay = Replay::new(mlp(), recipe, &set).unwrap();
        let meta = replay.metagradients(None, &set, &[3, 4], Objective::MARGIN).unwrap();
        let queries = meta.classifier.gradients(&set, &[3, 4], Objective::MARGIN).unwrap();
        let train = start.gradients(&set, &all(&set), Objective::LOSS).unwrap();
        for (q, query) in queries.rows().into_iter().enumerate() {
            for (i, gradient) in train.rows().into_iter().enumerate() {
                let exact = -0.3 / 12.0 * inner(query.as_slice().unwrap(), gradient.as_slice().unwrap());
                assert!((meta.values[(q, i)] - exact).abs() < 1e-6, "{q} {i}: {} {exact}", meta.values[(q, i)]);
            }
        }
    }

    /// Logistic regression run to its optimum on full batches: the influence function
    /// `−(1/n) ⟨∇φ, (H + λ)⁻¹ ∇ℓ_i⟩`, solved by a long geometric series of Hessian products.
    #[test]
    fn a_run_to_the_optimum_gives_the_influence_function() {
        let set = clouds(24);
        let (n, lambda) = (24u32, 0.05);
        let recipe = ClassifierRecipe {
            batch: n,
            schedule: Schedule::Constant,
            lr: 0.2,
            weight_decay: lambda,
            ..test_recipe(800)
        };
        let replay = Replay::new(lr(), recipe, &set).unwrap();
        let meta = replay.metagradients(None, &set, &[0, 5], Objective::LOSS).unwrap();
        let model = &meta.classifier;
        let queries = model.layer_gradients(&set, &[0, 5], Objective::LOSS).unwrap();
        let train = model.layer_gradients(&set, &all(&set), Objective::LOSS).unwrap();
        let mut solved = Array2::<f32>::zeros(queries.dim());
        let mut product = solved.clone();
        for _ in 0..3000 {
            model.curvature_products(&set, &all(&set), Curvature::Hessian, solved.view(), product.view_mut()).unwrap();
            let residual = &queries - &product - &(lambda as f32 * &solved);
            solved = solved + 0.3 * residual;
        }
        let exact = solved.dot(&train.t()) / -(n as f32);
        let top = exact.iter().fold(0f32, |top, x| top.max(x.abs()));
        for (ours, &exact) in meta.values.iter().zip(&exact) {
            assert!((ours - f64::from(exact)).abs() < 2e-3 * f64::from(top), "{ours} {exact}");
        }
    }

    /// Finite differences of whole runs: minibatches, momentum, decay, a schedule, an incomplete last batch, weights that are
    /// not 1. Where the difference upwards is not the one downwards the step bends a rectifier on the way, and there is no
    /// derivative to compare with; enough others must be left, and all of those agree.
    #[test]
    fn the_derivative_of_a_run_is_its_finite_change() {
        let set = clouds(30);
        let lenet = ClassifierKind::LeNet {
            channels: [2, 2],
            kernel_size: 1,
            padding: 0,
            pool: crate::vision::Pooling::Average,
            widths: [4, 3],
        };
        let pictures = crate::vision::ops::differences::noise("pictures", 30 * 16);
        let labels = (0..30).map(|i| i % 3).collect();
        let pictures =
            ImageSet::from_f32([1, 4, 4], pictures, labels, &crate::vision::Normalization::default()).unwrap();
        let sgd = ClassifierRecipe { lr: 0.05, ..test_recipe(6) };
        let (beta1, beta2, eps) = (0.8, 0.95, 0.05);
        let adam =
            ClassifierRecipe { optimizer: Optimizer::Adam { beta1, beta2, eps }, weight_decay: 0.02, ..sgd.clone() };
        let adamw =
            ClassifierRecipe { optimizer: Optimizer::AdamW { beta1, beta2, eps }, weight_decay: 0.5, ..sgd.clone() };
        let lenet = ClassifierConfig::new([1, 4, 4], 3, lenet);
        let cases = [
            (lr(), &sgd, &set, 0.05),
            (mlp(), &sgd, &set, 0.05),
            (lenet.clone(), &sgd, &pictures, 0.1),
            (lr(), &adam, &set, 0.05),
            (lr(), &adamw, &set, 0.05),
            // Adam moves every weight, so a rectifier bends within a shorter step.
            (mlp(), &adam, &set, 0.01),
            (mlp(), &adamw, &set, 0.01),
            (lenet, &adamw, &pictures, 0.1),
        ];
        for (config, recipe, set, step) in cases {
            let recipe = recipe.clone();
            let replay = Replay::new(config.clone(), recipe, set).unwrap();
            let weights: Vec<f32> = (0..30u8).map(|i| 0.5 + f32::from(i % 4) / 4.0).collect();
            let ids = [1, 2, 9];
            let meta = replay.metagradients(Some(&weights), set, &ids, Objective::LOSS).unwrap();
            let top = meta.values.iter().fold(0f64, |top, x| top.max(x.abs()));
            let here = meta.classifier.losses(set, &ids, Objective::LOSS).unwrap();
            let (mut smooth, mut compared) = (0, 0);
            for i in (0..30).step_by(3) {
                let at = |step: f32| {
                    let mut weights = weights.clone();
                    weights[i] += step;
                    replay.train(Some(&weights)).unwrap().losses(set, &ids, Objective::LOSS).unwrap()
                };
                for (q, (above, below)) in at(step).into_iter().zip(at(-step)).enumerate() {
                    compared += 1;
                    let (up, down) = ((above - here[q]) / f64::from(step), (here[q] - below) / f64::from(step));
                    if (up - down).abs() > 0.03 * top {
                        continue;
                    }
                    smooth += 1;
                    let off = ((up + down) / 2.0 - meta.values[(q, i)]).abs() / top;
                    assert!(off < 0.03, "{:?}: query {q}, image {i}: {up} {down} {off}", config.kind);
                }
            }
            assert!(smooth * 4 >= compared, "{:?}: {smooth} of {compared} are smooth", config.kind);
        }
    }

    /// After one step of AdamW: `m' = (1−β₁)g`, `v' = (1−β₂)g²`, so with ε = 0 a weight would move by its gradient's sign alone;
    /// with ε the derivative is that of `−η g/(|g| + ε)`, `−η ε/(|g| + ε)²`, times each image's part of g.
    #[test]
    fn one_step_of_adam_has_its_closed_form() {
        let set = clouds(12);
        let (beta1, beta2, eps) = (0.9, 0.99, 0.2);
        let recipe = ClassifierRecipe {
            batch: 12,
            schedule: Schedule::Constant,
            lr: 0.3,
            optimizer: Optimizer::AdamW { beta1, beta2, eps },
            ..test_recipe(1)
        };
        let start = Classifier::init(mlp(), recipe.seed).unwrap();
        let replay = Replay::new(mlp(), recipe, &set).unwrap();
        let meta = replay.metagradients(None, &set, &[3, 4], Objective::MARGIN).unwrap();
        let queries = meta.classifier.gradients(&set, &[3, 4], Objective::MARGIN).unwrap();
        let train = start.gradients(&set, &all(&set), Objective::LOSS).unwrap();
        let mean = train.mean_axis(Axis(0)).unwrap();
        for (q, query) in queries.rows().into_iter().enumerate() {
            for (i, gradient) in train.rows().into_iter().enumerate() {
                let part = |((q, g), m): ((&f32, &f32), &f32)| {
                    let slope = -0.3 * eps / (f64::from(m.abs()) + eps).powi(2);
                    f64::from(*q) * slope * f64::from(*g) / 12.0
                };
                let exact: f64 = query.iter().zip(gradient).zip(&mean).map(part).sum();
                assert!((meta.values[(q, i)] - exact).abs() < 1e-5, "{q} {i}: {} {exact}", meta.values[(q, i)]);
            }
        }
    }

    #[test]
    fn threads_and_other_queries_do_not_change_a_derivative() {
        let set = clouds(30);
        let replay = Replay::new(mlp(), test_recipe(4), &set).unwrap();
        let run = |ids: &[u32]| replay.metagradients(None, &set, ids, Objective::MARGIN).unwrap().values;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let many: Vec<u32> = (0..70).map(|i| i % 30).collect();
        let values = run(&many);
        assert_eq!(values, pool.install(|| run(&many)));
        let alone = run(&[33 % 30]);
        let top = values.iter().fold(0f64, |top, x| top.max(x.abs()));
        assert!(values.row(33).iter().zip(alone.row(0)).all(|(a, b)| (a - b).abs() < 1e-5 * top));
    }

    #[test]
    fn runs_without_a_derivative_and_foreign_weights_are_refused() {
        let set = clouds(9);
        let message = |r: Result<Replay<'_>, ModelError>| r.map(|_| ()).unwrap_err().to_string();
        let resnet = ClassifierConfig::new([3, 32, 32], 3, ClassifierKind::resnet9());
        assert!(message(Replay::new(resnet, test_recipe(1), &set)).contains("`model_type`"));
        let replay = Replay::new(mlp(), test_recipe(1), &set).unwrap();
        assert!(replay.train(Some(&[1.0; 8])).is_err());
        let mut weights = [1.0; 9];
        weights[4] = f32::NAN;
        let message = replay.train(Some(&weights)).unwrap_err().to_string();
        assert!(message.contains("image 4"), "{message}");
    }
}
