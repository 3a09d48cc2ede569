//! Factors against hand calculations, explicit Fisher matrices, dense inverses and unrolled training.

use ascribe_core::NoProgress;
use ascribe_linalg::{Cholesky, Stream};
use ndarray::{Array1, Array2, ArrayView2, arr2};

use super::*;
use crate::MethodError;
use crate::captured;
use crate::chained::Chained;
use crate::projected::Projected;
use crate::source::{CaptureSource, Captured, Layer, LayerCapture, dim};

/// Examples given as numbers: per example and layer `x` and `δ`.
struct Fixed {
    layers: Vec<Layer>,
    examples: Vec<Vec<(Array2<f32>, Array2<f32>)>>,
}

impl CaptureSource for Fixed {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.examples.len()
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        *out = Captured { losses: vec![0.0; examples.len()], ..Captured::default() };
        for l in 0..self.layers.len() {
            let mut starts = vec![0];
            let own: Vec<_> = examples.iter().map(|&e| &self.examples[e as usize][l]).collect();
            own.iter().for_each(|(x, _)| starts.push(starts[starts.len() - 1] + x.nrows()));
            let x: Vec<_> = own.iter().map(|(x, _)| x.view()).collect();
            let delta: Vec<_> = own.iter().map(|(_, d)| d.view()).collect();
            let join = |parts: &[ArrayView2<'_, f32>]| ndarray::concatenate(ndarray::Axis(0), parts).unwrap();
            out.layers.push(LayerCapture { x: join(&x), delta: join(&delta) });
            out.starts.push(starts);
        }
        Ok(())
    }
}

/// `n` Gaussian examples of layers `[n_out, n_in]` with up to `longest` positions; scales decay, so spectra do.
fn random(n: usize, shapes: &[(usize, usize)], longest: usize) -> Fixed {
    let mut stream = Stream::new(3, "kron-test");
    let mut rows =
        |t: usize, k: usize| Array2::from_shape_fn((t, k), |(_, j)| (stream.normal() / (1.0 + j as f64)) as f32);
    let mut example = |e: usize| {
        shapes.iter().map(|&(o, i)| (rows(e % longest + 1, i), rows(e % longest + 1, o))).collect::<Vec<_>>()
    };
    let layer = |(i, &(n_out, n_in)): (usize, &(usize, usize))| Layer { name: format!("fc{i}"), n_out, n_in };
    Fixed { layers: shapes.iter().enumerate().map(layer).collect(), examples: (0..n).map(&mut example).collect() }
}

fn one_layer(n_out: usize, n_in: usize, examples: Vec<(Array2<f32>, Array2<f32>)>) -> Fixed {
    let layers = vec![Layer { name: "fc".into(), n_out, n_in }];
    Fixed { layers, examples: examples.into_iter().map(|e| vec![e]).collect() }
}

fn fit(source: &Fixed, kind: Kind) -> Kron {
    Kron::fit(source, &Options { kind, labels: Labels::Given, redraw: false }, &NoProgress).unwrap()
}

fn gaussian(r: usize, p: usize) -> Array2<f32> {
    let mut stream = Stream::new(4, "kron-test/queries");
    Array2::from_shape_fn((r, p), |_| stream.normal() as f32)
}

/// `E[vec(g)vec(g)ᵀ]` of layer 0, f64.
fn fisher(source: &Fixed) -> Array2<f64> {
    let ids: Vec<u32> = (0..source.len() as u32).collect();
    let p = source.layers[0].len();
    let g = captured::gradients(source, &ids, Labels::Given).unwrap().slice(ndarray::s![.., ..p]).mapv(f64::from);
    g.t().dot(&g) / source.len() as f64
}

/// `Q_S ⊗ Q_A`, rows are eigenvectors of a flat layer.
fn turn(l: &LayerFactors) -> Array2<f64> {
    let (o, i) = (l.layer.n_out, l.layer.n_in);
    Array2::from_shape_fn((o * i, o * i), |(r, c)| l.basis.output[(r / i, c / i)] * l.basis.input[(r % i, c % i)])
}

