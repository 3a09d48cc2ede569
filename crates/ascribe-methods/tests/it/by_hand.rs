//! Cases worked out on paper: products and cosines, approximate inverses, segments of a run, bases of leading eigenvectors, rows kept
//! as factors, masked sparse rows, TRAK.

use ascribe_core::{Column, NoProgress};
use ascribe_linalg::Sjlt;
use ascribe_linalg::sparse::mask;
use ascribe_methods::MethodError;
use ascribe_methods::captured;
use ascribe_methods::inverse::astra::Step;
use ascribe_methods::inverse::datainf::Ridge;
use ascribe_methods::inverse::lissa::Scale;
use ascribe_methods::inverse::{Astra, AstraOptions, DataInf, DataInfOptions, InverseCurvature, Lissa, LissaOptions};
use ascribe_methods::kron::{Kind, Kron, Options as KronOptions, Segment, source_vectors};
use ascribe_methods::lorif::{self, Layout, LowRank, Options, Tail};
use ascribe_methods::normalise::{Normalisation, Own, normalise};
use ascribe_methods::projected::Projected;
use ascribe_methods::rows::InMemory;
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture};
use ascribe_methods::trak::{self, Ridge as KernelRidge, SoftThreshold};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, ArrayView2, arr2};

use crate::softmax::Dense;
use crate::support::reader;

/// One layer, one position per example: row `e` of `x` and of `delta`.
struct Given {
    layers: [Layer; 1],
    x: Array2<f32>,
    delta: Array2<f32>,
}

impl Given {
    fn new(x: Array2<f32>, delta: Array2<f32>) -> Self {
        Self { layers: [Layer { name: "fc".to_owned(), n_out: delta.ncols(), n_in: x.ncols() }], x, delta }
    }
}

impl CaptureSource for Given {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.x.nrows()
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let ids: Vec<usize> = examples.iter().map(|&e| e as usize).collect();
        let axis = ndarray::Axis(0);
        let layer = LayerCapture { x: self.x.select(axis, &ids), delta: self.delta.select(axis, &ids) };
        *out = Captured { starts: vec![(0..=ids.len()).collect()], layers: vec![layer], losses: vec![0.0; ids.len()] };
        Ok(())
    }
}

#[test]
fn datainf_by_hand() {
    // Gradients (2, 0) and (0, 1), ridge 1: the inverses are diag(1/5, 1) and diag(1, 1/2), their mean diag(3/5, 3/4).
    let source = Given::new(arr2(&[[2.0, 0.0], [0.0, 1.0]]), arr2(&[[1.0], [1.0]]));
    let options = DataInfOptions { ridge: Ridge::Absolute { value: 1.0 } };
    let datainf = DataInf::fit(&source, &options, &NoProgress).unwrap();
    let solved = datainf.solve(arr2(&[[5.0f32, 4.0], [0.0, 0.0]]).view()).unwrap();
    assert_eq!(solved, arr2(&[[3.0, 3.0], [0.0, 0.0]]));
    // A tenth of the mean eigenvalue, (4 + 1)/2/2 · 0.1.
    let relative = DataInf::fit(&source, &DataInfOptions::default(), &NoProgress).unwrap();
    assert_eq!(relative.ridges(), [0.125]);
}

#[test]
fn lissa_by_hand() {
    // H + λ = diag(2, 4), s = 8, v = (8, 16): r₁ = v + v − (2, 8) = (14, 24), r₂ = v + r₁ − (3.5, 12) = (18.5, 28), x = r₂/8.
    let operator = Dense::diagonal(&[1.0, 3.0]);
    let scale = Scale::Fixed { value: 8.0 };
    let after = |depth, damping| {
        let options = LissaOptions { damping, depth, batch: 0, scale, ..Default::default() };
        Lissa::new(&operator, &options).unwrap().solve(arr2(&[[8.0f32, 16.0]]).view()).unwrap()
    };
    assert_eq!(after(1, 1.0), arr2(&[[1.75, 3.0]]));
    assert_eq!(after(2, 1.0), arr2(&[[2.3125, 3.5]]));
}

#[test]
fn astra_by_hand() {
    // H + λ = diag(2, 4), preconditioner ½, q = (8, 16): x₀ = (4, 8), r = (0, 16), m = (0, 8), x₁ = x₀ − m/2 = (4, 4);
    // then r = 0 and the momentum ½·m moves on: x₂ = (4, 2), or half as far where the step falls to 0 (halfway at the second).
    let operator = Dense::diagonal(&[1.0, 3.0]);
    let half = |rows: ArrayView2<'_, f32>| Ok::<_, MethodError>(rows.mapv(|v| v / 2.0));
    let run = |passes, step_last| {
        let (step, momentum) = (Step::Fixed { value: 0.5 }, 0.5);
        let options = AstraOptions { damping: 1.0, passes, batch: 0, step, step_last, momentum, seed: 0 };
        let astra = Astra::new(&operator, &half, &options).unwrap();
        astra.run(arr2(&[[8.0f32, 16.0]]).view(), &NoProgress).unwrap()
    };
    assert_eq!(run(1.0, 1.0).rows, arr2(&[[4.0, 4.0]]));
    let two = run(2.0, 1.0);
    assert_eq!(two.rows, arr2(&[[4.0, 2.0]]));
    assert_eq!(two.residuals, [[16.0 / 320f64.sqrt()], [0.0]]);
    assert_eq!(run(2.0, 0.0).rows, arr2(&[[4.0, 3.0]]));
}

