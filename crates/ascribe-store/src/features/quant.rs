//! Int8 and int4 codes of a row: one scale, signed codes, and a bound of what was lost that holds for every row.
//!
//! A stored number is `scale · code`, exactly (no rounding is part of the definition). `error` is an upper bound of
//! `‖row − stored row‖₂`: computed in f64, lifted by what the sum may have lost, rounded up to f32. So for a query `q`
//! the true score lies within `‖q‖ · error` of the stored row's, which is what a certified search stands on.
//!
//! Int8 takes `scale = max|x| / 127`. Int4 looks for the scale with the least squared error: levels and scale take turns
//! from two starts (the largest number at the last level; a step of 0.335 standard deviations, the best 15 even levels
//! for a normal row, Max, IRE Trans. Inf. Theory 6, 1960), and numbers beyond the last level are cut.

use ascribe_core::RowType;

use crate::wide::wide;

/// Rounds of choosing levels and refitting the scale; the error settles after two or three.
const ROUNDS: usize = 4;
/// Best step of 15 even levels for a normal number, in standard deviations.
const NORMAL_STEP: f64 = 0.335;
/// Sums of what was lost run over this many lanes, so that they are one chain of additions per lane whatever the vector width.
const LANES: usize = 8;
/// Numbers that are coded together; the last ones of a row are filled up with zeros, which lose nothing and weigh nothing.
const CHUNK: usize = 64;
/// 1.5 · 2²³: adding it rounds to an integer, ties to even, without a call, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

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

/// Writes the codes of `row` (finite numbers) to `out`, `row_type.row_bytes(row.len())` bytes.
///
/// Cost: three passes over the row for int8; for int4 one pass more for each round of fitting the scale, at most eight.
pub(crate) fn encode(row: &[f32], row_type: RowType, out: &mut [u8]) -> Encoded {
    let spread = largest(row) / code_max(row_type);
    let scale = if row_type == RowType::Int4 { fitted_scale(row, spread) } else { spread };
    if scale <= 0.0 {
        // A row of zeros, or of numbers below the least scale.
        out.fill(0);
        let lost = distance_from_zero(row);
        return Encoded { scale, norm: 0.0, error: bound(lost, row.len()) };
    }
    let (lost, squares) =
        if row_type == RowType::Int4 { codes_of_four(row, scale, out) } else { codes_of_eight(row, scale, out) };
    let norm = f64::from(scale) * squares.sqrt();
    Encoded { scale, norm: norm as f32, error: bound(lost, row.len()) }
}

wide! {
    /// The largest magnitude.
    fn largest / largest_at (row: &[f32]) -> f32 {
        let mut lanes = [0.0f32; CHUNK];
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let mut take = |numbers: &[f32; CHUNK]| {
            for (lane, x) in lanes.iter_mut().zip(numbers) {
                let x = x.abs();
                *lane = if x > *lane { x } else { *lane };
            }
        };
        chunks.iter().for_each(&mut take);
        take(&filled_up(rest));
        lanes.into_iter().fold(0.0, f32::max)
    }
}

wide! {
    /// `Σ x²` in [`LANES`] lanes.
    fn distance_from_zero / distance_from_zero_at (row: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += f64::from(x) * f64::from(x));
        lanes.iter().sum()
    }
}

/// `x` in steps of `scale`, cut at `max` and rounded, above [`ROUND`].
#[inline(always)]
fn above_round(x: f32, scale: f32, max: f32) -> f32 {
    let steps = x / scale;
    let steps = if steps > max { max } else { steps };
    let steps = if steps < -max { -max } else { steps };
    steps + ROUND
}

/// Codes of one chunk, and what they add to the sums: number `i` to lane `i mod LANES`.
#[inline(always)]
fn code_chunk(
    numbers: &[f32; CHUNK],
    scale: f32,
    max: f32,
    codes: &mut [u8; CHUNK],
    (lost, squares): (&mut [f64; LANES], &mut [f64; LANES]),
) {
    // Number by number first and lane by lane after: so the compiler sees whole registers.
    let (mut of_lost, mut of_squares) = ([0.0f64; CHUNK], [0.0f64; CHUNK]);
    for i in 0..CHUNK {
        let shifted = above_round(numbers[i], scale, max);
        codes[i] = shifted.to_bits() as u8;
        let code = f64::from(shifted - ROUND);
        let rest = f64::from(numbers[i]) - f64::from(scale) * code;
        of_lost[i] = rest * rest;
        // Integers: exact far beyond the longest row.
        of_squares[i] = code * code;
    }
    for (of_lost, of_squares) in of_lost.as_chunks::<LANES>().0.iter().zip(of_squares.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            lost[lane] += of_lost[lane];
            squares[lane] += of_squares[lane];
        }
    }
}

