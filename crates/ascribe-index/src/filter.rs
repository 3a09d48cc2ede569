//! Which rows a search may name: some datasets, and all but the deleted.
//!
//! Owners and licences are sets of datasets by the time they come here: whoever knows a registry turns the one into the
//! other. A filter never changes a score, it only takes rows out of the ranking.

use std::collections::BTreeSet;

use ascribe_core::ExampleId;

/// Rows that a search may find. [`Filter::default`] allows every row.
///
/// ```
/// use ascribe_core::ExampleId;
/// use ascribe_index::Filter;
///
/// let filter = Filter::datasets([2, 5]).without([ExampleId { dataset: 5, idx: 1 }]);
/// assert!(filter.allows(ExampleId { dataset: 5, idx: 0 }));
/// assert!(!filter.allows(ExampleId { dataset: 5, idx: 1 }) && !filter.allows(ExampleId { dataset: 3, idx: 0 }));
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    datasets: Option<BTreeSet<u32>>,
    deleted: BTreeSet<ExampleId>,
}

impl Filter {
    /// Rows of these datasets (ordinals in the corpus) only. Ordinals that no row has are no error: nothing is found there.
    pub fn datasets(ordinals: impl IntoIterator<Item = u32>) -> Self {
        Self { datasets: Some(ordinals.into_iter().collect()), deleted: BTreeSet::new() }
    }

    /// The same without these examples: tombstones.
    #[must_use]
    pub fn without(mut self, ids: impl IntoIterator<Item = ExampleId>) -> Self {
        self.deleted.extend(ids);
        self
    }

    /// True if `id` may be found. Cost: logarithmic in the sizes of the two sets.
    pub fn allows(&self, id: ExampleId) -> bool {
        self.datasets.as_ref().is_none_or(|set| set.contains(&id.dataset)) && !self.deleted.contains(&id)
    }

    /// True if every row may be found, so that nobody need ask.
    pub fn is_all(&self) -> bool {
        self.datasets.is_none() && self.deleted.is_empty()
    }

    /// The datasets that it keeps to, ascending; none if it keeps to none in particular.
    pub fn dataset_ordinals(&self) -> Option<impl Iterator<Item = u32> + '_> {
        self.datasets.as_ref().map(|set| set.iter().copied())
    }

    /// The deleted examples, ascending.
    pub fn deleted(&self) -> impl Iterator<Item = ExampleId> + '_ {
        self.deleted.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed() {
        let id = |dataset, idx| ExampleId { dataset, idx };
        assert!(Filter::default().is_all() && Filter::default().allows(id(7, 7)));
        let none = Filter::datasets([]);
        assert!(!none.is_all() && !none.allows(id(0, 0)));
        let gone = Filter::default().without([id(1, 2)]);
        assert!(!gone.is_all() && !gone.allows(id(1, 2)) && gone.allows(id(1, 3)));
        assert!(gone.dataset_ordinals().is_none() && gone.deleted().eq([id(1, 2)]));
        assert!(none.dataset_ordinals().is_some_and(|mut all| all.next().is_none()));
    }
}
