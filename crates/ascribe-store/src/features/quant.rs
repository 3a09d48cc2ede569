//! Int8 and int4 codes of a row: one scale, signed codes, and a bound of what was lost that holds for every row.
//!
//! A stored number is `scale · code`, exactly (no rounding is part of the definition). `error` is an upper bound of
//! `‖row − stored row‖₂`: computed in f64, lifted by what the sum may have lost, rounded up to f32. So for a query `q`
//! the true score lies within `‖q‖ · error` of the stored row's, which is what a certified search stands on.
//!
//! Int8 takes `scale = max|x| / 127`. Int4 looks for the scale with the least squared error, between the one that is best for a normal
//! row (15 even levels, 0.335 standard deviations apart: Max, IRE Trans. Inf. Theory 6, 1960) and the one that has the largest number at
//! the last level; numbers beyond that level are cut. Of a long row a part that is spread over it is looked at: the error is flat
//! around the best scale.

use ascribe_core::RowType;

use crate::wide::{add_square, wide};

/// Numbers that a scale is fitted on, at least, if the row has so many: a step that is off by a fortieth, as one from so many is at
/// times, costs a thousandth of the error.
const FITTED_NUMBERS: usize = 1024;
/// Best step of 15 even levels for a normal number, in standard deviations.
const NORMAL_STEP: f64 = 0.335;
/// Numbers that are coded together, each with a lane of its own in every sum, so that there is one chain of additions per lane whatever
/// the vector width; the last ones of a row are filled up with zeros, which lose nothing and weigh nothing.
const CHUNK: usize = 64;
/// Numbers whose squared codes are summed in f32 and stay exact: 127² · 2¹⁰ is below 2²⁴.
const PART: usize = CHUNK << 10;
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
/// Cost: two passes over the row; for int4 some five more over [`FITTED_NUMBERS`] of it (more steps are tried the farther its largest
/// number is from the others), or over all of it if it has a few numbers that stand out.
pub(crate) fn encode(row: &[f32], row_type: RowType, out: &mut [u8]) -> Encoded {
    let (scale, squared) = if row_type == RowType::Int4 {
        let (largest, squared) = extent(row, 1);
        (fitted_scale(row, largest, squared), Some(squared))
    } else {
        (largest(row) / code_max(row_type), None)
    };
    if scale <= 0.0 {
        // A row of zeros, or of numbers below the least scale.
        out.fill(0);
        let lost = squared.unwrap_or_else(|| extent(row, 1).1);
        return Encoded { scale, norm: 0.0, error: bound(lost, row.len()) };
    }
    let (lost, squares) =
        if row_type == RowType::Int4 { codes_of_four(row, scale, out) } else { codes_of_eight(row, scale, out) };
    let norm = f64::from(scale) * squares.sqrt();
    Encoded { scale, norm: norm as f32, error: bound(lost, row.len()) }
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

/// The greater magnitude.
#[inline(always)]
fn greater(old: f32, x: f32) -> f32 {
    let x = x.abs();
    if x > old { x } else { old }
}

wide! {
    /// The largest magnitude.
    fn largest / largest_at (row: &[f32]) -> f32 {
        let mut lanes = [0.0f32; CHUNK];
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let mut take = |numbers: &[f32; CHUNK]| {
            for i in 0..CHUNK {
                lanes[i] = greater(lanes[i], numbers[i]);
            }
        };
        chunks.iter().for_each(&mut take);
        take(&filled_up(rest));
        lanes.into_iter().fold(0.0, f32::max)
    }
}

wide! {
    /// The largest magnitude and `Σ x²` over one chunk in `every`.
    fn extent / extent_at (row: &[f32], every: usize) -> (f32, f64) {
        let (mut lanes, mut sums) = ([0.0f32; CHUNK], [0.0f64; CHUNK]);
        let (chunks, rest) = row.as_chunks::<CHUNK>();
        let mut take = |numbers: &[f32; CHUNK]| {
            for i in 0..CHUNK {
                lanes[i] = greater(lanes[i], numbers[i]);
                sums[i] = add_square::<FMA>(sums[i], numbers[i]);
            }
        };
        chunks.iter().step_by(every).for_each(&mut take);
        if chunks.len().is_multiple_of(every) {
            take(&filled_up(rest));
        }
        (lanes.into_iter().fold(0.0, f32::max), folded(sums))
    }
}

/// `steps`, cut at `max` and rounded, above [`ROUND`].
#[inline(always)]
fn above_round(steps: f32, max: f32) -> f32 {
    let steps = if steps > max { max } else { steps };
    let steps = if steps < -max { -max } else { steps };
    steps + ROUND
}

/// What was lost and the squares of the codes, lane by lane.
struct Lanes {
    lost: [f64; CHUNK],
    squares: [f32; CHUNK],
}

/// `x − scale · code`, which is an f32: a multiple of the last digit of `scale`, and of half its length at most, or a rounding of that
/// where `x` is cut. In f64 nothing is lost before, since no number is 2²⁸ times the scale.
#[inline(always)]
fn rest<const FMA: bool>(x: f32, scale: f32, code: f32) -> f32 {
    if FMA { (-scale).mul_add(code, x) } else { (f64::from(x) - f64::from(scale) * f64::from(code)) as f32 }
}

/// Codes of one chunk, and what they add to the sums.
#[inline(always)]
fn code_chunk<const FMA: bool>(
    numbers: &[f32; CHUNK],
    scale: f32,
    max: f32,
    codes: &mut [u8; CHUNK],
    lanes: &mut Lanes,
) {
    for i in 0..CHUNK {
        let shifted = above_round(numbers[i] / scale, max);
        codes[i] = shifted.to_bits() as u8;
        let code = shifted - ROUND;
        lanes.lost[i] = add_square::<FMA>(lanes.lost[i], rest::<FMA>(numbers[i], scale, code));
        lanes.squares[i] += code * code;
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
        let (mut lost, mut squares) = (0.0, 0.0);
        for (row, out) in row.chunks(PART).zip(out.chunks_mut(PART)) {
            let mut lanes = Lanes { lost: [0.0; CHUNK], squares: [0.0; CHUNK] };
            let (chunks, rest) = row.as_chunks::<CHUNK>();
            let (places, last) = out[..row.len()].as_chunks_mut::<CHUNK>();
            for (numbers, codes) in chunks.iter().zip(places) {
                code_chunk::<FMA>(numbers, scale, 127.0, codes, &mut lanes);
            }
            let mut codes = [0; CHUNK];
            code_chunk::<FMA>(&filled_up(rest), scale, 127.0, &mut codes, &mut lanes);
            last.copy_from_slice(&codes[..rest.len()]);
            lost += folded(lanes.lost);
            squares += folded(lanes.squares.map(f64::from));
        }
        (lost, squares)
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
    fn codes_of_four / codes_of_four_at (row: &[f32], scale: f32, out: &mut [u8]) -> (f64, f64) {
        let (mut lost, mut squares) = (0.0, 0.0);
        for (row, out) in row.chunks(PART).zip(out.chunks_mut(PART / 2)) {
            let (mut lanes, mut codes) = (Lanes { lost: [0.0; CHUNK], squares: [0.0; CHUNK] }, [0; CHUNK]);
            let (chunks, rest) = row.as_chunks::<CHUNK>();
            let (places, last) = out[..row.len().div_ceil(2)].split_at_mut(chunks.len() * CHUNK / 2);
            for (numbers, bytes) in chunks.iter().zip(places.as_chunks_mut().0) {
                code_chunk::<FMA>(numbers, scale, 7.0, &mut codes, &mut lanes);
                *bytes = packed(&codes);
            }
            code_chunk::<FMA>(&filled_up(rest), scale, 7.0, &mut codes, &mut lanes);
            last.copy_from_slice(&packed(&codes)[..last.len()]);
            lost += folded(lanes.lost);
            squares += folded(lanes.squares.map(f64::from));
        }
        (lost, squares)
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

/// The int4 scale of nearly the least squared error (a test holds it within 6 % of 1,500 scales), for a row with the largest magnitude `largest` and the
/// squared norm `squared`.
fn fitted_scale(row: &[f32], largest: f32, squared: f64) -> f32 {
    let every = row.len() / FITTED_NUMBERS;
    if every > 1 {
        let (_, seen) = extent(row, every);
        if seen > 0.0 {
            let (scale, lost) = fit(row, every, largest, seen);
            // Numbers that stand out can have been passed over. If cutting the largest costs much of what is lost in all, they matter.
            let cut = f64::from(largest) - 7.0 * f64::from(scale);
            if cut <= 0.0 || cut * cut <= 0.1 * lost * (squared / seen) {
                return scale;
            }
        }
    }
    fit(row, 1, largest, squared).0
}

/// The same over one chunk in `every`, whose squares sum up to `squared`; and what is lost there.
fn fit(row: &[f32], every: usize, largest: f32, squared: f64) -> (f32, f64) {
    let n_numbers = (row.len() / every).max(1);
    let spread = largest / 7.0;
    let normal = (NORMAL_STEP * (squared / n_numbers as f64).sqrt()) as f32;
    let at = |step: f32| Fit::at(row, every, squared, step);
    // Up from below the step of a normal row, by a factor of √2, until nothing is cut any more. All of them: a row with a few large
    // numbers has two best steps, one that cuts them and one that drops the others.
    let mut step = spread.min(normal * std::f32::consts::FRAC_1_SQRT_2);
    let mut best = Fit { scale: spread, lost: f64::INFINITY };
    let (mut steps, mut best_at) = (Vec::with_capacity(16), 0);
    loop {
        let fit = at(step);
        if fit.lost < best.lost {
            (best, best_at) = (fit, steps.len());
        }
        steps.push((f64::from(step).ln(), fit.lost));
        if step.is_nan() || step >= spread {
            break;
        }
        step = spread.min(step * std::f32::consts::SQRT_2);
    }
    // Between the best and its neighbours: where a parabola through the three is lowest.
    if let Some([low, middle, high]) = best_at.checked_sub(1).and_then(|i| steps[i..].first_chunk::<3>()) {
        let (left, right) = (middle.0 - low.0, high.0 - middle.0);
        let (to_left, to_right) = ((low.1 - middle.1) / left, (high.1 - middle.1) / right);
        let lowest = middle.0 + 0.5 * (to_left * right - to_right * left) / (to_left + to_right);
        if lowest.is_finite() {
            let fit = at(lowest.exp() as f32);
            if fit.lost < best.lost {
                best = fit;
            }
        }
    }
    (best.scale, best.lost)
}

/// What codes in steps of `step` lose. `‖x − s·c‖²` is least at `s = ⟨x, c⟩/⟨c, c⟩`, where it is `‖x‖² − ⟨x, c⟩²/⟨c, c⟩`.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    lost: f64,
}

impl Fit {
    /// All is lost for a step without an inverse, and where all codes are zero.
    fn at(row: &[f32], every: usize, squared: f64, step: f32) -> Self {
        let nothing = Self { scale: step, lost: f64::INFINITY };
        if step < f32::MIN_POSITIVE {
            return nothing;
        }
        let (product, squares) = products_with_codes(row, every, 1.0 / step);
        let scale = (f64::from(step) * (product / squares)) as f32;
        let lost = squared - (f64::from(step) * product).powi(2) / squares;
        if scale.is_finite() && scale > 0.0 { Self { scale, lost } } else { nothing }
    }
}

wide! {
    /// `⟨t, c⟩` and `⟨c, c⟩` over one chunk in `every`, for the numbers `t = inverse · x` and their codes `c` of four bits. The first in
    /// f32, in [`CHUNK`] lanes: good to some 10⁻⁶, which is all that a step is wanted to.
    fn products_with_codes / products_with_codes_at (row: &[f32], every: usize, inverse: f32) -> (f64, f64) {
        let (mut product, mut total) = (0.0, 0.0);
        for part in row.chunks((CHUNK * every) << 8) {
            let (mut products, mut squares) = ([0.0f32; CHUNK], [0.0f32; CHUNK]);
            let mut take = |numbers: &[f32; CHUNK]| {
                for i in 0..CHUNK {
                    let steps = numbers[i] * inverse;
                    let code = above_round(steps, 7.0) - ROUND;
                    products[i] += steps * code;
                    squares[i] += code * code;
                }
            };
            let (chunks, rest) = part.as_chunks::<CHUNK>();
            chunks.iter().step_by(every).for_each(&mut take);
            if chunks.len().is_multiple_of(every) {
                take(&filled_up(rest));
            }
            product += folded(products.map(f64::from));
            total += folded(squares.map(f64::from));
        }
        (product, total)
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
        let (largest, squared) = extent(row, 1);
        let scale = if row_type == RowType::Int4 { fitted_scale(row, largest, squared) } else { spread };
        let codes = Codes { bytes, row_type };
        let (mut lost, mut squares) = ([0.0f64; CHUNK], 0i64);
        for (i, &x) in row.iter().enumerate() {
            let steps = if scale > 0.0 { (x / scale).clamp(-max, max).round_ties_even() } else { 0.0 };
            assert_eq!(codes.at(i), steps as i8, "number {i}");
            let rest = f64::from(x) - f64::from(scale) * f64::from(steps);
            lost[i % CHUNK] += rest * rest;
            squares += i64::from(steps as i8).pow(2);
        }
        let norm = f64::from(scale) * (squares as f64).sqrt();
        Encoded { scale, norm: norm as f32, error: bound(folded(lost), row.len()) }
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
                let (most, squared) = extent_at(level, row, 1);
                let fit = [1, 2, 3].map(|every| products_with_codes_at(level, row, every, 2.4));
                let fit = fit.into_iter().chain([(f64::from(most), squared)]);
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

    /// Against the least error of 1,500 scales, on rows of many kinds and on long ones, of which a part is looked at.
    #[test]
    fn the_scale_of_four_bits_is_near_the_best() {
        let mut state = 7u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as f32 + 0.5) / 2f32.powi(31)
        };
        let mut normal = move || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
        for n in [40, 700, 4096, 20_000] {
            let mut row = |make: &dyn Fn(usize, f32, f32) -> f32| -> Vec<f32> {
                (0..n).map(|i| make(i, normal(), normal())).collect()
            };
            let kinds: [(&str, Vec<f32>); 7] = [
                ("normal", row(&|_, x, _| x)),
                ("heavy tails", row(&|_, x, y| x / (y.abs() + 0.1))),
                ("heavier", row(&|_, x, _| x * x * x)),
                ("even", row(&|_, x, _| x.sin())),
                ("one in fifty", row(&|i, x, _| if i % 50 == 3 { x } else { 0.0 })),
                ("modules of two sizes", row(&|i, x, _| if i < n / 3 { x } else { 0.05 * x })),
                ("one that stands out", row(&|i, x, _| if i == n / 2 + 1 { 400.0 } else { x })),
            ];
            for (kind, row) in kinds {
                let found = encode(&row, RowType::Int4, &mut vec![0; n.div_ceil(2)]);
                let largest = largest(&row);
                let errors = (1..=1500).map(|i| {
                    let scale = largest / 7.0 * i as f32 / 1500.0;
                    codes_of_four(&row, scale, &mut vec![0; n.div_ceil(2)]).0.sqrt()
                });
                let best = errors.fold(f64::INFINITY, f64::min);
                assert!(f64::from(found.error) <= 1.06 * best, "{kind}, {n} numbers: {} for {best}", found.error);
            }
        }
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