/// The last numbers of a row, filled up with zeros.
#[inline(always)]
fn filled_up(rest: &[f32]) -> [f32; CHUNK] {
    let mut numbers = [0.0; CHUNK];
    numbers[..rest.len()].copy_from_slice(rest);
    numbers
}

wide! {
    /// Codes of a byte in steps of `scale`, which is above 0: the squared distance, and the sum of the squared codes.
    fn codes_of_eight / codes_of_eight_at (row: &[f32], scale: f32, out: &mut [u8]) -> (f64, f64) {
        let (mut lost, mut squares) = ([0.0f64; LANES], [0.0f64; LANES]);
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let (places, last) = out[..row.len()].as_chunks_mut::<CHUNK>();
        for (numbers, codes) in chunks.iter().zip(places) {
            code_chunk(numbers, scale, 127.0, codes, (&mut lost, &mut squares));
        }
        let mut codes = [0; CHUNK];
        code_chunk(&filled_up(rest), scale, 127.0, &mut codes, (&mut lost, &mut squares));
        last.copy_from_slice(&codes[..rest.len()]);
        (lost.iter().sum(), squares.iter().sum())
    }
}

/// Two codes to a byte, the first in the low half.
#[inline(always)]
fn packed(codes: &[u8; CHUNK]) -> [u8; CHUNK / 2] {
    let mut bytes = [0; CHUNK / 2];
    bytes.iter_mut().zip(codes.as_chunks::<2>().0).for_each(|(byte, pair)| *byte = pair[0] & 0x0F | pair[1] << 4);
    bytes
}