/// The curvature that factors stand for, dense.
fn implied(l: &LayerFactors) -> Array2<f64> {
    let q = turn(l);
    let values = Array1::from_iter(l.eigenvalues());
    q.t().dot(&(&q * &values.insert_axis(ndarray::Axis(1))))
}

fn close(a: &Array2<f64>, b: &Array2<f64>, tolerance: f64) {
    let largest = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let error = (a - b).iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!(error <= tolerance * largest, "{error} > {tolerance} · {largest}");
}

#[test]
fn independent_factors_by_hand() {
    // x ∈ {(1,0), (0,2)} and δ ∈ {(1,0), (0,3)} in all four combinations: A = diag(½, 2), S = diag(½, 4½), F = S ⊗ A.
    let mut examples = Vec::new();
    for x in [[1.0, 0.0], [0.0, 2.0]] {
        for delta in [[1.0, 0.0], [0.0, 3.0]] {
            examples.push((arr2(&[x]), arr2(&[delta])));
        }
    }
    let source = one_layer(2, 2, examples);
    for kind in [Kind::Kfac, Kind::Ekfac, Kind::ShampooEvc] {
        let kron = fit(&source, kind);
        assert_eq!(kron.layers()[0].positions, 1.0);
        assert!((kron.mean_eigenvalues()[0] - (0.25 + 1.0 + 2.25 + 9.0) / 4.0).abs() < 1e-12);
        let inverse = kron.inverse(Inverse::Damped, &Damping::Absolute(0.75)).unwrap();
        let solved = inverse.solve(arr2(&[[1.0, 1.0, 1.0, 1.0]]).view()).unwrap();
        let hand = [1.0 / 1.0, 1.0 / 1.75, 1.0 / 3.0, 1.0 / 9.75];
        for (got, want) in solved.iter().zip(hand) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{kind:?}: {solved}");
        }
    }
}

#[test]
fn eigenvalues_are_those_of_the_explicit_fisher_matrix_in_the_basis() {
    for (longest, shapes) in [(1, [(3, 5)]), (4, [(3, 5)])] {
        let source = random(200, &shapes, longest);
        let dense = fisher(&source);
        for kind in [Kind::Ekfac, Kind::ShampooEvc] {
            let kron = fit(&source, kind);
            let l = &kron.layers()[0];
            let q = turn(l);
            let turned = q.dot(&dense).dot(&q.t());
            let values = l.eigenvalues();
            for (i, v) in values.iter().enumerate() {
                assert!((v - turned[(i, i)]).abs() <= 1e-5 * turned.diag().sum(), "{kind:?} {i}");
            }
            assert!((values.sum() - dense.diag().sum()).abs() <= 1e-5 * values.sum());
        }
    }
}

#[test]
fn shampoo_turns_the_gradients_second_moments_diagonal() {
    for longest in [1, 3] {
        let source = random(150, &[(4, 6)], longest);
        let kron = fit(&source, Kind::ShampooEvc);
        let l = &kron.layers()[0];
        let ids: Vec<u32> = (0..150).collect();
        let g = captured::gradients(&source, &ids, Labels::Given).unwrap().mapv(f64::from);
        let (mut input, mut output) = (Array2::zeros((6, 6)), Array2::zeros((4, 4)));
        for row in g.rows() {
            let g = row.to_shape((4, 6)).unwrap();
            input = input + g.t().dot(&g) / 150.0;
            output = output + g.dot(&g.t()) / 150.0;
        }
        let diagonal = |q: &Array2<f64>, m: &Array2<f64>, values: &[f64]| {
            close(&q.dot(m).dot(&q.t()), &Array2::from_diag(&Array1::from(values.to_vec())), 1e-6);
        };
        diagonal(&l.basis.input, &input, &l.input_values);
        diagonal(&l.basis.output, &output, &l.output_values);
    }
}

