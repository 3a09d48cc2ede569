//! A transaction as bytes: RLP, the legacy form with its chain (EIP-155), calls of an EIP-3009 token.

use ascribe_ledger::EvmAddress;

use crate::x402::authorization::{Authorization, address_word, keccak, word};

/// First four bytes of a call.
pub fn selector(signature: &str) -> [u8; 4] {
    let hash = keccak(&[signature.as_bytes()]);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// A call of words.
pub fn call(signature: &str, words: &[[u8; 32]]) -> Vec<u8> {
    let mut data = selector(signature).to_vec();
    words.iter().for_each(|word| data.extend_from_slice(word));
    data
}

/// The call that moves the money.
pub fn transfer_call(what: &Authorization, signature: &[u8; 65]) -> Vec<u8> {
    let (mut r, mut s) = ([0; 32], [0; 32]);
    r.copy_from_slice(&signature[..32]);
    s.copy_from_slice(&signature[32..64]);
    let name = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)";
    let words = [
        address_word(what.from),
        address_word(what.to),
        word(what.value),
        word(what.valid_after.into()),
        word(what.valid_before.into()),
        what.nonce,
        word(signature[64].into()),
        r,
        s,
    ];
    call(name, &words)
}

/// A transaction before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTransaction {
    /// Of the sender.
    pub nonce: u64,
    /// In wei.
    pub gas_price: u128,
    /// Most gas it may use.
    pub gas_limit: u64,
    /// The contract.
    pub to: EvmAddress,
    /// The call.
    pub data: Vec<u8>,
    /// Chain.
    pub chain_id: u64,
}

impl LegacyTransaction {
    fn fields(&self) -> Vec<Vec<u8>> {
        vec![
            rlp_integer(self.nonce.into()),
            rlp_integer(self.gas_price),
            rlp_integer(self.gas_limit.into()),
            rlp_bytes(&self.to.0),
            rlp_integer(0),
            rlp_bytes(&self.data),
        ]
    }

    /// What its sender signs (EIP-155).
    pub fn digest(&self) -> [u8; 32] {
        let mut fields = self.fields();
        fields.extend([rlp_integer(self.chain_id.into()), rlp_integer(0), rlp_integer(0)]);
        keccak(&[&rlp_list(&fields)])
    }

    /// The signed bytes; `signature` is r ‖ s ‖ v with v of 27 or 28.
    pub fn signed(&self, signature: &[u8; 65]) -> Vec<u8> {
        let mut fields = self.fields();
        let v = u128::from(self.chain_id) * 2 + 35 + u128::from(signature[64].saturating_sub(27));
        fields.extend([rlp_integer(v), rlp_scalar(&signature[..32]), rlp_scalar(&signature[32..64])]);
        rlp_list(&fields)
    }
}

fn rlp_length(len: usize, offset: u8) -> Vec<u8> {
    if len < 56 {
        return vec![offset + len as u8];
    }
    let bytes: Vec<u8> = len.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
    let mut out = vec![offset + 55 + bytes.len() as u8];
    out.extend(bytes);
    out
}

fn rlp_bytes(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [byte] if *byte < 0x80 => vec![*byte],
        _ => [rlp_length(bytes.len(), 0x80), bytes.to_vec()].concat(),
    }
}

/// Big-endian without leading zeros.
fn rlp_scalar(bytes: &[u8]) -> Vec<u8> {
    let from = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    rlp_bytes(&bytes[from..])
}

fn rlp_integer(value: u128) -> Vec<u8> {
    rlp_scalar(&value.to_be_bytes())
}

fn rlp_list(fields: &[Vec<u8>]) -> Vec<u8> {
    let body = fields.concat();
    [rlp_length(body.len(), 0xc0), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k256::ecdsa::SigningKey;

    /// The selectors that are published with EIP-3009 tokens.
    #[test]
    fn known_selectors() {
        let call = transfer_call(
            &Authorization {
                from: EvmAddress([1; 20]),
                to: EvmAddress([2; 20]),
                value: 3,
                valid_after: 4,
                valid_before: 5,
                nonce: [6; 32],
            },
            &[27; 65],
        );
        assert_eq!((hex::encode(&call[..4]).as_str(), call.len()), ("e3ee160e", 4 + 9 * 32));
        assert_eq!(hex::encode(selector("authorizationState(address,bytes32)")), "e94a0102");
        assert_eq!(hex::encode(selector("balanceOf(address)")), "70a08231");
    }

    /// The worked example of EIP-155.
    #[test]
    fn the_example_of_the_standard() {
        let to: EvmAddress = "0x3535353535353535353535353535353535353535".parse().unwrap();
        let tx = LegacyTransaction {
            nonce: 9,
            gas_price: 20_000_000_000,
            gas_limit: 21_000,
            to,
            data: Vec::new(),
            chain_id: 1,
        };
        // The example sends one ether; ours never sends any, so its field is put in by hand.
        let mut fields = tx.fields();
        fields[4] = rlp_integer(1_000_000_000_000_000_000);
        let mut unsigned = fields.clone();
        unsigned.extend([rlp_integer(1), rlp_integer(0), rlp_integer(0)]);
        let digest = keccak(&[&rlp_list(&unsigned)]);
        assert_eq!(hex::encode(digest), "daf5a779ae972f972197303d7b574746c7ef83eadac0f2791ad23db92e4c8e53");
        let key = SigningKey::from_slice(&[0x46; 32]).unwrap();
        let (signature, recovery) = key.sign_prehash_recoverable(&digest).unwrap();
        fields.extend([
            rlp_integer(37 + u128::from(recovery.to_byte())),
            rlp_scalar(&signature.to_bytes()[..32]),
            rlp_scalar(&signature.to_bytes()[32..]),
        ]);
        let expected = "f86c098504a817c800825208943535353535353535353535353535353535353535880de0b6b3a76400008025a028ef61340bd9\
                        39bc2195fe537567866003e1a15d3c71ff63e1590620aa636276a067cbe9d8997f761aecb703304b3800ccf555c9f3dc64\
                        214b297fb1966a3b6d83";
        assert_eq!(hex::encode(rlp_list(&fields)), expected);
    }

    #[test]
    fn lengths() {
        assert_eq!(rlp_bytes(b"dog"), b"\x83dog");
        assert_eq!(rlp_bytes(&[0]), [0]);
        assert_eq!(rlp_bytes(&[]), [0x80]);
        assert_eq!(rlp_integer(1024), [0x82, 4, 0]);
        assert_eq!(&rlp_bytes(&[7; 56])[..3], [0xb8, 56, 7]);
        assert_eq!(&rlp_bytes(&[7; 1024])[..4], [0xb9, 4, 0, 7]);
        assert_eq!(rlp_list(&[rlp_bytes(b"cat"), rlp_bytes(b"dog")]), b"\xc8\x83cat\x83dog");
    }
}
