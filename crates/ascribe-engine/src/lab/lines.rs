//! Lines of a strange file, in batches: numbered, with their places, hashed as they pass.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use ascribe_core::{Digest, DigestStream};

use crate::error::EngineError;

/// Longest line that is read.
const MAX_LINE_BYTES: u64 = 256 << 20;
/// A batch ends with the line with which it has so many bytes.
const BATCH_BYTES: usize = 64 << 20;

/// One line that is not blank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// From 1, blank lines counted.
    pub number: u64,
    /// Byte of the file at which it begins.
    pub offset: u64,
    /// Its text, with its newline.
    pub text: String,
}

/// Lines of the file, numbered and hashed.
pub(crate) struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    line: u64,
    offset: u64,
    hasher: DigestStream,
}

impl<'a> Lines<'a> {
    /// Begins at the first line.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(path: &'a Path) -> Result<Self, EngineError> {
        let file = File::open(path).map_err(|e| EngineError::io(path, e))?;
        let reader = BufReader::with_capacity(1 << 20, file);
        Ok(Self { path, reader, line: 0, offset: 0, hasher: DigestStream::default() })
    }

    /// The one line that begins at a byte of the file; its number is not known and is told as 0.
    ///
    /// # Errors
    /// The operating system's; no line there, or one that is too long or not text.
    pub fn at(path: &'a Path, offset: u64) -> Result<Line, EngineError> {
        let mut lines = Self::open(path)?;
        lines.reader.seek(SeekFrom::Start(offset)).map_err(|e| EngineError::io(path, e))?;
        let line = lines.batch(1)?.pop();
        let found = line.filter(|_| lines.line == 1).map(|line| Line { number: 0, offset, ..line });
        found.ok_or_else(|| EngineError::Content {
            path: path.into(),
            expected: format!("a record at byte {offset}"),
            found: "none".into(),
        })
    }

    /// Up to `n` lines that are not blank; fewer where they are long, none at the end only.
    ///
    /// # Errors
    /// The operating system's; [`EngineError::Record`] for a line that is too long or not UTF-8.
    pub fn batch(&mut self, n: usize) -> Result<Vec<Line>, EngineError> {
        let mut batch = Vec::new();
        let mut bytes_in_batch = 0;
        while batch.len() < n && bytes_in_batch < BATCH_BYTES {
            let mut bytes = Vec::new();
            let read = (&mut self.reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
            let read = read.map_err(|e| EngineError::io(self.path, e))?;
            if read == 0 {
                break;
            }
            self.line += 1;
            self.hasher.update(&bytes);
            let offset = self.offset;
            self.offset += read as u64;
            let fail = |expected: &str, found: String| refuse(self.path, self.line, "line", expected, found);
            if bytes.len() as u64 > MAX_LINE_BYTES {
                return Err(fail("at most 256 MiB", "a longer one".into()));
            }
            let text = String::from_utf8(bytes)
                .map_err(|e| fail("UTF-8", format!("another byte at offset {}", e.utf8_error().valid_up_to())))?;
            if !text.trim().is_empty() {
                bytes_in_batch += text.len();
                batch.push(Line { number: self.line, offset, text });
            }
        }
        Ok(batch)
    }

    /// SHA-256 of what was read.
    pub fn digest(self) -> Digest {
        self.hasher.finish()
    }
}

/// A record that cannot be used.
pub(crate) fn refuse(path: &Path, line: u64, field: &str, expected: &str, found: String) -> EngineError {
    EngineError::Record { path: path.into(), line, field: field.into(), expected: expected.into(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_know_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        std::fs::write(&path, "one\n\n  \ntwo\nthree").unwrap();
        let mut lines = Lines::open(&path).unwrap();
        let first = lines.batch(1).unwrap();
        let rest = lines.batch(9).unwrap();
        assert!(lines.batch(9).unwrap().is_empty());
        assert_eq!(lines.digest(), Digest::of(&std::fs::read(&path).unwrap()));
        let line = |number, offset, text: &str| Line { number, offset, text: text.into() };
        assert_eq!(first, [line(1, 0, "one\n")]);
        assert_eq!(rest, [line(4, 8, "two\n"), line(5, 12, "three")]);
        assert_eq!(Lines::at(&path, 8).unwrap(), line(0, 8, "two\n"));
        for nowhere in [4, 17, 1 << 40] {
            let error = Lines::at(&path, nowhere).unwrap_err().to_string();
            assert!(error.contains(&format!("a record at byte {nowhere}")), "{error}");
        }
    }
}
