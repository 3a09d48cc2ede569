//! Which numbers a row type keeps: finite ones below its limit.

use ascribe_core::RowType;
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::wide::wide;

/// Smallest magnitude that rounds to infinity in f16: half way from 65504, the largest number, to 65536.
const F16_LIMIT: f32 = 65520.0;
/// Smallest magnitude that rounds to infinity in bf16: half way from its largest number to 2¹²⁸.
const BF16_LIMIT: f32 = f32::from_bits(0x7F7F_8000);
/// Numbers that are looked at at once: a quarter of a mebibyte.
const CHECKED_NUMBERS: usize = 1 << 16;

/// The smallest magnitude that the row type does not keep finite.
pub(crate) fn limit(row_type: RowType) -> f32 {
    match row_type {
        RowType::F32 | RowType::Int8 | RowType::Int4 => f32::INFINITY,
        RowType::Bf16 => BF16_LIMIT,
        RowType::F16 => F16_LIMIT,
    }
}

/// True if `x` lies below a limit; NaN does not.
#[inline(always)]
pub(crate) fn fits(x: f32, limit: f32) -> bool {
    x.abs() < limit
}

/// The first row, in standard layout, with a number that does not fit.
pub(crate) fn first_bad_row(rows: ArrayView2<'_, f32>, limit: f32) -> Option<usize> {
    let numbers = rows.to_slice().expect("rows are in standard layout");
    let parts = numbers.par_chunks(CHECKED_NUMBERS).enumerate();
    let bad = parts.find_map_first(|(i, part)| {
        // One pass without branches first, which nearly always is the last.
        let at = (!all_fit(part, limit)).then(|| part.iter().position(|&x| !fits(x, limit)))??;
        Some(i * CHECKED_NUMBERS + at)
    })?;
    Some(bad / rows.ncols())
}

wide! {
    /// True if all numbers fit.
    pub(crate) fn all_fit / all_fit_at (numbers: &[f32], limit: f32) -> bool {
        let mut bad = [0u32; 32];
        let (chunks, last) = numbers.as_chunks::<32>();
        for chunk in chunks {
            bad.iter_mut().zip(chunk).for_each(|(bad, &x)| *bad |= u32::from(!fits(x, limit)));
        }
        bad.iter_mut().zip(last).for_each(|(bad, &x)| *bad |= u32::from(!fits(x, limit)));
        bad.iter().all(|&bad| bad == 0)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::wide::levels;

    #[test]
    fn what_fits_is_what_stays_finite() {
        for edge in [F16_LIMIT, BF16_LIMIT, f32::MAX, 1.0] {
            for bits in edge.to_bits() - 3..edge.to_bits() + 3 {
                for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                    assert_eq!(fits(x, limit(RowType::F32)), x.is_finite(), "{x}");
                    assert_eq!(fits(x, limit(RowType::Bf16)), bf16::from_f32(x).is_finite(), "{x}");
                    assert_eq!(fits(x, limit(RowType::F16)), f16::from_f32(x).is_finite(), "{x}");
                }
            }
        }
        assert!(RowType::ALL.iter().all(|&row_type| !fits(f32::NAN, limit(row_type))));
    }

    #[test]
    fn the_first_bad_row_is_found_by_every_twin() {
        for (n, dim) in [(1, 1), (3, 7), (40, 500), (9, 4096)] {
            let mut rows = ndarray::Array2::from_shape_fn((n, dim), |(i, j)| (i * dim + j) as f32);
            assert_eq!(first_bad_row(rows.view(), F16_LIMIT), None, "the largest is {}", n * dim - 1);
            rows[(n - 1, dim - 1)] = f32::NAN;
            rows[(n / 2, dim / 3)] = f32::NEG_INFINITY;
            for level in levels() {
                assert!(!all_fit_at(level, rows.as_slice().unwrap(), f32::INFINITY));
                assert!(all_fit_at(level, &rows.as_slice().unwrap()[..n / 2 * dim + dim / 3], f32::INFINITY));
            }
            assert_eq!(first_bad_row(rows.view(), f32::INFINITY), Some(n / 2));
        }
    }
}
