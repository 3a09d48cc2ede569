//! Generations: `MANIFEST-000000.json` and its successors, each a complete state of the store, and the way to the newest.
//!
//! A generation is committed when its manifest has its name. `CURRENT` names a generation that is known to be committed
//! (one line: number, tab, CRC-32 of the number); the newest is the last one that follows it without a gap. So a kill
//! between the two files loses nothing, a lost manifest is noticed, and on an object store "create if absent" of the
//! manifest is the whole commit. A store of version 1 has one generation, number 0, sealed by `MANIFEST.json`.

use std::fs;
use std::path::Path;

use ascribe_core::Digest;
use serde::{Deserialize, Serialize};

use super::FEATURES_FORMAT_VERSION;
use super::layout::{Paths, StoreHeader, check_version, parse_json};
use super::manifest::Manifest;
use super::sealed::{self, NO_CHECKSUM};
use crate::atomic::{read_capped, sync_dir, write_atomic};
use crate::error::StoreError;
use crate::limits::{GENERATIONS_MAX, HEADER_MAX_BYTES};

const NOT_FINISHED: &str = "the store is unfinished; run the writing step again, it resumes";
/// How the names of the parts of a generation begin.
const PARTS: [&str; 4] = ["dataset_sums-", "tombstones-", "datasets-", "owner_sums-"];
const LOST: &str = "`CURRENT` or the next generation names this file; restore it";

/// A file that belongs to a generation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the store's folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3, hex.
    pub blake3: String,
}

/// `MANIFEST-000000.json`: one state of the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Generation {
    /// [`FEATURES_FORMAT_VERSION`].
    pub format_version: u32,
    /// The store's.
    pub uuid: String,
    /// The store's.
    pub spec_sha256: Digest,
    /// Its number, from 0.
    pub generation: u64,
    /// What made it: `build`, `append`, `delete`, `relicense`, `compact`.
    pub made_by: String,
    /// Numbers of the shards that hold its rows, in the order of the rows, as half-open ranges.
    pub shards: Vec<[u32; 2]>,
    /// Rows that are not deleted.
    pub n_rows: u64,
    /// Rows that are deleted but still in their shards.
    pub n_dead: u64,
    /// Datasets that the sums have room for: the largest ordinal and one.
    pub n_datasets: u32,
    /// Bytes of `manifest.log` that this generation stands on.
    pub log_bytes: u64,
    /// BLAKE3 of those bytes, hex.
    pub log_blake3: String,
    /// Exact sums per dataset; a companion has none, its store does.
    pub sums: Option<Part>,
    /// Deleted rows.
    pub tombstones: Option<Part>,
    /// Names, owners and licences of the datasets; none if the store was never told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datasets: Option<Part>,
    /// Exact sums per owner, beside `datasets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_sums: Option<Part>,
    /// BLAKE3 of the file itself, its own digits counted as zeros.
    pub checksum: String,
}

/// `MANIFEST.json`: the seal of a complete store of version 1.
#[derive(Deserialize)]
struct SealV1 {
    uuid: String,
    spec_sha256: Digest,
    n_rows: u64,
    n_shards: u32,
    n_datasets: u32,
    manifest_log_blake3: String,
    dataset_sums_blake3: String,
}

impl Generation {
    /// The generation before any: what a new store is built on.
    pub(crate) fn before(header: &StoreHeader) -> Self {
        Self {
            format_version: FEATURES_FORMAT_VERSION,
            uuid: header.uuid.clone(),
            spec_sha256: header.spec_sha256,
            generation: 0,
            made_by: "build".to_owned(),
            shards: Vec::new(),
            n_rows: 0,
            n_dead: 0,
            n_datasets: 0,
            log_bytes: 0,
            log_blake3: blake3::hash(b"").to_hex().to_string(),
            sums: None,
            tombstones: None,
            datasets: None,
            owner_sums: None,
            checksum: NO_CHECKSUM.to_owned(),
        }
    }

