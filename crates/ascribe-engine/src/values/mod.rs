//! `ascribe values`: what datasets are worth to responses as groups, in a stated game and by a stated value.
//!
//! A game says what any set of training examples is worth to a response; a value divides that among datasets. Games: a bigram model
//! counted on the set (`bigram`: retrained exactly, never looks at the explained model), and second-order influence of taking the rest
//! away (`influence`, from a run's rows and curvature). Values: the split-proof group value (FGSV, arXiv:2505.19013: a dataset gets the sum
//! of its examples' own Shapley values, so registering it in parts gains nothing), Shapley and Banzhaf values of datasets as players
//! (exact up to twelve, drawn above), leaving one out. `--split` registers a dataset in parts and shows what that would gain.
//! Here lives: the question, the split, the report. The mathematics is that of methods and eval; `games` brings both together.

mod games;

use std::path::PathBuf;

use ascribe_core::{DatasetScores, Digest, Progress, QueryId};
use ascribe_corpus::Corpus;
use ascribe_eval::shares::raw_shares;
use ascribe_store::{ScoreFileMeta, ScoreWriter};
use ndarray::Array2;
use serde::Serialize;

use self::games::{Found, Players};
use crate::bench::runners::open_decoder;
use crate::error::EngineError;
use crate::home::Home;
use crate::walk::Context;

/// What a set of examples is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GameKind {
    /// Log-likelihood of the response under a bigram model counted on the set, nats.
    Bigram,
    /// Second-order block-Fisher influence of taking the rest away, summed over a run's checkpoints.
    Influence,
}

/// How worth is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueKind {
    /// Sum of the examples' Shapley values: split-proof.
    Fgsv,
    /// Shapley value of datasets as players.
    Shapley,
    /// Banzhaf value of datasets as players.
    Banzhaf,
    /// What taking one dataset away costs.
    LeaveOneOut,
}

impl GameKind {
    fn name(self) -> &'static str {
        match self {
            Self::Bigram => "bigram",
            Self::Influence => "influence",
        }
    }
}

impl ValueKind {
    fn name(self) -> &'static str {
        match self {
            Self::Fgsv => "fgsv",
            Self::Shapley => "shapley",
            Self::Banzhaf => "banzhaf",
            Self::LeaveOneOut => "leave_one_out",
        }
    }
}

/// How much is drawn where a value is not exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Draws {
    /// FGSV: sizes of subsets.
    pub sizes: usize,
    /// FGSV: pairs of subsets per size.
    pub pairs: usize,
    /// Shapley above twelve players: pairs of an order and its reverse.
    pub orders: usize,
    /// Banzhaf above twelve players: subsets.
    pub subsets: usize,
    /// Seed of all of it.
    pub seed: u64,
}

