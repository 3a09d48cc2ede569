//! Classifiers against PyTorch (the script stands beside the fixtures), closed forms, finite differences, and themselves in
//! other company.

use std::path::{Path, PathBuf};

use ndarray::{Array2, s};
use safetensors::SafeTensors;

use super::*;
use crate::vision::ops::differences::{check, inner, noise};

pub(crate) const FIXTURES: [&str; 6] = ["lr", "mlp", "lenet-max", "lenet-average", "resnet9-pooled", "resnet9-strided"];

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision").join(name)
}

/// A fixture's model, images and reference file.
pub(crate) struct Fixture {
    pub model: Classifier,
    pub set: ImageSet,
    bytes: Vec<u8>,
}

impl Fixture {
    pub fn open(name: &str) -> Self {
        let bytes = std::fs::read(folder(name).join("reference.safetensors")).unwrap();
        let model = Classifier::open(&folder(name)).unwrap();
        let labels: Vec<u32> = serde_json::from_str(&metadata(&bytes, "labels")).unwrap();
        let images = numbers(&bytes, "images");
        let set = ImageSet::from_f32(model.config.input_shape, images, labels, &Normalization::default()).unwrap();
        Self { model, set, bytes }
    }

    pub fn ids(&self) -> Vec<u32> {
        (0..self.set.len() as u32).collect()
    }

    pub fn reference(&self, tensor: &str) -> Vec<f32> {
        numbers(&self.bytes, tensor)
    }

    pub fn metadata(&self, key: &str) -> String {
        metadata(&self.bytes, key)
    }
}

fn metadata(bytes: &[u8], key: &str) -> String {
    SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone().unwrap()[key].clone()
}

fn numbers(bytes: &[u8], name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let data = file.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}")).data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Largest difference relative to the largest number.
pub(crate) fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs() / scale))
}

pub(crate) fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

fn flat(array: &Array2<f32>) -> &[f32] {
    array.as_slice().unwrap()
}

/// Logits, embeddings, losses, margins, and the gradient of both for every image and parameter.
#[test]
fn pytorch_sees_the_same_networks() {
    for name in FIXTURES {
        let f = Fixture::open(name);
        let ids = f.ids();
        assert!(worst(flat(&f.model.logits(&f.set, &ids).unwrap()), &f.reference("logits")) < 1e-5, "{name}");
        assert!(worst(flat(&f.model.embeddings(&f.set, &ids).unwrap()), &f.reference("embeddings")) < 1e-5, "{name}");
        for (objective, key) in [(Objective::LOSS, "nll"), (Objective::MARGIN, "margin")] {
            let losses: Vec<f32> =
                f.model.losses(&f.set, &ids, objective).unwrap().into_iter().map(|x| x as f32).collect();
            assert!(worst(&losses, &f.reference(key)) < 1e-5, "{name} {key}");
            let gradients = f.model.gradients(&f.set, &ids, objective).unwrap();
            for slot in f.model.parameter_slots() {
                let reference = f.reference(&format!("{key}.{}", slot.name));
                for (row, reference) in gradients.rows().into_iter().zip(reference.chunks(slot.range.len())) {
                    let off = worst(&row.slice(s![slot.range.clone()]).to_vec(), reference);
                    assert!(off < 1e-5, "{name} {key} {}: {off}", slot.name);
                }
            }
        }
    }
}

/// Logistic regression: the gradient of image i is (p − e_y)·xᵀ for the weights and p − e_y for the biases.
#[test]
fn logistic_regression_has_its_closed_form() {
    let f = Fixture::open("lr");
    let ids = f.ids();
    let logits = f.model.logits(&f.set, &ids).unwrap();
    let gradients = f.model.gradients(&f.set, &ids, Objective::LOSS).unwrap();
    let mut x = vec![0.0; 15];
    for (i, (logits, gradient)) in logits.rows().into_iter().zip(gradients.rows()).enumerate() {
        let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        f.set.image_into(i, &mut x);
        for c in 0..3 {
            let own = f64::from(u8::from(f.set.labels()[i] == c as u32));
            let residual = f64::from(logits[c]).exp() / sum - own;
            for (j, &x) in x.iter().enumerate() {
                assert!((f64::from(gradient[c * 15 + j]) - residual * f64::from(x)).abs() < 2e-6);
            }
            assert!((f64::from(gradient[45 + c]) - residual).abs() < 1e-6);
        }
    }
}

