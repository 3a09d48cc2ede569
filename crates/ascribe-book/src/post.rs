//! Posting: entries become rows and balances within one transaction. Every rule of the book is checked here and nowhere else.

use std::collections::{BTreeMap, HashMap};

use ascribe_ledger::{Balance, SubUnits};
use ascribe_sql::{Row, SqlError, Transaction, Value};
use sha2::{Digest as _, Sha256};

use crate::account::Purpose;
use crate::book::{Names, Outcome, read_balance};
use crate::entry::{AccountRef, Entry, EntryId, Leg, Phase, Why};
use crate::error::{BookError, add};
use crate::schema::LEG_BITS;

/// Columns of `book_balances`.
pub(crate) const BALANCE_COLUMNS: [&str; 5] =
    ["account", "debits_posted", "credits_posted", "debits_pending", "credits_pending"];
/// Columns of `book_transfers`.
pub(crate) const TRANSFER_COLUMNS: [&str; 8] =
    ["place", "debit", "credit", "amount", "why", "phase", "pending", "dataset"];

/// Seconds of a day.
pub(crate) const DAY_S: u64 = 86_400;

/// Numbers of values in one `IN (…)`; a list is padded to the next of them, so that few statements stay prepared.
const LISTS: [usize; 3] = [8, 64, 512];

/// Balances after each leg, and what payees were credited by day.
#[derive(Default)]
pub(crate) struct Sheet {
    pub(crate) balances: HashMap<AccountRef, Balance>,
    pub(crate) matured: BTreeMap<(u64, AccountRef), u128>,
}

/// A pending transfer that an entry resolves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) debit: AccountRef,
    pub(crate) credit: AccountRef,
    pub(crate) amount: u128,
    pub(crate) resolved: bool,
}

impl Sheet {
    /// Adds one leg; refuses what would leave an account below zero.
    pub(crate) fn apply(&mut self, names: &Names, id: EntryId, at_unix_s: u64, leg: &Leg) -> Result<(), BookError> {
        let amount = SubUnits(leg.amount);
        for (account, is_debit) in [(leg.debit, true), (leg.credit, false)] {
            let mut balance = self.balances.get(&account).copied().unwrap_or_default();
            let (posted, pending) = if is_debit {
                (&mut balance.debits_posted, &mut balance.debits_pending)
            } else {
                (&mut balance.credits_posted, &mut balance.credits_pending)
            };
            match leg.phase {
                Phase::Posted => *posted = posted.plus(amount)?,
                Phase::Pending => *pending = pending.plus(amount)?,
                Phase::Post(_) => {
                    *pending = less(*pending, amount)?;
                    *posted = posted.plus(amount)?;
                }
                Phase::Void(_) => *pending = less(*pending, amount)?,
            }
            check_funds(names, id, account, &balance)?;
            self.balances.insert(account, balance);
        }
        let earns = matches!(leg.why, Why::Accrual | Why::Carried) && leg.phase == Phase::Posted;
        if earns && matches!(names.account(leg.credit).purpose, Purpose::Payable { .. }) {
            let sum = self.matured.entry((at_unix_s / DAY_S, leg.credit)).or_default();
            *sum = add(*sum, leg.amount)?;
        }
        Ok(())
    }
}

/// Takes a pending amount back out.
fn less(from: SubUnits, amount: SubUnits) -> Result<SubUnits, BookError> {
    let left = from.0.checked_sub(amount.0);
    left.map(SubUnits).ok_or_else(|| BookError::damaged("book_balances", "less is pending than was reserved"))
}

fn check_funds(names: &Names, id: EntryId, account: AccountRef, balance: &Balance) -> Result<(), BookError> {
    let (holds, taken) = if names.is_asset(account) {
        (balance.debits_posted, balance.credits_posted.plus(balance.credits_pending)?)
    } else {
        (balance.credits_posted, balance.debits_posted.plus(balance.debits_pending)?)
    };
    if taken > holds {
        let (account, holds, needs) = (names.text(account).to_owned(), holds.0, taken.0);
        return Err(BookError::Overdrawn { id: id.to_string(), account, holds, needs });
    }
    Ok(())
}

