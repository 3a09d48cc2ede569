//! Revocations: the EIP-712 message `LicenceRevocation`, by whoever signed the licence.
//!
//! ```solidity
//! struct LicenceRevocation { bytes32 licence; uint64 effectiveFrom; string reason; uint256 nonce; }
//! ```
//!
//! A revocation acts forward only: runs that began before `effectiveFrom` go on paying. It uses up a nonce of its licensor
//! as a licence does. A `did:key` revokes with an Ed25519 signature over the same digest.

use std::path::Path;

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolStruct as _;
use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::error::RegistryError;
use crate::key::{SIGNATURE_LEN_BYTES, check_signature};
use crate::licence::{LicenceDigest, Licensor as _, RegistryDomain, check_equal, json};
use crate::signer::Signer;
use crate::wire;

/// Version of the revocation file that this code reads and writes.
pub const REVOCATION_FORMAT_VERSION: u32 = 1;

/// Name of the file that revokes the licence beside it.
pub const REVOCATION_FILE: &str = "revocation.json";

const REASON_CAP_BYTES: usize = 1024;

#[allow(missing_docs)]
mod sol {
    alloy_sol_types::sol! {
        struct LicenceRevocation { bytes32 licence; uint64 effectiveFrom; string reason; uint256 nonce; }
    }
}

/// The signed message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RevocationMessage {
    /// Digest of the licence.
    pub licence: LicenceDigest,
    /// First moment at which the licence no longer counts for a new run, Unix seconds.
    #[serde(with = "wire::decimal")]
    pub effective_from: u64,
    /// Why, for people.
    pub reason: String,
    /// More than every earlier nonce of the licensor in this registry.
    #[serde(with = "wire::decimal")]
    pub nonce: u64,
}

impl RevocationMessage {
    /// The EIP-712 digest that is signed.
    pub fn digest(&self, domain: &RegistryDomain) -> LicenceDigest {
        let message = sol::LicenceRevocation {
            licence: B256::from(self.licence.0),
            effectiveFrom: self.effective_from,
            reason: self.reason.clone(),
            nonce: U256::from(self.nonce),
        };
        LicenceDigest(message.eip712_signing_hash(&domain.to_eip712()).0)
    }
}

/// A revocation file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// [`REVOCATION_FORMAT_VERSION`].
    pub format_version: u32,
    /// The domain.
    pub domain: RegistryDomain,
    /// Who revokes: the licensor of the licence.
    pub licensor: String,
    /// The message.
    pub message: RevocationMessage,
    /// `0x` and hex: r ‖ s ‖ v of an address, or 64 bytes of Ed25519.
    pub signature: String,
    /// Digest of domain and message.
    pub digest: LicenceDigest,
}

impl Revocation {
    /// A revocation with a signature that somebody made, not checked yet.
    pub fn new(domain: RegistryDomain, licensor: String, message: RevocationMessage, signature: &[u8]) -> Self {
        let digest = message.digest(&domain);
        let signature = wire::to_hex(signature);
        Self { format_version: REVOCATION_FORMAT_VERSION, domain, licensor, message, signature, digest }
    }

    /// Signs a revocation.
    ///
    /// # Errors
    /// [`RegistryError::Field`] for a reason that is too long, and what the signer meets.
    pub fn sign(
        path: &Path,
        domain: RegistryDomain,
        message: RevocationMessage,
        signer: &dyn Signer,
    ) -> Result<Self, RegistryError> {
        check_reason(path, &message.reason)?;
        let signature = signer.sign(&message.digest(&domain).0)?;
        Ok(Self::new(domain, signer.licensor(), message, &signature))
    }

    /// Checks form, domain, digest and signature.
    ///
    /// # Errors
    /// [`RegistryError::Field`] and the signature errors.
    pub fn check_signed(&self, path: &Path, domain: &RegistryDomain) -> Result<(), RegistryError> {
        let version = (REVOCATION_FORMAT_VERSION.to_string(), self.format_version.to_string());
        check_equal(path, "format_version", &version.0, &version.1)?;
        check_equal(path, "domain", &json(domain), &json(&self.domain))?;
        check_reason(path, &self.message.reason)?;
        let digest = self.message.digest(&self.domain);
        check_equal(path, "digest", &digest.to_string(), &self.digest.to_string())?;
        let bad = |reason: String| RegistryError::field(path, "signature or licensor", "one of the licensor", reason);
        if self.licensor.starts_with("did:") {
            let did = Did::parse(&self.licensor).map_err(bad)?;
            let bytes: [u8; 64] = wire::from_hex(&self.signature).map_err(bad)?;
            return did.key().verify(&digest.0, &bytes).map_err(|_| RegistryError::WrongSigner {
                path: path.to_owned(),
                expected: self.licensor.clone(),
                found: "somebody else's signature".to_owned(),
            });
        }
        let licensor = Address::parse(&self.licensor).map_err(bad)?;
        let bytes: [u8; SIGNATURE_LEN_BYTES] = wire::from_hex(&self.signature).map_err(bad)?;
        check_signature(path, B256::from(digest.0), &bytes, licensor)
    }
}

fn check_reason(path: &Path, reason: &str) -> Result<(), RegistryError> {
    if reason.len() <= REASON_CAP_BYTES && !reason.chars().any(char::is_control) {
        return Ok(());
    }
    Err(RegistryError::field(path, "message.reason", format!("one line of at most {REASON_CAP_BYTES} bytes"), reason))
}
