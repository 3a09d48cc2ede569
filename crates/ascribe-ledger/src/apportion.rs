//! Splitting a pot by integer weights. Floors with a remainder for money; Hamilton only where a format must sum exactly.
//!
//! Floor is monotone in the pot and in one's own weight, and splitting an account in two never pays. Hamilton has none
//! of these (the counter-examples are tests), so nothing is ever *paid* by it. No accounts live here.

use crate::LedgerError;
use crate::wide::mul_div;

/// One million.
pub const PPM: u32 = 1_000_000;

/// A pot split by floors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floors {
    /// `⌊pot·w_i/W⌋`, in the order of the weights.
    pub parts: Vec<u128>,
    /// `pot - Σ parts`; below the number of positive weights, or the whole pot when no weight is positive.
    pub dust: u128,
}

/// `part_i = ⌊pot·w_i/W⌋` with a 256-bit product; the rest is dust.
///
/// `Σ parts + dust = pot` exactly. Order-free: a permutation of the weights permutes the parts.
///
/// # Errors
/// [`LedgerError::Overflow`] when the weights sum past 128 bits.
///
/// ```
/// let split = ascribe_ledger::floors(100, &[1, 1, 1]).unwrap();
/// assert_eq!((split.parts, split.dust), (vec![33, 33, 33], 1));
/// ```
pub fn floors(pot: u128, weights: &[u128]) -> Result<Floors, LedgerError> {
    let total = sum(weights.iter().copied())?;
    if total == 0 {
        return Ok(Floors { parts: vec![0; weights.len()], dust: pot });
    }
    let mut dust = pot;
    let mut parts = Vec::with_capacity(weights.len());
    for &weight in weights {
        let (part, _) =
            mul_div(pot, weight, total).expect("a weight is at most the total, so a part is at most the pot");
        dust -= part;
        parts.push(part);
    }
    Ok(Floors { parts, dust })
}

/// `⌊amount·ppm/10⁶⌋`.
///
/// # Errors
/// [`LedgerError::BadPpm`] above one million.
pub fn by_ppm(amount: u128, ppm: u32) -> Result<u128, LedgerError> {
    if ppm > PPM {
        return Err(LedgerError::BadPpm { what: "a fraction".into(), expected: "at most 1000000", found: ppm.into() });
    }
    let (part, _) = mul_div(amount, ppm.into(), PPM.into()).expect("a fraction of an amount is at most the amount");
    Ok(part)
}

/// Largest remainder (Hamilton): floors, then one unit more for the largest remainders, ties to the smaller key.
///
/// Sums to `pot` exactly when any weight is positive. Not monotone: for formats that demand exact sums, never to pay.
///
/// # Errors
/// [`LedgerError::Overflow`] when the weights sum past 128 bits.
pub fn hamilton<K: Ord>(pot: u128, weights: &[(K, u128)]) -> Result<Vec<u128>, LedgerError> {
    let total = sum(weights.iter().map(|(_, weight)| *weight))?;
    if total == 0 {
        return Ok(vec![0; weights.len()]);
    }
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut left = pot;
    for (idx, (_, weight)) in weights.iter().enumerate() {
        let (part, rem) = mul_div(pot, *weight, total).expect("a weight is at most the total");
        left -= part;
        parts.push(part);
        remainders.push((rem, idx));
    }
    remainders.sort_by(|(rem_a, a), (rem_b, b)| rem_b.cmp(rem_a).then_with(|| weights[*a].0.cmp(&weights[*b].0)));
    // `left` is below the number of positive remainders, so nobody gets two and a zero weight gets none.
    for &(_, idx) in &remainders {
        if left == 0 {
            break;
        }
        parts[idx] += 1;
        left -= 1;
    }
    Ok(parts)
}

