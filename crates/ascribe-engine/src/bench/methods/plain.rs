//! Methods on gradients as they are: products, cosines, sums over checkpoints, metagradients.

use ascribe_core::Progress;
use ascribe_methods::captured;
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::source::Labels;
use ndarray::Array2;
use serde_json::json;

use super::super::lab::{Lab, Quantity, View, Which};
use super::super::report::cpu_of;
use super::{Timed, clocked, explained, lacks, query_gradients, score_vectors};
use crate::error::EngineError;

/// `⟨q, g⟩` at the final weights.
pub(super) fn gradient(lab: &dyn Lab, by: Normalisation, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let mut clock = 0.0;
    let values = clocked(&mut clock, || products(view.as_ref(), by, progress))?;
    Ok(Timed::new(values, 0.0, clock))
}

/// `Σ_c η_c ⟨q_c, g_c⟩`.
pub(super) fn tracin(lab: &dyn Lab, by: Normalisation, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let mut total = Array2::<f32>::zeros((lab.n_queries(), lab.n_examples()));
    let (mut clock, stretches) = (0.0, lab.stretches());
    for (i, stretch) in stretches.iter().enumerate() {
        let view = lab.model(Which::Kept(i))?;
        let scores = clocked(&mut clock, || products(view.as_ref(), by, progress))?;
        total.scaled_add(stretch.learning_rate_sum as f32, &scores);
    }
    let mut timed = Timed::new(total, 0.0, clock);
    timed.settings = json!({ "checkpoints": stretches.len() });
    Ok(timed)
}

/// Products of all pairs: from activations alone where a layer sees one position, else with the queries' formed gradients.
fn products(view: &dyn View, by: Normalisation, progress: &dyn Progress) -> Result<Array2<f32>, EngineError> {
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let mut values = match captured::pair_scores(queries.as_ref(), train.as_ref(), Labels::Given, progress)? {
        Some(values) => values,
        None => score_vectors(view, &query_gradients(view, Quantity::Loss, usize::MAX)?, progress)?,
    };
    let own_query: Vec<f64> = match by.needs_query() {
        true => captured::square_norms(queries.as_ref(), Labels::Given, progress)?,
        false => vec![],
    };
    let own_train = match by.needs_train() || by.needs_moved() {
        true => captured::square_norms(train.as_ref(), Labels::Given, progress)?,
        false => vec![],
    };
    let moved: Vec<f64> = own_train.iter().map(|s| s.sqrt()).collect();
    let own = Own { query: Some(&own_query), train: Some(&own_train), moved: Some(&moved) };
    normalise(&mut values, by, &own)?;
    Ok(values)
}

/// MAGIC: how every query's margin follows every training image's weight through the whole run.
pub(super) fn magic(lab: &dyn Lab, limit: usize) -> Result<Timed, EngineError> {
    let Some(images) = lab.images() else { return Err(lacks("a training run that can be replayed")) };
    let n = limit.min(lab.n_queries());
    let (found, clock) = cpu_of(|| super::super::images::magic(&images.images, &images.recipe(0), n));
    Ok(Timed::new(found?.0.mapv(|v| v as f32), 0.0, clock))
}
