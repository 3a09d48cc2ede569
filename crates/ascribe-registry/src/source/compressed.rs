//! Opens a file as it is, or through gzip or zstd, by its first bytes; refuses bombs.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::RegistryError;
use crate::files;

/// How many times its own size a compressed file may expand to. Text compresses 3 to 10 times; a bomb a thousand times.
pub const EXPANSION_CAP: u64 = 200;

/// What every file may expand to, however small it is.
const EXPANSION_FLOOR_BYTES: u64 = 16 << 20;

/// Largest zstd window, as a power of two: 128 MiB, what `zstd` itself allows without `--long`.
const ZSTD_WINDOW_LOG_CAP: u32 = 27;

const BUFFER_BYTES: usize = 1 << 18;

/// Most bytes that a file of `len_bytes` may stand for.
pub(crate) fn expansion_cap(len_bytes: u64) -> u64 {
    len_bytes.saturating_mul(EXPANSION_CAP).max(EXPANSION_FLOOR_BYTES)
}

/// A file's bytes, decompressed where its first bytes say so.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead + Send>, RegistryError> {
    let mut file = files::open(path, "source file")?;
    let len_bytes = file.metadata().map_err(RegistryError::io(path, "reading"))?.len();
    let mut magic = [0; 4];
    let n_read = read_up_to(&mut file, &mut magic).map_err(RegistryError::io(path, "reading"))?;
    file.seek(SeekFrom::Start(0)).map_err(RegistryError::io(path, "reading"))?;
    let plain = BufReader::with_capacity(BUFFER_BYTES, file);
    let capped = |inner: Box<dyn Read + Send>| -> Box<dyn BufRead + Send> {
        let left = expansion_cap(len_bytes);
        Box::new(BufReader::with_capacity(BUFFER_BYTES, Capped { inner, left, len_bytes }))
    };
    Ok(match &magic[..n_read] {
        [0x1f, 0x8b, ..] => capped(Box::new(MultiGzDecoder::new(plain))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(plain).map_err(RegistryError::io(path, "decompressing"))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_CAP).map_err(RegistryError::io(path, "decompressing"))?;
            capped(Box::new(decoder))
        }
        _ => Box::new(plain),
    })
}

/// Fills `bytes` as far as there is something to read; returns how far.
pub(super) fn read_up_to(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Stops a stream that expands too far.
struct Capped {
    inner: Box<dyn Read + Send>,
    left: u64,
    len_bytes: u64,
}

impl Read for Capped {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(format!(
                    "expected at most {} bytes out of {} compressed ones, found more (hint: decompress the file if you \
                     trust it)",
                    expansion_cap(self.len_bytes),
                    self.len_bytes
                )));
            }
        }
        Ok(n)
    }
}
