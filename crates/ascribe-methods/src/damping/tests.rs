//! The criterion against a hand calculation, dense likelihoods, and the truth it estimates.

use ascribe_core::{ExampleId, NoProgress};
use ascribe_linalg::{Cholesky, Stream};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, s};

use super::*;
use crate::source::{Captured, Labels, Layer, LayerCapture};

/// `n` rows of N(0, C) with `C` diagonal and decaying, two modules.
fn reader(n: usize, groups: &[usize], seed: u64) -> MemoryReader {
    let spec = gradient_spec(groups);
    let mut stream = Stream::new(seed, "damping-test");
    let columns = spec.columns.clone();
    let mut rows = Array2::zeros((n, spec.dim));
    for mut row in rows.rows_mut() {
        for c in &columns {
            (0..c.len).for_each(|j| row[c.start + j] = (stream.normal() / (1.0 + j as f64)) as f32);
        }
    }
    let ids = (0..n as u32).map(|idx| ExampleId { dataset: idx % 3, idx }).collect();
    MemoryReader::new(spec, ids, rows, 40)
}

#[test]
fn one_number_by_hand() {
    // −½[log(2 + λ) + 5/(2 + λ)] is largest where 2 + λ = 5; the mean eigenvalue is 2.
    let fold = Fold { values: vec![2.0], held_out: vec![5.0] };
    let found = curve("m", &[fold], &Options::default()).unwrap();
    assert!((found.chosen.damping_rel - 1.5).abs() < 1e-5 && !found.at_edge, "{:?}", found.chosen);
    assert!((found.chosen.log_likelihood + 0.5 * (5f64.ln() + 1.0)).abs() < 1e-9);
    assert_eq!(found.points.len(), 17);
    assert_eq!((found.points[0].damping_rel, found.mean_eigenvalue), (1e-6, 2.0));
    // The held-out half shows less than the fitted one: no damping is too small.
    let fold = Fold { values: vec![2.0], held_out: vec![1.0] };
    let found = curve("m", &[fold], &Options::default()).unwrap();
    assert!(found.at_edge && found.chosen.damping_rel == 1e-6);
}

#[test]
fn points_are_dense_log_likelihoods_of_the_other_half() {
    let reader = reader(120, &[6, 3], 1);
    let options = Options { seed: 5, ..Options::default() };
    let curves = block_fisher(&reader, &options, &NoProgress).unwrap();
    let half = |id: &ExampleId| in_second_half(5, u64::from(id.dataset) << 32 | u64::from(id.idx));
    for (curve, column) in curves.iter().zip(&reader.spec().columns) {
        assert_eq!(curve.module, column.name);
        let part = |second: bool| {
            let rows: Vec<usize> = (0..120).filter(|&i| half(&reader.ids()[i]) == second).collect();
            let all = reader.rows().select(ndarray::Axis(0), &rows).mapv(f64::from);
            all.slice(s![.., column.start..column.start + column.len]).to_owned()
        };
        let halves = [part(false), part(true)];
        let point = curve.points[9];
        let mut expected = 0.0;
        for (own, other) in [(&halves[0], &halves[1]), (&halves[1], &halves[0])] {
            let mut h = own.t().dot(own) / own.nrows() as f64;
            h.diag_mut().mapv_inplace(|d| d + point.damping_rel * curve.mean_eigenvalue);
            let factor = Cholesky::factor(h.view()).unwrap();
            let log_det = 2.0 * factor.lower().diag().iter().map(|d| d.ln()).sum::<f64>();
            let mut solved = other.clone();
            factor.solve_rows(solved.view_mut());
            let trace = (&solved * other).sum() / other.nrows() as f64;
            expected -= 0.25 * (log_det + trace);
        }
        assert!((point.log_likelihood - expected).abs() < 1e-9 * expected.abs(), "{} {expected}", point.log_likelihood);
        assert!(curve.points.iter().all(|p| p.log_likelihood <= curve.chosen.log_likelihood));
    }
}

#[test]
fn the_choice_is_near_the_best_for_the_truth() {
    // 60 rows in 40 dimensions: the covariance is known, so the expected log-likelihood of fresh rows is too.
    let d = 40;
    let reader = reader(60, &[d], 2);
    let options = Options { per_decade: 4, ..Options::default() };
    let found = &block_fisher(&reader, &options, &NoProgress).unwrap()[0];
    let covariance = Covariance::fit(&reader, &NoProgress).unwrap();
    let expected = |rel: f64| {
        let eigen = SymmetricEigen::of(covariance.block(0)).unwrap();
        let truth = Array2::from_diag(&(0..d).map(|j| (1.0 + j as f64).powi(-2)).collect::<ndarray::Array1<f64>>());
        let fold = Fold { held_out: moments_along(&eigen.vectors, truth.view()), values: eigen.values };
        log_likelihood(&[fold], rel * covariance.mean_diagonals()[0])
    };
    let best = found.points.iter().map(|p| expected(p.damping_rel)).fold(f64::NEG_INFINITY, f64::max);
    let chosen = expected(found.chosen.damping_rel);
    // Half of the rows ask for a little more damping than all of them; the loss is small against that of a bad choice.
    assert!(
        best - chosen < 0.1 * (best - expected(1.0)) && best - chosen < 0.1 * (best - expected(1e-5)),
        "{best} {chosen}"
    );
}

