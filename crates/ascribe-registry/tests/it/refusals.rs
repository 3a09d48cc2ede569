//! Every lie that a registry folder can tell, and the message that names it.

use std::fs;

use ascribe_registry::prepare::write_dataset;
use ascribe_registry::{Licence, Registry, RegistryDomain, read_records};
use k256::ecdsa::Signature;
use proptest::prelude::*;

use crate::{Tiny, grant, new_dataset};

/// Changes the signature of a licence file.
fn with_signature(tiny: &Tiny, name: &str, change: impl FnOnce(&mut [u8; 65])) {
    let path = tiny.path(&format!("{name}/licence.json"));
    let mut licence: Licence = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut licence.signature);
    fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&licence).unwrap())).unwrap();
}

fn starts(message: &str, expected: &str) {
    assert!(message.starts_with(expected), "expected {expected:?}, found {message:?}");
}

#[test]
fn an_honest_registry_passes() {
    let tiny = Tiny::new();
    let report = tiny.verify(None).unwrap();
    let names: Vec<&str> = report.datasets.iter().map(|dataset| dataset.name.as_str()).collect();
    assert_eq!(names, ["alpha", "beta", "gamma"]);
    assert!(report.datasets.iter().all(|d| d.permits_training && d.demo_key && !d.used_by_run && d.record_count == 5));
    assert_eq!(report.licence_log.size, 3);
    let registry = tiny.open().unwrap();
    assert_eq!(registry.owners().owner_idx, [0, 0, 1]);
    assert_eq!(registry.owners().of_dataset(2).unwrap().payees.len(), 2);
    assert_eq!(registry.owners().owners[0].datasets, [0, 1]);
    let records = read_records(&registry.datasets()[1]).unwrap();
    assert_eq!((records[4].row, records[4].id.as_str(), records[4].text.as_str()), (4, "beta/4", "text 4 of beta"));
}

#[test]
fn a_changed_record_byte() {
    let tiny = Tiny::new();
    let root = tiny.open().unwrap().datasets()[1].manifest.content_root;
    tiny.replace("beta/records.jsonl", "text 3", "text 7");
    starts(&tiny.refusal(None), &format!("beta/records.jsonl: content_root: expected {root}, found "));
    let error = read_records(&tiny.open().unwrap().datasets()[1]).unwrap_err().to_string();
    assert!(error.contains("beta/records.jsonl: content_root: expected "), "{error}");
}

