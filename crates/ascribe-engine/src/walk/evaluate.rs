//! Station 7: every method and control against measured retraining, raw and calibrated alike, and the default method's
//! held-out shares.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use ascribe_eval::ceiling::fixed_shares;
use ascribe_eval::{Estimate, PerQuery, Summary, ceiling, paired_difference};
use ascribe_methods::combine::{Calibration, Channel, Conformal, CrossCoverage, Holdout, cross_coverage};
use ascribe_store::scores::read_scores;
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

use super::calibrate::{Fitted, channels_of, tables};
use super::channels;
use super::context::Context;
use super::score::{METHODS, SCORES_FILE};
use super::stamps::Stamps;
use super::truth::{N_SPLITS, TruthBoard};
use crate::bank::Bank;
use crate::error::EngineError;
use crate::files;
use crate::summary::MethodSummary;

/// Evaluation file, relative to the run folder.
pub const EVAL_FILE: &str = "eval.json";
/// Version of the evaluation file.
pub const EVAL_FORMAT_VERSION: u32 = 1;
/// Name of the default method: the calibrated combination.
pub const COMBINED: &str = "calibrated";

/// What the evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// [`EVAL_FORMAT_VERSION`].
    pub format_version: u32,
    /// Digest of the bank's cells.
    pub bank: Digest,
    /// Seeds of the bank.
    pub seeds: Vec<u64>,
    /// Responses with true shares.
    pub usable: u64,
    /// Methods and controls by name.
    pub methods: BTreeMap<String, MethodSummary>,
    /// Agreement of one retraining seed with the others (against their mean): how noisy the truth is, no limit for methods.
    pub ceiling: Option<Measured>,
    /// The best fixed shares: the mean truth for every response.
    pub fixed: Measured,
    /// Default method.
    pub default_method: String,
    /// Per control: calibrated share error of the control minus that of the default on the same responses. An interval
    /// above 0 means that the default is better.
    pub lead: BTreeMap<String, Estimate>,
    /// Per control: Spearman of the default minus that of the control on the same responses.
    pub rank_lead: BTreeMap<String, Estimate>,
    /// The default's calibration on all responses: what a new response gets.
    pub calibration: Calibration,
    /// Interval rule of the default's shares.
    pub conformal: Conformal,
    /// How often the intervals held the truth, on responses that the rule was not fitted on.
    pub interval_check: CrossCoverage,
    /// Mean overlap of the default's held-out shares with the truth, `1 − share error`.
    pub coverage: Estimate,
    /// Held-out shares of the default, `[Q][K]`.
    pub shares: Vec<Vec<f64>>,
    /// True shares, `[Q][K]`; a row of zeros where no dataset helped.
    pub truth: Vec<Vec<f64>>,
}

/// A summary as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Share error with its interval.
    pub share_error: Estimate,
    /// Top-1 agreement with its interval.
    pub top1: Estimate,
    /// Spearman with its interval.
    pub spearman: Estimate,
    /// Spearman without the own dataset.
    pub spearman_others: f64,
}

impl Evaluation {
    /// Reads the evaluation of a run folder.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn read(out: &Path) -> Result<Self, EngineError> {
        let path = out.join(EVAL_FILE);
        let refuse = |found: String| EngineError::Content {
            path: path.clone(),
            expected: format!("an evaluation of format {EVAL_FORMAT_VERSION}"),
            found,
        };
        let read: Self = serde_json::from_slice(&files::read(&path)?).map_err(|e| refuse(e.to_string()))?;
        match read.format_version {
            EVAL_FORMAT_VERSION => Ok(read),
            other => Err(refuse(format!("format {other}"))),
        }
    }

    /// Held-out shares as a table `[Q, K]`.
    pub fn shares_table(&self) -> Array2<f64> {
        let n_datasets = self.shares.first().map_or(0, Vec::len);
        Array2::from_shape_fn((self.shares.len(), n_datasets), |(q, k)| self.shares[q][k])
    }
}

/// Checks what the evaluation will ask for, so that a walk does not find out after its longest stations.
///
/// # Errors
/// A channel that is no method, no bank, or one of another recipe.
pub fn check(context: &Context) -> Result<(), EngineError> {
    channels::check(context)?;
    context.bank().map(drop)
}

/// Evaluates and writes `eval.json`, unless it is there.
///
/// # Errors
/// No bank, or one of another recipe; a damaged score file; what the fits refuse.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<Evaluation, EngineError> {
    let bank = context.bank()?;
    let a = &context.attribution;
    let key = ("eval", stamps.outputs_digest(&["score"]), bank.digest, a.seed, &a.channels, a.interval_level);
    let key = Digest::of_json(&key)?;
    if stamps.is_done(&context.out, "eval", key) {
        return Evaluation::read(&context.out);
    }
    let evaluation = evaluate(context, &bank, progress)?;
    let bytes = [serde_json::to_vec_pretty(&evaluation)?, b"\n".to_vec()].concat();
    files::write_atomic(&context.out.join(EVAL_FILE), &bytes)?;
    stamps.finish(&context.out, "eval", key, &[EVAL_FILE.to_owned()])?;
    Ok(evaluation)
}

