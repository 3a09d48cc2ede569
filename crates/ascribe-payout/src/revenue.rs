//! What each response earned: the column `revenue` of a score file, or an even part of the pool.
//!
//! | the column holds | meaning |
//! |---|---|
//! | texts like `0.00125 USD` | the response's settled revenue, with up to six decimals more than the currency has |
//! | integers, or texts of digits | the same in sub-units (millionths of the minor unit) of the pool's currency, which `--pool` must name |
//!
//! All rows of a response say the same revenue, and it goes to the contributors of that response alone. The pool is their sum: a
//! `--pool` beside the column must be that sum in whole minor units, or the run is refused. Dust of an earlier run stays dust.

use std::collections::HashMap;

use ascribe_ledger::{Currency, LedgerError, Money, SUB_UNITS_PER_MINOR, SubUnits, parse_amount};
use ascribe_store::score_rows::{Revenues, RowBatch};

use crate::error::PayError;

/// What a run is given to split.
#[derive(Debug, Clone, Copy)]
pub struct Funding {
    /// The pool, where one was named.
    pub pool: Option<Money>,
    /// Dust of the run before.
    pub dust: SubUnits,
}

/// What a run splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funded {
    /// Whole minor units.
    pub pool: Money,
    /// Settled revenue beyond them, below a minor unit.
    pub rest: SubUnits,
}

impl Funding {
    /// The pool of scores that say no revenue.
    ///
    /// # Errors
    /// [`PayError::Setting`] where none was named.
    pub fn named(&self) -> Result<Money, PayError> {
        self.pool.ok_or_else(|| PayError::Setting {
            setting: "--pool",
            expected: "the settled revenue, such as \"1000.00 USD\", for scores without a column `revenue`".into(),
            found: "none".into(),
        })
    }
}

/// Revenue by response, as rows are read.
#[derive(Debug, Default)]
pub(crate) struct Column {
    by_query: HashMap<u64, u128>,
    currency: Option<Currency>,
    seen: bool,
}

/// Why a row's revenue cannot stand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Two rows of a response disagree, in sub-units.
    Differs { query: u64, first: u128, second: u128 },
    /// No amount.
    Amount(LedgerError),
    /// Another currency than before.
    Currency { first: Currency, second: Currency },
}

impl Column {
    /// Takes the rows of a batch in.
    pub(crate) fn take(&mut self, batch: &RowBatch) -> Result<(), Refused> {
        match &batch.revenues {
            Revenues::None => Ok(()),
            Revenues::Integers(amounts) => {
                let rows = batch.queries.iter().zip(amounts);
                rows.map(|(query, amount)| (*query, u128::from(*amount))).try_for_each(|row| self.row(row))
            }
            Revenues::Texts(texts) => {
                let mut last: Option<(&str, u128)> = None;
                for (query, text) in batch.queries.iter().zip(texts) {
                    // Rows of a response are mostly neighbours.
                    let amount = match last.filter(|(before, _)| *before == text) {
                        Some((_, amount)) => amount,
                        None => self.amount(text)?,
                    };
                    last = Some((text, amount));
                    self.row((*query, amount))?;
                }
                Ok(())
            }
        }
    }

    fn amount(&mut self, text: &str) -> Result<u128, Refused> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map_err(|_| Refused::Amount(LedgerError::Overflow { what: "a revenue in sub-units" }));
        }
        let (amount, currency) = parse_amount(text).map_err(Refused::Amount)?;
        self.agree(currency)?;
        Ok(amount.0)
    }

    fn agree(&mut self, second: Currency) -> Result<(), Refused> {
        let first = *self.currency.get_or_insert(second);
        if first == second { Ok(()) } else { Err(Refused::Currency { first, second }) }
    }

    fn row(&mut self, (query, amount): (u64, u128)) -> Result<(), Refused> {
        self.seen = true;
        let first = *self.by_query.entry(query).or_insert(amount);
        if first == amount { Ok(()) } else { Err(Refused::Differs { query, first, second: amount }) }
    }

    /// Adds what another thread read.
    pub(crate) fn merge(&mut self, other: Self) -> Result<(), Refused> {
        other.currency.map_or(Ok(()), |currency| self.agree(currency))?;
        other.by_query.into_iter().try_for_each(|row| self.row(row))
    }

    /// What is split, and how.
    ///
    /// # Errors
    /// No pool, or one that is not the sum of the column; integers without a currency; sums beyond 128 bits.
    pub(crate) fn split(self, funding: &Funding, n_responses: u64) -> Result<(Funded, Revenue), PayError> {
        if !self.seen {
            let pool = funding.named()?;
            let each = pool.sub_units()?.plus(funding.dust)?.0.checked_div(n_responses.into()).unwrap_or(0);
            return Ok((Funded { pool, rest: SubUnits::ZERO }, Revenue::Even(each)));
        }
        let overflow = || LedgerError::Overflow { what: "the sum of the column `revenue`" };
        let sum =
            self.by_query.values().try_fold(0u128, |sum, amount| sum.checked_add(*amount)).ok_or_else(overflow)?;
        let Some(currency) = self.currency.or(funding.pool.map(|pool| pool.currency)) else {
            let expected = "a pool, for integers in the column `revenue` say no currency".to_owned();
            return Err(PayError::Setting { setting: "--pool", expected, found: "none".into() });
        };
        let pool = Money { minor: sum / SUB_UNITS_PER_MINOR, currency };
        if let Some(named) = funding.pool.filter(|named| *named != pool) {
            let expected = format!(
                "{pool}, the sum of the column `revenue` in whole minor units; hint: leave --pool out, or drop the column to split a pool evenly"
            );
            return Err(PayError::Setting { setting: "--pool", expected, found: named.to_string() });
        }
        Ok((Funded { pool, rest: SubUnits(sum % SUB_UNITS_PER_MINOR) }, Revenue::Own(self.by_query)))
    }
}

