//! Licences: the EIP-712 message `DatasetLicence`, its digest, its signature, and `licence.json`.
//!
//! ```solidity
//! domain = { name: "Dataset Licence Registry", version: "1", chainId, salt: registryId }
//! struct Payee { string account; uint32 sharePpm; }
//! struct DatasetLicence {
//!   address licensor; string dataset; bytes32 contentRoot; uint64 recordCount; bytes32 metadataSha256;
//!   string licence; bytes32 termsSha256; string[] permits; string[] prohibits; Payee[] payees;
//!   uint64 validFrom; uint64 validUntil; uint256 nonce; bytes32 supersedes; }
//! ```
//!
//! The digest (`keccak256(0x19 01 ‖ domain separator ‖ struct hash)`) is a licence's only key; signatures identify
//! nothing, because one message has more than one of them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::{Eip712Domain, SolStruct};
use ascribe_core::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{RegistryError, clip};
use crate::key::{LicenceKey, SIGNATURE_LEN_BYTES, check_signature};
use crate::manifest::{Manifest, Payee, check_payees, check_usage};
use crate::prepare::Grant;
use crate::signer::Signer;
use crate::wire;

/// Version of the licence file that this code reads and writes.
pub const LICENCE_FORMAT_VERSION: u32 = 1;

/// Name of the licence file of a dataset.
pub const LICENCE_FILE: &str = "licence.json";

/// What stands beside every demo signature.
pub const DEMO_NOTICE: &str = "Demo key: its private key is public, derived from the owner's name. This signature shows how a \
                               licence is checked; the named owner has not signed it, and the key must not be used for money.";

/// Chain id of the demo registry: the one that local development chains use.
pub const DEMO_CHAIN_ID: u64 = 31337;

/// The Solidity side of the message, for its EIP-712 encoding only.
#[allow(missing_docs)]
mod sol {
    alloy_sol_types::sol! {
        struct Payee { string account; uint32 sharePpm; }
        struct DatasetLicence {
            address licensor;
            string dataset;
            bytes32 contentRoot;
            uint64 recordCount;
            bytes32 metadataSha256;
            string licence;
            bytes32 termsSha256;
            string[] permits;
            string[] prohibits;
            Payee[] payees;
            uint64 validFrom;
            uint64 validUntil;
            uint256 nonce;
            bytes32 supersedes;
        }
    }
}

/// EIP-712 digest of a licence. Prints and serialises as `0x` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LicenceDigest(pub [u8; 32]);

impl fmt::Display for LicenceDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&wire::to_hex(&self.0))
    }
}

impl fmt::Debug for LicenceDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LicenceDigest({self})")
    }
}

impl FromStr for LicenceDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        wire::from_hex(text).map(Self)
    }
}

impl Serialize for LicenceDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        wire::hex32::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for LicenceDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        wire::hex32::deserialize(deserializer).map(Self)
    }
}

/// The EIP-712 domain: which registry, on which network, a signature is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RegistryDomain {
    /// `Dataset Licence Registry`.
    pub name: String,
    /// `1`.
    pub version: String,
    /// Network.
    pub chain_id: u64,
    /// Registry id: a signature for one registry is none for another.
    #[serde(with = "wire::hex32")]
    pub salt: [u8; 32],
}

impl RegistryDomain {
    /// The domain of the demo registry: chain 31337, salt `keccak256("ascribe demo registry v1")`.
    pub fn demo() -> Self {
        Self {
            name: "Dataset Licence Registry".to_owned(),
            version: "1".to_owned(),
            chain_id: DEMO_CHAIN_ID,
            salt: keccak256("ascribe demo registry v1").0,
        }
    }

    pub(crate) fn to_eip712(&self) -> Eip712Domain {
        Eip712Domain::new(
            Some(self.name.clone().into()),
            Some(self.version.clone().into()),
            Some(U256::from(self.chain_id)),
            None,
            Some(B256::from(self.salt)),
        )
    }
}

