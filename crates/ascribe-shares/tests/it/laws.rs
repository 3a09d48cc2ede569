//! Laws of the default rule over random responses, and the counter-examples that kept the other rules from being the default.

use ascribe_shares::{Holdings, Rule, Scored, Weighed, sum_rows};
use proptest::prelude::*;

/// One owner per list of datasets.
fn holdings(owners: &[u32]) -> Holdings {
    Holdings {
        owner_of: owners.to_vec(),
        stands_for: (0..owners.len() as u32).collect(),
        records: vec![10; owners.len()],
        licensed: vec![true; owners.len()],
        ..Holdings::default()
    }
}

fn weigh(rule: Rule, holdings: &Holdings, scores: &[f64], floor: f64) -> Weighed {
    let mut rows: Vec<Scored> =
        (0u32..).zip(scores).map(|(dataset, &score)| Scored { dataset: holdings.stand_in(dataset), score }).collect();
    let (sums, floor) = sum_rows(0, &mut rows, floor).unwrap();
    rule.weigh(holdings, &sums, floor).unwrap()
}

/// What each owner gets of a million units, by floors as the ledger pays.
fn paid(rule: Rule, owners: &[u32], scores: &[f64]) -> Vec<u128> {
    let holdings = holdings(owners);
    let weighed = weigh(rule, &holdings, scores, 0.0);
    let total: u128 = weighed.lines.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let mut paid = vec![0; owners.iter().max().map_or(0, |most| *most as usize + 1)];
    for (dataset, weight) in weighed.lines {
        paid[owners[dataset as usize] as usize] += u128::from(weight) * 1_000_000 / total;
    }
    paid
}

const DEFAULT: Rule = Rule::InfluenceProportional;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A higher score of one's own never pays less, and never pays others more (within the truncation of one unit per dataset).
    #[test]
    fn monotone_in_own_score(scores in proptest::collection::vec(-100i32..100, 2..8), raise in 1i32..50) {
        let owners: Vec<u32> = (0..scores.len() as u32).map(|k| k % 3).collect();
        let as_floats = |scores: &[i32]| scores.iter().map(|s| f64::from(*s)).collect::<Vec<_>>();
        let before = paid(DEFAULT, &owners, &as_floats(&scores));
        let mut raised = scores.clone();
        raised[0] += raise;
        let after = paid(DEFAULT, &owners, &as_floats(&raised));
        let slack = scores.len() as u128;
        prop_assert!(after[0] + slack >= before[0], "{before:?} {after:?}");
        for other in 1..before.len() {
            prop_assert!(after[other] <= before[other] + slack, "{before:?} {after:?}");
        }
    }

    /// Sorting one's rows into more datasets of one's own never pays: the person is netted, not the dataset.
    #[test]
    fn splitting_datasets_never_pays(own in proptest::collection::vec(-50i32..50, 1..6), others in 1i32..100) {
        let one = paid(DEFAULT, &[0, 1], &[f64::from(own.iter().sum::<i32>()), f64::from(others)]);
        let owners: Vec<u32> = own.iter().map(|_| 0).chain([1]).collect();
        let scores: Vec<f64> = own.iter().copied().chain([others]).map(f64::from).collect();
        let many = paid(DEFAULT, &owners, &scores);
        prop_assert!(many[0] <= one[0] + own.len() as u128, "{one:?} {many:?}");
    }

    /// Sharing one's positive rows among false names never pays.
    #[test]
    fn false_names_do_not_pay(own in proptest::collection::vec(0i32..50, 1..6), others in 1i32..100) {
        let one = paid(DEFAULT, &[0, 1], &[f64::from(own.iter().sum::<i32>()), f64::from(others)]);
        let owners: Vec<u32> = (0..=own.len() as u32).collect();
        let scores: Vec<f64> = own.iter().copied().chain([others]).map(f64::from).collect();
        let many = paid(DEFAULT, &owners, &scores);
        prop_assert!(many[..own.len()].iter().sum::<u128>() <= one[0] + 1, "{one:?} {many:?}");
    }

    /// The order of datasets and owners moves nothing.
    #[test]
    fn names_do_not_matter(scores in proptest::collection::vec(-100i32..100, 2..8)) {
        let floats: Vec<f64> = scores.iter().map(|s| f64::from(*s)).collect();
        let owners: Vec<u32> = (0..scores.len() as u32).collect();
        let mut turned = floats.clone();
        turned.reverse();
        let mut back = paid(DEFAULT, &owners, &turned);
        back.reverse();
        prop_assert_eq!(back, paid(DEFAULT, &owners, &floats));
    }
}

