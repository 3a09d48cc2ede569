//! Trajectory sums against the double loop and against their own dataset level.

use ascribe_core::NoProgress;
use ascribe_methods::trajectory::{self, CheckpointRows, CheckpointSums, ScaledGradients};
use ascribe_methods::{block_fisher, dot};
use ascribe_testkit::MemoryReader;
use ndarray::{Array2, Axis};

use crate::support::{queries, reader, relative, with_threads};

#[test]
fn example_scores_add_up_to_dataset_scores() {
    let checkpoints = [reader(90, &[8, 4], 3), reader(90, &[8, 4], 3).with_rows_per_block(17)];
    let weights = [0.7, 0.002];
    let query = queries(4, 12).mapv(f64::from);
    let later = &query * -0.5;
    let terms: Vec<_> = checkpoints
        .iter()
        .zip(weights)
        .zip([&query, &later])
        .map(|((reader, weight), q)| CheckpointRows { reader, queries: q.view(), weight })
        .collect();
    let scores = trajectory::score(&terms, &NoProgress).unwrap();
    assert_eq!(scores.examples, checkpoints[0].ids());
    let plain = query.dot(&checkpoints[0].rows().mapv(f64::from).t()) * (0.7 - 0.5 * 0.002);
    assert!(relative(&scores.values.mapv(f64::from), &plain) < 2.0 * f64::from(f32::EPSILON));

    let sums: Vec<Array2<f64>> =
        checkpoints.iter().map(|r| dot::dataset_sums(r, 3, None, &NoProgress).unwrap()).collect();
    let sum_terms: Vec<_> = terms
        .iter()
        .zip(&sums)
        .map(|(t, s)| CheckpointSums { queries: t.queries, sums: s.view(), weight: t.weight })
        .collect();
    let datasets = trajectory::dataset_scores(&sum_terms).unwrap();
    for k in 0..3 {
        for q in 0..4 {
            let plain: f64 = (30 * k..30 * (k + 1)).map(|i| f64::from(scores.values[(q, i)])).sum();
            assert!((datasets[(q, k)] - plain).abs() < 30.0 * 4.0 * f64::from(f32::EPSILON), "{q} {k}");
        }
    }
}

#[test]
fn a_trajectory_of_influences_is_the_sum_of_influences() {
    let rows = reader(60, &[10, 5], 2);
    let factors = block_fisher::Covariance::fit(&rows, &NoProgress).unwrap().cholesky(0.1).unwrap();
    let query = block_fisher::precondition(&factors, queries(2, 15).view()).unwrap();
    let term = |weight| CheckpointRows { reader: &rows, queries: query.view(), weight };
    let once = trajectory::score(&[term(1.0)], &NoProgress).unwrap();
    assert_eq!(once, dot::score(&rows, query.view(), None, &NoProgress).unwrap());
    let twice = trajectory::score(&[term(0.5), term(0.5)], &NoProgress).unwrap();
    assert_eq!(once, twice);
}

#[test]
fn full_gradients_agree_with_the_double_loop() {
    let (datasets, query) = (queries(3, 5000), queries(1, 5000));
    let moments: Vec<f32> = (0..5000).map(|i| (i % 13) as f32 * 1e-4).collect();
    let (v_scale, eps, weight) = (1.25, 1e-3, 0.3);
    let adam = ScaledGradients::adam(datasets.clone(), &moments, v_scale, eps, weight).unwrap();
    let got = with_threads(2, || adam.score(query.as_slice().unwrap()).unwrap());
    for (k, row) in datasets.rows().into_iter().enumerate() {
        let term = |i: usize| {
            let step = f64::from(row[i]) / ((f64::from(moments[i]) * v_scale).sqrt() + eps);
            weight * step * f64::from(query[(0, i)])
        };
        let exact: f64 = (0..5000).map(term).sum();
        let magnitude: f64 = (0..5000).map(|i| term(i).abs()).sum();
        // One rounding to f32 per parameter (half an ulp), summed.
        assert!((got[k] - exact).abs() < f64::from(f32::EPSILON) * magnitude, "{k}: {} {exact}", got[k]);
    }
}

#[test]
fn checkpoints_must_list_the_same_examples() {
    let rows = reader(20, &[3], 2);
    let order: Vec<usize> = (0..20).rev().collect();
    let reversed = MemoryReader::new(
        ascribe_testkit::gradient_spec(&[3]),
        order.iter().map(|&i| rows.ids()[i]).collect(),
        rows.rows().select(Axis(0), &order),
        20,
    );
    let query = queries(1, 3).mapv(f64::from);
    let term = |reader| CheckpointRows { reader, queries: query.view(), weight: 1.0 };
    let error = trajectory::score(&[term(&rows), term(&reversed)], &NoProgress).unwrap_err();
    assert!(error.to_string().contains("order of examples"), "{error}");
    let short = reader(19, &[3], 2);
    let error = trajectory::score(&[term(&rows), term(&short)], &NoProgress).unwrap_err();
    assert!(error.to_string().contains("expected (1, 20), found (1, 19)"), "{error}");
    let none: [CheckpointRows<'_, MemoryReader>; 0] = [];
    assert!(trajectory::score(&none, &NoProgress).unwrap_err().to_string().contains("is empty"));
}
