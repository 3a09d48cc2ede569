//! 256-bit products and their quotients. Nothing else of big-integer arithmetic is needed, so nothing else is here.

/// `(⌊a·b/d⌋, a·b mod d)` with a 256-bit product.
///
/// `None` when `d` is 0 or the quotient leaves 128 bits. Exact. Cost: one hardware division where the product fits 128
/// bits, else 128 shift-and-subtract steps.
///
/// ```
/// use ascribe_ledger::wide::mul_div;
/// assert_eq!(mul_div(7, 5, 4), Some((8, 3)));
/// assert_eq!(mul_div(u128::MAX, u128::MAX, u128::MAX), Some((u128::MAX, 0)));
/// assert_eq!(mul_div(u128::MAX, 2, 1), None);
/// ```
pub fn mul_div(a: u128, b: u128, d: u128) -> Option<(u128, u128)> {
    if d == 0 {
        return None;
    }
    if let Some(product) = a.checked_mul(b) {
        return Some((product / d, product % d));
    }
    let (hi, lo) = mul_wide(a, b);
    // The quotient fits 128 bits exactly when the high half is below the divisor.
    if hi >= d {
        return None;
    }
    let (mut rem, mut quotient) = (hi, lo);
    for _ in 0..128 {
        // `rem < d`, so after the shift it is below 2d and one subtraction is enough; bit 128 of it is the carry.
        let carry = rem >> 127;
        rem = (rem << 1) | (quotient >> 127);
        quotient <<= 1;
        if carry == 1 || rem >= d {
            rem = rem.wrapping_sub(d);
            quotient |= 1;
        }
    }
    Some((quotient, rem))
}

/// `a·b` as (high, low) halves of 128 bits, by schoolbook over 64-bit limbs.
fn mul_wide(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a0 * b0;
    // Each sum is at most (2^64-1)^2 + 2·(2^64-1) = 2^128 - 1.
    let mid1 = a1 * b0 + (low >> 64);
    let mid2 = a0 * b1 + (mid1 & LOW);
    (a1 * b1 + (mid1 >> 64) + (mid2 >> 64), (mid2 << 64) | (low & LOW))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_products() {
        assert_eq!(mul_wide(u128::MAX, u128::MAX), (u128::MAX - 1, 1));
        assert_eq!(mul_wide(1 << 64, 1 << 64), (1, 0));
        assert_eq!(mul_div(1, 1, 0), None);
        // 10^38 · 10^20 / 10^25 = 10^33, through the slow path.
        assert_eq!(mul_div(10u128.pow(38), 10u128.pow(20), 10u128.pow(25)), Some((10u128.pow(33), 0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// q·d + r gives the product back, in 256 bits.
        #[test]
        fn quotient_and_remainder_rebuild_the_product(a: u128, b: u128, d in 1u128..) {
            if let Some((q, r)) = mul_div(a, b, d) {
                prop_assert!(r < d);
                let (hi, lo) = mul_wide(q, d);
                let (sum, carry) = lo.overflowing_add(r);
                prop_assert_eq!((hi + u128::from(carry), sum), mul_wide(a, b));
            } else {
                prop_assert!(mul_wide(a, b).0 >= d);
            }
        }

        /// Where the product is small the slow route agrees with the hardware.
        #[test]
        fn scaling_both_sides_changes_nothing(a in 0u128..1 << 60, b in 0u128..1 << 60, d in 1u128..1 << 60) {
            let fast = mul_div(a, b, d).expect("small");
            prop_assume!(fast.0 < 1 << 60);
            let slow = mul_div(a << 64, b << 8, d << 64).map(|(q, r)| (q, r >> 64));
            let direct = (a * b) << 8;
            prop_assert_eq!(slow, Some((direct / d, direct % d)));
            prop_assert_eq!(fast, (a * b / d, a * b % d));
        }
    }
}
