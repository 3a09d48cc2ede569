//! `shares.json`: the file of version 1 opens for ever, and no lie in it is believed.

use ascribe_shares::{ShareBook, SharesError};

use crate::toy::book;

const GOLDEN: &str = include_str!("../formats/shares/v1/shares.json");

#[test]
fn version_1_opens_and_is_written() {
    assert_eq!(ShareBook::from_json(GOLDEN.as_bytes()).unwrap(), book());
    assert_eq!(String::from_utf8(book().to_json().unwrap()).unwrap(), GOLDEN);
    assert_eq!(book().digest().unwrap(), ascribe_core::Digest::of(GOLDEN.as_bytes()));
}

/// Writes the golden file: `cargo test -p ascribe-shares -- --ignored write_golden`. Only for a new version.
#[test]
#[ignore = "writes files"]
fn write_golden() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats/shares/v1/shares.json");
    std::fs::write(path, book().to_json().unwrap()).unwrap();
}

#[test]
fn changed_files() {
    let check = |from: &str, to: &str, words: &str| {
        assert!(GOLDEN.contains(from), "{from}");
        let error = ShareBook::from_json(GOLDEN.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{from} -> {to}: {error}");
    };
    check("\"format_version\": 1", "\"format_version\": 2", "format_version: expected 1, found 2");
    check("\"coverage_ppm\": 750000", "\"coverage_ppm\": 1000001", "coverage_ppm: expected at most 1000000");
    check("\"share_ppm\": 500000", "\"share_ppm\": 500001", "response 11: share_ppm: expected 500000, found 500001");
    check("\"weight\": \"1152921504606846976\"", "\"weight\": \"1152921504606846975\"", "share_ppm: expected 499999");
    check("\"weight\": \"1152921504606846976\"", "\"weight\": 1152921504606846976", "invalid type: integer");
    check("\"weight\": \"1152921504606846976\"", "\"weight\": \"+1152921504606846976\"", "an integer from 1 to 2^62");
    check("\"weight\": \"1152921504606846976\"", "\"weight\": \"9223372036854775808\"", "an integer from 1 to 2^62");
    check("\"verdict\": \"no_proponent\"", "\"verdict\": \"payable\"", "response 13: verdict: expected NoProponent");
    check("\"low_ppm\": 100000", "\"low_ppm\": 0", "response 10: verdict: expected TooNoisy, found Payable");
    check("\"low_ppm\": 100000", "\"low_ppm\": 600001", "interval: expected low <= high");
    check("\"query\": 11", "\"query\": 10", "duplicate response 10");
    check("\"owner\": \"Zoe\"", "\"owner\": \"Eve\"", "expected Eve, found Zoe");
    check("\"coverage_ppm\"", "\"note\": 1, \"coverage_ppm\"", "unknown field `note`");
    check("\"responses\": [", "\"responses\":  [", "spelling from byte");
    check("influence_proportional", "pro_rata", "unknown variant `pro_rata`");
    assert!(matches!(ShareBook::from_json(b"{"), Err(SharesError::Malformed { .. })));
    for cut in [0, 1, GOLDEN.len() / 2, GOLDEN.len() - 2] {
        assert!(ShareBook::from_json(&GOLDEN.as_bytes()[..cut]).is_err(), "cut at {cut}");
    }
}
