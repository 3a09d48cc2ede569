//! EIP-3009 `TransferWithAuthorization`: what a payer signs, and who signed it.

use ascribe_ledger::EvmAddress;
use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use sha3::{Digest as _, Keccak256};

use crate::error::BookError;

/// Type of the EIP-712 domain.
const DOMAIN_TYPE: &str = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
/// Type of the message.
const MESSAGE_TYPE: &str = "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,\
                            uint256 validBefore,bytes32 nonce)";

pub(crate) fn keccak(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Keccak256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// An integer as a word of the EVM.
pub(crate) fn word(value: u128) -> [u8; 32] {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&value.to_be_bytes());
    word
}

/// An address as a word of the EVM.
pub(crate) fn address_word(address: EvmAddress) -> [u8; 32] {
    let mut word = [0; 32];
    word[12..].copy_from_slice(&address.0);
    word
}

/// The EIP-712 domain of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDomain {
    /// The token's `name` in its domain.
    pub name: String,
    /// Its `version`.
    pub version: String,
    /// Chain.
    pub chain_id: u64,
    /// The token.
    pub token: EvmAddress,
}

impl TokenDomain {
    /// The domain separator, which the token also answers itself.
    pub fn separator(&self) -> [u8; 32] {
        keccak(&[
            &keccak(&[DOMAIN_TYPE.as_bytes()]),
            &keccak(&[self.name.as_bytes()]),
            &keccak(&[self.version.as_bytes()]),
            &word(self.chain_id.into()),
            &address_word(self.token),
        ])
    }
}

/// An authorisation: `value` of the token may move once from `from` to `to`, within a window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authorization {
    /// Payer.
    pub from: EvmAddress,
    /// Payee.
    pub to: EvmAddress,
    /// In the token's smallest unit.
    pub value: u128,
    /// Valid strictly after this moment.
    pub valid_after: u64,
    /// Valid strictly before this moment.
    pub valid_before: u64,
    /// Used once per payer and token.
    pub nonce: [u8; 32],
}

impl Authorization {
    /// What is signed: the EIP-712 digest.
    pub fn digest(&self, domain: &TokenDomain) -> [u8; 32] {
        let message = keccak(&[
            &keccak(&[MESSAGE_TYPE.as_bytes()]),
            &address_word(self.from),
            &address_word(self.to),
            &word(self.value),
            &word(self.valid_after.into()),
            &word(self.valid_before.into()),
            &self.nonce,
        ]);
        keccak(&[&[0x19, 0x01], &domain.separator(), &message])
    }

    /// Checks that the payer signed it. One message has one signature: the high-s twin and every v but 27 and 28 are refused.
    ///
    /// # Errors
    /// [`BookError::Payment`].
    pub fn check_signature(&self, domain: &TokenDomain, signature: &[u8; 65]) -> Result<(), BookError> {
        let reason = "invalid_exact_evm_payload_signature";
        let refuse = |why: String| BookError::Payment { reason, why };
        let v = signature[64];
        if v != 27 && v != 28 {
            return Err(refuse(format!("expected v = 27 or 28, found {v}")));
        }
        let parsed = Signature::from_slice(&signature[..64]).map_err(|_| refuse("r or s out of range".into()))?;
        if parsed.normalize_s().is_some() {
            return Err(refuse("expected the low s of two, found the high one".into()));
        }
        let key = VerifyingKey::recover_from_prehash(&self.digest(domain), &parsed, RecoveryId::new(v == 28, false));
        let found = key.map(|key| address_of(&key)).map_err(|_| refuse("no key gives this signature".into()))?;
        if found == self.from {
            Ok(())
        } else {
            Err(refuse(format!("expected the signer {}, found {found}", self.from)))
        }
    }
}

/// Last 20 bytes of keccak over the uncompressed point without its tag.
pub fn address_of(key: &VerifyingKey) -> EvmAddress {
    let hash = keccak(&[&key.to_encoded_point(false).as_bytes()[1..]]);
    let mut address = [0; 20];
    address.copy_from_slice(&hash[12..]);
    EvmAddress(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k256::ecdsa::SigningKey;

    /// The constant that EIP-3009 prints.
    #[test]
    fn type_hash_of_the_standard() {
        let expected = "7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267";
        assert_eq!(hex::encode(keccak(&[MESSAGE_TYPE.as_bytes()])), expected);
    }

    #[test]
    fn only_the_payers_own_signature_over_these_very_fields() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let token = EvmAddress([9; 20]);
        let domain = TokenDomain { name: "Test".into(), version: "1".into(), chain_id: 31337, token };
        let (from, to) = (address_of(key.verifying_key()), EvmAddress([3; 20]));
        let good = Authorization { from, to, value: 5, valid_after: 0, valid_before: 10, nonce: [1; 32] };
        let (signature, recovery) = key.sign_prehash_recoverable(&good.digest(&domain)).unwrap();
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + recovery.to_byte();
        good.check_signature(&domain, &bytes).unwrap();
        for bad in [
            Authorization { to: token, ..good },
            Authorization { value: 6, ..good },
            Authorization { valid_before: 11, ..good },
            Authorization { nonce: [2; 32], ..good },
            Authorization { from: to, ..good },
        ] {
            assert!(bad.check_signature(&domain, &bytes).is_err());
        }
        for other in [
            TokenDomain { chain_id: 1, ..domain.clone() },
            TokenDomain { name: "Tess".into(), ..domain.clone() },
            TokenDomain { version: "2".into(), ..domain.clone() },
            TokenDomain { token: to, ..domain.clone() },
        ] {
            assert!(good.check_signature(&other, &bytes).is_err());
        }
        let mut v = bytes;
        v[64] -= 27;
        assert!(good.check_signature(&domain, &v).is_err());
        assert!(good.check_signature(&domain, &[27; 65]).is_err());
    }
}
