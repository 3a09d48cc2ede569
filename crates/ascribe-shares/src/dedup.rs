//! Duplicates before netting: what of a dataset's score belongs to whoever licensed the same text earlier.
//!
//! Scores by dataset do not say which record earned them, so a dataset of which a part was copied gives that part of its score
//! away. Where scores come by record, each record's score goes to the earliest licence of its cluster itself and nothing here is needed.

use std::collections::BTreeMap;

use crate::book::PPM;
use crate::error::SharesError;
use crate::quantise::TOP_BITS;
use crate::sparse::Summed;

/// One part of a dataset that an earlier licence covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Derived {
    /// The later dataset, by ordinal.
    pub from: u32,
    /// The earlier one.
    pub to: u32,
    /// Records of `from` that say what records of `to` say, in ppm of its records.
    pub ppm: u32,
}

/// All such parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Duplicates {
    by_later: BTreeMap<u32, Vec<(u32, u32)>>,
}

impl Duplicates {
    /// Collects parts.
    ///
    /// # Errors
    /// [`SharesError::NotAFraction`] when the parts of a dataset exceed it, [`SharesError::Duplicate`] when a dataset is its own
    /// original.
    pub fn new(parts: &[Derived]) -> Result<Self, SharesError> {
        let mut by_later: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
        for part in parts.iter().filter(|part| part.ppm > 0) {
            if part.from == part.to {
                return Err(SharesError::Duplicate { what: "dataset as its own original", found: part.to.to_string() });
            }
            by_later.entry(part.from).or_default().push((part.to, part.ppm));
        }
        for list in by_later.values_mut() {
            list.sort_unstable();
            let total: u128 = list.iter().map(|(_, ppm)| u128::from(*ppm)).sum();
            if total > PPM {
                return Err(SharesError::NotAFraction { what: "copied part of a dataset", found: total as f64 / 1e6 });
            }
        }
        Ok(Self { by_later })
    }

    /// True when no dataset has a part that an earlier licence covers.
    pub fn is_empty(&self) -> bool {
        self.by_later.is_empty()
    }

    /// Parts of `dataset`, as (earlier dataset, ppm).
    pub fn of(&self, dataset: u32) -> &[(u32, u32)] {
        self.by_later.get(&dataset).map_or(&[], Vec::as_slice)
    }

    /// Ppm of `dataset` that no earlier licence covers.
    pub fn own_ppm(&self, dataset: u32) -> u32 {
        PPM as u32 - self.of(dataset).iter().map(|(_, ppm)| ppm).sum::<u32>()
    }

    /// Moves the copied part of positive scores to the earlier datasets: `⌊s·ppm/10⁶⌋` each, once, without chains.
    ///
    /// Negative scores stay where they are: otherwise a bad copy would be a way to cut somebody else's earnings. `sums` ascend by
    /// dataset, and so does what is returned; if a sum grew beyond 62 bits, all of them and the noise floor are shortened by the same
    /// power of two. Exact integers; cost linear.
    pub fn apply(&self, sums: &[Summed], floor: u64) -> (Vec<Summed>, u64) {
        if self.by_later.is_empty() {
            return (sums.to_vec(), floor);
        }
        let mut moved: BTreeMap<u32, i128> = BTreeMap::new();
        for sum in sums {
            let score = i128::from(sum.score);
            let mut kept = score;
            for &(to, ppm) in self.of(sum.dataset).iter().filter(|_| score > 0) {
                let part = score * i128::from(ppm) / PPM as i128;
                kept -= part;
                *moved.entry(to).or_default() += part;
            }
            *moved.entry(sum.dataset).or_default() += kept;
        }
        let top = moved.values().map(|sum| sum.unsigned_abs()).max().unwrap_or(0);
        let lost = (128 - top.leading_zeros()).saturating_sub(TOP_BITS.unsigned_abs());
        let shorten = |sum: i128| {
            // Toward zero on both sides, as everywhere.
            let magnitude = (sum.unsigned_abs() >> lost) as i64;
            if sum < 0 { -magnitude } else { magnitude }
        };
        (moved.into_iter().map(|(dataset, sum)| Summed { dataset, score: shorten(sum) }).collect(), floor >> lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums(list: &[(u32, i64)]) -> Vec<Summed> {
        list.iter().map(|&(dataset, score)| Summed { dataset, score }).collect()
    }

    fn parts(list: &[(u32, u32, u32)]) -> Duplicates {
        Duplicates::new(&list.iter().map(|&(from, to, ppm)| Derived { from, to, ppm }).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn by_hand() {
        // Half of dataset 2 is dataset 0's, a quarter is dataset 5's, which has no score of its own.
        let found = parts(&[(2, 0, 500_000), (2, 5, 250_000)]);
        assert_eq!(found.own_ppm(2), 250_000);
        assert_eq!(found.apply(&sums(&[(0, 7), (2, 100)]), 3), (sums(&[(0, 57), (2, 25), (5, 25)]), 3));
        // A negative copy harms nobody but its owner.
        assert_eq!(found.apply(&sums(&[(0, 7), (2, -100)]), 3), (sums(&[(0, 7), (2, -100)]), 3));
        let top = (1i64 << 62) - 1;
        let (shortened, floor) = parts(&[(1, 0, 1_000_000)]).apply(&sums(&[(0, top), (1, top)]), 8);
        assert_eq!((shortened, floor), (sums(&[(0, top), (1, 0)]), 4));
    }

    #[test]
    fn parts_that_cannot_be() {
        let part = |from, to, ppm| Derived { from, to, ppm };
        assert!(Duplicates::new(&[part(1, 1, 5)]).is_err());
        let error = Duplicates::new(&[part(1, 0, 600_000), part(1, 2, 500_000)]).unwrap_err().to_string();
        assert!(error.contains("copied part of a dataset: expected a number from 0 to 1, found 1.1"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Nothing is made or lost, and whoever copied all of it keeps nothing that is positive.
        #[test]
        fn moving_conserves(scores in proptest::collection::vec(-(1i64 << 59)..1 << 59, 4), ppm in 0u32..=1_000_000) {
            let list: Vec<(u32, i64)> = (0u32..).zip(scores.iter().copied()).collect();
            let (moved, _) = parts(&[(3, 0, ppm), (2, 0, 1_000_000)]).apply(&sums(&list), 0);
            let total: i128 = moved.iter().map(|sum| i128::from(sum.score)).sum();
            let before: i128 = scores.iter().map(|score| i128::from(*score)).sum();
            prop_assert_eq!(total, before);
            prop_assert!(moved.iter().all(|sum| sum.dataset != 2 || sum.score <= 0));
        }
    }
}
