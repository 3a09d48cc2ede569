//! How sure is a share? Variances of dataset scores from everything that was drawn by chance, pushed through the division,
//! and a verdict whether the result can be paid.
//!
//! Sources of variance, which add up: the random projection (from norms alone), seeds or checkpoints (jackknife), and for pools
//! over many queries the queries themselves (bootstrap). `p_k = S_k/ΣS` by the delta method. Source of the projection's
//! variance: for Gaussian JL maps, `Var⟨Pg, Pq⟩ = (‖g‖²‖q‖² + ⟨g,q⟩²)/D`; other maps are calibrated by repeating them.

mod projection;

use ascribe_linalg::Stream;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::dot::check_finite;
use crate::error::MethodError;

pub use projection::{ColumnReplicates, MatrixShape, PreparedColumns, column_replicates};

/// Two-sided 95 % quantile of the normal distribution.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Half width of a 95 % interval above which a share is not paid: ten points of the pool. A share of 0.3 ± 0.1 may be a fifth
/// or two fifths; beyond that a fixed fee is the better contract (arXiv:2607.00641).
pub const DEFAULT_THRESHOLD: f64 = 0.10;

/// Resamplings of [`query_bootstrap`].
const DRAWS: usize = 1_000;

/// Variance of projected scores `[Q, K]`: `c·(‖G_k‖²‖q‖² + S_k²)/D`.
///
/// `scores` `[Q, K]`, norms of the query vectors `[Q]` and of the dataset sums `[K]`, `dim` numbers per projected row.
/// `calibration` c is 1 for a Gaussian map of whole gradients and comes from [`calibrate`] for all others.
///
/// # Errors
/// Shapes; NaN; negative norms; `dim = 0`; a calibration that is not positive.
pub fn projection_variance(
    scores: ArrayView2<'_, f64>,
    query_norms: ArrayView1<'_, f64>,
    sum_norms: ArrayView1<'_, f64>,
    dim: usize,
    calibration: f64,
) -> Result<Array2<f64>, MethodError> {
    if scores.dim() != (query_norms.len(), sum_norms.len()) {
        return Err(MethodError::shape(
            "norms of queries and datasets",
            scores.dim(),
            (query_norms.len(), sum_norms.len()),
        ));
    }
    check_finite("dataset scores", scores)?;
    if let Some(&found) = query_norms.iter().chain(sum_norms).find(|n| !(n.is_finite() && **n >= 0.0)) {
        return Err(MethodError::Parameter { field: "norm", expected: "finite and not negative", found });
    }
    if dim == 0 {
        return Err(MethodError::Empty { what: "the projected row" });
    }
    if !(calibration.is_finite() && calibration > 0.0) {
        let expected = "finite and positive";
        return Err(MethodError::Parameter { field: "calibration of the projection", expected, found: calibration });
    }
    let variance = |(q, k): (usize, usize)| {
        let (product, score) = (query_norms[q] * sum_norms[k], scores[(q, k)]);
        calibration * (product * product + score * score) / dim as f64
    };
    Ok(Array2::from_shape_fn(scores.dim(), variance))
}

/// The factor that makes predicted variances agree with what several projection seeds really differ by.
///
/// `replicates` are scores `[Q, K]` under R ≥ 2 seeds, `predicted` their variance with calibration 1. Returns the ratio of the
/// summed sample variances to the summed prediction; 3 to 5 seeds are enough because it pools all queries and datasets.
///
/// # Errors
/// Fewer than two replicates, shapes, NaN, a prediction without variance.
pub fn calibrate(replicates: &[Array2<f64>], predicted: ArrayView2<'_, f64>) -> Result<f64, MethodError> {
    let (_, observed) = mean_and_variance(replicates)?;
    if observed.dim() != predicted.dim() {
        return Err(MethodError::shape("shape of the predicted variances", observed.dim(), predicted.dim()));
    }
    check_finite("predicted variances", predicted)?;
    let total: f64 = predicted.sum();
    if total <= 0.0 {
        return Err(MethodError::Parameter { field: "sum of predicted variances", expected: "positive", found: total });
    }
    // Identical replicates would claim certainty: a positive floor keeps intervals honest to rounding.
    Ok((observed.sum() / total).max(f64::EPSILON))
}

