//! Settlement: what payees may have now is reserved for payment; the rest is carried, held or frozen. A settlement is one id.

use std::collections::{BTreeMap, HashMap, HashSet};

use ascribe_core::Digest;
use ascribe_ledger::{Balance, Currency, Money, SUB_UNITS_PER_MINOR};
use ascribe_sql::{Transaction, Value};
use serde::{Deserialize, Serialize};

use crate::account::{BookAccount, Purpose};
use crate::book::{Book, Names, read_balance};
use crate::entry::{AccountRef, Entry, EntryId, Kind, Leg, Phase, Why};
use crate::error::{BookError, add};
use crate::post::{BALANCE_COLUMNS, DAY_S, TRANSFER_COLUMNS, post, read_transfer};
use crate::schema::{LEG_BITS, LEGS_MAX};

/// What a settlement follows from beside the book. The same terms are the same settlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettleTerms {
    /// Currency; each settles for itself.
    pub currency: Currency,
    /// Moment of the settlement, seconds since 1970.
    pub as_of_unix_s: u64,
    /// Days that earnings are held before they may be paid.
    pub hold_days: u32,
    /// Balances below this many minor units are carried.
    #[serde(with = "text")]
    pub minimum_minor: u128,
}

/// Serde for `u128` as a decimal string: JSON numbers round above 2⁵³.
mod text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl SettleTerms {
    /// Identity of the settlement: SHA-256 of its terms as JSON.
    ///
    /// # Errors
    /// Values that do not serialise, which would be a defect.
    pub fn id(&self) -> Result<Digest, BookError> {
        Ok(Digest::of_json(self)?)
    }

    /// The last day whose earnings may be paid; nothing when the hold reaches back before 1970.
    fn last_day(&self) -> Option<u64> {
        (self.as_of_unix_s / DAY_S).checked_sub(u64::from(self.hold_days))
    }
}

/// What became of a payee's balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SettleStatus {
    /// Whole units are reserved for payment.
    Reserved,
    /// Below the minimum or one minor unit; carried.
    BelowMinimum,
    /// Still within the hold.
    Held,
    /// The licence names no account.
    NoAccount,
    /// The owner is in a dispute.
    Disputed,
}

/// One payee's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettleRow {
    /// The owner.
    pub owner: String,
    /// Where to pay; empty when there is no account.
    pub account: String,
    /// Reserved for payment, in decimals of the currency.
    pub pays: String,
    /// The same in minor units.
    pub pays_minor: String,
    /// Taken from the balance for what was paid wrongly before, in sub-units.
    pub set_off_subunits: String,
    /// What stays on the books, in sub-units.
    pub carried_subunits: String,
    /// Why.
    pub status: SettleStatus,
}

/// A settlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Its identity.
    pub id: String,
    /// What it follows from.
    pub terms: SettleTerms,
    /// True when it was in the book already and nothing was done.
    pub already_done: bool,
    /// Sum reserved, with currency.
    pub total: String,
    /// One row per payee with a balance; of a settlement that was done before, those who are paid.
    pub rows: Vec<SettleRow>,
}

/// What the settlement decides for one payee.
struct Decision {
    set_off: u128,
    minor: u128,
    carried: u128,
    status: SettleStatus,
}

/// Takes back first, then pays whole units of what is no longer held: `⌊min(available, matured)/10⁶⌋`.
///
/// `spent` counts against the oldest earnings, so what is matured and unspent is `credited up to the last day − all debits`.
fn decide(balance: &Balance, owes: u128, matured: u128, payable: bool, disputed: bool, minimum: u128) -> Decision {
    let available = balance.available(false).0;
    let set_off = owes.min(available);
    let spent = balance.debits_posted.0.saturating_add(balance.debits_pending.0).saturating_add(set_off);
    let left = available - set_off;
    let free = matured.saturating_sub(spent).min(left);
    let whole = free / SUB_UNITS_PER_MINOR;
    let minimum = minimum.max(1);
    let status = if disputed {
        SettleStatus::Disputed
    } else if !payable {
        SettleStatus::NoAccount
    } else if whole >= minimum {
        SettleStatus::Reserved
    } else if left / SUB_UNITS_PER_MINOR >= minimum {
        SettleStatus::Held
    } else {
        SettleStatus::BelowMinimum
    };
    let minor = if status == SettleStatus::Reserved { whole } else { 0 };
    // In a dispute nothing moves, not even back.
    let set_off = if disputed { 0 } else { set_off };
    Decision { set_off, minor, carried: available - set_off - minor * SUB_UNITS_PER_MINOR, status }
}

