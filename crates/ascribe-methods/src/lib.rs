//! Attribution methods: `fit` what a method needs, `score` every training row and every dataset against queries.
//!
//! Here lives: block-Fisher influence, K-FAC and its corrections, trajectory (TracIn) sums, the controls that every method
//! is held against, what datasets are worth as groups, and the calibrated combination of all that with its intervals. Here
//! never lives: files, models, money. Values come in, values go out; the engine reads and writes.
//!
//! Scores are `[query, train]` or `[query, dataset]`, positive = proponent. All sums are f64 in an order fixed by row
//! number, so that the bytes depend neither on threads, nor on how a store was cut into blocks, nor on which other
//! queries are scored in the same call.

mod blocks;
mod error;
mod narrow;

pub mod aggregate;
pub mod block_fisher;
pub mod captured;
pub mod chained;
pub mod coded;
pub mod combine;
pub mod controls;
pub mod damping;
pub mod depth;
pub mod dot;
pub mod grass;
pub mod group;
pub mod inverse;
pub mod knn_shapley;
pub mod kron;
pub mod less;
pub mod lorif;
pub mod normalise;
pub mod projected;
pub mod representer;
pub mod rows;
pub mod source;
pub mod trackstar;
pub mod trajectory;
pub mod trak;

pub use error::MethodError;
