//! Payments on their way in: written down before they are sent, credited once and only when the chain has settled them.
//!
//! States: `begun` (verified, about to be sent), `sent` (in the node's hands), `settled` (credited), `failed`. What a payment is for
//! is written at the beginning, so that after a crash the very response that was paid for is credited.

use ascribe_ledger::{Line, Money, SubUnits};
use ascribe_sql::{Row, Value};
use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::error::BookError;
use crate::post::post;
use crate::revenue::{PaidResponse, PayTable, Source};

/// One dataset's weight in a response, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedWeight {
    /// `urn:uuid:…` of the dataset.
    pub dataset: String,
    /// Its weight.
    pub weight: u64,
}

/// What a payment is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Credit {
    /// The contributors of one response.
    Response {
        /// Part that measured evidence covers.
        coverage_ppm: u32,
        /// Weights of its datasets.
        weights: Vec<NamedWeight>,
    },
    /// A customer's balance.
    TopUp {
        /// The customer.
        customer: String,
    },
}

/// A payment that is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPayment {
    /// Its idempotency key: chain, token, payer and nonce of the authorisation.
    pub key: String,
    /// The request that it pays for.
    pub request: String,
    /// Amount.
    pub amount: Money,
    /// The signed authorisation, as it is sent again after a crash.
    pub authorization_json: String,
    /// For what.
    pub credit: Credit,
}

/// How far a payment has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// Verified and written down.
    Begun,
    /// Sent to the chain.
    Sent,
    /// Settled and credited.
    Settled,
    /// Will not settle.
    Failed,
}

impl PaymentState {
    const fn word(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Sent => "sent",
            Self::Settled => "settled",
            Self::Failed => "failed",
        }
    }

    fn of(word: &str) -> Result<Self, BookError> {
        let all = [Self::Begun, Self::Sent, Self::Settled, Self::Failed];
        let found = all.into_iter().find(|state| state.word() == word);
        found.ok_or_else(|| BookError::damaged("book_payments", format!("unknown state {word:?}")))
    }
}

/// A payment of the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPayment {
    /// What was begun.
    pub payment: NewPayment,
    /// How far it is.
    pub state: PaymentState,
    /// Hash of its transaction, once sent.
    pub transaction: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct CreditFile {
    amount: Money,
    credit: Credit,
}

const COLUMNS: &str = "key, state, request, authorization_json, credit_json, transaction_hash";

fn read(row: &Row) -> Result<StoredPayment, BookError> {
    let CreditFile { amount, credit } = serde_json::from_str(row.text(4)?)?;
    Ok(StoredPayment {
        payment: NewPayment {
            key: row.text(0)?.into(),
            request: row.text(2)?.into(),
            amount,
            authorization_json: row.text(3)?.into(),
            credit,
        },
        state: PaymentState::of(row.text(1)?)?,
        transaction: if row.is_null(5) { None } else { Some(row.text(5)?.into()) },
    })
}

impl Book {
    /// Writes a payment down before it is sent. Returns nothing when it is new, else what is known of that key.
    ///
    /// # Errors
    /// The database's.
    pub fn begin_payment(&mut self, new: &NewPayment, at_unix_s: u64) -> Result<Option<StoredPayment>, BookError> {
        let credit = serde_json::to_string(&CreditFile { amount: new.amount, credit: new.credit.clone() })?;
        let values: [Value; 6] = [
            new.key.as_str().into(),
            PaymentState::Begun.word().into(),
            new.request.as_str().into(),
            new.authorization_json.as_str().into(),
            credit.into(),
            (at_unix_s as i64).into(),
        ];
        let sql = "INSERT INTO book_payments (key, state, request, authorization_json, credit_json, updated_unix_s) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (key) DO NOTHING";
        if self.db.execute(sql, &values)? == 1 {
            return Ok(None);
        }
        self.payment(&new.key)
    }

    /// What is known of a payment.
    ///
    /// # Errors
    /// The database's.
    pub fn payment(&mut self, key: &str) -> Result<Option<StoredPayment>, BookError> {
        let rows = self.db.query(&format!("SELECT {COLUMNS} FROM book_payments WHERE key = ?1"), &[key.into()])?;
        rows.first().map(read).transpose()
    }

