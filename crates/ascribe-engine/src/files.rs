//! Whole files: written to the side, made durable, then renamed, so that a crash or a full disk leaves the old file or
//! none, never half a one.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use ascribe_core::Digest;
use sha2::{Digest as _, Sha256};

use crate::error::EngineError;

/// Writes `bytes` to `path` atomically; makes parent folders.
///
/// # Errors
/// The operating system's, with the path; the temporary file is removed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| EngineError::io(parent, e))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    let written = (|| {
        let mut file = File::create(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)
    })();
    written.map_err(|e| {
        // The error that matters is the first one; a temporary file that was never made cannot be removed.
        let _ = std::fs::remove_file(&tmp);
        EngineError::io(path, e)
    })
}

/// A new folder below the system's temporary one, gone with the value.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A folder that nobody else has: `ascribe-WHAT-PROCESS-NUMBER`.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn new(what: &str) -> Result<Self, EngineError> {
        let root = std::env::temp_dir();
        for number in 0u64.. {
            let path = root.join(format!("ascribe-{what}-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(EngineError::io(&path, error)),
            }
        }
        unreachable!("a folder's number is free before numbers end")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What was made in it is known by now; that it could not be removed changes nothing of that.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a whole file.
///
/// # Errors
/// The operating system's, with the path.
pub fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    std::fs::read(path).map_err(|e| EngineError::io(path, e))
}

/// SHA-256 of a file, read in pieces.
///
/// # Errors
/// The operating system's, with the path.
pub fn digest(path: &Path) -> Result<Digest, EngineError> {
    let mut file = File::open(path).map_err(|e| EngineError::io(path, e))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(|e| EngineError::io(path, e))?;
    Ok(Digest(hasher.finalize().into()))
}

/// All files below `dir`, as paths relative to it with `/`, sorted.
///
/// # Errors
/// The operating system's, with the path.
pub fn list(dir: &Path) -> Result<Vec<String>, EngineError> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| EngineError::io(&folder, e))? {
            let path = entry.map_err(|e| EngineError::io(&folder, e))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(relative) = path.strip_prefix(dir) {
                found
                    .push(relative.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/"));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        write_atomic(&path, b"old").unwrap();
        // A folder in the place of the temporary file makes the next write fail.
        std::fs::create_dir(dir.path().join("a/b.txt.tmp")).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("b.txt"), "{error}");
        assert_eq!(read(&path).unwrap(), b"old");
    }

    #[test]
    fn digest_and_list_see_the_same_files() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(&dir.path().join("x/1"), b"abc").unwrap();
        write_atomic(&dir.path().join("0"), b"").unwrap();
        assert_eq!(list(dir.path()).unwrap(), ["0", "x/1"]);
        assert_eq!(digest(&dir.path().join("x/1")).unwrap(), Digest::of(b"abc"));
    }
}
