//! Accrual of a whole score file: totals per dataset and payee instead of a transfer per response, so that a hundred
//! million rows fit in memory. The rules are those of `accrue`; what each response gives is added up before licence
//! splits are taken, which drops less dust. A test holds both routes against each other.

use std::collections::BTreeMap;

use crate::accrue::{Line, Terms};
use crate::amount::{Money, SUB_UNITS_PER_MINOR, SubUnits};
use crate::apportion::{PPM, by_ppm};
use crate::error::{LedgerError, check_name};
use crate::settle::PayoutRow;
use crate::transfer::{Payee, UnattributedReason};
use crate::wide::mul_div;

/// Terms of all datasets in the form that batches read: payees numbered in the order of the payout rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchTerms {
    payees: Vec<Payee>,
    owners: Vec<String>,
    owner_of_payee: Vec<u32>,
    owner_of_dataset: Vec<u32>,
    splits: Vec<Vec<(u32, u32)>>,
    blocked: Vec<Option<UnattributedReason>>,
}

impl BatchTerms {
    /// Numbers owners and payees. `blocked[d]` says why dataset `d` may not be paid, if it may not.
    ///
    /// # Errors
    /// Bad names, payees that do not sum to one million ppm, lists of different lengths.
    pub fn new(terms: &[Terms], blocked: Vec<Option<UnattributedReason>>) -> Result<Self, LedgerError> {
        if blocked.len() != terms.len() {
            let (expected, found) = (terms.len().to_string(), blocked.len().to_string());
            return Err(LedgerError::Mismatch { file: "terms", what: "blocked datasets".into(), expected, found });
        }
        let mut payees = Vec::new();
        for one in terms {
            check_name("dataset", &one.dataset)?;
            check_name("owner", &one.owner)?;
            let sum: u64 = one.payees.iter().map(|payee| u64::from(payee.share_ppm)).sum();
            if !one.payees.is_empty() && sum != u64::from(PPM) {
                let what = format!("payees of {}", one.dataset);
                return Err(LedgerError::BadPpm { what, expected: "a sum of 1000000", found: sum });
            }
            payees.extend(
                one.payees.iter().map(|payee| Payee { owner: one.owner.clone(), account: payee.account.clone() }),
            );
        }
        payees.sort_unstable();
        payees.dedup();
        let mut owners: Vec<String> = terms.iter().map(|one| one.owner.clone()).collect();
        owners.sort_unstable();
        owners.dedup();
        let owner_idx = |name: &String| owners.binary_search(name).expect("the list was made of these names") as u32;
        let split = |one: &Terms| {
            let of = |share: &crate::PayeeShare| {
                let found = payees.binary_search_by(|p| (&p.owner, &p.account).cmp(&(&one.owner, &share.account)));
                (found.expect("the list was made of these payees") as u32, share.share_ppm)
            };
            one.payees.iter().map(of).collect()
        };
        Ok(Self {
            splits: terms.iter().map(split).collect(),
            owner_of_dataset: terms.iter().map(|one| owner_idx(&one.owner)).collect(),
            owner_of_payee: payees.iter().map(|payee| owner_idx(&payee.owner)).collect(),
            payees,
            owners,
            blocked,
        })
    }

    /// Owners, sorted by name.
    pub fn owners(&self) -> &[String] {
        &self.owners
    }

    /// Owner ordinals by dataset ordinal.
    pub fn owner_of_dataset(&self) -> &[u32] {
        &self.owner_of_dataset
    }

    /// Payees, sorted by owner and account.
    pub fn payees(&self) -> &[Payee] {
        &self.payees
    }
}

/// What an owner earned, summed over responses: enough for a mean share and its error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerTally {
    /// Responses in which the owner has a positive weight.
    pub responses: u32,
    /// Sum of the owner's shares of each response, in ppm, rounded down.
    pub sum_ppm: u64,
    /// Sum of their squares.
    pub sum_ppm2: u128,
}

/// Sums over responses. Adding two of them gives what one would have counted, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accruals {
    /// Sub-units by dataset ordinal, before licence splits.
    pub earned: Vec<u128>,
    /// Per owner.
    pub owners: Vec<OwnerTally>,
    /// Not attributed, by reason.
    pub unattributed: BTreeMap<UnattributedReason, u128>,
    /// Left over by floors.
    pub dust: u128,
    /// Responses counted.
    pub events: u64,
    /// Responses that were paid for.
    pub paid_events: u64,
}

