//! GraSS on the softmax regression and on captures of several positions: by hand, unbiased, against formed gradients, against
//! differences of losses.

use ascribe_core::NoProgress;
use ascribe_linalg::Stream;
use ascribe_linalg::sparse::mask;
use ascribe_methods::MethodError;
use ascribe_methods::captured;
use ascribe_methods::grass::{Grass, GrassOptions};
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture};
use ndarray::{Array1, Array2, Axis, arr2};

use crate::softmax::{Softmax, clouds};
use crate::support::with_threads;

/// Two layers, three positions per example.
struct Text {
    layers: Vec<Layer>,
    n: usize,
}

impl Text {
    fn new(n: usize) -> Self {
        let layer = |name: &str, n_out, n_in| Layer { name: name.into(), n_out, n_in };
        Self { layers: vec![layer("up", 5, 4), layer("down", 3, 6)], n }
    }
}

impl CaptureSource for Text {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.n
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let rows = |name: &str, width: usize| {
            let part = |e: &u32| {
                let mut stream = Stream::new(u64::from(*e), name);
                Array2::from_shape_fn((3, width), |_| stream.normal() as f32)
            };
            let parts: Vec<Array2<f32>> = examples.iter().map(part).collect();
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            ndarray::concatenate(Axis(0), &views).unwrap()
        };
        let layer = |l: &Layer| LayerCapture {
            x: rows(&format!("{}/x", l.name), l.n_in),
            delta: rows(&format!("{}/d", l.name), l.n_out),
        };
        let starts = (0..=examples.len()).map(|e| 3 * e).collect::<Vec<_>>();
        *out = Captured {
            starts: vec![starts.clone(), starts],
            layers: self.layers.iter().map(layer).collect(),
            losses: vec![0.0; examples.len()],
        };
        Ok(())
    }
}

/// A softmax regression of 3 classes and 4 inputs: 12 weights.
fn model() -> Softmax {
    let (x, labels) = clouds(2, 30, 4, 3);
    Softmax::fit(x, labels, 3, 0.1)
}

fn options(mask: usize, dim: usize, seed: u64) -> GrassOptions {
    GrassOptions { mask, dim, seed }
}

#[test]
fn one_place_by_hand() {
    // One layer of 2 × 2: the gradient is δxᵀ = [[10, 15], [14, 21]] in row-major order. One place of four into one number: twice that
    // place's number, with a sign.
    struct One([Layer; 1]);
    impl CaptureSource for One {
        fn layers(&self) -> &[Layer] {
            &self.0
        }
        fn len(&self) -> usize {
            1
        }
        fn capture(&self, _: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
            let layer = LayerCapture { x: arr2(&[[2.0, 3.0]]), delta: arr2(&[[5.0, 7.0]]) };
            *out = Captured { starts: vec![vec![0, 1]], layers: vec![layer], losses: vec![0.0] };
            Ok(())
        }
    }
    let source = One([Layer { name: "fc".into(), n_out: 2, n_in: 2 }]);
    let mut seen = [false; 4];
    for seed in 0..20 {
        let place = mask(seed, "grass/mask", 4, 1)[0];
        let row = Grass::new(source.layers(), options(1, 1, seed)).unwrap().rows(&source, Labels::Given, &NoProgress);
        assert_eq!(row.unwrap()[(0, 0)].abs(), [20.0, 30.0, 28.0, 42.0][place], "seed {seed}");
        seen[place] = true;
    }
    assert_eq!(seen, [true; 4], "every place has its turn");
    // All places into one number: a sum with signs, which is an odd or an even number of halves off the plain one.
    let whole = Grass::new(source.layers(), options(9, 1, 3)).unwrap();
    assert_eq!(whole.n_places(), 4);
    let row = whole.rows(&source, Labels::Given, &NoProgress).unwrap()[(0, 0)];
    let sums = (0..16u32).map(|signs| {
        [10.0f32, 15.0, 14.0, 21.0].iter().enumerate().map(|(j, v)| if signs >> j & 1 == 1 { -v } else { *v }).sum()
    });
    assert!(sums.into_iter().any(|sum: f32| sum == row), "{row}");
}

#[test]
fn rows_are_the_projection_of_formed_gradients() {
    for seed in [1, 2] {
        let source = Text::new(11);
        let grass = Grass::new(source.layers(), options(17, 9, seed)).unwrap();
        let rows = grass.rows(&source, Labels::Given, &NoProgress).unwrap();
        let ids: Vec<u32> = (0..11).collect();
        let full = captured::gradients(&source, &ids, Labels::Given).unwrap();
        let expected = grass.project(full.view()).unwrap();
        assert_eq!(rows.dim(), (11, 9));
        assert!((&rows - &expected).iter().all(|d| d.abs() < 1e-5), "{rows} {expected}");
        // By the matrix itself: its columns are the images of the unit vectors.
        let width = full.ncols();
        let matrix = grass.project(Array2::<f32>::eye(width).view()).unwrap();
        assert!((&full.dot(&matrix) - &rows).iter().all(|d| d.abs() < 1e-4));
        let used = matrix.rows().into_iter().filter(|row| row.iter().any(|v| *v != 0.0)).count();
        assert_eq!(used, 17, "one entry for each kept place");
    }
}

