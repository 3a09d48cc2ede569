//! What an index says of itself, and where its files are.
//!
//! ```text
//! index/
//!   verbatim.json                 version, tokenizer, sources, one entry per finished shard; sealed by its BLAKE3
//!   shard-000000.safetensors      tokens, suffixes, records, counts, and checksums of their pages
//!   writer.lock                   empty; the system's lock on it keeps a second writer out
//! ```
//!
//! A shard never changes once it has its name; only `verbatim.json` does, by rename, after each shard. A shard file holds
//!
//! | tensor | type and shape | meaning |
//! |---|---|---|
//! | `tokens` | u16 or u32 `[n]` | ids plus one; 0 closes every record |
//! | `suffixes` | u32 `[n]` | positions, in the order of the suffixes that begin there |
//! | `record_starts` | u32 `[r]` | position of each record's first token, ascending |
//! | `source_offsets` | u64 `[r]` | byte of the source file at which the record's line begins |
//! | `counts` | u32 `[vocab_size + 1]` | how often each of the numbers in `tokens` stands there |
//! | `NAME.sums` | u32 | CRC-32 of each 4 KiB of the first four |

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, RecordId};
use ascribe_store::StoreError;
use ascribe_store::atomic::{read_capped, write_atomic};
use serde::{Deserialize, Serialize};

use crate::error::VerbatimError;

/// Version of everything in the folder.
pub const VERBATIM_FORMAT_VERSION: u32 = 1;
/// Name of the file that makes a folder an index.
pub const MANIFEST_FILE: &str = "verbatim.json";

/// Longest manifest that is read: 400 bytes a shard, so more than half a million shards.
const MANIFEST_MAX_BYTES: u64 = 256 << 20;
/// Largest vocabulary: counts are dense.
const VOCAB_MAX: u32 = 1 << 24;
/// Longest shard: positions are signed 32-bit numbers where suffixes are sorted.
const SHARD_TOKENS_MAX: u32 = 1 << 30;

/// What fixes an index, besides its sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexSettings {
    /// SHA-256 of the tokenizer file: queries must come from the same.
    pub tokenizer: Digest,
    /// One more than the largest token id, at most 2²⁴.
    pub vocab_size: u32,
    /// A shard is closed by the record with which it reaches so many tokens, at most 2³⁰.
    pub shard_tokens: u32,
}

/// Where records come from: one dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Short name.
    pub name: String,
    /// What pins its bytes: content root or SHA-256 of the file.
    pub id: Digest,
    /// The file, as the builder named it.
    pub path: String,
}

/// Records of one dataset in one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    pub dataset: u32,
    /// Row of the first of them; the others follow without gaps.
    pub first_row: u32,
    pub records: u32,
}

/// One finished shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardEntry {
    /// Tokens and separators.
    pub tokens: u32,
    /// Its records, by dataset.
    pub parts: Vec<Part>,
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
    /// BLAKE3 of counts and checksums, hex: what is read at once.
    pub tables_blake3: String,
}

impl ShardEntry {
    pub fn records(&self) -> usize {
        self.parts.iter().map(|part| part.records as usize).sum()
    }
}

/// The manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub format_version: u32,
    pub settings: IndexSettings,
    pub sources: Vec<Source>,
    pub shards: Vec<ShardEntry>,
    /// True when every record of every source is in.
    pub complete: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    blake3: String,
    index: Manifest,
}

impl Manifest {
    /// An index without shards.
    ///
    /// # Errors
    /// [`VerbatimError::Setting`] outside a range.
    pub fn new(settings: IndexSettings, sources: Vec<Source>) -> Result<Self, VerbatimError> {
        settings.check()?;
        Ok(Self { format_version: VERBATIM_FORMAT_VERSION, settings, sources, shards: vec![], complete: false })
    }