#[test]
fn gradients_of_one_direction_make_ekfac_the_fisher_matrix() {
    // g_i = c_i·u vᵀ: the Fisher matrix is E[c²]·vec(uvᵀ)vec(uvᵀ)ᵀ, and its eigenvector is one of the basis.
    let (u, v) = ([0.6f32, -0.8], [2.0f32, 1.0, -2.0]);
    let example = |c: i32| (arr2(&[v]), arr2(&[[u[0] * c as f32, u[1] * c as f32]]));
    let source = one_layer(2, 3, (1..=6).map(example).collect());
    let kron = fit(&source, Kind::Ekfac);
    let mut dense = fisher(&source);
    close(&implied(&kron.layers()[0]), &dense, 1e-6);
    dense.diag_mut().mapv_inplace(|d| d + 0.3);
    let q = gaussian(3, 6);
    let mut exact = q.mapv(f64::from);
    Cholesky::factor(dense.view()).unwrap().solve_rows(exact.view_mut());
    let inverse = kron.inverse(Inverse::Damped, &Damping::Absolute(0.3)).unwrap();
    close(&inverse.solve(q.view()).unwrap().mapv(f64::from), &exact, 1e-5);
}

#[test]
fn kfac_is_exact_for_independent_inputs_and_output_gradients() {
    let source = random(20_000, &[(3, 4)], 1);
    let dense = fisher(&source);
    // Fourth moments of Gaussians: an entry's standard error is below 3/√n of the largest, forty-odd entries.
    for kind in [Kind::Kfac, Kind::Ekfac] {
        close(&implied(&fit(&source, kind).layers()[0]), &dense, 5.0 * 3.0 / 20_000f64.sqrt());
    }
}

#[test]
fn positions_are_summed_within_an_example() {
    // Two positions that are independent: F = E[Σ_t] = 2·S⊗A in K-FAC. Identical ones: g doubles, Λ is 4-fold, K-FAC's 2-fold.
    let single = random(400, &[(2, 3)], 1);
    let twice = |e: &Vec<(Array2<f32>, Array2<f32>)>| {
        let double = |m: &Array2<f32>| ndarray::concatenate(ndarray::Axis(0), &[m.view(), m.view()]).unwrap();
        (double(&e[0].0), double(&e[0].1))
    };
    let double = one_layer(2, 3, single.examples.iter().map(twice).collect());
    for (kind, factor) in [(Kind::Kfac, 2.0), (Kind::Ekfac, 4.0), (Kind::ShampooEvc, 4.0)] {
        let (one, two) = (fit(&single, kind).mean_eigenvalues()[0], fit(&double, kind).mean_eigenvalues()[0]);
        assert!((two / one - factor).abs() < 1e-5, "{kind:?}: {}", two / one);
    }
}

#[test]
fn solving_is_the_dense_inverse() {
    let source = random(120, &[(4, 5), (3, 4)], 3);
    let q = gaussian(3, 32);
    for kind in [Kind::Kfac, Kind::Ekfac, Kind::ShampooEvc] {
        let kron = fit(&source, kind);
        let damping = Damping::Relative(0.05);
        let inverse = kron.inverse(Inverse::Damped, &damping).unwrap();
        let mut exact = q.mapv(f64::from);
        let mut start = 0;
        for l in kron.layers() {
            let mut dense = implied(l);
            let lambda = 0.05 * dense.diag().sum() / l.layer.len() as f64;
            dense.diag_mut().mapv_inplace(|d| d + lambda);
            let part = exact.slice_mut(ndarray::s![.., start..start + l.layer.len()]);
            Cholesky::factor(dense.view()).unwrap().solve_rows(part);
            start += l.layer.len();
        }
        let solved = inverse.solve(q.view()).unwrap().mapv(f64::from);
        close(&solved, &exact, 1e-6);
        let half = inverse.solve_half(q.view()).unwrap().mapv(f64::from);
        let gram = q.mapv(f64::from).dot(&solved.t());
        close(&half.dot(&half.t()), &gram, 1e-5);
        for (i, v) in inverse.self_influence_of(q.view()).unwrap().iter().enumerate() {
            assert!((v - gram[(i, i)]).abs() <= 1e-5 * v);
        }
        let own = inverse.self_influence(&source, Labels::Given, &NoProgress).unwrap();
        let solve = |g: ArrayView2<'_, f32>| inverse.solve(g);
        let second = captured::self_scores(&source, Labels::Given, &solve, &NoProgress).unwrap();
        for (a, b) in own.iter().zip(&second) {
            assert!((a - b).abs() <= 1e-4 * b, "{a} {b}");
        }
    }
}

