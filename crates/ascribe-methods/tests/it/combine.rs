//! The combination on made-up worlds whose best answer is known.

use ascribe_linalg::Stream;
use ascribe_methods::combine::{
    self, Calibration, Channel, Conformal, CrossFit, FitOptions, Holdout, Splits, Transform, TrueShares, cross_fit,
    fit, mean_total_variation,
};
use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;

use crate::support::with_threads;

/// True shares softmax(2·u), and two noisy looks at u on scales of their own, plus pure noise.
struct World {
    truth: Array2<f64>,
    channels: [Array2<f64>; 3],
    own: Vec<u32>,
}

fn world(n_queries: usize, n_datasets: usize, seed: u64) -> World {
    let mut stream = Stream::new(seed, "combine-test");
    let mut u = Array2::from_shape_fn((n_queries, n_datasets), |_| stream.normal());
    let own: Vec<u32> = (0..n_queries).map(|q| (q % n_datasets) as u32).collect();
    own.iter().enumerate().for_each(|(q, &k)| u[(q, k as usize)] += 1.5);
    let mut truth = u.mapv(|v| (2.0 * v).exp());
    for mut row in truth.rows_mut() {
        let total = row.sum();
        row /= total;
    }
    let mut look = |noise: f64, scale: f64| u.mapv(|v| scale * (v + noise * stream.normal()));
    let channels = [look(0.7, 1e-6), look(0.7, 4e3), look(1e3, 1.0)];
    World { truth, channels, own }
}

fn channels(world: &World) -> Vec<Channel<'_>> {
    ["a", "b", "noise"].into_iter().zip(&world.channels).map(|(name, s)| Channel { name, scores: s.view() }).collect()
}

fn split(holdout: Holdout, n: usize, seed: u64) -> Splits {
    Splits { holdout, n, seed }
}

fn target<'a>(truth: &'a Array2<f64>, usable: &'a [usize], own: &'a [u32]) -> TrueShares<'a> {
    TrueShares { shares: truth.view(), usable, own }
}

fn all(world: &World) -> Vec<usize> {
    (0..world.truth.nrows()).collect()
}

