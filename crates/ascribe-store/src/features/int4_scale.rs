//! The scale of a row in half bytes: the one with the least squared error, nearly.
//!
//! Looked for between the one that is best for a normal row (15 even levels, 0.335 standard deviations apart: Max, IRE Trans. Inf.
//! Theory 6, 1960) and the one that has the largest number at the last level; numbers beyond that level are cut. Of a long row a part
//! that is spread over it is looked at: the error is flat around the best scale.

use super::quant::{CHUNK, ROUND, above_round, filled_up, folded, total};
#[cfg(target_arch = "x86_64")]
use super::quant_avx512;
use crate::wide::wide;

/// Numbers that a scale is fitted on, at least, if the row has so many: a step that is off by a fortieth, as one from so many is at
/// times, costs a thousandth of the error.
const FITTED_NUMBERS: usize = 1024;
/// Best step of 15 even levels for a normal number, in standard deviations.
const NORMAL_STEP: f32 = 0.335;
/// Chunks whose products are summed in f32; the sum of their squared codes, at most 49 each, is exact.
pub(super) const PART_CHUNKS: usize = 1 << 8;
/// Lanes of those sums.
const LANES: usize = CHUNK / 2;
/// Steps that are tried at once.
const STEPS: usize = 4;

/// The int4 scale of nearly the least squared error (a test holds it within 6 % of 1,500 scales), for a row with the largest magnitude
/// `largest`.
///
/// Cost: two passes for a row like a normal one and one more for every four steps of √2 that its largest number is farther off than theirs,
/// over [`FITTED_NUMBERS`] of it, or over all of it if it has a few numbers that stand out.
pub(super) fn fitted_scale(row: &[f32], largest: f32) -> f32 {
    let spread = largest / 7.0;
    if spread < f32::MIN_POSITIVE {
        return spread;
    }
    let every = row.len() / FITTED_NUMBERS;
    if every > 1 {
        let part = Sample { row, every };
        let fit = fit(&part, largest);
        // Numbers that stand out can have been passed over. If cutting the largest costs much of what is lost in all, they matter.
        let (cut, share) = (1.0 - 7.0 * fit.scale, row.len() as f32 / part.n() as f32);
        if fit.lost.is_finite() && (cut <= 0.0 || cut * cut <= 0.1 * fit.lost * share) {
            return fit.scale * largest;
        }
    }
    let fit = fit(&Sample { row, every: 1 }, largest);
    if fit.lost.is_finite() { fit.scale * largest } else { spread }
}

/// One chunk in `every` of a row; the numbers behind the last chunk only with all of them.
pub(super) struct Sample<'a> {
    row: &'a [f32],
    every: usize,
}

impl<'a> Sample<'a> {
    #[inline(always)]
    pub fn chunks(&self) -> impl Iterator<Item = &'a [f32; CHUNK]> {
        self.row.as_chunks::<CHUNK>().0.iter().step_by(self.every)
    }

    /// The numbers behind the chunks, if there are any, filled up to one.
    #[inline(always)]
    pub fn rest(&self) -> Option<[f32; CHUNK]> {
        let rest = self.row.as_chunks::<CHUNK>().1;
        (self.every == 1 && !rest.is_empty()).then(|| filled_up(rest))
    }

    fn n(&self) -> usize {
        if self.every == 1 { self.row.len() } else { (self.row.len() / CHUNK).div_ceil(self.every) * CHUNK }
    }
}

