//! Small files: read under a cap, written whole or not at all. Never the meaning of what they hold.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use ascribe_core::{Digest, DigestStream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RegistryError, clip};

/// No manifest, licence, terms, log or run record is anywhere near this.
pub(crate) const SMALL_FILE_CAP_BYTES: u64 = 4 << 20;

/// Reads a whole file of at most [`SMALL_FILE_CAP_BYTES`].
pub(crate) fn read_small(path: &Path, what: &'static str) -> Result<Vec<u8>, RegistryError> {
    read_capped(path, what, SMALL_FILE_CAP_BYTES)
}

/// Reads a whole file of at most `cap` bytes.
pub(crate) fn read_capped(path: &Path, what: &'static str, cap: u64) -> Result<Vec<u8>, RegistryError> {
    let file = open(path, what)?;
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(RegistryError::io(path, "reading"))?;
    if bytes.len() as u64 > cap {
        let found = fs::metadata(path).map_or(bytes.len() as u64, |meta| meta.len());
        return Err(RegistryError::FileTooLarge { path: path.to_owned(), cap, found });
    }
    Ok(bytes)
}

/// Opens a file; one that is not there is [`RegistryError::Missing`].
pub(crate) fn open(path: &Path, what: &'static str) -> Result<File, RegistryError> {
    File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => RegistryError::Missing { path: path.to_owned(), what },
        _ => RegistryError::Io { path: path.to_owned(), doing: "opening", source },
    })
}

/// Parses JSON of a declared form.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(bytes)
        .map_err(|error| RegistryError::Json { path: path.to_owned(), reason: clip(&error.to_string()) })
}

/// Indented JSON with a final newline: the form in which all JSON files of a registry are written.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("file types have string keys and no floats");
    bytes.push(b'\n');
    bytes
}

/// Writes a file by way of a temporary sibling and a rename, so that no reader sees half of it. An unchanged file is
/// left alone.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let temporary = path.with_added_extension("tmp");
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| {
        // The error that stopped the write is the one to report; a stale temporary file harms nobody.
        let _ = fs::remove_file(&temporary);
        RegistryError::Io { path: path.to_owned(), doing: "writing", source }
    })
}

/// SHA-256 of a file that may be large.
pub(crate) fn digest_of(path: &Path, mut file: File) -> Result<Digest, RegistryError> {
    let (mut stream, mut buffer) = (DigestStream::default(), vec![0; 1 << 18]);
    loop {
        let n = file.read(&mut buffer).map_err(RegistryError::io(path, "reading"))?;
        if n == 0 {
            return Ok(stream.finish());
        }
        stream.update(&buffer[..n]);
    }
}
