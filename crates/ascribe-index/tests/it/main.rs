//! Integration tests of the indexes: one suite for all, then what is particular to each.

#![allow(clippy::unwrap_used)] // what tests share may panic like the tests themselves

#[path = "../contract/mod.rs"]
mod contract;

mod certified;
mod hnsw;
mod kept;
mod savers;
mod shard_job;
mod suite;
