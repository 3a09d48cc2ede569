//! Cases worked out on paper: approximate inverses, bases of leading eigenvectors, rows kept as factors. Every number is exact in f32.

use ascribe_core::{Column, NoProgress};
use ascribe_methods::MethodError;
use ascribe_methods::captured;
use ascribe_methods::inverse::astra::Step;
use ascribe_methods::inverse::datainf::Ridge;
use ascribe_methods::inverse::lissa::Scale;
use ascribe_methods::inverse::{Astra, AstraOptions, DataInf, DataInfOptions, InverseCurvature, Lissa, LissaOptions};
use ascribe_methods::kron::{Kind, Kron, Options as KronOptions};
use ascribe_methods::lorif::{self, Layout, LowRank, Options, Tail};
use ascribe_methods::projected::Projected;
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture};
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
