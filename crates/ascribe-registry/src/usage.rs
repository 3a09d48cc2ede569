//! Usage receipts: what one paid attribution was, as canonical JSON (RFC 8785) under an Ed25519 signature.
//!
//! A receipt holds no personal data: the output stands as a salted hash, the payer not at all. What goes into the log is the
//! receipt's digest, so that a receipt can be erased and the log still stands.

use std::collections::HashSet;

use ascribe_core::Digest;
use ascribe_tlog::{Ed25519Key, Ed25519PublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::clip;

/// Version of the receipt.
pub const USAGE_FORMAT_VERSION: u32 = 1;

const KIND: &str = "ascribe.usage-receipt/v1";

/// No honest receipt is anywhere near this.
pub(crate) const RECEIPT_CAP_BYTES: usize = 1 << 20;

const SHARES_CAP: usize = 10_000;

/// Why a receipt is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage receipt: {field}: expected {expected}, found {found}")]
pub struct UsageError {
    /// The field.
    pub field: &'static str,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// One dataset's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageShare {
    /// `urn:uuid:…` of the dataset.
    pub dataset: String,
    /// Integer weight among the receipt's shares, as a decimal string: JSON numbers lose digits above 2⁵³.
    #[serde(with = "decimal128")]
    pub weight: u128,
}

/// Revenue that was settled for the use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SettledRevenue {
    /// ISO 4217 code or CAIP-19 asset.
    pub currency: String,
    /// Amount in the currency's smallest unit, as a decimal string.
    #[serde(with = "decimal128")]
    pub minor_units: u128,
}

/// One use of a model that may be paid. Members stand in the order of RFC 8785, the order in which they are signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UsageReceipt {
    /// Digest of the attribution's own file, if it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution_sha256: Option<Digest>,
    kind: String,
    /// Name of the attribution method.
    pub method: String,
    /// Digest of the model.
    pub model_sha256: Digest,
    /// [`salted_hash`] of the output.
    pub output_salted_sha256: Digest,
    /// Unique name of the request: the key against replays. Random, never derived from a person.
    pub request_id: String,
    /// What was settled.
    pub revenue: SettledRevenue,
    /// Id of the training run that the model came from.
    pub run_id: String,
    /// When it was settled, RFC 3339 in UTC, whole seconds.
    pub settled_on: String,
    /// Shares of the datasets; what is left of `weight_total` is unattributed.
    pub shares: Vec<UsageShare>,
    /// Digest of the shares where they are too many to stand here ([`crate::SharesDigest`]); `shares` is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_sha256: Option<Digest>,
    /// Digest of everything that the method was set to (its feature spec and factors).
    pub spec_sha256: Digest,
    /// Whole against which the weights stand.
    #[serde(with = "decimal128")]
    pub weight_total: u128,
}

/// What a use is made of; [`UsageReceipt::new`] checks it.
#[derive(Clone, Debug)]
pub struct Usage {
    /// See [`UsageReceipt::request_id`].
    pub request_id: String,
    /// See [`UsageReceipt::model_sha256`].
    pub model_sha256: Digest,
    /// See [`UsageReceipt::run_id`].
    pub run_id: String,
    /// See [`UsageReceipt::output_salted_sha256`].
    pub output_salted_sha256: Digest,
    /// See [`UsageReceipt::method`].
    pub method: String,
    /// See [`UsageReceipt::spec_sha256`].
    pub spec_sha256: Digest,
    /// See [`UsageReceipt::attribution_sha256`].
    pub attribution_sha256: Option<Digest>,
    /// See [`UsageReceipt::shares`].
    pub shares: Vec<UsageShare>,
    /// See [`UsageReceipt::weight_total`].
    pub weight_total: u128,
    /// See [`UsageReceipt::revenue`].
    pub revenue: SettledRevenue,
    /// Unix seconds.
    pub settled_unix_s: u64,
}

/// `SHA-256(salt ‖ output)`. With 32 random bytes of salt that are kept elsewhere, or thrown away, the hash tells nobody
/// anything.
pub fn salted_hash(salt: &[u8; 32], output: &[u8]) -> Digest {
    Digest::of(&[&salt[..], output].concat())
}

