//! Decoders with taps: forward, loss, per-example gradients in one backward pass, training and retraining.
//!
//! The fast path is written by hand on the kernels of `ascribe-linalg`: one sequence at a time, single-threaded products
//! of fixed shapes, sequences in parallel, so results are the same bytes for any number of threads and any batch.
//! [`graph`] runs the same decoder as a candle graph, the independent second route of the tests. Here never lives: what a
//! dataset is, what a gradient is used for, money.

pub mod bench;
pub mod config;
mod decoder;
pub mod error;
pub mod features;
mod gradient;
pub mod graph;
mod layout;
mod ops;
pub mod train;
mod weights;

pub use config::DecoderConfig;
pub use decoder::{Decoder, Sequence};
pub use error::ModelError;
pub use features::{GradientStage, TapConfig};
pub use layout::{ParameterLayout, ParameterSlot};
pub use train::{StepReport, TrainRecipe, Trainer};
