//! Negative scores: an owner's datasets are summed first and clipped afterwards, person by person.
//!
//! Clipping each item or dataset instead pays for noise: whoever owns many rows keeps the lucky ones and sheds the rest.

/// Clips a row of quantised scores per owner; returns a weight per dataset.
///
/// An owner's net is the sum of its datasets' scores. A net at or below `floor` earns nothing. Otherwise the net is handed
/// to the owner's positive datasets in proportion to their scores, rounded down: `w_k' = ⌊w_k·net/positive⌋ ≤ w_k`. For
/// more than sixteen datasets per owner the ratio is taken from the upper 64 bits of net and positive sum (2⁻⁶³ of it).
/// `row[k]` and `owner_idx[k]` belong to dataset k; magnitudes are at most `2^62`. Exact integers; order-free.
///
/// ```
/// use ascribe_shares::net::net_by_owner;
/// // Owner 0 has 6 and -2: net 4, all on the first. Owner 1 has -1 alone.
/// assert_eq!(net_by_owner(&[6, -2, -1], &[0, 0, 1], 0), [4, 0, 0]);
/// ```
pub fn net_by_owner(row: &[i64], owner_idx: &[u32], floor: u64) -> Vec<u64> {
    let n_owners = owner_idx.iter().map(|idx| *idx as usize + 1).max().unwrap_or(0);
    let mut net = vec![0i128; n_owners];
    let mut positive = vec![0u128; n_owners];
    for (score, owner) in row.iter().zip(owner_idx) {
        net[*owner as usize] += i128::from(*score);
        positive[*owner as usize] += score.max(&0).unsigned_abs() as u128;
    }
    let weight = |(score, owner): (&i64, &u32)| {
        let (net, positive) = (net[*owner as usize], positive[*owner as usize]);
        if *score <= 0 || net <= i128::from(floor) {
            return 0;
        }
        // Both halves lose the same low bits, so that the product of the ratio and a 62-bit score fits 128 bits.
        let lost = (128 - positive.leading_zeros()).saturating_sub(64);
        let (net, positive) = (net.unsigned_abs() >> lost, positive >> lost);
        let share = score.unsigned_abs() as u128 * net / positive;
        u64::try_from(share).expect("the net is at most the positive sum, so a weight is at most its score")
    };
    row.iter().zip(owner_idx).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // Owner 0: 10, 5, -6 → net 9 of 15: 6 and 3. Owner 1: 4. Owner 2: -3 and 3, net 0.
        let row = [10, 4, 5, -3, -6, 3];
        let owners = [0, 1, 0, 2, 0, 2];
        assert_eq!(net_by_owner(&row, &owners, 0), [6, 4, 3, 0, 0, 0]);
        // The floor is exclusive: a net of 4 does not pass a floor of 4.
        assert_eq!(net_by_owner(&row, &owners, 4), [6, 0, 3, 0, 0, 0]);
        assert_eq!(net_by_owner(&[-1, -2], &[0, 1], 0), [0, 0]);
        assert_eq!(net_by_owner(&[], &[], 0), [0u64; 0]);
    }

    #[test]
    fn a_hundred_datasets_at_the_top_of_the_range() {
        let row = vec![(1i64 << 62) - 1; 100];
        assert_eq!(net_by_owner(&row, &[0; 100], 0), vec![(1u64 << 62) - 1; 100]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// An owner gets its net, within one unit per dataset and the ratio's 2^-63; never more. Splitting one's datasets
        /// into more of them changes nothing beyond that.
        #[test]
        fn an_owner_gets_its_net(row in proptest::collection::vec(-(1i64 << 62)..1 << 62, 1..40), n_owners in 1u32..4) {
            let owners: Vec<u32> = (0..row.len() as u32).map(|k| k % n_owners).collect();
            let weights = net_by_owner(&row, &owners, 0);
            for owner in 0..n_owners {
                let of_owner = |k: &usize| owners[*k] == owner;
                let net: i128 = (0..row.len()).filter(of_owner).map(|k| i128::from(row[k])).sum();
                let paid: i128 = (0..row.len()).filter(of_owner).map(|k| i128::from(weights[k])).sum();
                // Shortening the ratio to 64 bits moves a 62-bit weight by less than one unit.
                let slack = 2 * row.len() as i128;
                prop_assert!(paid - net.max(0) <= slack && net.max(0) - paid <= slack, "{paid} {net}");
            }
            prop_assert!(weights.iter().zip(&row).all(|(weight, score)| i128::from(*weight) <= i128::from(*score).max(0)));
        }

        /// Noise spread over many datasets of one owner earns what its sum earns: no farm of lucky ones.
        #[test]
        fn noise_farms_earn_their_sum(row in proptest::collection::vec(-1000i64..1000, 2..40)) {
            let weights = net_by_owner(&row, &vec![0; row.len()], 0);
            let net: i64 = row.iter().sum();
            prop_assert!(weights.iter().sum::<u64>() <= net.max(0).unsigned_abs());
        }
    }
}
