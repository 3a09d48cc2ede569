//! Judging on worlds whose influence is known exactly. Real methods and models never appear here.

use ascribe_linalg::Stream;
use ndarray::{Array3, arr2};

use super::super::bank::{BankPlan, RETRAIN_BANK_FORMAT_VERSION, draw};
use super::*;

/// A bank whose outcome is a weighted sum of the kept players, so that influence is exact, with noise per seed.
fn bank(players: Players, draw_of: Draw, worth: &Array2<f64>, noise: f64, n_seeds: usize) -> RetrainBank {
    let plan = BankPlan {
        format_version: RETRAIN_BANK_FORMAT_VERSION,
        setting: "toy".into(),
        players,
        draw: draw_of,
        recipe: Digest::of(b"recipe"),
        data: Digest::of(b"data"),
        n_queries: worth.nrows(),
        measure: "margin".into(),
        command: "none".into(),
    };
    let kept = draw(&plan).unwrap();
    let mut stream = Stream::new(9, "contest-test");
    let outcomes = Array3::from_shape_fn((n_seeds, kept.nrows(), worth.nrows()), |(_, m, q)| {
        let sum: f64 = kept.row(m).iter().zip(worth.row(q)).map(|(&k, w)| if k { *w } else { 0.0 }).sum();
        sum + noise * stream.normal()
    });
    RetrainBank { plan, kept, seeds: (0..n_seeds as u64).collect(), outcomes, digest: Digest::of(b"bank") }
}

fn worth(q: usize, n: usize) -> Array2<f64> {
    let mut stream = Stream::new(3, "contest-worth");
    Array2::from_shape_fn((q, n), |_| stream.normal())
}

const HALVES: Draw = Draw::Random { m: 20, alpha: 0.5, seed: 1 };

#[test]
fn exact_influence_wins_everything_and_its_opposite_loses() {
    let worth = worth(5, 12);
    let truths = Truths {
        banks: vec![
            ("halves".into(), bank(Players::Examples(12), HALVES, &worth, 0.0, 3)),
            ("loo".into(), bank(Players::Examples(12), Draw::LeaveOneOut { m: 12, seed: 1 }, &worth, 0.0, 1)),
        ],
        ..Truths::default()
    };
    let exact = worth.mapv(|w| w as f32);
    for (sign, want) in [(1.0, 1.0), (-2.0, -1.0)] {
        let verdict = judge("m", (sign * &exact).view(), &truths).unwrap();
        let main = verdict.main.unwrap();
        assert!((main.mean - want).abs() < 1e-6 && main.n == 5, "{main:?}");
        for name in ["lds_removed", "lds_one_seed", "loo_pearson"] {
            assert!((verdict.extra[name].unwrap() - want).abs() < 1e-6, "{name} {verdict:?}");
        }
    }
    let figure = truth_figure(&truths, 5).unwrap();
    assert_eq!((figure.subsets, figure.seeds), (20, 3));
    assert!((figure.ceiling.unwrap().mean - 1.0).abs() < 1e-12);
}

#[test]
fn fewer_queries_are_judged_alone_and_constant_scores_have_no_order() {
    let worth = worth(4, 10);
    let truths = Truths {
        banks: vec![("halves".into(), bank(Players::Examples(10), HALVES, &worth, 0.0, 2))],
        ..Truths::default()
    };
    let mut scores = worth.mapv(|w| w as f32);
    let first = judge("m", scores.slice(s![..1, ..]), &truths).unwrap().main.unwrap();
    assert_eq!((first.n, first.n_undefined), (1, 0));
    scores.row_mut(2).fill(0.0);
    let main = judge("m", scores.view(), &truths).unwrap().main.unwrap();
    assert_eq!((main.n, main.n_undefined), (3, 1));
    let verdict = judge("m", Array2::zeros((4, 10)).view(), &truths).unwrap();
    assert!(verdict.main.is_none() && verdict.extra["lds_removed"].is_none());
}

#[test]
fn datasets_are_judged_by_their_sums() {
    let worth = arr2(&[[3.0, -1.0, 0.5], [0.0, 1.0, 2.0]]);
    let names = Players::Datasets(vec!["a".into(), "b".into(), "c".into()]);
    let banks = vec![("all".into(), bank(names, Draw::PowerSet, &worth, 0.0, 1))];
    // Two examples each that add up to the dataset's worth.
    let scores = arr2(&[[1.0f32, 2.0, -3.0, 2.0, 0.25, 0.25], [5.0, -5.0, 0.5, 0.5, 1.0, 1.0]]);
    let truths = Truths { banks, datasets: Some(vec![0, 0, 1, 1, 2, 2]), queries: None };
    let verdict = judge("m", scores.view(), &truths).unwrap();
    assert!((verdict.main.unwrap().mean - 1.0).abs() < 1e-12);
    // The game is a sum, so every dataset's Shapley value is its worth and the shares are exact.
    assert!(verdict.extra["tv_shapley"].unwrap() < 1e-12 && !verdict.extra.contains_key("tv_shapley_calibrated"));
    // The first dataset's sum halved: shares 1.5/2 and 0.5/2 instead of 3/3.5 and 0.5/3.5; the second query is right.
    let mut halved = scores.clone();
    halved.row_mut(0).assign(&arr2(&[[0.5f32, 1.0, -3.0, 2.0, 0.25, 0.25]]).row(0));
    let truths = Truths { queries: Some(vec![0, 1]), ..truths };
    let verdict = judge("m", halved.view(), &truths).unwrap();
    let off = verdict.extra["tv_shapley"].unwrap();
    assert!((off - (3.0 / 3.5 - 1.5 / 2.0) / 2.0).abs() < 1e-12, "{off}");
    let (low, high) = (verdict.extra["tv_shapley_low"].unwrap(), verdict.extra["tv_shapley_high"].unwrap());
    assert!(low <= off && off <= high);
    // Fitted on one query, judged on the other: some share, never nothing.
    assert!((0.0..=1.0).contains(&verdict.extra["tv_shapley_calibrated"].unwrap()));
    assert!(truth_figure(&truths, 2).unwrap().ceiling.is_none());
    let error = judge("m", scores.slice(s![.., ..5]), &truths).unwrap_err().to_string();
    assert!(error.contains("method `m`") && error.contains("3 players") && error.contains("5 columns"), "{error}");
}

