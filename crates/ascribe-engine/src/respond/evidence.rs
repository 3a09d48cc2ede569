//! Records behind hits, with the texts that their licences let be shown; runs that stand word for word in the data.

use std::collections::BTreeSet;
use std::path::Path;

use ascribe_core::{ExampleId, Progress, RecordSpan};
use ascribe_corpus::corpus::Corpus;
use ascribe_index::Hit;
use ascribe_verbatim::{FindOptions, IndexSettings, Source, VerbatimIndex, VerbatimWriter};
use rayon::prelude::*;

use super::answer::{Found, Record, RespondError, SpanText, VerbatimRun};
use super::responder::Responder;
use super::rows::Tokenised;
use crate::error::EngineError;
use crate::walk::Context;

/// Shortest run that is told of.
const MIN_RUN: usize = 6;
/// Runs per answer.
const MAX_RUNS: usize = 50;
/// Sources per run.
const MAX_SOURCES: usize = 5;
/// Tokens per shard of the verbatim index.
const SHARD_TOKENS: u32 = 1 << 26;

impl Responder<'_> {
    /// A hit with its record.
    pub(super) fn found(&self, hit: &Hit) -> Found {
        let corpus = &self.material.context.corpus;
        let record = example(corpus, hit.id).map(|spans| self.record(corpus, spans));
        Found { example: hit.id, score: hit.score, record }
    }

    fn record(&self, corpus: &Corpus, spans: &[RecordSpan]) -> Record {
        let may_show = |span: &RecordSpan| self.material.catalog.datasets[span.record.dataset as usize].may_show;
        let span = |span: &RecordSpan| {
            let record = corpus.record(span.record);
            let before = record.text.get(..span.byte_start as usize).map_or(0, |t| t.chars().count());
            let text = corpus.span_text(span);
            SpanText {
                record: record.id.clone(),
                row: span.record.row,
                start: before,
                end: before + text.chars().count(),
                text: may_show(span).then(|| text.to_owned()),
            }
        };
        // The record that fills most of the example, the first of equals; then the others in order.
        let main = spans.iter().rev().max_by_key(|s| s.token_end - s.token_start);
        let main = main.map_or(0, |m| spans.iter().position(|s| s == m).unwrap_or(0));
        let order = std::iter::once(main).chain((0..spans.len()).filter(|i| *i != main));
        let record = corpus.record(spans[main].record);
        Record {
            id: record.id.clone(),
            text: may_show(&spans[main]).then(|| record.text.clone()),
            spans: order.map(|i| span(&spans[i])).collect(),
        }
    }

    /// Runs of the completion that stand in training records, the least likely first.
    pub(super) fn verbatim_runs(&self, response: &Tokenised) -> Result<Vec<VerbatimRun>, RespondError> {
        let m = self.material;
        let completion = &response.tokens[response.completion..];
        let options = FindOptions {
            min_tokens: MIN_RUN,
            max_spans: Some(MAX_RUNS),
            max_occurrences: Some(MAX_SOURCES),
            ..FindOptions::default()
        };
        let found = m.verbatim.find(completion, &options)?;
        let chars = char_ends(response, |ids| m.context.tokenizer.decode(ids));
        let run = |span: &ascribe_verbatim::Span| {
            let start = if span.start == 0 { 0 } else { chars[span.start - 1] };
            let end = chars[span.end - 1].max(start);
            let sources: BTreeSet<(u32, String)> = span
                .occurrences
                .iter()
                .map(|o| (o.record.dataset, m.context.corpus.record(o.record).id.clone()))
                .collect();
            VerbatimRun {
                token_start: span.start,
                token_end: span.end,
                start,
                end,
                text: match response.may_show {
                    true => response.text.chars().skip(start).take(end - start).collect(),
                    false => String::new(),
                },
                count: span.count,
                sources: sources.into_iter().collect(),
            }
        };
        Ok(found.spans.iter().map(run).collect())
    }
}

