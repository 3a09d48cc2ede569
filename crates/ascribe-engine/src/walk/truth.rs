//! Measured truth in the forms that fits and measures want, and held-out fits against it.

use ascribe_eval::measures::measure;
use ascribe_eval::{PerQuery, Truth};
use ascribe_methods::combine::{Channel, CrossFit, FitOptions, Holdout, Splits, TrueShares, cross_fit};
use ndarray::{Array2, Axis};

use super::context::Context;
use crate::bank::Bank;
use crate::error::EngineError;

/// Splits into halves; each gives two folds.
pub const N_SPLITS: usize = 5;

/// The truth of a bank over a run's responses.
pub struct TruthBoard {
    /// True shares and loss changes, mean over retraining seeds.
    pub truth: Truth,
    /// `[Q]`: ordinal of the dataset that each response was held out from.
    pub own: Vec<u32>,
    /// Seed of splits and bootstraps.
    pub seed: u64,
}

impl TruthBoard {
    /// Of all seeds of a bank, or of all but one (by position).
    ///
    /// # Errors
    /// Loss changes that are not finite.
    pub fn new(context: &Context, bank: &Bank, without: Option<usize>) -> Result<Self, EngineError> {
        let kept = (0..bank.seeds.len()).filter(|s| Some(*s) != without);
        let changes: Vec<Array2<f64>> = kept.map(|s| bank.change.index_axis(Axis(0), s).to_owned()).collect();
        Ok(Self { truth: Truth::from_seeds(&changes)?, own: context.own(), seed: context.attribution.seed })
    }

    /// As combinations want it.
    pub fn true_shares(&self) -> TrueShares<'_> {
        TrueShares { shares: self.truth.shares.view(), usable: &self.truth.usable, own: &self.own }
    }

    /// Fits on halves, predictions for the other halves.
    ///
    /// # Errors
    /// What the fits refuse.
    pub fn cross_fit(&self, channels: &[Channel<'_>], holdout: Holdout) -> Result<CrossFit, EngineError> {
        let splits = Splits { holdout, n: N_SPLITS, seed: self.seed };
        Ok(cross_fit(channels, &self.true_shares(), splits, &FitOptions::default())?)
    }

    /// Held-out measures per response, averaged over the folds that held it out.
    pub fn held_out(&self, fitted: &CrossFit) -> PerQuery {
        let one = |q: usize, shares: ndarray::ArrayView1<'_, f64>| measure(&self.truth, q, shares, shares, self.own[q]);
        PerQuery {
            share_error: fitted.per_query(|q, s| one(q, s).share_error),
            top1: fitted.per_query(|q, s| one(q, s).top1),
            spearman: fitted.per_query(|q, s| one(q, s).spearman),
            spearman_other: fitted.per_query(|q, s| one(q, s).spearman_other),
            n_equal_shares: 0,
        }
    }
}
