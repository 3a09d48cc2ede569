//! An open book: its accounts and datasets by name, what it holds, and the door to posting.

use std::collections::HashMap;

use ascribe_ledger::{Balance, Currency, SubUnits};
use ascribe_sql::{Database, Engine, Row, SqlError, Transaction, Value};

use crate::account::{BookAccount, Purpose};
use crate::entry::{AccountRef, DatasetRef, Entry, EntryId};
use crate::error::BookError;
use crate::post;
use crate::schema::{COMPONENT, MIGRATIONS};

/// What posting did with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new, and balances changed.
    Posted,
    /// The very same entry was there already; nothing changed.
    AlreadyThere,
}

/// Accounts and datasets by number. Numbers are dense, from 1 on, and never change.
#[derive(Default)]
pub(crate) struct Names {
    /// PostgreSQL takes a lock where SQLite has one writer anyway.
    locks: bool,
    accounts: Vec<(BookAccount, String)>,
    numbers: HashMap<BookAccount, AccountRef>,
    urns: Vec<String>,
    datasets: HashMap<String, DatasetRef>,
}

impl Names {
    /// Waits until no other program writes to the book. To be called first in a transaction: a lock that is taken before anything is
    /// read lets writers queue, where two that have begun to read would refuse one another.
    pub(crate) fn queue(&self, tx: &mut Transaction<'_>) -> Result<(), SqlError> {
        if self.locks {
            tx.execute("LOCK TABLE book_head IN EXCLUSIVE MODE", &[])?;
        }
        Ok(())
    }

    pub(crate) fn text(&self, account: AccountRef) -> &str {
        self.accounts.get(account.0 as usize - 1).map_or("", |(_, text)| text)
    }

    pub(crate) fn account(&self, account: AccountRef) -> &BookAccount {
        &self.accounts[account.0 as usize - 1].0
    }

    pub(crate) fn is_asset(&self, account: AccountRef) -> bool {
        self.account(account).purpose.is_asset()
    }

    pub(crate) fn number(&self, account: &BookAccount) -> Option<AccountRef> {
        self.numbers.get(account).copied()
    }

    pub(crate) fn urn(&self, dataset: DatasetRef) -> &str {
        self.urns.get(dataset.0 as usize - 1).map_or("", String::as_str)
    }

    /// Numbers that this book knows; an entry made for another book may hold others.
    pub(crate) fn knows(&self, account: AccountRef) -> bool {
        usize::try_from(account.0).is_ok_and(|at| (1..=self.accounts.len()).contains(&at))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (AccountRef, &BookAccount)> {
        (1..).map(AccountRef).zip(self.accounts.iter().map(|(account, _)| account))
    }

    fn push_account(&mut self, number: i64, account: BookAccount) -> Result<(), BookError> {
        if number != self.accounts.len() as i64 + 1 {
            let (table, expected) = ("book_accounts", self.accounts.len() + 1);
            return Err(BookError::damaged(table, format!("expected number {expected}, found {number}")));
        }
        self.numbers.insert(account.clone(), AccountRef(number));
        let text = account.to_string();
        self.accounts.push((account, text));
        Ok(())
    }

    fn push_dataset(&mut self, number: i64, urn: String) -> Result<(), BookError> {
        if number != self.urns.len() as i64 + 1 {
            let (table, expected) = ("book_datasets", self.urns.len() + 1);
            return Err(BookError::damaged(table, format!("expected number {expected}, found {number}")));
        }
        self.datasets.insert(urn.clone(), DatasetRef(number));
        self.urns.push(urn);
        Ok(())
    }
}

/// An open book.
pub struct Book {
    pub(crate) db: Database,
    pub(crate) names: Names,
}

impl Book {
    /// Opens `sqlite:PATH` or `postgresql://…` and makes the tables if they are not there.
    ///
    /// # Errors
    /// The database's.
    pub fn open(address: &str) -> Result<Self, BookError> {
        let mut db = Database::open(address)?;
        db.migrate(COMPONENT, &MIGRATIONS)?;
        let names = Names { locks: db.engine() == Engine::Postgres, ..Names::default() };
        let mut book = Self { db, names };
        book.refresh()?;
        Ok(book)
    }