/// Posts `entries`; see [`crate::Book::post`].
pub(crate) fn post(tx: &mut Transaction<'_>, names: &Names, entries: &[Entry]) -> Result<Vec<Outcome>, BookError> {
    names.queue(tx)?;
    let head = tx.query("SELECT entries, chain FROM book_head WHERE id = 1", &[])?;
    let head = head.first().ok_or_else(|| BookError::damaged("book_head", "its row is gone"))?;
    let (mut seq, mut chain) = (head.int(0)?, head.text(1)?.to_owned());
    let mut known = known_digests(tx, entries)?;
    let (mut outcomes, mut fresh, mut scratch) = (Vec::with_capacity(entries.len()), Vec::new(), Vec::new());
    for entry in entries {
        check_names(names, entry)?;
        let digest = entry.digest(names, &mut scratch);
        match known.insert(entry.id, digest) {
            None => {
                entry.check()?;
                fresh.push((entry, digest));
                outcomes.push(Outcome::Posted);
            }
            Some(before) if before == digest => outcomes.push(Outcome::AlreadyThere),
            Some(_) => return Err(BookError::Reused { what: entry.kind.word(), id: entry.memo.clone() }),
        }
    }
    if fresh.is_empty() {
        return Ok(outcomes);
    }
    let mut sheet = load(tx, fresh.iter().map(|(entry, _)| *entry))?;
    let mut pending = pending_transfers(tx, fresh.iter().map(|(entry, _)| *entry))?;
    let mut rows = Rows::default();
    for (entry, digest) in fresh {
        seq += 1;
        for (leg_idx, leg) in (0i64..).zip(&entry.legs) {
            let place = (seq << LEG_BITS) | leg_idx;
            resolve(&mut pending, entry, leg, place, &mut rows)?;
            sheet.apply(names, entry.id, entry.at_unix_s, leg)?;
            rows.transfers.push(transfer_row(place, leg));
        }
        chain = chained(&chain, &digest);
        rows.entries.push(entry_row(seq, entry, &digest));
    }
    rows.write(tx)?;
    store(tx, &sheet)?;
    tx.execute("UPDATE book_head SET entries = ?1, chain = ?2 WHERE id = 1", &[seq.into(), chain.as_str().into()])?;
    Ok(outcomes)
}

/// The chain after one more entry: `SHA-256(chain before ‖ digest)` in hex.
pub(crate) fn chained(before: &str, digest: &[u8; 32]) -> String {
    hex::encode(Sha256::new().chain_update(before).chain_update(digest).finalize())
}

fn check_names(names: &Names, entry: &Entry) -> Result<(), BookError> {
    for leg in &entry.legs {
        if !names.knows(leg.debit) || !names.knows(leg.credit) {
            return Err(BookError::Unknown { what: "account", id: format!("{:?}", leg), hint: "" });
        }
        let (debit, credit) = (names.account(leg.debit).currency, names.account(leg.credit).currency);
        if debit != credit {
            let (what, expected) = (format!("entry {}: leg", entry.id), "one currency".to_owned());
            return Err(BookError::Field { what, expected, found: format!("{debit} and {credit}") });
        }
    }
    Ok(())
}

/// What a leg resolves must be pending, unresolved and the same.
fn resolve(
    pending: &mut HashMap<i64, Pending>,
    entry: &Entry,
    leg: &Leg,
    place: i64,
    rows: &mut Rows,
) -> Result<(), BookError> {
    let (Phase::Post(at) | Phase::Void(at)) = leg.phase else { return Ok(()) };
    let refuse = |why: &str| Err(BookError::State { what: entry.kind.word(), id: entry.memo.clone(), why: why.into() });
    let Some(found) = pending.get_mut(&at) else {
        return refuse("it resolves a transfer that is not pending");
    };
    if found.resolved {
        return refuse("it was resolved before; a pending transfer is posted or voided once");
    }
    if (found.debit, found.credit, found.amount) != (leg.debit, leg.credit, leg.amount) {
        return refuse("it resolves a transfer of another amount or between other accounts");
    }
    found.resolved = true;
    rows.resolutions.push(vec![at.into(), place.into()]);
    Ok(())
}

