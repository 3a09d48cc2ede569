//! What others read is made of what was signed.

use ascribe_core::NoProgress;
use ascribe_registry::Signer as _;
use ascribe_registry::export::{ai_act, croissant, rsl};
use ascribe_registry::keystore::KeyKind;

use crate::place::*;

#[test]
fn exports_say_what_was_signed() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    let mut new = described("alpha");
    new.title = "A <b>bold</b> & \"quoted\" title".to_owned();
    let path = place.file("alpha.jsonl", lines("alpha"));
    registrar.add(&new, &content(&path), &NoProgress).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let accepted = license(&mut registrar, "alpha", &signer);
    let registry = registrar.licensed().unwrap();
    let dataset = registry.dataset("alpha").unwrap();

    let json = croissant::export(dataset, Some(accepted.log_index), place.dir.path()).unwrap();
    assert_eq!(json["conformsTo"], "http://mlcommons.org/croissant/1.1");
    assert_eq!(json["license"], "https://spdx.org/licenses/CC-BY-4.0.html");
    assert_eq!(json["distribution"][0]["contentUrl"], "registry/alpha/records.jsonl");
    let sha256 = ascribe_core::Digest::of(lines("alpha").as_bytes()).to_string();
    assert_eq!(json["distribution"][0]["sha256"], sha256);
    let offer = &json["usageInfo"];
    assert_eq!(offer["ascribe:digest"], accepted.digest.to_string());
    assert_eq!(offer["odrl:assigner"]["@id"], signer.licensor());
    assert_eq!(offer["odrl:permission"][0]["odrl:action"]["@id"], "urn:ascribe:licence#ai-train");
    assert_eq!(offer["odrl:permission"][0]["odrl:duty"]["ascribe:payee"][0]["ascribe:account"], PAYEE);
    assert_eq!(offer["odrl:prohibition"][0]["odrl:action"]["@id"], "urn:ascribe:licence#search");

    let xml = rsl::export(dataset);
    assert!(xml.contains("<permits type=\"usage\">ai-train</permits>"), "{xml}");
    assert!(xml.contains("<prohibits type=\"usage\">search</prohibits>"), "{xml}");
    assert!(xml.contains(&accepted.digest.to_string()) && xml.contains("<payment type=\"use\"/>"), "{xml}");

    let summary = ai_act::export(&registry, &[dataset], None, 1_800_000_000);
    for part in ["## 1. General information", "## 2. Data sources", "## 3. Data processing", "CC-BY-4.0", "2027-01-15"]
    {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    assert!(summary.contains(&accepted.digest.to_string()) && !summary.contains("demo keys"));
}

#[test]
fn an_unlicensed_dataset_is_described_without_an_offer() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let json = registrar.describe_unlicensed("alpha", place.dir.path()).unwrap();
    assert_eq!(json["ascribe:licenceState"], "unsigned");
    assert!(json.get("usageInfo").is_none());
    assert!(json["description"].as_str().unwrap().ends_with("nobody has signed them, and nothing is offered."));
    assert_eq!(json["license"], "https://spdx.org/licenses/CC-BY-4.0.html");
    assert_eq!(json["distribution"][0]["contentUrl"], "registry/alpha/records.jsonl");
    assert_eq!(json["recordSet"][0]["field"].as_array().unwrap().len(), 2);
    assert!(message(registrar.describe_unlicensed("omega", place.dir.path())).contains("dataset \"omega\""));
    // What is described is what was registered.
    std::fs::write(place.root().join("alpha/records.jsonl"), lines("alpha").replace("text 3", "text 7")).unwrap();
    assert!(message(registrar.describe_unlicensed("alpha", place.dir.path())).contains("content_root: expected"));
}