/// The step of the least squared error among those tried, for numbers that are none greater than `largest`, in units of which the result
/// is.
fn fit(sample: &Sample<'_>, largest: f32) -> Fit {
    let unit = 1.0 / largest;
    let squared = squared(sample, unit);
    let spread = 1.0 / 7.0;
    let mut best = Fit { scale: spread, lost: f32::INFINITY };
    if squared <= 0.0 {
        return best;
    }
    let normal = NORMAL_STEP * (squared / sample.n().max(1) as f32).sqrt();
    // Up from below the step of a normal row, by a factor of √2, until nothing is cut any more. All of them: a row with a few large
    // numbers has two best steps, one that cuts them and one that drops the others.
    let mut step = spread.min(normal * std::f32::consts::FRAC_1_SQRT_2);
    let [mut before, mut low, mut middle, mut high] = [None; 4];
    'all: loop {
        let mut steps = [step; STEPS];
        for i in 1..STEPS {
            steps[i] = spread.min(steps[i - 1] * std::f32::consts::SQRT_2);
        }
        let found = products_of_all(sample, steps.map(|step| unit / step));
        for (found, here) in found.into_iter().zip(steps) {
            let fit = Fit::of(found, unit, squared);
            let tried = Some((here, fit.lost));
            if fit.lost < best.lost {
                (best, low, middle, high) = (fit, before, tried, None);
            } else if high.is_none() {
                high = tried;
            }
            before = tried;
            if here.is_nan() || here >= spread {
                break 'all;
            }
        }
        step = spread.min(steps[STEPS - 1] * std::f32::consts::SQRT_2);
    }
    // Between the best and its neighbours: where a parabola through the three is lowest.
    if let (Some(low), Some(high), Some(middle)) = (low, high, middle) {
        let (left, right) = (middle.0 - low.0, high.0 - middle.0);
        let (to_left, to_right) = ((low.1 - middle.1) / left, (high.1 - middle.1) / right);
        let lowest = middle.0 + 0.5 * (to_left * right - to_right * left) / (to_left + to_right);
        if lowest.is_finite() {
            let fit = Fit::of(products(sample, unit / lowest), unit, squared);
            if fit.lost < best.lost {
                best = fit;
            }
        }
    }
    best
}

/// What codes in steps of `step` lose. `‖x − s·c‖²` is least at `s = ⟨x, c⟩/⟨c, c⟩`, where it is `‖x‖² − ⟨x, c⟩²/⟨c, c⟩`. In f32, in
/// [`LANES`] lanes: good to some 10⁻⁵, which is all that a step is wanted to.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    lost: f32,
}

impl Fit {
    /// All is lost where all codes are zero, or where a sum is beyond the floats.
    fn of([product, squares]: [f32; 2], unit: f32, squared: f32) -> Self {
        let product = unit * product;
        let scale = product / squares;
        let lost = squared - product * scale;
        if scale.is_finite() && scale > 0.0 { Self { scale, lost } } else { Self { scale: 0.0, lost: f32::INFINITY } }
    }
}

/// `Σ (unit · x)²`.
fn squared(sample: &Sample<'_>, unit: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(found) = quant_avx512::squared(sample, unit) {
        return found;
    }
    squared_plainly(sample, unit)
}

/// `⟨x, c⟩` and `⟨c, c⟩` for the codes `c` of four bits of `inverse · x`.
fn products(sample: &Sample<'_>, inverse: f32) -> [f32; 2] {
    #[cfg(target_arch = "x86_64")]
    if let Some([found]) = quant_avx512::products(sample, [inverse]) {
        return found;
    }
    products_plainly(sample, inverse)
}

/// The same for several at once, where that is faster. Of equal ones at the end one is enough.
fn products_of_all(sample: &Sample<'_>, inverses: [f32; STEPS]) -> [[f32; 2]; STEPS] {
    #[cfg(target_arch = "x86_64")]
    {
        let [first, second, third, _] = inverses;
        let found = if second == third {
            quant_avx512::products(sample, [first, second]).map(|[first, second]| [first, second, second, second])
        } else {
            quant_avx512::products(sample, inverses)
        };
        if let Some(found) = found {
            return found;
        }
    }
    inverses.map(|inverse| products_plainly(sample, inverse))
}

wide! {
    fn squared_plainly / squared_plainly_at (sample: &Sample<'_>, unit: f32) -> f32 {
        let mut sums = [0.0f32; CHUNK];
        let mut take = |numbers: &[f32; CHUNK]| {
            for i in 0..CHUNK {
                let x = numbers[i] * unit;
                sums[i] = x.mul_add(x, sums[i]);
            }
        };
        sample.chunks().for_each(&mut take);
        if let Some(rest) = sample.rest() {
            take(&rest);
        }
        total(&sums) as f32
    }
}