fn error(calibration: &Calibration, channels: &[Channel<'_>], truth: ArrayView2<'_, f64>) -> f64 {
    mean_total_variation(calibration.predict(channels).unwrap().view(), truth)
}

fn only(transform: Transform, n: usize) -> FitOptions {
    FitOptions { transforms: Some(vec![transform; n]), ridge: 0.0, ..FitOptions::default() }
}

#[test]
fn one_channel_equals_a_fine_grid_over_temperatures() {
    let world = world(40, 6, 1);
    let one = &channels(&world)[..1];
    let fitted = fit(one, world.truth.view(), &all(&world), &only(Transform::ZScore, 1)).unwrap();
    let at = |theta: f64| {
        let calibration = Calibration { temperature: 1.0 / theta, ..fitted.clone() };
        error(&calibration, one, world.truth.view())
    };
    let grid = (1..20_000).map(|i| at(f64::from(i) * 1e-3)).fold(f64::INFINITY, f64::min);
    let got = error(&fitted, one, world.truth.view());
    // The last step of the search is 1e-3 in θ, and total variation moves by less than θ's step.
    assert!(got <= grid + 1e-4, "{got} against {grid}");
}

#[test]
fn two_channels_are_as_good_as_a_dense_grid() {
    let world = world(30, 5, 2);
    let two = &channels(&world)[..2];
    let fitted = fit(two, world.truth.view(), &all(&world), &only(Transform::ZScore, 2)).unwrap();
    let got = error(&fitted, two, world.truth.view());
    let mut grid = f64::INFINITY;
    for i in 0..80 {
        for j in 0..80 {
            let (a, b) = (f64::from(i) * 0.05 + 1e-9, f64::from(j) * 0.05);
            let weights = vec![a / (a + b), b / (a + b)];
            let calibration = Calibration { weights, temperature: 1.0 / (a + b), ..fitted.clone() };
            grid = grid.min(error(&calibration, two, world.truth.view()));
        }
    }
    assert!(got <= grid + 1e-4, "{got} against {grid}");
}

#[test]
fn noise_gets_little_weight_and_two_looks_beat_one() {
    let world = world(80, 8, 3);
    let every = channels(&world);
    let options = FitOptions::default();
    let fitted = fit(&every, world.truth.view(), &all(&world), &options).unwrap();
    assert!(fitted.weights[2] < 0.1 * fitted.weights[0].min(fitted.weights[1]), "{fitted:?}");
    let held_out = |channels: &[Channel<'_>]| {
        let usable = all(&world);
        let crossed =
            cross_fit(channels, &target(&world.truth, &usable, &world.own), split(Holdout::Queries, 4, 9), &options)
                .unwrap();
        mean_error(&crossed, &world)
    };
    let (both, a, b, noise) = (held_out(&every), held_out(&every[..1]), held_out(&every[1..2]), held_out(&every[2..]));
    assert!(both < a.min(b) - 0.02, "{both} against {a}, {b}");
    // Noise alone can do no better than equal shares.
    let uniform = Array2::from_elem(world.truth.dim(), 1.0 / 8.0);
    assert!(noise > mean_total_variation(uniform.view(), world.truth.view()) - 0.01);
}

fn mean_error(crossed: &CrossFit, world: &World) -> f64 {
    let errors = crossed.per_query(|q, shares| {
        Some(0.5 * shares.iter().zip(world.truth.row(q)).map(|(p, t)| (p - t).abs()).sum::<f64>())
    });
    errors.iter().flatten().sum::<f64>() / errors.iter().flatten().count() as f64
}

#[test]
fn selection_takes_the_two_looks_and_stops_before_the_noise() {
    let world = world(60, 6, 3);
    let every = channels(&world);
    let usable = all(&world);
    let truth = target(&world.truth, &usable, &world.own);
    let steps =
        combine::forward_select(&every, &truth, split(Holdout::Queries, 2, 1), &FitOptions::default(), 0.005).unwrap();
    let mut names: Vec<&str> = steps.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b"], "{steps:?}");
    assert!(steps[1].error < steps[0].error - 0.005);
    // The error of the last step is that of a plain cross-fit of the same channels in the order of selection.
    let chosen: Vec<Channel<'_>> = steps.iter().map(|s| *every.iter().find(|c| c.name == s.name).unwrap()).collect();
    let crossed = cross_fit(&chosen, &truth, split(Holdout::Queries, 2, 1), &FitOptions::default()).unwrap();
    assert!((mean_error(&crossed, &world) - steps[1].error).abs() < 1e-12);
}

#[test]
fn raw_shares_are_the_log_share_transform_at_temperature_one() {
    // The floor of 0.01 is the only difference: a share of 0.9 becomes 0.91/1.04 at worst with four datasets.
    let scores = ndarray::arr2(&[[9.0, 1.0, 0.0, -4.0]]);
    let calibration = Calibration {
        format_version: combine::CALIBRATION_FORMAT_VERSION,
        channels: vec![combine::ChannelSpec { name: "a".into(), transform: Transform::LogShare }],
        weights: vec![1.0],
        temperature: 1.0,
    };
    let shares = calibration.predict(&[Channel { name: "a", scores: scores.view() }]).unwrap();
    let expected = [0.91 / 1.04, 0.11 / 1.04, 0.01 / 1.04, 0.01 / 1.04];
    assert!(shares.iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-14), "{shares}");
}

#[test]
fn folds_are_disjoint_complete_and_independent_of_threads() {
    let world = world(30, 5, 4);
    let every = channels(&world);
    let usable: Vec<usize> = (0..30).filter(|q| q % 7 != 1).collect();
    for holdout in [Holdout::Queries, Holdout::Datasets] {
        let run = || {
            let options = FitOptions::default();
            cross_fit(&every, &target(&world.truth, &usable, &world.own), split(holdout, 3, 5), &options).unwrap()
        };
        let crossed = with_threads(1, run);
        assert_eq!(crossed, with_threads(2, run));
        assert_eq!(crossed.folds.len(), 6);
        for pair in crossed.folds.chunks(2) {
            let mut together = [pair[0].held_out.clone(), pair[1].held_out.clone()].concat();
            together.sort_unstable();
            assert_eq!(together, usable);
            for fold in pair {
                assert!(fold.fitted.iter().all(|q| !fold.held_out.contains(q)));
                // Predictions are those of the fold's own calibration, made without the truth.
                let full = fold.calibration.predict(&every).unwrap();
                for (row, &q) in fold.held_out.iter().enumerate() {
                    assert_eq!(fold.shares.row(row), full.row(q));
                }
            }
        }
        let counts = crossed.per_query(|_, _| Some(1.0));
        assert!((0..30).all(|q| counts[q].is_some() == usable.contains(&q)));
        let mean = crossed.mean_shares();
        assert!(mean.rows().into_iter().enumerate().all(|(q, row)| {
            let expected = if usable.contains(&q) { 1.0 } else { 0.0 };
            (row.sum() - expected).abs() < 1e-12
        }));
    }
}

