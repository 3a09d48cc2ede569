//! Money: integer weights become transfers, balances and payout files.
//!
//! Here live amounts, apportionment, the double-entry journal, accrual, settlement and the payout formats. Here never
//! live: floating point (a denied lint), scores, policy (that is `shares`), files and networks (values go in, bytes come
//! out; the engine writes them), signing keys.
//!
//! The path of a unit: a [`Plan`] names a settled pool, what each response weighs, and on what terms each dataset is
//! licensed; [`pay`] funds a [`Journal`], accrues every response, settles what can be paid, and proves that each
//! sub-unit of the pool stands in exactly one account. Everything is a function of the plan: the same plan gives the
//! same [`run_id`](Run::run_id), the same transfers and the same bytes.

#![deny(clippy::float_arithmetic)]

pub mod account;
pub mod accrue;
pub mod amount;
pub mod apportion;
pub mod batch;
pub mod conservation;
pub mod error;
pub mod journal;
pub mod journal_file;
pub mod journal_text;
pub mod payout;
pub mod run;
pub mod settle;
pub mod transfer;
pub mod wide;

pub use account::{Caip10, EvmAddress};
pub use accrue::{Event, Line, PayeeShare, Plan, Terms, accrue};
pub use amount::{Currency, Money, SUB_UNITS_PER_MINOR, SubUnits, parse_amount};
pub use apportion::{Floors, by_ppm, floors, hamilton};
pub use batch::{Accruals, BatchRow, BatchRules, BatchStatement, BatchTerms, OwnerTally, settle_batch};
pub use conservation::Conservation;
pub use error::LedgerError;
pub use journal::{Balance, Journal, Outcome};
pub use journal_file::JOURNAL_FORMAT_VERSION;
pub use payout::books::{BookHead, BookNames, Dialect, write_books};
pub use payout::chain::ChainAmounts;
pub use payout::csv::{read_payout_csv, write_payout_csv, write_payout_rows};
pub use payout::merkle::{PayoutLeaf, PayoutTree};
pub use payout::pain001::{Debtor, check_iban, write_pain001};
pub use payout::safe::write_safe_csv;
pub use payout::splits::write_splits_v2;
pub use payout::uniswap::UniswapTree;
pub use run::{Period, Run, RunPolicy};
pub use settle::{PayoutRow, PayoutStatus, payout_rows, settle};
pub use transfer::{Account, Memo, Payee, Phase, Transfer, TransferId, UnattributedReason};

/// What one run of the ledger gives.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Every transfer of the run, with balances.
    pub journal: Journal,
    /// One row per payee, sorted by owner and account.
    pub rows: Vec<PayoutRow>,
    /// Where each sub-unit of the pool went.
    pub conservation: Conservation,
}

/// Funds, accrues, settles and proves one run.
///
/// Deterministic: a function of `plan` alone. Cost: one transfer per (response, dataset, payee) with a positive amount.
///
/// # Errors
/// Whatever [`accrue()`] and [`settle()`] refuse, and [`LedgerError::NotConserved`] if the books did not close, which would
/// be a defect of this crate.
pub fn pay(plan: &Plan) -> Result<Statement, LedgerError> {
    let mut journal = accrue(plan)?;
    let rows = settle(&mut journal)?;
    let conservation = Conservation::of(&journal, &rows)?;
    Ok(Statement { journal, rows, conservation })
}