impl Accruals {
    /// Nothing yet.
    pub fn new(terms: &BatchTerms) -> Self {
        Self {
            earned: vec![0; terms.owner_of_dataset.len()],
            owners: vec![OwnerTally::default(); terms.owners.len()],
            unattributed: BTreeMap::new(),
            dust: 0,
            events: 0,
            paid_events: 0,
        }
    }

    fn leave(&mut self, reason: UnattributedReason, amount: u128) -> Result<(), LedgerError> {
        if amount > 0 {
            add(self.unattributed.entry(reason).or_default(), amount)?;
        }
        Ok(())
    }

    /// One response: `revenue` sub-units, of which `coverage_ppm` are attributed: `x_d = ⌊A·w_d/W⌋`.
    ///
    /// `lines` have positive weights and stand in the order of owners, so that an owner's datasets are neighbours. `unknown` is the
    /// weight of datasets that no registry knows: their part stays unattributed and nobody gains from it.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::UnknownDataset`], coverage above one million ppm.
    pub fn event(
        &mut self,
        terms: &BatchTerms,
        revenue: u128,
        coverage_ppm: u32,
        lines: &[Line],
        unknown: u128,
    ) -> Result<(), LedgerError> {
        self.event_parts(terms, revenue, coverage_ppm, lines, unknown, &mut |_, _| {})
    }

    /// The same; `each` is told what every dataset earns.
    ///
    /// # Errors
    /// As [`Accruals::event`].
    pub fn event_parts(
        &mut self,
        terms: &BatchTerms,
        revenue: u128,
        coverage_ppm: u32,
        lines: &[Line],
        unknown: u128,
        each: &mut dyn FnMut(u32, u128),
    ) -> Result<(), LedgerError> {
        self.events += 1;
        let attributed = by_ppm(revenue, coverage_ppm)?;
        self.leave(UnattributedReason::Coverage, revenue - attributed)?;
        let total = lines.iter().try_fold(unknown, |sum, line| sum.checked_add(line.weight.into()));
        let total = total.ok_or(LedgerError::Overflow { what: "the sum of weights" })?;
        if total == 0 {
            return self.leave(UnattributedReason::NoShares, attributed);
        }
        let part = |pot: u128, weight: u128| mul_div(pot, weight, total).map_or(0, |(part, _)| part);
        let beyond = part(attributed, unknown);
        self.leave(UnattributedReason::Unregistered, beyond)?;
        let mut dust = attributed - beyond;
        let mut group = (u32::MAX, 0u128);
        for line in lines {
            let dataset = line.dataset as usize;
            let Some(&owner) = terms.owner_of_dataset.get(dataset) else {
                let (response, known) = (self.events as u32, self.earned.len());
                return Err(LedgerError::UnknownDataset { response, dataset: line.dataset, known });
            };
            let amount = part(attributed, line.weight.into());
            add(&mut self.earned[dataset], amount)?;
            each(line.dataset, amount);
            dust -= amount;
            if owner != group.0 {
                self.count(group, total);
                group = (owner, 0);
            }
            group.1 += u128::from(line.weight);
        }
        self.count(group, total);
        self.paid_events += u64::from(!lines.is_empty());
        add(&mut self.dust, dust)
    }

    /// Counts one owner's weight in one response.
    fn count(&mut self, (owner, weight): (u32, u128), total: u128) {
        if weight == 0 {
            return;
        }
        // A weight is at most the total.
        let ppm = mul_div(PPM.into(), weight, total).map_or(0, |(ppm, _)| ppm);
        let tally = &mut self.owners[owner as usize];
        tally.responses += 1;
        tally.sum_ppm += ppm as u64;
        tally.sum_ppm2 += ppm * ppm;
    }

    /// Adds what another thread counted.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn merge(&mut self, other: &Self) -> Result<(), LedgerError> {
        for (sum, amount) in self.earned.iter_mut().zip(&other.earned) {
            add(sum, *amount)?;
        }
        for (sum, tally) in self.owners.iter_mut().zip(&other.owners) {
            sum.responses += tally.responses;
            sum.sum_ppm += tally.sum_ppm;
            sum.sum_ppm2 += tally.sum_ppm2;
        }
        for (reason, amount) in &other.unattributed {
            add(self.unattributed.entry(*reason).or_default(), *amount)?;
        }
        self.events += other.events;
        self.paid_events += other.paid_events;
        add(&mut self.dust, other.dust)
    }
}