impl Book {
    /// Reserves what payees may have, as pending transfers. The same terms again change nothing and give the same payments.
    ///
    /// # Errors
    /// More payees than an entry holds; the database's.
    pub fn settle(&mut self, terms: &SettleTerms) -> Result<Settled, BookError> {
        let id = terms.id()?;
        if let Some(seq) = self.settlement(id)? {
            return self.settled_before(id, terms, seq);
        }
        let cash = self.account(terms.currency, Purpose::Cash)?;
        self.refresh()?;
        let names = &self.names;
        let outcome = self.db.transaction(|tx| settle(tx, names, terms, id, cash))?;
        match outcome {
            Some(settled) => Ok(settled),
            // Another program was faster.
            None => match self.settlement(id)? {
                Some(seq) => self.settled_before(id, terms, seq),
                None => Err(BookError::damaged("book_settlements", format!("{id} is lost"))),
            },
        }
    }

    /// Number of the settlement's entry, 0 when it paid nobody; nothing when there is no such settlement.
    fn settlement(&mut self, id: Digest) -> Result<Option<i64>, BookError> {
        let rows = self.db.query("SELECT coalesce(seq, 0) FROM book_settlements WHERE id = ?1", &[id.0.into()])?;
        rows.first().map(|row| row.int(0)).transpose().map_err(Into::into)
    }

    fn settled_before(&mut self, id: Digest, terms: &SettleTerms, seq: i64) -> Result<Settled, BookError> {
        self.refresh()?;
        let mut rows = BTreeMap::new();
        let mut total = 0;
        for (_, leg) in self.legs_of(seq)? {
            let Purpose::Payable { owner, address } = self.names.account(leg.debit).purpose.clone() else { continue };
            let row = rows.entry((owner.clone(), address.clone())).or_insert_with(|| SettleRow {
                owner,
                account: address,
                pays: String::new(),
                pays_minor: "0".into(),
                set_off_subunits: "0".into(),
                carried_subunits: String::new(),
                status: SettleStatus::BelowMinimum,
            });
            match leg.why {
                Why::SetOff => row.set_off_subunits = leg.amount.to_string(),
                _ => {
                    let minor = leg.amount / SUB_UNITS_PER_MINOR;
                    row.pays_minor = minor.to_string();
                    row.status = SettleStatus::Reserved;
                    total = add(total, minor)?;
                }
            }
        }
        let mut rows: Vec<SettleRow> = rows.into_values().collect();
        for row in &mut rows {
            let minor = row.pays_minor.parse().unwrap_or_default();
            row.pays = Money { minor, currency: terms.currency }.decimal();
            if let Some(account) = self.names.number(&payable(terms.currency, &row.owner, &row.account)) {
                row.carried_subunits = self.available(account)?.to_string();
            }
        }
        let total = Money { minor: total, currency: terms.currency }.to_string();
        Ok(Settled { id: id.to_string(), terms: terms.clone(), already_done: true, total, rows })
    }

    /// Places and legs of an entry.
    pub(crate) fn legs_of(&mut self, seq: i64) -> Result<Vec<(i64, Leg)>, BookError> {
        let columns = TRANSFER_COLUMNS.join(", ");
        let sql = format!("SELECT {columns} FROM book_transfers WHERE place >= ?1 AND place < ?2 ORDER BY place");
        let range = [(seq << LEG_BITS).into(), ((seq + 1) << LEG_BITS).into()];
        self.db.query(&sql, &range)?.iter().map(read_transfer).collect()
    }

    /// Books what became of a settlement's payments: paid (`done`) or returned; of one owner, or of all that are still open.
    /// Returns how many payments that were.
    ///
    /// # Errors
    /// No such settlement; the database's.
    pub fn resolve(&mut self, id: &str, owner: Option<&str>, done: bool, at_unix_s: u64) -> Result<usize, BookError> {
        let unknown = || BookError::Unknown { what: "settlement", id: id.to_owned(), hint: "" };
        let digest: Digest = id.parse().map_err(|_| unknown())?;
        let seq = self.settlement(digest)?.ok_or_else(unknown)?;
        self.refresh()?;
        let open = self.open_payments(seq)?;
        let chosen: Vec<(i64, Leg)> = open
            .into_iter()
            .filter(|(_, leg)| match (&self.names.account(leg.debit).purpose, owner) {
                (Purpose::Payable { owner: found, .. }, Some(owner)) => found == owner,
                _ => true,
            })
            .collect();
        if chosen.is_empty() {
            return Ok(0);
        }
        let (kind, n_chosen) = (if done { Kind::Paid } else { Kind::Returned }, chosen.len());
        // Each payment is resolved once, so the first of them names the entry.
        let memo = format!("{id} {} {}", owner.unwrap_or("all"), chosen[0].0);
        let legs = chosen.into_iter().map(|(place, leg)| {
            let phase = if done { Phase::Post(place) } else { Phase::Void(place) };
            Leg { phase, ..leg }
        });
        let entry = Entry { id: EntryId::of(kind, &memo), kind, at_unix_s, memo, legs: legs.collect() };
        self.post(&[entry])?;
        Ok(n_chosen)
    }

