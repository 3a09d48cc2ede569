//! Signed run records, models in OpenSSF's form, runs held against the registry, the licence log as tiles.

use std::fs;

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::{
    LicenceDigest, ListedDataset, ModelKey, Registry, RunFacts, RunFault, RunPolicy, RunRecord, RunTrust,
    StartEvidence, check_run_start, check_subjects, finish_run, open_run, plan_run, sign_model, sign_run, tiles,
    verify_model,
};
use ascribe_tlog::{Ed25519Key, NoteSigner, SignatureKind};

use crate::{Tiny, VALID_FROM, grant};

fn facts(registry: &Registry) -> RunFacts {
    RunFacts {
        invocation_id: String::new(),
        trainer: Some("pytorch 2.9".to_owned()),
        started_unix_s: VALID_FROM + 100,
        finished_unix_s: VALID_FROM + 200,
        recipe_sha256: Digest::of(b"recipe"),
        seed: 7,
        steps: 10,
        epochs: "2".to_owned(),
        code_commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        base_model_sha256: Some(Digest::of(b"base")),
        start: StartEvidence::of_registry(registry).unwrap(),
    }
}

fn listed(name: &str) -> ListedDataset {
    ListedDataset {
        dataset: name.to_owned(),
        records_used: None,
        epochs: None,
        sampling_seed: None,
        filter_sha256: Some(Digest::of(b"filter")),
    }
}

/// A model folder beside the datasets, with a file in a folder.
fn model(tiny: &Tiny) -> std::path::PathBuf {
    let dir = tempfile::TempDir::new().unwrap().keep();
    fs::create_dir(dir.join("checkpoints")).unwrap();
    fs::write(dir.join("model.safetensors"), b"weights").unwrap();
    fs::write(dir.join("checkpoints/step-5.safetensors"), tiny.root().as_os_str().as_encoded_bytes()).unwrap();
    fs::write(dir.join("checkpoints-note.txt"), b"sorted after the folder by parts").unwrap();
    dir
}

#[test]
fn a_model_trained_elsewhere_is_recorded_signed_and_checked() {
    let tiny = Tiny::new();
    tiles::mirror_demo(tiny.root()).unwrap();
    let (registry, dir, key) = (tiny.open().unwrap(), model(&tiny), Ed25519Key::demo("operator"));
    let planned = plan_run(&registry, &[listed("alpha"), listed("gamma")], facts(&registry)).unwrap();
    assert_eq!(registry.check_run_datasets(&planned), []);
    let record = finish_run(planned, &dir).unwrap();
    let path = dir.join("run.json");
    record.write_signed(&path, Some(&key)).unwrap();
    let opened = open_run(&path, Some(&key.public())).unwrap();
    assert_eq!(opened.record, record);
    assert_eq!(opened.signer, Some(key.public()));
    assert_eq!(check_subjects(&record, &dir).unwrap(), 3);
    assert_eq!(open_run(&path, None).unwrap().signer, Some(key.public()));
    assert!(open_run(&path, Some(&Ed25519Key::demo("other").public())).is_err());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("urn:ascribe:recorder") && text.contains("\"trainer\": \"pytorch 2.9\""));
    // A record that was changed after signing, and a file that was.
    fs::write(&path, text.replace("\"steps\": 10", "\"steps\": 11")).unwrap();
    let message = open_run(&path, None).unwrap_err().to_string();
    assert!(message.contains("payload: expected the bytes of the run record beside it"), "{message}");
    fs::write(&path, &text).unwrap();
    fs::write(dir.join("model.safetensors"), b"Weights").unwrap();
    assert!(check_subjects(&record, &dir).unwrap_err().to_string().contains("model.safetensors: SHA-256: expected"));
    // Signing the changed record again is the operator's right, and shows another signature.
    sign_run(&path, &Ed25519Key::demo("other")).unwrap();
    assert!(open_run(&path, Some(&key.public())).is_err());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_a_run_may_not_use_is_found() {
    let tiny = Tiny::new();
    let registry = tiny.open().unwrap();
    let run = tiny.run(VALID_FROM + 100);
    let faults = |run: &RunRecord| -> Vec<RunFault> {
        tiny.open().unwrap().check_run_datasets(run).into_iter().map(|finding| finding.fault).collect()
    };
    assert_eq!(faults(&run), []);
    let changed = |change: &dyn Fn(&mut RunRecord)| {
        let mut changed = run.clone();
        change(&mut changed);
        faults(&changed)
    };
    assert_eq!(changed(&|run| run.started_unix_s = VALID_FROM - 1), [RunFault::NotInForce; 3]);
    assert_eq!(changed(&|run| run.datasets[0].uuid = "urn:uuid:none".into()), [RunFault::Unlicensed]);
    assert_eq!(changed(&|run| run.datasets[0].content_root = Digest::of(b"x")), [RunFault::Contradicted]);
    assert_eq!(changed(&|run| run.licence_log.root = Digest::of(b"x")), [RunFault::LogRewritten]);
    // Later-signed: the run saw a log of three, the new licence is the fourth entry.
    tiny.license("beta", "Ann", grant(3)).unwrap();
    assert_eq!(faults(&run), [RunFault::SignedLater]);
    assert!(
        plan_run(&registry, &[listed("delta")], facts(&registry)).unwrap_err().to_string().contains("delta: missing")
    );
}

