//! Why a tree or a proof is refused.

use ascribe_core::Digest;

/// A refusal of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
}
