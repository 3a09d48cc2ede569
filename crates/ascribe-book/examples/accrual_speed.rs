//! Speed of accrual: responses per second into a durable book, and what verifying and settling it costs.
//!
//! `accrual_speed [ADDRESS] [EVENTS] [BATCH]`: a book in a temporary folder on SQLite when no address is named. Every batch is one
//! durable transaction (SQLite: WAL with `synchronous = FULL`). Each response pays 4 of 200 datasets, each with 1 to 3 payees, an
//! operator, a reserve and what is not covered. Prints one JSON object.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a program of its own")]

use std::time::Instant;

use ascribe_book::{Book, Entry, PaidResponse, RevenueSplit, SettleTerms, Source};
use ascribe_ledger::{Currency, EvmAddress, Line, PayeeShare, SubUnits, Terms};

const DATASETS: u64 = 200;

/// SplitMix64: the events are the same each time.
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Processor time of this process so far, from the kernel's own count (100 ticks a second); 0 where there is none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or_default().split(' ').map(|n| n.parse().unwrap_or(0.0)).collect();
    fields.get(12..14).map_or(0.0, |ticks| ticks.iter().sum::<f64>() / 100.0)
}

fn terms() -> Vec<Terms> {
    let payee = |dataset: u64, n: u64, of: u64| {
        let account = format!("eip155:1:{}", EvmAddress([(dataset * 3 + n) as u8; 20])).parse().unwrap();
        let rest = if n == 0 { 1_000_000 % of } else { 0 };
        PayeeShare { account: Some(account), share_ppm: (1_000_000 / of + rest) as u32 }
    };
    let one = |dataset: u64| {
        let of = dataset % 3 + 1;
        Terms {
            dataset: format!("urn:uuid:{dataset:08}"),
            owner: format!("owner {}", dataset / 2),
            payees: (0..of).map(|n| payee(dataset, n, of)).collect(),
        }
    };
    (0..DATASETS).map(one).collect()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = tempfile::tempdir().unwrap();
    let address = args.next().unwrap_or_else(|| format!("sqlite:{}", dir.path().join("book.db").display()));
    let n_events: u64 = args.next().map_or(200_000, |n| n.parse().unwrap());
    let batch: u64 = args.next().map_or(5_000, |n| n.parse().unwrap());
    let mut book = Book::open(&address).unwrap();
    let currency = Currency::of("USD").unwrap();
    let terms = terms();
    let split = RevenueSplit { operator_ppm: 150_000, reserve_ppm: 20_000 };
    let table = book.pay_table(currency, &terms, &vec![None; terms.len()], split).unwrap();
    let (mut posted, mut legs) = (0u64, 0usize);
    let start = Instant::now();
    while posted < n_events {
        let until = (posted + batch).min(n_events);
        let entries: Vec<Entry> = (posted..until)
            .map(|n| {
                let first = mixed(n) % DATASETS;
                let lines: Vec<Line> = (0..4)
                    .map(|k| Line { dataset: ((first + k * 37) % DATASETS) as u32, weight: mixed(n * 4 + k) >> 12 })
                    .collect();
                let response = PaidResponse {
                    request: &format!("request-{n}"),
                    at_unix_s: 1_795_953_600 + n / 1_000,
                    // Fractions of a cent.
                    revenue: SubUnits(u128::from(mixed(n) % 90_000 + 10_000)),
                    source: Source::Cash,
                    coverage_ppm: 850_000,
                    lines: &lines,
                    unknown_weight: 0,
                };
                table.entry(&response).unwrap()
            })
            .collect();
        legs += entries.iter().map(|entry| entry.legs.len()).sum::<usize>();
        book.post(&entries).unwrap();
        posted = until;
    }
    let accrued = start.elapsed();
    let cpu = cpu_seconds();
    let start = Instant::now();
    let terms = SettleTerms { currency, as_of_unix_s: 1_800_000_000, hold_days: 0, minimum_minor: 1 };
    let settled = book.settle(&terms).unwrap();
    let settling = start.elapsed();
    let start = Instant::now();
    let report = book.verify().unwrap();
    println!(
        "{{\"events\": {n_events}, \"batch\": {batch}, \"transfers\": {legs}, \"seconds\": {:.3}, \"cpu_seconds\": {cpu:.2}, \"events_per_second\": {:.0}, \
         \"payees_paid\": {}, \"settle_seconds\": {:.3}, \"verify_seconds\": {:.3}, \"verified_transfers\": {}}}",
        accrued.as_secs_f64(),
        n_events as f64 / accrued.as_secs_f64(),
        settled.rows.iter().filter(|row| row.pays_minor != "0").count(),
        settling.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        report.transfers,
    );
}
