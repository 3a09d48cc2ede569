//! Bytes at rest: the feature store, score files and factor files.
//!
//! Here lives every byte layout between a gradient row and a share: how it is written so that a crash leaves either the
//! old or the new state, how it is checked when read, and which version of it is spoken. Here never lives: what the
//! numbers mean (methods), how they are searched (index), or who is paid for them.
//!
//! | format | module | golden files |
//! |---|---|---|
//! | feature store | [`features`] | `tests/formats/features/v1`, `v2` |
//! | score file | [`scores`] | `tests/formats/scores/v1` |
//! | factor file | [`factors`] | `tests/formats/factors/v1` |
//! | score files of other tools, read only | [`score_rows`] | none of ours |
//!
//! All numbers on disk are little-endian; a big-endian host does not compile this crate (it would need copies where
//! the others map).

#[cfg(target_endian = "big")]
compile_error!("ascribe-store maps little-endian files; a big-endian host is not supported");

pub mod atomic;
mod direct;
pub mod error;
pub mod factors;
pub mod features;
mod limits;
pub mod lock;
pub mod mmap;
mod pieces;
mod room;
pub mod score_rows;
pub mod scores;
pub mod tensors;
mod wide;

/// BLAKE3 of some bytes, hex: what manifests name files by.
pub fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

pub use error::{SpecDifference, StoreError};
pub use factors::{FactorData, FactorFile};
pub use features::{FeatureStore, FeatureWriter, ShardView};
pub use scores::{
    DatasetScoresView, Level, ScoreFile, ScoreFileMeta, ScoreRow, ScoreTableView, ScoreWriter, read_scores,
};
