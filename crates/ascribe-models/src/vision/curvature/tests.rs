//! Curvature products against finite differences of gradients, the closed form of logistic regression, per-image outer
//! products, and themselves in other company.

use ndarray::{Array2, s};

use super::*;
use crate::vision::network::Op;
use crate::vision::ops::differences::{inner, noise};
use crate::vision::pass::Workspace;
use crate::vision::tests::{FIXTURES, Fixture};
use crate::vision::{ClassifierConfig, ClassifierKind, ImageSet, Normalization};

fn vectors(name: &str, rows: usize, dim: usize) -> Array2<f32> {
    Array2::from_shape_vec((rows, dim), noise(name, rows * dim)).unwrap()
}

fn products(model: &Classifier, set: &ImageSet, ids: &[u32], kind: Curvature, v: &Array2<f32>) -> Array2<f32> {
    let mut out = Array2::from_elem(v.dim(), f32::NAN);
    model.curvature_products(set, ids, kind, v.view(), out.view_mut()).unwrap();
    out
}

fn worst(a: &[f32], b: &[f64]) -> f64 {
    let largest = b.iter().fold(0f64, |top, x| top.max(x.abs()));
    assert!(largest > 0.0, "zeros prove nothing");
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / largest
}

/// The model with weights moved by `step` along `v` (layer form).
fn moved(model: &Classifier, v: &[f32], step: f32) -> Classifier {
    let flat = model.from_layers(v).unwrap();
    let parameters = model.parameters().iter().zip(flat).map(|(p, v)| p + step * v).collect();
    Classifier::from_parameters(model.config().clone(), parameters, model.buffers().to_vec()).unwrap()
}

