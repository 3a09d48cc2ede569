//! Appending to a log folder: tiles and bundles first, durably; then the checkpoint that names them, by rename.
//!
//! A writer that dies in between leaves files that no checkpoint names: the next one writes them anew. A file that a
//! checkpoint does name is never written again. One writer at a time holds the folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};

use crate::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::error::TlogError;
use crate::files::{Batch, read_capped, read_required, write_durable};
use crate::hash::{EMPTY_ROOT, leaf_hash};
use crate::key::Ed25519Key;
use crate::note::{NOTE_CAP_BYTES, NoteSigner, NoteVerifier, SignedNote};
use crate::reader::{ENTRY_CAP_BYTES, TileTree};
use crate::root::{TreeHead, root_of_leaves};
use crate::tile::{Row, TILE_WIDTH, TileId, n_levels, tile_at};

/// Version of the folder: C2SP tlog-tiles with a history of checkpoints.
pub const LOG_FORMAT_VERSION: u32 = 1;

/// The latest checkpoint.
pub const CHECKPOINT_FILE: &str = "checkpoint";

/// The log's verifier key, for readers who have it from nowhere else.
pub const KEY_FILE: &str = "log.vkey";

/// Every checkpoint that was ever signed, by size.
pub const HISTORY_DIR: &str = "checkpoints";

const LOCK_FILE: &str = ".lock";

/// What an append did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Index of the first entry of the batch.
    pub first_index: u64,
    /// Checkpoint that covers the batch.
    pub checkpoint: SignedCheckpoint,
}

/// The only writer of a log folder.
pub struct LogWriter {
    dir: PathBuf,
    signer: NoteSigner,
    checkpoint: SignedCheckpoint,
    edge: Edge,
    /// Held while the writer lives; the operating system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl LogWriter {
    /// Makes a new log, of no entries, in `dir`.
    ///
    /// # Errors
    /// [`TlogError::Locked`], [`TlogError::Io`]; [`TlogError::BadNote`] if there is a log already.
    pub fn create(dir: &Path, signer: NoteSigner) -> Result<Self, TlogError> {
        fs::create_dir_all(dir).map_err(TlogError::io(dir, "creating"))?;
        let lock = lock(dir)?;
        if let Some(found) = read_capped(&dir.join(CHECKPOINT_FILE), NOTE_CAP_BYTES)? {
            let found = format!("a log with a checkpoint of {} bytes", found.len());
            return Err(TlogError::BadNote { expected: "a folder without a log", found }.in_file(dir));
        }
        let head = TreeHead { size: 0, root: EMPTY_ROOT };
        let checkpoint = sign_head(&signer, head)?;
        write_durable(&dir.join(KEY_FILE), format!("{}\n", signer.verifier()).as_bytes())?;
        write_durable(&dir.join(CHECKPOINT_FILE), checkpoint.note.as_str().as_bytes())?;
        Ok(Self { dir: dir.to_owned(), signer, checkpoint, edge: Edge::default(), _lock: lock })
    }

    /// Opens the log in `dir` for appending: its checkpoint must be signed by `signer` and its right edge must add up.
    ///
    /// # Errors
    /// [`TlogError::Locked`], [`TlogError::Missing`], and whatever is wrong with checkpoint or tiles.
    pub fn open(dir: &Path, signer: NoteSigner) -> Result<Self, TlogError> {
        if !dir.is_dir() {
            return Err(TlogError::Missing { path: dir.to_owned(), what: "log folder (hint: ascribe log init)" });
        }
        let lock = lock(dir)?;
        let path = dir.join(CHECKPOINT_FILE);
        let bytes = read_required(&path, NOTE_CAP_BYTES, "checkpoint")?;
        let checkpoint =
            SignedCheckpoint::open(&bytes, signer.verifier(), &[]).map_err(|error| error.in_file(&path))?;
        let tree = TileTree::new(dir, checkpoint.head());
        tree.check_root().map_err(|error| error.in_file(dir))?;
        let edge = Edge::read(&tree)?;
        write_history(dir, &checkpoint)?;
        Ok(Self { dir: dir.to_owned(), signer, checkpoint, edge, _lock: lock })
    }

    /// The checkpoint that the log ends with.
    pub fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// The key by which its checkpoints are checked.
    pub fn verifier(&self) -> &NoteVerifier {
        self.signer.verifier()
    }

    /// The key that signs them.
    pub fn key(&self) -> &Ed25519Key {
        self.signer.key()
    }

    /// The tree up to the latest checkpoint, for proofs.
    pub fn tree(&self) -> TileTree {
        TileTree::new(&self.dir, self.checkpoint.head())
    }

