//! Connected components: a forest of parents with path halving.

/// Records and their clusters.
pub(super) struct Clusters {
    parents: Vec<u32>,
}

impl Clusters {
    pub(super) fn new(n_records: usize) -> Self {
        Self { parents: (0..n_records as u32).collect() }
    }

    /// The record that stands for the cluster: its first one.
    pub(super) fn root(&mut self, record: u32) -> u32 {
        let mut at = record;
        while self.parents[at as usize] != at {
            let grandparent = self.parents[self.parents[at as usize] as usize];
            self.parents[at as usize] = grandparent;
            at = grandparent;
        }
        at
    }

    /// Makes the clusters of two records one.
    pub(super) fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }

    /// Clusters of two and more records, by their first ones.
    pub(super) fn groups(&mut self) -> Vec<Vec<u32>> {
        let mut groups: std::collections::BTreeMap<u32, Vec<u32>> = std::collections::BTreeMap::new();
        for record in 0..self.parents.len() as u32 {
            let root = self.root(record);
            if root != record {
                groups.entry(root).or_insert_with(|| vec![root]).push(record);
            }
        }
        groups.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_one_cluster() {
        let mut clusters = Clusters::new(7);
        for (a, b) in [(5, 3), (3, 1), (2, 6), (1, 5)] {
            clusters.join(a, b);
        }
        assert_eq!(clusters.groups(), [vec![1, 3, 5], vec![2, 6]]);
    }
}
