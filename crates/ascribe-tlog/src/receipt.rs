//! Receipts (C2SP tlog-proof): an entry's place in a log, its inclusion proof and the signed checkpoint, as one text that
//! anybody can check offline.

use ascribe_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{SignedCheckpoint, decode_hash, parse_decimal};
use crate::error::{TlogError, clip};
use crate::note::{NOTE_CAP_BYTES, NoteVerifier};
use crate::proof::verify_inclusion;
use crate::reader::TileTree;

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// A tree has at most 64 levels.
const PROOF_CAP: usize = 64;

/// A receipt as read; [`Receipt::verify`] says whether it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Bytes of the application's own, which nothing authenticates.
    pub extra: Option<Vec<u8>>,
    /// Place of the entry, from 0.
    pub index: u64,
    /// Sibling hashes, leaf to root.
    pub proof: Vec<Digest>,
    /// The checkpoint, verbatim.
    pub checkpoint: String,
}

impl Receipt {
    /// The receipt of an entry of the log whose tree is `tree`.
    ///
    /// # Errors
    /// As [`TileTree::prove`].
    pub fn issue(tree: &TileTree, checkpoint: &SignedCheckpoint, index: u64) -> Result<Self, TlogError> {
        let (_, proof) = tree.prove(index)?;
        Ok(Self { extra: None, index, proof, checkpoint: checkpoint.note.as_str().to_owned() })
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        let extra = self.extra.as_ref().map_or_else(String::new, |e| format!("extra {}\n", STANDARD.encode(e)));
        let proof: String = self.proof.iter().map(|hash| STANDARD.encode(hash.0) + "\n").collect();
        format!("{HEADER}\n{extra}index {}\n{proof}\n{}", self.index, self.checkpoint)
    }

    /// Reads the text form; checks nothing but the form.
    ///
    /// # Errors
    /// [`TlogError::BadNote`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogError> {
        let bad =
            |expected: &'static str, found: &str| TlogError::BadNote { expected, found: format!("{:?}", clip(found)) };
        if bytes.len() > 2 * NOTE_CAP_BYTES {
            return Err(bad("a receipt of at most 131072 bytes", "more"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| bad("UTF-8", "other bytes"))?;
        let (head, checkpoint) =
            text.split_once("\n\n").ok_or_else(|| bad("an empty line before the checkpoint", text))?;
        let mut lines = head.split('\n').peekable();
        let header = lines.next().unwrap_or_default();
        if header != HEADER {
            return Err(bad("c2sp.org/tlog-proof@v1", header));
        }
        let extra = match lines.next_if(|line| line.starts_with("extra ")) {
            Some(line) => Some(STANDARD.decode(&line[6..]).map_err(|_| bad("extra data as base64", line))?),
            None => None,
        };
        let line = lines.next().unwrap_or_default();
        let index = line.strip_prefix("index ").and_then(parse_decimal);
        let index = index.ok_or_else(|| bad("index and a plain decimal", line))?;
        let proof: Vec<Digest> = lines
            .map(|line| decode_hash(line).ok_or_else(|| bad("a hash of 32 bytes as base64", line)))
            .collect::<Result<_, _>>()?;
        if proof.len() > PROOF_CAP {
            return Err(bad("at most 64 hashes", &proof.len().to_string()));
        }
        Ok(Self { extra, index, proof, checkpoint: checkpoint.to_owned() })
    }

    /// Checks that `leaf` (see [`crate::leaf_hash`]) stands in the log of `log` where the receipt says.
    ///
    /// Returns the checkpoint, with the cosignatures of known witnesses: which of them suffice is the caller's policy.
    ///
    /// # Errors
    /// What is wrong with signature or proof.
    pub fn verify(
        &self,
        leaf: Digest,
        log: &NoteVerifier,
        witnesses: &[NoteVerifier],
    ) -> Result<SignedCheckpoint, TlogError> {
        let checkpoint = SignedCheckpoint::open(self.checkpoint.as_bytes(), log, witnesses)?;
        verify_inclusion(leaf, self.index, &self.proof, checkpoint.head())?;
        Ok(checkpoint)
    }
}
