//! Kronecker-factored curvature, alone, refined, and along the training run.

use ascribe_core::Progress;
use ascribe_methods::chained::Chained;
use ascribe_methods::inverse::{Astra, AstraOptions, own_influence};
use ascribe_methods::kron::{Damping, Inverse, Kind, Kron, Options, Segment, source_vectors};
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::source::{CaptureSource, Labels};
use ndarray::Array2;
use serde_json::json;

use super::super::lab::{Lab, Quantity, View, Which};
use super::{Timed, averaged, clocked, explained, query_gradients, score_solved, score_vectors};
use crate::error::EngineError;

/// How the factors are made and inverted.
pub(super) struct KronSettings<'a> {
    pub kind: Kind,
    pub inverse: Inverse,
    pub damping: &'a Damping,
    pub models: u64,
    pub checkpoints: bool,
    pub empirical: bool,
    pub redraw: bool,
}

/// Influence through factors, averaged over models, or over the kept checkpoints of the one that is explained.
pub(super) fn score(
    lab: &dyn Lab,
    settings: &KronSettings<'_>,
    by: Normalisation,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let (mut fit, mut score) = (0.0, 0.0);
    let mut total = Array2::<f32>::zeros((lab.n_queries(), lab.n_examples()));
    let averaged = averaged(lab, settings.models, settings.checkpoints)?;
    for &which in &averaged {
        let view = lab.model(which)?;
        let labels = if settings.empirical { Labels::Given } else { Labels::Sampled { seed: 0 } };
        let options = Options { kind: settings.kind, labels, redraw: settings.redraw };
        let train = view.train(Quantity::Loss)?;
        let factors = clocked(&mut fit, || Ok(Kron::fit(train.as_ref(), &options, progress)?))?;
        total += &clocked(&mut score, || one(view.as_ref(), &factors, settings, by, progress))?;
    }
    total.mapv_inplace(|v| v / averaged.len() as f32);
    Ok(Timed::new(total, fit, score))
}

fn one(
    view: &dyn View,
    factors: &Kron,
    settings: &KronSettings<'_>,
    by: Normalisation,
    progress: &dyn Progress,
) -> Result<Array2<f32>, EngineError> {
    let inverted = factors.inverse(settings.inverse, settings.damping)?;
    let mut values = score_solved(view, usize::MAX, &|rows| inverted.solve(rows), progress)?;
    let own_query = match by.needs_query() {
        true => inverted.self_influence_of(query_gradients(view, Quantity::Loss, usize::MAX)?.view())?,
        false => vec![],
    };
    let own_train = match by.needs_train() {
        true => inverted.self_influence(view.train(Quantity::Loss)?.as_ref(), Labels::Given, progress)?,
        false => vec![],
    };
    let moved = match by.needs_moved() {
        true => own_influence(&inverted, view.train(Quantity::Loss)?.as_ref(), Labels::Given, progress)?.moved,
        false => vec![],
    };
    normalise(&mut values, by, &Own { query: Some(&own_query), train: Some(&own_train), moved: Some(&moved) })?;
    Ok(values)
}

/// EK-FAC's answer, refined by a few passes of products with the Gauss–Newton matrix.
pub(super) fn astra(
    lab: &dyn Lab,
    damping: f64,
    passes: f64,
    limit: usize,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let train = view.train(Quantity::Loss)?;
    let factors = clocked(&mut fit, || Ok(Kron::fit(train.as_ref(), &Options::default(), progress)?))?;
    let inverted = factors.inverse(Inverse::Damped, &Damping::Absolute(damping))?;
    let precondition = |rows: ndarray::ArrayView2<'_, f32>| inverted.solve(rows);
    let values = clocked(&mut score, || {
        let curvature = view.curvature()?;
        let options = AstraOptions { damping, passes, ..AstraOptions::default() };
        let queries = query_gradients(view.as_ref(), Quantity::Loss, limit)?;
        let solution = Astra::new(curvature.as_ref(), &precondition, &options)?.run(queries.view(), progress)?;
        score_vectors(view.as_ref(), &solution.rows, progress)
    })?;
    Ok(Timed::new(values, fit, score))
}

/// SOURCE: a segment per two kept checkpoints, its curvature and its examples' gradients means over both; of an odd number the
/// first stands alone.
pub(super) fn source(lab: &dyn Lab, models: u64, redraw: bool, progress: &dyn Progress) -> Result<Timed, EngineError> {
    if models != 1 {
        return Err(super::lacks("checkpoints of more than one model"));
    }
    let stretches = lab.stretches();
    let (mut fit, mut score) = (0.0, 0.0);
    let views: Vec<Box<dyn View + '_>> =
        (0..stretches.len()).map(|i| lab.model(Which::Kept(i))).collect::<Result<_, _>>()?;
    let trains: Vec<Box<dyn CaptureSource + '_>> =
        views.iter().map(|view| view.train(Quantity::Loss)).collect::<Result<_, _>>()?;
    // Segments of two checkpoints each, as in the paper; an odd first one stands alone.
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let mut end = stretches.len();
    while end > 0 {
        let start = end.saturating_sub(2);
        groups.insert(0, start..end);
        end = start;
    }
    let factors: Vec<Kron> = clocked(&mut fit, || {
        let fit_group = |group: &std::ops::Range<usize>| -> Result<Kron, EngineError> {
            let parts: Vec<&dyn CaptureSource> = trains[group.clone()].iter().map(AsRef::as_ref).collect();
            Ok(Kron::fit(&Chained::new(parts)?, &Options { redraw, ..Options::default() }, progress)?)
        };
        groups.iter().map(fit_group).collect()
    })?;
    let segments: Vec<Segment<'_>> = groups
        .iter()
        .zip(&factors)
        .map(|(group, factors)| Segment {
            factors,
            learning_rate_sum: stretches[group.clone()].iter().map(|s| s.learning_rate_sum).sum(),
            momentum: stretches[group.start].momentum,
            weight_decay: stretches[group.start].weight_decay,
        })
        .collect();
    let values = clocked(&mut score, || {
        let last = views.last().ok_or_else(|| super::lacks("kept checkpoints"))?;
        let queries = query_gradients(last.as_ref(), Quantity::Loss, usize::MAX)?;
        let vectors = source_vectors(&segments, queries.view())?;
        let mut total = Array2::<f32>::zeros((lab.n_queries(), lab.n_examples()));
        for (group, vectors) in groups.iter().zip(&vectors) {
            for view in &views[group.clone()] {
                total.scaled_add(1.0 / group.len() as f32, &score_vectors(view.as_ref(), vectors, progress)?);
            }
        }
        Ok(total)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.settings = json!({ "segments": groups.len(), "checkpoints": stretches.len() });
    Ok(timed)
}