    /// Reads and checks the manifest of the folder `dir`.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::WrongVersion`], [`StoreError::WrongChecksum`], [`StoreError::Malformed`].
    pub fn read(dir: &Path) -> Result<Self, VerbatimError> {
        #[derive(Deserialize)]
        struct Version {
            index: VersionOnly,
        }
        #[derive(Deserialize)]
        struct VersionOnly {
            format_version: u32,
        }
        let path = dir.join(MANIFEST_FILE);
        let bytes = read_capped(&path, MANIFEST_MAX_BYTES, "build the index first")?;
        let bad = |error| StoreError::malformed(&path, "manifest", "its JSON form", error);
        let found = serde_json::from_slice::<Version>(&bytes).map_err(bad)?.index.format_version;
        if found != VERBATIM_FORMAT_VERSION {
            let expected = VERBATIM_FORMAT_VERSION;
            return Err(StoreError::WrongVersion { path, format: "verbatim index", expected, found }.into());
        }
        let sealed: Sealed = serde_json::from_slice(&bytes).map_err(bad)?;
        let found = sealed.index.seal(&path)?;
        if found != sealed.blake3 {
            return Err(StoreError::WrongChecksum { path, expected: sealed.blake3, found }.into());
        }
        sealed.index.check(&path)?;
        Ok(sealed.index)
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(MANIFEST_FILE);
        let sealed = Sealed { blake3: self.seal(&path)?, index: self.clone() };
        let json = serde_json::to_vec_pretty(&sealed)
            .map_err(|error| StoreError::malformed(&path, "manifest", "a value", error))?;
        write_atomic(&path, &json)
    }

    /// The first record that is not in a finished shard.
    pub fn next_record(&self) -> RecordId {
        let last = self.shards.last().and_then(|shard| shard.parts.last());
        last.map_or(RecordId { dataset: 0, row: 0 }, |p| RecordId { dataset: p.dataset, row: p.first_row + p.records })
    }

    fn seal(&self, path: &Path) -> Result<String, StoreError> {
        let json =
            serde_json::to_vec(self).map_err(|error| StoreError::malformed(path, "manifest", "a value", error))?;
        Ok(blake3::hash(&json).to_hex().to_string())
    }

    /// What the seal of a stranger cannot vouch for.
    fn check(&self, path: &Path) -> Result<(), VerbatimError> {
        self.settings.check()?;
        let mut next = RecordId { dataset: 0, row: 0 };
        for (number, shard) in self.shards.iter().enumerate() {
            if shard.tokens == 0 || shard.parts.is_empty() {
                return Err(StoreError::malformed(path, "shard", "at least one record", number).into());
            }
            for part in &shard.parts {
                let follows = part.dataset > next.dataset && part.first_row == 0
                    || part.dataset == next.dataset && part.first_row == next.row;
                let end = part.first_row.checked_add(part.records);
                let (true, true, Some(end)) = (follows, (part.dataset as usize) < self.sources.len(), end) else {
                    let expected = format!("records from dataset {}, row {}, on", next.dataset, next.row);
                    return Err(StoreError::malformed(path, "parts of a shard", expected, format!("{part:?}")).into());
                };
                next = RecordId { dataset: part.dataset, row: end };
            }
            if shard.records() > shard.tokens as usize {
                return Err(StoreError::malformed(path, "records of a shard", shard.tokens, shard.records()).into());
            }
        }
        Ok(())
    }
}

impl IndexSettings {
    fn check(&self) -> Result<(), VerbatimError> {
        let bad = |setting, expected: u32, found: u32| {
            Err(VerbatimError::Setting { setting, expected: format!("1 to {expected}"), found: found.into() })
        };
        match self {
            Self { vocab_size, .. } if !(1..=VOCAB_MAX).contains(vocab_size) => {
                bad("vocabulary size", VOCAB_MAX, *vocab_size)
            }
            Self { shard_tokens, .. } if !(1..=SHARD_TOKENS_MAX).contains(shard_tokens) => {
                bad("tokens per shard", SHARD_TOKENS_MAX, *shard_tokens)
            }
            _ => Ok(()),
        }
    }
}

/// Where shard `number` is.
pub(crate) fn shard_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("shard-{number:06}.safetensors"))
}

/// Where the lock is.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join("writer.lock")
}
