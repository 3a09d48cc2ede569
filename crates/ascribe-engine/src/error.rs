//! One error for the walk. Each variant says what, where, expected and found; the rest passes through.

use std::path::{Path, PathBuf};

use ascribe_core::Digest;

/// Errors of the walk.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No folder with `datasets/` and `models/`.
    #[error(
        "{looked}: expected a folder with datasets/ and models/ here or above, found none; hint: pass --home",
        looked = looked.display()
    )]
    NoHome {
        /// Where the search began.
        looked: PathBuf,
    },
    /// A recipe file cannot be used.
    #[error("{path}: {why}", path = path.display())]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with line and field.
        why: String,
    },
    /// A digest differs from the recorded one.
    #[error("{what}: expected SHA-256 {expected}, found {found}{hint}", what = what.display())]
    Digest {
        /// File or thing.
        what: PathBuf,
        /// Recorded.
        expected: Digest,
        /// Recomputed.
        found: Digest,
        /// What to do, starting with `; hint: `, or nothing.
        hint: &'static str,
    },
    /// A file's content is not what it must be.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// A record of a data file cannot be used.
    #[error("{path}, line {line}, field `{field}`: expected {expected}, found {found}", path = path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The field, or `line` for the whole of it.
        field: String,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// A setting contradicts the model or another setting.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// The setting, as it is called on the command line.
        setting: &'static str,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// A method's scores cannot be used.
    #[error("scores of method `{method}`: expected {expected}, found {found}")]
    Scores {
        /// The method.
        method: String,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// A stage needs more than the machine has.
    #[error("{stage}: expected {expected} of {what}, found {found}; hint: {hint}")]
    DoesNotFit {
        /// The stage.
        stage: &'static str,
        /// `memory` or `disk`.
        what: &'static str,
        /// Needed.
        expected: String,
        /// Available.
        found: String,
        /// Settings to change.
        hint: &'static str,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The disk, a quota or a size limit left no room.
    #[error("{path}: no room to write ({source}); hint: free some and run again, finished stations are kept", path = path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The user asked to stop; everything done so far is kept.
    #[error("stopped on request; run the same command again to go on from here")]
    Stopped,
    /// An audit found differences.
    #[error("audit: {count} difference(s); the first: {first}")]
    Audit {
        /// How many.
        count: usize,
        /// The first, in words.
        first: String,
    },
    /// From the registry.
    #[error(transparent)]
    Registry(#[from] ascribe_registry::RegistryError),
    /// From the corpus.
    #[error(transparent)]
    Corpus(#[from] ascribe_corpus::CorpusError),
    /// From the model.
    #[error(transparent)]
    Model(#[from] ascribe_models::ModelError),
    /// From the store.
    #[error(transparent)]
    Store(#[from] ascribe_store::StoreError),
    /// From the verbatim index.
    #[error(transparent)]
    Verbatim(#[from] ascribe_verbatim::VerbatimError),
    /// From the index.
    #[error(transparent)]
    Index(#[from] ascribe_index::IndexError),
    /// From a method.
    #[error(transparent)]
    Method(#[from] ascribe_methods::MethodError),
    /// From the evaluation.
    #[error(transparent)]
    Eval(#[from] ascribe_eval::EvalError),
    /// From the share policy.
    #[error(transparent)]
    Shares(#[from] ascribe_shares::SharesError),
    /// From the ledger.
    #[error(transparent)]
    Ledger(#[from] ascribe_ledger::LedgerError),
    /// From the report.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// A value could not be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl EngineError {
    /// An I/O error with its path; running out of room is told apart.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::NoRoom { path, source },
            _ => Self::Io { path, source },
        }
    }
}
