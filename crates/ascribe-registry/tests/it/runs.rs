//! Training-run records: round trip, the in-toto form, and licences that are newer than the run.

use std::fs;

use ascribe_core::Digest;
use ascribe_registry::prepare::Grant;
use ascribe_registry::{LicenceDigest, RunRecord};
use proptest::prelude::*;
use serde_json::Value;

use crate::{Tiny, VALID_FROM, grant, new_dataset};

#[test]
fn a_run_on_registered_terms_passes() {
    let tiny = Tiny::new();
    let run = tiny.run(VALID_FROM);
    let report = tiny.verify(Some(&run)).unwrap();
    assert!(report.datasets.iter().all(|dataset| dataset.used_by_run));
    assert_eq!(report.run.as_deref(), Some("run-1"));
    // A dataset that the run did not use needs no licence from before it.
    let mut part = run.clone();
    part.datasets.remove(1);
    let used: Vec<bool> = tiny.verify(Some(&part)).unwrap().datasets.iter().map(|d| d.used_by_run).collect();
    assert_eq!(used, [true, false, true]);
}

#[test]
fn a_log_that_grew_still_proves_the_old_run() {
    let tiny = Tiny::new();
    let run = tiny.run(VALID_FROM);
    tiny.write(&new_dataset("delta", "Dan"));
    tiny.license("delta", "Dan", grant(1)).unwrap();
    tiny.verify(Some(&run)).unwrap();
}

#[test]
fn a_licence_registered_after_the_run() {
    let tiny = Tiny::new();
    let run = tiny.run(VALID_FROM);
    tiny.license("beta", "Ann", grant(3)).unwrap();
    assert_eq!(
        tiny.refusal(Some(&run)),
        "beta: licence is newer than the training run: expected a log index below 3, found 3"
    );
}

#[test]
fn a_licence_not_yet_or_no_longer_in_force() {
    let tiny = Tiny::new();
    assert_eq!(
        tiny.refusal(Some(&tiny.run(VALID_FROM - 1))),
        "alpha: licence not in force at the start of the training run: expected a start within validFrom 1000 and \
         validUntil open, found start 999"
    );
    let grant = Grant { valid_from: 5, valid_until: 50, nonce: 2, supersedes: LicenceDigest::default() };
    tiny.license("gamma", "Bob", grant).unwrap();
    assert!(tiny.refusal(Some(&tiny.run(VALID_FROM))).contains("gamma: licence not in force"));
    let registry = tiny.open().unwrap();
    assert!(registry.check_training_permitted(VALID_FROM).unwrap_err().to_string().contains("validUntil 50"));
}

#[test]
fn a_licence_that_does_not_permit_training() {
    let tiny = Tiny::new();
    let mut new = new_dataset("gamma", "Bob");
    new.permits = vec!["search".to_owned(), "ai-index".to_owned()];
    tiny.write(&new);
    tiny.license("gamma", "Bob", grant(2)).unwrap();
    assert!(!tiny.verify(None).unwrap().datasets[2].permits_training);
    let expected = "gamma: licence does not permit ai-train: expected it among the permits, found permits [\"search\", \
                    \"ai-index\"], prohibits []";
    assert_eq!(tiny.refusal(Some(&tiny.run(VALID_FROM))), expected);
    let refused = tiny.open().unwrap().check_training_permitted(VALID_FROM).unwrap_err();
    assert_eq!(refused.to_string(), expected);
}

#[test]
fn a_run_about_other_content_or_another_log() {
    let tiny = Tiny::new();
    let run = tiny.run(VALID_FROM);
    let refusal = |change: &dyn Fn(&mut RunRecord)| {
        let mut changed = run.clone();
        change(&mut changed);
        tiny.refusal(Some(&changed))
    };
    let root = run.licence_log.root;
    let other = Digest::of(b"other");
    assert_eq!(
        refusal(&|run| run.licence_log.root = other),
        format!("licences.log: root of the first 3 licences: expected {other}, found {root}")
    );
    assert!(refusal(&|run| run.licence_log.size = 4).contains("found only 3 licences"));
    assert!(refusal(&|run| run.datasets[0].content_root = other).starts_with("alpha: content_root that run run-1"));
    assert!(
        refusal(&|run| run.datasets[0].licence_digest = LicenceDigest([1; 32])).contains("licence digest that run")
    );
    assert!(
        refusal(&|run| run.datasets[0].log_index = 2)
            .contains("log index that run run-1 relied on: expected 2, found 0")
    );
    assert!(refusal(&|run| run.datasets[0].records_used = 6).contains("expected at most 5, found 6"));
    assert!(
        refusal(&|run| run.datasets[0].uuid = "urn:uuid:x".into()).contains("missing dataset that the training run")
    );
}

