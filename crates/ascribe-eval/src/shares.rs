//! Scores to shares, and the distance between two shares of one response.

use ndarray::{Array1, ArrayView1};

/// Clips at zero and divides by the sum. `None` when no entry is positive: there is nothing to share out.
///
/// Scaled by the largest entry first, so that neither tiny nor huge scores lose their proportions.
pub fn clip_and_normalise(scores: ArrayView1<'_, f64>) -> Option<Array1<f64>> {
    let largest = scores.iter().fold(0.0f64, |m, &v| m.max(v));
    if !(largest > 0.0 && largest.is_finite()) {
        return None;
    }
    let clipped = scores.mapv(|v| v.max(0.0) / largest);
    let total = clipped.sum();
    Some(clipped / total)
}

/// Shares from raw scores for comparison: [`clip_and_normalise`], or equal shares where nothing is positive.
pub fn raw_shares(scores: ArrayView1<'_, f64>) -> Array1<f64> {
    let equal = || Array1::from_elem(scores.len(), 1.0 / scores.len().max(1) as f64);
    clip_and_normalise(scores).unwrap_or_else(equal)
}

/// Total variation `½ Σ_k |p_k − t_k|`: the part of the money that goes to the wrong place. In `[0, 1]` for shares.
///
/// # Panics
/// If the lengths differ.
pub fn total_variation(p: ArrayView1<'_, f64>, t: ArrayView1<'_, f64>) -> f64 {
    assert_eq!(p.len(), t.len(), "two shares of one response have one entry per dataset");
    0.5 * p.iter().zip(&t).map(|(p, t)| (p - t).abs()).sum::<f64>()
}

/// Index of the largest entry, the first of equals; `None` without entries.
pub fn top(values: ArrayView1<'_, f64>) -> Option<usize> {
    // `max_by` keeps the last of equals; reversed order makes that the first.
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        let shares = clip_and_normalise(arr1(&[3.0, -5.0, 1.0]).view()).unwrap();
        assert_eq!(shares, arr1(&[0.75, 0.0, 0.25]));
        assert_eq!(total_variation(shares.view(), arr1(&[0.25, 0.5, 0.25]).view()), 0.5);
        assert_eq!(total_variation(arr1(&[1.0, 0.0]).view(), arr1(&[0.0, 1.0]).view()), 1.0);
        assert_eq!(clip_and_normalise(arr1(&[-1.0, 0.0, -0.0]).view()), None);
        assert_eq!(raw_shares(arr1(&[-1.0, 0.0]).view()), arr1(&[0.5, 0.5]));
        assert_eq!(top(arr1(&[1.0, 7.0, 7.0]).view()), Some(1));
        assert_eq!(top(arr1(&[]).view()), None);
    }

    #[test]
    fn proportions_survive_extreme_scales() {
        for scale in [1e-310, 1e-30, 1.0, 1e307] {
            let shares = clip_and_normalise(arr1(&[3.0 * scale, scale]).view()).unwrap();
            assert!((shares[0] - 0.75).abs() < 1e-9, "{scale}: {shares}");
        }
    }

    proptest! {
        #[test]
        fn total_variation_is_a_distance(values in prop::collection::vec(0.0f64..1.0, 15)) {
            let share = |i: usize| {
                let part = &values[i * 5..i * 5 + 5];
                let total: f64 = part.iter().sum::<f64>() + 5e-3;
                part.iter().map(|v| (v + 1e-3) / total).collect::<Array1<f64>>()
            };
            let (a, b, c) = (share(0), share(1), share(2));
            let d = |x: &Array1<f64>, y: &Array1<f64>| total_variation(x.view(), y.view());
            prop_assert!(d(&a, &a) == 0.0 && d(&a, &b) == d(&b, &a));
            prop_assert!(d(&a, &c) <= d(&a, &b) + d(&b, &c) + 1e-12 && d(&a, &b) <= 1.0 + 1e-12);
        }
    }
}
