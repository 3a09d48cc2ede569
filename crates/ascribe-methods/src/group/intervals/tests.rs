//! Intervals against worlds whose spread is known.

use ascribe_linalg::Stream;
use ndarray::{arr1, arr2};

use super::*;

fn gaussian(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut stream = Stream::new(seed, "intervals-test");
    Array2::from_shape_fn((rows, columns), |_| stream.normal())
}

#[test]
fn projection_variance_is_what_gaussian_maps_do() {
    // One query, two sums in 40 dimensions, 2,000 maps to 25 numbers.
    let vectors = gaussian(3, 40, 1);
    let (q, g) = (vectors.row(0).to_owned() + vectors.row(1), vectors.slice(ndarray::s![1.., ..]).to_owned());
    let scores: Vec<Array2<f64>> = (0..2_000)
        .map(|seed| {
            let map = gaussian(25, 40, 100 + seed) / 5.0;
            let (pq, pg) = (map.dot(&q), g.dot(&map.t()));
            pg.dot(&pq).insert_axis(ndarray::Axis(0))
        })
        .collect();
    let (mean, variance) = mean_and_variance(&scores).unwrap();
    let exact = g.dot(&q).insert_axis(ndarray::Axis(0));
    let norm = |v: ArrayView1<'_, f64>| v.dot(&v).sqrt();
    let predicted = projection_variance(
        exact.view(),
        arr1(&[norm(q.view())]).view(),
        g.rows().into_iter().map(norm).collect::<Array1<f64>>().view(),
        25,
        1.0,
    )
    .unwrap();
    for k in 0..2 {
        // The sample variance of 2,000 draws wanders by √(2/2000) ≈ 3 % (tails of products: twice that).
        assert!((variance[(0, k)] / predicted[(0, k)] - 1.0).abs() < 0.2, "{variance} {predicted}");
        assert!((mean[(0, k)] - exact[(0, k)]).abs() < 5.0 * (predicted[(0, k)] / 2_000.0).sqrt());
    }
    // Five seeds calibrate to about 1; maps that are noisier by two in deviation calibrate to 4.
    let around = |factor: f64| -> Vec<Array2<f64>> { (0..40).map(|r| gaussian(30, 4, 7_000 + r) * factor).collect() };
    let unit = Array2::from_elem((30, 4), 1.0);
    for factor in [1.0, 2.0] {
        let c = calibrate(&around(factor), unit.view()).unwrap();
        assert!((c / (factor * factor) - 1.0).abs() < 0.1, "{c}");
    }
}

#[test]
fn the_jackknife_by_hand() {
    let replicates = [arr2(&[[1.0]]), arr2(&[[3.0]]), arr2(&[[5.0]])];
    // Mean 3, sample variance 4, of the mean 4/3.
    let (mean, variance) = jackknife(&replicates).unwrap();
    assert!(mean[(0, 0)] == 3.0 && (variance[(0, 0)] - 4.0 / 3.0).abs() < 1e-15);
    let general = jackknife_of(3, |left_out| {
        let kept: Vec<f64> = (0..3).filter(|r| Some(*r) != left_out).map(|r| replicates[r][(0, 0)]).collect();
        Ok(arr2(&[[kept.iter().sum::<f64>() / kept.len() as f64]]))
    })
    .unwrap();
    assert!(general.0[(0, 0)] == 3.0 && (general.1[(0, 0)] - 4.0 / 3.0).abs() < 1e-15);
    assert!(jackknife(&replicates[..1]).unwrap_err().to_string().contains("at least 2"));
}

#[test]
fn the_delta_method_agrees_with_simulation() {
    let scores = arr1(&[6.0, 3.0, 1.0]);
    let variances = arr1(&[0.25, 0.04, 0.09]);
    let got = share_errors(scores.view(), variances.view()).unwrap().unwrap();
    assert!((got.shares.sum() - 1.0).abs() < 1e-15 && (got.shares[0] - 0.6).abs() < 1e-15);
    let mut stream = Stream::new(2, "delta-test");
    let draws: Vec<Array2<f64>> = (0..20_000)
        .map(|_| {
            let noisy: Array1<f64> =
                scores.iter().zip(&variances).map(|(s, v)| s + v.sqrt() * stream.normal()).collect();
            (&noisy / noisy.sum()).insert_axis(ndarray::Axis(0))
        })
        .collect();
    let (_, variance) = mean_and_variance(&draws).unwrap();
    for k in 0..3 {
        // Second-order terms are of the size Var(T)/T² = 0.4 %; sampling 1 %.
        assert!((variance[(0, k)].sqrt() / got.std_errors[k] - 1.0).abs() < 0.05, "{k}");
    }
}

