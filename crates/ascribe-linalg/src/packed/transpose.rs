//! A scaled transpose of a strided matrix: what makes keys and values right operands of direct products.
#![allow(unsafe_code)] // 16 × 16 blocks through registers; the one caller below checks the slices

use super::layout::LANES;

/// `out[j, i] ← factor · x[i, j]` for `x` `[rows, columns]`; `out` is `[columns, rows]`. Strides are numbers from row to row.
///
/// Cost: one pass; about two cycles per cache line and step of the AVX-512 blocks.
///
/// # Panics
/// If a matrix ends behind its slice or its rows overlap.
pub fn transpose_scaled(
    [rows, columns]: [usize; 2],
    factor: f32,
    (x, x_stride): (&[f32], usize),
    (out, out_stride): (&mut [f32], usize),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let end = |rows: usize, stride: usize, columns: usize| (rows - 1).checked_mul(stride)?.checked_add(columns);
    assert!(x_stride >= columns && out_stride >= rows, "rows of a transpose overlap");
    assert!(end(rows, x_stride, columns).is_some_and(|end| end <= x.len()), "the matrix ends behind its slice");
    assert!(end(columns, out_stride, rows).is_some_and(|end| end <= out.len()), "the transpose ends behind its slice");
    let (mut whole_rows, mut whole_columns) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if super::route::Route::Avx512.available() {
        (whole_rows, whole_columns) = (rows / LANES * LANES, columns / LANES * LANES);
        for i in (0..whole_rows).step_by(LANES) {
            for j in (0..whole_columns).step_by(LANES) {
                // SAFETY: the processor has AVX-512; 16 rows of 16 numbers from (i, j) lie within `x`, and 16 rows of 16
                // from (j, i) within `out`, by the checks above.
                unsafe {
                    let (x, out) = (x.as_ptr().add(i * x_stride + j), out.as_mut_ptr().add(j * out_stride + i));
                    block(factor, x, x_stride, out, out_stride);
                }
            }
        }
    }
    for i in 0..rows {
        let first = if i < whole_rows { whole_columns } else { 0 };
        for j in first..columns {
            out[j * out_stride + i] = factor * x[i * x_stride + j];
        }
    }
}

/// One block of 16 × 16.
// SAFETY: to be called with both blocks in bounds, on a processor with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn block(factor: f32, x: *const f32, x_stride: usize, out: *mut f32, out_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller promised 16 rows of 16 numbers on both sides.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        let row = |i: usize| _mm512_mul_ps(factor, _mm512_loadu_ps(x.add(i * x_stride)));
        let mut r: [__m512; LANES] = std::array::from_fn(row);
        // Pairs of rows interleave single numbers, then pairs of pairs two numbers: quarters of 4 × 4 are transposed.
        let mut t = [_mm512_setzero_ps(); LANES];
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
        let high = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
        for i in 0..4 {
            r[4 * i] = low(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = high(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = low(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = high(t[4 * i + 1], t[4 * i + 3]);
        }
        // Register 4·i + c holds, per quarter q, column 4·q + c of rows 4·i .. 4·i + 4: gather the quarters.
        for c in 0..4 {
            let a = _mm512_shuffle_f32x4::<0x88>(r[c], r[4 + c]);
            let b = _mm512_shuffle_f32x4::<0x88>(r[8 + c], r[12 + c]);
            let d = _mm512_shuffle_f32x4::<0xdd>(r[c], r[4 + c]);
            let e = _mm512_shuffle_f32x4::<0xdd>(r[8 + c], r[12 + c]);
            _mm512_storeu_ps(out.add(c * out_stride), _mm512_shuffle_f32x4::<0x88>(a, b));
            _mm512_storeu_ps(out.add((8 + c) * out_stride), _mm512_shuffle_f32x4::<0xdd>(a, b));
            _mm512_storeu_ps(out.add((4 + c) * out_stride), _mm512_shuffle_f32x4::<0x88>(d, e));
            _mm512_storeu_ps(out.add((12 + c) * out_stride), _mm512_shuffle_f32x4::<0xdd>(d, e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_lands_on_the_other_side() {
        for [rows, columns] in [[1, 1], [16, 16], [17, 33], [64, 128], [128, 64], [5, 40], [40, 5]] {
            let (x_stride, out_stride) = (columns + 3, rows + 2);
            let x: Vec<f32> = (0..rows * x_stride).map(|i| i as f32).collect();
            let mut out = vec![-1.0; columns * out_stride];
            transpose_scaled([rows, columns], 0.5, (&x, x_stride), (&mut out, out_stride));
            for (at, &got) in out.iter().enumerate() {
                let (j, i) = (at / out_stride, at % out_stride);
                let expected = if i < rows { 0.5 * x[i * x_stride + j] } else { -1.0 };
                assert_eq!(got, expected, "{rows} × {columns} at {j}, {i}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "ends behind its slice")]
    fn short_results_are_refused() {
        transpose_scaled([2, 3], 1.0, (&[0.0; 6], 3), (&mut [0.0; 5], 2));
    }
}
