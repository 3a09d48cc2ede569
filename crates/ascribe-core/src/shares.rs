//! Shares: what leaves the policy step. Integers only.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// One dataset's share of one response, in parts per million of the attributed part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Ordinal of the dataset.
    pub dataset: u32,
    /// Integer weight in `[0, 2^62]`; the ledger splits by weights, not by the rounded ppm.
    pub weight: u64,
    /// Share of this response in ppm, rounded down, for people.
    pub share_ppm: u32,
    /// Lower end of the share's interval, in ppm.
    pub low_ppm: u32,
    /// Upper end of the share's interval, in ppm.
    pub high_ppm: u32,
}

/// Shares of all responses under one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareTable {
    /// Version of this format.
    pub format_version: u32,
    /// Policy name and parameters.
    pub policy: String,
    /// Hash chain: the score file that the weights came from.
    pub scores_sha256: Digest,
    /// Spec hash of the scores.
    pub spec: Digest,
    /// Part of the pool that measured evidence covers, in ppm; the rest is Unattributed.
    pub coverage_ppm: u32,
    /// Per response, in query order: shares of all datasets with a positive weight.
    pub responses: Vec<Vec<Share>>,
}
