//! Time stamps by OpenSSL's authority, whose answers lie in `tests/stamps`: RSA, P-256 and P-384 signers under one CA.

use std::path::Path;

use ascribe_tlog::{TlogError, time_stamp_request, verify_time_stamp};
use proptest::prelude::*;

/// When the fixtures were made, Unix seconds; checked against what OpenSSL prints of them.
const MADE: std::ops::Range<u64> = 1_795_800_000..1_796_000_000;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stamps").join(name)).unwrap()
}

fn verify(answer: &[u8]) -> Result<u64, TlogError> {
    verify_time_stamp(answer, &fixture("text"), &fixture("ca.pem")).map(|stamp| stamp.unix_s)
}

#[test]
fn answers_of_three_kinds_of_key_hold() {
    for kind in ["rsa", "p256", "p384"] {
        let stamp = verify_time_stamp(&fixture(&format!("{kind}.tsr")), &fixture("text"), &fixture("ca.pem")).unwrap();
        assert!(MADE.contains(&stamp.unix_s), "{kind}: {}", stamp.unix_s);
        assert_eq!((stamp.policy.as_str(), stamp.serial.as_str()), ("1.2.3.4.1", "03"));
        assert!(stamp.authority.contains(&format!("CN=Authority {kind}")), "{}", stamp.authority);
    }
}

#[test]
fn the_request_is_the_one_that_openssl_makes() {
    assert_eq!(time_stamp_request(&fixture("text")), fixture("query.tsq"));
}

#[test]
fn another_message_or_authority_is_refused() {
    let rsa = fixture("rsa.tsr");
    let other = verify_time_stamp(&rsa, b"another text", &fixture("ca.pem")).unwrap_err().to_string();
    assert!(other.starts_with("time stamp: imprint: expected "), "{other}");
    let stranger = verify_time_stamp(&rsa, &fixture("text"), &fixture("other.pem")).unwrap_err().to_string();
    assert!(stranger.starts_with("time stamp: chain: expected a trusted certificate"), "{stranger}");
    assert!(verify_time_stamp(&rsa, &fixture("text"), b"").is_err());
    // The authority's own certificate may be trusted alone; that of another signer under the same CA may not.
    verify_time_stamp(&rsa, &fixture("text"), &fixture("rsa.pem")).unwrap();
    assert!(verify_time_stamp(&rsa, &fixture("text"), &fixture("p256.pem")).is_err());
    assert!(verify_time_stamp(&[0x30; 1 << 17], &fixture("text"), &fixture("ca.pem")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is bent, it is refused or says the same time: no byte that is not signed may move it.
    #[test]
    fn bent_answers(kind in 0usize..3, at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let mut answer = fixture(["rsa.tsr", "p256.tsr", "p384.tsr"][kind]);
        let honest = verify(&answer).unwrap();
        let at = at.index(answer.len());
        if cut { answer.truncate(at) } else { answer[at] ^= 1 << bit }
        if let Ok(time) = verify(&answer) {
            prop_assert!(!cut);
            prop_assert_eq!(time, honest);
        }
    }
}
