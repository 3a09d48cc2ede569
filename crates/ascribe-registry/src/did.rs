//! Licences signed by an Ed25519 `did:key`: a W3C verifiable credential with an `eddsa-jcs-2022` proof.
//!
//! The subject of the credential is the same message as in an EIP-712 licence, with the domain beside it and the `did:key` as
//! licensor. The proof signs `SHA-256(JCS(proof without its value)) ‖ SHA-256(JCS(credential without proof))` (W3C Data
//! Integrity EdDSA Cryptosuites 1.0, §3.3). The digest of such a licence, its only key, is the second of these hashes: it
//! holds the domain, so a credential for one registry is none for another.

use std::fmt;
use std::path::Path;

use ascribe_core::Digest;
use ascribe_tlog::{Ed25519Key, Ed25519PublicKey, SIGNATURE_LEN_BYTES};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::{RegistryError, clip};
use crate::export::NAMESPACE;
use crate::licence::{LicenceDigest, LicenceMessage, Licensor, RegistryDomain, check_equal, json as to_json};
use crate::signer::Signer;

/// The contexts of the credential: the official one, and one that puts the members of a licence under our name space.
const CONTEXT_V2: &str = "https://www.w3.org/ns/credentials/v2";

/// The cryptographic suite.
const SUITE: &str = "eddsa-jcs-2022";

/// A `did:key` of Ed25519, in its one spelling. The key itself, and how it is spelt, is [`ascribe_tlog`]'s.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Did(Ed25519PublicKey);

impl Did {
    /// The key that its signatures are checked with: strictly, so that one message has one signature.
    pub(crate) fn key(&self) -> &Ed25519PublicKey {
        &self.0
    }

    /// The verification method that `did:key` defines for the key.
    fn method(&self) -> String {
        format!("{self}#{}", self.0.multibase())
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.did_key())
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Did({self})")
    }
}

impl Licensor for Did {
    fn spell(&self) -> String {
        self.to_string()
    }

    fn parse(text: &str) -> Result<Self, String> {
        // Of a weak key anybody can make signatures that hold for many messages: it is no key.
        match Ed25519PublicKey::from_did_key(text) {
            Ok(key) if key.did_key() == text => Ok(Self(key)),
            _ => Err(format!("expected did:key:z and an Ed25519 key in base58, found {:?}", clip(text))),
        }
    }
}