#[test]
fn a_held_out_truth_changes_nothing_in_its_own_prediction() {
    // The leak test: other truths for the held-out half must give the same held-out shares.
    let world = world(20, 4, 6);
    let every = channels(&world);
    let (usable, options) = (all(&world), FitOptions::default());
    let run = |truth: &Array2<f64>| {
        cross_fit(&every, &target(truth, &usable, &world.own), split(Holdout::Queries, 1, 5), &options).unwrap()
    };
    let before = run(&world.truth);
    let mut changed = world.truth.clone();
    for &q in &before.folds[0].held_out {
        changed.row_mut(q).fill(0.25);
    }
    let after = run(&changed);
    assert_eq!(before.folds[0], after.folds[0]);
    assert_ne!(before.folds[1], after.folds[1]);
}

#[test]
fn conformal_intervals_cover_as_promised() {
    let world = world(200, 6, 7);
    let every = channels(&world);
    let usable = all(&world);
    let options = only(Transform::ZScore, 3);
    let crossed =
        cross_fit(&every, &target(&world.truth, &usable, &world.own), split(Holdout::Queries, 3, 8), &options).unwrap();
    let shares = crossed.mean_shares();
    for level in [0.5, 0.9] {
        let got =
            combine::cross_coverage(shares.view(), &target(&world.truth, &usable, &world.own), level, 10, 1).unwrap();
        // 100 queries of 6 dependent entries: about 100 independent ones at worst, five standard errors √(.25/100)/√20
        // over splits that share data; 0.06 is generous and far from any other level.
        assert!((got.coverage - level).abs() < 0.06, "{level}: {got:?}");
        assert!(got.worst <= got.coverage && got.width > 0.0);
        let rule = Conformal::fit(shares.view(), world.truth.view(), &usable, level).unwrap();
        let (low, high) = rule.intervals(shares.view());
        let inside = combine::coverage(low.view(), high.view(), world.truth.view(), &usable);
        // On its own data the quantile covers by construction.
        assert!(inside >= level && inside < level + 0.01, "{inside}");
    }
}

#[test]
fn degenerate_worlds_have_answers() {
    let world = world(12, 1, 1);
    // One dataset: every share is 1 whatever the weights.
    let one = channels(&world);
    let fitted = fit(&one, world.truth.view(), &all(&world), &FitOptions::default()).unwrap();
    assert!(fitted.predict(&one).unwrap().iter().all(|&p| p == 1.0));
    // Channels that say nothing: equal shares.
    let flat = Array2::from_elem((12, 3), 7.0);
    let truth = Array2::from_shape_fn((12, 3), |(_, k)| [0.5, 0.25, 0.25][k]);
    let constant = [Channel { name: "flat", scores: flat.view() }];
    let fitted = fit(&constant, truth.view(), &[0, 3, 5], &FitOptions::default()).unwrap();
    assert!(fitted.predict(&constant).unwrap().iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-8));
}

