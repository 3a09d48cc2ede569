//! Int8 and int4 codes of a row: one scale, signed codes, and a bound of what was lost that holds for every row.
//!
//! A stored number is `scale · code`, exactly (no rounding is part of the definition). A scale that is a normal f32 has
//! [`SCALE_DIGITS`] binary digits at most, so that `scale · code` is an f32 and sums of rows are sums of whole numbers. `error` is an
//! upper bound of `‖row − stored row‖₂`: what `x − scale · code` is in f32, squared and summed, lifted by what the roundings of that may
//! have lost (10⁻⁶), rounded up. So for a query `q` the true score lies within `‖q‖ · error` of the stored row's, which is what a
//! certified search stands on.
//!
//! Int8 takes `scale = max|x| / 127`, rounded up to those digits; int4 what [`super::int4_scale`] finds.

use ascribe_core::RowType;

use super::int4_scale::fitted_scale;
#[cfg(target_arch = "x86_64")]
use super::quant_avx512;
use crate::wide::{add_square, wide};

/// Numbers that are coded together, each with a lane of its own in every sum, so that there is one chain of additions per lane whatever
/// the vector width; the last ones of a row are filled up with zeros, which lose nothing and weigh nothing.
pub(super) const CHUNK: usize = 64;
/// Numbers whose squared codes are summed in f32 and stay exact, four lanes together, too: 127² · 2⁸ · 4 is below 2²⁴.
pub(super) const PART: usize = CHUNK << 8;
/// Numbers whose squared errors are summed in f32: what those lose is in [`LIFT`].
pub(super) const SHORT_PART: usize = CHUNK << 4;
/// Lanes that are summed in f64.
const F64_LANES: usize = 16;
/// Binary digits of a scale. With the seven of a code they are fewer than the 24 of an f32.
pub(crate) const SCALE_DIGITS: u32 = 16;
/// Digits of an f32 that a scale does not have.
const DROPPED: u32 = (1 << (f32::MANTISSA_DIGITS - SCALE_DIGITS)) - 1;
/// What a sum of squares in f32 may be too small by: the roundings of a difference, twice, of a chain of [`SHORT_PART`]` / `[`CHUNK`]
/// squares, each added in one operation, and of two more additions are ten epsilons; the others are for the products of those and for what
/// lies below the least f32.
const LIFT: f64 = 12.0 * f32::EPSILON as f64;
/// Squared distance in steps for each number below which distances are taken again without any rounding: a sum of so little can have
/// lost all of it.
const NEAR: f64 = 1.0 / (1u64 << 30) as f64;
/// The least scale whose squared errors are summed in f32, 2⁻⁴⁷: what a square loses below 2⁻¹⁴⁹ is then within [`LIFT`] of [`NEAR`].
const SCALE_MIN: f32 = 1.0 / (1u64 << 47) as f32;
/// The largest number of such a row, 2⁶⁰: no sum of squares is infinite.
const LARGEST_MAX: f32 = (1u64 << 60) as f32;
/// 1.5 · 2²³: adding it rounds to an integer, ties to even, without a call, and leaves that integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// What encoding a row found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Encoded {
    /// Scale of the codes; 0 for a row of zeros.
    pub scale: f32,
    /// Euclidean norm of the stored row, rounded to nearest; infinite beyond the largest f32.
    pub norm: f32,
    /// Upper bound of the distance between the row and the stored row.
    pub error: f32,
}

/// Largest code.
const fn code_max(row_type: RowType) -> f32 {
    if matches!(row_type, RowType::Int4) { 7.0 } else { 127.0 }
}

/// Writes the codes of `row` to `out`, `row_type.row_bytes(row.len())` bytes; none, with anything, if a number is not finite.
///
/// Cost: two passes over the row; for int4 those of [`fitted_scale`] over a part of it. Scales from [`SCALE_MIN`] on are coded in f32, the
/// others number by number.
pub(crate) fn encode(row: &[f32], row_type: RowType, out: &mut [u8]) -> Option<Encoded> {
    let largest = largest(row);
    if !largest.is_finite() {
        return None;
    }
    let scale = if row_type == RowType::Int4 { fitted_scale(row, largest) } else { largest / code_max(row_type) };
    let scale = shortened(scale, row_type);
    if scale <= 0.0 {
        // A row of zeros, or of numbers below the least scale.
        out.fill(0);
        let lost = squared(row);
        return (!lost.is_nan()).then(|| Encoded { scale, norm: 0.0, error: bound(lost, row.len()) });
    }
    let found = if scale >= SCALE_MIN && largest <= LARGEST_MAX {
        let codes = if row_type == RowType::Int4 { packed_codes } else { codes_of_eight };
        codes(row, scale, out)
    } else {
        slowly(row, scale, row_type, out)
    };
    if found.lost.is_nan() {
        return None;
    }
    let is_known = found.lost > NEAR * row.len() as f64 * f64::from(scale).powi(2);
    let lost = if is_known { found.lost * (1.0 + LIFT) } else { distance(row, scale, row_type, out) };
    Some(Encoded { scale, norm: (f64::from(scale) * found.squares.sqrt()) as f32, error: bound(lost, row.len()) })
}

