//! Verification: every balance is added up again from the transfers, every entry hashed again, every rule applied again.

use std::collections::{BTreeMap, HashMap};

use ascribe_ledger::Balance;
use ascribe_sql::{SqlError, Transaction};
use serde::Serialize;

use crate::book::{Book, Names, read_balance};
use crate::entry::{AccountRef, Entry, EntryId, Kind, Leg, Phase};
use crate::error::{BookError, add};
use crate::post::{BALANCE_COLUMNS, Pending, Sheet, TRANSFER_COLUMNS, chained, read_transfer};
use crate::schema::LEG_BITS;

/// Entries read at once.
const PIECE: i64 = 1_000;

/// What was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyBookReport {
    /// Entries hashed again.
    pub entries: u64,
    /// Transfers applied again.
    pub transfers: u64,
    /// Accounts whose balance was added up again.
    pub accounts: u64,
    /// Pending transfers that are neither posted nor voided.
    pub open_pending: u64,
    /// Hash chain over all entries.
    pub chain: String,
    /// Sums by currency.
    pub currencies: Vec<CurrencySum>,
}

/// Both sides of the books in one currency: they are equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CurrencySum {
    /// Code.
    pub currency: String,
    /// Held and owed to us, in sub-units.
    pub assets_subunits: String,
    /// Owed by us, in sub-units.
    pub liabilities_subunits: String,
}

/// An entry as it stands in the tables.
pub(crate) struct Stored {
    pub(crate) seq: i64,
    pub(crate) digest: [u8; 32],
    pub(crate) entry: Entry,
}

/// Hands over every entry in order with its legs.
pub(crate) fn walk<E: From<SqlError> + From<BookError>>(
    tx: &mut Transaction<'_>,
    last: i64,
    mut each: impl FnMut(Stored) -> Result<(), E>,
) -> Result<(), E> {
    let legs_sql = format!(
        "SELECT {} FROM book_transfers WHERE place >= ?1 AND place < ?2 ORDER BY place",
        TRANSFER_COLUMNS.join(", ")
    );
    let entries_sql = "SELECT seq, id, digest, kind, at_unix_s, memo FROM book_entries \
                       WHERE seq >= ?1 AND seq < ?2 ORDER BY seq";
    let mut from = 1i64;
    while from <= last {
        let to = (from + PIECE).min(last + 1);
        let rows = tx.query(&legs_sql, &[(from << LEG_BITS).into(), (to << LEG_BITS).into()])?;
        let mut legs: HashMap<i64, Vec<(i64, Leg)>> = HashMap::new();
        for row in &rows {
            let (place, leg) = read_transfer(row)?;
            legs.entry(place >> LEG_BITS).or_default().push((place, leg));
        }
        let rows = tx.query(entries_sql, &[from.into(), to.into()])?;
        if rows.len() as i64 != to - from {
            let why = format!("expected entries {from} to {}, found {} of them", to - 1, rows.len());
            return Err(BookError::damaged("book_entries", why).into());
        }
        for row in &rows {
            let seq = row.int(0)?;
            let found = legs.remove(&seq).unwrap_or_default();
            if let Some((place, _)) =
                found.iter().zip(0i64..).find(|((at, _), n)| *at != (seq << LEG_BITS) | n).map(|(p, _)| p)
            {
                return Err(BookError::damaged("book_transfers", format!("place {place} is out of order")).into());
            }
            let entry = Entry {
                id: EntryId(row.array(1)?),
                kind: Kind::of(row.text(3)?)?,
                at_unix_s: row.uint(4)?,
                memo: row.text(5)?.to_owned(),
                legs: found.into_iter().map(|(_, leg)| leg).collect(),
            };
            each(Stored { seq, digest: row.array(2)?, entry })?;
        }
        if let Some(seq) = legs.keys().next() {
            return Err(
                BookError::damaged("book_transfers", format!("transfers of entry {seq}, which is not there")).into()
            );
        }
        from = to;
    }
    Ok(())
}

/// State of a verification.
#[derive(Default)]
struct Check {
    sheet: Sheet,
    pending: HashMap<i64, Pending>,
    resolved: HashMap<i64, i64>,
    transfers: u64,
    chain: String,
    scratch: Vec<u8>,
}

impl Check {
    fn entry(&mut self, names: &Names, stored: &Stored) -> Result<(), BookError> {
        let (entry, seq) = (&stored.entry, stored.seq);
        let damaged =
            |why: String| Err(BookError::damaged("book_entries", format!("entry {seq} ({}): {why}", entry.memo)));
        if let Some(leg) = entry.legs.iter().find(|leg| !names.knows(leg.debit) || !names.knows(leg.credit)) {
            return damaged(format!("account {} or {} is unknown", leg.debit.0, leg.credit.0));
        }
        entry.check()?;
        let digest = entry.digest(names, &mut self.scratch);
        if digest != stored.digest {
            return damaged(format!(
                "its fields hash to {}, it says {}",
                hex::encode(digest),
                hex::encode(stored.digest)
            ));
        }
        self.chain = chained(&self.chain, &digest);
        for (leg_idx, leg) in (0i64..).zip(&entry.legs) {
            let place = (seq << LEG_BITS) | leg_idx;
            match leg.phase {
                Phase::Posted => {}
                Phase::Pending => {
                    let Leg { debit, credit, amount, .. } = *leg;
                    self.pending.insert(place, Pending { debit, credit, amount, resolved: false });
                }
                Phase::Post(at) | Phase::Void(at) => match self.pending.remove(&at) {
                    Some(p) if (p.debit, p.credit, p.amount) == (leg.debit, leg.credit, leg.amount) => {
                        self.resolved.insert(at, place);
                    }
                    _ => return damaged(format!("it resolves place {at}, which is not pending or another transfer")),
                },
            }
            self.sheet.apply(names, entry.id, entry.at_unix_s, leg)?;
            self.transfers += 1;
        }
        Ok(())
    }