/// Who can grant a licence, by the one spelling of its name: an address, or a `did:key`.
pub trait Licensor: Clone + PartialEq {
    /// The name as it stands in a file.
    fn spell(&self) -> String;

    /// Inverse of [`Licensor::spell`]; every other spelling is refused.
    ///
    /// # Errors
    /// What was expected and found.
    fn parse(text: &str) -> Result<Self, String>;
}

impl Licensor for Address {
    fn spell(&self) -> String {
        self.to_checksum(None)
    }

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_checksummed(text, None).map_err(|_| format!("expected an EIP-55 address, found {:?}", clip(text)))
    }
}

/// The signed message. 64-bit and wider integers are decimal strings in JSON, because JSON numbers round above 2⁵³.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", bound = "L: Licensor")]
pub struct LicenceMessage<L = Address> {
    /// Who grants, and signs.
    #[serde(with = "wire::licensor")]
    pub licensor: L,
    /// `urn:uuid:…` of the dataset.
    pub dataset: String,
    /// RFC 6962 root over the record hashes.
    #[serde(with = "wire::digest")]
    pub content_root: Digest,
    /// Records.
    #[serde(with = "wire::decimal")]
    pub record_count: u64,
    /// [`Manifest::metadata_sha256`].
    #[serde(with = "wire::digest")]
    pub metadata_sha256: Digest,
    /// SPDX expression.
    pub licence: String,
    /// SHA-256 of `terms.txt`.
    #[serde(with = "wire::digest")]
    pub terms_sha256: Digest,
    /// Permitted uses, RSL tokens.
    pub permits: Vec<String>,
    /// Prohibited uses, RSL tokens.
    pub prohibits: Vec<String>,
    /// Who is paid; shares sum to 1,000,000 ppm.
    #[serde(with = "wire::payees")]
    pub payees: Vec<Payee>,
    /// First moment of validity, Unix seconds.
    #[serde(with = "wire::decimal")]
    pub valid_from: u64,
    /// First moment after validity, Unix seconds; 0 is open.
    #[serde(with = "wire::decimal")]
    pub valid_until: u64,
    /// Strictly increasing per licensor and registry.
    #[serde(with = "wire::decimal")]
    pub nonce: u64,
    /// Digest of the licence that this one replaces; zeros for none.
    pub supersedes: LicenceDigest,
}

/// `licence.json`: a message, the domain it was signed in, and the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// [`LICENCE_FORMAT_VERSION`].
    pub format_version: u32,
    /// The domain.
    pub domain: RegistryDomain,
    /// The message.
    pub message: LicenceMessage,
    /// r ‖ s ‖ v.
    #[serde(with = "wire::signature")]
    pub signature: [u8; SIGNATURE_LEN_BYTES],
    /// EIP-712 digest of domain and message.
    pub digest: LicenceDigest,
    /// True when the key is a public demo key.
    pub demo_key: bool,
    /// What that means; there when `demo_key` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demo_notice: Option<String>,
}

impl LicenceMessage {
    /// The EIP-712 digest that is signed.
    pub fn digest(&self, domain: &RegistryDomain) -> LicenceDigest {
        let payee = |payee: &Payee| sol::Payee { account: payee.account.clone(), sharePpm: payee.share_ppm };
        let message = sol::DatasetLicence {
            licensor: self.licensor,
            dataset: self.dataset.clone(),
            contentRoot: B256::from(self.content_root.0),
            recordCount: self.record_count,
            metadataSha256: B256::from(self.metadata_sha256.0),
            licence: self.licence.clone(),
            termsSha256: B256::from(self.terms_sha256.0),
            permits: self.permits.clone(),
            prohibits: self.prohibits.clone(),
            payees: self.payees.iter().map(payee).collect(),
            validFrom: self.valid_from,
            validUntil: self.valid_until,
            nonce: U256::from(self.nonce),
            supersedes: B256::from(self.supersedes.0),
        };
        LicenceDigest(message.eip712_signing_hash(&domain.to_eip712()).0)
    }
}

