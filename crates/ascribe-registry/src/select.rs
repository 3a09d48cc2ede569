//! Which records of larger sources make up a registry: a table and a deterministic rule. Never files.
//!
//! Per dataset: records outside the length bounds and repeated texts are left out. Records of chosen *pairs* (an entry
//! and the entry of another dataset that was taken from it) are always in, so that overlap between owners is real. The
//! rest is cut into runs of `run_records` neighbours; walking them in order, a run is kept when the bytes kept so far
//! stay at or below the budget's share of the bytes seen so far. The result is spread evenly over the source, keeps
//! neighbours together, and ends just below the budget.

use std::collections::HashSet;

use ascribe_core::Digest;
use serde::Deserialize;

use crate::manifest::Source;

/// Version of the selection table that this code reads.
pub const SELECTION_FORMAT_VERSION: u32 = 1;

/// The table: what a registry is made of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// [`SELECTION_FORMAT_VERSION`].
    pub format_version: u32,
    /// Start of validity of every licence, Unix seconds.
    pub valid_from_unix_s: u64,
    /// Permitted uses of every licence, RSL tokens.
    pub permits: Vec<String>,
    /// Prohibited uses of every licence, RSL tokens.
    pub prohibits: Vec<String>,
    /// Pairs that must be in.
    pub pairs: Option<PairRule>,
    /// The datasets, in order of registration.
    #[serde(rename = "dataset")]
    pub datasets: Vec<DatasetRule>,
}

/// Pairs of an entry and its copy in another dataset.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairRule {
    /// JSON lines with `original`, `derived` and `copied_share`, relative to the source folder.
    pub file: String,
    /// Dataset of the originals.
    pub original: String,
    /// Dataset of the copies.
    pub derived: String,
    /// Pairs to choose, evenly over those that qualify.
    pub n_pairs: usize,
    /// Least part of the copy that is taken word for word, in `[0, 1]`.
    pub min_copied_share: f64,
}

/// One dataset of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetRule {
    /// Name; also of the source, `corpora/NAME.jsonl`.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// Owner.
    pub owner: String,
    /// Language tag.
    pub language: String,
    /// SPDX expression.
    pub licence: String,
    /// Who is paid.
    pub payees: Vec<PartyShare>,
    /// Origin.
    pub source: Source,
    /// What a reader should know.
    pub notes: String,
    /// SHA-256 of the source file.
    pub source_sha256: Digest,
    /// Most bytes of text.
    pub budget_bytes: u64,
    /// Neighbours that are kept or left out together.
    pub run_records: usize,
    /// Shortest text.
    pub min_text_bytes: usize,
    /// Longest text.
    pub max_text_bytes: usize,
}

/// A demo payee: the account is the address of the party's demo key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartyShare {
    /// Party.
    pub party: String,
    /// Share in parts per million.
    pub share_ppm: u32,
}

/// One line of a pair file; what else it says is not needed here.
#[derive(Clone, Debug, Deserialize)]
pub struct Pair {
    /// Record id of the original.
    pub original: String,
    /// Record id of the copy.
    pub derived: String,
    /// Part of the copy that is taken word for word.
    pub copied_share: f64,
}

/// One line of a source; what else it says is not needed here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SourceRecord {
    /// Record id.
    pub id: String,
    /// Text.
    pub text: String,
}

/// Records within the length bounds, each text once.
pub fn eligible(rule: &DatasetRule, source: Vec<SourceRecord>) -> Vec<SourceRecord> {
    let mut seen = HashSet::new();
    let bounds = rule.min_text_bytes..=rule.max_text_bytes;
    source
        .into_iter()
        .filter(|r| bounds.contains(&r.text.len()) && seen.insert(Digest::of(r.text.as_bytes())))
        .collect()
}

/// Ids of both sides of the chosen pairs: `n_pairs` at even steps among those whose sides are both eligible.
pub fn choose_pairs(
    rule: &PairRule,
    pairs: &[Pair],
    originals: &[SourceRecord],
    derived: &[SourceRecord],
) -> HashSet<String> {
    let ids = |records: &[SourceRecord]| records.iter().map(|record| record.id.clone()).collect::<HashSet<_>>();
    let (originals, derived) = (ids(originals), ids(derived));
    let good: Vec<&Pair> = pairs
        .iter()
        .filter(|pair| pair.copied_share >= rule.min_copied_share)
        .filter(|pair| originals.contains(&pair.original) && derived.contains(&pair.derived))
        .collect();
    let n = rule.n_pairs.min(good.len());
    let chosen = (0..n).map(|i| good[i * good.len() / n]);
    chosen.flat_map(|pair| [pair.original.clone(), pair.derived.clone()]).collect()
}

