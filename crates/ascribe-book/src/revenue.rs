//! The revenue of one response becomes an entry: operator and reserve, what evidence does not cover, then every licensed
//! contributor of that very response, by floors; what floors leave is dust.

use std::collections::{BTreeMap, HashMap, HashSet};

use ascribe_ledger::{Currency, LedgerError, Line, SubUnits, Terms, UnattributedReason, by_ppm, floors};

use crate::account::{BookAccount, Purpose};
use crate::book::Book;
use crate::entry::{AccountRef, DatasetRef, Entry, EntryId, Kind, Leg, Phase, Why};
use crate::error::{BookError, add};

/// What the operator keeps of revenue before contributors are paid, in ppm of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RevenueSplit {
    /// The operator's part.
    pub operator_ppm: u32,
    /// Kept back for corrections.
    pub reserve_ppm: u32,
}

/// One million: a whole in ppm.
const WHOLE_PPM: u32 = 1_000_000;

/// On what terms the datasets of a book are paid, resolved to its accounts.
#[derive(Debug, Clone)]
pub struct PayTable {
    currency: Currency,
    split: RevenueSplit,
    datasets: Vec<PaidBy>,
    ordinals: HashMap<String, u32>,
    operator: AccountRef,
    reserve: AccountRef,
    unattributed: AccountRef,
    dust: AccountRef,
    cash: AccountRef,
    pool: AccountRef,
}

#[derive(Debug, Clone)]
struct PaidBy {
    dataset: DatasetRef,
    payees: Vec<(AccountRef, u32)>,
    blocked: Option<UnattributedReason>,
}

/// Where revenue comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It has just arrived (a settled payment for this response).
    Cash,
    /// It entered the pool before.
    Pool,
    /// A customer's prepaid balance.
    Prepaid(AccountRef),
}

/// One response that was paid for.
#[derive(Debug, Clone, Copy)]
pub struct PaidResponse<'a> {
    /// Its name: request id, payment key. The same name is booked once.
    pub request: &'a str,
    /// When.
    pub at_unix_s: u64,
    /// What it brought in.
    pub revenue: SubUnits,
    /// From where.
    pub source: Source,
    /// Part that measured evidence covers.
    pub coverage_ppm: u32,
    /// Weights by dataset ordinal of the pay table, each dataset once.
    pub lines: &'a [Line],
    /// Weight of datasets that nobody has registered: their part stays unattributed.
    pub unknown_weight: u64,
}

impl Book {
    /// Resolves terms to accounts, which are made if they are not there. `blocked[d]` says why dataset `d` may not be paid.
    ///
    /// # Errors
    /// Payees that do not sum to one million ppm, lists of different lengths, more than the whole to operator and reserve, names
    /// that would garble the books; the database's.
    pub fn pay_table(
        &mut self,
        currency: Currency,
        terms: &[Terms],
        blocked: &[Option<UnattributedReason>],
        split: RevenueSplit,
    ) -> Result<PayTable, BookError> {
        let kept = u64::from(split.operator_ppm) + u64::from(split.reserve_ppm);
        if kept > u64::from(WHOLE_PPM) {
            let expected = format!("at most {WHOLE_PPM} together");
            return Err(BookError::Field {
                what: "operator_ppm, reserve_ppm".into(),
                expected,
                found: kept.to_string(),
            });
        }
        if blocked.len() != terms.len() {
            let expected = format!("one of each of {} datasets", terms.len());
            return Err(BookError::Field { what: "blocked".into(), expected, found: blocked.len().to_string() });
        }
        let payable = |one: &Terms, payee: &ascribe_ledger::PayeeShare| {
            let payee = ascribe_ledger::Payee { owner: one.owner.clone(), account: payee.account.clone() };
            BookAccount::new(currency, Purpose::payable(&payee))
        };
        let mut wanted = Vec::new();
        for one in terms {
            let sum: u64 = one.payees.iter().map(|payee| u64::from(payee.share_ppm)).sum();
            if !one.payees.is_empty() && sum != u64::from(WHOLE_PPM) {
                let (what, expected) = (format!("payees of {}", one.dataset), format!("a sum of {WHOLE_PPM} ppm"));
                return Err(BookError::Field { what, expected, found: sum.to_string() });
            }
            wanted.extend(one.payees.iter().map(|payee| payable(one, payee)));
        }
        self.accounts(&wanted)?;
        let urns: Vec<&str> = terms.iter().map(|one| one.dataset.as_str()).collect();
        let refs = self.datasets(&urns)?;
        let names = &self.names;
        let number = |account: &BookAccount| {
            let found = names.number(account);
            found.ok_or_else(|| BookError::damaged("book_accounts", format!("{account} is lost")))
        };
        let mut datasets = Vec::with_capacity(terms.len());
        for ((one, dataset), blocked) in terms.iter().zip(refs).zip(blocked) {
            let payees: Result<Vec<_>, BookError> =
                one.payees.iter().map(|payee| Ok((number(&payable(one, payee))?, payee.share_ppm))).collect();
            let blocked = blocked.or(one.payees.is_empty().then_some(UnattributedReason::NoPayee));
            datasets.push(PaidBy { dataset, payees: payees?, blocked });
        }
        Ok(PayTable {
            currency,
            split,
            datasets,
            ordinals: (0u32..).zip(terms).map(|(ordinal, one)| (one.dataset.clone(), ordinal)).collect(),
            operator: self.account(currency, Purpose::Operator)?,
            reserve: self.account(currency, Purpose::Reserve)?,
            unattributed: self.account(currency, Purpose::Unattributed)?,
            dust: self.account(currency, Purpose::Dust)?,
            cash: self.account(currency, Purpose::Cash)?,
            pool: self.account(currency, Purpose::Pool)?,
        })
    }
}

