//! Stored rows, added to sums without being widened in memory first.
//!
//! Four rows at a time, number by number in their order: so a sum and what it lost are read and written once for four additions, whose
//! chain is the same as row by row, to the last bit.

use ascribe_core::RowType;

use super::shard::widen_row;
use super::sums::{add_row, add_times};
use super::view::ShardView;
use super::whole_sums;
use crate::wide::wide;

/// Rows that are added together.
const TOGETHER: usize = 4;
/// Numbers of a row that are widened together.
const LANES: usize = 16;
/// Numbers that are widened in memory, where a row is: as many as a task of [`super::sums`] has, and even.
pub(crate) const COLUMNS_MAX: usize = 1024;

/// Adds columns `start..` of `rows` to sums `main` and what they lost, `rest`; as many columns as those have, at most [`COLUMNS_MAX`],
/// from an even one on.
pub(crate) fn add(view: &ShardView<'_>, rows: &[u32], start: usize, main: &mut [f64], rest: &mut [f64]) {
    if whole_sums::add(view, rows, start, main, rest) {
        return;
    }
    let (n, first_byte) = (main.len(), start * view.row_type.bits() / 8);
    let bytes = |row: u32| &view.row(row as usize)[first_byte..][..view.row_type.row_bytes(n)];
    let scale = |row: u32| view.scale.map_or(1.0, |scales| scales[row as usize]);
    let (one, (fours, last)) = (std::hint::black_box(1.0), rows.as_chunks::<TOGETHER>());
    for rows in fours {
        match view.row_type {
            RowType::F32 => add_f32(main, rest, rows.map(bytes), one),
            RowType::F16 => add_f16(main, rest, rows.map(bytes), one),
            RowType::Bf16 => add_bf16(main, rest, rows.map(bytes), one),
            RowType::Int8 => add_int8(main, rest, rows.map(bytes), rows.map(scale), one),
            RowType::Int4 => add_int4(main, rest, rows.map(bytes), rows.map(scale), one),
        }
    }
    for &row in last {
        let mut wide = [0.0; COLUMNS_MAX];
        widen_row(view.row_type, bytes(row), scale(row), &mut wide[..n]);
        add_row(main, rest, &wide[..n], 1.0);
    }
}

/// Rows of one type, and how their numbers are widened.
trait Rows {
    /// Numbers `i · LANES..` of row `row`.
    fn lanes(&self, row: usize, i: usize) -> [f32; LANES];
    /// Number `i`.
    fn number(&self, row: usize, i: usize) -> f32;
}

/// Adds the rows. `one` is 1, and nothing that a compiler knows: see [`add_times`].
#[inline(always)]
fn add_rows<const FMA: bool>(main: &mut [f64], rest: &mut [f64], one: f64, rows: &impl Rows) {
    let first_last = main.len() / LANES * LANES;
    let sums = main.as_chunks_mut::<LANES>().0.iter_mut().zip(rest.as_chunks_mut::<LANES>().0);
    for (i, (main, rest)) in sums.enumerate() {
        let (mut s, mut r) = (*main, *rest);
        for row in 0..TOGETHER {
            let numbers = rows.lanes(row, i);
            for lane in 0..LANES {
                add_times::<FMA>(&mut s[lane], &mut r[lane], f64::from(numbers[lane]), one);
            }
        }
        (*main, *rest) = (s, r);
    }
    for i in first_last..main.len() {
        for row in 0..TOGETHER {
            add_times::<false>(&mut main[i], &mut rest[i], f64::from(rows.number(row, i)), 1.0);
        }
    }
}

/// Rows of numbers of `N` bytes, and how one is widened.
struct Numbers<'a, const N: usize, T> {
    rows: [&'a [[u8; N]]; TOGETHER],
    widen: T,
}

/// How a number is widened, given its scale. No closures: those that are long stay calls, sixteen for every register.
trait Widen<const N: usize> {
    fn widen(&self, row: usize, bytes: [u8; N]) -> f32;
}

impl<const N: usize, T: Widen<N>> Rows for Numbers<'_, N, T> {
    #[inline(always)]
    fn lanes(&self, row: usize, i: usize) -> [f32; LANES] {
        let chunk = &self.rows[row].as_chunks::<LANES>().0[i];
        let mut wide = [0.0; LANES];
        for lane in 0..LANES {
            wide[lane] = self.widen.widen(row, chunk[lane]);
        }
        wide
    }

    #[inline(always)]
    fn number(&self, row: usize, i: usize) -> f32 {
        self.widen.widen(row, self.rows[row][i])
    }
}

struct F32;