wide! {
    fn products_plainly / products_plainly_at (sample: &Sample<'_>, inverse: f32) -> [f32; 2] {
        let (mut chunks, mut all) = (sample.chunks().peekable(), [0.0; 2]);
        loop {
            let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
            let mut take = |numbers: &[f32; CHUNK]| {
                for numbers in numbers.as_chunks::<LANES>().0 {
                    for i in 0..LANES {
                        let code = above_round(numbers[i] * inverse, 7.0) - ROUND;
                        products[i] = numbers[i].mul_add(code, products[i]);
                        squares[i] = if FMA { code.mul_add(code, squares[i]) } else { squares[i] + code * code };
                    }
                }
            };
            chunks.by_ref().take(PART_CHUNKS).for_each(&mut take);
            let is_last = chunks.peek().is_none();
            if let Some(rest) = sample.rest().filter(|_| is_last) {
                take(&rest);
            }
            all[0] += total_of_half(&products);
            all[1] += total_of_half(&squares);
            if is_last {
                return all.map(|sum| sum as f32);
            }
        }
    }
}

/// Sum of the lanes, in f64 once there are few.
#[inline(always)]
fn total_of_half(lanes: &[f32; LANES]) -> f64 {
    folded(std::array::from_fn::<f64, { LANES / 2 }, _>(|i| f64::from(lanes[i] + lanes[i + LANES / 2])))
}

#[cfg(test)]
mod tests {
    use ascribe_core::RowType;

    use super::*;
    use crate::features::quant::encode;
    use crate::wide::levels;

    /// Every level of this processor gives the bits of the portable one.
    #[test]
    fn twins_give_the_same_bits() {
        let row: Vec<f32> = (0..17_000).map(|i| ((i * 7919) % 2003) as f32 / 300.0 - 3.1).collect();
        for len in [0, 1, 63, 64, 65, 130, 517, 16_384, 16_390] {
            let row = &row[..len];
            for every in [1, 2, 3] {
                let sample = Sample { row, every };
                let bits =
                    |sum: f32, [a, b, c, d]: [[f32; 2]; STEPS]| [[sum, 0.0], a, b, c, d].map(|p| p.map(f32::to_bits));
                let inverses = [2.4, 9.1, 1.2, 0.7];
                let run = |level| {
                    let products = inverses.map(|inverse| products_plainly_at(level, &sample, inverse));
                    bits(squared_plainly_at(level, &sample, 0.3), products)
                };
                let mut all: Vec<_> = levels().into_iter().map(run).collect();
                all.push(bits(squared(&sample, 0.3), products_of_all(&sample, inverses)));
                all.push(bits(squared(&sample, 0.3), inverses.map(|inverse| products(&sample, inverse))));
                assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{len} numbers, one in {every}");
            }
        }
    }

    /// The distance at a scale, number by number.
    fn distance(row: &[f32], scale: f32) -> f64 {
        let rest = |&x: &f32| f64::from(x) - f64::from(scale * (x / scale).round_ties_even().clamp(-7.0, 7.0));
        row.iter().map(|x| rest(x).powi(2)).sum::<f64>().sqrt()
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
                let found = encode(&row, RowType::Int4, &mut vec![0; n.div_ceil(2)]).expect("finite numbers");
                let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let errors = (1..=1500).map(|i| distance(&row, largest / 7.0 * i as f32 / 1500.0));
                let best = errors.fold(f64::INFINITY, f64::min);
                // A row that a scale of all digits would keep as it is loses what the digits of ours cannot say.
                let allowed =
                    1.06 * best + 2f64.powi(-16) * row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                assert!(f64::from(found.error) <= allowed, "{kind}, {n} numbers: {} for {best}", found.error);
            }
        }
    }
}
