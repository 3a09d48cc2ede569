//! Files that appear whole or not at all: written beside their place, synced, renamed into it, folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::direct;
use crate::error::StoreError;

/// Ending of a file that is not finished. Whoever finds one may delete it.
pub const TMP_SUFFIX: &str = "tmp";

/// A file under way to `path`. Dropped before [`AtomicFile::commit`] it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    tmp_path: PathBuf,
    file: Option<File>,
}

impl AtomicFile {
    /// Begins a file that will stand at `path`; the folder must exist. A leftover of a crash is overwritten.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        Self::open(path, |options, tmp_path| options.open(tmp_path))
    }

    /// The same past the page cache where the file system allows, to be written through [`crate::direct::Direct`].
    pub(crate) fn create_direct(path: &Path) -> Result<Self, StoreError> {
        Self::open(path, |options, tmp_path| {
            let mut asked = options.clone();
            direct::ask(&mut asked);
            // A file system that knows no such thing refuses the flag.
            asked.open(tmp_path).or_else(|_| options.open(tmp_path))
        })
    }

    fn open(path: &Path, open: impl FnOnce(&OpenOptions, &Path) -> io::Result<File>) -> Result<Self, StoreError> {
        let mut tmp_name = path.as_os_str().to_owned();
        tmp_name.push(".");
        tmp_name.push(TMP_SUFFIX);
        let tmp_path = PathBuf::from(tmp_name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = open(&options, &tmp_path).map_err(|source| StoreError::io("create", &tmp_path, source))?;
        Ok(Self { path: path.to_path_buf(), tmp_path, file: Some(file) })
    }

    /// The file as it is.
    pub(crate) fn file(&self) -> &File {
        self.file.as_ref().expect("the file is open until it is committed")
    }

    fn open_file(&mut self) -> &mut File {
        self.file.as_mut().expect("the file is open until it is committed")
    }

    /// Gives the file its name, then syncs it; not its folder. For files that count by a line elsewhere, written once both are on
    /// disk: most file systems bring the name there with the file, and one wait is saved.
    ///
    /// # Errors
    /// Those of the file system; whether there is a file then, whole or not, is not known.
    pub(crate) fn put_in_place(mut self) -> Result<(), StoreError> {
        let file = self.file.take().expect("a file is committed once, by value");
        let result = rename(&self.tmp_path, &self.path);
        if result.is_err() {
            let _ = fs::remove_file(&self.tmp_path);
        }
        result.and_then(|()| file.sync_all().map_err(|source| StoreError::io("sync", &self.path, source)))
    }

    /// Syncs the bytes, gives the file its name, syncs the folder.
    ///
    /// # Errors
    /// Those of the file system; the old file at `path`, if any, is then still there.
    pub fn commit(mut self) -> Result<(), StoreError> {
        let file = self.file.take().expect("a file is committed once, by value");
        let result = file
            .sync_all()
            .map_err(|source| StoreError::io("sync", &self.tmp_path, source))
            .and_then(|()| rename(&self.tmp_path, &self.path))
            .and_then(|()| sync_parent(&self.path));
        if result.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = fs::remove_file(&self.tmp_path);
        }
        result
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open_file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open_file().flush()
    }
}

impl Read for AtomicFile {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.open_file().read(bytes)
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.open_file().seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // An unfinished file is of no use to anybody; nothing can be done if it does not go.
            let _ = fs::remove_file(&self.tmp_path);
        }
    }
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// [`StoreError::DiskFull`] or [`StoreError::Io`]; nothing half written stays.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|source| StoreError::io("write", path, source))?;
    file.commit()
}

/// Writes a file whole or not at all; returns its length and BLAKE3 (hex), taken as the bytes pass.
///
/// # Errors
/// Those of `fill` and of the file system; nothing half written stays.
pub fn write_hashed(
    path: &Path,
    fill: impl FnOnce(&mut Hashing<'_>) -> Result<(), StoreError>,
) -> Result<(u64, String), StoreError> {
    let mut file = AtomicFile::create(path)?;
    let mut out = Hashing { out: BufWriter::with_capacity(1 << 20, &mut file), hasher: blake3::Hasher::new(), len: 0 };
    fill(&mut out)?;
    out.flush().map_err(|source| StoreError::io("write", path, source))?;
    let (len, blake3) = (out.len, out.hasher.finalize().to_hex().to_string());
    drop(out);
    file.commit()?;
    Ok((len, blake3))
}

/// A file under way that hashes what passes through.
#[derive(Debug)]
pub struct Hashing<'a> {
    out: BufWriter<&'a mut AtomicFile>,
    hasher: blake3::Hasher,
    len: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Makes a rename, creation or removal in `dir` survive a power loss.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    // Windows cannot open a folder as a file; its journal orders renames by itself.
    if cfg!(windows) {
        return Ok(());
    }
    File::open(dir).and_then(|file| file.sync_all()).map_err(|source| StoreError::io("sync", dir, source))
}

/// Creates `dir` and what is above it.
///
/// # Errors
/// Those of the file system.
pub fn create_dirs(dir: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(dir).map_err(|source| StoreError::io("create", dir, source))
}

/// Reads a whole small file, refusing one above `max_bytes` before reading it. `hint` says what to do if it is not there.
///
/// # Errors
/// [`StoreError::Missing`], [`StoreError::Malformed`] if it is too long, those of the file system.
pub fn read_capped(path: &Path, max_bytes: u64, hint: &'static str) -> Result<Vec<u8>, StoreError> {
    let missing_or = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { path: path.to_path_buf(), hint },
        _ => StoreError::io("read", path, source),
    };
    let len_bytes = fs::metadata(path).map_err(missing_or)?.len();
    if len_bytes > max_bytes {
        return Err(StoreError::malformed(path, "length in bytes", format!("at most {max_bytes}"), len_bytes));
    }
    fs::read(path).map_err(missing_or)
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|source| StoreError::io("rename", to, source))
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stands_at_the_path_before_the_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the unfinished file stayed");
        write_atomic(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_is_told_apart_from_other_failures() {
        let mut full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let source = full.write_all(b"x").unwrap_err();
        let error = StoreError::io("write", Path::new("part"), source);
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
        let error = write_atomic(Path::new("/nonexistent-folder/part"), b"x").unwrap_err();
        assert!(matches!(error, StoreError::Io { action: "create", .. }), "{error}");
    }
}
