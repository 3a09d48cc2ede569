//! Training: AdamW over mean next-token loss, the same bytes for any number of threads.
//!
//! The caller brings the batches, in whatever order its sampler says; here lives what a step does with one, and how a run
//! is stopped and resumed without a trace.

mod recipe;
mod state;
mod subject;

use std::ops::Range;
use std::path::Path;

use ascribe_core::{Digest, RowType};
use ascribe_linalg::elementwise::{AdamStep, adam_update, add_assign, sum_squares};
use rayon::prelude::*;

#[cfg(test)]
pub(crate) use recipe::tests::recipe as test_recipe;
pub use recipe::{Schedule, TrainRecipe};
pub(crate) use state::Metadata;
use subject::Subject;

use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Sequence};
use crate::error::ModelError;
use crate::layout::ParameterSlot;
use crate::lora::{AdaptedDecoder, Adapter};
use crate::weights::{self, Tensor};

/// Parameters per task of the reduction and the update. A tensor is cut into such pieces; the squared norm adds their
/// sums in order.
const PIECE: usize = 1 << 14;

/// What one step did.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u32,
    /// Mean nats per predicted token of the batch, before the update.
    pub loss: f64,
    /// Length of the gradient of that mean, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// A decoder under training: all its weights, or those of an adapter on it.
#[derive(Clone, Debug)]
pub struct Trainer {
    subject: Subject,
    recipe: TrainRecipe,
    step: u32,
    /// What is trained: name, shape and place in the flat vectors.
    slots: Vec<ParameterSlot>,
    first_moments: Vec<f32>,
    second_moments: Vec<f32>,
    /// One flat gradient per group that is worked on at the same time, kept between steps.
    groups: Vec<Vec<f32>>,
}

impl Trainer {
    /// Fresh weights under `recipe.init_seed`, step 0.
    ///
    /// # Errors
    /// [`ModelError::Config`], [`ModelError::Recipe`].
    pub fn new(config: DecoderConfig, recipe: TrainRecipe) -> Result<Self, ModelError> {
        let decoder = Decoder::init(config, recipe.init_seed)?;
        Self::from_decoder(decoder, recipe)
    }

    /// Goes on from given weights (fine-tuning), step 0, moments zero.
    ///
    /// # Errors
    /// [`ModelError::Recipe`].
    pub fn from_decoder(decoder: Decoder, recipe: TrainRecipe) -> Result<Self, ModelError> {
        Self::of(Subject::Whole(Box::new(decoder)), recipe)
    }

    /// Trains a LoRA and leaves the model's own weights alone, step 0, moments zero.
    ///
    /// # Errors
    /// [`ModelError::Recipe`]; [`ModelError::Mismatch`] if the adapter belongs to another shape of model.
    pub fn from_adapter(decoder: Decoder, adapter: Adapter, recipe: TrainRecipe) -> Result<Self, ModelError> {
        let base = decoder.weights_digest();
        Self::of(Subject::Adapter { adapted: Box::new(AdaptedDecoder::new(decoder, adapter)?), base }, recipe)
    }

    fn of(subject: Subject, recipe: TrainRecipe) -> Result<Self, ModelError> {
        recipe.validate()?;
        let slots = subject.slots();
        let zeros = vec![0.0; subject.parameters().len()];
        let (first_moments, second_moments) = (zeros.clone(), zeros);
        Ok(Self { subject, recipe, step: 0, slots, first_moments, second_moments, groups: Vec::new() })
    }

    /// One optimiser step on the mean loss of all predictions in `batch`.
    ///
    /// Groups of `micro_batch` sequences run in parallel; sums follow the order of the batch. Cost: 6 operations per
    /// parameter and token, and memory of one flat gradient per thread.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`], [`ModelError::Recipe`] when nothing can be predicted or the recipe's
    /// steps are used up, [`ModelError::Diverged`]; the weights are as before then.
    pub fn step(&mut self, batch: &[&[u32]]) -> Result<StepReport, ModelError> {
        let sequences: Vec<Sequence<'_>> = batch.iter().map(|tokens| Sequence::whole(tokens)).collect();
        self.step_on(&sequences)
    }

