//! The seal of a score file: BLAKE3 over the whole file, checked before the Parquet library sees a byte.
//!
//! That library trusts what it decodes: a flipped bit in a dictionary page makes version 59 panic. So 40 bytes (a magic
//! word and the hash) stand between the last page and the footer. Parquet readers go by the offsets in the footer and
//! never look there; the hash covers everything before and after the seal.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::StoreError;

const MAGIC: [u8; 8] = *b"ASCRSEAL";
const SEAL_BYTES: u64 = 40;
/// Footer length (u32) and `PAR1`.
const TAIL_BYTES: u64 = 8;

/// Puts the seal into a complete Parquet file; returns the hash, hex.
pub fn write_seal(path: &Path, file: &mut (impl Read + Write + Seek)) -> Result<String, StoreError> {
    put(file).map_err(|source| StoreError::io("write", path, source))
}

fn put(file: &mut (impl Read + Write + Seek)) -> io::Result<String> {
    let len = file.seek(SeekFrom::End(0))?;
    let footer_start = footer_start(file, len)?;
    let mut hasher = blake3::Hasher::new();
    file.seek(SeekFrom::Start(0))?;
    hash(file, footer_start, &mut hasher)?;
    let mut footer = Vec::new();
    file.read_to_end(&mut footer)?;
    hasher.update(&footer);
    let hash = hasher.finalize();
    file.seek(SeekFrom::Start(footer_start))?;
    file.write_all(&MAGIC)?;
    file.write_all(hash.as_bytes())?;
    file.write_all(&footer)?;
    file.flush()?;
    Ok(hash.to_hex().to_string())
}

/// Refuses a file that is not, to the bit, the one that was sealed.
pub fn check_seal(path: &Path, file: &mut (impl Read + Seek)) -> Result<(), StoreError> {
    let not_sealed = |_| StoreError::malformed(path, "seal before the footer", "one of this program", "none");
    let len = file.seek(SeekFrom::End(0)).map_err(|source| StoreError::io("read", path, source))?;
    let footer_start = footer_start(file, len).map_err(not_sealed)?;
    let mut compare = || -> io::Result<([u8; SEAL_BYTES as usize], blake3::Hash)> {
        let pages_end = footer_start.checked_sub(SEAL_BYTES).ok_or(io::ErrorKind::InvalidData)?;
        let mut hasher = blake3::Hasher::new();
        file.seek(SeekFrom::Start(0))?;
        hash(file, pages_end, &mut hasher)?;
        let mut seal = [0; SEAL_BYTES as usize];
        file.read_exact(&mut seal)?;
        hash(file, len - footer_start, &mut hasher)?;
        Ok((seal, hasher.finalize()))
    };
    let (seal, found) = compare().map_err(not_sealed)?;
    if seal[..8] != MAGIC {
        return Err(not_sealed(io::ErrorKind::InvalidData.into()));
    }
    if seal[8..] != *found.as_bytes() {
        let (expected, found) = (hex::encode(&seal[8..]), found.to_hex().to_string());
        return Err(StoreError::WrongChecksum { path: path.to_path_buf(), expected, found });
    }
    file.seek(SeekFrom::Start(0)).map(drop).map_err(|source| StoreError::io("read", path, source))
}

fn footer_start(file: &mut (impl Read + Seek), len: u64) -> io::Result<u64> {
    let mut tail = [0; TAIL_BYTES as usize];
    file.seek(SeekFrom::Start(len.checked_sub(TAIL_BYTES).ok_or(io::ErrorKind::InvalidData)?))?;
    file.read_exact(&mut tail)?;
    let footer_len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    (len - TAIL_BYTES).checked_sub(footer_len).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Hashes exactly `len` bytes from where the file stands.
fn hash(file: &mut impl Read, len: u64, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let n_hashed = io::copy(&mut file.take(len), hasher)?;
    if n_hashed == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