#[test]
fn inverses_do_what_their_formulas_say() {
    let source = random(120, &[(3, 4)], 2);
    let kron = fit(&source, Kind::Kfac);
    let (l, lambda) = (&kron.layers()[0], 0.02);
    let of = |inverse| kron.inverse(inverse, &Damping::PerLayer(vec![lambda])).unwrap().inverses()[0].clone();
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    // Factored damping: (A + π√λ)⁻¹ ⊗ (T̄S + √λ/π)⁻¹.
    let pi = (mean(&l.input_values) / (l.positions * mean(&l.output_values))).sqrt();
    for ((a, b), v) in l.eigenvalues().indexed_iter() {
        let product =
            (l.input_values[b] + pi * lambda.sqrt()) * (l.positions * l.output_values[a] + lambda.sqrt() / pi);
        assert!((of(Inverse::Factored)[(a, b)] * product - 1.0).abs() < 1e-12);
        assert!((of(Inverse::Damped)[(a, b)] * (v + lambda) - 1.0).abs() < 1e-12);
        assert!((of(Inverse::Tikhonov)[(a, b)] * (v * v + lambda * lambda) / v - 1.0).abs() < 1e-12);
        assert_eq!(of(Inverse::Pseudo)[(a, b)], if *v > lambda { 1.0 / v } else { 0.0 });
    }
}

#[test]
fn threads_and_company_leave_the_bytes_alone() {
    let source = random(300, &[(20, 33), (7, 21)], 5);
    let q = gaussian(9, dim(&source.layers));
    let run = || {
        let kron = fit(&source, Kind::Ekfac);
        let inverse = kron.inverse(Inverse::Damped, &Damping::Relative(0.1)).unwrap();
        let own = inverse.self_influence(&source, Labels::Given, &NoProgress).unwrap();
        let segment = Segment { factors: &kron, learning_rate_sum: 2.0, momentum: 0.5, weight_decay: 1e-3 };
        let walked = source_vectors(&[segment, segment], q.view()).unwrap();
        (inverse.solve(q.view()).unwrap(), own, walked)
    };
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let first = pool(1).install(run);
    assert!(first == pool(3).install(run));
    let kron = fit(&source, Kind::Ekfac);
    let inverse = kron.inverse(Inverse::Damped, &Damping::Relative(0.1)).unwrap();
    assert_eq!(inverse.solve(q.slice(ndarray::s![4..5, ..])).unwrap().row(0), first.0.row(4));
}

