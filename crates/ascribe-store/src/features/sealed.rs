//! JSON files that carry their own checksum.
//!
//! The last field is `"checksum": "…"`, the BLAKE3 of the file's bytes as they are but for the 64 digits of the checksum
//! itself, which count as zeros. So any changed bit is found, blanks too, and a reader that does not care reads plain JSON.

use std::path::Path;

use serde::Serialize;

use crate::atomic::write_atomic;
use crate::error::StoreError;

/// Stands in the checksum's place while it is computed.
pub const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The file's bytes. `value` must have a last field `checksum` that holds [`NO_CHECKSUM`].
///
/// # Errors
/// A value that JSON cannot hold.
///
/// # Panics
/// If there is no such field.
pub fn to_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| StoreError::malformed(path, "JSON", "a value", error))?;
    bytes.push(b'\n');
    let at = place(&bytes, NO_CHECKSUM).expect("a sealed value has a checksum field");
    let checksum = blake3::hash(&bytes).to_hex();
    bytes[at..at + NO_CHECKSUM.len()].copy_from_slice(checksum.as_bytes());
    Ok(bytes)
}

/// Writes the file whole or not at all.
///
/// # Errors
/// As [`to_bytes`]; those of the file system.
///
/// # Panics
/// As [`to_bytes`].
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    write_atomic(path, &to_bytes(path, value)?)
}

/// Refuses bytes that do not hash to `checksum`, which was read from them.
///
/// # Errors
/// [`StoreError::WrongChecksum`].
pub fn check(path: &Path, bytes: &[u8], checksum: &str) -> Result<(), StoreError> {
    let wrong = |found: String| {
        let (path, expected) = (path.to_path_buf(), checksum.chars().take(64).collect());
        Err(StoreError::WrongChecksum { path, expected, found })
    };
    let mut bytes = bytes.to_vec();
    match place(&bytes, checksum) {
        Some(at) if checksum.len() == NO_CHECKSUM.len() => {
            bytes[at..at + checksum.len()].copy_from_slice(NO_CHECKSUM.as_bytes());
            let found = blake3::hash(&bytes).to_hex();
            if found.as_str() == checksum { Ok(()) } else { wrong(found.to_string()) }
        }
        _ => wrong("no checksum at the end of the file".to_owned()),
    }
}

/// Where the digits of the checksum stand.
fn place(bytes: &[u8], checksum: &str) -> Option<usize> {
    let field = format!("\"checksum\": \"{checksum}\"\n}}\n");
    bytes.ends_with(field.as_bytes()).then(|| bytes.len() - checksum.len() - "\"\n}\n".len())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Toy {
        name: String,
        checksum: String,
    }

    #[test]
    fn every_changed_bit_is_found() {
        let path = Path::new("toy.json");
        let toy = Toy { name: "a \"checksum\": b".into(), checksum: NO_CHECKSUM.into() };
        let bytes = to_bytes(path, &toy).unwrap();
        let read = |bytes: &[u8]| {
            let toy: Toy = serde_json::from_slice(bytes).map_err(|_| ())?;
            check(path, bytes, &toy.checksum).map_err(|_| ())
        };
        assert_eq!(read(&bytes), Ok(()));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(read(&changed), Err(()), "byte {at}, bit {bit}");
            }
        }
    }
}
