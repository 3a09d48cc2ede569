//! Accounts that can be paid: CAIP-10 strings and Ethereum addresses in their one canonical spelling.

use std::path::Path;

pub use alloy_primitives::Address;

use crate::error::RegistryError;

/// CAIP-10 namespace of Ethereum-like chains.
const EVM_NAMESPACE: &str = "eip155";

/// Checks that `account` is a canonical CAIP-10 account id (`namespace:reference:address`).
///
/// For `eip155` the reference is a decimal chain id without leading zeros and the address carries its EIP-55 checksum:
/// two spellings of one payee would be two payees.
///
/// # Errors
/// [`RegistryError::Field`] naming `path` and `field`.
pub fn check_account(path: &Path, field: &str, account: &str) -> Result<(), RegistryError> {
    let refuse = |expected: String| Err(RegistryError::field(path, field, expected, format!("{account:?}")));
    let parts: Vec<&str> = account.split(':').collect();
    let &[namespace, reference, address] = parts.as_slice() else {
        return refuse("a CAIP-10 account, namespace:reference:address".to_owned());
    };
    let in_set = |text: &str, min: usize, max: usize, extra: &str| {
        (min..=max).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let lower = namespace.chars().all(|c| !c.is_ascii_uppercase());
    if !(in_set(namespace, 3, 8, "-") && lower && in_set(reference, 1, 32, "-_") && in_set(address, 1, 128, "-.%")) {
        return refuse("a CAIP-10 account, namespace:reference:address".to_owned());
    }
    if namespace != EVM_NAMESPACE {
        return Ok(());
    }
    if reference.parse::<u64>().is_ok_and(|chain| chain.to_string() == reference) {
        check_address(path, field, address).map(|_| ())
    } else {
        refuse("a decimal chain id without leading zeros".to_owned())
    }
}

/// Parses an address in its EIP-55 spelling.
pub(crate) fn check_address(path: &Path, field: &str, address: &str) -> Result<Address, RegistryError> {
    let parsed: Address = match address.strip_prefix("0x").map(|_| address.parse()) {
        Some(Ok(parsed)) => parsed,
        _ => return Err(RegistryError::field(path, field, "0x and 40 hex digits", format!("{address:?}"))),
    };
    let canonical = parsed.to_checksum(None);
    if canonical == address { Ok(parsed) } else { Err(RegistryError::field(path, field, canonical, address)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(account: &str) -> Result<(), String> {
        check_account(Path::new("m.json"), "payees[0].account", account).map_err(|error| error.to_string())
    }

    #[test]
    fn canonical_accounts_pass() {
        // First example of EIP-55 and two of the CAIP-10 page.
        assert_eq!(check("eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"), Ok(()));
        assert_eq!(check("bip122:000000000019d6689c085ae165831e93:128Lkh3S7CkDTBZ8W7BbpsN3YYizJMp8p6"), Ok(()));
        assert_eq!(check("cosmos:cosmoshub-3:cosmos1t2uflqwqe0fsj0shcfkrvpukewcw40yjj6hdc0"), Ok(()));
    }

    #[test]
    fn other_spellings_are_refused_with_the_right_one() {
        let lower = check("eip155:1:0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed").unwrap_err();
        assert!(lower.contains("expected 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"), "{lower}");
        for bad in [
            "",
            "eip155:1",
            "eip155:01:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "eip155:1:0x5a",
            "EIP155:1:0x",
            "a:b:c:d",
        ] {
            let message = check(bad).unwrap_err();
            assert!(message.starts_with("m.json: payees[0].account: expected "), "{message}");
        }
    }
}
