//! Recall and reciprocal rank of retrieved examples.

/// Part of the `exact` ids that `found` holds, in `[0, 1]`; order does not count, repeats count once. 1 when `exact` is
/// empty: nothing was missed.
pub fn recall(exact: &[u64], found: &[u64]) -> f64 {
    if exact.is_empty() {
        return 1.0;
    }
    exact.iter().filter(|id| found.contains(id)).count() as f64 / exact.len() as f64
}

/// Mean [`recall`] of the first `k` over queries; `None` without queries.
///
/// # Panics
/// If the two lists have different lengths.
pub fn mean_recall_at(k: usize, exact: &[Vec<u64>], found: &[Vec<u64>]) -> Option<f64> {
    assert_eq!(exact.len(), found.len(), "one list per query on both sides");
    let first = |ids: &[u64]| ids[..k.min(ids.len())].to_vec();
    let total: f64 = exact.iter().zip(found).map(|(e, f)| recall(&first(e), &first(f))).sum();
    (!exact.is_empty()).then(|| total / exact.len() as f64)
}

/// `1 / rank` of the first relevant id, 0 when none was found.
pub fn reciprocal_rank(relevant: &[u64], found: &[u64]) -> f64 {
    found.iter().position(|id| relevant.contains(id)).map_or(0.0, |rank| 1.0 / (rank + 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(recall(&[1, 2, 3, 4], &[4, 9, 1, 4]), 0.5);
        assert_eq!(recall(&[], &[1]), 1.0);
        assert_eq!(mean_recall_at(2, &[vec![1, 2, 3], vec![5]], &[vec![2, 7, 1], vec![6]]), Some(0.25));
        // k above the length: all there is.
        assert_eq!(mean_recall_at(9, &[vec![1, 2]], &[vec![2, 1]]), Some(1.0));
        assert_eq!(mean_recall_at(3, &[], &[]), None);
        assert_eq!(reciprocal_rank(&[7, 8], &[1, 8, 7]), 0.5);
        assert_eq!(reciprocal_rank(&[7], &[1, 2]), 0.0);
    }
}
