//! Agreement of one retraining seed with the others: how well does one seed's truth predict theirs? It says how noisy the truth
//! is. The names say ceiling, since fields of files do; it bounds nothing, as methods are held against the less noisy mean of all.

use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::measures::{PerQuery, QueryMeasures, Summary, measure};
use crate::shares::raw_shares;
use crate::truth::Truth;

/// Agreement of the truth with itself.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ceiling {
    /// Each seed as a predictor of the mean of the others, averaged over seeds.
    pub one_against_rest: Summary,
    /// Each seed as a predictor of each other one, averaged over ordered pairs.
    pub pairs: Summary,
    /// Seeds.
    pub n_seeds: usize,
}

/// Measures the agreement from per-seed loss changes, each `[Q, K]`; `own[q]` is the query's own dataset.
///
/// The truth that methods are held against is the mean of all seeds, which is less noisy than any target here: a method
/// may be a little better than `one_against_rest`. With two seeds both figures are the same.
///
/// # Errors
/// Fewer than two seeds; shapes that differ; NaN.
pub fn ceiling(changes: &[Array2<f64>], own: &[u32], seed: u64) -> Result<Ceiling, EvalError> {
    if changes.len() < 2 {
        return Err(EvalError::shape("seeds for a ceiling", "at least 2", changes.len()));
    }
    let (mut rest, mut pairs) = (Vec::new(), Vec::new());
    for (s, change) in changes.iter().enumerate() {
        let others: Vec<Array2<f64>> =
            changes.iter().enumerate().filter(|(other, _)| *other != s).map(|(_, c)| c.clone()).collect();
        rest.push(PerQuery::of_scores(&Truth::from_seeds(&others)?, change.view(), own)?);
        for other in &others {
            pairs.push(PerQuery::of_scores(&Truth::from_change(other.clone())?, change.view(), own)?);
        }
    }
    Ok(Ceiling {
        one_against_rest: mean_of(&rest).summary(seed)?,
        pairs: mean_of(&pairs).summary(seed)?,
        n_seeds: changes.len(),
    })
}

/// Per query the mean over those comparisons where the measure is defined.
fn mean_of(comparisons: &[PerQuery]) -> PerQuery {
    let n_queries = comparisons.first().map_or(0, |c| c.share_error.len());
    let mean = |q: usize, pick: fn(&PerQuery) -> &[Option<f64>]| {
        let defined: Vec<f64> = comparisons.iter().filter_map(|c| pick(c)[q]).collect();
        (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
    };
    PerQuery::collect((0..n_queries).map(|q| QueryMeasures {
        share_error: mean(q, |c| &c.share_error),
        top1: mean(q, |c| &c.top1),
        spearman: mean(q, |c| &c.spearman),
        spearman_other: mean(q, |c| &c.spearman_other),
    }))
}

/// The best that any *fixed* shares could do: the mean true shares as the prediction for every query.
///
/// A floor beside the ceiling: a method that does not beat it says nothing about single queries.
///
/// # Errors
/// `own` of another length; no usable query.
pub fn fixed_shares(truth: &Truth, own: &[u32]) -> Result<PerQuery, EvalError> {
    if own.len() != truth.n_queries() {
        return Err(EvalError::shape("datasets of the queries", truth.n_queries(), own.len()));
    }
    let usable = truth.shares.select(Axis(0), &truth.usable);
    let mean = usable.mean_axis(Axis(0)).ok_or(EvalError::Empty { what: "the set of queries with true shares" })?;
    let shares = raw_shares(mean.view());
    Ok(PerQuery::collect((0..truth.n_queries()).map(|q| measure(truth, q, mean.view(), shares.view(), own[q]))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    #[test]
    fn two_seeds_by_hand() {
        let seeds = [arr2(&[[1.0, 1.0]]), arr2(&[[3.0, 1.0]])];
        let got = ceiling(&seeds, &[0], 1).unwrap();
        // (½, ½) against (¾, ¼), both ways.
        assert_eq!(got.pairs.share_error.unwrap().mean, 0.25);
        assert_eq!(got.pairs, got.one_against_rest);
        // The first seed is constant: no order, and a top by chance.
        assert_eq!(got.pairs.top1.unwrap().mean, 0.5 * (0.5 + 1.0));
        assert!(got.pairs.spearman.is_none());
    }

    #[test]
    fn equal_seeds_agree_and_noise_lowers_the_ceiling() {
        let mut stream = Stream::new(1, "ceiling-test");
        let signal = Array2::from_shape_fn((40, 6), |_| stream.normal() + 0.5);
        let mut noisy = |size: f64| signal.mapv(|v| v + size * stream.normal());
        let own = vec![0u32; 40];
        let same = ceiling(&[signal.clone(), signal.clone(), signal.clone()], &own, 1).unwrap();
        assert!(same.pairs.share_error.unwrap().mean < 1e-12);
        assert!((same.one_against_rest.spearman.unwrap().mean - 1.0).abs() < 1e-12);
        let some = ceiling(&[noisy(0.3), noisy(0.3), noisy(0.3)], &own, 1).unwrap();
        let much = ceiling(&[noisy(3.0), noisy(3.0), noisy(3.0)], &own, 1).unwrap();
        let error = |c: &Ceiling| c.one_against_rest.share_error.unwrap().mean;
        assert!(error(&same) < error(&some) && error(&some) < error(&much));
        // The mean of two others is a quieter target than one other.
        assert!(error(&some) < some.pairs.share_error.unwrap().mean);
    }

    #[test]
    fn fixed_shares_are_the_mean() {
        let truth = Truth::from_change(arr2(&[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])).unwrap();
        let got = fixed_shares(&truth, &[0, 1, 0, 0]).unwrap();
        assert_eq!(got.share_error, [Some(0.25), Some(0.75), Some(0.25), Some(0.25)]);
    }

    #[test]
    fn one_seed_has_no_ceiling() {
        let error = ceiling(&[arr2(&[[1.0, 2.0]])], &[0], 1).unwrap_err().to_string();
        assert!(error.contains("at least 2"), "{error}");
    }
}
