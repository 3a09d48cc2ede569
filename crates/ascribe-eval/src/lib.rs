//! Evaluation: how good are scores and shares, held against what retraining showed?
//!
//! Here lives: true shares from loss changes, share error, top-1, rank correlation, their bootstrap intervals, the
//! seed-to-seed ceiling of the truth itself, recall, and the linear datamodelling score. Here never lives: training,
//! fitting (a calibration is fitted in `methods`), files.
//!
//! Every measure is taken per query and is `None` where it is not defined; means and intervals are over the queries where
//! it is, and the others are counted.

mod error;

pub mod bootstrap;
pub mod ceiling;
pub mod lds;
pub mod measures;
pub mod rank;
pub mod recall;
pub mod shares;
pub mod truth;

pub use bootstrap::{Estimate, bootstrap_mean, paired_difference};
pub use ceiling::{Ceiling, ceiling};
pub use error::EvalError;
pub use measures::{PerQuery, Summary};
pub use truth::Truth;
