//! Everything that the book refuses.

use ascribe_ledger::LedgerError;
use ascribe_sql::SqlError;

/// Why the book refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// A value is not what it must be.
    #[error("{what}: expected {expected}, found {found}")]
    Field {
        /// Which value.
        what: String,
        /// Expected.
        expected: String,
        /// Found.
        found: String,
    },
    /// An id stands for something else already.
    #[error("{what} {id} is in the book with other contents; entries are immutable, correct with a new one")]
    Reused {
        /// Kind of entry.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// A transfer would take more than there is.
    #[error("entry {id}: {account} holds {holds} sub-units, needs {needs}")]
    Overdrawn {
        /// The entry.
        id: String,
        /// The account.
        account: String,
        /// Available.
        holds: u128,
        /// Asked for.
        needs: u128,
    },
    /// A customer has not paid in enough.
    #[error("prepaid balance of {customer}: needs {needs}, holds {holds}; hint: top up first")]
    Insufficient {
        /// The customer.
        customer: String,
        /// Price, with currency.
        needs: String,
        /// Balance, with currency.
        holds: String,
    },
    /// Nothing of that name.
    #[error("no {what} {id:?} in the book{hint}")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// What was asked for.
        id: String,
        /// What to do, or nothing.
        hint: &'static str,
    },
    /// Something was resolved already, or cannot be yet.
    #[error("{what} {id}: {why}")]
    State {
        /// Kind of thing.
        what: &'static str,
        /// Its name.
        id: String,
        /// Why it cannot be done.
        why: String,
    },
    /// The tables contradict each other.
    #[error("{table}: {why}; the book was changed from outside")]
    Damaged {
        /// Where.
        table: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The chain, or its node, refused.
    #[error("chain: {0}")]
    Chain(String),
    /// A payment does not buy what was asked for.
    #[error("payment: {reason}: {why}")]
    Payment {
        /// One of the protocol's words, such as `invalid_exact_evm_payload_signature`.
        reason: &'static str,
        /// For people.
        why: String,
    },
    /// From the ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// From the database.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// A value could not be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl BookError {
    pub(crate) fn damaged(table: &'static str, why: impl Into<String>) -> Self {
        Self::Damaged { table, why: why.into() }
    }
}

/// A sum that must fit 128 bits.
pub(crate) fn add(a: u128, b: u128) -> Result<u128, BookError> {
    a.checked_add(b).ok_or_else(|| LedgerError::Overflow { what: "a sum of sub-units" }.into())
}
