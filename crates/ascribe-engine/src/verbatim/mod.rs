//! `ascribe verbatim`: which runs of a response stand word for word in the data, in which records, and where in their texts.
//!
//! Here lives what the index crate does not know: files of records, the tokenizer, texts around a match, score files. What
//! is shown was checked against the source itself: the record is read again, tokenised again, and must hold the run.
//! Verbatim evidence stands beside influence, never instead of it: see [`NOTE`].

pub mod build;
pub mod find;
pub mod score;

use std::path::{Path, PathBuf};

use ascribe_corpus::{SpecialTokens, TextTokenizer};
use ascribe_verbatim::VerbatimIndex;

use crate::error::EngineError;
use crate::lab::data::{DataOptions, Record};

pub use ascribe_verbatim::{FindOptions, Rank};
pub use build::{BuildReport, BuildRequest, Inputs};
pub use find::{FindReport, FindRequest, Response};
pub use score::{ScoreReport, ScoreRequest};

/// What must be said with every answer.
pub const NOTE: &str = "a run that stands in the data shows that a source was available, not that it caused the response; \
                        read it beside influence, not instead of it";
/// Name of the method in score files.
pub const METHOD: &str = "verbatim";
/// The tokenizer that the index was built with, beside it.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// An open index with its tokenizer: what a server keeps.
pub struct Evidence {
    index: VerbatimIndex,
    tokenizer: TextTokenizer,
}

impl Evidence {
    /// Opens the index in the folder `dir`.
    ///
    /// # Errors
    /// What is wrong with a file of it; [`EngineError::Digest`] for a tokenizer that is not the one it was built with.
    pub fn open(dir: &Path) -> Result<Self, EngineError> {
        let index = VerbatimIndex::open(dir)?;
        let path = dir.join(TOKENIZER_FILE);
        let tokenizer = TextTokenizer::load_file(&path, SpecialTokens::None)?;
        let (expected, found) = (index.settings().tokenizer, tokenizer.digest());
        if expected != found {
            let hint = "; hint: the file was changed after the index was built";
            return Err(EngineError::Digest { what: path, expected, found, hint });
        }
        Ok(Self { index, tokenizer })
    }

    /// The index.
    pub fn index(&self) -> &VerbatimIndex {
        &self.index
    }

    /// The tokenizer of the index.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }
}

/// A tokenizer file, or the one of a model folder.
fn tokenizer_path(given: &Path) -> PathBuf {
    if given.is_dir() { given.join(TOKENIZER_FILE) } else { given.to_path_buf() }
}

/// Reads a line of a source as its record.
fn parse(path: &Path, number: u64, text: &str) -> Result<Record, EngineError> {
    Record::parse(path, number, text, &DataOptions::new(usize::MAX))
}
