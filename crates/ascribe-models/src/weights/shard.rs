//! One safetensors file, read in pieces: its header first, then its tensors in the order of their bytes, so that a big
//! file never stands in memory beside the numbers made of it. What the tensors are for lives in `load`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, DigestStream};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::ModelError;

/// What a file may hold beside the numbers: names, places, metadata.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Bytes read at a time; a multiple of every number's width.
const CHUNK_BYTES: usize = 1 << 20;

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Place of its bytes, from the end of the header on.
    bytes: Range<u64>,
}

/// A file whose header was read and agrees with itself and with the length of the file.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    /// In the order of their bytes, without gaps.
    pub entries: Vec<Entry>,
    header_bytes: u64,
    header_digest: Digest,
}

impl Shard {
    /// Reads the header of `path`.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |error| ModelError::io("read", path)(error);
        let bad = |expected: String, found: String| ModelError::Format { path: path.into(), expected, found };
        let whole = |found: String| bad("a whole safetensors file".into(), found);
        let mut file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut length = [0u8; 8];
        if file_bytes < 8 {
            return Err(whole(format!("{file_bytes} bytes")));
        }
        file.read_exact(&mut length).map_err(io)?;
        let n = u64::from_le_bytes(length);
        if n > MAX_HEADER_BYTES.min(file_bytes - 8) {
            return Err(whole(format!("a header of {n} bytes in a file of {file_bytes}")));
        }
        let mut header = vec![0u8; 8 + n as usize];
        header[..8].copy_from_slice(&length);
        file.read_exact(&mut header[8..]).map_err(io)?;
        // Checks that shapes, types and places agree and leave no gap.
        let metadata: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|error| whole(format!("a header with {error}")))?;
        let said = metadata.data_len() as u64 + header.len() as u64;
        if said != file_bytes {
            return Err(whole(format!("{file_bytes} bytes where the header says {said}")));
        }
        let mut entries = Vec::new();
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).expect("the name came from there");
            let bytes = info.data_offsets.0 as u64..info.data_offsets.1 as u64;
            entries.push(Entry { name, dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
        // One name twice would leave bytes that no entry has.
        let covered: u64 = entries.iter().map(|entry| entry.bytes.end - entry.bytes.start).sum();
        if covered != metadata.data_len() as u64 {
            return Err(whole("a tensor that stands there twice".into()));
        }
        let (header_bytes, header_digest) = (header.len() as u64, Digest::of(&header));
        Ok(Self { path: path.into(), entries, header_bytes, header_digest })
    }

    /// Walks through the whole file once: `visit` sees each entry's index and its bytes, piece by piece, a whole number of
    /// elements each. Returns the SHA-256 of the file.
    pub fn read(&self, mut visit: impl FnMut(usize, &[u8]) -> Result<(), ModelError>) -> Result<Digest, ModelError> {
        let io = |error| ModelError::io("read", &self.path)(error);
        let mut file = File::open(&self.path).map_err(io)?;
        let mut digest = DigestStream::default();
        let mut header = vec![0u8; self.header_bytes as usize];
        file.read_exact(&mut header).map_err(io)?;
        if Digest::of(&header) != self.header_digest {
            let (expected, found) = ("the header that was read before".into(), "another one".into());
            return Err(ModelError::Format { path: self.path.clone(), expected, found });
        }
        digest.update(&header);
        let mut chunk = vec![0u8; CHUNK_BYTES];
        for (e, entry) in self.entries.iter().enumerate() {
            pieces(&mut file, entry, &mut chunk, io, |bytes| {
                digest.update(bytes);
                visit(e, bytes)
            })?;
        }
        Ok(digest.finish())
    }

    /// The bytes of one entry, piece by piece.
    pub fn read_entry(
        &self,
        entry: &Entry,
        visit: impl FnMut(&[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let io = |error| ModelError::io("read", &self.path)(error);
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.header_bytes + entry.bytes.start)).map_err(io)?;
        pieces(&mut file, entry, &mut vec![0u8; CHUNK_BYTES], io, visit)
    }
}

fn pieces(
    file: &mut File,
    entry: &Entry,
    chunk: &mut [u8],
    io: impl Fn(std::io::Error) -> ModelError,
    mut visit: impl FnMut(&[u8]) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let mut left = entry.bytes.end - entry.bytes.start;
    while left > 0 {
        let n = left.min(chunk.len() as u64) as usize;
        file.read_exact(&mut chunk[..n]).map_err(&io)?;
        visit(&chunk[..n])?;
        left -= n as u64;
    }
    Ok(())
}
