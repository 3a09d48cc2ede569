//! Files of a log: read under a cap, written whole or not at all, made durable together.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::TlogError;

/// Reads a whole file of at most `cap` bytes; `None` if it is not there.
pub(crate) fn read_capped(path: &Path, cap: usize) -> Result<Option<Vec<u8>>, TlogError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TlogError::io(path, "opening")(error)),
    };
    let mut bytes = Vec::new();
    file.take(cap as u64 + 1).read_to_end(&mut bytes).map_err(TlogError::io(path, "reading"))?;
    if bytes.len() > cap {
        return Err(TlogError::BadTile {
            path: path.to_owned(),
            what: "length".to_owned(),
            expected: format!("at most {cap} bytes"),
            found: "more".to_owned(),
        });
    }
    Ok(Some(bytes))
}

/// Reads a file that must be there.
pub(crate) fn read_required(path: &Path, cap: usize, what: &'static str) -> Result<Vec<u8>, TlogError> {
    read_capped(path, cap)?.ok_or_else(|| TlogError::Missing { path: path.to_owned(), what })
}

/// Writes a new secret file of mode 0600; one that is there is never touched.
///
/// # Errors
/// [`TlogError::Io`].
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), TlogError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(TlogError::io(path, "creating"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(TlogError::io(path, "writing"))
}

/// Writes a file by way of a temporary sibling and a rename, durably: the name never leads to other bytes, whatever happens.
pub(crate) fn write_durable(path: &Path, bytes: &[u8]) -> Result<(), TlogError> {
    put(path, bytes, true)?;
    sync_folders(std::iter::once(path))
}

/// Files that become durable together, before whatever names them is written.
#[derive(Default)]
pub(crate) struct Batch {
    written: Vec<PathBuf>,
}

impl Batch {
    /// Puts a file in place; it is durable after [`Batch::commit`]. Until then a power cut may leave its name with other bytes,
    /// which harms nobody: no checkpoint covers it, and what no checkpoint covers is written anew.
    pub(crate) fn write(&mut self, path: &Path, bytes: &[u8]) -> Result<(), TlogError> {
        put(path, bytes, false)?;
        self.written.push(path.to_owned());
        Ok(())
    }

    /// Makes everything durable, names included. All files are written before the first is waited for, so that one commit of
    /// the file system's journal serves them all.
    pub(crate) fn commit(self) -> Result<(), TlogError> {
        for path in &self.written {
            File::open(path).and_then(|file| file.sync_all()).map_err(TlogError::io(path, "syncing"))?;
        }
        sync_folders(self.written.iter().map(PathBuf::as_path))
    }
}

/// Writes a temporary sibling and renames it.
fn put(path: &Path, bytes: &[u8], durably: bool) -> Result<(), TlogError> {
    let temporary = path.with_added_extension("tmp");
    let put = || -> std::io::Result<()> {
        let mut file = match File::create(&temporary) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
                File::create(&temporary)?
            }
            created => created?,
        };
        file.write_all(bytes)?;
        if durably {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    put().map_err(|error| {
        // The error that stopped the write is the one to report; a stale temporary file harms nobody.
        let _ = fs::remove_file(&temporary);
        TlogError::io(path, "writing")(error)
    })
}

/// Makes names durable: the folders of the files, and those that may have been made for them.
fn sync_folders<'a>(files: impl Iterator<Item = &'a Path>) -> Result<(), TlogError> {
    let folders: BTreeSet<&Path> = files.flat_map(|path| path.ancestors().skip(1).take(4)).collect();
    for folder in folders {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|dir| dir.sync_all()).map_err(TlogError::io(folder, "syncing"))?;
    }
    Ok(())
}