    /// Reads names that other programs have added since.
    pub(crate) fn refresh(&mut self) -> Result<(), BookError> {
        let after: Value = (self.names.accounts.len() as i64).into();
        let sql = "SELECT id, currency, kind, name, address FROM book_accounts WHERE id > ?1 ORDER BY id";
        let rows = self.db.query(sql, &[after])?;
        for row in &rows {
            self.names.push_account(row.int(0)?, read_account(row)?)?;
        }
        let after: Value = (self.names.urns.len() as i64).into();
        let rows = self.db.query("SELECT id, urn FROM book_datasets WHERE id > ?1 ORDER BY id", &[after])?;
        for row in &rows {
            self.names.push_dataset(row.int(0)?, row.text(1)?.to_owned())?;
        }
        Ok(())
    }

    /// The account of `purpose` in `currency`, made if it is not there. An account without transfers holds nothing.
    ///
    /// # Errors
    /// Names that would garble the books; the database's.
    pub fn account(&mut self, currency: Currency, purpose: Purpose) -> Result<AccountRef, BookError> {
        let account = BookAccount::new(currency, purpose);
        self.accounts(std::slice::from_ref(&account))?;
        self.names.number(&account).ok_or_else(|| BookError::damaged("book_accounts", format!("{account} is lost")))
    }

    /// Makes those of `wanted` that are not there.
    pub(crate) fn accounts(&mut self, wanted: &[BookAccount]) -> Result<(), BookError> {
        let known = |names: &Names| wanted.iter().all(|account| names.numbers.contains_key(account));
        while !known(&self.names) {
            self.refresh()?;
            wanted.iter().try_for_each(|account| account.purpose.check())?;
            self.add_accounts(wanted)?;
            self.refresh()?;
        }
        Ok(())
    }

    /// Adds what is not there, unless another program has added names since the last look.
    fn add_accounts(&mut self, wanted: &[BookAccount]) -> Result<(), BookError> {
        let names = &self.names;
        self.db.transaction(|tx| {
            let Some(mut next) = next_number(tx, "book_accounts", names.accounts.len())? else { return Ok(()) };
            let mut seen = std::collections::HashSet::new();
            let (mut accounts, mut balances) = (Vec::new(), Vec::new());
            for account in wanted.iter().filter(|account| !names.numbers.contains_key(*account)) {
                let (kind, name, address) = account.purpose.columns();
                if seen.insert(account) {
                    let columns = [account.currency, kind, name, address].map(Value::from);
                    accounts.push(std::iter::once(next.into()).chain(columns).collect::<Vec<Value>>());
                    balances.push(vec![next.into(), 0u128.into(), 0u128.into(), 0u128.into(), 0u128.into()]);
                    next += 1;
                }
            }
            tx.insert_many("book_accounts", &["id", "currency", "kind", "name", "address"], accounts)?;
            tx.insert_many("book_balances", &post::BALANCE_COLUMNS, balances)?;
            Ok::<(), BookError>(())
        })
    }

    /// The datasets of these names, made if they are not there.
    pub(crate) fn datasets(&mut self, urns: &[&str]) -> Result<Vec<DatasetRef>, BookError> {
        while urns.iter().any(|urn| !self.names.datasets.contains_key(*urn)) {
            self.refresh()?;
            let names = &self.names;
            self.db.transaction(|tx| {
                let Some(next) = next_number(tx, "book_datasets", names.urns.len())? else { return Ok(0) };
                let mut fresh: Vec<&str> =
                    urns.iter().copied().filter(|urn| !names.datasets.contains_key(*urn)).collect();
                fresh.sort_unstable();
                fresh.dedup();
                let rows = (next..).zip(fresh).map(|(number, urn)| vec![number.into(), urn.into()]);
                tx.insert_many("book_datasets", &["id", "urn"], rows)
            })?;
            self.refresh()?;
        }
        let find = |urn: &&str| {
            let found = self.names.datasets.get(*urn).copied();
            found.ok_or_else(|| BookError::damaged("book_datasets", format!("{urn} is lost")))
        };
        urns.iter().map(find).collect()
    }