#[test]
fn a_backdated_licence_needs_a_log_that_somebody_else_saw() {
    let tiny = Tiny::new();
    tiles::mirror_demo(tiny.root()).unwrap();
    let registry = tiny.open().unwrap();
    let mut planned = plan_run(&registry, &[listed("alpha")], facts(&registry)).unwrap();
    let trust = RunTrust { log: Some(tiles::demo_signer().verifier().clone()), ..RunTrust::default() };
    let faults = |run: &RunRecord, trust: &RunTrust| -> Vec<RunFault> {
        check_run_start(run, trust).1.into_iter().map(|finding| finding.fault).collect()
    };
    // The operator's own word is no outside time.
    assert_eq!(faults(&planned, &trust), [RunFault::NoOutsideTime]);
    // A witness that saw it before the start is; one that saw it afterwards is not.
    let witness = NoteSigner::new("w.example", SignatureKind::Cosignature, Ed25519Key::demo("w")).unwrap();
    let trusted = RunTrust { witnesses: vec![witness.verifier().clone()], ..trust.clone() };
    let note = ascribe_tlog::SignedNote::parse(planned.detail.start_checkpoint.clone().unwrap().as_bytes()).unwrap();
    for (seen, expected) in [(VALID_FROM + 100, vec![]), (VALID_FROM + 101, vec![RunFault::NoOutsideTime])] {
        let cosigned = note.with_signature(&witness, seen).unwrap();
        planned.detail.start_checkpoint = Some(cosigned.as_str().to_owned());
        assert_eq!(faults(&planned, &trusted), expected);
    }
    // A checkpoint of another size than the record's, one by another key, none at all.
    let mut other = planned.clone();
    other.licence_log.size = 2;
    assert_eq!(faults(&other, &trust), [RunFault::Contradicted]);
    let stranger = NoteSigner::new("x.example", SignatureKind::Note, Ed25519Key::demo("x")).unwrap();
    let untrusting = RunTrust { log: Some(stranger.verifier().clone()), ..RunTrust::default() };
    assert_eq!(faults(&planned, &untrusting), [RunFault::Contradicted]);
    other.detail.start_checkpoint = None;
    assert_eq!(faults(&other, &trust), [RunFault::NoCheckpoint]);
    let (_, findings) = check_run_start(&other, &trust);
    assert!(!RunPolicy::Refuse.refuses(&findings[0]) && RunPolicy::Strict.refuses(&findings[0]));
}

#[test]
fn tiles_are_the_text_log_or_the_registry_is_refused() {
    let tiny = Tiny::new();
    tiles::mirror_demo(tiny.root()).unwrap();
    let report = tiny.verify(None).unwrap();
    let key = tiles::demo_signer().verifier().clone();
    assert_eq!(tiles::check_mirror(tiny.root(), &key).unwrap(), report.licence_log);
    // A new licence goes into both.
    tiny.license("beta", "Ann", grant(3)).unwrap();
    assert_eq!(tiles::check_mirror(tiny.root(), &key).unwrap().size, 4);
    tiny.verify(None).unwrap();
    // Cut short, rewritten, reordered: the signed root is another.
    let log = fs::read_to_string(tiny.path("licences.log")).unwrap();
    let lines: Vec<&str> = log.split_inclusive('\n').collect();
    for changed in [lines[..3].concat(), [lines[1], lines[0], lines[2], lines[3]].concat()] {
        fs::write(tiny.path("licences.log"), changed).unwrap();
        let message = tiny.refusal(None);
        assert!(
            message.contains("licences.log: root of the first 4 licences") || message.contains("expected"),
            "{message}"
        );
    }
    // A line more than the tiles have.
    fs::write(tiny.path("licences.log"), format!("{log}{}\n", LicenceDigest([9; 32]))).unwrap();
    assert!(tiny.refusal(None).contains("licences.tlog/checkpoint: size: expected 5 entries"));
    // A crash between the text log and the tiles: the next mirroring mends it.
    tiles::mirror(tiny.root(), tiles::demo_signer(), &NoProgress).unwrap();
    assert_eq!(tiles::check_mirror(tiny.root(), &key).unwrap().size, 5);
}

#[test]
fn a_model_folder_is_signed_whole() {
    let tiny = Tiny::new();
    let (dir, key) = (model(&tiny), ModelKey::generate().unwrap());
    let digest = sign_model(&dir, &key).unwrap();
    assert_eq!(verify_model(&dir, &key.public_pem()).unwrap(), digest);
    let first = fs::read(dir.join("model.sig")).unwrap();
    sign_model(&dir, &key).unwrap();
    assert_eq!(fs::read(dir.join("model.sig")).unwrap(), first);
    assert!(verify_model(&dir, &ModelKey::generate().unwrap().public_pem()).is_err());
    fs::write(dir.join("extra.bin"), b"x").unwrap();
    assert!(verify_model(&dir, &key.public_pem()).unwrap_err().to_string().contains("expected a signed one"));
    fs::remove_file(dir.join("extra.bin")).unwrap();
    fs::write(dir.join("model.safetensors"), b"Weights").unwrap();
    assert!(verify_model(&dir, &key.public_pem()).unwrap_err().to_string().contains("model.safetensors: SHA-256"));
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert!(verify_model(&dir, &key.public_pem()).unwrap_err().to_string().contains("missing signed file"));
    fs::remove_dir_all(dir).unwrap();
}

/// `cargo test -p ascribe-registry --test it -- --ignored make_shipped_tiles`
#[test]
#[ignore = "writes datasets/licences.tlog"]
fn make_shipped_tiles() {
    let datasets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let head = tiles::mirror_demo(&datasets).unwrap().head();
    assert_eq!(head.size, 10);
    let _ = fs::remove_file(datasets.join("licences.tlog/.lock"));
}

/// The demo's licence log is one that anybody's tools can read, and the model's run saw exactly it.
#[test]
fn the_shipped_tiles_are_the_shipped_log() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let head = tiles::check_mirror(&root.join("datasets"), tiles::demo_signer().verifier()).unwrap();
    let run = RunRecord::read(&root.join("models/wren/run.json")).unwrap();
    assert_eq!(run.licence_log, head);
}
