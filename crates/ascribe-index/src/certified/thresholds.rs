//! Candidates of one query, thinned out by the lower ends of their own intervals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A row that may be among the best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Shard, and row of the shard.
    pub shard: u32,
    pub row: u32,
    /// The ends of the interval that holds its score.
    pub lower: f64,
    pub upper: f64,
    /// True if the interval is the precise score.
    pub is_exact: bool,
}

impl Candidate {
    /// Where its row is.
    pub const fn place(&self) -> (u32, u32) {
        (self.shard, self.row)
    }

    /// The same, known to lie between `lower` and `upper` too; ends that are not finite say nothing.
    pub fn within(self, lower: f64, upper: f64) -> Self {
        if self.is_exact || !(lower.is_finite() && upper.is_finite()) {
            return self;
        }
        Self { lower: self.lower.max(lower), upper: self.upper.min(upper), ..self }
    }
}

/// f64 in its total order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ordered(f64);

impl Eq for Ordered {}
impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Candidates, and the k-th largest lower end among them.
#[derive(Clone, Debug)]
pub struct Candidates {
    k: usize,
    /// The k largest lower ends, the least at hand.
    ends: BinaryHeap<Reverse<Ordered>>,
    /// A threshold from elsewhere.
    floor: f64,
    all: Vec<Candidate>,
    /// Length at which the next thinning is due.
    due: usize,
    /// Rows that were scored precisely so far.
    pub rescored: u64,
}

/// Candidates are thinned out when there are so many more than wanted.
const THIN_AT: usize = 1024;

impl Candidates {
    pub fn new(k: usize, floor: f64) -> Self {
        let ends = BinaryHeap::with_capacity(k.min(1 << 16) + 1);
        Self { k, ends, floor, all: Vec::new(), due: THIN_AT + 4 * k, rescored: 0 }
    }

    /// What a row's upper end has to reach: k rows are known to.
    pub fn threshold(&self) -> f64 {
        let own = if self.ends.len() < self.k { f64::NEG_INFINITY } else { self.ends.peek().map_or(0.0, |e| e.0.0) };
        own.max(self.floor)
    }

    /// Takes a candidate; true if the threshold rose.
    pub fn push(&mut self, candidate: Candidate) -> bool {
        self.all.push(candidate);
        let before = self.threshold();
        self.ends.push(Reverse(Ordered(candidate.lower)));
        if self.ends.len() > self.k {
            self.ends.pop();
        }
        if self.all.len() >= self.due {
            self.thin();
            self.due = 2 * self.all.len() + THIN_AT;
        }
        self.threshold() > before
    }

    /// Drops those that can no longer be among the best.
    pub fn thin(&mut self) {
        let threshold = self.threshold();
        self.all.retain(|candidate| candidate.upper >= threshold);
    }

    pub fn all(&self) -> &[Candidate] {
        &self.all
    }

    /// Those of the `k` highest lower ends that are no points yet.
    pub fn vague(&self) -> Vec<Candidate> {
        let mut best = self.all.clone();
        if best.len() > self.k {
            best.select_nth_unstable_by(self.k, |a, b| b.lower.total_cmp(&a.lower).then(a.place().cmp(&b.place())));
            best.truncate(self.k);
        }
        best.retain(|candidate| !candidate.is_exact);
        best
    }

    /// Puts `kept` in the place of all candidates, with their own thresholds.
    pub fn replace(&mut self, kept: Vec<Candidate>) {
        self.ends.clear();
        self.all.clear();
        for candidate in kept {
            self.push(candidate);
        }
    }

    /// Takes over another's.
    pub fn merge(&mut self, other: Self) {
        self.rescored += other.rescored;
        for candidate in other.all {
            if candidate.upper >= self.threshold() {
                self.push(candidate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_the_kth_lower_end() {
        let mut candidates = Candidates::new(2, f64::NEG_INFINITY);
        let push =
            |c: &mut Candidates, row, lower, upper| c.push(Candidate { shard: 0, row, lower, upper, is_exact: false });
        assert!(!push(&mut candidates, 0, 1.0, 2.0));
        assert_eq!(candidates.threshold(), f64::NEG_INFINITY);
        assert!(push(&mut candidates, 1, 3.0, 3.5));
        assert_eq!(candidates.threshold(), 1.0);
        assert!(push(&mut candidates, 2, 2.5, 9.0));
        assert_eq!(candidates.threshold(), 2.5);
        candidates.thin();
        assert_eq!(candidates.all().iter().map(|c| c.row).collect::<Vec<_>>(), [1, 2]);
        let mut other = Candidates::new(2, 2.0);
        push(&mut other, 7, 2.4, 2.6);
        push(&mut other, 8, 1.0, 2.1);
        candidates.merge(other);
        assert_eq!(candidates.all().iter().map(|c| c.row).collect::<Vec<_>>(), [1, 2, 7]);
    }

    #[test]
    fn rows_that_say_nothing_lift_no_threshold() {
        let mut candidates = Candidates::new(1, f64::NEG_INFINITY);
        let (lower, upper) = (f64::NEG_INFINITY, f64::INFINITY);
        candidates.push(Candidate { shard: 0, row: 0, lower, upper, is_exact: false });
        assert_eq!(candidates.threshold(), f64::NEG_INFINITY);
    }
}
