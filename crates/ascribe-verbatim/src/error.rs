//! The errors of this crate.

use ascribe_core::RecordId;
use ascribe_store::StoreError;

/// What can be wrong with a build, an index or a search.
#[derive(Debug, thiserror::Error)]
pub enum VerbatimError {
    /// A file of the index is not as it should be, or the system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting outside its range.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// Its range.
        expected: String,
        /// As given.
        found: u64,
    },
    /// A record that cannot be indexed.
    #[error("dataset {}, record {}: expected {expected}, found {found}", record.dataset, record.row)]
    Record {
        /// The record.
        record: RecordId,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The library that sorts suffixes gave up.
    #[error("suffixes of {tokens} tokens could not be sorted: {why} (hint: smaller shards need less memory)")]
    Sort {
        /// Tokens of the shard.
        tokens: usize,
        /// The library's words.
        why: String,
    },
}