#[test]
fn constant_outcomes_have_no_order_and_one_dataset_has_one() {
    // Nobody matters: outcomes are constant, every rank correlation is undefined, and so is the ceiling.
    let flat = Array2::zeros((3, 10));
    let truths = Truths {
        banks: vec![("halves".into(), bank(Players::Examples(10), HALVES, &flat, 0.0, 2))],
        ..Truths::default()
    };
    let verdict = judge("m", worth(3, 10).mapv(|w| w as f32).view(), &truths).unwrap();
    assert!(verdict.main.is_none() && verdict.extra.values().all(Option::is_none), "{verdict:?}");
    let figure = truth_figure(&truths, 3).unwrap();
    assert_eq!((figure.ceiling, figure.subsets), (None, 20));
    let loo = bank(Players::Examples(10), Draw::LeaveOneOut { m: 4, seed: 1 }, &flat, 0.0, 1);
    let truths = Truths { banks: vec![("loo".into(), loo)], ..Truths::default() };
    let verdict = judge("m", worth(3, 10).mapv(|w| w as f32).view(), &truths).unwrap();
    assert_eq!(verdict.extra["loo_pearson"], None);
    // One dataset: with it or without it, two subsets, in order or not.
    let worth = arr2(&[[3.0], [-1.0]]);
    let names = Players::Datasets(vec!["only".into()]);
    let banks = vec![("all".into(), bank(names, Draw::PowerSet, &worth, 0.0, 1))];
    let truths = Truths { banks, datasets: Some(vec![0, 0]), ..Truths::default() };
    let main = judge("m", arr2(&[[1.0f32, 1.0], [0.5, 0.5]]).view(), &truths).unwrap().main.unwrap();
    assert_eq!((main.mean, main.n), (0.0, 2), "right for the first query, wrong for the second");
}

#[test]
fn noise_lowers_the_ceiling() {
    let worth = worth(6, 12);
    let of = |noise| {
        let bank = bank(Players::Examples(12), HALVES, &worth, noise, 3);
        ceiling(&bank, 6).unwrap().unwrap().mean
    };
    let (quiet, loud) = (of(0.1), of(5.0));
    assert!(quiet > 0.95 && loud < 0.6 && loud > -0.2, "{quiet} {loud}");
}

#[test]
fn scores_come_back_under_their_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy/m.safetensors");
    let scores = Scores {
        values: arr2(&[[1.0f32, -2.5], [0.0, 1e-30]]),
        cpu_fit: 0.1,
        cpu_score: 1.0 / 3.0,
        bytes_per_example: 12.0,
        settings: serde_json::json!({ "damping_rel": 0.001, "k": [1, 2] }),
    };
    let key = ScoresKey {
        setting: "toy".into(),
        method: "m".into(),
        settings: Value::Null,
        lab: Digest::of(b"lab"),
        queries: 2,
        program: None,
    };
    assert_eq!(Scores::read(&path, &key).unwrap(), None);
    let key = ScoresKey { program: Some(Digest::of(b"build")), ..key };
    scores.write(&path, &key).unwrap();
    assert_eq!(Scores::read(&path, &key).unwrap(), Some(scores.clone()));
    for other in [
        ScoresKey { lab: Digest::of(b"other"), ..key.clone() },
        ScoresKey { settings: serde_json::json!(1), ..key.clone() },
        ScoresKey { program: Some(Digest::of(b"another build")), ..key.clone() },
    ] {
        assert_eq!(Scores::read(&path, &other).unwrap(), None);
    }
    let any = ScoresKey { program: None, ..key };
    assert_eq!(Scores::read(&path, &any).unwrap(), Some(scores.clone()), "of any build");
    scores.check("m", 2, &[2, 9]).unwrap();
    for (n_queries, columns) in [(1, 2), (2, 3)] {
        let error = scores.check("m", n_queries, &[columns]).unwrap_err().to_string();
        assert!(error.contains("method `m`") && error.contains("2 × 2"), "{error}");
    }
    let mut bad = scores;
    bad.values[(1, 0)] = f32::NAN;
    let error = bad.check("m", 2, &[2]).unwrap_err().to_string();
    assert!(error.contains("NaN for query 1, example 0"), "{error}");
}