/// The largest magnitude of the numbers; what is no number is passed over.
fn largest(row: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(largest) = quant_avx512::largest(row) {
        return largest;
    }
    largest_plainly(row)
}

/// [`codes_of_four`], or its twin for this processor.
fn packed_codes(row: &[f32], scale: f32, out: &mut [u8]) -> Coded {
    #[cfg(target_arch = "x86_64")]
    if let Some(found) = quant_avx512::codes_of_four(row, scale, out) {
        return found;
    }
    codes_of_four(row, scale, out)
}

/// A scale of [`SCALE_DIGITS`] digits that is not smaller (int8) or nearest (int4), smaller where the largest code would be infinite. One
/// below the normal numbers stays as it is.
fn shortened(scale: f32, row_type: RowType) -> f32 {
    if scale < f32::MIN_POSITIVE {
        return scale;
    }
    let more = if row_type == RowType::Int4 { DROPPED / 2 } else { DROPPED };
    let short = |more: u32| f32::from_bits((scale.to_bits() + more) & !DROPPED);
    if (short(more) * code_max(row_type)).is_finite() { short(more) } else { short(0) }
}

/// Sum of the lanes, halves upon each other: no chain of 64 additions.
#[inline(always)]
pub(crate) fn folded<const N: usize>(mut lanes: [f64; N]) -> f64 {
    let mut n = N / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// Four lanes together.
#[inline(always)]
fn fewer(lanes: &[f32; CHUNK]) -> [f32; F64_LANES] {
    let mut sums = [0.0; F64_LANES];
    for i in 0..F64_LANES {
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| lanes[k * F64_LANES + i]);
        sums[i] = (a + b) + (c + d);
    }
    sums
}

/// Sum of the lanes, in f64 once there are few.
#[inline(always)]
pub(super) fn total(lanes: &[f32; CHUNK]) -> f64 {
    folded(fewer(lanes).map(f64::from))
}

wide! {
    fn largest_plainly / largest_at (row: &[f32]) -> f32 {
        let mut lanes = [0.0f32; CHUNK];
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let mut take = |numbers: &[f32; CHUNK]| {
            for i in 0..CHUNK {
                let x = numbers[i].abs();
                lanes[i] = if x > lanes[i] { x } else { lanes[i] };
            }
        };
        chunks.iter().for_each(&mut take);
        take(&filled_up(rest));
        lanes.into_iter().fold(0.0, f32::max)
    }
}

wide! {
    /// `Σ x²`.
    fn squared / squared_at (row: &[f32]) -> f64 {
        let mut sums = [0.0f64; CHUNK];
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let mut take = |numbers: &[f32; CHUNK]| {
            for i in 0..CHUNK {
                sums[i] = add_square::<FMA>(sums[i], numbers[i]);
            }
        };
        chunks.iter().for_each(&mut take);
        take(&filled_up(rest));
        folded(sums)
    }
}

/// `steps`, cut at `max` and rounded, above [`ROUND`].
#[inline(always)]
pub(super) fn above_round(steps: f32, max: f32) -> f32 {
    let steps = if steps > max { max } else { steps };
    let steps = if steps < -max { -max } else { steps };
    steps + ROUND
}

/// What coding a row found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Coded {
    /// `Σ (x − scale · code)²`, too small by [`LIFT`] at most; no number if a number of the row is none.
    pub lost: f64,
    /// Sum of the squared codes, exactly.
    pub squares: f64,
}

/// `Σ (x − scale · code)²`, number by number in f64.
fn distance(row: &[f32], scale: f32, row_type: RowType, codes: &[u8]) -> f64 {
    let code = |i: usize| match row_type {
        RowType::Int4 if i.is_multiple_of(2) => low(codes[i / 2]),
        RowType::Int4 => high(codes[i / 2]),
        _ => codes[i] as i8,
    };
    let rest = |(i, &x): (usize, &f32)| f64::from(x) - f64::from(scale) * f64::from(code(i));
    row.iter().enumerate().map(|number| rest(number).powi(2)).sum()
}

