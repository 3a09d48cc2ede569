//! Disputes and clawbacks: money is frozen, or taken back while it is on its way and afterwards out of what is earned next.
//! Payments that were made are never undone: leaves of a payout tree cannot fall.

use ascribe_ledger::{Caip10, Currency, Payee, SubUnits};
use ascribe_sql::Value;
use serde::Serialize;

use crate::account::Purpose;
use crate::book::{Book, Outcome};
use crate::entry::{AccountRef, Entry, EntryId, Kind, Leg, Phase, Why};
use crate::error::BookError;
use crate::schema::LEG_BITS;

/// Whose balance is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Currency.
    pub currency: Currency,
    /// The owner.
    pub owner: String,
    /// Their account, as the licence names it.
    pub account: Option<Caip10>,
}

impl Claimed {
    fn payee(&self) -> Payee {
        Payee { owner: self.owner.clone(), account: self.account.clone() }
    }

    fn address(&self) -> String {
        self.account.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

/// A dispute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dispute {
    /// Its name.
    pub id: String,
    /// Currency.
    pub currency: String,
    /// The owner.
    pub owner: String,
    /// Their account; empty when there is none.
    pub account: String,
    /// Why it was opened.
    pub reason: String,
    /// When.
    pub opened_unix_s: u64,
    /// Frozen sub-units; nothing when the whole balance is.
    pub frozen_subunits: Option<String>,
    /// `upheld` or `rejected`; nothing while it is open.
    pub outcome: Option<String>,
}

/// What a clawback did, in sub-units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Clawback {
    /// Its reference.
    pub reference: String,
    /// Payments on their way that were returned first.
    pub returned_payments: usize,
    /// Taken from the balance.
    pub taken_subunits: String,
    /// Will be taken from what is earned next.
    pub owed_subunits: String,
    /// True when it was in the book already.
    pub already_done: bool,
}

impl Book {
    /// Opens a dispute: freezes `amount` of a payee's balance, or without one keeps the payee from being paid at all.
    /// The same dispute again changes nothing.
    ///
    /// # Errors
    /// An amount above the balance; a dispute of that name over something else; the database's.
    pub fn open_dispute(
        &mut self,
        id: &str,
        claimed: &Claimed,
        amount: Option<SubUnits>,
        reason: &str,
        at_unix_s: u64,
    ) -> Result<Dispute, BookError> {
        if let Some(found) = self.dispute(id)? {
            let frozen = amount.map(|amount| amount.to_string());
            let same = (&found.owner, &found.account, found.currency.as_str(), &found.frozen_subunits)
                == (&claimed.owner, &claimed.address(), claimed.currency.code(), &frozen);
            return if same { Ok(found) } else { Err(BookError::Reused { what: "dispute", id: id.into() }) };
        }
        let payable = self.account(claimed.currency, Purpose::payable(&claimed.payee()))?;
        let unattributed = self.account(claimed.currency, Purpose::Unattributed)?;
        let names = &self.names;
        self.db.transaction(|tx| {
            let mut pending: Option<i64> = None;
            if let Some(amount) = amount {
                let leg = Leg::posted(payable, unattributed, amount.0, Why::Dispute);
                let legs = vec![Leg { phase: Phase::Pending, ..leg }];
                let (kind, memo) = (Kind::Dispute, id.to_owned());
                let entry = Entry { id: EntryId::of(kind, id), kind, at_unix_s, memo, legs };
                crate::post::post(tx, names, std::slice::from_ref(&entry))?;
                let rows = tx.query("SELECT seq FROM book_entries WHERE id = ?1", &[entry.id.0.into()])?;
                pending = rows.first().map(|row| row.int(0)).transpose()?.map(|seq| seq << LEG_BITS);
            }
            let values: [Value; 7] = [
                id.into(),
                claimed.currency.code().into(),
                claimed.owner.as_str().into(),
                claimed.address().into(),
                reason.into(),
                (at_unix_s as i64).into(),
                pending.into(),
            ];
            let sql = "INSERT INTO book_disputes (id, currency, owner, address, reason, opened_unix_s, pending) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            tx.execute(sql, &values)?;
            Ok::<(), BookError>(())
        })?;
        self.dispute(id)?.ok_or_else(|| BookError::damaged("book_disputes", format!("{id} is lost")))
    }

