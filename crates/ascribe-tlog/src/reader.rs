//! Reading a log folder: hashes from tiles, entries from bundles, proofs from both.
//!
//! Nothing read is taken on trust: a [`TileTree`] is made for one checkpoint, and the proofs that it gives are checked
//! against that checkpoint's root before anybody sees them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ascribe_core::Digest;

use crate::error::TlogError;
use crate::files::read_capped;
use crate::hash::leaf_hash;
use crate::proof::{TreeNodes, consistency_proof, inclusion_proof, root_at, verify_consistency, verify_inclusion};
use crate::root::{TreeHead, root_of_leaves};
use crate::tile::{HASH_LEN_BYTES, Row, TILE_HEIGHT, TILE_WIDTH, TileId, tile_at};

/// Longest entry: its length is a `u16`.
pub const ENTRY_CAP_BYTES: usize = u16::MAX as usize;

const BUNDLE_CAP_BYTES: usize = TILE_WIDTH as usize * (2 + ENTRY_CAP_BYTES);

/// Tiles kept in memory by one tree: proofs of neighbours share nearly all of theirs.
const CACHED_TILES: usize = 1024;

/// The tree of a log folder at one size.
pub struct TileTree {
    dir: PathBuf,
    head: TreeHead,
    tiles: RefCell<BTreeMap<TileId, Rc<Vec<Digest>>>>,
}

impl TileTree {
    /// The tree that a checkpoint of the log in `dir` states. Reads nothing yet.
    pub fn new(dir: &Path, head: TreeHead) -> Self {
        Self { dir: dir.to_owned(), head, tiles: RefCell::default() }
    }

    /// Size and root that it was made for.
    pub fn head(&self) -> TreeHead {
        self.head
    }

    /// Checks that the tiles add up to the root of the checkpoint. Cost: one tile per level.
    ///
    /// # Errors
    /// [`TlogError::Missing`], [`TlogError::BadTile`], [`TlogError::RootMismatch`].
    pub fn check_root(&self) -> Result<(), TlogError> {
        let found = root_at(self, self.head.size)?;
        if found == self.head.root {
            return Ok(());
        }
        Err(TlogError::RootMismatch { size: self.head.size, expected: self.head.root, found })
    }

    /// Bytes of the entry at `index`, checked against its leaf in the level-0 tile. Whether that leaf belongs to the
    /// checkpoint is what [`TileTree::prove`] says.
    ///
    /// # Errors
    /// [`TlogError::IndexOutOfRange`], [`TlogError::Missing`], [`TlogError::BadTile`].
    pub fn entry(&self, index: u64) -> Result<Vec<u8>, TlogError> {
        let tile = self.tile(Row::Entries, index)?;
        let (bytes, path) = self.read(tile, BUNDLE_CAP_BYTES, "entry bundle")?;
        let entry = split_bundle(&path, &bytes)?.into_iter().nth((index % TILE_WIDTH) as usize).map(<[u8]>::to_vec);
        let entry = entry.ok_or_else(|| bad_tile(&path, "entries", tile.width, "fewer"))?;
        let (expected, found) = (self.node(0, index)?, leaf_hash(&entry));
        if expected != found {
            return Err(bad_tile(&path, format!("hash of entry {index}"), expected, found));
        }
        Ok(entry)
    }

    /// Inclusion proof of the leaf at `index`, checked against the root.
    ///
    /// # Errors
    /// [`TlogError::IndexOutOfRange`], [`TlogError::Missing`], [`TlogError::BadTile`], [`TlogError::RootMismatch`].
    pub fn prove(&self, index: u64) -> Result<(Digest, Vec<Digest>), TlogError> {
        let proof = inclusion_proof(self, index)?;
        let leaf = self.node(0, index)?;
        verify_inclusion(leaf, index, &proof, self.head)?;
        Ok((leaf, proof))
    }

    /// Proof that the tree of `old` is a prefix of this one, checked against both roots. An empty old tree needs none.
    ///
    /// # Errors
    /// [`TlogError::SizeOrder`] if this tree is smaller, [`TlogError::RootMismatch`] if it is another tree; missing and
    /// bad tiles.
    pub fn prove_extends(&self, old: TreeHead) -> Result<Vec<Digest>, TlogError> {
        if old.size == 0 {
            return Ok(Vec::new());
        }
        let proof = consistency_proof(self, old.size)?;
        verify_consistency(old, self.head, &proof)?;
        Ok(proof)
    }

    /// Hashes of a tile.
    pub(crate) fn hashes(&self, tile: TileId) -> Result<Rc<Vec<Digest>>, TlogError> {
        if let Some(hashes) = self.tiles.borrow().get(&tile) {
            return Ok(Rc::clone(hashes));
        }
        let (bytes, path) = self.read(tile, TILE_WIDTH as usize * HASH_LEN_BYTES, "tile")?;
        let hashes = Rc::new(split_tile(&path, &bytes, tile.width)?);
        let mut tiles = self.tiles.borrow_mut();
        if tiles.len() >= CACHED_TILES {
            tiles.clear();
        }
        tiles.insert(tile, Rc::clone(&hashes));
        Ok(hashes)
    }

