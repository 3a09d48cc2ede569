//! Files of a run folder: read with their path in the error, hashed in pieces, listed.

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, DigestStream};

use crate::error::PayError;

/// Writes a file whole or not at all; makes its folder.
///
/// # Errors
/// The store's.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), PayError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| PayError::io(parent, e))?;
    }
    Ok(ascribe_store::atomic::write_atomic(path, bytes)?)
}

/// A file that gets its name when it is whole, without waiting for the disk: [`settle`] waits once for all of them. Thousands of
/// waits, one a file, took five minutes for the inputs of a million payees.
pub struct Soon {
    file: File,
    tmp: PathBuf,
    path: PathBuf,
}

impl Soon {
    /// Begins a file that will stand at `path`; makes its folder.
    ///
    /// # Errors
    /// The disk's.
    pub fn create(path: &Path) -> Result<Self, PayError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| PayError::io(parent, e))?;
        }
        let mut tmp = path.as_os_str().to_owned();
        tmp.push(".tmp");
        let tmp = PathBuf::from(tmp);
        let file = File::create(&tmp).map_err(|e| PayError::io(&tmp, e))?;
        Ok(Self { file, tmp, path: path.to_path_buf() })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The disk's.
    pub fn commit(self) -> Result<(), PayError> {
        // Where the whole file system cannot be asked, each file is.
        #[cfg(not(target_os = "linux"))]
        self.file.sync_all().map_err(|e| PayError::io(&self.tmp, e))?;
        drop(self.file);
        std::fs::rename(&self.tmp, &self.path).map_err(|e| PayError::io(&self.path, e))
    }
}

impl Write for Soon {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file whole or not at all, without waiting for the disk.
///
/// # Errors
/// The disk's.
pub fn write_soon(path: &Path, bytes: &[u8]) -> Result<(), PayError> {
    let mut file = Soon::create(path)?;
    file.write_all(bytes).map_err(|e| PayError::io(path, e))?;
    file.commit()
}

/// Waits until everything that was written below `dir` is on the disk: what is renamed into place after this is the commit.
///
/// # Errors
/// The disk's.
pub fn settle(dir: &Path) -> Result<(), PayError> {
    #[cfg(target_os = "linux")]
    {
        let handle = File::open(dir).map_err(|e| PayError::io(dir, e))?;
        rustix::fs::syncfs(&handle).map_err(|e| PayError::io(dir, e.into()))?;
    }
    Ok(())
}

/// Reads a whole file.
///
/// # Errors
/// The operating system's, with the path.
pub fn read(path: &Path) -> Result<Vec<u8>, PayError> {
    std::fs::read(path).map_err(|e| PayError::io(path, e))
}

/// SHA-256 of a file.
///
/// # Errors
/// The operating system's, with the path.
pub fn digest(path: &Path) -> Result<Digest, PayError> {
    let mut file = File::open(path).map_err(|e| PayError::io(path, e))?;
    let mut stream = DigestStream::default();
    let mut piece = vec![0; 1 << 18];
    loop {
        match file.read(&mut piece).map_err(|e| PayError::io(path, e))? {
            0 => return Ok(stream.finish()),
            n => stream.update(&piece[..n]),
        }
    }
}

/// Paths of all files below `dir`, relative to it, with `/`.
///
/// # Errors
/// The operating system's, with the path.
pub fn list(dir: &Path) -> Result<Vec<String>, PayError> {
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), &format!("{name}/"), found)?;
            } else {
                found.push(name);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found).map_err(|e| PayError::io(dir, e))?;
    found.sort_unstable();
    Ok(found)
}