#[test]
fn order_and_threads_do_not_matter_and_rows_without_gradient_are_defined() {
    let reader = reader(90, &[5, 4], 3);
    let run = || block_fisher(&reader, &Options::default(), &NoProgress).unwrap();
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    assert_eq!(pool(1).install(run), pool(3).install(run));
    let (ids, mut rows) = (reader.ids().to_vec(), reader.rows().clone());
    rows.slice_mut(s![.., 5..]).fill(0.0);
    let still = MemoryReader::new(gradient_spec(&[5, 4]), ids, rows, 17);
    let curves = block_fisher(&still, &Options::default(), &NoProgress).unwrap();
    assert_eq!(curves[0], run()[0]);
    assert!(curves[1].points.is_empty() && curves[1].chosen.damping_rel == 0.0);
    let factors = Covariance::fit(&still, &NoProgress).unwrap();
    let dampings: Vec<f64> = curves.iter().map(|c| c.chosen.damping_rel).collect();
    assert!(factors.cholesky_each(&dampings).is_ok() && factors.cholesky_each(&dampings[..1]).is_err());
}

#[test]
fn bad_options_and_halves_are_refused() {
    let one = reader(1, &[2], 1);
    assert!(matches!(block_fisher(&one, &Options::default(), &NoProgress), Err(MethodError::Empty { .. })));
    let rows = reader(20, &[2], 1);
    for options in [
        Options { from_rel: 0.0, ..Options::default() },
        Options { to_rel: 1e-7, ..Options::default() },
        Options { per_decade: 0, ..Options::default() },
    ] {
        assert!(matches!(block_fisher(&rows, &options, &NoProgress), Err(MethodError::Parameter { .. })));
    }
    let fold = Fold { values: vec![f64::NAN], held_out: vec![1.0] };
    assert!(curve("m", &[fold], &Options::default()).is_err());
}

/// One layer `[1, d]` whose gradients are the rows of `rows`: `x` is the row, `δ` is 1.
struct Rows {
    layer: [Layer; 1],
    rows: Array2<f32>,
}

impl CaptureSource for Rows {
    fn layers(&self) -> &[Layer] {
        &self.layer
    }

    fn len(&self) -> usize {
        self.rows.nrows()
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let own: Vec<usize> = examples.iter().map(|&e| e as usize).collect();
        let x = self.rows.select(ndarray::Axis(0), &own);
        *out = Captured {
            starts: vec![(0..=own.len()).collect()],
            layers: vec![LayerCapture { delta: Array2::ones((own.len(), 1)), x }],
            losses: vec![0.0; own.len()],
        };
        Ok(())
    }
}

#[test]
fn for_one_output_kronecker_factors_are_the_block() {
    // δ = 1 makes K-FAC's basis that of E[ggᵀ]: the curves of both routes agree.
    let rows = reader(150, &[7], 4).rows().clone();
    let ids = (0..150).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let source = Rows { layer: [Layer { name: "fc".into(), n_out: 1, n_in: 7 }], rows: rows.clone() };
    let options = Options::default();
    let fit = crate::kron::Options { labels: Labels::Given, ..Default::default() };
    let curves = kron(&source, &fit, &options, &NoProgress).unwrap();
    let block = block_fisher(&MemoryReader::new(gradient_spec(&[7]), ids, rows, 64), &options, &NoProgress).unwrap();
    for (a, b) in curves[0].points.iter().zip(&block[0].points) {
        assert!((a.log_likelihood - b.log_likelihood).abs() < 1e-5 * b.log_likelihood.abs());
    }
    // Near its top the curve is flat: the place is known to the root of what its height is.
    assert!((curves[0].chosen.damping_rel / block[0].chosen.damping_rel - 1.0).abs() < 1e-2);
    let factors = Kron::fit(&source, &fit, &NoProgress).unwrap();
    let crate::kron::Damping::PerLayer(lambdas) = per_layer(&curves, &factors).unwrap() else { panic!() };
    assert!((lambdas[0] - curves[0].chosen.damping_rel * factors.mean_eigenvalues()[0]).abs() < 1e-15);
}
