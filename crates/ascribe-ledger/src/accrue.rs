//! Accrual: a pool, weights and licence terms become transfers. Everything by floors; what floors leave goes to Dust,
//! what evidence does not cover goes to Unattributed. Paying out is in `settle`.

use std::collections::BTreeSet;

use ascribe_core::ShareTable;

use crate::account::Caip10;
use crate::amount::SubUnits;
use crate::apportion::{PPM, by_ppm, floors};
use crate::error::{LedgerError, check_name};
use crate::journal::Journal;
use crate::run::Run;
use crate::transfer::{Account, Memo, Payee, Phase, Transfer, TransferId, UnattributedReason};

/// One payee of a licence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayeeShare {
    /// Where to pay; without it the money accrues and is carried.
    pub account: Option<Caip10>,
    /// Part of the dataset's money, in ppm.
    pub share_ppm: u32,
}

/// On what terms one dataset is paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// `urn:uuid` of the dataset.
    pub dataset: String,
    /// Its owner.
    pub owner: String,
    /// Payees of the licence; shares sum to one million. Empty when nobody may be paid (no licence, revoked): the
    /// dataset's money then stays Unattributed, and nobody else gains from it.
    pub payees: Vec<PayeeShare>,
}

/// Weight of one dataset in one response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Ordinal of the dataset.
    pub dataset: u32,
    /// Integer weight.
    pub weight: u64,
}

/// One response that earns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The response.
    pub response: u32,
    /// Its part of the pool: revenue, or 1 for all alike.
    pub weight: u64,
    /// Datasets with a positive weight; none when the response cannot be paid for.
    pub lines: Vec<Line>,
}

/// All that a run's money follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Inputs, figures, version and period.
    pub run: Run,
    /// Responses in order.
    pub events: Vec<Event>,
    /// Terms by dataset ordinal.
    pub terms: Vec<Terms>,
}

impl Plan {
    /// Every response of `table` earns alike; `responses[i]` names response `i` of the table.
    ///
    /// # Errors
    /// [`LedgerError::Mismatch`] when the run and the table disagree on coverage, policy or number of responses.
    pub fn from_shares(
        run: Run,
        table: &ShareTable,
        responses: &[u32],
        terms: Vec<Terms>,
    ) -> Result<Self, LedgerError> {
        let differ = |what: &str, expected: String, found: String| {
            Err(LedgerError::Mismatch { file: "share table", what: what.into(), expected, found })
        };
        if run.policy.coverage_ppm != table.coverage_ppm {
            return differ("coverage_ppm", run.policy.coverage_ppm.to_string(), table.coverage_ppm.to_string());
        }
        if run.policy.shares != table.policy {
            return differ("policy", run.policy.shares, table.policy.clone());
        }
        if responses.len() != table.responses.len() {
            return differ("responses", responses.len().to_string(), table.responses.len().to_string());
        }
        let events = responses.iter().zip(&table.responses).map(|(&response, shares)| Event {
            response,
            weight: 1,
            lines: shares.iter().map(|share| Line { dataset: share.dataset, weight: share.weight }).collect(),
        });
        Ok(Self { events: events.collect(), run, terms })
    }

    fn check(&self) -> Result<(), LedgerError> {
        let mut seen = BTreeSet::new();
        for terms in &self.terms {
            check_name("dataset", &terms.dataset)?;
            check_name("owner", &terms.owner)?;
            if !seen.insert(&terms.dataset) {
                return Err(LedgerError::Duplicate { what: "dataset", found: terms.dataset.clone() });
            }
            let sum: u64 = terms.payees.iter().map(|payee| u64::from(payee.share_ppm)).sum();
            if !terms.payees.is_empty() && sum != u64::from(PPM) {
                let what = format!("payees of {}", terms.dataset);
                return Err(LedgerError::BadPpm { what, expected: "a sum of 1000000", found: sum });
            }
        }
        let mut responses = BTreeSet::new();
        for event in &self.events {
            let response = event.response;
            if !responses.insert(response) {
                return Err(LedgerError::Duplicate { what: "response", found: response.to_string() });
            }
            let mut datasets = BTreeSet::new();
            for line in &event.lines {
                if line.dataset as usize >= self.terms.len() {
                    let (dataset, known) = (line.dataset, self.terms.len());
                    return Err(LedgerError::UnknownDataset { response, dataset, known });
                }
                if !datasets.insert(line.dataset) {
                    let found = format!("{} in response {response}", line.dataset);
                    return Err(LedgerError::Duplicate { what: "dataset", found });
                }
            }
        }
        Ok(())
    }
}

