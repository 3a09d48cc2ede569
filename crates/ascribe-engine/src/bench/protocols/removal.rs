//! Removal: every query's top examples are taken out, the model is trained again, and its margin (of a text: its log-likelihood) is
//! compared with that after taking out random examples.
//!
//! Sources: brittleness, datamodels (arXiv:2202.00622, §4.1) and TRAK (arXiv:2303.14186); loss difference after removing the top
//! part, bergson. Here never lives: the measures (eval), a method.

use ascribe_core::Progress;
use ascribe_eval::removal::{Flip, brittleness, median_removals, removal_effect, removals_to_flip};
use ascribe_eval::{Estimate, bootstrap_mean};
use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{BOOTSTRAP_SEED, Figures, estimated, named, top};
use crate::bench::bank::Job;
use crate::bench::lab::{DecoderLab, ImageLab};
use crate::bench::runners::{decoder_outcomes, image_outcomes};
use crate::bench::setting::PlayerKind;
use crate::error::EngineError;

/// What a removal protocol is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovalOptions {
    /// Parts of the training examples that are taken out, rising.
    pub parts: Vec<f64>,
    /// The first so many queries; every query costs a training per part and seed.
    pub n_queries: usize,
    /// Seeds of the trainings.
    pub seeds: Vec<u64>,
}

/// What taking out a part of the examples did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovalFigure {
    /// The part.
    pub part: f64,
    /// Examples taken out.
    pub n_removed: usize,
    /// Margin lost beyond what taking out as many random examples cost; positive = the examples mattered.
    pub effect: Estimate,
    /// Part of the rightly answered queries that the removal turned; `None` if none was right.
    pub brittleness: Option<Estimate>,
}

/// What a method's removals did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovalReport {
    /// Per part, rising.
    pub parts: Vec<RemovalFigure>,
    /// Lower median over rightly answered queries of the removals that turned them; `None` if most were never turned.
    pub median_to_flip: Option<usize>,
}

impl RemovalReport {
    /// `removal_effect@PART` and `brittleness@PART` with their intervals, `removals_to_flip`; the largest part's without its
    /// name as well.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::new();
        let mut add = |name: &str, figure: &RemovalFigure| {
            figures.extend(named(&format!("removal_effect{name}"), Some(figure.effect)));
            figures.extend(named(&format!("brittleness{name}"), figure.brittleness));
        };
        for figure in &self.parts {
            add(&format!("@{}", figure.part), figure);
        }
        if let Some(largest) = self.parts.last() {
            add("", largest);
        }
        figures.insert("removals_to_flip".into(), self.median_to_flip.map(|n| n as f64));
        figures
    }
}

/// Takes every query's top examples out, trains again, and compares its margin with that after taking out random examples
/// (stream `bench/removal`, one draw per part and seed). The recipe is kept, so fewer examples mean fewer steps for both.
///
/// `scores` is `[≥ n_queries, N]`, positive = proponent; of equal scores the first go first.
///
/// # Errors
/// Parts outside (0, 1); no seed; more queries than scores; the training's; [`EngineError::Stopped`].
pub fn removal(
    lab: &ImageLab,
    scores: ArrayView2<'_, f32>,
    options: &RemovalOptions,
    progress: &dyn Progress,
) -> Result<RemovalReport, EngineError> {
    let n = lab.images.train.len();
    check(n, scores, options)?;
    let queries: Vec<usize> = (0..options.n_queries).collect();
    let train = |kept: &[bool], seed: u64| image_outcomes(&lab.subject, &lab.images, Job { subset: 0, kept, seed });
    remove_and_train(n, scores, &queries, options, &train, progress)
}

/// The same for a decoder's responses, in nats of a response: `n_queries` of them, evenly spaced over all that have scores, since
/// they come dataset by dataset. A response is not right or wrong: nothing turns, `brittleness` and `removals_to_flip` have no
/// value. The number of steps is the recipe's, so fewer examples are seen more often.
///
/// # Errors
/// As [`removal`].
pub fn text_removal(
    lab: &DecoderLab,
    scores: ArrayView2<'_, f32>,
    options: &RemovalOptions,
    progress: &dyn Progress,
) -> Result<RemovalReport, EngineError> {
    let n = lab.data.corpus.examples.len();
    check(n, scores, options)?;
    let queries: Vec<usize> = (0..options.n_queries).map(|i| i * scores.nrows() / options.n_queries).collect();
    let train = |kept: &[bool], seed: u64| {
        decoder_outcomes(&lab.data, PlayerKind::Examples, Job { subset: 0, kept, seed }, progress)
    };
    remove_and_train(n, scores, &queries, options, &train, progress)
}