/// The records that make up a dataset, in source order.
pub fn select(rule: &DatasetRule, eligible: Vec<SourceRecord>, forced: &HashSet<String>) -> Vec<SourceRecord> {
    let len = |record: &SourceRecord| record.text.len() as u64;
    let is_forced = |record: &SourceRecord| forced.contains(&record.id);
    let forced_bytes: u64 = eligible.iter().filter(|record| is_forced(record)).map(len).sum();
    let budget = rule.budget_bytes.saturating_sub(forced_bytes);
    let rest: Vec<usize> = (0..eligible.len()).filter(|i| !is_forced(&eligible[*i])).collect();
    let total: u64 = rest.iter().map(|i| len(&eligible[*i])).sum();
    let mut keep: Vec<bool> = eligible.iter().map(is_forced).collect();
    let (mut kept, mut seen) = (0u64, 0u64);
    for run in rest.chunks(rule.run_records.max(1)) {
        let run_bytes: u64 = run.iter().map(|i| len(&eligible[*i])).sum();
        seen += run_bytes;
        // Products of two byte counts pass 2^64 for large sources.
        let allowed = u128::from(budget) * u128::from(seen) / u128::from(total.max(1));
        if u128::from(kept + run_bytes) <= allowed {
            kept += run_bytes;
            run.iter().for_each(|i| keep[*i] = true);
        }
    }
    eligible.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(record, _)| record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(budget_bytes: u64, run_records: usize) -> DatasetRule {
        DatasetRule {
            name: "n".into(),
            title: "t".into(),
            owner: "o".into(),
            language: "en".into(),
            licence: "MIT".into(),
            payees: vec![],
            source: Source { registry: "deb".into(), package: "p".into(), version: "1".into() },
            notes: String::new(),
            source_sha256: Digest::default(),
            budget_bytes,
            run_records,
            min_text_bytes: 2,
            max_text_bytes: 10,
        }
    }

    fn records(texts: &[&str]) -> Vec<SourceRecord> {
        texts.iter().enumerate().map(|(i, text)| SourceRecord { id: i.to_string(), text: (*text).to_owned() }).collect()
    }

    fn ids(records: &[SourceRecord]) -> Vec<&str> {
        records.iter().map(|record| record.id.as_str()).collect()
    }

    #[test]
    fn bounds_and_repeats() {
        let kept = eligible(&rule(100, 1), records(&["aa", "b", "aa", "cccccccccccc", "dd"]));
        assert_eq!(ids(&kept), ["0", "4"]);
    }

    #[test]
    fn every_second_of_equal_records_by_hand() {
        let source = records(&["aa", "bb", "cc", "dd", "ee", "ff"]);
        // Budget 6 of 12 bytes: after each record half of the bytes seen may be kept.
        assert_eq!(ids(&select(&rule(6, 1), source.clone(), &HashSet::new())), ["1", "3", "5"]);
        // Runs of two: pairs stay together, and only one of three fits without passing its share.
        assert_eq!(ids(&select(&rule(6, 2), source.clone(), &HashSet::new())), ["2", "3"]);
        // A forced record is paid from the budget first.
        assert_eq!(ids(&select(&rule(6, 1), source, &HashSet::from(["0".to_owned()]))), ["0", "3", "5"]);
    }

    #[test]
    fn pairs_need_both_sides_and_step_evenly() {
        let all = records(&["aa", "bb", "cc", "dd", "ee"]);
        let pair = |id: &str, copied_share| Pair { original: id.into(), derived: id.into(), copied_share };
        let pairs = [pair("0", 0.9), pair("1", 0.1), pair("2", 0.5), pair("9", 1.0), pair("3", 0.7), pair("4", 0.8)];
        let rule = PairRule {
            file: String::new(),
            original: "a".into(),
            derived: "b".into(),
            n_pairs: 2,
            min_copied_share: 0.5,
        };
        let chosen = choose_pairs(&rule, &pairs, &all, &all);
        assert_eq!(chosen, HashSet::from(["0".to_owned(), "3".to_owned()]));
    }
}
