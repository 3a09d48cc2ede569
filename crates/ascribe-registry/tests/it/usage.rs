//! The usage log: batches, replays, erasure, forgeries, crashes between receipts, ids and log.

use std::fs;
use std::path::Path;

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::{
    RegistryError, SettledRevenue, SignedUsage, Usage, UsageAudit, UsageLog, UsageReceipt, UsageShare, salted_hash,
    verify_usage_log, verify_usage_proof,
};
use ascribe_tlog::{Ed25519Key, NoteSigner, Receipt, SignatureKind};
use proptest::prelude::*;
use tempfile::TempDir;

fn signer() -> NoteSigner {
    NoteSigner::new("operator.example/usage", SignatureKind::Note, Ed25519Key::demo("operator")).unwrap()
}

fn usage(id: &str) -> Usage {
    Usage {
        request_id: id.to_owned(),
        model_sha256: Digest::of(b"model"),
        run_id: "run-1".to_owned(),
        output_salted_sha256: salted_hash(&[7; 32], b"the output"),
        method: "calibrated".to_owned(),
        spec_sha256: Digest::of(b"spec"),
        attribution_sha256: None,
        shares: vec![UsageShare { dataset: "urn:uuid:a".to_owned(), weight: u128::from(u64::MAX) * 3 }],
        weight_total: u128::from(u64::MAX) * 4,
        revenue: SettledRevenue { currency: "EUR".to_owned(), minor_units: 125 },
        settled_unix_s: 1_767_225_600,
    }
}

fn signed(id: &str) -> SignedUsage {
    UsageReceipt::new(usage(id)).unwrap().sign(signer().key())
}

fn open(dir: &Path) -> UsageLog {
    UsageLog::open(dir, signer()).unwrap()
}

fn verify(dir: &Path) -> Result<UsageAudit, RegistryError> {
    verify_usage_log(dir, signer().verifier(), &[], &NoProgress)
}

#[test]
fn batches_are_logged_proven_and_summed() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    assert_eq!(log.append(vec![signed("a"), signed("b")], &NoProgress).unwrap().0, 0);
    assert_eq!(log.append(vec![signed("c")], &NoProgress).unwrap().0, 2);
    assert!(log.has_request("b") && !log.has_request("d"));
    let proof = Receipt::parse(log.prove(1).unwrap().to_text().as_bytes()).unwrap();
    let (receipt, checkpoint) = verify_usage_proof(&proof, signer().verifier(), &[]).unwrap();
    assert_eq!((receipt.request_id.as_str(), checkpoint.head().size), ("b", 3));
    // The proof of one receipt does not carry another.
    let mut other = proof;
    other.extra = Some(signed("a").to_bytes());
    assert!(verify_usage_proof(&other, signer().verifier(), &[]).is_err());
    let audit = verify(dir.path()).unwrap();
    assert_eq!((audit.size, audit.receipts, audit.erased), (3, 3, 0));
    assert_eq!(audit.revenue, [("EUR".to_owned(), "375".to_owned())]);
}

#[test]
fn sealed_receipts_enter_the_log_as_signed_ones_do() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    let sealed = |id: &str| UsageReceipt::new(usage(id)).unwrap().seal(signer().key()).unwrap();
    let batch: Vec<_> = ["a", "b\"\\ü", "c"].map(sealed).into();
    for sealed in &batch {
        assert_eq!(sealed.line(), sealed.signed().to_bytes(), "the canonical spelling");
        assert_eq!(sealed.digest(), sealed.signed().receipt.digest());
        sealed.signed().verify(&signer().key().public()).unwrap();
    }
    assert_eq!(log.append_sealed(batch.iter(), &NoProgress).unwrap().0, 0);
    let replay = log.append_sealed([&sealed("d"), &batch[1]].into_iter(), &NoProgress).unwrap_err().to_string();
    assert!(replay.contains("a replay") && log.size() == 3, "{replay}");
    let foreign = UsageReceipt::new(usage("e")).unwrap().seal(&Ed25519Key::demo("other")).unwrap();
    let error = log.append_sealed([&foreign].into_iter(), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("usage receipt: signer") && log.size() == 3, "{error}");
    assert_eq!(verify(dir.path()).unwrap().receipts, 3);
    for (index, sealed) in (0..).zip(&batch) {
        assert_eq!(log.prove(index).unwrap().extra.as_deref(), Some(sealed.line()));
    }
}

