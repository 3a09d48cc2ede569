//! One licence log for everybody: what the registry accepts, what the signed tiles say, what a run record names; and what a
//! licence is worth at a moment.

use std::fs;
use std::path::Path;

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::keystore::KeyKind;
use ascribe_registry::registrar::Registrar;
use ascribe_registry::{
    LicenceStatus, ListedDataset, Registry, RunFacts, RunFault, RunRecord, SignedLicence, StartEvidence, plan_run,
    tiles,
};
use ascribe_tlog::{
    Ed25519Key, NoteSigner, Receipt, SignatureKind, TileTree, audit, leaf_hash, read_checkpoint, read_key, write_secret,
};

use crate::place::*;

/// The tiles, read and checked as a stranger does; size and root.
fn audited(root: &Path) -> (u64, Digest) {
    let dir = root.join(tiles::TILES_DIR);
    let found = audit(&dir, &read_key(&dir).unwrap(), &[], &[], &NoProgress).unwrap();
    (found.head.size, found.head.root)
}

fn facts(registry: &Registry, started_unix_s: u64) -> RunFacts {
    RunFacts {
        invocation_id: "run".to_owned(),
        trainer: None,
        started_unix_s,
        finished_unix_s: started_unix_s + 5,
        recipe_sha256: Digest::of(b"recipe"),
        seed: 1,
        steps: 1,
        epochs: "1".to_owned(),
        code_commit: None,
        base_model_sha256: None,
        start: StartEvidence::of_registry(registry).unwrap(),
    }
}

fn planned(registry: &Registry, name: &str, started_unix_s: u64) -> RunRecord {
    let listed = ListedDataset {
        dataset: name.to_owned(),
        records_used: None,
        epochs: None,
        sampling_seed: None,
        filter_sha256: None,
    };
    plan_run(registry, &[listed], facts(registry, started_unix_s)).unwrap()
}

fn faults(registry: &Registry, run: &RunRecord) -> Vec<RunFault> {
    registry.check_run_datasets(run).into_iter().map(|finding| finding.fault).collect()
}

#[test]
fn licences_and_revocations_are_leaves_of_the_signed_log() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    assert_eq!(audited(&place.root()).0, 0);
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let licence = license(&mut registrar, "alpha", &signer);
    assert_eq!(audited(&place.root()).0, 1);
    let run = planned(&registrar.licensed().unwrap(), "alpha", u64::from(u32::MAX) - 10);
    let revocation = revoke(&mut registrar, "alpha", &signer, u64::from(u32::MAX)).unwrap();
    let registry = registrar.licensed().unwrap();
    let head = registry.log().head();
    assert_eq!(audited(&place.root()), (2, head.root));
    // Both are proven members by the same receipts that any other log gives.
    let dir = place.root().join(tiles::TILES_DIR);
    let log_key = read_key(&dir).unwrap();
    let checkpoint = read_checkpoint(&dir, &log_key, &[]).unwrap();
    for accepted in [&licence, &revocation] {
        let tree = TileTree::new(&dir, checkpoint.head());
        let receipt = Receipt::issue(&tree, &checkpoint, accepted.log_index).unwrap();
        receipt.verify(leaf_hash(&accepted.digest.0), &log_key, &[]).unwrap();
        assert!(receipt.verify(leaf_hash(b"another"), &log_key, &[]).is_err());
    }
    // What a run record names is an index of that log, under a checkpoint of that log.
    assert_eq!((run.datasets[0].log_index, run.licence_log.size), (licence.log_index, 1));
    assert_eq!(Some(run.licence_log), registry.log().head_at(1));
    assert!(run.detail.start_checkpoint.is_some());
    assert_eq!(faults(&registry, &run), []);
    assert_eq!(faults(&registry, &planned(&registry, "alpha", u64::from(u32::MAX))), [RunFault::Revoked]);
    registrar.verify(&NoProgress).unwrap();
}

#[test]
fn a_crash_between_the_text_log_and_the_tiles() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    for name in ["alpha", "beta"] {
        place.add(&mut registrar, name, &lines(name)).unwrap();
    }
    let signer = key(KeyKind::Secp256k1);
    license(&mut registrar, "alpha", &signer);
    let checkpoint = place.root().join(tiles::TILES_DIR).join("checkpoint");
    let before = fs::read(&checkpoint).unwrap();
    license(&mut registrar, "beta", &signer);
    drop(registrar);
    // The line is written, the checkpoint is not; whatever tiles were written are written anew.
    fs::write(&checkpoint, before).unwrap();
    let refused = message(place.folder().verify(None, &NoProgress));
    assert!(refused.contains("licences.tlog/checkpoint: size: expected 2 entries"), "{refused}");
    place.open().verify(&NoProgress).unwrap();
    assert_eq!(audited(&place.root()).0, 2);
}

#[test]
fn the_operator_keeps_the_logs_key_where_it_likes() {
    let place = Place::sqlite();
    let path = place.file("keys/placeholder", "");
    let path = path.with_file_name("log.key");
    let signer =
        NoteSigner::new("operator.example/licences", SignatureKind::Note, Ed25519Key::demo("operator")).unwrap();
    write_secret(&path, signer.secret_line().as_bytes()).unwrap();
    let mut registrar = Registrar::init_with_log_key(&place.root(), &place.settings, Some(&path)).unwrap();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let alpha = key(KeyKind::Secp256k1);
    license(&mut registrar, "alpha", &alpha);
    assert_eq!(read_key(&place.root().join(tiles::TILES_DIR)).unwrap(), *signer.verifier());
    assert_eq!(audited(&place.root()).0, 1);
    drop(registrar);
    // Without the key nothing is lost: the licence is registered, and the tiles say how far they go until it is back.
    let away = path.with_added_extension("away");
    fs::rename(&path, &away).unwrap();
    let mut registrar = place.open();
    place.add(&mut registrar, "beta", &lines("beta")).unwrap();
    assert_eq!(license(&mut registrar, "beta", &alpha).log_index, 1);
    let refused = message(registrar.verify(&NoProgress));
    assert!(refused.contains("expected 2 entries, as licences.log has lines (hint: ascribe log mirror)"), "{refused}");
    drop(registrar);
    fs::rename(&away, &path).unwrap();
    place.open().verify(&NoProgress).unwrap();
}

