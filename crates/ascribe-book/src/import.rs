//! A payout run of files taken into the book: what it earned for whom, and its payments as a settlement under the run's own id.

use ascribe_core::Digest;
use ascribe_ledger::{Money, Payee, SUB_UNITS_PER_MINOR, SubUnits, UnattributedReason};
use ascribe_sql::Value;
use serde::Serialize;

use crate::account::{BookAccount, Purpose};
use crate::book::{Book, Names, Outcome};
use crate::entry::{AccountRef, Entry, EntryId, Kind, Leg, Phase, Why};
use crate::error::{BookError, add};
use crate::post::post;
use crate::schema::LEGS_MAX;

/// One payee of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// Who.
    pub payee: Payee,
    /// Earned in this run, in sub-units.
    pub earned: SubUnits,
    /// Paid by it, in minor units.
    pub paid_minor: u128,
}

/// A payout run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayoutRun {
    /// Its identity.
    pub run_id: Digest,
    /// When it was made or what it ends with, seconds since 1970; the same for the same run.
    pub at_unix_s: u64,
    /// Settled revenue that it split.
    pub pool: Money,
    /// What was settled beyond that, below a minor unit.
    pub pool_rest: SubUnits,
    /// What the run before left over by floors.
    pub dust_in: SubUnits,
    /// Its payees.
    pub rows: Vec<RunRow>,
    /// Not attributed, by reason.
    pub unattributed: Vec<(UnattributedReason, SubUnits)>,
    /// Left over by its own floors.
    pub dust: SubUnits,
}

/// What taking a run in did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The run.
    pub run_id: String,
    /// Payees who earned or are paid.
    pub payees: usize,
    /// Payments that wait to be posted or voided.
    pub payments: usize,
    /// True when it was in the book already.
    pub already_done: bool,
}

impl Book {
    /// Takes a payout run in: the pool comes in, payees are credited, what is paid is reserved under the run's id (`resolve` says what
    /// became of it). The same run again changes nothing.
    ///
    /// # Errors
    /// More payees than an entry holds; earlier dust or balances that are not in the book, because the run before was not taken
    /// in; another run of the same id; the database's.
    pub fn import(&mut self, run: &PayoutRun) -> Result<Imported, BookError> {
        let currency = run.pool.currency;
        let payables: Vec<BookAccount> =
            run.rows.iter().map(|row| BookAccount::new(currency, Purpose::payable(&row.payee))).collect();
        self.accounts(&payables)?;
        let fixed = |book: &mut Self, purpose| book.account(currency, purpose);
        let accounts = Fixed {
            cash: fixed(self, Purpose::Cash)?,
            pool: fixed(self, Purpose::Pool)?,
            dust: fixed(self, Purpose::Dust)?,
            unattributed: fixed(self, Purpose::Unattributed)?,
        };
        let entries = entries(run, &payables, &self.names, &accounts)?;
        let terms = format!("{{\"payout_run\":\"{}\"}}", run.run_id);
        let names = &self.names;
        let outcome = self.db.transaction(|tx| {
            let outcomes = post(tx, names, &entries)?;
            let done = outcomes.iter().all(|outcome| *outcome == Outcome::AlreadyThere);
            if !done {
                let paid = entries.last().filter(|entry| entry.kind == Kind::Settlement);
                let seq = match paid {
                    Some(entry) => {
                        Some(tx.query("SELECT seq FROM book_entries WHERE id = ?1", &[entry.id.0.into()])?[0].int(0)?)
                    }
                    None => None,
                };
                let values: [Value; 4] =
                    [run.run_id.0.into(), currency.code().into(), terms.as_str().into(), seq.into()];
                tx.execute("INSERT INTO book_settlements (id, currency, terms, seq) VALUES (?1, ?2, ?3, ?4)", &values)?;
            }
            Ok::<bool, BookError>(done)
        })?;
        Ok(Imported {
            run_id: run.run_id.to_string(),
            payees: run.rows.len(),
            payments: run.rows.iter().filter(|row| row.paid_minor > 0).count(),
            already_done: outcome,
        })
    }
}

struct Fixed {
    cash: AccountRef,
    pool: AccountRef,
    dust: AccountRef,
    unattributed: AccountRef,
}

/// The run as an entry of what was earned and one of what is paid, if anything is.
fn entries(run: &PayoutRun, payables: &[BookAccount], names: &Names, at: &Fixed) -> Result<Vec<Entry>, BookError> {
    let id = run.run_id.to_string();
    let number = |account: &BookAccount| {
        names.number(account).ok_or_else(|| BookError::damaged("book_accounts", format!("{account} is lost")))
    };
    let pool = run.pool.sub_units()?.plus(run.pool_rest)?;
    let mut earned =
        vec![Leg::posted(at.cash, at.pool, pool.0, Why::Fund), Leg::posted(at.dust, at.pool, run.dust_in.0, Why::Dust)];
    let mut paid = Vec::new();
    let mut spent = run.dust.0;
    for (row, account) in run.rows.iter().zip(payables) {
        let payee = number(account)?;
        earned.push(Leg::posted(at.pool, payee, row.earned.0, Why::Accrual));
        spent = add(spent, row.earned.0)?;
        let amount = row.paid_minor.checked_mul(SUB_UNITS_PER_MINOR);
        let amount = amount.ok_or(ascribe_ledger::LedgerError::Overflow { what: "a payment in sub-units" })?;
        paid.push(Leg { phase: Phase::Pending, ..Leg::posted(payee, at.cash, amount, Why::Settlement) });
    }
    for (reason, amount) in &run.unattributed {
        earned.push(Leg::posted(at.pool, at.unattributed, amount.0, (*reason).into()));
        spent = add(spent, amount.0)?;
    }
    earned.push(Leg::posted(at.pool, at.dust, run.dust.0, Why::Dust));
    let funded = add(pool.0, run.dust_in.0)?;
    if spent > funded {
        let (what, expected) = (format!("run {id}: what it splits"), format!("at most {funded} sub-units"));
        return Err(BookError::Field { what, expected, found: spent.to_string() });
    }
    let made = |kind, legs: Vec<Leg>| {
        let legs: Vec<Leg> = legs.into_iter().filter(|leg| leg.amount > 0).collect();
        Entry { id: EntryId::of(kind, &id), kind, at_unix_s: run.at_unix_s, memo: id.clone(), legs }
    };
    let mut entries = vec![made(Kind::Import, earned), made(Kind::Settlement, paid)];
    if let Some(found) = entries.iter().map(|entry| entry.legs.len()).find(|n| *n > LEGS_MAX) {
        let what = format!("run {id}: payees");
        return Err(BookError::Field { what, expected: format!("at most {LEGS_MAX}"), found: found.to_string() });
    }
    entries.retain(|entry| entry.kind == Kind::Import || !entry.legs.is_empty());
    Ok(entries)
}
