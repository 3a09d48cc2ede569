//! What the walk demands of its default method, held against an evaluation: met or missed, printed with every `ascribe eval`.
//! Here never lives: how figures are measured (`evaluate`), gates of the bench's settings (`bench::gates`).

use std::collections::BTreeMap;

use crate::bench::report::GateFigure;
use crate::summary::MethodSummary;

/// Largest share error of the default.
const SHARE_ERROR_AT_MOST: f64 = 0.15;
/// Largest part of the best calibrated control's share error.
const PART_OF_BEST_CONTROL: f64 = 0.8;
/// Where the first demand comes from: a first trial's calibrated sum of influence and similarity.
const FIRST_TRIAL: &str =
    "first trial: 0.171 on held-out responses, 0.178 on held-out datasets; BM25 calibrated 0.203, 0.209";

/// The demands in order: share error on responses that no fit saw, on datasets that no fit saw, both against the best control
/// calibrated the same way, Spearman against the best control. Means alone decide; intervals stand in the evaluation.
///
/// `methods` and `name`, that of the default, are those of an evaluation. Where there is no control, or no default among the
/// methods, nothing is decided (`met` is `None`).
pub fn walk_gates(methods: &BTreeMap<String, MethodSummary>, name: &str) -> Vec<GateFigure> {
    let default = methods.get(name);
    let best = |of: fn(&MethodSummary) -> f64, least: bool| {
        let values = methods.values().filter(|m| m.control).map(of).filter(|v| v.is_finite());
        values.reduce(|a, b| if least { a.min(b) } else { a.max(b) })
    };
    let gate = |about: &str, threshold: Option<f64>, of: fn(&MethodSummary) -> f64, at_most: bool, anchor: &str| {
        let value = default.map(of);
        let met = value.zip(threshold).map(|(v, t)| if at_most { v <= t } else { v >= t });
        let method = default.map(|_| name.to_owned());
        GateFigure { about: about.to_owned(), method, threshold, found: value, met, anchor: anchor.to_owned() }
    };
    let responses: fn(&MethodSummary) -> f64 = |m| m.calibrated;
    let datasets: fn(&MethodSummary) -> f64 = |m| m.calibrated_unseen_datasets;
    let part = |of| best(of, true).map(|v| PART_OF_BEST_CONTROL * v);
    vec![
        gate("share error on held-out responses at most 0.15", Some(SHARE_ERROR_AT_MOST), responses, true, FIRST_TRIAL),
        gate("share error on held-out datasets at most 0.15", Some(SHARE_ERROR_AT_MOST), datasets, true, FIRST_TRIAL),
        gate("at most 0.8 of the best calibrated control's, held-out responses", part(responses), responses, true, ""),
        gate("at most 0.8 of the best calibrated control's, held-out datasets", part(datasets), datasets, true, ""),
        gate(
            "Spearman at least that of the best control",
            best(|m| m.spearman, false),
            |m| m.spearman,
            false,
            "first trial: 0.57 against 0.55",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(calibrated: f64, unseen: f64, spearman: f64, control: bool) -> MethodSummary {
        MethodSummary {
            share_error: 0.9,
            share_error_low: 0.9,
            share_error_high: 0.9,
            calibrated,
            calibrated_low: calibrated,
            calibrated_high: calibrated,
            calibrated_unseen_datasets: unseen,
            spearman,
            low: spearman,
            high: spearman,
            spearman_others: 0.0,
            top1: 0.5,
            top1_low: 0.5,
            top1_high: 0.5,
            control,
        }
    }

    fn judged(methods: &[(&str, MethodSummary)]) -> Vec<(Option<f64>, Option<bool>)> {
        let methods = methods.iter().map(|(name, m)| ((*name).to_owned(), m.clone())).collect();
        walk_gates(&methods, "calibrated").into_iter().map(|g| (g.threshold, g.met)).collect()
    }

    #[test]
    fn by_hand() {
        let controls = [("words", summary(0.125, 0.25, 0.5, true)), ("random", summary(0.8, 0.8, 0.0, true))];
        // An influence method that is no control sets no threshold.
        let other = ("tracin", summary(0.01, 0.01, 0.9, false));
        let with = |ours| judged(&[controls[0].clone(), controls[1].clone(), other.clone(), ("calibrated", ours)]);
        let thresholds = [Some(0.15), Some(0.15), Some(0.1), Some(0.2), Some(0.5)];
        let met = with(summary(0.1, 0.15, 0.5, false));
        assert_eq!(met.iter().map(|g| g.0).collect::<Vec<_>>(), thresholds);
        assert!(met.iter().all(|g| g.1 == Some(true)), "{met:?}");
        let missed = with(summary(0.151, 0.21, 0.49, false));
        assert!(missed.iter().all(|g| g.1 == Some(false)), "{missed:?}");
        // Near misses, one by one.
        let one = with(summary(0.11, 0.15, 0.6, false));
        let verdicts: Vec<_> = one.iter().map(|g| g.1).collect();
        assert_eq!(verdicts, [Some(true), Some(true), Some(false), Some(true), Some(true)]);
        // What has nothing to be held against is not met.
        assert!(judged(&[("words", summary(0.1, 0.1, 0.1, true))]).iter().all(|g| g.1.is_none()));
        let alone = judged(&[("calibrated", summary(0.1, 0.1, 0.1, false))]);
        assert_eq!(alone.iter().filter(|g| g.1.is_none()).count(), 3);
    }
}