    /// Posts entries in one durable transaction: all of them, or none. An entry that is there already changes nothing.
    ///
    /// Cost: a few rows per entry; the transaction ends with one flush to the disk, so large batches are cheap.
    ///
    /// # Errors
    /// [`BookError::Reused`], [`BookError::Overdrawn`], [`BookError::State`] for a pending transfer that was resolved before,
    /// [`BookError::Field`] for entries that no book should hold; the database's.
    pub fn post(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, BookError> {
        let names = &self.names;
        self.db.transaction(|tx| post::post(tx, names, entries))
    }

    /// Balance of an account.
    ///
    /// # Errors
    /// The database's.
    pub fn balance(&mut self, account: AccountRef) -> Result<Balance, BookError> {
        let sql = format!("SELECT {} FROM book_balances WHERE account = ?1", post::BALANCE_COLUMNS.join(", "));
        let rows = self.db.query(&sql, &[account.0.into()])?;
        rows.first().map_or(Ok(Balance::default()), |row| Ok(read_balance(row)?.1))
    }

    /// What an account holds and has not promised.
    ///
    /// # Errors
    /// The database's.
    pub fn available(&mut self, account: AccountRef) -> Result<SubUnits, BookError> {
        let is_asset = self.names.is_asset(account);
        Ok(self.balance(account)?.available(is_asset))
    }

    /// All accounts with what they hold, in the order in which they were made.
    ///
    /// # Errors
    /// The database's.
    pub fn balances(&mut self) -> Result<Vec<(BookAccount, Balance)>, BookError> {
        self.refresh()?;
        let sql = format!("SELECT {} FROM book_balances ORDER BY account", post::BALANCE_COLUMNS.join(", "));
        let mut all = Vec::new();
        let names = &self.names;
        self.db.query_each(&sql, &[], |row| {
            let (account, balance) = read_balance(&row)?;
            all.push((account, balance));
            Ok(())
        })?;
        Ok(all.into_iter().filter(|(at, _)| names.knows(*at)).map(|(at, b)| (names.account(at).clone(), b)).collect())
    }

    /// True when an entry of that id is in the book.
    ///
    /// # Errors
    /// The database's.
    pub fn holds(&mut self, id: EntryId) -> Result<bool, BookError> {
        Ok(!self.db.query("SELECT seq FROM book_entries WHERE id = ?1", &[id.0.into()])?.is_empty())
    }

    /// When an entry happened, if it is in the book.
    pub(crate) fn moment(&mut self, id: EntryId) -> Result<Option<u64>, BookError> {
        let rows = self.db.query("SELECT at_unix_s FROM book_entries WHERE id = ?1", &[id.0.into()])?;
        rows.first().map(|row| row.uint(0)).transpose().map_err(Into::into)
    }

    /// The hash chain over all entries, and how many there are: what an auditor writes down to see later that none was changed.
    ///
    /// # Errors
    /// The database's.
    pub fn head(&mut self) -> Result<(u64, String), BookError> {
        let rows = self.db.query("SELECT entries, chain FROM book_head WHERE id = 1", &[])?;
        let row = rows.first().ok_or_else(|| BookError::damaged("book_head", "its row is gone"))?;
        Ok((row.uint(0)?, row.text(1)?.to_owned()))
    }
}

/// The number after the last one; nothing when another program has added names that the next refresh will find.
fn next_number(tx: &mut Transaction<'_>, table: &str, known: usize) -> Result<Option<i64>, SqlError> {
    let last = tx.query(&format!("SELECT coalesce(max(id), 0) FROM {table}"), &[])?[0].int(0)?;
    Ok((last == known as i64).then_some(last + 1))
}

fn read_account(row: &Row) -> Result<BookAccount, BookError> {
    let currency = Currency::of(row.text(1)?)?;
    Ok(BookAccount::new(currency, Purpose::of_columns(row.text(2)?, row.text(3)?, row.text(4)?)?))
}

/// Account and balance of a row of [`post::BALANCE_COLUMNS`].
pub(crate) fn read_balance(row: &Row) -> Result<(AccountRef, Balance), SqlError> {
    let balance = Balance {
        debits_posted: SubUnits(row.amount(1)?),
        credits_posted: SubUnits(row.amount(2)?),
        debits_pending: SubUnits(row.amount(3)?),
        credits_pending: SubUnits(row.amount(4)?),
    };
    Ok((AccountRef(row.int(0)?), balance))
}
