//! The scale of a row in half bytes: the one with the least squared error, nearly.
//!
//! Looked for between the one that is best for a normal row (15 even levels, 0.335 standard deviations apart: Max, IRE Trans. Inf.
//! Theory 6, 1960) and the one that has the largest number at the last level; numbers beyond that level are cut. Of a long row a part
//! that is spread over it is looked at: the error is flat around the best scale.

use super::quant::{CHUNK, ROUND, above_round, filled_up, total};
use crate::wide::wide;

/// Numbers that a scale is fitted on, at least, if the row has so many: a step that is off by a fortieth, as one from so many is at
/// times, costs a thousandth of the error.
const FITTED_NUMBERS: usize = 1024;
/// Best step of 15 even levels for a normal number, in standard deviations.
const NORMAL_STEP: f32 = 0.335;
/// The int4 scale of nearly the least squared error (a test holds it within 6 % of 1,500 scales), for a row with the largest magnitude
/// `largest`.
pub(super) fn fitted_scale(row: &[f32], largest: f32) -> f32 {
    let spread = largest / 7.0;
    if spread < f32::MIN_POSITIVE {
        return spread;
    }
    let every = row.len() / FITTED_NUMBERS;
    if every > 1 {
        // One chunk in `every`.
        let mut part = Vec::with_capacity(2 * FITTED_NUMBERS);
        row.as_chunks::<CHUNK>().0.iter().step_by(every).for_each(|chunk| part.extend_from_slice(chunk));
        let fit = fit(&mut part, largest);
        // Numbers that stand out can have been passed over. If cutting the largest costs much of what is lost in all, they matter.
        let (cut, share) = (1.0 - 7.0 * fit.scale, row.len() as f32 / part.len() as f32);
        if fit.lost.is_finite() && (cut <= 0.0 || cut * cut <= 0.1 * fit.lost * share) {
            return fit.scale * largest;
        }
    }
    let fit = fit(&mut row.to_vec(), largest);
    if fit.lost.is_finite() { fit.scale * largest } else { spread }
}

/// The step of the least squared error among those tried, for `numbers` that are none greater than `largest`, in units of which the
/// result is.
fn fit(numbers: &mut [f32], largest: f32) -> Fit {
    let squared = normalise(numbers, 1.0 / largest);
    let spread = 1.0 / 7.0;
    let mut best = Fit { scale: spread, lost: f32::INFINITY };
    if squared <= 0.0 {
        return best;
    }
    let normal = NORMAL_STEP * (squared / numbers.len().max(1) as f32).sqrt();
    let at = |step: f32| Fit::at(numbers, squared, step);
    // Up from below the step of a normal row, by a factor of √2, until nothing is cut any more. All of them: a row with a few large
    // numbers has two best steps, one that cuts them and one that drops the others.
    let mut step = spread.min(normal * std::f32::consts::FRAC_1_SQRT_2);
    let [mut before, mut low, mut middle, mut high] = [None; 4];
    loop {
        let fit = at(step);
        let here = Some((step.ln(), fit.lost));
        if fit.lost < best.lost {
            (best, low, middle, high) = (fit, before, here, None);
        } else if high.is_none() {
            high = here;
        }
        before = here;
        if step.is_nan() || step >= spread {
            break;
        }
        step = spread.min(step * std::f32::consts::SQRT_2);
    }
    // Between the best and its neighbours: where a parabola through the three is lowest.
    if let (Some(low), Some(high), Some(middle)) = (low, high, middle) {
        let (left, right) = (middle.0 - low.0, high.0 - middle.0);
        let (to_left, to_right) = ((low.1 - middle.1) / left, (high.1 - middle.1) / right);
        let lowest = middle.0 + 0.5 * (to_left * right - to_right * left) / (to_left + to_right);
        if lowest.is_finite() {
            let fit = at(lowest.exp());
            if fit.lost < best.lost {
                best = fit;
            }
        }
    }
    best
}

wide! {
    /// Multiplies by `inverse`; the sum of the squares then.
    fn normalise / normalise_at (numbers: &mut [f32], inverse: f32) -> f32 {
        let mut sums = [0.0f32; CHUNK];
        let (chunks, rest) = numbers.as_chunks_mut::<CHUNK>();
        for numbers in chunks {
            for i in 0..CHUNK {
                numbers[i] *= inverse;
                sums[i] += numbers[i] * numbers[i];
            }
        }
        for (x, sum) in rest.iter_mut().zip(&mut sums) {
            *x *= inverse;
            *sum += *x * *x;
        }
        total(&sums) as f32
    }
}

/// What codes in steps of `step` lose. `‖x − s·c‖²` is least at `s = ⟨x, c⟩/⟨c, c⟩`, where it is `‖x‖² − ⟨x, c⟩²/⟨c, c⟩`. In f32, in
/// [`CHUNK`] lanes: good to some 10⁻⁵, which is all that a step is wanted to.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    lost: f32,
}

impl Fit {
    /// All is lost where all codes are zero.
    fn at(numbers: &[f32], squared: f32, step: f32) -> Self {
        let [product, squares] = products_with_codes(numbers, 1.0 / step);
        let scale = step * (product / squares);
        let lost = squared - (step * product) * (step * product / squares);
        if scale.is_finite() && scale > 0.0 { Self { scale, lost } } else { Self { scale: step, lost: f32::INFINITY } }
    }
}

wide! {
    /// `⟨t, c⟩` and `⟨c, c⟩` for the numbers `t = inverse · x` and their codes `c` of four bits.
    fn products_with_codes / products_with_codes_at (numbers: &[f32], inverse: f32) -> [f32; 2] {
        let (mut product, mut all) = (0.0, 0.0);
        for part in numbers.chunks(CHUNK << 8) {
            let (mut products, mut squares) = ([0.0f32; CHUNK], [0.0f32; CHUNK]);
            let mut take = |numbers: &[f32; CHUNK]| {
                for i in 0..CHUNK {
                    let steps = numbers[i] * inverse;
                    let code = above_round(steps, 7.0) - ROUND;
                    products[i] += steps * code;
                    squares[i] = if FMA { code.mul_add(code, squares[i]) } else { squares[i] + code * code };
                }
            };
            let (chunks, rest) = part.as_chunks::<CHUNK>();
            chunks.iter().for_each(&mut take);
            take(&filled_up(rest));
            product += total(&products);
            all += total(&squares);
        }
        [product as f32, all as f32]
    }
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
        let row: Vec<f32> = (0..517).map(|i| ((i * 7919) % 2003) as f32 / 300.0 - 3.1).collect();
        for len in [0, 1, 63, 64, 65, 130, 517] {
            let row = &row[..len];
            let run = |level| {
                let mut normal = row.to_vec();
                let sums = [normalise_at(level, &mut normal, 0.3)].into_iter();
                let all = sums.chain(products_with_codes_at(level, row, 2.4)).chain(normal);
                all.map(f32::to_bits).collect::<Vec<_>>()
            };
            let all: Vec<_> = levels().into_iter().map(run).collect();
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{len} numbers");
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
