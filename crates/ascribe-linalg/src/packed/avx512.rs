//! AVX-512 tiles: up to 28 registers of sums, broadcasts straight from row-major memory.
#![allow(unsafe_code)] // intrinsics over raw pointers; `drive` keeps them within the operands

use std::arch::x86_64::*;

use super::drive::Tile;
use super::layout::{LANES, Line};

/// Rows of the tallest tile with 1, 2, 3 registers per row (index 0 is not used).
pub(super) const MAX_ROWS: [usize; 4] = [1, 12, 12, 8];

/// Calls the tile of `$mr` rows and `$nv` registers, with or without a mask.
macro_rules! pick {
    ($body:ident, $rows:expr, $t:expr, $nv:literal: $($mr:literal)*) => {
        match ($rows, $t.mask == u16::MAX) {
            // SAFETY: promised by the caller of the surrounding function.
            $(($mr, true) => unsafe { $body::<$mr, $nv, false>($t) },)*
            // SAFETY: as above.
            $(($mr, false) => unsafe { $body::<$mr, $nv, true>($t) },)*
            (rows, _) => unreachable!("a tile of {rows} rows and {} registers", $nv),
        }
    };
}

/// What the chains of a tile start with: `keep·c + bias`. A macro, because the sums must never leave the registers.
macro_rules! start {
    ($t:ident, $mask:ident) => {{
        let mut sums = [[_mm512_setzero_ps(); NV]; MR];
        let mut bias = [_mm512_setzero_ps(); NV];
        if !$t.bias.is_null() {
            for line in 0..NV {
                bias[line] = _mm512_maskz_loadu_ps($mask(line), $t.bias.add(line * LANES));
            }
        }
        for i in 0..MR {
            for line in 0..NV {
                sums[i][line] = bias[line];
                // Asked for now, so that it is near when the tile ends.
                _mm_prefetch::<_MM_HINT_T0>($t.c.add(i * $t.c_row + line * LANES).cast());
            }
        }
        if $t.keep != 0.0 {
            let keep = _mm512_set1_ps($t.keep);
            for i in 0..MR {
                for line in 0..NV {
                    let c = _mm512_maskz_loadu_ps($mask(line), $t.c.add(i * $t.c_row + line * LANES));
                    sums[i][line] = match $t.bias.is_null() {
                        true => _mm512_mul_ps(keep, c),
                        false => _mm512_fmadd_ps(keep, c, bias[line]),
                    };
                }
            }
        }
        sums
    }};
}

/// The tile functions of one number type; `$step` adds one broadcast times one register.
macro_rules! kernels {
    ($tile:ident, $body:ident, $features:literal, |$sum:ident, $a:ident, $b:ident| $step:expr) => {
        // SAFETY: to be called with a tile whose pointers cover its rows, steps and existing columns, on a processor that
        // has the features.
        #[target_feature(enable = $features)]
        unsafe fn $body<const MR: usize, const NV: usize, const EDGE: bool>(t: &Tile) {
            // SAFETY: the caller promised as much; the last register's missing columns are masked.
            unsafe {
                let mask = |line: usize| if EDGE && line + 1 == NV { t.mask } else { u16::MAX };
                let mut sums = start!(t, mask);
                // Three rows share a base address: `base`, `base + row`, `base + 2·row` are addressing modes, and the
                // addresses of all rows fit into the general registers.
                let mut bases = [t.a; 5];
                for (group, base) in bases.iter_mut().enumerate().take(MR.div_ceil(3)) {
                    *base = t.a.add(3 * group * t.a_row);
                }
                let mut b_at = t.b;
                for _ in 0..t.depth {
                    let mut b = [_mm512_setzero_si512(); NV];
                    for line in 0..NV {
                        let from = b_at.add(line * LANES).cast::<i32>();
                        b[line] = if EDGE {
                            _mm512_maskz_loadu_epi32(mask(line), from)
                        } else {
                            _mm512_loadu_epi32(from)
                        };
                    }
                    for i in 0..MR {
                        let $a = _mm512_set1_epi32(*bases[i / 3].add(i % 3 * t.a_row).cast::<i32>());
                        for line in 0..NV {
                            let ($sum, $b) = (sums[i][line], b[line]);
                            sums[i][line] = $step;
                        }
                    }
                    for base in bases.iter_mut().take(MR.div_ceil(3)) {
                        *base = base.add(t.a_step);
                    }
                    b_at = b_at.add(t.b_step);
                }
                for i in 0..MR {
                    for line in 0..NV {
                        let c = t.c.add(i * t.c_row + line * LANES);
                        if EDGE && line + 1 == NV {
                            _mm512_mask_storeu_ps(c, t.mask, sums[i][line]);
                        } else {
                            _mm512_storeu_ps(c, sums[i][line]);
                        }
                    }
                }
            }
        }

        /// One tile of `mr` rows and `lines` registers.
        ///
        /// # Safety
        /// As `drive::product`.
        #[inline(always)]
        pub(super) unsafe fn $tile(mr: usize, lines: usize, t: &Tile) {
            match lines {
                1 => pick!($body, mr, t, 1: 1 2 3 4 5 6 7 8 9 10 11 12),
                2 => pick!($body, mr, t, 2: 1 2 3 4 5 6 7 8 9 10 11 12),
                _ => pick!($body, mr, t, 3: 1 2 3 4 5 6 7 8),
            }
        }
    };
}

kernels!(tile_f32, body_f32, "avx512f", |sum, a, b| {
    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
});

kernels!(tile_bf16, body_bf16, "avx512f,avx512bf16", |sum, a, b| {
    _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
});

/// Rounds whole lines of pairs to bf16, ties to even.
pub(super) fn round(x: &[[f32; 32]], lines: &mut [Line]) {
    assert_eq!(x.len(), lines.len(), "one line of pairs per 32 numbers");
    // SAFETY: only routes with pairs come here, and those need this feature; lengths are equal.
    unsafe { round_body(x, lines) }
}

// SAFETY: to be called with two slices of one length on a processor that has the features.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round_body(x: &[[f32; 32]], lines: &mut [Line]) {
    for (x, line) in x.iter().zip(lines) {
        // SAFETY: 32 numbers to read, one line to write.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES)));
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(std::ptr::from_mut(line).cast(), pairs);
        }
    }
}
