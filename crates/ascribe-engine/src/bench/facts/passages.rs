//! Records and queries as a model sees them: token windows, their mean hidden states, their gradient rows.
//!
//! Here never lives: what is made of the rows (`channels`).

use std::borrow::Cow;
use std::convert::Infallible;
use std::ops::Range;

use ascribe_core::{ExampleId, FeatureReader, FeatureSpec, Features, Progress};
use ascribe_corpus::TextTokenizer;
use ascribe_models::{Decoder, GradientStage, Sequence};
use ndarray::{Array2, CowArray, s};
use rayon::prelude::*;

use super::data::Query;
use crate::error::EngineError;

/// Windows made between two looks at the stop flag.
const CHUNK: usize = 512;

/// Token windows of records: a record longer than the context has several.
#[derive(Clone, Debug, Default)]
pub struct Passages {
    tokens: Vec<u32>,
    windows: Vec<Range<usize>>,
    /// The record of every window, rising.
    pub records: Vec<u32>,
}

/// A question with its answer, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    tokens: Vec<u32>,
    /// First token of the answer.
    answer_from: usize,
}

impl Passages {
    /// Cuts texts into windows of at most `context` tokens; a window of fewer than `shortest` tokens is left out.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn cut(
        tokenizer: &TextTokenizer,
        texts: &[String],
        context: usize,
        shortest: usize,
    ) -> Result<Self, EngineError> {
        let encode = |text: &String| tokenizer.encode(text).map_err(|why| unreadable("text", why));
        let encoded: Vec<_> = texts.par_iter().map(encode).collect::<Result<_, _>>()?;
        let mut passages = Self::default();
        for (record, tokens) in encoded.iter().enumerate() {
            for window in tokens.chunks(context).filter(|window| window.len() >= shortest) {
                let start = passages.tokens.len();
                passages.tokens.extend(window.iter().map(|token| token.id));
                passages.windows.push(start..passages.tokens.len());
                passages.records.push(record as u32);
            }
        }
        Ok(passages)
    }

    /// Windows.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    fn sequences(&self) -> Vec<Sequence<'_>> {
        self.windows.iter().map(|window| Sequence::whole(&self.tokens[window.clone()])).collect()
    }

    /// Per record the best of its windows, `[q, windows] → [q, n_records]`; `nothing` for a record without windows.
    pub fn best(&self, scores: &Array2<f32>, n_records: usize, nothing: f32) -> Array2<f32> {
        let mut best = Array2::from_elem((scores.nrows(), n_records), nothing);
        for (scores, mut best) in scores.rows().into_iter().zip(best.rows_mut()) {
            let mut seen = vec![false; n_records];
            for (&record, &score) in self.records.iter().zip(scores) {
                let record = record as usize;
                if !seen[record] || score > best[record] {
                    best[record] = score;
                    seen[record] = true;
                }
            }
        }
        best
    }
}

/// Tokens of every query: the question, a line break, the answer. What is too long for the model loses the beginning of its
/// question, then the end of its answer.
///
/// # Errors
/// A text that cannot be tokenised, or an answer without tokens.
pub fn ask(tokenizer: &TextTokenizer, queries: &[Query], context: usize) -> Result<Vec<Asked>, EngineError> {
    let one = |query: &Query| {
        let prompt = format!("{}\n", query.query);
        let text = format!("{prompt}{}", query.answer);
        let tokens = tokenizer.encode(&text).map_err(|why| unreadable("query", why))?;
        let of_answer = |token: &ascribe_corpus::tokenizer::Token| token.byte_end as usize > prompt.len();
        let answer_from = tokens.iter().position(of_answer).ok_or_else(|| {
            unreadable("answer", format!("query {} has an answer of at least one token, found none", query.id))
        })?;
        let start = tokens.len().saturating_sub(context).min(answer_from.saturating_sub(1));
        let end = tokens.len().min(start + context);
        let tokens = tokens[start..end].iter().map(|token| token.id).collect();
        Ok(Asked { tokens, answer_from: answer_from - start })
    };
    queries.par_iter().map(one).collect()
}