    /// Entries of a bundle, in order, not yet checked against their leaves.
    pub(crate) fn bundle(&self, tile: TileId) -> Result<(Vec<Vec<u8>>, PathBuf), TlogError> {
        let (bytes, path) = self.read(tile, BUNDLE_CAP_BYTES, "entry bundle")?;
        let mut entries = split_bundle(&path, &bytes)?;
        if (entries.len() as u64) < tile.width || entries.len() as u64 > TILE_WIDTH {
            return Err(bad_tile(&path, "entries", tile.width, entries.len()));
        }
        entries.truncate(tile.width as usize);
        Ok((entries.into_iter().map(<[u8]>::to_vec).collect(), path))
    }

    fn tile(&self, row: Row, index: u64) -> Result<TileId, TlogError> {
        let outside = TlogError::IndexOutOfRange { index, size: self.head.size };
        if index >= self.head.size {
            Err(outside)
        } else {
            tile_at(self.head.size, row, index / TILE_WIDTH).ok_or(outside)
        }
    }

    /// Bytes of a tile; a partial one may have been replaced by its full one since.
    fn read(&self, tile: TileId, cap: usize, what: &'static str) -> Result<(Vec<u8>, PathBuf), TlogError> {
        let path = self.dir.join(tile.path());
        if let Some(bytes) = read_capped(&path, cap)? {
            return Ok((bytes, path));
        }
        let full = self.dir.join(tile.full().path());
        match read_capped(&full, cap)? {
            Some(bytes) => Ok((bytes, full)),
            None => Err(TlogError::Missing { path, what }),
        }
    }
}

impl TreeNodes for TileTree {
    fn size(&self) -> u64 {
        self.head.size
    }

    fn node(&self, level: u8, index: u64) -> Result<Digest, TlogError> {
        let (row, within) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
        // The node covers `2^within` hashes of one tile.
        let first = index << within;
        let outside = TlogError::IndexOutOfRange { index, size: self.head.size };
        let tile = tile_at(self.head.size, Row::Level(row), first / TILE_WIDTH).ok_or(outside.clone())?;
        let hashes = self.hashes(tile)?;
        let start = (first % TILE_WIDTH) as usize;
        hashes.get(start..start + (1 << within)).map(root_of_leaves).ok_or(outside)
    }
}

fn bad_tile(path: &Path, what: impl Into<String>, expected: impl ToString, found: impl ToString) -> TlogError {
    TlogError::BadTile {
        path: path.to_owned(),
        what: what.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

/// The first `width` hashes of a tile, which may have grown full since.
fn split_tile(path: &Path, bytes: &[u8], width: u64) -> Result<Vec<Digest>, TlogError> {
    let expected = width as usize * HASH_LEN_BYTES;
    let full = TILE_WIDTH as usize * HASH_LEN_BYTES;
    if bytes.len() != expected && bytes.len() != full {
        return Err(bad_tile(path, "length", format!("{expected} bytes"), format!("{} bytes", bytes.len())));
    }
    let (hashes, _) = bytes[..expected].as_chunks::<HASH_LEN_BYTES>();
    Ok(hashes.iter().map(|hash| Digest(*hash)).collect())
}

/// Entries of a bundle: each a big-endian `u16` length and its bytes.
pub(crate) fn split_bundle<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>, TlogError> {
    let (mut rest, mut entries) = (bytes, Vec::new());
    while !rest.is_empty() {
        let cut = rest.split_first_chunk::<2>().and_then(|(len, tail)| {
            let len = usize::from(u16::from_be_bytes(*len));
            tail.split_at_checked(len)
        });
        let Some((entry, tail)) = cut else {
            return Err(bad_tile(path, format!("entry {}", entries.len()), "its whole length", "the end of the file"));
        };
        entries.push(entry);
        rest = tail;
        if entries.len() > TILE_WIDTH as usize {
            return Err(bad_tile(path, "entries", format!("at most {TILE_WIDTH}"), "more"));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_split_by_hand() {
        let path = Path::new("bundle");
        assert_eq!(split_bundle(path, b"\0\x02ab\0\0\0\x01c").unwrap(), [&b"ab"[..], b"", b"c"]);
        assert!(split_bundle(path, b"\0\x02a").is_err());
        assert!(split_bundle(path, b"\0").is_err());
        assert!(split_bundle(path, &[0; 2 * 257]).is_err());
    }

    #[test]
    fn a_tile_has_one_of_two_lengths() {
        let path = Path::new("tile");
        assert_eq!(split_tile(path, &[7; 64], 2).unwrap(), [Digest([7; 32]); 2]);
        assert_eq!(split_tile(path, &[7; 8192], 2).unwrap().len(), 2);
        assert!(split_tile(path, &[7; 96], 2).is_err());
    }
}
