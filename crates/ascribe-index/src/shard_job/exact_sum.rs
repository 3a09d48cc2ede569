//! A sum of f64 numbers that is exact, and therefore the same in whatever order and grouping it is taken.
//!
//! A fixed-point number wide enough for every finite f64 (Kulisch, Computer Arithmetic and Validity, 2013, chapter 8): 70
//! limbs of 32 bits, from 2⁻¹⁰⁷⁴ up, kept in signed 64-bit words so that carries wait. Workers may add their parts as they come;
//! the rounding to f64 happens once, at the end, to nearest with ties to even.

/// Limbs: 2,098 bits of f64, and room for 2⁶⁰ additions.
const N_LIMBS: usize = 70;
/// Additions after which carries must travel: each adds less than 2³² to a limb.
const ADDITIONS_MAX: u32 = 1 << 30;
const LIMB_MASK: i64 = (1 << 32) - 1;

/// The sum. 560 bytes; an addition touches three words.
#[derive(Clone, Debug)]
pub struct ExactSum {
    /// `Σ limbs[i] · 2^(32·i − 1074)`.
    limbs: [i64; N_LIMBS],
    pending: u32,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { limbs: [0; N_LIMBS], pending: 0 }
    }
}

impl ExactSum {
    /// Adds a number.
    ///
    /// # Panics
    /// If it is not finite: whoever adds has a row or a query to name, this has not.
    pub fn add(&mut self, x: f64) {
        assert!(x.is_finite(), "only finite numbers can be added exactly, found {x}");
        let bits = x.to_bits();
        let exponent = (bits >> 52) as usize & 0x7FF;
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, place) = if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        let shifted = u128::from(mantissa) << (place % 32);
        let first = place / 32;
        let negative = x.is_sign_negative();
        for (i, limb) in self.limbs[first..first + 3].iter_mut().enumerate() {
            let part = (shifted >> (32 * i)) as i64 & LIMB_MASK;
            *limb += if negative { -part } else { part };
        }
        self.count(1);
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        other.carry();
        for (limb, more) in self.limbs.iter_mut().zip(other.limbs) {
            *limb += more;
        }
        self.count(1);
    }

    fn count(&mut self, additions: u32) {
        self.pending += additions;
        if self.pending >= ADDITIONS_MAX {
            self.carry();
        }
    }

    /// Brings all limbs but the last into `0 .. 2³²`; the last has the sign.
    fn carry(&mut self) {
        let mut carry = 0;
        for limb in &mut self.limbs[..N_LIMBS - 1] {
            let sum = *limb + carry;
            *limb = sum & LIMB_MASK;
            carry = sum >> 32;
        }
        self.limbs[N_LIMBS - 1] += carry;
        self.pending = 0;
    }

    /// The f64 nearest to the sum, ties to even; infinite if it is larger than any.
    pub fn value(&self) -> f64 {
        let mut sum = self.clone();
        sum.carry();
        let negative = sum.limbs[N_LIMBS - 1] < 0;
        if negative {
            sum.limbs.iter_mut().for_each(|limb| *limb = -*limb);
            sum.carry();
        }
        let Some(top) = sum.limbs.iter().rposition(|&limb| limb != 0) else { return 0.0 };
        let highest = 32 * top + 63 - sum.limbs[top].leading_zeros() as usize;
        let magnitude = if highest < 53 {
            f64::from_bits((sum.limbs[1] as u64) << 32 | sum.limbs[0] as u64)
        } else {
            sum.rounded(highest)
        };
        if negative { -magnitude } else { magnitude }
    }

    /// The magnitude whose highest set bit is `highest`, at least the 53rd.
    fn rounded(&self, highest: usize) -> f64 {
        let bit = |i: usize| (self.limbs[i / 32] as u64 >> (i % 32)) & 1;
        let lowest = highest - 52;
        let kept = (0..53).fold(0_u64, |word, i| word | bit(lowest + i) << i);
        let half = bit(lowest - 1) == 1;
        let below = (0..lowest - 1).any(|i| bit(i) == 1);
        let exponent = (highest - 51) as u64;
        if exponent >= 2047 {
            return f64::INFINITY;
        }
        let mut word = exponent << 52 | kept & ((1 << 52) - 1);
        // A carry out of the fraction raises the exponent, which is what rounding up a power of two means.
        word += u64::from(half && (below || kept & 1 == 1));
        f64::from_bits(word)
    }

    /// Appends the sum: first limb that counts, number of limbs, limbs; little-endian.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut sum = self.clone();
        sum.carry();
        let first = sum.limbs.iter().position(|&limb| limb != 0).unwrap_or(0);
        let end = sum.limbs.iter().rposition(|&limb| limb != 0).map_or(first, |last| last + 1);
        out.extend([first as u8, (end - first) as u8]);
        for limb in &sum.limbs[first..end] {
            out.extend(limb.to_le_bytes());
        }
    }

    /// Takes a sum off the front of `bytes`; none if it is not one.
    pub fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (&[first, n], rest) = bytes.split_first_chunk::<2>()?;
        let (first, n) = (usize::from(first), usize::from(n));
        let (limbs, rest) = rest.split_at_checked(8 * n)?;
        let mut sum = Self::default();
        let target = sum.limbs.get_mut(first..first + n)?;
        for (limb, bytes) in target.iter_mut().zip(limbs.as_chunks::<8>().0) {
            *limb = i64::from_le_bytes(*bytes);
            // What was written had its carries done: anything larger could overflow later.
            if limb.unsigned_abs() > 1 << 40 {
                return None;
            }
        }
        *bytes = rest;
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(xs: &[f64]) -> f64 {
        let mut sum = ExactSum::default();
        xs.iter().for_each(|&x| sum.add(x));
        sum.value()
    }

    #[test]
    fn cancellation_loses_nothing() {
        assert_eq!(sum(&[1e308, 1.0, -1e308]), 1.0);
        assert_eq!(sum(&[1e308, 5e-324, -1e308]), 5e-324);
        assert_eq!(sum(&[]), 0.0);
        assert_eq!(sum(&[-1.5, 1.5]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum(&[f64::MIN, f64::MIN]), f64::NEG_INFINITY);
    }

    #[test]
    fn ties_go_to_even() {
        let half_step = 2.0_f64.powi(-53);
        assert_eq!(sum(&[1.0, half_step]), 1.0);
        assert_eq!(sum(&[1.0, half_step, 5e-324]), 1.0 + f64::EPSILON);
        assert_eq!(sum(&[1.0 + f64::EPSILON, half_step]), 1.0 + 2.0 * f64::EPSILON);
        assert_eq!(sum(&[2.0 - f64::EPSILON, half_step * 2.0]), 2.0);
    }

    #[test]
    fn it_survives_many_carries() {
        let mut sum = ExactSum { pending: ADDITIONS_MAX - 2, ..ExactSum::default() };
        for _ in 0..1000 {
            sum.add(-1.0);
        }
        let mut twice = sum.clone();
        twice.merge(&sum);
        assert_eq!((sum.value(), twice.value()), (-1000.0, -2000.0));
    }

    proptest! {
        #[test]
        fn one_number_is_itself(bits in any::<u64>()) {
            let x = f64::from_bits(bits);
            prop_assume!(x.is_finite());
            prop_assert_eq!(sum(&[x]), x);
        }

        #[test]
        fn order_and_grouping_do_not_matter(
            xs in prop::collection::vec(any::<f64>().prop_filter("finite", |x| x.is_finite()), 0..60),
            cut in 0_usize..60,
        ) {
            let cut = cut.min(xs.len());
            let (mut left, mut right) = (ExactSum::default(), ExactSum::default());
            xs[..cut].iter().for_each(|&x| left.add(x));
            xs[cut..].iter().rev().for_each(|&x| right.add(x));
            let mut bytes = Vec::new();
            right.write(&mut bytes);
            let read = ExactSum::read(&mut bytes.as_slice()).expect("what was written can be read");
            left.merge(&read);
            prop_assert_eq!(left.value().to_bits(), sum(&xs).to_bits());
        }

        #[test]
        fn it_is_the_integer_sum(xs in prop::collection::vec(-(1_i64 << 52)..(1_i64 << 52), 0..50)) {
            let exact: i64 = xs.iter().sum();
            let floats: Vec<f64> = xs.iter().map(|&x| x as f64).collect();
            prop_assert_eq!(sum(&floats), exact as f64);
        }
    }
}
