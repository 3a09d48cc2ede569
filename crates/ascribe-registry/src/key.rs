//! secp256k1 keys and signatures in Ethereum's form. Never a key from an argument or a variable.

use std::fmt;
use std::path::Path;

use alloy_primitives::{Address, B256, keccak256};
use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};

use crate::error::RegistryError;
use crate::signer::Signer;

/// Bytes of a signature: r, s, v.
pub(crate) const SIGNATURE_LEN_BYTES: usize = 65;

/// Ethereum adds 27 to the recovery id.
const V_BASE: u8 = 27;

/// A key that signs licences.
pub struct LicenceKey(SigningKey);

impl LicenceKey {
    /// The demo key of a party: `keccak256("ascribe demo key v1: " ‖ party)`.
    ///
    /// Anybody can derive it, so its signature shows how a licence is checked and nothing about the named party. It
    /// must never receive money.
    pub fn demo(party: &str) -> Self {
        let secret = keccak256(format!("ascribe demo key v1: {party}"));
        let key = SigningKey::from_bytes(&secret.0.into());
        Self(key.expect("a keccak digest is a valid scalar but for odds of 2^-127"))
    }

    /// A key from its secret. The caller wipes its own copy; this one is wiped when it is dropped.
    ///
    /// # Errors
    /// Bytes that are no scalar of the group.
    pub(crate) fn from_secret(secret: &[u8; 32]) -> Result<Self, String> {
        let key = SigningKey::from_slice(secret);
        key.map(Self).map_err(|_| "expected a secret between 1 and the group order, found another number".to_owned())
    }

    /// The address that its signatures recover to.
    pub fn address(&self) -> Address {
        address_of(self.0.verifying_key())
    }

    /// Signs a digest (RFC 6979, low s): r ‖ s ‖ v. The same key and digest give the same bytes.
    pub(crate) fn sign_digest(&self, digest: B256) -> [u8; SIGNATURE_LEN_BYTES] {
        let (signature, recovery) =
            self.0.sign_prehash_recoverable(digest.as_slice()).expect("a 32-byte digest can always be signed");
        let mut bytes = [0; SIGNATURE_LEN_BYTES];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = V_BASE + recovery.to_byte();
        bytes
    }
}

impl Signer for LicenceKey {
    fn licensor(&self) -> String {
        self.address().to_checksum(None)
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, RegistryError> {
        let digest: [u8; 32] = payload.try_into().expect("what secp256k1 signs is a 32-byte digest");
        Ok(self.sign_digest(B256::from(digest)).to_vec())
    }
}

impl fmt::Debug for LicenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LicenceKey({})", self.address())
    }
}

/// Checks that `signature` is the one accepted signature form of `signer` over `digest`.
///
/// One message must have one signature: the high-s twin and every v but 27 and 28 are refused, though the mathematics
/// would accept them.
pub(crate) fn check_signature(
    path: &Path,
    digest: B256,
    signature: &[u8; SIGNATURE_LEN_BYTES],
    signer: Address,
) -> Result<(), RegistryError> {
    let wrong = |found: String| {
        let expected = signer.to_checksum(None);
        Err(RegistryError::WrongSigner { path: path.to_owned(), expected, found })
    };
    let (v, rs) = (signature[64], &signature[..64]);
    let recovery = match v {
        27 | 28 => RecoveryId::new(v == 28, false),
        found => return Err(RegistryError::RecoveryByte { path: path.to_owned(), found }),
    };
    let parsed = match Signature::from_slice(rs) {
        Ok(parsed) => parsed,
        Err(_) => return wrong("r or s outside the group order".to_owned()),
    };
    if parsed.normalize_s().is_some() {
        return Err(RegistryError::HighS { path: path.to_owned() });
    }
    match VerifyingKey::recover_from_prehash(digest.as_slice(), &parsed, recovery) {
        Ok(key) if address_of(&key) == signer => Ok(()),
        Ok(key) => wrong(address_of(&key).to_checksum(None)),
        Err(_) => wrong("no key that this signature recovers to".to_owned()),
    }
}

/// Last 20 bytes of keccak over the uncompressed point without its tag.
fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_encoded_point(false);
    Address::from_slice(&keccak256(&point.as_bytes()[1..])[12..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The high-s twin: s ↦ n − s with the other recovery byte. It recovers to the same key.
    fn twin(signature: &[u8; 65]) -> [u8; 65] {
        let parsed = Signature::from_slice(&signature[..64]).unwrap();
        let (r, s) = parsed.split_scalars();
        let mut twin = [0; 65];
        twin[..64].copy_from_slice(&Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap().to_bytes());
        twin[64] = 27 + 28 - signature[64];
        twin
    }

    #[test]
    fn address_of_the_key_one_is_the_known_one() {
        let mut secret = [0u8; 32];
        secret[31] = 1;
        let key = LicenceKey(SigningKey::from_bytes(&secret.into()).unwrap());
        assert_eq!(key.address().to_checksum(None), "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf");
    }

    #[test]
    fn one_signature_per_message() {
        let (key, path) = (LicenceKey::demo("somebody"), Path::new("l.json"));
        for message in 0..8u8 {
            let digest = keccak256([message]);
            let good = key.sign_digest(digest);
            assert_eq!(good, key.sign_digest(digest));
            check_signature(path, digest, &good, key.address()).unwrap();
            let error = check_signature(path, digest, &twin(&good), key.address()).unwrap_err();
            assert!(matches!(error, RegistryError::HighS { .. }), "{error}");
            for v in [0, 1, 26, 29, 255] {
                let mut bad = good;
                bad[64] = v;
                let error = check_signature(path, digest, &bad, key.address()).unwrap_err();
                assert_eq!(error.to_string(), format!("l.json: signature: expected v = 27 or 28, found v = {v}"));
            }
            let error = check_signature(path, keccak256([99]), &good, key.address()).unwrap_err();
            assert!(matches!(error, RegistryError::WrongSigner { .. }), "{error}");
            let error = check_signature(path, digest, &[27; 65], key.address()).unwrap_err();
            assert!(matches!(error, RegistryError::WrongSigner { .. }), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", LicenceKey::demo("somebody"));
        assert_eq!(shown, format!("LicenceKey({})", LicenceKey::demo("somebody").address()));
    }
}
