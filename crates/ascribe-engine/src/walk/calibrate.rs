//! Station 5b: the default method. Weights and temperature are fitted on the retrain bank, held-out figures measured, the method
//! kept as a factor file; without a bank the documented defaults stand there. Then its shares with their intervals.
//!
//! With a bank a response's shares are means over fits that had not seen it. Here never lives: the comparison with other methods
//! (`evaluate`), the policy (shares).

use std::collections::BTreeMap;

use ascribe_core::{Digest, Progress};
use ascribe_eval::{Estimate, PerQuery, bootstrap_mean};
use ascribe_methods::combine::{
    CalibratedMethod, Calibration, Channel, Conformal, CrossFit, FitOptions, HeldOut, Holdout, Origin, fit,
};
use ascribe_methods::group::intervals::jackknife_variance;
use ascribe_store::ScoreFile;
use ascribe_store::scores::read_scores;
use ndarray::Array2;

use super::calibrated_file::{self, CALIBRATED_FILE};
use super::channels;
use super::context::Context;
use super::intervals::{INTERVALS_FILE, Intervals, Parts};
use super::noise::{self, Replicates, SOURCES};
use super::score::SCORES_FILE;
use super::stamps::Stamps;
use super::truth::TruthBoard;
use crate::bank::Bank;
use crate::error::EngineError;

/// Source of variance: which seeds the truth was measured with.
pub(crate) const BANK_SEEDS: &str = "bank_seeds";

/// Fits the default method and writes it with its shares and intervals, unless they are there.
///
/// # Errors
/// A bank of another recipe; a damaged score file; a channel that is not there; what the fits refuse.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<Intervals, EngineError> {
    noise::run(context, stamps, progress)?;
    let (bank, names, a) = (context.bank_if_any()?, channels::names(context)?, &context.attribution);
    let inputs = stamps.outputs_digest(&["score", "noise"]);
    let bank_digest = bank.as_ref().map(|b| b.digest);
    let key =
        Digest::of_json(&("calibrate", inputs, bank_digest, &names, a.seed, a.interval_level, a.noise_threshold))?;
    if stamps.is_done(&context.out, "calibrate", key) {
        return Intervals::read(&context.out);
    }
    progress.start("calibrate", 0, "");
    let scores = read_scores(&context.out.join(SCORES_FILE))?;
    let tables = tables(&scores, &names)?;
    let channels = channels_of(&tables);
    let (method, shares, seeds) = match &bank {
        Some(bank) => {
            let fitted = Fitted::new(context, bank, &channels)?;
            (fitted.method, fitted.shares, seed_shares(context, bank, &channels)?)
        }
        None => {
            let method = CalibratedMethod::defaults();
            let shares = method.calibration.predict(&channels)?;
            (method, shares, Vec::new())
        }
    };
    let replicates = Replicates::read(context)?;
    let mut variances = sampling(&method.calibration, &tables, &replicates)?;
    if seeds.len() > 1 {
        variances.insert(BANK_SEEDS.to_owned(), jackknife_variance(&seeds)?);
    }
    calibrated_file::write(&context.out.join(CALIBRATED_FILE), &method, spec(&scores, &names)?)?;
    let intervals = Intervals::new(Parts {
        method,
        shares: &shares,
        variances: &variances,
        additivity: &replicates.additivity,
        datasets: context.corpus.datasets.iter().map(|d| d.name.clone()).collect(),
        threshold: a.noise_threshold,
        seed: a.seed,
    })?;
    intervals.write(&context.out)?;
    progress.finish(&words(&intervals));
    stamps.finish(&context.out, "calibrate", key, &[CALIBRATED_FILE.to_owned(), INTERVALS_FILE.to_owned()])?;
    Ok(intervals)
}

fn words(found: &Intervals) -> String {
    let origin = match &found.method.origin {
        Origin::Bank { seeds, .. } => format!("fitted on {} retraining seeds", seeds.len()),
        Origin::Defaults => "documented default weights, no bank".to_owned(),
    };
    format!("{origin}; {} of {} responses too noisy to pay", found.n_too_noisy(), found.responses.len())
}

/// The default method fitted on a bank.
pub struct Fitted {
    /// Fits on half of the responses each.
    pub queries: CrossFit,
    /// Measures of responses that were not fitted.
    pub held_out: PerQuery,
    /// Measures of responses of datasets that were not seen.
    pub unseen: PerQuery,
    /// `[Q, K]`: mean held-out shares.
    pub shares: Array2<f64>,
    /// What a new response gets.
    pub method: CalibratedMethod,
}

