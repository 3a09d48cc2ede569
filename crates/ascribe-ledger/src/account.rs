//! Who is paid: CAIP-10 account identifiers, and EVM addresses with their EIP-55 checksum. Keys never live here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha3::{Digest as _, Keccak256};

use crate::LedgerError;

/// A 20-byte EVM address. Prints in EIP-55 mixed case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EvmAddress(pub [u8; 20]);

impl EvmAddress {
    /// `0x` and 40 hex digits in EIP-55 mixed case: a letter is upper case when its nibble of `keccak256(lower-case hex)` is at least 8.
    ///
    /// Cost: one keccak. A payout of a million payees prints some ten million addresses, so no allocation and no formatter is in the way.
    pub fn text(&self) -> [u8; 42] {
        let mut text = [0u8; 42];
        text[..2].copy_from_slice(b"0x");
        put_hex(&self.0, &mut text[2..]);
        let hash = Keccak256::digest(&text[2..]);
        for (idx, letter) in text[2..].iter_mut().enumerate() {
            let nibble = (hash[idx / 2] >> (if idx % 2 == 0 { 4 } else { 0 })) & 0xf;
            if nibble >= 8 {
                letter.make_ascii_uppercase();
            }
        }
        text
    }
}

impl fmt::Display for EvmAddress {
    /// [`EvmAddress::text`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).map_err(|_| fmt::Error)?)
    }
}

/// Lower-case hex digits of `bytes` into `out`, which is twice as long.
pub(crate) fn put_hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

impl FromStr for EvmAddress {
    type Err = LedgerError;

    /// `0x` and 40 hex digits, either in one case (no checksum) or with the right EIP-55 checksum.
    fn from_str(text: &str) -> Result<Self, LedgerError> {
        let bad = |why| LedgerError::BadAccount { found: text.chars().take(160).collect(), why };
        let digits = text.strip_prefix("0x").ok_or_else(|| bad("an EVM address starts with 0x"))?;
        let mut bytes = [0u8; 20];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| bad("an EVM address has 40 hex digits"))?;
        let address = Self(bytes);
        let has = |test: fn(&char) -> bool| digits.chars().any(|letter| test(&letter));
        let mixed = has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase);
        if mixed && address.text() != text.as_bytes() {
            return Err(bad("the EIP-55 checksum is wrong: a letter was mistyped"));
        }
        Ok(address)
    }
}

/// A CAIP-10 account: `namespace:reference:address`. EVM addresses are kept checksummed, so equal accounts are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caip10(String);

impl Caip10 {
    /// The whole identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Chain id and address when the namespace is `eip155` and the chain id fits 64 bits.
    pub fn evm(&self) -> Option<(u64, EvmAddress)> {
        let (chain, address) = self.0.strip_prefix("eip155:")?.split_once(':')?;
        // The checksum was checked when the text was taken in.
        let mut bytes = [0u8; 20];
        hex::decode_to_slice(address.strip_prefix("0x")?, &mut bytes).ok()?;
        Some((chain.parse().ok()?, EvmAddress(bytes)))
    }

    /// The IBAN when the namespace is `iban` (`iban:DE:DE89…`, the reference being the country).
    pub fn iban(&self) -> Option<&str> {
        self.0.strip_prefix("iban:")?.split_once(':').map(|(_, iban)| iban)
    }
}

impl fmt::Display for Caip10 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Caip10 {
    type Err = LedgerError;

    /// The grammar of CAIP-2 and CAIP-10; for `eip155` also a decimal chain id and a well-formed address.
    fn from_str(text: &str) -> Result<Self, LedgerError> {
        let bad = |why| LedgerError::BadAccount { found: text.chars().take(160).collect(), why };
        let mut parts = text.splitn(3, ':');
        let (Some(namespace), Some(reference), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("expected CAIP-10, namespace:reference:address"));
        };
        let all = |part: &str, extra: &[u8]| part.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b));
        let lower = !namespace.bytes().any(|b| b.is_ascii_uppercase());
        if !(3..=8).contains(&namespace.len()) || !all(namespace, b"-") || !lower {
            return Err(bad("a CAIP-10 namespace has 3 to 8 of a-z, 0-9 and -"));
        }
        if !(1..=32).contains(&reference.len()) || !all(reference, b"-_") {
            return Err(bad("a CAIP-10 reference has 1 to 32 of a-z, A-Z, 0-9, - and _"));
        }
        if !(1..=128).contains(&address.len()) || !all(address, b"-.%") {
            return Err(bad("a CAIP-10 address has 1 to 128 of a-z, A-Z, 0-9, -, . and %"));
        }
        if namespace == "iban" {
            if !address.starts_with(reference) || reference.len() != 2 {
                return Err(bad("the reference of an iban account is the IBAN's country"));
            }
            crate::payout::pain001::check_iban(address)?;
        }
        if namespace != "eip155" {
            return Ok(Self(text.to_owned()));
        }
        let canonical = crate::amount::parse_integer(reference).is_some_and(|chain| chain <= u128::from(u64::MAX));
        if !canonical {
            return Err(bad("an eip155 reference is a decimal chain id"));
        }
        let address: EvmAddress = address.parse()?;
        Ok(Self(format!("eip155:{reference}:{address}")))
    }
}

impl Serialize for Caip10 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Caip10 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of EIP-55.
    #[test]
    fn eip55_vectors() {
        for text in [
            "0x52908400098527886E0F7030069857D2E4169EE7",
            "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
            "0xde709f2102306220921060314715629080e2fb77",
            "0x27b1fdb04752bbc536007a920d24acb045561c26",
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
            "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        ] {
            let address: EvmAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(text.to_lowercase().parse::<EvmAddress>().unwrap(), address);
        }
        let mistyped = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD".parse::<EvmAddress>().unwrap_err();
        assert!(mistyped.to_string().contains("EIP-55"), "{mistyped}");
    }

    #[test]
    fn caip10_is_canonical() {
        let lower: Caip10 = "eip155:1:0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap();
        assert_eq!(lower.as_str(), "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed");
        assert_eq!(lower.evm().map(|(chain, _)| chain), Some(1));
        // Examples of the CAIP-10 text.
        for text in [
            "bip122:000000000019d6689c085ae165831e93:128Lkh3S7CkDTBZ8W7BbpsN3YYizJMp8p6",
            "cosmos:cosmoshub-3:cosmos1t2uflqwqe0fsj0shcfkrvpukewcw40yjj6hdc0",
            "polkadot:b0a8d493285c2df73290dfb7e61f870f:5hmuyxw9xdgbpptgypokw4thfyoe3ryenebr381z9iaegmfy",
        ] {
            let account: Caip10 = text.parse().unwrap();
            assert_eq!((account.as_str(), account.evm()), (text, None));
        }
        for text in ["", "eip155", "eip155:1", "eip155:1:0x12", "eip155:01:0xde709f2102306220921060314715629080e2fb77"]
        {
            assert!(text.parse::<Caip10>().is_err(), "{text:?}");
        }
        for text in ["EIP155:1:x", "ab:1:x", "cosmos:a b:x", "cosmos:a:x\ny", "cosmos:a:", "cosmos:a:x:y"] {
            assert!(text.parse::<Caip10>().is_err(), "{text:?}");
        }
    }
}