fn add(sum: &mut u128, amount: u128) -> Result<(), LedgerError> {
    *sum = sum.checked_add(amount).ok_or(LedgerError::Overflow { what: "a sum of sub-units" })?;
    Ok(())
}

/// Figures of a settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRules {
    /// The settled pool.
    pub pool: Money,
    /// Sub-units that earlier floors left: they join this pool.
    pub dust_in: SubUnits,
    /// Balances below this many minor units are carried.
    pub minimum_minor: u128,
    /// Most that one owner gets of the pool, in ppm; the rest of it stays unattributed.
    pub cap_ppm: Option<u32>,
    /// What earlier runs carried.
    pub carried_in: BTreeMap<Payee, SubUnits>,
}

/// A payout row with what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    /// What is paid and carried.
    pub row: PayoutRow,
    /// Earned in this run, in sub-units.
    pub accrued: u128,
    /// Carried in from earlier runs.
    pub carried_in: u128,
}

/// The outcome of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchStatement {
    /// Pool and earlier dust.
    pub funded: SubUnits,
    /// One row per payee with a balance, sorted by owner and account.
    pub rows: Vec<BatchRow>,
    /// Not attributed, by reason.
    pub unattributed: BTreeMap<UnattributedReason, u128>,
    /// Left over by floors; joins the next pool.
    pub dust: SubUnits,
    /// Sub-units of the pool that no response claimed.
    pub unspent: SubUnits,
    /// Per owner of the terms.
    pub owners: Vec<OwnerTally>,
}

/// Splits what datasets earned over the payees of their licences and settles whole minor units.
///
/// Capped owners first: each of their payees gets `⌊x·cap/total⌋`. Then per payee `⌊(carried + x)/10⁶⌋` minor units if that
/// reaches the minimum and there is an account; the rest is carried. Every sub-unit is on some account, which is checked.
///
/// # Errors
/// [`LedgerError::NotConserved`], which would be a defect; [`LedgerError::Overflow`].
pub fn settle_batch(terms: &BatchTerms, accruals: Accruals, rules: &BatchRules) -> Result<BatchStatement, LedgerError> {
    let funded = rules.pool.sub_units()?.plus(rules.dust_in)?;
    let Accruals { earned, owners, mut unattributed, mut dust, events, .. } = accruals;
    let mut balances = vec![0u128; terms.payees.len()];
    for (dataset, amount) in earned.into_iter().enumerate() {
        let split = &terms.splits[dataset];
        let reason = terms.blocked[dataset].or(split.is_empty().then_some(UnattributedReason::NoPayee));
        if let (Some(reason), true) = (reason, amount > 0) {
            add(unattributed.entry(reason).or_default(), amount)?;
            continue;
        }
        let mut left = amount;
        for &(payee, ppm) in split {
            let part = by_ppm(amount, ppm)?;
            add(&mut balances[payee as usize], part)?;
            left -= part;
        }
        add(&mut dust, left)?;
    }
    if let Some(cap_ppm) = rules.cap_ppm {
        let over = cap(terms, &mut balances, by_ppm(funded.0, cap_ppm)?)?;
        if over > 0 {
            add(unattributed.entry(UnattributedReason::Cap).or_default(), over)?;
        }
    }
    let unspent = SubUnits(if events == 0 { funded.0 } else { 0 });
    let rows = rows(terms, &balances, &owners, rules)?;
    let statement = BatchStatement { funded, rows, unattributed, dust: SubUnits(dust), unspent, owners };
    statement.check()?;
    Ok(statement)
}

/// Cuts owners above `most` down to it; returns what was cut.
fn cap(terms: &BatchTerms, balances: &mut [u128], most: u128) -> Result<u128, LedgerError> {
    let mut totals = vec![0u128; terms.owners.len()];
    for (balance, owner) in balances.iter().zip(&terms.owner_of_payee) {
        add(&mut totals[*owner as usize], *balance)?;
    }
    let mut over = 0;
    for (balance, owner) in balances.iter_mut().zip(&terms.owner_of_payee) {
        let total = totals[*owner as usize];
        if total > most {
            let kept = mul_div(*balance, most, total).map_or(0, |(kept, _)| kept);
            over += *balance - kept;
            *balance = kept;
        }
    }
    Ok(over)
}