/// Mean over replicates (seeds, checkpoints, ensembles) and the jackknife variance of that mean, each `[Q, K]`.
///
/// For a mean the jackknife is `Σ (x_r − x̄)²/(R(R−1))`.
///
/// # Errors
/// Fewer than two replicates, shapes that differ, NaN.
pub fn jackknife(replicates: &[Array2<f64>]) -> Result<(Array2<f64>, Array2<f64>), MethodError> {
    let (mean, variance) = mean_and_variance(replicates)?;
    Ok((mean, variance / replicates.len() as f64))
}

/// The same for a statistic that is no mean: `statistic(left_out)` recomputes it without one replicate (all with `None`).
///
/// Returns the value with all and the variance `(R−1)/R · Σ (x_(r) − x̄_(·))²`.
///
/// # Errors
/// Fewer than two replicates, shapes that differ, NaN; those of `statistic`.
pub fn jackknife_of(
    n_replicates: usize,
    mut statistic: impl FnMut(Option<usize>) -> Result<Array2<f64>, MethodError>,
) -> Result<(Array2<f64>, Array2<f64>), MethodError> {
    let all = statistic(None)?;
    let without = (0..n_replicates).map(|r| statistic(Some(r))).collect::<Result<Vec<_>, _>>()?;
    let variance = jackknife_variance(&without)?;
    if variance.dim() != all.dim() {
        return Err(MethodError::shape("shape of a replicate", all.dim(), variance.dim()));
    }
    Ok((all, variance))
}

/// Jackknife variance of any statistic from its values with one part left out each, `[R][Q, K]`: `(R−1)/R · Σ (x_(r) − x̄_(·))²`.
///
/// # Errors
/// Fewer than two replicates, shapes that differ, NaN.
pub fn jackknife_variance(left_out: &[Array2<f64>]) -> Result<Array2<f64>, MethodError> {
    let (_, variance) = mean_and_variance(left_out)?;
    let n = left_out.len() as f64;
    Ok(variance * ((n - 1.0) * (n - 1.0) / n))
}

fn mean_and_variance(replicates: &[Array2<f64>]) -> Result<(Array2<f64>, Array2<f64>), MethodError> {
    if replicates.len() < 2 {
        return Err(MethodError::shape("replicates", "at least 2", replicates.len()));
    }
    let shape = replicates[0].dim();
    for replicate in replicates {
        if replicate.dim() != shape {
            return Err(MethodError::shape("shape of a replicate", shape, replicate.dim()));
        }
        check_finite("replicates", replicate.view())?;
    }
    let n = replicates.len() as f64;
    let mean = replicates.iter().fold(Array2::zeros(shape), |sum: Array2<f64>, r| sum + r) / n;
    let mut variance = Array2::<f64>::zeros(shape);
    for replicate in replicates {
        let off = replicate - &mean;
        variance += &(&off * &off);
    }
    Ok((mean, variance / (n - 1.0)))
}

/// Shares of one response or pool with standard errors.
#[derive(Clone, Debug, PartialEq)]
pub struct ShareErrors {
    /// `[K]`, not negative, sum 1.
    pub shares: Array1<f64>,
    /// `[K]`: standard errors.
    pub std_errors: Array1<f64>,
}

