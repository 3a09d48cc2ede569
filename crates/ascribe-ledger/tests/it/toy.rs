//! One run small enough to do on paper, and the paper.

use ascribe_core::Digest;
use ascribe_ledger::{
    Account, Caip10, Event, Line, Memo, Payee, PayeeShare, PayoutStatus, Phase, Plan, Run, RunPolicy, SubUnits, Terms,
    UnattributedReason, pay, payout_rows, settle,
};

pub fn account(n: u8) -> Caip10 {
    format!("eip155:31337:0x{}", hex::encode([n; 20])).parse().unwrap()
}

pub fn terms(name: &str, owner: &str, payees: &[(Option<u8>, u32)]) -> Terms {
    let payees = payees.iter().map(|&(n, share_ppm)| PayeeShare { account: n.map(account), share_ppm });
    Terms { dataset: format!("urn:uuid:{name}"), owner: owner.into(), payees: payees.collect() }
}

pub fn run(pool: &str, coverage_ppm: u32, minimum_minor: u128) -> Run {
    let inputs = ["registry", "shares", "scores", "spec"].map(|name| (name.to_owned(), Digest::of(name.as_bytes())));
    Run {
        inputs: inputs.into(),
        policy: RunPolicy { shares: "toy".into(), pool: pool.parse().unwrap(), coverage_ppm, minimum_minor },
        version: "0.1.0".into(),
        period: "2026-01-01/2026-01-31".parse().unwrap(),
    }
}

pub fn event(response: u32, lines: &[(u32, u64)]) -> Event {
    let lines = lines.iter().map(|&(dataset, weight)| Line { dataset, weight }).collect();
    Event { response, weight: 1, lines }
}

/// Ten dollars over three responses: one of two datasets, one that nobody is shown to have caused, one of a dataset that
/// nobody may be paid for.
pub fn plan() -> Plan {
    Plan {
        run: run("10.00 USD", 800_000, 100),
        events: vec![event(7, &[(0, 3), (1, 1)]), event(8, &[]), event(9, &[(2, 5)])],
        terms: vec![
            terms("a", "Ada", &[(Some(1), 700_000), (Some(2), 300_000)]),
            terms("b", "Bob", &[(None, 1_000_000)]),
            terms("c", "Cid", &[]),
        ],
    }
}

fn payable(owner: &str, n: Option<u8>) -> Account {
    Account::Payable(Payee { owner: owner.into(), account: n.map(account) })
}

/// 10⁹ sub-units; 333,333,333 per response and 1 of dust; 266,666,666 of each attributed and 66,666,667 not. Response 7:
/// 199,999,999 and 66,666,666 and 1 of dust; Ada's 70 % is 139,999,999, her 30 % is 59,999,999, and 1 of dust more.
#[test]
fn every_balance_is_the_one_on_paper() {
    let statement = pay(&plan()).unwrap();
    let journal = &statement.journal;
    let check =
        |account: &Account, expected: u128| assert_eq!(journal.available(account), SubUnits(expected), "{account}");
    check(&Account::Cash, 1_000_000_000 - 139_000_000);
    check(&Account::Pool, 0);
    check(&Account::Dust, 3);
    check(&Account::Unattributed, 3 * 66_666_667 + 2 * 266_666_666);
    check(&payable("Ada", Some(1)), 999_999);
    check(&payable("Ada", Some(2)), 59_999_999);
    check(&payable("Bob", None), 66_666_666);

    let conservation = statement.conservation;
    assert!(conservation.holds());
    assert_eq!(conservation.pool, SubUnits(1_000_000_000));
    assert_eq!(conservation.settled, SubUnits(139_000_000));
    assert_eq!(conservation.carried, SubUnits(999_999 + 59_999_999 + 66_666_666));
    assert_eq!((conservation.dust, conservation.unspent), (SubUnits(3), SubUnits(0)));

    let rows: Vec<_> = statement.rows.iter().map(|row| (row.owner.as_str(), row.amount.minor, row.status())).collect();
    use PayoutStatus::{BelowMinimum, NoAccount, Paid};
    assert_eq!(rows, [("Ada", 139, Paid), ("Ada", 0, BelowMinimum), ("Bob", 0, NoAccount)]);
    assert!(statement.rows.iter().all(|row| row.responses == 1 && row.datasets == 1));
    let reasons = journal.transfers().iter().filter_map(|t| match t.memo {
        Memo::Unattributed { response, reason } => Some((response, reason)),
        _ => None,
    });
    use UnattributedReason::{Coverage, NoPayee, NoShares};
    assert_eq!(reasons.collect::<Vec<_>>(), [(7, Coverage), (8, Coverage), (8, NoShares), (9, Coverage), (9, NoPayee)]);
}

#[test]
fn a_rerun_is_the_same_run() {
    let (first, again) = (pay(&plan()).unwrap(), pay(&plan()).unwrap());
    assert_eq!(first.journal.to_json().unwrap(), again.journal.to_json().unwrap());
    // Posting the second run's transfers to the first journal changes nothing.
    let mut journal = first.journal.clone();
    for transfer in again.journal.transfers() {
        assert_eq!(journal.post(transfer.clone()), Ok(ascribe_ledger::Outcome::AlreadyThere));
    }
    assert_eq!(journal, first.journal);
    assert_eq!(settle(&mut journal).unwrap(), first.rows);
    assert_eq!(journal, first.journal);
}

#[test]
fn payments_are_pending_until_money_moves() {
    let statement = pay(&plan()).unwrap();
    let pending: Vec<_> = statement.journal.transfers().iter().filter(|t| t.phase == Phase::Pending).collect();
    assert_eq!(pending.len(), 1);
    let mut paid = statement.journal.clone();
    paid.resolve(pending[0].id, true).unwrap();
    assert_eq!(payout_rows(&paid).unwrap(), statement.rows);
    let mut voided = statement.journal.clone();
    voided.resolve(pending[0].id, false).unwrap();
    assert_eq!(voided.available(&payable("Ada", Some(1))), SubUnits(139_999_999));
    for journal in [paid, voided] {
        let rows = payout_rows(&journal).unwrap();
        assert!(ascribe_ledger::Conservation::of(&journal, &rows).unwrap().holds());
        assert_eq!(ascribe_ledger::Journal::from_json(&journal.to_json().unwrap()).unwrap(), journal);
    }
}

#[test]
fn one_payee_takes_all_of_a_covered_pool() {
    let mut plan = plan();
    plan.run.policy.coverage_ppm = 1_000_000;
    plan.events = vec![event(1, &[(0, u64::MAX)])];
    plan.terms = vec![terms("a", "Ada", &[(Some(1), 1_000_000)])];
    let statement = pay(&plan).unwrap();
    assert_eq!(statement.rows.len(), 1);
    assert_eq!(statement.rows[0].amount.to_string(), "10.00 USD");
    assert_eq!(statement.rows[0].carried, SubUnits(0));
}

#[test]
fn owners_share_an_account_and_accounts_share_an_owner() {
    let mut plan = plan();
    plan.terms[1] = terms("b", "Ada", &[(Some(1), 1_000_000)]);
    let statement = pay(&plan).unwrap();
    // 139,999,999 + 66,666,666 on one account, by two datasets.
    assert_eq!((statement.rows[0].amount.minor, statement.rows[0].datasets), (206, 2));
    assert_eq!(statement.rows[0].carried, SubUnits(666_665));
}
