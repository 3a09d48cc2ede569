//! InverseCurvature curvature against closed forms, elimination, each other, and exact retraining.

use ascribe_core::NoProgress;
use ascribe_methods::MethodError;
use ascribe_methods::captured;
use ascribe_methods::inverse::astra::Step;
use ascribe_methods::inverse::cg::{CgQuery, Indefinite};
use ascribe_methods::inverse::datainf::Ridge as DataInfRidge;
use ascribe_methods::inverse::explicit::NotPositive;
use ascribe_methods::inverse::lissa::Scale;
use ascribe_methods::inverse::{
    Arnoldi, ArnoldiOptions, Astra, AstraOptions, Cg, CgOptions, DataInf, DataInfOptions, Explicit, ExplicitOptions,
    InverseCurvature, Lissa, LissaOptions, arnoldi::Rest, mean_eigenvalue, own_influence, own_influence_rows,
    residuals,
};
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::source::{CaptureSource, Labels, Operator};
use ascribe_testkit::Ridge;
use ndarray::{Array1, Array2, ArrayView2, Axis, arr1, arr2, s};

use crate::softmax::{Dense, Random, Softmax, clouds};
use crate::support::{queries, with_threads};

fn model() -> Softmax {
    let (x, labels) = clouds(1, 90, 6, 3);
    Softmax::fit(x, labels, 3, 0.02)
}

fn explicit(operator: &dyn Operator, damping: f64) -> Explicit {
    Explicit::form(operator, &ExplicitOptions { damping, ..Default::default() }, &NoProgress).unwrap()
}

