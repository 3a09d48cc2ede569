//! Receipts of a payout run: settled once, found again, refused when another run pays, checked against the run.

use std::fs;
use std::path::Path;

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::{
    DEMO_USAGE_ORIGIN, PaidResponse, PaidShares, RegistryError, Settled, SharesDigest, UsageAudit, UsageLog, UsageRun,
    UsageSalts, UsageShare, check_usage_run, even_minor, request_id, salted_hash, usage_signer,
};
use ascribe_tlog::{Ed25519Key, NoteSigner, SignatureKind};
use proptest::prelude::*;
use tempfile::TempDir;

const POOL: u128 = 1_000;

fn signer() -> NoteSigner {
    NoteSigner::new("operator.example/usage", SignatureKind::Note, Ed25519Key::demo("operator")).unwrap()
}

/// What tests change about a run.
#[derive(Clone, Copy)]
struct Toy {
    n: u64,
    spec: &'static [u8],
    pool: u128,
    salted: bool,
}

const TOY: Toy = Toy { n: 3, spec: b"run 1", pool: POOL, salted: true };

impl Toy {
    fn with<T>(self, work: impl FnOnce(&UsageRun<'_>) -> T) -> T {
        let id = |i: u64| format!("answer-{i}");
        let response = |i: u64| PaidResponse {
            salted_output: self
                .salted
                .then(|| salted_hash(&UsageSalts::of(signer().key()).salt(&id(i)), format!("text {i}").as_bytes())),
            weight_total: 333_333_333,
            shares: PaidShares::Listed(vec![UsageShare {
                dataset: format!("urn:uuid:{i}"),
                weight: 200_000_000 + u128::from(i),
            }]),
            // Always of three, so that a run of two is the beginning of one of three.
            revenue_minor: even_minor(self.pool, 3, i),
        };
        work(&UsageRun {
            model_sha256: Digest::of(b"model"),
            run_id: "training-1".to_owned(),
            method: "calibrated".to_owned(),
            spec_sha256: Digest::of(self.spec),
            attribution_sha256: Some(Digest::of(b"scores")),
            currency: "EUR".to_owned(),
            settled_unix_s: 1_767_225_600,
            n_responses: self.n,
            id: &id,
            response: &response,
        })
    }

    fn settle(self, dir: &Path) -> Result<Settled, RegistryError> {
        self.with(|run| UsageLog::open(dir, signer())?.settle(run, &NoProgress))
    }

    fn check(self, dir: &Path) -> Result<UsageAudit, RegistryError> {
        self.with(|run| check_usage_run(dir, signer().verifier(), &[], run, &NoProgress))
    }
}

/// Every file of a folder with its bytes, but the writer's lock.
fn bytes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push((path.strip_prefix(dir).unwrap().display().to_string(), fs::read(&path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_run_settles_once_and_its_receipts_are_the_pool() {
    let (dir, twin) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    assert_eq!(TOY.settle(dir.path()).unwrap(), Settled { appended: 3, there: 0 });
    let audit = TOY.check(dir.path()).unwrap();
    assert_eq!((audit.receipts, audit.erased), (3, 0));
    assert_eq!(audit.revenue, [("EUR".to_owned(), POOL.to_string())]);
    let before = bytes(dir.path());
    assert_eq!(TOY.settle(dir.path()).unwrap(), Settled { appended: 0, there: 3 });
    assert_eq!(bytes(dir.path()), before, "the same run again changes nothing");
    TOY.settle(twin.path()).unwrap();
    assert_eq!(bytes(twin.path()), before, "the same run has the same bytes anywhere");
    // Who has no key checks all but the salted outputs.
    Toy { salted: false, ..TOY }.check(dir.path()).unwrap();
}

#[test]
fn a_response_that_another_run_paid_is_named_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    Toy { n: 2, ..TOY }.settle(dir.path()).unwrap();
    let before = bytes(dir.path());
    for replay in [Toy { spec: b"run 2", ..TOY }, Toy { pool: 2 * POOL, ..TOY }] {
        let message = replay.settle(dir.path()).unwrap_err().to_string();
        assert!(message.contains("each response paid once (a replay)"), "{message}");
        assert!(message.contains("\"answer-0\" again"), "{message}");
        assert_eq!(bytes(dir.path()), before);
    }
}

/// The process may die between two batches: what is there is found again, and the rest follows.
#[test]
fn a_run_that_died_in_the_middle_goes_on() {
    let (dir, whole) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    Toy { n: 2, ..TOY }.settle(dir.path()).unwrap();
    let missing = TOY.check(dir.path()).unwrap_err().to_string();
    assert!(missing.contains("1 responses without one, the first \"answer-2\""), "{missing}");
    assert_eq!(TOY.settle(dir.path()).unwrap(), Settled { appended: 1, there: 2 });
    TOY.settle(whole.path()).unwrap();
    assert_eq!(TOY.check(dir.path()).unwrap().root, TOY.check(whole.path()).unwrap().root);
}

/// A forger with the operator's key logs another amount: signatures and digests hold, the run does not give it.
#[test]
fn a_forged_receipt_is_named_with_what_differs() {
    for (forged, field) in [
        (Toy { pool: 3 * POOL, ..TOY }, "revenue: expected {\"currency\":\"EUR\",\"minorUnits\":\"333\"}"),
        (Toy { spec: b"another", ..TOY }, "specSha256"),
    ] {
        let dir = TempDir::new().unwrap();
        forged.settle(dir.path()).unwrap();
        let message = TOY.check(dir.path()).unwrap_err().to_string();
        assert!(message.contains("receipt of response \"answer-0\" (entry 0), "), "{message}");
        assert!(message.contains(field), "{message}");
    }
    // Without the key a wrong salted output cannot be told from a right one, with it it can.
    let dir = TempDir::new().unwrap();
    Toy { salted: false, ..TOY }.settle(dir.path()).unwrap();
    assert!(TOY.check(dir.path()).unwrap_err().to_string().contains("outputSaltedSha256"));
}

#[test]
fn an_erased_receipt_counts_as_erased() {
    let dir = TempDir::new().unwrap();
    TOY.settle(dir.path()).unwrap();
    assert!(UsageLog::open(dir.path(), signer()).unwrap().erase(1).unwrap());
    let audit = TOY.check(dir.path()).unwrap();
    assert_eq!((audit.receipts, audit.erased, audit.size), (2, 1, 3));
    // It was paid all the same.
    assert_eq!(TOY.settle(dir.path()).unwrap(), Settled { appended: 0, there: 3 });
}

#[test]
fn a_salt_is_one_receipts_and_one_keys() {
    let (key, other) = (Ed25519Key::demo("operator"), Ed25519Key::demo("other"));
    let salt = |key: &Ed25519Key, id: &str| *UsageSalts::of(key).salt(id);
    assert_eq!(salt(&key, "a"), salt(&key, "a"));
    assert_ne!(salt(&key, "a"), salt(&key, "b"));
    assert_ne!(salt(&key, "a"), salt(&other, "a"));
    // By the written rule.
    let secret = Digest::of(&key.sign(b"ascribe usage salts v2"));
    assert_eq!(Digest(salt(&key, "a")), Digest::of(&[secret.0, Digest::of(b"a").0].concat()));
}

#[test]
fn a_registry_with_secrets_has_a_usage_key_of_its_own() {
    let dir = TempDir::new().unwrap();
    assert_eq!(usage_signer(dir.path()).unwrap().verifier().name(), DEMO_USAGE_ORIGIN);
    fs::create_dir(dir.path().join(".secret")).unwrap();
    let made = usage_signer(dir.path()).unwrap();
    assert!(made.verifier().name().starts_with("ascribe.example/usage-"));
    assert_eq!(usage_signer(dir.path()).unwrap().verifier(), made.verifier());
    let mode = fs::metadata(dir.path().join(".secret/usage.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    fs::write(dir.path().join(".secret/usage.key"), "no key").unwrap();
    assert!(usage_signer(dir.path()).unwrap_err().to_string().contains("usage.key"));
}

#[test]
fn names_that_no_receipt_carries_stand_as_hashes() {
    assert_eq!(request_id("q 1"), "q 1");
    for odd in ["", " ", "a\nb", &"x".repeat(257)] {
        assert_eq!(request_id(odd), format!("sha256:{}", Digest::of(odd.as_bytes())));
    }
}

#[test]
fn a_digest_of_shares_by_hand() {
    let mut digest = SharesDigest::default();
    digest.push([7; 16], 258);
    let bytes = [vec![7; 16], vec![0; 14], vec![1, 2]].concat();
    assert_eq!(digest.finish(), Digest::of(&bytes));
}

proptest! {
    #[test]
    fn even_parts_are_the_pool(pool in 0u128..1 << 100, n in 1u64..500) {
        let parts: Vec<u128> = (0..n).map(|i| even_minor(pool, n, i)).collect();
        prop_assert_eq!(parts.iter().sum::<u128>(), pool);
        let even = pool / u128::from(n);
        prop_assert!(parts.iter().all(|part| *part == even || *part == even + 1));
    }
}
