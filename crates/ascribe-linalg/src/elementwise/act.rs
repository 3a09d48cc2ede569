//! Activations of feed-forward layers, plain and gated, and soft caps: SiLU, GELU in both forms, ReLU, with their slopes.
//!
//! Each is one scalar function and its derivative, written without branches so that the compiler vectorises them.

use super::dispatch::kernel;
use super::exp::{exp, silu_mul, silu_mul_backward};

/// Which activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// `x·σ(x)`.
    Silu,
    /// `x·Φ(x)`.
    Gelu,
    /// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    GeluTanh,
    /// `max(x, 0)`; slope 0 at 0.
    Relu,
}

/// `tanh`, absolute and relative error below 2·10⁻⁷: Cephes' odd polynomial near 0, `1 − 2/(e^{2|x|} + 1)` beyond.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// The normal distribution function `Φ(x) = ½erfc(−x/√2)`, absolute error below 4·10⁻⁷ and in the lower tail relative error
/// below 10⁻⁵ (a test walks the range): `erfc(z) ≈ t·exp(−z² + p(t))`, `t = 1/(1 + z/2)`, with a fitted polynomial of degree 9
/// (the `erfcc` of Press et al., Numerical Recipes, §6.2).
#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = 0.170_872_77;
    p = p * t - 0.822_152_23;
    p = p * t + 1.488_515_9;
    p = p * t - 1.135_204;
    p = p * t + 0.278_868_07;
    p = p * t - 0.186_288_06;
    p = p * t + 0.096_784_18;
    p = p * t + 0.374_091_96;
    p = p * t + 1.000_023_7;
    p = p * t - 1.265_512_2;
    let tail = 0.5 * t * exp(p - z * z);
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// Value and slope of each activation.
mod scalar {
    use super::{exp, normal_cdf};

    #[inline(always)]
    pub fn silu(x: f32) -> (f32, f32) {
        let e = exp(-x);
        let s = 1.0 / (1.0 + e);
        let y = x * s;
        // 1 − σ = e·σ, without the cancellation.
        (y, s + y * (e * s))
    }

    #[inline(always)]
    pub fn gelu(x: f32) -> (f32, f32) {
        let cdf = normal_cdf(x);
        let density = 0.398_942_3 * exp(-0.5 * x * x);
        (x * cdf, cdf + x * density)
    }

    /// `½(1 + tanh u) = σ(2u)`: one exponential, and nothing cancels.
    #[inline(always)]
    pub fn gelu_tanh(x: f32) -> (f32, f32) {
        const TWICE: f32 = 1.595_769_2; // 2·√(2/π)
        let z = x * x;
        let e = exp(-TWICE * x * (1.0 + 0.044_715 * z));
        let s = 1.0 / (1.0 + e);
        let y = x * s;
        (y, s + y * (e * s) * (TWICE * (1.0 + 0.134_145 * z)))
    }

    #[inline(always)]
    pub fn relu(x: f32) -> (f32, f32) {
        if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
    }
}

#[inline(always)]
fn plain_body(f: impl Fn(f32) -> (f32, f32), x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "one output per input");
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f(x).0;
    }
}

#[inline(always)]
fn plain_back_body(f: impl Fn(f32) -> (f32, f32), x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
    assert!(x.len() == d_out.len() && x.len() == d_x.len(), "one gradient per input");
    for ((d_x, &x), &d) in d_x.iter_mut().zip(x).zip(d_out) {
        *d_x = d * f(x).1;
    }
}

#[inline(always)]
fn gated_body(f: impl Fn(f32) -> (f32, f32), gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * out.len(), "a gate and an up for every output");
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
            *out = f(g).0 * u;
        }
    }
}