fn evaluate(context: &Context, bank: &Bank, progress: &dyn Progress) -> Result<Evaluation, EngineError> {
    let file = read_scores(&context.out.join(SCORES_FILE))?;
    let board = TruthBoard::new(context, bank, None)?;
    progress.start("evaluate", METHODS.len() as u64 + 1, "methods");
    let tables = tables(&file, &context.attribution.channels)?;
    let fitted = Fitted::new(context, bank, &channels_of(&tables))?;
    let default = &fitted.held_out;
    let mut methods = BTreeMap::new();
    let (summary, unseen) = (default.summary(board.seed)?, fitted.unseen.summary(board.seed)?);
    methods.insert(COMBINED.to_owned(), method_summary(&summary, &summary, &unseen, false)?);
    progress.advance(1);
    let (mut lead, mut rank_lead) = (BTreeMap::new(), BTreeMap::new());
    for method in &METHODS {
        let scores = file.datasets(method.name)?.values;
        let raw = PerQuery::of_scores(&board.truth, scores.view(), &board.own)?;
        let channel = [Channel { name: method.name, scores: scores.view() }];
        let calibrated = board.held_out(&board.cross_fit(&channel, Holdout::Queries)?);
        let unseen = board.held_out(&board.cross_fit(&channel, Holdout::Datasets)?);
        let of = |p: &PerQuery| p.summary(board.seed);
        methods
            .insert(method.name.into(), method_summary(&of(&raw)?, &of(&calibrated)?, &of(&unseen)?, method.control)?);
        let by = paired_difference(&calibrated.share_error, &default.share_error, board.seed)?;
        lead.insert(method.name.to_owned(), by);
        rank_lead.insert(method.name.to_owned(), paired_difference(&default.spearman, &raw.spearman, board.seed)?);
        progress.advance(1);
    }
    progress.finish(&format!(
        "{} methods and controls against {} seeds of retraining",
        methods.len(),
        bank.seeds.len()
    ));
    let changes: Vec<Array2<f64>> = bank.change.axis_iter(Axis(0)).map(|c| c.to_owned()).collect();
    let (shares, level) = (&fitted.shares, context.attribution.interval_level);
    let coverage: Vec<Option<f64>> = default.share_error.iter().map(|e| e.map(|e| 1.0 - e)).collect();
    Ok(Evaluation {
        format_version: EVAL_FORMAT_VERSION,
        bank: bank.digest,
        seeds: bank.seeds.clone(),
        usable: board.truth.usable.len() as u64,
        methods,
        ceiling: match changes.len() {
            1 => None,
            _ => Some(measured(&ceiling::ceiling(&changes, &board.own, board.seed)?.one_against_rest)?),
        },
        fixed: measured(&fixed_shares(&board.truth, &board.own)?.summary(board.seed)?)?,
        default_method: COMBINED.to_owned(),
        lead,
        rank_lead,
        calibration: fitted.method.calibration.clone(),
        conformal: fitted.method.conformal,
        interval_check: cross_coverage(shares.view(), &board.true_shares(), level, N_SPLITS, board.seed)?,
        coverage: ascribe_eval::bootstrap_mean(&coverage, board.seed)?,
        shares: rows(shares),
        truth: rows(&board.truth.shares),
    })
}

fn rows(table: &Array2<f64>) -> Vec<Vec<f64>> {
    table.rows().into_iter().map(|r| r.to_vec()).collect()
}

fn some<T: Copy>(value: Option<T>, what: &str) -> Result<T, EngineError> {
    // Every measure is defined for at least one response unless all truth is constant.
    value.ok_or_else(|| EngineError::Content {
        path: EVAL_FILE.into(),
        expected: format!("{what} defined for at least one response"),
        found: "none; the bank's loss changes are all alike".into(),
    })
}

/// Constant scores have no order: their rank correlation is written as 0.
fn estimate_or_zero(value: Option<Estimate>) -> Estimate {
    value.unwrap_or(Estimate { mean: 0.0, low: 0.0, high: 0.0, n: 0, n_undefined: 0 })
}

fn measured(summary: &Summary) -> Result<Measured, EngineError> {
    Ok(Measured {
        share_error: some(summary.share_error, "share error")?,
        top1: some(summary.top1, "top-1")?,
        spearman: estimate_or_zero(summary.spearman),
        spearman_others: estimate_or_zero(summary.spearman_other).mean,
    })
}

fn method_summary(
    raw: &Summary,
    calibrated: &Summary,
    unseen: &Summary,
    control: bool,
) -> Result<MethodSummary, EngineError> {
    let (raw, calibrated) = (measured(raw)?, measured(calibrated)?);
    Ok(MethodSummary {
        share_error: raw.share_error.mean,
        share_error_low: raw.share_error.low,
        share_error_high: raw.share_error.high,
        calibrated: calibrated.share_error.mean,
        calibrated_low: calibrated.share_error.low,
        calibrated_high: calibrated.share_error.high,
        calibrated_unseen_datasets: some(unseen.share_error, "share error")?.mean,
        spearman: raw.spearman.mean,
        low: raw.spearman.low,
        high: raw.spearman.high,
        spearman_others: raw.spearman_others,
        top1: raw.top1.mean,
        top1_low: raw.top1.low,
        top1_high: raw.top1.high,
        control,
    })
}