    /// Payments of a settlement that are neither paid nor returned.
    pub(crate) fn open_payments(&mut self, seq: i64) -> Result<Vec<(i64, Leg)>, BookError> {
        let sql = "SELECT pending FROM book_resolutions WHERE pending >= ?1 AND pending < ?2";
        let range: [Value; 2] = [(seq << LEG_BITS).into(), ((seq + 1) << LEG_BITS).into()];
        let resolved: Result<HashSet<i64>, _> = self.db.query(sql, &range)?.iter().map(|row| row.int(0)).collect();
        let resolved = resolved?;
        let legs = self.legs_of(seq)?;
        Ok(legs.into_iter().filter(|(at, leg)| leg.phase == Phase::Pending && !resolved.contains(at)).collect())
    }
}

fn payable(currency: Currency, owner: &str, address: &str) -> BookAccount {
    BookAccount::new(currency, Purpose::Payable { owner: owner.into(), address: address.into() })
}

/// One settlement within its transaction; nothing when it was there.
fn settle(
    tx: &mut Transaction<'_>,
    names: &Names,
    terms: &SettleTerms,
    id: Digest,
    cash: AccountRef,
) -> Result<Option<Settled>, BookError> {
    names.queue(tx)?;
    if !tx.query("SELECT id FROM book_settlements WHERE id = ?1", &[id.0.into()])?.is_empty() {
        return Ok(None);
    }
    let balances = balances_of(tx, names, terms.currency)?;
    let matured = matured_until(tx, terms.last_day())?;
    let disputed = disputed_owners(tx, terms.currency)?;
    let (mut legs, mut rows, mut total) = (Vec::new(), Vec::new(), 0u128);
    for (account, balance) in &balances {
        let Purpose::Payable { owner, address } = &names.account(*account).purpose else { continue };
        let recoverable = Purpose::Recoverable { owner: owner.clone(), address: address.clone() };
        let debtor = names.number(&BookAccount::new(terms.currency, recoverable));
        let owes = debtor.and_then(|at| balances.get(&at)).map_or(0, |balance| balance.available(true).0);
        let matured = matured.get(account).copied().unwrap_or(0);
        let is_disputed = disputed.contains(&(owner.clone(), address.clone()));
        let found = decide(balance, owes, matured, !address.is_empty(), is_disputed, terms.minimum_minor);
        if let (Some(debtor), true) = (debtor, found.set_off > 0) {
            legs.push(Leg::posted(*account, debtor, found.set_off, Why::SetOff));
        }
        if found.minor > 0 {
            let amount = found.minor * SUB_UNITS_PER_MINOR;
            legs.push(Leg { phase: Phase::Pending, ..Leg::posted(*account, cash, amount, Why::Settlement) });
            total = add(total, found.minor)?;
        }
        if found.carried > 0 || found.minor > 0 || found.set_off > 0 {
            rows.push(row(owner, address, terms.currency, &found));
        }
    }
    if legs.len() > LEGS_MAX {
        let what = "settlement: payees".to_owned();
        return Err(BookError::Field { what, expected: format!("at most {LEGS_MAX}"), found: legs.len().to_string() });
    }
    let seq = if legs.is_empty() { None } else { Some(book(tx, names, terms, id, legs)?) };
    let values: [Value; 4] =
        [id.0.into(), terms.currency.code().into(), serde_json::to_string(terms)?.into(), seq.into()];
    tx.execute("INSERT INTO book_settlements (id, currency, terms, seq) VALUES (?1, ?2, ?3, ?4)", &values)?;
    rows.sort_by(|a, b| (&a.owner, &a.account).cmp(&(&b.owner, &b.account)));
    let total = Money { minor: total, currency: terms.currency }.to_string();
    Ok(Some(Settled { id: id.to_string(), terms: terms.clone(), already_done: false, total, rows }))
}

fn row(owner: &str, address: &str, currency: Currency, found: &Decision) -> SettleRow {
    SettleRow {
        owner: owner.to_owned(),
        account: address.to_owned(),
        pays: Money { minor: found.minor, currency }.decimal(),
        pays_minor: found.minor.to_string(),
        set_off_subunits: found.set_off.to_string(),
        carried_subunits: found.carried.to_string(),
        status: found.status,
    }
}

