//! Which channels earn their place? Greedy forward selection by held-out error.
//!
//! A tool for the bench, not for the walk: what it picks is written into a configuration. Its errors are held out from the
//! fits but not from the choice, so they flatter a little; report the chosen combination on other splits.

use super::calibration::Channel;
use super::crossfit::{CrossFit, Splits, TrueShares, cross_fit};
use super::fit::FitOptions;
use crate::error::MethodError;

/// One channel that was taken in, and the held-out error with it.
#[derive(Clone, PartialEq, Debug)]
pub struct SelectionStep {
    /// Name of the channel.
    pub name: String,
    /// Mean held-out total variation of all channels chosen so far.
    pub error: f64,
}

/// Takes in the channel that lowers the held-out error most, until no channel lowers it by `min_gain`.
///
/// The first channel is always taken. Ties go to the earlier channel. Transforms are chosen per fit unless `options` fixes
/// one per channel. Cost: up to `C²/2` cross-fits.
///
/// # Errors
/// Those of [`cross_fit`]; a `min_gain` that is not finite.
pub fn forward_select(
    channels: &[Channel<'_>],
    truth: &TrueShares<'_>,
    splits: Splits,
    options: &FitOptions,
    min_gain: f64,
) -> Result<Vec<SelectionStep>, MethodError> {
    if !min_gain.is_finite() {
        return Err(MethodError::Parameter { field: "min_gain", expected: "finite", found: min_gain });
    }
    if channels.is_empty() {
        return Err(MethodError::Empty { what: "the list of channels" });
    }
    let mut chosen: Vec<usize> = Vec::new();
    let mut steps: Vec<SelectionStep> = Vec::new();
    while chosen.len() < channels.len() {
        let mut best: Option<(f64, usize)> = None;
        for candidate in (0..channels.len()).filter(|c| !chosen.contains(c)) {
            let indices: Vec<usize> = chosen.iter().copied().chain([candidate]).collect();
            let subset: Vec<Channel<'_>> = indices.iter().map(|&c| channels[c]).collect();
            let transforms = match &options.transforms {
                Some(all) if all.len() == channels.len() => Some(indices.iter().map(|&c| all[c]).collect()),
                other => other.clone(),
            };
            let crossed = cross_fit(&subset, truth, splits, &FitOptions { transforms, ..options.clone() })?;
            let error = held_out_error(&crossed, truth);
            if best.is_none_or(|(smallest, _)| error < smallest) {
                best = Some((error, candidate));
            }
        }
        let Some((error, candidate)) = best else { break };
        if steps.last().is_some_and(|last| error > last.error - min_gain) {
            break;
        }
        chosen.push(candidate);
        steps.push(SelectionStep { name: channels[candidate].name.to_owned(), error });
    }
    Ok(steps)
}

/// Mean over queries of the mean held-out total variation.
fn held_out_error(crossed: &CrossFit, truth: &TrueShares<'_>) -> f64 {
    let errors = crossed.per_query(|q, shares| {
        Some(0.5 * shares.iter().zip(truth.shares.row(q)).map(|(p, t)| (p - t).abs()).sum::<f64>())
    });
    let defined: Vec<f64> = errors.into_iter().flatten().collect();
    defined.iter().sum::<f64>() / defined.len().max(1) as f64
}
