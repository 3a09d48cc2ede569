//! `manifest.log`: one line per committed shard, each with its own checksum, appended and never rewritten.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use ascribe_core::ExampleId;
use serde::{Deserialize, Serialize};

use super::generation::Generation;
use super::layout::{StoreHeader, parse_json};
use crate::atomic::read_capped;
use crate::error::StoreError;
use crate::limits::MANIFEST_MAX_BYTES;

/// One committed shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its number, from 0 without gaps.
    pub shard: u32,
    /// Its rows.
    pub rows: u32,
    /// Row of the store that is its first.
    pub first_row: u64,
    /// Example of its first row.
    pub first_id: ExampleId,
    /// Example of its last row.
    pub last_id: ExampleId,
    /// Length of the shard file.
    pub bytes: u64,
    /// BLAKE3 of the shard file, hex.
    pub blake3: String,
    /// Length of the side file.
    pub side_bytes: u64,
    /// BLAKE3 of the side file, hex.
    pub side_blake3: String,
}

impl ShardEntry {
    fn to_line(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        let mut line =
            serde_json::to_vec(self).map_err(|error| StoreError::malformed(path, "line", "a value", error))?;
        let crc = crc32fast::hash(&line);
        line.extend_from_slice(format!("\t{crc:08x}\n").as_bytes());
        Ok(line)
    }

    fn from_line(path: &Path, line: &[u8]) -> Result<Self, StoreError> {
        let cut = line.iter().rposition(|&b| b == b'\t');
        let Some((json, crc)) = cut.map(|at| (&line[..at], &line[at + 1..])) else {
            return Err(StoreError::malformed(path, "line", "JSON, tab, checksum", String::from_utf8_lossy(line)));
        };
        let expected = format!("{:08x}", crc32fast::hash(json));
        if crc != expected.as_bytes() {
            let found = String::from_utf8_lossy(crc);
            return Err(StoreError::malformed(path, "checksum of a line", expected, found));
        }
        parse_json(path, "line", json)
    }
}

/// What a manifest says.
pub(crate) struct Manifest {
    pub entries: Vec<ShardEntry>,
    /// Bytes of the whole lines; what follows is a torn one.
    pub len_bytes: u64,
    /// End of every line.
    ends: Vec<u64>,
    bytes: Vec<u8>,
}

impl Manifest {
    /// Reads and checks every line. A torn last line (no newline, or a checksum that does not fit) is left out, not an
    /// error: it is what a kill leaves. A bad line with another after it is an error.
    pub fn read(path: &Path, header: &StoreHeader) -> Result<Self, StoreError> {
        Self::parse(path, read_capped(path, MANIFEST_MAX_BYTES, "run the writing step again, it resumes")?, header)
    }

    /// Reads the bytes of a manifest log that came from `path`.
    pub fn parse(path: &Path, bytes: Vec<u8>, header: &StoreHeader) -> Result<Self, StoreError> {
        let mut manifest = Self { entries: Vec::new(), len_bytes: 0, ends: Vec::new(), bytes: Vec::new() };
        let mut rest = bytes.as_slice();
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            match ShardEntry::from_line(path, line) {
                Ok(entry) => manifest.accept(path, header, entry)?,
                Err(_) if after.is_empty() => break,
                Err(error) => return Err(error),
            }
            manifest.len_bytes += end as u64 + 1;
            manifest.ends.push(manifest.len_bytes);
            rest = after;
        }
        manifest.bytes = bytes;
        Ok(manifest)
    }

    /// Rows of all entries.
    pub fn n_rows(&self) -> u64 {
        self.entries.last().map_or(0, |e| e.first_row + u64::from(e.rows))
    }

    /// BLAKE3 of the first `len_bytes` bytes.
    pub fn blake3(&self, len_bytes: u64) -> String {
        let len = (len_bytes as usize).min(self.bytes.len());
        blake3::hash(&self.bytes[..len]).to_hex().to_string()
    }

    /// Number of lines that `generation` stands on; its part of the file must be as it was.
    pub fn n_lines_of(&self, path: &Path, generation: &Generation) -> Result<usize, StoreError> {
        let found = self.blake3(generation.log_bytes);
        // A store of version 1 is sealed as a whole file.
        let is_whole = generation.format_version > 1 || self.bytes.len() as u64 == generation.log_bytes;
        if found != generation.log_blake3 || !is_whole {
            let (path, expected) = (path.to_path_buf(), generation.log_blake3.clone());
            return Err(StoreError::WrongChecksum { path, expected, found });
        }
        if generation.log_bytes == 0 {
            return Ok(0);
        }
        let at = self.ends.binary_search(&generation.log_bytes).map(|line| line + 1);
        at.map_err(|_| StoreError::malformed(path, "length of the manifest", "the end of a line", generation.log_bytes))
    }

    fn accept(&mut self, path: &Path, header: &StoreHeader, entry: ShardEntry) -> Result<(), StoreError> {
        let (shard, first_row) = (self.entries.len() as u32, self.n_rows());
        if (entry.shard, entry.first_row) != (shard, first_row) {
            let found = format!("shard {} from row {}", entry.shard, entry.first_row);
            return Err(StoreError::malformed(path, "order", format!("shard {shard} from row {first_row}"), found));
        }
        if entry.rows == 0 || entry.rows > header.rows_per_shard {
            let expected = format!("1 to {}", header.rows_per_shard);
            return Err(StoreError::malformed(path, "rows of a shard", expected, entry.rows));
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// The manifest open for appending.
#[derive(Debug)]
pub(crate) struct ManifestLog {
    path: PathBuf,
    file: File,
    len_bytes: u64,
}

impl ManifestLog {
    /// Opens (or begins) the file and cuts it to its whole lines.
    pub fn open(path: &Path, len_bytes: u64) -> Result<Self, StoreError> {
        let failed = |source| StoreError::io("open", path, source);
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        let log = Self { path: path.to_path_buf(), file, len_bytes };
        log.cut()?;
        Ok(log)
    }

    /// Appends one line and syncs it. On failure the file is as before.
    pub fn append(&mut self, entry: &ShardEntry) -> Result<(), StoreError> {
        let line = entry.to_line(&self.path)?;
        let result = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(source) = result {
            // Nothing half written: if even this fails, the torn line is cut when the store is next opened.
            let _ = self.cut();
            return Err(StoreError::io("append to", &self.path, source));
        }
        self.len_bytes += line.len() as u64;
        Ok(())
    }

    fn cut(&self) -> Result<(), StoreError> {
        let failed = |source| StoreError::io("cut", &self.path, source);
        if self.file.metadata().map_err(failed)?.len() != self.len_bytes {
            self.file.set_len(self.len_bytes).map_err(failed)?;
            self.file.sync_all().map_err(failed)?;
        }
        Ok(())
    }
}
