//! The operators of a decoder on plain slices, forward and backward, each checked against finite differences.
//!
//! Products are single-threaded and of one fixed shape per call, so their bytes depend on nothing but their input;
//! parallelism lives in the loops over sequences.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod short;
pub(crate) mod tangent;

#[cfg(test)]
mod tests;

use ndarray::{ArrayView2, ArrayViewMut2};

/// A row-major matrix over the front of a slice.
pub(crate) fn matrix(data: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), &data[..rows * columns]).expect("the slice was cut to the shape")
}

/// [`matrix`], writable.
pub(crate) fn matrix_mut(data: &mut [f32], rows: usize, columns: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), &mut data[..rows * columns]).expect("the slice was cut to the shape")
}
