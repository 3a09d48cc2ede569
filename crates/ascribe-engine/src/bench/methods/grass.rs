//! GraSS: seeded places of the whole gradient, sparsely transformed; one Fisher matrix over all numbers of a row.

use ascribe_core::Progress;
use ascribe_methods::block_fisher::Covariance;
use ascribe_methods::grass::{Grass, GrassOptions};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::rows::{self, InMemory};
use ascribe_methods::source::Labels;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::lab::{Lab, Quantity};
use super::{Timed, clocked, explained};
use crate::error::EngineError;

/// Seed of places and signs.
const SEED: u64 = 7;

/// How GraSS's rows are made and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrassSettings {
    /// Places of the gradient that are kept.
    pub mask: usize,
    /// Numbers of a row.
    pub dim: usize,
    /// Damping relative to the mean eigenvalue of the rows' second moments; `None` compares rows without curvature.
    pub damping_rel: Option<f64>,
    /// What scores are divided by.
    #[serde(default)]
    pub normalise: Normalisation,
}

pub(super) fn grass(lab: &dyn Lab, settings: &GrassSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let view = explained(lab)?;
    let (mut fit, mut score) = (0.0, 0.0);
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let options = GrassOptions { mask: settings.mask, dim: settings.dim, seed: SEED };
    let grass = Grass::new(train.layers(), options)?;
    let kept = clocked(&mut fit, || Ok(grass.rows(train.as_ref(), Labels::Given, progress)?))?;
    let asked = clocked(&mut score, || Ok(grass.rows(queries.as_ref(), Labels::Given, progress)?))?;
    let reader = InMemory::new(kept.view());
    let metric = match settings.damping_rel {
        Some(damping) => Some(clocked(&mut fit, || Ok(Covariance::fit(&reader, progress)?.cholesky(damping)?))?),
        None => None,
    };
    let by = metric.as_ref().map(|m| m as &dyn ascribe_methods::block_fisher::Preconditioner);
    let values =
        clocked(&mut score, || Ok(rows::score(&reader, asked.view(), by, settings.normalise, progress)?.values))?;
    let mut timed = Timed { bytes: 4.0 * grass.dim() as f64, ..Timed::new(values, fit, score) };
    timed.settings = json!({ "places": grass.n_places() });
    Ok(timed)
}
