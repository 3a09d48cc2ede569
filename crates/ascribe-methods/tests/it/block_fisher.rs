//! Block-Fisher influence against a hand toy, exact leave-one-out, dense inversion, and its own two routes.

use ascribe_core::{ExampleId, NoProgress};
use ascribe_linalg::Stream;
use ascribe_methods::block_fisher::{self, Covariance, Preconditioner};
use ascribe_methods::dot;
use ascribe_testkit::{MemoryReader, Ridge, gradient_spec};
use ndarray::{Array1, Array2, arr2, s};

use crate::support::{queries, reader, relative};

#[test]
fn two_modules_by_hand() {
    // Module 0 sees (2), (0): H = (4 + 0)/2 = 2. Module 1 sees (1), (3): H = (1 + 9)/2 = 5. Damping 1 doubles both.
    let ids = vec![ExampleId { dataset: 0, idx: 0 }, ExampleId { dataset: 1, idx: 0 }];
    let rows = MemoryReader::new(gradient_spec(&[1, 1]), ids, arr2(&[[2.0, 1.0], [0.0, 3.0]]), 1);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    assert_eq!(covariance.mean_diagonals(), [2.0, 5.0]);
    let factors = covariance.cholesky(1.0).unwrap();
    let query = block_fisher::precondition(&factors, arr2(&[[1.0, 1.0]]).view()).unwrap();
    let scores = dot::score(&rows, query.view(), None, &NoProgress).unwrap();
    // 2·1/4 + 1·1/10 = 0.6 and 0·1/4 + 3·1/10 = 0.3.
    assert!((scores.values[(0, 0)] - 0.6).abs() < 1e-7 && (scores.values[(0, 1)] - 0.3).abs() < 1e-7);
    let own = block_fisher::self_influence(&rows, &factors, &NoProgress).unwrap();
    // 4/4 + 1/10 and 9/10.
    assert!((own[0] - 1.1).abs() < 1e-15 && (own[1] - 0.9).abs() < 1e-15, "{own:?}");
    let sums = dot::dataset_sums(&rows, 2, None, &NoProgress).unwrap();
    let datasets = dot::dataset_scores(query.view(), sums.view()).unwrap();
    assert!((datasets[(0, 0)] - 0.6).abs() < 1e-15 && (datasets[(0, 1)] - 0.3).abs() < 1e-15);
}

/// A ridge regression whose residuals are all ±1, so that its Fisher is its Hessian: then block-Fisher influence with
/// one module *is* the leave-one-out change, up to the leverage factor and the square term.
fn ridge_with_unit_residuals(n: usize, d: usize, lambda: f64) -> Ridge {
    let mut stream = Stream::new(5, "methods-test/ridge");
    // f32-exact inputs: multiples of 1/64, so that the rows lose nothing in the store.
    let x = Array2::from_shape_fn((n, d), |_| (stream.normal() * 64.0).round() / 64.0);
    let residuals = Array1::from_shape_fn(n, |_| if stream.uniform() < 0.5 { -1.0 } else { 1.0 });
    // Stationarity of ½Σ(y − xθ)² + ½λ‖θ‖²: Xᵀr = λθ, for any r; choose y to make r the residuals.
    let theta = x.t().dot(&residuals) / lambda;
    let y = x.dot(&theta) + &residuals;
    Ridge::fit(x, y, lambda)
}

#[test]
fn equals_exact_leave_one_out_up_to_known_terms() {
    let (n, d, lambda) = (60, 5, 7.0);
    let ridge = ridge_with_unit_residuals(n, d, lambda);
    let gradients = ridge.gradients().mapv(|g| g as f32);
    let ids = (0..n as u32).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let rows = MemoryReader::new(gradient_spec(&[d]), ids, gradients, 16);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let damping_rel = lambda / n as f64 / covariance.mean_diagonals()[0];
    let factors = covariance.cholesky(damping_rel).unwrap();

    let (query_x, query_y) = (Array1::from_vec(vec![0.5, -0.25, 1.0, 0.125, -1.5]), 3.0);
    let prediction = query_x.dot(&ridge.theta);
    let gradient = (&query_x * (prediction - query_y)).mapv(|g| g as f32).insert_axis(ndarray::Axis(0));
    let query = block_fisher::precondition(&factors, gradient.view()).unwrap();
    let scores = dot::score(&rows, query.view(), None, &NoProgress).unwrap().values;
    let own = block_fisher::self_influence(&rows, &factors, &NoProgress).unwrap();
    let loss = |theta: &Array1<f64>| 0.5 * (query_x.dot(theta) - query_y).powi(2);
    let largest = scores.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for i in 0..n {
        let refit = ridge.refit_without(i);
        let moved = query_x.dot(&(&refit - &ridge.theta));
        let leverage = own[i] / n as f64;
        let predicted = f64::from(scores[(0, i)]) / n as f64 / (1.0 - leverage) + 0.5 * moved * moved;
        let exact = loss(&refit) - loss(&ridge.theta);
        // The query gradient and the score are rounded to f32: 2 roundings of relative size 6e-8, sums of d terms.
        let tolerance = 8.0 * f64::from(f32::EPSILON) * f64::from(largest) / n as f64;
        assert!((predicted - exact).abs() <= tolerance, "record {i}: {predicted} against {exact}");
    }
}