    /// Appends a batch, whole or not at all; when this returns, batch and checkpoint are durable. An empty batch
    /// changes nothing. Cost: two hashes an entry, one durable write a batch.
    ///
    /// # Errors
    /// [`TlogError::EntryTooLarge`] before anything is written; [`TlogError::Io`]; [`TlogError::Stopped`].
    pub fn append<E: AsRef<[u8]>>(
        &mut self,
        entries: impl IntoIterator<Item = E>,
        progress: &dyn Progress,
    ) -> Result<Appended, TlogError> {
        let first_index = self.checkpoint.head().size;
        let (mut edge, mut batch) = (self.edge.clone(), Batch::default());
        for (index, entry) in entries.into_iter().enumerate() {
            let entry = entry.as_ref();
            if entry.len() > ENTRY_CAP_BYTES {
                return Err(TlogError::EntryTooLarge { index, cap: ENTRY_CAP_BYTES, found: entry.len() });
            }
            edge.push(entry);
            if edge.size.is_multiple_of(TILE_WIDTH) {
                if progress.stop_requested() {
                    return Err(TlogError::Stopped);
                }
                edge.write_full(&self.dir, &mut batch)?;
                progress.advance(TILE_WIDTH);
            }
        }
        if edge.size == first_index {
            return Ok(Appended { first_index, checkpoint: self.checkpoint.clone() });
        }
        edge.write_partial(&self.dir, &mut batch)?;
        batch.commit()?;
        let checkpoint = sign_head(&self.signer, edge.head())?;
        self.publish(&checkpoint)?;
        self.drop_partials(first_index, edge.size);
        (self.edge, self.checkpoint) = (edge, checkpoint);
        Ok(Appended { first_index, checkpoint: self.checkpoint.clone() })
    }

    /// Adds a witness's cosignature to the latest checkpoint.
    ///
    /// # Errors
    /// [`TlogError::BadNote`] if `note` is about another checkpoint; [`TlogError::BadSignature`].
    pub fn add_cosignature(&mut self, note: &SignedNote, witness: &NoteVerifier) -> Result<(), TlogError> {
        let cosigned =
            SignedCheckpoint::open(note.as_str().as_bytes(), self.verifier(), std::slice::from_ref(witness))?;
        if cosigned.checkpoint != self.checkpoint.checkpoint || cosigned.witnessed_unix_s().is_none() {
            return Err(TlogError::BadNote {
                expected: "the log's latest checkpoint with the witness's signature",
                found: format!("a checkpoint of {} leaves", cosigned.head().size),
            });
        }
        self.publish(&cosigned)?;
        self.checkpoint = cosigned;
        Ok(())
    }

    /// The checkpoint first: it alone decides how long the log is. A crash before its history is mended by `open`.
    fn publish(&self, checkpoint: &SignedCheckpoint) -> Result<(), TlogError> {
        write_durable(&self.dir.join(CHECKPOINT_FILE), checkpoint.note.as_str().as_bytes())?;
        write_history(&self.dir, checkpoint)
    }

    /// Removes partial tiles that have become full. Failing is harmless: they are only in the way of nobody.
    fn drop_partials(&self, old_size: u64, new_size: u64) {
        let rows = (0..n_levels(old_size)).map(Row::Level).chain([Row::Entries]);
        for row in rows {
            let index = crate::tile::row_len(old_size, row) / TILE_WIDTH;
            let (old, new) = (tile_at(old_size, row, index), tile_at(new_size, row, index));
            if let (Some(old), Some(new)) = (old, new)
                && old.width < TILE_WIDTH
                && new.width == TILE_WIDTH
            {
                let folder = self.dir.join(old.path());
                let _ = folder.parent().map(fs::remove_dir_all);
            }
        }
    }
}

/// Keeps a checkpoint for ever under its size; an empty log is no checkpoint that anybody could hold against it.
fn write_history(dir: &Path, checkpoint: &SignedCheckpoint) -> Result<(), TlogError> {
    let (size, bytes) = (checkpoint.head().size, checkpoint.note.as_str().as_bytes());
    let path = dir.join(HISTORY_DIR).join(size.to_string());
    // Read before written: opening a log changes nothing that is right already.
    if size == 0 || read_capped(&path, NOTE_CAP_BYTES)?.is_some_and(|old| old == bytes) {
        return Ok(());
    }
    write_durable(&path, bytes)
}

fn lock(dir: &Path) -> Result<File, TlogError> {
    let path = dir.join(LOCK_FILE);
    let file = File::options().create(true).append(true).open(&path).map_err(TlogError::io(&path, "opening"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TlogError::Locked { path }),
        Err(TryLockError::Error(error)) => Err(TlogError::io(&path, "locking")(error)),
    }
}

