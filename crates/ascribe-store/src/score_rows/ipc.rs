//! Lengths of an Arrow IPC file or stream, checked against the file before the library believes them: it allocates what a message
//! claims, and a claim of 64 GiB ends the process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use arrow::ipc::{Message, RecordBatch, root_as_footer, root_as_message};

use super::open;
use crate::error::StoreError;

/// No schema, footer or batch header of a score file is larger.
const HEAD_MAX_BYTES: u64 = 64 << 20;
/// Longest single buffer after decompression: a column of 2^26 doubles.
const BUFFER_MAX_BYTES: i64 = 512 << 20;
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Checks every message of a stream.
pub(super) fn check_stream(path: &Path) -> Result<(), StoreError> {
    let mut guard = Guard::open(path)?;
    let mut at = 0;
    while at < guard.len {
        let (head_len, head_start) = guard.message_head(at)?;
        if head_len == 0 {
            return Ok(());
        }
        let body_start = head_start + head_len;
        at = body_start + guard.check_message(head_start, head_len)?;
    }
    Ok(())
}

/// Checks every block that the footer of a file names.
pub(super) fn check_file(path: &Path) -> Result<(), StoreError> {
    let mut guard = Guard::open(path)?;
    let tail_start = guard.len.checked_sub(10).ok_or_else(|| guard.bad("10 bytes at the end"))?;
    let tail = guard.bytes(tail_start, 10)?;
    let footer_len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let footer_start = tail_start.checked_sub(footer_len).ok_or_else(|| guard.bad("a footer within the file"))?;
    let footer = guard.bytes(footer_start, footer_len)?;
    let footer = root_as_footer(&footer).map_err(|error| guard.bad(&format!("a footer ({error})")))?;
    let blocks = footer.dictionaries().into_iter().flatten().chain(footer.recordBatches().into_iter().flatten());
    for block in blocks {
        let start = u64::try_from(block.offset()).map_err(|_| guard.bad("blocks within the file"))?;
        let (head_len, head_start) = guard.message_head(start)?;
        let body_len = guard.check_message(head_start, head_len)?;
        let named = (i64::from(block.metaDataLength()), block.bodyLength());
        let found = ((head_start + head_len - start) as i64, body_len as i64);
        if named != found {
            return Err(guard.bad("blocks as long as their messages"));
        }
    }
    Ok(())
}

struct Guard<'a> {
    path: &'a Path,
    file: File,
    len: u64,
}

impl<'a> Guard<'a> {
    fn open(path: &'a Path) -> Result<Self, StoreError> {
        let file = open(path)?;
        let len = file.metadata().map_err(|source| StoreError::io("read", path, source))?.len();
        Ok(Self { path, file, len })
    }

    fn bad(&self, expected: &str) -> StoreError {
        StoreError::malformed(self.path, "Arrow file", expected, "something else")
    }

    fn bytes(&mut self, start: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        if len > HEAD_MAX_BYTES || start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.bad("lengths within the file"));
        }
        let mut bytes = vec![0; len as usize];
        let read = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|source| StoreError::io("read", self.path, source))?;
        Ok(bytes)
    }

    /// Length and start of the metadata of the message at `at`; the length is 0 at the end of a stream.
    fn message_head(&mut self, at: u64) -> Result<(u64, u64), StoreError> {
        let word = self.bytes(at, 4)?;
        let (word, start) = if word == CONTINUATION { (self.bytes(at + 4, 4)?, at + 8) } else { (word, at + 4) };
        Ok((u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])), start))
    }

    /// Checks one message; returns the length of its body.
    fn check_message(&mut self, head_start: u64, head_len: u64) -> Result<u64, StoreError> {
        let head = self.bytes(head_start, head_len)?;
        let message = root_as_message(&head).map_err(|error| self.bad(&format!("a message ({error})")))?;
        let body_start = head_start + head_len;
        let body_len = u64::try_from(message.bodyLength())
            .ok()
            .filter(|len| body_start.checked_add(*len).is_some_and(|end| end <= self.len));
        let body_len = body_len.ok_or_else(|| self.bad("bodies within the file"))?;
        if let Some(batch) = batch(&message) {
            self.check_buffers(&batch, body_start, body_len)?;
        }
        Ok(body_len)
    }

    /// Buffers lie in the body; compressed ones do not claim to become larger than any column is.
    fn check_buffers(&mut self, batch: &RecordBatch<'_>, body_start: u64, body_len: u64) -> Result<(), StoreError> {
        for buffer in batch.buffers().into_iter().flatten() {
            let (offset, len) = (u64::try_from(buffer.offset()), u64::try_from(buffer.length()));
            let (Ok(offset), Ok(len)) = (offset, len) else {
                return Err(self.bad("buffers of some length"));
            };
            if offset.checked_add(len).is_none_or(|end| end > body_len) {
                return Err(self.bad("buffers within their body"));
            }
            if batch.compression().is_some() && len >= 8 {
                let claimed = self.bytes(body_start + offset, 8)?;
                let claimed = i64::from_le_bytes(*claimed.first_chunk().expect("8 bytes were read"));
                if claimed > BUFFER_MAX_BYTES {
                    return Err(self.bad("buffers of at most 512 MiB"));
                }
            }
        }
        Ok(())
    }
}

fn batch<'a>(message: &Message<'a>) -> Option<RecordBatch<'a>> {
    message.header_as_record_batch().or_else(|| message.header_as_dictionary_batch()?.data())
}
