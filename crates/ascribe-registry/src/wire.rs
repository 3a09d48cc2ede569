//! How the values of a licence are spelt in JSON: one spelling each, every other is refused.

use ascribe_core::Digest;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::clip;
use crate::key::SIGNATURE_LEN_BYTES;
use crate::manifest::Payee;

/// `0x` and lower-case hex.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

/// Inverse of [`to_hex`].
pub(crate) fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let digits = text.strip_prefix("0x").filter(|digits| !digits.bytes().any(|b| b.is_ascii_uppercase()));
    match digits.map(|digits| hex::decode_to_slice(digits, &mut bytes)) {
        Some(Ok(())) => Ok(bytes),
        _ => Err(format!("expected 0x and {} lower-case hex digits, found {:?}", 2 * N, clip(text))),
    }
}

/// 32 bytes as hex.
pub(crate) mod hex32 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        from_hex(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A SHA-256 digest as a Solidity `bytes32`.
pub(crate) mod digest {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        hex32::serialize(&digest.0, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        hex32::deserialize(deserializer).map(Digest)
    }
}

/// A 65-byte signature as hex.
pub(crate) mod signature {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        bytes: &[u8; SIGNATURE_LEN_BYTES],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; SIGNATURE_LEN_BYTES], D::Error> {
        from_hex(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// An integer as a decimal string without sign or leading zeros.
pub(crate) mod decimal {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = text.parse::<u64>().ok().filter(|value| value.to_string() == text);
        value.ok_or_else(|| {
            D::Error::custom(format!("expected a decimal below 2^64 as a string, found {:?}", clip(&text)))
        })
    }
}

/// A licensor in its one spelling.
pub(crate) mod licensor {
    use super::*;
    use crate::licence::Licensor;

    pub(crate) fn serialize<L: Licensor, S: Serializer>(licensor: &L, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&licensor.spell())
    }

    pub(crate) fn deserialize<'de, L: Licensor, D: Deserializer<'de>>(deserializer: D) -> Result<L, D::Error> {
        L::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Payees under their Solidity member names.
pub(crate) mod payees {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct SolPayee {
        account: String,
        share_ppm: u32,
    }

    pub(crate) fn serialize<S: Serializer>(payees: &[Payee], serializer: S) -> Result<S::Ok, S::Error> {
        let spelt = |payee: &Payee| SolPayee { account: payee.account.clone(), share_ppm: payee.share_ppm };
        serializer.collect_seq(payees.iter().map(spelt))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Payee>, D::Error> {
        let spelt = Vec::<SolPayee>::deserialize(deserializer)?;
        Ok(spelt.into_iter().map(|payee| Payee { account: payee.account, share_ppm: payee.share_ppm }).collect())
    }
}