#[test]
fn removal_vectors_equal_exact_dataset_removal() {
    let (n, d, lambda) = (60, 5, 7.0);
    let ridge = ridge_with_unit_residuals(n, d, lambda);
    // Datasets of 25, 20 and 15 records: far from first order, and the rows of one straddle two blocks of the reader.
    let dataset = |i: u32| if i < 25 { 0 } else { 1 + u32::from(i >= 45) };
    let ids = (0..n as u32).map(|i| ExampleId { dataset: dataset(i), idx: i }).collect();
    let rows = MemoryReader::new(gradient_spec(&[d]), ids, ridge.gradients().mapv(|g| g as f32), 16);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let damping_rel = lambda / n as f64 / covariance.mean_diagonals()[0];
    let removal = block_fisher::removal_vectors(&rows, &covariance, damping_rel, 4, &NoProgress).unwrap();
    assert!(removal.row(3).iter().all(|&v| v == 0.0), "a dataset without rows");

    let (query_x, query_y) = (Array1::from_vec(vec![0.5, -0.25, 1.0, 0.125, -1.5]), 3.0);
    let gradient = &query_x * (query_x.dot(&ridge.theta) - query_y);
    let scores = dot::dataset_scores(gradient.insert_axis(ndarray::Axis(0)).view(), removal.view()).unwrap();
    let loss = |theta: &Array1<f64>| 0.5 * (query_x.dot(theta) - query_y).powi(2);
    let mut plain_error = 0.0f64;
    let factors = covariance.cholesky(damping_rel).unwrap();
    let gradient = &query_x * (query_x.dot(&ridge.theta) - query_y);
    let gradient = gradient.mapv(|g| g as f32).insert_axis(ndarray::Axis(0));
    let preconditioned = block_fisher::precondition(&factors, gradient.view()).unwrap();
    let sums = dot::dataset_sums(&rows, 4, None, &NoProgress).unwrap();
    let plain = dot::dataset_scores(preconditioned.view(), sums.view()).unwrap();
    for k in 0..3u32 {
        let kept: Vec<usize> = (0..n).filter(|&i| dataset(i as u32) != k).collect();
        let (x, y) = (ridge.x.select(ndarray::Axis(0), &kept), ridge.y.select(ndarray::Axis(0), &kept));
        let refit = Ridge::fit(x, y, lambda).theta;
        let moved = query_x.dot(&(&refit - &ridge.theta));
        let exact = loss(&refit) - loss(&ridge.theta) - 0.5 * moved * moved;
        let predicted = scores[(0, k as usize)] / n as f64;
        // The rows were rounded to f32 once: relative 6e-8 each, a few dozen of them in a sum.
        assert!((predicted - exact).abs() < 1e-5 * exact.abs().max(1.0), "dataset {k}: {predicted} against {exact}");
        plain_error = plain_error.max((plain[(0, k as usize)] / n as f64 - exact).abs() / exact.abs());
    }
    assert!(plain_error > 0.1, "plain influence must fall short here, or this test shows nothing: {plain_error}");
}

#[test]
fn removal_needs_rows_grouped_by_dataset() {
    let plain = reader(20, &[3], 2);
    let ids = (0..20).map(|idx| ExampleId { dataset: idx % 2, idx }).collect();
    let mixed = MemoryReader::new(gradient_spec(&[3]), ids, plain.rows().clone(), 7);
    let covariance = Covariance::fit(&mixed, &NoProgress).unwrap();
    let error = block_fisher::removal_vectors(&mixed, &covariance, 0.1, 2, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("rows grouped by dataset") && error.contains("dataset 0 in two places"), "{error}");
    let error = block_fisher::removal_vectors(&plain, &covariance, 0.1, 1, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("below 1"), "{error}");
    // One dataset only: nothing is left but the damping, which must be there.
    let one = reader(20, &[3], 1);
    let covariance = Covariance::fit(&one, &NoProgress).unwrap();
    let error = block_fisher::removal_vectors(&one, &covariance, 0.0, 1, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("block.0 without dataset 0"), "{error}");
    assert!(block_fisher::removal_vectors(&one, &covariance, 0.1, 1, &NoProgress).is_ok());
}

