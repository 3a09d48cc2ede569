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

/// Per query the part of its relevant ids among the first `k` found: recall@k of fact tracing. `None` for a query without
/// relevant ids. A `k` beyond the list counts all there is; repeats count once.
///
/// # Panics
/// If the two lists have different lengths.
pub fn recall_at(k: usize, relevant: &[Vec<u64>], found: &[Vec<u64>]) -> Vec<Option<f64>> {
    assert_eq!(relevant.len(), found.len(), "one list per query on both sides");
    let query = |(r, f): (&Vec<u64>, &Vec<u64>)| (!r.is_empty()).then(|| recall(r, &f[..k.min(f.len())]));
    relevant.iter().zip(found).map(query).collect()
}

/// Per query whether any relevant id is among the first `k` found; `None` for a query without relevant ids.
///
/// # Panics
/// If the two lists have different lengths.
pub fn hit_at(k: usize, relevant: &[Vec<u64>], found: &[Vec<u64>]) -> Vec<Option<f64>> {
    recall_at(k, relevant, found).into_iter().map(|r| r.map(|r| f64::from(u8::from(r > 0.0)))).collect()
}

/// Per query the reciprocal rank of its first relevant id; `None` for a query without relevant ids. Their mean is the MRR.
///
/// # Panics
/// If the two lists have different lengths.
pub fn reciprocal_ranks(relevant: &[Vec<u64>], found: &[Vec<u64>]) -> Vec<Option<f64>> {
    assert_eq!(relevant.len(), found.len(), "one list per query on both sides");
    relevant.iter().zip(found).map(|(r, f)| (!r.is_empty()).then(|| reciprocal_rank(r, f))).collect()
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
        let (relevant, found) = ([vec![7, 8], vec![], vec![5]], [vec![1, 8, 7], vec![1], vec![1, 2, 5]]);
        assert_eq!(recall_at(2, &relevant, &found), [Some(0.5), None, Some(0.0)]);
        assert_eq!(hit_at(2, &relevant, &found), [Some(1.0), None, Some(0.0)]);
        assert_eq!(reciprocal_ranks(&relevant, &found), [Some(0.5), None, Some(1.0 / 3.0)]);
    }
}
