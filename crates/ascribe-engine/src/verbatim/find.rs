//! Finding: a response in, its spans out, each with the records that hold it, read again and checked.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_verbatim::{FindOptions, Occurrence, Span};
use serde::Serialize;

use super::{Evidence, NOTE, parse};
use crate::error::EngineError;
use crate::lab::data::Body;
use crate::lab::lines::Lines;

/// Characters shown on either side of a match.
const CONTEXT_CHARS: usize = 60;

/// What is searched for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// A text, tokenised with the tokenizer of the index.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct FindRequest {
    /// Folder of the index.
    pub index: PathBuf,
    /// The response.
    pub response: Response,
    /// How spans are chosen and shown.
    pub options: FindOptions,
}

/// Where a span stands, in words.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Place {
    /// Name of the dataset.
    pub dataset: String,
    /// Row of the record, from 0.
    pub row: u32,
    /// First token, counted within the record.
    pub token_start: u64,
    /// What the record's own text says, if the source file is at hand.
    pub source: Option<SourceText>,
}

/// The record itself, read again: it holds the span, or there is an error.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SourceText {
    /// Id of the record.
    pub id: String,
    /// First byte of the match in the record's text; `None` for a record of token ids.
    pub byte_start: Option<u64>,
    /// One past the last byte.
    pub byte_end: Option<u64>,
    /// Text before the match.
    pub before: String,
    /// Text of the match.
    pub text: String,
    /// Text behind it.
    pub after: String,
}

/// How often a span stands in one dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DatasetPlaces {
    /// Name of the dataset.
    pub dataset: String,
    /// Places.
    pub count: u64,
    /// Different records.
    pub records: u64,
}

/// One span, in words.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FoundSpan {
    /// First token of the response.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// The span's text in the response; `None` for a response of token ids.
    pub text: Option<String>,
    /// Places in all records.
    pub count: u64,
    /// Different records.
    pub records: u64,
    /// Nats: how likely its tokens were if each were drawn by its frequency.
    pub unigram_log_probability: f64,
    /// Counts by dataset.
    pub datasets: Vec<DatasetPlaces>,
    /// Places, in the order of the records; as many as were asked for.
    pub places: Vec<Place>,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FindReport {
    /// Folder of the index.
    pub index: PathBuf,
    /// Tokens that were searched.
    pub tokens_indexed: u64,
    /// Tokens of the response.
    pub tokens: usize,
    /// Tokens of the response that lie in a span.
    pub covered: usize,
    /// Spans of the asked length, before the cut.
    pub n_spans: usize,
    /// Milliseconds of the search itself: spans, counts and places, without reading texts.
    pub search_ms: f64,
    /// Spans, rarest first.
    pub spans: Vec<FoundSpan>,
    /// What this is not.
    pub note: &'static str,
}

/// Opens the index and searches it.
///
/// # Errors
/// As [`Evidence::open`] and [`Evidence::find`].
pub fn run(request: &FindRequest) -> Result<FindReport, EngineError> {
    Evidence::open(&request.index)?.find(&request.response, &request.options)
}