#[test]
fn products_of_rows_are_unbiased_and_as_spread_as_the_formula_says() {
    // With every place kept, Var⟨Su, Sv⟩ = (‖u‖²‖v‖² + ⟨u,v⟩² − 2Σu²v²)/k for one entry per column.
    let source = Text::new(2);
    let full = captured::gradients(&source, &[0, 1], Labels::Given).unwrap().mapv(f64::from);
    let (u, v) = (full.row(0), full.row(1));
    let exact = u.dot(&v);
    let both: f64 = u.iter().zip(&v).map(|(a, b)| a * a * b * b).sum();
    let (k, n) = (16, 4000);
    let variance = (u.dot(&u) * v.dot(&v) + exact * exact - 2.0 * both) / k as f64;
    let product = |mask: usize, seed: u64| {
        let grass = Grass::new(source.layers(), options(mask, k, seed)).unwrap();
        let rows = grass.rows(&source, Labels::Given, &NoProgress).unwrap().mapv(f64::from);
        rows.row(0).dot(&rows.row(1))
    };
    let draws: Vec<f64> = (0..n).map(|seed| product(usize::MAX, seed)).collect();
    let mean = draws.iter().sum::<f64>() / n as f64;
    let spread = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n as f64;
    assert!((mean - exact).abs() < 4.0 * (variance / n as f64).sqrt(), "{mean} against {exact}");
    assert!((spread / variance - 1.0).abs() < 0.15, "{spread} against {variance}");
    // With half of the places, too; wider, so only the mean is held.
    let draws: Vec<f64> = (0..n).map(|seed| product(19, seed)).collect();
    let mean = draws.iter().sum::<f64>() / n as f64;
    let spread = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n as f64;
    assert!((mean - exact).abs() < 4.0 * (spread / n as f64).sqrt(), "{mean} against {exact}");
}

#[test]
fn rows_are_slopes_of_losses_along_the_transforms_directions() {
    let model = model();
    let grass = Grass::new(model.layers(), options(7, 4, 5)).unwrap();
    let rows = grass.rows(&model, Labels::Given, &NoProgress).unwrap();
    let matrix = grass.project(Array2::<f32>::eye(model.dim()).view()).unwrap().mapv(f64::from);
    let step = 1e-5;
    for i in 0..model.len() {
        let x = model.x.row(i).to_vec();
        for j in 0..4 {
            let direction: Array1<f64> = matrix.column(j).to_owned();
            let loss = |sign: f64| model.loss(&(&model.theta + &(&direction * (sign * step))), &x, model.labels[i]);
            let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
            assert!((slope - f64::from(rows[(i, j)])).abs() < 1e-5 * (1.0 + slope.abs()), "{i} {j}: {slope}");
        }
    }
}

#[test]
fn company_threads_and_bad_input() {
    let run = |n| {
        let source = Text::new(n);
        Grass::new(source.layers(), options(17, 9, 1)).unwrap().rows(&source, Labels::Given, &NoProgress).unwrap()
    };
    let all = run(40);
    assert_eq!(with_threads(1, || run(40)), with_threads(3, || run(40)));
    assert_eq!(all, run(40));
    assert_eq!(all.slice(ndarray::s![..7, ..]), run(7), "an example's row does not depend on the others");
    assert_eq!(run(0).dim(), (0, 9));
    let text = |o| Grass::new(Text::new(1).layers(), o).unwrap_err().to_string();
    assert!(text(options(0, 4, 1)).contains("mask must be at least 1"));
    assert!(text(options(4, 0, 1)).contains("dim must be at least 1"));
    assert!(Grass::new(&[], options(1, 1, 1)).unwrap_err().to_string().contains("is empty"));
    let grass = Grass::new(model().layers(), options(4, 4, 1)).unwrap();
    assert!(grass.rows(&Text::new(2), Labels::Given, &NoProgress).unwrap_err().to_string().contains("layers of"));
    assert!(grass.project(Array2::zeros((1, 5)).view()).is_err());
    // A number that is not finite is named with its example and layer.
    let (mut x, labels) = clouds(2, 5, 4, 3);
    let mut broken = Softmax::fit(x.clone(), labels.clone(), 3, 0.1);
    x[(3, 1)] = f32::NAN;
    broken.x = x;
    let grass = Grass::new(broken.layers(), options(usize::MAX, 4, 1)).unwrap();
    let error = grass.rows(&broken, Labels::Given, &NoProgress).unwrap_err().to_string();
    assert!(error.contains('3') && error.contains("fc"), "{error}");
}
