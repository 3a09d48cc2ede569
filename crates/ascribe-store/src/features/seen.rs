//! The ids that a store has, so that none comes twice.

use ascribe_core::ExampleId;
use foldhash::{HashMap, HashMapExt};

/// Ids of one entry: those that differ in their last six digits.
const DIGITS: u32 = u64::BITS.trailing_zeros();

/// A set of ids. The rows of a dataset are mostly numbered without gaps, so 64 of them are one entry; ids far apart take one each.
#[derive(Debug)]
pub(super) struct Seen(HashMap<u64, u64>);

impl Seen {
    pub fn new() -> Self {
        Self(HashMap::new())
    }

    /// True if it is new.
    pub fn insert(&mut self, id: u64) -> bool {
        let bits = self.0.entry(id >> DIGITS).or_default();
        let is_new = *bits & bit(id) == 0;
        *bits |= bit(id);
        is_new
    }

    /// Takes all of `ids`, or, if one of them is there already or stands twice among them, none: the place of the first such.
    pub fn insert_all(&mut self, ids: &[ExampleId]) -> Result<(), usize> {
        let Some(bad) = ids.iter().position(|id| !self.insert(id.to_u64())) else { return Ok(()) };
        self.remove_all(&ids[..bad]);
        Err(bad)
    }

    /// Takes back what [`Seen::insert_all`] took.
    pub fn remove_all(&mut self, ids: &[ExampleId]) {
        for id in ids.iter().map(|id| id.to_u64()) {
            if let Some(bits) = self.0.get_mut(&(id >> DIGITS)) {
                *bits &= !bit(id);
            }
        }
    }

    pub fn extend(&mut self, ids: impl IntoIterator<Item = u64>) {
        ids.into_iter().for_each(|id| {
            self.insert(id);
        });
    }
}

fn bit(id: u64) -> u64 {
    1 << (id % u64::from(u64::BITS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Seen {
        fn contains(&self, id: u64) -> bool {
            self.0.get(&(id >> DIGITS)).is_some_and(|bits| bits & bit(id) != 0)
        }
    }

    fn ids(numbers: &[u64]) -> Vec<ExampleId> {
        numbers.iter().map(|&n| ExampleId::from_u64(n)).collect()
    }

    #[test]
    fn all_or_none() {
        let mut seen = Seen::new();
        assert_eq!(seen.insert_all(&ids(&[3, 64, u64::MAX, 0])), Ok(()));
        assert_eq!(seen.insert_all(&ids(&[1, 2, 64, 5])), Err(2));
        assert_eq!(seen.insert_all(&ids(&[7, 8, 9, 8])), Err(3), "twice among them");
        assert!([3, 64, u64::MAX, 0].into_iter().all(|id| seen.contains(id)));
        assert!(![1, 2, 5, 7, 8, 9, 65, 1 << 32].into_iter().any(|id| seen.contains(id)));
        seen.remove_all(&ids(&[64, 0]));
        assert_eq!([0, 3, 64, u64::MAX].map(|id| seen.contains(id)), [false, true, false, true]);
    }

    proptest! {
        #[test]
        fn as_a_plain_set(numbers in prop::collection::vec(prop::collection::vec(0u64..400, 0..20), 0..30)) {
            let (mut seen, mut plain) = (Seen::new(), std::collections::BTreeSet::new());
            for block in numbers.iter().map(|block| ids(block)) {
                let mut with: std::collections::BTreeSet<u64> = plain.clone();
                let bad = block.iter().position(|id| !with.insert(id.to_u64()));
                prop_assert_eq!(seen.insert_all(&block), bad.map_or(Ok(()), Err));
                if bad.is_none() {
                    plain = with;
                }
                prop_assert!((0..400).all(|id| seen.contains(id) == plain.contains(&id)));
            }
        }
    }
}
