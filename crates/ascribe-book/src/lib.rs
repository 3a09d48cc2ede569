//! The ledger as tables, and the money that comes in.
//!
//! Here live: the double-entry book on SQLite and PostgreSQL (one schema), posting in durable batches, the split of a response's
//! revenue over its contributors, settlement, disputes, clawbacks, verification, exports for accountants; prepaid balances; x402
//! payments and the chain that settles them. Here never live: floating point (a denied lint), scores and policies (`shares`), payout
//! files (`payout`), HTTP servers (`server`), keys that pay out.
//!
//! Rules, in the vocabulary of TigerBeetle: transfers are immutable and stand once; a pending transfer is posted or voided once; no
//! account falls below zero; corrections are new entries. Every balance follows from the transfers, and [`Book::verify`] shows it.
//!
//! ```
//! use ascribe_book::{Book, Kind, PaidResponse, RevenueSplit, Source, parse_amount};
//! use ascribe_ledger::{Currency, Line, PayeeShare, Terms};
//!
//! let mut book = Book::open("sqlite::memory:")?;
//! let usd = Currency::of("USD")?;
//! let payee = PayeeShare { account: Some("eip155:1:0xde709f2102306220921060314715629080e2fb77".parse()?), share_ppm: 1_000_000 };
//! let terms = [Terms { dataset: "urn:uuid:1".into(), owner: "Ada".into(), payees: vec![payee] }];
//! let table = book.pay_table(usd, &terms, &[None], RevenueSplit::default())?;
//! let response = PaidResponse {
//!     request: "req-1",
//!     at_unix_s: 1_796_000_000,
//!     revenue: parse_amount("0.0012 USD")?.0,
//!     source: Source::Cash,
//!     coverage_ppm: 850_000,
//!     lines: &[Line { dataset: 0, weight: 7 }],
//!     unknown_weight: 0,
//! };
//! book.post(&[table.entry(&response)?])?;
//! assert_eq!(book.verify()?.transfers, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(clippy::float_arithmetic)]

pub mod account;
pub mod book;
pub mod claims;
pub mod entry;
pub mod error;
pub mod export;
pub mod import;
pub mod payments;
pub mod prepaid;
pub mod revenue;
pub mod settle;
pub mod statement;
pub mod verify;
pub mod x402;

mod post;
mod schema;

pub use account::{BookAccount, Purpose};
pub use book::{Book, Outcome};
pub use claims::{Claimed, Clawback, Dispute};
pub use entry::{AccountRef, DatasetRef, Entry, EntryId, Kind, Leg, Phase, Why};
pub use error::BookError;
pub use export::{ExportError, day_text};
pub use import::{Imported, PayoutRun, RunRow};
pub use payments::{Credit, NamedWeight, NewPayment, PaymentState, StoredPayment};
pub use prepaid::Charged;
pub use revenue::{PaidResponse, PayTable, RevenueSplit, Source, parse_amount, show_amount};
pub use settle::{SettleRow, SettleStatus, SettleTerms, Settled};
pub use statement::{OwnerStatement, StatementLine};
pub use verify::{CurrencySum, VerifyBookReport};
