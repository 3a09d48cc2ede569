//! Finding something among examples by a score: wrong labels by self-influence, the right class by the top example.
//!
//! Areas are over examples, so their intervals resample examples. Sources: ROC-AUC of self-influence as in dattri
//! (arXiv:2410.04555); area under the cumulative curve as in Koh and Liang (arXiv:1703.04730, §5.4) and quanda
//! (arXiv:2410.07158); class and subclass detection from quanda; area under precision and recall by the trapezoid rule from
//! DATE-LM (arXiv:2507.09424).

use ndarray::ArrayView2;

use crate::bootstrap::{Estimate, bootstrap_statistic};
use crate::error::{EvalError, check_finite};
use crate::rank::ranks;

/// An area with its interval over resampled examples.
pub type Area = fn(&[f64], &[bool]) -> Option<f64>;

/// Probability that a positive example scores higher than a negative one, ties counted half. `None` without both kinds.
///
/// # Panics
/// If the lengths differ.
pub fn roc_auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    assert_eq!(scores.len(), positive.len(), "one label per score");
    let n_positive = positive.iter().filter(|p| **p).count() as f64;
    let n_negative = positive.len() as f64 - n_positive;
    if n_positive == 0.0 || n_negative == 0.0 || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let ranks = ranks(scores);
    let of_positives: f64 = ranks.iter().zip(positive).filter(|(_, p)| **p).map(|(r, _)| r).sum();
    Some((of_positives - n_positive * (n_positive + 1.0) / 2.0) / (n_positive * n_negative))
}

/// Area under precision over recall, by trapezoids between the thresholds that scores offer, the first point being recall 0
/// with the precision of the highest threshold. `None` without a positive example.
///
/// # Panics
/// If the lengths differ.
pub fn auprc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let total = positive.iter().filter(|p| **p).count() as f64;
    if total == 0.0 || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let mut area = 0.0;
    let (mut recall_before, mut precision_before) = (0.0, None);
    for (found, inspected) in groups(scores, positive) {
        let (recall, precision) = (found / total, found / inspected);
        area += (recall - recall_before) * (precision + precision_before.unwrap_or(precision)) / 2.0;
        (recall_before, precision_before) = (recall, Some(precision));
    }
    Some(area)
}

/// Area under the part of the positive examples found, over the part of all examples inspected from the highest score down.
/// Chance is 0.5; finding all p first gives `1 − p/2`. Equal scores are inspected together, as if in random order.
///
/// # Panics
/// If the lengths differ.
pub fn found_area(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let total = positive.iter().filter(|p| **p).count() as f64;
    if total == 0.0 || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let n = scores.len() as f64;
    let (mut area, mut before) = (0.0, (0.0, 0.0));
    for (found, inspected) in groups(scores, positive) {
        area += (inspected - before.1) / n * (found + before.0) / (2.0 * total);
        before = (found, inspected);
    }
    Some(area)
}

/// Positives found and examples inspected after every group of equal scores, from the highest down.
fn groups(scores: &[f64], positive: &[bool]) -> Vec<(f64, f64)> {
    assert_eq!(scores.len(), positive.len(), "one label per score");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut out = Vec::new();
    let (mut found, mut start) = (0.0, 0);
    while start < order.len() {
        let mut end = start;
        while end < order.len() && scores[order[end]] == scores[order[start]] {
            found += f64::from(u8::from(positive[order[end]]));
            end += 1;
        }
        out.push((found, end as f64));
        start = end;
    }
    out
}

/// One of the areas above with a bootstrap interval over examples.
///
/// # Errors
/// Lengths; NaN; no positive (or, for [`roc_auc`], no negative) example.
pub fn area_with_interval(area: Area, scores: &[f64], positive: &[bool], seed: u64) -> Result<Estimate, EvalError> {
    if scores.len() != positive.len() {
        return Err(EvalError::shape("labels, one per score", scores.len(), positive.len()));
    }
    if let Some(row) = scores.iter().position(|s| !s.is_finite()) {
        return Err(EvalError::NotFinite { what: "scores", row, column: 0, found: scores[row] });
    }
    bootstrap_statistic(scores.len(), seed, |draw| {
        let (s, p): (Vec<f64>, Vec<bool>) = draw.iter().map(|&i| (scores[i], positive[i])).unzip();
        area(&s, &p)
    })
}

