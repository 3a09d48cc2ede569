//! Files of version 1, which must open for ever and must be what the toy run writes today.

use ascribe_ledger::payout::merkle::MERKLE_MAX_BYTES;
use ascribe_ledger::{EvmAddress, Journal, PayoutTree, pay, payout_rows, read_payout_csv, write_payout_csv};

use crate::toy::plan;

const JOURNAL: &str = include_str!("../formats/journal/v1/journal.json");
const TEXT: &str = include_str!("../formats/journal/v1/journal.ledger");
const CSV: &str = include_str!("../formats/payout/v1/payout.csv");
const MERKLE: &str = include_str!("../formats/payout/v1/merkle.json");

fn written() -> [(&'static str, String); 4] {
    let statement = pay(&plan()).unwrap();
    let tree = PayoutTree::of_rows(None, &statement.rows, 31337, EvmAddress([0xaa; 20])).unwrap();
    [
        ("journal/v1/journal.json", String::from_utf8(statement.journal.to_json().unwrap()).unwrap()),
        ("journal/v1/journal.ledger", statement.journal.to_text()),
        ("payout/v1/payout.csv", write_payout_csv(&statement.journal.run_id(), &statement.rows)),
        ("payout/v1/merkle.json", String::from_utf8(tree.to_json().unwrap()).unwrap()),
    ]
}

#[test]
fn version_1_opens() {
    let journal = Journal::from_json(JOURNAL.as_bytes()).unwrap();
    let (run_id, rows) = read_payout_csv(CSV).unwrap();
    assert_eq!(run_id, Some(journal.run_id()));
    assert_eq!(rows, payout_rows(&journal).unwrap());
    let tree = PayoutTree::from_json(MERKLE.as_bytes()).unwrap();
    assert_eq!(tree.leaves()[0].amount, 139);
    assert!(MERKLE.len() < MERKLE_MAX_BYTES);
}

#[test]
fn version_1_is_written() {
    let golden = [JOURNAL, TEXT, CSV, MERKLE];
    for ((name, text), golden) in written().iter().zip(golden) {
        assert_eq!(text, golden, "{name}");
    }
}

/// Writes the golden folder: `cargo test -p ascribe-ledger -- --ignored write_golden`. Only for a new version.
#[test]
#[ignore = "writes files"]
fn write_golden() {
    for (name, text) in written() {
        let path = format!("{}/tests/formats/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, text).unwrap();
    }
}

/// No bit of a payout tree can change unnoticed, and no bytes make its reader panic.
#[test]
fn every_bit_of_a_tree_counts() {
    for at in 0..MERKLE.len() {
        for bit in 0..8 {
            let mut bytes = MERKLE.as_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            assert!(PayoutTree::from_json(&bytes).is_err(), "bit {bit} of byte {at}");
        }
        assert!(PayoutTree::from_json(&MERKLE.as_bytes()[..at]).is_err(), "cut at {at}");
    }
}
