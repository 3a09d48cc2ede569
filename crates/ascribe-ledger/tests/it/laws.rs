//! Laws over random plans, and one plan of a hundred thousand payees.

use ascribe_ledger::{
    Conservation, Event, EvmAddress, Journal, Line, PayoutTree, Plan, Statement, Terms, pay, payout_rows,
    read_payout_csv, write_payout_csv,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::toy::{event, run, terms};

const TOKEN: EvmAddress = EvmAddress([0xaa; 20]);

prop_compose! {
    fn any_terms()(n_payees in 0usize..4, owner in 0usize..3, cuts in vec(0u32..=1_000_000, 3), without in 0u8..8)
        -> (usize, Vec<(Option<u8>, u32)>)
    {
        let mut cuts: Vec<u32> = cuts[..n_payees.saturating_sub(1)].to_vec();
        cuts.sort_unstable();
        let mut payees = Vec::new();
        let mut from = 0;
        for payee in 0..n_payees {
            let to = cuts.get(payee).copied().unwrap_or(1_000_000);
            let account = (payee as u8 != without).then_some(owner as u8 * 10 + payee as u8);
            payees.push((account, to - from));
            from = to;
        }
        (owner, payees)
    }
}

prop_compose! {
    fn any_plan()(
        n_terms in 1usize..6,
    )(
        minor in prop_oneof![0u128..1000, 0u128..1 << 70, Just(u128::MAX / 4_000_000)],
        coverage_ppm in 0u32..=1_000_000,
        minimum in prop_oneof![0u128..3, 0u128..1 << 60],
        all_terms in vec(any_terms(), n_terms),
        weights in vec((0u64..3, vec(prop_oneof![Just(0u64), 1u64..4, 0u64..1 << 62], n_terms)), 0..6),
    ) -> Plan {
        let mut run = run("0.00 USD", coverage_ppm, minimum);
        run.policy.pool.minor = minor;
        let terms: Vec<Terms> = all_terms.iter().enumerate().map(|(idx, (owner, payees))| {
            terms(&format!("d{idx}"), &format!("Owner {owner}"), payees)
        }).collect();
        let events = weights.iter().enumerate().map(|(idx, (weight, lines))| Event {
            response: idx as u32,
            weight: *weight,
            lines: lines.iter().enumerate().map(|(dataset, &weight)| Line { dataset: dataset as u32, weight }).collect(),
        }).collect();
        Plan { run, events, terms }
    }
}

/// Everything that must hold of any statement.
fn check_statement(plan: &Plan, statement: &Statement) -> Result<(), TestCaseError> {
    let conservation = &statement.conservation;
    prop_assert!(conservation.holds());
    prop_assert_eq!(conservation.pool, plan.run.policy.pool.sub_units().unwrap());
    let read = Journal::from_json(&statement.journal.to_json().unwrap()).unwrap();
    prop_assert_eq!(&read, &statement.journal);
    prop_assert_eq!(&payout_rows(&read).unwrap(), &statement.rows);
    prop_assert_eq!(&Conservation::of(&read, &statement.rows).unwrap(), conservation);
    let csv = write_payout_csv(&read.run_id(), &statement.rows);
    prop_assert_eq!(&read_payout_csv(&csv).unwrap().1, &statement.rows);
    for row in &statement.rows {
        let minimum = plan.run.policy.minimum_minor.max(1);
        prop_assert!(row.amount.minor == 0 || row.amount.minor >= minimum);
        prop_assert!(row.amount.minor == 0 || row.carried.0 < 1_000_000);
        prop_assert!(row.account.is_some() || row.amount.minor == 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_plan_closes(plan in any_plan()) {
        check_statement(&plan, &pay(&plan).unwrap())?;
    }

    /// The order of responses and of datasets within a response moves no money.
    #[test]
    fn order_moves_no_money(plan in any_plan()) {
        let mut turned = plan.clone();
        turned.events.reverse();
        for event in &mut turned.events {
            event.lines.reverse();
        }
        prop_assert_eq!(pay(&turned).unwrap().rows, pay(&plan).unwrap().rows);
    }
}

/// Conservation to the last sub-unit with 100,000 payees of uneven weights, and every file reads back.
#[test]
fn a_hundred_thousand_payees() {
    const N: u32 = 100_000;
    let account = |n: u32| {
        let mut address = [0x11; 20];
        address[..4].copy_from_slice(&n.to_be_bytes());
        Some(format!("eip155:31337:{}", EvmAddress(address)).parse().unwrap())
    };
    let mut all_terms = Vec::new();
    for n in 0..N {
        let mut one = terms(&format!("d{n}"), &format!("Owner {n}"), &[(None, 1_000_000)]);
        one.payees[0].account = account(n);
        all_terms.push(one);
    }
    let lines: Vec<(u32, u64)> = (0..N).map(|n| (n, (1 << 61) - u64::from(n) * 23_000_000_000_000)).collect();
    let plan = Plan { run: run("1234567.89 USD", 912_345, 0), events: vec![event(0, &lines)], terms: all_terms };
    let statement = pay(&plan).unwrap();
    check_statement(&plan, &statement).unwrap();
    assert_eq!(statement.rows.len(), N as usize);
    assert!(statement.conservation.dust.0 < u128::from(N));
    let tree = PayoutTree::of_rows(None, &statement.rows, 31337, TOKEN).unwrap();
    let paid: u128 = tree.leaves().iter().map(|leaf| leaf.amount).sum();
    assert_eq!(paid * 1_000_000, statement.conservation.settled.0);
    assert_eq!(PayoutTree::from_json(&tree.to_json().unwrap()).unwrap(), tree);
}
