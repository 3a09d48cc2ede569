//! Where records come from: JSONL, CSV, Parquet, Arrow, folders of text and Hugging Face `datasets` folders, also
//! compressed with gzip or zstd. Everything streams; nothing here keeps more than a batch.
//!
//! A record is an id and a text. Formats with columns name them by [`Fields`]; a record without an id is called by its
//! position. What a record hashes to is decided in [`crate::ingest`].
//!
//! Files are hostile: a compressed file may expand to [`EXPANSION_CAP`] times its size and no further, a text to
//! [`crate::content::LINE_CAP_BYTES`], and sizes that a header claims are compared with the file before they are believed.

mod arrow;
mod compressed;
mod csv;
mod files;
mod jsonl;
mod parquet;
mod text;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::RegistryError;

pub use compressed::EXPANSION_CAP;
pub use files::{SourceFormat, SourceSet};

/// Bytes of a batch, about: it stays in a core's cache, and its memory in the allocator's hands from batch to batch.
const BATCH_BYTES: usize = 1 << 18;

/// Which columns hold the id and the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// Column of the id. A record without one is called by its position, from 0.
    pub id: String,
    /// Column of the text.
    pub text: String,
    /// Leave records without text out, in place of refusing them.
    pub skip_empty: bool,
}

impl Fields {
    /// True for `id` and `text`, the names of canonical lines.
    pub(crate) fn are_plain(&self) -> bool {
        self.id == "id" && self.text == "text"
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self { id: "id".to_owned(), text: "text".to_owned(), skip_empty: false }
    }
}

/// Id and text of a record, each if there is one.
pub(crate) type Pair = (Option<String>, Option<String>);

/// Records on their way in, in the order of the source.
pub(crate) enum Batch {
    /// Whole lines of a JSONL file, each with its newline.
    Lines {
        /// Number of the first line, from 1.
        first_line: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Ids and texts.
    Pairs {
        /// Row of the first one in its file, from 1.
        first_row: u64,
        /// Id, if there is one, and text, if there is one.
        pairs: Vec<Pair>,
    },
}

/// One file that gives batches until it is empty.
pub(crate) trait RecordSource: Send {
    /// The next batch, or `None` at the end.
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError>;
}

/// Opens one file of a set.
pub(crate) fn open(
    format: SourceFormat,
    root: &Path,
    path: &Path,
    fields: &Fields,
) -> Result<Box<dyn RecordSource>, RegistryError> {
    Ok(match format {
        SourceFormat::Jsonl => Box::new(jsonl::Jsonl::open(path)?),
        SourceFormat::Csv => Box::new(csv::Csv::open(path, fields)?),
        SourceFormat::Parquet => Box::new(guard(path, parquet::Parquet::open(path, fields))?),
        SourceFormat::Arrow => Box::new(guard(path, arrow::Arrow::open(path, fields))?),
        SourceFormat::Text => Box::new(text::Text::open(root, path)),
    })
}

/// Opens a registry's own record file, as it is.
pub(crate) fn open_strict(path: &Path) -> Result<Box<dyn RecordSource>, RegistryError> {
    Ok(Box::new(jsonl::Jsonl::open_plain(path)?))
}

/// Passes a source on; exists so that the two columnar readers, whose libraries may panic on hostile bytes, are wrapped.
fn guard<S: RecordSource>(path: &Path, opened: Result<S, RegistryError>) -> Result<Guarded<S>, RegistryError> {
    Ok(Guarded { source: opened?, path: path.to_owned() })
}

/// A source whose panics are refusals.
struct Guarded<S> {
    source: S,
    path: PathBuf,
}

impl<S: RecordSource> RecordSource for Guarded<S> {
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError> {
        catching(&self.path, || self.source.next_batch())
    }
}

/// Runs `read`; a panic in it is a refusal of the file.
fn catching<T>(path: &Path, read: impl FnOnce() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
    // Sound to go on: the source that panicked is dropped with the error.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(RegistryError::BadSource { path: path.to_owned(), reason: "its parts contradict each other".to_owned() })
    })
}

/// A refusal of a file, in the words of a library.
fn bad(path: &Path, reason: impl std::fmt::Display) -> RegistryError {
    RegistryError::BadSource { path: path.to_owned(), reason: crate::error::clip(&reason.to_string()) }
}