/// Rows to write.
#[derive(Default)]
struct Rows {
    entries: Vec<Vec<Value>>,
    transfers: Vec<Vec<Value>>,
    resolutions: Vec<Vec<Value>>,
}

impl Rows {
    fn write(self, tx: &mut Transaction<'_>) -> Result<(), SqlError> {
        tx.insert_many("book_entries", &["seq", "id", "digest", "kind", "at_unix_s", "memo"], self.entries)?;
        tx.insert_many("book_transfers", &TRANSFER_COLUMNS, self.transfers)?;
        if !self.resolutions.is_empty() {
            tx.insert_many("book_resolutions", &["pending", "by_place"], self.resolutions)?;
        }
        Ok(())
    }
}

fn entry_row(seq: i64, entry: &Entry, digest: &[u8; 32]) -> Vec<Value> {
    vec![
        seq.into(),
        entry.id.0.into(),
        (*digest).into(),
        entry.kind.word().into(),
        // Checked to fit.
        (entry.at_unix_s as i64).into(),
        entry.memo.as_str().into(),
    ]
}

fn transfer_row(place: i64, leg: &Leg) -> Vec<Value> {
    let (phase, pending) = leg.phase.columns();
    vec![
        place.into(),
        leg.debit.0.into(),
        leg.credit.0.into(),
        leg.amount.into(),
        leg.why.code().into(),
        phase.into(),
        pending.into(),
        leg.dataset.map(|dataset| dataset.0).into(),
    ]
}

/// Reads a row of [`TRANSFER_COLUMNS`].
pub(crate) fn read_transfer(row: &Row) -> Result<(i64, Leg), BookError> {
    let optional = |column: usize| if row.is_null(column) { Ok(None) } else { row.int(column).map(Some) };
    let leg = Leg {
        debit: AccountRef(row.int(1)?),
        credit: AccountRef(row.int(2)?),
        amount: row.amount(3)?,
        why: Why::of(row.int(4)?)?,
        phase: Phase::of_columns(row.int(5)?, optional(6)?)?,
        dataset: optional(7)?.map(crate::entry::DatasetRef),
    };
    Ok((row.int(0)?, leg))
}

/// Runs `sql`, which has `{}` where the list goes, over all of `values`, some hundreds at a time.
fn query_lists(
    tx: &mut Transaction<'_>,
    sql: &str,
    first: &[Value],
    values: &[Value],
    mut each: impl FnMut(Row) -> Result<(), SqlError>,
) -> Result<(), SqlError> {
    for piece in values.chunks(LISTS[LISTS.len() - 1]) {
        let (list, params) = padded(first, piece);
        tx.query_each(&sql.replace("{}", &list), &params, &mut each)?;
    }
    Ok(())
}

/// A list of places and the values in them, the last one repeated up to the next common length.
fn padded(first: &[Value], piece: &[Value]) -> (String, Vec<Value>) {
    let n = LISTS.into_iter().find(|n| *n >= piece.len()).unwrap_or(piece.len());
    let places: Vec<String> = (0..n).map(|i| format!("?{}", first.len() + i + 1)).collect();
    let last = piece.last().cloned().unwrap_or(Value::Null);
    let params = first.iter().chain(piece).cloned().chain(std::iter::repeat_n(last, n - piece.len()));
    (places.join(", "), params.collect())
}

fn known_digests(tx: &mut Transaction<'_>, entries: &[Entry]) -> Result<HashMap<EntryId, [u8; 32]>, SqlError> {
    let ids: Vec<Value> = entries.iter().map(|entry| entry.id.0.into()).collect();
    let mut known = HashMap::with_capacity(entries.len());
    query_lists(tx, "SELECT id, digest FROM book_entries WHERE id IN ({})", &[], &ids, |row| {
        known.insert(EntryId(row.array(0)?), row.array(1)?);
        Ok(())
    })?;
    Ok(known)
}

