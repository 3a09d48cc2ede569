//! Bootstrap over queries: how much would a mean move with other queries of the same kind?
//!
//! Percentile intervals of resampled means. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, §13.3.

use ascribe_linalg::Stream;
use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// Resamplings of an interval.
pub const DRAWS: usize = 2_000;

/// Nominal coverage of an interval.
pub const LEVEL: f64 = 0.95;

/// A mean over queries with its interval.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean over the queries where the measure is defined.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Queries that count.
    pub n: usize,
    /// Queries where the measure is not defined.
    pub n_undefined: usize,
}

/// Mean of the defined values with a percentile bootstrap interval ([`DRAWS`] draws, [`LEVEL`]).
///
/// Draws come from the stream `"bootstrap"` under `seed`: same values, same interval. Cost `DRAWS · n`.
///
/// # Errors
/// No defined value; a value that is not finite.
pub fn bootstrap_mean(values: &[Option<f64>], seed: u64) -> Result<Estimate, EvalError> {
    let defined: Vec<f64> = values.iter().flatten().copied().collect();
    if defined.is_empty() {
        return Err(EvalError::Empty { what: "the set of queries where the measure is defined" });
    }
    if let Some(row) = values.iter().position(|v| v.is_some_and(|v| !v.is_finite())) {
        let found = values[row].unwrap_or(f64::NAN);
        return Err(EvalError::NotFinite { what: "values of a measure", row, column: 0, found });
    }
    let n = u32::try_from(defined.len()).map_err(|_| EvalError::shape("queries", "below 2^32", defined.len()))?;
    let mut stream = Stream::new(seed, "bootstrap");
    let mut means: Vec<f64> =
        (0..DRAWS).map(|_| (0..n).map(|_| defined[stream.below(n) as usize]).sum::<f64>() / f64::from(n)).collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    Ok(Estimate {
        mean: defined.iter().sum::<f64>() / f64::from(n),
        low: quantile(&means, tail),
        high: quantile(&means, 1.0 - tail),
        n: defined.len(),
        n_undefined: values.len() - defined.len(),
    })
}

/// Any statistic of `n` items with a percentile bootstrap interval: `statistic` sees item numbers, first `0..n`, then
/// [`DRAWS`] lists of n drawn with repetition from the stream `"bootstrap"` under `seed`.
///
/// Draws where it is not defined (a kind of item was not drawn) are left out of the interval. `n` counts items, `n_undefined`
/// draws.
///
/// # Errors
/// No item; a statistic that is not defined on all items, on no draw, or not finite.
pub fn bootstrap_statistic(
    n: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> Option<f64>,
) -> Result<Estimate, EvalError> {
    let all: Vec<usize> = (0..n).collect();
    let below = u32::try_from(n).map_err(|_| EvalError::shape("items", "below 2^32", n))?;
    let undefined = EvalError::Empty { what: "the set of items where the statistic is defined" };
    if n == 0 {
        return Err(undefined);
    }
    let value = statistic(&all).ok_or_else(|| undefined.clone())?;
    let mut stream = Stream::new(seed, "bootstrap");
    let mut draw = vec![0; n];
    let mut values: Vec<f64> = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        draw.iter_mut().for_each(|i| *i = stream.below(below) as usize);
        values.extend(statistic(&draw));
    }
    if let Some(&found) = values.iter().chain([&value]).find(|v| !v.is_finite()) {
        return Err(EvalError::NotFinite { what: "a resampled statistic", row: 0, column: 0, found });
    }
    if values.is_empty() {
        return Err(undefined);
    }
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    let (low, high) = (quantile(&values, tail), quantile(&values, 1.0 - tail));
    Ok(Estimate { mean: value, low, high, n, n_undefined: DRAWS - values.len() })
}

/// Mean of `a − b` over the queries where both are defined, with its interval: is one method better on the *same* queries?
///
/// An interval that leaves out 0 says yes. Queries hang together in both methods, so this is far sharper than two
/// separate intervals.
///
/// # Errors
/// Lists of different lengths, and those of [`bootstrap_mean`].
pub fn paired_difference(a: &[Option<f64>], b: &[Option<f64>], seed: u64) -> Result<Estimate, EvalError> {
    if a.len() != b.len() {
        return Err(EvalError::shape("queries of two methods", a.len(), b.len()));
    }
    let differences: Vec<Option<f64>> = a.iter().zip(b).map(|(a, b)| Some((*a)? - (*b)?)).collect();
    bootstrap_mean(&differences, seed)
}

