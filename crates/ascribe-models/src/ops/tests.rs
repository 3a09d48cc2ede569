//! A walk over every operator of the passes: values against a plain f64 transcription, backwards against its central
//! differences. An operator that is not in [`all`] has no business in a pass.

use ascribe_linalg::Stream;
use ascribe_linalg::elementwise::{
    Act, activate, activate_backward, activate_mul, activate_mul_backward, add, cross_entropy, cross_entropy_backward,
    soft_cap, soft_cap_backward,
};

use super::attention::{Attention, Heads};
use super::linear::{Fan, Linear, Onto, backward_weight};
use super::norm::{NormGradient, NormOp, NormTape};
use super::rope::{Places, Rotary};
use crate::arch::{Arch, NormKind, Positions, QkvOrder, RopeScaling};
use crate::config::DecoderConfig;

/// Outputs of inputs.
type Map<T> = Box<dyn Fn(&[Vec<T>]) -> Vec<T>>;

/// Gradients of ⟨d_out, out⟩ in every input, from the inputs and d_out.
type Back = Box<dyn Fn(&[Vec<f32>], &[f32]) -> Vec<Vec<f32>>>;

/// One operator: sizes of its inputs, its value and backward in f32, and the f64 transcription.
struct Op {
    name: String,
    sizes: Vec<usize>,
    forward: Map<f32>,
    backward: Back,
    reference: Map<f64>,
}

fn check(op: &Op) {
    let mut stream = Stream::new(3, &op.name);
    let mut noise = |n: usize| (0..n).map(|_| stream.normal() as f32).collect::<Vec<_>>();
    let inputs: Vec<Vec<f32>> = op.sizes.iter().map(|&n| noise(n)).collect();
    let wide: Vec<Vec<f64>> = inputs.iter().map(|v| v.iter().map(|&x| f64::from(x)).collect()).collect();
    let (out, exact) = ((op.forward)(&inputs), (op.reference)(&wide));
    assert_eq!(out.len(), exact.len(), "{}", op.name);
    for (a, b) in out.iter().zip(&exact) {
        assert!((f64::from(*a) - b).abs() < 3e-6 * (1.0 + b.abs()), "{}: {a} {b}", op.name);
    }
    let d_out = noise(out.len());
    let gradients = (op.backward)(&inputs, &d_out);
    assert_eq!(gradients.iter().map(Vec::len).collect::<Vec<_>>(), op.sizes, "{}: a gradient for every input", op.name);
    for (which, gradient) in gradients.iter().enumerate() {
        assert!(
            gradient.is_empty() || gradient.iter().any(|&g| g != 0.0),
            "{} has no gradient in input {which}",
            op.name
        );
        for (i, &got) in gradient.iter().enumerate() {
            let moved = |h: f64| -> f64 {
                let mut inputs = wide.clone();
                inputs[which][i] += h;
                (op.reference)(&inputs).iter().zip(&d_out).map(|(y, &d)| y * f64::from(d)).sum()
            };
            let quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let error = (quotient - f64::from(got)).abs();
            assert!(error < 1e-5 * (1.0 + quotient.abs()), "{} {which} {i}: {quotient} {got}", op.name);
        }
    }
}

