//! From f64 to integers by bits alone: no rounding mode, no library function, no order of operations can matter.

use crate::error::SharesError;

/// Bits of the largest quantised magnitude: it lies in `[2^61, 2^62)`.
pub const TOP_BITS: i32 = 62;

/// Sign, mantissa and exponent: the value is `±mantissa · 2^exponent`.
fn parts(value: f64) -> (bool, u64, i32) {
    let bits = value.to_bits();
    let (exponent, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
    let negative = bits >> 63 == 1;
    match exponent {
        // Zero and denormals have no hidden bit.
        0 => (negative, fraction, -1074),
        _ => (negative, fraction | (1 << 52), exponent as i32 - 1075),
    }
}

/// Number of bits before the binary point of the mantissa's end: `|value|` lies in `[2^(top-1), 2^top)`.
fn top_bit(value: f64) -> Option<i32> {
    let (_, mantissa, exponent) = parts(value);
    (mantissa != 0).then(|| 64 - mantissa.leading_zeros() as i32 + exponent)
}

/// A power of two that brings a row's largest magnitude into `[2^61, 2^62)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    shift: i32,
}

impl Scale {
    /// The scale of a row; `None` when every value is zero. Values must be finite.
    pub fn of_row(row: &[f64]) -> Option<Self> {
        Self::of(row.iter().copied())
    }

    /// The same of values from anywhere.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        values.filter_map(top_bit).max().map(|top| Self { shift: TOP_BITS - top })
    }

    /// `value · 2^shift`, truncated toward zero; magnitudes of `2^62` and more become `±2^62`.
    pub fn apply(self, value: f64) -> i64 {
        let (negative, mantissa, exponent) = parts(value);
        let places = exponent + self.shift;
        let magnitude = match top_bit(value) {
            None => 0,
            Some(top) if top + self.shift > TOP_BITS => 1 << TOP_BITS,
            // The product has at most 62 bits, so nothing is shifted out at the top.
            Some(_) if places >= 0 => mantissa << places,
            Some(_) if places > -64 => mantissa >> -places,
            Some(_) => 0,
        } as i64;
        if negative { -magnitude } else { magnitude }
    }
}

/// Quantises one row: all values by the same power of two, chosen so that the largest magnitude lies in `[2^61, 2^62)`,
/// truncated toward zero.
///
/// −0 is 0; denormals count like all numbers; a row of zeros stays zero. The error is below `2^-61` of the largest
/// magnitude. Exact and order-free.
///
/// # Errors
/// The position and value of the first NaN or infinity.
///
/// ```
/// let row = ascribe_shares::quantise_row(&[3.0, -1.5, 0.0]).unwrap();
/// assert_eq!(row, [3 << 60, -(3 << 59), 0]);
/// ```
pub fn quantise_row(row: &[f64]) -> Result<Vec<i64>, (usize, f64)> {
    if let Some((idx, value)) = row.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err((idx, *value));
    }
    Ok(match Scale::of_row(row) {
        None => vec![0; row.len()],
        Some(scale) => row.iter().map(|value| scale.apply(*value)).collect(),
    })
}

/// `⌊fraction · 10⁶⌋`, exactly: the product of the mantissa, not of the float, is rounded down.
///
/// # Errors
/// [`SharesError::NotAFraction`] outside `[0, 1]` and for NaN.
///
/// ```
/// assert_eq!(ascribe_shares::coverage_ppm(0.75), Ok(750_000));
/// // The f64 next to 0.29 lies below 0.29.
/// assert_eq!(ascribe_shares::coverage_ppm(0.29), Ok(289_999));
/// ```
pub fn coverage_ppm(fraction: f64) -> Result<u32, SharesError> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(SharesError::NotAFraction { what: "coverage", found: fraction });
    }
    Ok(ppm_floor(fraction))
}

/// `⌊value · 10⁶⌋` of a value in `[0, 1]`; below 0 gives 0, above 1 gives a million.
pub(crate) fn ppm_floor(value: f64) -> u32 {
    ppm(value, false)
}

/// `⌈value · 10⁶⌉` of a value in `[0, 1]`; below 0 gives 0, above 1 gives a million.
pub(crate) fn ppm_ceil(value: f64) -> u32 {
    ppm(value, true)
}

