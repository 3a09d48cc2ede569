//! Tail-patch: one optimiser step on each of a query's top examples; how much does the probability of its answer rise?
//!
//! Source: TrackStar (arXiv:2410.17413, §4.2), which steps from the final checkpoint. Here never lives: the measure (eval).

use std::collections::BTreeMap;

use ascribe_core::Progress;
use ascribe_eval::removal::tail_patch as patched;
use ascribe_eval::{Estimate, bootstrap_mean};
use ascribe_models::vision::{Classifier, Objective};
use ascribe_models::{Decoder, Sequence};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::{BOOTSTRAP_SEED, top};
use crate::bank::query_sequences;
use crate::bench::lab::{DecoderLab, ImageLab};
use crate::error::EngineError;

/// One step of plain gradient descent with the recipe's learning rate on each of a query's `k` top examples, from the given
/// weights: mean rise of the probability of the query's label.
///
/// # Errors
/// `k` of 0 or above the number of examples; the model's.
pub fn tail_patch(
    lab: &ImageLab,
    model: &Classifier,
    scores: ArrayView2<'_, f32>,
    k: usize,
) -> Result<Estimate, EngineError> {
    check(k, lab.images.train.len())?;
    let ids: Vec<u32> = (0..scores.nrows() as u32).collect();
    let probability = |model: &Classifier, q: u32| -> Result<f64, EngineError> {
        Ok((-model.losses(&lab.images.queries, &[q], Objective::LOSS)?[0]).exp())
    };
    let rows: Vec<(f64, Vec<f64>)> = ids
        .par_iter()
        .map(|&q| {
            let after = top(scores.row(q as usize), k).into_iter().map(|i| {
                let gradient = model.gradients(&lab.images.train, &[i as u32], Objective::LOSS)?;
                let step = |(w, g): (&f32, &f32)| w - lab.subject.train.lr as f32 * g;
                let parameters = model.parameters().iter().zip(&gradient).map(step).collect();
                let patched =
                    Classifier::from_parameters(model.config().clone(), parameters, model.buffers().to_vec())?;
                probability(&patched, q)
            });
            Ok((probability(model, q)?, after.collect::<Result<_, EngineError>>()?))
        })
        .collect::<Result<_, EngineError>>()?;
    let before: Vec<f64> = rows.iter().map(|row| row.0).collect();
    let after = Array2::from_shape_fn((rows.len(), k), |(q, i)| rows[q].1[i]);
    Ok(bootstrap_mean(&patched(&before, after.view())?, BOOTSTRAP_SEED)?)
}

/// The same for text: one AdamW step on a top example's mean loss, from the final weights and their second moments (the model
/// folder keeps no first ones, and the one step does not renew the second), with the learning rate of the last training step
/// and without weight decay. The probability is that of a response's token, the geometric mean over the response: a product over
/// all its tokens would be next to nothing before and after.
///
/// Every example that is a top one of some query is stepped on once. Cost: a gradient per such example, a forward pass per query
/// and top example.
///
/// # Errors
/// `k` of 0 or above the number of examples; a model folder without second moments; [`EngineError::Stopped`].
pub fn text_tail_patch(
    lab: &DecoderLab,
    scores: ArrayView2<'_, f32>,
    k: usize,
    progress: &dyn Progress,
) -> Result<Estimate, EngineError> {
    let corpus = &lab.data.corpus;
    check(k, corpus.examples.len())?;
    let model = Decoder::load(&lab.dir, "model.safetensors")?;
    let moments = lab.parameter_moments()?;
    let recipe = &lab.data.recipe.train;
    let (lr, eps) = (recipe.learning_rate(recipe.steps - 1) as f32, recipe.eps as f32);
    let queries = query_sequences(corpus);
    // Per stepped example: the queries that it is a top one of, with its place there.
    let mut asking: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for (q, row) in scores.rows().into_iter().enumerate() {
        for (place, example) in top(row, k).into_iter().enumerate() {
            asking.entry(example).or_default().push((q, place));
        }
    }
    let asking: Vec<(usize, Vec<(usize, usize)>)> = asking.into_iter().collect();
    progress.start("one step on each top example", asking.len() as u64, "examples");
    let stepped = |(example, places): &(usize, Vec<(usize, usize)>)| -> Result<Vec<f64>, EngineError> {
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
        let sequence = Sequence::whole(&corpus.examples[*example].tokens);
        let gradient = model.gradient_sum(&[sequence])?;
        let n = sequence.n_predictions().max(1) as f32;
        let step = |((w, g), v): ((&f32, &f32), &f32)| w - lr * (g / n) / (v.sqrt() + eps);
        let parameters = model.parameters().iter().zip(&gradient).zip(&moments).map(step).collect();
        let patched = Decoder::from_parameters(model.config().clone(), parameters)?;
        let of: Vec<Sequence<'_>> = places.iter().map(|(q, _)| queries[*q]).collect();
        progress.advance(1);
        probabilities(&patched, &of)
    };
    let found: Vec<Vec<f64>> = asking.par_iter().map(stepped).collect::<Result<_, _>>()?;
    progress.finish("");
    let mut after = Array2::zeros((scores.nrows(), k));
    for ((_, places), found) in asking.iter().zip(found) {
        places.iter().zip(found).for_each(|((q, place), p)| after[(*q, *place)] = p);
    }
    let before = probabilities(&model, &queries[..scores.nrows()])?;
    Ok(bootstrap_mean(&patched(&before, after.view())?, BOOTSTRAP_SEED)?)
}

/// Geometric mean of the probabilities of every sequence's predicted tokens.
fn probabilities(model: &Decoder, sequences: &[Sequence<'_>]) -> Result<Vec<f64>, EngineError> {
    let nats = model.losses(sequences)?;
    Ok(nats.iter().zip(sequences).map(|(nats, s)| (-nats / s.n_predictions().max(1) as f64).exp()).collect())
}

fn check(k: usize, n: usize) -> Result<(), EngineError> {
    match k == 0 || k > n {
        true => Err(EngineError::Setting { setting: "--k", expected: format!("1 to {n}"), found: k.to_string() }),
        false => Ok(()),
    }
}