/// `y = x·Wᵀ + b + r`, stored either way, onto a residual, onto itself or onto nothing.
fn linear(transposed: bool, bias: bool, onto: &'static str) -> Op {
    let (fan, n) = (Fan { input: 3, output: 4 }, 5);
    let layer = move |v: &[Vec<f32>]| -> Vec<f32> {
        let layer = Linear { fan, weight: &v[1], bias: bias.then_some(&v[2]), transposed };
        let mut y = if onto == "itself" { v[3].clone() } else { vec![f32::NAN; n * 4] };
        let onto = match onto {
            "fresh" => Onto::Fresh,
            "residual" => Onto::Residual(&v[3]),
            _ => Onto::Itself,
        };
        layer.forward(n, &v[0], onto, &mut y);
        y
    };
    let mut sizes = vec![15, 12, if bias { 4 } else { 0 }];
    if onto != "fresh" {
        sizes.push(20);
    }
    let has_residual = onto != "fresh";
    Op {
        name: format!("linear transposed={transposed} bias={bias} onto {onto}"),
        sizes,
        forward: Box::new(layer),
        backward: Box::new(move |v, d_y| {
            let layer = Linear { fan, weight: &v[1], bias: None, transposed };
            let mut d = vec![vec![f32::NAN; 15], vec![0.0; 12], vec![0.0; v[2].len()]];
            layer.backward_input(n, d_y, &mut d[0]);
            let [_, d_w, d_b] = &mut d[..] else { unreachable!("three were made") };
            backward_weight(fan, transposed, n, &v[0], d_y, d_w, bias.then_some(&mut d_b[..]));
            d.extend(has_residual.then(|| d_y.to_vec()));
            d
        }),
        reference: Box::new(move |v| {
            let weight = |o: usize, i: usize| if transposed { v[1][i * 4 + o] } else { v[1][o * 3 + i] };
            let rows = (0..n).flat_map(|t| (0..4).map(move |o| (t, o)));
            rows.map(|(t, o)| {
                let product: f64 = (0..3).map(|i| v[0][t * 3 + i] * weight(o, i)).sum();
                product + if bias { v[2][o] } else { 0.0 } + v.get(3).map_or(0.0, |r| r[t * 4 + o])
            })
            .collect()
        }),
    }
}

fn norm(kind: NormKind) -> Op {
    let (n, d) = (3, 9);
    let has_bias = kind == NormKind::Layer;
    Op {
        name: format!("norm {kind:?}"),
        sizes: vec![n * d, d, if has_bias { d } else { 0 }],
        forward: Box::new(move |v| {
            let mut out = vec![f32::NAN; n * d];
            let op = NormOp { kind, gain: &v[1], bias: &v[2], eps: 1e-3 };
            op.forward(&v[0], &mut out, &mut NormTape::new(n), &mut vec![]);
            out
        }),
        backward: Box::new(move |v, d_out| {
            let op = NormOp { kind, gain: &v[1], bias: &v[2], eps: 1e-3 };
            let (mut tape, mut scratch) = (NormTape::new(n), vec![]);
            op.forward(&v[0], &mut vec![0.0; n * d], &mut tape, &mut scratch);
            let (mut d_x, mut gain, mut bias) = (vec![0.0; n * d], vec![0.0; d], vec![0.0; v[2].len()]);
            let into = NormGradient { gain: &mut gain, bias: &mut bias };
            op.backward(&v[0], (&tape, 0..n), d_out, &mut d_x, into, &mut scratch);
            vec![d_x, gain, bias]
        }),
        reference: Box::new(move |v| {
            let rows = v[0].chunks(d).flat_map(|x| {
                let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
                let inv = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64 + 1e-3).sqrt();
                let one = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
                (0..d).map(move |i| (x[i] - mean) * inv * (one + v[1][i]) + v[2].get(i).copied().unwrap_or(0.0))
            });
            rows.collect()
        }),
    }
}

fn act64(act: Act, x: f64) -> f64 {
    match act {
        Act::Silu => x / (1.0 + (-x).exp()),
        // Φ by Simpson's rule from 0: the second route to the kernel's fitted polynomial.
        Act::Gelu => {
            let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let (pieces, h) = (400, x / 400.0);
            let weight = |i: u32| if i == 0 || i == pieces { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) };
            let integral: f64 = (0..=pieces).map(|i| weight(i) * density(f64::from(i) * h)).sum();
            x * (0.5 + integral * h / 3.0)
        }
        Act::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Act::Relu => x.max(0.0),
    }
}

fn plain_act(act: Act) -> Op {
    Op {
        name: format!("act {act:?}"),
        sizes: vec![40],
        forward: Box::new(move |v| {
            let mut out = vec![f32::NAN; 40];
            activate(act, &v[0], &mut out);
            out
        }),
        backward: Box::new(move |v, d_out| {
            let mut d_x = vec![f32::NAN; 40];
            activate_backward(act, &v[0], d_out, &mut d_x);
            vec![d_x]
        }),
        reference: Box::new(move |v| v[0].iter().map(|&x| act64(act, x)).collect()),
    }
}

