//! The shares of the default method with everything that is known about their spread, and the verdict whether they can be paid.
//!
//! Two intervals stand behind every share: the calibrated one (conformal, from held-out errors against retraining) and the one of
//! what was drawn by chance (projection, checkpoints, retraining seeds). What is written is the hull of both.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_methods::combine::CalibratedMethod;
use ascribe_methods::group::intervals::{ShareErrors, Verdict, Z95, query_bootstrap};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;

/// Shares with their intervals, relative to the run folder.
pub const INTERVALS_FILE: &str = "intervals.json";
/// Version of the file.
pub const INTERVALS_FORMAT_VERSION: u32 = 1;

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intervals {
    /// [`INTERVALS_FORMAT_VERSION`].
    pub format_version: u32,
    /// The method with its weights, origin, held-out figures and interval rule.
    pub method: CalibratedMethod,
    /// Part of a pool that measured evidence covers.
    pub coverage: f64,
    /// Half width of a 95 % interval of what was drawn by chance, in shares, above which a response is too noisy to pay.
    pub threshold: f64,
    /// Root mean square standard error of a share by source of variance. A source that cannot be measured is absent.
    pub sources: BTreeMap<String, f64>,
    /// Names of the datasets, by ordinal.
    pub datasets: Vec<String>,
    /// In query order.
    pub responses: Vec<ResponseIntervals>,
    /// Mean shares of the pool of all responses that have shares, with 95 % bounds from resampled responses; one row a dataset.
    pub pool: Vec<PoolInterval>,
    /// Mean over responses of the second-order part that sums of dataset influence leave out (`group::additivity`).
    pub additivity_residual: f64,
}

/// One response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseIntervals {
    /// Payable, or too noisy to pay, by the widest of its intervals of what was drawn by chance.
    pub verdict: Verdict,
    /// `Σ_{k≠l} R_kl / Σ|S_k|` at the last checkpoint.
    pub additivity_residual: f64,
    /// One per dataset.
    pub shares: Vec<ShareInterval>,
}

/// One share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareInterval {
    /// Share.
    pub share: f64,
    /// Standard error of what was drawn by chance.
    pub std_error: f64,
    /// Lower end of the hull of both intervals.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Mean share of a dataset over a pool of responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolInterval {
    /// Name.
    pub dataset: String,
    /// Mean.
    pub share: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What intervals are made of.
