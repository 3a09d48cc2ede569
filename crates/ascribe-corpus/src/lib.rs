//! From registered records to tokenised examples in a fixed order, each knowing its record spans.
//!
//! Here lives: the tokenizer, the held-out split, cutting into windows, n-gram baselines.
//! Here never lives: the model, gradients, scores.

pub mod baseline;
pub mod chunk;
pub mod corpus;
pub mod error;
pub mod split;
pub mod text_tokenizer;
pub mod tokenizer;

pub use corpus::{Corpus, CorpusConfig, CorpusManifest, DatasetPart};
pub use error::CorpusError;
pub use split::HeldOut;
pub use text_tokenizer::{SpecialTokens, TextTokenizer};
pub use tokenizer::BpeTokenizer;

use ascribe_core::{ExampleId, RecordSpan};

/// One training item: a window of tokens cut from one dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its id; carries the dataset.
    pub id: ExampleId,
    /// Exactly `seq_len` tokens.
    pub tokens: Vec<u32>,
    /// The records that it was cut from, in order.
    pub spans: Vec<RecordSpan>,
}

/// A held-out window: never trained on. The first `prompt_len` tokens are the prompt, the rest is the response.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Ordinal of the dataset it was held out from.
    pub dataset: u32,
    /// Exactly `seq_len` tokens.
    pub tokens: Vec<u32>,
    /// The held-out records that it was cut from.
    pub spans: Vec<RecordSpan>,
}
