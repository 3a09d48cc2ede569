//! Read-only maps of whole files: the only unsafe code of this crate.
//!
//! Benefit: a scan reads f32 rows from the page cache without a copy (the scan example prints both speeds).
//! Soundness: a map is undefined behaviour if somebody shortens or rewrites the file while it is mapped. Files of this
//! crate are immutable once they have their name (they are written under another name and renamed into place, see
//! [`crate::atomic`]), so nobody who keeps to the formats does either; deleting or replacing a mapped file is harmless
//! because the map keeps the old inode.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::StoreError;

/// How mapped pages will be used. Only a hint: what is read is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Read ahead: they are wanted soon. Asked once until they are dropped: to ask takes a while even where they are there.
    WillNeed,
    /// Drop them from this process; they are read again from the page cache or the disk when they are wanted again.
    DontNeed,
    /// Single pages are wanted, here and there, and none around them.
    FewPages,
    /// Nothing in particular, as at first.
    Normal,
    /// All of the file will be scanned: what is not in the page cache is brought there in large blocks, which are mapped by one entry
    /// each. Asked once; it stays.
    Scan,
}

/// Files of maps that stay open in a process: half of what the meanest systems allow. Those of further maps are closed, and read
/// through the map.
const OPEN_MAX: usize = 128;
static N_OPEN: AtomicUsize = AtomicUsize::new(0);

/// A file that is counted among the open ones.
#[derive(Debug)]
struct Open(File);

impl Open {
    /// Keeps `file` open if there is room.
    fn keep(file: File) -> Option<Self> {
        let more = |n| (n < OPEN_MAX).then_some(n + 1);
        N_OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok().then(|| Self(file))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        N_OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A whole file as bytes.
#[derive(Debug)]
pub struct Map {
    // None for an empty file, which the system refuses to map.
    inner: Option<memmap2::Mmap>,
    file: Option<Open>,
    /// Asked for since it was dropped last.
    is_asked: AtomicBool,
    /// [`Advice::Scan`] was given.
    is_scanned: AtomicBool,
}

impl Map {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is none, else [`StoreError::Io`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                StoreError::Missing { path: path.to_path_buf(), hint: "run the step that writes it again" }
            }
            _ => StoreError::io("open", path, source),
        })?;
        let len_bytes = file.metadata().map_err(|source| StoreError::io("measure", path, source))?.len();
        if len_bytes == 0 {
            return Ok(Self {
                inner: None,
                file: None,
                is_asked: AtomicBool::new(false),
                is_scanned: AtomicBool::new(false),
            });
        }
        // SAFETY: the file is immutable by the law of this crate (head of this file), so the bytes do not change
        // under the shared reference that `deref` gives out.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|source| StoreError::io("map", path, source))?;
        let file = Open::keep(file);
        Ok(Self { inner: Some(map), file, is_asked: AtomicBool::new(false), is_scanned: AtomicBool::new(false) })
    }

    /// Copies the bytes `range` into `out`, which is as long, by reading the file where it is still open: so no page of it becomes one of
    /// this process, which for a few rows here and there costs more than their bytes (the pages around come along, and are taken away
    /// on every core again).
    ///
    /// # Panics
    /// If `range` does not lie in the file, or `out` has another length.
    pub fn copy(&self, range: Range<usize>, out: &mut [u8]) {
        let mapped = &self[range.clone()];
        assert_eq!(mapped.len(), out.len(), "room for the bytes that are copied");
        #[cfg(unix)]
        if let Some(Open(file)) = &self.file
            && std::os::unix::fs::FileExt::read_exact_at(file, out, range.start as u64).is_ok()
        {
            return;
        }
        out.copy_from_slice(mapped);
        #[cfg(unix)]
        if let Some(map) = &self.inner {
            // With large pages a few bytes bring mebibytes: they go at once.
            // SAFETY: as in `advise`: a read-only map of a file that never changes loses nothing.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }

    /// Waits until the bytes `range` lie in the page cache, where a scan finds them that was announced by [`Advice::Scan`]. They are not kept
    /// mapped.
    ///
    /// # Panics
    /// If `range` does not lie in the file.
    pub fn read_ahead(&self, range: Range<usize>) {
        assert!(range.end <= self.len(), "bytes of the file are read ahead");
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.inner {
            let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
            // SAFETY: as in `advise`.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }

    /// Gives the system a hint about all pages. A system that refuses it changes nothing, so refusals are not told.
    pub fn advise(&self, advice: Advice) {
        #[cfg(unix)]
        if let Some(map) = &self.inner {
            // Only a hint, so it matters to nobody in which order two threads ask.
            if advice == Advice::Scan {
                #[cfg(target_os = "linux")]
                if !self.is_scanned.swap(true, Ordering::Relaxed) {
                    let _ = map.advise(memmap2::Advice::HugePage);
                }
                return;
            }
            if let Some(plain) = match advice {
                Advice::FewPages => Some(memmap2::Advice::Random),
                Advice::Normal => Some(memmap2::Advice::Normal),
                _ => None,
            } {
                let _ = map.advise(plain);
                return;
            }
            let was_asked = self.is_asked.swap(advice == Advice::WillNeed, Ordering::Relaxed);
            let _ = match advice {
                Advice::WillNeed if was_asked => return,
                Advice::WillNeed => map.advise(memmap2::Advice::WillNeed),
                Advice::Scan | Advice::FewPages | Advice::Normal => return,
                // SAFETY: dropping pages loses changes that were not written back; a read-only map of a file that never
                // changes has none, so the next read brings the same bytes.
                Advice::DontNeed => unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) },
            };
        }
        #[cfg(not(unix))]
        let _ = advice;
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.inner.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_files_stay_open_and_the_others_are_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let maps: Vec<Map> = (0..OPEN_MAX + 3).map(|_| Map::open(&path).unwrap()).collect();
        assert!(maps.iter().filter(|map| map.file.is_some()).count() <= OPEN_MAX);
        assert!(maps.last().is_some_and(|map| map.file.is_none()));
        for map in [&maps[0], maps.last().unwrap()] {
            let mut out = [0; 3];
            map.copy(4..7, &mut out);
            assert_eq!(&out, b"456");
        }
    }

    #[test]
    fn a_map_shows_what_reading_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for len in [0usize, 1, 4096, 10_001] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let map = Map::open(&path).unwrap();
            for advice in [Advice::WillNeed, Advice::DontNeed, Advice::DontNeed, Advice::Scan, Advice::Scan] {
                map.advise(advice);
                assert_eq!(&map[..], std::fs::read(&path).unwrap());
            }
            for range in [0..len, len / 3..len / 2, len..len] {
                map.read_ahead(range.clone());
                let mut out = vec![0xEE; range.len()];
                map.copy(range.clone(), &mut out);
                assert_eq!(out, bytes[range]);
            }
        }
        assert!(matches!(Map::open(&dir.path().join("none")), Err(StoreError::Missing { .. })));
    }
}
