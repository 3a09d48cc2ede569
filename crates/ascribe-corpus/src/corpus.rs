//! The corpus: all examples and held-out windows of all registered datasets, in a fixed order, and the manifest that
//! pins them.

use ascribe_core::{DatasetId, Digest, ExampleId, RecordId};
use ascribe_registry::Record;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::chunk::{Window, windows};
use crate::error::CorpusError;
use crate::split::HeldOut;
use crate::tokenizer::{BpeTokenizer, Token};
use crate::{Example, Query};

/// Version of the corpus manifest's meaning: a change of windows, split or order is a new version.
pub const CORPUS_FORMAT_VERSION: u32 = 1;

/// What fixes a corpus, besides records and tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusConfig {
    /// Tokens per example.
    pub seq_len: usize,
    /// Tokens of a held-out window that are prompt; the rest is the response.
    pub prompt_len: usize,
    /// Held-out windows per dataset that are explained (and retrained for).
    pub queries_per_dataset: usize,
    /// Further held-out windows per dataset, for bits per byte only.
    pub validation_per_dataset: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
}

/// One registered dataset's records on their way into the corpus.
#[derive(Clone, Debug)]
pub struct DatasetPart {
    /// Short name.
    pub name: String,
    /// Content root.
    pub id: DatasetId,
    /// All records, in file order.
    pub records: Vec<Record>,
}

/// The pinned description of a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusManifest {
    /// [`CORPUS_FORMAT_VERSION`].
    pub format_version: u32,
    /// Configuration.
    pub config: CorpusConfig,
    /// SHA-256 of the tokenizer file.
    pub tokenizer: Digest,
    /// Per dataset, by ordinal.
    pub datasets: Vec<CorpusDataset>,
}

impl CorpusManifest {
    /// SHA-256 over the JSON form; stands in every feature spec.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self).expect("strings and integers always serialise")
    }
}

/// One dataset in the corpus manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusDataset {
    /// Short name.
    pub name: String,
    /// Content root.
    pub id: DatasetId,
    /// Records in training examples.
    pub records_used: u64,
    /// Records held out.
    pub records_held_out: u64,
    /// Training examples.
    pub n_examples: u64,
    /// SHA-256 over the examples' token ids, little endian.
    pub tokens_sha256: Digest,
}

/// Examples, held-out windows and their manifest.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// What pins everything below.
    pub manifest: CorpusManifest,
    /// Datasets with their records, by ordinal.
    pub datasets: Vec<DatasetPart>,
    /// Training examples, sorted by id.
    pub examples: Vec<Example>,
    /// Held-out windows to explain, grouped by dataset.
    pub queries: Vec<Query>,
    /// Held-out windows for bits per byte only.
    pub validation: Vec<Query>,
}

struct Tokenised {
    examples: Vec<Window>,
    queries: Vec<Window>,
    validation: Vec<Window>,
    records_used: u64,
    records_held_out: u64,
}

