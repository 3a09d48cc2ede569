//! JSON lines: cut into batches of whole lines here, parsed in `ingest` on every core.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::{BATCH_BYTES, Batch, RecordSource, compressed};
use crate::content::LINE_CAP_BYTES;
use crate::error::RegistryError;
use crate::files;

/// Longest line of a source: what surrounds a text of the longest kind may be as long again.
const SOURCE_LINE_CAP_BYTES: u64 = 4 * LINE_CAP_BYTES;

pub(super) struct Jsonl {
    input: Box<dyn BufRead + Send>,
    path: PathBuf,
    next_line: u64,
    /// The beginning of a line whose end was not read yet.
    carry: Vec<u8>,
}

impl Jsonl {
    pub(super) fn open(path: &Path) -> Result<Self, RegistryError> {
        Ok(Self { input: compressed::open(path)?, path: path.to_owned(), next_line: 1, carry: Vec::new() })
    }

    /// Opens a file that must not be compressed.
    pub(super) fn open_plain(path: &Path) -> Result<Self, RegistryError> {
        let input = Box::new(BufReader::with_capacity(1 << 18, files::open(path, "record file")?));
        Ok(Self { input, path: path.to_owned(), next_line: 1, carry: Vec::new() })
    }
}

impl RecordSource for Jsonl {
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError> {
        let mut bytes = std::mem::take(&mut self.carry);
        let start = bytes.len();
        bytes.resize(start + BATCH_BYTES, 0);
        // As long as the buffer of the reader or longer: nothing goes through that buffer.
        let n_read = compressed::read_up_to(&mut self.input, &mut bytes[start..]);
        let n_read = n_read.map_err(RegistryError::io(&self.path, "reading"))?;
        bytes.truncate(start + n_read);
        if bytes.is_empty() {
            return Ok(None);
        }
        if n_read == BATCH_BYTES {
            // The batch ends in the middle of a line, most likely: its beginning waits for the next one.
            match memchr::memrchr(b'\n', &bytes) {
                Some(end) => self.carry = bytes.split_off(end + 1),
                None if bytes.len() as u64 > SOURCE_LINE_CAP_BYTES => {
                    let reason =
                        format!("expected a line of at most {SOURCE_LINE_CAP_BYTES} bytes, found a longer one");
                    return Err(RegistryError::BadRecord { path: self.path.clone(), line: self.next_line, reason });
                }
                None => {
                    self.carry = bytes;
                    return Ok(Some(Batch::Lines { first_line: self.next_line, bytes: Vec::new() }));
                }
            }
        }
        let first_line = self.next_line;
        self.next_line += memchr::memchr_iter(b'\n', &bytes).count() as u64;
        Ok(Some(Batch::Lines { first_line, bytes }))
    }
}