    /// The start of the generation after this one; shards, rows and parts are as they were until the caller changes them.
    pub(crate) fn next(&self, made_by: &str) -> Self {
        let (generation, checksum) = (self.generation + 1, NO_CHECKSUM.to_owned());
        Self { generation, made_by: made_by.to_owned(), checksum, ..self.clone() }
    }

    /// The files beside the rows, in the store's folder.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.sums, &self.tombstones, &self.datasets, &self.owner_sums].into_iter().flatten()
    }

    /// Numbers of the shards, in the order of the rows.
    pub(crate) fn shard_numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.shards.iter().flat_map(|&[start, end]| start..end)
    }

    /// Writes the ranges for shards in this order.
    pub(crate) fn set_shards(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.shards.clear();
        for n in numbers {
            match self.shards.last_mut() {
                Some(range) if range[1] == n => range[1] += 1,
                _ => self.shards.push([n, n + 1]),
            }
        }
    }

    /// Commits the generation: its manifest, then `CURRENT`.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if somebody else committed this number; those of the file system.
    pub(crate) fn commit(&self, paths: &Paths) -> Result<(), StoreError> {
        let path = paths.generation(self.generation);
        if path.exists() {
            return Err(StoreError::Conflict { path, generation: self.generation });
        }
        sealed::write(&path, self)?;
        // Committed. Readers find the newest generation without `CURRENT`, too; whoever cleans up next writes it again.
        let _ = write_atomic(&paths.current(), &current_line(self.generation));
        Ok(())
    }

    /// The newest generation, or `None` if there never was one.
    pub(crate) fn newest(paths: &Paths, header: &StoreHeader) -> Result<Option<Self>, StoreError> {
        if header.is_v1() {
            return if paths.seal_v1().exists() { Self::of_v1(paths, header).map(Some) } else { Ok(None) };
        }
        let Some(mut number) = newest_number(paths)? else { return Ok(None) };
        loop {
            let next = Self::read(paths, header, number);
            match next {
                // Between the look at the folder and the reading a compaction took the file away: there is a newer one.
                Err(StoreError::Missing { .. }) if newest_number(paths)?.is_some_and(|n| n > number) => {
                    number = newest_number(paths)?.unwrap_or(number);
                }
                other => return other.map(Some),
            }
        }
    }

    /// Reads generation `number`.
    pub(crate) fn read(paths: &Paths, header: &StoreHeader, number: u64) -> Result<Self, StoreError> {
        let path = paths.generation(number);
        Self::parse(&path, &read_capped(&path, HEADER_MAX_BYTES, LOST)?, header, number)
    }

    /// Reads the bytes of a manifest that came from `path`.
    pub(crate) fn parse(path: &Path, bytes: &[u8], header: &StoreHeader, number: u64) -> Result<Self, StoreError> {
        check_version(path, bytes)?;
        let found: Self = parse_json(path, "manifest", bytes)?;
        sealed::check(path, bytes, &found.checksum)?;
        let expected = (header.uuid.as_str(), header.spec_sha256, number);
        let what = (found.uuid.as_str(), found.spec_sha256, found.generation);
        if what != expected {
            return Err(StoreError::malformed(path, "store and number", format!("{expected:?}"), format!("{what:?}")));
        }
        for part in found.parts() {
            let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
            if part.file.starts_with('.') || !part.file.bytes().all(is_plain) {
                return Err(StoreError::malformed(path, "name of a part", "a file of this folder", &part.file));
            }
        }
        Ok(found)
    }

    /// The one generation of a sealed store of version 1.
    fn of_v1(paths: &Paths, header: &StoreHeader) -> Result<Self, StoreError> {
        let path = paths.seal_v1();
        let bytes = read_capped(&path, HEADER_MAX_BYTES, NOT_FINISHED)?;
        check_version(&path, &bytes)?;
        let seal: SealV1 = parse_json(&path, "seal", &bytes)?;
        let log = Manifest::read(&paths.manifest(), header)?;
        let found = (seal.uuid.as_str(), seal.spec_sha256, seal.n_rows, seal.n_shards as usize);
        let expected = (header.uuid.as_str(), header.spec_sha256, log.n_rows(), log.entries.len());
        if found != expected || seal.n_rows != header.expected_rows {
            return Err(StoreError::malformed(&path, "seal", format!("{expected:?}"), format!("{found:?}")));
        }
        let file = "dataset_sums.safetensors".to_owned();
        let bytes = fs::metadata(paths.root.join(&file)).map_or(0, |m| m.len());
        let mut generation = Self {
            format_version: 1,
            n_rows: seal.n_rows,
            n_datasets: seal.n_datasets,
            log_bytes: log.len_bytes,
            log_blake3: seal.manifest_log_blake3.clone(),
            sums: Some(Part { file, bytes, blake3: seal.dataset_sums_blake3 }),
            checksum: seal.manifest_log_blake3,
            ..Self::before(header)
        };
        generation.set_shards(0..seal.n_shards);
        Ok(generation)
    }
}

