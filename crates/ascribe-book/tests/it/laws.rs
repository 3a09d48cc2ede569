//! Laws over random histories: nothing is made or lost, any order and any batches give the same balances, a repetition changes
//! nothing, and balances are those of a book kept in memory by other code.

use std::collections::BTreeMap;

use ascribe_book::{Entry, PaidResponse, PayTable, RevenueSplit, SettleTerms, Source};
use ascribe_ledger::{Line, SubUnits, by_ppm};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::fixture::{DAY, NOON, Place, address, holds, payable, table, usd};

/// A response: revenue, coverage, weights of the four datasets, weight of strangers.
type Drawn = (u128, u32, [u64; 4], u64);

fn drawn() -> impl Strategy<Value = Drawn> {
    let weight = || prop_oneof![Just(0u64), 1..100u64, any::<u64>()];
    (1..u128::from(u64::MAX), 0..=1_000_000u32, [weight(), weight(), weight(), weight()], weight())
}

fn entry(table: &PayTable, n: usize, (revenue, coverage_ppm, weights, unknown_weight): &Drawn) -> Entry {
    let lines: Vec<Line> = (0u32..).zip(weights).map(|(dataset, &weight)| Line { dataset, weight }).collect();
    let response = PaidResponse {
        request: &format!("req-{n}"),
        at_unix_s: NOON + (n as u64 % 5) * DAY,
        revenue: SubUnits(*revenue),
        source: Source::Cash,
        coverage_ppm: *coverage_ppm,
        lines: &lines,
        unknown_weight: *unknown_weight,
    };
    table.entry(&response).unwrap()
}

/// The rule once more, in the plainest words: what Ada, Bob and his agent get of a response.
fn by_hand((revenue, coverage, weights, unknown): &Drawn) -> [u128; 3] {
    let pool = revenue - by_ppm(*revenue, 200_000).unwrap() - by_ppm(*revenue, 50_000).unwrap();
    let attributed = by_ppm(pool, *coverage).unwrap();
    let total: u128 = weights.iter().chain([unknown]).map(|w| u128::from(*w)).sum();
    if total == 0 {
        return [0; 3];
    }
    // Pools of this test are below 2^64 and weights are 64 bits: their product fits.
    let part = |w: u64| attributed * u128::from(w) / total;
    [part(weights[0]), by_ppm(part(weights[1]), 700_000).unwrap(), by_ppm(part(weights[1]), 300_000).unwrap()]
}

pub fn any_history_is_conserved_and_free_of_order(place: &Place) {
    let mut runner = TestRunner::new(Config {
        cases: if place.address.starts_with("sqlite") { 12 } else { 3 },
        failure_persistence: None,
        ..Config::default()
    });
    let n_case = std::cell::Cell::new(0u32);
    let strategy = (vec(drawn(), 1..40), 1usize..9, any::<prop::sample::Index>());
    runner
        .run(&strategy, |(history, batch, turn)| {
            n_case.set(n_case.get() + 1);
            let (one, two) = (fresh(place, n_case.get(), "a"), fresh(place, n_case.get(), "b"));
            let (mut first, mut second) = (one.open(), two.open());
            let (table_one, table_two) = (table(&mut first), table(&mut second));
            let entries: Vec<Entry> = history.iter().enumerate().map(|(n, d)| entry(&table_one, n, d)).collect();
            for entry in &entries {
                let sum: u128 = entry.legs.iter().map(|leg| leg.amount).sum();
                prop_assert_eq!(SubUnits(sum), SubUnits(history[index(entry)].0));
            }
            first.post(&entries).unwrap();
            // The other book: turned, in batches, every batch twice.
            let mut turned: Vec<Entry> = history.iter().enumerate().map(|(n, d)| entry_of(&table_two, n, d)).collect();
            turned.rotate_left(turn.index(history.len()));
            for piece in turned.chunks(batch) {
                second.post(piece).unwrap();
                second.post(piece).unwrap();
            }
            let sums = |book: &mut ascribe_book::Book| -> BTreeMap<String, u128> {
                let all = book.balances().unwrap();
                all.into_iter().map(|(at, b)| (at.to_string(), b.available(at.purpose.is_asset()).0)).collect()
            };
            prop_assert_eq!(sums(&mut first), sums(&mut second));
            let expected = history.iter().map(by_hand).fold([0; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]]);
            let found = [("Ada", 1), ("Bob", 11), ("Bob", 12)].map(|(owner, n)| holds(&mut first, payable(owner, n)));
            prop_assert_eq!(found, expected);
            let total: u128 = history.iter().map(|d| d.0).sum();
            let terms = SettleTerms { currency: usd(), as_of_unix_s: NOON + 9 * DAY, hold_days: 6, minimum_minor: 5 };
            let settled = first.settle(&terms).unwrap();
            prop_assert_eq!(&first.settle(&terms).unwrap().total, &settled.total);
            first.resolve(&settled.id, Some("Bob"), false, NOON).unwrap();
            first.resolve(&settled.id, None, true, NOON).unwrap();
            let report = first.verify().unwrap();
            let paid: u128 = settled
                .rows
                .iter()
                .filter(|row| row.owner == "Ada" && row.account == address(1))
                .map(|row| row.pays_minor.parse::<u128>().unwrap() * 1_000_000)
                .sum();
            prop_assert_eq!(report.currencies[0].assets_subunits.parse::<u128>().unwrap(), total - paid);
            second.verify().unwrap();
            Ok(())
        })
        .unwrap();
}

fn entry_of(table: &PayTable, n: usize, drawn: &Drawn) -> Entry {
    entry(table, n, drawn)
}

fn index(entry: &Entry) -> usize {
    entry.memo.trim_start_matches("req-").parse().unwrap()
}

fn fresh(place: &Place, n: u32, which: &str) -> Place {
    if place.address.starts_with("sqlite") { Place::sqlite() } else { Place::postgres(&format!("laws_{n}_{which}")) }
}

/// More operator and reserve than there is, terms that do not sum, lines that stand twice: refused with words.
#[test]
fn what_no_table_pays() {
    let place = Place::sqlite();
    let mut book = place.open();
    let list = crate::fixture::terms(&[("Ada", &[999_999])]);
    let error = book.pay_table(usd(), &list, &[None], RevenueSplit::default()).unwrap_err();
    assert_eq!(error.to_string(), "payees of urn:uuid:0: expected a sum of 1000000 ppm, found 999999");
    let split = RevenueSplit { operator_ppm: 999_999, reserve_ppm: 2 };
    let error = book.pay_table(usd(), &[], &[], split).unwrap_err();
    assert!(error.to_string().contains("expected at most 1000000 together, found 1000001"), "{error}");
    assert!(book.pay_table(usd(), &[], &[None], RevenueSplit::default()).is_err());
    let table = table(&mut book);
    let response = |revenue, lines: &[Line]| {
        let (request, at_unix_s, source) = ("req-1", NOON, Source::Cash);
        let (coverage_ppm, unknown_weight) = (1_000_001, 0);
        table.entry(&PaidResponse { request, at_unix_s, revenue, source, coverage_ppm, lines, unknown_weight })
    };
    let line = |dataset| Line { dataset, weight: 1 };
    for (revenue, lines, words) in [
        (0, vec![line(0)], "revenue of req-1: expected a positive amount"),
        (1, vec![line(4)], "expected an ordinal below 4, found 4"),
        (1, vec![line(0), line(0)], "expected each dataset once, found 0 twice"),
        (1, vec![line(0)], "expected at most 1000000 ppm"),
    ] {
        let error = response(SubUnits(revenue), &lines).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