    /// Payments that are neither settled nor failed: what a program asks the chain about when it starts.
    ///
    /// # Errors
    /// The database's.
    pub fn unsettled_payments(&mut self) -> Result<Vec<StoredPayment>, BookError> {
        let sql = format!("SELECT {COLUMNS} FROM book_payments WHERE state IN ('begun', 'sent') ORDER BY key");
        self.db.query(&sql, &[])?.iter().map(read).collect()
    }

    /// Notes that a payment is in the node's hands.
    ///
    /// # Errors
    /// The database's.
    pub fn payment_sent(&mut self, key: &str, transaction: &str, at_unix_s: u64) -> Result<(), BookError> {
        let sql = "UPDATE book_payments SET state = 'sent', transaction_hash = ?2, updated_unix_s = ?3 \
                   WHERE key = ?1 AND state IN ('begun', 'sent')";
        self.db.execute(sql, &[key.into(), transaction.into(), (at_unix_s as i64).into()])?;
        Ok(())
    }

    /// Notes that a payment will not settle; one that has settled stays so.
    ///
    /// # Errors
    /// The database's.
    pub fn payment_failed(&mut self, key: &str, why: &str, at_unix_s: u64) -> Result<(), BookError> {
        let sql = "UPDATE book_payments SET state = 'failed', failure = ?2, updated_unix_s = ?3 \
                   WHERE key = ?1 AND state IN ('begun', 'sent')";
        self.db.execute(sql, &[key.into(), why.into(), (at_unix_s as i64).into()])?;
        Ok(())
    }

    /// Credits a payment that the chain has settled, in the same transaction that marks it so: once, whatever happens.
    ///
    /// # Errors
    /// No such payment, or one of another currency than the table's; the database's.
    pub fn payment_settled(&mut self, key: &str, table: &PayTable, at_unix_s: u64) -> Result<(), BookError> {
        let unknown = || BookError::Unknown { what: "payment", id: key.to_owned(), hint: "" };
        let StoredPayment { payment, .. } = self.payment(key)?.ok_or_else(unknown)?;
        if payment.amount.currency != table.currency() {
            let (what, expected) = (format!("payment {key}: currency"), table.currency().to_string());
            return Err(BookError::Field { what, expected, found: payment.amount.currency.to_string() });
        }
        let revenue: SubUnits = payment.amount.sub_units()?;
        let entry = match &payment.credit {
            Credit::TopUp { customer } => self.top_up_entry(customer, revenue, table.currency(), key, at_unix_s)?,
            Credit::Response { coverage_ppm, weights } => {
                let (lines, unknown_weight) = table.lines(weights)?;
                let (request, source, coverage_ppm) = (key, Source::Cash, *coverage_ppm);
                table.entry(&PaidResponse {
                    request,
                    at_unix_s,
                    revenue,
                    source,
                    coverage_ppm,
                    lines: &lines,
                    unknown_weight,
                })?
            }
        };
        self.refresh()?;
        let names = &self.names;
        self.db.transaction(|tx| {
            names.queue(tx)?;
            let sql =
                "UPDATE book_payments SET state = 'settled', updated_unix_s = ?2 WHERE key = ?1 AND state <> 'settled'";
            // Zero rows: it was credited before, by us or by another program.
            if tx.execute(sql, &[key.into(), (at_unix_s as i64).into()])? == 1 {
                post(tx, names, std::slice::from_ref(&entry))?;
            }
            Ok::<(), BookError>(())
        })
    }
}

impl PayTable {
    /// Weights by name as lines by ordinal; what no dataset has is added up.
    ///
    /// # Errors
    /// Sums past 64 bits, a dataset twice.
    pub fn lines(&self, weights: &[NamedWeight]) -> Result<(Vec<Line>, u64), BookError> {
        let (mut lines, mut unknown) = (Vec::with_capacity(weights.len()), 0u64);
        for NamedWeight { dataset, weight } in weights {
            match self.ordinal(dataset) {
                Some(dataset) => lines.push(Line { dataset, weight: *weight }),
                None => {
                    let overflow = ascribe_ledger::LedgerError::Overflow { what: "the weight of unknown datasets" };
                    unknown = unknown.checked_add(*weight).ok_or(overflow)?;
                }
            }
        }
        Ok((lines, unknown))
    }
}
