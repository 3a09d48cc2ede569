//! The policy `influence_proportional`: weights in proportion to measured influence, and silence where it is not measured
//! well enough. Other policies are siblings behind [`SharePolicy`].

use ascribe_core::{Digest, QueryId, Share};
use ndarray::{ArrayView2, ArrayView3};
use serde::{Deserialize, Serialize};

use crate::book::{Response, ShareBook, Verdict, owner_shares, share_ppm};
use crate::error::SharesError;
use crate::net::net_by_owner;
use crate::owners::OwnerMap;
use crate::quantise::{Scale, TOP_BITS, coverage_ppm, ppm_ceil, ppm_floor, quantise_row};

/// Widest interval of the largest share that is still paid for, in ppm. An interval wider than 0.8 leaves open almost
/// everything from "none of it" to "all of it".
pub const TOO_NOISY_WIDTH_PPM: u32 = 800_000;
/// A clipped total below this is what cancellation left of a largest magnitude of `2^61` and more: under 2⁻²⁰ of it.
const CANCELLED_BELOW: u128 = 1 << (TOP_BITS - 1 - 20);

/// Numbers per response and dataset.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// `[Q, K]` shares of a calibrated method: at least 0, in any unit.
    Calibrated(ArrayView2<'a, f64>),
    /// `[Q, K]` signed scores; netted per owner, then clipped.
    Raw {
        /// The scores.
        scores: ArrayView2<'a, f64>,
        /// Measured noise in the unit of the scores; an owner's net at or below it earns nothing.
        noise_floor: f64,
    },
}

/// What the policy decides on.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Row labels.
    pub queries: &'a [QueryId],
    /// Shares or scores.
    pub values: Values<'a>,
    /// `[Q, K, 2]`: lower and upper end of each dataset's share, as fractions; clamped to `[0, 1]`.
    pub intervals: ArrayView3<'a, f64>,
    /// Part of the pool that measured evidence covers, as a fraction.
    pub coverage: f64,
    /// Where the numbers came from.
    pub provenance: Provenance,
}

/// The digests that shares follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// SHA-256 of the score file.
    pub scores_sha256: Digest,
    /// Spec hash of the scores.
    pub spec: Digest,
    /// Digest of the registry.
    pub registry: Digest,
}

/// A policy with its figures, as it stands in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyRecord {
    /// [`InfluenceProportional`].
    InfluenceProportional {
        /// What came in.
        evidence: EvidenceKind,
        /// Noise floor of raw scores, as the shortest decimal that reads back to the same f64.
        noise_floor: Option<String>,
        /// See [`InfluenceProportional::max_width_ppm`].
        max_width_ppm: u32,
        /// See [`InfluenceProportional::require_positive_low`].
        require_positive_low: bool,
    },
}

/// Which kind of numbers came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceKind {
    /// [`Values::Calibrated`].
    Calibrated,
    /// [`Values::Raw`].
    Raw,
}

impl PolicyRecord {
    /// The record as one line of JSON: the policy's name in the share table and in the run.
    ///
    /// # Errors
    /// [`SharesError::Unwritable`], which needs a defect of this crate.
    pub fn text(&self) -> Result<String, SharesError> {
        serde_json::to_string(self).map_err(|error| SharesError::Unwritable { what: "policy", why: error.to_string() })
    }

    /// The verdict on a response with these shares, sorted by dataset; the part of it that can be checked later.
    pub(crate) fn verdict(&self, shares: &[Share]) -> Verdict {
        let Self::InfluenceProportional { max_width_ppm, require_positive_low, .. } = self;
        let total: u128 = shares.iter().map(|share| u128::from(share.weight)).sum();
        // Ties go to the lower ordinal.
        let top = shares.iter().reduce(|best, share| if share.weight > best.weight { share } else { best });
        match top {
            None => Verdict::NoProponent,
            Some(_) if total < CANCELLED_BELOW => Verdict::Cancelled,
            Some(top) if *require_positive_low && top.low_ppm == 0 => Verdict::TooNoisy,
            Some(top) if top.high_ppm - top.low_ppm > *max_width_ppm => Verdict::TooNoisy,
            Some(_) => Verdict::Payable,
        }
    }
}

/// Turns evidence into shares.
pub trait SharePolicy {
    /// Decides every response. Deterministic; no response depends on another.
    ///
    /// # Errors
    /// Evidence that is not finite, of the wrong shape, or names a response twice.
    fn shares(&self, evidence: &Evidence<'_>, owners: &OwnerMap) -> Result<ShareBook, SharesError>;
}

/// Weights in proportion to influence.
///
/// Per response: quantise the row ([`quantise_row`]), for raw scores net and clip per owner ([`net_by_owner`]), weigh. A
/// response whose largest share has an interval that reaches 0 or is too wide is [`Verdict::TooNoisy`]: its revenue stays
/// unattributed rather than being paid out by chance. Cost: `Q·K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfluenceProportional {
    /// Widest interval of the largest share that is paid for, in ppm.
    pub max_width_ppm: u32,
    /// True if the interval of the largest share must exclude 0.
    pub require_positive_low: bool,
}

