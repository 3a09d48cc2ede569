//! The double-entry journal: immutable transfers, each at most once, and the balances that follow from them.
//! Rules in the vocabulary of TigerBeetle. What the file looks like is in `journal_file`; who gets what is in `accrue`.

use std::collections::{BTreeMap, BTreeSet};

use ascribe_core::Digest;
use serde::{Deserialize, Serialize};

use crate::amount::{Currency, SubUnits};
use crate::error::LedgerError;
use crate::run::Run;
use crate::transfer::{Account, Phase, Transfer, TransferId};

/// What passed over an account, in sub-units. All four only grow, except that a resolution empties what it resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// Debits that are done.
    pub debits_posted: SubUnits,
    /// Credits that are done.
    pub credits_posted: SubUnits,
    /// Debits that are reserved.
    pub debits_pending: SubUnits,
    /// Credits that are reserved.
    pub credits_pending: SubUnits,
}

impl Balance {
    /// What the account holds and has not promised: of an asset debits less credits, of a liability the reverse, pending
    /// takings included, pending receipts not.
    pub fn available(&self, is_asset: bool) -> SubUnits {
        let (plus, minus, reserved) = if is_asset {
            (self.debits_posted, self.credits_posted, self.credits_pending)
        } else {
            (self.credits_posted, self.debits_posted, self.debits_pending)
        };
        // `post` refuses every transfer after which this would be negative.
        SubUnits(plus.0 - minus.0 - reserved.0)
    }
}

/// What `post` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The transfer is new and its balances changed.
    Posted,
    /// The very same transfer was there already; nothing changed.
    AlreadyThere,
}

/// A run's transfers in order, with the balances of all accounts. One currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    run: Run,
    run_id: Digest,
    transfers: Vec<Transfer>,
    by_id: BTreeMap<TransferId, usize>,
    resolved: BTreeSet<TransferId>,
    balances: BTreeMap<Account, Balance>,
}

impl Journal {
    /// An empty journal.
    ///
    /// # Errors
    /// Whatever [`Run::check`] refuses.
    pub fn new(run: Run) -> Result<Self, LedgerError> {
        run.check()?;
        let run_id = run.run_id()?;
        let (by_id, resolved, balances) = Default::default();
        Ok(Self { run, run_id, transfers: Vec::new(), by_id, resolved, balances })
    }

    /// What the run follows from.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Identity of the run.
    pub fn run_id(&self) -> Digest {
        self.run_id
    }

    /// Currency of every amount.
    pub fn currency(&self) -> Currency {
        self.run.policy.pool.currency
    }

    /// All transfers, in the order of posting.
    pub fn transfers(&self) -> &[Transfer] {
        &self.transfers
    }

    /// All accounts that a transfer has touched, sorted.
    pub fn balances(&self) -> impl Iterator<Item = (&Account, &Balance)> {
        self.balances.iter()
    }

    /// Balance of one account; zero when nothing has touched it.
    pub fn balance(&self, account: &Account) -> Balance {
        self.balances.get(account).copied().unwrap_or_default()
    }

    /// What `account` holds and has not promised.
    pub fn available(&self, account: &Account) -> SubUnits {
        self.balance(account).available(account.is_asset())
    }

    /// The transfer of that id.
    pub fn transfer(&self, id: &TransferId) -> Option<&Transfer> {
        self.by_id.get(id).map(|&idx| &self.transfers[idx])
    }

    /// True once a pending transfer has been posted or voided.
    pub fn is_resolved(&self, id: &TransferId) -> bool {
        self.resolved.contains(id)
    }

