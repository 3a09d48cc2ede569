//! Roots: of a list in memory, and of a stream in `O(log n)` memory.

use ascribe_core::Digest;

use crate::hash::{EMPTY_ROOT, leaf_hash, node_hash};

/// A tree by its size and root: what a checkpoint states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeHead {
    /// Leaves.
    pub size: u64,
    /// Merkle root over them.
    pub root: Digest,
}

/// Root over leaf hashes, RFC 6962 §2.1: the left subtree is the largest power of two below `n`.
///
/// Cost: `n − 1` node hashes. An empty list gives [`EMPTY_ROOT`].
pub fn root_of_leaves(leaves: &[Digest]) -> Digest {
    let mut builder = RootBuilder::new();
    for leaf in leaves {
        builder.push_leaf(*leaf);
    }
    builder.head().root
}

/// Builds a root leaf by leaf and keeps only the roots of the complete subtrees so far, at most 64 of them.
///
/// The binary digits of `size` say which complete subtrees stand on the stack: a new leaf is an increment with carries.
/// Asking for the head does not disturb the builder, so a log can state its root after every entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootBuilder {
    size: u64,
    /// Roots of complete subtrees, largest (leftmost) first.
    peaks: Vec<Digest>,
}

impl RootBuilder {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry by its bytes.
    pub fn push_entry(&mut self, entry: &[u8]) {
        self.push_leaf(leaf_hash(entry));
    }

    /// Appends an entry by its leaf hash. Amortised cost: one node hash.
    pub fn push_leaf(&mut self, leaf: Digest) {
        let mut node = leaf;
        // Each trailing one of the size is a complete subtree that the new node closes.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("the stack holds one peak per set bit of the size");
            node = node_hash(left, node);
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size and root so far. Cost: at most 63 node hashes.
    pub fn head(&self) -> TreeHead {
        let root = self.peaks.iter().rev().copied().reduce(|right, left| node_hash(left, right));
        TreeHead { size: self.size, root: root.unwrap_or(EMPTY_ROOT) }
    }
}