impl Corpus {
    /// The texts that the tokenizer may learn from: training records only, in corpus order.
    pub fn training_texts<'d>(datasets: &'d [DatasetPart], config: &CorpusConfig) -> Vec<&'d str> {
        let mut texts = Vec::new();
        for dataset in datasets {
            let held = held_out(dataset, config);
            texts.extend(dataset.records.iter().filter(|r| !held.contains(r.row)).map(|r| r.text.as_str()));
        }
        texts
    }

    /// Tokenises, splits and cuts. Datasets keep their order: position = ordinal. The result does not depend on threads.
    ///
    /// # Errors
    /// A configuration out of range, a text that cannot be encoded, a dataset too small for the split.
    pub fn build(
        datasets: Vec<DatasetPart>,
        tokenizer: &BpeTokenizer,
        config: CorpusConfig,
    ) -> Result<Self, CorpusError> {
        check(&config)?;
        // All results first, then the first error in corpus order: a parallel collect would stop at any one of them.
        let parts: Vec<Result<Tokenised, CorpusError>> = datasets
            .par_iter()
            .enumerate()
            .map(|(ordinal, dataset)| tokenise(ordinal as u32, dataset, tokenizer, &config))
            .collect();
        let parts: Vec<Tokenised> = parts.into_iter().collect::<Result<_, _>>()?;
        let mut corpus = Self {
            manifest: CorpusManifest {
                format_version: CORPUS_FORMAT_VERSION,
                config,
                tokenizer: tokenizer.digest(),
                datasets: Vec::new(),
            },
            datasets: Vec::new(),
            examples: Vec::new(),
            queries: Vec::new(),
            validation: Vec::new(),
        };
        for (ordinal, (dataset, part)) in datasets.into_iter().zip(parts).enumerate() {
            corpus.append(ordinal as u32, dataset, part);
        }
        Ok(corpus)
    }

    fn append(&mut self, ordinal: u32, dataset: DatasetPart, part: Tokenised) {
        self.manifest.datasets.push(CorpusDataset {
            name: dataset.name.clone(),
            id: dataset.id,
            records_used: part.records_used,
            records_held_out: part.records_held_out,
            n_examples: part.examples.len() as u64,
            tokens_sha256: tokens_digest(&part.examples),
        });
        let example = |(idx, w): (usize, Window)| Example {
            id: ExampleId { dataset: ordinal, idx: idx as u32 },
            tokens: w.tokens,
            spans: w.spans,
        };
        let query = |w: Window| Query { dataset: ordinal, tokens: w.tokens, spans: w.spans };
        self.examples.extend(part.examples.into_iter().enumerate().map(example));
        self.queries.extend(part.queries.into_iter().map(query));
        self.validation.extend(part.validation.into_iter().map(query));
        self.datasets.push(dataset);
    }

    /// Number of datasets.
    pub fn n_datasets(&self) -> usize {
        self.datasets.len()
    }

    /// Training examples per dataset.
    pub fn example_counts(&self) -> Vec<u64> {
        self.manifest.datasets.iter().map(|d| d.n_examples).collect()
    }

    /// The text of `spans`, records separated by a newline.
    ///
    /// Tokens that split a character carry the whole character's bytes, so every span is valid UTF-8.
    pub fn text_of(&self, spans: &[ascribe_core::RecordSpan]) -> String {
        let mut text = String::new();
        for span in spans {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(self.span_text(span));
        }
        text
    }

    /// The text of one span.
    pub fn span_text(&self, span: &ascribe_core::RecordSpan) -> &str {
        let record = &self.datasets[span.record.dataset as usize].records[span.record.row as usize];
        record
            .text
            .get(span.byte_start as usize..span.byte_end as usize)
            .expect("spans are cut from this very record, at characters")
    }

    /// The record behind a record id.
    pub fn record(&self, id: RecordId) -> &Record {
        &self.datasets[id.dataset as usize].records[id.row as usize]
    }
}

fn check(config: &CorpusConfig) -> Result<(), CorpusError> {
    if config.seq_len < 2 || config.seq_len > usize::from(u16::MAX) {
        return Err(CorpusError::SeqLen { found: config.seq_len });
    }
    if config.prompt_len < 1 || config.prompt_len >= config.seq_len {
        return Err(CorpusError::PromptLen { max: config.seq_len - 1, found: config.prompt_len });
    }
    Ok(())
}

fn held_out(dataset: &DatasetPart, config: &CorpusConfig) -> HeldOut {
    let n_groups = config.queries_per_dataset + config.validation_per_dataset;
    HeldOut::choose(&dataset.records, n_groups, config.seq_len)
}

