//! What a generation says, without its rows: whoever holds it opens single shards, as many at once as memory and the system allow.
//!
//! A [`super::FeatureStore`] maps every shard when it is opened, and a process may have 65,530 maps unless its system was told
//! otherwise. A worker that is given one shard after the other needs neither the maps nor the time.

use std::ops::Range;
use std::path::Path;

use super::generation::Generation;
use super::layout::{Paths, StoreHeader};
use super::manifest::ShardEntry;
use super::reader::{newest_generation, read_generation, refuse_companion};
use super::shard::Shard;
use super::tombstones::Tombstones;
use super::view::ShardView;
use crate::error::StoreError;

/// A generation of a store in a folder ([`Snapshot::open`]) or on an object store ([`Snapshot::read`]).
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) header: StoreHeader,
    pub(super) generation: Generation,
    pub(super) entries: Vec<ShardEntry>,
    /// Deleted rows of each shard.
    pub(super) dead: Vec<Vec<u32>>,
}

/// One shard, mapped or fetched.
#[derive(Debug)]
pub struct SingleShard {
    pub(super) shard: Shard,
    pub(super) dead: Vec<u32>,
}

impl SingleShard {
    /// Its rows, after a check of every byte; later calls check nothing.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`] if the bytes are not the committed ones.
    pub fn view(&self) -> Result<ShardView<'_>, StoreError> {
        Ok(ShardView { dead: &self.dead, ..self.shard.view()? })
    }

    /// Its rows `rows`, after a check of what these are read from; the others must not be looked at.
    ///
    /// # Errors
    /// As [`SingleShard::view`].
    ///
    /// # Panics
    /// If a row is behind the shard's end.
    pub fn view_of(&self, rows: impl IntoIterator<Item = Range<usize>>) -> Result<ShardView<'_>, StoreError> {
        Ok(ShardView { dead: &self.dead, ..self.shard.view_of(rows)? })
    }
}

impl Snapshot {
    /// The newest generation of a store in a folder.
    ///
    /// # Errors
    /// As [`super::FeatureStore::open`], but for the shards, which are not touched.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let paths = Paths::new(dir);
        let header = StoreHeader::read(&paths)?;
        refuse_companion(&paths, &header)?;
        newest_generation(&paths, &header, |generation| {
            let (entries, tombstones) = read_generation(&paths, &header, &generation)?;
            Ok(Self::of(header.clone(), generation, entries, &tombstones))
        })
    }

    pub(super) fn of(
        header: StoreHeader,
        generation: Generation,
        entries: Vec<ShardEntry>,
        tombstones: &Tombstones,
    ) -> Self {
        let dead = entries.iter().map(|e| tombstones.of_shard(e.shard)).collect();
        Self { header, generation, entries, dead }
    }

    /// What the store says of itself.
    pub fn header(&self) -> &StoreHeader {
        &self.header
    }

    /// The generation.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Its shards, in the order of the rows.
    pub fn entries(&self) -> &[ShardEntry] {
        &self.entries
    }

    /// BLAKE3 of the generation's manifest, hex, as [`super::FeatureStore::manifest_blake3`].
    pub fn manifest_blake3(&self) -> &str {
        &self.generation.checksum
    }

    /// Maps shard `i` of the folder; its bytes are checked as they are looked at.
    ///
    /// # Errors
    /// A file that is missing or not as long or of other rows as the manifest says.
    ///
    /// # Panics
    /// If there is no shard `i`.
    pub fn map_shard(&self, dir: &Path, i: usize) -> Result<SingleShard, StoreError> {
        let entry = &self.entries[i];
        let shard = Shard::open(&Paths::new(dir).shard(entry.shard), &self.header, entry)?;
        Ok(SingleShard { shard, dead: self.dead[i].clone() })
    }
}