fn sign_head(signer: &NoteSigner, head: TreeHead) -> Result<SignedCheckpoint, TlogError> {
    let checkpoint = Checkpoint { origin: signer.verifier().name().to_owned(), head, extensions: Vec::new() };
    let note = checkpoint.sign(signer)?;
    SignedCheckpoint::open(note.as_str().as_bytes(), signer.verifier(), &[])
}

/// The right edge: the hashes of the unfinished tile of each level, and the bytes of the unfinished bundle.
#[derive(Clone, Default)]
struct Edge {
    size: u64,
    levels: Vec<Vec<Digest>>,
    bundle: Vec<u8>,
    /// Full tiles of this batch that are not written yet.
    finished: BTreeMap<TileId, Vec<u8>>,
}

impl Edge {
    fn read(tree: &TileTree) -> Result<Self, TlogError> {
        let size = tree.head().size;
        let mut edge = Self { size, ..Self::default() };
        for level in 0..n_levels(size) {
            let tile = tile_at(size, Row::Level(level), crate::tile::row_len(size, Row::Level(level)) / TILE_WIDTH);
            edge.levels.push(tile.map_or(Ok(Vec::new()), |tile| tree.hashes(tile).map(|hashes| hashes.to_vec()))?);
        }
        if let Some(tile) = tile_at(size, Row::Entries, size / TILE_WIDTH) {
            let (entries, path) = tree.bundle(tile)?;
            for (entry, expected) in entries.iter().zip(&edge.levels[0]) {
                let found = leaf_hash(entry);
                if found != *expected {
                    let mismatch = TlogError::RootMismatch { size: 1, expected: *expected, found };
                    return Err(mismatch.in_file(&path));
                }
                push_entry(&mut edge.bundle, entry);
            }
        }
        Ok(edge)
    }

    fn push(&mut self, entry: &[u8]) {
        push_entry(&mut self.bundle, entry);
        self.size += 1;
        let mut hash = leaf_hash(entry);
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(TILE_WIDTH as usize));
            }
            let row = &mut self.levels[level];
            row.push(hash);
            if row.len() < TILE_WIDTH as usize {
                break;
            }
            hash = root_of_leaves(row);
            let index = crate::tile::row_len(self.size, Row::Level(level as u8)) / TILE_WIDTH - 1;
            let id = TileId { row: Row::Level(level as u8), index, width: TILE_WIDTH };
            self.finished.insert(id, tile_bytes(row));
            row.clear();
        }
        if self.size.is_multiple_of(TILE_WIDTH) {
            let id = TileId { row: Row::Entries, index: self.size / TILE_WIDTH - 1, width: TILE_WIDTH };
            self.finished.insert(id, std::mem::take(&mut self.bundle));
        }
    }

    fn write_full(&mut self, dir: &Path, batch: &mut Batch) -> Result<(), TlogError> {
        for (id, bytes) in std::mem::take(&mut self.finished) {
            batch.write(&dir.join(id.path()), &bytes)?;
        }
        Ok(())
    }

    fn write_partial(&self, dir: &Path, batch: &mut Batch) -> Result<(), TlogError> {
        let rows = self.levels.iter().enumerate().map(|(level, row)| (Row::Level(level as u8), tile_bytes(row)));
        for (row, bytes) in rows.chain([(Row::Entries, self.bundle.clone())]) {
            let last = crate::tile::row_len(self.size, row) / TILE_WIDTH;
            if let Some(tile) = tile_at(self.size, row, last) {
                batch.write(&dir.join(tile.path()), &bytes)?;
            }
        }
        Ok(())
    }

    /// Size and root from the edge alone: level by level, what is complete below hangs on the left of what follows.
    fn head(&self) -> TreeHead {
        let mut peaks: Vec<Digest> = Vec::new();
        for row in self.levels.iter().rev() {
            let mut rest = &row[..];
            while !rest.is_empty() {
                let (complete, tail) = rest.split_at(1 << rest.len().ilog2());
                peaks.push(root_of_leaves(complete));
                rest = tail;
            }
        }
        let root = peaks.into_iter().rev().reduce(|right, left| crate::hash::node_hash(left, right));
        TreeHead { size: self.size, root: root.unwrap_or(EMPTY_ROOT) }
    }
}

fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) {
    let len = u16::try_from(entry.len()).expect("the length was checked against the cap");
    bundle.extend_from_slice(&len.to_be_bytes());
    bundle.extend_from_slice(entry);
}

fn tile_bytes(hashes: &[Digest]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}
