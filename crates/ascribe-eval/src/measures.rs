//! The four measures of a method against the truth, per query and summed up.

use ndarray::{ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::bootstrap::{Estimate, bootstrap_mean};
use crate::error::{EvalError, check_finite};
use crate::rank::spearman;
use crate::shares::{clip_and_normalise, raw_shares, top, total_variation};
use crate::truth::Truth;

/// Measures of one query's predictions.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct QueryMeasures {
    /// Total variation between predicted and true shares; `None` for a query without true shares.
    pub share_error: Option<f64>,
    /// 1 when the largest predicted share belongs to the dataset with the largest loss change, else 0.
    pub top1: Option<f64>,
    /// Spearman over all datasets; `None` when either side is constant.
    pub spearman: Option<f64>,
    /// Spearman over the datasets other than the query's own.
    pub spearman_other: Option<f64>,
}

/// Measures of all queries, each `[Q]`.
#[derive(Clone, PartialEq, Debug)]
pub struct PerQuery {
    /// See [`QueryMeasures::share_error`].
    pub share_error: Vec<Option<f64>>,
    /// See [`QueryMeasures::top1`].
    pub top1: Vec<Option<f64>>,
    /// See [`QueryMeasures::spearman`].
    pub spearman: Vec<Option<f64>>,
    /// See [`QueryMeasures::spearman_other`].
    pub spearman_other: Vec<Option<f64>>,
    /// Queries whose raw scores had nothing positive and were given equal shares.
    pub n_equal_shares: usize,
}

/// Means with bootstrap intervals. `None` where the measure is defined for no query (one dataset has no order).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Primary figure: shares are what is paid. Smaller is better.
    pub share_error: Option<Estimate>,
    /// How often the top dataset is right.
    pub top1: Option<Estimate>,
    /// Rank correlation over datasets.
    pub spearman: Option<Estimate>,
    /// Rank correlation without the query's own dataset, which is usually the easy one.
    pub spearman_other: Option<Estimate>,
}

/// Measures one query: `scores` give order and top, `shares` the money. Both `[K]`; they may be the same numbers.
///
/// `own` is the ordinal of the dataset that the query was held out from. Constant scores have no top and no order.
///
/// # Panics
/// If `q` is out of range or a length is not K.
pub fn measure(
    truth: &Truth,
    q: usize,
    scores: ArrayView1<'_, f64>,
    shares: ArrayView1<'_, f64>,
    own: u32,
) -> QueryMeasures {
    assert_eq!(scores.len(), truth.n_datasets(), "one score per dataset");
    if !truth.is_usable(q) {
        return QueryMeasures::default();
    }
    let change = truth.change.row(q);
    let constant = scores.iter().all(|&s| s == scores[0]) && scores.len() > 1;
    let other = |row: ArrayView1<'_, f64>| -> Vec<f64> {
        row.iter().enumerate().filter(|(k, _)| *k != own as usize).map(|(_, &v)| v).collect()
    };
    QueryMeasures {
        share_error: Some(total_variation(shares, truth.shares.row(q))),
        // Constant scores name no dataset: chance, not the first ordinal's luck.
        top1: Some(match constant {
            true => 1.0 / scores.len() as f64,
            false => f64::from(u8::from(top(scores) == top(change))),
        }),
        spearman: spearman(&scores.to_vec(), &change.to_vec()),
        spearman_other: spearman(&other(scores), &other(change)),
    }
}

impl PerQuery {
    /// Collects the measures of all queries, in query order.
    pub fn collect(measures: impl IntoIterator<Item = QueryMeasures>) -> Self {
        let mut out =
            Self { share_error: vec![], top1: vec![], spearman: vec![], spearman_other: vec![], n_equal_shares: 0 };
        for m in measures {
            out.share_error.push(m.share_error);
            out.top1.push(m.top1);
            out.spearman.push(m.spearman);
            out.spearman_other.push(m.spearman_other);
        }
        out
    }

    /// Raw scores `[Q, K]`: shares by clipping and normalising, equal shares (counted) where nothing is positive.
    ///
    /// # Errors
    /// Shapes; NaN.
    pub fn of_scores(truth: &Truth, scores: ArrayView2<'_, f64>, own: &[u32]) -> Result<Self, EvalError> {
        check_table(truth, "scores", scores, own)?;
        let row = |q: usize| measure(truth, q, scores.row(q), raw_shares(scores.row(q)).view(), own[q]);
        let mut out = Self::collect((0..truth.n_queries()).map(row));
        out.n_equal_shares = truth.usable.iter().filter(|&&q| clip_and_normalise(scores.row(q)).is_none()).count();
        Ok(out)
    }

