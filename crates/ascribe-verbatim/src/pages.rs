//! Numbers in a mapped file that are checked when they are first looked at, page by page.
//!
//! A search touches a few thousand places of a file that may be larger than memory; hashing the whole file first would cost
//! more than the search. So every page of 4 KiB has a CRC-32 of its own, and a flipped bit is found before it can mislead.
//! The sums guard against damage; `verify` compares the BLAKE3 of whole files.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ascribe_store::StoreError;

/// Bytes under one checksum.
pub const PAGE_BYTES: usize = 4096;

/// CRC-32 of each page of `bytes`.
pub fn sums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(PAGE_BYTES).map(crc32fast::hash).collect()
}

/// One array of numbers within a mapped file.
#[derive(Debug)]
pub struct Pages {
    what: &'static str,
    range: Range<usize>,
    sums: Vec<u32>,
    /// A bit for each page that was found good.
    seen: Vec<AtomicU64>,
}

impl Pages {
    /// The array that takes `range` of the file; `sums` has one checksum for each page of it.
    pub fn new(what: &'static str, range: Range<usize>, sums: Vec<u32>) -> Self {
        debug_assert_eq!(sums.len(), range.len().div_ceil(PAGE_BYTES));
        let seen = (0..sums.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { what, range, sums, seen }
    }

    /// Number `at` of the array of `u16`; `file` is the whole file, `path` its name.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] beyond the end, [`StoreError::WrongChecksum`] for a changed page.
    pub fn u16(&self, path: &Path, file: &[u8], at: usize) -> Result<u16, StoreError> {
        self.bytes::<2>(path, file, at).map(u16::from_le_bytes)
    }

    /// The same for an array of `u32`.
    ///
    /// # Errors
    /// As [`Pages::u16`].
    pub fn u32(&self, path: &Path, file: &[u8], at: usize) -> Result<u32, StoreError> {
        self.bytes::<4>(path, file, at).map(u32::from_le_bytes)
    }

    /// The same for an array of `u64`.
    ///
    /// # Errors
    /// As [`Pages::u16`].
    pub fn u64(&self, path: &Path, file: &[u8], at: usize) -> Result<u64, StoreError> {
        self.bytes::<8>(path, file, at).map(u64::from_le_bytes)
    }

    #[inline]
    fn bytes<const N: usize>(&self, path: &Path, file: &[u8], at: usize) -> Result<[u8; N], StoreError> {
        let start = at.saturating_mul(N);
        let inside = file.get(self.range.clone()).and_then(|bytes| bytes.get(start..start.checked_add(N)?));
        let Some(number) = inside.and_then(|bytes| bytes.first_chunk::<N>()) else {
            return Err(StoreError::malformed(path, self.what, format!("fewer than {}", self.range.len() / N), at));
        };
        // N divides a page, so a number never lies in two.
        let page = start / PAGE_BYTES;
        // Relaxed: the bit says that this page of an immutable file is good, and orders nothing else.
        if self.seen[page / 64].load(Ordering::Relaxed) & (1 << (page % 64)) == 0 {
            self.check(path, file, page)?;
        }
        Ok(*number)
    }

    #[cold]
    fn check(&self, path: &Path, file: &[u8], page: usize) -> Result<(), StoreError> {
        let start = self.range.start + page * PAGE_BYTES;
        let found = crc32fast::hash(&file[start..self.range.end.min(start + PAGE_BYTES)]);
        if found != self.sums[page] {
            return Err(StoreError::WrongChecksum {
                path: path.to_path_buf(),
                expected: format!("{:08x} of page {page} of `{}`", self.sums[page], self.what),
                found: format!("{found:08x}"),
            });
        }
        self.seen[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_page_is_found_when_it_is_touched_and_not_before() {
        let numbers: Vec<u32> = (0..5000).collect();
        let mut file: Vec<u8> = vec![7; 64];
        numbers.iter().for_each(|n| file.extend_from_slice(&n.to_le_bytes()));
        let pages = Pages::new("numbers", 64..file.len(), sums(&file[64..]));
        let path = Path::new("file");
        file[64 + 4 * 1500] ^= 1;
        assert_eq!(pages.u32(path, &file, 10).unwrap(), 10);
        assert_eq!(pages.u32(path, &file, 4999).unwrap(), 4999);
        // 1,024 numbers a page: 1,030 lies in the page of 1,500.
        let error = pages.u32(path, &file, 1030).unwrap_err();
        assert!(error.to_string().contains("page 1 of `numbers`"), "{error}");
        assert!(matches!(pages.u32(path, &file, 5000).unwrap_err(), StoreError::Malformed { .. }));
        assert!(matches!(pages.u32(path, &file, usize::MAX).unwrap_err(), StoreError::Malformed { .. }));
        assert_eq!(pages.u16(path, &file, 20).unwrap(), 10);
        assert_eq!(pages.u64(path, &file, 5).unwrap(), 11 << 32 | 10);
    }
}
