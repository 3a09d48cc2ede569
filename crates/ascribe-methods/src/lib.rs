//! Attribution methods: `fit` what a method needs, `score` every training row and every dataset against queries.
//!
//! Here lives: block-Fisher influence, trajectory (TracIn) sums, the controls that every method is held against, and the
//! calibrated combination of them with its intervals. Here never lives: files, models, money. Values come in, values go
//! out; the engine reads and writes.
//!
//! Scores are `[query, train]` or `[query, dataset]`, positive = proponent. All sums are f64 in an order fixed by row
//! number, so that the bytes depend neither on threads, nor on how a store was cut into blocks, nor on which other
//! queries are scored in the same call.

mod blocks;
mod error;

pub mod aggregate;
pub mod block_fisher;
pub mod combine;
pub mod controls;
pub mod dot;
pub mod trajectory;

pub use error::MethodError;