impl Default for Draws {
    fn default() -> Self {
        Self { sizes: 24, pairs: 16, orders: 32, subsets: 512, seed: 7 }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct ValuesRequest {
    /// Model folder under `models/`.
    pub model: String,
    /// Run folder; only the game of influence reads it.
    pub out: PathBuf,
    /// The game.
    pub game: GameKind,
    /// The value.
    pub value: ValueKind,
    /// Datasets that their owners register in so many parts, by name.
    pub split: Vec<(String, usize)>,
    /// The first so many responses; all without.
    pub queries: Option<usize>,
    /// Draws.
    pub draws: Draws,
    /// Score file to write, a row per response and dataset.
    pub write: Option<PathBuf>,
}

/// A dataset, or a part of one that is registered by itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlayerValue {
    /// Name; parts are numbered from 1.
    pub name: String,
    /// The dataset that it is or is a part of.
    pub dataset: String,
    /// Training examples.
    pub examples: usize,
    /// Mean value over responses, in the game's unit.
    pub value: f64,
    /// Mean standard error of the drawing; 0 where nothing is drawn.
    pub std_error: f64,
    /// Mean over responses of its part of all positive values.
    pub share: f64,
}

/// What registering a dataset in parts gains its owner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitGain {
    /// The dataset.
    pub dataset: String,
    /// Parts.
    pub parts: usize,
    /// Mean value as one.
    pub whole: f64,
    /// Mean of the parts' summed values.
    pub split: f64,
    /// `split − whole`.
    pub gain: f64,
    /// Standard error of the gain from the drawing: both were drawn alike, so this is an upper bound.
    pub std_error: f64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValuesReport {
    /// Model folder.
    pub model: String,
    /// The game.
    pub game: GameKind,
    /// The value.
    pub value: ValueKind,
    /// Unit of values.
    pub unit: &'static str,
    /// True if nothing was drawn.
    pub exact: bool,
    /// Utilities of sets that were asked for.
    pub utilities: usize,
    /// Draws, where some were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<Draws>,
    /// Responses.
    pub responses: usize,
    /// Largest difference between the values' sum and what everything is worth, relative to that; of leaving one out and Banzhaf values it
    /// is no error.
    pub efficiency_residual: f64,
    /// How far drawn sets of datasets are from the sum of their values: root mean square over sets and responses, relative to that of what
    /// everything is worth.
    pub additivity_residual: f64,
    /// Datasets in the order of the corpus.
    pub players: Vec<PlayerValue>,
    /// Splits that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub splits: Vec<SplitGain>,
    /// The written score file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<PathBuf>,
}

/// Values datasets. Deterministic under one seed.
///
/// # Errors
/// An unknown dataset or one with fewer examples than parts; no response; a score file of a split registration; a run without rows for the
/// game of influence; what methods refuse; a request to stop.
pub fn run(home: &Home, request: &ValuesRequest, progress: &dyn Progress) -> Result<ValuesReport, EngineError> {
    if request.write.is_some() && !request.split.is_empty() {
        let expected = "no --split: the file would name datasets that nobody registered".to_owned();
        return Err(EngineError::Setting { setting: "--write", expected, found: "--split".into() });
    }
    match request.game {
        GameKind::Bigram => {
            let data = open_decoder(home, &request.model)?;
            let game = games::bigrams(&data.corpus, data.recipe.corpus.vocab_size, request.queries)?;
            told(request, &data.corpus, &game, progress)
        }
        GameKind::Influence => {
            let context = Context::open(home, &request.model, &request.out, progress)?;
            let game = games::influence(&context, request.queries, progress)?;
            told(request, &context.corpus, &game, progress)
        }
    }
}

/// How many sets a game was asked for, in words.
pub fn asked(exact: bool, utilities: usize) -> String {
    match (exact, utilities) {
        (true, 0) => "exact, by a closed form".to_owned(),
        (true, n) => format!("exact, from {n} sets"),
        (false, n) => format!("{n} sets drawn"),
    }
}

fn told(
    request: &ValuesRequest,
    corpus: &Corpus,
    game: &dyn games::Game,
    progress: &dyn Progress,
) -> Result<ValuesReport, EngineError> {
    let whole = Players::whole(corpus);
    let players = whole.split(&request.split)?;
    progress.start("values", 0, "");
    let found = game.values(&players, request.value, request.draws, progress)?;
    let splits = match request.split.is_empty() {
        true => Vec::new(),
        false => {
            let before = game.values(&whole, request.value, request.draws, progress)?;
            gains(&whole, &players, &before, &found, &request.split)
        }
    };
    let residuals = games::residuals(game, &players, &found.values, request.draws.seed)?;
    progress.finish(&asked(found.exact, found.utilities));
    let written = match &request.write {
        Some(path) => {
            write(request, corpus, &found)?;
            Some(path.clone())
        }
        None => None,
    };
    Ok(ValuesReport {
        model: request.model.clone(),
        game: request.game,
        value: request.value,
        unit: match request.game {
            GameKind::Bigram => "nats",
            GameKind::Influence => "influence",
        },
        exact: found.exact,
        utilities: found.utilities,
        draws: (!found.exact).then_some(request.draws),
        responses: found.values.nrows(),
        efficiency_residual: residuals.efficiency,
        additivity_residual: residuals.additivity,
        players: listed(&players, &found),
        splits,
        written,
    })
}

fn listed(players: &Players, found: &Found) -> Vec<PlayerValue> {
    let n = found.values.nrows() as f64;
    let shares: Vec<ndarray::Array1<f64>> = found.values.rows().into_iter().map(raw_shares).collect();
    let one = |k: usize| PlayerValue {
        name: players.names[k].clone(),
        dataset: players.datasets[players.dataset_of[k]].clone(),
        examples: players.sizes()[k],
        value: found.values.column(k).sum() / n,
        std_error: found.std_errors.column(k).sum() / n,
        share: shares.iter().map(|s| s[k]).sum::<f64>() / n,
    };
    (0..players.names.len()).map(one).collect()
}

fn gains(
    whole: &Players,
    players: &Players,
    before: &Found,
    after: &Found,
    split: &[(String, usize)],
) -> Vec<SplitGain> {
    let n = before.values.nrows() as f64;
    let one = |(name, parts): &(String, usize)| {
        let dataset = whole.datasets.iter().position(|d| d == name).expect("checked when it was split");
        let own: Vec<usize> = (0..players.names.len()).filter(|&k| players.dataset_of[k] == dataset).collect();
        let as_one = before.values.column(dataset).sum() / n;
        let in_parts = own.iter().map(|&k| after.values.column(k).sum() / n).sum::<f64>();
        let squares: f64 = own.iter().map(|&k| (after.std_errors.column(k).sum() / n).powi(2)).sum();
        let error = (squares + (before.std_errors.column(dataset).sum() / n).powi(2)).sqrt();
        SplitGain {
            dataset: name.clone(),
            parts: *parts,
            whole: as_one,
            split: in_parts,
            gain: in_parts - as_one,
            std_error: error,
        }
    };
    split.iter().map(one).collect()
}

/// A score file of the values, which `ascribe pay run` reads.
fn write(request: &ValuesRequest, corpus: &Corpus, found: &Found) -> Result<(), EngineError> {
    let Some(path) = &request.write else { return Ok(()) };
    let method = format!("{}_{}", request.game.name(), request.value.name());
    let spec = Digest::of_json(&(&method, corpus.manifest.digest(), found.decided_by, &request.draws))?;
    let meta = ScoreFileMeta { spec, corpus: corpus.manifest.digest(), methods: [(method.clone(), spec)].into() };
    let queries = (0..found.values.nrows() as u32).map(QueryId).collect();
    let mut writer = ScoreWriter::create(path, &meta)?;
    let values: Array2<f64> = found.values.clone();
    writer.push_datasets(&DatasetScores { method, spec, queries, values })?;
    writer.finish()?;
    Ok(())
}
