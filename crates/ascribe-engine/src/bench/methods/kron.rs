//! Kronecker-factored curvature, alone, refined, and along the training run.

use ascribe_core::Progress;
use ascribe_methods::captured;
use ascribe_methods::chained::Chained;
use ascribe_methods::inverse::{Astra, AstraOptions, own_influence};
use ascribe_methods::kron::{Damping, Inverse, Inverted, Kind, Kron, Options, Segment, source_vectors};
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::projected::{Basis, Projected};
use ascribe_methods::source::{CaptureSource, Labels};
use ndarray::{Array2, s};
use serde_json::json;

use super::super::lab::{Lab, Quantity, View, Which};
use super::operators::divided;
use super::{Timed, averaged, clocked, explained, parts, query_gradients, score_solved, score_vectors};
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
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let pairs = inverted.pair_scores(queries.as_ref(), train.as_ref(), Labels::Given, progress)?;
    let mut values = match (pairs, turning_is_cheaper(factors, train.len(), queries.len())) {
        (Some(values), _) => values,
        (None, true) => turned(train.as_ref(), queries.as_ref(), factors, &inverted, progress)?,
        (None, false) => score_solved(view, usize::MAX, &|rows| inverted.solve(rows), progress)?,
    };
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

/// Whether turning every position of the queries, and of the examples in each pass over them, into the curvature's basis costs less
/// than turning the queries there and back.
fn turning_is_cheaper(factors: &Kron, n_examples: usize, n_queries: usize) -> bool {
    let passes = parts(n_queries, factors.dim()).count();
    let (mut positions, mut queries) = (0.0, 0.0);
    for l in factors.layers() {
        let (i, o) = (l.layer.n_in as f64, l.layer.n_out as f64);
        positions += l.positions * (passes * n_examples + n_queries) as f64 * (i * i + o * o);
        queries += 2.0 * n_queries as f64 * o * i * (i + o);
    }
    positions < queries
}

/// Influence `[Q, N]` in the basis in which the curvature is diagonal: there a query's gradient is divided by it, number by number,
/// and meets gradients of examples whose activations were turned. Equal to the scores of solved queries but for rounding.
fn turned(
    train: &dyn CaptureSource,
    queries: &dyn CaptureSource,
    factors: &Kron,
    inverted: &Inverted<'_>,
    progress: &dyn Progress,
) -> Result<Array2<f32>, EngineError> {
    let bases: Vec<Basis> = factors.layers().iter().map(|l| l.basis.clone()).collect();
    let (train, queries) = (Projected::new(train, &bases)?, Projected::new(queries, &bases)?);
    let scales: Vec<f64> = inverted.inverses().iter().flatten().copied().collect();
    let mut out = Array2::zeros((queries.len(), train.len()));
    for part in parts(queries.len(), scales.len()) {
        let ids: Vec<u32> = (part.start as u32..part.end as u32).collect();
        let mut rows = captured::gradients(&queries, &ids, Labels::Given)?;
        for mut row in rows.rows_mut() {
            row.iter_mut().zip(&scales).for_each(|(v, &scale)| *v = (f64::from(*v) * scale) as f32);
        }
        out.slice_mut(s![part, ..]).assign(&captured::score(&train, rows.view(), Labels::Given, progress)?);
    }
    Ok(out)
}

/// EK-FAC's answer, refined by a few passes of products with the Gauss–Newton matrix.
pub(super) fn astra(
    lab: &dyn Lab,
    damping: f64,
    passes: f64,
    (limit, by): (usize, Normalisation),
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
        let astra = Astra::new(curvature.as_ref(), &precondition, &options)?;
        let solution = astra.run(queries.view(), progress)?;
        let mut values = score_vectors(view.as_ref(), &solution.rows, progress)?;
        divided(&mut values, view.as_ref(), &astra, (limit, by), progress)?;
        Ok(values)
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

#[cfg(test)]
mod tests {
    use ascribe_core::NoProgress;
    use ascribe_linalg::Stream;
    use ascribe_models::vision::{Classifier, ClassifierConfig, ClassifierKind, ImageSet, Normalization};

    use super::*;
    use crate::bench::images::ImageSource;

    /// Both ways round give the same scores, of K-FAC and of EK-FAC, and images of one position are turned.
    #[test]
    fn the_curvatures_own_basis_gives_the_scores_of_solved_queries() {
        let mut stream = Stream::new(5, "kron");
        let mut images = |n: usize| {
            let pixels = (0..n * 36).map(|_| stream.normal() as f32).collect();
            let labels = (0..n as u32).map(|i| i % 3).collect();
            ImageSet::from_f32([1, 6, 6], pixels, labels, &Normalization::default()).unwrap()
        };
        let (train, queries) = (images(40), images(9));
        let kind = ClassifierKind::Mlp { widths: vec![7] };
        let model = Classifier::init(ClassifierConfig::new([1, 6, 6], 3, kind), 2).unwrap();
        let (train, queries) = (ImageSource::new(&model, &train), ImageSource::new(&model, &queries));
        let ids: Vec<u32> = (0..9).collect();
        let gradients = captured::gradients(&queries, &ids, Labels::Given).unwrap();
        for kind in [Kind::Kfac, Kind::Ekfac] {
            let factors = Kron::fit(&train, &Options { kind, ..Options::default() }, &NoProgress).unwrap();
            let inverted = factors.inverse(Inverse::Damped, &Damping::Relative(0.1)).unwrap();
            let found = turned(&train, &queries, &factors, &inverted, &NoProgress).unwrap();
            let solved = inverted.solve(gradients.view()).unwrap();
            let expected = captured::score(&train, solved.view(), Labels::Given, &NoProgress).unwrap();
            let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            // Turned activations are f32 chains of 37 numbers, scores sums of 283 products.
            let off = (&found - &expected).iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest > 0.0 && off < 1e-5 * largest, "{kind:?}: {off} of {largest}");
            // 40 queries there and back are 80 · 11,660 products, turned images 80 · 1,491; of one query and 4,000 images more.
            assert!(turning_is_cheaper(&factors, 40, 40) && !turning_is_cheaper(&factors, 4000, 1));
        }
    }
}
