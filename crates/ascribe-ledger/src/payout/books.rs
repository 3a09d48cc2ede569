//! A batch in the accountant's own formats: `run.journal` for hledger and its kin, `run.beancount` for beancount.
//!
//! Four entries: what earlier runs carried, the pool, what was earned and left unattributed, what is to be paid (pending, `!`).
//! Account names keep the letters and digits of owners; a name that had to be changed carries a piece of its hash.

use std::io::{self, Write};

use ascribe_core::Digest;

use crate::amount::{Currency, SUB_UNITS_PER_MINOR, SubUnits};
use crate::batch::BatchStatement;
use crate::run::Period;

/// The two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Plain-text accounting as hledger and ledger read it.
    Hledger,
    /// Beancount, which wants its accounts opened.
    Beancount,
}

/// What heads the books.
#[derive(Debug, Clone, Copy)]
pub struct BookHead<'a> {
    /// Identity of the run.
    pub run_id: &'a Digest,
    /// What is paid; every entry is dated with its last day.
    pub period: &'a Period,
    /// Currency of every amount.
    pub currency: Currency,
}

const CASH: &str = "Assets:Cash";
const POOL: &str = "Liabilities:Pool";
const DUST: &str = "Liabilities:Dust";

/// Names of the payees' accounts, row by row: most carry a piece of a hash, and both dialects name each account three times.
#[derive(Debug, Clone, Default)]
pub struct BookNames {
    text: String,
    ends: Vec<usize>,
}

impl BookNames {
    /// Names of all rows. Cost: two hashes a row.
    pub fn of(statement: &BatchStatement) -> Self {
        let mut names = Self::default();
        let mut owner = ("", String::new());
        for row in &statement.rows {
            if owner.1.is_empty() || owner.0 != row.row.owner {
                owner = (&row.row.owner, component(&row.row.owner));
            }
            names.text += "Liabilities:Payable:";
            names.text += &owner.1;
            names.text.push(':');
            match &row.row.account {
                Some(account) => names.text += &component(account.as_str()),
                None => names.text += "No-account",
            }
            names.ends.push(names.text.len());
        }
        names
    }

    /// `Liabilities:Payable:OWNER:ACCOUNT` of a row, in characters that both formats take; the parts begin with a capital letter or digit.
    fn of_row(&self, row: usize) -> &str {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[row]]
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|row| self.of_row(row))
    }
}

/// Writes the books of `statement`; amounts have all decimals of the currency and six more. `names` are those of its rows.
///
/// # Errors
/// The writer's.
pub fn write_books(
    dialect: Dialect,
    head: &BookHead<'_>,
    statement: &BatchStatement,
    names: &BookNames,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut books = Books { dialect, date: head.period.end(), currency: head.currency, names, out };
    writeln!(books.out, "; run {}\n; period {}", head.run_id, head.period)?;
    if dialect == Dialect::Beancount {
        books.open(head.period.start(), statement)?;
    }
    let carried: u128 = statement.rows.iter().map(|row| row.carried_in).sum();
    if carried > 0 {
        books.entry('*', "carried from earlier runs")?;
        books.posting(CASH, Sign::Debit, carried)?;
        for (name, row) in names.iter().zip(&statement.rows).filter(|(_, row)| row.carried_in > 0) {
            books.posting(name, Sign::Credit, row.carried_in)?;
        }
    }
    if statement.funded.0 > 0 {
        books.entry('*', "settled revenue")?;
        books.posting(CASH, Sign::Debit, statement.funded.0)?;
        books.posting(POOL, Sign::Credit, statement.funded.0)?;
    }
    books.accruals(statement)?;
    if statement.rows.iter().any(|row| row.row.amount.minor > 0) {
        books.entry('!', "payout")?;
        for (name, row) in names.iter().zip(&statement.rows).filter(|(_, row)| row.row.amount.minor > 0) {
            books.posting(name, Sign::Debit, row.row.amount.minor * SUB_UNITS_PER_MINOR)?;
        }
        books.posting(CASH, Sign::Credit, statement.settled().0)?;
    }
    Ok(())
}

enum Sign {
    Debit,
    Credit,
}

struct Books<'a> {
    dialect: Dialect,
    date: &'a str,
    currency: Currency,
    names: &'a BookNames,
    out: &'a mut dyn Write,
}