#[test]
fn source_is_the_derivative_of_unrolled_training() {
    // Two segments of plain gradient steps on quadratics with curvature H₁, then H₂: removing a gradient from every step
    // moves the end by Σ η (I − ηH)…, computed step by step.
    let sources = [random(150, &[(3, 4)], 2), random(90, &[(3, 4)], 4)];
    let krons = sources.each_ref().map(|s| fit(s, Kind::Ekfac));
    let dense = krons.each_ref().map(|k| implied(&k.layers()[0]));
    let q = gaussian(2, 12);
    let (steps, rate) = ([40_000usize, 60_000], 2e-5);
    let segment = |l: usize| Segment {
        factors: &krons[l],
        learning_rate_sum: steps[l] as f64 * rate * 0.1,
        momentum: 0.9,
        weight_decay: 0.0,
    };
    let got = source_vectors(&[segment(0), segment(1)], q.view()).unwrap();
    let mut adjoint = q.mapv(f64::from);
    for l in [1, 0] {
        let mut reach = Array2::<f64>::zeros(adjoint.dim());
        for _ in 0..steps[l] {
            reach.scaled_add(rate, &adjoint);
            let step = adjoint.dot(&dense[l]);
            adjoint.scaled_add(-rate, &step);
        }
        // Discrete steps differ from the exponential by ηk‖H‖²/2, about 1e-4 here.
        close(&got[l].mapv(f64::from), &reach, 5e-4);
    }
}

#[test]
fn source_between_its_limits() {
    let source = random(150, &[(3, 4)], 2);
    let kron = fit(&source, Kind::Ekfac);
    let q = gaussian(2, 12);
    let at = |sum: f64| {
        let segment = Segment { factors: &kron, learning_rate_sum: sum, momentum: 0.0, weight_decay: 0.0 };
        source_vectors(&[segment], q.view()).unwrap().remove(0).mapv(f64::from)
    };
    close(&at(1e-6), &(q.mapv(f64::from) * 1e-6), 1e-4);
    let smallest = kron.layers()[0].eigenvalues().iter().fold(f64::INFINITY, |m, &v| m.min(v));
    let inverse = kron.inverse(Inverse::Damped, &Damping::Absolute(0.0)).unwrap();
    close(&at(30.0 / smallest), &inverse.solve(q.view()).unwrap().mapv(f64::from), 1e-6);
}

#[test]
fn parts_give_back_the_factors() {
    let source = random(60, &[(3, 4), (2, 3)], 2);
    let q = gaussian(2, 18);
    for kind in [Kind::Kfac, Kind::Ekfac] {
        let kron = fit(&source, kind);
        let mut parts = kron.to_parts();
        parts.reverse();
        let back = Kron::from_parts(kind, 60, source.layers(), &parts).unwrap();
        let solve = |k: &Kron| k.inverse(Inverse::Damped, &Damping::Relative(0.1)).unwrap().solve(q.view()).unwrap();
        assert_eq!(solve(&kron), solve(&back));
        assert_eq!((back.kind(), back.n_examples()), (kind, 60));
        let values = parts.iter().position(|(name, _)| name == "fc1/input_values").unwrap();
        parts[values].1[[1]] = -1.0;
        let error = Kron::from_parts(kind, 60, source.layers(), &parts).unwrap_err().to_string();
        assert!(error.contains("fc1/input_values"), "{error}");
        parts.remove(values);
        assert!(Kron::from_parts(kind, 60, source.layers(), &parts).is_err());
    }
}

/// A layer whose output gradients belong to the draw: one of two sources.
struct Drawn([Fixed; 2]);

impl CaptureSource for Drawn {
    fn layers(&self) -> &[Layer] {
        self.0[0].layers()
    }

    fn len(&self) -> usize {
        self.0[0].len()
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let Labels::Sampled { seed } = labels else { panic!("sampled labels") };
        self.0[usize::from(seed % 2 == 1)].capture(examples, labels, out)
    }
}

