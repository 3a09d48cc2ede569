//! Influence through products with the Gauss–Newton matrix.

use ascribe_core::Progress;
use ascribe_methods::captured;
use ascribe_methods::inverse::datainf::Ridge;
use ascribe_methods::inverse::lissa::Scale;
use ascribe_methods::inverse::{
    Arnoldi, ArnoldiOptions, Cg, CgOptions, DataInf, DataInfOptions, Explicit, ExplicitOptions, InverseCurvature,
    Lissa, LissaOptions, OwnInfluence, own_influence, own_influence_rows,
};
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::source::Labels;
use ndarray::Array2;
use serde_json::json;

use super::super::lab::{Lab, Quantity, View};
use super::{Timed, clocked, explained, query_gradients, score_solved, score_vectors};
use crate::error::EngineError;

pub(super) fn explicit(
    lab: &dyn Lab,
    damping: f64,
    (limit, by): (usize, Normalisation),
    hessian: bool,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let inverse = clocked(&mut fit, || {
        let options = ExplicitOptions { damping, ..ExplicitOptions::default() };
        let curvature = if hessian { view.hessian()? } else { view.curvature()? };
        Ok(Explicit::form(curvature.as_ref(), &options, progress)?)
    })?;
    let values = clocked(&mut score, || {
        let mut values = score_solved(view.as_ref(), limit, &|rows| inverse.solve(rows), progress)?;
        divided(&mut values, view.as_ref(), &inverse, (limit, by), progress)?;
        Ok(values)
    })?;
    Ok(Timed::new(values, fit, score))
}

pub(super) fn cg(
    lab: &dyn Lab,
    damping: f64,
    iterations: usize,
    (limit, by): (usize, Normalisation),
    preconditioned: bool,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let train = view.train(Quantity::Loss)?;
    let factors = match preconditioned {
        true => Some(clocked(&mut fit, || Ok(Kron::fit(train.as_ref(), &Options::default(), progress)?))?),
        false => None,
    };
    let inverted = factors.as_ref().map(|f| f.inverse(Inverse::Damped, &Damping::Absolute(damping))).transpose()?;
    let (values, worst, steps) = clocked(&mut score, || {
        let options = CgOptions { damping, iterations, ..CgOptions::default() };
        let curvature = view.curvature()?;
        let queries = query_gradients(view.as_ref(), Quantity::Loss, limit)?;
        let plain = Cg::new(curvature.as_ref(), &options)?;
        let cg = match &inverted {
            Some(inverted) => plain.with_preconditioner(inverted),
            None => plain,
        };
        let solution = cg.run(queries.view(), progress)?;
        let worst = solution.queries.iter().map(|q| q.residual).fold(0.0, f64::max);
        let steps = solution.queries.iter().map(|q| q.iterations).max();
        let mut values = score_vectors(view.as_ref(), &solution.rows, progress)?;
        divided(&mut values, view.as_ref(), &cg, (limit, by), progress)?;
        Ok((values, worst, steps))
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.settings = json!({ "largest_residual": worst, "most_iterations": steps });
    Ok(timed)
}

/// How far a Neumann series goes.
pub(super) struct Steps {
    pub depth: usize,
    pub batch: usize,
    /// Estimated without.
    pub scale: Option<f64>,
}

pub(super) fn lissa(
    lab: &dyn Lab,
    damping: f64,
    steps: &Steps,
    (limit, by): (usize, Normalisation),
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let curvature = view.curvature()?;
    let Steps { depth, batch, scale } = *steps;
    let mut options = LissaOptions { damping, depth, batch, ..LissaOptions::default() };
    if let Some(value) = scale {
        options.scale = Scale::Fixed { value };
    }
    let lissa = clocked(&mut fit, || Ok(Lissa::new(curvature.as_ref(), &options)?))?;
    let values = clocked(&mut score, || {
        let queries = query_gradients(view.as_ref(), Quantity::Loss, limit)?;
        let mut values = score_vectors(view.as_ref(), &lissa.run(queries.view(), progress)?, progress)?;
        divided(&mut values, view.as_ref(), &lissa, (limit, by), progress)?;
        Ok(values)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.settings = json!({ "scale": lissa.scale() });
    Ok(timed)
}

pub(super) fn arnoldi(
    lab: &dyn Lab,
    damping: f64,
    (basis, top, block): (usize, usize, usize),
    by: Normalisation,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let train = view.train(Quantity::Loss)?;
    let (features, projection, found) = clocked(&mut fit, || {
        let options = ArnoldiOptions { damping, basis, top, block, ..ArnoldiOptions::default() };
        let found = Arnoldi::fit(view.curvature()?.as_ref(), &options, progress)?;
        let projection = found.projection()?;
        Ok((captured::score(train.as_ref(), projection.view(), Labels::Given, progress)?, projection, found))
    })?;
    let values = clocked(&mut score, || {
        let queries = query_gradients(view.as_ref(), Quantity::Loss, usize::MAX)?;
        let mut values = queries.dot(&projection.t()).dot(&features);
        divided(&mut values, view.as_ref(), &found, (usize::MAX, by), progress)?;
        Ok(values)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = 4.0 * features.nrows() as f64;
    timed.settings = json!({ "eigenpairs": features.nrows() });
    Ok(timed)
}

pub(super) fn data_inf(
    lab: &dyn Lab,
    ridge: f64,
    (limit, by): (usize, Normalisation),
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let train = view.train(Quantity::Loss)?;
    let options = DataInfOptions { ridge: Ridge::Relative { value: ridge } };
    let data_inf = clocked(&mut fit, || Ok(DataInf::fit(train.as_ref(), &options, progress)?))?;
    let values = clocked(&mut score, || {
        let queries = query_gradients(view.as_ref(), Quantity::Loss, limit)?;
        let mut values = score_vectors(view.as_ref(), &data_inf.run(queries.view(), progress)?, progress)?;
        divided(&mut values, view.as_ref(), &data_inf, (limit, by), progress)?;
        Ok(values)
    })?;
    Ok(Timed::new(values, fit, score))
}

/// Divides scores of the first `limit` queries by what an option asks for, from solves of the queries' and of all training gradients.
pub(super) fn divided(
    values: &mut Array2<f32>,
    view: &dyn View,
    inverse: &dyn InverseCurvature,
    (limit, by): (usize, Normalisation),
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    if by == Normalisation::None {
        return Ok(());
    }
    // A self-influence is a square; what an iteration leaves of one that is zero may be a little below it.
    let square = |own: Vec<f64>| own.into_iter().map(|s| s.max(0.0)).collect::<Vec<f64>>();
    let query = match by.needs_query() {
        true => own_influence_rows(inverse, query_gradients(view, Quantity::Loss, limit)?.view())?.self_influence,
        false => vec![],
    };
    let train = match by.needs_train() || by.needs_moved() {
        true => own_influence(inverse, view.train(Quantity::Loss)?.as_ref(), Labels::Given, progress)?,
        false => OwnInfluence::default(),
    };
    let (query, own) = (square(query), square(train.self_influence));
    let own = Own { query: Some(&query), train: Some(&own), moved: Some(&train.moved) };
    Ok(normalise(values, by, &own)?)
}
