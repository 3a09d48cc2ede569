//! The shipped registry, and licences against an outside EIP-712 implementation.

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::prepare::build_demo;
use ascribe_registry::select::Selection;
use ascribe_registry::{
    Address, LicenceDigest, LicenceKey, LicenceMessage, Payee, Registry, RegistryDomain, read_records, sign_licence,
};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

#[test]
fn the_shipped_registry_holds() {
    let registry = Registry::open(&shipped()).unwrap();
    let report = registry.verify(None, &NoProgress).unwrap();
    let names: Vec<&str> = report.datasets.iter().map(|dataset| dataset.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "austen-novels",
            "cc-cedict",
            "cn-statutes",
            "foldoc",
            "jargon-file",
            "kjv-bible",
            "python-docs",
            "python-stdlib-code",
            "wordnet-glosses",
            "zh-classics"
        ]
    );
    assert!(report.datasets.iter().all(|dataset| dataset.permits_training && dataset.demo_key));
    assert_eq!(registry.owners().owners.len(), 9);
    let psf = registry.owners().of_dataset(6).unwrap();
    assert_eq!((psf.name.as_str(), psf.datasets.as_slice()), ("Python Software Foundation", &[6, 7][..]));
    let text_bytes: usize =
        registry.datasets().iter().flat_map(|d| read_records(d).unwrap()).map(|r| r.text.len()).sum();
    assert!((3_300_000..=3_700_000).contains(&text_bytes), "{text_bytes} bytes of text");
}

#[test]
fn the_selection_table_is_what_is_shipped() {
    let table = std::fs::read_to_string(shipped().join("selection.toml")).unwrap();
    let selection: Selection = toml::from_str(&table).unwrap();
    let registry = Registry::open(&shipped()).unwrap();
    assert_eq!(selection.datasets.len(), registry.datasets().len());
    for (rule, dataset) in selection.datasets.iter().zip(registry.datasets()) {
        let manifest = &dataset.manifest;
        assert_eq!((&rule.name, &rule.owner, &rule.licence), (&manifest.name, &manifest.owner, &manifest.licence));
        assert_eq!((&rule.title, &rule.source, &rule.notes), (&manifest.title, &manifest.source, &manifest.notes));
        let text_bytes: usize = read_records(dataset).unwrap().iter().map(|record| record.text.len()).sum();
        assert!(text_bytes as u64 <= rule.budget_bytes, "{}: {text_bytes}", rule.name);
    }
}

/// Address, digest and signature were made with eth_account 0.14.0 from the same typed data and key.
#[test]
fn eth_account_signs_the_same_bytes() {
    let key = LicenceKey::demo("Nobody");
    assert_eq!(key.address().to_checksum(None), "0x7D356bcfD443dd01Ca3302972808F2749d27604c");
    let payee = |address: &str, share_ppm| Payee { account: format!("eip155:1:{address}"), share_ppm };
    let message = LicenceMessage {
        licensor: key.address(),
        dataset: "urn:uuid:00000000-0000-5000-8000-000000000000".to_owned(),
        content_root: Digest([0x11; 32]),
        record_count: (1 << 63) + 1,
        metadata_sha256: Digest([0x22; 32]),
        licence: "MIT OR Apache-2.0".to_owned(),
        terms_sha256: Digest([0x33; 32]),
        permits: vec!["ai-train".to_owned(), "search".to_owned()],
        prohibits: vec!["ai-input".to_owned()],
        payees: vec![
            payee("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", 999_999),
            payee("0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf", 1),
        ],
        valid_from: 1,
        valid_until: u64::MAX,
        nonce: 7,
        supersedes: LicenceDigest([0x44; 32]),
    };
    let sign = |message: LicenceMessage| {
        sign_licence(Path::new("licence.json"), RegistryDomain::demo(), message, "Nobody", &key)
    };
    let licence = sign(message.clone()).unwrap();
    assert_eq!(licence.digest.to_string(), "0x9004e4cf084e2962c3233748eb04a733d5f1f83bd7e8062c9232b4e05d323ba9");
    let signature = concat!(
        "18252742f6b875e0525deae0c209ab6ed2f5e3239c4440fc4675ad181e7090142559b86e227a3526",
        "bb8c8d3455f593b78c2e3adf4685f9cbd354c9802c065ab21b"
    );
    assert_eq!(hex::encode(licence.signature), signature);
    let json = serde_json::to_string(&licence).unwrap();
    assert!(json.contains(r#""recordCount":"9223372036854775809""#), "{json}");
    assert_eq!(serde_json::from_str::<ascribe_registry::Licence>(&json).unwrap(), licence);

    let refused = sign(LicenceMessage { licensor: Address::ZERO, ..message.clone() }).unwrap_err().to_string();
    assert!(refused.starts_with("licence.json: signature: expected one by 0x0000"), "{refused}");
    let refused = sign(LicenceMessage { valid_until: 1, ..message }).unwrap_err().to_string();
    assert_eq!(refused, "licence.json: message.validUntil: expected 0 or more than validFrom 1, found 1");
}

#[test]
fn a_selection_builds_a_registry_from_the_named_source_only() {
    let (sources, out) = (tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap());
    let lines: String =
        (0..8).map(|i| format!("{{\"id\":\"{i}\",\"text\":\"record number {i}\",\"meta\":{{}}}}\n")).collect();
    std::fs::create_dir(sources.path().join("corpora")).unwrap();
    std::fs::write(sources.path().join("corpora/tiny.jsonl"), &lines).unwrap();
    std::fs::create_dir(out.path().join("tiny")).unwrap();
    std::fs::write(out.path().join("tiny/terms.txt"), "Public domain.\n").unwrap();
    let table = |sha256: Digest| {
        format!(
            r#"
            format_version = 1
            valid_from_unix_s = 5
            permits = ["ai-train"]
            prohibits = []
            [[dataset]]
            name = "tiny"
            title = "Tiny"
            owner = "Ann"
            language = "en"
            licence = "CC0-1.0"
            payees = [{{ party = "Ann", share_ppm = 1000000 }}]
            source = {{ registry = "deb", package = "tiny", version = "1" }}
            notes = ""
            source_sha256 = "{sha256}"
            budget_bytes = 60
            run_records = 1
            min_text_bytes = 1
            max_text_bytes = 100
            "#
        )
    };
    let build = |sha256| {
        let selection: Selection = toml::from_str(&table(sha256)).unwrap();
        build_demo(&selection, sources.path(), out.path(), &NoProgress)
    };
    let message = build(Digest::of(b"another source")).unwrap_err().to_string();
    assert!(message.contains("corpora/tiny.jsonl: SHA-256 of the source: expected "), "{message}");
    assert!(!out.path().join("licences.log").exists());

    // 15 bytes a record, 60 of 120 bytes: every second one.
    build(Digest::of(lines.as_bytes())).unwrap();
    let registry = Registry::open(out.path()).unwrap();
    registry.verify(None, &NoProgress).unwrap();
    let ids: Vec<String> = read_records(&registry.datasets()[0]).unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(ids, ["1", "3", "5", "7"]);
}
