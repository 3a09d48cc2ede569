//! Prepaid balances: a customer pays in advance and each response is debited; what is not there is not spent.

use ascribe_ledger::{Currency, SubUnits};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::account::Purpose;
use crate::book::{Book, Outcome};
use crate::entry::{Entry, EntryId, Kind, Leg, Why};
use crate::error::BookError;
use crate::revenue::{PaidResponse, PayTable, Source, show_amount};

/// What a charge did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Charged {
    /// The response.
    pub request: String,
    /// Taken from the balance, with currency.
    pub charged: String,
    /// What is left, with currency.
    pub balance: String,
    /// True when it was charged before and nothing was taken now.
    pub already_done: bool,
}

impl Book {
    /// Makes a customer, who is known by a secret from now on; only its SHA-256 is kept.
    ///
    /// # Errors
    /// A customer of that name with another secret; names that would garble the books; the database's.
    pub fn open_customer(&mut self, customer: &str, secret: &[u8]) -> Result<(), BookError> {
        Purpose::Prepaid { customer: customer.to_owned() }.check()?;
        let key: [u8; 32] = Sha256::digest(secret).into();
        let sql = "INSERT INTO book_customers (customer, key_sha256) VALUES (?1, ?2) ON CONFLICT (customer) DO NOTHING";
        let added = self.db.execute(sql, &[customer.into(), key.into()])?;
        if added == 1 || self.is_customer(customer, secret)? {
            return Ok(());
        }
        Err(BookError::Reused { what: "customer", id: customer.to_owned() })
    }

    /// True when `secret` is that of `customer`. Takes as long for a wrong one.
    ///
    /// # Errors
    /// The database's.
    pub fn is_customer(&mut self, customer: &str, secret: &[u8]) -> Result<bool, BookError> {
        let rows = self.db.query("SELECT key_sha256 FROM book_customers WHERE customer = ?1", &[customer.into()])?;
        let known = rows.first().map_or(Ok([0; 32]), |row| row.array::<32>(0))?;
        let key: [u8; 32] = Sha256::digest(secret).into();
        Ok(bool::from(known.ct_eq(&key)) && !rows.is_empty())
    }

    /// The entry of money that a customer has paid in and that has settled.
    pub(crate) fn top_up_entry(
        &mut self,
        customer: &str,
        amount: SubUnits,
        currency: Currency,
        reference: &str,
        at_unix_s: u64,
    ) -> Result<Entry, BookError> {
        let cash = self.account(currency, Purpose::Cash)?;
        let prepaid = self.account(currency, Purpose::Prepaid { customer: customer.to_owned() })?;
        let (kind, memo) = (Kind::TopUp, reference.to_owned());
        let legs = vec![Leg::posted(cash, prepaid, amount.0, Why::TopUp)];
        Ok(Entry { id: EntryId::of(kind, reference), kind, at_unix_s, memo, legs })
    }

    /// Credits a customer with money that has settled. The same reference again changes nothing.
    ///
    /// # Errors
    /// A reference that stands for something else; no amount; the database's.
    pub fn top_up(
        &mut self,
        customer: &str,
        amount: SubUnits,
        currency: Currency,
        reference: &str,
        at_unix_s: u64,
    ) -> Result<Outcome, BookError> {
        // Whoever repeats it says another moment.
        let at_unix_s = self.moment(EntryId::of(Kind::TopUp, reference))?.unwrap_or(at_unix_s);
        let entry = self.top_up_entry(customer, amount, currency, reference, at_unix_s)?;
        Ok(self.post(&[entry])?[0])
    }

    /// What a customer has left.
    ///
    /// # Errors
    /// The database's.
    pub fn prepaid(&mut self, customer: &str, currency: Currency) -> Result<SubUnits, BookError> {
        let account = self.account(currency, Purpose::Prepaid { customer: customer.to_owned() })?;
        self.available(account)
    }

    /// Debits a customer for one response and credits its contributors, in one entry. The same response again changes nothing.
    ///
    /// # Errors
    /// [`BookError::Insufficient`], and what [`PayTable::entry`] and [`Book::post`] refuse.
    pub fn charge(
        &mut self,
        table: &PayTable,
        customer: &str,
        response: &PaidResponse<'_>,
    ) -> Result<Charged, BookError> {
        let currency = table.currency();
        let account = self.account(currency, Purpose::Prepaid { customer: customer.to_owned() })?;
        // Whoever repeats it says another moment.
        let booked = self.moment(EntryId::of(Kind::Response, response.request))?;
        let at_unix_s = booked.unwrap_or(response.at_unix_s);
        let entry = table.entry(&PaidResponse { source: Source::Prepaid(account), at_unix_s, ..*response })?;
        let outcome = match self.post(&[entry]) {
            Ok(outcome) => outcome[0],
            Err(BookError::Overdrawn { .. }) => {
                let (needs, holds) = (response.revenue, self.available(account)?);
                let (needs, holds) = (show_amount(needs, currency), show_amount(holds, currency));
                return Err(BookError::Insufficient { customer: customer.to_owned(), needs, holds });
            }
            Err(error) => return Err(error),
        };
        Ok(Charged {
            request: response.request.to_owned(),
            charged: show_amount(response.revenue, currency),
            balance: show_amount(self.available(account)?, currency),
            already_done: outcome == Outcome::AlreadyThere,
        })
    }
}
