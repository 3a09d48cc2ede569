//! Score rows on one scale. A query's scores mean nothing beside another query's; their pattern over datasets does.

use ndarray::{Array2, ArrayView2, ArrayViewMut1};
use serde::{Deserialize, Serialize};

/// Added to a share before its logarithm, so that a dataset without a positive score is unlikely, not impossible.
pub const LOG_SHARE_FLOOR: f64 = 0.01;

/// How one query's scores over datasets become comparable numbers. All are unchanged by a positive factor on the row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// `(s − mean) / standard deviation` over datasets.
    ZScore,
    /// `sign(s)·√|s|`, then [`Transform::ZScore`]: less weight on one large score.
    SignedSqrt,
    /// Ranks (ties averaged), then [`Transform::ZScore`]: order alone.
    Rank,
    /// `ln(share + floor)` of the clipped, normalised scores, minus its mean. With temperature 1 and no floor the
    /// calibrated shares are the raw ones; other temperatures are powers of them.
    LogShare,
}

impl Transform {
    /// All transforms, in the order in which ties are broken.
    pub const ALL: [Self; 4] = [Self::ZScore, Self::SignedSqrt, Self::Rank, Self::LogShare];

    /// Transforms every row of `[Q, K]` scores. A row without any difference becomes zeros: it has nothing to say.
    ///
    /// Deterministic; cost `Q·K` (`Rank`: `Q·K log K`). Scores must be finite.
    pub fn apply(self, scores: ArrayView2<'_, f64>) -> Array2<f64> {
        let mut out = scores.to_owned();
        for mut row in out.rows_mut() {
            // Scale first: squares of very large or very small scores would overflow or vanish.
            let largest = row.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let constant = row.iter().all(|&v| v == row[0]);
            if constant {
                row.fill(0.0);
                continue;
            }
            row.mapv_inplace(|v| v / largest);
            match self {
                Self::ZScore => {}
                Self::SignedSqrt => row.mapv_inplace(|v| v.signum() * v.abs().sqrt()),
                Self::Rank => ranks(row.view_mut()),
                Self::LogShare => {
                    log_shares(row.view_mut());
                    continue;
                }
            }
            z_score(row);
        }
        out
    }
}

/// Replaces numbers by their ranks from 0, equal numbers by the mean of theirs.
fn ranks(mut row: ArrayViewMut1<'_, f64>) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[a].total_cmp(&row[b]));
    let values = row.to_vec();
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let mean = (start + end - 1) as f64 / 2.0;
        order[start..end].iter().for_each(|&i| row[i] = mean);
        start = end;
    }
}

fn log_shares(mut row: ArrayViewMut1<'_, f64>) {
    let total: f64 = row.iter().map(|v| v.max(0.0)).sum();
    if total <= 0.0 {
        row.fill(0.0);
        return;
    }
    row.mapv_inplace(|v| (v.max(0.0) / total + LOG_SHARE_FLOOR).ln());
    let mean = row.sum() / row.len() as f64;
    row.mapv_inplace(|v| v - mean);
}

fn z_score(mut row: ArrayViewMut1<'_, f64>) {
    let n = row.len() as f64;
    let mean = row.sum() / n;
    row.mapv_inplace(|v| v - mean);
    let deviation = (row.dot(&row) / n).sqrt();
    // Scores that differ by rounding alone carry nothing.
    let scale = if deviation > 1e-12 { 1.0 / deviation } else { 0.0 };
    row.mapv_inplace(|v| v * scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr2, s};

    fn check(transform: Transform, row: [f64; 4], expected: [f64; 4]) {
        let got = transform.apply(arr2(&[row]).view());
        let close = got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-12);
        assert!(close, "{transform:?} of {row:?}: {got} instead of {expected:?}");
    }

    #[test]
    fn by_hand() {
        // Mean 2, deviations −1, 1, −1, 1 of size 1.
        check(Transform::ZScore, [1.0, 3.0, 1.0, 3.0], [-1.0, 1.0, -1.0, 1.0]);
        check(Transform::SignedSqrt, [-4.0, 4.0, -4.0, 4.0], [-1.0, 1.0, -1.0, 1.0]);
        // Ranks 0, 1.5, 1.5, 3: mean 1.5, deviation √(4.5/4).
        let unit = 1.5 / (4.5f64 / 4.0).sqrt();
        check(Transform::Rank, [-9.0, 2.0, 2.0, 1e9], [-unit, 0.0, 0.0, unit]);
        // Shares ¼, ¾, 0, 0.
        let logs = [0.26f64.ln(), 0.76f64.ln(), 0.01f64.ln(), 0.01f64.ln()];
        let mean = logs.iter().sum::<f64>() / 4.0;
        check(Transform::LogShare, [2.0, 6.0, -1.0, 0.0], logs.map(|l| l - mean));
    }

    #[test]
    fn rows_without_difference_are_zeros() {
        for transform in Transform::ALL {
            check(transform, [2.5; 4], [0.0; 4]);
            check(transform, [0.0; 4], [0.0; 4]);
        }
        check(Transform::LogShare, [-1.0, -2.0, -3.0, 0.0], [0.0; 4]);
        assert_eq!(Transform::ZScore.apply(arr2(&[[7.0]]).view()), arr2(&[[0.0]]));
    }

    #[test]
    fn a_factor_changes_nothing() {
        let row = [0.3, -1.25, 8.0, 2.0];
        for transform in Transform::ALL {
            let plain = transform.apply(arr2(&[row]).view());
            for factor in [1e-200, 0.125, 4096.0, 1e200] {
                let scaled = transform.apply(arr2(&[row.map(|v| v * factor)]).view());
                assert!((&plain - &scaled).iter().all(|e| e.abs() < 1e-12), "{transform:?} × {factor}");
            }
        }
    }

    #[test]
    fn rows_are_independent() {
        let both = arr2(&[[1.0, 5.0, 2.0], [0.0, -3.0, 9.0]]);
        for transform in Transform::ALL {
            let alone = transform.apply(both.slice(s![1..2, ..]));
            assert_eq!(transform.apply(both.view()).row(1), alone.row(0));
        }
    }
}