/// Legs of an entry in the making.
struct Legs {
    source: AccountRef,
    legs: Vec<Leg>,
}

impl Legs {
    /// Adds a leg unless it moves nothing.
    fn put(&mut self, credit: AccountRef, amount: u128, why: Why, dataset: Option<DatasetRef>) {
        if amount > 0 {
            self.legs.push(Leg { debit: self.source, credit, amount, why, dataset, phase: Phase::Posted });
        }
    }
}

impl PayTable {
    /// Currency of everything that it pays.
    pub fn currency(&self) -> Currency {
        self.currency
    }

    /// Number of datasets.
    pub fn n_datasets(&self) -> usize {
        self.datasets.len()
    }

    /// Ordinal of the dataset of that name.
    pub fn ordinal(&self, dataset: &str) -> Option<u32> {
        self.ordinals.get(dataset).copied()
    }

    /// The entry of one response: operator `⌊R·o⌋`, reserve `⌊R·r⌋`, of the rest `P` attributed `A = ⌊P·coverage⌋`, dataset
    /// `x_d = ⌊A·w_d/W⌋`, payee `⌊x_d·ppm⌋`; every sub-unit of the revenue stands in exactly one leg. The amounts do not depend on
    /// the order of `lines`. Cost: one leg per payee with a positive amount.
    ///
    /// # Errors
    /// No revenue, a dataset twice or out of range, coverage above one million ppm, sums past 128 bits.
    pub fn entry(&self, response: &PaidResponse<'_>) -> Result<Entry, BookError> {
        let revenue = response.revenue.0;
        if revenue == 0 {
            let what = format!("revenue of {}", response.request);
            return Err(BookError::Field { what, expected: "a positive amount".into(), found: "0".into() });
        }
        self.check_lines(response)?;
        let source = match response.source {
            Source::Cash => self.cash,
            Source::Pool => self.pool,
            Source::Prepaid(account) => account,
        };
        let mut out = Legs { source, legs: Vec::with_capacity(response.lines.len() + 4) };
        let (operator, reserve) = (by_ppm(revenue, self.split.operator_ppm)?, by_ppm(revenue, self.split.reserve_ppm)?);
        out.put(self.operator, operator, Why::Operator, None);
        out.put(self.reserve, reserve, Why::Reserve, None);
        // Two floors of parts that sum to at most the whole.
        let pool = revenue - operator - reserve;
        let attributed = by_ppm(pool, response.coverage_ppm)?;
        out.put(self.unattributed, pool - attributed, Why::Coverage, None);
        let dust = self.attribute(response, attributed, &mut out)?;
        out.put(self.dust, dust, Why::Dust, None);
        Ok(Entry {
            id: EntryId::of(Kind::Response, response.request),
            kind: Kind::Response,
            at_unix_s: response.at_unix_s,
            memo: response.request.to_owned(),
            legs: out.legs,
        })
    }