#[test]
fn a_removed_record() {
    let tiny = Tiny::new();
    let path = tiny.path("alpha/records.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    assert_eq!(tiny.refusal(None), "alpha/records.jsonl: record_count: expected 5, found 4");
}

#[test]
fn an_empty_dataset() {
    let tiny = Tiny::new();
    fs::write(tiny.path("alpha/records.jsonl"), "").unwrap();
    assert_eq!(tiny.refusal(None), "alpha/records.jsonl: expected at least one record, found none");
}

#[test]
fn a_line_that_is_not_utf8() {
    let tiny = Tiny::new();
    let path = tiny.path("alpha/records.jsonl");
    let mut bytes = fs::read(&path).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    bytes[second + 8] = 0xC3;
    fs::write(&path, bytes).unwrap();
    assert_eq!(tiny.refusal(None), "alpha/records.jsonl:2: expected UTF-8, found byte 0xc3 at offset 8 of the line");
}

#[test]
fn duplicate_record_ids() {
    let tiny = Tiny::new();
    tiny.replace("gamma/records.jsonl", "gamma/3", "gamma/1");
    assert_eq!(tiny.refusal(None), "gamma/records.jsonl:4: duplicate record id \"gamma/1\", first seen on line 2");
}

#[test]
fn missing_files() {
    for (file, what) in [
        ("beta/manifest.json", "manifest"),
        ("beta/licence.json", "licence"),
        ("beta/terms.txt", "legal text"),
        ("beta/records.jsonl", "record file"),
        ("licences.log", "licence log"),
    ] {
        let tiny = Tiny::new();
        fs::remove_file(tiny.path(file)).unwrap();
        assert_eq!(tiny.refusal(None), format!("{file}: missing {what}"));
    }
    let gone = Registry::open(&Tiny::new().path("nowhere")).unwrap_err().to_string();
    assert!(gone.ends_with("nowhere: missing registry folder"), "{gone}");
}

#[test]
fn bad_signatures() {
    let tiny = Tiny::new();
    let licensor = tiny.open().unwrap().datasets()[0].licence.licensor();
    with_signature(&tiny, "alpha", |signature| signature[5] ^= 1);
    starts(&tiny.refusal(None), &format!("alpha/licence.json: signature: expected one by {licensor}, found "));

    let tiny = Tiny::new();
    with_signature(&tiny, "alpha", |signature| signature[64] = 29);
    assert_eq!(tiny.refusal(None), "alpha/licence.json: signature: expected v = 27 or 28, found v = 29");

    let tiny = Tiny::new();
    with_signature(&tiny, "alpha", |signature| {
        let (r, s) = Signature::from_slice(&signature[..64]).unwrap().split_scalars();
        let twin = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
        signature[..64].copy_from_slice(&twin.to_bytes());
        signature[64] = 27 + 28 - signature[64];
    });
    starts(
        &tiny.refusal(None),
        "alpha/licence.json: signature: expected s in the lower half of the group order, found the high-s twin",
    );
}

#[test]
fn a_signature_of_another_party() {
    let tiny = Tiny::new();
    let ann = tiny.open().unwrap().datasets()[0].licence.licensor();
    // Bob signs a good licence of his own for Ann's dataset, and registers it.
    tiny.license("alpha", "Bob", grant(9)).unwrap();
    let licence: Licence = serde_json::from_slice(&fs::read(tiny.path("alpha/licence.json")).unwrap()).unwrap();
    assert!(!licence.demo_key && licence.demo_notice.is_none());
    let bob = licence.message.licensor.to_checksum(None);
    let expected = format!("expected one by {ann}, the demo key of \"Ann\", found {bob}");
    assert_eq!(tiny.refusal(None), format!("alpha/licence.json: signature: {expected}"));
}

#[test]
fn a_demo_signature_that_does_not_say_so() {
    for (from, to, expected) in [
        ("\"demo_key\": true", "\"demo_key\": false", "demo_key: expected true, found false"),
        ("Demo key: ", "Key: ", "demo_notice: expected \"Demo key: "),
    ] {
        let tiny = Tiny::new();
        tiny.replace("alpha/licence.json", from, to);
        starts(&tiny.refusal(None), &format!("alpha/licence.json: {expected}"));
    }
}

#[test]
fn a_licence_of_another_registry() {
    let tiny = Tiny::new();
    let domain = RegistryDomain { salt: [7; 32], ..RegistryDomain::demo() };
    let registry = Registry::open_in(tiny.root(), domain).unwrap();
    let message = registry.verify(None, &ascribe_core::NoProgress).unwrap_err().to_string();
    assert!(message.contains("alpha/licence.json: domain: expected {") && message.contains("0x0707"), "{message}");
}

#[test]
fn shares_that_do_not_sum() {
    let tiny = Tiny::new();
    tiny.replace("gamma/manifest.json", "\"share_ppm\": 400000", "\"share_ppm\": 400001");
    assert_eq!(
        tiny.refusal(None),
        "gamma/manifest.json: payees: expected shares that sum to 1000000 ppm, found 1000001"
    );
    // The licence signs the shares, so both files changed together do not pass either.
    let tiny = Tiny::new();
    for (file, name) in [("gamma/manifest.json", "share_ppm"), ("gamma/licence.json", "sharePpm")] {
        tiny.replace(file, &format!("\"{name}\": 600000"), &format!("\"{name}\": 500000"));
        tiny.replace(file, &format!("\"{name}\": 400000"), &format!("\"{name}\": 500000"));
    }
    starts(&tiny.refusal(None), "gamma/licence.json: digest: expected 0x");
}

#[test]
fn changed_terms_metadata_and_fields() {
    let cases = [
        ("beta/terms.txt", "Terms", "terms", "beta/licence.json: message.termsSha256: expected "),
        ("beta/manifest.json", "The beta", "The best", "beta/licence.json: message.metadataSha256: expected "),
        ("beta/manifest.json", "\"MIT\"", "\"ISC\"", "beta/licence.json: message.licence: expected ISC, found MIT"),
        (
            "beta/manifest.json",
            "\"ai-train\"",
            "\"ai-input\"",
            "beta/licence.json: message.permits: expected [\"ai-input\"]",
        ),
        (
            "beta/licence.json",
            "\"validFrom\": \"1000\"",
            "\"validFrom\": \"999\"",
            "beta/licence.json: digest: expected 0x",
        ),
        (
            "beta/licence.json",
            "\"validFrom\": \"1000\"",
            "\"validFrom\": 1000",
            "beta/licence.json: invalid type: integer",
        ),
        (
            "beta/licence.json",
            "\"nonce\": \"2\"",
            "\"nonce\": \"02\"",
            "beta/licence.json: expected a decimal below 2^64",
        ),
        ("beta/manifest.json", "\"language\"", "\"langauge\"", "beta/manifest.json: unknown field `langauge`"),
        (
            "beta/manifest.json",
            "  \"notes\": \"\"\n",
            "  \"notes\": \"\" \n",
            "beta/manifest.json: SHA-256 of its bytes",
        ),
        (
            "beta/manifest.json",
            "\"name\": \"beta\"",
            "\"name\": \"zeta\"",
            "beta/manifest.json: uuid: expected urn:uuid:",
        ),
    ];
    for (file, from, to, expected) in cases {
        let tiny = Tiny::new();
        tiny.replace(file, from, to);
        starts(&tiny.refusal(None), expected);
    }
}

#[test]
fn an_unregistered_licence() {
    let tiny = Tiny::new();
    let log = fs::read_to_string(tiny.path("licences.log")).unwrap();
    let digest = log.lines().nth(2).unwrap();
    fs::write(tiny.path("licences.log"), log.replace(&format!("{digest}\n"), "")).unwrap();
    starts(
        &tiny.refusal(None),
        &format!("licences.log: expected the digest {digest} of the licence of \"gamma\", found no such line"),
    );
}

#[test]
fn a_nonce_that_does_not_rise() {
    let tiny = Tiny::new();
    tiny.license("beta", "Ann", grant(1)).unwrap();
    assert_eq!(
        tiny.refusal(None),
        "beta/licence.json: message.nonce: expected more than 1, the nonce of the licensor's licence before, found 1"
    );
}

#[test]
fn one_owner_with_two_payees() {
    let tiny = Tiny::new();
    let mut new = new_dataset("beta", "Ann");
    new.payees = new_dataset("gamma", "Bob").payees;
    tiny.write(&new);
    tiny.license("beta", "Ann", grant(3)).unwrap();
    starts(&tiny.refusal(None), "beta/manifest.json: payees: expected the payees of the other datasets of \"Ann\"");
}

#[test]
fn what_cannot_be_prepared_leaves_nothing() {
    let tiny = Tiny::new();
    let new = new_dataset("delta", "Ann");
    let refusal = |records: &[(&str, &str)], new: &_| {
        write_dataset(tiny.root(), new, records.iter().copied()).unwrap_err().to_string()
    };
    assert!(refusal(&[], &new).ends_with("delta/records.jsonl: expected at least one record, found none"));
    assert!(refusal(&[("a", "x"), ("a", "y")], &new).contains("records.jsonl:2: duplicate record id \"a\""));
    let mut wrong = new.clone();
    wrong.payees[0].share_ppm = 5;
    assert!(refusal(&[("a", "x")], &wrong).contains("expected shares that sum to 1000000 ppm, found 5"));
    wrong.name = "../delta".to_owned();
    assert!(refusal(&[("a", "x")], &wrong).contains("name: expected 1 to 64 of a-z"));
    assert!(!tiny.path("delta").exists());
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let tiny = Tiny::new();
    let before = fs::read(tiny.path("alpha/licence.json")).unwrap();
    // A folder where the temporary file should be stands for a disk that takes no more bytes.
    fs::create_dir(tiny.path("alpha/licence.json.tmp")).unwrap();
    let message = tiny.license("alpha", "Ann", grant(8)).unwrap_err().to_string();
    assert!(message.contains("alpha/licence.json: writing: "), "{message}");
    assert_eq!(fs::read(tiny.path("alpha/licence.json")).unwrap(), before);
    tiny.verify(None).unwrap();
}

#[test]
fn preparing_twice_changes_no_byte() {
    let tiny = Tiny::new();
    let read_all = || {
        ["licences.log", "alpha/licence.json", "alpha/manifest.json", "alpha/records.jsonl"]
            .map(|file| fs::read(tiny.path(file)).unwrap())
    };
    let before = read_all();
    tiny.write(&new_dataset("alpha", "Ann"));
    assert_eq!(tiny.license("alpha", "Ann", grant(1)).unwrap().1, 0);
    assert_eq!(read_all(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_changed_byte_goes_unseen(file in 0usize..5, place in any::<prop::sample::Index>(), change in 1u8..=255) {
        let tiny = Tiny::copy();
        let names = ["gamma/records.jsonl", "gamma/manifest.json", "gamma/licence.json", "gamma/terms.txt", "licences.log"];
        let path = tiny.path(names[file]);
        let mut bytes = fs::read(&path).unwrap();
        let i = place.index(bytes.len());
        bytes[i] ^= change;
        fs::write(&path, bytes).unwrap();
        prop_assert!(tiny.verify(None).is_err(), "{} byte {i} ^ {change:#04x}", names[file]);
    }

    #[test]
    fn what_is_written_is_what_is_read(texts in prop::collection::vec("\\PC{1,40}|[ -~\\n\\t\"\\\\]{1,40}", 1..20)) {
        let tiny = Tiny::copy();
        let ids: Vec<String> = (0..texts.len()).map(|i| i.to_string()).collect();
        let records = ids.iter().map(String::as_str).zip(texts.iter().map(String::as_str));
        write_dataset(tiny.root(), &new_dataset("alpha", "Ann"), records).unwrap();
        let read = read_records(&tiny.open().unwrap().datasets()[0]).unwrap();
        prop_assert_eq!(read.into_iter().map(|record| record.text).collect::<Vec<_>>(), texts);
    }
}
