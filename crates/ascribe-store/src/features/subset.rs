//! Some rows of a store: those whose examples a question picks.

use std::borrow::Cow;
use std::ops::Range;

use ascribe_core::{ExampleId, FeatureReader, FeatureSpec, Features};

use super::BLOCK_ROWS;
use super::reader::FeatureStore;
use crate::error::StoreError;

/// Rows of a store that a question picked, in the order of the store.
#[derive(Debug)]
pub struct Subset<'a> {
    store: &'a FeatureStore,
    /// Shard and row of each.
    places: Vec<(u32, u32)>,
    blocks: Vec<Range<usize>>,
}

impl FeatureStore {
    /// The rows whose examples `pick` says yes to. Cost: a look at every id, 8 bytes for each row that is picked.
    pub fn subset(&self, pick: impl Fn(ExampleId) -> bool) -> Subset<'_> {
        let mut places = Vec::new();
        let mut blocks: Vec<Range<usize>> = Vec::new();
        for (shard, (found, dead)) in self.shards.iter().zip(&self.dead).enumerate() {
            let view = found.unchecked();
            let start = places.len();
            let is_live = |row: &usize| dead.binary_search(&(*row as u32)).is_err();
            let picked = (0..view.n_rows).filter(is_live).filter(|&row| pick(view.id(row)));
            places.extend(picked.map(|row| (shard as u32, row as u32)));
            // A block never spans two shards.
            let ends = (start..places.len()).step_by(BLOCK_ROWS).map(|at| at..(at + BLOCK_ROWS).min(places.len()));
            blocks.extend(ends);
        }
        Subset { store: self, places, blocks }
    }
}

impl FeatureReader for Subset<'_> {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        self.store.spec()
    }

    fn n_rows(&self) -> u64 {
        self.places.len() as u64
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, StoreError> {
        let Some(range) = self.blocks.get(block_idx).cloned() else {
            let expected = format!("below {}", self.blocks.len());
            return Err(StoreError::Shape { what: "number of a block", expected, found: block_idx.to_string() });
        };
        let places = &self.places[range];
        let shard = &self.store.shards[places[0].0 as usize];
        let rows: Vec<u32> = places.iter().map(|&(_, row)| row).collect();
        let view = shard.view()?;
        let ids = rows.iter().map(|&row| view.id(row as usize)).collect();
        Ok(Features { ids: Cow::Owned(ids), rows: shard.rows_at(&rows)? })
    }
}