impl Evidence {
    /// The spans of `response`.
    ///
    /// # Errors
    /// A setting out of range, a text that cannot be tokenised, a page of the index that has changed; [`EngineError::Content`]
    /// where a source file no longer holds what was indexed.
    pub fn find(&self, response: &Response, options: &FindOptions) -> Result<FindReport, EngineError> {
        let failed = |why| {
            let expected = "a text that can be tokenised".into();
            EngineError::Setting { setting: "response", expected, found: why }
        };
        // Ids, and for a text the bytes of each token.
        let (ids, bytes): (Vec<u32>, Option<Vec<Range<usize>>>) = match response {
            Response::Tokens(ids) => (ids.clone(), None),
            Response::Text(text) => {
                let tokens = self.tokenizer.encode(text).map_err(failed)?;
                let bytes = tokens.iter().map(|t| t.byte_start as usize..t.byte_end as usize);
                (tokens.iter().map(|token| token.id).collect(), Some(bytes.collect()))
            }
        };
        let started = Instant::now();
        let found = self.index.find(&ids, options)?;
        let search_ms = started.elapsed().as_secs_f64() * 1e3;
        let spans = found.spans.iter().map(|span| -> Result<FoundSpan, EngineError> {
            let place = |at: &Occurrence| self.place(at, &ids[span.start..span.end]);
            let shown = match (response, &bytes) {
                (Response::Text(text), Some(bytes)) => {
                    text.get(bytes[span.start].start..bytes[span.end - 1].end).map(str::to_owned)
                }
                _ => None,
            };
            let places = span.occurrences.iter().map(place).collect::<Result<_, EngineError>>()?;
            Ok(self.told(span, shown, places))
        });
        Ok(FindReport {
            index: self.index.dir().to_path_buf(),
            tokens_indexed: self.index.n_tokens(),
            tokens: found.tokens,
            covered: found.covered,
            n_spans: found.n_spans,
            search_ms,
            spans: spans.collect::<Result<_, EngineError>>()?,
            note: NOTE,
        })
    }

    fn name(&self, dataset: u32) -> String {
        self.index.sources()[dataset as usize].name.clone()
    }

    fn told(&self, span: &Span, text: Option<String>, places: Vec<Place>) -> FoundSpan {
        let of = |d: &ascribe_verbatim::DatasetCount| DatasetPlaces {
            dataset: self.name(d.dataset),
            count: d.count,
            records: d.records,
        };
        FoundSpan {
            start: span.start,
            end: span.end,
            text,
            count: span.count,
            records: span.records,
            unigram_log_probability: span.unigram_log_probability,
            datasets: span.datasets.iter().map(of).collect(),
            places,
        }
    }

    fn place(&self, at: &Occurrence, run: &[u32]) -> Result<Place, EngineError> {
        let path = Path::new(&self.index.sources()[at.record.dataset as usize].path);
        let source = if path.exists() { Some(self.source_text(path, at, run)?) } else { None };
        Ok(Place { dataset: self.name(at.record.dataset), row: at.record.row, token_start: at.token_start, source })
    }

    /// Reads the record again; it must hold the run at its place.
    fn source_text(&self, path: &Path, at: &Occurrence, run: &[u32]) -> Result<SourceText, EngineError> {
        let line = Lines::at(path, at.source_offset)?;
        let record = parse(path, line.number, &line.text)?;
        let changed = || EngineError::Content {
            path: path.into(),
            expected: format!("the indexed run at token {} of record {}", at.token_start, at.record.row),
            found: "another (hint: the file was changed after the index was built)".into(),
        };
        let start = usize::try_from(at.token_start).map_err(|_| changed())?;
        let Body::Text { text, .. } = &record.body else {
            let ids = record.tokens(path, None, usize::MAX)?.ids;
            if ids.get(start..start + run.len()) != Some(run) {
                return Err(changed());
            }
            let [before, text, after] = [String::new(), String::new(), String::new()];
            return Ok(SourceText { id: record.id, byte_start: None, byte_end: None, before, text, after });
        };
        let tokens = self.tokenizer.encode(text).map_err(|_| changed())?;
        let there = tokens.get(start..start + run.len()).ok_or_else(changed)?;
        if !there.iter().map(|token| token.id).eq(run.iter().copied()) {
            return Err(changed());
        }
        let (first, last) = (there.first().ok_or_else(changed)?, there.last().ok_or_else(changed)?);
        let (from, to) = (first.byte_start as usize, last.byte_end as usize);
        let part = |range: Range<usize>| text.get(range).unwrap_or_default();
        Ok(SourceText {
            id: record.id.clone(),
            byte_start: Some(from as u64),
            byte_end: Some(to as u64),
            before: tail(part(0..from), CONTEXT_CHARS),
            text: part(from..to).to_owned(),
            after: part(to..text.len()).chars().take(CONTEXT_CHARS).collect(),
        })
    }
}

/// The last `n` characters.
fn tail(text: &str, n: usize) -> String {
    let skip = text.chars().count().saturating_sub(n);
    text.chars().skip(skip).collect()
}