fn sum(weights: impl Iterator<Item = u128>) -> Result<u128, LedgerError> {
    let mut total = 0u128;
    for weight in weights {
        total = total.checked_add(weight).ok_or(LedgerError::Overflow { what: "the sum of weights" })?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn part(pot: u128, weights: &[u128], idx: usize) -> u128 {
        floors(pot, weights).unwrap().parts[idx]
    }

    #[test]
    fn hand_toys() {
        assert_eq!(floors(10, &[6, 6, 2]).unwrap(), Floors { parts: vec![4, 4, 1], dust: 1 });
        assert_eq!(floors(10, &[0, 0]).unwrap(), Floors { parts: vec![0, 0], dust: 10 });
        assert_eq!(floors(10, &[]).unwrap(), Floors { parts: vec![], dust: 10 });
        assert_eq!(floors(u128::MAX, &[1]).unwrap(), Floors { parts: vec![u128::MAX], dust: 0 });
        assert_eq!(by_ppm(u128::MAX, PPM), Ok(u128::MAX));
        assert_eq!(by_ppm(3, 333_333), Ok(0));
        assert!(by_ppm(1, PPM + 1).is_err());
        assert!(matches!(floors(1, &[u128::MAX, 1]), Err(LedgerError::Overflow { .. })));
    }

    /// Raising the pot from 10 to 11 cuts the third payee from 2 to 1: why Hamilton never pays anybody.
    #[test]
    fn hamilton_is_not_monotone_in_the_pot() {
        let weights = [("a", 6), ("b", 6), ("c", 2)];
        assert_eq!(hamilton(10, &weights).unwrap(), [4, 4, 2]);
        assert_eq!(hamilton(11, &weights).unwrap(), [5, 5, 1]);
        assert!(part(11, &[6, 6, 2], 2) >= part(10, &[6, 6, 2], 2));
    }

    /// One account of weight 24 gets 2 of 10; split as 7 + 17 it gets 3.
    #[test]
    fn hamilton_pays_for_splitting() {
        assert_eq!(hamilton(10, &[("a", 24), ("z", 76)]).unwrap(), [2, 8]);
        let split = hamilton(10, &[("a1", 7), ("a2", 17), ("z", 76)]).unwrap();
        assert_eq!(split[0] + split[1], 3);
        assert!(part(10, &[7, 17, 76], 0) + part(10, &[7, 17, 76], 1) <= part(10, &[24, 76], 0));
    }

    #[test]
    fn hamilton_ties_go_to_the_smaller_key() {
        assert_eq!(hamilton(1, &[("b", 1), ("a", 1)]).unwrap(), [0, 1]);
        assert_eq!(hamilton(1, &[("a", 1), ("b", 1)]).unwrap(), [1, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn nothing_is_lost(pot: u128, weights in vec(0u128..1 << 62, 1..40)) {
            let split = floors(pot, &weights).unwrap();
            let paid: u128 = split.parts.iter().sum();
            prop_assert_eq!(paid + split.dust, pot);
            let n_positive = weights.iter().filter(|w| **w > 0).count() as u128;
            if n_positive > 0 {
                prop_assert!(split.dust < n_positive);
                let exact = hamilton(pot, &weights.iter().copied().enumerate().collect::<Vec<_>>()).unwrap();
                prop_assert_eq!(exact.iter().sum::<u128>(), pot);
                prop_assert!(exact.iter().zip(&weights).all(|(part, weight)| *weight > 0 || *part == 0));
            }
        }

        #[test]
        fn a_larger_pot_cuts_nobody(pot in 0u128..1 << 100, more in 0u128..1 << 90, weights in vec(0u128..1 << 62, 1..20)) {
            let (small, large) = (floors(pot, &weights).unwrap(), floors(pot + more, &weights).unwrap());
            prop_assert!(small.parts.iter().zip(&large.parts).all(|(a, b)| a <= b));
        }

        #[test]
        fn more_weight_never_costs_its_owner(
            pot in 0u128..1 << 100, mut weights in vec(0u128..1 << 62, 1..20), more in 0u128..1 << 62, at in 0usize..20,
        ) {
            let at = at % weights.len();
            let before = floors(pot, &weights).unwrap();
            let had_any = weights.iter().any(|w| *w > 0);
            weights[at] += more;
            let after = floors(pot, &weights).unwrap();
            prop_assert!(after.parts[at] >= before.parts[at]);
            if had_any {
                let others_fall = (0..weights.len()).filter(|i| *i != at).all(|i| after.parts[i] <= before.parts[i]);
                prop_assert!(others_fall);
            }
        }

        #[test]
        fn splitting_an_account_never_pays(
            pot in 0u128..1 << 100, weights in vec(0u128..1 << 62, 1..20), cut in 0u128..1 << 62,
        ) {
            let first = cut.min(weights[0]);
            let mut split = weights.clone();
            split[0] = first;
            split.push(weights[0] - first);
            let (whole, halves) = (floors(pot, &weights).unwrap(), floors(pot, &split).unwrap());
            prop_assert!(halves.parts[0] + halves.parts[split.len() - 1] <= whole.parts[0]);
        }

        #[test]
        fn order_does_not_matter(pot: u128, weights in vec(0u128..1 << 62, 2..20), turn in 0usize..20) {
            let turn = turn % weights.len();
            let mut turned = weights.clone();
            turned.rotate_left(turn);
            let mut parts = floors(pot, &weights).unwrap().parts;
            parts.rotate_left(turn);
            prop_assert_eq!(floors(pot, &turned).unwrap().parts, parts);
        }
    }
}
