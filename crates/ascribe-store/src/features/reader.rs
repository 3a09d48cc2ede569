//! Reading: a complete store, mapped, checked, handed out in blocks.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use ascribe_core::{ExampleId, FeatureReader, FeatureSpec, Features, RowType};

use super::BLOCK_ROWS;
use super::layout::{Paths, Seal, StoreHeader};
use super::manifest::{Manifest, ShardEntry};
use super::shard::Shard;
use super::sums::DatasetSums;
use super::writer::open_shards;
use crate::error::StoreError;

/// A complete feature store, open for reading from any number of threads.
///
/// Opening checks versions, hashes of the spec and of the manifest, and the length and head of every shard. The bytes of
/// a shard are hashed once, before its first row is handed out, so a changed shard never gives a row
/// ([`FeatureStore::verify`] hashes everything at once, side files too).
#[derive(Debug)]
pub struct FeatureStore {
    pub(super) paths: Paths,
    header: StoreHeader,
    pub(super) seal: Seal,
    pub(super) entries: Vec<ShardEntry>,
    pub(super) shards: Vec<Shard>,
    blocks: Vec<(usize, Range<usize>)>,
}

impl FeatureStore {
    /// Opens the store at `dir`; with `expected_spec`, only if it is of that spec.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::WrongVersion`], [`StoreError::SpecMismatch`], [`StoreError::Unfinished`],
    /// [`StoreError::WrongLength`], [`StoreError::WrongChecksum`], [`StoreError::Malformed`]; those of the file system.
    pub fn open(dir: &Path, expected_spec: Option<&FeatureSpec>) -> Result<Self, StoreError> {
        let paths = Paths::new(dir);
        let header = StoreHeader::read(&paths)?;
        if let Some(expected) = expected_spec {
            header.expect_spec(&paths.header(), expected)?;
        }
        if !paths.seal().exists() {
            let log_path = paths.manifest();
            let found_rows = if log_path.exists() { Manifest::read(&log_path, &header)?.n_rows() } else { 0 };
            return Err(StoreError::Unfinished { path: paths.root, expected_rows: header.expected_rows, found_rows });
        }
        let seal = Seal::read(&paths)?;
        let manifest = Manifest::read(&paths.manifest(), &header)?;
        check_seal(&paths, &header, &seal, &manifest)?;
        let shards = open_shards(&paths, &header, &manifest.entries)?;
        let blocks = shards.iter().enumerate().flat_map(|(i, shard)| {
            let n_rows = shard.ids.len();
            (0..n_rows).step_by(BLOCK_ROWS).map(move |start| (i, start..(start + BLOCK_ROWS).min(n_rows)))
        });
        let blocks = blocks.collect();
        Ok(Self { paths, header, seal, entries: manifest.entries, shards, blocks })
    }

    /// What the store says of itself.
    pub fn header(&self) -> &StoreHeader {
        &self.header
    }

    /// How numbers are kept.
    pub fn row_type(&self) -> RowType {
        self.header.row_type
    }

    /// Bytes of all shard and side files.
    pub fn len_bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes + e.side_bytes).sum()
    }

    /// BLAKE3 of the manifest, hex: it names the hash of every shard, so it pins every row.
    pub fn manifest_blake3(&self) -> &str {
        &self.seal.manifest_log_blake3
    }

    /// All ids, in the order of the rows.
    pub fn ids(&self) -> impl Iterator<Item = ExampleId> + '_ {
        self.shards.iter().flat_map(|shard| shard.ids.iter().copied())
    }

    /// Euclidean norms of all rows as stored, in their order.
    pub fn norms(&self) -> impl Iterator<Item = f32> + '_ {
        self.shards.iter().flat_map(|shard| shard.norms.iter().copied())
    }

    /// The exact sums per dataset, checked against their hash.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::WrongChecksum`], [`StoreError::Malformed`].
    pub fn dataset_sums(&self) -> Result<DatasetSums, StoreError> {
        DatasetSums::read(&self.paths.sums(), &self.header, self.seal.n_datasets, &self.seal.dataset_sums_blake3)
    }
}

impl FeatureReader for FeatureStore {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        &self.header.spec
    }

    fn n_rows(&self) -> u64 {
        self.seal.n_rows
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Block `block_idx`: at most [`BLOCK_ROWS`] rows of one shard, borrowed from the map if they are f32.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`] if the shard is not the committed one; [`StoreError::Shape`] past the end.
    fn block(&self, block_idx: usize) -> Result<Features<'_>, StoreError> {
        let Some((shard_idx, range)) = self.blocks.get(block_idx).cloned() else {
            let expected = format!("below {}", self.blocks.len());
            return Err(StoreError::Shape { what: "number of a block", expected, found: block_idx.to_string() });
        };
        let shard = &self.shards[shard_idx];
        Ok(Features { rows: shard.rows(range.clone())?, ids: Cow::Borrowed(&shard.ids[range]) })
    }
}

fn check_seal(paths: &Paths, header: &StoreHeader, seal: &Seal, manifest: &Manifest) -> Result<(), StoreError> {
    let path = paths.seal();
    if manifest.is_torn || manifest.blake3 != seal.manifest_log_blake3 {
        let (expected, found) = (seal.manifest_log_blake3.clone(), manifest.blake3.clone());
        return Err(StoreError::WrongChecksum { path: paths.manifest(), expected, found });
    }
    let found = (seal.uuid.as_str(), seal.spec_sha256, seal.n_rows, seal.n_shards as usize);
    let expected = (header.uuid.as_str(), header.spec_sha256, manifest.n_rows(), manifest.entries.len());
    if found != expected || seal.n_rows != header.expected_rows {
        return Err(StoreError::malformed(&path, "seal", format!("{expected:?}"), format!("{found:?}")));
    }
    Ok(())
}