impl UsageReceipt {
    /// A receipt of a use.
    ///
    /// # Errors
    /// [`UsageError`] naming the field.
    pub fn new(usage: Usage) -> Result<Self, UsageError> {
        let moment = i64::try_from(usage.settled_unix_s).ok();
        let moment = moment.and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok()?.format(&Rfc3339).ok());
        let receipt = Self {
            kind: KIND.to_owned(),
            request_id: usage.request_id,
            model_sha256: usage.model_sha256,
            run_id: usage.run_id,
            output_salted_sha256: usage.output_salted_sha256,
            method: usage.method,
            spec_sha256: usage.spec_sha256,
            attribution_sha256: usage.attribution_sha256,
            shares: usage.shares,
            shares_sha256: None,
            weight_total: usage.weight_total,
            revenue: usage.revenue,
            settled_on: moment.ok_or_else(|| refuse("settledOn", "a moment before 10000", usage.settled_unix_s))?,
        };
        receipt.validate()?;
        Ok(receipt)
    }

    /// The receipt with a digest in the place of its shares.
    pub fn with_shares_digest(self, digest: Digest) -> Self {
        Self { shares: Vec::new(), shares_sha256: Some(digest), ..self }
    }

    /// The receipt with another salted output.
    pub fn with_output(self, output_salted_sha256: Digest) -> Self {
        Self { output_salted_sha256, ..self }
    }

    /// The first member in which two receipts differ, as its name and both values.
    pub(crate) fn difference(&self, other: &Self) -> (String, String, String) {
        let object = |receipt: &Self| match serde_json::to_value(receipt) {
            Ok(serde_json::Value::Object(members)) => members,
            _ => serde_json::Map::new(),
        };
        let (ours, theirs) = (object(self), object(other));
        let text = |value: Option<&serde_json::Value>| value.map_or_else(|| "none".to_owned(), ToString::to_string);
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort_unstable();
        let name = names.into_iter().find(|name| ours.get(*name) != theirs.get(*name));
        name.map_or_else(Default::default, |name| (name.clone(), text(ours.get(name)), text(theirs.get(name))))
    }

    /// Checks what can be checked of a receipt alone.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn validate(&self) -> Result<(), UsageError> {
        if self.kind != KIND {
            return Err(refuse("kind", KIND, clip(&self.kind)));
        }
        for (field, text) in [("requestId", &self.request_id), ("runId", &self.run_id), ("method", &self.method)] {
            if text.trim().is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
                return Err(refuse(field, "1 to 256 bytes without control characters", format!("{:?}", clip(text))));
            }
        }
        let currency = &self.revenue.currency;
        if currency.is_empty() || currency.len() > 128 || !currency.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refuse(
                "revenue.currency",
                "an ISO 4217 code or CAIP-19 asset",
                format!("{:?}", clip(currency)),
            ));
        }
        if self.shares.len() > SHARES_CAP {
            return Err(refuse("shares", format!("at most {SHARES_CAP}"), self.shares.len()));
        }
        if self.shares_sha256.is_some() && !self.shares.is_empty() {
            return Err(refuse("shares", "none beside their digest", self.shares.len()));
        }
        let (mut seen, mut sum) = (HashSet::new(), 0u128);
        for share in &self.shares {
            if !share.dataset.starts_with("urn:uuid:") {
                return Err(refuse("shares.dataset", "urn:uuid:…", format!("{:?}", clip(&share.dataset))));
            }
            if !seen.insert(&share.dataset) {
                return Err(refuse("shares.dataset", "each dataset once", format!("{} twice", share.dataset)));
            }
            sum = sum.checked_add(share.weight).ok_or_else(|| refuse("shares.weight", "a sum below 2^128", "more"))?;
        }
        if self.weight_total == 0 || sum > self.weight_total {
            return Err(refuse("weightTotal", format!("at least {}", sum.max(1)), self.weight_total));
        }
        let moment = OffsetDateTime::parse(&self.settled_on, &Rfc3339).ok();
        let exact = moment.and_then(|m| m.format(&Rfc3339).ok()).is_some_and(|text| text == self.settled_on);
        if !exact || moment.is_some_and(|m| m.nanosecond() != 0 || !m.offset().is_utc()) {
            return Err(refuse(
                "settledOn",
                "RFC 3339 in UTC and whole seconds",
                format!("{:?}", clip(&self.settled_on)),
            ));
        }
        Ok(())
    }

    /// The canonical bytes (RFC 8785): what is hashed and signed.
    pub fn canonical(&self) -> Vec<u8> {
        canonical_bytes(self)
    }

    /// SHA-256 of the canonical bytes: the entry of the log.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.canonical())
    }

    /// The receipt with its operator's signature over the canonical bytes.
    pub fn sign(self, key: &Ed25519Key) -> SignedUsage {
        let signature = STANDARD.encode(key.sign(&self.canonical()));
        SignedUsage { receipt: self, signer: key.public().did_key(), signature }
    }

    /// The same, with the bytes and the digest that a log wants made once: for whoever signs thousands a second.
    ///
    /// # Errors
    /// [`UsageError`]: what [`UsageReceipt::validate`] refuses.
    pub fn seal(self, key: &Ed25519Key) -> Result<SealedUsage, UsageError> {
        self.validate()?;
        let canonical = self.canonical();
        let signature = STANDARD.encode(key.sign(&canonical));
        let signer = key.public().did_key();
        // Members in the order of RFC 8785; neither base64 nor base58 holds anything that JSON would escape.
        let mut line = Vec::with_capacity(canonical.len() + 192);
        line.extend_from_slice(b"{\"receipt\":");
        line.extend_from_slice(&canonical);
        line.extend_from_slice(format!(",\"signature\":\"{signature}\",\"signer\":\"{signer}\"}}").as_bytes());
        let signed = SignedUsage { receipt: self, signer, signature };
        Ok(SealedUsage { signed, line, digest: Digest::of(&canonical) })
    }
}

