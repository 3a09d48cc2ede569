//! `shares.json`: the share book for people and for audits. The reader recomputes shares, owners and verdicts.

use ascribe_core::{Digest, QueryId, Share};
use serde::{Deserialize, Serialize};

use crate::book::{OwnerShare, PPM, Response, ShareBook, Verdict, owner_shares, share_ppm};
use crate::error::SharesError;
use crate::owners::{DatasetEntry, OwnerMap};
use crate::policy::{PolicyRecord, Provenance};

/// Version of `shares.json`.
pub const SHARES_FORMAT_VERSION: u32 = 1;
/// Largest file that the reader accepts.
pub const SHARES_MAX_BYTES: usize = 1 << 30;
/// Largest weight.
const WEIGHT_MAX: u64 = 1 << 62;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireBook {
    format_version: u32,
    policy: PolicyRecord,
    coverage_ppm: u32,
    scores_sha256: Digest,
    spec: Digest,
    registry: Digest,
    datasets: Vec<DatasetEntry>,
    responses: Vec<WireResponse>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireResponse {
    query: QueryId,
    verdict: Verdict,
    datasets: Vec<WireShare>,
    owners: Vec<WireOwner>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireShare {
    uuid: String,
    name: String,
    owner: String,
    /// Decimal text: above 2^53 a JSON number would be rounded by most readers.
    weight: String,
    share_ppm: u32,
    low_ppm: u32,
    high_ppm: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireOwner {
    owner: String,
    weight: String,
    share_ppm: u32,
}

impl ShareBook {
    /// The bytes of `shares.json`: JSON, indented by two, integers above 2⁵³ as strings, a line feed at the end.
    ///
    /// Per response: query id, verdict, per dataset uuid, name, owner, weight, share and interval in ppm, and the same
    /// summed per owner. Deterministic.
    ///
    /// # Errors
    /// [`SharesError::Unwritable`], which needs a defect of this crate; [`SharesError::UnknownDataset`] for a book that was
    /// put together by hand.
    pub fn to_json(&self) -> Result<Vec<u8>, SharesError> {
        let responses: Result<Vec<_>, _> = self.responses.iter().map(|response| self.wire_response(response)).collect();
        let wire = WireBook {
            format_version: SHARES_FORMAT_VERSION,
            policy: self.policy.clone(),
            coverage_ppm: self.coverage_ppm,
            scores_sha256: self.provenance.scores_sha256,
            spec: self.provenance.spec,
            registry: self.provenance.registry,
            datasets: self.owners.datasets().to_vec(),
            responses: responses?,
        };
        let unwritable =
            |error: serde_json::Error| SharesError::Unwritable { what: "shares.json", why: error.to_string() };
        let mut bytes = serde_json::to_vec_pretty(&wire).map_err(unwritable)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a book back; what it returns writes the same bytes.
    ///
    /// # Errors
    /// [`SharesError::TooLarge`], [`SharesError::Malformed`], or [`SharesError::Mismatch`] when a share, an owner's sum, a
    /// verdict, a name or the spelling is not what follows from the weights and intervals.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SharesError> {
        if bytes.len() > SHARES_MAX_BYTES {
            return Err(SharesError::TooLarge { len_bytes: bytes.len(), max_bytes: SHARES_MAX_BYTES });
        }
        let wire: WireBook = serde_json::from_slice(bytes)
            .map_err(|error| SharesError::Malformed { line: error.line(), why: error.to_string() })?;
        check_equal("format_version", &SHARES_FORMAT_VERSION, &wire.format_version)?;
        if u128::from(wire.coverage_ppm) > PPM {
            return Err(mismatch("coverage_ppm", "at most 1000000", &wire.coverage_ppm));
        }
        let owners = OwnerMap::new(wire.datasets)?;
        let mut seen = std::collections::BTreeSet::new();
        let mut responses = Vec::with_capacity(wire.responses.len());
        for response in wire.responses {
            if !seen.insert(response.query.0) {
                return Err(SharesError::Duplicate { what: "response", found: response.query.0.to_string() });
            }
            responses.push(read_response(&wire.policy, &owners, response)?);
        }
        let provenance = Provenance { scores_sha256: wire.scores_sha256, spec: wire.spec, registry: wire.registry };
        let book = Self { policy: wire.policy, coverage_ppm: wire.coverage_ppm, provenance, owners, responses };
        let again = book.to_json()?;
        if again != bytes {
            let same = again.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            return Err(mismatch(&format!("spelling from byte {same} on"), "what the writer writes", &"other bytes"));
        }
        Ok(book)
    }

    fn wire_response(&self, response: &Response) -> Result<WireResponse, SharesError> {
        let share = |share: &Share| {
            let DatasetEntry { uuid, name, owner } = self.owners.dataset(share.dataset)?.clone();
            let Share { weight, share_ppm, low_ppm, high_ppm, .. } = *share;
            Ok(WireShare { uuid, name, owner, weight: weight.to_string(), share_ppm, low_ppm, high_ppm })
        };
        let owner = |share: &OwnerShare| WireOwner {
            owner: self.owners.owners()[share.owner as usize].clone(),
            weight: share.weight.to_string(),
            share_ppm: share.share_ppm,
        };
        Ok(WireResponse {
            query: response.query,
            verdict: response.verdict,
            datasets: response.shares.iter().map(share).collect::<Result<_, _>>()?,
            owners: response.owners.iter().map(owner).collect(),
        })
    }
}

fn read_response(policy: &PolicyRecord, owners: &OwnerMap, wire: WireResponse) -> Result<Response, SharesError> {
    let query = wire.query;
    let at = |what: &str| format!("response {}: {what}", query.0);
    let mut shares: Vec<Share> = Vec::with_capacity(wire.datasets.len());
    for share in &wire.datasets {
        let share = read_share(owners, share, &at)?;
        if shares.last().is_some_and(|last| last.dataset >= share.dataset) {
            return Err(mismatch(&at("datasets"), "each once, in the order of the registry", &share.dataset));
        }
        shares.push(share);
    }
    let total: u128 = shares.iter().map(|share| u128::from(share.weight)).sum();
    for share in &shares {
        check_equal(&at("share_ppm"), &share_ppm(share.weight.into(), total), &share.share_ppm)?;
    }
    let sums = owner_shares(&shares, owners.owner_idx());
    check_equal(&at("number of owners"), &sums.len(), &wire.owners.len())?;
    for (expected, found) in sums.iter().zip(&wire.owners) {
        check_equal(&at("owner"), &owners.owners()[expected.owner as usize], &found.owner)?;
        check_equal(&at("owner's weight"), &expected.weight.to_string(), &found.weight)?;
        check_equal(&at("owner's share_ppm"), &expected.share_ppm, &found.share_ppm)?;
    }
    let verdict = policy.verdict(&shares);
    if verdict != wire.verdict {
        return Err(mismatch(&at("verdict"), &format!("{verdict:?}"), &format!("{:?}", wire.verdict)));
    }
    Ok(Response { query, verdict, shares, owners: sums })
}

fn read_share(owners: &OwnerMap, wire: &WireShare, at: &dyn Fn(&str) -> String) -> Result<Share, SharesError> {
    let Some(dataset) = owners.ordinal(&wire.uuid) else {
        return Err(mismatch(&at("uuid"), "a dataset of the list", &wire.uuid));
    };
    let entry = owners.dataset(dataset)?;
    check_equal(&at("name"), &entry.name, &wire.name)?;
    check_equal(&at("owner of a dataset"), &entry.owner, &wire.owner)?;
    let digits = wire.weight.bytes().all(|b| b.is_ascii_digit()) && !wire.weight.starts_with('0');
    let weight = wire.weight.parse::<u64>().ok().filter(|weight| digits && *weight <= WEIGHT_MAX);
    let Some(weight) = weight else {
        return Err(mismatch(&at("weight"), "an integer from 1 to 2^62 as a string", &wire.weight));
    };
    let WireShare { share_ppm, low_ppm, high_ppm, .. } = *wire;
    if low_ppm > high_ppm || u128::from(high_ppm) > PPM {
        return Err(mismatch(&at("interval"), "low <= high <= 1000000", &format!("{low_ppm} to {high_ppm}")));
    }
    Ok(Share { dataset, weight, share_ppm, low_ppm, high_ppm })
}

fn mismatch(what: &str, expected: &str, found: &dyn std::fmt::Display) -> SharesError {
    SharesError::Mismatch {
        what: what.into(),
        expected: expected.into(),
        found: found.to_string().chars().take(100).collect(),
    }
}

fn check_equal<T: PartialEq + std::fmt::Display>(what: &str, expected: &T, found: &T) -> Result<(), SharesError> {
    if expected == found { Ok(()) } else { Err(mismatch(what, &expected.to_string(), found)) }
}
