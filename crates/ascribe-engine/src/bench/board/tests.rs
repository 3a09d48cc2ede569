//! The page on made-up reports: everything that is known is on it, hostile names stay text, missing figures stay missing.

use std::collections::BTreeMap;

use ascribe_core::Digest;
use ascribe_eval::Estimate;

use super::super::report::{GateFigure, TruthFigure};
use super::*;

fn estimate(mean: f64) -> Estimate {
    Estimate { mean, low: mean - 0.02, high: mean + 0.02, n: 500, n_undefined: 0 }
}

fn method(name: &str, value: f64, bytes: f64, cpu: f64, control: bool) -> MethodFigure {
    let figure = MethodFigure::new(name, "lds").estimated(Some(&estimate(value)), 500);
    let extra = BTreeMap::from([("loo_pearson".to_owned(), Some(value + 0.05))]);
    MethodFigure {
        about: format!("what {name} computes"),
        source: "arXiv:2308.03296".into(),
        control,
        cpu_fit: cpu,
        cpu_score: cpu / 4.0,
        bytes_per_example: bytes,
        extra,
        ..figure
    }
}

pub(super) fn leaderboard() -> Leaderboard {
    let methods = [
        method("explicit", 0.79, 0.0, 812.0, false),
        method("ek-fac", 0.71, 0.0, 41.0, false),
        method("logra-64", 0.66, 16_384.0, 12.0, false),
        method("lorif", 0.64, 1_024.0, 30.0, false),
        method("trak-10", 0.74, 81_920.0, 95.0, false),
        method("tracin-cp", 0.31, 0.0, 6.0, false),
        method("embedding", 0.12, 3_136.0, 0.4, true),
        method("random", -0.01, 0.0, 0.02, true),
        MethodFigure { control: true, ..MethodFigure::new("constant <b>", "lds").estimated(None, 500) },
    ];
    let gate = |about: &str, met, found, threshold| GateFigure {
        about: about.into(),
        method: Some("explicit".into()),
        threshold,
        found,
        met,
        anchor: "dattri 0.796".into(),
    };
    let report = SettingReport {
        setting: "mnist-lr".into(),
        about: "logistic regression on 5,000 digits".into(),
        queries: 500,
        examples: 5_000,
        truth: TruthFigure {
            about: "bank `halves`: 50 trainings on subsets of 5000 examples, 5 seeds".into(),
            bank: Some(Digest::of(b"bank")),
            command: "ascribe bench bank mnist-lr halves".into(),
            subsets: 50,
            seeds: 5,
            ceiling: Some(estimate(0.83)),
        },
        methods: methods.into_iter().map(|m| (m.name.clone(), m)).collect(),
        gates: vec![
            gate("explicit influence reaches 0.79", Some(true), Some(0.79), Some(0.79)),
            gate("a <script>", Some(false), Some(0.5), Some(0.7)),
            gate("nobody measured it", None, None, Some(0.7)),
        ],
        notes: vec!["bank `loo` has 1 of 3 seeds".into()],
    };
    Leaderboard {
        about: "Made-up figures, to look at the page.".into(),
        ascribe_version: "0.1.0".into(),
        instructions: "avx512".into(),
        date: "2026-11-23".into(),
        settings: vec![report],
        failed: vec![("gpt-small".into(), "no bank".into())],
    }
}

#[test]
fn all_that_is_known_is_on_the_page() {
    let html = render(&leaderboard()).unwrap();
    for text in [
        "Influence, held against retraining",
        "explicit",
        "0.790",
        "0.770 to 0.810",
        "−0.010",
        "avx512",
        "81.9 kB",
        "1,015 s",
        "leave-one-out, Pearson",
        "0.840",
        "verdict-met",
        "verdict-missed",
        "verdict-open",
        "1 of 3",
        "bank loo has 1 of 3 seeds",
        "no bank",
        "ascribe bench bank mnist-lr halves",
        "undefined for 500 of 500 queries",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html, render(&leaderboard()).unwrap());
}

#[test]
fn names_stay_text_and_nothing_is_fetched() {
    let html = render(&leaderboard()).unwrap();
    assert!(html.contains("constant &lt;b&gt;") && html.contains("a &lt;script&gt;"));
    for word in ["<script", "<b>constant", "http://", "https://", "url("] {
        assert!(!html.contains(word), "{word}");
    }
    assert!(html.contains("default-src 'none'"));
    assert!(!html.contains("NaN") && !html.contains("inf%"));
}

#[test]
fn an_empty_suite_is_a_page_too() {
    let mut empty = leaderboard();
    empty.settings[0].methods.clear();
    empty.settings[0].gates.clear();
    assert!(render(&empty).unwrap().contains("mnist-lr"));
    empty.settings.clear();
    assert!(render(&empty).unwrap().contains("Settings"));
}

/// For people who change the page: writes it where `ASCRIBE_BOARD` says.
#[test]
#[ignore = "writes a sample page to look at"]
fn write_sample() {
    let path = std::env::var("ASCRIBE_BOARD").unwrap();
    std::fs::write(path, render(&leaderboard()).unwrap()).unwrap();
}

#[test]
fn numbers_as_people_read_them() {
    assert_eq!(
        [seconds(0.0), seconds(0.004), seconds(0.5), seconds(41.27), seconds(1015.4)],
        ["0 s", "<0.01 s", "0.50 s", "41.3 s", "1,015 s"]
    );
    assert_eq!([bytes(0.0), bytes(12.4), bytes(1024.0), bytes(2.5e6)], ["none", "12 B", "1.0 kB", "2.5 MB"]);
    assert_eq!([grouped(7), grouped(5000), grouped(1234567)], ["7", "5,000", "1,234,567"]);
    let scale = Scale::of(&[], Some(0.71));
    assert_eq!((scale.low, scale.high), (0.0, 0.8));
    assert_eq!(scale.percent(0.2), "25.00%");
    assert_eq!(metric_name("recall_at_10"), "recall@10");
}