    fn check_lines(&self, response: &PaidResponse<'_>) -> Result<(), BookError> {
        let mut seen = HashSet::with_capacity(response.lines.len());
        for line in response.lines {
            let what = || format!("response {}: dataset", response.request);
            if line.dataset as usize >= self.datasets.len() {
                let expected = format!("an ordinal below {}", self.datasets.len());
                return Err(BookError::Field { what: what(), expected, found: line.dataset.to_string() });
            }
            if !seen.insert(line.dataset) {
                let expected = "each dataset once".to_owned();
                return Err(BookError::Field { what: what(), expected, found: format!("{} twice", line.dataset) });
            }
        }
        Ok(())
    }

    /// Splits `attributed` over datasets and their payees; returns what floors left.
    fn attribute(&self, response: &PaidResponse<'_>, attributed: u128, out: &mut Legs) -> Result<u128, BookError> {
        let unknown = std::iter::once(response.unknown_weight);
        let weights: Vec<u128> = response.lines.iter().map(|line| line.weight).chain(unknown).map(u128::from).collect();
        if weights.iter().all(|weight| *weight == 0) {
            out.put(self.unattributed, attributed, Why::NoShares, None);
            return Ok(0);
        }
        let parts = floors(attributed, &weights)?;
        let mut dust = parts.dust;
        // One leg per reason, in the order of reasons: the order of datasets must not show.
        let mut kept: BTreeMap<UnattributedReason, u128> = BTreeMap::new();
        let (beyond, parts) = parts.parts.split_last().map_or((0, &[][..]), |(last, parts)| (*last, parts));
        kept.insert(UnattributedReason::Unregistered, beyond);
        let mut paid: Vec<(&PaidBy, u128)> = Vec::with_capacity(parts.len());
        for (line, part) in response.lines.iter().zip(parts) {
            let terms = &self.datasets[line.dataset as usize];
            match terms.blocked {
                Some(reason) => {
                    let sum = kept.entry(reason).or_default();
                    *sum = add(*sum, *part)?;
                }
                None => paid.push((terms, *part)),
            }
        }
        paid.sort_unstable_by_key(|(terms, _)| terms.dataset);
        for (terms, part) in paid {
            let mut left = part;
            for &(payee, ppm) in &terms.payees {
                let amount = by_ppm(part, ppm)?;
                out.put(payee, amount, Why::Accrual, Some(terms.dataset));
                left -= amount;
            }
            dust = add(dust, left)?;
        }
        for (reason, amount) in kept {
            out.put(self.unattributed, amount, reason.into(), None);
        }
        Ok(dust)
    }
}

/// A sum of money with all decimals of the currency and up to six more, such as `0.00025 USD`.
///
/// # Errors
/// Anything else, with what was expected.
pub fn parse_amount(text: &str) -> Result<(SubUnits, Currency), BookError> {
    let refuse = || BookError::Field {
        what: "amount".into(),
        expected: "digits, at most one point, one space and a currency, with at most six decimals more than it has"
            .into(),
        found: format!("{:?}", text.chars().take(80).collect::<String>()),
    };
    match ascribe_ledger::parse_amount(text) {
        Err(LedgerError::BadAmount { .. } | LedgerError::Overflow { .. }) => Err(refuse()),
        found => Ok(found?),
    }
}

/// The same in words: decimals and currency.
pub fn show_amount(amount: SubUnits, currency: Currency) -> String {
    format!("{} {currency}", amount.decimal(currency))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_below_a_cent() {
        let read = |text: &str| parse_amount(text).map(|(amount, currency)| (amount.0, currency.code()));
        assert_eq!(read("0.00025 USD").unwrap(), (25_000, "USD"));
        assert_eq!(read("1 USD").unwrap(), (100_000_000, "USD"));
        assert_eq!(read("0.00000001 USD").unwrap(), (1, "USD"));
        assert_eq!(read("12 JPY").unwrap(), (12_000_000, "JPY"));
        for bad in ["", "1", "1 usd", "-1 USD", "1. USD", ".5 USD", "0.000000001 USD", "1e3 USD", "1  USD", "NaN USD"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        let usd = Currency::of("USD").unwrap();
        assert_eq!(show_amount(SubUnits(25_000), usd), "0.00025000 USD");
    }
}
