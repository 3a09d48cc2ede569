//! Controls, and methods on features instead of gradients.

use ascribe_core::Progress;
use ascribe_methods::captured;
use ascribe_methods::controls::verbatim::{Measure, score as verbatim_score};
use ascribe_methods::controls::{bm25::Bm25, embedding as cosine, gradient_norm as norm, random as noise};
use ascribe_methods::knn_shapley::{self, Distance, KnnShapleyOptions, Labelled};
use ascribe_methods::representer::{Representer, RepresenterOptions, Targets};
use ascribe_methods::source::{Captured, Labels};
use ndarray::{Array2, Axis, concatenate};
use rayon::prelude::*;

use super::super::lab::{Lab, Quantity};
use super::super::report::cpu_of;
use super::{Timed, clocked, explained, lacks};
use crate::error::EngineError;

/// Examples of one capture where only losses are wanted.
const LOSS_CHUNK: usize = 64;

pub(super) fn embedding(lab: &dyn Lab) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let (train, queries) = clocked(&mut fit, || view.embeddings())?;
    let values = clocked(&mut score, || Ok(cosine::score(queries.view(), train.view(), false)?))?;
    Ok(Timed { bytes: 4.0 * train.ncols() as f64, ..Timed::new(values, fit, score) })
}

pub(super) fn bm25(lab: &dyn Lab) -> Result<Timed, EngineError> {
    let (train, queries) = lab.words().ok_or_else(|| lacks("texts"))?;
    let (index, fit) = cpu_of(|| Bm25::build(&train));
    let index = index?;
    let (values, score) = cpu_of(|| index.score_all(&queries));
    let words: usize = train.iter().map(|t| t.iter().map(String::len).sum::<usize>()).sum();
    Ok(Timed { bytes: words as f64 / train.len().max(1) as f64, ..Timed::new(values, fit, score) })
}

pub(super) fn verbatim(lab: &dyn Lab, _: &dyn Progress) -> Result<Timed, EngineError> {
    let (train, queries) = lab.tokens().ok_or_else(|| lacks("texts"))?;
    let (values, score) = cpu_of(|| verbatim_score(&queries, &train, Measure::LongestRun));
    let tokens: usize = train.iter().map(|t| t.len()).sum();
    // Two bytes a token where the vocabulary allows it.
    let wide = train.iter().any(|t| t.iter().any(|&token| token > u32::from(u16::MAX)));
    let width = if wide { 4.0 } else { 2.0 };
    Ok(Timed { bytes: width * tokens as f64 / train.len().max(1) as f64, ..Timed::new(values?, 0.0, score) })
}

pub(super) fn gradient_norm(lab: &dyn Lab, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let mut fit = 0.0;
    let squares = clocked(&mut fit, || {
        Ok(captured::square_norms(view.train(Quantity::Loss)?.as_ref(), Labels::Given, progress)?)
    })?;
    let norms: Vec<f32> = squares.iter().map(|s| s.sqrt() as f32).collect();
    Ok(Timed { bytes: 4.0, ..Timed::new(norm::score(&norms, lab.n_queries())?, fit, 0.0) })
}

/// The training examples' own losses: what a search for wrong labels would look at first.
pub(super) fn loss(lab: &dyn Lab, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let mut fit = 0.0;
    let losses = clocked(&mut fit, || {
        let train = view.train(Quantity::Loss)?;
        let ids: Vec<u32> = (0..train.len() as u32).collect();
        let of = |ids: &[u32]| -> Result<Vec<f64>, EngineError> {
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
            let mut captured = Captured::default();
            train.capture(ids, Labels::Given, &mut captured)?;
            Ok(captured.losses)
        };
        let parts: Vec<Vec<f64>> = ids.par_chunks(LOSS_CHUNK).map(of).collect::<Result<_, _>>()?;
        Ok(parts.concat())
    })?;
    let values = Array2::from_shape_fn((lab.n_queries(), losses.len()), |(_, i)| losses[i] as f32);
    Ok(Timed { bytes: 4.0, ..Timed::new(values, fit, 0.0) })
}

pub(super) fn random(lab: &dyn Lab, seed: u64) -> Result<Timed, EngineError> {
    Ok(Timed::new(noise::score(seed, lab.n_queries(), lab.n_examples()), 0.0, 0.0))
}

pub(super) fn knn_shapley(lab: &dyn Lab, k: usize, _: &dyn Progress) -> Result<Timed, EngineError> {
    let (train_labels, query_labels) = lab.labels().ok_or_else(|| lacks("classes"))?;
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let (train, queries) = clocked(&mut fit, || view.embeddings())?;
    let values = clocked(&mut score, || {
        let options = KnnShapleyOptions { k, distance: Distance::Euclidean };
        let queries = Labelled { features: queries.view(), labels: query_labels };
        Ok(knn_shapley::score(queries, Labelled { features: train.view(), labels: train_labels }, &options)?)
    })?;
    Ok(Timed { bytes: 4.0 * train.ncols() as f64 + 4.0, ..Timed::new(values, fit, score) })
}

pub(super) fn representer(lab: &dyn Lab, penalty: f64, _: &dyn Progress) -> Result<Timed, EngineError> {
    let (train_labels, query_labels) = lab.labels().ok_or_else(|| lacks("classes"))?;
    let n_classes = train_labels.iter().max().map_or(0, |&c| c as usize + 1);
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    // The bias is the weight of a feature that is always 1.
    let with_one = |x: Array2<f32>| {
        let ones = Array2::ones((x.nrows(), 1));
        concatenate(Axis(1), &[x.view(), ones.view()]).expect("both have one row per example")
    };
    let (model, queries) = clocked(&mut fit, || {
        let (train, queries) = view.embeddings()?;
        let options = RepresenterOptions { ridge: penalty, ..RepresenterOptions::default() };
        let targets = Targets::Classes { labels: train_labels, n: n_classes };
        Ok((Representer::fit(with_one(train).view(), targets, &options)?, with_one(queries)))
    })?;
    let values = clocked(&mut score, || Ok(model.score(queries.view(), query_labels)?))?;
    Ok(Timed { bytes: 4.0 * (queries.ncols() + n_classes) as f64, ..Timed::new(values, fit, score) })
}
