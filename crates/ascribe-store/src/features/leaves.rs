//! The hash of a shard taken apart, so that a few rows can be checked without reading all of it.
//!
//! BLAKE3 is a tree (its paper, §2.1): the hash of a file follows from the chaining values of its 16 KiB groups. A shard of more than
//! [`LEAVES_MIN_BYTES`] has them beside it, in `s-000123.leaves`: eight bytes of magic, then 32 bytes a group. They prove
//! themselves: put together they must give the hash that the manifest has of the shard, else they are not used and the whole
//! shard is hashed. So they are no part of a commit, need no checksum and may be deleted.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::atomic::TMP_SUFFIX;
use crate::error::StoreError;

/// Bytes of a group: 16 chunks, which BLAKE3 hashes side by side.
pub(crate) const GROUP_BYTES: usize = 16 << 10;
/// Smaller shards have no leaves: hashing them whole takes less than a millisecond.
pub const LEAVES_MIN_BYTES: u64 = 1 << 20;
/// First bytes of a file of leaves; the digit is its version.
const MAGIC: &[u8; 8] = b"ascleaf1";

/// Where the leaves of a shard are.
pub(crate) fn path_of(shard: &Path) -> PathBuf {
    shard.with_extension("leaves")
}

/// A hasher that keeps what it passes on the way up.
#[derive(Default)]
pub(crate) struct LeafHasher {
    leaves: Vec<ChainingValue>,
    /// The group that fills. A full one waits for the next byte: a lone group is a root, which is hashed otherwise.
    group: Vec<u8>,
}

impl LeafHasher {
    fn end_group(&mut self) {
        self.leaves.push(leaf(&self.group, self.leaves.len()));
        self.group.clear();
    }

    /// The hash of everything (hex), and its leaves (none if it is a single group).
    pub fn finish(mut self) -> (String, Vec<ChainingValue>) {
        if self.leaves.is_empty() {
            return (blake3::hash(&self.group).to_hex().to_string(), Vec::new());
        }
        self.end_group();
        (root(&self.leaves).to_hex().to_string(), self.leaves)
    }
}

impl Write for LeafHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.group.len() == GROUP_BYTES {
            self.end_group();
        }
        if self.group.is_empty() && bytes.len() > GROUP_BYTES {
            // Whole groups with more behind them: hashed where they lie.
            let n = (bytes.len() - 1) / GROUP_BYTES * GROUP_BYTES;
            for group in bytes[..n].chunks_exact(GROUP_BYTES) {
                self.leaves.push(leaf(group, self.leaves.len()));
            }
            return Ok(n);
        }
        let n = bytes.len().min(GROUP_BYTES - self.group.len());
        self.group.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Chaining value of group `i`.
fn leaf(group: &[u8], i: usize) -> ChainingValue {
    Hasher::new().set_input_offset((i * GROUP_BYTES) as u64).update(group).finalize_non_root()
}

/// The hash that at least two leaves stand for. The left half is the largest power of two below their number.
fn root(leaves: &[ChainingValue]) -> blake3::Hash {
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
}