    /// [`Trainer::step`] on sequences of which a part counts.
    ///
    /// # Errors
    /// Those of [`Trainer::step`].
    pub fn step_on(&mut self, batch: &[Sequence<'_>]) -> Result<StepReport, ModelError> {
        self.decoder().check(batch)?;
        let refuse =
            |field, expected: &str, found: String| Err(ModelError::Recipe { field, expected: expected.into(), found });
        if self.step >= self.recipe.steps {
            return refuse("steps", "a step within the recipe", format!("step {}", self.step + 1));
        }
        let tokens: usize = batch.iter().map(Sequence::n_predictions).sum();
        if tokens == 0 {
            return refuse("batch", "at least one sequence of two tokens", format!("{} sequences", batch.len()));
        }
        let (nats, squared) = self.gradient(batch);
        let (loss, grad_norm) = (nats / tokens as f64, squared.sqrt() / tokens as f64);
        for (what, found) in [("loss", loss), ("gradient norm", grad_norm)] {
            if !found.is_finite() {
                return Err(ModelError::Diverged { step: self.step, what, found });
            }
        }
        let lr = self.recipe.learning_rate(self.step);
        self.update(lr, (self.recipe.clip_norm / grad_norm).min(1.0) / tokens as f64)?;
        self.step += 1;
        Ok(StepReport { step: self.step, loss, grad_norm, lr, tokens })
    }

    /// Leaves the batch's summed gradient in the first of `groups`; returns the summed loss and the squared length.
    ///
    /// As many groups as there are threads are in memory at a time. They are added in their order, so the sum has the same
    /// bytes for any number of them.
    fn gradient(&mut self, batch: &[Sequence<'_>]) -> (f64, f64) {
        let micro_batch = self.recipe.micro_batch as usize;
        let n_groups = batch.len().div_ceil(micro_batch);
        let wave = rayon::current_num_threads().min(n_groups);
        let len = self.subject.parameters().len();
        let n_vectors = if n_groups > wave { wave + 1 } else { wave };
        self.groups.resize_with(n_vectors, || vec![0.0; len]);
        let (mut nats, mut squared) = (0.0, 0.0);
        let mut left = batch;
        while !left.is_empty() {
            // The first wave makes the total out of its first group.
            let is_first = left.len() == batch.len();
            let (now, later) = left.split_at((wave * micro_batch).min(left.len()));
            let used = now.len().div_ceil(micro_batch);
            let vectors = if is_first { &mut self.groups[..used] } else { &mut self.groups[1..=used] };
            let subject = &self.subject;
            let losses: Vec<f64> = vectors
                .par_iter_mut()
                .zip(now.par_chunks(micro_batch))
                .map(|(flat, group)| {
                    flat.fill(0.0);
                    subject.add_gradient(group, flat)
                })
                .collect();
            nats = losses.into_iter().fold(nats, |sum, loss| sum + loss);
            squared = self.reduce(if is_first { used } else { used + 1 });
            left = later;
        }
        (nats, squared)
    }

    /// Adds the groups' gradients into the first, in order; returns the squared length of the sum.
    fn reduce(&mut self, n_groups: usize) -> f64 {
        let (total, others) = self.groups[..n_groups].split_at_mut(1);
        let piece = |(i, total): (usize, &mut [f32])| {
            let range = i * PIECE..i * PIECE + total.len();
            others.iter().for_each(|other| add_assign(total, &other[range.clone()]));
            sum_squares(total)
        };
        let squares: Vec<f64> = total[0].par_chunks_mut(PIECE).enumerate().map(piece).collect();
        squares.into_iter().sum()
    }

    fn update(&mut self, lr: f64, grad_scale: f64) -> Result<(), ModelError> {
        let recipe = &self.recipe;
        let t = i32::try_from(self.step + 1).unwrap_or(i32::MAX);
        let adam = |decay: f64| AdamStep {
            grad_scale: grad_scale as f32,
            step_size: (lr / (1.0 - recipe.beta1.powi(t))) as f32,
            keep: (1.0 - lr * decay) as f32,
            beta1: recipe.beta1 as f32,
            beta2: recipe.beta2 as f32,
            inv_sqrt_correction: (1.0 / (1.0 - recipe.beta2.powi(t)).sqrt()) as f32,
            eps: recipe.eps as f32,
        };
        let (with_decay, without) = (adam(recipe.weight_decay), adam(0.0));
        let gradient = &self.groups[0];
        let mut copy = Vec::new();
        let mut parameters = self.subject.parameters_mut(&mut copy);
        let (mut m, mut v) = (&mut self.first_moments[..], &mut self.second_moments[..]);
        let mut tasks = Vec::new();
        for slot in &self.slots {
            let step = if slot.is_matrix() { with_decay } else { without };
            for range in pieces(slot.range.clone()) {
                let (mine, first, second);
                (mine, parameters) = parameters.split_at_mut(range.len());
                (first, m) = m.split_at_mut(range.len());
                (second, v) = v.split_at_mut(range.len());
                tasks.push((step, mine, &gradient[range], first, second));
            }
        }
        tasks.into_par_iter().for_each(|(step, p, g, m, v)| adam_update(&step, p, g, m, v));
        self.subject.merge(&copy)
    }

    /// The decoder as it is now; with an adapter, the adapter merged in.
    pub fn decoder(&self) -> &Decoder {
        self.subject.decoder()
    }

    /// The adapter, if one is trained.
    pub fn adapter(&self) -> Option<&Adapter> {
        match &self.subject {
            Subject::Whole(_) => None,
            Subject::Adapter { adapted, .. } => Some(adapted.adapter()),
        }
    }

    /// Number of trained weights.
    pub fn n_trained(&self) -> usize {
        self.subject.parameters().len()
    }

    /// Ends the training.
    pub fn into_decoder(self) -> Decoder {
        match self.subject {
            Subject::Whole(decoder) => *decoder,
            Subject::Adapter { adapted, .. } => adapted.into_decoder(),
        }
    }

    /// The recipe.
    pub fn recipe(&self) -> &TrainRecipe {
        &self.recipe
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        u64::from(self.step)
    }

    /// True when the recipe keeps the weights as they are now.
    pub fn checkpoint_due(&self) -> bool {
        self.recipe.checkpoint_steps.contains(&self.step)
    }

    /// Running means of squared gradients (AdamW's second moments), flat, in the order of the trained parameters.
    pub fn second_moments(&self) -> &[f32] {
        &self.second_moments
    }

    /// Writes the second moments as safetensors under the parameters' names; returns the SHA-256 of the file.
    ///
    /// With `row_type` F16 small moments would vanish: choose f32 or bf16.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save_second_moments(&self, path: &Path, row_type: RowType) -> Result<Digest, ModelError> {
        let metadata = [
            ("format".into(), "pt".into()),
            ("quantity".into(), "adam_second_moment".into()),
            ("step".into(), self.step.to_string()),
        ];
        let tensors = tensors(&self.slots, &self.second_moments, "");
        weights::write_atomically(path, &weights::to_bytes(&tensors, row_type, &metadata.into()))
    }
}

/// Reads a file of [`Trainer::save_second_moments`] for `config`, flat.
///
/// # Errors
/// As [`Decoder::load`]; a negative moment is refused too.
pub fn load_second_moments(config: &DecoderConfig, path: &Path) -> Result<Vec<f32>, ModelError> {
    let layout = crate::layout::ParameterLayout::new(config);
    let bytes = weights::read_capped(path, layout.len())?;
    let file = weights::open(&bytes, path)?;
    let flat = weights::fill(&file, path, &layout, "")?;
    weights::refuse_extra(&file, path, &layout)?;
    for slot in layout.slots() {
        if let Some(found) = flat[slot.range.clone()].iter().find(|&&x| x < 0.0) {
            let (expected, found) = ("second moments of at least 0".into(), found.to_string());
            return Err(ModelError::Tensor { path: path.into(), tensor: slot.name.clone(), expected, found });
        }
    }
    Ok(flat)
}

/// Tensors of a flat vector, named `prefix + slot name`.
fn tensors<'a>(slots: &'a [ParameterSlot], flat: &'a [f32], prefix: &str) -> Vec<Tensor<'a>> {
    let tensor = |slot: &'a ParameterSlot| Tensor {
        name: format!("{prefix}{}", slot.name),
        shape: &slot.shape,
        numbers: &flat[slot.range.clone()],
    };
    slots.iter().map(tensor).collect()
}