#[test]
fn the_key_of_a_new_log_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::sqlite();
    drop(place.init());
    let mode = |name: &str| fs::metadata(place.root().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(".secret"), mode(".secret/log.key")), (0o700, 0o600));
    assert_eq!(fs::read_to_string(place.root().join(".secret/.gitignore")).unwrap(), "*\n");
    // No second registry has the same key.
    let other = Place::sqlite();
    drop(other.init());
    let key_of = |place: &Place| read_key(&place.root().join(tiles::TILES_DIR)).unwrap();
    assert_ne!(key_of(&place), key_of(&other));
}

#[test]
fn a_licence_has_a_state_at_each_moment() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let licence = signed(&mut registrar, "alpha", &signer, |message| message.valid_until = message.valid_from + 1000);
    let (digest, from) = (licence.digest, licence.message.valid_from);
    registrar.accept(&SignedLicence::Eip712(licence)).unwrap();
    let at = |registry: &Registry, unix_s: u64| {
        let status = registry.licence_status_at(registry.dataset("alpha").unwrap(), unix_s);
        assert_eq!(registry.licence_status_of(digest, unix_s), Some(status.clone()));
        status
    };
    let registry = registrar.licensed().unwrap();
    assert_eq!(at(&registry, from - 1), LicenceStatus::NotYetValid { valid_from: from });
    assert!(at(&registry, from).in_force() && at(&registry, from + 999).in_force());
    assert_eq!(at(&registry, from + 1000), LicenceStatus::Expired { valid_until: from + 1000 });
    revoke(&mut registrar, "alpha", &signer, from + 500).unwrap();
    let registry = registrar.licensed().unwrap();
    // Forward only.
    assert!(at(&registry, from + 499).in_force());
    let revoked = LicenceStatus::Revoked { effective_from: from + 500, reason: "sold".to_owned() };
    assert_eq!((at(&registry, from + 500), at(&registry, from + 5000)), (revoked.clone(), revoked));
    assert_eq!(registry.licence_status_of(ascribe_registry::LicenceDigest([7; 32]), from), None);
    // A licence file that nobody registered counts for nothing.
    drop(registrar);
    let log = place.root().join("licences.log");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    assert_eq!(at(&place.folder(), from), LicenceStatus::NotRegistered);
}

#[test]
fn runs_keep_the_licence_that_they_began_with() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    license(&mut registrar, "alpha", &signer);
    let start = u64::from(u32::MAX);
    let run = planned(&registrar.licensed().unwrap(), "alpha", start);
    // A new version that nobody has licensed yet: the run stands, and the folder opens without the dataset.
    place.add(&mut registrar, "alpha", &(lines("alpha") + "{\"id\":\"n\",\"text\":\"new\"}\n")).unwrap();
    place.add(&mut registrar, "beta", &lines("beta")).unwrap();
    license(&mut registrar, "beta", &signer);
    drop(registrar);
    let folder = place.folder();
    assert_eq!((folder.unlicensed(), folder.datasets().len()), (&["alpha".to_owned()][..], 1));
    assert_eq!(faults(&folder, &run), []);
    folder.verify(Some(&run), &NoProgress).unwrap();
    // Licensed again: the run stands still, but nobody begins a new one on the terms of before.
    license(&mut place.open(), "alpha", &signer);
    let folder = place.folder();
    assert_eq!(faults(&folder, &run), []);
    let mut late = run.clone();
    late.licence_log = folder.log().head();
    assert_eq!(faults(&folder, &late), [RunFault::NotInForce]);
    // A licence file that was taken away is missed, not mistaken for a dataset that waits for one.
    fs::remove_file(place.root().join("alpha/licence.json")).unwrap();
    let refused = message(place.folder().verify(None, &NoProgress));
    assert!(refused.contains("of the log: expected a digest whose licence or revocation lies"), "{refused}");
}

#[test]
fn terms_are_registered_in_their_one_spelling() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    let mut new = described("alpha");
    new.licence = "(mit)/gpl-2.0+".to_owned();
    let path = place.file("alpha.jsonl", lines("alpha"));
    registrar.add(&new, &content(&path), &NoProgress).unwrap();
    assert_eq!(registrar.datasets().unwrap()[0].licence_spdx, "MIT OR GPL-2.0-or-later");
    // The same terms in another spelling are the same version.
    new.licence = "MIT OR GPL-2.0-or-later".to_owned();
    assert!(!registrar.add(&new, &content(&path), &NoProgress).unwrap().new);
    let licence = license(&mut registrar, "alpha", &key(KeyKind::Secp256k1));
    let registry = registrar.licensed().unwrap();
    let dataset = registry.dataset("alpha").unwrap();
    assert_eq!(dataset.licence.message().licence, "MIT OR GPL-2.0-or-later");
    assert_eq!(dataset.licence.digest(), licence.digest);
}