/// Quantile of sorted values by linear interpolation between neighbours.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let position = p * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(n: usize, seed: u64) -> Vec<Option<f64>> {
        let mut stream = Stream::new(seed, "bootstrap-test");
        (0..n).map(|_| Some(3.0 + stream.normal())).collect()
    }

    #[test]
    fn interval_agrees_with_the_normal_one() {
        // For 400 standard normal values the exact interval is ±1.96·s/√400.
        let values = normal(400, 1);
        let got = bootstrap_mean(&values, 7).unwrap();
        let s = (values.iter().flatten().map(|v| (v - got.mean).powi(2)).sum::<f64>() / 399.0).sqrt();
        let half = 1.96 * s / 20.0;
        // A quantile out of 2,000 draws wanders by about 3 % of the half width; five of those.
        assert!((got.low - (got.mean - half)).abs() < 0.15 * half, "{got:?} {half}");
        assert!((got.high - (got.mean + half)).abs() < 0.15 * half, "{got:?} {half}");
    }

    #[test]
    fn intervals_cover_as_promised() {
        // 300 worlds of 60 queries: covered 95 % ± 5·√(.95·.05/300) ≈ 6.3 points; the bootstrap itself loses about one.
        let covered = (0..300u64).filter(|&seed| {
            let got = bootstrap_mean(&normal(60, 100 + seed), seed).unwrap();
            got.low <= 3.0 && 3.0 <= got.high
        });
        let part = covered.count() as f64 / 300.0;
        assert!((0.88..=1.0).contains(&part), "{part}");
    }

    #[test]
    fn undefined_values_are_counted_and_left_out() {
        let got = bootstrap_mean(&[Some(1.0), None, Some(1.0), None], 1).unwrap();
        assert_eq!(got, Estimate { mean: 1.0, low: 1.0, high: 1.0, n: 2, n_undefined: 2 });
        assert!(bootstrap_mean(&[None, None], 1).unwrap_err().to_string().contains("is empty"));
        let error = bootstrap_mean(&[Some(1.0), Some(f64::NAN)], 1).unwrap_err().to_string();
        assert!(error.contains("row 1"), "{error}");
    }

    #[test]
    fn the_mean_as_a_statistic_is_the_mean() {
        let values = normal(50, 4);
        let plain: Vec<f64> = values.iter().flatten().copied().collect();
        let got = bootstrap_statistic(50, 9, |draw| Some(draw.iter().map(|&i| plain[i]).sum::<f64>() / 50.0)).unwrap();
        let mean = bootstrap_mean(&values, 9).unwrap();
        assert!((got.mean - mean.mean).abs() < 1e-14 && (got.low - mean.low).abs() < 1e-14, "{got:?} {mean:?}");
        assert!(bootstrap_statistic(3, 1, |_| None).is_err() && bootstrap_statistic(0, 1, |_| Some(1.0)).is_err());
        // Defined unless item 0 is missing: (2/3)^3 of the draws.
        let part = bootstrap_statistic(3, 1, |draw| draw.contains(&0).then_some(1.0)).unwrap().n_undefined as f64;
        assert!((part / DRAWS as f64 - 8.0 / 27.0).abs() < 0.06, "{part}");
    }

    #[test]
    fn same_seed_same_interval() {
        let values = normal(50, 3);
        assert_eq!(bootstrap_mean(&values, 5), bootstrap_mean(&values, 5));
        assert_ne!(bootstrap_mean(&values, 5), bootstrap_mean(&values, 6));
    }

    #[test]
    fn pairing_sees_what_separate_intervals_miss() {
        let a = normal(80, 9);
        let b: Vec<Option<f64>> = a.iter().map(|v| v.map(|v| v + 0.05)).collect();
        let got = paired_difference(&a, &b, 1).unwrap();
        assert!(got.high < 0.0 && (got.mean + 0.05).abs() < 1e-12, "{got:?}");
        let (a_alone, b_alone) = (bootstrap_mean(&a, 1).unwrap(), bootstrap_mean(&b, 1).unwrap());
        assert!(a_alone.high > b_alone.low);
        assert!(paired_difference(&a, &b[1..], 1).is_err());
    }
}
