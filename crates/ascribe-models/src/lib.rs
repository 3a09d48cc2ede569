//! Decoders with taps: forward, loss, per-example gradients in one backward pass, training and retraining.
//!
//! The fast path is written by hand on the kernels of `ascribe-linalg`: one sequence at a time, single-threaded products
//! of fixed shapes, sequences in parallel, so results are the same bytes for any number of threads and any batch.
//! [`graph`] runs the same decoder as a candle graph, the independent second route of the tests; [`vision`] holds the image
//! classifiers of the benchmarks. Here never lives: what a dataset is, what a gradient is used for, money.
//!
//! ```
//! use ascribe_models::{DecoderConfig, GradientStage, Schedule, Sequence, TapConfig, TrainRecipe, Trainer};
//!
//! # fn main() -> Result<(), ascribe_models::ModelError> {
//! // 32 words, width 16, feed-forward 24, one layer, two heads, 8 positions.
//! let config = DecoderConfig::llama(32, 16, 24, 1, 2, 2, 8);
//! let recipe = TrainRecipe {
//!     steps: 20, batch: 2, micro_batch: 1, lr_peak: 1e-2, lr_floor: 1e-3, warmup_steps: 2, schedule: Schedule::Cosine,
//!     weight_decay: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, clip_norm: 1.0, init_seed: 1, checkpoint_steps: vec![20],
//! };
//! let texts: [&[u32]; 2] = [&[1, 2, 3, 1, 2, 3], &[5, 6, 5, 6, 5, 6]];
//! let mut trainer = Trainer::new(config, recipe)?;
//! let first = trainer.step(&texts)?.loss;
//! let last = (1..20).map(|_| trainer.step(&texts)).last().expect("twenty steps")?.loss;
//! assert!(last < first);
//!
//! // One projected gradient row per text: 8 × 8 numbers per module, embedding and norms too.
//! let stage = GradientStage::new(trainer.decoder(), TapConfig::all(7, 8))?;
//! let mut rows = ndarray::Array2::zeros((2, stage.dim()));
//! stage.rows(&texts.map(Sequence::whole), rows.view_mut(), None)?;
//! assert!(rows.row(0).dot(&rows.row(0)) > rows.row(0).dot(&rows.row(1)), "a text resembles itself most");
//! # Ok(())
//! # }
//! ```

mod arch;
pub mod bench;
pub mod config;
mod decoder;
pub mod error;
pub mod features;
pub mod gguf;
mod gradient;
pub mod graph;
mod layout;
pub mod lora;
pub mod memory;
mod ops;
pub mod taps;
pub mod train;
pub mod vision;
mod weights;

pub use arch::{Activation, Arch, Family, NormKind, Positions, QkNorm, QkvOrder, RopeScaling, Topology};
pub use config::DecoderConfig;
pub use decoder::{Decoder, Loss, Sequence};
pub use error::ModelError;
pub use features::{
    Example, GhostProducts, GivenBases, GradientStage, Granularity, Memory, ModuleBasis, Normalizer, Precision,
    Projection, RowReport, TapConfig,
};
pub use layout::{ParameterLayout, ParameterSlot};
pub use taps::{Capture, LinearTap, TapRows, TappedDecoder};
pub use train::{Schedule, StepReport, TrainRecipe, Trainer};
