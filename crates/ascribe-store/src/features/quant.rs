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

/// Rounds of choosing levels and refitting the scale; the error settles after two or three.
const ROUNDS: usize = 4;
/// Best step of 15 even levels for a normal number, in standard deviations.
const NORMAL_STEP: f64 = 0.335;
/// Sums run over this many lanes, so that they are one chain of additions per lane whatever the vector width.
const LANES: usize = 8;

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

/// Appends the codes of `row` (finite numbers) to `out`, `row_type.row_bytes(row.len())` bytes.
pub(crate) fn encode(row: &[f32], row_type: RowType, out: &mut Vec<u8>) -> Encoded {
    let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let spread = largest / code_max(row_type);
    let scale = if row_type == RowType::Int4 { fitted_scale(row, spread) } else { spread };
    let start = out.len();
    match row_type {
        RowType::Int4 => out.extend(row.chunks(2).map(|pair| {
            let low = code(pair[0], scale, 7.0) as u8 & 0x0F;
            let high = pair.get(1).map_or(0, |&x| code(x, scale, 7.0) as u8) << 4;
            high | low
        })),
        _ => out.extend(row.iter().map(|&x| code(x, scale, 127.0) as u8)),
    }
    let (mut lost, mut squares) = ([0.0f64; LANES], [0i64; LANES]);
    let codes = Codes { bytes: &out[start..], row_type };
    for (i, &x) in row.iter().enumerate() {
        let code = codes.at(i);
        let rest = f64::from(x) - f64::from(scale) * f64::from(code);
        lost[i % LANES] += rest * rest;
        squares[i % LANES] += i64::from(code) * i64::from(code);
    }
    let norm = f64::from(scale) * (squares.iter().sum::<i64>() as f64).sqrt();
    Encoded { scale, norm: norm as f32, error: bound(lost.iter().sum(), row.len()) }
}

/// Widens codes into `row`: `scale · code`, rounded once.
pub(crate) fn decode(bytes: &[u8], scale: f32, row_type: RowType, row: &mut [f32]) {
    if row_type == RowType::Int4 {
        let (pairs, last) = row.as_chunks_mut::<2>();
        for (pair, &byte) in pairs.iter_mut().zip(bytes) {
            *pair = [scale * f32::from(low(byte)), scale * f32::from(high(byte))];
        }
        if let ([x], Some(&byte)) = (last, bytes.get(pairs.len())) {
            *x = scale * f32::from(low(byte));
        }
    } else {
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

/// The code of `x`: nearest, ties to even, cut at `max`.
fn code(x: f32, scale: f32, max: f32) -> i8 {
    // 1.5 · 2²³: adding and taking it away rounds to an integer, without a call.
    const ROUND: f32 = 12_582_912.0;
    // A scale of zero (a row of zeros, or of numbers below the least scale) gives NaN or infinity: codes 0 or the last.
    let steps = if scale > 0.0 { (x / scale).clamp(-max, max) } else { 0.0 };
    ((steps + ROUND) - ROUND) as i8
}

fn low(byte: u8) -> i8 {
    ((byte << 4) as i8) >> 4
}

fn high(byte: u8) -> i8 {
    (byte as i8) >> 4
}

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

/// The int4 scale of least squared error among those that two starts lead to. `‖x − s·c‖²` is least at
/// `s = ⟨x, c⟩/⟨c, c⟩`, where it is `‖x‖² − ⟨x, c⟩²/⟨c, c⟩`.
fn fitted_scale(row: &[f32], spread: f32) -> f32 {
    let squared: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let normal = NORMAL_STEP * (squared / row.len().max(1) as f64).sqrt();
    let mut best = (f64::INFINITY, spread);
    for start in [spread, normal as f32] {
        let mut scale = start;
        for _ in 0..ROUNDS {
            let (mut product, mut squares) = (0.0f64, 0i32);
            for &x in row {
                let code = i32::from(code(x, scale, 7.0));
                product += f64::from(x) * f64::from(code);
                squares += code * code;
            }
            if squares == 0 {
                break;
            }
            let lost = squared - product * product / f64::from(squares);
            scale = (product / f64::from(squares)) as f32;
            if lost >= best.0 || !scale.is_finite() || scale <= 0.0 {
                break;
            }
            best = (lost, scale);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(row: &[f32], row_type: RowType) -> Vec<f32> {
        let mut bytes = vec![0xEE; 3];
        let found = encode(row, row_type, &mut bytes);
        let bytes = &bytes[3..];
        assert_eq!(bytes.len(), row_type.row_bytes(row.len()));
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

    #[test]
    fn a_row_by_hand() {
        // Scale 127/127 = 1: codes are the numbers, rounded to even.
        assert_eq!(check(&[127.0, -3.0, 0.5, 1.5, -126.6], RowType::Int8), [127.0, -3.0, 0.0, 2.0, -127.0]);
        let mut bytes = Vec::new();
        // A row that has exactly the 15 levels: nothing is lost, and the first number is the low half.
        let levels: Vec<f32> = (-7i8..=7).map(|c| 0.25 * f32::from(c)).collect();
        let found = encode(&levels, RowType::Int4, &mut bytes);
        assert_eq!((found.scale, found.error, bytes.len()), (0.25, 0.0, 8));
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
