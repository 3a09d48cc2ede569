//! Records with repeats, and the plain way to search them.

use std::path::Path;

use ascribe_core::{Digest, RecordId};
use ascribe_linalg::Stream;
use ascribe_verbatim::{IndexSettings, Occurrence, Source, VerbatimIndex, VerbatimWriter};

/// Datasets of records of tokens.
pub type Datasets = Vec<Vec<Vec<u32>>>;

pub fn settings(vocab_size: u32, shard_tokens: u32) -> IndexSettings {
    IndexSettings { tokenizer: Digest::of(b"test"), vocab_size, shard_tokens }
}

pub fn sources(n: usize) -> Vec<Source> {
    let source = |i: usize| Source { name: format!("d{i}"), id: Digest::of(&[i as u8]), path: format!("d{i}.jsonl") };
    (0..n).map(source).collect()
}

/// Records of few different tokens: many repeats. Some are empty, one dataset has none.
pub fn datasets(stream: &mut Stream, n_datasets: u32, n_records: u32, letters: u32) -> Datasets {
    let mut record = |_| {
        let len = stream.below(25);
        (0..len).map(|_| stream.below(letters)).collect()
    };
    (0..n_datasets).map(|d| (0..if d == 1 { 0 } else { n_records }).map(&mut record).collect()).collect()
}

/// Every record and the place of its line, which the tests make up.
pub fn records(datasets: &Datasets) -> impl Iterator<Item = (RecordId, u64, &Vec<u32>)> {
    let id = |d: usize, r: usize| RecordId { dataset: d as u32, row: r as u32 };
    datasets
        .iter()
        .enumerate()
        .flat_map(move |(d, all)| all.iter().enumerate().map(move |(r, tokens)| (id(d, r), 1000 * r as u64, tokens)))
}

/// Builds an index, from the record on that it still needs.
pub fn build(dir: &Path, datasets: &Datasets, settings: IndexSettings) -> VerbatimIndex {
    let mut writer = VerbatimWriter::open(dir, settings, sources(datasets.len())).unwrap();
    if !writer.is_complete() {
        let next = writer.next_record();
        for (id, offset, tokens) in records(datasets).filter(|(id, ..)| *id >= next) {
            writer.push(id, offset, tokens).unwrap();
        }
        writer.finish().unwrap();
    }
    VerbatimIndex::open(dir).unwrap()
}

/// All places of a run, by looking everywhere.
pub fn places(datasets: &Datasets, run: &[u32]) -> Vec<Occurrence> {
    let mut found = Vec::new();
    for (record, source_offset, tokens) in records(datasets) {
        for (at, window) in tokens.windows(run.len()).enumerate() {
            if window == run {
                found.push(Occurrence { record, token_start: at as u64, source_offset });
            }
        }
    }
    found
}

/// Maximal spans of at least `min_tokens`, by trying all.
pub fn spans(datasets: &Datasets, query: &[u32], min_tokens: usize) -> Vec<(usize, usize)> {
    let n = query.len();
    let stands = |a: usize, b: usize| b <= n && !places(datasets, &query[a..b]).is_empty();
    let mut found = Vec::new();
    for a in 0..n {
        for b in a + min_tokens..=n {
            if stands(a, b) && !stands(a, b + 1) && (a == 0 || !stands(a - 1, b)) {
                found.push((a, b));
            }
        }
    }
    found
}