#[test]
fn leading_bases_by_hand() {
    // Inputs (3, 4)·2 and (−4, 3): the leading direction is (3, 4)/5. Output gradients lie along the second axis.
    let source = Given::new(arr2(&[[6.0, 8.0], [-4.0, 3.0]]), arr2(&[[0.0, 1.0], [0.0, 1.0]]));
    let options = KronOptions { kind: Kind::Ekfac, labels: Labels::Given, redraw: false };
    let bases = Kron::fit(&source, &options, &NoProgress).unwrap().leading(1, 1).unwrap();
    let (input, output) = (&bases[0].input, &bases[0].output);
    assert!((input[(0, 0)].abs() - 0.6).abs() < 1e-12 && (input[(0, 1)].abs() - 0.8).abs() < 1e-12, "{input}");
    assert!(output[(0, 0)].abs() < 1e-12 && (output[(0, 1)].abs() - 1.0).abs() < 1e-12, "{output}");
    // What is left of the gradients: lengths 10 and 0.
    let projected = Projected::new(&source, &bases).unwrap();
    let kept = captured::gradients(&projected, &[0, 1], Labels::Given).unwrap();
    assert!((kept[(0, 0)].abs() - 10.0).abs() < 1e-5 && kept[(1, 0)].abs() < 1e-5, "{kept}");
}

#[test]
fn factored_rows_by_hand() {
    // Matrices 3 × 3 of rank 1: 2·e₁e₁ᵀ and e₂e₂ᵀ. H has 2 at the first entry and ½ at the middle one, trace 2.5, λ = 1.
    let layout = Layout::new(&[Column { name: "fc".into(), start: 0, len: 6 }], &[Some([3, 3])], 1).unwrap();
    let mut spec = gradient_spec(&[6]);
    spec.columns = layout.stored_columns();
    let stored = arr2(&[[2.0, 0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]]);
    let train = MemoryReader::new(spec, reader(2, &[1], 2).ids().to_vec(), stored, 10);
    // (1, 1, 0)ᵀ(3, 1, 0): 3 at the first entry, 1 at the middle one.
    let query = arr2(&[[1.0, 1.0, 0.0, 3.0, 1.0, 0.0]]);
    for (tail, rest) in [(Tail::Zero, 1.0), (Tail::Mean, 1.0 + 0.5 / 8.0)] {
        let options = Options { rank: 1, oversample: 9, passes: 0, damping_rel: 3.6, tail, seed: 0 };
        let rows = lorif::Expanded::new(&train, &layout).unwrap();
        let low = LowRank::fit(&rows, options, &NoProgress).unwrap();
        assert!((low.lambda(0) - 1.0).abs() < 1e-12 && (low.values(0)[0] - 2.0).abs() < 1e-12);
        let found = lorif::score(&train, query.view(), &layout, &low, &NoProgress).unwrap().values;
        // The kept direction is divided by 2 + λ, everything else by what is taken of the rest.
        for (found, expected) in found.iter().zip([2.0 * 3.0 / 3.0, 1.0 / rest]) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{tail:?}: {found} against {expected}");
        }
    }
}

#[test]
fn dot_and_cosine_by_hand() {
    // Gradients δxᵀ: (2, 4) of the query; (3, 0), (2, −1) and (−1, −2) of the examples.
    let query = Given::new(arr2(&[[1.0, 2.0]]), arr2(&[[2.0]]));
    let train = Given::new(arr2(&[[3.0, 0.0], [-2.0, 1.0], [1.0, 2.0]]), arr2(&[[1.0], [-1.0], [-1.0]]));
    let rows = captured::gradients(&query, &[0], Labels::Given).unwrap();
    let mut scores = captured::score(&train, rows.view(), Labels::Given, &NoProgress).unwrap();
    assert_eq!(scores, arr2(&[[6.0, 0.0, -10.0]]));
    let own = |source: &Given| captured::square_norms(source, Labels::Given, &NoProgress).unwrap();
    let (query, train) = (own(&query), own(&train));
    assert_eq!((query.as_slice(), train.as_slice()), (&[20.0][..], &[9.0, 5.0, 5.0][..]));
    let own = Own { query: Some(&query), train: Some(&train), moved: None };
    normalise(&mut scores, Normalisation::Cosine, &own).unwrap();
    // 6/√(20·9), 0, −10/√(20·5).
    for (found, expected) in scores.iter().zip([1.0 / 5f64.sqrt(), 0.0, -1.0]) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{scores}");
    }
}