/// A receipt that was signed in this process: nothing can change it any more, so that its signature need not be checked again.
#[derive(Clone, Debug)]
pub struct SealedUsage {
    signed: SignedUsage,
    line: Vec<u8>,
    digest: Digest,
}

impl SealedUsage {
    /// The receipt with its signature.
    pub fn signed(&self) -> &SignedUsage {
        &self.signed
    }

    /// Its canonical JSON ([`SignedUsage::to_bytes`]).
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// [`UsageReceipt::digest`].
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// A receipt and its signature, as it is handed to a customer and kept in the usage log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedUsage {
    /// The receipt.
    pub receipt: UsageReceipt,
    /// Base64.
    signature: String,
    /// `did:key` of the operator.
    pub signer: String,
}

impl SignedUsage {
    /// Reads one, in its one canonical spelling.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, UsageError> {
        if bytes.len() > RECEIPT_CAP_BYTES {
            return Err(refuse("length", format!("at most {RECEIPT_CAP_BYTES} bytes"), bytes.len()));
        }
        let read: Self = serde_json::from_slice(bytes)
            .map_err(|error| refuse("form", "a receipt as JSON", clip(&error.to_string())))?;
        if read.to_bytes() != bytes {
            return Err(refuse("form", "canonical JSON (RFC 8785)", "another spelling of the same"));
        }
        read.receipt.validate()?;
        Ok(read)
    }

    /// Canonical JSON, one line.
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical_bytes(self)
    }

    /// Checks the signature: it must be the operator's, whose key the checker has from elsewhere.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn verify(&self, operator: &Ed25519PublicKey) -> Result<(), UsageError> {
        if self.signer != operator.did_key() {
            return Err(refuse("signer", operator.did_key(), clip(&self.signer)));
        }
        let signature =
            STANDARD.decode(&self.signature).map_err(|_| refuse("signature", "base64", "something else"))?;
        let holds = operator.verify(&self.receipt.canonical(), &signature);
        holds.map_err(|_| refuse("signature", "one by the operator over this receipt", "another"))
    }
}

/// Canonical JSON of a receipt. Its structs declare their members in the order that RFC 8785 sorts them in, and hold no floats, so
/// plain JSON is canonical; a general canonicaliser costs as much as a signature. Tests hold both against each other.
fn canonical_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, digests and lists have a JSON form")
}

fn refuse(field: &'static str, expected: impl ToString, found: impl ToString) -> UsageError {
    UsageError { field, expected: expected.to_string(), found: found.to_string() }
}

/// A `u128` as a plain decimal string.
mod decimal128 {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = text.parse::<u128>().ok().filter(|value| value.to_string() == text);
        value.ok_or_else(|| D::Error::custom(format!("expected a plain decimal below 2^128, found {text:?}")))
    }
}