impl Default for InfluenceProportional {
    /// [`TOO_NOISY_WIDTH_PPM`], and the interval must exclude 0.
    fn default() -> Self {
        Self { max_width_ppm: TOO_NOISY_WIDTH_PPM, require_positive_low: true }
    }
}

impl InfluenceProportional {
    fn record(&self, values: &Values<'_>) -> PolicyRecord {
        let (evidence, noise_floor) = match values {
            Values::Calibrated(_) => (EvidenceKind::Calibrated, None),
            Values::Raw { noise_floor, .. } => (EvidenceKind::Raw, Some(format!("{noise_floor:?}"))),
        };
        let (max_width_ppm, require_positive_low) = (self.max_width_ppm, self.require_positive_low);
        PolicyRecord::InfluenceProportional { evidence, noise_floor, max_width_ppm, require_positive_low }
    }
}

impl SharePolicy for InfluenceProportional {
    fn shares(&self, evidence: &Evidence<'_>, owners: &OwnerMap) -> Result<ShareBook, SharesError> {
        evidence.check(owners)?;
        let policy = self.record(&evidence.values);
        let mut responses = Vec::with_capacity(evidence.queries.len());
        for (query_idx, &query) in evidence.queries.iter().enumerate() {
            let weights = evidence.weights(query_idx, owners)?;
            let total = weights.iter().map(|weight| u128::from(*weight)).sum();
            let mut shares = Vec::new();
            for (dataset, &weight) in weights.iter().enumerate() {
                // Every interval is checked, also those of datasets that get nothing.
                let (low_ppm, high_ppm) = evidence.interval(query_idx, dataset)?;
                if weight > 0 {
                    let share_ppm = share_ppm(weight.into(), total);
                    shares.push(Share { dataset: dataset as u32, weight, share_ppm, low_ppm, high_ppm });
                }
            }
            let verdict = policy.verdict(&shares);
            let owners = owner_shares(&shares, owners.owner_idx());
            responses.push(Response { query, verdict, shares, owners });
        }
        let (coverage_ppm, provenance) = (coverage_ppm(evidence.coverage)?, evidence.provenance);
        Ok(ShareBook { policy, coverage_ppm, provenance, owners: owners.clone(), responses })
    }
}

impl Evidence<'_> {
    fn check(&self, owners: &OwnerMap) -> Result<(), SharesError> {
        let (n_queries, n_datasets) = (self.queries.len(), owners.datasets().len());
        let shape = match &self.values {
            Values::Calibrated(values) => values.shape(),
            Values::Raw { scores, noise_floor } => {
                if !noise_floor.is_finite() || *noise_floor < 0.0 {
                    return Err(SharesError::BadNoiseFloor { found: *noise_floor });
                }
                scores.shape()
            }
        };
        check_shape("scores", &[n_queries, n_datasets], shape)?;
        check_shape("intervals", &[n_queries, n_datasets, 2], self.intervals.shape())?;
        let mut seen = std::collections::BTreeSet::new();
        match self.queries.iter().find(|query| !seen.insert(query.0)) {
            Some(query) => Err(SharesError::Duplicate { what: "response", found: query.0.to_string() }),
            None => Ok(()),
        }
    }

    /// Integer weights of one response, by dataset.
    fn weights(&self, query: usize, owners: &OwnerMap) -> Result<Vec<u64>, SharesError> {
        let (what, values) = match &self.values {
            Values::Calibrated(values) => ("share", values),
            Values::Raw { scores, .. } => ("score", scores),
        };
        let row = values.row(query).to_vec();
        let not_finite = |(dataset, found)| SharesError::NotFinite { what, query, dataset, found };
        let quantised = quantise_row(&row).map_err(not_finite)?;
        match &self.values {
            Values::Calibrated(_) => {
                // −0 is not below 0.
                if let Some((dataset, &found)) = row.iter().enumerate().find(|(_, value)| **value < 0.0) {
                    return Err(SharesError::Negative { query, dataset, found });
                }
                Ok(quantised.into_iter().map(i64::unsigned_abs).collect())
            }
            Values::Raw { noise_floor, .. } => {
                let floor = Scale::of_row(&row).map_or(0, |scale| scale.apply(*noise_floor).unsigned_abs());
                Ok(net_by_owner(&quantised, owners.owner_idx(), floor))
            }
        }
    }

    /// Ends of an interval in ppm, outward: down below, up above.
    fn interval(&self, query: usize, dataset: usize) -> Result<(u32, u32), SharesError> {
        let (low, high) = (self.intervals[[query, dataset, 0]], self.intervals[[query, dataset, 1]]);
        for (what, found) in [("lower end of the interval", low), ("upper end of the interval", high)] {
            if !found.is_finite() {
                return Err(SharesError::NotFinite { what, query, dataset, found });
            }
        }
        if low > high {
            return Err(SharesError::BackwardInterval { query, dataset, low, high });
        }
        Ok((ppm_floor(low), ppm_ceil(high)))
    }
}

fn check_shape(what: &'static str, expected: &[usize], found: &[usize]) -> Result<(), SharesError> {
    if expected == found {
        return Ok(());
    }
    Err(SharesError::Shape { what, expected: expected.to_vec(), found: found.to_vec() })
}
