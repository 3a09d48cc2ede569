//! One response at a time: what the walk does for a whole query set, for a response that somebody sends.
//!
//! [`Material`] is what is loaded once (model, rows, factors, calibrated method, registry); [`Responder`] answers from it. A
//! response's dataset scores have the bytes that the walk gives the same tokens (`block_fisher` alone, which pays nobody, may differ
//! by rounding: its sums are solved once instead of every response), and its shares are the calibrated method's; the demo's *own* responses have shares of fits that had not seen them in `intervals.json`, so there the two differ by what one
//! response weighs in a fit. Here never lives: HTTP, receipts, who may ask (server).

mod answer;
mod catalog;
mod channels;
mod evidence;
mod material;
mod responder;
mod rows;
mod store;
mod tokens;
mod turned;

pub use ascribe_methods::group::intervals::Verdict;

pub use answer::{
    Answer, Approx, Ask, Filter, Found, Input, Record, RespondError, SpanText, TokenInfluence, VerbatimRun,
};
pub use catalog::{Catalog, CatalogDataset};
pub use material::{Material, Opened, Sample};
pub use responder::Responder;
pub use store::{StoreMaterial, StoreResponder};

/// The default method: the calibrated combination.
pub const CALIBRATED: &str = "calibrated";
/// Gradient methods that can be asked for by name.
pub const GRADIENT_METHODS: [&str; 4] = [CALIBRATED, BLOCK_FISHER, "trajectory_fisher", "tracin"];
/// Influence at the last checkpoint alone: one pass, no solve.
pub const BLOCK_FISHER: &str = "block_fisher";
/// Similarity of mean hidden states, found through an approximate index and scored again exactly.
pub const EMBEDDING: &str = "embedding";
