//! Errors of starting and keeping a server. What a client is told stands in `problem`.

use std::path::{Path, PathBuf};

/// Errors of a server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting cannot be used.
    #[error("{setting} (from {origin}): expected {expected}, found {found}")]
    Setting {
        /// The setting, as in the configuration file.
        setting: String,
        /// Where its value came from.
        origin: String,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or address.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line of a journal or batch is no receipt.
    #[error("{path}, line {line}: expected a signed usage receipt, found {why}; hint: keep the file, it may hold receipts", path = path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong.
        why: String,
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
    /// The material cannot be loaded.
    #[error("{0}")]
    Load(String),
    /// From the registry.
    #[error(transparent)]
    Registry(#[from] ascribe_registry::RegistryError),
    /// From the log.
    #[error(transparent)]
    Tlog(#[from] ascribe_tlog::TlogError),
    /// A receipt that is none.
    #[error(transparent)]
    Usage(#[from] ascribe_registry::UsageError),
}

impl ServerError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