/// Sums lane by lane.
struct Lanes {
    short: [f32; CHUNK],
    lost: [f64; F64_LANES],
    squares: [f32; CHUNK],
}

impl Lanes {
    const NONE: Self = Self { short: [0.0; CHUNK], lost: [0.0; F64_LANES], squares: [0.0; CHUNK] };

    /// Takes the sums of squared errors out of f32.
    #[inline(always)]
    fn widen(&mut self) {
        let short = fewer(&self.short);
        self.lost.iter_mut().zip(short).for_each(|(lost, short)| *lost += f64::from(short));
        self.short = [0.0; CHUNK];
    }

    #[inline(always)]
    fn add_to(self, coded: &mut Coded) {
        coded.lost += folded(self.lost);
        coded.squares += total(&self.squares);
    }
}

/// Codes of one chunk, and what they add to the sums. Only codes of four bits are cut: the step of the others is that of the largest number.
#[inline(always)]
fn code_chunk<const FMA: bool, const FOUR: bool>(
    numbers: &[f32; CHUNK],
    (scale, inverse): (f32, f32),
    codes: &mut [u8; CHUNK],
    lanes: &mut Lanes,
) {
    for i in 0..CHUNK {
        let steps = numbers[i] * inverse;
        let shifted = if FOUR { above_round(steps, 7.0) } else { steps + ROUND };
        codes[i] = shifted.to_bits() as u8;
        let code = shifted - ROUND;
        // The product is exact.
        let rest = numbers[i] - scale * code;
        lanes.short[i] = rest.mul_add(rest, lanes.short[i]);
        lanes.squares[i] = if FMA { code.mul_add(code, lanes.squares[i]) } else { lanes.squares[i] + code * code };
    }
}

/// The codes where a square may leave the range of f32. What is lost is left to [`distance`].
fn slowly(row: &[f32], scale: f32, row_type: RowType, out: &mut [u8]) -> Coded {
    let (max, mut found) = (f64::from(code_max(row_type)), Coded::default());
    out.fill(0);
    for (i, &x) in row.iter().enumerate() {
        // The same steps as elsewhere, if the scale has an inverse.
        let is_normal = scale >= f32::MIN_POSITIVE;
        let steps = if is_normal { f64::from(x * (1.0 / scale)) } else { f64::from(x) / f64::from(scale) };
        if steps.is_nan() {
            return Coded { lost: f64::NAN, squares: 0.0 };
        }
        let code = steps.round_ties_even().clamp(-max, max);
        let bits = code as i8 as u8;
        match row_type {
            RowType::Int4 => out[i / 2] |= (bits & 0x0F) << (4 * (i % 2)),
            _ => out[i] = bits,
        }
        found.squares += code * code;
    }
    found
}

/// The last numbers of a row, filled up with zeros.
#[inline(always)]
pub(super) fn filled_up(rest: &[f32]) -> [f32; CHUNK] {
    let mut numbers = [0.0; CHUNK];
    numbers[..rest.len()].copy_from_slice(rest);
    numbers
}

wide! {
    /// Codes of a byte in steps of `scale`, a short number. One that is no number spoils the sum of what is lost.
    fn codes_of_eight / codes_of_eight_at (row: &[f32], scale: f32, out: &mut [u8]) -> Coded {
        let steps = (scale, 1.0 / scale);
        let mut found = Coded::default();
        for (row, out) in row.chunks(PART).zip(out.chunks_mut(PART)) {
            let mut lanes = Lanes::NONE;
            for (row, out) in row.chunks(SHORT_PART).zip(out.chunks_mut(SHORT_PART)) {
                let (chunks, rest) = row.as_chunks::<CHUNK>();
                let (places, last) = out[..row.len()].as_chunks_mut::<CHUNK>();
                for (numbers, codes) in chunks.iter().zip(places) {
                    code_chunk::<FMA, false>(numbers, steps, codes, &mut lanes);
                }
                lanes.widen();
                if !rest.is_empty() {
                    let mut codes = [0; CHUNK];
                    code_chunk::<FMA, false>(&filled_up(rest), steps, &mut codes, &mut lanes);
                    last.copy_from_slice(&codes[..rest.len()]);
                    lanes.widen();
                }
            }
            lanes.add_to(&mut found);
        }
        found
    }
}

