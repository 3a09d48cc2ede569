//! DSSE envelopes (secure-systems-lab/dsse v1.0): a payload, its type, signatures over both. Never the payload's meaning.

use std::path::Path;

use ascribe_tlog::{Ed25519Key, Ed25519PublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::RegistryError;

/// Type of an in-toto statement.
pub const IN_TOTO_PAYLOAD: &str = "application/vnd.in-toto+json";

const SIGNATURES_CAP: usize = 64;

/// An envelope as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<EnvelopeSignature>,
}

/// One signature; the key id is a hint that nothing vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Payload, and key id and bytes of each signature.
type Opened<'a> = (Vec<u8>, Vec<(&'a str, Vec<u8>)>);

impl Envelope {
    /// Signs an in-toto statement. The key id is the key's `did:key`.
    pub fn sign(payload: &[u8], key: &Ed25519Key) -> Self {
        Self::with_signature(payload, key.public().did_key(), &key.sign(&pae(IN_TOTO_PAYLOAD, payload)))
    }

    /// An envelope around a signature that somebody made over [`pae`] of [`IN_TOTO_PAYLOAD`] and the payload.
    pub(crate) fn with_signature(payload: &[u8], keyid: String, signature: &[u8]) -> Self {
        Self {
            payload_type: IN_TOTO_PAYLOAD.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![EnvelopeSignature { keyid, sig: STANDARD.encode(signature) }],
        }
    }

    /// Payload, and the key ids and bytes of its signatures, none of them checked.
    pub(crate) fn open(&self, path: &Path) -> Result<Opened<'_>, RegistryError> {
        if self.payload_type != IN_TOTO_PAYLOAD {
            return Err(RegistryError::field(path, "payloadType", IN_TOTO_PAYLOAD, &self.payload_type));
        }
        let decode = |field: &str, text: &str| {
            STANDARD.decode(text).map_err(|_| RegistryError::field(path, field, "base64", text))
        };
        if self.signatures.is_empty() || self.signatures.len() > SIGNATURES_CAP {
            let expected = format!("1 to {SIGNATURES_CAP}");
            return Err(RegistryError::field(path, "signatures", expected, self.signatures.len()));
        }
        let signatures = self.signatures.iter().map(|s| Ok((s.keyid.as_str(), decode("signatures.sig", &s.sig)?)));
        Ok((decode("payload", &self.payload)?, signatures.collect::<Result<_, RegistryError>>()?))
    }

    /// The payload, if one of the signatures is by `key`.
    ///
    /// # Errors
    /// [`RegistryError::Field`], [`RegistryError::WrongSigner`].
    pub fn verify(&self, path: &Path, key: &Ed25519PublicKey) -> Result<Vec<u8>, RegistryError> {
        let (payload, signatures) = self.open(path)?;
        let message = pae(IN_TOTO_PAYLOAD, &payload);
        if signatures.iter().any(|(_, signature)| key.verify(&message, signature).is_ok()) {
            return Ok(payload);
        }
        let hints: Vec<&str> = signatures.iter().map(|(keyid, _)| *keyid).collect();
        Err(RegistryError::WrongSigner {
            path: path.to_owned(),
            expected: key.did_key(),
            found: format!("none that holds (key ids {hints:?})"),
        })
    }

    /// The `did:key` that the first signature claims to be by: for a reader who only wants to know whose it says it is.
    pub fn claimed_key(&self) -> Option<Ed25519PublicKey> {
        Ed25519PublicKey::from_did_key(&self.signatures.first()?.keyid).ok()
    }
}

/// Pre-authentication encoding: what is signed.
pub(crate) fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's text.
    #[test]
    fn the_encoding_is_that_of_the_protocol() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn only_the_signers_payload_passes() {
        let (key, path) = (Ed25519Key::demo("operator"), Path::new("run.dsse.json"));
        let envelope = Envelope::sign(b"{}", &key);
        assert_eq!(envelope.verify(path, &key.public()).unwrap(), b"{}");
        assert_eq!(envelope.claimed_key(), Some(key.public()));
        let refused = envelope.verify(path, &Ed25519Key::demo("other").public()).unwrap_err().to_string();
        assert!(refused.contains("expected one by did:key:z6Mk"), "{refused}");
        let mut changed = envelope.clone();
        changed.payload = STANDARD.encode(b"[]");
        assert!(changed.verify(path, &key.public()).is_err());
        let mut retyped = envelope.clone();
        retyped.payload_type = "text/plain".to_owned();
        assert!(retyped.verify(path, &key.public()).is_err());
        let mut bare = envelope;
        bare.signatures.clear();
        assert!(bare.verify(path, &key.public()).is_err());
    }
}
