//! Settlement: whole minor units of each balance are reserved for payment, the rest is carried. How a payment is
//! written down for a bank or a chain is in `payout`.

use std::collections::{BTreeMap, BTreeSet};

use crate::account::Caip10;
use crate::amount::{Money, SUB_UNITS_PER_MINOR, SubUnits};
use crate::error::LedgerError;
use crate::journal::Journal;
use crate::transfer::{Account, Memo, Payee, Phase, Transfer, TransferId};

/// What became of a payee's balance. Follows from the row, the minimum and the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayoutStatus {
    /// Whole units are reserved or paid.
    Paid,
    /// The balance is below the minimum, or below one minor unit.
    BelowMinimum,
    /// The licence names no account.
    NoAccount,
}

/// One payee's line of the payout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayoutRow {
    /// The owner.
    pub owner: String,
    /// Where to pay.
    pub account: Option<Caip10>,
    /// Reserved or paid in this run.
    pub amount: Money,
    /// Responses that earned.
    pub responses: u32,
    /// Datasets that earned.
    pub datasets: u32,
    /// What stays on the books.
    pub carried: SubUnits,
}

impl PayoutRow {
    /// Why the row pays what it pays.
    pub fn status(&self) -> PayoutStatus {
        match (&self.account, self.amount.minor) {
            (None, _) => PayoutStatus::NoAccount,
            (Some(_), 0) => PayoutStatus::BelowMinimum,
            (Some(_), _) => PayoutStatus::Paid,
        }
    }
}

/// Reserves `⌊balance/10⁶⌋` minor units for every payee with an account and at least the minimum, as pending transfers.
///
/// Pending, because writing a payout file pays nobody: [`Journal::resolve`] posts a transfer once the money has moved, or
/// voids it. Settling again finds nothing left to reserve. Returns one row per payee, sorted by owner and account.
///
/// # Errors
/// What [`Journal::post`] refuses.
pub fn settle(journal: &mut Journal) -> Result<Vec<PayoutRow>, LedgerError> {
    let minimum = journal.run().policy.minimum_minor.max(1);
    let payables: Vec<Account> = journal.balances().map(|(account, _)| account.clone()).collect();
    for account in payables {
        let Account::Payable(Payee { owner, account: Some(address) }) = &account else {
            continue;
        };
        let minor = journal.available(&account).minor_floor();
        if minor < minimum {
            continue;
        }
        let id = TransferId::derive(&journal.run_id(), &format!("settle/{address}/{owner}"));
        // At most the balance, so it cannot overflow.
        let amount = SubUnits(minor * SUB_UNITS_PER_MINOR);
        let (phase, memo) = (Phase::Pending, Memo::Settlement);
        journal.post(Transfer { id, debit: account.clone(), credit: Account::Cash, amount, phase, memo })?;
    }
    payout_rows(journal)
}

/// The payout rows that a journal implies. `settle` returns these; an audit calls it on the journal it has read.
///
/// # Errors
/// [`LedgerError::Overflow`].
pub fn payout_rows(journal: &Journal) -> Result<Vec<PayoutRow>, LedgerError> {
    let mut responses: BTreeMap<&Payee, BTreeSet<u32>> = BTreeMap::new();
    let mut datasets: BTreeMap<&Payee, BTreeSet<&str>> = BTreeMap::new();
    for transfer in journal.transfers() {
        if let (Account::Payable(payee), Memo::Accrual { response, dataset }) = (&transfer.credit, &transfer.memo) {
            responses.entry(payee).or_default().insert(*response);
            datasets.entry(payee).or_default().insert(dataset);
        }
    }
    let count = |len: usize| u32::try_from(len).map_err(|_| LedgerError::Overflow { what: "a count of responses" });
    let mut rows = Vec::new();
    for (account, balance) in journal.balances() {
        let Account::Payable(payee) = account else {
            continue;
        };
        let settled = balance.debits_posted.plus(balance.debits_pending)?;
        rows.push(PayoutRow {
            owner: payee.owner.clone(),
            account: payee.account.clone(),
            amount: Money { minor: settled.minor_floor(), currency: journal.currency() },
            responses: count(responses.get(payee).map_or(0, BTreeSet::len))?,
            datasets: count(datasets.get(payee).map_or(0, BTreeSet::len))?,
            carried: balance.available(false),
        });
    }
    Ok(rows)
}