/// Two inputs, one hidden unit, two classes, all by hand.
#[test]
fn an_mlp_by_hand() {
    let config = ClassifierConfig::new([1, 1, 2], 2, ClassifierKind::Mlp { widths: vec![2] });
    // fc1 = [[1, 0], [0, -1]] + [0, 0]; fc2 = [[1, 5], [-1, 5]] + [0, ln 3 ...]: the second hidden unit is off.
    let parameters = vec![1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 1.0, 5.0, -1.0, 5.0, 0.0, 2.0];
    let model = Classifier::from_parameters(config, parameters, vec![]).unwrap();
    let set = ImageSet::from_f32([1, 1, 2], vec![1.0, 7.0], vec![0], &Normalization::default()).unwrap();
    // h = relu(1, −7) = (1, 0); z = (1, −1 + 2) = (1, 1); p = (½, ½); δ = (−½, ½).
    assert_eq!(flat(&model.logits(&set, &[0]).unwrap()), [1.0, 1.0]);
    assert_eq!(flat(&model.embeddings(&set, &[0]).unwrap()), [1.0, 0.0]);
    let gradient = model.gradients(&set, &[0], Objective::LOSS).unwrap();
    // d_h = (−½·1 + ½·(−1), off) = (−1, 0); d_fc1 = d_h·xᵀ.
    assert_eq!(flat(&gradient), [-1.0, -7.0, 0.0, 0.0, -1.0, 0.0, -0.5, 0.0, 0.5, 0.0, -0.5, 0.5]);
}

/// Dense layer, rectifier and frozen norm: each is linear in what is moved, so differences are exact to rounding.
#[test]
fn operators_agree_with_finite_differences() {
    use ascribe_linalg::elementwise::*;
    let (w, b, x, d_y) = (noise("w", 35), noise("b", 5), noise("x", 21), noise("d", 15));
    let dense = |x: &[f32], w: &[f32]| {
        let mut y = vec![0.0; 15];
        dense_rows(x, w, &b, 7, 5, &mut y);
        inner(&y, &d_y)
    };
    let mut d_x = vec![0.0; 21];
    dense_rows_backward(&d_y, &w, 7, 5, &mut d_x);
    check(&x, &d_x, 0.5, 1e-4, |x| dense(x, &w));
    let mut d_w = vec![0.0; 35];
    for (x, d_y) in x.chunks(7).zip(d_y.chunks(5)) {
        let mut one = vec![0.0; 35];
        outer(d_y, x, &mut one);
        add_assign(&mut d_w, &one);
    }
    check(&w, &d_w, 0.5, 1e-4, |w| dense(&x, w));

    let rectified = |x: &[f32]| {
        let mut y = x.to_vec();
        relu(&mut y);
        inner(&y, &d_y)
    };
    let mut d = d_y.clone();
    let mut y = x[..15].to_vec();
    relu(&mut y);
    relu_backward(&y, &mut d);
    check(&x[..15], &d, 1e-3, 1e-3, rectified);

    let f = Fixture::open("resnet9-pooled");
    let (i, node) = f.model.network.nodes.iter().enumerate().find(|(_, n)| matches!(n.op, Op::Norm { .. })).unwrap();
    let Op::Norm { gain, bias, mean, .. } = &node.op else { unreachable!() };
    let (x, d_y, area) = (noise("x", 4 * 6), noise("d_y", 4 * 6), 6);
    let normed = |model: &Classifier, x: &[f32]| {
        let norm = model.frozen(&model.network.nodes[i]);
        let mut y = vec![0.0; x.len()];
        channel_affine(x, &norm.scale, &norm.shift, area, &mut y);
        inner(&y, &d_y)
    };
    let norm = f.model.frozen(node);
    let means = &f.model.buffers[mean.clone()];
    let (d_gain, d_bias) = pass::norm_gradients(&x, &d_y, means, &norm.inverse, area);
    let mut d_x = vec![0.0; x.len()];
    channel_backward(&x, &d_y, means, &norm.scale, &[0.0; 4], &[0.0; 4], area, &mut d_x);
    check(&x, &d_x, 0.5, 1e-4, |x| normed(&f.model, x));
    for (range, gradient) in [(gain, d_gain), (bias, d_bias)] {
        check(&f.model.parameters[range.clone()], &gradient, 0.5, 1e-4, |moved| {
            let mut model = f.model.clone();
            model.parameters[range.clone()].copy_from_slice(moved);
            normed(&model, &x)
        });
    }
}

