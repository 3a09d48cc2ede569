//! The linear layer `y = x·Wᵀ + b`, `W` row-major `[O, I]`, or `[I, O]` where it is stored transposed (GPT-2's Conv1D).

use ascribe_linalg::elementwise::{add_row, sum_rows};
use ascribe_linalg::{Threads, gemm};
use ndarray::ArrayView2;

use super::{matrix, matrix_mut};

/// Shape of one linear layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fan {
    /// Fan-in, I.
    pub input: usize,
    /// Fan-out, O.
    pub output: usize,
}

/// A linear layer's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear<'a> {
    pub fan: Fan,
    pub weight: &'a [f32],
    /// `[O]`.
    pub bias: Option<&'a [f32]>,
    /// True for `[I, O]`.
    pub transposed: bool,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Onto<'a> {
    /// Nothing.
    Fresh,
    /// Rows of the residual stream.
    Residual(&'a [f32]),
    /// What stands there.
    Itself,
}

impl<'a> Linear<'a> {
    /// `W` as `[O, I]`, whichever way it is stored.
    pub fn matrix(&self) -> ArrayView2<'a, f32> {
        if self.transposed {
            matrix(self.weight, self.fan.input, self.fan.output).reversed_axes()
        } else {
            matrix(self.weight, self.fan.output, self.fan.input)
        }
    }

    /// `y ← x·Wᵀ + b + onto`; x `[n, I]`, y `[n, O]`.
    pub fn forward(&self, n: usize, x: &[f32], onto: Onto<'_>, y: &mut [f32]) {
        let y = &mut y[..n * self.fan.output];
        let keep = prepare(self.bias, onto, y);
        let x = matrix(x, n, self.fan.input);
        gemm(1.0, x, self.matrix().t(), keep, matrix_mut(y, n, self.fan.output), Threads::One);
    }

    /// `d_x ← d_y·W`; d_y `[n, O]`, d_x `[n, I]`.
    pub fn backward_input(&self, n: usize, d_y: &[f32], d_x: &mut [f32]) {
        let d_y = matrix(d_y, n, self.fan.output);
        gemm(1.0, d_y, self.matrix(), 0.0, matrix_mut(d_x, n, self.fan.input), Threads::One);
    }
}

/// Puts `bias + onto` into `y`; returns the factor with which the product keeps it.
pub(crate) fn prepare(bias: Option<&[f32]>, onto: Onto<'_>, y: &mut [f32]) -> f32 {
    match (onto, bias) {
        (Onto::Fresh, None) => return 0.0,
        (Onto::Fresh, Some(bias)) => y.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias)),
        (Onto::Residual(x), None) => y.copy_from_slice(&x[..y.len()]),
        (Onto::Residual(x), Some(bias)) => add_row(&x[..y.len()], bias, y),
        (Onto::Itself, None) => {}
        (Onto::Itself, Some(bias)) => {
            for row in y.chunks_exact_mut(bias.len()) {
                ascribe_linalg::elementwise::add_assign(row, bias);
            }
        }
    }
    1.0
}

/// `d_W ← d_W + d_yᵀ·x`, `d_W` stored as the weight is; `d_b += Σ d_y`.
pub(crate) fn backward_weight(
    fan: Fan,
    transposed: bool,
    n: usize,
    x: &[f32],
    d_y: &[f32],
    d_w: &mut [f32],
    d_b: Option<&mut [f32]>,
) {
    if let Some(d_b) = d_b {
        sum_rows(&d_y[..n * fan.output], d_b);
    }
    let (x, d_y) = (matrix(x, n, fan.input), matrix(d_y, n, fan.output));
    if transposed {
        gemm(1.0, x.t(), d_y, 1.0, matrix_mut(d_w, fan.input, fan.output), Threads::One);
    } else {
        gemm(1.0, d_y.t(), x, 1.0, matrix_mut(d_w, fan.output, fan.input), Threads::One);
    }
}
