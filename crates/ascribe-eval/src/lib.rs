//! Evaluation: how good are scores and shares, held against what retraining showed?
//!
//! Here lives: true shares from loss changes, share error, top-1, rank correlation, their bootstrap intervals, the
//! agreement of one retraining seed with the others, the linear datamodelling score, leave-one-out correlation, detection, removal
//! and recall measures, and the games that retraining on subsets plays (`game`: Shapley, Banzhaf). Here never lives:
//! training, fitting (a calibration is fitted in `methods`), files.
//!
//! Every measure is taken per query and is `None` where it is not defined; means and intervals are over the queries where
//! it is, and the others are counted.
//!
//! ```
//! use ascribe_eval::{PerQuery, Truth};
//! use ndarray::{arr1, arr2};
//!
//! // Losses of one query with all data, and without each of three datasets.
//! let truth = Truth::from_losses(arr1(&[2.0]).view(), arr2(&[[2.6, 2.2, 1.9]]).view())?;
//! let scores = arr2(&[[0.5, 0.5, -3.0]]);
//! let summary = PerQuery::of_scores(&truth, scores.view(), &[0])?.summary(1)?;
//! // Shares (.75, .25, 0) against (.5, .5, 0).
//! assert!(summary.share_error.is_some_and(|e| (e.mean - 0.25).abs() < 1e-12));
//! # Ok::<(), ascribe_eval::EvalError>(())
//! ```

mod error;

pub mod bootstrap;
pub mod ceiling;
pub mod detection;
pub mod game;
pub mod lds;
pub mod loo;
pub mod measures;
pub mod rank;
pub mod recall;
pub mod removal;
pub mod shares;
pub mod truth;

pub use bootstrap::{Estimate, bootstrap_mean, bootstrap_statistic, paired_difference};
pub use ceiling::{Ceiling, ceiling};
pub use error::EvalError;
pub use measures::{PerQuery, Summary};
pub use truth::Truth;