    /// Adds one transfer; all or nothing.
    ///
    /// The same transfer again is a no-op. No account may fall below zero, pending takings included.
    ///
    /// # Errors
    /// A reused id with other contents, an empty transfer, an overdraft, a resolution of something that is not pending,
    /// an overflow, a bad name. The journal is unchanged by a refused transfer.
    pub fn post(&mut self, transfer: Transfer) -> Result<Outcome, LedgerError> {
        if let Some(known) = self.transfer(&transfer.id) {
            if *known == transfer {
                return Ok(Outcome::AlreadyThere);
            }
            return Err(LedgerError::ReusedTransferId { id: transfer.id.to_string() });
        }
        let empty = |why| Err(LedgerError::EmptyTransfer { id: transfer.id.to_string(), why });
        if transfer.amount == SubUnits::ZERO {
            return empty("its amount is 0");
        }
        if transfer.debit == transfer.credit {
            return empty("it debits and credits the same account");
        }
        transfer.debit.check()?;
        transfer.credit.check()?;
        let (mut debit, mut credit) = (self.balance(&transfer.debit), self.balance(&transfer.credit));
        let amount = transfer.amount;
        match transfer.phase {
            Phase::Posted => {
                debit.debits_posted = debit.debits_posted.plus(amount)?;
                credit.credits_posted = credit.credits_posted.plus(amount)?;
            }
            Phase::Pending => {
                debit.debits_pending = debit.debits_pending.plus(amount)?;
                credit.credits_pending = credit.credits_pending.plus(amount)?;
            }
            Phase::PostPending { pending } => {
                self.check_resolution(&transfer, pending)?;
                release(&mut debit, &mut credit, amount);
                debit.debits_posted = debit.debits_posted.plus(amount)?;
                credit.credits_posted = credit.credits_posted.plus(amount)?;
            }
            Phase::VoidPending { pending } => {
                self.check_resolution(&transfer, pending)?;
                release(&mut debit, &mut credit, amount);
            }
        }
        check_funds(&transfer, &transfer.debit, &debit)?;
        check_funds(&transfer, &transfer.credit, &credit)?;
        if let Phase::PostPending { pending } | Phase::VoidPending { pending } = transfer.phase {
            self.resolved.insert(pending);
        }
        self.balances.insert(transfer.debit.clone(), debit);
        self.balances.insert(transfer.credit.clone(), credit);
        self.by_id.insert(transfer.id, self.transfers.len());
        self.transfers.push(transfer);
        Ok(Outcome::Posted)
    }

    /// Posts (`done`) or voids a pending transfer; the new transfer's id is derived from both.
    ///
    /// # Errors
    /// [`LedgerError::BadResolution`] unless `pending` is pending and unresolved.
    pub fn resolve(&mut self, pending: TransferId, done: bool) -> Result<TransferId, LedgerError> {
        let label = format!("{}/{pending}", if done { "post" } else { "void" });
        let id = TransferId::derive(&self.run_id, &label);
        let Some(original) = self.transfer(&pending) else {
            return Err(bad_resolution(id, pending, "no such transfer"));
        };
        let phase = if done { Phase::PostPending { pending } } else { Phase::VoidPending { pending } };
        let transfer = Transfer { id, phase, ..original.clone() };
        // The id alone would make a second resolution a silent no-op.
        self.check_resolution(&transfer, pending)?;
        self.post(transfer)?;
        Ok(id)
    }

    fn check_resolution(&self, transfer: &Transfer, pending: TransferId) -> Result<(), LedgerError> {
        let refuse = |why| Err(bad_resolution(transfer.id, pending, why));
        let Some(original) = self.transfer(&pending) else {
            return refuse("no such transfer");
        };
        if original.phase != Phase::Pending {
            return refuse("it is not pending");
        }
        if self.is_resolved(&pending) {
            return refuse("it was posted or voided before");
        }
        let same = |t: &Transfer| (t.debit.clone(), t.credit.clone(), t.amount, t.memo.clone());
        if same(original) != same(transfer) {
            return refuse("accounts, amount or memo differ");
        }
        Ok(())
    }
}

fn bad_resolution(id: TransferId, pending: TransferId, why: &'static str) -> LedgerError {
    LedgerError::BadResolution { id: id.to_string(), pending: pending.to_string(), why }
}

/// Takes a pending amount back out. It was added when the pending transfer was posted, and resolutions happen once.
fn release(debit: &mut Balance, credit: &mut Balance, amount: SubUnits) {
    debit.debits_pending.0 -= amount.0;
    credit.credits_pending.0 -= amount.0;
}

