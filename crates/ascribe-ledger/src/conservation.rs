//! The proof that nothing was made or lost: the pool equals the sum of all accounts, to the last sub-unit.

use crate::amount::SubUnits;
use crate::error::LedgerError;
use crate::journal::Journal;
use crate::settle::PayoutRow;
use crate::transfer::{Account, Phase};

/// Where the pool went, in sub-units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conservation {
    /// Paid in.
    pub pool: SubUnits,
    /// Reserved for payees or paid to them.
    pub settled: SubUnits,
    /// Owed to payees and carried.
    pub carried: SubUnits,
    /// Not attributed.
    pub unattributed: SubUnits,
    /// Left over by floors.
    pub dust: SubUnits,
    /// Claimed by no event.
    pub unspent: SubUnits,
}

impl Conservation {
    /// Adds the books up by three routes that share no sums: the pool against the accounts, all debits and
    /// credits against the transfers, and the payout rows against the accounts.
    ///
    /// # Errors
    /// [`LedgerError::NotConserved`] with the sum that fails. [`LedgerError::Overflow`].
    pub fn of(journal: &Journal, rows: &[PayoutRow]) -> Result<Self, LedgerError> {
        let mut found = Self {
            pool: journal.run().policy.pool.sub_units()?,
            settled: SubUnits::ZERO,
            carried: SubUnits::ZERO,
            unattributed: journal.available(&Account::Unattributed),
            dust: journal.available(&Account::Dust),
            unspent: journal.available(&Account::Pool),
        };
        for (account, balance) in journal.balances() {
            if matches!(account, Account::Payable(_)) {
                found.settled = found.settled.plus(balance.debits_posted)?.plus(balance.debits_pending)?;
                found.carried = found.carried.plus(balance.available(false))?;
            }
        }
        check("the pool and the accounts", found.pool, found.total()?)?;
        let (moved, debits, credits) = sides(journal)?;
        check("transfers and debits", moved, debits)?;
        check("transfers and credits", moved, credits)?;
        let (mut settled, mut carried) = (SubUnits::ZERO, SubUnits::ZERO);
        for row in rows {
            settled = settled.plus(row.amount.sub_units()?)?;
            carried = carried.plus(row.carried)?;
        }
        check("settled money and payout rows", found.settled, settled)?;
        check("carried money and payout rows", found.carried, carried)?;
        Ok(found)
    }

    /// Sum of everything but the pool.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn total(&self) -> Result<SubUnits, LedgerError> {
        self.settled.plus(self.carried)?.plus(self.unattributed)?.plus(self.dust)?.plus(self.unspent)
    }

    /// True when every sub-unit of the pool is accounted for.
    pub fn holds(&self) -> bool {
        self.total() == Ok(self.pool)
    }
}

fn check(what: &'static str, expected: SubUnits, found: SubUnits) -> Result<(), LedgerError> {
    if expected == found {
        return Ok(());
    }
    Err(LedgerError::NotConserved { what, expected: expected.0, found: found.0 })
}

/// Sums over the books: what the done transfers moved, and what all accounts were debited and credited.
fn sides(journal: &Journal) -> Result<(SubUnits, SubUnits, SubUnits), LedgerError> {
    let mut moved = SubUnits::ZERO;
    for transfer in journal.transfers() {
        if matches!(transfer.phase, Phase::Posted | Phase::PostPending { .. }) {
            moved = moved.plus(transfer.amount)?;
        }
    }
    let (mut debits, mut credits) = (SubUnits::ZERO, SubUnits::ZERO);
    for (_, balance) in journal.balances() {
        debits = debits.plus(balance.debits_posted)?;
        credits = credits.plus(balance.credits_posted)?;
    }
    Ok((moved, debits, credits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::toy_run;
    use crate::transfer::{Memo, Transfer, TransferId};

    fn journal(funded: u128) -> Journal {
        let mut journal = Journal::new(toy_run("1.00 USD", 1_000_000, 0)).unwrap();
        let (debit, credit) = (Account::Cash, Account::Pool);
        let id = TransferId([1; 16]);
        let amount = SubUnits(funded);
        journal.post(Transfer { id, debit, credit, amount, phase: Phase::Posted, memo: Memo::Fund }).unwrap();
        journal
    }

    #[test]
    fn one_sub_unit_too_few_shows() {
        assert!(Conservation::of(&journal(100_000_000), &[]).unwrap().holds());
        let error = Conservation::of(&journal(99_999_999), &[]).unwrap_err();
        let what = "the pool and the accounts";
        assert_eq!(error, LedgerError::NotConserved { what, expected: 100_000_000, found: 99_999_999 });
    }

    #[test]
    fn a_row_that_the_books_do_not_know_shows() {
        let row = PayoutRow {
            owner: "Ada".into(),
            account: None,
            amount: "0.01 USD".parse().unwrap(),
            responses: 1,
            datasets: 1,
            carried: SubUnits::ZERO,
        };
        let error = Conservation::of(&journal(100_000_000), &[row]).unwrap_err();
        assert!(error.to_string().contains("settled money and payout rows"), "{error}");
    }
}