    /// Ends a dispute: upheld, the frozen amount stays unattributed; rejected, it is the payee's again.
    ///
    /// # Errors
    /// No such dispute, or one that ended before the other way; the database's.
    pub fn end_dispute(&mut self, id: &str, upheld: bool, at_unix_s: u64) -> Result<Dispute, BookError> {
        let unknown = || BookError::Unknown { what: "dispute", id: id.to_owned(), hint: "" };
        let found = self.dispute(id)?.ok_or_else(unknown)?;
        let word = if upheld { "upheld" } else { "rejected" };
        match found.outcome.as_deref() {
            Some(before) if before == word => return Ok(found),
            Some(before) => {
                return Err(BookError::State {
                    what: "dispute",
                    id: id.into(),
                    why: format!("it was {before} before"),
                });
            }
            None => {}
        }
        self.refresh()?;
        let rows = self.db.query("SELECT pending FROM book_disputes WHERE id = ?1", &[id.into()])?;
        let row = rows.first().ok_or_else(unknown)?;
        let pending = if row.is_null(0) { None } else { Some(row.int(0)?) };
        let legs = pending.map(|place| self.legs_of(place >> LEG_BITS)).transpose()?.unwrap_or_default();
        let names = &self.names;
        self.db.transaction(|tx| {
            if let Some((place, leg)) = legs.first() {
                let phase = if upheld { Phase::Post(*place) } else { Phase::Void(*place) };
                let (kind, memo) = (Kind::DisputeEnd, id.to_owned());
                let legs = vec![Leg { phase, ..*leg }];
                crate::post::post(tx, names, &[Entry { id: EntryId::of(kind, id), kind, at_unix_s, memo, legs }])?;
            }
            let sql = "UPDATE book_disputes SET outcome = ?2, resolved_unix_s = ?3 WHERE id = ?1 AND outcome IS NULL";
            if tx.execute(sql, &[id.into(), word.into(), (at_unix_s as i64).into()])? == 0 {
                let why = "it was ended by somebody else".to_owned();
                return Err(BookError::State { what: "dispute", id: id.into(), why });
            }
            Ok(())
        })?;
        self.dispute(id)?.ok_or_else(unknown)
    }

    /// One dispute.
    ///
    /// # Errors
    /// The database's.
    pub fn dispute(&mut self, id: &str) -> Result<Option<Dispute>, BookError> {
        Ok(self.disputes_where("d.id = ?1", &[id.into()])?.pop())
    }

    /// All disputes, the oldest first.
    ///
    /// # Errors
    /// The database's.
    pub fn disputes(&mut self) -> Result<Vec<Dispute>, BookError> {
        self.disputes_where("1 = 1", &[])
    }

    fn disputes_where(&mut self, which: &str, params: &[Value]) -> Result<Vec<Dispute>, BookError> {
        let sql = format!(
            "SELECT d.id, d.currency, d.owner, d.address, d.reason, d.opened_unix_s, d.outcome, t.amount \
             FROM book_disputes d LEFT JOIN book_transfers t ON t.place = d.pending \
             WHERE {which} ORDER BY d.opened_unix_s, d.id"
        );
        let rows = self.db.query(&sql, params)?;
        let optional = |row: &ascribe_sql::Row, column: usize| {
            if row.is_null(column) { Ok(None) } else { row.text(column).map(|text| Some(text.to_owned())) }
        };
        let read = |row: &ascribe_sql::Row| {
            Ok(Dispute {
                id: row.text(0)?.into(),
                currency: row.text(1)?.into(),
                owner: row.text(2)?.into(),
                account: row.text(3)?.into(),
                reason: row.text(4)?.into(),
                opened_unix_s: row.uint(5)?,
                outcome: optional(row, 6)?,
                frozen_subunits: if row.is_null(7) { None } else { Some(row.amount(7)?.to_string()) },
            })
        };
        rows.iter().map(read).collect()
    }