/// Shares `p_k = S_k/ΣS` (negatives clipped) of scores `[K]` with variances `[K]`, errors by the delta method with independent
/// scores: `Var p_k = ((1 − p_k)² v_k + p_k² Σ_{j≠k} v_j)/T²`, T the sum of the positive scores.
///
/// First order: good while T is several times its own error. Where it is not, the errors come out large, and the verdict says
/// so. A clipped score keeps its variance: it may have been positive. `None` when no score is positive.
///
/// # Errors
/// Lengths; NaN; a negative variance.
pub fn share_errors(
    scores: ArrayView1<'_, f64>,
    variances: ArrayView1<'_, f64>,
) -> Result<Option<ShareErrors>, MethodError> {
    if scores.len() != variances.len() {
        return Err(MethodError::shape("variances, one per dataset", scores.len(), variances.len()));
    }
    check_finite("dataset scores", scores.insert_axis(ndarray::Axis(0)))?;
    if let Some(&found) = variances.iter().find(|v| !(v.is_finite() && **v >= 0.0)) {
        return Err(MethodError::Parameter {
            field: "variance of a score",
            expected: "finite and not negative",
            found,
        });
    }
    // One scale first, so that neither tiny nor huge scores overflow when squared.
    let largest = scores.iter().fold(0.0f64, |m, &v| m.max(v));
    if largest <= 0.0 {
        return Ok(None);
    }
    let positive = scores.mapv(|s| s.max(0.0) / largest);
    let total = positive.sum();
    let shares = positive / total;
    let scale = largest * total;
    let relative = variances.mapv(|v| v.sqrt() / scale).mapv(|s| s * s);
    let all = relative.sum();
    let error = |(p, v): (&f64, &f64)| ((1.0 - p) * (1.0 - p) * v + p * p * (all - v).max(0.0)).sqrt();
    let std_errors = shares.iter().zip(&relative).map(error).collect();
    Ok(Some(ShareErrors { shares, std_errors }))
}

/// May this share be paid?
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verdict {
    /// The interval is narrow enough.
    Payable {
        /// Half width of the 95 % interval, in shares.
        half_width: f64,
    },
    /// The interval is too wide: pay a fixed fee, or measure more.
    TooNoisyToPay {
        /// Half width of the 95 % interval, in shares.
        half_width: f64,
        /// What it would have to stay below.
        threshold: f64,
    },
}

impl Verdict {
    /// Judges the widest of a response's intervals; shares of one pool are paid together or not at all. No shares are too noisy.
    ///
    /// # Errors
    /// A threshold outside (0, 1).
    pub fn of(shares: Option<&ShareErrors>, threshold: f64) -> Result<Self, MethodError> {
        if !(threshold > 0.0 && threshold < 1.0) {
            let expected = "between 0 and 1";
            return Err(MethodError::Parameter { field: "threshold of a payable share", expected, found: threshold });
        }
        let widest = shares.map_or(1.0, |s| s.std_errors.iter().fold(0.0f64, |m, &e| m.max(e)) * Z95);
        let half_width = widest.min(1.0);
        Ok(match half_width <= threshold {
            true => Self::Payable { half_width },
            false => Self::TooNoisyToPay { half_width, threshold },
        })
    }

    /// True for [`Verdict::Payable`].
    pub const fn is_payable(self) -> bool {
        matches!(self, Self::Payable { .. })
    }
}

/// Mean shares of a pool of queries with 95 % percentile bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolShares {
    /// `[K]`.
    pub mean: Array1<f64>,
    /// `[K]`.
    pub low: Array1<f64>,
    /// `[K]`.
    pub high: Array1<f64>,
}

/// Mean shares of the queries `[Q, K]` of a pool, bounds from resampled queries.
///
/// Draws from the stream `"group/query_bootstrap"` under `seed`. Cost `1,000·Q·K`.
///
/// # Errors
/// No query; NaN.
pub fn query_bootstrap(shares: ArrayView2<'_, f64>, seed: u64) -> Result<PoolShares, MethodError> {
    check_finite("shares", shares)?;
    let n = shares.nrows();
    let below = u32::try_from(n).map_err(|_| MethodError::shape("queries", "below 2^32", n))?;
    if n == 0 {
        return Err(MethodError::Empty { what: "the pool of queries" });
    }
    let mut stream = Stream::new(seed, "group/query_bootstrap");
    let mut means = Array2::<f64>::zeros((DRAWS, shares.ncols()));
    for mut row in means.rows_mut() {
        (0..n).for_each(|_| row += &shares.row(stream.below(below) as usize));
        row /= n as f64;
    }
    let bound = |p: f64| -> Array1<f64> {
        let at = |column: ArrayView1<'_, f64>| {
            let mut sorted = column.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted[(p * (DRAWS - 1) as f64).round() as usize]
        };
        means.columns().into_iter().map(at).collect()
    };
    Ok(PoolShares { mean: shares.sum_axis(ndarray::Axis(0)) / n as f64, low: bound(0.025), high: bound(0.975) })
}

#[cfg(test)]
mod tests;