#[test]
fn eigenvalues_of_labels_drawn_anew() {
    // Few examples with a gradient, in many dimensions: the basis fits them.
    let draw = |seed: u64| {
        let mut stream = Stream::new(seed, "kron-redraw");
        let mut rows = |k: usize| Array2::from_shape_fn((1, k), |_| stream.normal() as f32);
        one_layer(12, 6, (0..9).map(|_| (rows(6), rows(12))).collect())
    };
    let source = Drawn([draw(0), draw(1)]);
    let fit = |redraw| Kron::fit(&source, &Options { redraw, ..Options::default() }, &NoProgress).unwrap();
    let (same, anew) = (fit(false), fit(true));
    assert_eq!(same.layers()[0].basis, anew.layers()[0].basis);
    let measured = same.measure(&source, Labels::Sampled { seed: 1 }, &NoProgress).unwrap();
    close(&anew.layers()[0].eigenvalues(), &measured[0], 1e-6);
    // Nine draws span nine of twelve outputs: nothing is left for the others, though gradients have as much there.
    let rest = |k: &Kron| k.layers()[0].eigenvalues().slice(ndarray::s![..3, ..]).mean().unwrap();
    assert!(rest(&same) < 1e-9 && (0.3..3.0).contains(&rest(&anew)), "{} {}", rest(&same), rest(&anew));
    assert_eq!(Labels::Given.redrawn(), Labels::Given);
}

#[test]
fn leading_eigenvectors_project_like_the_dense_product() {
    let source = random(80, &[(5, 7), (4, 3)], 3);
    let kron = fit(&source, Kind::Ekfac);
    let bases = kron.leading(3, 9).unwrap();
    assert_eq!((bases[0].input.dim(), bases[0].output.dim(), bases[1].input.dim()), ((3, 7), (5, 5), (3, 3)));
    assert_eq!(bases[0].input.row(0), kron.layers()[0].basis.input.row(6));
    let projected = Projected::new(&source, &bases).unwrap();
    let ids: Vec<u32> = (0..80).collect();
    let small = captured::gradients(&projected, &ids, Labels::Given).unwrap().mapv(f64::from);
    let whole = captured::gradients(&source, &ids, Labels::Given).unwrap();
    close(&small, &projected.project(whole.view()).unwrap().mapv(f64::from), 1e-6);
    let g = whole.row(11).slice(ndarray::s![..35]).mapv(f64::from).into_shape_with_order((5, 7)).unwrap();
    let by_hand = bases[0].output.dot(&g).dot(&bases[0].input.t());
    close(&small.slice(ndarray::s![11..12, ..15]).to_owned(), &by_hand.into_shape_with_order((1, 15)).unwrap(), 1e-6);
    assert!(kron.leading(0, 1).is_err());
}

#[test]
fn chained_sources_average() {
    let (a, b) = (random(50, &[(3, 4)], 2), random(77, &[(3, 4)], 3));
    let chained = Chained::new(vec![&a, &b]).unwrap();
    let joined = Fixed { layers: a.layers.clone(), examples: a.examples.iter().chain(&b.examples).cloned().collect() };
    let ids: Vec<u32> = vec![3, 49, 50, 126, 0];
    let rows = captured::gradients(&chained, &ids, Labels::Given).unwrap();
    assert_eq!(rows, captured::gradients(&joined, &ids, Labels::Given).unwrap());
    let options = Options { kind: Kind::Ekfac, labels: Labels::Given, redraw: false };
    let one = Kron::fit(&chained, &options, &NoProgress).unwrap();
    assert_eq!(one.to_parts(), fit(&joined, Kind::Ekfac).to_parts());
    let other = random(5, &[(4, 4)], 1);
    assert!(Chained::new(vec![&a, &other]).is_err() && Chained::new(Vec::new()).is_err());
}

