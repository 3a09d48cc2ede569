//! The control of an outside encoder: cosine of vectors that were made without the explained model.

use ascribe_core::{Digest, Progress};
use ascribe_methods::controls::embedding as cosine;
use serde::{Deserialize, Serialize};

use super::super::lab::Lab;
use super::{Timed, clocked};
use crate::error::EngineError;
use crate::outside::Outside;

/// Whose vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideSettings {
    /// Model folder or files.
    pub from: Outside,
    /// SHA-256 over what decides the vectors.
    pub digest: Digest,
}

pub(super) fn outside(
    lab: &dyn Lab,
    settings: &OutsideSettings,
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let (mut fit, mut score) = (0.0, 0.0);
    let shape = (lab.n_examples(), lab.n_queries());
    let (train, queries) = clocked(&mut fit, || settings.from.vectors(shape, &|| lab.texts(), progress))?;
    // The examples' mean is taken out: what all texts of a collection share is no likeness.
    let values = clocked(&mut score, || Ok(cosine::score(queries.view(), train.view(), true)?))?;
    Ok(Timed { bytes: 4.0 * train.ncols() as f64, ..Timed::new(values, fit, score) })
}