/// The balances that entries touch, and what their payees were credited on their days.
fn load<'a>(tx: &mut Transaction<'_>, entries: impl Iterator<Item = &'a Entry>) -> Result<Sheet, SqlError> {
    let mut touched: Vec<i64> = Vec::new();
    let mut days: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for entry in entries {
        for leg in &entry.legs {
            touched.extend([leg.debit.0, leg.credit.0]);
            if matches!(leg.why, Why::Accrual | Why::Carried) {
                days.entry(entry.at_unix_s / DAY_S).or_default().push(leg.credit.0);
            }
        }
    }
    let values = |mut list: Vec<i64>| -> Vec<Value> {
        list.sort_unstable();
        list.dedup();
        list.into_iter().map(Value::from).collect()
    };
    let mut sheet = Sheet::default();
    let sql = format!("SELECT {} FROM book_balances WHERE account IN ({{}})", BALANCE_COLUMNS.join(", "));
    query_lists(tx, &sql, &[], &values(touched), |row| {
        let (account, balance) = read_balance(&row)?;
        sheet.balances.insert(account, balance);
        Ok(())
    })?;
    let sql = "SELECT account, credited FROM book_maturity WHERE day = ?1 AND account IN ({})";
    for (day, accounts) in days {
        query_lists(tx, sql, &[(day as i64).into()], &values(accounts), |row| {
            sheet.matured.insert((day, AccountRef(row.int(0)?)), row.amount(1)?);
            Ok(())
        })?;
    }
    Ok(sheet)
}

fn pending_transfers<'a>(
    tx: &mut Transaction<'_>,
    entries: impl Iterator<Item = &'a Entry>,
) -> Result<HashMap<i64, Pending>, SqlError> {
    let places = entries.flat_map(|entry| &entry.legs).filter_map(|leg| match leg.phase {
        Phase::Post(place) | Phase::Void(place) => Some(place.into()),
        Phase::Posted | Phase::Pending => None,
    });
    let places: Vec<Value> = places.collect();
    let mut found = HashMap::with_capacity(places.len());
    let sql = "SELECT t.place, t.debit, t.credit, t.amount, r.by_place FROM book_transfers t \
               LEFT JOIN book_resolutions r ON r.pending = t.place WHERE t.phase = 1 AND t.place IN ({})";
    query_lists(tx, sql, &[], &places, |row| {
        let (debit, credit) = (AccountRef(row.int(1)?), AccountRef(row.int(2)?));
        let pending = Pending { debit, credit, amount: row.amount(3)?, resolved: !row.is_null(4) };
        found.insert(row.int(0)?, pending);
        Ok(())
    })?;
    Ok(found)
}

/// Writes balances and credits by day: old rows out, new rows in, which both engines do in bulk.
fn store(tx: &mut Transaction<'_>, sheet: &Sheet) -> Result<(), SqlError> {
    let mut accounts: Vec<&AccountRef> = sheet.balances.keys().collect();
    accounts.sort_unstable();
    let keys: Vec<Value> = accounts.iter().map(|account| account.0.into()).collect();
    delete_lists(tx, "DELETE FROM book_balances WHERE account IN ({})", &[], &keys)?;
    let rows = accounts.iter().map(|account| {
        let balance = &sheet.balances[account];
        let amounts = [balance.debits_posted, balance.credits_posted, balance.debits_pending, balance.credits_pending];
        std::iter::once(account.0.into()).chain(amounts.map(|amount| Value::from(amount.0))).collect()
    });
    tx.insert_many("book_balances", &BALANCE_COLUMNS, rows)?;
    let mut days: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for (day, account) in sheet.matured.keys() {
        days.entry(*day).or_default().push(account.0.into());
    }
    for (day, accounts) in days {
        let sql = "DELETE FROM book_maturity WHERE day = ?1 AND account IN ({})";
        delete_lists(tx, sql, &[(day as i64).into()], &accounts)?;
    }
    let rows = sheet
        .matured
        .iter()
        .map(|((day, account), credited)| vec![account.0.into(), (*day as i64).into(), (*credited).into()]);
    tx.insert_many("book_maturity", &["account", "day", "credited"], rows)?;
    Ok(())
}

fn delete_lists(tx: &mut Transaction<'_>, sql: &str, first: &[Value], values: &[Value]) -> Result<(), SqlError> {
    for piece in values.chunks(LISTS[LISTS.len() - 1]) {
        let (list, params) = padded(first, piece);
        tx.execute(&sql.replace("{}", &list), &params)?;
    }
    Ok(())
}
