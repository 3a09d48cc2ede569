//! The errors of this crate: each names the file, what was expected, what was found, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, ExampleId};

/// What can be wrong with bytes at rest or with rows on their way there.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried (`write`, `rename`).
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No room left; what was half written is gone again.
    #[error("no room to write {path}: {source} (hint: free some space and run again, finished parts are kept)")]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that must be there is not.
    #[error("{path} is missing (hint: {hint})")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// The file is of another version of its format.
    #[error("{path}: expected {format} format version {expected}, found {found} (hint: {hint})", hint = version_hint(*.expected, *.found))]
    WrongVersion {
        /// The file.
        path: PathBuf,
        /// Which format.
        format: &'static str,
        /// Version this program speaks.
        expected: u32,
        /// Version of the file.
        found: u32,
    },
    /// The rows are of another model, checkpoint, projection or corpus.
    #[error("{path} was made for another spec: {difference}")]
    SpecMismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        difference: Box<SpecDifference>,
    },
    /// A setting of the store differs from the one it was begun with.
    #[error(
        "{path} was begun with {setting} {found}, expected {expected} (hint: use another folder or the old setting)"
    )]
    SettingMismatch {
        /// The file.
        path: PathBuf,
        /// Which setting.
        setting: &'static str,
        /// What the caller asks for.
        expected: String,
        /// What the store has.
        found: String,
    },
    /// A file is shorter or longer than was written.
    #[error("{path}: expected {expected} bytes, found {found} (hint: the file was cut or appended to; make it again)")]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Length in the manifest.
        expected: u64,
        /// Length on disk.
        found: u64,
    },
    /// The bytes of a file are not the ones that were written.
    #[error("{path}: expected checksum {expected}, found {found} (hint: the file was changed; make it again)")]
    WrongChecksum {
        /// The file.
        path: PathBuf,
        /// Checksum on record.
        expected: String,
        /// Checksum of the bytes.
        found: String,
    },
    /// A file does not follow its own format.
    #[error("{path}: {what}: expected {expected}, found {found}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: &'static str,
        /// What the format says.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The store was never finished.
    #[error(
        "{path} is unfinished: expected {expected_rows} rows, found {found_rows} committed (hint: run the writing step again, it resumes)"
    )]
    Unfinished {
        /// The store.
        path: PathBuf,
        /// Rows it is to have.
        expected_rows: u64,
        /// Rows it has.
        found_rows: u64,
    },
    /// Another writer holds the store.
    #[error("{path} is held by another writer (hint: wait for it or end it; the lock goes when its process does)")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Somebody else committed the generation that was about to be committed.
    #[error(
        "{path}: generation {generation} was committed by another writer (hint: open the store again and repeat the step)"
    )]
    Conflict {
        /// The manifest that is there already.
        path: PathBuf,
        /// Its number.
        generation: u64,
    },
    /// A row that should be deleted is not there.
    #[error("{path}: expected {what}, found none (hint: nothing was changed; `ascribe store stats` lists datasets)")]
    NoSuchRow {
        /// The store.
        path: PathBuf,
        /// The dataset or example.
        what: String,
    },
    /// The caller asked to stop; what is committed stays.
    #[error("stopped on request; run the same command again to go on from here")]
    Stopped,
    /// An append was begun and not finished.
    #[error(
        "{path}: an append of {expected_rows} rows is unfinished (hint: finish it, or remove this file to give it up)"
    )]
    Pending {
        /// The file that says so.
        path: PathBuf,
        /// Rows that it is to add.
        expected_rows: u64,
    },
    /// A companion's rows are no longer those of its store.
    #[error(
        "{path} was made of other rows: expected {expected}, found {found} (hint: `ascribe store convert DIR --rows {row_type} --companion` makes it again)"
    )]
    Stale {
        /// The companion.
        path: PathBuf,
        /// Digest of the store's rows.
        expected: String,
        /// Digest of the rows that it was made of.
        found: String,
        /// How it keeps numbers.
        row_type: &'static str,
    },
    /// A number that is not finite was about to be stored.
    #[error("{place}: expected a finite number, found {found}")]
    NotFinite {
        /// Row, column and module, or method and query.
        place: String,
        /// `NaN`, `inf`.
        found: String,
    },
    /// A finite number does not fit the row type.
    #[error("row {row} (example {id}), column {column}: {value} does not fit {row_type} (hint: store bf16 or f32)")]
    OutOfRange {
        /// Row in the store.
        row: u64,
        /// Its example.
        id: ExampleId,
        /// Column of the row.
        column: usize,
        /// The number.
        value: f32,
        /// The row type.
        row_type: &'static str,
    },
    /// The caller's arrays do not fit each other or the spec.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which shape.
        what: &'static str,
        /// By the spec.
        expected: String,
        /// As given.
        found: String,
    },
    /// The same example came twice.
    #[error("example {id} came twice: expected each example once, found it again at row {row}")]
    DuplicateExample {
        /// The example.
        id: ExampleId,
        /// Where it came again.
        row: u64,
    },
    /// Something larger than the format allows.
    #[error("{what}: expected at most {limit}, found {found}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The cap.
        limit: u64,
        /// As given or as the file says.
        found: u64,
    },
}

/// How two specs differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecDifference {
    /// Hash that the caller expects.
    pub expected: Digest,
    /// Hash of the file.
    pub found: Digest,
    /// First field that differs.
    pub field: &'static str,
    /// Its expected value.
    pub expected_value: String,
    /// Its value in the file.
    pub found_value: String,
}

impl fmt::Display for SpecDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, found, field, expected_value, found_value } = self;
        write!(f, "expected {expected}, found {found}; field `{field}` differs (expected {expected_value}, ")?;
        write!(f, "found {found_value})")
    }
}

fn version_hint(expected: u32, found: u32) -> &'static str {
    if found > expected { "a newer program wrote it" } else { "make it again with this program" }
}

impl StoreError {
    /// Sorts an operating system error: a full disk is told apart, a missing file too.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.to_path_buf();
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// A [`StoreError::Malformed`]; what was found is cut to 200 characters, for a hostile file must not fill a terminal.
    pub fn malformed(path: &Path, what: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        let found = found.to_string().chars().take(200).collect();
        Self::Malformed { path: path.to_path_buf(), what, expected: expected.to_string(), found }
    }
}