impl Fitted {
    /// Fits and measures.
    ///
    /// # Errors
    /// What the fits refuse; share errors that are defined for no response.
    pub fn new(context: &Context, bank: &Bank, channels: &[Channel<'_>]) -> Result<Self, EngineError> {
        let board = TruthBoard::new(context, bank, None)?;
        let queries = board.cross_fit(channels, Holdout::Queries)?;
        let (held_out, unseen) =
            (board.held_out(&queries), board.held_out(&board.cross_fit(channels, Holdout::Datasets)?));
        let (shares, usable) = (queries.mean_shares(), &board.truth.usable);
        let truth = board.truth.shares.view();
        let of = |measured: &PerQuery| -> Result<HeldOut, EngineError> {
            let Estimate { mean, low, high, .. } = bootstrap_mean(&measured.share_error, board.seed)?;
            Ok(HeldOut { share_error: mean, low: low.min(mean), high: high.max(mean) })
        };
        let method = CalibratedMethod {
            calibration: fit(channels, truth, usable, &FitOptions::default())?,
            origin: Origin::Bank {
                digest: bank.digest.to_string(),
                seeds: bank.seeds.clone(),
                responses: usable.len() as u64,
            },
            queries: of(&held_out)?,
            datasets: Some(of(&unseen)?),
            conformal: Conformal::fit(shares.view(), truth, usable, context.attribution.interval_level)?,
        };
        Ok(Self { queries, held_out, unseen, shares, method })
    }
}

/// Dataset scores `[Q, K]` of channels with their names, in the order of the combination.
pub type Tables = Vec<(String, Array2<f64>)>;

/// Dataset scores of the channels.
///
/// # Errors
/// A channel that the score file does not have.
pub fn tables(scores: &ScoreFile, names: &[String]) -> Result<Tables, EngineError> {
    names.iter().map(|name| Ok((name.clone(), scores.datasets(name)?.values))).collect()
}

/// Tables as channels.
pub fn channels_of(tables: &Tables) -> Vec<Channel<'_>> {
    tables.iter().map(|(name, table)| Channel { name, scores: table.view() }).collect()
}

/// What decides the scores that a calibration reads.
fn spec(scores: &ScoreFile, names: &[String]) -> Result<Digest, EngineError> {
    let of = |name: &String| (name.clone(), scores.meta.methods.get(name).copied());
    Ok(Digest::of_json(&names.iter().map(of).collect::<Vec<_>>())?)
}

/// Shares by calibrations that never saw one of the retraining seeds, with each of them left out once.
fn seed_shares(context: &Context, bank: &Bank, channels: &[Channel<'_>]) -> Result<Vec<Array2<f64>>, EngineError> {
    seed_calibrations(context, bank, channels)?.iter().map(|c| Ok(c.predict(channels)?)).collect()
}

/// Calibrations with one of the retraining seeds left out each; none for a bank of one seed.
pub(crate) fn seed_calibrations(
    context: &Context,
    bank: &Bank,
    channels: &[Channel<'_>],
) -> Result<Vec<Calibration>, EngineError> {
    if bank.seeds.len() < 2 {
        return Ok(Vec::new());
    }
    let without = |seed: usize| -> Result<Calibration, EngineError> {
        let board = TruthBoard::new(context, bank, Some(seed))?;
        Ok(fit(channels, board.truth.shares.view(), &board.truth.usable, &FitOptions::default())?)
    };
    (0..bank.seeds.len()).map(without).collect()
}

/// Variances of shares `[Q, K]` by what was drawn by chance, through the calibration: a jackknife per source.
fn sampling(
    calibration: &Calibration,
    tables: &Tables,
    replicates: &Replicates,
) -> Result<BTreeMap<String, Array2<f64>>, EngineError> {
    let mut out = BTreeMap::new();
    for source in SOURCES {
        let n = replicates.channels.values().filter_map(|c| c.get(source)).map(Vec::len).max().unwrap_or(0);
        if n < 2 {
            continue;
        }
        let without = |r: usize| -> Result<Array2<f64>, EngineError> {
            let mut changed: Vec<Channel<'_>> = Vec::with_capacity(tables.len());
            for (name, table) in tables {
                let left_out = replicates.channels.get(name).and_then(|c| c.get(source)).and_then(|all| all.get(r));
                changed.push(Channel { name, scores: left_out.unwrap_or(table).view() });
            }
            Ok(calibration.predict(&changed)?)
        };
        let left_out = (0..n).map(without).collect::<Result<Vec<_>, EngineError>>()?;
        out.insert(source.to_owned(), jackknife_variance(&left_out)?);
    }
    Ok(out)
}
