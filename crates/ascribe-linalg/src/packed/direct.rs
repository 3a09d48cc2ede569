//! Products of operands as they lie: attention's products over one sequence, and outer products `aᵀ·b`.
//!
//! The right operand is read row by row in place, so its rows must be contiguous; the left one may have any strides, a
//! transposed one included. The chains are those of [`super::PackedMatrix`].
#![allow(unsafe_code)] // hands checked slices to `drive`

use ndarray::{ArrayView2, ArrayViewMut2};

use super::drive::{Left, Panel, Result, product};
use super::layout::{LANES, panel_widths};
use super::route::{Precision, Route};

/// A left operand with strides.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    data: &'a [f32],
    row: usize,
    step: usize,
}

impl<'a> Operand<'a> {
    /// Rows of `a` `[m, k]`, `stride` numbers from row to row.
    pub const fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: stride, step: 1 }
    }

    /// The transpose of `a` `[k, m]`, whose own rows are `stride` numbers apart.
    pub const fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: 1, step: stride }
    }
}

/// `c ← a·b + keep·c` in f32; shapes `[m, k] · [k, n] → [m, n]` are given as `[m, k, n]`, `b` and `c` are row-major with
/// strides. With `keep = 0` the old content of `c` is not read.
///
/// Single-threaded, allocates nothing. Cost `2·m·k·n`.
///
/// # Panics
/// If an operand ends behind its slice or rows of `c` overlap.
pub fn multiply_direct(
    [m, k, n]: [usize; 3],
    a: Operand<'_>,
    (b, b_stride): (&[f32], usize),
    keep: f32,
    (c, c_stride): (&mut [f32], usize),
) {
    multiply_on(Route::best(Precision::F32), [m, k, n], a, (b, b_stride), keep, (c, c_stride));
}

/// [`multiply_direct`] for views: `c ← a·b + keep·c`, where `a` may have any strides that are not negative, and the rows of `b`
/// and `c` are contiguous.
///
/// # Panics
/// If the shapes do not fit, or rows of `b` or `c` are not contiguous.
pub fn multiply_views(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, keep: f32, mut c: ArrayViewMut2<'_, f32>) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert_eq!(k, b.nrows(), "inner dimensions of a product differ");
    assert_eq!((m, n), c.dim(), "the result of a product has another shape");
    if m == 0 || n == 0 {
        return;
    }
    // The stride of a dimension of one place means nothing and may be anything.
    let stride = |len: usize, stride: isize| if len < 2 { 0 } else { usize::try_from(stride).unwrap_or(usize::MAX) };
    let (a_row, a_step) = (stride(m, a.strides()[0]), stride(k, a.strides()[1]));
    let (b_step, c_row) = (stride(k, b.strides()[0]), stride(m, c.strides()[0]));
    assert!(a_row != usize::MAX && a_step != usize::MAX, "the left operand of a product runs backwards");
    let contiguous = n == 1 || ((k == 0 || b.strides()[1] == 1) && c.strides()[1] == 1);
    assert!(contiguous && b_step != usize::MAX && c_row != usize::MAX, "rows of a product's views are not contiguous");
    let left = Left { words: a.as_ptr().cast(), row: a_row, step: a_step };
    let out = Result { c: c.as_mut_ptr(), row: c_row, keep, bias: std::ptr::null() };
    let panels = panels(b.as_ptr().cast(), b_step, n);
    // SAFETY: pointers and strides come from live views whose shapes were just checked to fit each other; f32 kernels read
    // existing columns only; `c` is borrowed mutably, so it overlaps neither operand.
    unsafe { product(Route::best(Precision::F32), m, k, left, panels, out) };
}

/// The panels of a right operand as it lies.
fn panels(words: *const u32, step: usize, n: usize) -> impl Iterator<Item = Panel> + Clone {
    panel_widths(n).scan(0, move |column, lines| {
        let first = *column;
        *column += lines * LANES;
        let columns = (n - first).min(lines * LANES);
        Some(Panel { words: words.wrapping_add(first), step, column: first, lines, columns })
    })
}

pub(super) fn multiply_on(
    route: Route,
    [m, k, n]: [usize; 3],
    a: Operand<'_>,
    (b, b_stride): (&[f32], usize),
    keep: f32,
    (c, c_stride): (&mut [f32], usize),
) {
    if m == 0 || n == 0 {
        return;
    }
    let fits = |rows: usize, row: usize, columns: usize, column: usize, len: usize| {
        let last = |count: usize, stride: usize| count.saturating_sub(1).checked_mul(stride);
        let end = last(rows, row).zip(last(columns, column)).and_then(|(x, y)| x.checked_add(y));
        rows == 0 || columns == 0 || end.is_some_and(|end| end < len)
    };
    assert!(fits(m, a.row, k, a.step, a.data.len()), "the left operand of a product ends behind its slice");
    assert!(fits(k, b_stride, n, 1, b.len()), "the right operand of a product ends behind its slice");
    assert!(fits(m, c_stride, n, 1, c.len()), "the result of a product ends behind its slice");
    assert!(m == 1 || c_stride >= n, "rows of the result overlap");
    assert!(route.available() && !route.pairs(), "no direct products on {route:?}");
    let panels = panels(b.as_ptr().cast(), b_stride, n);
    let left = Left { words: a.data.as_ptr().cast(), row: a.row, step: a.step };
    let out = Result { c: c.as_mut_ptr(), row: c_stride, keep, bias: std::ptr::null() };
    // SAFETY: all three operands were checked against their slices above; f32 kernels read existing columns only; `c` is
    // borrowed mutably, so it overlaps neither operand.
    unsafe { product(route, m, k, left, panels, out) };
}