fn subtree(leaves: &[ChainingValue]) -> ChainingValue {
    if let [leaf] = leaves {
        return *leaf;
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// Writes the leaves of the shard at `shard`. Not synced: what a power loss tears is not used.
pub(crate) fn write(shard: &Path, leaves: &[ChainingValue]) -> Result<(), StoreError> {
    let path = path_of(shard);
    let mut tmp = path.clone().into_os_string();
    tmp.push(format!(".{TMP_SUFFIX}"));
    let tmp = PathBuf::from(tmp);
    fs::write(&tmp, [&MAGIC[..], leaves.as_flattened()].concat())
        .and_then(|()| fs::rename(&tmp, &path))
        .map_err(|source| StoreError::io("write", &path, source))
}

/// The same for bytes at hand.
pub(crate) fn write_for(shard: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    if (bytes.len() as u64) < LEAVES_MIN_BYTES {
        return Ok(());
    }
    let leaves: Vec<ChainingValue> = bytes.chunks(GROUP_BYTES).enumerate().map(|(i, group)| leaf(group, i)).collect();
    write(shard, &leaves)
}

/// The leaves of a shard, proven to be those of its hash, and which groups were found to be as they say.
#[derive(Debug)]
pub(crate) struct Leaves {
    leaves: Vec<ChainingValue>,
    is_checked: Vec<AtomicBool>,
}

impl Leaves {
    /// Those of the shard at `path`, which has `len` bytes and the hash `blake3` (hex); none if there is no file of them or
    /// it says something else.
    pub fn read(path: &Path, len: usize, blake3: &str) -> Option<Self> {
        let n = len.div_ceil(GROUP_BYTES);
        if n < 2 {
            return None;
        }
        let path = path_of(path);
        // Measured first: a file of another length is not read.
        if fs::metadata(&path).ok()?.len() != (MAGIC.len() + 32 * n) as u64 {
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        let (leaves, rest) = bytes.strip_prefix(MAGIC)?.as_chunks::<32>();
        if leaves.len() != n || !rest.is_empty() || root(leaves).to_hex().as_str() != blake3 {
            return None;
        }
        let is_checked = (0..n).map(|_| AtomicBool::new(false)).collect();
        Some(Self { leaves: leaves.to_vec(), is_checked })
    }

    /// Looks at every group that `range` touches, once. On failure the chaining values, expected and found.
    pub fn check(&self, bytes: &[u8], range: Range<usize>) -> Result<(), (String, String)> {
        self.check_by(bytes.len(), range, |i, group| leaf(&bytes[group], i))
    }

    /// The same of a shard of `len` bytes; `copy` copies some of them.
    pub fn check_copied(
        &self,
        len: usize,
        range: Range<usize>,
        copy: impl Fn(Range<usize>, &mut [u8]),
    ) -> Result<(), (String, String)> {
        let mut room = Vec::new();
        self.check_by(len, range, |i, group| {
            room.resize(group.len(), 0);
            copy(group, &mut room);
            leaf(&room, i)
        })
    }

    fn check_by(
        &self,
        len: usize,
        range: Range<usize>,
        mut leaf_of: impl FnMut(usize, Range<usize>) -> ChainingValue,
    ) -> Result<(), (String, String)> {
        if range.is_empty() {
            return Ok(());
        }
        for i in range.start / GROUP_BYTES..=(range.end - 1) / GROUP_BYTES {
            // Relaxed: the flag guards no other memory, and a group that two threads look at is hashed twice.
            if self.is_checked[i].load(Ordering::Relaxed) {
                continue;
            }
            let found = leaf_of(i, i * GROUP_BYTES..((i + 1) * GROUP_BYTES).min(len));
            if found != self.leaves[i] {
                let name = |value: ChainingValue| format!("{} (group {i})", hex::encode(value));
                return Err((name(self.leaves[i]), name(found)));
            }
            self.is_checked[i].store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_put_together_are_the_plain_hash() {
        let bytes: Vec<u8> = (0..GROUP_BYTES * 9 + 77).map(|i: usize| ((i * i) >> 3) as u8).collect();
        for len in [
            0,
            1,
            1024,
            GROUP_BYTES,
            GROUP_BYTES + 1,
            2 * GROUP_BYTES,
            3 * GROUP_BYTES,
            5 * GROUP_BYTES - 1,
            bytes.len(),
        ] {
            // Byte by thousand, all at once, and behind a head as a shard is.
            for (first, then) in [(1000, 1000), (len.max(1), 1), (640, 5 * GROUP_BYTES), (GROUP_BYTES, GROUP_BYTES)] {
                let (head, rest) = bytes[..len].split_at(first.min(len));
                let mut hasher = LeafHasher::default();
                hasher.write_all(head).unwrap();
                rest.chunks(then).for_each(|piece| hasher.write_all(piece).unwrap());
                let (hash, leaves) = hasher.finish();
                assert_eq!(hash, blake3::hash(&bytes[..len]).to_hex().as_str(), "{len} bytes");
                assert_eq!(leaves.len(), if len <= GROUP_BYTES { 0 } else { len.div_ceil(GROUP_BYTES) });
            }
        }
    }

    #[test]
    fn only_the_leaves_of_the_hash_are_used_and_each_group_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s-000000.safetensors");
        let mut bytes = vec![7u8; LEAVES_MIN_BYTES as usize + 5];
        let hash = blake3::hash(&bytes).to_hex().to_string();
        assert!(Leaves::read(&path, bytes.len(), &hash).is_none(), "there are none");
        write_for(&path, &bytes).unwrap();
        let leaves = Leaves::read(&path, bytes.len(), &hash).unwrap();
        leaves.check(&bytes, 0..GROUP_BYTES + 1).unwrap();
        bytes[0] ^= 1;
        bytes[5 * GROUP_BYTES] ^= 1;
        leaves.check(&bytes, 0..10).unwrap(); // seen before the change
        leaves.check(&bytes, 2 * GROUP_BYTES..5 * GROUP_BYTES).unwrap();
        let copy = |range: Range<usize>, out: &mut [u8]| out.copy_from_slice(&bytes[range]);
        leaves.check_copied(bytes.len(), 6 * GROUP_BYTES..bytes.len(), copy).unwrap();
        let (_, found) = leaves.check_copied(bytes.len(), 5 * GROUP_BYTES..bytes.len(), copy).unwrap_err();
        assert!(found.ends_with("(group 5)"), "{found}");
        let (_, found) = leaves.check(&bytes, 2 * GROUP_BYTES..5 * GROUP_BYTES + 1).unwrap_err();
        assert!(found.ends_with("(group 5)"), "{found}");
        assert!(Leaves::read(&path, bytes.len(), &blake3::hash(b"other").to_hex()).is_none());
        let file = path_of(&path);
        let good = fs::read(&file).unwrap();
        for at in (0..good.len()).step_by(97) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&file, bad).unwrap();
            assert!(Leaves::read(&path, bytes.len(), &hash).is_none(), "byte {at}");
        }
    }
}