fn rows(
    terms: &BatchTerms,
    balances: &[u128],
    owners: &[OwnerTally],
    rules: &BatchRules,
) -> Result<Vec<BatchRow>, LedgerError> {
    let mut n_datasets = vec![0u32; terms.payees.len()];
    for split in &terms.splits {
        split.iter().for_each(|&(payee, _)| n_datasets[payee as usize] += 1);
    }
    let mut rows = Vec::new();
    let mut carried = rules.carried_in.clone();
    let minimum = rules.minimum_minor.max(1);
    let mut put = |payee: &Payee, accrued: u128, carried_in: u128, responses: u32, datasets: u32| {
        let mut balance = carried_in;
        add(&mut balance, accrued)?;
        if balance == 0 {
            return Ok(());
        }
        let whole = SubUnits(balance).minor_floor();
        let minor = if payee.account.is_some() && whole >= minimum { whole } else { 0 };
        let amount = Money { minor, currency: rules.pool.currency };
        let kept = SubUnits(balance - minor * SUB_UNITS_PER_MINOR);
        let Payee { owner, account } = payee.clone();
        let row = PayoutRow { owner, account, amount, responses, datasets, carried: kept };
        rows.push(BatchRow { row, accrued, carried_in });
        Ok::<(), LedgerError>(())
    };
    for (idx, payee) in terms.payees.iter().enumerate() {
        let carried_in = carried.remove(payee).unwrap_or_default().0;
        let owner = terms.owner_of_payee[idx] as usize;
        let earns = balances[idx] > 0;
        let (responses, datasets) = if earns { (owners[owner].responses, n_datasets[idx]) } else { (0, 0) };
        put(payee, balances[idx], carried_in, responses, datasets)?;
    }
    // Payees of earlier runs whom today's terms do not name keep what they are owed.
    let gone = !carried.is_empty();
    for (payee, amount) in &carried {
        put(payee, 0, amount.0, 0, 0)?;
    }
    if gone {
        rows.sort_by(|a, b| (&a.row.owner, &a.row.account).cmp(&(&b.row.owner, &b.row.account)));
    }
    Ok(rows)
}

impl BatchStatement {
    /// Sub-units unattributed for any reason.
    pub fn unattributed_total(&self) -> SubUnits {
        SubUnits(self.unattributed.values().sum())
    }

    /// Sub-units paid, in whole minor units.
    pub fn settled(&self) -> SubUnits {
        SubUnits(self.rows.iter().map(|row| row.row.amount.minor * SUB_UNITS_PER_MINOR).sum())
    }

    /// Sub-units that stay on payees' accounts.
    pub fn carried(&self) -> SubUnits {
        SubUnits(self.rows.iter().map(|row| row.row.carried.0).sum())
    }

