//! Sums of int8 and int4 rows as sums of whole numbers.
//!
//! A scale of few digits is `m · 2ᵉ` with a whole `m` below 2¹⁶ ([`quant::SCALE_DIGITS`]). Over rows whose exponents lie within
//! [`WINDOW`] of each other `Σ scale · code` is `2^q · Σ M · code`, where `q` is the least exponent and the `M` are whole and below 2³²:
//! a sum that is exact however it is taken, so one addition to the compensated sums is left for all of them. The bytes of the `M`
//! are factors that AVX-512 VNNI multiplies 64 codes by at once; elsewhere the numbers are added in f64, which holds them all exactly.
#![allow(unsafe_code)] // loads of 32 and 64 bytes from slices of that length; `has_vnni` has asked for what the kernels need

use ascribe_core::RowType;

use super::quant::{SCALE_DIGITS, decode};
use super::sum_rows::COLUMNS_MAX;
use super::sums::add_to;
use super::view::ShardView;
use crate::wide::wide;

/// What the exponents of the scales may lie apart.
const WINDOW: u32 = 16;
/// Rows of one sum: `M · code` is below 2³⁹, and 2⁵³ holds 2¹³ of them with room to spare; sums of bytes of `M` times codes are below 2²⁸.
const ROWS_MAX: usize = 1 << 13;
/// Fewer rows are as fast one by one.
const ROWS_MIN: usize = 3;
/// Columns that are added together.
const BLOCK: usize = 64;
/// Rows whose codes are interleaved, for the processor adds up four products.
const QUAD: usize = 4;

/// Adds columns `start..` of `rows` to sums `main` and what they lost, `rest`, and returns true; false, with nothing done, if the scales
/// are too far apart, have too many digits, or are too few to be worth it.
pub(super) fn add(view: &ShardView<'_>, rows: &[u32], start: usize, main: &mut [f64], rest: &mut [f64]) -> bool {
    let Some(scales) = view.scale.filter(|_| (ROWS_MIN..=ROWS_MAX).contains(&rows.len())) else { return false };
    let Some(least) = least_exponent(rows.iter().map(|&row| scales[row as usize])) else { return false };
    let mut sums = [0.0; COLUMNS_MAX];
    let (n, first_byte) = (main.len(), start * view.row_type.bits() / 8);
    let bytes = |row: u32| &view.row(row as usize)[first_byte..][..view.row_type.row_bytes(n)];
    let n_whole = if has_vnni() { n / BLOCK * BLOCK } else { 0 };
    #[cfg(target_arch = "x86_64")]
    if n_whole > 0 {
        let factor = |row: u32| whole(scales[row as usize], least);
        // SAFETY: `has_vnni` has asked for the features.
        unsafe { vnni::add(rows, &bytes, &factor, view.row_type, &mut sums[..n_whole]) };
        let unit = 2f64.powi(least);
        sums[..n_whole].iter_mut().for_each(|sum| *sum *= unit);
    }
    if n_whole < n {
        let mut wide = [0.0; COLUMNS_MAX];
        let wide = &mut wide[..n - n_whole];
        for &row in rows {
            let from = n_whole * view.row_type.bits() / 8;
            decode(&bytes(row)[from..], scales[row as usize], view.row_type, wide);
            add_plainly(&mut sums[n_whole..n], wide);
        }
    }
    add_compensated(main, rest, &sums[..n]);
    true
}

wide! {
    fn add_plainly / add_plainly_at (sums: &mut [f64], row: &[f32]) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
}

wide! {
    fn add_compensated / add_compensated_at (main: &mut [f64], rest: &mut [f64], sums: &[f64]) {
        main.iter_mut().zip(rest).zip(sums).for_each(|((main, rest), &sum)| add_to(main, rest, sum));
    }
}

