//! Stations for somebody's own model: a Hugging Face folder and a JSONL file in, losses, gradient rows, weights out.
//!
//! The walk (`crate::walk`) explains a model whose every record is registered; here nothing is registered, and nothing is
//! paid. What the two share is below both: the decoder, the gradient stage, the feature store.

pub mod data;
pub mod features;
pub mod fetched;
pub mod finetune;
pub(crate) mod lines;
mod maker;
pub mod model;
pub mod plan;
pub mod scale;
pub mod settings;
