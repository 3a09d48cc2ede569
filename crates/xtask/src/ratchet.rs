//! `ratchet.toml`: files and functions that are longer than the law wants, each with the length it may not exceed.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::repo::Repo;

/// The list.
pub const PATH: &str = "crates/xtask/ratchet.toml";

/// How many long files the list may hold. Lower it when one leaves; it is never raised.
pub const FILES_MAX: usize = 0;

/// How many long functions the list may hold. Lower it when one leaves; it is never raised.
pub const FUNCTIONS_MAX: usize = 0;

/// A file that is too long.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongFile {
    /// Path from the root.
    pub path: String,
    /// Its lines.
    pub lines: usize,
}

/// A function that is too long.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongFunction {
    /// Path of its file from the root.
    pub path: String,
    /// Its name.
    pub name: String,
    /// Its lines.
    pub lines: usize,
}

/// The whole list.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ratchet {
    /// Long files.
    pub file: Vec<LongFile>,
    /// Long functions.
    pub function: Vec<LongFunction>,
}

impl Ratchet {
    /// Reads the list; a repository without one has an empty list.
    ///
    /// # Errors
    /// If the file is not such a list.
    pub fn read(repo: &Repo) -> Result<Self> {
        repo.text(PATH).map_or_else(|| Ok(Self::default()), |text| toml::from_str(text).context(PATH))
    }
}