/// Characters of the completion up to the end of each of its tokens.
pub(super) fn char_ends(response: &Tokenised, decode: impl Fn(&[u32]) -> String) -> Vec<usize> {
    let n_tokens = response.tokens.len();
    if response.bytes.is_empty() {
        // A corpus example has no byte offsets: prefixes are decoded; halves of characters count when they are whole, and one that
        // begins in the prompt is the completion's.
        let whole = |n: usize| decode(&response.tokens[..n]).trim_end_matches('\u{fffd}').chars().count();
        let prompt = whole(response.completion);
        return (response.completion + 1..=n_tokens).map(|n| whole(n) - prompt).collect();
    }
    let mut ends = Vec::with_capacity(n_tokens - response.completion);
    for &(_, byte_end) in &response.bytes {
        ends.push(
            response.text.get(..byte_end).map_or_else(|| ends.last().copied().unwrap_or(0), |t| t.chars().count()),
        );
    }
    ends
}

/// Spans of an example; examples are sorted by id.
fn example(corpus: &Corpus, id: ExampleId) -> Option<&[RecordSpan]> {
    let at = corpus.examples.binary_search_by(|e| e.id.cmp(&id)).ok()?;
    Some(corpus.examples[at].spans.as_slice()).filter(|spans| !spans.is_empty())
}

/// The verbatim index over the records that were trained on, built if it is not there.
pub(super) fn open_verbatim(
    context: &Context,
    cache: &Path,
    progress: &dyn Progress,
) -> Result<VerbatimIndex, EngineError> {
    let corpus = &context.corpus;
    let dir = cache.join(format!("verbatim-{}", &corpus.manifest.digest().to_string()[..16]));
    if let Ok(found) = VerbatimIndex::open(&dir) {
        return Ok(found);
    }
    progress.start("verbatim index", 0, "");
    let used: BTreeSet<_> = corpus.examples.iter().flat_map(|e| e.spans.iter().map(|s| s.record)).collect();
    let sources = corpus.manifest.datasets.iter().zip(context.registry.datasets());
    let source = |(d, r): (&ascribe_corpus::corpus::CorpusDataset, &ascribe_registry::Dataset)| Source {
        name: d.name.clone(),
        id: d.id.0,
        path: r.name().to_owned(),
    };
    let vocab_size = u32::try_from(context.tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let settings = IndexSettings { tokenizer: context.tokenizer.digest(), vocab_size, shard_tokens: SHARD_TOKENS };
    let mut writer = VerbatimWriter::open(&dir, settings, sources.map(source).collect())?;
    let next = writer.next_record();
    // Every record has its place; those that were held out stand there without tokens.
    let all = corpus.datasets.iter().zip(0..).flat_map(|(part, dataset)| {
        (0..part.records.len() as u32).map(move |row| ascribe_core::RecordId { dataset, row })
    });
    let left: Vec<_> = all.filter(|record| *record >= next).collect();
    for batch in left.chunks(1024) {
        let encode = |id: &ascribe_core::RecordId| -> Result<Vec<u32>, EngineError> {
            if !used.contains(id) {
                return Ok(Vec::new());
            }
            let record = corpus.record(*id);
            let tokens = context.tokenizer.encode(&record.text).map_err(|why| EngineError::Content {
                path: dir.clone(),
                expected: "records that can be tokenised".into(),
                found: format!("{}: {why}", record.id),
            })?;
            Ok(tokens.iter().map(|t| t.id).collect())
        };
        let encoded: Vec<Result<Vec<u32>, EngineError>> = batch.par_iter().map(encode).collect();
        for (id, tokens) in batch.iter().zip(encoded) {
            let tokens: Vec<u32> = tokens?;
            writer.push(*id, 0, &tokens)?;
        }
    }
    writer.finish()?;
    let index = VerbatimIndex::open(&dir)?;
    progress.finish(&format!("{} tokens", index.n_tokens()));
    Ok(index)
}
