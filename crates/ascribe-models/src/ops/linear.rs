//! The bias-free linear layer `y = x·Wᵀ`, `W` row-major `[O, I]`, as `transformers` stores it.

use ascribe_linalg::{Threads, gemm};

use super::{matrix, matrix_mut};

/// Shape of one linear layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fan {
    /// Fan-in, I.
    pub input: usize,
    /// Fan-out, O.
    pub output: usize,
}

/// `y ← x·Wᵀ + keep·y`; x `[n, I]`, y `[n, O]`.
pub(crate) fn forward(w: &[f32], fan: Fan, n: usize, x: &[f32], keep: f32, y: &mut [f32]) {
    let w = matrix(w, fan.output, fan.input);
    gemm(1.0, matrix(x, n, fan.input), w.t(), keep, matrix_mut(y, n, fan.output), Threads::One);
}

/// `d_x ← d_y·W`; d_y `[n, O]`, d_x `[n, I]`.
pub(crate) fn backward_input(w: &[f32], fan: Fan, n: usize, d_y: &[f32], d_x: &mut [f32]) {
    let w = matrix(w, fan.output, fan.input);
    gemm(1.0, matrix(d_y, n, fan.output), w, 0.0, matrix_mut(d_x, n, fan.input), Threads::One);
}

/// `d_W ← d_W + d_yᵀ·x`.
pub(crate) fn backward_weight(fan: Fan, n: usize, x: &[f32], d_y: &[f32], d_w: &mut [f32]) {
    let d_y = matrix(d_y, n, fan.output);
    gemm(1.0, d_y.t(), matrix(x, n, fan.input), 1.0, matrix_mut(d_w, fan.output, fan.input), Threads::One);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;

    /// ⟨d_y, y⟩ is bilinear in (x, W): its difference quotients are exact, so gradients must agree to rounding.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let (fan, n) = (Fan { input: 3, output: 4 }, 5);
        let mut stream = Stream::new(1, "linear");
        let mut noise = |len: usize| (0..len).map(|_| stream.normal() as f32).collect::<Vec<_>>();
        let (w, x, d_y) = (noise(12), noise(15), noise(20));
        let (mut d_x, mut d_w) = (vec![0.0; 15], vec![0.0; 12]);
        backward_input(&w, fan, n, &d_y, &mut d_x);
        backward_weight(fan, n, &x, &d_y, &mut d_w);
        let loss = |w: &[f32], x: &[f32]| {
            let mut y = vec![0.0; 20];
            forward(w, fan, n, x, 0.0, &mut y);
            y.iter().zip(&d_y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let check = |at: &mut dyn FnMut(f32) -> f64, got: f32| {
            let quotient = (at(0.5) - at(-0.5)) / 1.0;
            assert!((quotient - f64::from(got)).abs() < 2e-5, "{quotient} {got}");
        };
        for (i, &got) in d_x.iter().enumerate() {
            let mut moved = |h: f32| {
                let mut x = x.clone();
                x[i] += h;
                loss(&w, &x)
            };
            check(&mut moved, got);
        }
        for (i, &got) in d_w.iter().enumerate() {
            let mut moved = |h: f32| {
                let mut w = w.clone();
                w[i] += h;
                loss(&w, &x)
            };
            check(&mut moved, got);
        }
    }
}