/// Softmax of f32 logits in f64.
fn probabilities(logits: &[f32]) -> Vec<f64> {
    let exps: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// Signs of all rectifiers and places of all maxima of an image: where they stay, the network is smooth.
fn pattern(model: &Classifier, set: &ImageSet, id: u32) -> Vec<usize> {
    let (mut ws, mut pattern) = (Workspace::new(model, 1), vec![]);
    model.forward(set, &[id], &mut ws);
    for node in &model.network.nodes {
        match &node.op {
            Op::Relu => pattern.extend(ws.values[node.to].iter().map(|&x| usize::from(x > 0.0))),
            Op::Pool(pool) => {
                let mut places = vec![];
                pool.maxima(&ws.values[node.from], &mut places);
                // Among zeros it does not matter which is the largest.
                pattern.extend(places.iter().map(|&i| if ws.values[node.from][i] > 0.0 { i } else { usize::MAX }));
            }
            _ => {}
        }
    }
    pattern
}

/// Central differences of logits and gradients, image by image, with the largest step that bends no rectifier and moves no
/// maximum; images where every step does are passed over.
#[test]
fn tangents_and_hessian_agree_with_finite_differences() {
    for name in FIXTURES {
        let Fixture { model, set, .. } = Fixture::open(name);
        let mut v = vectors("directions", 4, model.layer_dim());
        let norm = inner(v.as_slice().unwrap(), v.as_slice().unwrap()).sqrt() as f32;
        v.mapv_inplace(|x| x * 4.0 / norm);
        let mut checked = 0;
        for (id, v) in (0..set.len() as u32).flat_map(|id| v.outer_iter().map(move |v| (id, v)).collect::<Vec<_>>()) {
            let at = |step: f32| moved(&model, v.as_slice().unwrap(), step);
            let smooth = |&step: &f32| {
                let here = pattern(&model, &set, id);
                [step, -step, step / 2.0, -step / 2.0].iter().all(|&s| pattern(&at(s), &set, id) == here)
            };
            let Some(step) = [4e-3, 1e-3, 2.5e-4].into_iter().find(smooth) else { continue };
            checked += 1;
            let (above, below, width) = (at(step), at(-step), f64::from(2.0 * step));
            let wide = |a: Array2<f32>| a.mapv(f64::from);
            let logits = |m: &Classifier| wide(m.logits(&set, &[id]).unwrap());
            let gradient = |m: &Classifier| wide(m.layer_gradients(&set, &[id], Objective::LOSS).unwrap());
            let v = v.to_owned().insert_axis(Axis(0));
            let tangent = model.tangents(&set, &[id], v.view()).unwrap();
            let off = distance(tangent.as_slice().unwrap(), &((logits(&above) - logits(&below)) / width));
            assert!(off < 1e-2, "{name}: logits of {id}: {off}");
            let product = products(&model, &set, &[id], Curvature::Hessian, &v);
            let off = distance(product.as_slice().unwrap(), &((gradient(&above) - gradient(&below)) / width));
            assert!(off < 3e-2, "{name}: gradient of {id} with step {step}: {off}");
        }
        assert!(checked > 0, "{name}: every image bends");
    }
}

/// Relative distance of two vectors.
fn distance(a: &[f32], b: &Array2<f64>) -> f64 {
    let off: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (off / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// `Σ_i Jᵢᵀ(diag p − p pᵀ)Jᵢ v` with the Jacobian row by row from vector-Jacobian products.
#[test]
fn gauss_newton_is_the_product_of_its_parts() {
    for name in FIXTURES {
        let Fixture { model, set, .. } = Fixture::open(name);
        let ids: Vec<u32> = (0..set.len() as u32).collect();
        let v = vectors("directions", 2, model.layer_dim());
        let ours = products(&model, &set, &ids, Curvature::GaussNewton, &v);
        let logits = model.logits(&set, &ids).unwrap();
        let c = logits.ncols();
        let jacobian: Vec<Array2<f32>> = (0..c)
            .map(|j| {
                let mut unit = Array2::zeros((ids.len(), c));
                unit.column_mut(j).fill(1.0);
                model.vjp(&set, &ids, unit.view()).unwrap()
            })
            .collect();
        for (r, v) in v.rows().into_iter().enumerate() {
            let mut expected = vec![0.0; v.len()];
            for e in 0..ids.len() {
                let p = probabilities(logits.row(e).as_slice().unwrap());
                let moved: Vec<f64> =
                    jacobian.iter().map(|j| inner(j.row(e).as_slice().unwrap(), v.as_slice().unwrap())).collect();
                let mean: f64 = p.iter().zip(&moved).map(|(p, m)| p * m).sum();
                for j in 0..c {
                    let u = p[j] * (moved[j] - mean) / ids.len() as f64;
                    expected.iter_mut().zip(jacobian[j].row(e)).for_each(|(out, &g)| *out += u * f64::from(g));
                }
            }
            let off = worst(ours.row(r).as_slice().unwrap(), &expected);
            assert!(off < 1e-4, "{name}: {off}");
            let curvature = inner(ours.row(r).as_slice().unwrap(), v.as_slice().unwrap());
            assert!(curvature > 0.0);
        }
    }
}

/// Logits (0, 0), x = (2), one bias: `H = ¼[[1, −1], [−1, 1]] ⊗ [[4, 2], [2, 1]]` by hand. Gauss–Newton is the same.
#[test]
fn logistic_regression_by_hand() {
    let set = ImageSet::from_f32([1, 1, 1], vec![2.0], vec![0], &Normalization::default()).unwrap();
    let config = ClassifierConfig::new([1, 1, 1], 2, ClassifierKind::LogisticRegression);
    let model = Classifier::from_parameters(config, vec![0.0; 4], vec![]).unwrap();
    let unit = Array2::eye(4);
    let expected = [[4.0, 2.0, -4.0, -2.0], [2.0, 1.0, -2.0, -1.0], [-4.0, -2.0, 4.0, 2.0], [-2.0, -1.0, 2.0, 1.0]];
    for kind in [Curvature::GaussNewton, Curvature::Hessian] {
        let ours = products(&model, &set, &[0], kind, &unit);
        for (ours, expected) in ours.rows().into_iter().zip(expected) {
            assert_eq!(ours.to_vec(), expected.map(|x: f32| x / 4.0), "{kind:?}");
        }
    }
    // Along the first weight the logits move by 2 and 0.
    assert_eq!(model.tangents(&set, &[0], unit.view()).unwrap().slice(s![0, 0, ..]).to_vec(), [2.0, 0.0]);
}

/// More images than a block and more vectors than a task: the mean over images is that of the means over single ones, a
/// vector's product is the same beside others but for rounding, and neither order nor threads change a bit.
#[test]
fn products_in_other_company() {
    let config = ClassifierConfig::new([1, 1, 5], 3, ClassifierKind::Mlp { widths: vec![6, 4] });
    let model = Classifier::init(config, 3).unwrap();
    let n = 1300;
    let labels = (0..n as u32).map(|i| i % 3).collect();
    let set = ImageSet::from_f32([1, 1, 5], noise("images", n * 5), labels, &Normalization::default()).unwrap();
    let ids: Vec<u32> = (0..n as u32).collect();
    let v = vectors("directions", 40, model.layer_dim());
    for kind in [Curvature::GaussNewton, Curvature::Hessian] {
        let ours = products(&model, &set, &ids, kind, &v);
        let backwards: Vec<u32> = ids.iter().rev().copied().collect();
        assert_eq!(ours, products(&model, &set, &backwards, kind, &v));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(ours, pool.install(|| products(&model, &set, &ids, kind, &v)));
        let alone = products(&model, &set, &ids, kind, &v.slice(s![33..34, ..]).to_owned());
        let wide = |row: ndarray::ArrayView1<'_, f32>| row.mapv(f64::from).to_vec();
        assert!(worst(alone.as_slice().unwrap(), &wide(ours.row(33))) < 1e-5);
        let mut mean = vec![0.0; model.layer_dim()];
        for &id in &ids {
            let one = products(&model, &set, &[id], kind, &v.slice(s![7..8, ..]).to_owned());
            mean.iter_mut().zip(&one).for_each(|(m, &x)| *m += f64::from(x) / n as f64);
        }
        assert!(worst(ours.row(7).as_slice().unwrap(), &mean) < 1e-4);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Fixture { model, set, .. } = Fixture::open("mlp");
    let dim = model.layer_dim();
    let run = |ids: &[u32], v: &Array2<f32>, shape| {
        let mut out = Array2::zeros(shape);
        model.curvature_products(&set, ids, Curvature::Hessian, v.view(), out.view_mut())
    };
    let v = vectors("directions", 2, dim);
    assert!(run(&[0], &v, (2, dim)).is_ok());
    assert!(run(&[], &v, (2, dim)).is_err());
    assert!(run(&[set.len() as u32], &v, (2, dim)).is_err());
    assert!(run(&[0], &v, (1, dim)).is_err());
    assert!(run(&[0], &vectors("short", 2, dim - 1), (2, dim - 1)).is_err());
    let mut spoilt = v.clone();
    spoilt[(1, 3)] = f32::NAN;
    let message = run(&[0], &spoilt, (2, dim)).unwrap_err().to_string();
    assert!(message.contains("row 1, column 3"), "{message}");
    // No vectors: nothing to do, nothing wrong.
    assert!(run(&[0], &Array2::zeros((0, dim)), (0, dim)).is_ok());
}

/// The matrix of a logistic regression is what its products with a basis say, and other models have none.
#[test]
fn the_whole_matrix_is_the_products_with_a_basis() {
    let stream: Vec<f32> = noise("whole", 1500 * 12);
    let labels = (0..1500).map(|i| i % 4).collect();
    let set = ImageSet::from_f32([1, 3, 4], stream, labels, &Normalization::default()).unwrap();
    let config = ClassifierConfig::new([1, 3, 4], 4, ClassifierKind::LogisticRegression);
    let model = Classifier::init(config, 3).unwrap();
    // More than a stretch, out of order; an image that is not meant.
    let ids: Vec<u32> = (1..1500).rev().collect();
    let whole = model.whole_curvature(&set, &ids).unwrap().unwrap();
    let dim = model.layer_dim();
    assert_eq!((dim, whole.dim()), (52, (52, 52)));
    for kind in [Curvature::GaussNewton, Curvature::Hessian] {
        let by_products = products(&model, &set, &ids, kind, &Array2::eye(dim));
        let off = worst(by_products.as_slice().unwrap(), whole.as_slice().unwrap());
        assert!(off < 1e-6, "{kind:?}: {off}");
    }
    // By hand: one class against another moves together in no direction, so rows sum to zero over classes.
    for (i, row) in whole.rows().into_iter().enumerate() {
        let sum: f64 = (0..4).map(|o| row[o * 13 + 12]).sum();
        assert!(sum.abs() < 1e-7, "row {i}: {sum}");
    }
    let one = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let again = one(1).install(|| model.whole_curvature(&set, &ids).unwrap().unwrap());
    assert_eq!(again, one(3).install(|| model.whole_curvature(&set, &ids).unwrap().unwrap()));
    assert!(model.whole_curvature(&set, &[]).unwrap_err().to_string().contains("at least one"));
    let kind = ClassifierKind::Mlp { widths: vec![5] };
    let other = Classifier::init(ClassifierConfig::new([1, 3, 4], 4, kind), 3).unwrap();
    assert!(other.whole_curvature(&set, &ids).unwrap().is_none());
}