#[inline(always)]
fn gated_back_body(f: impl Fn(f32) -> (f32, f32), gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * d_out.len(), "a gate and an up for every output");
    assert_eq!(gate_up.len(), d_gate_up.len(), "a gradient for every gate and up");
    let rows = gate_up.chunks_exact(2 * width).zip(d_gate_up.chunks_exact_mut(2 * width));
    for ((row, d_row), d_out) in rows.zip(d_out.chunks_exact(width)) {
        let (gate, up) = row.split_at(width);
        let (d_gate, d_up) = d_row.split_at_mut(width);
        for i in 0..width.min(d_out.len()) {
            let (value, slope) = f(gate[i]);
            d_gate[i] = d_out[i] * up[i] * slope;
            d_up[i] = d_out[i] * value;
        }
    }
}

/// The four kernels of one activation.
macro_rules! activation {
    ($scalar:path: $plain:ident $plain_at:ident $plain_back:ident $plain_back_at:ident
     $gated:ident $gated_at:ident $gated_back:ident $gated_back_at:ident) => {
        kernel! {
            pub fn $plain / $plain_at (x: &[f32], out: &mut [f32]) {
                plain_body($scalar, x, out);
            }
        }
        kernel! {
            pub fn $plain_back / $plain_back_at (x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
                plain_back_body($scalar, x, d_out, d_x);
            }
        }
        kernel! {
            pub fn $gated / $gated_at (gate_up: &[f32], width: usize, out: &mut [f32]) {
                gated_body($scalar, gate_up, width, out);
            }
        }
        kernel! {
            pub fn $gated_back / $gated_back_at (
                gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32],
            ) {
                gated_back_body($scalar, gate_up, width, d_out, d_gate_up);
            }
        }
    };
}

activation!(scalar::gelu: gelu gelu_at gelu_back gelu_back_at gelu_mul gelu_mul_at gelu_mul_back gelu_mul_back_at);
activation!(scalar::gelu_tanh: gelu_tanh gelu_tanh_at gelu_tanh_back gelu_tanh_back_at
    gelu_tanh_mul gelu_tanh_mul_at gelu_tanh_mul_back gelu_tanh_mul_back_at);
activation!(scalar::relu: relu relu_at relu_back relu_back_at relu_mul relu_mul_at relu_mul_back relu_mul_back_at);

kernel! {
    pub fn silu / silu_at (x: &[f32], out: &mut [f32]) {
        plain_body(scalar::silu, x, out);
    }
}

kernel! {
    pub fn silu_back / silu_back_at (x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
        plain_back_body(scalar::silu, x, d_out, d_x);
    }
}

/// `out ← act(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate(act: Act, x: &[f32], out: &mut [f32]) {
    match act {
        Act::Silu => silu(x, out),
        Act::Gelu => gelu(x, out),
        Act::GeluTanh => gelu_tanh(x, out),
        Act::Relu => relu(x, out),
    }
}

/// Backward of [`activate`]: `d_x ← d_out ∘ act'(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate_backward(act: Act, x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
    match act {
        Act::Silu => silu_back(x, d_out, d_x),
        Act::Gelu => gelu_back(x, d_out, d_x),
        Act::GeluTanh => gelu_tanh_back(x, d_out, d_x),
        Act::Relu => relu_back(x, d_out, d_x),
    }
}

/// `out ← act(gate) ∘ up`, where each row of `gate_up` `[n, 2·width]` is gates then ups; `out` is `[n, width]`.
///
/// # Panics
/// If `gate_up` is not twice as long as `out`.
pub fn activate_mul(act: Act, gate_up: &[f32], width: usize, out: &mut [f32]) {
    match act {
        Act::Silu => silu_mul(gate_up, width, out),
        Act::Gelu => gelu_mul(gate_up, width, out),
        Act::GeluTanh => gelu_tanh_mul(gate_up, width, out),
        Act::Relu => relu_mul(gate_up, width, out),
    }
}

/// Backward of [`activate_mul`]: `d_gate ← d_out∘up∘act'(gate)`, `d_up ← d_out∘act(gate)`.
///
/// # Panics
/// If lengths do not fit.
pub fn activate_mul_backward(act: Act, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    match act {
        Act::Silu => silu_mul_backward(gate_up, width, d_out, d_gate_up),
        Act::Gelu => gelu_mul_back(gate_up, width, d_out, d_gate_up),
        Act::GeluTanh => gelu_tanh_mul_back(gate_up, width, d_out, d_gate_up),
        Act::Relu => relu_mul_back(gate_up, width, d_out, d_gate_up),
    }
}

