//! Inclusion and consistency proofs (RFC 6962 §2.1.1, §2.1.2) and their verifiers (RFC 9162 §2.1.3.2, §2.1.4.2).
//!
//! Provers read nodes and walk the tree from the root down; verifiers hold a proof only and walk from the leaf
//! up. The two share no code but the hashes, so that one checks the other.

use ascribe_core::Digest;

use crate::error::TlogError;
use crate::hash::{EMPTY_ROOT, node_hash};
use crate::root::{TreeHead, root_of_leaves};

/// Where the hashes of complete subtrees come from: a list in memory, or the tiles of a log.
pub trait TreeNodes {
    /// Leaves.
    fn size(&self) -> u64;

    /// Hash of the complete subtree of `2^level` leaves that begins at leaf `index · 2^level`, which lies in the tree.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn node(&self, level: u8, index: u64) -> Result<Digest, TlogError>;
}

impl<L: AsRef<[Digest]> + ?Sized> TreeNodes for L {
    fn size(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn node(&self, level: u8, index: u64) -> Result<Digest, TlogError> {
        let start = (index as usize) << level;
        Ok(root_of_leaves(&self.as_ref()[start..start + (1 << level)]))
    }
}

/// Root over the leaves of `start..end`, a range as RFC 6962 cuts them: complete subtrees, the largest first.
fn range_root<N: TreeNodes + ?Sized>(nodes: &N, start: u64, end: u64) -> Result<Digest, TlogError> {
    let (mut at, mut peaks) = (start, Vec::new());
    while at < end {
        let level = (end - at).ilog2();
        peaks.push(nodes.node(level as u8, at >> level)?);
        at += 1 << level;
    }
    Ok(peaks.into_iter().rev().reduce(|right, left| node_hash(left, right)).unwrap_or(EMPTY_ROOT))
}

/// Root as it was after the first `size` leaves. Cost: at most 63 nodes.
///
/// # Errors
/// [`TlogError::SizeOrder`] if the tree is smaller; whatever reading a node gives.
pub fn root_at<N: TreeNodes + ?Sized>(nodes: &N, size: u64) -> Result<Digest, TlogError> {
    if size > nodes.size() {
        return Err(TlogError::SizeOrder { old_size: size, new_size: nodes.size() });
    }
    range_root(nodes, 0, size)
}

/// Sibling hashes from the leaf at `index` up to the root of the tree.
///
/// Length: at most `⌈log2 n⌉`. Cost: at most `(log2 n)²/2` nodes; over a list in memory about `n` node hashes.
///
/// # Errors
/// [`TlogError::IndexOutOfRange`]; whatever reading a node gives.
pub fn inclusion_proof<N: TreeNodes + ?Sized>(nodes: &N, index: u64) -> Result<Vec<Digest>, TlogError> {
    let size = nodes.size();
    if index >= size {
        return Err(TlogError::IndexOutOfRange { index, size });
    }
    let (mut start, mut end, mut path) = (0, size, Vec::new());
    while end - start > 1 {
        let middle = start + left_width(end - start);
        if index < middle {
            path.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(range_root(nodes, start, middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Hashes that show the tree of the first `old_size` leaves to be a prefix of the whole tree.
///
/// Equal sizes give an empty proof. Cost: as [`inclusion_proof`].
///
/// # Errors
/// [`TlogError::SizeOrder`] unless `0 < old_size ≤ size`; whatever reading a node gives.
pub fn consistency_proof<N: TreeNodes + ?Sized>(nodes: &N, old_size: u64) -> Result<Vec<Digest>, TlogError> {
    let new_size = nodes.size();
    if old_size == 0 || old_size > new_size {
        return Err(TlogError::SizeOrder { old_size, new_size });
    }
    let (mut start, mut end, mut path) = (0, new_size, Vec::new());
    // True while the old tree is a subtree on the left edge: the verifier knows its root already.
    let mut known = true;
    while old_size < end {
        let middle = start + left_width(end - start);
        if old_size <= middle {
            path.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(range_root(nodes, start, middle)?);
            start = middle;
            known = false;
        }
    }
    if !known {
        path.push(range_root(nodes, start, end)?);
    }
    path.reverse();
    Ok(path)
}

/// Checks that `leaf` stands at `index` in the tree of `head`.
///
/// # Errors
/// [`TlogError::IndexOutOfRange`], [`TlogError::ProofLength`], [`TlogError::RootMismatch`].
pub fn verify_inclusion(leaf: Digest, index: u64, proof: &[Digest], head: TreeHead) -> Result<(), TlogError> {
    if index >= head.size {
        return Err(TlogError::IndexOutOfRange { index, size: head.size });
    }
    check_length(inclusion_length(index, head.size), proof.len())?;
    let (mut node_idx, mut last_idx, mut node) = (index, head.size - 1, leaf);
    for sibling in proof {
        if node_idx & 1 == 1 || node_idx == last_idx {
            node = node_hash(*sibling, node);
            // On the right edge, levels without a sibling are skipped.
            while node_idx & 1 == 0 && node_idx != 0 {
                node_idx >>= 1;
                last_idx >>= 1;
            }
        } else {
            node = node_hash(node, *sibling);
        }
        node_idx >>= 1;
        last_idx >>= 1;
    }
    check_root(head, node)
}

/// Checks that the tree of `new` extends the tree of `old`.
///
/// # Errors
/// [`TlogError::SizeOrder`], [`TlogError::ProofLength`], [`TlogError::RootMismatch`].
pub fn verify_consistency(old: TreeHead, new: TreeHead, proof: &[Digest]) -> Result<(), TlogError> {
    if old.size == 0 || old.size > new.size {
        return Err(TlogError::SizeOrder { old_size: old.size, new_size: new.size });
    }
    check_length(consistency_length(old.size, new.size), proof.len())?;
    if old.size == new.size {
        return check_root(new, old.root);
    }
    // A complete old tree is a node of the new one: its root starts both walks and is not in the proof.
    let (first, rest) = match proof.split_first() {
        Some((first, rest)) if !old.size.is_power_of_two() => (*first, rest),
        _ => (old.root, proof),
    };
    let trailing = (old.size - 1).trailing_ones();
    let (mut old_idx, mut new_idx) = ((old.size - 1) >> trailing, (new.size - 1) >> trailing);
    let (mut old_node, mut new_node) = (first, first);
    for sibling in rest {
        if old_idx & 1 == 1 || old_idx == new_idx {
            old_node = node_hash(*sibling, old_node);
            new_node = node_hash(*sibling, new_node);
            while old_idx & 1 == 0 && old_idx != 0 {
                old_idx >>= 1;
                new_idx >>= 1;
            }
        } else {
            new_node = node_hash(new_node, *sibling);
        }
        old_idx >>= 1;
        new_idx >>= 1;
    }
    check_root(old, old_node)?;
    check_root(new, new_node)
}

/// Leaves of the left subtree of `n > 1` leaves: the largest power of two below `n`.
fn left_width(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// Siblings of leaf `index`: below the level where its path joins the right edge every level has one, above it only
/// those where the edge turns.
fn inclusion_length(index: u64, size: u64) -> usize {
    let inner = u64::BITS - (index ^ (size - 1)).leading_zeros();
    let border = index.checked_shr(inner).unwrap_or(0).count_ones();
    (inner + border) as usize
}

/// Siblings of the last complete subtree of the old tree within the new one, and that subtree itself unless it is the
/// whole old tree.
fn consistency_length(old_size: u64, new_size: u64) -> usize {
    if old_size == new_size {
        return 0;
    }
    let shift = (old_size - 1).trailing_ones();
    let siblings = inclusion_length((old_size - 1) >> shift, ((new_size - 1) >> shift) + 1);
    siblings + usize::from(!old_size.is_power_of_two())
}

fn check_length(expected: usize, found: usize) -> Result<(), TlogError> {
    if expected == found { Ok(()) } else { Err(TlogError::ProofLength { expected, found }) }
}

fn check_root(head: TreeHead, found: Digest) -> Result<(), TlogError> {
    if head.root == found {
        Ok(())
    } else {
        Err(TlogError::RootMismatch { size: head.size, expected: head.root, found })
    }
}