/// Outcomes of all queries after a training on the kept examples under a seed.
pub(super) type Train<'a> = dyn Fn(&[bool], u64) -> Result<Vec<f64>, EngineError> + Sync + 'a;

pub(super) fn remove_and_train(
    n: usize,
    scores: ArrayView2<'_, f32>,
    queries: &[usize],
    options: &RemovalOptions,
    train: &Train<'_>,
    progress: &dyn Progress,
) -> Result<RemovalReport, EngineError> {
    let n_queries = queries.len();
    let per_seed: Vec<Vec<f64>> =
        options.seeds.par_iter().map(|&seed| train(&vec![true; n], seed)).collect::<Result<_, _>>()?;
    let mean = |&q: &usize| per_seed.iter().map(|row| row[q]).sum::<f64>() / per_seed.len() as f64;
    let before: Vec<f64> = queries.iter().map(mean).collect();
    progress.start("remove and train again", (options.parts.len() * options.seeds.len() * n_queries) as u64, "models");
    let (mut figures, mut sizes) = (Vec::new(), Vec::new());
    let mut margins = Array2::zeros((n_queries, options.parts.len()));
    for (p, &part) in options.parts.iter().enumerate() {
        let n_removed = ((part * n as f64).round() as usize).clamp(1, n - 1);
        let shape = (n_queries, options.seeds.len());
        let (mut removed, mut random) = (Array2::zeros(shape), Array2::zeros(shape));
        for (s, &seed) in options.seeds.iter().enumerate() {
            let mut order: Vec<usize> = (0..n).collect();
            Stream::new(seed, &format!("bench/removal/{n_removed}")).shuffle(&mut order);
            let control = train(&without(n, &order[..n_removed]), seed)?;
            let outcomes: Vec<f64> = queries
                .par_iter()
                .map(|&q| {
                    if progress.stop_requested() {
                        return Err(EngineError::Stopped);
                    }
                    let margin = train(&without(n, &top(scores.row(q), n_removed)), seed)?[q];
                    progress.advance(1);
                    Ok(margin)
                })
                .collect::<Result<_, _>>()?;
            for (row, &q) in queries.iter().enumerate() {
                (removed[(row, s)], random[(row, s)]) = (outcomes[row], control[q]);
            }
        }
        sizes.push(n_removed);
        margins.column_mut(p).assign(&removed.mean_axis(Axis(1)).expect("there is a seed"));
        let turned = brittleness(&before, removed.view())?;
        figures.push(RemovalFigure {
            part,
            n_removed,
            effect: bootstrap_mean(&removal_effect(removed.view(), random.view())?, BOOTSTRAP_SEED)?,
            brittleness: estimated(&turned)?,
        });
    }
    progress.finish("");
    let flips: Vec<Flip> = removals_to_flip(&before, &sizes, margins.view())?;
    Ok(RemovalReport { parts: figures, median_to_flip: median_removals(&flips) })
}

fn check(n: usize, scores: ArrayView2<'_, f32>, options: &RemovalOptions) -> Result<(), EngineError> {
    let refuse = |setting, expected: String, found: String| Err(EngineError::Setting { setting, expected, found });
    if scores.ncols() != n {
        return refuse("scores", format!("one column for each of {n} training examples"), scores.ncols().to_string());
    }
    if options.n_queries == 0 || options.n_queries > scores.nrows() {
        return refuse(
            "queries",
            format!("1 to {}, as many as have scores", scores.nrows()),
            options.n_queries.to_string(),
        );
    }
    if options.seeds.is_empty() {
        return refuse("seeds", "at least one".into(), "none".into());
    }
    if let Some(part) = options.parts.iter().find(|part| !(**part > 0.0 && **part < 1.0)) {
        return refuse("part removed", "numbers between 0 and 1".into(), part.to_string());
    }
    match options.parts.is_empty() || options.parts.windows(2).any(|pair| pair[0] >= pair[1]) {
        true => refuse("parts removed", "numbers that rise".into(), format!("{:?}", options.parts)),
        false => Ok(()),
    }
}

fn without(n: usize, removed: &[usize]) -> Vec<bool> {
    let mut kept = vec![true; n];
    removed.iter().for_each(|&i| kept[i] = false);
    kept
}