    /// Predicted shares `[Q, K]` (calibrated, held out): shares give order, top and error alike.
    ///
    /// # Errors
    /// Shapes; NaN.
    pub fn of_shares(truth: &Truth, shares: ArrayView2<'_, f64>, own: &[u32]) -> Result<Self, EvalError> {
        check_table(truth, "shares", shares, own)?;
        Ok(Self::collect((0..truth.n_queries()).map(|q| measure(truth, q, shares.row(q), shares.row(q), own[q]))))
    }

    /// Means and bootstrap intervals over queries.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn summary(&self, seed: u64) -> Result<Summary, EvalError> {
        let estimate = |values: &[Option<f64>]| match values.iter().any(Option::is_some) {
            true => bootstrap_mean(values, seed).map(Some),
            false => Ok(None),
        };
        Ok(Summary {
            share_error: estimate(&self.share_error)?,
            top1: estimate(&self.top1)?,
            spearman: estimate(&self.spearman)?,
            spearman_other: estimate(&self.spearman_other)?,
        })
    }
}

fn check_table(truth: &Truth, what: &'static str, table: ArrayView2<'_, f64>, own: &[u32]) -> Result<(), EvalError> {
    if table.dim() != truth.change.dim() {
        return Err(EvalError::shape(what, truth.change.dim(), table.dim()));
    }
    if own.len() != truth.n_queries() {
        return Err(EvalError::shape("datasets of the queries", truth.n_queries(), own.len()));
    }
    check_finite(what, table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    fn truth() -> Truth {
        Truth::from_change(arr2(&[[4.0, 0.0, 4.0, -1.0], [-1.0, -2.0, -3.0, 0.0], [1.0, 2.0, 1.0, 0.0]])).unwrap()
    }

    #[test]
    fn by_hand() {
        let scores = arr2(&[[9.0, -9.0, 3.0, -1.0], [1.0, 2.0, 3.0, 4.0], [-1.0, -1.0, -1.0, -1.0]]);
        let got = PerQuery::of_scores(&truth(), scores.view(), &[0, 0, 1]).unwrap();
        // Shares (.75, 0, .25, 0) against (.5, 0, .5, 0); equal shares against (.25, .5, .25, 0).
        assert_eq!(got.share_error, [Some(0.25), None, Some(0.25)]);
        // The truth's top is the first of two equals; constant scores count as chance.
        assert_eq!(got.top1, [Some(1.0), None, Some(0.25)]);
        // Ranks (4, 1, 3, 2) against (3.5, 2, 3.5, 1).
        let rho = (1.5 * 1.0 + -1.5 * -0.5 + 0.5 * 1.0 + -0.5 * -1.5) / (5.0f64 * 4.5).sqrt();
        assert!((got.spearman[0].unwrap() - rho).abs() < 1e-15);
        assert_eq!((got.spearman[1], got.spearman[2], got.n_equal_shares), (None, None, 1));
        // Without the own dataset 0: (−9, 3, −1) against (0, 4, −1): ranks (1, 3, 2), (2, 3, 1).
        assert!((got.spearman_other[0].unwrap() - 0.5).abs() < 1e-15);
        let summary = got.summary(1).unwrap();
        assert_eq!(summary.share_error.unwrap().mean, 0.25);
        assert_eq!((summary.spearman.unwrap().n, summary.spearman.unwrap().n_undefined), (1, 2));
    }

    #[test]
    fn the_truth_itself_is_perfect() {
        let truth = truth();
        let got = PerQuery::of_scores(&truth, truth.change.view(), &[0, 0, 0]).unwrap();
        assert_eq!(got.share_error, [Some(0.0), None, Some(0.0)]);
        assert_eq!(got.top1, [Some(1.0), None, Some(1.0)]);
        assert!(got.spearman.iter().flatten().all(|r| (r - 1.0).abs() < 1e-15));
    }

    #[test]
    fn one_dataset_has_shares_and_no_order() {
        let truth = Truth::from_change(arr2(&[[2.0], [1.0]])).unwrap();
        let got = PerQuery::of_scores(&truth, arr2(&[[0.5], [3.0]]).view(), &[0, 0]).unwrap();
        let summary = got.summary(1).unwrap();
        assert_eq!(summary.share_error.unwrap().mean, 0.0);
        assert_eq!(summary.top1.unwrap().mean, 1.0);
        assert!(summary.spearman.is_none() && summary.spearman_other.is_none());
    }

    #[test]
    fn bad_input_is_named() {
        let truth = truth();
        let text = |scores: &Array2<f64>, own: &[u32]| {
            PerQuery::of_scores(&truth, scores.view(), own).unwrap_err().to_string()
        };
        assert!(text(&Array2::zeros((3, 3)), &[0; 3]).contains("expected (3, 4), found (3, 3)"));
        assert!(text(&Array2::zeros((3, 4)), &[0; 2]).contains("expected 3, found 2"));
        let mut nan = Array2::zeros((3, 4));
        nan[(2, 1)] = f64::NAN;
        assert!(text(&nan, &[0; 3]).contains("scores, row 2, column 1"));
    }
}