pub struct Parts<'a> {
    /// The method.
    pub method: CalibratedMethod,
    /// `[Q, K]`; a row of zeros for a response without shares.
    pub shares: &'a Array2<f64>,
    /// Per source `[Q, K]`: variances of shares.
    pub variances: &'a BTreeMap<String, Array2<f64>>,
    /// `[Q]`.
    pub additivity: &'a [f64],
    /// Names, by ordinal.
    pub datasets: Vec<String>,
    /// See [`Intervals::threshold`].
    pub threshold: f64,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Intervals {
    /// Puts shares, variances and the interval rule together.
    ///
    /// # Errors
    /// A threshold outside (0, 1); NaN.
    pub fn new(parts: Parts<'_>) -> Result<Self, EngineError> {
        let shares = parts.shares;
        let total = parts.variances.values().fold(Array2::zeros(shares.raw_dim()), |sum: Array2<f64>, v| sum + v);
        let errors = total.mapv(f64::sqrt);
        let mut responses = Vec::with_capacity(shares.nrows());
        for (q, row) in shares.rows().into_iter().enumerate() {
            let known = row.sum() > 0.0;
            let judged = known.then(|| ShareErrors { shares: row.to_owned(), std_errors: errors.row(q).to_owned() });
            let one = |(&share, &std_error): (&f64, &f64)| {
                let (low, high) = parts.method.conformal.interval(share);
                let (below, above) = (share - Z95 * std_error, share + Z95 * std_error);
                ShareInterval { share, std_error, low: low.min(below).max(0.0), high: high.max(above).min(1.0) }
            };
            responses.push(ResponseIntervals {
                verdict: Verdict::of(judged.as_ref(), parts.threshold)?,
                additivity_residual: parts.additivity.get(q).copied().unwrap_or(0.0),
                shares: row.iter().zip(errors.row(q)).map(one).collect(),
            });
        }
        let usable: Vec<usize> = (0..shares.nrows()).filter(|&q| shares.row(q).sum() > 0.0).collect();
        let pool = match usable.is_empty() {
            true => Vec::new(),
            false => {
                let found = query_bootstrap(shares.select(ndarray::Axis(0), &usable).view(), parts.seed)?;
                let row = |(k, name): (usize, &String)| PoolInterval {
                    dataset: name.clone(),
                    share: found.mean[k],
                    low: found.low[k],
                    high: found.high[k],
                };
                parts.datasets.iter().enumerate().map(row).collect()
            }
        };
        let root = |(name, v): (&String, &Array2<f64>)| (name.clone(), v.mean().unwrap_or(0.0).sqrt());
        Ok(Self {
            format_version: INTERVALS_FORMAT_VERSION,
            coverage: parts.method.coverage(),
            method: parts.method,
            threshold: parts.threshold,
            sources: parts.variances.iter().map(root).collect(),
            datasets: parts.datasets,
            additivity_residual: parts.additivity.iter().sum::<f64>() / parts.additivity.len().max(1) as f64,
            responses,
            pool,
        })
    }

    /// Responses that are too noisy to pay.
    pub fn n_too_noisy(&self) -> usize {
        self.responses.iter().filter(|r| !r.verdict.is_payable()).count()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, out: &Path) -> Result<(), EngineError> {
        let bytes = [serde_json::to_vec_pretty(self)?, b"\n".to_vec()].concat();
        files::write_atomic(&out.join(INTERVALS_FILE), &bytes)
    }

    /// Reads the file of a run folder.
    ///
    /// # Errors
    /// A missing or damaged file; another version; a response with another number of shares than datasets.
    pub fn read(out: &Path) -> Result<Self, EngineError> {
        let path = out.join(INTERVALS_FILE);
        let expected = format!("intervals of format {INTERVALS_FORMAT_VERSION}");
        let refuse = |found: String| EngineError::Content { path: path.clone(), expected: expected.clone(), found };
        let read: Self = serde_json::from_slice(&files::read(&path)?).map_err(|e| refuse(e.to_string()))?;
        if read.format_version != INTERVALS_FORMAT_VERSION {
            return Err(refuse(format!("format {}", read.format_version)));
        }
        let k = read.datasets.len();
        if let Some(q) = read.responses.iter().position(|r| r.shares.len() != k) {
            return Err(refuse(format!("{} shares of {k} datasets for response {q}", read.responses[q].shares.len())));
        }
        read.method.validate()?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    fn intervals(variance: f64) -> Intervals {
        let shares = arr2(&[[0.7, 0.3], [0.0, 0.0]]);
        let variances = BTreeMap::from([
            ("checkpoints".to_owned(), arr2(&[[variance, variance], [0.0, 0.0]])),
            ("projection_inputs".to_owned(), arr2(&[[3.0 * variance, 3.0 * variance], [0.0, 0.0]])),
        ]);
        let mut method = CalibratedMethod::defaults();
        method.conformal.quantile = 0.1;
        Intervals::new(Parts {
            method,
            shares: &shares,
            variances: &variances,
            additivity: &[0.25, -0.05],
            datasets: vec!["a".into(), "b".into()],
            threshold: 0.1,
            seed: 7,
        })
        .unwrap()
    }

    #[test]
    fn variances_add_and_the_wider_interval_counts() {
        // Standard error √(4·10⁻⁶) = 0.002: the calibrated interval is wider. √(4·0.0025) = 0.1: chance is.
        let (calm, wild) = (intervals(1e-6), intervals(0.0025));
        let share = &calm.responses[0].shares[0];
        assert!((share.std_error - 0.002).abs() < 1e-12);
        assert_eq!((share.low, share.high), calm.method.conformal.interval(0.7));
        assert!(calm.responses[0].verdict.is_payable());
        let share = &wild.responses[0].shares[0];
        assert!((share.low - (0.7 - Z95 * 0.1)).abs() < 1e-12 && (share.high - (0.7 + Z95 * 0.1)).abs() < 1e-12);
        assert!(!wild.responses[0].verdict.is_payable());
        // A response without shares is never paid, and is not part of the pool.
        assert_eq!((calm.n_too_noisy(), wild.n_too_noisy()), (1, 2));
        assert_eq!(calm.pool.iter().map(|p| p.share).collect::<Vec<_>>(), [0.7, 0.3]);
        assert!((calm.additivity_residual - 0.1).abs() < 1e-12);
        assert!((wild.sources["checkpoints"] - (0.0025f64 / 2.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_is_written_is_read_and_bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let written = intervals(1e-6);
        written.write(dir.path()).unwrap();
        assert_eq!(Intervals::read(dir.path()).unwrap(), written);
        let spoil = |from: &str, to: &str, message: &str| {
            written.write(dir.path()).unwrap();
            let path = dir.path().join(INTERVALS_FILE);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{from}");
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = Intervals::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        spoil("\"format_version\": 1", "\"format_version\": 2", "format 2");
        spoil("\"a\",", "\"a\",\"c\",", "2 shares of 3 datasets for response 0");
        spoil("\"threshold\"", "\"treshold\"", "intervals.json");
    }
}
