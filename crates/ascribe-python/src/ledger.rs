//! Books, read only: the journal of a run and its payout lines.

use std::path::PathBuf;

use ascribe_ledger::{Account, Journal, Memo, Phase};
use pyo3::prelude::*;

use crate::error::OrRaise;
use crate::table::{Column, Table};

fn account(account: &Account) -> String {
    match account {
        Account::Cash => "cash".into(),
        Account::Pool => "pool".into(),
        Account::Unattributed => "unattributed".into(),
        Account::Dust => "dust".into(),
        Account::Payable(payee) => match &payee.account {
            Some(id) => format!("payable:{}:{id}", payee.owner),
            None => format!("payable:{}", payee.owner),
        },
    }
}

fn memo(memo: &Memo) -> (&'static str, Option<u32>, Option<&str>) {
    match memo {
        Memo::Fund => ("fund", None, None),
        Memo::Accrual { response, dataset } => ("accrual", Some(*response), Some(dataset)),
        Memo::Unattributed { response, .. } => ("unattributed", Some(*response), None),
        Memo::EventDust { response } => ("event_dust", Some(*response), None),
        Memo::PoolDust => ("pool_dust", None, None),
        Memo::Settlement => ("settlement", None, None),
    }
}

/// Reads and checks `journal.json`: every transfer is posted again and every balance compared. Returns the run's id, the transfers
/// and the balances. Amounts are decimal text in the journal's currency, exact.
#[pyfunction]
pub fn read_journal(py: Python<'_>, path: PathBuf) -> PyResult<(String, Table, Table)> {
    py.detach(|| {
        let journal = Journal::from_json(&std::fs::read(&path)?).or_raise()?;
        Ok((journal.run_id().to_string(), transfers(&journal)?, balances(&journal)?))
    })
}

fn transfers(journal: &Journal) -> PyResult<Table> {
    let (currency, all) = (journal.currency(), journal.transfers());
    let phase = |phase: &Phase| match phase {
        Phase::Posted => "posted",
        Phase::Pending => "pending",
        Phase::PostPending { .. } => "post_pending",
        Phase::VoidPending { .. } => "void_pending",
    };
    Ok(Table::of(vec![
        ("id", Column::text(all.iter().map(|t| t.id.to_string()))?),
        ("debit", Column::text(all.iter().map(|t| account(&t.debit)))?),
        ("credit", Column::text(all.iter().map(|t| account(&t.credit)))?),
        ("amount", Column::text(all.iter().map(|t| t.amount.decimal(currency)))?),
        ("currency", Column::text(all.iter().map(|_| currency.code()))?),
        ("phase", Column::text(all.iter().map(|t| phase(&t.phase)))?),
        ("memo", Column::text(all.iter().map(|t| memo(&t.memo).0))?),
        ("response", Column::U32(all.iter().map(|t| memo(&t.memo).1.unwrap_or(u32::MAX)).collect())),
        ("dataset", Column::text(all.iter().map(|t| memo(&t.memo).2.unwrap_or_default()))?),
    ]))
}

fn balances(journal: &Journal) -> PyResult<Table> {
    let currency = journal.currency();
    let accounts: Vec<_> = journal.balances().collect();
    Ok(Table::of(vec![
        ("account", Column::text(accounts.iter().map(|(a, _)| account(a)))?),
        ("available", Column::text(accounts.iter().map(|(a, b)| b.available(a.is_asset()).decimal(currency)))?),
        ("debits_posted", Column::text(accounts.iter().map(|(_, b)| b.debits_posted.decimal(currency)))?),
        ("credits_posted", Column::text(accounts.iter().map(|(_, b)| b.credits_posted.decimal(currency)))?),
    ]))
}

/// Reads `payout.csv`: a row per payee.
#[pyfunction]
pub fn read_payout(py: Python<'_>, path: PathBuf) -> PyResult<Table> {
    py.detach(|| {
        let (_, rows) = ascribe_ledger::read_payout_csv(&std::fs::read_to_string(&path)?).or_raise()?;
        let none = String::new;
        Ok(Table::of(vec![
            ("owner", Column::text(rows.iter().map(|row| &row.owner))?),
            (
                "account",
                Column::text(rows.iter().map(|row| row.account.as_ref().map_or_else(none, |a| a.to_string())))?,
            ),
            ("amount", Column::text(rows.iter().map(|row| row.amount.decimal()))?),
            ("currency", Column::text(rows.iter().map(|row| row.amount.currency.code()))?),
            ("responses", Column::U32(rows.iter().map(|row| row.responses).collect())),
            ("datasets", Column::U32(rows.iter().map(|row| row.datasets).collect())),
            ("status", Column::text(rows.iter().map(|row| format!("{:?}", row.status())))?),
        ]))
    })
}