fn unreadable(setting: &'static str, why: String) -> EngineError {
    EngineError::Setting { setting, expected: "a text that can be tokenised".into(), found: why }
}

/// Mean hidden states of all windows, `[windows, d]`.
///
/// # Errors
/// The model's; [`EngineError::Stopped`].
pub fn embed(decoder: &Decoder, passages: &Passages, progress: &dyn Progress) -> Result<Array2<f32>, EngineError> {
    fill("embed records", &passages.sequences(), decoder.config().hidden_size, progress, |chunk| {
        Ok(decoder.mean_hidden(chunk)?)
    })
}

/// Mean hidden states of questions with their answers, `[q, d]`.
///
/// # Errors
/// As [`embed`].
pub fn embed_queries(decoder: &Decoder, asked: &[Asked], progress: &dyn Progress) -> Result<Array2<f32>, EngineError> {
    let sequences: Vec<Sequence<'_>> = asked.iter().map(|a| Sequence::whole(&a.tokens)).collect();
    fill("embed queries", &sequences, decoder.config().hidden_size, progress, |chunk| Ok(decoder.mean_hidden(chunk)?))
}

/// Gradients of the windows' losses, `[windows, dim]`.
///
/// # Errors
/// As [`embed`]; a row that is not finite.
pub fn gradients(
    stage: &GradientStage<'_>,
    passages: &Passages,
    progress: &dyn Progress,
) -> Result<Array2<f32>, EngineError> {
    fill("gradients of records", &passages.sequences(), stage.dim(), progress, |chunk| rows(stage, chunk))
}

/// Gradients of the answers' losses given their questions, `[q, dim]`.
///
/// # Errors
/// As [`gradients`].
pub fn query_gradients(
    stage: &GradientStage<'_>,
    asked: &[Asked],
    progress: &dyn Progress,
) -> Result<Array2<f32>, EngineError> {
    let sequences: Vec<Sequence<'_>> =
        asked.iter().map(|a| Sequence { tokens: &a.tokens, loss_from: a.answer_from }).collect();
    fill("gradients of queries", &sequences, stage.dim(), progress, |chunk| rows(stage, chunk))
}

fn rows(stage: &GradientStage<'_>, sequences: &[Sequence<'_>]) -> Result<Array2<f32>, EngineError> {
    let mut out = Array2::zeros((sequences.len(), stage.dim()));
    stage.rows(sequences, out.view_mut(), None)?;
    Ok(out)
}

fn fill(
    name: &str,
    sequences: &[Sequence<'_>],
    dim: usize,
    progress: &dyn Progress,
    make: impl Fn(&[Sequence<'_>]) -> Result<Array2<f32>, EngineError>,
) -> Result<Array2<f32>, EngineError> {
    let mut out = Array2::zeros((sequences.len(), dim));
    progress.start(name, sequences.len() as u64, "windows");
    for (chunk, start) in sequences.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
        out.slice_mut(s![start..start + chunk.len(), ..]).assign(&make(chunk)?);
        progress.advance(chunk.len() as u64);
    }
    progress.finish("");
    Ok(out)
}

/// Rows in memory as the methods read them.
pub struct MemoryRows {
    /// What the rows are.
    pub spec: FeatureSpec,
    /// `[n, dim]`.
    pub rows: Array2<f32>,
    ids: Vec<ExampleId>,
}

impl MemoryRows {
    /// Rows of one dataset, numbered.
    pub fn new(spec: FeatureSpec, rows: Array2<f32>) -> Self {
        let ids = (0..rows.nrows() as u32).map(|idx| ExampleId { dataset: 0, idx }).collect();
        Self { spec, rows, ids }
    }
}

impl FeatureReader for MemoryRows {
    type Error = Infallible;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.rows.nrows() as u64
    }

    fn n_blocks(&self) -> usize {
        self.rows.nrows().div_ceil(CHUNK)
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Infallible> {
        let range = block_idx * CHUNK..((block_idx + 1) * CHUNK).min(self.rows.nrows());
        Ok(Features {
            ids: Cow::Borrowed(&self.ids[range.clone()]),
            rows: CowArray::from(self.rows.slice(s![range, ..])),
        })
    }
}