/// Everything for one image alone, in other company, in another order, on other numbers of threads.
#[test]
fn company_order_and_threads_do_not_change_a_bit() {
    for name in FIXTURES {
        let f = Fixture::open(name);
        let stage = ClassifierStage::new(&f.model, ClassifierTaps::all(5, 3)).unwrap();
        let work = |ids: &[u32]| -> Vec<Vec<u32>> {
            let objective = Objective { measure: Measure::CrossEntropy, target: Target::Sampled { seed: 4 } };
            let mut rows = Array2::zeros((ids.len(), stage.dim()));
            let mut norms = vec![0.0; ids.len()];
            let losses = stage.rows(&f.set, ids, objective, rows.view_mut(), Some(&mut norms)).unwrap();
            let parts = [
                f.model.logits(&f.set, ids).unwrap(),
                f.model.embeddings(&f.set, ids).unwrap(),
                f.model.gradients(&f.set, ids, objective).unwrap(),
                rows,
            ];
            (0..ids.len())
                .map(|i| {
                    let mut all: Vec<u32> = parts.iter().flat_map(|part| bits(&part.row(i).to_vec())).collect();
                    all.extend([norms[i].to_bits(), (losses[i] as f32).to_bits()]);
                    all
                })
                .collect()
        };
        // More than any group holds, and not a multiple of it.
        let many: Vec<u32> = (0..71).map(|i| (i * 5 + i / 6) % 6).collect();
        let all = work(&many);
        let alone: Vec<Vec<u32>> = (0..6).map(|id| work(&[id]).remove(0)).collect();
        for (row, &id) in all.iter().zip(&many) {
            assert_eq!(row, &alone[id as usize], "{name}, image {id}");
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| work(&many)), all, "{name}");
    }
}

/// The second route to a row: the full gradient between both projectors.
#[test]
fn rows_are_projections_of_the_full_gradient() {
    for name in FIXTURES {
        let f = Fixture::open(name);
        let ids = f.ids();
        let full = f.model.gradients(&f.set, &ids, Objective::MARGIN).unwrap();
        for k in [3, 1 << 20] {
            let taps = ClassifierTaps { k_out: k.min(1 << 19), ..ClassifierTaps::all(5, k) };
            let stage = ClassifierStage::new(&f.model, taps).unwrap();
            let mut rows = Array2::from_elem((6, stage.dim()), f32::NAN);
            stage.rows(&f.set, &ids, Objective::MARGIN, rows.view_mut(), None).unwrap();
            for column in stage.columns() {
                let got = rows.slice(s![.., column.start..column.start + column.len]);
                let slots = f.model.parameter_slots();
                let Some(slot) = slots.iter().find(|slot| slot.name == format!("{}.weight", column.name)) else {
                    let slot = slots.iter().find(|slot| slot.name == column.name).unwrap();
                    assert_eq!(got, full.slice(s![.., slot.range.clone()]), "{name} {}", column.name);
                    continue;
                };
                let (fan_out, fan_in) = (slot.shape[0], slot.shape[1..].iter().product());
                let p = ascribe_linalg::TwoSided::new(5, &column.name, fan_in, fan_out, k, k.min(1 << 19));
                for (got, full) in got.rows().into_iter().zip(full.rows()) {
                    let g = full.slice(s![slot.range.clone()]);
                    let exact = p.p_out.t().dot(&g.to_shape((fan_out, fan_in)).unwrap()).dot(&p.p_in);
                    let off = worst(&got.to_vec(), &exact.iter().copied().collect::<Vec<_>>());
                    assert!(off < 1e-5, "{name} {} {k}: {off}", column.name);
                }
            }
            if k > 3 {
                assert_eq!(stage.dim(), f.model.parameters().len(), "{name}: nothing is left out");
            }
        }
    }
}

