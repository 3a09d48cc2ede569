//! The whole check of a log folder by somebody who has nothing but the folder and a key.

use std::fs;
use std::path::Path;

use ascribe_core::{Digest, Progress};

use crate::checkpoint::SignedCheckpoint;
use crate::error::TlogError;
use crate::files::read_required;
use crate::hash::leaf_hash;
use crate::note::{NOTE_CAP_BYTES, NoteVerifier, VerifiedSignature};
use crate::reader::TileTree;
use crate::root::{TreeHead, root_of_leaves};
use crate::tile::{Row, TILE_WIDTH, TileId, n_levels, row_len, tile_at};
use crate::writer::{CHECKPOINT_FILE, HISTORY_DIR, KEY_FILE};

/// What was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAudit {
    /// Origin of the log.
    pub origin: String,
    /// Size and root of the latest checkpoint.
    pub head: TreeHead,
    /// Signatures of the latest checkpoint by known keys.
    pub signatures: Vec<VerifiedSignature>,
    /// Sizes of earlier checkpoints that the log was shown to extend: its own history and those that were given.
    pub extends: Vec<u64>,
}

/// Reads the verifier key that lies in a log folder. It says who claims to run the log; whoever must know has the key
/// from elsewhere.
///
/// # Errors
/// [`TlogError::Missing`], [`TlogError::BadKey`].
pub fn read_key(dir: &Path) -> Result<NoteVerifier, TlogError> {
    let path = dir.join(KEY_FILE);
    let bytes = read_required(&path, NOTE_CAP_BYTES, "verifier key (hint: give it with --key)")?;
    NoteVerifier::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| error.in_file(&path))
}

/// Reads and checks the latest checkpoint of a log folder.
///
/// # Errors
/// [`TlogError::Missing`], [`TlogError::InFile`].
pub fn read_checkpoint(
    dir: &Path,
    log: &NoteVerifier,
    witnesses: &[NoteVerifier],
) -> Result<SignedCheckpoint, TlogError> {
    open_checkpoint(&dir.join(CHECKPOINT_FILE), log, witnesses)
}

/// Reads and checks a checkpoint file.
///
/// # Errors
/// As [`read_checkpoint`].
pub fn open_checkpoint(
    path: &Path,
    log: &NoteVerifier,
    witnesses: &[NoteVerifier],
) -> Result<SignedCheckpoint, TlogError> {
    let bytes = read_required(path, NOTE_CAP_BYTES, "checkpoint")?;
    SignedCheckpoint::open(&bytes, log, witnesses).map_err(|error| error.in_file(path))
}

/// Checks everything: the checkpoint's signature, every entry against its leaf, every tile against the row below it, the
/// root, and that the log extends each checkpoint of its history and each of `older`.
///
/// Cost: reads everything once, two hashes an entry; memory of one tile per level.
///
/// # Errors
/// The first thing that is wrong.
pub fn audit(
    dir: &Path,
    log: &NoteVerifier,
    witnesses: &[NoteVerifier],
    older: &[SignedCheckpoint],
    progress: &dyn Progress,
) -> Result<LogAudit, TlogError> {
    let checkpoint = read_checkpoint(dir, log, witnesses)?;
    let head = checkpoint.head();
    let tree = TileTree::new(dir, head);
    progress.start("log", head.size, "entries");
    check_rows(&tree, progress)?;
    tree.check_root().map_err(|error| error.in_file(dir))?;
    let mut extends = Vec::new();
    for old in history(dir, log)?.iter().chain(older) {
        check_extends(&tree, old)?;
        extends.push(old.head().size);
    }
    extends.sort_unstable();
    extends.dedup();
    progress.finish(&format!("{} entries, {} earlier checkpoints", head.size, extends.len()));
    Ok(LogAudit { origin: checkpoint.checkpoint.origin, head, signatures: checkpoint.signatures, extends })
}

/// Checks that the log of `tree` extends an older checkpoint of it.
///
/// # Errors
/// [`TlogError::Inconsistent`]: the log was cut, rewritten or forked.
pub fn check_extends(tree: &TileTree, old: &SignedCheckpoint) -> Result<(), TlogError> {
    let (old, new) = (old.head(), tree.head());
    let refuse = |how: &'static str, expected: String, found: String| TlogError::Inconsistent {
        what: format!("checkpoint of {} leaves against one of {}", old.size, new.size),
        how,
        expected,
        found,
    };
    if old.size > new.size {
        return Err(refuse("cut short", format!("at least {} leaves", old.size), format!("{}", new.size)));
    }
    match tree.prove_extends(old) {
        Ok(_) => Ok(()),
        Err(TlogError::RootMismatch { expected, found, .. }) => {
            let how = if old.size == new.size { "forked" } else { "rewritten" };
            Err(refuse(how, expected.to_string(), found.to_string()))
        }
        Err(other) => Err(other),
    }
}

fn history(dir: &Path, log: &NoteVerifier) -> Result<Vec<SignedCheckpoint>, TlogError> {
    let folder = dir.join(HISTORY_DIR);
    let Ok(listing) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut checkpoints = Vec::new();
    for entry in listing {
        let path = entry.map_err(TlogError::io(&folder, "listing"))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            continue;
        }
        let checkpoint = open_checkpoint(&path, log, &[])?;
        let named = path.file_name().is_some_and(|name| name.to_string_lossy() == checkpoint.head().size.to_string());
        if !named {
            let found = format!("one of {} leaves", checkpoint.head().size);
            return Err(TlogError::BadNote { expected: "the checkpoint of the size in the name", found }.in_file(&path));
        }
        checkpoints.push(checkpoint);
    }
    checkpoints.sort_by_key(|checkpoint| checkpoint.head().size);
    Ok(checkpoints)
}

fn check_rows(tree: &TileTree, progress: &dyn Progress) -> Result<(), TlogError> {
    let size = tree.head().size;
    for index in 0..size.div_ceil(TILE_WIDTH) {
        if progress.stop_requested() {
            return Err(TlogError::Stopped);
        }
        let tile = tile_of(size, Row::Level(0), index)?;
        let (entries, path) = tree.bundle(tile_of(size, Row::Entries, index)?)?;
        let hashes = tree.hashes(tile)?;
        for (i, (entry, expected)) in (0..).zip(entries.iter().zip(hashes.iter())) {
            let found = leaf_hash(entry);
            if found != *expected {
                return Err(mismatch(&path, format!("hash of entry {}", index * TILE_WIDTH + i), *expected, found));
            }
        }
        progress.advance(tile.width);
    }
    for level in 1..n_levels(size) {
        let row = Row::Level(level);
        for index in 0..row_len(size, row).div_ceil(TILE_WIDTH) {
            let hashes = tree.hashes(tile_of(size, row, index)?)?;
            for (i, expected) in (0..).zip(hashes.iter()) {
                let below = tile_of(size, Row::Level(level - 1), index * TILE_WIDTH + i)?;
                let found = root_of_leaves(&tree.hashes(below)?);
                if found != *expected {
                    let path = tile_of(size, row, index)?.path();
                    return Err(mismatch(Path::new(&path), format!("hash {i}"), *expected, found));
                }
            }
        }
    }
    Ok(())
}

fn tile_of(size: u64, row: Row, index: u64) -> Result<TileId, TlogError> {
    tile_at(size, row, index).ok_or(TlogError::IndexOutOfRange { index, size })
}

fn mismatch(path: &Path, what: String, expected: Digest, found: Digest) -> TlogError {
    TlogError::BadTile { path: path.to_owned(), what, expected: expected.to_string(), found: found.to_string() }
}
