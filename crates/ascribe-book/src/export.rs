//! The book in the accountant's own formats: hledger and beancount read it and check it again.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ascribe_ledger::payout::books::component;
use ascribe_ledger::{Currency, Dialect, SubUnits};
use ascribe_sql::{SqlError, Transaction};

use crate::account::Purpose;
use crate::book::{Book, Names};
use crate::entry::{AccountRef, Leg, Phase};
use crate::error::BookError;
use crate::post::DAY_S;
use crate::verify::{Stored, walk};

/// Why an export stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The book's.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The writer's.
    #[error("writing: {0}")]
    Io(#[from] std::io::Error),
}

impl From<SqlError> for ExportError {
    fn from(error: SqlError) -> Self {
        Self::Book(error.into())
    }
}

/// `YYYY-MM-DD` of a moment, by the proleptic Gregorian calendar (days from civil, H. Hinnant), in UTC.
pub fn day_text(at_unix_s: u64) -> String {
    let z = at_unix_s / DAY_S + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// An account in characters that both formats take.
fn account_text(names: &Names, account: AccountRef) -> String {
    let found = names.account(account);
    let place = |address: &str| if address.is_empty() { "No-account".to_owned() } else { component(address) };
    match &found.purpose {
        Purpose::Cash => "Assets:Cash".into(),
        Purpose::Recoverable { owner, address } => {
            format!("Assets:Recoverable:{}:{}", component(owner), place(address))
        }
        Purpose::Operator => "Liabilities:Operator".into(),
        Purpose::Reserve => "Liabilities:Reserve".into(),
        Purpose::Pool => "Liabilities:Pool".into(),
        Purpose::Unattributed => "Liabilities:Unattributed".into(),
        Purpose::Dust => "Liabilities:Dust".into(),
        Purpose::Payable { owner, address } => format!("Liabilities:Payable:{}:{}", component(owner), place(address)),
        Purpose::Prepaid { customer } => format!("Liabilities:Prepaid:{}", component(customer)),
    }
}

/// A memo in one line without what either format gives a meaning.
fn plain(memo: &str) -> String {
    memo.chars().map(|c| if c.is_control() || "\"\\;|".contains(c) { ' ' } else { c }).collect()
}

struct Writer<'a> {
    names: &'a Names,
    dialect: Dialect,
    out: &'a mut dyn std::io::Write,
}

impl Writer<'_> {
    fn entry(&mut self, stored: &Stored, state: char, legs: &[Leg]) -> Result<(), ExportError> {
        if legs.is_empty() {
            return Ok(());
        }
        let (day, kind) = (day_text(stored.entry.at_unix_s), stored.entry.kind.word());
        let what = format!("{kind} {}", plain(&stored.entry.memo));
        let mut text = match self.dialect {
            Dialect::Hledger => format!("\n{day} {state} {what}\n"),
            Dialect::Beancount => format!("\n{day} {state} \"{what}\"\n"),
        };
        for leg in legs {
            let code = self.names.account(leg.debit).currency;
            let amount = SubUnits(leg.amount).decimal(Currency::of(code).map_err(BookError::from)?);
            let (debit, credit) = (account_text(self.names, leg.debit), account_text(self.names, leg.credit));
            // Writing to a String cannot fail.
            let _ = write!(text, "    {debit}  {amount} {code}\n    {credit}  -{amount} {code}\n");
        }
        Ok(self.out.write_all(text.as_bytes())?)
    }

    fn stored(&mut self, stored: &Stored, resolved: &BTreeSet<i64>) -> Result<(), ExportError> {
        let place = |at: usize| (stored.seq << crate::schema::LEG_BITS) | at as i64;
        let legs = || stored.entry.legs.iter().enumerate();
        let done: Vec<Leg> = legs()
            .filter(|(_, leg)| matches!(leg.phase, Phase::Posted | Phase::Post(_)))
            .map(|(_, leg)| *leg)
            .collect();
        let open = legs().filter(|(at, leg)| leg.phase == Phase::Pending && !resolved.contains(&place(*at)));
        let open: Vec<Leg> = open.map(|(_, leg)| *leg).collect();
        self.entry(stored, '*', &done)?;
        self.entry(stored, '!', &open)
    }
}

impl Book {
    /// Writes every entry with both sides of each transfer, debits positive. A pending transfer stands once: open with the mark
    /// `!`, paid in the entry that paid it, returned not at all. Deterministic.
    ///
    /// # Errors
    /// The database's and the writer's.
    pub fn export(&mut self, dialect: Dialect, out: &mut dyn std::io::Write) -> Result<(), ExportError> {
        self.refresh()?;
        let names = &self.names;
        self.db.transaction(|tx| export(tx, names, dialect, &mut *out))
    }
}

fn export(
    tx: &mut Transaction<'_>,
    names: &Names,
    dialect: Dialect,
    out: &mut dyn std::io::Write,
) -> Result<(), ExportError> {
    let last = tx.query("SELECT entries FROM book_head WHERE id = 1", &[])?[0].int(0)?;
    let mut resolved = BTreeSet::new();
    tx.query_each("SELECT pending FROM book_resolutions", &[], |row| {
        resolved.insert(row.int(0)?);
        Ok(())
    })?;
    if dialect == Dialect::Beancount {
        let first = tx.query("SELECT coalesce(min(at_unix_s), 0) FROM book_entries", &[])?[0].uint(0)?;
        let mut opened = BTreeSet::new();
        for (account, found) in names.all() {
            if opened.insert((account_text(names, account), found.currency)) {
                writeln!(out, "{} open {}", day_text(first), account_text(names, account))?;
            }
        }
    }
    let mut writer = Writer { names, dialect, out };
    walk(tx, last, |stored| writer.stored(&stored, &resolved))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days() {
        for (day, expected) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_786, "2026-11-29")] {
            assert_eq!(day_text(day * DAY_S + 86_399), expected);
        }
        assert_eq!(plain("a\n\"b\";"), "a  b  ");
    }
}
