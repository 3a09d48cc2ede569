//! The stations of the walk, in order. Each reads what the ones before it left in the run folder, writes its own part
//! there, and is skipped when its part is there already and nothing that it reads has changed.

pub mod calibrate;
pub mod calibrated_file;
pub mod channels;
pub mod context;
pub mod damping;
pub mod duplicates;
pub mod evaluate;
pub mod features;
pub mod fit;
pub mod gates;
pub mod index;
pub mod intervals;
pub mod noise;
pub mod pay;
pub mod report;
pub mod score;
pub mod shares;
pub mod stamps;
pub(crate) mod truth;
pub mod usage;

pub use context::Context;