fn check_funds(transfer: &Transfer, account: &Account, balance: &Balance) -> Result<(), LedgerError> {
    let (holds, taken) = if account.is_asset() {
        (balance.debits_posted, balance.credits_posted.plus(balance.credits_pending)?)
    } else {
        (balance.credits_posted, balance.debits_posted.plus(balance.debits_pending)?)
    };
    if taken > holds {
        let (holds, needs) = (holds.0, taken.0);
        return Err(LedgerError::Overdrawn { id: transfer.id.to_string(), account: account.to_string(), holds, needs });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::toy_run;
    use crate::transfer::{Memo, Payee};

    fn transfer(id: u8, debit: Account, credit: Account, amount: u128, phase: Phase) -> Transfer {
        Transfer { id: TransferId([id; 16]), debit, credit, amount: SubUnits(amount), phase, memo: Memo::Settlement }
    }

    fn payable() -> Account {
        Account::Payable(Payee { owner: "Ada".into(), account: None })
    }

    fn funded() -> Journal {
        let mut journal = Journal::new(toy_run("1.00 USD", 1_000_000, 0)).unwrap();
        journal.post(transfer(1, Account::Cash, Account::Pool, 100, Phase::Posted)).unwrap();
        journal.post(transfer(2, Account::Pool, payable(), 60, Phase::Posted)).unwrap();
        journal
    }

    #[test]
    fn balances_follow_transfers() {
        let journal = funded();
        assert_eq!(journal.available(&Account::Cash), SubUnits(100));
        assert_eq!(journal.available(&Account::Pool), SubUnits(40));
        assert_eq!(journal.available(&payable()), SubUnits(60));
        assert_eq!(journal.available(&Account::Dust), SubUnits(0));
        assert_eq!(journal.balances().count(), 3);
    }

    #[test]
    fn an_id_is_used_once() {
        let mut journal = funded();
        let again = transfer(2, Account::Pool, payable(), 60, Phase::Posted);
        assert_eq!(journal.post(again), Ok(Outcome::AlreadyThere));
        assert_eq!(journal.available(&payable()), SubUnits(60));
        let other = transfer(2, Account::Pool, payable(), 1, Phase::Posted);
        let error = journal.post(other).unwrap_err();
        assert_eq!(error, LedgerError::ReusedTransferId { id: "02".repeat(16) });
    }

    #[test]
    fn refuses_overdrafts_and_empty_transfers() {
        let mut journal = funded();
        let before = journal.clone();
        let error = journal.post(transfer(3, Account::Pool, payable(), 41, Phase::Posted)).unwrap_err();
        let account = "Liabilities:Pool".to_owned();
        assert_eq!(error, LedgerError::Overdrawn { id: "03".repeat(16), account, holds: 100, needs: 101 });
        let nothing = transfer(3, Account::Pool, payable(), 0, Phase::Posted);
        assert!(matches!(journal.post(nothing), Err(LedgerError::EmptyTransfer { .. })));
        let circle = transfer(3, Account::Pool, Account::Pool, 1, Phase::Posted);
        assert!(matches!(journal.post(circle), Err(LedgerError::EmptyTransfer { .. })));
        let most = transfer(3, Account::Cash, Account::Pool, u128::MAX, Phase::Posted);
        assert!(matches!(journal.post(most), Err(LedgerError::Overflow { .. })));
        let named = Account::Payable(Payee { owner: "a\nb".into(), account: None });
        assert!(matches!(
            journal.post(transfer(3, Account::Pool, named, 1, Phase::Posted)),
            Err(LedgerError::BadName { .. })
        ));
        assert_eq!(journal, before);
    }

    #[test]
    fn pending_is_posted_or_voided_once() {
        let pending = TransferId([3; 16]);
        let mut journal = funded();
        journal.post(transfer(3, payable(), Account::Cash, 50, Phase::Pending)).unwrap();
        assert_eq!(journal.available(&payable()), SubUnits(10));
        assert_eq!(journal.available(&Account::Cash), SubUnits(50));
        // Reserved money cannot be promised twice.
        let twice = transfer(4, payable(), Account::Cash, 11, Phase::Pending);
        assert!(matches!(journal.post(twice), Err(LedgerError::Overdrawn { .. })));

        let mut voided = journal.clone();
        voided.resolve(pending, false).unwrap();
        assert_eq!(voided.available(&payable()), SubUnits(60));
        assert_eq!(voided.available(&Account::Cash), SubUnits(100));

        journal.resolve(pending, true).unwrap();
        assert_eq!(journal.available(&payable()), SubUnits(10));
        assert_eq!(journal.balance(&payable()).debits_posted, SubUnits(50));
        assert_eq!(journal.balance(&payable()).debits_pending, SubUnits(0));
        for done in [true, false] {
            assert!(matches!(journal.resolve(pending, done), Err(LedgerError::BadResolution { .. })));
            assert!(matches!(voided.resolve(pending, done), Err(LedgerError::BadResolution { .. })));
            assert!(matches!(journal.resolve(TransferId([2; 16]), done), Err(LedgerError::BadResolution { .. })));
            assert!(matches!(journal.resolve(TransferId([9; 16]), done), Err(LedgerError::BadResolution { .. })));
        }
        let mut partial = transfer(5, payable(), Account::Cash, 49, Phase::PostPending { pending });
        assert!(matches!(funded().post(partial.clone()), Err(LedgerError::BadResolution { .. })));
        partial.phase = Phase::VoidPending { pending };
        assert!(matches!(journal.post(partial), Err(LedgerError::BadResolution { .. })));
    }
}