#[test]
fn shares_are_scale_free_and_clipped_scores_keep_their_doubt() {
    for scale in [1e-200, 1.0, 1e140] {
        let scores = arr1(&[2.0 * scale, -scale, 2.0 * scale]);
        let variances = arr1(&[0.0, scale * scale, 0.0]);
        let got = share_errors(scores.view(), variances.view()).unwrap().unwrap();
        assert_eq!(got.shares, arr1(&[0.5, 0.0, 0.5]));
        assert!((got.std_errors[1] - 0.25).abs() < 1e-12 || scale < 1.0, "{scale}: {}", got.std_errors);
    }
    assert_eq!(share_errors(arr1(&[-1.0, 0.0]).view(), arr1(&[1.0, 1.0]).view()).unwrap(), None);
}

#[test]
fn verdicts_by_hand() {
    let shares = |error: f64| ShareErrors { shares: arr1(&[0.5, 0.5]), std_errors: arr1(&[error, 0.0]) };
    let quiet = Verdict::of(Some(&shares(0.05)), DEFAULT_THRESHOLD).unwrap();
    assert!(quiet.is_payable());
    let noisy = Verdict::of(Some(&shares(0.06)), DEFAULT_THRESHOLD).unwrap();
    assert_eq!(noisy, Verdict::TooNoisyToPay { half_width: 0.06 * Z95, threshold: 0.10 });
    let none = Verdict::of(None, DEFAULT_THRESHOLD).unwrap();
    assert_eq!(none, Verdict::TooNoisyToPay { half_width: 1.0, threshold: 0.10 });
    assert!(Verdict::of(None, 0.0).is_err());
}

#[test]
fn a_pool_is_surer_than_a_query() {
    let mut shares = gaussian(200, 3, 5).mapv(|v| (0.5 * v).exp());
    for mut row in shares.rows_mut() {
        let total = row.sum();
        row /= total;
    }
    let PoolShares { mean, low, high } = query_bootstrap(shares.view(), 1).unwrap();
    assert!((mean.sum() - 1.0).abs() < 1e-12);
    for k in 0..3 {
        let column = shares.column(k);
        let s = (column.iter().map(|v| (v - mean[k]).powi(2)).sum::<f64>() / 199.0).sqrt() / 200f64.sqrt();
        assert!(((high[k] - low[k]) / 2.0 / (Z95 * s) - 1.0).abs() < 0.15 && low[k] < mean[k] && mean[k] < high[k]);
    }
}

#[test]
fn bad_input_is_named() {
    let scores = arr2(&[[1.0, 2.0]]);
    let text = |q: &[f64], g: &[f64], dim, c| {
        projection_variance(scores.view(), arr1(q).view(), arr1(g).view(), dim, c).unwrap_err().to_string()
    };
    assert!(text(&[1.0], &[1.0], 5, 1.0).contains("norms of queries and datasets"));
    assert!(text(&[1.0], &[1.0, -1.0], 5, 1.0).contains("not negative, found -1"));
    assert!(text(&[1.0], &[1.0, 1.0], 0, 1.0).contains("is empty"));
    assert!(text(&[1.0], &[1.0, 1.0], 5, 0.0).contains("calibration of the projection"));
    assert!(share_errors(arr1(&[f64::NAN]).view(), arr1(&[0.0]).view()).is_err());
    assert!(share_errors(arr1(&[1.0]).view(), arr1(&[-1.0]).view()).unwrap_err().to_string().contains("variance"));
    assert!(query_bootstrap(Array2::zeros((0, 2)).view(), 1).is_err());
}
