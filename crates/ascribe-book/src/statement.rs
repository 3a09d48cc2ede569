//! A statement for an owner: what came in by which dataset, what went out, what is there.

use std::collections::BTreeMap;

use ascribe_ledger::{Currency, SubUnits};
use serde::Serialize;

use crate::account::Purpose;
use crate::book::Book;
use crate::claims::Dispute;
use crate::entry::{AccountRef, Leg, Phase};
use crate::error::{BookError, add};
use crate::post::{TRANSFER_COLUMNS, read_transfer};
use crate::revenue::show_amount;

/// One sum of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatementLine {
    /// Where the owner is paid; empty when the licence names no account.
    pub account: String,
    /// Currency.
    pub currency: String,
    /// Why money moved.
    pub why: String,
    /// By way of which dataset, where there is one.
    pub dataset: Option<String>,
    /// `in`, `out` or `reserved`.
    pub direction: &'static str,
    /// How many transfers.
    pub transfers: u64,
    /// Their sum, with currency.
    pub amount: String,
}

/// What an owner earned, got, owes and has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerStatement {
    /// The owner.
    pub owner: String,
    /// Sums by account, reason and dataset.
    pub lines: Vec<StatementLine>,
    /// What is there and not promised, by account, with currency.
    pub available: BTreeMap<String, String>,
    /// What has to be given back, by account, with currency.
    pub owes: BTreeMap<String, String>,
    /// Disputes of the owner.
    pub disputes: Vec<Dispute>,
}

type Key = (AccountRef, i64, Option<crate::entry::DatasetRef>, &'static str);

/// Adds one leg to the sums of an owner's account.
fn count(sums: &mut BTreeMap<Key, (u64, u128)>, account: AccountRef, leg: &Leg) -> Result<(), BookError> {
    let direction = match leg.phase {
        // What was returned was never out; its reservation is left away below.
        Phase::Void(_) => return Ok(()),
        Phase::Pending => "reserved",
        Phase::Posted | Phase::Post(_) if leg.credit == account => "in",
        Phase::Posted | Phase::Post(_) => "out",
    };
    let sum = sums.entry((account, leg.why.code(), leg.dataset, direction)).or_default();
    *sum = (sum.0 + 1, add(sum.1, leg.amount)?);
    Ok(())
}

impl Book {
    /// The statement of an owner over all accounts and currencies. Cost: one pass over all transfers.
    ///
    /// # Errors
    /// An owner without any account in the book; the database's.
    pub fn statement(&mut self, owner: &str) -> Result<OwnerStatement, BookError> {
        self.refresh()?;
        let of_owner = |purpose: &Purpose| matches!(purpose, Purpose::Payable { owner: found, .. } | Purpose::Recoverable { owner: found, .. } if found == owner);
        let mine: Vec<AccountRef> =
            self.names.all().filter(|(_, account)| of_owner(&account.purpose)).map(|(at, _)| at).collect();
        if mine.is_empty() {
            let hint = "; hint: `ascribe ledger balance` lists whoever has one";
            return Err(BookError::Unknown { what: "owner", id: owner.to_owned(), hint });
        }
        let mut sums = BTreeMap::new();
        for account in mine.iter().filter(|at| !self.names.is_asset(**at)) {
            let sql = format!(
                "SELECT {} FROM book_transfers WHERE (debit = ?1 OR credit = ?1) AND NOT (phase = 1 AND place IN \
                 (SELECT pending FROM book_resolutions))",
                TRANSFER_COLUMNS.join(", ")
            );
            let mut failed = Ok(());
            self.db.query_each(&sql, &[account.0.into()], |row| {
                if failed.is_ok() {
                    failed = read_transfer(&row).and_then(|(_, leg)| count(&mut sums, *account, &leg));
                }
                Ok(())
            })?;
            failed?;
        }
        let mut lines = Vec::with_capacity(sums.len());
        for ((account, why, dataset, direction), (transfers, amount)) in sums {
            let (found, currency) = self.place(account)?;
            lines.push(StatementLine {
                account: found,
                currency: currency.to_string(),
                why: crate::entry::Why::of(why)?.word().to_owned(),
                dataset: dataset.map(|dataset| self.names.urn(dataset).to_owned()),
                direction,
                transfers,
                amount: show_amount(SubUnits(amount), currency),
            });
        }
        let (mut available, mut owes) = (BTreeMap::new(), BTreeMap::new());
        for account in mine {
            let (place, currency) = self.place(account)?;
            let holds = self.available(account)?;
            let side = if self.names.is_asset(account) { &mut owes } else { &mut available };
            side.insert(format!("{place} {currency}").trim_start().to_owned(), show_amount(holds, currency));
        }
        let disputes = self.disputes()?.into_iter().filter(|dispute| dispute.owner == owner).collect();
        Ok(OwnerStatement { owner: owner.to_owned(), lines, available, owes, disputes })
    }

    fn place(&self, account: AccountRef) -> Result<(String, Currency), BookError> {
        let found = self.names.account(account);
        let (_, _, address) = found.purpose.columns();
        Ok((address.to_owned(), Currency::of(found.currency)?))
    }
}