/// The line of `CURRENT`.
pub(crate) fn current_line(generation: u64) -> Vec<u8> {
    let number = generation.to_string();
    format!("{number}\t{:08x}\n", crc32fast::hash(number.as_bytes())).into_bytes()
}

/// The number in `CURRENT`.
pub(crate) fn parse_current(path: &Path, bytes: &[u8]) -> Result<u64, StoreError> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let number = text.split('\t').next().and_then(|n| n.parse().ok()).filter(|&n| n <= GENERATIONS_MAX);
    match number {
        Some(n) if current_line(n) == bytes => Ok(n),
        _ => Err(StoreError::malformed(path, "line", "a generation, tab, its CRC-32", String::from_utf8_lossy(bytes))),
    }
}

/// Number of the newest committed generation.
fn newest_number(paths: &Paths) -> Result<Option<u64>, StoreError> {
    let path = paths.current();
    let mut number = match read_capped(&path, 64, "manifests are there, so it was lost; restore it") {
        Ok(bytes) => parse_current(&path, &bytes)?,
        Err(StoreError::Missing { path, hint }) => {
            let is_manifest = |p: &std::path::PathBuf| {
                p.file_name()
                    .and_then(|n| n.to_str())
                    .is_some_and(|n| n.starts_with("MANIFEST-") && n.ends_with(".json"))
            };
            let manifests: Vec<_> = super::files::of(&paths.root)?.into_iter().filter(is_manifest).collect();
            match manifests.as_slice() {
                [] => return Ok(None),
                // Killed between the first manifest and the first `CURRENT`.
                [only] if *only == paths.generation(0) => 0,
                _ => return Err(StoreError::Missing { path, hint }),
            }
        }
        Err(error) => return Err(error),
    };
    while number < GENERATIONS_MAX && paths.generation(number + 1).exists() {
        number += 1;
    }
    Ok(Some(number))
}

/// Removes what the newest generation does not name: older manifests, their parts, shards of its part of the log that hold none of
/// its rows (shards behind that part belong to an append under way). Readers that are open keep what they mapped.
pub(crate) fn remove_old(paths: &Paths, header: &StoreHeader, newest: &Generation) -> Result<(), StoreError> {
    let n_lines = Manifest::read(&paths.manifest(), header)?.n_lines_of(&paths.manifest(), newest)? as u32;
    let live: std::collections::HashSet<u32> = newest.shard_numbers().collect();
    let parts: Vec<&str> = newest.parts().map(|p| p.file.as_str()).collect();
    write_atomic(&paths.current(), &current_line(newest.generation))?;
    for path in super::files::of(&paths.root)? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let number = name.strip_prefix("MANIFEST-").and_then(|n| n.strip_suffix(".json")?.parse::<u64>().ok());
        let is_part = PARTS.iter().any(|prefix| name.starts_with(prefix));
        if number.is_some_and(|n| n < newest.generation) || (is_part && !parts.contains(&name)) {
            super::files::remove(&path)?;
        }
    }
    for dir in [paths.shards(), paths.sides()] {
        for path in super::files::of(&dir)? {
            if super::files::shard_number(&path).is_some_and(|n| n < n_lines && !live.contains(&n)) {
                super::files::remove(&path)?;
            }
        }
        sync_dir(&dir)?;
    }
    sync_dir(&paths.root)
}