#[test]
fn a_replayed_request_is_refused_for_ever() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    log.append(vec![signed("a")], &NoProgress).unwrap();
    let replay = |log: &mut UsageLog, batch: Vec<SignedUsage>| log.append(batch, &NoProgress).unwrap_err().to_string();
    assert!(
        replay(&mut log, vec![signed("b"), signed("a")]).contains("each request once (a replay), found \"a\" again")
    );
    assert!(replay(&mut log, vec![signed("b"), signed("b")]).contains("found \"b\" again"));
    assert_eq!(log.size(), 1);
    // Neither another process nor an erasure makes it forgotten.
    assert!(log.erase(0).unwrap() && !log.erase(0).unwrap());
    assert!(log.prove(0).unwrap_err().to_string().contains("it may have been erased"));
    drop(log);
    let mut log = open(dir.path());
    assert!(replay(&mut log, vec![signed("a")]).contains("a replay"));
    let audit = verify(dir.path()).unwrap();
    assert_eq!((audit.receipts, audit.erased), (0, 1));
}

#[test]
fn two_writers_and_foreign_signatures_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    assert!(UsageLog::open(dir.path(), signer()).is_err());
    let foreign = UsageReceipt::new(usage("a")).unwrap().sign(&Ed25519Key::demo("other"));
    assert!(log.append(vec![foreign], &NoProgress).unwrap_err().to_string().contains("usage receipt: signer"));
}

/// The writer may die after the receipts, in the middle of the ids, or after both: the log decides.
#[test]
fn a_crash_between_receipts_ids_and_log() {
    let dir = TempDir::new().unwrap();
    open(dir.path()).append(vec![signed("a")], &NoProgress).unwrap();
    for n_bytes in [0, 5, 32, 64] {
        fs::write(dir.path().join("receipts/1.jsonl"), [signed("x").to_bytes(), b"\n".to_vec()].concat()).unwrap();
        let ids = dir.path().join("requests.bin");
        let mut bytes = fs::read(&ids).unwrap()[..32].to_vec();
        bytes.extend(vec![9; n_bytes]);
        fs::write(&ids, bytes).unwrap();
        // A reader sees the log as it was; a writer removes the rest, and the batch can be sent again.
        assert_eq!(verify(dir.path()).unwrap().size, 1);
        let log = open(dir.path());
        assert!(!log.has_request("x") && !dir.path().join("receipts/1.jsonl").exists());
    }
    open(dir.path()).append(vec![signed("x")], &NoProgress).unwrap();
    assert_eq!(verify(dir.path()).unwrap().receipts, 2);
}

#[test]
fn what_was_changed_afterwards_is_found() {
    let dir = TempDir::new().unwrap();
    open(dir.path()).append(vec![signed("a"), signed("b")], &NoProgress).unwrap();
    let (receipts, ids) = (dir.path().join("receipts/0.jsonl"), dir.path().join("requests.bin"));
    let honest = (fs::read_to_string(&receipts).unwrap(), fs::read(&ids).unwrap());
    // Another amount under the old signature; the same receipt twice; a receipt that was never logged, well signed.
    let line = |signed: SignedUsage| String::from_utf8(signed.to_bytes()).unwrap() + "\n";
    let mut larger = usage("b");
    larger.revenue.minor_units = 1_000_000;
    let larger = UsageReceipt::new(larger).unwrap().sign(signer().key());
    for changed in [
        honest.0.replacen("\"minorUnits\":\"125\"", "\"minorUnits\":\"925\"", 1),
        line(signed("a")) + &line(signed("a")),
        line(signed("a")) + &line(larger),
        honest.0.trim_end().to_owned(),
        honest.0.replacen("\"kind\"", " \"kind\"", 1),
    ] {
        fs::write(&receipts, changed).unwrap();
        assert!(verify(dir.path()).is_err());
    }
    fs::write(&receipts, &honest.0).unwrap();
    for changed in [honest.1[..32].to_vec(), [&honest.1[..32], &honest.1[..32]].concat(), vec![0; 64]] {
        fs::write(&ids, changed).unwrap();
        assert!(verify(dir.path()).is_err());
    }
    fs::write(&ids, &honest.1).unwrap();
    verify(dir.path()).unwrap();
}

