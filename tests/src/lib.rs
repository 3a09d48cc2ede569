//! Where things stand in the repository, for the tests in `it/`, which cross crate borders.
//!
//! Here never lives a test of one crate alone (that one stands in the crate), and nothing that ships.

use std::path::PathBuf;

/// The repository's root folder.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A golden folder: `formats/NAME/vN`, kept for ever.
pub fn golden(name: &str, version: u32) -> PathBuf {
    root().join("tests/formats").join(name).join(format!("v{version}"))
}
