//! What is asked and what is answered, as plain values.

use ascribe_core::{Digest, ExampleId};
use ascribe_methods::group::intervals::Verdict;

use crate::error::EngineError;
use crate::walk::intervals::ShareInterval;

/// What is explained.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A prompt and what the model made of it.
    Text {
        /// Prompt; may be empty.
        prompt: String,
        /// Completion.
        completion: String,
    },
    /// A held-out response of the corpus, by number: the very tokens that the walk explained.
    Example(usize),
    /// A projected gradient row of the last checkpoint (or a row of the store), `[dim]`.
    Features(Vec<f32>),
    /// A mean hidden state, `[d]`.
    Embedding(Vec<f32>),
}

/// Which datasets count. Empty lists leave nothing out; several lists must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Names or `urn:uuid:…`.
    pub datasets: Vec<String>,
    /// Owner strings.
    pub owners: Vec<String>,
    /// SPDX expressions.
    pub licences: Vec<String>,
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What is explained.
    pub input: Input,
    /// Method by name; the default for the kind of input without.
    pub method: Option<String>,
    /// Records shown.
    pub k: usize,
    /// Records below this score are not shown.
    pub min_score: Option<f64>,
    /// Which datasets count.
    pub filter: Filter,
    /// Influence by token of the completion.
    pub tokens: bool,
    /// Runs that stand word for word in the data.
    pub verbatim: bool,
}

/// A part of a record that stands in a found example. Offsets count characters of the record's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanText {
    /// Id of the record.
    pub record: String,
    /// Row of the record in its dataset.
    pub row: u32,
    /// First character.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Text, if the licence lets it be shown.
    pub text: Option<String>,
}

/// The record behind a hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Id as its owner registered it.
    pub id: String,
    /// Text, if the licence lets it be shown.
    pub text: Option<String>,
    /// Parts of records that stand in the example, this record's first.
    pub spans: Vec<SpanText>,
}

/// A training example that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The example.
    pub example: ExampleId,
    /// Its score.
    pub score: f64,
    /// Its main record; `None` for a store without a corpus.
    pub record: Option<Record>,
}

/// How hits were found.
#[derive(Clone, Debug, PartialEq)]
pub struct Approx {
    /// `certified`, `exact` or `ann`.
    pub mode: &'static str,
    /// Recall@k: 1 where it is proven, as measured when the index was built otherwise.
    pub recall: f64,
    /// Rows scored again from the precise store.
    pub rescored: Option<u64>,
}

/// A token of the completion.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfluence {
    /// Its text; empty where the response is a record whose licence forbids display.
    pub text: String,
    /// What the shown shares' datasets did for its prediction: share-weighted block-Fisher influence at the last checkpoint.
    pub influence: f64,
}

/// A run of the completion that stands in the data.
#[derive(Clone, Debug, PartialEq)]
pub struct VerbatimRun {
    /// First token of the completion.
    pub token_start: usize,
    /// One past the last.
    pub token_end: usize,
    /// First character of the completion.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Its text; empty where the response is a record whose licence forbids display.
    pub text: String,
    /// Places in all records.
    pub count: u64,
    /// Dataset ordinals and record ids, as many as are shown.
    pub sources: Vec<(u32, String)>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Method.
    pub method: String,
    /// Digest of everything that the scores and shares depend on besides the response.
    pub spec: Digest,
    /// Score per dataset, by ordinal; empty where a method has none.
    pub scores: Vec<f64>,
    /// Share per dataset, by ordinal; empty where no bank says what the scores are worth.
    pub shares: Vec<ShareInterval>,
    /// Datasets that the filter lets through, by ordinal.
    pub allowed: Vec<bool>,
    /// Part of a pool that these shares cover.
    pub coverage: f64,
    /// Whether they may be paid.
    pub verdict: Option<Verdict>,
    /// Records, best first.
    pub hits: Vec<Found>,
    /// How they were found.
    pub approx: Approx,
    /// Tokens of the completion that were explained.
    pub n_tokens: usize,
    /// By token, if asked for.
    pub tokens: Option<Vec<TokenInfluence>>,
    /// Verbatim runs, if asked for.
    pub verbatim: Option<Vec<VerbatimRun>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RespondError {
    /// The question cannot be answered.
    #[error("{field}: expected {expected}, found {found}")]
    Refused {
        /// Field of the question.
        field: &'static str,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// The walk's own errors.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl RespondError {
    pub(super) fn refuse(field: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Refused { field, expected: expected.into(), found: found.to_string() }
    }
}

/// Engine errors by way of theirs.
macro_rules! through {
    ($($source:ty),*) => {$(
        impl From<$source> for RespondError {
            fn from(error: $source) -> Self {
                Self::Engine(error.into())
            }
        }
    )*};
}

through!(
    ascribe_models::ModelError,
    ascribe_store::StoreError,
    ascribe_index::IndexError,
    ascribe_methods::MethodError,
    ascribe_verbatim::VerbatimError
);