fn pieces(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(PIECE).map(move |start| start..(start + PIECE).min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{tiny_config, tokens};
    use crate::lora::{LoraConfig, Targets};

    fn batches(n: u32) -> Vec<Vec<Vec<u32>>> {
        (0..n).map(|step| (0..5).map(|i| tokens(u64::from(step * 5 + i), 8 + i as usize)).collect()).collect()
    }

    fn run(trainer: &mut Trainer, batches: &[Vec<Vec<u32>>]) -> Vec<StepReport> {
        batches
            .iter()
            .map(|batch| {
                let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
                trainer.step(&batch).unwrap()
            })
            .collect()
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn one_text_is_learnt_by_heart() {
        let mut trainer = Trainer::new(tiny_config(), TrainRecipe { lr_peak: 2e-2, ..test_recipe(150) }).unwrap();
        let text = tokens(1, 12);
        let first = trainer.step(&[&text]).unwrap().loss;
        let last = (1..150).map(|_| trainer.step(&[&text]).unwrap().loss).last().unwrap();
        assert!((first - 13f64.ln()).abs() < 0.2, "fresh weights know nothing: {first}");
        assert!(last < 0.1, "{last}");
        assert!(trainer.step(&[&text]).unwrap_err().to_string().contains("step 151"));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let work = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut trainer = Trainer::new(tiny_config(), test_recipe(4)).unwrap();
                let reports = run(&mut trainer, &batches(4));
                (bits(trainer.decoder().parameters()), reports)
            })
        };
        assert_eq!(work(1), work(2));
        assert_eq!(work(1), work(3));
    }

    /// A plain f64 AdamW over the decoder's own summed gradient: the second route of one step.
    #[test]
    fn a_step_agrees_with_a_plain_transcription() {
        let recipe = test_recipe(4);
        let mut trainer = Trainer::new(tiny_config(), recipe.clone()).unwrap();
        let before = trainer.decoder().clone();
        let batch = &batches(1)[0];
        let sequences: Vec<Sequence<'_>> = batch.iter().map(|t| Sequence::whole(t)).collect();
        let n: usize = sequences.iter().map(Sequence::n_predictions).sum();
        let gradient: Vec<f64> =
            before.gradient_sum(&sequences).unwrap().iter().map(|&g| f64::from(g) / n as f64).collect();
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let report = run(&mut trainer, &batches(1))[0];
        assert!((report.grad_norm / norm - 1.0).abs() < 1e-5);
        let loss: f64 = before.losses(&sequences).unwrap().iter().sum::<f64>() / n as f64;
        assert!((report.loss - loss).abs() < 1e-6);
        let clip = (recipe.clip_norm / norm).min(1.0);
        let lr = recipe.learning_rate(0);
        for slot in before.parameter_layout().slots() {
            let decay = if slot.shape.len() == 2 { recipe.weight_decay } else { 0.0 };
            for i in slot.range.clone() {
                let g = gradient[i] * clip;
                let expected = f64::from(before.parameters()[i]) * (1.0 - lr * decay) - lr * g / (g.abs() + recipe.eps);
                let got = f64::from(trainer.decoder().parameters()[i]);
                // The first step is lr·sign(g): tiny gradients near eps are the worst conditioned.
                assert!((got - expected).abs() < 2e-3 * lr, "{} {i}: {got} {expected}", slot.name);
            }
        }
    }

    #[test]
    fn a_resumed_run_has_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = Trainer::new(tiny_config(), test_recipe(6)).unwrap();
        let reports = run(&mut whole, &batches(6));
        let mut first = Trainer::new(tiny_config(), test_recipe(6)).unwrap();
        run(&mut first, &batches(6)[..3]);
        assert!(!Trainer::has_state(dir.path()));
        first.save_state(dir.path()).unwrap();
        drop(first);
        let mut second = Trainer::resume(tiny_config(), test_recipe(6), dir.path()).unwrap();
        assert_eq!(second.step_count(), 3);
        assert_eq!(run(&mut second, &batches(6)[3..]), reports[3..]);
        assert_eq!(bits(second.decoder().parameters()), bits(whole.decoder().parameters()));
        assert_eq!(bits(second.second_moments()), bits(whole.second_moments()));
        assert!(whole.checkpoint_due());
    }

    fn adapter_trainer(recipe: TrainRecipe) -> Trainer {
        let decoder = Decoder::init(tiny_config(), 2).unwrap();
        let config = LoraConfig::new(3, 6.0, Targets::AllLinear);
        let adapter = Adapter::init(&decoder, config, 4).unwrap();
        Trainer::from_adapter(decoder, adapter, recipe).unwrap()
    }

    /// The adapter's own gradient route and a plain f64 AdamW are the second route; the model under it does not move.
    #[test]
    fn an_adapter_is_trained_alone() {
        let recipe = TrainRecipe { lr_peak: 1e-2, lr_floor: 1e-2, warmup_steps: 0, ..test_recipe(30) };
        let mut trainer = adapter_trainer(recipe.clone());
        let before = trainer.decoder().clone();
        let start = trainer.adapter().unwrap().parameters().to_vec();
        let batch = &batches(1)[0];
        let sequences: Vec<Sequence<'_>> = batch.iter().map(|t| Sequence::whole(t)).collect();
        let n: usize = sequences.iter().map(Sequence::n_predictions).sum();
        let adapted = AdaptedDecoder::new(before.clone(), trainer.adapter().unwrap().clone()).unwrap();
        let gradient: Vec<f64> =
            adapted.gradient_sum(&sequences).unwrap().iter().map(|&g| f64::from(g) / n as f64).collect();
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let report = trainer.step_on(&sequences).unwrap();
        assert!((report.grad_norm / norm - 1.0).abs() < 1e-5);
        let clip = (recipe.clip_norm / norm).min(1.0);
        let mut moved = 0;
        for ((&new, &old), g) in trainer.adapter().unwrap().parameters().iter().zip(&start).zip(&gradient) {
            let g = g * clip;
            let expected = f64::from(old) * (1.0 - 1e-2 * recipe.weight_decay) - 1e-2 * g / (g.abs() + recipe.eps);
            // B begins at zero, so A has no gradient in the first step.
            assert!((f64::from(new) - expected).abs() < 1e-4, "{new} {expected} {g}");
            moved += usize::from(g != 0.0);
        }
        assert!(moved > 0 && trainer.n_trained() == start.len());
        // What no adapter belongs to is as it was.
        let embedding = before.layout.embedding.clone();
        assert_eq!(before.parameters()[embedding.clone()], trainer.decoder().parameters()[embedding]);
        let last = (1..30).map(|_| trainer.step_on(&sequences).unwrap().loss).last().unwrap();
        assert!(last < report.loss - 0.1, "{last} {}", report.loss);
    }

    #[test]
    fn a_resumed_adapter_has_the_same_bytes_and_belongs_to_its_model() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = adapter_trainer(test_recipe(6));
        run(&mut whole, &batches(6));
        let mut first = adapter_trainer(test_recipe(6));
        run(&mut first, &batches(6)[..3]);
        first.save_state(dir.path()).unwrap();
        let decoder = Decoder::init(tiny_config(), 2).unwrap();
        let adapter = |rank| Adapter::init(&decoder, LoraConfig::new(rank, 6.0, Targets::AllLinear), 4).unwrap();
        let resume = |decoder: &Decoder, adapter: Adapter| {
            Trainer::resume_adapter(decoder.clone(), adapter, test_recipe(6), dir.path())
        };
        let mut second = resume(&decoder, adapter(3)).unwrap();
        assert_eq!(second.step_count(), 3);
        run(&mut second, &batches(6)[3..]);
        assert_eq!(bits(second.adapter().unwrap().parameters()), bits(whole.adapter().unwrap().parameters()));
        assert_eq!(bits(second.decoder().parameters()), bits(whole.decoder().parameters()));
        let message = resume(&Decoder::init(tiny_config(), 3).unwrap(), adapter(3)).unwrap_err().to_string();
        assert!(message.contains("model under the adapter"), "{message}");
        let message = resume(&decoder, adapter(2)).unwrap_err().to_string();
        assert!(message.contains("adapter of the saved state"), "{message}");
    }

    /// What is masked is context: the gradient is that of the counted part alone.
    #[test]
    fn a_prompt_is_not_learnt() {
        let text = tokens(3, 12);
        let mut trainer = Trainer::new(tiny_config(), test_recipe(1)).unwrap();
        let before = trainer.decoder().clone();
        let part = Sequence { tokens: &text, loss_from: 7 };
        let report = trainer.step_on(&[part]).unwrap();
        assert_eq!(report.tokens, 5);
        assert!((report.loss - before.losses(&[part]).unwrap()[0] / 5.0).abs() < 1e-6);
        let norm = f64::from(before.gradient_norms(&[part]).unwrap()[0]) / 5.0;
        assert!((report.grad_norm / norm - 1.0).abs() < 1e-5);
    }

    #[test]
    fn second_moments_come_back_from_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.safetensors");
        let mut trainer = Trainer::new(tiny_config(), test_recipe(2)).unwrap();
        run(&mut trainer, &batches(2));
        trainer.save_second_moments(&path, RowType::F32).unwrap();
        assert_eq!(load_second_moments(&tiny_config(), &path).unwrap(), trainer.second_moments());
        trainer.second_moments[0] = -1.0;
        trainer.save_second_moments(&path, RowType::F32).unwrap();
        let message = load_second_moments(&tiny_config(), &path).unwrap_err().to_string();
        assert!(message.contains("embed_tokens") && message.contains("at least 0, found -1"), "{message}");
    }

    #[test]
    fn a_run_that_diverges_says_so_and_keeps_its_weights() {
        let wild = TrainRecipe { lr_peak: 1e30, lr_floor: 0.0, warmup_steps: 0, ..test_recipe(9) };
        let mut trainer = Trainer::new(tiny_config(), wild).unwrap();
        let text = tokens(1, 12);
        let error = (0..9).find_map(|_| trainer.step(&[&text]).err()).expect("weights of 1e30 overflow");
        assert!(matches!(error, ModelError::Diverged { .. }), "{error}");
        assert!(error.to_string().contains("lower the learning rate"), "{error}");
        let (step, before) = (trainer.step_count(), bits(trainer.decoder().parameters()));
        assert!(trainer.step(&[&text]).is_err());
        assert_eq!((trainer.step_count(), bits(trainer.decoder().parameters())), (step, before));
    }

    #[test]
    fn nothing_to_predict_is_an_error_and_no_step() {
        let mut trainer = Trainer::new(tiny_config(), test_recipe(2)).unwrap();
        for batch in [&[][..], &[&[3u32][..]]] {
            let message = trainer.step(batch).unwrap_err().to_string();
            assert!(message.contains("at least one sequence of two tokens"), "{message}");
        }
        assert_eq!(trainer.step_count(), 0);
    }
}
