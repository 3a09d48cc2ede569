//! Which records are held out. Depends on records and seed alone, not on the tokenizer, so that the tokenizer can be
//! learnt from training records only.

use ascribe_registry::Record;

/// Held-out rows of one dataset, grouped: each group is a run of neighbouring records that makes one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOut {
    /// Runs of rows, in file order, disjoint.
    pub groups: Vec<std::ops::Range<u32>>,
}

/// Bytes of text that make a window of `seq_len` tokens even when a token stands for five bytes.
pub const BYTES_PER_TOKEN_MAX: usize = 5;

impl HeldOut {
    /// Chooses up to `n_groups` runs at even distances, each with at least `seq_len ·` [`BYTES_PER_TOKEN_MAX`] bytes.
    ///
    /// Even distances rather than random draws: held-out text then covers the whole dataset, and adding records at the
    /// end moves few groups. Returns fewer groups than asked for when the dataset is too small.
    pub fn choose(records: &[Record], n_groups: usize, seq_len: usize) -> Self {
        let need = seq_len * BYTES_PER_TOKEN_MAX;
        let total: usize = records.iter().map(|r| r.text.len()).sum();
        let mut groups = Vec::with_capacity(n_groups);
        let (mut row, mut seen) = (0usize, 0usize);
        for g in 0..n_groups {
            // The group's start: first row at or past its share of the bytes, at mid-stride.
            let target = total * (2 * g + 1) / (2 * n_groups);
            while row < records.len() && seen + records[row].text.len() <= target {
                seen += records[row].text.len();
                row += 1;
            }
            let (start, mut bytes) = (row, 0);
            while row < records.len() && bytes < need {
                bytes += records[row].text.len();
                seen += records[row].text.len();
                row += 1;
            }
            if bytes < need {
                break;
            }
            groups.push(start as u32..row as u32);
        }
        Self { groups }
    }

    /// True when `row` is held out.
    pub fn contains(&self, row: u32) -> bool {
        self.groups.iter().any(|g| g.contains(&row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(n: u32, len: usize) -> Vec<Record> {
        (0..n).map(|row| Record { row, id: format!("r{row}"), text: "x".repeat(len) }).collect()
    }

    #[test]
    fn groups_are_disjoint_and_large_enough() {
        let records = records(1000, 37);
        let held = HeldOut::choose(&records, 10, 32);
        assert_eq!(held.groups.len(), 10);
        for pair in held.groups.windows(2) {
            assert!(pair[0].end <= pair[1].start);
        }
        for group in &held.groups {
            assert!(group.len() * 37 >= 32 * BYTES_PER_TOKEN_MAX);
        }
        assert!(held.contains(held.groups[3].start) && !held.contains(0));
    }

    #[test]
    fn a_tiny_dataset_gives_fewer_groups() {
        assert!(HeldOut::choose(&records(3, 10), 4, 32).groups.is_empty());
    }
}