/// Posts the settlement's entry and returns its number.
fn book(
    tx: &mut Transaction<'_>,
    names: &Names,
    terms: &SettleTerms,
    id: Digest,
    legs: Vec<Leg>,
) -> Result<i64, BookError> {
    let (kind, memo) = (Kind::Settlement, id.to_string());
    let entry = Entry { id: EntryId::of(kind, &memo), kind, at_unix_s: terms.as_of_unix_s, memo, legs };
    post(tx, names, std::slice::from_ref(&entry))?;
    let rows = tx.query("SELECT seq FROM book_entries WHERE id = ?1", &[entry.id.0.into()])?;
    rows.first().map_or(Err(BookError::damaged("book_entries", "an entry is lost")), |row| Ok(row.int(0)?))
}

fn balances_of(
    tx: &mut Transaction<'_>,
    names: &Names,
    currency: Currency,
) -> Result<BTreeMap<AccountRef, Balance>, BookError> {
    let columns: Vec<String> = BALANCE_COLUMNS.iter().map(|column| format!("b.{column}")).collect();
    let sql = format!(
        "SELECT {} FROM book_balances b JOIN book_accounts a ON a.id = b.account \
         WHERE a.currency = ?1 AND a.kind IN ('payable', 'recoverable')",
        columns.join(", ")
    );
    let mut found = BTreeMap::new();
    tx.query_each(&sql, &[currency.code().into()], |row| {
        let (account, balance) = read_balance(&row)?;
        found.insert(account, balance);
        Ok(())
    })?;
    // Accounts that another program has just made hold nothing yet.
    found.retain(|account, _| names.knows(*account));
    Ok(found)
}

fn matured_until(tx: &mut Transaction<'_>, last_day: Option<u64>) -> Result<HashMap<AccountRef, u128>, BookError> {
    let mut matured: HashMap<AccountRef, u128> = HashMap::new();
    let Some(last_day) = last_day else { return Ok(matured) };
    let mut overflow = Ok(());
    let sql = "SELECT account, credited FROM book_maturity WHERE day <= ?1";
    tx.query_each(sql, &[(last_day as i64).into()], |row| {
        let sum = matured.entry(AccountRef(row.int(0)?)).or_default();
        match add(*sum, row.amount(1)?) {
            Ok(more) => *sum = more,
            Err(error) => overflow = Err(error),
        }
        Ok(())
    })?;
    overflow.map(|()| matured)
}

/// Owners with an open dispute that freezes everything; one over an amount has frozen it already.
fn disputed_owners(tx: &mut Transaction<'_>, currency: Currency) -> Result<HashSet<(String, String)>, BookError> {
    let sql = "SELECT owner, address FROM book_disputes WHERE currency = ?1 AND outcome IS NULL AND pending IS NULL";
    let rows = tx.query(sql, &[currency.code().into()])?;
    rows.iter().map(|row| Ok((row.text(0)?.to_owned(), row.text(1)?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use ascribe_ledger::SubUnits;

    use super::*;

    fn balance(credits: u128, debits: u128, pending: u128) -> Balance {
        let (credits_posted, debits_posted, debits_pending) = (SubUnits(credits), SubUnits(debits), SubUnits(pending));
        Balance { credits_posted, debits_posted, debits_pending, ..Balance::default() }
    }

    /// Cents: 10 earned, 7 of them past the hold, 2 paid, 1 on its way.
    #[test]
    fn by_hand() {
        const CENT: u128 = SUB_UNITS_PER_MINOR;
        let check = |owes: u128,
                     matured: u128,
                     payable,
                     disputed,
                     minimum,
                     expected: (u128, u128, u128, SettleStatus)| {
            let found =
                decide(&balance(10 * CENT, 2 * CENT, CENT), owes * CENT, matured * CENT, payable, disputed, minimum);
            assert_eq!((found.set_off / CENT, found.minor, found.carried / CENT, found.status), expected);
        };
        use SettleStatus::{BelowMinimum, Disputed, Held, NoAccount, Reserved};
        check(0, 7, true, false, 1, (0, 4, 3, Reserved));
        check(0, 10, true, false, 1, (0, 7, 0, Reserved));
        check(0, 2, true, false, 1, (0, 0, 7, Held));
        check(0, 7, true, false, 5, (0, 0, 7, Held));
        check(0, 10, true, false, 8, (0, 0, 7, BelowMinimum));
        check(3, 7, true, false, 1, (3, 1, 3, Reserved));
        check(99, 10, true, false, 1, (7, 0, 0, BelowMinimum));
        check(0, 10, false, false, 1, (0, 0, 7, NoAccount));
        check(3, 10, true, true, 1, (0, 0, 7, Disputed));
    }
}
