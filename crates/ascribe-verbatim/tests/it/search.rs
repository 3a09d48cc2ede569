//! Spans, counts, places and runs against looking everywhere.

use ascribe_core::RecordId;
use ascribe_linalg::Stream;
use ascribe_methods::controls::verbatim::{Measure, dataset_scores, score};
use ascribe_verbatim::{FindOptions, Found, Rank, VerbatimError, VerbatimIndex};
use proptest::prelude::*;

use crate::common::{Datasets, build, datasets, places, records, settings, spans};

fn all(min_tokens: usize) -> FindOptions {
    FindOptions { min_tokens, max_occurrences: None, ..FindOptions::default() }
}

fn check(index: &VerbatimIndex, data: &Datasets, query: &[u32], min_tokens: usize) -> Found {
    let found = index.find(query, &all(min_tokens)).unwrap();
    let mut bounds: Vec<(usize, usize)> = found.spans.iter().map(|s| (s.start, s.end)).collect();
    bounds.sort_unstable();
    assert_eq!(bounds, spans(data, query, min_tokens), "{query:?} in {data:?}");
    assert_eq!((found.n_spans, found.tokens), (bounds.len(), query.len()));
    let in_a_span = |at: &usize| bounds.iter().any(|(start, end)| (start..end).contains(&at));
    assert_eq!(found.covered, (0..query.len()).filter(in_a_span).count());
    for span in &found.spans {
        let expected = places(data, &query[span.start..span.end]);
        assert_eq!(span.occurrences, expected);
        assert_eq!(span.count, expected.len() as u64);
        let mut holders: Vec<RecordId> = expected.iter().map(|place| place.record).collect();
        holders.dedup();
        assert_eq!(span.records, holders.len() as u64);
        for dataset in &span.datasets {
            let of = |record: RecordId| record.dataset == dataset.dataset;
            assert_eq!(dataset.count, expected.iter().filter(|place| of(place.record)).count() as u64);
            assert_eq!(dataset.records, holders.iter().filter(|record| of(**record)).count() as u64);
        }
        assert_eq!(span.datasets.iter().map(|d| d.count).sum::<u64>(), span.count);
        let total: usize = records(data).map(|(.., tokens)| tokens.len()).sum();
        let share = |token: &u32| {
            let n = records(data).flat_map(|(.., tokens)| tokens).filter(|t| *t == token).count();
            (n as f64 / total as f64).ln()
        };
        let expected: f64 = query[span.start..span.end].iter().map(share).sum();
        assert_eq!(span.unigram_log_probability, expected);
    }
    assert!(found.spans.is_sorted_by(|a, b| a.unigram_log_probability <= b.unigram_log_probability));
    found
}

#[test]
fn spans_are_those_of_trying_all_whatever_the_shards() {
    let mut stream = Stream::new(3, "verbatim-search");
    for (vocab_size, letters) in [(4, 2), (4, 4), (70_000, 3)] {
        let data = datasets(&mut stream, 3, 12, letters);
        let queries: Vec<Vec<u32>> = (0..8).map(|i| (0..3 * i).map(|_| stream.below(letters + 1)).collect()).collect();
        let mut first: Option<Vec<Found>> = None;
        for shard_tokens in [1, 40, 1 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let index = build(dir.path(), &data, settings(vocab_size, shard_tokens));
            assert_eq!(index.n_records(), 24);
            assert_eq!(index.record_counts(), [12, 0, 12]);
            assert_eq!(index.n_tokens() as usize, records(&data).map(|(.., t)| t.len()).sum::<usize>());
            let found: Vec<Found> =
                queries.iter().flat_map(|query| [1, 3].map(|min| check(&index, &data, query, min))).collect();
            let expected = first.get_or_insert_with(|| found.clone());
            assert_eq!(*expected, found, "{shard_tokens} tokens a shard");
        }
    }
}

