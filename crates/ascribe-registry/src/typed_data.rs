//! EIP-712 typed data as wallets take it (`eth_signTypedData_v4`): what is signed offline, and read again with a signature.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::RegistryError;
use crate::files;
use crate::licence::{LicenceMessage, RegistryDomain, check_equal};
use crate::revocation::RevocationMessage;

/// What a wallet is asked to sign.
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
#[derive(Clone, Debug, PartialEq)]
pub enum Unsigned {
    /// A licence.
    Licence(LicenceMessage),
    /// A revocation.
    Revocation(RevocationMessage),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TypedData {
    types: Value,
    primary_type: String,
    domain: RegistryDomain,
    message: Value,
}

fn members(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(ty, name)| json!({ "name": name, "type": ty })).collect()
}

fn domain_members() -> Value {
    members(&[("string", "name"), ("string", "version"), ("uint256", "chainId"), ("bytes32", "salt")])
}

fn types_of(unsigned: &Unsigned) -> (&'static str, Value) {
    match unsigned {
        Unsigned::Licence(_) => {
            let licence = members(&[
                ("address", "licensor"),
                ("string", "dataset"),
                ("bytes32", "contentRoot"),
                ("uint64", "recordCount"),
                ("bytes32", "metadataSha256"),
                ("string", "licence"),
                ("bytes32", "termsSha256"),
                ("string[]", "permits"),
                ("string[]", "prohibits"),
                ("Payee[]", "payees"),
                ("uint64", "validFrom"),
                ("uint64", "validUntil"),
                ("uint256", "nonce"),
                ("bytes32", "supersedes"),
            ]);
            let payee = members(&[("string", "account"), ("uint32", "sharePpm")]);
            let types = json!({ "EIP712Domain": domain_members(), "Payee": payee, "DatasetLicence": licence });
            ("DatasetLicence", types)
        }
        Unsigned::Revocation(_) => {
            let revocation = members(&[
                ("bytes32", "licence"),
                ("uint64", "effectiveFrom"),
                ("string", "reason"),
                ("uint256", "nonce"),
            ]);
            let types = json!({ "EIP712Domain": domain_members(), "LicenceRevocation": revocation });
            ("LicenceRevocation", types)
        }
    }
}

/// The typed data of a message. 64-bit integers are decimal strings, which every wallet takes.
pub fn write(domain: &RegistryDomain, unsigned: &Unsigned) -> Value {
    let (primary_type, types) = types_of(unsigned);
    let message = match unsigned {
        Unsigned::Licence(message) => serde_json::to_value(message),
        Unsigned::Revocation(message) => serde_json::to_value(message),
    };
    let message = message.expect("messages are plain JSON");
    let data = TypedData { types, primary_type: primary_type.to_owned(), domain: domain.clone(), message };
    serde_json::to_value(data).expect("typed data is plain JSON")
}

/// Reads typed data that [`write()`] made, for the same registry.
///
/// # Errors
/// [`RegistryError::Json`], [`RegistryError::Field`] for other types or another domain.
pub fn read(path: &Path, domain: &RegistryDomain) -> Result<Unsigned, RegistryError> {
    let data: TypedData = files::parse_json(path, &files::read_small(path, "typed data")?)?;
    let unjson = |error: serde_json::Error| RegistryError::Json {
        path: path.to_owned(),
        reason: format!("message: {}", crate::error::clip(&error.to_string())),
    };
    let unsigned = match data.primary_type.as_str() {
        "DatasetLicence" => Unsigned::Licence(serde_json::from_value(data.message).map_err(unjson)?),
        "LicenceRevocation" => Unsigned::Revocation(serde_json::from_value(data.message).map_err(unjson)?),
        other => return Err(RegistryError::field(path, "primaryType", "DatasetLicence or LicenceRevocation", other)),
    };
    let json = |value: &Value| serde_json_canonicalizer::to_string(value).unwrap_or_default();
    // Other types would have been another signature: the types are part of what is signed.
    check_equal(path, "types", &json(&types_of(&unsigned).1), &json(&data.types))?;
    let domains = [domain, &data.domain].map(crate::licence::json);
    check_equal(path, "domain", &domains[0], &domains[1])?;
    Ok(unsigned)
}

/// Reads a signature as wallets print it: `0x`, then r, s and v in hex of either case.
///
/// # Errors
/// [`RegistryError::Field`].
pub fn parse_signature(path: &Path, text: &str) -> Result<[u8; 65], RegistryError> {
    let lower = text.trim().to_ascii_lowercase();
    crate::wire::from_hex(&lower).map_err(|reason| RegistryError::field(path, "signature", "65 bytes in hex", reason))
}
