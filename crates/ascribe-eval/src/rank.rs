//! Pearson's correlation, and Spearman's as Pearson's of ranks, ties averaged.

/// Ranks from 1; equal values get the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut out = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let mean = (start + 1 + end) as f64 / 2.0;
        order[start..end].iter().for_each(|&i| out[i] = mean);
        start = end;
    }
    out
}

/// Spearman correlation of two lists: Pearson correlation of their ranks. `None` when either is constant, holds a NaN,
/// or has fewer than two entries: then there is no order to compare.
///
/// # Panics
/// If the lengths differ.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "a rank correlation needs two lists of one length");
    if a.len() < 2 || a.iter().chain(b).any(|v| v.is_nan()) {
        return None;
    }
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() + 1) as f64 / 2.0;
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        ab += (x - mean) * (y - mean);
        aa += (x - mean) * (x - mean);
        bb += (y - mean) * (y - mean);
    }
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

/// Pearson correlation of two lists. `None` when either is constant, holds a number that is not finite, or has fewer than two
/// entries. Two passes in f64 over numbers scaled by the largest, so that neither tiny nor huge ones lose their digits.
///
/// # Panics
/// If the lengths differ.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "a correlation needs two lists of one length");
    if a.len() < 2 || a.iter().chain(b).any(|v| !v.is_finite()) {
        return None;
    }
    // Deviations are computed again in each sum: lists may be as large as memory, and a division costs less than a copy.
    let centred = |values: &[f64]| -> Option<(f64, f64)> {
        if values.iter().all(|&v| v == values[0]) {
            return None;
        }
        let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        Some((largest, values.iter().map(|v| v / largest).sum::<f64>() / values.len() as f64))
    };
    let ((scale_a, mean_a), (scale_b, mean_b)) = (centred(a)?, centred(b)?);
    let pairs = || a.iter().zip(b).map(|(a, b)| (a / scale_a - mean_a, b / scale_b - mean_b));
    let aa = pairs().map(|(x, _)| x * x).sum::<f64>();
    let bb = pairs().map(|(_, y)| y * y).sum::<f64>();
    (aa > 0.0 && bb > 0.0).then(|| pairs().map(|(x, y)| x * y).sum::<f64>() / (aa * bb).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        assert_eq!(ranks(&[10.0, 20.0, 10.0, 5.0]), [2.5, 4.0, 2.5, 1.0]);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 100.0, 1000.0]), Some(1.0));
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        // Without ties: 1 − 6Σd²/(n(n²−1)), d the differences of ranks.
        let rho = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0, 3.0, 4.0, 2.0, 7.0]).unwrap();
        let d2 = [0.0f64, 1.0, 1.0, 2.0, 0.0].iter().map(|d| d * d).sum::<f64>();
        assert!((rho - (1.0 - 6.0 * d2 / 120.0)).abs() < 1e-15);
        // With a tie, worked out by hand: ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5/√(4.5·5).
        let rho = spearman(&[0.0, 1.0, 1.0, 9.0], &[0.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((rho - 4.5 / (4.5f64 * 5.0).sqrt()).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn depends_on_order_alone(values in prop::collection::vec((-5i8..5, -5i8..5), 2..12)) {
            // Small integers make ties.
            let (a, b): (Vec<f64>, Vec<f64>) = values.iter().map(|&(x, y)| (f64::from(x), f64::from(y))).unzip();
            let rho = spearman(&a, &b);
            prop_assert_eq!(rho, spearman(&b, &a));
            prop_assert_eq!(rho, spearman(&a.iter().map(|v| v.exp()).collect::<Vec<_>>(), &b));
            if let Some(rho) = rho {
                prop_assert!(rho.abs() <= 1.0 + 1e-12);
                let negated = spearman(&a.iter().map(|v| -v).collect::<Vec<_>>(), &b);
                prop_assert!((negated.unwrap() + rho).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn pearson_by_hand() {
        // Deviations (−1, 0, 1) and (−1, −1, 2): 3/√12.
        assert!((pearson(&[1.0, 2.0, 3.0], &[0.0, 0.0, 3.0]).unwrap() - 3.0 / 12.0f64.sqrt()).abs() < 1e-15);
        assert!((pearson(&[1e300, 2e300], &[-1e-300, -3e-300]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(pearson(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]), None);
        assert_eq!(pearson(&[1.0, f64::INFINITY], &[1.0, 2.0]), None);
        assert_eq!(pearson(&[1.0], &[1.0]), None);
    }

    #[test]
    fn no_order_no_correlation() {
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[], &[]), None);
        assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), None);
    }
}