fn tokenise(
    ordinal: u32,
    dataset: &DatasetPart,
    tokenizer: &BpeTokenizer,
    config: &CorpusConfig,
) -> Result<Tokenised, CorpusError> {
    let held = held_out(dataset, config);
    let expected = config.queries_per_dataset + config.validation_per_dataset;
    let too_small =
        |what, expected, found| CorpusError::TooSmall { dataset: dataset.name.clone(), what, expected, found };
    if held.groups.len() < expected {
        return Err(too_small("held-out windows", expected, held.groups.len()));
    }
    let tokens: Vec<Result<Vec<Token>, CorpusError>> = dataset
        .records
        .par_iter()
        .map(|r| {
            tokenizer.encode(&r.text).map_err(|why| CorpusError::Encode {
                dataset: dataset.name.clone(),
                record: r.id.clone(),
                why,
            })
        })
        .collect();
    let tokens: Vec<Vec<Token>> = tokens.into_iter().collect::<Result<_, _>>()?;
    let of = |row: u32| (RecordId { dataset: ordinal, row }, tokens[row as usize].as_slice());
    let rows = 0..dataset.records.len() as u32;
    let used: Vec<u32> = rows.filter(|&row| !held.contains(row)).collect();
    let examples = windows(used.iter().map(|&row| of(row)), config.seq_len);
    if examples.is_empty() {
        return Err(too_small("training windows", 1, 0));
    }
    let (mut queries, mut validation) = (Vec::new(), Vec::new());
    for (g, group) in held.groups.iter().enumerate() {
        let window = windows(group.clone().map(of), config.seq_len).into_iter().next();
        let window = window.ok_or_else(|| too_small("tokens in a held-out window", config.seq_len, 0))?;
        // Queries and validation windows alternate while both last, so that both cover the whole dataset.
        let both = 2 * config.queries_per_dataset.min(config.validation_per_dataset);
        let to_queries = if g < both { g % 2 == 0 } else { config.queries_per_dataset > config.validation_per_dataset };
        if to_queries { queries.push(window) } else { validation.push(window) }
    }
    let last = examples.last().and_then(|w| w.spans.last()).map_or(0, |s| s.record.row);
    Ok(Tokenised {
        records_used: used.iter().filter(|&&row| row <= last).count() as u64,
        records_held_out: held.groups.iter().map(|g| g.len() as u64).sum(),
        examples,
        queries,
        validation,
    })
}

fn tokens_digest(examples: &[Window]) -> Digest {
    let mut hasher = Sha256::new();
    for id in examples.iter().flat_map(|w| &w.tokens) {
        hasher.update(id.to_le_bytes());
    }
    Digest(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, n: u32) -> DatasetPart {
        let text = |row: u32| format!("record {row} of {name} 天地 says {}", "word ".repeat((row % 7) as usize + 3));
        DatasetPart {
            name: name.into(),
            id: DatasetId(Digest::of(name.as_bytes())),
            records: (0..n).map(|row| Record { row, id: format!("{name}/{row}"), text: text(row) }).collect(),
        }
    }

    fn config() -> CorpusConfig {
        CorpusConfig { seq_len: 16, prompt_len: 4, queries_per_dataset: 2, validation_per_dataset: 1, vocab_size: 300 }
    }

    fn build(parts: Vec<DatasetPart>) -> Result<Corpus, CorpusError> {
        let texts = Corpus::training_texts(&parts, &config());
        let tokenizer = BpeTokenizer::train(texts.into_iter(), 300)?;
        Corpus::build(parts, &tokenizer, config())
    }

    #[test]
    fn held_out_records_are_never_trained_on_and_spans_lead_back() {
        let corpus = build(vec![part("a", 60), part("b", 80)]).unwrap();
        assert_eq!((corpus.queries.len(), corpus.validation.len()), (4, 2));
        let held: Vec<RecordId> =
            corpus.queries.iter().chain(&corpus.validation).flat_map(|q| q.spans.iter().map(|s| s.record)).collect();
        for example in &corpus.examples {
            assert_eq!(example.tokens.len(), 16);
            assert!(example.spans.iter().all(|s| !held.contains(&s.record) && s.record.dataset == example.id.dataset));
            assert!(!corpus.text_of(&example.spans).is_empty());
        }
        assert_eq!(corpus.example_counts().iter().sum::<u64>() as usize, corpus.examples.len());
    }

    #[test]
    fn threads_do_not_change_the_corpus() {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let a = one.install(|| build(vec![part("a", 60), part("b", 80)]).unwrap());
        let b = build(vec![part("a", 60), part("b", 80)]).unwrap();
        assert_eq!(a.manifest, b.manifest);
        assert_eq!(a.examples, b.examples);
    }

    #[test]
    fn a_tiny_dataset_is_named() {
        let error = build(vec![part("a", 60), part("tiny", 3)]).unwrap_err().to_string();
        assert!(error.contains("tiny") && error.contains("expected"), "{error}");
    }
}
