//! The words of the book: entries and their legs, each leg a transfer from one account to another.

use std::fmt;

use ascribe_ledger::UnattributedReason;
use sha2::{Digest as _, Sha256};

use crate::book::Names;
use crate::error::BookError;
use crate::schema::LEGS_MAX;

/// An account of an open book, by its number in the tables. Valid for the book that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountRef(pub(crate) i64);

/// A dataset of an open book, by its number in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetRef(pub(crate) i64);

/// 128 bits that name an entry for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub [u8; 16]);

impl EntryId {
    /// First half of `SHA-256(kind ‖ 0 ‖ name)`: the same event gives the same id, so it cannot be booked twice.
    pub fn of(kind: Kind, name: &str) -> Self {
        let hash = Sha256::new().chain_update(kind.word()).chain_update([0]).chain_update(name).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its word in tables and files.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// What an entry is.
    Kind {
        /// Settled revenue enters the pool.
        Fund = "fund",
        /// A customer pays in advance.
        TopUp = "top-up",
        /// The revenue of one response goes to its contributors.
        Response = "response",
        /// A payout run of files is taken into the book.
        Import = "import",
        /// Balances are reserved for payment.
        Settlement = "settlement",
        /// Reserved balances were paid.
        Paid = "paid",
        /// Reserved balances were not paid and come back.
        Returned = "returned",
        /// An amount is frozen until a dispute ends.
        Dispute = "dispute",
        /// A dispute ended.
        DisputeEnd = "dispute-end",
        /// Money is taken back.
        Clawback = "clawback",
    }
}

impl Kind {
    pub(crate) fn of(word: &str) -> Result<Self, BookError> {
        let found = Self::ALL.iter().find(|kind| kind.word() == word);
        found.copied().ok_or_else(|| BookError::damaged("book_entries", format!("unknown kind {word:?}")))
    }
}

words! {
    /// Why a leg moves money. The order of variants is the number in the tables: new ones go to the end.
    Why {
        /// Revenue enters.
        Fund = "fund",
        /// Paid in advance.
        TopUp = "top-up",
        /// The operator's part.
        Operator = "operator",
        /// Kept back.
        Reserve = "reserve",
        /// A payee's part of a response, by way of a dataset.
        Accrual = "accrual",
        /// Left by floors.
        Dust = "dust",
        /// Outside the measured coverage.
        Coverage = "coverage",
        /// No dataset of the response can be paid.
        NoShares = "no-shares",
        /// Nobody is licensed to be paid.
        NoPayee = "no-payee",
        /// The dataset is not registered.
        Unregistered = "unregistered",
        /// The licence does not permit the use, or is not in force.
        NotLicensed = "not-licensed",
        /// Under embargo.
        Embargo = "embargo",
        /// Above a cap.
        Cap = "cap",
        /// Reserved for payment, or paid.
        Settlement = "settlement",
        /// Taken from a balance for what was paid wrongly.
        SetOff = "set-off",
        /// Taken back.
        Clawback = "clawback",
        /// Frozen by a dispute.
        Dispute = "dispute",
        /// A balance of earlier runs.
        Carried = "carried",
    }
}

impl Why {
    pub(crate) fn code(self) -> i64 {
        Self::ALL.iter().position(|why| *why == self).map_or(-1, |at| at as i64)
    }

    pub(crate) fn of(code: i64) -> Result<Self, BookError> {
        let found = usize::try_from(code).ok().and_then(|at| Self::ALL.get(at));
        found.copied().ok_or_else(|| BookError::damaged("book_transfers", format!("unknown reason {code}")))
    }
}

impl From<UnattributedReason> for Why {
    fn from(reason: UnattributedReason) -> Self {
        match reason {
            UnattributedReason::Coverage => Self::Coverage,
            UnattributedReason::NoShares => Self::NoShares,
            UnattributedReason::NoPayee => Self::NoPayee,
            UnattributedReason::Unregistered => Self::Unregistered,
            UnattributedReason::NotLicensed => Self::NotLicensed,
            UnattributedReason::Embargo => Self::Embargo,
            UnattributedReason::Cap => Self::Cap,
        }
    }
}

/// How far a leg has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Done.
    Posted,
    /// Reserved, to be posted or voided once.
    Pending,
    /// Completes the pending transfer at a place.
    Post(i64),
    /// Cancels the pending transfer at a place.
    Void(i64),
}

