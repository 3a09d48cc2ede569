//! Ed25519 keys: signing, strict checking, and their spelling as `did:key`, PEM and hexadecimal.
//!
//! Sources: RFC 8032; the multicodec `ed25519-pub` (0xed 0x01) and base58btc multibase of `did:key`; RFC 8410 for PEM.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::error::TlogError;

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_LEN_BYTES: usize = 64;

const DID_KEY_PREFIX: &str = "did:key:z";

/// Multicodec of an Ed25519 public key, as an unsigned varint.
const ED25519_CODEC: [u8; 2] = [0xed, 0x01];

/// A `did:key` of Ed25519 has 48 base58 digits; decoding is quadratic, so more is not even tried.
const DID_KEY_CAP_BYTES: usize = 64;

/// What RFC 8410 puts before the 32 bytes of a public key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// 32 bytes of the operating system's randomness, wiped when dropped: the stuff of new keys and salts.
///
/// # Errors
/// [`TlogError::Randomness`].
pub fn random_bytes() -> Result<Zeroizing<[u8; 32]>, TlogError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut()).map_err(|error| TlogError::Randomness { reason: error.to_string() })?;
    Ok(bytes)
}

/// A secret Ed25519 key. Its bytes are wiped when it is dropped, and it never prints them.
pub struct Ed25519Key(SigningKey);

impl Ed25519Key {
    /// A new key from the operating system's randomness.
    ///
    /// # Errors
    /// [`TlogError::Randomness`].
    pub fn generate() -> Result<Self, TlogError> {
        Ok(Self::from_seed(&*random_bytes()?))
    }

    /// The key of a 32-byte seed (RFC 8032's secret key).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The demo key of a party: seed `SHA-256("ascribe demo ed25519 key v1: " ‖ party)`.
    ///
    /// Anybody can derive it: it shows how things are checked and proves nothing about the party.
    pub fn demo(party: &str) -> Self {
        let seed = Zeroizing::new(
            Sha256::new().chain_update(b"ascribe demo ed25519 key v1: ").chain_update(party).finalize().into(),
        );
        Self::from_seed(&seed)
    }

    /// The seed, for whoever writes a key file.
    pub(crate) fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> Ed25519PublicKey {
        Ed25519PublicKey(self.0.verifying_key())
    }

    /// Signs a message (RFC 8032, pure Ed25519). The same key and message give the same bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Key({})", self.public().did_key())
    }
}

/// A public Ed25519 key: a point of the curve, and none of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ed25519PublicKey(VerifyingKey);

impl Ed25519PublicKey {
    /// The key of 32 bytes.
    ///
    /// # Errors
    /// [`TlogError::BadKey`] for what is no point, and for the points of small order, under which anything verifies.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, TlogError> {
        let bad = |found: &str| TlogError::BadKey { expected: "an Ed25519 public key", found: found.to_owned() };
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| bad("32 bytes that are no point of the curve"))?;
        if key.is_weak() {
            return Err(bad("a point of small order"));
        }
        Ok(Self(key))
    }

    /// The 32 bytes of RFC 8032.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Checks a signature strictly: no malleable twin, no point of small order.
    ///
    /// # Errors
    /// [`TlogError::BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), TlogError> {
        let signature = Signature::from_slice(signature).ok();
        match signature.map(|signature| self.0.verify_strict(message, &signature)) {
            Some(Ok(())) => Ok(()),
            _ => Err(TlogError::BadSignature { key: self.did_key() }),
        }
    }

    /// `did:key:z6Mk…`.
    pub fn did_key(&self) -> String {
        let bytes = [&ED25519_CODEC[..], &self.to_bytes()].concat();
        format!("{DID_KEY_PREFIX}{}", bs58::encode(bytes).into_string())
    }

    /// The part after `did:key:`, which is also the fragment of its verification method.
    pub fn multibase(&self) -> String {
        self.did_key().split_off("did:key:".len())
    }

    /// Reads a `did:key` of an Ed25519 key.
    ///
    /// # Errors
    /// [`TlogError::BadKey`].
    pub fn from_did_key(text: &str) -> Result<Self, TlogError> {
        let bad = || TlogError::BadKey {
            expected: "did:key:z6Mk… of an Ed25519 key",
            found: format!("{:?}", text.chars().take(80).collect::<String>()),
        };
        let digits = text.strip_prefix(DID_KEY_PREFIX).filter(|d| d.len() <= DID_KEY_CAP_BYTES).ok_or_else(bad)?;
        let bytes = bs58::decode(digits).into_vec().map_err(|_| bad())?;
        let key = bytes.strip_prefix(&ED25519_CODEC).and_then(|key| <[u8; 32]>::try_from(key).ok()).ok_or_else(bad)?;
        Self::from_bytes(&key)
    }

    /// The key as PEM (`SubjectPublicKeyInfo`), for OpenSSL and its relatives.
    pub fn to_pem(&self) -> String {
        let body = STANDARD.encode([&SPKI_PREFIX[..], &self.to_bytes()].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }
}

impl fmt::Debug for Ed25519PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519PublicKey({})", self.did_key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        hex::decode(text).unwrap()
    }

    /// RFC 8032 §7.1, test 2.
    #[test]
    fn signs_as_the_rfc_does() {
        let seed = unhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let key = Ed25519Key::from_seed(&seed.try_into().unwrap());
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(hex::encode(key.public().to_bytes()), public);
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(hex::encode(key.sign(&[0x72])), signature);
        key.public().verify(&[0x72], &unhex(signature)).unwrap();
        assert!(key.public().verify(&[0x73], &unhex(signature)).is_err());
        assert!(key.public().verify(&[0x72], &unhex(signature)[..63]).is_err());
    }

    /// The malleable twin: s + L satisfies the equation and is refused.
    #[test]
    fn one_message_has_one_signature() {
        let key = Ed25519Key::demo("log");
        let mut twin = key.sign(b"message");
        let order = unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let mut carry = 0;
        for (byte, add) in twin[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        assert!(key.public().verify(b"message", &twin).is_err());
    }

    /// The first example of the did:key method's text.
    #[test]
    fn did_key_reads_back() {
        let text = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp";
        let key = Ed25519PublicKey::from_did_key(text).unwrap();
        assert_eq!(key.did_key(), text);
        assert_eq!(hex::encode(key.to_bytes()), "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29");
        for bad in ["", "did:key:z", "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme", &text[..50]] {
            assert!(Ed25519PublicKey::from_did_key(bad).is_err(), "{bad}");
        }
        assert!(Ed25519PublicKey::from_did_key(&format!("did:key:z{}", "1".repeat(100_000))).is_err());
    }

    #[test]
    fn weak_keys_are_refused() {
        // The neutral element: under it one signature verifies every message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert!(Ed25519PublicKey::from_bytes(&neutral).unwrap_err().to_string().contains("small order"));
    }

    #[test]
    fn a_secret_key_does_not_print() {
        let key = Ed25519Key::from_seed(&[7; 32]);
        assert!(!format!("{key:?}").contains("0707"));
    }
}