#[test]
fn a_receipt_that_contradicts_itself_is_refused() {
    type Change<'a> = &'a dyn Fn(&mut Usage);
    let cases: [(Change<'_>, &str); 7] = [
        (&|usage| usage.request_id.clear(), "requestId"),
        (&|usage| usage.method = "a\nb".to_owned(), "method"),
        (&|usage| usage.revenue.currency.clear(), "revenue.currency"),
        (&|usage| usage.shares[0].dataset = "foldoc".to_owned(), "shares.dataset: expected urn:uuid:"),
        (&|usage| usage.shares.push(usage.shares[0].clone()), "each dataset once"),
        (&|usage| usage.weight_total = 1, "weightTotal: expected at least"),
        (&|usage| usage.settled_unix_s = u64::MAX, "settledOn"),
    ];
    for (change, expected) in cases {
        let mut changed = usage("a");
        change(&mut changed);
        let message = UsageReceipt::new(changed).unwrap_err().to_string();
        assert!(message.contains(expected), "expected {expected:?}, found {message:?}");
    }
}

/// RFC 8785 by hand: sorted keys, no spaces, integers as strings.
#[test]
fn a_receipt_has_one_spelling() {
    let text = String::from_utf8(UsageReceipt::new(usage("a")).unwrap().canonical()).unwrap();
    assert!(
        text.starts_with("{\"kind\":\"ascribe.usage-receipt/v1\",\"method\":\"calibrated\",\"modelSha256\":\""),
        "{text}"
    );
    assert!(text.contains("\"revenue\":{\"currency\":\"EUR\",\"minorUnits\":\"125\"}"), "{text}");
    assert!(
        text.contains("\"settledOn\":\"2026-01-01T00:00:00Z\"") && text.contains("\"weight\":\"55340232221128654845\"")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Receipts are written without a canonicaliser: what they are written as is what it would write.
    #[test]
    fn receipts_are_canonical_json(
        texts in prop::array::uniform3(any::<String>()), currency in "[!-~]{1,9}", weights in prop::collection::vec(any::<u64>(), 0..4),
        (attributed, digested) in any::<(bool, bool)>(),
    ) {
        let [request_id, run_id, method] = texts.map(|text| format!("r{}", text.replace(char::is_control, "\u{2028}")));
        let dataset = |i: usize| format!("urn:uuid:{i}\"\u{1}é");
        let shares = weights.iter().enumerate().map(|(i, w)| UsageShare { dataset: dataset(i), weight: u128::from(*w) });
        let revenue = SettledRevenue { currency, minor_units: u128::MAX };
        let attribution_sha256 = attributed.then(|| Digest::of(b"attribution"));
        let more = Usage { request_id, run_id, method, shares: shares.collect(), revenue, attribution_sha256, ..usage("") };
        let Ok(receipt) = UsageReceipt::new(Usage { weight_total: u128::MAX, ..more }) else { return Ok(()) };
        let receipt = if digested { receipt.with_shares_digest(Digest::of(b"shares")) } else { receipt };
        prop_assert_eq!(receipt.canonical(), serde_json_canonicalizer::to_vec(&receipt).unwrap());
        let sealed = receipt.seal(signer().key()).unwrap();
        prop_assert_eq!(sealed.line(), serde_json_canonicalizer::to_vec(sealed.signed()).unwrap());
        prop_assert_eq!(&SignedUsage::parse(sealed.line()).unwrap(), sealed.signed());
    }

    #[test]
    fn damaged_receipts_never_panic_and_never_pass(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let honest = signed("a").to_bytes();
        let mut bytes = honest.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let key = Ed25519Key::demo("operator").public();
        let passes = SignedUsage::parse(&bytes).is_ok_and(|signed| signed.verify(&key).is_ok());
        prop_assert_eq!(passes, bytes == honest);
    }
}

fn golden(version: u32) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/usage/v{version}"))
}

#[test]
#[ignore = "writes the golden folder"]
fn make_golden_usage() {
    let dir = golden(ascribe_registry::USAGE_FORMAT_VERSION);
    let _ = fs::remove_dir_all(&dir);
    let mut log = open(&dir);
    log.append(vec![signed("golden-1"), signed("golden-2")], &NoProgress).unwrap();
    log.append(vec![signed("golden-3")], &NoProgress).unwrap();
    log.erase(0).unwrap();
    drop(log);
    fs::remove_file(dir.join("log/.lock")).unwrap();
}

/// Opens `formats/usage/v1`.
#[test]
fn the_first_usage_log_opens_for_ever() {
    let audit = verify(&golden(1)).unwrap();
    assert_eq!((audit.size, audit.receipts, audit.erased), (3, 2, 1));
    assert_eq!(audit.revenue, [("EUR".to_owned(), "250".to_owned())]);
}
