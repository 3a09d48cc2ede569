//! Calibrated combination: channels of dataset scores → shares.
//!
//! A channel is one method's or control's `[Q, K]` dataset scores. Its rows are brought to one scale (`transform`), then
//! `p_q = softmax_k(Σ_c w_c z_qck / T)` with non-negative weights that sum to 1 and one temperature. Fitted to the mean
//! total variation between `p` and the true shares. Source: ours (temperature scaling, arXiv:1706.04599, for shares
//! instead of class probabilities); a first trial stands in the design notes, the shipped numbers in the README.
//!
//! One channel gives the one-temperature calibration under which every method **and every control** is compared. Nothing
//! here sees a query's own truth: [`CrossFit`] holds out halves of the queries, or all queries of half of the datasets.
//!
//! ```
//! use ascribe_methods::combine::{Channel, FitOptions, fit};
//! use ndarray::arr2;
//!
//! // Three queries, two datasets: one channel of scores and the true shares.
//! let scores = arr2(&[[3.0, 1.0], [0.5, 0.9], [8.0, 2.0]]);
//! let truth = arr2(&[[0.8, 0.2], [0.2, 0.8], [0.8, 0.2]]);
//! let channels = [Channel { name: "bm25", scores: scores.view() }];
//! let calibration = fit(&channels, truth.view(), &[0, 1, 2], &FitOptions { ridge: 0.0, ..FitOptions::default() })?;
//! let shares = calibration.predict(&channels)?;
//! assert!((&shares - &truth).iter().all(|error| error.abs() < 1e-3));
//! # Ok::<(), ascribe_methods::MethodError>(())
//! ```

mod calibration;
mod conformal;
mod crossfit;
mod fit;
mod method;
mod objective;
mod select;
mod transform;

pub use calibration::{CALIBRATION_FORMAT_VERSION, Calibration, Channel, ChannelSpec};
pub use conformal::{Conformal, CrossCoverage, coverage, cross_coverage};
pub(crate) use crossfit::halves_of;
pub use crossfit::{CrossFit, Fold, Holdout, Splits, TrueShares, cross_fit};
pub use fit::{FitOptions, fit};
pub use method::{CALIBRATED_FORMAT_VERSION, CalibratedMethod, HeldOut, Origin};
pub use objective::{cross_entropy, mean_total_variation, smooth_total_variation};
pub use select::{SelectionStep, forward_select};
pub use transform::{LOG_SHARE_FLOOR, Transform};