impl Widen<4> for F32 {
    #[inline(always)]
    fn widen(&self, _: usize, bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
}

struct Bf16;

impl Widen<2> for Bf16 {
    #[inline(always)]
    fn widen(&self, _: usize, bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }
}

struct F16;

impl Widen<2> for F16 {
    /// Exactly: its digits as those of a number that is 2¹¹² times smaller, which f32 has, those below the least normal number, too.
    #[inline(always)]
    fn widen(&self, _: usize, bytes: [u8; 2]) -> f32 {
        let bits = u32::from(u16::from_le_bytes(bytes));
        let small = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
        // Infinite or no number: no store of ours has one. By arithmetic, for a branch keeps the loop from being one of registers.
        let is_other = u32::from(bits & 0x7C00 == 0x7C00);
        f32::from_bits(small.to_bits() | (is_other * 0x7F80_0000) | ((bits & 0x8000) << 16))
    }
}

/// The scale of each row.
struct Int8([f32; TOGETHER]);

impl Widen<1> for Int8 {
    #[inline(always)]
    fn widen(&self, row: usize, [code]: [u8; 1]) -> f32 {
        self.0[row] * f32::from(code as i8)
    }
}

/// Rows of half bytes and their scales.
struct Int4<'a> {
    rows: [&'a [u8]; TOGETHER],
    scales: [f32; TOGETHER],
}

/// Code `i` of eight in a word, the first in the lowest digit.
#[inline(always)]
fn code(word: u32, i: usize) -> f32 {
    (((word << (28 - 4 * i)) as i32) >> 28) as f32
}

impl Rows for Int4<'_> {
    #[inline(always)]
    fn lanes(&self, row: usize, i: usize) -> [f32; LANES] {
        let words = &self.rows[row].as_chunks::<4>().0.as_chunks::<{ LANES / 8 }>().0[i];
        let mut wide = [0.0; LANES];
        for lane in 0..LANES {
            wide[lane] = self.scales[row] * code(u32::from_le_bytes(words[lane / 8]), lane % 8);
        }
        wide
    }

    #[inline(always)]
    fn number(&self, row: usize, i: usize) -> f32 {
        self.scales[row] * code(u32::from(self.rows[row][i / 2]), i % 2)
    }
}

wide! {
    fn add_f32 / add_f32_at (main: &mut [f64], rest: &mut [f64], rows: [&[u8]; TOGETHER], one: f64) {
        let rows = rows.map(|row| row.as_chunks().0);
        add_rows::<FMA>(main, rest, one, &Numbers { rows, widen: F32 });
    }
}

wide! {
    fn add_bf16 / add_bf16_at (main: &mut [f64], rest: &mut [f64], rows: [&[u8]; TOGETHER], one: f64) {
        let rows = rows.map(|row| row.as_chunks().0);
        add_rows::<FMA>(main, rest, one, &Numbers { rows, widen: Bf16 });
    }
}

wide! {
    fn add_f16 / add_f16_at (main: &mut [f64], rest: &mut [f64], rows: [&[u8]; TOGETHER], one: f64) {
        let rows = rows.map(|row| row.as_chunks().0);
        add_rows::<FMA>(main, rest, one, &Numbers { rows, widen: F16 });
    }
}

wide! {
    fn add_int8 / add_int8_at (
        main: &mut [f64],
        rest: &mut [f64],
        rows: [&[u8]; TOGETHER],
        scales: [f32; TOGETHER],
        one: f64,
    ) {
        let rows = rows.map(|row| row.as_chunks().0);
        add_rows::<FMA>(main, rest, one, &Numbers { rows, widen: Int8(scales) });
    }
}

wide! {
    fn add_int4 / add_int4_at (
        main: &mut [f64],
        rest: &mut [f64],
        rows: [&[u8]; TOGETHER],
        scales: [f32; TOGETHER],
        one: f64,
    ) {
        add_rows::<FMA>(main, rest, one, &Int4 { rows, scales });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wide::levels;

    #[test]
    fn every_binary16_is_widened_to_itself() {
        for bits in 0..=u16::MAX {
            let (found, wanted) = (F16.widen(0, bits.to_le_bytes()), half::f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == wanted.to_bits() || (found.is_nan() && wanted.is_nan()), "{bits:x}");
        }
    }

    /// Four rows together have the bits of four rows one by one, on every level and at every width.
    #[test]
    fn rows_together_are_rows_one_by_one() {
        let bytes: Vec<u8> = (0..4 * 4 * 300u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let scales = [0.37, 1e-3, 2.5e7, 1.0];
        for n in [0, 1, 15, 16, 17, 96, 300] {
            for row_type in RowType::ALL {
                // Finite: the highest bit of the exponent is off.
                let own = |i: usize| -> Vec<u8> {
                    let mut own = bytes[i * 1200..][..row_type.row_bytes(n)].to_vec();
                    let width = row_type.bits() / 8;
                    if matches!(row_type, RowType::F32 | RowType::F16 | RowType::Bf16) {
                        own.iter_mut().skip(width - 1).step_by(width).for_each(|byte| *byte &= 0xBF);
                    }
                    own
                };
                let rows: [Vec<u8>; TOGETHER] = std::array::from_fn(own);
                let wide = |i: usize| {
                    let mut wide = vec![0.0; n];
                    widen_row(row_type, &rows[i], scales[i], &mut wide);
                    wide
                };
                let before: Vec<f64> = (0..n).map(|i| (i as f64 - 40.3) * 1e3).collect();
                let (mut main, mut rest) = (before.clone(), vec![1e-20; n]);
                (0..TOGETHER).for_each(|i| add_row(&mut main, &mut rest, &wide(i), 1.0));
                for level in levels() {
                    let (mut s, mut r) = (before.clone(), vec![1e-20; n]);
                    let of = rows.each_ref().map(|row| &row[..]);
                    match row_type {
                        RowType::F32 => add_f32_at(level, &mut s, &mut r, of, 1.0),
                        RowType::F16 => add_f16_at(level, &mut s, &mut r, of, 1.0),
                        RowType::Bf16 => add_bf16_at(level, &mut s, &mut r, of, 1.0),
                        RowType::Int8 => add_int8_at(level, &mut s, &mut r, of, scales, 1.0),
                        RowType::Int4 => add_int4_at(level, &mut s, &mut r, of, scales, 1.0),
                    }
                    let bits = |numbers: &[f64]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!((bits(&s), bits(&r)), (bits(&main), bits(&rest)), "{row_type:?} {n} {level:?}");
                }
            }
        }
    }
}