fn gated_act(act: Act) -> Op {
    Op {
        name: format!("gated act {act:?}"),
        sizes: vec![3 * 2 * 7],
        forward: Box::new(move |v| {
            let mut out = vec![f32::NAN; 21];
            activate_mul(act, &v[0], 7, &mut out);
            out
        }),
        backward: Box::new(move |v, d_out| {
            let mut d_x = vec![f32::NAN; 42];
            activate_mul_backward(act, &v[0], 7, d_out, &mut d_x);
            vec![d_x]
        }),
        reference: Box::new(move |v| {
            v[0].chunks(14).flat_map(|row| (0..7).map(|i| act64(act, row[i]) * row[7 + i])).collect()
        }),
    }
}

fn attention(name: &str, spec: Attention, t: usize) -> Op {
    let (stride, width) = (spec.heads.stride(), spec.heads.queries * spec.heads.width);
    let forward = move |v: &[Vec<f32>]| {
        let (mut p, mut out) = (vec![f32::NAN; spec.probabilities_len(t)], vec![f32::NAN; t * width]);
        spec.forward(t, &v[0], &mut p, &mut out);
        (p, out)
    };
    Op {
        name: format!("attention {name}"),
        sizes: vec![t * stride],
        forward: Box::new(move |v| forward(v).1),
        backward: Box::new(move |v, d_out| {
            let (mut d_qkv, mut scratch) = (vec![f32::NAN; t * stride], vec![f32::NAN; spec.scratch_len(t)]);
            spec.backward(t, &v[0], &forward(v).0, d_out, &mut d_qkv, &mut scratch);
            vec![d_qkv]
        }),
        reference: Box::new(move |v| super::attention::tests::reference(&spec, t, &v[0])),
    }
}

/// Heads turned at `places` with the tables of `config`; the reference turns with its own angles.
fn rotary(
    name: &str,
    scaling: RopeScaling,
    width: usize,
    places: Places,
    frequencies: &'static [f64],
    factor: f64,
) -> Op {
    let (n, stride) = (6, 24);
    let arch = Arch { positions: Positions::Rotary { width, scaling, local_theta: None }, ..Arch::llama() };
    let config = DecoderConfig { rope_theta: 100.0, head_dim: 8, arch, ..DecoderConfig::llama(5, 8, 8, 1, 1, 1, 16) };
    let rotary = Rotary::of(&config);
    let turned = move |x: &[f32], sign: f32| {
        let mut x = x.to_vec();
        rotary.turn(false, &mut x, stride, places, sign);
        x
    };
    let back = turned.clone();
    Op {
        name: format!("rotary {name}"),
        sizes: vec![n * stride],
        forward: Box::new(move |v| turned(&v[0], 1.0)),
        backward: Box::new(move |_, d_out| vec![back(d_out, -1.0)]),
        reference: Box::new(move |v| {
            let mut out = v[0].clone();
            for (t, row) in out.chunks_mut(stride).enumerate() {
                for h in 0..places.n_heads {
                    let head = &mut row[places.first + h * places.step..];
                    let half = frequencies.len();
                    for (i, f) in frequencies.iter().enumerate() {
                        let (s, c) = (t as f64 * f).sin_cos();
                        let (a, b) = (head[i], head[i + half]);
                        (head[i], head[i + half]) = (factor * (a * c - b * s), factor * (b * c + a * s));
                    }
                }
            }
            out
        }),
    }
}

fn rotaries() -> Vec<Op> {
    let heads = Places { first: 0, step: 8, n_heads: 2 };
    let keys = Places { first: 8, step: 12, n_heads: 2 };
    let linear = RopeScaling::Linear { factor: 4.0 };
    // θ = 100 over a width of 8: frequencies 1, 10^-½, 10^-1, 10^-3/2; wavelengths 6.28, 19.9, 62.8, 198.7. Kept under 16,
    // divided over 64, between them a ramp: the third has smooth = (64/62.8 − 1)/(4 − 1), the second (64/19.9 − 1)/3.
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    // Dimensions 8·ln(64/(β·2π))/(2·ln 100): 0.812 for β = 4 and 2.016 for β = 1, rounded outwards to 0 and 3:
    // a ramp of 0, ⅓, ⅔, 1.
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 4.0,
        beta_slow: 1.0,
        attention_factor: 1.25,
        original_max_position_embeddings: 64,
    };
    vec![
        rotary("whole heads", RopeScaling::None, 0, heads, &[1.0, 0.316_227_766, 0.1, 0.031_622_776_6], 1.0),
        rotary("a part of interleaved heads", RopeScaling::None, 4, keys, &[1.0, 0.1], 1.0),
        rotary("linear", linear, 0, heads, &[0.25, 0.079_056_941_5, 0.025, 0.007_905_694_15], 1.0),
        rotary("llama3", llama3, 0, heads, &[1.0, 0.244_384_599_4, 0.013_042_256_04, 0.003_952_847_08], 1.0),
        rotary("yarn", yarn, 0, heads, &[1.0, 0.237_170_825, 0.05, 0.007_905_694_15], 1.25),
    ]
}