wide! {
    /// The same in halves of a byte.
    fn codes_of_four / codes_of_four_at (row: &[f32], scale: f32, out: &mut [u8]) -> (f64, f64) {
        let (mut lost, mut squares, mut codes) = ([0.0f64; LANES], [0.0f64; LANES], [0; CHUNK]);
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let (places, last) = out[..row.len().div_ceil(2)].split_at_mut(chunks.len() * CHUNK / 2);
        for (numbers, bytes) in chunks.iter().zip(places.as_chunks_mut().0) {
            code_chunk(numbers, scale, 7.0, &mut codes, (&mut lost, &mut squares));
            *bytes = packed(&codes);
        }
        code_chunk(&filled_up(rest), scale, 7.0, &mut codes, (&mut lost, &mut squares));
        last.copy_from_slice(&packed(&codes)[..last.len()]);
        (lost.iter().sum(), squares.iter().sum())
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
    let root = (sum * (1.0 + (n as f64 + 16.0) * f64::EPSILON)).sqrt() * (1.0 + 4.0 * f64::EPSILON);
    round_up(root)
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

/// The int4 scale of least squared error among those that two starts lead to. `‖x − s·c‖²` is least at
/// `s = ⟨x, c⟩/⟨c, c⟩`, where it is `‖x‖² − ⟨x, c⟩²/⟨c, c⟩`.
fn fitted_scale(row: &[f32], spread: f32) -> f32 {
    let squared = distance_from_zero(row);
    let normal = NORMAL_STEP * (squared / row.len().max(1) as f64).sqrt();
    let mut best = (f64::INFINITY, spread);
    for start in [spread, normal as f32] {
        let mut scale = start;
        for _ in 0..ROUNDS {
            if scale <= 0.0 {
                break;
            }
            let (product, squares) = products_with_codes(row, scale);
            if squares == 0.0 {
                break;
            }
            let lost = squared - product * product / squares;
            scale = (product / squares) as f32;
            if lost >= best.0 || !scale.is_finite() || scale <= 0.0 {
                break;
            }
            best = (lost, scale);
        }
    }
    best.1
}

wide! {
    /// `⟨x, c⟩` and `⟨c, c⟩` for the codes `c` of four bits in steps of `scale`, which is above 0; in [`CHUNK`] lanes.
    fn products_with_codes / products_with_codes_at (row: &[f32], scale: f32) -> (f64, f64) {
        // So many numbers that the squares of a lane stay exact in f32: 49 · 2¹⁴ is below 2²⁴.
        const PART: usize = CHUNK << 14;
        let (mut product, mut total) = ([0.0f64; CHUNK], 0.0f64);
        for part in row.chunks(PART) {
            let mut squares = [0.0f32; CHUNK];
            let mut take = |numbers: &[f32; CHUNK]| {
                for lane in 0..CHUNK {
                    let code = above_round(numbers[lane], scale, 7.0) - ROUND;
                    // Exact: 24 bits times 3.
                    product[lane] += f64::from(numbers[lane]) * f64::from(code);
                    squares[lane] += code * code;
                }
            };
            let (chunks, rest) = part.as_chunks::<CHUNK>();
            chunks.iter().for_each(&mut take);
            take(&filled_up(rest));
            total += squares.iter().map(|&s| f64::from(s)).sum::<f64>();
        }
        (product.iter().sum(), total)
    }
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
        let found = encode(row, row_type, &mut bytes);
        let bytes = &bytes[..];
        assert_eq!(found, plain(row, row_type, bytes), "the plain twin");
        assert_eq!(first_bad(bytes, row.len(), row_type), None);
        let mut back = vec![f32::NAN; row.len()];
        decode(bytes, found.scale, row_type, &mut back);
        // The bound against the definition (scale times code, not rounded), added up in another order.
        let codes = Codes { bytes, row_type };
        let stored: Vec<f64> = (0..row.len()).map(|i| f64::from(found.scale) * f64::from(codes.at(i))).collect();
        let lost: f64 = row.iter().zip(&stored).rev().map(|(&x, s)| (f64::from(x) - s).powi(2)).sum::<f64>().sqrt();
        assert!(lost <= f64::from(found.error), "{lost} above {}", found.error);
        assert!(f64::from(found.error) <= lost * (1.0 + 1e-6) + 1e-44, "{} is no tight bound of {lost}", found.error);
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

    /// The definition, number by number: codes are held against `bytes`.
    fn plain(row: &[f32], row_type: RowType, bytes: &[u8]) -> Encoded {
        let max = code_max(row_type);
        let spread = row.iter().fold(0.0f32, |m, x| m.max(x.abs())) / max;
        let scale = if row_type == RowType::Int4 { fitted_scale(row, spread) } else { spread };
        let codes = Codes { bytes, row_type };
        let (mut lost, mut squares) = ([0.0f64; LANES], 0i64);
        for (i, &x) in row.iter().enumerate() {
            let steps = if scale > 0.0 { (x / scale).clamp(-max, max).round_ties_even() } else { 0.0 };
            assert_eq!(codes.at(i), steps as i8, "number {i}");
            let rest = f64::from(x) - f64::from(scale) * f64::from(steps);
            lost[i % LANES] += rest * rest;
            squares += i64::from(steps as i8).pow(2);
        }
        let norm = f64::from(scale) * (squares as f64).sqrt();
        Encoded { scale, norm: norm as f32, error: bound(lost.iter().sum(), row.len()) }
    }

    /// Every level of this processor gives the bits of the portable one.
    #[test]
    fn twins_give_the_same_bits() {
        let row: Vec<f32> = (0..517).map(|i| ((i * 7919) % 2003) as f32 / 300.0 - 3.1).collect();
        for len in [0, 1, 7, 8, 63, 64, 65, 130, 517] {
            let row = &row[..len];
            let run = |level| {
                let (mut eight, mut four) = (vec![0u8; len], vec![0u8; len.div_ceil(2)]);
                let lost =
                    [codes_of_eight_at(level, row, 0.03, &mut eight), codes_of_four_at(level, row, 0.4, &mut four)];
                let fit = [products_with_codes_at(level, row, 0.41), (distance_from_zero_at(level, row), 0.0)];
                let (mut wide8, mut wide4) = (vec![0.0; len], vec![0.0; len]);
                decode_eight_at(level, &eight, 0.03, &mut wide8);
                decode_four_at(level, &four, 0.4, &mut wide4);
                let sums = lost.into_iter().chain(fit).flat_map(|(a, b)| [a.to_bits(), b.to_bits()]);
                let numbers = wide8.into_iter().chain(wide4).chain([largest_at(level, row)]).map(f32::to_bits);
                (eight, four, sums.collect::<Vec<_>>(), numbers.collect::<Vec<_>>())
            };
            let all: Vec<_> = levels().into_iter().map(run).collect();
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{len} numbers");
        }
    }

    #[test]
    fn a_row_by_hand() {
        // Scale 127/127 = 1: codes are the numbers, rounded to even.
        assert_eq!(check(&[127.0, -3.0, 0.5, 1.5, -126.6], RowType::Int8), [127.0, -3.0, 0.0, 2.0, -127.0]);
        let mut bytes = [0; 8];
        // A row that has exactly the 15 levels: nothing is lost, and the first number is the low half.
        let levels: Vec<f32> = (-7i8..=7).map(|c| 0.25 * f32::from(c)).collect();
        let found = encode(&levels, RowType::Int4, &mut bytes);
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
        fn the_bound_holds(row in prop::collection::vec(-1e3f32..1e3, 0..70), power in -30i32..30) {
            let row: Vec<f32> = row.iter().map(|x| x * 2f32.powi(power)).collect();
            check(&row, RowType::Int8);
            check(&row, RowType::Int4);
        }
    }
}
