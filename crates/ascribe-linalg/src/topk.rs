//! The k largest of a stream of scores, in bounded memory and with one answer.
//!
//! Order: larger score first; equal scores by smaller id. Comparison is `total_cmp`, so the answer does not depend on
//! the order in which candidates arrive, nor on how they were split over threads.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A candidate with its score.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// Score; larger is better.
    pub score: f64,
    /// What was scored. Any number that orders the candidates.
    pub id: u64,
}

impl Hit {
    /// Better first: larger score, then smaller id.
    fn rank(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

impl PartialEq for Hit {
    fn eq(&self, other: &Self) -> bool {
        self.rank(other) == Ordering::Equal
    }
}

impl Eq for Hit {}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Hit {
    /// The *worst* hit is the greatest, so that a max-heap gives away the one to drop.
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank(other)
    }
}

/// A bounded heap that keeps the k best hits.
#[derive(Clone, Debug)]
pub struct TopK {
    k: usize,
    heap: BinaryHeap<Hit>,
}

impl TopK {
    /// An empty heap for the best `k`. `k = 0` keeps nothing; a `k` above the number of candidates keeps all.
    pub fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(1 << 16).saturating_add(1)) }
    }

    /// Offers one candidate. Cost `log k` when it is kept, constant when it is not.
    ///
    /// # Panics
    /// If `score` is NaN: a caller refuses NaN where the number enters, with a message that says where.
    pub fn push(&mut self, score: f64, id: u64) {
        assert!(!score.is_nan(), "a NaN score reached the selection of the best; refuse it where it enters");
        let hit = Hit { score, id };
        if self.heap.len() < self.k {
            self.heap.push(hit);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && hit < *worst
        {
            *worst = hit;
        }
    }

    /// Takes over everything that `other` kept.
    pub fn merge(&mut self, other: Self) {
        for hit in other.heap {
            self.push(hit.score, hit.id);
        }
    }

    /// The kept hits, best first.
    pub fn into_sorted(self) -> Vec<Hit> {
        self.heap.into_sorted_vec()
    }
}

/// The `k` best of `(score, id)` pairs, best first.
///
/// # Panics
/// If a score is NaN.
pub fn top_k(k: usize, candidates: impl IntoIterator<Item = (f64, u64)>) -> Vec<Hit> {
    let mut best = TopK::new(k);
    for (score, id) in candidates {
        best.push(score, id);
    }
    best.into_sorted()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_smaller_id() {
        let hits = top_k(2, [(1.0, 9), (1.0, 3), (0.5, 1), (1.0, 5)]);
        assert_eq!(hits.iter().map(|h| h.id).collect::<Vec<_>>(), [3, 5]);
    }

    #[test]
    #[should_panic(expected = "NaN score")]
    fn nan_is_refused() {
        TopK::new(1).push(f64::NAN, 0);
    }

    proptest! {
        #[test]
        fn equals_sorting_everything(scores in prop::collection::vec(-4i8..4, 0..60), k in 0usize..70, cut in 0usize..60) {
            // Small integers make many ties.
            let all: Vec<(f64, u64)> = scores.iter().enumerate().map(|(i, &s)| (f64::from(s), i as u64)).collect();
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            sorted.truncate(k);
            // Two halves in another order, then merged.
            let (left, right) = all.split_at(cut.min(all.len()));
            let (mut a, mut b) = (TopK::new(k), TopK::new(k));
            right.iter().rev().for_each(|&(s, i)| a.push(s, i));
            left.iter().for_each(|&(s, i)| b.push(s, i));
            a.merge(b);
            let got: Vec<(f64, u64)> = a.into_sorted().iter().map(|h| (h.score, h.id)).collect();
            prop_assert_eq!(got, sorted);
        }
    }
}