fn others() -> Vec<Op> {
    let cap = Op {
        name: "soft cap".into(),
        sizes: vec![30],
        forward: Box::new(|v| {
            let mut x = v[0].clone();
            soft_cap(&mut x, 1.5);
            x
        }),
        backward: Box::new(|v, d_out| {
            let (mut y, mut d) = (v[0].clone(), d_out.to_vec());
            soft_cap(&mut y, 1.5);
            soft_cap_backward(&y, 1.5, &mut d);
            vec![d]
        }),
        reference: Box::new(|v| v[0].iter().map(|x| 1.5 * (x / 1.5).tanh()).collect()),
    };
    let entropy = Op {
        name: "cross-entropy".into(),
        sizes: vec![2 * 19],
        forward: Box::new(|v| {
            let mut nll = [0.0; 2];
            cross_entropy(&v[0], 19, &[3, 18], &mut nll);
            nll.to_vec()
        }),
        // The kernel gives the gradient of the sum; a row's is scaled by its own d_out here.
        backward: Box::new(|v, d_out| {
            let (mut logits, mut nll) = (v[0].clone(), [0.0; 2]);
            cross_entropy_backward(&mut logits, 19, &[3, 18], &mut nll);
            for (row, d) in logits.chunks_mut(19).zip(d_out) {
                row.iter_mut().for_each(|x| *x *= d);
            }
            vec![logits]
        }),
        reference: Box::new(|v| {
            let row = |(x, target): (&[f64], usize)| x.iter().map(|x| x.exp()).sum::<f64>().ln() - x[target];
            v[0].chunks(19).zip([3, 18]).map(row).collect()
        }),
    };
    let sum = Op {
        name: "sum".into(),
        sizes: vec![10, 10],
        forward: Box::new(|v| {
            let mut out = vec![0.0; 10];
            add(&v[0], &v[1], &mut out);
            out
        }),
        backward: Box::new(|_, d_out| vec![d_out.to_vec(), d_out.to_vec()]),
        reference: Box::new(|v| v[0].iter().zip(&v[1]).map(|(a, b)| a + b).collect()),
    };
    vec![cap, entropy, sum]
}

/// Every operator that a pass uses.
fn all() -> Vec<Op> {
    let mut ops = vec![];
    for transposed in [false, true] {
        for bias in [false, true] {
            ops.extend(["fresh", "residual", "itself"].map(|onto| linear(transposed, bias, onto)));
        }
    }
    ops.extend([NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer].map(norm));
    let acts = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu];
    ops.extend(acts.into_iter().flat_map(|act| [plain_act(act), gated_act(act)]));
    let plain = Attention::plain(Heads { queries: 2, keys: 1, width: 4 });
    let full = Attention::plain(Heads { queries: 2, keys: 2, width: 4 });
    ops.push(attention("grouped", plain, 5));
    ops.push(attention("windowed", Attention { window: 2, ..plain }, 5));
    ops.push(attention("capped and scaled", Attention { soft_cap: Some(1.3), scale: 0.8, ..plain }, 5));
    ops.push(attention("interleaved", Attention { order: QkvOrder::Interleaved, ..full }, 5));
    ops.push(attention("both directions", Attention { causal: false, ..full }, 5));
    ops.extend(rotaries());
    ops.extend(others());
    ops
}

#[test]
fn every_operator_agrees_with_finite_differences() {
    let ops = all();
    assert_eq!(ops.len(), 12 + 3 + 8 + 5 + 5 + 3);
    ops.iter().for_each(check);
}
