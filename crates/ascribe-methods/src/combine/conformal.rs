//! Share intervals from held-out residuals: how far off were shares of this size when the truth was looked up?
//!
//! Residuals `|p − t| / (√(p(1−p)) + c)` of held-out predictions are pooled over queries and datasets; their conformal
//! quantile r gives the interval `p ± r·(√(p(1−p)) + c)`, clipped to `[0, 1]`. Source: split conformal prediction with
//! normalised residuals (Lei et al., arXiv:1604.04173). Coverage holds on average over entries, given queries like the
//! ones it was fitted on; entries of one query hang together, so it is also measured (`cross_coverage`).

use ascribe_linalg::Stream;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::crossfit::{Holdout, TrueShares, halves};
use super::fit::check_shares;
use crate::dot::check_finite;
use crate::error::MethodError;

/// Added to the binomial scale, so that a share near 0 or 1 still has a width.
const SCALE_FLOOR: f64 = 0.05;

/// A fitted interval rule.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conformal {
    /// Nominal coverage, in (0, 1).
    pub level: f64,
    /// Conformal quantile of the normalised residuals.
    pub quantile: f64,
    /// Residuals it was fitted on.
    pub n_residuals: u64,
}

impl Conformal {
    /// Fits on held-out shares and truth, both `[Q, K]`, rows `queries`.
    ///
    /// The quantile is the `⌈(n+1)·level⌉`-th smallest residual.
    ///
    /// # Errors
    /// A level outside (0, 1); shapes; NaN; rows of truth that are no shares; too few residuals for the level (90 %
    /// needs nine).
    pub fn fit(
        shares: ArrayView2<'_, f64>,
        truth: ArrayView2<'_, f64>,
        queries: &[usize],
        level: f64,
    ) -> Result<Self, MethodError> {
        if !(level > 0.0 && level < 1.0) {
            return Err(MethodError::Parameter { field: "level", expected: "between 0 and 1", found: level });
        }
        check_pair(shares, truth, queries)?;
        let entries = queries.iter().flat_map(|&q| (0..truth.ncols()).map(move |k| (q, k)));
        let mut residuals: Vec<f64> = entries.map(|at| (shares[at] - truth[at]).abs() / scale(shares[at])).collect();
        residuals.sort_by(f64::total_cmp);
        let rank = ((residuals.len() + 1) as f64 * level).ceil() as usize;
        if rank > residuals.len() {
            let needed = format!("at least {}", (level / (1.0 - level)).ceil());
            return Err(MethodError::shape("residuals for an interval", needed, residuals.len()));
        }
        Ok(Self { level, quantile: residuals[rank - 1], n_residuals: residuals.len() as u64 })
    }

    /// Lower and upper end of one share's interval: `0 ≤ low ≤ p ≤ high ≤ 1`.
    pub fn interval(&self, share: f64) -> (f64, f64) {
        let half = self.quantile * scale(share);
        ((share - half).max(0.0), (share + half).min(1.0))
    }

    /// Lower and upper ends of a table of shares, each `[Q, K]`.
    pub fn intervals(&self, shares: ArrayView2<'_, f64>) -> (Array2<f64>, Array2<f64>) {
        (shares.mapv(|p| self.interval(p).0), shares.mapv(|p| self.interval(p).1))
    }
}

/// Part of the entries of rows `queries` whose truth lies within `[low, high]`; all tables `[Q, K]`.
///
/// # Panics
/// If the shapes differ.
pub fn coverage(
    low: ArrayView2<'_, f64>,
    high: ArrayView2<'_, f64>,
    truth: ArrayView2<'_, f64>,
    queries: &[usize],
) -> f64 {
    assert!(low.dim() == truth.dim() && high.dim() == truth.dim(), "intervals and truth have different shapes");
    let entries = queries.iter().flat_map(|&q| (0..truth.ncols()).map(move |k| (q, k)));
    let inside = entries.filter(|&at| low[at] <= truth[at] && truth[at] <= high[at]).count();
    inside as f64 / (queries.len() * truth.ncols()).max(1) as f64
}

/// Coverage measured on queries that the quantile never saw.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct CrossCoverage {
    /// Mean over splits of the covered part; compare with the nominal level.
    pub coverage: f64,
    /// Mean width of the intervals.
    pub width: f64,
    /// Smallest covered part of any half.
    pub worst: f64,
}