#[test]
fn agrees_with_dense_inversion_in_f64() {
    let rows = reader(150, &[7, 1, 20], 3);
    let damping_rel = 0.05;
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let query = queries(4, 28);
    let got = block_fisher::precondition(&covariance.cholesky(damping_rel).unwrap(), query.view()).unwrap();
    let (wide, query) = (rows.rows().mapv(f64::from), query.mapv(f64::from));
    for (module, columns) in [(0, 0..7), (1, 7..8), (2, 8..28)] {
        let part = wide.slice(s![.., columns.clone()]);
        let mut dense = part.t().dot(&part) / 150.0;
        assert!(relative(&covariance.block(module).to_owned(), &dense) < 1e-14);
        let mean = dense.diag().mean().unwrap();
        dense.diag_mut().mapv_inplace(|d| d + damping_rel * mean);
        for q in 0..4 {
            let expected = ascribe_testkit::ridge::solve(&dense, &query.slice(s![q, columns.clone()]).to_owned());
            let found = got.slice(s![q, columns.clone()]).to_owned();
            // Condition number below 1/damping ≈ 1e3, times eps and the dimension.
            let error = (&found - &expected).mapv(f64::abs).sum() / expected.mapv(f64::abs).sum();
            assert!(error < 1e-11, "module {module}, query {q}: {error}");
        }
    }
}

#[test]
fn spectrum_and_cholesky_agree_for_every_damping() {
    // 30 rows in 40 columns: rank deficient, the damping carries it.
    let rows = reader(30, &[40, 5], 3);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let spectrum = covariance.spectrum().unwrap();
    let query = queries(35, 45);
    for damping_rel in [1e-4, 1e-2, 0.1, 1.0, 100.0] {
        let factors = covariance.cholesky(damping_rel).unwrap();
        let damped = spectrum.damped(damping_rel).unwrap();
        let a = block_fisher::precondition(&factors, query.view()).unwrap();
        let b = block_fisher::precondition(&damped, query.view()).unwrap();
        // Both are backward stable: error of the order of condition · n · eps, condition ≤ 40/damping.
        let tolerance = 40.0 / damping_rel * 45.0 * f64::EPSILON + 1e-13;
        assert!(relative(&a, &b) < tolerance, "damping {damping_rel}: {}", relative(&a, &b));
        let own_a = block_fisher::self_influence(&rows, &factors, &NoProgress).unwrap();
        let own_b = block_fisher::self_influence(&rows, &damped, &NoProgress).unwrap();
        for (x, y) in own_a.iter().zip(&own_b) {
            assert!((x - y).abs() <= tolerance * y, "damping {damping_rel}: {x} {y}");
        }
    }
}

#[test]
fn self_influence_is_the_score_of_a_row_upon_itself() {
    let rows = reader(40, &[6, 9], 2);
    let factors = Covariance::fit(&rows, &NoProgress).unwrap().cholesky(0.1).unwrap();
    let own = block_fisher::self_influence(&rows, &factors, &NoProgress).unwrap();
    let memory = block_fisher::self_influence_of(&factors, rows.rows().view()).unwrap();
    let preconditioned = block_fisher::precondition(&factors, rows.rows().view()).unwrap();
    for i in 0..40 {
        let score = preconditioned.row(i).dot(&rows.rows().row(i).mapv(f64::from));
        assert!((own[i] - score).abs() < 1e-12 * score, "{} {score}", own[i]);
        assert_eq!(own[i].to_bits(), memory[i].to_bits());
    }
}

/// Half of a solve has the product of a whole one; the other half makes the whole one's bytes of it, for one query and for many.
#[test]
fn a_whitened_query_is_half_of_a_solved_one() {
    let columns = [40, 1, 23];
    let rows = reader(64, &columns, 3);
    let factors = Covariance::fit(&rows, &NoProgress).unwrap().cholesky(0.01).unwrap();
    for n in [1, 8, 9, 70] {
        let queries = queries(n, 64);
        let (whitened, solved) = block_fisher::whiten_and_solve(&factors, queries.view()).unwrap();
        assert_eq!(solved, block_fisher::precondition(&factors, queries.view()).unwrap(), "{n}");
        let own = block_fisher::self_influence_of(&factors, queries.view()).unwrap();
        for ((whitened, solved), (query, own)) in
            whitened.rows().into_iter().zip(solved.rows()).zip(queries.rows().into_iter().zip(own))
        {
            let squared: f64 = whitened.iter().map(|z| z * z).sum();
            let product: f64 = query.iter().zip(solved).map(|(&q, s)| f64::from(q) * s).sum();
            // Sums of 64 terms, and a solve of a condition below 1e4.
            assert!(
                (squared / own - 1.0).abs() < 1e-12 && (product / own - 1.0).abs() < 1e-9,
                "{squared} {product} {own}"
            );
        }
    }
}