/// Largest difference of two rows over the largest number of the second, worst row.
fn relative(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let one = |(a, b): (ndarray::ArrayView1<'_, f32>, ndarray::ArrayView1<'_, f32>)| {
        let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        f64::from(a.iter().zip(&b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / largest)
    };
    a.rows().into_iter().zip(b.rows()).map(one).fold(0.0, f64::max)
}

fn message<T>(result: Result<T, MethodError>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn explicit_by_hand() {
    // H = [[2, 1], [1, 2]], damping 1: (H + I)⁻¹ = [[3, −1], [−1, 3]]/8.
    let operator = Dense::new(arr2(&[[2.0, 1.0], [1.0, 2.0]]));
    let inverse = explicit(&operator, 1.0);
    let solved = inverse.solve(arr2(&[[8.0f32, 0.0], [0.0, 16.0], [0.0, 0.0]]).view()).unwrap();
    assert!(relative(&solved.slice(s![..2, ..]).to_owned(), &arr2(&[[3.0, -1.0], [-2.0, 6.0]])) < 1e-6);
    assert!(solved.row(2).iter().all(|&v| v == 0.0));
    assert_eq!((inverse.entry(0, 1), inverse.mean_diagonal(), inverse.asymmetry()), (1.0, 2.0, 0.0));
}

#[test]
fn explicit_influence_is_the_exact_one_of_ridge_regression() {
    let ridge = Ridge::toy();
    let n = ridge.x.nrows() as f64;
    // The mean loss has the Hessian XᵀX/n, and λ/n on top.
    let operator = Dense::new(ridge.x.t().dot(&ridge.x) / n);
    let (query_x, query_y) = (arr1(&[0.3, -0.2, 0.9, 0.1]), 2.0);
    let gradient = &query_x * (query_x.dot(&ridge.theta) - query_y);
    let query = gradient.mapv(|v| v as f32).insert_axis(Axis(0));
    let cg = Cg::new(&operator, &CgOptions { damping: ridge.lambda / n, ..Default::default() }).unwrap();
    for inverse in [&explicit(&operator, ridge.lambda / n) as &dyn InverseCurvature, &cg] {
        let solved = inverse.solve(query.view()).unwrap().mapv(f64::from);
        let scores = ridge.gradients().dot(&solved.row(0)) / n;
        for (found, exact) in scores.iter().zip(ridge.influence(&query_x, query_y)) {
            assert!((found - exact).abs() < 1e-5 * exact.abs().max(0.1), "{found} against {exact}");
        }
        // With the leverage it is what refitting does (testkit proves that): proponents are positive.
        let loss = |theta: &Array1<f64>| 0.5 * (query_x.dot(theta) - query_y).powi(2);
        let i = (0..12).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        assert!(loss(&ridge.refit_without(i)) > loss(&ridge.theta));
    }
}

#[test]
fn the_formed_matrix_is_the_hessian_by_finite_differences() {
    let model = model();
    let inverse = explicit(&model, 0.02);
    for j in 0..model.dim() {
        let moved = |by: f64| {
            let mut theta = model.theta.clone();
            theta[j] += by;
            model.total_gradient(&theta)
        };
        let column = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        for i in 0..model.dim() {
            let own = if i == j { model.ridge } else { 0.0 };
            assert!((inverse.entry(i, j) + own - column[i]).abs() < 1e-7, "{i}, {j}");
        }
    }
    assert!(inverse.asymmetry() < 1e-6);
    let mean = mean_eigenvalue(&model, 400, 1).unwrap();
    // Hutchinson's error: √(2/400)·‖H‖_F/tr(H), three times.
    let frobenius = model.hessian().iter().map(|h| h * h).sum::<f64>().sqrt();
    let tolerance = 3.0 * (2.0f64 / 400.0).sqrt() * frobenius / model.dim() as f64;
    assert!((mean - inverse.mean_diagonal()).abs() < tolerance, "{mean} {}", inverse.mean_diagonal());
}

#[test]
fn influence_predicts_exact_leave_one_out() {
    let model = model();
    let n = model.labels.len();
    let (asked, labels) = clouds(2, 5, 6, 3);
    let gradients: Vec<f64> = (0..5)
        .flat_map(|q| model.gradient(&model.theta, asked.row(q).as_slice().unwrap(), labels[q]).to_vec())
        .collect();
    let gradients = Array2::from_shape_vec((5, model.dim()), gradients).unwrap().mapv(|v| v as f32);
    let inverse = explicit(&model, model.ridge);
    let solved = inverse.solve(gradients.view()).unwrap();
    let scores = captured::score(&model, solved.view(), Labels::Given, &NoProgress).unwrap();
    let refits: Vec<Array1<f64>> = (0..n).map(|i| model.refit_without(i)).collect();
    for (q, &label) in labels.iter().enumerate() {
        let x = asked.row(q);
        let loss = |theta: &Array1<f64>| model.loss(theta, x.as_slice().unwrap(), label);
        let truth: Vec<f64> = refits.iter().map(|theta| loss(theta) - loss(&model.theta)).collect();
        let predicted: Vec<f64> = scores.row(q).iter().map(|&s| f64::from(s) / n as f64).collect();
        let correlation = pearson(&truth, &predicted);
        // First order in 1/n: what is missing is the leverage, at most a few per cent of 90 examples with 18 parameters.
        assert!(correlation > 0.99, "query {q}: {correlation}");
        let slope = truth.iter().zip(&predicted).map(|(t, p)| t * p).sum::<f64>()
            / predicted.iter().map(|p| p * p).sum::<f64>();
        assert!((0.95..1.35).contains(&slope), "query {q}: {slope}");
    }
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
    let cross = sum(&|i| (a[i] - ma) * (b[i] - mb));
    cross / (sum(&|i| (a[i] - ma).powi(2)) * sum(&|i| (b[i] - mb).powi(2))).sqrt()
}

#[test]
fn dampings_are_swept_in_place() {
    let operator = Dense::with_spectrum(40, 1e-3, 1.0);
    let mut inverse = explicit(&operator, 0.1);
    let query = queries(3, 40);
    for damping in [1.0, 1e-3, 0.1, 10.0] {
        inverse.set_damping(damping).unwrap();
        assert_eq!(inverse.solve(query.view()).unwrap(), explicit(&operator, damping).solve(query.view()).unwrap());
        for q in 0..3 {
            let exact = operator.exact(damping, query.row(q)).mapv(|v| v as f32).insert_axis(Axis(0));
            let found = inverse.solve(query.slice(s![q..=q, ..])).unwrap();
            // The matrix was formed in f32: its rounding times the condition number, at most 1e3.
            assert!(relative(&found, &exact) < 1e-4, "damping {damping}: {}", relative(&found, &exact));
        }
    }
}

#[test]
fn what_is_not_positive_definite_is_refused_clamped_or_reflected() {
    let operator = Dense::diagonal(&[4.0, -2.0, 0.0, 1.0]);
    let options = |not_positive| ExplicitOptions { damping: 1.0, not_positive, ..Default::default() };
    let form = |not_positive| Explicit::form(&operator, &options(not_positive), &NoProgress);
    let error = message(form(NotPositive::Refuse));
    assert!(error.contains("with damping 1") && error.contains("raise the damping"), "{error}");
    let query = arr2(&[[5.0f32, 6.0, 7.0, 8.0]]);
    let clamped = form(NotPositive::Clamp).unwrap();
    assert_eq!(clamped.n_negative(), Some(1));
    assert!(relative(&clamped.solve(query.view()).unwrap(), &arr2(&[[1.0, 6.0, 7.0, 4.0]])) < 1e-6);
    let mut absolute = form(NotPositive::Absolute).unwrap();
    assert!(relative(&absolute.solve(query.view()).unwrap(), &arr2(&[[1.0, 2.0, 7.0, 4.0]])) < 1e-6);
    // Without damping a direction without curvature is left out, never divided by zero.
    absolute.set_damping(0.0).unwrap();
    assert!(relative(&absolute.solve(query.view()).unwrap(), &arr2(&[[1.25, 3.0, 0.0, 8.0]])) < 1e-6);
}

#[test]
fn too_large_a_matrix_names_its_bytes() {
    let operator = Dense::diagonal(&[1.0; 10]);
    let options = ExplicitOptions { max_bytes: 799, ..Default::default() };
    let error = message(Explicit::form(&operator, &options, &NoProgress));
    assert!(error.contains("800 bytes") && error.contains("limit of 799") && error.contains("use CG"), "{error}");
}

#[test]
fn cg_is_explicit() {
    let model = model();
    let query = queries(7, model.dim());
    let reference = explicit(&model, 0.02).solve(query.view()).unwrap();
    let options = CgOptions { damping: 0.02, iterations: 200, ..Default::default() };
    let cg = Cg::new(&model, &options).unwrap();
    let found = cg.run(query.view(), &NoProgress).unwrap();
    assert!(relative(&found.rows, &reference) < 1e-5, "{}", relative(&found.rows, &reference));
    assert!(
        found.queries.iter().all(|q| q.converged && q.residual <= 1e-6 && q.iterations <= 40),
        "{:?}",
        found.queries
    );
    let fresh = residuals(&model, 0.02, found.rows.view(), query.view()).unwrap();
    assert!(fresh.iter().all(|r| *r < 1e-5), "{fresh:?}");
    // A query alone takes the same way.
    let alone = cg.solve(query.slice(s![3..4, ..])).unwrap();
    assert_eq!(alone.row(0), found.rows.row(3));
    assert_eq!(with_threads(3, || cg.solve(query.view()).unwrap()), found.rows);
}

#[test]
fn a_preconditioner_saves_iterations_and_keeps_the_answer() {
    let scales: Vec<f64> = (0..60).map(|i| 10f64.powf(i as f64 / 20.0 - 3.0)).collect();
    let mut h = Dense::with_spectrum(60, 0.5, 2.0).h;
    for ((i, j), h) in h.indexed_iter_mut() {
        *h *= (scales[i] * scales[j]).sqrt();
    }
    let operator = Dense::new(h);
    let diagonal: Vec<f64> = operator.h.diag().to_vec();
    let jacobi = move |rows: ArrayView2<'_, f32>| {
        let mut out = rows.to_owned();
        for mut row in out.rows_mut() {
            row.iter_mut().zip(&diagonal).for_each(|(v, d)| *v = (f64::from(*v) / (d + 1e-4)) as f32);
        }
        Ok::<_, MethodError>(out)
    };
    let options = CgOptions { damping: 1e-4, iterations: 400, tolerance: 1e-6, ..Default::default() };
    let query = queries(2, 60);
    let plain = Cg::new(&operator, &options).unwrap().run(query.view(), &NoProgress).unwrap();
    let helped = Cg::new(&operator, &options).unwrap().with_preconditioner(&jacobi);
    let helped = helped.run(query.view(), &NoProgress).unwrap();
    for q in 0..2 {
        assert!(helped.queries[q].converged, "{:?}", helped.queries);
        assert!(
            3 * helped.queries[q].iterations < plain.queries[q].iterations,
            "{:?} {:?}",
            helped.queries,
            plain.queries
        );
        let exact = operator.exact(1e-4, query.row(q)).mapv(|v| v as f32).insert_axis(Axis(0));
        assert!(relative(&helped.rows.slice(s![q..=q, ..]).to_owned(), &exact) < 1e-3);
    }
    let wrong = |rows: ArrayView2<'_, f32>| Ok::<_, MethodError>(rows.mapv(|v| -v));
    let cg = Cg::new(&operator, &options).unwrap().with_preconditioner(&wrong);
    assert!(message(cg.run(query.view(), &NoProgress)).contains("preconditioner"));
}

#[test]
fn cg_names_the_query_that_meets_negative_curvature() {
    let operator = Dense::diagonal(&[1.0, 2.0, -3.0]);
    let query = arr2(&[[1.0f32, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]);
    let options = CgOptions { damping: 0.5, ..Default::default() };
    let error = message(Cg::new(&operator, &options).unwrap().run(query.view(), &NoProgress));
    assert!(error.contains("query 2, step 1") && error.contains("raise the damping"), "{error}");
    let options = CgOptions { indefinite: Indefinite::Stop, ..options };
    let found = Cg::new(&operator, &options).unwrap().run(query.view(), &NoProgress).unwrap();
    assert!(found.queries[2].indefinite && !found.queries[2].converged && found.rows.row(2).iter().all(|&v| v == 0.0));
    assert!(found.queries[1].converged && found.queries[1].iterations == 0);
    assert!(relative(&found.rows.slice(s![..1, ..]).to_owned(), &arr2(&[[2.0 / 3.0, 0.4, 0.0]])) < 1e-6);
    assert!(found.queries[0].converged && !found.queries[0].indefinite);
}

#[test]
fn lissa_goes_to_explicit() {
    let model = model();
    let query = queries(4, model.dim());
    let reference = explicit(&model, 0.05).solve(query.view()).unwrap();
    // All examples in every step: what is left is (1 − 0.05/s)^J along directions without curvature.
    let full = LissaOptions { damping: 0.05, depth: 600, batch: 0, ..Default::default() };
    let lissa = Lissa::new(&model, &full).unwrap();
    let left = (1.0 - 0.05 / lissa.scale()).powi(600);
    assert!(left < 1e-4, "{left}");
    let found = lissa.solve(query.view()).unwrap();
    assert!(relative(&found, &reference) < left + 1e-5, "{}", relative(&found, &reference));
    // Batches: right in the mean, and with more repeats closer.
    let batched = LissaOptions { batch: 10, depth: 800, ..full };
    let error = |repeats| {
        let lissa = Lissa::new(&model, &LissaOptions { repeats, ..batched.clone() }).unwrap();
        relative(&lissa.solve(query.view()).unwrap(), &reference)
    };
    let (one, sixteen) = (error(1), error(16));
    assert!(one < 0.5 && sixteen < 0.15 && sixteen < one, "{one} {sixteen}");
    let lissa = Lissa::new(&model, &batched).unwrap();
    let all = lissa.solve(query.view()).unwrap();
    assert_eq!(lissa.solve(query.slice(s![2..3, ..])).unwrap().row(0), all.row(2));
    assert_eq!(with_threads(3, || lissa.solve(query.view()).unwrap()), all);
    let other = Lissa::new(&model, &LissaOptions { seed: 1, ..batched }).unwrap().solve(query.view()).unwrap();
    assert_ne!(other, all);
}

#[test]
fn lissa_notices_divergence() {
    let operator = Dense::with_spectrum(12, 0.1, 30.0);
    let small = LissaOptions { scale: Scale::Fixed { value: 10.0 }, batch: 0, depth: 50, ..Default::default() };
    let error = message(Lissa::new(&operator, &small).unwrap().solve(queries(2, 12).view()));
    assert!(error.contains("LiSSA, query 1, step 6") && error.contains("a larger scale"), "{error}");
    // The estimate is large enough, and not too large.
    let lissa = Lissa::new(&operator, &LissaOptions { batch: 0, depth: 50, ..Default::default() }).unwrap();
    assert!((30.0..46.0).contains(&lissa.scale()), "{}", lissa.scale());
    lissa.solve(queries(2, 12).view()).unwrap();
    // No curvature and no damping: there is no scale.
    let flat = Dense::diagonal(&[0.0; 3]);
    assert!(message(Lissa::new(&flat, &LissaOptions { damping: 0.0, ..Default::default() })).contains("scale"));
}

#[test]
fn arnoldi_with_a_whole_basis_is_explicit() {
    let operator = Dense::with_spectrum(30, 0.05, 2.0);
    let query = queries(3, 30);
    let reference = explicit(&operator, 0.01).solve(query.view()).unwrap();
    for block in [1, 4] {
        let options = ArnoldiOptions { damping: 0.01, basis: 30, top: 30, block, ..Default::default() };
        let arnoldi = Arnoldi::fit(&operator, &options, &NoProgress).unwrap();
        assert_eq!((arnoldi.n_basis(), arnoldi.n_dropped()), (30, 0));
        let found = arnoldi.solve(query.view()).unwrap();
        assert!(relative(&found, &reference) < 1e-4, "block {block}: {}", relative(&found, &reference));
        let gram = arnoldi.vectors().dot(&arnoldi.vectors().t());
        assert!((&gram - &Array2::<f32>::eye(30)).iter().all(|v| v.abs() < 1e-6));
    }
}

#[test]
fn arnoldi_finds_the_top_and_damps_the_rest() {
    // Five large eigenvalues above a floor of 0.01: few products find them, and the floor is what the ridge stands for.
    let mut values = vec![0.01; 50];
    values[..5].copy_from_slice(&[9.0, 7.0, 5.0, 3.0, 1.0]);
    let operator = Dense::diagonal(&values);
    let options = ArnoldiOptions { basis: 12, top: 5, ..Default::default() };
    let arnoldi = Arnoldi::fit(&operator, &options, &NoProgress).unwrap();
    for (found, exact) in arnoldi.values().iter().zip([9.0, 7.0, 5.0, 3.0, 1.0]) {
        assert!((found - exact).abs() < 1e-4 * exact, "{:?}", arnoldi.values());
    }
    let mut query = queries(2, 50);
    let top = query.slice(s![.., ..5]).to_owned();
    let found = arnoldi.solve(query.view()).unwrap();
    let expected = Array2::from_shape_fn((2, 5), |(q, i)| top[(q, i)] / values[i] as f32);
    assert!(relative(&found.slice(s![.., ..5]).to_owned(), &expected) < 1e-3);
    assert!(found.slice(s![.., 5..]).iter().all(|v| v.abs() < 1e-2));
    // H − 0.01 has rank 5: with the rest damped by 0.01 the answer is that of the shifted matrix, whole.
    values.iter_mut().for_each(|v| *v -= 0.01);
    let low_rank = Dense::diagonal(&values);
    let options = ArnoldiOptions { damping: 0.01, rest: Rest::Damped, ..options };
    let arnoldi = Arnoldi::fit(&low_rank, &options, &NoProgress).unwrap();
    assert!(arnoldi.n_basis() < 12, "the subspace of a matrix of rank 5 closes: {}", arnoldi.n_basis());
    query.row_mut(1).fill(0.0);
    let found = arnoldi.solve(query.view()).unwrap();
    let exact = operator.exact(0.0, query.row(0)).mapv(|v| v as f32).insert_axis(Axis(0));
    assert!(relative(&found.slice(s![..1, ..]).to_owned(), &exact) < 1e-3);
    assert!(found.row(1).iter().all(|&v| v == 0.0));
    assert!(message(arnoldi.projection()).contains("rest"));
}

#[test]
fn arnoldi_features_are_its_scores_and_its_self_influence() {
    let model = model();
    let options = ArnoldiOptions { basis: 18, top: 8, ..Default::default() };
    let arnoldi = Arnoldi::fit(&model, &options, &NoProgress).unwrap();
    let features = captured::score(&model, arnoldi.projection().unwrap().view(), Labels::Given, &NoProgress).unwrap();
    let ids: Vec<u32> = (0..90).collect();
    let gradients = captured::gradients(&model, &ids, Labels::Given).unwrap();
    let direct = gradients.dot(&arnoldi.solve(gradients.view()).unwrap().t());
    let products = features.t().dot(&features);
    assert!((&direct - &products).iter().all(|d| d.abs() < 1e-3), "scores of both routes");
    let own = own_influence(&arnoldi, &model, Labels::Given, &NoProgress).unwrap();
    for (a, b) in own.self_influence.iter().zip(Arnoldi::self_influence(features.view())) {
        assert!((a - b).abs() < 1e-4 * b.max(0.1), "{a} {b}");
    }
    assert_eq!(with_threads(3, || Arnoldi::fit(&model, &options, &NoProgress).unwrap()).vectors(), arnoldi.vectors());
    let negative = Arnoldi::fit(&Dense::diagonal(&[-1.0, -2.0]), &options, &NoProgress);
    assert!(message(negative).contains("positive eigenvalue"));
    let mixed = Arnoldi::fit(&Dense::diagonal(&[1.0, -2.0, 3.0]), &options, &NoProgress).unwrap();
    assert_eq!((mixed.values().len(), mixed.n_dropped()), (2, 1));
    assert!(message(Arnoldi::fit(&Dense::diagonal(&[0.0; 4]), &options, &NoProgress)).contains("positive eigenvalue"));
}

/// The mean of the examples' damped inverses, layer by layer, by elimination.
fn datainf_by_definition(source: &Random, ridges: &[f64], query: ArrayView2<'_, f32>) -> Array2<f32> {
    let ids: Vec<u32> = (0..source.n as u32).collect();
    let gradients = captured::gradients(source, &ids, Labels::Given).unwrap().mapv(f64::from);
    let mut out = Array2::zeros(query.dim());
    let mut start = 0;
    for (layer, &ridge) in source.layers.iter().zip(ridges) {
        let columns = s![.., start..start + layer.len()];
        for (q, v) in query.slice(columns).rows().into_iter().enumerate() {
            let mut mean = Array1::<f64>::zeros(layer.len());
            for g in gradients.slice(columns).rows() {
                let mut matrix = Array2::<f64>::eye(layer.len()) * ridge;
                matrix.indexed_iter_mut().for_each(|((i, j), m)| *m += g[i] * g[j]);
                mean = mean + ascribe_testkit::ridge::solve(&matrix, &v.mapv(f64::from)) / source.n as f64;
            }
            out.slice_mut(s![q, start..start + layer.len()]).assign(&mean.mapv(|v| v as f32));
        }
        start += layer.len();
    }
    out
}

#[test]
fn datainf_is_the_mean_of_inverses() {
    let source = Random::new(40, &[(3, 4), (2, 5)]);
    let query = queries(5, 22);
    let absolute = DataInfOptions { ridge: DataInfRidge::Absolute { value: 0.7 } };
    for options in [absolute, DataInfOptions::default()] {
        let datainf = DataInf::fit(&source, &options, &NoProgress).unwrap();
        let found = datainf.solve(query.view()).unwrap();
        let expected = datainf_by_definition(&source, datainf.ridges(), query.view());
        assert!(relative(&found, &expected) < 1e-5, "{}", relative(&found, &expected));
    }
    // With one example the mean of inverses is the inverse of the mean.
    let one = Random::new(1, &[(2, 3)]);
    let datainf = DataInf::fit(&one, &absolute_ridge(0.5), &NoProgress).unwrap();
    let g = captured::gradients(&one, &[0], Labels::Given).unwrap().mapv(f64::from);
    let reference = explicit(&Dense::new(g.t().dot(&g)), 0.5).solve(queries(2, 6).view()).unwrap();
    assert!(relative(&datainf.solve(queries(2, 6).view()).unwrap(), &reference) < 1e-5);
}

fn absolute_ridge(value: f64) -> DataInfOptions {
    DataInfOptions { ridge: DataInfRidge::Absolute { value } }
}

#[test]
fn datainf_in_any_company_and_pool() {
    // The first layer takes two stripes, the examples two blocks.
    let source = Random::new(300, &[(5, 1000), (2, 3)]);
    let query = queries(20, 5006);
    let datainf = DataInf::fit(&source, &DataInfOptions::default(), &NoProgress).unwrap();
    let all = datainf.solve(query.view()).unwrap();
    assert_eq!(with_threads(3, || datainf.solve(query.view()).unwrap()), all);
    assert_eq!(datainf.solve(query.slice(s![17..18, ..])).unwrap().row(0), all.row(17));
    let mut quiet = Random::new(20, &[(2, 3), (2, 2)]);
    quiet.silent = vec![1];
    let datainf = DataInf::fit(&quiet, &DataInfOptions::default(), &NoProgress).unwrap();
    let solved = datainf.solve(queries(1, 10).view()).unwrap();
    assert!(solved.slice(s![.., 6..]).iter().all(|&v| v == 0.0) && solved.iter().all(|v| v.is_finite()));
    assert!(message(DataInf::fit(&quiet, &absolute_ridge(0.0), &NoProgress)).contains("ridge"));
    let none = Random::new(0, &[(2, 3)]);
    assert!(message(DataInf::fit(&none, &DataInfOptions::default(), &NoProgress)).contains("is empty"));
}

#[test]
fn astra_removes_what_the_preconditioner_gets_wrong() {
    let model = model();
    let query = queries(3, model.dim());
    let reference = explicit(&model, 0.05).solve(query.view()).unwrap();
    let diagonal: Vec<f64> = model.hessian().diag().to_vec();
    let rough = |rows: ArrayView2<'_, f32>| {
        let mut out = rows.to_owned();
        for mut row in out.rows_mut() {
            row.iter_mut().zip(&diagonal).for_each(|(v, d)| *v = (f64::from(*v) / (d + 0.05)) as f32);
        }
        Ok::<_, MethodError>(out)
    };
    let start = relative(&rough(query.view()).unwrap(), &reference);
    let options = AstraOptions { damping: 0.05, batch: 0, passes: 150.0, ..Default::default() };
    let found = Astra::new(&model, &rough, &options).unwrap().run(query.view(), &NoProgress).unwrap();
    let end = relative(&found.rows, &reference);
    assert!(start > 0.3 && end < 1e-3, "from {start} to {end}");
    let (first, last) = (&found.residuals[0], found.residuals.last().unwrap());
    assert!(first.iter().zip(last).all(|(a, b)| *b < 1e-2 * a));
    // Batches, five passes: closer than the preconditioner, the same in any pool and company.
    let options = AstraOptions { batch: 10, passes: 5.0, ..options };
    let astra = Astra::new(&model, &rough, &options).unwrap();
    assert_eq!(astra.n_steps(), 45);
    let found = astra.solve(query.view()).unwrap();
    assert!(relative(&found, &reference) < 0.5 * start, "{} of {start}", relative(&found, &reference));
    assert_eq!(with_threads(3, || astra.solve(query.view()).unwrap()), found);
    assert_eq!(astra.solve(query.slice(s![1..2, ..])).unwrap().row(0), found.row(1));
}

#[test]
fn kronecker_factors_are_a_start_for_astra_and_cg() {
    let model = model();
    let query = queries(3, model.dim());
    let reference = explicit(&model, 0.05).solve(query.view()).unwrap();
    let kron = Kron::fit(&model, &Options::default(), &NoProgress).unwrap();
    let factors = kron.inverse(Inverse::Damped, &Damping::Absolute(0.05)).unwrap();
    let start = relative(&factors.solve(query.view()).unwrap(), &reference);
    let options = AstraOptions { damping: 0.05, batch: 10, ..Default::default() };
    let astra = Astra::new(&model, &factors, &options).unwrap().solve(query.view()).unwrap();
    assert!(relative(&astra, &reference) < 0.6 * start, "{} of {start}", relative(&astra, &reference));
    let options = CgOptions { damping: 0.05, ..Default::default() };
    let plain = Cg::new(&model, &options).unwrap();
    let found = plain.clone().with_preconditioner(&factors).run(query.view(), &NoProgress).unwrap();
    assert!(relative(&found.rows, &reference) < 1e-5);
    let plain = plain.run(query.view(), &NoProgress).unwrap();
    let steps = |queries: &[CgQuery]| queries.iter().map(|q| q.iterations).sum::<usize>();
    assert!(steps(&found.queries) < steps(&plain.queries), "{:?} {:?}", found.queries, plain.queries);
}

#[test]
fn astra_rests_at_the_answer_and_notices_divergence() {
    let operator = Dense::with_spectrum(20, 0.1, 3.0);
    let inverse = explicit(&operator, 0.01);
    let query = queries(2, 20);
    let options = AstraOptions { batch: 0, ..Default::default() };
    let found = Astra::new(&operator, &inverse, &options).unwrap().solve(query.view()).unwrap();
    assert!(relative(&found, &inverse.solve(query.view()).unwrap()) < 1e-5);
    let loud = |rows: ArrayView2<'_, f32>| Ok::<_, MethodError>(rows.mapv(|v| 50.0 * v));
    let options = AstraOptions { batch: 4, passes: 50.0, step: Step::Fixed { value: 0.1 }, ..options };
    let error = message(Astra::new(&operator, &loud, &options).unwrap().run(query.view(), &NoProgress));
    assert!(error.contains("ASTRA, query 0") && error.contains("a smaller step"), "{error}");
    // An estimated step knows that this preconditioner is fifty times too loud: the largest eigenvalue is 50·(3 + 0.01).
    let options = AstraOptions { step: Step::Estimated { fraction: 1.0 }, ..options };
    let astra = Astra::new(&operator, &loud, &options).unwrap();
    assert!((1.0 / astra.step() - 150.5).abs() < 8.0, "{}", astra.step());
    astra.run(query.view(), &NoProgress).unwrap();
    for (bad, field) in [
        (AstraOptions { momentum: 1.0, ..options.clone() }, "momentum"),
        (AstraOptions { step: Step::Fixed { value: 0.0 }, ..options.clone() }, "step"),
        (AstraOptions { passes: f64::NAN, ..options.clone() }, "passes"),
    ] {
        assert!(message(Astra::new(&operator, &loud, &bad)).contains(field));
    }
}

#[test]
fn own_influence_makes_cosines_and_relative_scores() {
    let model = model();
    let inverse = explicit(&model, 0.02);
    let ids: Vec<u32> = (0..90).collect();
    let gradients = captured::gradients(&model, &ids, Labels::Given).unwrap();
    let own = own_influence(&inverse, &model, Labels::Given, &NoProgress).unwrap();
    let rows = own_influence_rows(&inverse, gradients.view()).unwrap();
    assert_eq!(own, rows);
    let solved = inverse.solve(gradients.view()).unwrap();
    let streamed = captured::self_scores(&model, Labels::Given, &|g| inverse.solve(g), &NoProgress).unwrap();
    for (i, (own, streamed)) in own.self_influence.iter().zip(&streamed).enumerate() {
        let direct: f64 = gradients.row(i).iter().zip(solved.row(i)).map(|(&g, &x)| f64::from(g) * f64::from(x)).sum();
        assert!((own - direct).abs() < 1e-12 * direct && (streamed - direct).abs() < 1e-12 * direct);
    }
    let scores = captured::score(&model, solved.view(), Labels::Given, &NoProgress).unwrap();
    let by = Own { query: Some(&own.self_influence), train: Some(&own.self_influence), moved: Some(&own.moved) };
    let normalised = |n| {
        let mut out = scores.clone();
        normalise(&mut out, n, &by).unwrap();
        out
    };
    let cosine = normalised(Normalisation::Cosine);
    assert!((0..90).all(|i| (cosine[(i, i)] - 1.0).abs() < 1e-5) && cosine.iter().all(|c| c.abs() < 1.0 + 1e-5));
    let relative = normalised(Normalisation::RelatIf);
    for i in 0..90 {
        let length = solved.row(i).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((f64::from(relative[(4, i)]) * length - f64::from(scores[(4, i)])).abs() < 1e-5);
    }
    // ℓ-RelatIF: the example itself is its own best match.
    let unit = normalised(Normalisation::UnitTrain);
    for i in 0..90 {
        let best = (0..90).max_by(|&a, &b| unit[(i, a)].total_cmp(&unit[(i, b)])).unwrap();
        assert!(unit[(i, best)] - unit[(i, i)] < 1e-5, "query {i}: {best}");
    }
}

#[test]
fn bad_input_is_named() {
    let operator = Dense::with_spectrum(6, 0.1, 1.0);
    let inverse = explicit(&operator, 0.1);
    let cg = Cg::new(&operator, &CgOptions::default()).unwrap();
    let lissa = Lissa::new(&operator, &LissaOptions { depth: 5, ..Default::default() }).unwrap();
    let arnoldi = Arnoldi::fit(&operator, &ArnoldiOptions::default(), &NoProgress).unwrap();
    let astra = Astra::new(&operator, &inverse, &AstraOptions::default()).unwrap();
    let source = Random::new(4, &[(2, 3)]);
    let datainf = DataInf::fit(&source, &DataInfOptions::default(), &NoProgress).unwrap();
    assert_eq!(source.layers().len(), 1);
    for inverse in [&inverse as &dyn InverseCurvature, &cg, &lissa, &arnoldi, &astra, &datainf] {
        let mut rows = queries(3, 6);
        assert!(message(inverse.solve(queries(3, 5).view())).contains("rows of 6 numbers"));
        assert_eq!(inverse.solve(Array2::zeros((0, 6)).view()).unwrap().dim(), (0, 6));
        assert!(inverse.solve(Array2::zeros((2, 6)).view()).unwrap().iter().all(|&v| v == 0.0));
        rows[(1, 4)] = f32::NAN;
        assert!(message(inverse.solve(rows.view())).contains("query vectors, row 1, column 4"));
    }
    for damping in [-1.0, f64::NAN] {
        let options = ExplicitOptions { damping, ..Default::default() };
        assert!(message(Explicit::form(&operator, &options, &NoProgress)).contains("damping"));
        assert!(
            message(Cg::new(&operator, &CgOptions { damping, ..Default::default() }).map(|_| ())).contains("damping")
        );
    }
    let broken = Dense::diagonal(&[1.0, f64::NAN]);
    assert!(
        message(Explicit::form(&broken, &ExplicitOptions::default(), &NoProgress))
            .contains("products with the curvature, row 0")
    );
    let cg = Cg::new(&broken, &CgOptions::default()).unwrap();
    assert!(message(cg.solve(queries(1, 2).view())).contains("products with the curvature"));
    assert!(message(residuals(&operator, 0.0, queries(2, 6).view(), queries(3, 6).view())).contains("expected 3"));
}
