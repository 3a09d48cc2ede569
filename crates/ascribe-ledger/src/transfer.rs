//! The words of the journal: accounts, transfers and why each was made. Balances live in `journal`.

use std::fmt;
use std::str::FromStr;

use ascribe_core::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::account::Caip10;
use crate::amount::SubUnits;
use crate::error::{LedgerError, check_name};

/// Who is owed: an owner, on one account of theirs, or on none when the licence names none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Payee {
    /// Owner of the dataset, as the registry names them.
    pub owner: String,
    /// Where to pay; without it the balance is carried.
    pub account: Option<Caip10>,
}

/// An account of the books.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Account {
    /// Asset: money that the operator holds for payees.
    Cash,
    /// Liability: settled revenue that no event has claimed yet.
    Pool,
    /// Liability: what evidence does not cover, and responses that cannot be paid for. Never renormalised away.
    Unattributed,
    /// Liability: what floors left over; it joins the next period's pool.
    Dust,
    /// Liability: owed to a payee.
    Payable(Payee),
}

impl Account {
    /// True for assets, whose balance is debits less credits; false for liabilities, the other way round.
    pub const fn is_asset(&self) -> bool {
        matches!(self, Self::Cash)
    }

    /// Refuses names that would garble the books.
    ///
    /// # Errors
    /// [`LedgerError::BadName`].
    pub fn check(&self) -> Result<(), LedgerError> {
        match self {
            Self::Payable(payee) => check_name("owner", &payee.owner),
            Self::Cash | Self::Pool | Self::Unattributed | Self::Dust => Ok(()),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cash => f.write_str("Assets:Cash"),
            Self::Pool => f.write_str("Liabilities:Pool"),
            Self::Unattributed => f.write_str("Liabilities:Unattributed"),
            Self::Dust => f.write_str("Liabilities:Dust"),
            Self::Payable(Payee { owner, account: Some(account) }) => {
                write!(f, "Liabilities:Payable:{owner}:{account}")
            }
            Self::Payable(Payee { owner, account: None }) => write!(f, "Liabilities:Payable:{owner}:no-account"),
        }
    }
}

/// 128 bits that name a transfer for ever. Prints and serialises as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub [u8; 16]);

impl TransferId {
    /// First half of `SHA-256(run_id ‖ label)`: a rerun derives the same ids, so it cannot pay twice.
    pub fn derive(run_id: &Digest, label: &str) -> Self {
        let hash = Sha256::new().chain_update(run_id.0).chain_update(label.as_bytes()).finalize();
        let mut id = [0u8; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for TransferId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut id = [0u8; 16];
        let exact = hex::decode_to_slice(text, &mut id).is_ok() && !text.bytes().any(|b| b.is_ascii_uppercase());
        if exact { Ok(Self(id)) } else { Err(format!("expected 32 lower-case hex digits, found {text:?}")) }
    }
}

impl Serialize for TransferId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TransferId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How far a transfer has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Phase {
    /// Done.
    Posted,
    /// Reserved: to be posted or voided once, by a later transfer.
    Pending,
    /// Completes the pending transfer it names.
    PostPending {
        /// The pending transfer.
        pending: TransferId,
    },
    /// Cancels the pending transfer it names.
    VoidPending {
        /// The pending transfer.
        pending: TransferId,
    },
}

/// Why a part of the pool stays unattributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnattributedReason {
    /// Outside the measured coverage.
    Coverage,
    /// The share table has no payable dataset for the response (no proponent, or too noisy to pay).
    NoShares,
    /// The dataset has a weight but nobody is licensed to be paid for it.
    NoPayee,
    /// The dataset is not in the registry.
    Unregistered,
    /// The licence does not permit this use, or is not in force.
    NotLicensed,
    /// The dataset is under embargo in this period.
    Embargo,
    /// Above what the policy lets one owner have.
    Cap,
}

/// Why a transfer was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Memo {
    /// Settled revenue enters the pool.
    Fund,
    /// A payee's part of one response, by way of one dataset.
    Accrual {
        /// The response.
        response: u32,
        /// `urn:uuid` of the dataset.
        dataset: String,
    },
    /// Not attributed.
    Unattributed {
        /// The response.
        response: u32,
        /// Why.
        reason: UnattributedReason,
    },
    /// What floors left of one response.
    EventDust {
        /// The response.
        response: u32,
    },
    /// What floors left when the pool was split over responses.
    PoolDust,
    /// A payee is paid.
    Settlement,
}

/// Moves an amount from `credit` to `debit` accounts, once and for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Its name.
    pub id: TransferId,
    /// Account to debit.
    pub debit: Account,
    /// Account to credit.
    pub credit: Account,
    /// How much.
    pub amount: SubUnits,
    /// How far it has got.
    pub phase: Phase,
    /// Why.
    pub memo: Memo,
}
