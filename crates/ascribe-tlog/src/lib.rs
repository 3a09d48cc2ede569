//! The tamper-evident log: SHA-256 Merkle trees as RFC 6962 draws them, in folders that C2SP's tools read.
//!
//! Here live leaf and node hashes, roots, inclusion and consistency proofs with their verifiers; Ed25519 keys and
//! `did:key`; signed notes, checkpoints, witness cosignatures, receipts; and the folder itself: one crash-safe writer,
//! readers that trust nothing, the audit. Here never lives the meaning of an entry, and no network.
//!
//! | file | specification |
//! |---|---|
//! | `DIR/checkpoint` | C2SP tlog-checkpoint, a signed-note; cosignature/v1 lines by witnesses |
//! | `DIR/tile/LEVEL/N[.p/W]`, `DIR/tile/entries/N[.p/W]` | C2SP tlog-tiles |
//! | `DIR/checkpoints/SIZE` | every checkpoint ever signed, so that consistency between any two can be shown |
//! | `DIR/log.vkey` | the verifier key line; who must be sure has it from elsewhere |
//! | `NAME.tlog-proof` | C2SP tlog-proof: a receipt |
//! | `DIR/timestamps/SIZE.tsr` | an authority's answer over the checkpoint's text (RFC 3161) |
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

mod audit;
mod checkpoint;
mod error;
mod files;
mod hash;
mod key;
mod note;
mod proof;
mod reader;
mod receipt;
mod root;
mod tile;
mod timestamp;
mod writer;

pub use audit::{LogAudit, audit, check_extends, open_checkpoint, read_checkpoint, read_key};
pub use checkpoint::{Checkpoint, SignedCheckpoint};
pub use error::TlogError;
pub use files::write_secret;
pub use hash::{EMPTY_ROOT, leaf_hash, node_hash};
pub use key::{Ed25519Key, Ed25519PublicKey, SIGNATURE_LEN_BYTES, random_bytes};
pub use note::{NOTE_CAP_BYTES, NoteSigner, NoteVerifier, SignatureKind, SignedNote, VerifiedSignature, sign_note};
pub use proof::{TreeNodes, consistency_proof, inclusion_proof, root_at, verify_consistency, verify_inclusion};
pub use reader::{ENTRY_CAP_BYTES, TileTree};
pub use receipt::Receipt;
pub use root::{RootBuilder, TreeHead, root_of_leaves};
pub use tile::{TILE_HEIGHT, TILE_WIDTH};
pub use timestamp::{TOKEN_CAP_BYTES, TimeStamp, time_stamp_request, verify_time_stamp};
pub use writer::{Appended, CHECKPOINT_FILE, HISTORY_DIR, KEY_FILE, LOG_FORMAT_VERSION, LogWriter};