/// Fits the quantile on one half of the queries and measures coverage on the other, over `n_splits` splits.
///
/// `shares` are held-out shares `[Q, K]` (see `CrossFit::mean_shares`); halves as in `cross_fit` over queries, from the
/// streams `"conformal/<split>"` under `seed`.
///
/// # Errors
/// As [`Conformal::fit`] and `cross_fit`.
pub fn cross_coverage(
    shares: ArrayView2<'_, f64>,
    truth: &TrueShares<'_>,
    level: f64,
    n_splits: usize,
    seed: u64,
) -> Result<CrossCoverage, MethodError> {
    truth.check()?;
    check_pair(shares, truth.shares, truth.usable)?;
    if n_splits == 0 {
        return Err(MethodError::Empty { what: "the list of splits" });
    }
    let mut sum = CrossCoverage { coverage: 0.0, width: 0.0, worst: 1.0 };
    for split in 0..n_splits {
        let mut stream = Stream::new(seed, &format!("conformal/{split}"));
        let (a, b) = halves(truth, Holdout::Queries, &mut stream)?;
        for (fitted, tested) in [(&a, &b), (&b, &a)] {
            let rule = Conformal::fit(shares, truth.shares, fitted, level)?;
            let (low, high) = rule.intervals(shares);
            let covered = coverage(low.view(), high.view(), truth.shares, tested);
            let width = (&high - &low).select(ndarray::Axis(0), tested).mean().unwrap_or(0.0);
            sum.coverage += covered;
            sum.width += width;
            sum.worst = sum.worst.min(covered);
        }
    }
    let n = 2.0 * n_splits as f64;
    Ok(CrossCoverage { coverage: sum.coverage / n, width: sum.width / n, worst: sum.worst })
}

/// Standard deviation of a share under a binomial, plus the floor.
fn scale(share: f64) -> f64 {
    (share * (1.0 - share)).max(0.0).sqrt() + SCALE_FLOOR
}

fn check_pair(shares: ArrayView2<'_, f64>, truth: ArrayView2<'_, f64>, queries: &[usize]) -> Result<(), MethodError> {
    if shares.dim() != truth.dim() {
        return Err(MethodError::shape("shape of the predicted shares", truth.dim(), shares.dim()));
    }
    check_finite("predicted shares", shares)?;
    check_shares(truth, queries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn quantile_by_hand() {
        // Shares all ½, scale 0.55; residuals |½ − t| = 0, 0, .1, .1, .2, .2, .3, .3, .4, .4.
        let shares = Array2::from_elem((5, 2), 0.5);
        let truth = arr2(&[[0.5, 0.5], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]]);
        let all: Vec<usize> = (0..5).collect();
        // ⌈11 · 0.7⌉ = 8th smallest = 0.3.
        let rule = Conformal::fit(shares.view(), truth.view(), &all, 0.7).unwrap();
        assert!((rule.quantile - 0.3 / 0.55).abs() < 1e-12);
        let (low, high) = rule.interval(0.5);
        assert!((low - 0.2).abs() < 1e-12 && (high - 0.8).abs() < 1e-12);
        let (low, high) = rule.intervals(shares.view());
        assert!(coverage(low.view(), high.view(), truth.view(), &all) >= 0.6);
        assert_eq!(rule.interval(0.0).0, 0.0);
        assert!(rule.interval(0.0).1 > 0.0 && rule.interval(1.0).1 == 1.0);
        let error = Conformal::fit(shares.view(), truth.view(), &all, 0.95).unwrap_err().to_string();
        assert!(error.contains("expected \"at least 19\"") || error.contains("at least 20"), "{error}");
    }

    #[test]
    fn bad_levels_and_shapes_are_refused() {
        let (p, t) = (arr2(&[[0.5, 0.5]]), arr2(&[[0.5, 0.5]]));
        for level in [0.0, 1.0, f64::NAN] {
            assert!(Conformal::fit(p.view(), t.view(), &[0], level).is_err());
        }
        assert!(Conformal::fit(Array2::zeros((1, 3)).view(), t.view(), &[0], 0.5).is_err());
        let nan = arr2(&[[0.5, f64::NAN]]);
        let error = Conformal::fit(nan.view(), t.view(), &[0], 0.5).unwrap_err().to_string();
        assert!(error.contains("predicted shares, row 0, column 1"), "{error}");
        let error = Conformal::fit(p.view(), arr2(&[[0.9, 0.5]]).view(), &[0], 0.5).unwrap_err().to_string();
        assert!(error.contains("sum of a row of true shares"), "{error}");
    }
}
