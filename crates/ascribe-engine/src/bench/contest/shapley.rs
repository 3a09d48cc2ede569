//! A bank over all subsets of its players is a game: its exact Shapley shares, and how far from them a method's sums are.
//!
//! Raw shares are clipped and normalised sums; calibrated ones have weight and temperature fitted on half of the queries and are
//! judged on the other half, controls like every method. Here never lives: predicted utilities of whole subsets (`datasets`).

use std::collections::BTreeMap;

use ascribe_eval::game::{Game, royalty};
use ascribe_eval::shares::{raw_shares, total_variation};
use ascribe_methods::combine::{Channel, FitOptions, Holdout, Splits, TrueShares, cross_fit};
use ndarray::{Array2, s};

use super::{BOOTSTRAP_SEED, estimated};
use crate::bench::bank::RetrainBank;
use crate::error::EngineError;

/// Splits into halves.
const N_SPLITS: usize = 5;

/// Total variation between the shares of `sums` `[q, K]` and exact Shapley shares by retraining: `tv_shapley` with its interval,
/// and `tv_shapley_calibrated` where `own`, the dataset of every query, is known.
///
/// # Errors
/// A bank that is no table of all subsets; what the fits refuse.
pub(super) fn share_errors(
    sums: &Array2<f64>,
    bank: &RetrainBank,
    own: Option<&[u32]>,
) -> Result<BTreeMap<String, Option<f64>>, EngineError> {
    let n = sums.nrows();
    let game = Game::from_subsets(bank.kept.view(), bank.mean().slice(s![.., ..n]))?;
    let truth = royalty(game.shapley().view())?;
    let usable = |q: &usize| truth.usable.binary_search(q).is_ok();
    let raw = |q: usize| total_variation(raw_shares(sums.row(q)).view(), truth.shares.row(q));
    let raw = estimated(&(0..n).map(|q| usable(&q).then(|| raw(q))).collect::<Vec<_>>())?;
    let mut out = BTreeMap::from([
        ("tv_shapley".to_owned(), raw.map(|e| e.mean)),
        ("tv_shapley_low".to_owned(), raw.map(|e| e.low)),
        ("tv_shapley_high".to_owned(), raw.map(|e| e.high)),
    ]);
    let Some(own) = own else { return Ok(out) };
    let calibrated = match truth.usable.len() {
        0 | 1 => None,
        _ => {
            let channel = [Channel { name: "sums", scores: sums.view() }];
            let shares = TrueShares { shares: truth.shares.view(), usable: &truth.usable, own: &own[..n] };
            let splits = Splits { holdout: Holdout::Queries, n: N_SPLITS, seed: BOOTSTRAP_SEED };
            let fitted = cross_fit(&channel, &shares, splits, &FitOptions::default())?;
            estimated(&fitted.per_query(|q, found| Some(total_variation(found, truth.shares.row(q)))))?
        }
    };
    out.insert("tv_shapley_calibrated".to_owned(), calibrated.map(|e| e.mean));
    Ok(out)
}