/// The least exponent of the last digit of the scales above zero; none if they are too far apart or one has too many digits.
fn least_exponent(scales: impl Iterator<Item = f32>) -> Option<i32> {
    let (mut least, mut most) = (u32::MAX, 0);
    for bits in scales.map(f32::to_bits).filter(|&bits| bits != 0) {
        let (exponent, dropped) = (bits >> 23, bits & ((1 << (24 - SCALE_DIGITS)) - 1));
        // No normal number above zero, or not a short one.
        if !(1..255).contains(&exponent) || dropped != 0 {
            return None;
        }
        (least, most) = (least.min(exponent), most.max(exponent));
    }
    if least > most {
        return Some(0);
    }
    (most - least <= WINDOW).then(|| least as i32 - 127 - (SCALE_DIGITS as i32 - 1))
}

/// `scale / 2^least`.
fn whole(scale: f32, least: i32) -> u32 {
    (f64::from(scale) * 2f64.powi(-least)) as u32
}

/// True if the processor multiplies bytes.
fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;

    use super::{BLOCK, COLUMNS_MAX, QUAD, RowType};

    /// Sums of a block in whole numbers, in the order of the interleaved codes.
    type Sums = [__m512i; BLOCK / 16];

    /// Adds `Σ M · code` to `sums`, a multiple of [`BLOCK`] columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn add<'a>(
        rows: &[u32],
        bytes: &impl Fn(u32) -> &'a [u8],
        factor: &impl Fn(u32) -> u32,
        row_type: RowType,
        sums: &mut [f64],
    ) {
        let most = rows.iter().map(|&row| factor(row)).max().unwrap_or(0);
        let run = match (row_type, most) {
            (RowType::Int4, 0..=0xFFFF) => add_digits::<2, true>,
            (RowType::Int4, 0..=0xFF_FFFF) => add_digits::<3, true>,
            (RowType::Int4, _) => add_digits::<4, true>,
            (_, 0..=0xFFFF) => add_digits::<2, false>,
            (_, 0..=0xFF_FFFF) => add_digits::<3, false>,
            (_, _) => add_digits::<4, false>,
        };
        run(rows, bytes, factor, sums);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add_digits<'a, const DIGITS: usize, const FOUR: bool>(
        rows: &[u32],
        bytes: &impl Fn(u32) -> &'a [u8],
        factor: &impl Fn(u32) -> u32,
        sums: &mut [f64],
    ) {
        let zero = _mm512_setzero_si512();
        let mut whole = [[[zero; BLOCK / 16]; DIGITS]; COLUMNS_MAX / BLOCK];
        let n_blocks = sums.len() / BLOCK;
        let two = |rows: &[u32]| {
            // What is missing of a quad is its first row times nothing.
            let row = |i: usize| rows.get(i).map_or((bytes(rows[0]), 0), |&row| (bytes(row), factor(row)));
            let quad = |first: usize| -> ([&'a [u8]; QUAD], [__m512i; DIGITS]) {
                let own: [(&[u8], u32); QUAD] = std::array::from_fn(|i| row(first + i));
                let digit = |k: usize| i32::from_le_bytes(own.map(|(_, m)| m.to_le_bytes()[k]));
                (own.map(|(bytes, _)| bytes), std::array::from_fn(|k| _mm512_set1_epi32(digit(k))))
            };
            (quad(0), quad(QUAD))
        };
        let mut pairs = rows.chunks(2 * QUAD).peekable();
        while let Some(rows) = pairs.next() {
            let ((first, first_digits), (second, second_digits)) = two(rows);
            let has_second = rows.len() > QUAD;
            let next = pairs.peek().copied().unwrap_or_default();
            for (block, whole) in whole[..n_blocks].iter_mut().enumerate() {
                // Rows of one dataset lie apart: no processor foresees the next one.
                let line = block * if FOUR { BLOCK / 2 } else { BLOCK };
                if line.is_multiple_of(64) {
                    next.iter().for_each(|&row| _mm_prefetch::<_MM_HINT_T0>(bytes(row)[line..].as_ptr().cast()));
                }
                add_block::<DIGITS, FOUR>(&first, &first_digits, block, whole);
                if has_second {
                    add_block::<DIGITS, FOUR>(&second, &second_digits, block, whole);
                }
            }
        }
        for (sums, whole) in sums.as_chunks_mut::<BLOCK>().0.iter_mut().zip(&whole) {
            put(whole, sums);
        }
    }

    /// Adds four rows of one block: every sum is one of four codes times a digit each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add_block<const DIGITS: usize, const FOUR: bool>(
        rows: &[&[u8]; QUAD],
        digits: &[__m512i; DIGITS],
        block: usize,
        sums: &mut [Sums; DIGITS],
    ) {
        let [a, b, c, d] = rows.map(|row| if FOUR { codes_of_four(row, block) } else { codes_of_eight(row, block) });
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let codes = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ab_high, cd_high),
            _mm512_unpackhi_epi16(ab_high, cd_high),
        ];
        for (sums, &digit) in sums.iter_mut().zip(digits) {
            for (sum, codes) in sums.iter_mut().zip(codes) {
                *sum = _mm512_dpbusd_epi32(*sum, digit, codes);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn codes_of_eight(row: &[u8], block: usize) -> __m512i {
        let codes = &row[block * BLOCK..][..BLOCK];
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn codes_of_four(row: &[u8], block: usize) -> __m512i {
        let codes = &row[block * (BLOCK / 2)..][..BLOCK / 2];
        // SAFETY: 32 bytes are there.
        let pairs = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) });
        let apart = _mm512_or_si512(pairs, _mm512_slli_epi16::<4>(pairs));
        let halves = _mm512_and_si512(apart, _mm512_set1_epi8(0x0F));
        // The number that a half byte is in two's complement.
        let table = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), halves)
    }

    /// Adds the digits up, in the order of the columns: column `16 l + 4 k + j` is number `4 l + j` of register `k`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn put<const DIGITS: usize>(whole: &[Sums; DIGITS], out: &mut [f64; BLOCK]) {
        let mut digits = [[0i32; BLOCK]; DIGITS];
        for (sums, digits) in whole.iter().zip(&mut digits) {
            for (k, &sum) in sums.iter().enumerate() {
                let quarters = [
                    _mm512_extracti32x4_epi32::<0>(sum),
                    _mm512_extracti32x4_epi32::<1>(sum),
                    _mm512_extracti32x4_epi32::<2>(sum),
                    _mm512_extracti32x4_epi32::<3>(sum),
                ];
                for (l, quarter) in quarters.into_iter().enumerate() {
                    let place = &mut digits[16 * l + 4 * k..][..4];
                    // SAFETY: four numbers are there.
                    unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), quarter) };
                }
            }
        }
        for (i, out) in out.iter_mut().enumerate() {
            // Exact: every part and the sum are whole and below 2⁵³.
            *out = (0..DIGITS).rev().fold(0.0, |sum, digit| 256.0 * sum + f64::from(digits[digit][i]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::quant::{encode, first_bad};
    use crate::features::sums::add_row;

    /// Rows of `n` numbers coded, with their scales.
    fn rows(n: usize, n_rows: usize, row_type: RowType, spread: i32) -> (Vec<u8>, Vec<f32>, usize) {
        let stride = row_type.row_bytes(n).next_multiple_of(64);
        let (mut bytes, mut scales) = (vec![0; stride * n_rows], Vec::new());
        for (i, place) in bytes.chunks_mut(stride).enumerate() {
            let size = 2f32.powi(i as i32 % (spread + 1) - 20);
            let row: Vec<f32> =
                (0..n).map(|j| size * (((i * 7919 + j * 104_729) % 2003) as f32 / 900.0 - 1.1)).collect();
            let row = if i == 5 { vec![0.0; n] } else { row };
            let place = &mut place[..row_type.row_bytes(n)];
            scales.push(encode(&row, row_type, place).unwrap().scale);
            assert_eq!(first_bad(place, n, row_type), None);
        }
        (bytes, scales, stride)
    }

    fn view<'a>(row_type: RowType, dim: usize, bytes: &'a [u8], scales: &'a [f32], stride: usize) -> ShardView<'a> {
        let (n_rows, ids) = (scales.len(), &[][..]);
        let (norm, scale) = (scales, Some(scales));
        ShardView { row_type, n_rows, dim, stride_bytes: stride, rows: bytes, scale, norm, error: None, ids, dead: &[] }
    }

    /// One row after another in compensated sums, which are exact here, too: all numbers have their digits within 2⁵³.
    #[test]
    fn sums_of_whole_numbers_are_those_of_the_rows() {
        for row_type in [RowType::Int8, RowType::Int4] {
            for (n, n_rows, spread) in [(1, 3, 0), (63, 4, 1), (64, 5, 0), (200, 8, 7), (1024, 17, 3), (1000, 300, 14)]
            {
                let (bytes, scales, stride) = rows(n, n_rows, row_type, spread);
                let view = view(row_type, n, &bytes, &scales, stride);
                let chosen: Vec<u32> = (0..n_rows as u32).filter(|i| n_rows < 9 || i % 3 != 1).collect();
                // From an even column on, as tasks begin.
                for start in [0, n / 4 * 2] {
                    let (mut main, mut rest) = (vec![0.0; n - start], vec![0.0; n - start]);
                    assert!(add(&view, &chosen, start, &mut main, &mut rest), "{n_rows} rows, {spread} apart");
                    let (mut wanted, mut lost) = (vec![0.0; n - start], vec![0.0; n - start]);
                    for &row in &chosen {
                        let mut wide = vec![0.0; n];
                        decode(view.row(row as usize), scales[row as usize], row_type, &mut wide);
                        add_row(&mut wanted, &mut lost, &wide[start..], 1.0);
                    }
                    assert_eq!((main, rest), (wanted, lost), "{row_type:?} {n} numbers, {n_rows} rows, from {start}");
                }
            }
        }
    }

    /// What VNNI adds is what f64 adds.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn bytes_times_digits_are_the_numbers() {
        if !has_vnni() {
            return;
        }
        for row_type in [RowType::Int8, RowType::Int4] {
            for spread in [0, 7, 15] {
                let (bytes, scales, stride) = rows(1024, 100, row_type, spread);
                let view = view(row_type, 1024, &bytes, &scales, stride);
                let chosen: Vec<u32> = (0..100).collect();
                let least = least_exponent(scales.iter().copied()).expect("short scales");
                let (mut by_bytes, mut by_numbers) = ([0.0; 1024], [0.0; 1024]);
                let (own, factor) = (|row: u32| view.row(row as usize), |row: u32| whole(scales[row as usize], least));
                // SAFETY: asked above.
                unsafe { vnni::add(&chosen, &own, &factor, row_type, &mut by_bytes) };
                for &row in &chosen {
                    let mut wide = [0.0; 1024];
                    decode(own(row), scales[row as usize], row_type, &mut wide);
                    add_plainly(&mut by_numbers, &wide);
                }
                let unit = 2f64.powi(least);
                assert!(by_bytes.iter().zip(by_numbers).all(|(a, b)| a * unit == b), "{row_type:?} {spread}");
            }
        }
    }

    #[test]
    fn scales_that_are_no_short_numbers_are_left_to_others() {
        assert_eq!(least_exponent([0.25, 0.0, 3.0].into_iter()), Some(-17));
        assert_eq!(least_exponent([0.0, 0.0].into_iter()), Some(0));
        assert_eq!(least_exponent([1.0, 1.0f32.next_up()].into_iter()), None, "too many digits");
        assert_eq!(least_exponent([1.0, 2f32.powi(-17)].into_iter()), None, "too far apart");
        assert_eq!(least_exponent([1.0, 1e-40].into_iter()), None, "below the normal numbers");
        assert_eq!(least_exponent([1.0, f32::INFINITY].into_iter()), None);
        assert_eq!(least_exponent([1.0, -1.0].into_iter()), None, "no scale");
        assert_eq!(whole(3.0, -17), 3 << 17);
    }
}