#[test]
fn unit_norms_make_a_cosine_and_survive_summing() {
    let rows = reader(64, &[12, 6], 4);
    let factors = Covariance::fit(&rows, &NoProgress).unwrap().cholesky(0.01).unwrap();
    let own = block_fisher::self_influence(&rows, &factors, &NoProgress).unwrap();
    let weights = block_fisher::row_weights(&own);
    // A query that is a training row has cosine 1 with itself, and no more with any other.
    let query = block_fisher::unit_queries(&factors, rows.rows().slice(s![3..4, ..])).unwrap();
    let scores = dot::score(&rows, query.view(), Some(&weights), &NoProgress).unwrap().values;
    assert!((scores[(0, 3)] - 1.0).abs() < 1e-6);
    assert!(scores.iter().all(|c| c.abs() < 1.0 + 1e-6));
    // Weighted dataset sums give the sums of the weighted scores.
    let sums = dot::dataset_sums(&rows, 4, Some(&weights), &NoProgress).unwrap();
    let datasets = dot::dataset_scores(query.view(), sums.view()).unwrap();
    for k in 0..4 {
        let plain: f64 = (16 * k..16 * (k + 1)).map(|i| f64::from(scores[(0, i)])).sum();
        assert!((datasets[(0, k)] - plain).abs() < 16.0 * f64::from(f32::EPSILON), "{k}");
    }
}

#[test]
fn modules_add_up() {
    let rows = reader(50, &[5, 3, 8], 5);
    let factors = Covariance::fit(&rows, &NoProgress).unwrap().cholesky(0.1).unwrap();
    let query = block_fisher::precondition(&factors, queries(3, 16).view()).unwrap();
    let sums = dot::dataset_sums(&rows, 5, None, &NoProgress).unwrap();
    let parts = block_fisher::scores_by_module(factors.columns(), query.view(), sums.view()).unwrap();
    assert_eq!(parts.len(), 3);
    let total = parts.iter().fold(Array2::zeros((3, 5)), |acc, part| acc + part);
    assert!(relative(&total, &dot::dataset_scores(query.view(), sums.view()).unwrap()) < 1e-14);
}

#[test]
fn a_module_of_zeros_stays_out() {
    let mut values = reader(20, &[3, 2], 1).rows().clone();
    values.slice_mut(s![.., 3..]).fill(0.0);
    let ids = (0..20).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let rows = MemoryReader::new(gradient_spec(&[3, 2]), ids, values, 7);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let factors = covariance.cholesky(0.1).unwrap();
    let spectrum = covariance.spectrum().unwrap();
    for by in [&factors as &dyn Preconditioner, &spectrum.damped(0.1).unwrap()] {
        let query = block_fisher::precondition(by, queries(2, 5).view()).unwrap();
        assert!(query.slice(s![.., 3..]).iter().all(|&v| v == 0.0));
        assert!(query.slice(s![.., ..3]).iter().all(|&v| v != 0.0));
    }
}

#[test]
fn a_row_of_zeros_has_no_influence_and_weight_zero() {
    let mut values = reader(20, &[4], 1).rows().clone();
    values.row_mut(7).fill(0.0);
    let ids = (0..20).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let rows = MemoryReader::new(gradient_spec(&[4]), ids, values, 20);
    let factors = Covariance::fit(&rows, &NoProgress).unwrap().cholesky(0.1).unwrap();
    let own = block_fisher::self_influence(&rows, &factors, &NoProgress).unwrap();
    assert_eq!(own[7], 0.0);
    assert_eq!(block_fisher::row_weights(&own)[7], 0.0);
}

#[test]
fn parts_survive_export() {
    let rows = reader(30, &[6, 3], 2);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let factors = covariance.cholesky(0.1).unwrap();
    let parts: Vec<_> = factors.to_parts().into_iter().map(|(_, m)| m).collect();
    let again = block_fisher::Factors::from_parts(factors.columns().to_vec(), parts.clone()).unwrap();
    let query = queries(3, 9);
    let before = block_fisher::precondition(&factors, query.view()).unwrap();
    assert_eq!(before, block_fisher::precondition(&again, query.view()).unwrap());
    let wrong = block_fisher::Factors::from_parts(factors.columns().to_vec(), vec![parts[0].clone()]);
    assert!(wrong.unwrap_err().to_string().contains("expected 2, found 1"));
    let blocks = (0..2).map(|m| covariance.block(m).to_owned()).collect();
    let covariance = Covariance::from_parts(factors.columns().to_vec(), 30, blocks).unwrap();
    assert_eq!(before, block_fisher::precondition(&covariance.cholesky(0.1).unwrap(), query.view()).unwrap());
}