    /// Takes `amount` back from a payee. Payments on their way are returned first if `return_pending`; what the balance does
    /// not hold is owed and set off against what is earned next. The same reference again changes nothing.
    ///
    /// # Errors
    /// An amount of nothing; a payee without an account in the book; a reference that was used otherwise; the database's.
    pub fn clawback(
        &mut self,
        reference: &str,
        claimed: &Claimed,
        amount: SubUnits,
        return_pending: bool,
        at_unix_s: u64,
    ) -> Result<Clawback, BookError> {
        if amount == SubUnits::ZERO {
            let (what, expected) = ("clawback: amount".to_owned(), "more than nothing".to_owned());
            return Err(BookError::Field { what, expected, found: "0".into() });
        }
        let payable = self.account(claimed.currency, Purpose::payable(&claimed.payee()))?;
        let unattributed = self.account(claimed.currency, Purpose::Unattributed)?;
        let owner = Purpose::Recoverable { owner: claimed.owner.clone(), address: claimed.address() };
        let owed = self.account(claimed.currency, owner)?;
        let id = EntryId::of(Kind::Clawback, reference);
        if self.holds(id)? {
            return self.clawed_back(reference, id, amount, (payable, owed));
        }
        let mut returned_payments = 0;
        if return_pending {
            for settlement in self.open_settlements(payable)? {
                returned_payments += self.resolve(&settlement, Some(&claimed.owner), false, at_unix_s)?;
            }
        }
        let taken = self.available(payable)?.0.min(amount.0);
        let mut legs = Vec::new();
        for (account, part) in [(payable, taken), (owed, amount.0 - taken)] {
            if part > 0 {
                legs.push(Leg::posted(account, unattributed, part, Why::Clawback));
            }
        }
        let entry = Entry { id, kind: Kind::Clawback, at_unix_s, memo: reference.to_owned(), legs };
        let outcome = self.post(&[entry])?;
        Ok(Clawback {
            reference: reference.to_owned(),
            returned_payments,
            taken_subunits: taken.to_string(),
            owed_subunits: (amount.0 - taken).to_string(),
            already_done: outcome == [Outcome::AlreadyThere],
        })
    }

    /// What a clawback of that reference did before; another payee or amount is refused.
    fn clawed_back(
        &mut self,
        reference: &str,
        id: EntryId,
        amount: SubUnits,
        (payable, owed): (AccountRef, AccountRef),
    ) -> Result<Clawback, BookError> {
        let rows = self.db.query("SELECT seq FROM book_entries WHERE id = ?1", &[id.0.into()])?;
        let seq = rows.first().map_or(Ok(0), |row| row.int(0))?;
        let legs = self.legs_of(seq)?;
        let part = |account: AccountRef| -> u128 {
            legs.iter().filter(|(_, leg)| leg.debit == account).map(|(_, leg)| leg.amount).sum()
        };
        let (taken, owes) = (part(payable), part(owed));
        if taken.checked_add(owes) != Some(amount.0) {
            return Err(BookError::Reused { what: "clawback", id: reference.into() });
        }
        Ok(Clawback {
            reference: reference.to_owned(),
            returned_payments: 0,
            taken_subunits: taken.to_string(),
            owed_subunits: owes.to_string(),
            already_done: true,
        })
    }

    /// Settlements with a payment to this account that is neither paid nor returned.
    fn open_settlements(&mut self, payable: AccountRef) -> Result<Vec<String>, BookError> {
        let sql = "SELECT id, seq FROM book_settlements WHERE seq IS NOT NULL ORDER BY seq";
        let all = self.db.query(sql, &[])?;
        let mut open = Vec::new();
        for row in &all {
            let payments = self.open_payments(row.int(1)?)?;
            if payments.iter().any(|(_, leg)| leg.debit == payable) {
                open.push(hex::encode(row.array::<32>(0)?));
            }
        }
        Ok(open)
    }
}