impl Books<'_> {
    fn entry(&mut self, state: char, what: &str) -> io::Result<()> {
        match self.dialect {
            Dialect::Hledger => writeln!(self.out, "\n{} {state} {what}", self.date),
            Dialect::Beancount => writeln!(self.out, "\n{} {state} \"{what}\"", self.date),
        }
    }

    fn posting(&mut self, account: &str, sign: Sign, amount: u128) -> io::Result<()> {
        let sign = if matches!(sign, Sign::Credit) { "-" } else { "" };
        writeln!(self.out, "    {account}  {sign}{} {}", SubUnits(amount).decimal(self.currency), self.currency)
    }

    fn accruals(&mut self, statement: &BatchStatement) -> io::Result<()> {
        let claimed = statement.funded.0 - statement.unspent.0;
        if claimed == 0 {
            return Ok(());
        }
        self.entry('*', "earned")?;
        self.posting(POOL, Sign::Debit, claimed)?;
        for (name, row) in self.names.iter().zip(&statement.rows).filter(|(_, row)| row.accrued > 0) {
            self.posting(name, Sign::Credit, row.accrued)?;
        }
        for (reason, amount) in statement.unattributed.iter().filter(|(_, amount)| **amount > 0) {
            self.posting(&format!("Liabilities:Unattributed:{reason:?}"), Sign::Credit, *amount)?;
        }
        if statement.dust.0 > 0 {
            self.posting(DUST, Sign::Credit, statement.dust.0)?;
        }
        Ok(())
    }

    fn open(&mut self, date: &str, statement: &BatchStatement) -> io::Result<()> {
        let reasons: Vec<String> =
            statement.unattributed.keys().map(|reason| format!("Liabilities:Unattributed:{reason:?}")).collect();
        let mut accounts = vec![CASH, POOL, DUST];
        accounts.extend(reasons.iter().map(String::as_str));
        accounts.extend(self.names.iter());
        accounts.sort_unstable();
        accounts.dedup();
        for account in accounts {
            writeln!(self.out, "{date} open {account} {}", self.currency)?;
        }
        Ok(())
    }
}

/// `name` as a part of an account that hledger and beancount both take. A name that had to be changed carries a piece of its
/// hash, so two names never fall together.
pub fn component(name: &str) -> String {
    let mut plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let capital = plain.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit());
    if plain != name || !capital {
        plain = format!("{plain}-{}", &Digest::of(name.as_bytes()).to_string()[..8]);
    }
    if capital { plain } else { format!("X-{plain}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::batch::BatchRow;
    use crate::settle::PayoutRow;
    use crate::transfer::UnattributedReason;

    fn statement() -> BatchStatement {
        let row = |owner: &str, minor: u128, carried: u128, accrued: u128, carried_in: u128| BatchRow {
            row: PayoutRow {
                owner: owner.into(),
                account: Some("eip155:1:0xde709f2102306220921060314715629080e2fb77".parse().unwrap()),
                amount: crate::Money { minor, currency: Currency::of("USD").unwrap() },
                responses: 1,
                datasets: 1,
                carried: SubUnits(carried),
            },
            accrued,
            carried_in,
        };
        BatchStatement {
            funded: SubUnits(3_000_000),
            rows: vec![row("Ada", 2, 5, 1_500_005, 500_000), row("o'brien", 0, 900_000, 900_000, 0)],
            unattributed: BTreeMap::from([(UnattributedReason::Coverage, 599_990)]),
            dust: SubUnits(5),
            unspent: SubUnits(0),
            owners: Vec::new(),
        }
    }

    fn text(dialect: Dialect) -> String {
        let mut bytes = Vec::new();
        let (run_id, period) = (Digest::of(b"run"), "2026-11-01/2026-11-30".parse().unwrap());
        let head = BookHead { run_id: &run_id, period: &period, currency: Currency::of("USD").unwrap() };
        write_books(dialect, &head, &statement(), &BookNames::of(&statement()), &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Every entry of either dialect sums to zero, in the smallest unit.
    #[test]
    fn entries_balance() {
        statement().check().unwrap();
        for dialect in [Dialect::Hledger, Dialect::Beancount] {
            let text = text(dialect);
            let mut n_entries = 0;
            for entry in text.split("\n\n").skip(1) {
                let amounts = entry.lines().filter_map(|line| line.strip_suffix(" USD")?.rsplit(' ').next());
                let sum: i128 = amounts.map(|a| a.replace('.', "").parse::<i128>().unwrap()).sum();
                assert_eq!(sum, 0, "{entry}");
                n_entries += 1;
            }
            assert_eq!(n_entries, 4, "{text}");
        }
    }

    #[test]
    fn names_that_both_formats_take() {
        assert_eq!(component("Ada"), "Ada");
        assert!(component("o'brien").starts_with("X-o-brien-"));
        assert!(component("Ada Lovelace").starts_with("Ada-Lovelace-"));
        assert_ne!(component("Ada Lovelace"), component("Ada-Lovelace"));
        assert!(component("李").starts_with("X---"));
        assert!(text(Dialect::Beancount).contains("2026-11-01 open Liabilities:Dust USD"));
    }
}