/// How money falls on responses.
#[derive(Debug)]
pub(crate) enum Revenue {
    /// The same for each, in sub-units.
    Even(u128),
    /// By response.
    Own(HashMap<u64, u128>),
}

impl Revenue {
    /// Sub-units of a response.
    pub(crate) fn of(&self, query: u64) -> u128 {
        match self {
            Self::Even(each) => *each,
            Self::Own(by_query) => by_query.get(&query).copied().unwrap_or(0),
        }
    }

    /// What no response got of `funded` sub-units: it joins the dust.
    pub(crate) fn left(&self, funded: u128, n_responses: u64) -> u128 {
        match self {
            Self::Even(each) => funded - each * u128::from(n_responses),
            Self::Own(by_query) => funded - by_query.values().sum::<u128>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(queries: &[u64], revenues: Revenues) -> RowBatch {
        let n = queries.len();
        RowBatch { queries: queries.to_vec(), datasets: vec![0; n], scores: vec![1.0; n], revenues }
    }

    fn texts(list: &[&str]) -> Revenues {
        Revenues::Texts(list.iter().map(|text| (*text).to_owned()).collect())
    }

    fn funding(pool: Option<&str>) -> Funding {
        Funding { pool: pool.map(|text| text.parse().unwrap()), dust: SubUnits(3) }
    }

    /// 0.0012 + 0.0100 dollars: one cent, and 120,000 sub-units beyond it; the earlier dust stays dust.
    #[test]
    fn the_pool_is_the_sum() {
        let mut column = Column::default();
        column.take(&batch(&[7, 7, 8], texts(&["0.0012 USD", "0.0012 USD", "0.0100 USD"]))).unwrap();
        let mut other = Column::default();
        other.take(&batch(&[7], texts(&["0.00120 USD"]))).unwrap();
        column.merge(other).unwrap();
        let (funded, revenue) = column.split(&funding(Some("0.01 USD")), 2).unwrap();
        assert_eq!(funded, Funded { pool: "0.01 USD".parse().unwrap(), rest: SubUnits(120_000) });
        assert_eq!((revenue.of(7), revenue.of(8), revenue.of(9)), (120_000, 1_000_000, 0));
        assert_eq!(revenue.left(1_120_003, 2), 3);
    }

    #[test]
    fn what_is_refused() {
        let take = |revenues| Column::default().take(&batch(&[1, 1], revenues));
        assert_eq!(
            take(texts(&["1 USD", "1.01 USD"])),
            Err(Refused::Differs { query: 1, first: 100_000_000, second: 101_000_000 })
        );
        assert!(matches!(take(texts(&["1 USD", "1 EUR"])), Err(Refused::Currency { .. })));
        for bad in
            ["-1", "1.5", "NaN", "1e3 USD", "0.000000001 USD", "1 XYZ", "340282366920938463463374607431768211456"]
        {
            assert!(matches!(take(texts(&[bad, bad])), Err(Refused::Amount(_))), "{bad}");
        }
        let integers = || {
            let mut column = Column::default();
            column.take(&batch(&[1, 2], Revenues::Integers(vec![5_000_000, 0]))).unwrap();
            column
        };
        assert!(integers().split(&funding(None), 2).unwrap_err().to_string().contains("say no currency"));
        let (funded, _) = integers().split(&funding(Some("0.05 USD")), 2).unwrap();
        assert_eq!(funded.rest, SubUnits(0));
        let other = integers().split(&funding(Some("0.06 USD")), 2).unwrap_err().to_string();
        assert!(other.contains("expected 0.05 USD, the sum of the column `revenue`"), "{other}");
        assert!(Column::default().split(&funding(None), 0).unwrap_err().to_string().contains("--pool"));
    }
}