#[test]
fn a_record_reads_back_and_is_in_toto() {
    let tiny = Tiny::new();
    let (run, path) = (tiny.run(1_767_225_600), tiny.path("run.json"));
    run.write(&path).unwrap();
    assert_eq!(RunRecord::read(&path).unwrap(), run);
    let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(value["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(value["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(value["subject"][0]["digest"]["sha256"], run.subjects[0].sha256.to_string());
    let predicate = &value["predicate"];
    assert_eq!(predicate["runDetails"]["metadata"]["startedOn"], "2026-01-01T00:00:00Z");
    assert_eq!(predicate["runDetails"]["metadata"]["invocationId"], "run-1");
    let build = &predicate["buildDefinition"];
    assert_eq!(build["externalParameters"]["seed"], "18446744073709551615");
    assert_eq!(build["internalParameters"]["licenceLog"]["size"], 3);
    let dependency = &build["resolvedDependencies"][2];
    assert_eq!(dependency["uri"], run.datasets[2].uuid);
    assert_eq!(dependency["digest"]["rfc6962-sha256"], run.datasets[2].content_root.to_string());
    assert_eq!(dependency["annotations"]["licenceDigest"], run.datasets[2].licence_digest.to_string());
    assert_eq!(dependency["annotations"]["logIndex"], 2);
}

#[test]
fn a_record_that_contradicts_itself() {
    let tiny = Tiny::new();
    let (run, path) = (tiny.run(VALID_FROM), tiny.path("run.json"));
    type Change<'a> = &'a dyn Fn(&mut RunRecord);
    let cases: [(Change<'_>, &str); 9] = [
        (&|run| run.invocation_id.clear(), "run.json: invocationId: expected a name"),
        (&|run| run.finished_unix_s = 0, "run.json: finishedOn: expected no earlier than startedOn"),
        (&|run| run.steps = 0, "run.json: steps: expected at least 1"),
        (&|run| run.epochs = "1e3".into(), "run.json: epochs: expected a decimal such as 2 or 0.5, found \"1e3\""),
        (&|run| run.subjects.clear(), "run.json: subject: expected at least one file"),
        (&|run| run.subjects[0].name = "../model".into(), "run.json: subject.name: expected a relative path"),
        (&|run| run.datasets.clear(), "run.json: resolvedDependencies: expected at least one dataset"),
        (
            &|run| run.datasets.push(run.datasets[0].clone()),
            "run.json: resolvedDependencies: expected each dataset once",
        ),
        (&|run| run.started_unix_s = u64::MAX, "run.json: finishedOn: expected no earlier"),
    ];
    for (change, expected) in cases {
        let mut changed = run.clone();
        change(&mut changed);
        let message = changed.write(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "expected {expected:?}, found {message:?}");
        assert!(!path.exists());
    }
    run.write(&path).unwrap();
    tiny.replace("run.json", "urn:ascribe:trainer", "urn:other:trainer");
    let message = RunRecord::read(&path).unwrap_err().to_string();
    assert!(
        message.ends_with("run.json: builder.id: expected urn:ascribe:trainer, found urn:other:trainer"),
        "{message}"
    );
    let missing = RunRecord::read(&tiny.path("none.json")).unwrap_err().to_string();
    assert!(missing.ends_with("none.json: missing training-run record"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_records_never_panic(place in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let tiny = Tiny::copy();
        let (run, path) = (tiny.run(VALID_FROM), tiny.path("run.json"));
        run.write(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let i = place.index(bytes.len());
        if cut { bytes.truncate(i) } else { bytes[i] = byte }
        fs::write(&path, &bytes).unwrap();
        // A cut file is never a record; a changed byte may be (another digit), but then it reads back as itself.
        match RunRecord::read(&path) {
            Ok(read) => {
                prop_assert!(!cut || i + 1 >= bytes.len());
                let copy = tiny.path("copy.json");
                read.write(&copy).unwrap();
                prop_assert_eq!(RunRecord::read(&copy).unwrap(), read);
            }
            Err(error) => prop_assert!(error.to_string().contains("run.json")),
        }
    }
}