#[test]
fn a_match_never_crosses_records_and_the_query_may_hold_anything() {
    let dir = tempfile::tempdir().unwrap();
    let data = vec![vec![vec![1, 2, 3], vec![4, 5, 6], vec![]]];
    let index = build(dir.path(), &data, settings(10, 1 << 20));
    let found = check(&index, &data, &[2, 3, 4, 5], 1);
    assert_eq!(found.spans.iter().map(|s| (s.start, s.end)).collect::<Vec<_>>().len(), 2);
    for query in [vec![], vec![9], vec![10, 11, u32::MAX], vec![u32::MAX - 1; 3], vec![0, 0]] {
        assert!(index.find(&query, &all(1)).unwrap().spans.is_empty(), "{query:?}");
        assert!(index.longest_runs(&query, 1).unwrap().is_empty());
    }
    assert!(matches!(index.find(&[1], &all(0)), Err(VerbatimError::Setting { setting: "min_tokens", .. })));
    assert!(index.longest_runs(&[1], 0).is_err());
}

#[test]
fn ranks_and_cuts() {
    let dir = tempfile::tempdir().unwrap();
    // `7 8` once, of frequent tokens; `1 2` twice, of rare ones.
    let data = vec![vec![vec![1, 2], vec![1, 2], vec![7, 8], vec![8, 7, 7, 7, 0, 8, 0, 8, 0, 8]]];
    let index = build(dir.path(), &data, settings(10, 1 << 20));
    let query = [1, 2, 9, 7, 8];
    let starts =
        |options: &FindOptions| index.find(&query, options).unwrap().spans.iter().map(|s| s.start).collect::<Vec<_>>();
    assert_eq!(starts(&all(2)), [0, 3]);
    assert_eq!(starts(&FindOptions { rank: Rank::Count, ..all(2) }), [3, 0]);
    let cut = FindOptions { max_spans: Some(1), max_occurrences: Some(1), ..all(2) };
    let found = index.find(&query, &cut).unwrap();
    assert_eq!((found.spans.len(), found.n_spans, found.covered), (1, 2, 4));
    let span = &found.spans[0];
    assert_eq!((span.occurrences.len(), span.count, span.records), (1, 2, 2));
}

/// The method's scores are the control's, by another route: an automaton of the query through which every record passes.
#[test]
fn runs_are_those_of_the_control() {
    let mut stream = Stream::new(4, "verbatim-runs");
    let data = datasets(&mut stream, 3, 15, 3);
    let (ids, examples): (Vec<RecordId>, Vec<&Vec<u32>>) = records(&data).map(|(id, _, t)| (id, t)).unzip();
    let of: Vec<u32> = ids.iter().map(|id| id.dataset).collect();
    for shard_tokens in [30, 1 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let index = build(dir.path(), &data, settings(3, shard_tokens));
        for len in [0, 1, 5, 30] {
            let query: Vec<u32> = (0..len).map(|_| stream.below(3)).collect();
            let expected = score(&[&query], &examples, Measure::LongestRun).unwrap();
            let by_dataset = dataset_scores(&[&query], &examples, &of, 3, Measure::LongestRun).unwrap();
            for min_tokens in [1, 4] {
                let runs = index.longest_runs(&query, min_tokens).unwrap();
                assert!(runs.is_sorted());
                let found = |id: RecordId| runs.iter().find(|run| run.record == id).map_or(0, |run| run.tokens);
                for (id, &expected) in ids.iter().zip(expected.row(0)) {
                    let kept = if expected < min_tokens as f32 { 0.0 } else { expected };
                    assert_eq!(found(*id) as f32, kept, "{query:?}, {id:?}");
                }
                for d in 0..3 {
                    let best = runs.iter().filter(|r| r.record.dataset == d).map(|r| r.tokens).max().unwrap_or(0);
                    let expected = by_dataset[(0, d as usize)];
                    assert_eq!(f64::from(best), if expected < min_tokens as f64 { 0.0 } else { expected });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_records_any_query(
        data in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u32..4, 0..14), 0..6), 1..4),
        query in prop::collection::vec(0u32..5, 0..18),
        min_tokens in 1usize..4,
        shard_tokens in 1u32..60,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let index = build(dir.path(), &data, settings(4, shard_tokens));
        check(&index, &data, &query, min_tokens);
    }
}

#[test]
fn threads_do_not_change_the_answer() {
    let mut stream = Stream::new(6, "verbatim-threads");
    let data = datasets(&mut stream, 4, 40, 4);
    let query: Vec<u32> = (0..200).map(|_| stream.below(4)).collect();
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path(), &data, settings(4, 100));
    let find = || (index.find(&query, &all(2)).unwrap(), index.longest_runs(&query, 2).unwrap());
    let whole = find();
    for n in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        assert_eq!(pool.install(find), whole, "{n} threads");
    }
}
