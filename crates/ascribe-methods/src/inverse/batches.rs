//! Seeded batches of training examples: an epoch visits every example once, in an order that the seed names.

use ascribe_linalg::Stream;

/// Batches without end. The same seed, name and sizes give the same batches, whatever they are used for.
pub(super) struct Batches {
    order: Vec<u32>,
    size: usize,
    next: usize,
    stream: Stream,
}

impl Batches {
    /// Batches of `size` out of `n` examples; all examples, always, if `size` is 0 or not below `n`.
    pub fn new(n: usize, size: usize, seed: u64, name: &str) -> Self {
        let size = if size == 0 || size >= n { n } else { size };
        Self { order: (0..n as u32).collect(), size, next: n, stream: Stream::new(seed, name) }
    }

    /// True when every batch is the whole set.
    pub fn is_full(&self) -> bool {
        self.size == self.order.len()
    }

    /// The next batch in rising order, `None` for all examples. What does not fill a batch at the end of an epoch waits for no
    /// one: the next epoch starts.
    pub fn next(&mut self) -> Option<Vec<u32>> {
        if self.is_full() {
            return None;
        }
        if self.next + self.size > self.order.len() {
            self.stream.shuffle(&mut self.order);
            self.next = 0;
        }
        let mut batch = self.order[self.next..self.next + self.size].to_vec();
        self.next += self.size;
        batch.sort_unstable();
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_each_example_once() {
        let mut batches = Batches::new(12, 4, 3, "t");
        for _ in 0..3 {
            let mut seen: Vec<u32> = (0..3).flat_map(|_| batches.next().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..12).collect::<Vec<_>>());
        }
        let (mut a, mut b) = (Batches::new(10, 3, 3, "t"), Batches::new(10, 3, 4, "t"));
        assert_ne!((0..6).map(|_| a.next()).collect::<Vec<_>>(), (0..6).map(|_| b.next()).collect::<Vec<_>>());
        assert!(Batches::new(5, 5, 1, "t").next().is_none() && Batches::new(5, 0, 1, "t").next().is_none());
    }
}
