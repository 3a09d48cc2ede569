//! How the models of a bank are trained: classifiers on kept images, decoders on kept examples or datasets.

use ascribe_core::Progress;
use ascribe_corpus::{BpeTokenizer, Corpus};
use ascribe_models::Decoder;
use ascribe_models::vision::{ClassifierRecipe, ClassifierTrainer, Objective, Replay};
use ascribe_registry::Registry;

use super::bank::{self, Job, Players, RetrainBank};
use super::images::places;
use super::setting::{ImageSubject, Images, PlayerKind, Setting, Subject};
use super::tuned::{TunedData, TunedSubject};
use crate::bank::query_sequences;
use crate::error::EngineError;
use crate::home::Home;
use crate::recipe::Recipe;
use crate::train;

/// Parameters up to which trainings run side by side.
const SMALL_MODEL: usize = 20_000_000;

/// A decoder subject, opened: its recipe and its corpus.
pub struct DecoderData {
    /// The model folder's recipe.
    pub recipe: Recipe,
    /// Tokenizer of the model folder.
    pub tokenizer: BpeTokenizer,
    /// Examples and queries.
    pub corpus: Corpus,
}

/// Does nothing with what a training tells: the bank has a bar of its own.
struct Silent<'a>(&'a dyn Progress);

impl Progress for Silent<'_> {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }
}

/// Opens the corpus of a model folder that has a recipe and a tokenizer.
///
/// # Errors
/// A recipe, a registry or a tokenizer that does not read.
pub fn open_decoder(home: &Home, model: &str) -> Result<DecoderData, EngineError> {
    let dir = home.model(model);
    let recipe = Recipe::read(&dir.join("recipe.toml"))?;
    let registry = Registry::open(&home.datasets())?;
    let parts = train::run::recipe_parts(&registry, &recipe)?;
    let tokenizer = train::run::tokenizer(&dir, &parts, &recipe)?;
    let corpus = Corpus::build(parts, &tokenizer, recipe.corpus.clone())?;
    Ok(DecoderData { recipe, tokenizer, corpus })
}

/// Trains what is missing of a setting's bank; returns the number of trainings done.
///
/// # Errors
/// See [`bank::build`]; an unknown bank; data that does not open.
pub fn build_bank(
    home: &Home,
    setting: &Setting,
    name: &str,
    seeds: Option<&[u64]>,
    shard: (usize, usize),
    progress: &dyn Progress,
) -> Result<usize, EngineError> {
    let settings = setting.bank(name)?.clone();
    let seeds = seeds.unwrap_or(&settings.seeds);
    let (dir, at_once) = (setting.bank_dir(name), rayon::current_num_threads());
    match &setting.subject {
        Subject::Images(subject) => {
            let images = subject.open(&setting.dir)?;
            let players = Players::Examples(images.train.len());
            let n = images.queries.len();
            let recipe = subject.bank_digest(&settings);
            let outcomes: ImageOutcomes = if settings.replay { replayed_outcomes } else { image_outcomes };
            let plan = setting.plan(name, settings.draw, players, images.digest, recipe, n);
            bank::build(&dir, &plan, seeds, shard, at_once * 8, progress, |job| outcomes(subject, &images, job))
        }
        Subject::Decoder { .. } | Subject::Tuned(_) if settings.replay => Err(EngineError::Setting {
            setting: "replay",
            expected: "a classifier, whose images can be weighted".into(),
            found: "a decoder".into(),
        }),
        Subject::Decoder { model } => {
            let data = open_decoder(home, model)?;
            let players = decoder_players(&data, settings.players);
            let n = data.corpus.queries.len();
            let recipe = Recipe { seed: 0, ..data.recipe.clone() }.digest();
            let plan = setting.plan(name, settings.draw, players, data.corpus.manifest.digest(), recipe, n);
            bank::build(&dir, &plan, seeds, shard, at_once, progress, |job| {
                decoder_outcomes(&data, settings.players, job, progress)
            })
        }
        Subject::Tuned(subject) => {
            let data = subject.open(home)?;
            let players = tuned_players(subject, data.examples.len(), settings.players);
            let plan =
                setting.plan(name, settings.draw, players, data.digest, subject.recipe_digest(), data.queries.len());
            // A large model's tuning fills the machine by itself, and so does its memory.
            let at_once = if data.base.parameters().len() > SMALL_MODEL { 1 } else { at_once };
            bank::build(&dir, &plan, seeds, shard, at_once, progress, |job| {
                tuned_outcomes(&data, settings.players, job, progress)
            })
        }
        Subject::Facts { .. } => Err(EngineError::Setting {
            setting: "bank",
            expected: "a setting whose truth is retraining".into(),
            found: format!("{}, whose truth is where a fact is stated", setting.name),
        }),
    }
}