    /// Proves by two sums that nothing was made or lost.
    ///
    /// # Errors
    /// [`LedgerError::NotConserved`] with the sum that fails.
    pub fn check(&self) -> Result<(), LedgerError> {
        let accrued: u128 = self.rows.iter().map(|row| row.accrued).sum();
        let carried_in: u128 = self.rows.iter().map(|row| row.carried_in).sum();
        let same = |what, expected: u128, found: u128| {
            if expected == found { Ok(()) } else { Err(LedgerError::NotConserved { what, expected, found }) }
        };
        let out = accrued + self.unattributed_total().0 + self.dust.0 + self.unspent.0;
        same("the pool and where it went", self.funded.0, out)?;
        same("balances and what became of them", accrued + carried_in, self.settled().0 + self.carried().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(list: &[(&str, &str, &[u32])]) -> Vec<Terms> {
        let one = |(dataset, owner, ppm): &(&str, &str, &[u32])| Terms {
            dataset: (*dataset).into(),
            owner: (*owner).into(),
            payees: (0u8..)
                .zip(*ppm)
                .map(|(n, &share_ppm)| crate::PayeeShare {
                    account: Some(format!("eip155:1:{}", crate::EvmAddress([n + 1; 20])).parse().unwrap()),
                    share_ppm,
                })
                .collect(),
        };
        list.iter().map(one).collect()
    }

    fn rules(pool: &str, cap_ppm: Option<u32>) -> BatchRules {
        let (dust_in, carried_in) = (SubUnits(0), BTreeMap::new());
        BatchRules { pool: pool.parse().unwrap(), dust_in, minimum_minor: 1, cap_ppm, carried_in }
    }

    fn line(dataset: u32, weight: u64) -> Line {
        Line { dataset, weight }
    }

    /// One dollar, 80 % covered, weights 3 and 1 and as much again for an unknown dataset: 80 of 100 cents, 30, 10, 40.
    #[test]
    fn by_hand() {
        let terms = BatchTerms::new(&terms(&[("a", "Ada", &[500_000, 500_000]), ("b", "Bob", &[])]), vec![None; 2]);
        let terms = terms.unwrap();
        let mut accruals = Accruals::new(&terms);
        accruals.event(&terms, 100_000_000, 800_000, &[line(0, 3), line(1, 1)], 4).unwrap();
        assert_eq!(accruals.owners[0], OwnerTally { responses: 1, sum_ppm: 375_000, sum_ppm2: 375_000 * 375_000 });
        let statement = settle_batch(&terms, accruals.clone(), &rules("1.00 USD", None)).unwrap();
        let minor: Vec<u128> = statement.rows.iter().map(|row| row.row.amount.minor).collect();
        assert_eq!(minor, [15, 15]);
        use UnattributedReason::{Cap, Coverage, NoPayee, Unregistered};
        let cents = |n: u128| n * 1_000_000;
        let expected = [(Coverage, cents(20)), (NoPayee, cents(10)), (Unregistered, cents(40))];
        assert_eq!(statement.unattributed, expected.into());
        // A cap of a tenth of the pool halves, and more, what Ada gets.
        let capped = settle_batch(&terms, accruals, &rules("1.00 USD", Some(100_000))).unwrap();
        assert_eq!(capped.rows[0].row.amount.minor, 5);
        assert_eq!(capped.unattributed[&Cap], cents(20));
    }

    #[test]
    fn carried_balances_come_back() {
        let terms = BatchTerms::new(&terms(&[("a", "Ada", &[1_000_000])]), vec![None]).unwrap();
        let mut accruals = Accruals::new(&terms);
        accruals.event(&terms, 500_000, 1_000_000, &[line(0, 1)], 0).unwrap();
        let mut rules = rules("0.00 USD", None);
        rules.dust_in = SubUnits(500_000);
        let payee = terms.payees()[0].clone();
        let gone = Payee { owner: "Zoe".into(), account: None };
        rules.carried_in = [(payee, SubUnits(600_000)), (gone, SubUnits(7))].into();
        let statement = settle_batch(&terms, accruals, &rules).unwrap();
        assert_eq!(statement.rows[0].row.amount.minor, 1);
        assert_eq!(statement.rows[0].row.carried, SubUnits(100_000));
        assert_eq!((statement.rows[1].row.owner.as_str(), statement.rows[1].row.carried), ("Zoe", SubUnits(7)));
        statement.check().unwrap();
    }

    #[test]
    fn blocked_datasets_and_empty_events() {
        let blocked = vec![Some(UnattributedReason::Embargo)];
        let terms = BatchTerms::new(&terms(&[("a", "Ada", &[1_000_000])]), blocked).unwrap();
        let mut accruals = Accruals::new(&terms);
        accruals.event(&terms, 5_000_000, 1_000_000, &[line(0, 1)], 0).unwrap();
        accruals.event(&terms, 5_000_000, 1_000_000, &[], 0).unwrap();
        let statement = settle_batch(&terms, accruals, &rules("0.10 USD", None)).unwrap();
        assert!(statement.rows.is_empty());
        use UnattributedReason::{Embargo, NoShares};
        assert_eq!(statement.unattributed, [(Embargo, 5_000_000), (NoShares, 5_000_000)].into());
        let none = settle_batch(&terms, Accruals::new(&terms), &rules("0.10 USD", None)).unwrap();
        assert_eq!(none.unspent, SubUnits(10_000_000));
    }
}
