//! The longest run that each record shares with a response: what method `verbatim` scores with.
//!
//! The same number as `LongestRun` of the control
//! `methods::controls::verbatim`, which passes every record through an automaton of the query; here only the records that
//! share a run are looked at. Tests hold both against each other.

use std::collections::BTreeMap;

use ascribe_core::RecordId;
use ascribe_store::StoreError;
use rayon::prelude::*;

use crate::error::VerbatimError;
use crate::find::check_min_tokens;
use crate::index::VerbatimIndex;
use crate::matching::symbols;
use crate::shard::Shard;

/// The longest run of one record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Run {
    /// The record.
    pub record: RecordId,
    /// Tokens.
    pub tokens: u32,
}

impl VerbatimIndex {
    /// For every record that shares a run of at least `min_tokens` tokens with `query`: the length of the longest, in the
    /// order of the records.
    ///
    /// Cost: the places where a run of `min_tokens` tokens of the query stands, times the length by which it goes on there.
    ///
    /// # Errors
    /// [`VerbatimError::Setting`] for `min_tokens = 0`; [`StoreError`] where a page that is looked at has changed.
    pub fn longest_runs(&self, query: &[u32], min_tokens: usize) -> Result<Vec<Run>, VerbatimError> {
        check_min_tokens(min_tokens)?;
        let symbols = symbols(query);
        let per_shard: Vec<Result<Vec<Run>, StoreError>> =
            self.shards.par_iter().map(|shard| runs(shard, &symbols, min_tokens)).collect();
        let mut all = Vec::new();
        for runs in per_shard {
            all.extend(runs?);
        }
        Ok(all)
    }
}

fn runs(shard: &Shard, symbols: &[u32], min_tokens: usize) -> Result<Vec<Run>, StoreError> {
    let mut best: BTreeMap<usize, usize> = BTreeMap::new();
    for start in 0..(symbols.len() + 1).saturating_sub(min_tokens) {
        for number in shard.range(&symbols[start..start + min_tokens])? {
            let position = shard.suffix(number)?;
            // A run that goes on to the left was met one token earlier.
            if start > 0 && position > 0 && shard.symbol(position - 1)? == symbols[start - 1] {
                continue;
            }
            let (len, _) = shard.compare(position, &symbols[start..], min_tokens)?;
            let (record, _) = shard.record_at(position)?;
            let longest = best.entry(record).or_default();
            *longest = len.max(*longest);
        }
    }
    Ok(best.into_iter().map(|(record, len)| Run { record: shard.record_id(record), tokens: len as u32 }).collect())
}