/// Two codes to a byte, the first in the low half.
#[inline(always)]
fn packed(codes: &[u8; CHUNK]) -> [u8; CHUNK / 2] {
    let mut bytes = [0; CHUNK / 2];
    for (byte, pair) in bytes.iter_mut().zip(codes.as_chunks::<2>().0) {
        let pair = u16::from_le_bytes(*pair);
        *byte = (pair & 0x0F | pair >> 4 & 0xF0) as u8;
    }
    bytes
}

wide! {
    /// The same in halves of a byte.
    fn codes_of_four / codes_of_four_at (row: &[f32], scale: f32, out: &mut [u8]) -> Coded {
        let steps = (scale, 1.0 / scale);
        let mut found = Coded::default();
        // Packed when all codes of a part are there: read sooner, they would be waited for.
        let mut codes = [0; SHORT_PART];
        for (row, out) in row.chunks(PART).zip(out.chunks_mut(PART / 2)) {
            let mut lanes = Lanes::NONE;
            for (row, out) in row.chunks(SHORT_PART).zip(out.chunks_mut(SHORT_PART / 2)) {
                let (chunks, rest) = row.as_chunks::<CHUNK>();
                let (places, _) = codes.as_chunks_mut::<CHUNK>();
                for (numbers, codes) in chunks.iter().zip(&mut *places) {
                    code_chunk::<FMA, true>(numbers, steps, codes, &mut lanes);
                }
                lanes.widen();
                if !rest.is_empty() {
                    code_chunk::<FMA, true>(&filled_up(rest), steps, &mut places[chunks.len()], &mut lanes);
                    lanes.widen();
                }
                let (whole, last) = out[..row.len().div_ceil(2)].as_chunks_mut::<{ CHUNK / 2 }>();
                for (codes, bytes) in places.iter().zip(&mut *whole) {
                    *bytes = packed(codes);
                }
                if !last.is_empty() {
                    last.copy_from_slice(&packed(&places[whole.len()])[..last.len()]);
                }
            }
            lanes.add_to(&mut found);
        }
        found
    }
}

/// Widens codes into `row`: `scale · code`, rounded once.
pub(crate) fn decode(bytes: &[u8], scale: f32, row_type: RowType, row: &mut [f32]) {
    if row_type == RowType::Int4 { decode_four(bytes, scale, row) } else { decode_eight(bytes, scale, row) }
}

wide! {
    fn decode_four / decode_four_at (bytes: &[u8], scale: f32, row: &mut [f32]) {
        let (pairs, last) = row.as_chunks_mut::<2>();
        for (pair, &byte) in pairs.iter_mut().zip(bytes) {
            *pair = [scale * f32::from(low(byte)), scale * f32::from(high(byte))];
        }
        if let ([x], Some(&byte)) = (last, bytes.get(pairs.len())) {
            *x = scale * f32::from(low(byte));
        }
    }
}

wide! {
    fn decode_eight / decode_eight_at (bytes: &[u8], scale: f32, row: &mut [f32]) {
        row.iter_mut().zip(bytes).for_each(|(x, &byte)| *x = scale * f32::from(byte as i8));
    }
}

/// Place of the first code that no encoder writes: −128, −8, or a digit behind the last number.
pub(crate) fn first_bad(bytes: &[u8], n: usize, row_type: RowType) -> Option<usize> {
    let is_bad = |(i, &byte): (usize, &u8)| match row_type {
        RowType::Int4 => low(byte) == -8 || high(byte) == -8 || (2 * i + 1 >= n && high(byte) != 0),
        _ => byte as i8 == i8::MIN,
    };
    bytes.iter().enumerate().position(is_bad)
}

/// An upper bound of `√sum`, where `sum` is an f64 sum of `n` squares, each off by a few roundings.
pub(crate) fn bound(sum: f64, n: usize) -> f32 {
    round_up(root_above(sum, n))
}

fn root_above(sum: f64, n: usize) -> f64 {
    (sum * (1.0 + (n as f64 + 16.0) * f64::EPSILON)).sqrt() * (1.0 + 4.0 * f64::EPSILON)
}

/// The least f32 that is not below `x`.
pub(crate) fn round_up(x: f64) -> f32 {
    let narrow = x as f32;
    if f64::from(narrow) < x { narrow.next_up() } else { narrow }
}

