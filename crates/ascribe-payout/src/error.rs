//! One error for payout runs. Each variant says what, where, expected and found; the rest passes through.

use std::path::{Path, PathBuf};

use ascribe_core::Digest;

/// Errors of payout runs.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// A policy file cannot be used.
    #[error("{path}: {why}", path = path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with line and field.
        why: String,
    },
    /// A digest differs from the recorded one.
    #[error("{path}: expected SHA-256 {expected}, found {found}; hint: {hint}", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Recorded.
        expected: Digest,
        /// Recomputed.
        found: Digest,
        /// What to do.
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
    /// A setting contradicts its meaning or another setting.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// The setting, as it is called on the command line or in the policy file.
        setting: &'static str,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// A run made again from its inputs differs.
    #[error("verify: {count} difference(s); the first: {first}")]
    Differs {
        /// How many.
        count: usize,
        /// The first, in words.
        first: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The user asked to stop; nothing is half written.
    #[error("stopped on request; run the same command again")]
    Stopped,
    /// From the registry.
    #[error(transparent)]
    Registry(#[from] ascribe_registry::RegistryError),
    /// From the store.
    #[error(transparent)]
    Store(#[from] ascribe_store::StoreError),
    /// From the share policy.
    #[error(transparent)]
    Shares(#[from] ascribe_shares::SharesError),
    /// From the ledger.
    #[error(transparent)]
    Ledger(#[from] ascribe_ledger::LedgerError),
    /// A page's template does not fit its view, which would be a defect.
    #[error("page: {0}")]
    Page(#[from] minijinja::Error),
    /// A value could not be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl PayError {
    /// An I/O error with its path.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }
}