fn ppm(value: f64, up: bool) -> u32 {
    if value <= 0.0 {
        return 0;
    }
    if value >= 1.0 {
        return 1_000_000;
    }
    let (_, mantissa, exponent) = parts(value);
    // Below 1, so the exponent is negative; the product has at most 53 + 20 bits.
    let product = u128::from(mantissa) * 1_000_000;
    let places = exponent.unsigned_abs();
    let (floor, is_exact) = match places {
        0..=127 => (product >> places, product.trailing_zeros() >= places),
        _ => (0, false),
    };
    // At most a million, since the value is at most 1.
    floor as u32 + u32::from(up && !is_exact)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        assert_eq!(quantise_row(&[1.0, 0.5, 0.75]), Ok(vec![1 << 61, 1 << 60, 3 << 59]));
        assert_eq!(quantise_row(&[-1.0, 3.0]), Ok(vec![-(1 << 60), 3 << 60]));
        assert_eq!(quantise_row(&[]), Ok(vec![]));
    }

    #[test]
    fn zeros_denormals_and_extremes() {
        assert_eq!(quantise_row(&[0.0, -0.0]), Ok(vec![0, 0]));
        let least = f64::from_bits(1);
        assert_eq!(quantise_row(&[least, -least, 3.0 * least]), Ok(vec![1 << 60, -(1 << 60), 3 << 60]));
        assert_eq!(quantise_row(&[f64::MIN_POSITIVE, f64::from_bits(1 << 51)]), Ok(vec![1 << 61, 1 << 60]));
        assert_eq!(quantise_row(&[f64::MAX, 1.0, -0.0, least]), Ok(vec![((1 << 53) - 1) << 9, 0, 0, 0]));
        // 2^-61 of the largest is the last bit that counts.
        let row = [1.0, 1.0 / (1u64 << 61) as f64, 1.9 / (1u64 << 62) as f64];
        assert_eq!(quantise_row(&row), Ok(vec![1 << 61, 1, 0]));
    }

    #[test]
    fn refuses_what_is_no_number() {
        for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (idx, found) = quantise_row(&[1.0, bad, bad]).unwrap_err();
            assert_eq!((idx, found.to_bits()), (1, bad.to_bits()));
        }
        for bad in [f64::NAN, -0.1, 1.0 + f64::EPSILON, f64::INFINITY] {
            assert!(coverage_ppm(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_per_million() {
        assert_eq!(coverage_ppm(0.0), Ok(0));
        assert_eq!(coverage_ppm(-0.0), Ok(0));
        assert_eq!(coverage_ppm(1.0), Ok(1_000_000));
        assert_eq!(coverage_ppm(1.0 - f64::EPSILON), Ok(999_999));
        assert_eq!((ppm_floor(0.5), ppm_ceil(0.5)), (500_000, 500_000));
        assert_eq!((ppm_floor(1e-6), ppm_ceil(1e-6)), (0, 1));
        assert_eq!((ppm_floor(f64::from_bits(1)), ppm_ceil(f64::from_bits(1))), (0, 1));
        assert_eq!((ppm_floor(-3.0), ppm_ceil(7.0)), (0, 1_000_000));
    }

    /// Second route: exact rational comparison through i128 where the numbers are small enough for it.
    fn exact(row: &[f64], scale: Scale) -> Vec<i64> {
        let power = 2f64.powi(scale.shift);
        row.iter().map(|value| (value * power).trunc() as i64).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// In the normal range a multiplication by a power of two is exact, so plain float code is a witness.
        #[test]
        fn agrees_with_exact_float_scaling(row in proptest::collection::vec(-1e30f64..1e30, 1..20)) {
            let quantised = quantise_row(&row).unwrap();
            if let Some(scale) = Scale::of_row(&row) {
                prop_assert_eq!(&quantised, &exact(&row, scale));
                let top = quantised.iter().map(|value| value.unsigned_abs()).max().unwrap();
                prop_assert!((1 << 61..1 << 62).contains(&top));
            }
        }

        /// Any finite bits: order and signs are kept, and scaling the row by a power of two changes nothing.
        #[test]
        fn keeps_order(bits in proptest::collection::vec(any::<u64>(), 1..20)) {
            let row: Vec<f64> = bits.into_iter().map(f64::from_bits).filter(|value| value.is_finite()).collect();
            let quantised = quantise_row(&row).unwrap();
            for (a, qa) in row.iter().zip(&quantised) {
                for (b, qb) in row.iter().zip(&quantised) {
                    prop_assert!(a >= b || qa <= qb);
                }
            }
            let negated: Vec<f64> = row.iter().map(|value| -value).collect();
            let mirrored: Vec<i64> = quantised.iter().map(|value| -value).collect();
            prop_assert_eq!(quantise_row(&negated).unwrap(), mirrored);
        }

        #[test]
        fn ppm_brackets_the_value(value in 0f64..=1.0) {
            let (low, high) = (ppm_floor(value), ppm_ceil(value));
            prop_assert!(high - low <= 1);
            // One rounding of the product, at most 2^-53 of 10^6.
            let product = value * 1e6;
            prop_assert!(f64::from(low) <= product + 1.2e-10 && product - 1.2e-10 <= f64::from(high));
        }
    }
}
