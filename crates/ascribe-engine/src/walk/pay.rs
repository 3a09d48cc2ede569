//! Station 9: the pool becomes transfers, balances, `payout.csv`, a Merkle tree, and a receipt a response (`usage`).

use std::collections::BTreeMap;

use ascribe_core::{Digest, Progress};
use ascribe_ledger::{
    Caip10, Conservation, Event, EvmAddress, Money, PayeeShare, PayoutRow, PayoutTree, Period, Plan, Run, RunPolicy,
    Statement, Terms, pay, write_payout_csv,
};
use ascribe_shares::{Derived, ShareBook};

use super::context::Context;
use super::duplicates::{self, DUPLICATES_FILE};
use super::shares::SHARES_FILE;
use super::stamps::Stamps;
use super::usage;
use crate::error::EngineError;
use crate::files;

/// Payout lines.
pub const PAYOUT_CSV: &str = "payout/payout.csv";
/// OpenZeppelin `StandardMerkleTree` dump.
pub const MERKLE_FILE: &str = "payout/merkle.json";
/// The double-entry journal, every transfer.
pub const JOURNAL_FILE: &str = "payout/journal.json";
/// The same as text for hledger and its kin.
pub const JOURNAL_TEXT: &str = "payout/run.journal";

/// One payee's line.
pub use ascribe_ledger::PayoutRow as PayoutLine;

/// What the ledger decided.
pub struct Paid {
    /// One row per payee.
    pub rows: Vec<PayoutRow>,
    /// Where each sub-unit went.
    pub conservation: Conservation,
    /// What was split, response by response.
    pub events: Vec<Event>,
    /// Parts of datasets that earlier licences cover.
    pub parts: Vec<Derived>,
}

/// Runs the ledger over `book` and writes the payout files and the receipts. Always computed (it takes milliseconds); the files are left
/// alone when they already hold the same bytes.
///
/// # Errors
/// A pool, period, token or account that cannot be read; books that do not close.
pub fn run(
    context: &Context,
    stamps: &mut Stamps,
    book: &ShareBook,
    progress: &dyn Progress,
) -> Result<Paid, EngineError> {
    let parts = duplicates::run(context, stamps, progress)?;
    progress.start("payout", 0, "");
    let mut plan = plan(context, book, !parts.is_empty())?;
    duplicates::apply(&mut plan.events, &parts)?;
    let statement = pay(&plan)?;
    let outputs = outputs(context, &plan, &statement)?;
    for (path, bytes) in &outputs {
        files::write_atomic(&context.out.join(path), bytes)?;
    }
    usage::write(context, book, &statement.journal)?;
    let key = Digest::of_json(&("pay", stamps.outputs_digest(&["shares", "duplicates"]), &context.attribution.pool))?;
    let paths: Vec<String> = outputs.into_keys().collect();
    stamps.finish(&context.out, "pay", key, &paths)?;
    let (n, pool) = (statement.rows.len(), &context.attribution.pool);
    let closed = if statement.conservation.holds() { "every unit accounted for" } else { "BOOKS DO NOT CLOSE" };
    progress.finish(&format!("{n} payees, pool {pool}, {closed}"));
    Ok(Paid { rows: statement.rows, conservation: statement.conservation, events: plan.events, parts })
}

fn plan(context: &Context, book: &ShareBook, with_duplicates: bool) -> Result<Plan, EngineError> {
    let a = &context.attribution;
    let table = book.table()?;
    let pool: Money = a.pool.parse()?;
    let period: Period = a.period.parse()?;
    let mut inputs = BTreeMap::from([
        ("registry".to_owned(), context.registry.digest()),
        ("shares".to_owned(), files::digest(&context.out.join(SHARES_FILE))?),
    ]);
    if with_duplicates {
        inputs.insert("duplicates".to_owned(), files::digest(&context.out.join(DUPLICATES_FILE))?);
    }
    let policy = RunPolicy { shares: table.policy.clone(), pool, coverage_ppm: table.coverage_ppm, minimum_minor: 1 };
    let run = Run { inputs, policy, version: env!("CARGO_PKG_VERSION").into(), period };
    let terms = context.registry.datasets().iter().map(|dataset| {
        let payee = |p: &ascribe_registry::Payee| {
            Ok(PayeeShare { account: Some(p.account.parse::<Caip10>()?), share_ppm: p.share_ppm })
        };
        Ok(Terms {
            dataset: dataset.manifest.uuid.clone(),
            owner: dataset.manifest.owner.clone(),
            payees: dataset.manifest.payees.iter().map(payee).collect::<Result<_, EngineError>>()?,
        })
    });
    let responses: Vec<u32> = book.responses.iter().map(|r| r.query.0).collect();
    Ok(Plan::from_shares(run, &table, &responses, terms.collect::<Result<_, EngineError>>()?)?)
}

/// Chain of the demo's accounts and token.
const CHAIN_ID: u64 = 31337;

fn outputs(context: &Context, plan: &Plan, statement: &Statement) -> Result<BTreeMap<String, Vec<u8>>, EngineError> {
    let token: EvmAddress = context.attribution.token.parse()?;
    let tree = PayoutTree::of_rows(None, &statement.rows, CHAIN_ID, token)?;
    Ok(BTreeMap::from([
        (PAYOUT_CSV.to_owned(), write_payout_csv(&plan.run.run_id()?, &statement.rows).into_bytes()),
        (MERKLE_FILE.to_owned(), tree.to_json()?),
        (JOURNAL_FILE.to_owned(), statement.journal.to_json()?),
        (JOURNAL_TEXT.to_owned(), statement.journal.to_text().into_bytes()),
    ]))
}