/// Funds the pool and accrues every response.
///
/// Per response: `R = ⌊P·v/V⌋` (v its weight), attributed `A = ⌊R·coverage/10⁶⌋`, dataset `x_d = ⌊A·w_d/W⌋`, payee
/// `⌊x_d·ppm/10⁶⌋`, all in sub-units with 256-bit products. Without events the pool stays in `Liabilities:Pool`.
/// Deterministic: transfers stand in the order of responses, datasets, payees.
///
/// # Errors
/// A plan that names a dataset or response twice, an unknown dataset, payees that do not sum to one million ppm, a name
/// or figure that [`Run::check`] refuses, an overflow.
pub fn accrue(plan: &Plan) -> Result<Journal, LedgerError> {
    plan.check()?;
    let journal = Journal::new(plan.run.clone())?;
    let pool = plan.run.policy.pool.sub_units()?;
    let mut books = Books { journal };
    books.put("fund", Account::Cash, Account::Pool, pool.0, Memo::Fund)?;
    let weights: Vec<u128> = plan.events.iter().map(|event| event.weight.into()).collect();
    let split = floors(pool.0, &weights)?;
    if weights.iter().any(|weight| *weight > 0) {
        books.put("pool-dust", Account::Pool, Account::Dust, split.dust, Memo::PoolDust)?;
    }
    for (event, revenue) in plan.events.iter().zip(split.parts) {
        books.accrue_event(plan, event, revenue)?;
    }
    Ok(books.journal)
}

struct Books {
    journal: Journal,
}

impl Books {
    /// Posts a transfer unless it moves nothing: floors give zeros, and the journal holds none.
    fn put(
        &mut self,
        label: &str,
        debit: Account,
        credit: Account,
        amount: u128,
        memo: Memo,
    ) -> Result<(), LedgerError> {
        if amount == 0 {
            return Ok(());
        }
        let id = TransferId::derive(&self.journal.run_id(), label);
        let amount = SubUnits(amount);
        self.journal.post(Transfer { id, debit, credit, amount, phase: Phase::Posted, memo })?;
        Ok(())
    }

    fn unattributed(&mut self, response: u32, amount: u128, reason: UnattributedReason) -> Result<(), LedgerError> {
        let label = format!("unattributed/{response}/{reason:?}");
        let memo = Memo::Unattributed { response, reason };
        self.put(&label, Account::Pool, Account::Unattributed, amount, memo)
    }

    fn accrue_event(&mut self, plan: &Plan, event: &Event, revenue: u128) -> Result<(), LedgerError> {
        let response = event.response;
        let attributed = by_ppm(revenue, plan.run.policy.coverage_ppm)?;
        self.unattributed(response, revenue - attributed, UnattributedReason::Coverage)?;
        let weights: Vec<u128> = event.lines.iter().map(|line| line.weight.into()).collect();
        if weights.iter().all(|weight| *weight == 0) {
            return self.unattributed(response, attributed, UnattributedReason::NoShares);
        }
        let split = floors(attributed, &weights)?;
        let mut dust = split.dust;
        let mut without_payee = 0;
        for (line, part) in event.lines.iter().zip(split.parts) {
            let terms = &plan.terms[line.dataset as usize];
            if terms.payees.is_empty() {
                without_payee += part;
                continue;
            }
            dust += part - self.accrue_dataset(response, terms, part)?;
        }
        self.unattributed(response, without_payee, UnattributedReason::NoPayee)?;
        let label = format!("dust/{response}");
        self.put(&label, Account::Pool, Account::Dust, dust, Memo::EventDust { response })
    }

    /// Splits a dataset's part over the payees of its licence; returns what they got.
    fn accrue_dataset(&mut self, response: u32, terms: &Terms, part: u128) -> Result<u128, LedgerError> {
        let mut given = 0;
        for (payee_idx, payee) in terms.payees.iter().enumerate() {
            let amount = by_ppm(part, payee.share_ppm)?;
            let label = format!("accrue/{response}/{payee_idx}/{}", terms.dataset);
            let account = Account::Payable(Payee { owner: terms.owner.clone(), account: payee.account.clone() });
            let memo = Memo::Accrual { response, dataset: terms.dataset.clone() };
            self.put(&label, Account::Pool, account, amount, memo)?;
            given += amount;
        }
        Ok(given)
    }
}
