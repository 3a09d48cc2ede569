//! The share book: what the policy step decided, response by response, and the core table that the ledger reads.

use ascribe_core::{Digest, QueryId, Share, ShareTable};
use serde::{Deserialize, Serialize};

use crate::error::SharesError;
use crate::file::SHARES_FORMAT_VERSION;
use crate::owners::OwnerMap;
use crate::policy::{PolicyRecord, Provenance};

/// One million.
pub(crate) const PPM: u128 = 1_000_000;

/// Whether a response is paid for, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its datasets share its revenue.
    Payable,
    /// No owner has a positive net: nobody is shown to have made the response likelier.
    NoProponent,
    /// Positive and negative scores cancel to less than 2⁻²⁰ of the largest: what is left is rounding.
    Cancelled,
    /// The interval of the largest share reaches 0 or is wider than the policy allows.
    TooNoisy,
}

/// One owner's part of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerShare {
    /// Ordinal of the owner in [`OwnerMap::owners`].
    pub owner: u32,
    /// Sum of the owner's dataset weights.
    pub weight: u128,
    /// Share of the response in ppm, rounded down.
    pub share_ppm: u32,
}

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The response.
    pub query: QueryId,
    /// Paid or not.
    pub verdict: Verdict,
    /// Datasets with a positive weight, by ordinal. Kept for unpaid responses too: a reader may want to see them.
    pub shares: Vec<Share>,
    /// Owners with a positive weight, by ordinal.
    pub owners: Vec<OwnerShare>,
}

/// Shares of all responses under one policy, with where they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareBook {
    /// The policy.
    pub policy: PolicyRecord,
    /// Part of the pool that measured evidence covers, in ppm.
    pub coverage_ppm: u32,
    /// The digests that the shares follow from.
    pub provenance: Provenance,
    /// Datasets and owners.
    pub owners: OwnerMap,
    /// In query order.
    pub responses: Vec<Response>,
}

impl ShareBook {
    /// The table that the ledger reads: a response that is not [`Verdict::Payable`] has no shares there, so its revenue
    /// stays unattributed.
    ///
    /// # Errors
    /// [`SharesError::Unwritable`], which needs a defect of this crate.
    pub fn table(&self) -> Result<ShareTable, SharesError> {
        let payable = |response: &Response| match response.verdict {
            Verdict::Payable => response.shares.clone(),
            Verdict::NoProponent | Verdict::Cancelled | Verdict::TooNoisy => Vec::new(),
        };
        Ok(ShareTable {
            format_version: SHARES_FORMAT_VERSION,
            policy: self.policy.text()?,
            scores_sha256: self.provenance.scores_sha256,
            spec: self.provenance.spec,
            coverage_ppm: self.coverage_ppm,
            responses: self.responses.iter().map(payable).collect(),
        })
    }

    /// Number of responses with that verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.responses.iter().filter(|response| response.verdict == verdict).count()
    }

    /// SHA-256 of [`ShareBook::to_json`]: what a payout run names as its `shares` input.
    ///
    /// # Errors
    /// As [`ShareBook::to_json`].
    pub fn digest(&self) -> Result<Digest, SharesError> {
        Ok(Digest::of(&self.to_json()?))
    }
}

/// `⌊weight·10⁶/total⌋`; 0 of nothing.
pub(crate) fn share_ppm(weight: u128, total: u128) -> u32 {
    // Weights are below 2^62 each, so the product stays below 2^128 for 2^46 datasets.
    (weight * PPM).checked_div(total).unwrap_or(0) as u32
}

/// Sums dataset weights per owner, in the order of owners, without zeros.
pub(crate) fn owner_shares(shares: &[Share], owner_idx: &[u32]) -> Vec<OwnerShare> {
    let mut weights = std::collections::BTreeMap::<u32, u128>::new();
    for share in shares {
        *weights.entry(owner_idx[share.dataset as usize]).or_default() += u128::from(share.weight);
    }
    let total = weights.values().sum();
    let share = |(owner, weight)| OwnerShare { owner, weight, share_ppm: share_ppm(weight, total) };
    weights.into_iter().map(share).collect()
}
