//! Spans of a response that stand in the records, rarest first.

use std::ops::Range;

use ascribe_core::RecordId;
use ascribe_store::StoreError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::VerbatimError;
use crate::index::VerbatimIndex;
use crate::matching::symbols;

/// What comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rank {
    /// The span that would be least likely if every token were drawn by its frequency in the records: long spans of rare
    /// words (OLMoTrace's order).
    #[default]
    Unigram,
    /// The span that stands there least often.
    Count,
}

/// How spans are chosen and shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FindOptions {
    /// Shortest span, in tokens, at least 1.
    pub min_tokens: usize,
    /// Order.
    pub rank: Rank,
    /// Spans that are kept, best first; `None` for all.
    pub max_spans: Option<usize>,
    /// Places that are listed for each span, in the order of the records; `None` for all. Counts are exact in any case.
    pub max_occurrences: Option<usize>,
}

impl FindOptions {
    /// Shortest span of those who name none.
    pub const MIN_TOKENS: usize = 8;
    /// Places listed by those who do not say how many.
    pub const MAX_OCCURRENCES: usize = 10;
}

impl Default for FindOptions {
    fn default() -> Self {
        Self {
            min_tokens: Self::MIN_TOKENS,
            rank: Rank::default(),
            max_spans: None,
            max_occurrences: Some(Self::MAX_OCCURRENCES),
        }
    }
}

/// Where a span stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Occurrence {
    /// The record.
    pub record: RecordId,
    /// First token, counted within the record from 0.
    pub token_start: u64,
    /// Byte of the source file at which the record's line begins.
    pub source_offset: u64,
}

/// How often a span stands in one dataset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetCount {
    /// Ordinal of the dataset.
    pub dataset: u32,
    /// Places.
    pub count: u64,
    /// Different records.
    pub records: u64,
}

/// One maximal span.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Span {
    /// First token of the response.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Places where it stands, in all records.
    pub count: u64,
    /// Different records that hold it.
    pub records: u64,
    /// Nats: the sum over its tokens of the logarithm of the token's share among all tokens of the records.
    pub unigram_log_probability: f64,
    /// Counts by dataset, ascending, zeros left out.
    pub datasets: Vec<DatasetCount>,
    /// Places, in the order of the records.
    pub occurrences: Vec<Occurrence>,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Tokens of the response.
    pub tokens: usize,
    /// Tokens of the response that lie in a span.
    pub covered: usize,
    /// Spans of the asked length before the cut to `max_spans`.
    pub n_spans: usize,
    /// Spans, rarest first.
    pub spans: Vec<Span>,
}

impl VerbatimIndex {
    /// The maximal spans of `query`. The answer depends neither on threads nor on how records are cut into shards.
    ///
    /// # Errors
    /// [`VerbatimError::Setting`] for `min_tokens = 0`; [`StoreError`] where a page that is looked at has changed.
    pub fn find(&self, query: &[u32], options: &FindOptions) -> Result<Found, VerbatimError> {
        check_min_tokens(options.min_tokens)?;
        let symbols = symbols(query);
        let longest = self.longest(&symbols)?;
        let bounds = maximal(&longest, options.min_tokens);
        let mut chosen: Vec<(Range<usize>, u64, f64)> = bounds
            .par_iter()
            .map(|span| {
                let count = self.ranges(&symbols[span.clone()])?.iter().map(|range| range.len() as u64).sum();
                Ok((span.clone(), count, self.log_probability(&query[span.clone()])))
            })
            .collect::<Result<_, StoreError>>()?;
        chosen.sort_by(|a, b| {
            let (rare, few) = (a.2.total_cmp(&b.2), a.1.cmp(&b.1));
            let order = match options.rank {
                Rank::Unigram => rare.then(few),
                Rank::Count => few.then(rare),
            };
            order.then(a.0.start.cmp(&b.0.start))
        });
        chosen.truncate(options.max_spans.unwrap_or(usize::MAX));
        let spans = chosen
            .into_par_iter()
            .map(|(span, count, log_probability)| self.span(&symbols, span, count, log_probability, options))
            .collect::<Result<_, StoreError>>()?;
        Ok(Found { tokens: query.len(), covered: covered(&bounds), n_spans: bounds.len(), spans })
    }

