//! Blocks of feature rows, and who gives and takes them.

use std::borrow::Cow;

use ndarray::{ArrayView2, CowArray, Ix2};

use crate::ids::ExampleId;
use crate::spec::FeatureSpec;

/// A row-major block `[n, dim]` of feature rows with their ids. Borrowed from a mapped file where it can be.
pub struct Features<'a> {
    /// Ids, one per row.
    pub ids: Cow<'a, [ExampleId]>,
    /// Rows `[n, dim]`, f32.
    pub rows: CowArray<'a, f32, Ix2>,
}

/// Reads the rows of one spec. Blocks come in a fixed order, whatever the number of threads.
pub trait FeatureReader: Sync {
    /// Error of the medium.
    type Error: std::error::Error + Send + Sync + 'static;
    /// What the rows are.
    fn spec(&self) -> &FeatureSpec;
    /// Rows in all.
    fn n_rows(&self) -> u64;
    /// Number of blocks.
    fn n_blocks(&self) -> usize;
    /// Block `block_idx`.
    ///
    /// # Errors
    /// The medium's: a missing, torn or changed shard.
    fn block(&self, block_idx: usize) -> Result<Features<'_>, Self::Error>;
    /// Ids of block `block_idx`. A medium that keeps them apart from the rows need not touch those.
    ///
    /// # Errors
    /// As [`FeatureReader::block`].
    fn block_ids(&self, block_idx: usize) -> Result<Cow<'_, [ExampleId]>, Self::Error> {
        Ok(self.block(block_idx)?.ids)
    }
    /// Chosen rows of block `block_idx` by their place in it. A medium that widens rows need not widen the others.
    ///
    /// # Errors
    /// As [`FeatureReader::block`].
    ///
    /// # Panics
    /// If a place is behind the block's end.
    fn rows_at(&self, block_idx: usize, places: &[u32]) -> Result<Features<'_>, Self::Error> {
        let block = self.block(block_idx)?;
        let places: Vec<usize> = places.iter().map(|&place| place as usize).collect();
        let ids = places.iter().map(|&place| block.ids[place]).collect();
        Ok(Features { ids: Cow::Owned(ids), rows: block.rows.select(ndarray::Axis(0), &places).into() })
    }
}

/// Takes rows in a fixed order and makes them durable.
pub trait FeatureSink {
    /// Error of the medium.
    type Error: std::error::Error + Send + Sync + 'static;
    /// What the rows are.
    fn spec(&self) -> &FeatureSpec;
    /// Rows already durable from an earlier run; the caller goes on from there.
    fn n_committed(&self) -> u64;
    /// Takes `[n, dim]` rows with their ids.
    ///
    /// # Errors
    /// The medium's; rows up to the last commit stay.
    fn push(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>) -> Result<(), Self::Error>;
}