    /// The derived tables hold what the transfers give.
    fn tables(&self, tx: &mut Transaction<'_>, names: &Names) -> Result<(), BookError> {
        let sql = format!("SELECT {} FROM book_balances", BALANCE_COLUMNS.join(", "));
        let mut n_rows = 0u64;
        for row in &tx.query(&sql, &[])? {
            let (account, found) = read_balance(row)?;
            let expected = self.sheet.balances.get(&account).copied().unwrap_or_default();
            // Accounts made since the names were read hold nothing.
            if found != expected {
                let name = if names.knows(account) { names.text(account).to_owned() } else { account.0.to_string() };
                return Err(BookError::damaged(
                    "book_balances",
                    format!("{name}: transfers give {expected:?}, it says {found:?}"),
                ));
            }
            n_rows += u64::from(self.sheet.balances.contains_key(&account));
        }
        if n_rows != self.sheet.balances.len() as u64 {
            return Err(BookError::damaged("book_balances", "a balance is missing"));
        }
        let mut days = BTreeMap::new();
        for row in &tx.query("SELECT day, account, credited FROM book_maturity", &[])? {
            days.insert((row.uint(0)?, AccountRef(row.int(1)?)), row.amount(2)?);
        }
        if days != self.sheet.matured {
            return Err(BookError::damaged("book_maturity", "credits by day are not those of the transfers"));
        }
        let mut resolved = HashMap::new();
        for row in &tx.query("SELECT pending, by_place FROM book_resolutions", &[])? {
            resolved.insert(row.int(0)?, row.int(1)?);
        }
        if resolved != self.resolved {
            return Err(BookError::damaged("book_resolutions", "resolutions are not those of the transfers"));
        }
        Ok(())
    }

    fn sums(&self, names: &Names) -> Result<Vec<CurrencySum>, BookError> {
        let mut sums: BTreeMap<&str, (u128, u128)> = BTreeMap::new();
        for (account, balance) in &self.sheet.balances {
            let (assets, liabilities) = sums.entry(names.account(*account).currency).or_default();
            let Balance { debits_posted, credits_posted, .. } = *balance;
            if names.is_asset(*account) {
                *assets = add(*assets, debits_posted.0 - credits_posted.0)?;
            } else {
                *liabilities = add(*liabilities, credits_posted.0 - debits_posted.0)?;
            }
        }
        for (currency, (assets, liabilities)) in &sums {
            if assets != liabilities {
                let why = format!("{currency}: assets of {assets}, liabilities of {liabilities} sub-units");
                return Err(BookError::damaged("book_transfers", why));
            }
        }
        let text = |(currency, (assets, liabilities)): (&str, (u128, u128))| CurrencySum {
            currency: currency.to_owned(),
            assets_subunits: assets.to_string(),
            liabilities_subunits: liabilities.to_string(),
        };
        Ok(sums.into_iter().map(text).collect())
    }
}

impl Book {
    /// Checks the whole book against its own transfers: digests and their chain, every rule in order, balances, credits by day,
    /// resolutions, and that both sides are equal in every currency. Writers wait meanwhile. Cost: one pass over all transfers.
    ///
    /// # Errors
    /// [`BookError::Damaged`] with the first contradiction; the database's.
    pub fn verify(&mut self) -> Result<VerifyBookReport, BookError> {
        self.refresh()?;
        let names = &self.names;
        self.db.transaction(|tx| {
            names.queue(tx)?;
            let head = tx.query("SELECT entries, chain FROM book_head WHERE id = 1", &[])?;
            let head = head.first().ok_or_else(|| BookError::damaged("book_head", "its row is gone"))?;
            let (last, chain) = (head.int(0)?, head.text(1)?.to_owned());
            let mut check = Check::default();
            walk(tx, last, |stored| check.entry(names, &stored))?;
            let beyond = tx.query("SELECT count(*) FROM book_entries", &[])?[0].int(0)?;
            if beyond != last {
                let why = format!("the head counts {last} entries, the table holds {beyond}");
                return Err(BookError::damaged("book_head", why));
            }
            if check.chain != chain {
                let why = format!("entries hash to the chain {}, the head says {chain}", check.chain);
                return Err(BookError::damaged("book_head", why));
            }
            check.tables(tx, names)?;
            Ok(VerifyBookReport {
                entries: last.unsigned_abs(),
                transfers: check.transfers,
                accounts: check.sheet.balances.len() as u64,
                open_pending: check.pending.len() as u64,
                chain,
                currencies: check.sums(names)?,
            })
        })
    }
}