/// Factors of one weight: gradients ±2, curvature 4.
fn one_weight() -> Kron {
    let source = Given::new(arr2(&[[1.0], [1.0]]), arr2(&[[2.0], [-2.0]]));
    let options = KronOptions { kind: Kind::Ekfac, labels: Labels::Given, redraw: false };
    Kron::fit(&source, &options, &NoProgress).unwrap()
}

#[test]
fn source_of_one_weight_by_hand() {
    // Momentum ½ doubles the reach of rates that add up to ¼: k = ½, kh = 2, (1 − e⁻²)/4 of a query of 1, and 3 of those of 3.
    let kron = one_weight();
    let segment = Segment { factors: &kron, learning_rate_sum: 0.25, momentum: 0.5, weight_decay: 0.0 };
    let found = source_vectors(&[segment], arr2(&[[1.0], [3.0]]).view()).unwrap().remove(0);
    let hand = (1.0 - (-2f64).exp()) / 4.0;
    assert!((f64::from(found[(0, 0)]) - hand).abs() < 1e-7 && (f64::from(found[(1, 0)]) - 3.0 * hand).abs() < 1e-6);
    // L2 is curvature: with 1 the weight has 5, kh = 2.5.
    let decayed = source_vectors(&[Segment { weight_decay: 1.0, ..segment }], arr2(&[[1.0]]).view()).unwrap();
    assert!((f64::from(decayed[0][(0, 0)]) - (1.0 - (-2.5f64).exp()) / 5.0).abs() < 1e-7);
}

#[test]
fn two_equal_segments_are_one_of_twice_the_sum() {
    let source = Given::new(
        Array2::from_shape_fn((40, 3), |(i, j)| ((i * 3 + j) as f32 * 0.7).sin()),
        Array2::from_shape_fn((40, 2), |(i, j)| ((i * 2 + j) as f32 * 1.3).cos()),
    );
    let options = KronOptions { kind: Kind::Ekfac, labels: Labels::Given, redraw: false };
    let kron = Kron::fit(&source, &options, &NoProgress).unwrap();
    let query = Array2::from_shape_fn((2, 6), |(q, j)| ((q * 6 + j) as f32).cos());
    let of = |sum: f64| Segment { factors: &kron, learning_rate_sum: sum, momentum: 0.9, weight_decay: 1e-3 };
    let parts = source_vectors(&[of(0.3), of(0.3)], query.view()).unwrap();
    let whole = source_vectors(&[of(0.6)], query.view()).unwrap().remove(0);
    let top = whole.iter().fold(0f32, |top, v| top.max(v.abs()));
    // What the first half adds has passed the second one: it is not the second half again.
    assert!((&parts[0] - &parts[1]).iter().any(|d| d.abs() > 1e-3 * top));
    assert!((&parts[0] + &parts[1] - &whole).iter().all(|d| d.abs() < 1e-6 * top));
}

#[test]
fn a_masked_transform_by_hand() {
    // Of 100 numbers six are kept, the first three of them not zero: 2, 3 and −1. Their places and signs in 64 numbers, two each, are
    // those that are pinned beside the transform: 21 −, 63 +; 31 −, 55 −; 4 −, 56 −. Each entry is 1/√2.
    let kept = mask(7, "layers.0.attn.qkv/in", 100, 6);
    assert_eq!(kept, [1, 32, 54, 75, 76, 82]);
    let mut gradient = vec![9.0f32; 100];
    for (&i, value) in kept.iter().zip([2.0, 3.0, -1.0, 0.0, 0.0, 0.0]) {
        gradient[i] = value;
    }
    let masked: Vec<f32> = kept.iter().map(|&i| gradient[i]).collect();
    let mut row = [0.0f32; 64];
    Sjlt::new(7, "layers.0.attn.qkv", 64, 2).add(0, &masked, &mut row);
    let mut hand = [0.0f64; 64];
    for (place, value) in [(21, -2.0), (63, 2.0), (31, -3.0), (55, -3.0), (4, 1.0), (56, 1.0)] {
        hand[place] = value / 2f64.sqrt();
    }
    for (place, (found, hand)) in row.iter().zip(hand).enumerate() {
        assert!((f64::from(*found) - hand).abs() < 1e-6, "{place}: {found} against {hand}");
    }
}

#[test]
fn trak_by_hand() {
    // ΦᵀΦ + 1 = diag(5, 2): 1·2/5·½ and 1·1/2·½.
    let rows = arr2(&[[2.0f32, 0.0], [0.0, 1.0]]);
    let (ridge, query) = (KernelRidge::Absolute { lambda: 1.0 }, arr2(&[[1.0f32, 1.0]]));
    let run = |residuals: &[f32]| {
        let rows = InMemory::new(rows.view());
        trak::score(&rows, query.view(), residuals, ridge, SoftThreshold::None, &NoProgress).unwrap().values
    };
    for (residuals, hand) in [([0.5f32, 0.5], [0.2, 0.25]), ([0.25, 1.0], [0.1, 0.5])] {
        for (found, hand) in run(&residuals).iter().zip(hand) {
            assert!((f64::from(*found) - hand).abs() < 1e-7, "{residuals:?}: {found} against {hand}");
        }
    }
}
