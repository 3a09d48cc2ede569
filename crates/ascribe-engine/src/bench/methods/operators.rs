//! Influence through products with the Gauss–Newton matrix.

use ascribe_core::Progress;
use ascribe_methods::captured;
use ascribe_methods::inverse::datainf::Ridge;
use ascribe_methods::inverse::{
    Arnoldi, ArnoldiOptions, Cg, CgOptions, DataInf, DataInfOptions, Explicit, ExplicitOptions, InverseCurvature,
    Lissa, LissaOptions,
};
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::source::Labels;
use serde_json::json;

use super::super::lab::{Lab, Quantity};
use super::{Timed, clocked, explained, query_gradients, score_solved, score_vectors};
use crate::error::EngineError;

pub(super) fn explicit(
    lab: &dyn Lab,
    damping: f64,
    limit: usize,
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
    let values = clocked(&mut score, || score_solved(view.as_ref(), limit, &|rows| inverse.solve(rows), progress))?;
    Ok(Timed::new(values, fit, score))
}

pub(super) fn cg(
    lab: &dyn Lab,
    damping: f64,
    iterations: usize,
    limit: usize,
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
        Ok((score_vectors(view.as_ref(), &solution.rows, progress)?, worst, steps))
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.settings = json!({ "largest_residual": worst, "most_iterations": steps });
    Ok(timed)
}

pub(super) fn lissa(
    lab: &dyn Lab,
    damping: f64,
    (depth, batch): (usize, usize),
    limit: usize,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let curvature = view.curvature()?;
    let options = LissaOptions { damping, depth, batch, ..LissaOptions::default() };
    let lissa = clocked(&mut fit, || Ok(Lissa::new(curvature.as_ref(), &options)?))?;
    let values = clocked(&mut score, || {
        let queries = query_gradients(view.as_ref(), Quantity::Loss, limit)?;
        score_vectors(view.as_ref(), &lissa.run(queries.view(), progress)?, progress)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.settings = json!({ "scale": lissa.scale() });
    Ok(timed)
}

pub(super) fn arnoldi(
    lab: &dyn Lab,
    damping: f64,
    (basis, top, block): (usize, usize, usize),
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let train = view.train(Quantity::Loss)?;
    let (features, projection) = clocked(&mut fit, || {
        let options = ArnoldiOptions { damping, basis, top, block, ..ArnoldiOptions::default() };
        let found = Arnoldi::fit(view.curvature()?.as_ref(), &options, progress)?;
        let projection = found.projection()?;
        Ok((captured::score(train.as_ref(), projection.view(), Labels::Given, progress)?, projection))
    })?;
    let values = clocked(&mut score, || {
        let queries = query_gradients(view.as_ref(), Quantity::Loss, usize::MAX)?;
        Ok(queries.dot(&projection.t()).dot(&features))
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = 4.0 * features.nrows() as f64;
    timed.settings = json!({ "eigenpairs": features.nrows() });
    Ok(timed)
}

pub(super) fn data_inf(lab: &dyn Lab, ridge: f64, limit: usize, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let train = view.train(Quantity::Loss)?;
    let options = DataInfOptions { ridge: Ridge::Relative { value: ridge } };
    let data_inf = clocked(&mut fit, || Ok(DataInf::fit(train.as_ref(), &options, progress)?))?;
    let values = clocked(&mut score, || {
        let queries = query_gradients(view.as_ref(), Quantity::Loss, limit)?;
        score_vectors(view.as_ref(), &data_inf.run(queries.view(), progress)?, progress)
    })?;
    Ok(Timed::new(values, fit, score))
}