    /// For each position the longest run of the query that begins there and stands in some record.
    fn longest(&self, symbols: &[u32]) -> Result<Vec<usize>, StoreError> {
        let at = |start: usize| {
            let mut longest = 0;
            for shard in &self.shards {
                longest = longest.max(shard.longest(&symbols[start..])?);
            }
            Ok(longest)
        };
        // All results first, then the first error in order: a parallel collect would stop at any one of them.
        let found: Vec<Result<usize, StoreError>> = (0..symbols.len()).into_par_iter().map(at).collect();
        found.into_iter().collect()
    }

    /// Numbers of the suffixes that begin with `prefix`, in each shard.
    fn ranges(&self, prefix: &[u32]) -> Result<Vec<Range<usize>>, StoreError> {
        self.shards.iter().map(|shard| shard.range(prefix)).collect()
    }

    fn log_probability(&self, tokens: &[u32]) -> f64 {
        let total = self.n_tokens() as f64;
        tokens.iter().map(|&token| (self.token_count(token) as f64 / total).ln()).sum()
    }

    fn span(
        &self,
        symbols: &[u32],
        span: Range<usize>,
        count: u64,
        unigram_log_probability: f64,
        options: &FindOptions,
    ) -> Result<Span, StoreError> {
        let limit = options.max_occurrences.unwrap_or(usize::MAX);
        let (mut datasets, mut occurrences): (Vec<DatasetCount>, Vec<Occurrence>) = (vec![], vec![]);
        for (shard, range) in self.shards.iter().zip(self.ranges(&symbols[span.clone()])?) {
            let mut positions: Vec<usize> = range.map(|number| shard.suffix(number)).collect::<Result<_, _>>()?;
            positions.sort_unstable();
            // Positions ascend, so the record changes only when its end is passed.
            let (mut record, mut start, mut end) = (0, 0, 0);
            for position in positions {
                let is_new = position >= end;
                if is_new {
                    (record, start) = shard.record_at(position)?;
                    end = shard.record_start(record + 1)?;
                }
                let id = shard.record_id(record);
                match datasets.last_mut() {
                    Some(last) if last.dataset == id.dataset => {
                        last.count += 1;
                        last.records += u64::from(is_new);
                    }
                    _ => datasets.push(DatasetCount { dataset: id.dataset, count: 1, records: 1 }),
                }
                if occurrences.len() < limit {
                    let (token_start, source_offset) = ((position - start) as u64, shard.source_offset(record)?);
                    occurrences.push(Occurrence { record: id, token_start, source_offset });
                }
            }
        }
        let records = datasets.iter().map(|d| d.records).sum();
        let Range { start, end } = span;
        Ok(Span { start, end, count, records, unigram_log_probability, datasets, occurrences })
    }
}

/// Refuses spans of no token.
pub(crate) fn check_min_tokens(min_tokens: usize) -> Result<(), VerbatimError> {
    match min_tokens {
        0 => Err(VerbatimError::Setting { setting: "min_tokens", expected: "at least 1".into(), found: 0 }),
        _ => Ok(()),
    }
}

/// The spans that no other contains: those that end beyond every span that begins before them.
fn maximal(longest: &[usize], min_tokens: usize) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut reached = 0;
    for (start, &len) in longest.iter().enumerate() {
        let end = start + len;
        if end > reached {
            reached = end;
            if len >= min_tokens {
                spans.push(start..end);
            }
        }
    }
    spans
}

/// Positions within any of the spans, which are ordered by both ends.
fn covered(spans: &[Range<usize>]) -> usize {
    let mut reached = 0;
    spans.iter().fold(0, |total, span| {
        let new = span.end.saturating_sub(span.start.max(reached));
        reached = span.end;
        total + new
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximal_spans_by_hand() {
        // Runs from 0: 3 tokens, from 1: the rest of it, from 2: two tokens beyond it, from 4: nothing.
        assert_eq!(maximal(&[3, 2, 3, 2, 0, 1], 1), [0..3, 2..5, 5..6]);
        assert_eq!(maximal(&[3, 2, 3, 2, 0, 1], 2), [0..3, 2..5]);
        assert!(maximal(&[], 1).is_empty());
        assert_eq!(covered(&[0..3, 2..5, 7..9]), 7);
        assert_eq!(covered(&[]), 0);
    }
}
