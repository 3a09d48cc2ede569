//! `splits-v2.json`: the struct of a 0xSplits V2 split. The contract pays `⌊pot·allocation/total⌋`, which is our own rule.

use std::io::{self, Write};

use crate::error::LedgerError;
use crate::payout::chain::ChainAmounts;

/// Writes `{recipients, allocations, totalAllocation, distributionIncentive}`; integers are strings, recipients ascend.
///
/// Allocations are the amounts of this run, so whoever funds the split with their sum pays exactly these.
///
/// # Errors
/// [`LedgerError::Overflow`] when the total passes 128 bits; the writer's, as [`LedgerError::Unwritable`].
pub fn write_splits_v2(amounts: &ChainAmounts, out: &mut dyn Write) -> Result<(), LedgerError> {
    let total = amounts.total()?;
    put(amounts, total, out).map_err(|error| LedgerError::Unwritable { file: "splits-v2.json", why: error.to_string() })
}

fn put(amounts: &ChainAmounts, total: u128, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{\n  \"recipients\": [")?;
    for (idx, (account, _)) in amounts.amounts.iter().enumerate() {
        write!(out, "{}\n    \"{account}\"", if idx == 0 { "" } else { "," })?;
    }
    out.write_all(b"\n  ],\n  \"allocations\": [")?;
    for (idx, (_, amount)) in amounts.amounts.iter().enumerate() {
        write!(out, "{}\n    \"{amount}\"", if idx == 0 { "" } else { "," })?;
    }
    write!(out, "\n  ],\n  \"totalAllocation\": \"{total}\",\n  \"distributionIncentive\": 0\n}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payout::chain::tests::toy;

    #[test]
    fn the_allocations_are_the_amounts() {
        let mut bytes = Vec::new();
        write_splits_v2(&toy(&[(1, 5), (2, u128::from(u64::MAX))]), &mut bytes).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["allocations"], serde_json::json!(["5", "18446744073709551615"]));
        assert_eq!(value["totalAllocation"], "18446744073709551620");
        assert_eq!(value["recipients"][0], crate::EvmAddress([1; 20]).to_string());
        let over = write_splits_v2(&toy(&[(1, u128::MAX), (2, 1)]), &mut bytes);
        assert!(matches!(over, Err(LedgerError::Overflow { .. })));
    }
}