#[test]
fn patterns_choose_modules() {
    let f = Fixture::open("resnet9-pooled");
    let taps = |modules: &[&str], exclude: &[&str]| ClassifierTaps {
        modules: modules.iter().map(|&m| m.into()).collect(),
        exclude: exclude.iter().map(|&m| m.into()).collect(),
        biases: false,
        norms: false,
        ..ClassifierTaps::all(5, 2)
    };
    let stage = ClassifierStage::new(&f.model, taps(&["res*.0", "classifier.2"], &["*1.1.0"])).unwrap();
    let names: Vec<&str> = stage.columns().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["res1.0.0", "res2.0.0", "res2.1.0", "classifier.2"]);
    let all = ClassifierStage::new(&f.model, ClassifierTaps::all(5, 2)).unwrap();
    let rows = |stage: &ClassifierStage<'_>| {
        let mut rows = Array2::zeros((1, stage.dim()));
        stage.rows(&f.set, &[2], Objective::LOSS, rows.view_mut(), None).unwrap();
        rows
    };
    let (a, b) = (rows(&all), rows(&stage));
    for column in stage.columns() {
        let same = all.columns().iter().find(|c| c.name == column.name).unwrap();
        let part = |rows: &Array2<f32>, start| rows.slice(s![0, start..start + column.len]).to_vec();
        assert_eq!(part(&a, same.start), part(&b, column.start), "{}", column.name);
    }
    let message = ClassifierStage::new(&f.model, taps(&["layer4"], &[])).unwrap_err().to_string();
    assert!(message.contains("layer4") && message.contains("res1.0.0"), "{message}");
    assert!(ClassifierStage::new(&f.model, taps(&[], &[])).is_err());
    assert!(ClassifierStage::new(&f.model, ClassifierTaps::all(1, 0)).is_err());
}

/// With labels drawn from the model, the mean gradient vanishes and the mean of squares is the Fisher diagonal.
#[test]
fn sampled_labels_give_the_true_fisher() {
    let f = Fixture::open("lr");
    let logits = f.model.logits(&f.set, &[1]).unwrap();
    let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
    let p: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp() / sum).collect();
    let n = 3000;
    let (mut mean, mut square) = ([0.0; 3], [0.0; 3]);
    for seed in 0..n {
        let objective = Objective { measure: Measure::CrossEntropy, target: Target::Sampled { seed } };
        let gradient = f.model.gradients(&f.set, &[1], objective).unwrap();
        for c in 0..3 {
            let g = f64::from(gradient[(0, 45 + c)]);
            mean[c] += g / n as f64;
            square[c] += g * g / n as f64;
        }
    }
    for c in 0..3 {
        // A Bernoulli's mean and variance; five standard errors (of the square: at most 1/4 of its range).
        assert!(mean[c].abs() < 5.0 * (p[c] * (1.0 - p[c]) / n as f64).sqrt(), "{mean:?}");
        assert!((square[c] - p[c] * (1.0 - p[c])).abs() < 5.0 * 0.5 / (n as f64).sqrt(), "{square:?}");
    }
    let given = [2, 0];
    let objective = Objective { measure: Measure::CrossEntropy, target: Target::Given(&given) };
    let losses = f.model.losses(&f.set, &[1, 1], objective).unwrap();
    assert!((losses[0] + p[2].ln()).abs() < 1e-5 && (losses[1] + p[0].ln()).abs() < 1e-5);
}

