//! Folders: what is in them, and what a kill left there.

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::Paths;
use crate::atomic::TMP_SUFFIX;
use crate::error::StoreError;

/// Files of a folder (not what is below).
pub(crate) fn of(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::io("list", dir, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    fs::remove_file(path).map_err(|source| StoreError::io("remove", path, source))
}

/// The number in `s-000123.safetensors`; files that are not ours have none.
pub(crate) fn shard_number(path: &Path) -> Option<u32> {
    path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.strip_prefix("s-")).and_then(|s| s.parse().ok())
}

/// Removes unfinished files.
pub(crate) fn remove_tmp(dir: &Path) -> Result<(), StoreError> {
    for path in of(dir)? {
        if path.extension().is_some_and(|e| e == TMP_SUFFIX) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes what a kill left: unfinished files, and finished ones whose manifest line was never written.
pub(crate) fn remove_uncommitted(paths: &Paths, n_shards: u32) -> Result<(), StoreError> {
    for dir in [paths.shards(), paths.sides()] {
        remove_tmp(&dir)?;
        for path in of(&dir)? {
            if shard_number(&path).is_some_and(|n| n >= n_shards) {
                remove(&path)?;
            }
        }
    }
    Ok(())
}
