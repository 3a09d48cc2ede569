//! Why a tree, a proof, a note or a log folder is refused.

use std::path::{Path, PathBuf};

use ascribe_core::Digest;

/// A refusal of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlogError {
    /// A leaf index lies outside the tree.
    #[error("leaf index {index} lies outside a tree of {size} leaves (hint: indexes count from 0)")]
    IndexOutOfRange {
        /// The index that was asked for.
        index: u64,
        /// Leaves of the tree.
        size: u64,
    },
    /// An older tree cannot be larger than a newer one, and an empty one proves nothing.
    #[error("no consistency proof from {old_size} to {new_size} leaves (hint: it needs 0 < old ≤ new)")]
    SizeOrder {
        /// Leaves of the older tree.
        old_size: u64,
        /// Leaves of the newer tree.
        new_size: u64,
    },
    /// A proof has too few or too many hashes for its tree.
    #[error("proof of the wrong length: expected {expected} hashes, found {found}")]
    ProofLength {
        /// Hashes that this position in this tree needs.
        expected: usize,
        /// Hashes in the proof.
        found: usize,
    },
    /// The hashes of a proof do not add up to the root that was promised.
    #[error("Merkle root of {size} leaves: expected {expected}, found {found}")]
    RootMismatch {
        /// Leaves of the tree whose root disagrees.
        size: u64,
        /// The promised root.
        expected: Digest,
        /// The root that the proof leads to.
        found: Digest,
    },
    /// The operating system gave no random bytes.
    #[error("no randomness for a new key: {reason}")]
    Randomness {
        /// Its message.
        reason: String,
    },
    /// A text or bytes that should be a key are none.
    #[error("key: expected {expected}, found {found}")]
    BadKey {
        /// What was expected.
        expected: &'static str,
        /// What was found; never a secret.
        found: String,
    },
    /// A signature does not hold.
    #[error("signature by {key} does not hold (hint: the text was changed, or another key signed it)")]
    BadSignature {
        /// Whose it should be.
        key: String,
    },
    /// Nobody whom the reader trusts has signed.
    #[error("expected a signature by {expected}, found {found}")]
    Unsigned {
        /// Keys that would do.
        expected: String,
        /// What there is.
        found: String,
    },
    /// Bytes that should be a signed note, checkpoint or receipt are none.
    #[error("expected {expected}, found {found}")]
    BadNote {
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// The same in a file.
    #[error("{}: {reason}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Box<TlogError>,
    },
    /// A file or folder that every log has is not there.
    #[error("{}: missing {what}", path.display())]
    Missing {
        /// Where it was expected.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("{}: {doing}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Its message.
        reason: String,
    },
    /// A tile or entry bundle does not hold what its name and the checkpoint promise.
    #[error("{}: {what}: expected {expected}, found {found}", path.display())]
    BadTile {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Another process holds the log.
    #[error("{}: another writer holds this log (hint: wait for it to end)", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Entries of tlog-tiles have a 16-bit length.
    #[error("entry {index} of the batch: expected at most {cap} bytes, found {found} (hint: log a digest)")]
    EntryTooLarge {
        /// Its place in the batch.
        index: usize,
        /// The cap.
        cap: usize,
        /// Its length.
        found: usize,
    },
    /// Two checkpoints of one log contradict each other: it was cut, forked or rewritten.
    #[error("{what}: the log was {how}: expected {expected}, found {found}")]
    Inconsistent {
        /// Which checkpoints.
        what: String,
        /// `cut short`, `rewritten` or `forked`.
        how: &'static str,
        /// What the older one promises.
        expected: String,
        /// What the newer one has.
        found: String,
    },
    /// A time stamp token is not what it must be.
    #[error("time stamp: {field}: expected {expected}, found {found}")]
    TimeStamp {
        /// Which part.
        field: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Work was stopped at the user's wish.
    #[error("stopped; the log ends at its last checkpoint")]
    Stopped,
}

impl TlogError {
    /// For `map_err` after an operation of the file system.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, reason: source.to_string() }
    }

    /// Says in which file it happened.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            // These name their file already.
            Self::InFile { .. } | Self::Missing { .. } | Self::Io { .. } | Self::BadTile { .. } => self,
            reason => Self::InFile { path: path.to_owned(), reason: Box::new(reason) },
        }
    }
}

/// Hostile files may state values of any length: a message shows the beginning.
pub(crate) fn clip(text: &str) -> String {
    const SHOWN_CHARS: usize = 120;
    if text.chars().count() <= SHOWN_CHARS {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS).chain(['…']).collect()
}