/// Per query 1 if the example with the highest score has the query's label, else 0 (equal highest scores: their mean).
///
/// `scores` is `[Q, N]`, labels are classes or subclasses. `None` for a query whose scores are constant: they name nothing.
///
/// # Errors
/// Shapes; NaN; no example.
pub fn label_top1(
    scores: ArrayView2<'_, f64>,
    query_labels: &[u32],
    labels: &[u32],
) -> Result<Vec<Option<f64>>, EvalError> {
    if (query_labels.len(), labels.len()) != scores.dim() {
        return Err(EvalError::shape(
            "labels of queries and examples",
            scores.dim(),
            (query_labels.len(), labels.len()),
        ));
    }
    if labels.is_empty() {
        return Err(EvalError::Empty { what: "the set of labelled examples" });
    }
    check_finite("scores", scores)?;
    let query = |(row, &label): (ndarray::ArrayView1<'_, f64>, &u32)| {
        let best = row.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let top: Vec<u32> = row.iter().zip(labels).filter(|(s, _)| **s == best).map(|(_, l)| *l).collect();
        let right = top.iter().filter(|l| **l == label).count() as f64 / top.len() as f64;
        (top.len() < row.len() || row.len() == 1).then_some(right)
    };
    Ok(scores.rows().into_iter().zip(query_labels).map(query).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    const SCORES: [f64; 5] = [0.9, 0.8, 0.7, 0.3, 0.1];
    const POSITIVE: [bool; 5] = [true, false, true, false, false];

    #[test]
    fn areas_by_hand() {
        // Pairs: (.9 beats 3) + (.7 beats 2) of 6.
        assert_eq!(roc_auc(&SCORES, &POSITIVE), Some(5.0 / 6.0));
        assert_eq!(roc_auc(&[1.0; 4], &[true, false, true, false]), Some(0.5));
        // Points (recall, precision): (½, 1), (½, ½), (1, ⅔), (1, ½), (1, 2/5): ½·1 + ½·(½ + ⅔)/2.
        assert!((auprc(&SCORES, &POSITIVE).unwrap() - (0.5 + 0.5 * (0.5 + 2.0 / 3.0) / 2.0)).abs() < 1e-15);
        // Found: 0, ½, ½, 1, 1, 1 after 0..5: trapezoids of width ⅕: (.25 + .5 + .75 + 1 + 1)/5.
        assert!((found_area(&SCORES, &POSITIVE).unwrap() - 0.7).abs() < 1e-15);
        assert_eq!(found_area(&[1.0; 4], &[true, false, true, false]), Some(0.5));
        // All positives first: 1 − p/2.
        assert!(
            (found_area(&[2.0, 2.0, 1.0, 1.0, 1.0], &[true, true, false, false, false]).unwrap() - 0.8).abs() < 1e-15
        );
        for area in [roc_auc as Area, auprc, found_area] {
            assert_eq!(area(&SCORES, &[false; 5]), None);
        }
        assert_eq!(roc_auc(&SCORES, &[true; 5]), None);
    }

    #[test]
    fn the_interval_of_an_auc_agrees_with_the_closed_form() {
        // Two normals one deviation apart: AUC = Φ(1/√2) = 0.7602; Hanley and McNeil's error at 150 + 150 is about 0.027.
        let mut stream = Stream::new(3, "detection-test");
        let positive: Vec<bool> = (0..300).map(|i| i % 2 == 0).collect();
        let scores: Vec<f64> = positive.iter().map(|&p| stream.normal() + f64::from(u8::from(p))).collect();
        let got = area_with_interval(roc_auc, &scores, &positive, 1).unwrap();
        assert!(got.low < 0.7602 && 0.7602 < got.high, "{got:?}");
        let half = (got.high - got.low) / 2.0;
        assert!((0.7..1.4).contains(&(half / (1.96 * 0.027))), "{got:?}");
        assert_eq!(got, area_with_interval(roc_auc, &scores, &positive, 1).unwrap());
    }

    #[test]
    fn top_labels_by_hand() {
        let scores = arr2(&[[3.0, 1.0, 2.0], [1.0, 5.0, 5.0], [0.0, 0.0, 0.0]]);
        let got = label_top1(scores.view(), &[7, 8, 7], &[7, 8, 9]).unwrap();
        assert_eq!(got, [Some(1.0), Some(0.5), None]);
        assert!(label_top1(scores.view(), &[7, 8], &[7, 8, 9]).is_err());
    }

    #[test]
    fn bad_input_is_named() {
        let text = |s: &[f64], p: &[bool]| area_with_interval(roc_auc, s, p, 1).unwrap_err().to_string();
        assert!(text(&SCORES, &[true]).contains("expected 5, found 1"));
        assert!(text(&[1.0, f64::NAN], &[true, false]).contains("row 1"));
        assert!(text(&SCORES, &[false; 5]).contains("is empty"));
    }
}