#[test]
fn bad_input_is_refused_or_defined() {
    let mut source = random(40, &[(3, 4), (2, 3)], 2);
    source.examples.iter_mut().for_each(|e| e[1].1.fill(0.0));
    let q = gaussian(2, 18);
    // A layer without gradients: its part is zero, whatever the damping.
    for kind in [Kind::Kfac, Kind::Ekfac, Kind::ShampooEvc] {
        let kron = fit(&source, kind);
        let inverse = kron.inverse(Inverse::Damped, &Damping::Relative(0.1)).unwrap();
        let solved = inverse.solve(q.view()).unwrap();
        assert!(solved.slice(ndarray::s![.., 12..]).iter().all(|&v| v == 0.0) && solved.iter().all(|v| v.is_finite()));
    }
    // Two examples in fifteen dimensions: no inverse without damping, a pseudo-inverse with none.
    let thin = random(2, &[(3, 5)], 1);
    for kind in [Kind::Kfac, Kind::Ekfac, Kind::ShampooEvc] {
        let kron = fit(&thin, kind);
        for inverse in [Inverse::Damped, Inverse::Factored] {
            let error = kron.inverse(inverse, &Damping::Absolute(0.0)).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("fc0"), "{error}");
        }
        for inverse in [Inverse::Pseudo, Inverse::Tikhonov] {
            let inverse = kron.inverse(inverse, &Damping::Absolute(0.0)).unwrap();
            let solved = inverse.solve(gaussian(1, 15).view()).unwrap();
            let bound = 1e3 / kron.mean_eigenvalues()[0];
            assert!(solved.iter().all(|v| v.is_finite() && f64::from(v.abs()) < bound), "{kind:?} {solved}");
        }
    }
    let kron = fit(&thin, Kind::Ekfac);
    for damping in [Damping::Absolute(-1.0), Damping::Relative(f64::NAN), Damping::PerLayer(vec![1.0, 2.0])] {
        assert!(kron.inverse(Inverse::Damped, &damping).is_err());
    }
    source.examples[17][0].0[(0, 2)] = f32::NAN;
    let options = Options { kind: Kind::Ekfac, labels: Labels::Given, redraw: false };
    let error = Kron::fit(&source, &options, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("example 17") && error.contains("fc0"), "{error}");
    source.examples.clear();
    assert!(matches!(Kron::fit(&source, &options, &NoProgress), Err(MethodError::Empty { .. })));
}

/// K-FAC's inverse as a sum of products gives the scores of solved queries; a measured inverse, several positions and layers that are
/// too small for it are left to the other way.
#[test]
fn pairs_through_kfac_are_the_scores_of_solved_queries() {
    let shapes = [(60, 90), (20, 60)];
    let (train, queries) = (random(150, &shapes, 1), random(9, &shapes, 1));
    let options = |kind| Options { kind, labels: Labels::Given, redraw: false };
    let ids: Vec<u32> = (0..9).collect();
    let gradients = captured::gradients(&queries, &ids, Labels::Given).unwrap();
    let factors = Kron::fit(&train, &options(Kind::Kfac), &NoProgress).unwrap();
    for damping in [1e-8, 1e-3, 1.0] {
        let inverse = factors.inverse(Inverse::Damped, &Damping::Absolute(damping)).unwrap();
        let pairs = inverse.pair_scores(&queries, &train, Labels::Given, &NoProgress).unwrap().unwrap();
        let solved = inverse.solve(gradients.view()).unwrap();
        let expected = captured::score(&train, solved.view(), Labels::Given, &NoProgress).unwrap();
        for (ours, expected) in pairs.rows().into_iter().zip(expected.rows()) {
            let size = expected.iter().map(|v| v * v).sum::<f32>().sqrt();
            let off = ours.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(size > 0.0 && off < 1e-5 * size, "{damping}: {off} of {size}");
        }
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = alone.install(|| inverse.pair_scores(&queries, &train, Labels::Given, &NoProgress)).unwrap();
        assert_eq!(again.unwrap(), pairs);
    }
    let none = |source: &Fixed, kind| {
        let factors = Kron::fit(source, &options(kind), &NoProgress).unwrap();
        let inverse = factors.inverse(Inverse::Damped, &Damping::Relative(0.1)).unwrap();
        inverse.pair_scores(source, source, Labels::Given, &NoProgress).unwrap().is_none()
    };
    assert!(none(&train, Kind::Ekfac), "measured eigenvalues");
    assert!(none(&random(40, &[(6, 9)], 1), Kind::Kfac), "small layers");
    assert!(none(&random(40, &shapes, 3), Kind::Kfac), "several positions");
}
