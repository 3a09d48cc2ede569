//! Why something registered is refused: what, where, expected, found.

use std::path::{Path, PathBuf};

/// A refusal of the registry. Each message names the file and what was expected of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A file or folder that every registry has is not there.
    #[error("{}: missing {what}", path.display())]
    Missing {
        /// Where it was expected.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file is larger than any honest one.
    #[error("{}: expected at most {cap} bytes, found {found}", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The cap.
        cap: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A JSON file does not have the declared form (an unknown or missing field, a wrong type, broken syntax).
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A record line is not UTF-8.
    #[error("{}:{line}: expected UTF-8, found byte 0x{byte:02x} at offset {offset} of the line", path.display())]
    NotUtf8 {
        /// The record file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// First offset that is not UTF-8.
        offset: usize,
        /// The byte there.
        byte: u8,
    },
    /// A record line does not have the declared form.
    #[error("{}:{line}: {reason}", path.display())]
    BadRecord {
        /// The record file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Two records of a dataset have one id.
    #[error("{}:{line}: duplicate record id {id:?}, first seen on line {first_line}", path.display())]
    DuplicateRecord {
        /// The record file.
        path: PathBuf,
        /// Line of the second one, from 1.
        line: u64,
        /// The id.
        id: String,
        /// Line of the first one, from 1.
        first_line: u64,
    },
    /// A dataset has no record.
    #[error("{}: expected at least one record, found none", path.display())]
    EmptyDataset {
        /// The record file.
        path: PathBuf,
    },
    /// A stated value is not the one that follows from the bytes or from another file.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Field {
        /// The file that is wrong, or that states the field.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Payee shares do not make a whole.
    #[error("{}: payees: expected shares that sum to 1000000 ppm, found {found_ppm}", path.display())]
    SharesDoNotSum {
        /// The manifest or licence.
        path: PathBuf,
        /// Sum of the shares, in parts per million.
        found_ppm: u64,
    },
    /// The signature's `s` lies in the upper half of the group order: the malleable twin of a good signature.
    #[error(
        "{}: signature: expected s in the lower half of the group order, found the high-s twin (hint: sign again with a \
         signer that follows EIP-2)",
        path.display()
    )]
    HighS {
        /// The licence.
        path: PathBuf,
    },
    /// The recovery byte is neither 27 nor 28.
    #[error("{}: signature: expected v = 27 or 28, found v = {found}", path.display())]
    RecoveryByte {
        /// The licence.
        path: PathBuf,
        /// The byte.
        found: u8,
    },
    /// The signature is not one of the stated licensor over the stated message.
    #[error("{}: signature: expected one by {expected}, found {found}", path.display())]
    WrongSigner {
        /// The licence.
        path: PathBuf,
        /// The licensor that the message names.
        expected: String,
        /// Who signed, or why nobody did.
        found: String,
    },
    /// A licence was never registered.
    #[error(
        "{}: expected the digest {digest} of the licence of {dataset:?}, found no such line (hint: register the licence)",
        path.display()
    )]
    NotInLog {
        /// The log.
        path: PathBuf,
        /// The dataset.
        dataset: String,
        /// Its licence's digest.
        digest: String,
    },
    /// The licence was registered after the training run had begun.
    #[error(
        "{dataset}: licence is newer than the training run: expected a log index below {log_size}, found {log_index}"
    )]
    LicenceAfterRun {
        /// The dataset.
        dataset: String,
        /// Place of the licence in the log, from 0.
        log_index: u64,
        /// Size of the log that the run saw.
        log_size: u64,
    },
    /// The licence was not in force when the run began.
    #[error(
        "{dataset}: licence not in force at the start of the training run: expected {expected}, found start {start}"
    )]
    LicenceNotInForce {
        /// The dataset.
        dataset: String,
        /// The window of the licence.
        expected: String,
        /// Start of the run, Unix seconds.
        start: u64,
    },
    /// The licence was revoked before the run began.
    #[error("{dataset}: licence revoked from {from} on ({reason:?}): expected an earlier start, found {start}")]
    LicenceRevoked {
        /// The dataset.
        dataset: String,
        /// First moment from which it no longer counts, Unix seconds.
        from: u64,
        /// Start of the run, Unix seconds.
        start: u64,
        /// The reason that the licensor gave.
        reason: String,
    },
    /// A source file cannot be read as what its name says.
    #[error("{}: {reason}", path.display())]
    BadSource {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A keystore does not open.
    #[error("{}: {reason}", path.display())]
    Keystore {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The database refused.
    #[error("registry database: {0}")]
    Sql(#[from] ascribe_sql::SqlError),
    /// What was asked for contradicts what is registered.
    #[error("{what}: expected {expected}, found {found}")]
    Refused {
        /// Of what.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The terms do not allow the use.
    #[error("{dataset}: licence does not permit {usage}: expected it among the permits, found {found}")]
    NotPermitted {
        /// The dataset.
        dataset: String,
        /// The use, as an RSL token.
        usage: &'static str,
        /// Permits and prohibits as stated.
        found: String,
    },
    /// The log in the folder does not begin with the log that the run saw.
    #[error("{}: root of the first {size} licences: expected {expected}, found {found}", path.display())]
    LogRewritten {
        /// The log.
        path: PathBuf,
        /// Size that the run record names.
        size: u64,
        /// Root that the run record names.
        expected: String,
        /// Root of the log in the folder.
        found: String,
    },
    /// The transparency log refuses.
    #[error(transparent)]
    Log(#[from] ascribe_tlog::TlogError),
    /// A usage receipt is not what it must be.
    #[error(transparent)]
    Usage(#[from] crate::usage::UsageError),
    /// Work was stopped at the user's wish.
    #[error("stopped; nothing was changed")]
    Stopped,
}

impl RegistryError {
    /// For `map_err` after an operation of the file system.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    /// A request that contradicts what is registered.
    pub(crate) fn refused(
        what: impl std::fmt::Display,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Refused { what: what.to_string(), expected: expected.to_string(), found: clip(&found.to_string()) }
    }

    /// A column that a source does not have.
    pub(crate) fn no_column(path: &Path, wanted: &str, columns: &[String]) -> Self {
        let found = format!("{} (hint: name it with --text-field and --id-field)", columns.join(", "));
        Self::field(path, "columns", format!("one named {wanted:?}"), found)
    }

    /// A stated value that is not the right one.
    pub(crate) fn field(
        path: &Path,
        field: impl Into<String>,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        let (expected, found) = (clip(&expected.to_string()), clip(&found.to_string()));
        Self::Field { path: path.to_owned(), field: field.into(), expected, found }
    }
}

/// Hostile files may state values of any length: a message shows the beginning.
pub(crate) fn clip(text: &str) -> String {
    const SHOWN_CHARS: usize = 200;
    if text.chars().count() <= SHOWN_CHARS {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS).chain(['…']).collect()
}