kernel! {
    /// `x ← cap·tanh(x/cap)`.
    pub fn soft_cap / soft_cap_at (x: &mut [f32], cap: f32) {
        for x in x {
            *x = cap * tanh(*x / cap);
        }
    }
}

kernel! {
    /// Backward of [`soft_cap`] from its outputs `y`: `d ← d ∘ (1 − (y/cap)²)`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn soft_cap_backward / soft_cap_backward_at (y: &[f32], cap: f32, d: &mut [f32]) {
        assert_eq!(y.len(), d.len(), "one gradient per capped number");
        for (d, &y) in d.iter_mut().zip(y) {
            let t = y / cap;
            *d *= 1.0 - t * t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, level};
    use super::*;
    use crate::rng::Stream;

    /// The power series up to 3, beyond it the continued fraction of erfc: both to more digits than f32 has.
    fn erf64(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 3.0 {
            let (mut term, mut sum) = (a, a);
            for n in 1..120 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let tail = (1..200).rev().fold(0.0, |tail, k| f64::from(k) / 2.0 / (a + tail));
            1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + tail)
        };
        value.copysign(x)
    }

    #[test]
    fn normal_cdf_and_tanh_are_close_to_the_f64_ones_over_their_ranges() {
        assert!(
            (erf64(1.0) - 0.842_700_792_949_714_9).abs() < 1e-14
                && (erf64(3.5) - 0.999_999_256_901_627_7).abs() < 1e-14
        );
        let (mut worst_cdf, mut worst_tanh) = (0.0f64, 0.0f64);
        let mut x = -12.0f32;
        while x < 12.0 {
            let cdf = 0.5 * (1.0 + erf64(f64::from(x) / 2f64.sqrt()));
            worst_cdf = worst_cdf.max((f64::from(normal_cdf(x)) - cdf).abs());
            let exact = f64::from(x).tanh();
            worst_tanh = worst_tanh.max(((f64::from(tanh(x)) - exact) / exact).abs());
            x += 0.000_373;
        }
        assert!(worst_cdf < 4e-7, "{worst_cdf}");
        // Φ(−4), Φ(−6) to ten digits.
        for (x, exact) in [(-4.0f32, 3.167_124_183e-5), (-6.0, 9.865_876_450e-10)] {
            assert!((f64::from(normal_cdf(x)) / exact - 1.0).abs() < 1e-5, "{x}: {}", normal_cdf(x));
        }
        assert!(worst_tanh < 2e-7, "{worst_tanh}");
        assert_eq!(tanh(0.0), 0.0);
        assert!(tanh(f32::NAN).is_nan() && normal_cdf(f32::NAN).is_nan());
    }

    fn plain64(act: Act, x: f64) -> f64 {
        match act {
            Act::Silu => x / (1.0 + (-x).exp()),
            Act::Gelu => x * 0.5 * (1.0 + erf64(x / 2f64.sqrt())),
            Act::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Act::Relu => x.max(0.0),
        }
    }

    const ALL: [Act; 4] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu];

    /// Values against a plain f64 transcription, slopes against its central differences, plain and gated.
    #[test]
    fn values_and_slopes_agree_with_f64_and_finite_differences() {
        for act in ALL {
            let mut x = -9.7f32;
            while x < 9.7 {
                let (exact, h) = (plain64(act, f64::from(x)), 1e-5);
                let slope = (plain64(act, f64::from(x) + h) - plain64(act, f64::from(x) - h)) / (2.0 * h);
                let (mut y, mut d) = ([0.0f32], [0.0f32]);
                activate(act, &[x], &mut y);
                activate_backward(act, &[x], &[2.0], &mut d);
                assert!((f64::from(y[0]) - exact).abs() < 4e-7 * (1.0 + exact.abs()), "{act:?} {x}: {} {exact}", y[0]);
                assert!((f64::from(d[0]) - 2.0 * slope).abs() < 3e-6, "{act:?} {x}: {} {slope}", d[0]);
                let (mut y, mut d) = ([0.0f32], [0.0f32; 2]);
                activate_mul(act, &[x, -1.5], 1, &mut y);
                activate_mul_backward(act, &[x, -1.5], 1, &[2.0], &mut d);
                assert!((f64::from(y[0]) + 1.5 * exact).abs() < 1e-6 * (1.0 + exact.abs()), "{act:?} {x}");
                assert!((f64::from(d[0]) + 3.0 * slope).abs() < 4e-6, "{act:?} {x}");
                assert!((f64::from(d[1]) - 2.0 * exact).abs() < 2e-6 * (1.0 + exact.abs()), "{act:?} {x}");
                x += 0.0177;
            }
        }
    }

    #[test]
    fn a_soft_cap_and_its_gradient_agree_with_f64() {
        for x in [-200.0f32, -31.0, -2.0, 1e-3, 0.0, 7.5, 90.0] {
            let f = |x: f64| 30.0 * (x / 30.0).tanh();
            let mut y = [x];
            soft_cap(&mut y, 30.0);
            assert!(
                (f64::from(y[0]) - f(f64::from(x))).abs() < 1e-5 * f64::from(x.abs()).min(30.0) + 1e-12,
                "{x}: {}",
                y[0]
            );
            let mut d = [3.0];
            soft_cap_backward(&y, 30.0, &mut d);
            let quotient = 3.0 * (f(f64::from(x) + 1e-4) - f(f64::from(x) - 1e-4)) / 2e-4;
            assert!((f64::from(d[0]) - quotient).abs() < 3e-6, "{x}: {} {quotient}", d[0]);
        }
    }

    type Plain = fn(Level, &[f32], &mut [f32]);
    type PlainBack = fn(Level, &[f32], &[f32], &mut [f32]);
    type Gated = fn(Level, &[f32], usize, &mut [f32]);
    type GatedBack = fn(Level, &[f32], usize, &[f32], &mut [f32]);

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        let mut stream = Stream::new(13, "act-test");
        let mut noise = |n: usize| (0..n).map(|_| (stream.normal() * 3.0) as f32).collect::<Vec<_>>();
        let plain: [(Plain, PlainBack); 4] = [
            (silu_at, silu_back_at),
            (gelu_at, gelu_back_at),
            (gelu_tanh_at, gelu_tanh_back_at),
            (relu_at, relu_back_at),
        ];
        let gated: [(Gated, GatedBack); 3] = [
            (gelu_mul_at, gelu_mul_back_at),
            (gelu_tanh_mul_at, gelu_tanh_mul_back_at),
            (relu_mul_at, relu_mul_back_at),
        ];
        for width in [1, 16, 37] {
            let (x, d) = (noise(6 * width), noise(3 * width));
            let everything = |l: Level| {
                let mut all = vec![];
                for (f, back) in plain {
                    let (mut y, mut d_x) = (vec![0.0; 3 * width], vec![0.0; 3 * width]);
                    f(l, &x[..3 * width], &mut y);
                    back(l, &x[..3 * width], &d, &mut d_x);
                    all.extend(y.into_iter().chain(d_x));
                }
                for (f, back) in gated {
                    let (mut y, mut d_x) = (vec![0.0; 3 * width], vec![0.0; 6 * width]);
                    f(l, &x, width, &mut y);
                    back(l, &x, width, &d, &mut d_x);
                    all.extend(y.into_iter().chain(d_x));
                }
                let (mut capped, mut d_capped) = (x.clone(), x.clone());
                soft_cap_at(l, &mut capped, 2.5);
                soft_cap_backward_at(l, &capped, 2.5, &mut d_capped);
                all.extend(capped.into_iter().chain(d_capped));
                all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for better in [Level::V3, Level::V4].into_iter().filter(|&l| l <= level()) {
                assert_eq!(everything(better), everything(Level::Portable), "{better:?} {width}");
            }
        }
    }
}