impl<L: Licensor> LicenceMessage<L> {
    /// The message that a licensor grants for a dataset.
    pub fn of(licensor: L, manifest: &Manifest, terms: &[u8], grant: Grant) -> Self {
        Self {
            licensor,
            dataset: manifest.uuid.clone(),
            content_root: manifest.content_root,
            record_count: manifest.record_count,
            metadata_sha256: manifest.metadata_sha256(),
            licence: manifest.licence.clone(),
            terms_sha256: Digest::of(terms),
            permits: manifest.permits.clone(),
            prohibits: manifest.prohibits.clone(),
            payees: manifest.payees.clone(),
            valid_from: grant.valid_from,
            valid_until: grant.valid_until,
            nonce: grant.nonce,
            supersedes: grant.supersedes,
        }
    }

    /// The same message with its licensor by name.
    pub fn named(&self) -> LicenceMessage<String> {
        let Self { record_count, valid_from, valid_until, nonce, supersedes, .. } = *self;
        LicenceMessage {
            licensor: self.licensor.spell(),
            dataset: self.dataset.clone(),
            content_root: self.content_root,
            record_count,
            metadata_sha256: self.metadata_sha256,
            licence: self.licence.clone(),
            terms_sha256: self.terms_sha256,
            permits: self.permits.clone(),
            prohibits: self.prohibits.clone(),
            payees: self.payees.clone(),
            valid_from,
            valid_until,
            nonce,
            supersedes,
        }
    }

    /// Checks that the message says what the manifest and the legal text say.
    ///
    /// # Errors
    /// [`RegistryError::Field`] for the first field that does not.
    pub(crate) fn check_against(&self, path: &Path, manifest: &Manifest, terms: &[u8]) -> Result<(), RegistryError> {
        let check = |field: &str, expected: String, found: String| check_equal(path, field, &expected, &found);
        check("message.dataset", manifest.uuid.clone(), self.dataset.clone())?;
        check("message.contentRoot", manifest.content_root.to_string(), self.content_root.to_string())?;
        check("message.recordCount", manifest.record_count.to_string(), self.record_count.to_string())?;
        check("message.metadataSha256", manifest.metadata_sha256().to_string(), self.metadata_sha256.to_string())?;
        check("message.licence", manifest.licence.clone(), self.licence.clone())?;
        check("message.termsSha256", Digest::of(terms).to_string(), self.terms_sha256.to_string())?;
        check("message.permits", json(&manifest.permits), json(&self.permits))?;
        check("message.prohibits", json(&manifest.prohibits), json(&self.prohibits))?;
        check("message.payees", json(&manifest.payees), json(&self.payees))
    }

    /// What no licensor may sign: no content, shares that are no whole, unknown or contradicting uses, an empty window.
    ///
    /// # Errors
    /// [`RegistryError::Field`], [`RegistryError::SharesDoNotSum`], naming `path`.
    pub fn validate(&self, path: &Path) -> Result<(), RegistryError> {
        if self.record_count == 0 {
            return Err(RegistryError::field(path, "message.recordCount", "at least 1", 0));
        }
        check_usage(path, &self.permits, &self.prohibits)?;
        check_payees(path, &self.payees)?;
        if self.valid_until != 0 && self.valid_until <= self.valid_from {
            let expected = format!("0 or more than validFrom {}", self.valid_from);
            return Err(RegistryError::field(path, "message.validUntil", expected, self.valid_until));
        }
        Ok(())
    }
}

