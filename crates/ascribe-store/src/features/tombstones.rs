//! Tombstones: which rows of which shards are deleted. They name places, not examples, so a deleted example may come again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::Dtype;

use super::FEATURES_FORMAT_VERSION;
use super::generation::{Generation, Part};
use super::layout::{Paths, StoreHeader};
use super::manifest::ShardEntry;
use super::sums::check_part;
use crate::atomic::write_atomic;
use crate::error::StoreError;
use crate::mmap::Map;
use crate::tensors::{self, Table, Tensor};

/// Deleted rows by shard number.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tombstones {
    dead: BTreeMap<u32, BTreeSet<u32>>,
}

impl Tombstones {
    /// Marks a row.
    pub fn insert(&mut self, shard: u32, row: u32) {
        self.dead.entry(shard).or_default().insert(row);
    }

    /// Dead rows of a shard, ascending.
    pub fn of_shard(&self, shard: u32) -> Vec<u32> {
        self.dead.get(&shard).map_or_else(Vec::new, |rows| rows.iter().copied().collect())
    }

    /// Dead rows in all.
    pub fn len(&self) -> u64 {
        self.dead.values().map(|rows| rows.len() as u64).sum()
    }

    /// Writes the file of generation `number`: tensor `dead`, `shard · 2³² + row` of each, ascending.
    pub fn write(&self, paths: &Paths, header: &StoreHeader, number: u64) -> Result<Part, StoreError> {
        let file = format!("tombstones-{number:06}.safetensors");
        let path = paths.root.join(&file);
        let places =
            self.dead.iter().flat_map(|(&s, rows)| rows.iter().map(move |&r| (u64::from(s) << 32) | u64::from(r)));
        let places: Vec<u64> = places.collect();
        let tensors = [Tensor::new("dead", Dtype::U64, &[places.len()], bytemuck::cast_slice::<u64, u8>(&places))];
        let metadata = BTreeMap::from([
            ("ascribe.format_version".to_owned(), FEATURES_FORMAT_VERSION.to_string()),
            ("ascribe.store".to_owned(), header.uuid.clone()),
        ]);
        let mut bytes = Vec::new();
        tensors::write(&mut bytes, &path, &tensors, &metadata)?;
        write_atomic(&path, &bytes)?;
        Ok(Part { file, bytes: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() })
    }

    /// The tombstones of `generation`, whose live shards are `entries`.
    pub fn of(paths: &Paths, generation: &Generation, entries: &[ShardEntry]) -> Result<Self, StoreError> {
        let Some(part) = &generation.tombstones else { return Ok(Self::default()) };
        let path = paths.root.join(&part.file);
        Self::parse(&path, &Map::open(&path)?, part, generation, entries)
    }

    /// Reads a file's bytes back; they must be the ones that `part` names, and every place a row of a live shard.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        part: &Part,
        generation: &Generation,
        entries: &[ShardEntry],
    ) -> Result<Self, StoreError> {
        check_part(path, bytes, part)?;
        let range = Table::read(path, bytes)?.range(path, "dead", Dtype::U64, &[generation.n_dead as usize])?;
        let rows_of: BTreeMap<u32, u32> = entries.iter().map(|e| (e.shard, e.rows)).collect();
        let mut found = Self::default();
        for chunk in bytes[range].as_chunks::<8>().0 {
            let place = u64::from_le_bytes(*chunk);
            let (shard, row) = ((place >> 32) as u32, place as u32);
            if rows_of.get(&shard).is_none_or(|&n| row >= n) {
                let found = format!("shard {shard}, row {row}");
                return Err(StoreError::malformed(path, "deleted row", "a row of a shard of this generation", found));
            }
            found.insert(shard, row);
        }
        if found.len() != generation.n_dead {
            return Err(StoreError::malformed(path, "deleted rows", generation.n_dead, found.len()));
        }
        Ok(found)
    }
}
