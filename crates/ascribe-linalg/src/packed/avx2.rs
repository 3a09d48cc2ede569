//! AVX2 + FMA tiles: 6 rows × 16 columns in 12 registers of sums, line after line of a panel.
#![allow(unsafe_code)] // intrinsics over raw pointers; `drive` keeps them within the operands

use std::arch::x86_64::*;

use super::drive::Tile;
use super::layout::LANES;

/// Rows of the tallest tile: 12 of 16 registers hold sums.
pub(super) const MAX_ROWS: usize = 6;

/// One tile of `mr` rows and `lines` lines.
///
/// # Safety
/// As `drive::product`.
pub(super) unsafe fn tile(mr: usize, lines: usize, t: &Tile) {
    for line in 0..lines {
        let mask = if line + 1 == lines { t.mask } else { u16::MAX };
        // SAFETY: one line of the tile, which the caller promised; missing columns go through the plain twin.
        unsafe {
            let part = Tile {
                b: t.b.add(line * LANES),
                c: t.c.add(line * LANES),
                bias: if t.bias.is_null() { t.bias } else { t.bias.add(line * LANES) },
                mask,
                ..*t
            };
            if mask != u16::MAX {
                super::portable::tile(mr, 1, &part);
                continue;
            }
            match mr {
                1 => body::<1>(&part),
                2 => body::<2>(&part),
                3 => body::<3>(&part),
                4 => body::<4>(&part),
                5 => body::<5>(&part),
                6 => body::<6>(&part),
                _ => unreachable!("a tile of {mr} rows"),
            }
        }
    }
}

// SAFETY: to be called with a tile whose pointers cover its rows, steps and one whole line, on a processor with the features.
#[target_feature(enable = "avx2,fma")]
unsafe fn body<const MR: usize>(t: &Tile) {
    // SAFETY: the caller promised that the tile's pointers cover its rows, steps and one whole line of columns.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; MR];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (half, sum) in sums.iter_mut().enumerate() {
                let bias = || _mm256_loadu_ps(t.bias.add(half * 8));
                let (keep, c) = (_mm256_set1_ps(t.keep), t.c.add(i * t.c_row + half * 8));
                *sum = match (t.keep != 0.0, t.bias.is_null()) {
                    (false, true) => _mm256_setzero_ps(),
                    (false, false) => bias(),
                    (true, true) => _mm256_mul_ps(keep, _mm256_loadu_ps(c)),
                    (true, false) => _mm256_fmadd_ps(keep, _mm256_loadu_ps(c), bias()),
                };
            }
        }
        let mut rows: [*const u32; MR] = std::array::from_fn(|i| t.a.add(i * t.a_row));
        let mut b = t.b;
        for _ in 0..t.depth {
            let b_low = _mm256_loadu_ps(b.cast());
            let b_high = _mm256_loadu_ps(b.add(8).cast());
            for (row, sums) in rows.iter_mut().zip(&mut sums) {
                let a = _mm256_broadcast_ss(&*row.cast::<f32>());
                sums[0] = _mm256_fmadd_ps(a, b_low, sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b_high, sums[1]);
                *row = row.add(t.a_step);
            }
            b = b.add(t.b_step);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (half, &sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(t.c.add(i * t.c_row + half * 8), sum);
            }
        }
    }
}
