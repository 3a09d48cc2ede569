//! `safe.csv`: the sheet that the CSV airdrop app of a Safe wallet imports. Decimal amounts are printed from integers.

use std::io::{self, Write};

use crate::amount::decimal;
use crate::payout::chain::ChainAmounts;

/// First line of the file.
pub const SAFE_CSV_HEADER: &str = "token_type,token_address,receiver,amount,id";

/// Writes one `erc20` line per address; the id stays empty, as the app wants it for fungible tokens.
///
/// # Errors
/// The writer's.
pub fn write_safe_csv(amounts: &ChainAmounts, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{SAFE_CSV_HEADER}")?;
    let token = amounts.token.to_string();
    for (account, amount) in &amounts.amounts {
        writeln!(out, "erc20,{token},{account},{},", decimal(*amount, amounts.decimals))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payout::chain::tests::toy;

    #[test]
    fn one_line_by_hand() {
        let mut bytes = Vec::new();
        write_safe_csv(&toy(&[(0x11, 1205)]), &mut bytes).unwrap();
        let token = crate::EvmAddress([0xee; 20]);
        let expected = format!("{SAFE_CSV_HEADER}\nerc20,{token},0x{},12.05,\n", "11".repeat(20));
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
