//! The training order: which examples make which batch.

use ascribe_linalg::Stream;

/// Draws batches without replacement within an epoch.
///
/// An example's place in an epoch is decided by a key of its own (a word of the stream at the example's index), so
/// leaving out a dataset keeps the relative order of everything else. A leave-one-out retraining then differs from the
/// full run by the removed data and not by a new shuffle, which lowers the noise of the measured truth.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    members: Vec<u32>,
    epoch: u64,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler over `members` (indices of examples in the corpus) under `seed`.
    ///
    /// # Panics
    /// If `members` is empty.
    pub fn new(seed: u64, members: Vec<u32>) -> Self {
        assert!(!members.is_empty(), "training needs at least one example");
        let order = epoch_order(seed, 0, &members);
        Self { seed, members, epoch: 0, order }
    }

    /// The examples of step `step`: `batch` of them, going on into the next epoch where one ends.
    pub fn batch(&mut self, step: u64, batch: usize) -> Vec<u32> {
        let n = self.members.len() as u64;
        (0..batch as u64)
            .map(|j| {
                let at = step * batch as u64 + j;
                if at / n != self.epoch {
                    self.epoch = at / n;
                    self.order = epoch_order(self.seed, self.epoch, &self.members);
                }
                self.order[(at % n) as usize]
            })
            .collect()
    }
}

fn epoch_order(seed: u64, epoch: u64, members: &[u32]) -> Vec<u32> {
    let stream = Stream::new(seed, &format!("order/epoch/{epoch}"));
    let mut order = members.to_vec();
    order.sort_by_key(|&i| (stream.at(u64::from(i)), i));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_everything_once() {
        let mut sampler = Sampler::new(1, (0..10).collect());
        let mut seen: Vec<u32> = (0..5).flat_map(|s| sampler.batch(s, 2)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn any_step_can_be_asked_for_and_removal_keeps_the_order_of_the_rest() {
        let mut all = Sampler::new(4, (0..20).collect());
        let late = all.batch(7, 4);
        assert_eq!(Sampler::new(4, (0..20).collect()).batch(7, 4), late);
        let full: Vec<u32> = Sampler::new(4, (0..20).collect()).batch(0, 20).into_iter().filter(|i| *i >= 5).collect();
        assert_eq!(Sampler::new(4, (5..20).collect()).batch(0, 15), full);
    }
}
