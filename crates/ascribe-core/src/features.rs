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