/// Signs a licence. `owner` decides whether the key counts, and is marked, as a demo key.
///
/// # Errors
/// As [`LicenceMessage::validate`]; a licensor that is not the signer is [`RegistryError::WrongSigner`].
pub fn sign_licence(
    path: &Path,
    domain: RegistryDomain,
    message: LicenceMessage,
    owner: &str,
    signer: &dyn Signer,
) -> Result<Licence, RegistryError> {
    message.validate(path)?;
    let (expected, found) = (message.licensor.spell(), signer.licensor());
    if expected != found {
        return Err(RegistryError::WrongSigner { path: path.to_owned(), expected, found });
    }
    let signature = signer.sign(&message.digest(&domain).0)?;
    let signature = signature.try_into().map_err(|found: Vec<u8>| {
        RegistryError::field(path, "signature", format!("{SIGNATURE_LEN_BYTES} bytes"), found.len())
    })?;
    Ok(Licence::new(domain, message, signature, owner))
}

impl Licence {
    /// A licence with a signature that somebody made, not checked yet.
    pub fn new(
        domain: RegistryDomain,
        message: LicenceMessage,
        signature: [u8; SIGNATURE_LEN_BYTES],
        owner: &str,
    ) -> Self {
        let digest = message.digest(&domain);
        let demo_key = message.licensor == LicenceKey::demo(owner).address();
        let demo_notice = demo_key.then(|| DEMO_NOTICE.to_owned());
        Self { format_version: LICENCE_FORMAT_VERSION, domain, message, signature, digest, demo_key, demo_notice }
    }

    /// Checks what can be checked of a licence by itself: form, domain, message, digest and signature.
    ///
    /// # Errors
    /// [`RegistryError::Field`], and the signature errors ([`RegistryError::RecoveryByte`], [`RegistryError::HighS`],
    /// [`RegistryError::WrongSigner`]).
    pub fn check_signed(&self, path: &Path, domain: &RegistryDomain) -> Result<(), RegistryError> {
        let version = (LICENCE_FORMAT_VERSION.to_string(), self.format_version.to_string());
        check_equal(path, "format_version", &version.0, &version.1)?;
        check_equal(path, "domain", &json(domain), &json(&self.domain))?;
        self.message.validate(path)?;
        let digest = self.message.digest(&self.domain);
        check_equal(path, "digest", &digest.to_string(), &self.digest.to_string())?;
        check_signature(path, B256::from(digest.0), &self.signature, self.message.licensor)
    }
}

/// Checks a licence against the registry's domain, its manifest, its legal text and its own signature.
///
/// In the demo domain only the demo key of the owner may sign: elsewhere who may license whose data is a matter of
/// identity, which no signature settles.
///
/// # Errors
/// [`RegistryError::Field`] for the first field that is not what the other files say, and the signature errors
/// ([`RegistryError::RecoveryByte`], [`RegistryError::HighS`], [`RegistryError::WrongSigner`]).
pub fn verify_licence(
    path: &Path,
    licence: &Licence,
    domain: &RegistryDomain,
    manifest: &Manifest,
    terms: &[u8],
) -> Result<(), RegistryError> {
    let message = &licence.message;
    check_equal(path, "domain", &json(domain), &json(&licence.domain))?;
    message.validate(path)?;
    message.check_against(path, manifest, terms)?;
    licence.check_signed(path, domain)?;
    let demo_address = LicenceKey::demo(&manifest.owner).address();
    let demo_key = message.licensor == demo_address;
    if !demo_key && *domain == RegistryDomain::demo() {
        let expected = format!("{}, the demo key of {:?}", demo_address.to_checksum(None), manifest.owner);
        let found = message.licensor.to_checksum(None);
        return Err(RegistryError::WrongSigner { path: path.to_owned(), expected, found });
    }
    check_equal(path, "demo_key", &demo_key.to_string(), &licence.demo_key.to_string())?;
    let notice = demo_key.then_some(DEMO_NOTICE);
    check_equal(path, "demo_notice", &json(&notice), &json(&licence.demo_notice))
}

/// Refuses a field that is not what it should be.
pub(crate) fn check_equal(path: &Path, field: &str, expected: &str, found: &str) -> Result<(), RegistryError> {
    if expected == found { Ok(()) } else { Err(RegistryError::field(path, field, expected, found)) }
}

pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("file types have string keys and no floats")
}