/// Clipping each dataset by itself would pay whoever owns many noisy ones: 100 datasets of noise around zero against one
/// honest owner. Netted per person they earn next to nothing; taken as a hundred persons (which is what clipping per item does)
/// they take most of the pot.
#[test]
fn why_not_clip_per_item() {
    let noise = |k: u64| ((k * 7919 + 13) % 101) as f64 / 50.0 - 1.0;
    let scores: Vec<f64> = (0..100).map(noise).chain([5.0]).collect();
    let per_person: Vec<u32> = (0..100).map(|_| 0).chain([1]).collect();
    let netted = paid(DEFAULT, &per_person, &scores);
    assert!(netted[0] < 50_000, "{netted:?}");
    let per_item: Vec<u32> = (0..101).collect();
    let clipped = paid(DEFAULT, &per_item, &scores);
    assert!(clipped[..100].iter().sum::<u128>() > 500_000, "{clipped:?}");
}

/// What the default does not stop: negatives dumped on a throwaway name. Netting needs real identities, which the registry's
/// signatures and stakes give; the arithmetic cannot.
#[test]
fn a_throwaway_name_still_pays() {
    let honest = paid(DEFAULT, &[0, 0, 1], &[5.0, -3.0, 2.0]);
    let dumped = paid(DEFAULT, &[0, 2, 1], &[5.0, -3.0, 2.0]);
    assert!(dumped[0] > honest[0], "{honest:?} {dumped:?}");
}

/// A copy takes half of its original's share, unless duplicates count for the earliest licence.
#[test]
fn copies_pay_nothing_once_deduplicated() {
    let mut holdings = holdings(&[0, 1, 2]);
    let scores = [2.0, 2.0, 4.0];
    assert_eq!(weigh(DEFAULT, &holdings, &scores, 0.0).lines.len(), 3);
    holdings.stands_for[1] = 0;
    let found = weigh(DEFAULT, &holdings, &scores, 0.0);
    assert_eq!(found.lines.iter().map(|(dataset, _)| *dataset).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(found.lines[0].1, found.lines[1].1);
}

/// Fixed fees pay for false names and pro-rata pays for bulk: neither is the default.
#[test]
fn why_not_fixed_fees() {
    let (one, two) = (paid(Rule::Equal, &[0, 1], &[1.0, 1.0]), paid(Rule::Equal, &[0, 2, 1], &[1.0, 1.0, 1.0]));
    assert!(two[0] + two[2] > one[0]);
    let mut padded = holdings(&[0, 1]);
    padded.records[0] = 1000;
    let weighed = weigh(Rule::ProRata, &padded, &[0.0, 9.0], 0.0);
    assert!(weighed.lines[0].1 > weighed.lines[1].1, "a dataset that helped nothing earns more");
}

/// A noise floor keeps a farm from earning by luck, and starves a small honest owner too: no column of the table is free.
#[test]
fn the_gate_stops_noise_and_costs_the_small() {
    let owners = holdings(&[0, 1, 2]);
    let scores = [0.3, 0.3, 9.0];
    assert_eq!(weigh(DEFAULT, &owners, &scores, 0.0).lines.len(), 3);
    assert_eq!(weigh(DEFAULT, &owners, &scores, 0.5).lines.len(), 1);
}

/// Precision: a hundred thousand rows that cancel to a known sum are summed exactly.
#[test]
fn sums_are_exact() {
    let mut rows = Vec::new();
    for n in 0..50_000u32 {
        let score = f64::from(n) * 0.001 + 1e-9;
        rows.push(Scored { dataset: 0, score });
        rows.push(Scored { dataset: 0, score: -score });
    }
    rows.push(Scored { dataset: 1, score: 1.0 });
    let (sums, _) = sum_rows(0, &mut rows, 0.0).unwrap();
    assert_eq!(sums[0].score, 0);
    assert!(sums[1].score > 0);
}