fn low(byte: u8) -> i8 {
    ((byte << 4) as i8) >> 4
}

fn high(byte: u8) -> i8 {
    (byte as i8) >> 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wide::levels;

    struct Codes<'a> {
        bytes: &'a [u8],
        row_type: RowType,
    }

    impl Codes<'_> {
        fn at(&self, i: usize) -> i8 {
            match self.row_type {
                RowType::Int4 if i.is_multiple_of(2) => low(self.bytes[i / 2]),
                RowType::Int4 => high(self.bytes[i / 2]),
                _ => self.bytes[i] as i8,
            }
        }
    }

    fn check(row: &[f32], row_type: RowType) -> Vec<f32> {
        let mut bytes = vec![0xEE; row_type.row_bytes(row.len())];
        let found = encode(row, row_type, &mut bytes).expect("finite numbers");
        let bytes = &bytes[..];
        check_codes(row, row_type, found.scale, bytes);
        assert_eq!(first_bad(bytes, row.len(), row_type), None);
        let mut back = vec![f32::NAN; row.len()];
        decode(bytes, found.scale, row_type, &mut back);
        // The bound against the definition (scale times code, not rounded), added up in another order.
        let codes = Codes { bytes, row_type };
        let stored: Vec<f64> = (0..row.len()).map(|i| f64::from(found.scale) * f64::from(codes.at(i))).collect();
        let lost: f64 = row.iter().zip(&stored).rev().map(|(&x, s)| (f64::from(x) - s).powi(2)).sum::<f64>().sqrt();
        assert!(lost <= f64::from(found.error), "{lost} above {}", found.error);
        let loose = lost * (1.0 + 1e-6) + 1e-44;
        assert!(f64::from(found.error) <= loose, "{} is no tight bound of {lost}", found.error);
        let norm = stored.iter().map(|s| s * s).sum::<f64>().sqrt();
        // Equal first: beyond the largest f32 both are infinite. Sums in two orders may round to neighbours.
        let wanted = norm as f32;
        assert!(
            found.norm == wanted || (found.norm - wanted).abs() <= wanted * f32::EPSILON,
            "{} {wanted}",
            found.norm
        );
        for (a, s) in back.iter().zip(&stored) {
            assert_eq!(*a, *s as f32);
        }
        back
    }

    /// The definition, number by number.
    fn check_codes(row: &[f32], row_type: RowType, scale: f32, bytes: &[u8]) {
        let max = code_max(row_type);
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        if row_type == RowType::Int8 {
            let (wide, most) = (f64::from(scale), f64::from(largest / 127.0));
            assert!((wide >= most || largest > 3.4e38) && wide <= most * (1.0 + 2f64.powi(-15)), "{wide} for {most}");
        }
        let codes = Codes { bytes, row_type };
        for (i, &x) in row.iter().enumerate() {
            let steps = match scale {
                0.0 => 0.0,
                f32::MIN_POSITIVE.. => f64::from(x * (1.0 / scale)),
                _ => f64::from(x) / f64::from(scale),
            };
            let code = steps.clamp(-f64::from(max), f64::from(max)).round_ties_even();
            assert_eq!(codes.at(i), code as i8, "number {i}");
            let exact = f64::from(scale) * code;
            assert!(scale < f32::MIN_POSITIVE || f64::from(exact as f32) == exact, "{exact:e} is no f32");
        }
    }

    /// Every level of this processor gives the bits of the portable one.
    #[test]
    fn twins_give_the_same_bits() {
        let row: Vec<f32> = (0..20_000).map(|i| ((i * 7919) % 2003) as f32 / 300.0 - 3.1).collect();
        let bits = |coded: Coded| [coded.lost, coded.squares].map(f64::to_bits);
        for len in [0, 1, 7, 8, 63, 64, 65, 127, 128, 130, 192, 517, 1024, 1100, 16_384, 16_500, 20_000] {
            let row = &row[..len];
            let run = |level| {
                let (mut eight, mut four) = (vec![0u8; len], vec![0u8; len.div_ceil(2)]);
                let found = [
                    codes_of_eight_at(level, row, 0.03125, &mut eight),
                    codes_of_four_at(level, row, 0.375, &mut four),
                ];
                let (mut wide8, mut wide4) = (vec![0.0; len], vec![0.0; len]);
                decode_eight_at(level, &eight, 0.03, &mut wide8);
                decode_four_at(level, &four, 0.4, &mut wide4);
                let numbers = wide8.into_iter().chain(wide4).chain([largest_at(level, row)]).map(f32::to_bits);
                (eight, four, found.map(bits), squared_at(level, row).to_bits(), numbers.collect::<Vec<_>>())
            };
            let all: Vec<_> = levels().into_iter().map(run).collect();
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{len} numbers");
            let mut four = vec![0u8; len.div_ceil(2)];
            let found = bits(packed_codes(row, 0.375, &mut four));
            assert!((&four, found) == (&all[0].1, all[0].2[1]), "{len} numbers, packed in registers");
            assert_eq!(largest(row), largest_at(levels()[0], row));
        }
    }

    #[test]
    fn what_is_no_number_is_passed_over_and_spoils_what_is_lost() {
        for at in [0, 70, 129, 140] {
            let mut row = vec![-2.0f32; 141];
            row[at] = f32::NAN;
            assert!(levels().into_iter().all(|level| largest_at(level, &row) == 2.0) && largest(&row) == 2.0);
            let (mut eight, mut four) = ([0u8; 141], [0u8; 71]);
            for level in levels() {
                assert!(codes_of_eight_at(level, &row, 0.25, &mut eight).lost.is_nan());
                assert!(codes_of_four_at(level, &row, 0.25, &mut four).lost.is_nan());
            }
            assert!(packed_codes(&row, 0.25, &mut four).lost.is_nan(), "number {at}");
            row[at] = f32::NEG_INFINITY;
            assert_eq!(largest(&row), f32::INFINITY);
        }
    }

    #[test]
    fn a_row_by_hand() {
        // Scale 127/127 = 1: codes are the numbers, rounded to even.
        assert_eq!(check(&[127.0, -3.0, 0.5, 1.5, -126.6], RowType::Int8), [127.0, -3.0, 0.0, 2.0, -127.0]);
        let mut bytes = [0; 8];
        // A row that has exactly the 15 levels: nothing is lost, and the first number is the low half.
        let levels: Vec<f32> = (-7i8..=7).map(|c| 0.25 * f32::from(c)).collect();
        let found = encode(&levels, RowType::Int4, &mut bytes).expect("finite numbers");
        assert_eq!((found.scale, found.error), (0.25, 0.0));
        assert_eq!(bytes[0], 0xA9, "−7 is 1001 in the low half, −6 is 1010 in the high half");
        assert_eq!(bytes[7], 0x07, "the last half byte is empty");
        assert_eq!(check(&levels, RowType::Int4), levels);
    }

    #[test]
    fn rows_at_the_edges_of_floats() {
        for row_type in [RowType::Int8, RowType::Int4] {
            assert_eq!(check(&[0.0; 5], row_type), [0.0; 5]);
            check(&[], row_type);
            check(&[f32::MAX, -f32::MAX, 1.0], row_type);
            check(&[f32::from_bits(1); 9], row_type);
            check(&[f32::MIN_POSITIVE, -1e-44, 0.0], row_type);
            check(&[1e30, 1e-30, -1e-30], row_type);
            check(&[127.0, 1e-30, -7.0], row_type);
            // At the ends of where squares are summed in f32, and beyond.
            for power in [-60, -48, -47, -46, -45, -43, 56, 59, 60, 61, 90] {
                check(&[0.3, -0.77, 1.0, 0.123, -0.5].map(|x: f32| x * 2f32.powi(power)), row_type);
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
                let mut row = vec![1.0; 100];
                row[71] = bad;
                assert_eq!(encode(&row, row_type, &mut [0; 100]), None, "{bad}");
            }
        }
    }

    #[test]
    fn foreign_codes_are_told() {
        assert_eq!(first_bad(&[1, 0x80, 2], 3, RowType::Int8), Some(1));
        assert_eq!(first_bad(&[0x17, 0x08], 4, RowType::Int4), Some(1));
        assert_eq!(first_bad(&[0x17, 0x87], 4, RowType::Int4), Some(1));
        assert_eq!(first_bad(&[0x17, 0x17], 3, RowType::Int4), Some(1), "a digit behind the last number");
        assert_eq!(first_bad(&[0x17, 0x17], 4, RowType::Int4), None);
    }

    proptest! {
        #[test]
        fn the_bound_holds(row in prop::collection::vec(-1e3f32..1e3, 0..300), power in -30i32..30) {
            let row: Vec<f32> = row.iter().map(|x| x * 2f32.powi(power)).collect();
            check(&row, RowType::Int8);
            check(&row, RowType::Int4);
        }
    }
}