/// Reads a setting's bank.
///
/// # Errors
/// An unknown bank; a bank that is missing or has no complete seed (with the command that makes it); broken files.
pub fn read_bank(setting: &Setting, name: &str) -> Result<RetrainBank, EngineError> {
    setting.bank(name)?;
    let dir = setting.bank_dir(name);
    let missing = || EngineError::Content {
        path: dir.clone(),
        expected: "a retrain bank with at least one complete seed".into(),
        found: format!("none; hint: ascribe bench bank {} {name}", setting.name),
    };
    if !dir.join(bank::PLAN_FILE).exists() {
        return Err(missing());
    }
    RetrainBank::read(&dir)?.ok_or_else(missing)
}

/// The players of a decoder's bank.
pub fn decoder_players(data: &DecoderData, kind: PlayerKind) -> Players {
    match kind {
        PlayerKind::Examples => Players::Examples(data.corpus.examples.len()),
        PlayerKind::Datasets => Players::Datasets(data.corpus.datasets.iter().map(|d| d.name.clone()).collect()),
    }
}

/// The players of a tuned model's bank.
pub fn tuned_players(subject: &TunedSubject, n_examples: usize, kind: PlayerKind) -> Players {
    match kind {
        PlayerKind::Examples => Players::Examples(n_examples),
        PlayerKind::Datasets => Players::Datasets(subject.datasets.clone()),
    }
}

/// How the outcomes of a bank of classifiers come about.
type ImageOutcomes = fn(&ImageSubject, &Images, Job<'_>) -> Result<Vec<f64>, EngineError>;

/// Margins of all queries after a training with the weights 1 and 0.
fn replayed_outcomes(subject: &ImageSubject, images: &Images, job: Job<'_>) -> Result<Vec<f64>, EngineError> {
    let weights: Vec<f32> = job.kept.iter().map(|&kept| f32::from(u8::from(kept))).collect();
    let recipe = ClassifierRecipe { seed: job.seed, ..subject.train.clone() };
    let model = Replay::new(images.config.clone(), recipe, &images.train)?.train(Some(&weights))?;
    Ok(model.losses(&images.queries, &places(&images.queries), Objective::MARGIN)?)
}

/// Margins of all queries after training on the kept images.
pub(super) fn image_outcomes(subject: &ImageSubject, images: &Images, job: Job<'_>) -> Result<Vec<f64>, EngineError> {
    let members = (0..job.kept.len() as u32).filter(|&i| job.kept[i as usize]).collect();
    let recipe = ClassifierRecipe { seed: job.seed, ..subject.train.clone() };
    let mut trainer = ClassifierTrainer::new(images.config.clone(), recipe, members)?;
    trainer.run(&images.train, |_, _| Ok::<(), EngineError>(()))?;
    Ok(trainer.classifier().losses(&images.queries, &places(&images.queries), Objective::MARGIN)?)
}

/// Negative nats of all responses after training on the kept examples, or on the examples of the kept datasets. The number of
/// steps is the recipe's whatever is kept; without any player the model is untrained.
pub(super) fn decoder_outcomes(
    data: &DecoderData,
    kind: PlayerKind,
    job: Job<'_>,
    progress: &dyn Progress,
) -> Result<Vec<f64>, EngineError> {
    let kept = |(i, example): &(usize, &ascribe_corpus::Example)| match kind {
        PlayerKind::Examples => job.kept[*i],
        PlayerKind::Datasets => job.kept[example.id.dataset as usize],
    };
    let members: Vec<u32> = data.corpus.examples.iter().enumerate().filter(kept).map(|(i, _)| i as u32).collect();
    let queries = query_sequences(&data.corpus);
    let nats = if members.is_empty() {
        Decoder::init(data.recipe.decoder_config(), job.seed)?.losses(&queries)?
    } else {
        let silent = Silent(progress);
        let trained =
            train::train_members(&data.corpus, &data.recipe, job.seed, members, None, &silent, |_, _| Ok(()))?;
        trained.decoder().losses(&queries)?
    };
    Ok(nats.into_iter().map(|nats| -nats).collect())
}

/// Negative nats of all queries after tuning on the kept windows, or on those of the kept datasets.
fn tuned_outcomes(
    data: &TunedData,
    kind: PlayerKind,
    job: Job<'_>,
    progress: &dyn Progress,
) -> Result<Vec<f64>, EngineError> {
    let kept = |i: &u32| match kind {
        PlayerKind::Examples => job.kept[*i as usize],
        PlayerKind::Datasets => job.kept[data.examples[*i as usize].dataset as usize],
    };
    let members = (0..data.examples.len() as u32).filter(kept).collect();
    let tuned = data.tune(job.seed, members, None, progress)?;
    Ok(tuned.losses(&data.query_sequences())?.into_iter().map(|nats| -nats).collect())
}
