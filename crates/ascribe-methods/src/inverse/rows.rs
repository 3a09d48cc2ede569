//! What all algorithms do with rows: checks, products with the curvature, norms in a fixed order, steps in f64.

use ascribe_linalg::sum::{self, BLOCK, LANES, sum_by};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use crate::error::MethodError;
use crate::source::Operator;

/// Rows must have `dim` finite numbers each.
pub(super) fn check(what: &'static str, rows: ArrayView2<'_, f32>, dim: usize) -> Result<(), MethodError> {
    if rows.ncols() != dim {
        return Err(MethodError::shape(what, format!("rows of {dim} numbers"), format!("rows of {}", rows.ncols())));
    }
    finite(what, rows)
}

/// Refuses NaN and infinities with their place.
pub(super) fn finite(what: &'static str, rows: ArrayView2<'_, f32>) -> Result<(), MethodError> {
    match rows.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((row, column), &found)) => {
            Err(MethodError::BadValue { what: what.to_owned(), row, column, found: f64::from(found) })
        }
    }
}

/// A damping must be finite and not negative.
pub(super) fn check_damping(damping: f64) -> Result<(), MethodError> {
    if damping.is_finite() && damping >= 0.0 {
        return Ok(());
    }
    Err(MethodError::Parameter { field: "damping", expected: "finite and not negative", found: damping })
}

/// A parameter that must be positive.
pub(super) fn check_positive(field: &'static str, value: f64) -> Result<(), MethodError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(MethodError::Parameter { field, expected: "finite and positive", found: value })
}

/// A count that must not be zero.
pub(super) fn check_count(field: &'static str, value: usize) -> Result<(), MethodError> {
    if value > 0 {
        return Ok(());
    }
    Err(MethodError::Parameter { field, expected: "at least 1", found: 0.0 })
}

/// `H_B v` for every row, checked for NaN.
pub(super) fn apply(
    operator: &dyn Operator,
    examples: Option<&[u32]>,
    rows: ArrayView2<'_, f32>,
) -> Result<Array2<f32>, MethodError> {
    let mut out = Array2::zeros(rows.dim());
    if rows.is_empty() {
        return Ok(out);
    }
    operator.apply(examples, rows, out.view_mut())?;
    finite("products with the curvature", out.view())?;
    Ok(out)
}

/// `Σ a_i·b_i` in the order of [`sum_by`], to the bit; rows without gaps eight numbers at a time.
pub(super) fn dot(a: ArrayView1<'_, f64>, b: ArrayView1<'_, f64>) -> f64 {
    let (Some(a), Some(b)) = (a.to_slice(), b.to_slice()) else { return sum_by(a.len(), |i| a[i] * b[i]) };
    let block = |(a, b): (&[f64], &[f64])| {
        let mut lanes = [0.0f64; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (x, y) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] += x[lane] * y[lane];
            }
        }
        lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(lane, (x, y))| *lane += x * y);
        let [l0, l1, l2, l3, l4, l5, l6, l7] = lanes;
        ((l0 + l1) + (l2 + l3)) + ((l4 + l5) + (l6 + l7))
    };
    sum::tree(a.chunks(BLOCK).zip(b.chunks(BLOCK)).map(block).collect())
}

pub(super) fn norm(a: ArrayView1<'_, f64>) -> f64 {
    dot(a, a).sqrt()
}

pub(super) fn dot32(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    sum_by(a.len(), |i| f64::from(a[i]) * f64::from(b[i]))
}

pub(super) fn norm32(a: ArrayView1<'_, f32>) -> f64 {
    dot32(a, a).sqrt()
}

/// `a / b`, and 0 for 0 / 0.
pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

pub(super) fn widen(rows: ArrayView2<'_, f32>) -> Array2<f64> {
    rows.mapv(f64::from)
}

pub(super) fn narrow(rows: &Array2<f64>) -> Array2<f32> {
    rows.mapv(|v| v as f32)
}

pub(super) fn narrow_row(row: ArrayView1<'_, f64>) -> Array1<f32> {
    row.mapv(|v| v as f32)
}

/// Runs `work(q, row q of a, row q of b)` on all rows side by side; what it returns comes back in order.
pub(super) fn each_pair<A: Send, B: Sync, T: Send>(
    a: &mut Array2<A>,
    b: &Array2<B>,
    work: impl Fn(usize, &mut [A], &[B]) -> T + Sync,
) -> Vec<T> {
    let (wide_a, wide_b) = (a.ncols().max(1), b.ncols().max(1));
    let a = a.as_slice_mut().expect("rows made here are row-major");
    let b = b.as_slice().expect("rows made here are row-major");
    a.par_chunks_mut(wide_a).zip(b.par_chunks(wide_b)).enumerate().map(|(q, (a, b))| work(q, a, b)).collect()
}

#[cfg(test)]
mod tests {
    use ascribe_linalg::Stream;
    use ndarray::s;

    use super::*;

    #[test]
    fn products_of_rows_have_the_bits_of_the_fixed_order() {
        let mut stream = Stream::new(1, "rows");
        let values = Array2::from_shape_fn((2, 5000), |_| stream.normal() * 1e3);
        for n in [0, 1, 7, 8, 9, 1023, 1024, 1025, 4097, 5000] {
            let (a, b) = (values.slice(s![0, ..n]), values.slice(s![1, ..n]));
            assert_eq!(dot(a, b).to_bits(), sum_by(n, |i| a[i] * b[i]).to_bits(), "{n}");
        }
        let (a, b) = (values.slice(s![0, ..;2]), values.slice(s![1, ..;2]));
        assert_eq!(dot(a, b).to_bits(), sum_by(2500, |i| a[i] * b[i]).to_bits(), "rows with gaps");
    }
}
