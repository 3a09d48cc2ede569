//! The tamper-evident log: SHA-256 Merkle trees as RFC 6962 draws them.
//!
//! Here live leaf and node hashes, the root of a list, the streaming root builder, and inclusion and consistency proofs
//! with their verifiers. Here never live files, signatures, clocks or the meaning of an entry: the tree sees bytes only.
//!
//! An *entry* is what is logged (any bytes), a *leaf hash* is `SHA-256(0x00 ‖ entry)`, a *node hash* is
//! `SHA-256(0x01 ‖ left ‖ right)`. The two prefixes keep an inner node from passing for an entry.
//!
//! ```
//! use ascribe_tlog::{RootBuilder, inclusion_proof, leaf_hash, root_of_leaves, verify_inclusion};
//!
//! let leaves: Vec<_> = ["a", "b", "c"].iter().map(|entry| leaf_hash(entry.as_bytes())).collect();
//! let head = ascribe_tlog::TreeHead { size: 3, root: root_of_leaves(&leaves) };
//! let proof = inclusion_proof(&leaves, 1)?;
//! verify_inclusion(leaves[1], 1, &proof, head)?;
//!
//! let mut streamed = RootBuilder::new();
//! for entry in ["a", "b", "c"] {
//!     streamed.push_entry(entry.as_bytes());
//! }
//! assert_eq!(streamed.head(), head);
//! # Ok::<(), ascribe_tlog::TlogError>(())
//! ```

mod error;
mod hash;
mod proof;
mod root;

pub use error::TlogError;
pub use hash::{EMPTY_ROOT, leaf_hash, node_hash};
pub use proof::{consistency_proof, inclusion_proof, verify_consistency, verify_inclusion};
pub use root::{RootBuilder, TreeHead, root_of_leaves};