#[test]
fn bad_input_is_named() {
    let world = world(6, 3, 1);
    let every = channels(&world);
    let options = FitOptions::default();
    let text = |e: ascribe_methods::MethodError| e.to_string();
    let fit_error =
        |c: &[Channel<'_>], t: &Array2<f64>, q: &[usize], o: &FitOptions| text(fit(c, t.view(), q, o).unwrap_err());
    assert!(fit_error(&[], &world.truth, &[0], &options).contains("list of channels is empty"));
    assert!(fit_error(&every, &world.truth, &[], &options).contains("fitting queries is empty"));
    assert!(fit_error(&every, &world.truth, &[6], &options).contains("expected \"below 6\", found 6"));
    assert!(fit_error(&[every[0], every[0]], &world.truth, &[0], &options).contains("unique names"));
    let mut truth = world.truth.clone();
    truth[(2, 1)] = -0.5;
    assert!(fit_error(&every, &truth, &[2], &options).contains("true shares, row 2, column 1"));
    assert!(!fit(&every, truth.view(), &[0, 1], &options).unwrap().weights.is_empty(), "row 2 is not fitted");
    let mut scores = world.channels[0].clone();
    scores[(4, 2)] = f64::NAN;
    let bad = [Channel { name: "a", scores: scores.view() }];
    assert!(fit_error(&bad, &world.truth, &[0], &options).contains("a, row 4, column 2"));
    assert!(fit_error(&every, &world.truth, &[0], &only(Transform::Rank, 2)).contains("expected 3, found 2"));
    let negative = FitOptions { ridge: -1.0, ..FitOptions::default() };
    assert!(fit_error(&every, &world.truth, &[0], &negative).contains("ridge must be finite"));
    let crossed = |own: &[u32], n| {
        cross_fit(&every, &target(&world.truth, &[0, 1, 2], own), split(Holdout::Datasets, n, 1), &options)
            .map(|_| ())
            .map_err(text)
    };
    assert!(crossed(&[0; 6], 1).unwrap_err().contains("at least two datasets"));
    assert!(crossed(&[0; 5], 1).unwrap_err().contains("expected 6, found 5"));
    assert!(crossed(&[0, 1, 2, 0, 1, 2], 0).unwrap_err().contains("list of splits is empty"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shares_are_shares_and_ignore_scale(
        scores in prop::collection::vec(-1e3f64..1e3, 12), truth in prop::collection::vec(0.0f64..1.0, 12), scale in 1e-9f64..1e9,
    ) {
        let scores = Array2::from_shape_vec((3, 4), scores).unwrap();
        let mut truth = Array2::from_shape_vec((3, 4), truth).unwrap() + 1e-3;
        for mut row in truth.rows_mut() {
            let total = row.sum();
            row /= total;
        }
        let scaled = &scores * scale;
        let predict = |s: &Array2<f64>| {
            let channels = [Channel { name: "a", scores: s.view() }];
            let calibration = fit(&channels, truth.view(), &[0, 1, 2], &only(Transform::SignedSqrt, 1)).unwrap();
            calibration.validate().unwrap();
            calibration.predict(&channels).unwrap()
        };
        let (plain, other) = (predict(&scores), predict(&scaled));
        prop_assert!(plain.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-12 && row.iter().all(|&p| p >= 0.0)));
        // The search ends on a grid of 1e-3 in θ: both runs must be equally good, if not equal to the last bit.
        let value = |p: &Array2<f64>| mean_total_variation(p.view(), truth.view());
        prop_assert!((value(&plain) - value(&other)).abs() < 1e-3);
    }
}

/// With the cross-entropy far above everything else the fit is its minimum, which is the only one: the problem is convex.
#[test]
fn a_heavy_cross_entropy_gives_its_own_minimum() {
    let world = world(40, 6, 5);
    let two = &channels(&world)[..2];
    let options = FitOptions { entropy: 1e4, ..only(Transform::ZScore, 2) };
    let fitted = fit(two, world.truth.view(), &all(&world), &options).unwrap();
    let at = |calibration: &Calibration| {
        combine::cross_entropy(calibration.predict(two).unwrap().view(), world.truth.view())
    };
    let (best, theta) = (at(&fitted), fitted.theta());
    for (i, j) in (0..40).flat_map(|i| (0..40).map(move |j| (i, j))) {
        let (a, b) = (f64::from(i) * 0.1 + 1e-9, f64::from(j) * 0.1);
        let grid =
            Calibration { weights: vec![a / (a + b), b / (a + b)], temperature: 1.0 / (a + b), ..fitted.clone() };
        assert!(best <= at(&grid) + 1e-5, "{best} at {theta:?}, {} at {a} {b}", at(&grid));
    }
    let bad = FitOptions { entropy: f64::NAN, ..FitOptions::default() };
    let error = fit(two, world.truth.view(), &all(&world), &bad).unwrap_err().to_string();
    assert!(error.contains("weight of the cross-entropy"), "{error}");
}