impl Phase {
    pub(crate) fn columns(self) -> (i64, Option<i64>) {
        match self {
            Self::Posted => (0, None),
            Self::Pending => (1, None),
            Self::Post(place) => (2, Some(place)),
            Self::Void(place) => (3, Some(place)),
        }
    }

    pub(crate) fn of_columns(code: i64, pending: Option<i64>) -> Result<Self, BookError> {
        match (code, pending) {
            (0, None) => Ok(Self::Posted),
            (1, None) => Ok(Self::Pending),
            (2, Some(place)) => Ok(Self::Post(place)),
            (3, Some(place)) => Ok(Self::Void(place)),
            _ => Err(BookError::damaged("book_transfers", format!("unknown phase {code}"))),
        }
    }
}

/// One transfer: an amount of sub-units from the credited side to the debited one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Debited.
    pub debit: AccountRef,
    /// Credited.
    pub credit: AccountRef,
    /// Sub-units.
    pub amount: u128,
    /// Why.
    pub why: Why,
    /// By way of which dataset.
    pub dataset: Option<DatasetRef>,
    /// How far.
    pub phase: Phase,
}

impl Leg {
    /// A leg that is done.
    pub fn posted(debit: AccountRef, credit: AccountRef, amount: u128, why: Why) -> Self {
        Self { debit, credit, amount, why, dataset: None, phase: Phase::Posted }
    }
}

/// Legs that stand or fall together under one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// What it is.
    pub kind: Kind,
    /// When it happened, seconds since 1970. Said by the caller: the book has no clock.
    pub at_unix_s: u64,
    /// What people call it (a request, a reference of a bank).
    pub memo: String,
    /// The transfers.
    pub legs: Vec<Leg>,
}

/// Longest memo in bytes.
const MEMO_MAX_BYTES: usize = 1_000;

impl Entry {
    /// Refuses what no table should hold.
    pub(crate) fn check(&self) -> Result<(), BookError> {
        let refuse = |what: &str, expected: String, found: String| {
            let what = format!("entry {}: {what}", self.id);
            Err(BookError::Field { what, expected, found })
        };
        if self.legs.len() > LEGS_MAX {
            return refuse("legs", format!("at most {LEGS_MAX}"), self.legs.len().to_string());
        }
        if self.memo.len() > MEMO_MAX_BYTES || self.memo.contains('\0') {
            return refuse("memo", format!("at most {MEMO_MAX_BYTES} bytes without NUL"), self.memo.len().to_string());
        }
        if i64::try_from(self.at_unix_s).is_err() {
            return refuse("time", "seconds since 1970".into(), self.at_unix_s.to_string());
        }
        for leg in &self.legs {
            if leg.amount == 0 || leg.debit == leg.credit {
                let found = format!("{} from account {} to {}", leg.amount, leg.credit.0, leg.debit.0);
                return refuse("leg", "a positive amount between two accounts".into(), found);
            }
        }
        Ok(())
    }

    /// `SHA-256` over every field, account and dataset by name, each text after its length: what makes a second entry of the
    /// same id the same or another.
    pub(crate) fn digest(&self, names: &Names, scratch: &mut Vec<u8>) -> [u8; 32] {
        let put = |out: &mut Vec<u8>, text: &str| {
            out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        };
        scratch.clear();
        scratch.extend_from_slice(b"ascribe book entry v1\n");
        scratch.extend_from_slice(&self.id.0);
        scratch.extend_from_slice(&self.at_unix_s.to_be_bytes());
        put(scratch, self.kind.word());
        put(scratch, &self.memo);
        for leg in &self.legs {
            put(scratch, names.text(leg.debit));
            put(scratch, names.text(leg.credit));
            scratch.extend_from_slice(&leg.amount.to_be_bytes());
            put(scratch, leg.why.word());
            put(scratch, leg.dataset.map_or("", |dataset| names.urn(dataset)));
            let (phase, pending) = leg.phase.columns();
            scratch.push(phase as u8);
            scratch.extend_from_slice(&pending.unwrap_or(0).to_be_bytes());
        }
        Sha256::digest(&scratch).into()
    }
}
