//! What one chain pays: rows reduced to addresses and amounts, the common input of all on-chain formats.

use std::collections::BTreeMap;

use crate::account::{Caip10, EvmAddress};
use crate::error::LedgerError;
use crate::payout::merkle::{PayoutLeaf, PayoutTree};
use crate::settle::PayoutRow;

/// Amounts of one token on one chain, by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainAmounts {
    /// Chain id.
    pub chain_id: u64,
    /// The token's contract.
    pub token: EvmAddress,
    /// Decimals of the token: amounts are in its smallest unit.
    pub decimals: u8,
    /// Positive amounts, ascending by address, each address once.
    pub amounts: Vec<(EvmAddress, u128)>,
}

impl ChainAmounts {
    /// What `rows` pay to accounts on `chain_id`, in units of a token of `decimals` decimals. Owners who share an account share a line.
    ///
    /// # Errors
    /// [`LedgerError::EmptyTree`] when nobody is paid there; [`LedgerError::TokenDecimals`] for fewer decimals than the currency
    /// has, which could not say every amount; [`LedgerError::Overflow`].
    pub fn of_rows<'a>(
        rows: impl IntoIterator<Item = &'a PayoutRow>,
        chain_id: u64,
        token: EvmAddress,
        decimals: u8,
    ) -> Result<Self, LedgerError> {
        const WHAT: LedgerError = LedgerError::Overflow { what: "a chain amount" };
        let mut amounts: BTreeMap<EvmAddress, u128> = BTreeMap::new();
        for row in rows {
            let Some((chain, account)) = row.account.as_ref().and_then(Caip10::evm) else {
                continue;
            };
            if chain != chain_id || row.amount.minor == 0 {
                continue;
            }
            let expected = row.amount.currency.exponent();
            let more =
                decimals.checked_sub(expected).ok_or(LedgerError::TokenDecimals { expected, found: decimals })?;
            let scale = 10u128.checked_pow(more.into()).ok_or(WHAT)?;
            let amount = row.amount.minor.checked_mul(scale).ok_or(WHAT)?;
            let sum = amounts.entry(account).or_default();
            *sum = sum.checked_add(amount).ok_or(WHAT)?;
        }
        if amounts.is_empty() {
            return Err(LedgerError::EmptyTree);
        }
        Ok(Self { chain_id, token, decimals, amounts: amounts.into_iter().collect() })
    }

    /// Sum of all amounts.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn total(&self) -> Result<u128, LedgerError> {
        let sum = self.amounts.iter().try_fold(0u128, |sum, (_, amount)| sum.checked_add(*amount));
        sum.ok_or(LedgerError::Overflow { what: "the sum of chain amounts" })
    }

    /// The OpenZeppelin tree over `(account, token, amount)`; with an `earlier` tree its leaves are added, so that amounts are
    /// claimable so far.
    ///
    /// # Errors
    /// As [`PayoutTree::build`]; [`LedgerError::Overflow`].
    pub fn tree(&self, earlier: Option<&PayoutTree>) -> Result<PayoutTree, LedgerError> {
        let mut amounts: BTreeMap<(EvmAddress, EvmAddress), u128> = BTreeMap::new();
        for leaf in earlier.iter().flat_map(|tree| tree.leaves()) {
            amounts.insert((leaf.account, leaf.token), leaf.amount);
        }
        for (account, amount) in &self.amounts {
            let sum = amounts.entry((*account, self.token)).or_default();
            *sum = sum.checked_add(*amount).ok_or(LedgerError::Overflow { what: "a leaf's amount" })?;
        }
        let leaf = |((account, token), amount)| PayoutLeaf { account, token, amount };
        PayoutTree::build(amounts.into_iter().map(leaf).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Amounts by first byte of the address.
    pub(crate) fn toy(amounts: &[(u8, u128)]) -> ChainAmounts {
        let amounts = amounts.iter().map(|&(n, amount)| (EvmAddress([n; 20]), amount)).collect();
        ChainAmounts { chain_id: 31337, token: EvmAddress([0xee; 20]), decimals: 2, amounts }
    }

    fn row(account: u8, chain: u64, amount: &str) -> PayoutRow {
        PayoutRow {
            owner: "Ada".into(),
            account: Some(format!("eip155:{chain}:{}", EvmAddress([account; 20])).parse().unwrap()),
            amount: amount.parse().unwrap(),
            responses: 1,
            datasets: 1,
            carried: crate::SubUnits(0),
        }
    }

    #[test]
    fn one_chain_with_scaled_amounts() {
        let rows = [row(2, 1, "0.05 USD"), row(1, 1, "0.02 USD"), row(2, 1, "0.01 USD"), row(3, 9, "1.00 USD")];
        let token = EvmAddress([0xee; 20]);
        let found = ChainAmounts::of_rows(&rows, 1, token, 6).unwrap();
        assert_eq!(found.amounts, [(EvmAddress([1; 20]), 20_000), (EvmAddress([2; 20]), 60_000)]);
        assert_eq!(found.total().unwrap(), 80_000);
        assert_eq!(ChainAmounts::of_rows(&rows, 7, token, 6), Err(LedgerError::EmptyTree));
        let few = ChainAmounts::of_rows(&rows, 1, token, 1);
        assert_eq!(few, Err(LedgerError::TokenDecimals { expected: 2, found: 1 }));
        assert!(matches!(ChainAmounts::of_rows(&rows, 1, token, 60), Err(LedgerError::Overflow { .. })));
    }

    /// The two routes to a tree agree.
    #[test]
    fn the_tree_is_the_one_of_the_rows() {
        let rows = [row(2, 1, "0.05 USD"), row(1, 1, "0.02 USD"), row(2, 1, "0.01 USD")];
        let token = EvmAddress([0xee; 20]);
        let amounts = ChainAmounts::of_rows(&rows, 1, token, 2).unwrap();
        let first = PayoutTree::of_rows(None, &rows, 1, token).unwrap();
        assert_eq!(amounts.tree(None).unwrap(), first);
        assert_eq!(amounts.tree(Some(&first)).unwrap(), PayoutTree::of_rows(Some(&first), &rows, 1, token).unwrap());
    }
}