impl Licensor for String {
    fn spell(&self) -> String {
        self.clone()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

/// An Ed25519 key that signs licences. Its secret is wiped when it is dropped.
pub struct DidKey(Ed25519Key);

impl DidKey {
    pub(crate) fn from_secret(secret: &[u8; 32]) -> Self {
        Self(Ed25519Key::from_seed(secret))
    }

    /// Its `did:key`.
    pub fn did(&self) -> Did {
        Did(self.0.public())
    }
}

impl Signer for DidKey {
    fn licensor(&self) -> String {
        self.did().to_string()
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, RegistryError> {
        Ok(self.0.sign(payload).to_vec())
    }
}

/// The credential's subject: a licence, and the registry that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    /// `urn:uuid:…` of the dataset.
    id: String,
    domain: RegistryDomain,
    message: LicenceMessage<Did>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Proof {
    #[serde(rename = "@context")]
    context: Value,
    #[serde(rename = "type")]
    kind: String,
    cryptosuite: String,
    created: String,
    verification_method: String,
    proof_purpose: String,
    /// `z` and the signature in base58; absent in what is hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof_value: Option<String>,
}

/// `licence.json` of the second kind: a verifiable credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DidLicence {
    #[serde(rename = "@context")]
    context: Value,
    #[serde(rename = "type")]
    kind: Vec<String>,
    issuer: String,
    valid_from: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_until: Option<String>,
    credential_subject: Subject,
    proof: Proof,
}

fn context() -> Value {
    json!([CONTEXT_V2, { "@vocab": NAMESPACE }])
}

fn instant(path: &Path, field: &str, unix_s: u64) -> Result<String, RegistryError> {
    let moment = i64::try_from(unix_s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    moment
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .ok_or_else(|| RegistryError::field(path, field, "a moment before the year 10000", unix_s))
}

impl DidLicence {
    /// A credential whose proof has no value yet.
    fn unsigned(
        path: &Path,
        domain: RegistryDomain,
        message: LicenceMessage<Did>,
        created_unix_s: u64,
    ) -> Result<Self, RegistryError> {
        message.validate(path)?;
        let until = message.valid_until;
        let valid_until = if until == 0 { None } else { Some(instant(path, "message.validUntil", until)?) };
        let proof = Proof {
            context: context(),
            kind: "DataIntegrityProof".to_owned(),
            cryptosuite: SUITE.to_owned(),
            created: instant(path, "proof.created", created_unix_s)?,
            verification_method: message.licensor.method(),
            proof_purpose: "assertionMethod".to_owned(),
            proof_value: None,
        };
        Ok(Self {
            context: context(),
            kind: vec!["VerifiableCredential".to_owned(), "DatasetLicenceCredential".to_owned()],
            issuer: message.licensor.spell(),
            valid_from: instant(path, "message.validFrom", message.valid_from)?,
            valid_until,
            credential_subject: Subject { id: message.dataset.clone(), domain, message },
            proof,
        })
    }

    /// Signs a licence.
    ///
    /// # Errors
    /// As [`LicenceMessage::validate`]; a licensor that is not the signer is [`RegistryError::WrongSigner`].
    pub fn sign(
        path: &Path,
        domain: RegistryDomain,
        message: LicenceMessage<Did>,
        created_unix_s: u64,
        signer: &dyn Signer,
    ) -> Result<Self, RegistryError> {
        let (expected, found) = (message.licensor.spell(), signer.licensor());
        if expected != found {
            return Err(RegistryError::WrongSigner { path: path.to_owned(), expected, found });
        }
        let mut licence = Self::unsigned(path, domain, message, created_unix_s)?;
        let signature = signer.sign(&licence.payload())?;
        licence.proof.proof_value = Some(format!("z{}", bs58::encode(signature).into_string()));
        Ok(licence)
    }

    /// The message.
    pub fn message(&self) -> &LicenceMessage<Did> {
        &self.credential_subject.message
    }

    /// The domain.
    pub(crate) fn domain(&self) -> &RegistryDomain {
        &self.credential_subject.domain
    }

    /// Hash of the credential without its proof.
    pub fn digest(&self) -> LicenceDigest {
        let mut value = serde_json::to_value(self).expect("a credential is plain JSON");
        value.as_object_mut().expect("a struct serialises as an object").remove("proof");
        LicenceDigest(canonical_hash(&value).0)
    }

    /// The 64 bytes that are signed.
    fn payload(&self) -> Vec<u8> {
        let options = Proof { proof_value: None, ..self.proof.clone() };
        let options = serde_json::to_value(options).expect("a proof is plain JSON");
        [canonical_hash(&options).0, self.digest().0].concat()
    }

    /// Checks form, domain, message and proof.
    ///
    /// # Errors
    /// [`RegistryError::Field`], [`RegistryError::WrongSigner`].
    pub fn check_signed(&self, path: &Path, domain: &RegistryDomain) -> Result<(), RegistryError> {
        let message = self.message();
        check_equal(path, "domain", &to_json(domain), &to_json(&self.credential_subject.domain))?;
        let created = OffsetDateTime::parse(&self.proof.created, &Rfc3339)
            .ok()
            .and_then(|moment| u64::try_from(moment.unix_timestamp()).ok())
            .ok_or_else(|| RegistryError::field(path, "proof.created", "a moment as RFC 3339", &self.proof.created))?;
        // Everything but the value of the proof follows from the message: no member is left to say something else.
        let mut expected = Self::unsigned(path, domain.clone(), message.clone(), created)?;
        expected.proof.proof_value = self.proof.proof_value.clone();
        if expected != *self {
            return Err(RegistryError::field(path, "credential", to_json(&expected), to_json(self)));
        }
        let wrong = |found: &str| RegistryError::WrongSigner {
            path: path.to_owned(),
            expected: message.licensor.spell(),
            found: found.to_owned(),
        };
        let digits = self.proof.proof_value.as_deref().and_then(|value| value.strip_prefix('z'));
        let bytes = digits.filter(|digits| digits.len() <= 128).and_then(|digits| bs58::decode(digits).into_vec().ok());
        let bytes = bytes.filter(|bytes| bytes.len() == SIGNATURE_LEN_BYTES);
        let bytes = bytes.ok_or_else(|| wrong("no Ed25519 signature"))?;
        message.licensor.key().verify(&self.payload(), &bytes).map_err(|_| wrong("somebody else's signature"))
    }
}

/// SHA-256 of the RFC 8785 form.
fn canonical_hash(value: &Value) -> Digest {
    Digest::of(&serde_json_canonicalizer::to_vec(value).expect("a credential holds no number that JCS refuses"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn did_of_a_known_key() {
        // The did:key of the Ed25519 key in the examples of W3C's EdDSA cryptosuites (§B.1).
        let text = "did:key:z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ2";
        assert_eq!(Did::parse(text).unwrap().spell(), text);
        for bad in ["did:key:z6Mk", "did:web:example.org", "did:key:z11111111111111111111111111111111111111111111"] {
            assert!(Did::parse(bad).unwrap_err().starts_with("expected did:key:z"), "{bad}");
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        // The neutral element: every message has a signature under it that anybody can make.
        let bytes = [&[0xed, 0x01, 1][..], &[0; 31]].concat();
        assert!(Did::parse(&format!("did:key:z{}", bs58::encode(bytes).into_string())).is_err());
    }
}
