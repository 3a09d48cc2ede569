//! Weights of one response from rows of any order: what a score file of any tool is reduced to.
//!
//! A hundred million rows do not fit a `[response, dataset]` table, so a response comes as a list of (dataset, score) and a
//! policy turns it into positive integer weights. Rows of one dataset are summed exactly; order cannot matter.

use crate::error::SharesError;
use crate::quantise::{Scale, TOP_BITS};

/// One row: a dataset and its score. Positive = proponent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Ordinal of the dataset; ordinals from the number of registered datasets on are strangers.
    pub dataset: u32,
    /// Finite.
    pub score: f64,
}

/// One dataset's sum over a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summed {
    /// Ordinal.
    pub dataset: u32,
    /// Quantised sum, magnitude at most `2^62`; the power of two is common to the response.
    pub score: i64,
}

/// Sums rows per dataset: every score is shifted by one power of two, chosen so that the largest magnitude of the response lies
/// in `[2^61, 2^62)`, truncated, and added in 128 bits; then all sums are shifted back below `2^62` together.
///
/// Sorts `rows` by dataset; returns sums ascending by dataset, zeros included, and the noise floor in the same unit.
/// Exact integers: the order of rows and threads cannot matter. The error is below `2^-61` of the largest magnitude per row.
///
/// # Errors
/// [`SharesError::NotFinite`] names the dataset; `query` is only for that message.
pub fn sum_rows(query: usize, rows: &mut [Scored], noise_floor: f64) -> Result<(Vec<Summed>, u64), SharesError> {
    if let Some(row) = rows.iter().find(|row| !row.score.is_finite()) {
        let (dataset, found) = (row.dataset as usize, row.score);
        return Err(SharesError::NotFinite { what: "score", query, dataset, found });
    }
    rows.sort_unstable_by_key(|row| row.dataset);
    let Some(scale) = Scale::of(rows.iter().map(|row| row.score)) else {
        let mut zeros: Vec<Summed> = rows.iter().map(|row| Summed { dataset: row.dataset, score: 0 }).collect();
        zeros.dedup();
        return Ok((zeros, 0));
    };
    let mut sums: Vec<(u32, i128)> = Vec::new();
    for row in rows.iter() {
        let score = i128::from(scale.apply(row.score));
        match sums.last_mut() {
            Some((dataset, sum)) if *dataset == row.dataset => *sum += score,
            _ => sums.push((row.dataset, score)),
        }
    }
    let top = sums.iter().map(|(_, sum)| sum.unsigned_abs()).max().unwrap_or(0);
    let lost = (128 - top.leading_zeros()).saturating_sub(TOP_BITS.unsigned_abs());
    // Toward zero on both sides, so that signs are treated alike.
    let shorten = |sum: i128| {
        let magnitude = (sum.unsigned_abs() >> lost) as i64;
        if sum < 0 { -magnitude } else { magnitude }
    };
    let floor = scale.apply(noise_floor).unsigned_abs() >> lost;
    Ok((sums.into_iter().map(|(dataset, sum)| Summed { dataset, score: shorten(sum) }).collect(), floor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(list: &[(u32, f64)]) -> Vec<Scored> {
        list.iter().map(|&(dataset, score)| Scored { dataset, score }).collect()
    }

    fn sums(list: &[(u32, f64)]) -> Vec<(u32, i64)> {
        sum_rows(0, &mut rows(list), 0.0).unwrap().0.into_iter().map(|s| (s.dataset, s.score)).collect()
    }

    #[test]
    fn by_hand() {
        assert_eq!(sums(&[(1, 1.0), (0, -0.5), (1, 1.0)]), [(0, -(1 << 59)), (1, 1 << 61)]);
        assert_eq!(sums(&[(4, 0.0), (2, -0.0), (4, 0.0)]), [(2, 0), (4, 0)]);
        assert_eq!(sums(&[]), []);
        let least = f64::from_bits(1);
        assert_eq!(sums(&[(0, least), (1, 3.0 * least)]), [(0, 1 << 60), (1, 3 << 60)]);
        let error = sum_rows(7, &mut rows(&[(3, f64::NAN)]), 0.0).unwrap_err();
        assert!(matches!(error, SharesError::NotFinite { query: 7, dataset: 3, .. }));
    }

    #[test]
    fn the_floor_has_the_unit_of_the_sums() {
        let (sums, floor) = sum_rows(0, &mut rows(&[(0, 4.0), (0, 4.0), (1, 1.0)]), 2.0).unwrap();
        assert_eq!(sums[0].score as u64, floor * 4);
        assert_eq!(sums[1].score as u64 * 2, floor);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Any order, any split of the list into the same rows: the same sums. A power of two moves nothing.
        #[test]
        fn order_and_unit_do_not_matter(mut list in proptest::collection::vec((0u32..5, -1e9f64..1e9), 0..40), seed: u64) {
            let first = sums(&list);
            let doubled: Vec<_> = list.iter().map(|&(d, s)| (d, s * 1024.0)).collect();
            prop_assert_eq!(&sums(&doubled), &first);
            let n = list.len().max(1);
            list.rotate_left(seed as usize % n);
            list.reverse();
            prop_assert_eq!(&sums(&list), &first);
            prop_assert!(first.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