#[test]
fn what_is_saved_is_loaded_bit_for_bit() {
    for name in FIXTURES {
        let dir = tempfile::tempdir().unwrap();
        let model = Classifier::open(&folder(name)).unwrap();
        model.save_config(dir.path()).unwrap();
        let digest = model.save(&dir.path().join(WEIGHTS_FILE), RowType::F32, &BTreeMap::new()).unwrap();
        let again = Classifier::open(dir.path()).unwrap();
        assert_eq!(bits(again.parameters()), bits(model.parameters()));
        assert_eq!(bits(again.buffers()), bits(model.buffers()));
        assert_eq!((again.config(), again.file_digest()), (model.config(), Some(digest)));
    }
}

#[test]
fn spoilt_files_are_refused_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let model = Classifier::open(&folder("resnet9-strided")).unwrap();
    let path = dir.path().join(WEIGHTS_FILE);
    let refused = |spoil: &dyn Fn(&mut Vec<Tensor<'_>>), parts: &[&str]| {
        let mut all = [
            tensors(model.parameter_slots(), &model.parameters, ""),
            tensors(model.buffer_slots(), &model.buffers, ""),
        ]
        .concat();
        spoil(&mut all);
        std::fs::write(&path, weights::to_bytes(&all, RowType::F32, &BTreeMap::new())).unwrap();
        let message = Classifier::load(model.config.clone(), &path).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let place = |all: &[Tensor<'_>], name: &str| all.iter().position(|t| t.name == name).unwrap();
    refused(&|all| all.truncate(all.len() - 1), &["6.1.running_var", "missing"]);
    refused(&|all| all[0].name = "0.0.wait".into(), &["0.0.weight", "missing"]);
    refused(&|all| all.push(Tensor { name: "9.bias".into(), ..all[0].clone() }), &["9.bias", "does not belong"]);
    refused(&|all| all[0].shape = &[2, 4, 3, 3], &["0.0.weight", "[4, 2, 3, 3]", "[2, 4, 3, 3]"]);
    refused(
        &|all| {
            let i = place(all, "9.weight");
            all[i].numbers = &[f32::NAN; 21];
        },
        &["9.weight", "finite"],
    );
    refused(
        &|all| {
            let i = place(all, "1.1.running_var");
            all[i].numbers = &[1.0, 1.0, -1.0, 1.0, 1.0];
        },
        &["1.1.running_var", "-1"],
    );
    std::fs::write(&path, b"nothing").unwrap();
    assert!(matches!(Classifier::load(model.config.clone(), &path), Err(ModelError::Format { .. })));
    let short = Classifier::from_parameters(model.config.clone(), vec![0.0; 3], model.buffers.clone());
    assert!(matches!(short, Err(ModelError::Mismatch { .. })));
}

#[test]
fn questions_that_do_not_fit_are_refused() {
    let (f, mlp) = (Fixture::open("lenet-max"), Fixture::open("mlp"));
    assert!(f.model.logits(&mlp.set, &[0]).unwrap_err().to_string().contains("[2, 16, 17]"));
    assert!(f.model.logits(&f.set, &[0, 6]).unwrap_err().to_string().contains("below 6"));
    let strange = f.set.clone().with_labels(vec![0, 0, 0, 0, 0, 3]).unwrap();
    assert!(f.model.losses(&strange, &[0], Objective::LOSS).is_ok());
    assert!(f.model.losses(&strange, &[5], Objective::LOSS).unwrap_err().to_string().contains("below 3"));
    let given = |classes| Objective { measure: Measure::Margin, target: Target::Given(classes) };
    assert!(f.model.losses(&f.set, &[0], given(&[3])).is_err());
    assert!(f.model.losses(&f.set, &[0], given(&[1, 1])).is_err());
    assert!(f.model.gradients_into(&f.set, &[0], Objective::LOSS, &mut [0.0; 5]).is_err());
    // Rows of a table fit a dense network whatever their shape says.
    let table = ImageSet::from_f32([1, 1, 20], vec![0.5; 20], vec![0], &Normalization::default()).unwrap();
    assert!(mlp.model.logits(&table, &[0]).is_ok());
    assert!(f.model.logits(&f.set, &[]).unwrap().is_empty());
}
