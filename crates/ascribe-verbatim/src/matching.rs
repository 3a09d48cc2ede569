//! Binary search among the sorted suffixes of one shard.

use std::cmp::Ordering;
use std::ops::Range;

use ascribe_store::StoreError;

use crate::shard::Shard;

/// A query as the shards write it. A token beyond every vocabulary stays so: it matches nothing.
pub fn symbols(query: &[u32]) -> Vec<u32> {
    query.iter().map(|&token| token.saturating_add(1)).collect()
}

impl Shard {
    /// Symbols that the text from `position` on and `query` have in common, of which `known` are known already, and on
    /// which side of the query the text lies (equal if the whole query stands there).
    pub fn compare(&self, position: usize, query: &[u32], known: usize) -> Result<(usize, Ordering), StoreError> {
        let mut common = known;
        while common < query.len() {
            let at = position + common;
            if at >= self.len() {
                return Ok((common, Ordering::Less));
            }
            match self.symbol(at)?.cmp(&query[common]) {
                Ordering::Equal => common += 1,
                side => return Ok((common, side)),
            }
        }
        Ok((common, Ordering::Equal))
    }

    /// Length of the longest beginning of `query` (symbols) that stands in this shard.
    ///
    /// The best match is a neighbour of the query's place among the suffixes, and the search compares with both. All suffixes
    /// between two that were compared share what those have in common with the query, so that much is skipped (Manber &
    /// Myers, SIAM J. Comput. 22, 1993).
    pub fn longest(&self, query: &[u32]) -> Result<usize, StoreError> {
        let Some(&first) = query.first() else { return Ok(0) };
        let Range { start: mut low, end: mut high } = self.beginning_with(first);
        if low == high {
            return Ok(0);
        }
        let (mut best, mut common_low, mut common_high) = (1, 1, 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let (common, side) = self.compare(self.suffix(middle)?, query, common_low.min(common_high))?;
            best = best.max(common);
            match side {
                Ordering::Equal => break,
                Ordering::Less => (low, common_low) = (middle + 1, common),
                Ordering::Greater => (high, common_high) = (middle, common),
            }
        }
        Ok(best)
    }

    /// Numbers of the suffixes that begin with `prefix` (symbols, at least one).
    pub fn range(&self, prefix: &[u32]) -> Result<Range<usize>, StoreError> {
        let Some(&first) = prefix.first() else { return Ok(0..0) };
        let all = self.beginning_with(first);
        let start = self.bound(prefix, all.clone(), Ordering::Less)?;
        let end = self.bound(prefix, start..all.end, Ordering::Equal)?;
        Ok(start..end)
    }

    /// First suffix in `within` that lies above `up_to`, against the prefix.
    fn bound(&self, prefix: &[u32], within: Range<usize>, up_to: Ordering) -> Result<usize, StoreError> {
        let Range { start: mut low, end: mut high } = within;
        let (mut common_low, mut common_high) = (1, 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let (common, side) = self.compare(self.suffix(middle)?, prefix, common_low.min(common_high))?;
            if side <= up_to {
                (low, common_low) = (middle + 1, common);
            } else {
                (high, common_high) = (middle, common);
            }
        }
        Ok(low)
    }
}
