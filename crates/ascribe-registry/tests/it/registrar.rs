//! What a registry promises, over SQLite and PostgreSQL alike.

use std::fs;
use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_registry::keystore::KeyKind;
use ascribe_registry::registrar::Registrar;
use ascribe_registry::typed_data::{self, Unsigned};
use ascribe_registry::{
    Did, DidLicence, Licence, LicenceDigest, Licensor as _, MembershipProof, NewSigned, RegistryDomain, Revocation,
    SignedLicence, Signer as _,
};
use k256::ecdsa::Signature;

use crate::place::*;

macro_rules! on_both_engines {
    ($($promise:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $promise() { super::$promise(&crate::place::Place::sqlite()); })*
        }
        mod postgres {
            $(
                #[test]
                #[ignore = "needs a server: tests/conformance/sql/run.sh"]
                fn $promise() { super::$promise(&crate::place::Place::postgres(stringify!($promise))); }
            )*
        }
    };
}

on_both_engines!(
    from_records_to_a_licence_that_outsiders_check,
    a_did_key_licenses_too,
    a_wallet_signs_offline,
    versions_and_supersession_keep_the_past,
    signatures_that_are_none,
    replays,
    another_registry_or_chain,
    backdated_and_expired,
    a_revoked_licence_does_not_come_back,
    one_content_one_claim,
    a_dataset_has_one_licensor,
    what_is_refused_leaves_nothing,
    changed_evidence_is_found,
    a_crash_between_database_and_log,
    a_crash_while_adding,
    a_log_that_was_rewritten,
    disputes_open_and_close,
    two_programs_write_in_turn,
    a_record_is_proven_a_member,
);

fn from_records_to_a_licence_that_outsiders_check(place: &Place) {
    let mut registrar = place.init();
    let added = place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    assert!(added.new && added.version == 1 && added.record_count == 5);
    // The same again changes nothing.
    let again = place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    assert!(!again.new && again.content_root == added.content_root);
    let verified = registrar.verify(&NoProgress).unwrap();
    assert_eq!((verified.unlicensed.as_slice(), verified.signatures), (&["alpha".to_owned()][..], 0));
    let signer = key(KeyKind::Secp256k1);
    let accepted = license(&mut registrar, "alpha", &signer);
    assert_eq!((accepted.log_index, accepted.nonce, accepted.kind), (0, 1, "licence"));
    let verified = registrar.verify(&NoProgress).unwrap();
    assert_eq!((verified.unlicensed.len(), verified.signatures), (0, 1));
    drop(registrar);
    // The folder alone, without any database.
    let report = place.folder().verify(None, &NoProgress).unwrap();
    assert_eq!(report.datasets[0].licensor, signer.licensor());
    assert!(!report.datasets[0].demo_key && report.datasets[0].permits_training);
    place.folder().check_training_permitted(u64::from(u32::MAX)).unwrap();
    // And the database after a restart.
    let states = place.open().datasets().unwrap();
    assert_eq!(states[0].licence.as_ref().unwrap().digest, accepted.digest);
}

fn a_did_key_licenses_too(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Ed25519);
    let did = Did::parse(&signer.licensor()).unwrap();
    let message = registrar.prepare("alpha", did, None, 0).unwrap();
    let domain = registrar.domain().clone();
    let licence = DidLicence::sign(Path::new("l.json"), domain, message, 1_800_000_000, &signer).unwrap();
    // Any member changed, the signature no longer holds, or the credential contradicts itself.
    let json = serde_json::to_value(&licence).unwrap();
    for (pointer, value) in [
        ("/validFrom", "2001-01-01T00:00:00Z"),
        ("/issuer", "did:key:z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ2"),
        ("/credentialSubject/message/nonce", "2"),
        ("/credentialSubject/domain/salt", "0x0000000000000000000000000000000000000000000000000000000000000000"),
        ("/proof/created", "2001-01-01T00:00:00Z"),
        ("/proof/cryptosuite", "eddsa-rdfc-2022"),
        ("/proof/proofPurpose", "authentication"),
        ("/proof/proofValue", "z11111"),
    ] {
        let mut changed = json.clone();
        *changed.pointer_mut(pointer).unwrap() = value.into();
        let changed: SignedLicence = serde_json::from_value(changed).unwrap();
        assert!(registrar.accept(&changed).is_err(), "{pointer}");
    }
    let accepted = registrar.accept(&SignedLicence::Did(Box::new(licence))).unwrap();
    assert_eq!(accepted.log_index, 0);
    registrar.verify(&NoProgress).unwrap();
    assert_eq!(revoke(&mut registrar, "alpha", &signer, u64::from(u32::MAX)).unwrap().log_index, 1);
    assert_eq!(registrar.verify(&NoProgress).unwrap().signatures, 2);
    drop(registrar);
    let report = place.folder().verify(None, &NoProgress).unwrap();
    assert_eq!(report.datasets[0].revoked_from, Some(u64::from(u32::MAX)));
}

fn a_wallet_signs_offline(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let wallet = key(KeyKind::Secp256k1);
    let message = registrar.prepare("alpha", address(&wallet), None, 0).unwrap();
    let data = typed_data::write(registrar.domain(), &Unsigned::Licence(message));
    let path = place.file("typed.json", serde_json::to_vec(&data).unwrap());
    let Unsigned::Licence(read) = typed_data::read(&path, registrar.domain()).unwrap() else { panic!("a licence") };
    let digest = read.digest(registrar.domain());
    let bytes = wallet.sign(&digest.0).unwrap();
    // Wallets print capitals or not.
    let shown = format!("0x{}", hex::encode_upper(&bytes));
    let signature = typed_data::parse_signature(&path, &shown).unwrap();
    let licence = Licence::new(registrar.domain().clone(), read, signature, "Owner of alpha");
    registrar.accept(&SignedLicence::Eip712(licence)).unwrap();
    registrar.verify(&NoProgress).unwrap();
    // Another registry's typed data is not taken.
    let mut other = data.clone();
    other["domain"]["salt"] = format!("0x{}", "11".repeat(32)).into();
    let path = place.file("other.json", serde_json::to_vec(&other).unwrap());
    assert!(message_of_read(&path, registrar.domain()).contains("domain: expected"));
    // Types that say less than what is signed.
    let mut fewer = data;
    fewer["types"]["DatasetLicence"].as_array_mut().unwrap().pop();
    let path = place.file("fewer.json", serde_json::to_vec(&fewer).unwrap());
    assert!(message_of_read(&path, registrar.domain()).contains("types: expected"));
}

fn message_of_read(path: &Path, domain: &RegistryDomain) -> String {
    message(typed_data::read(path, domain))
}

fn versions_and_supersession_keep_the_past(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let first = license(&mut registrar, "alpha", &signer);
    let longer = lines("alpha") + "{\"id\":\"alpha/5\",\"text\":\"one more\"}\n";
    let second = place.add(&mut registrar, "alpha", &longer).unwrap();
    assert_eq!((second.version, second.new), (2, true));
    // The new version has no licence until it is signed; training on the folder is refused.
    assert_eq!(registrar.verify(&NoProgress).unwrap().unlicensed, ["alpha"]);
    let licence = signed(&mut registrar, "alpha", &signer, |message| message.supersedes = LicenceDigest::default());
    let refused = message(registrar.accept(&SignedLicence::Eip712(licence)));
    assert!(refused.starts_with(&format!("message.supersedes: expected {}", first.digest)), "{refused}");
    let second = license(&mut registrar, "alpha", &signer);
    assert_eq!(second.log_index, 1);
    registrar.verify(&NoProgress).unwrap();
    drop(registrar);
    let folder = place.folder();
    folder.verify(None, &NoProgress).unwrap();
    let dataset = folder.dataset("alpha").unwrap();
    assert_eq!(dataset.licence.message().supersedes, first.digest);
    assert_eq!(dataset.history.len(), 1);
    assert_eq!((dataset.history[0].licence.digest(), dataset.history[0].manifest.record_count), (first.digest, 5));
    // A past that was tampered with is found.
    let past = dataset.history[0].dir.join("terms.txt");
    fs::write(&past, "other terms\n").unwrap();
    assert!(message(place.folder().verify(None, &NoProgress)).contains("termsSha256"));
}

fn signatures_that_are_none(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let good = signed(&mut registrar, "alpha", &signer, |_| ());
    let mut refuse = |change: &dyn Fn(&mut Licence)| {
        let mut bad = good.clone();
        change(&mut bad);
        message(registrar.accept(&SignedLicence::Eip712(bad)))
    };
    for v in [0, 1, 26, 29, 255] {
        let refused = refuse(&|bad| bad.signature[64] = v);
        assert!(refused.contains(&format!("expected v = 27 or 28, found v = {v}")), "{refused}");
    }
    let refused = refuse(&|bad| {
        let (r, s) = Signature::from_slice(&bad.signature[..64]).unwrap().split_scalars();
        let twin = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
        bad.signature[..64].copy_from_slice(&twin.to_bytes());
        bad.signature[64] = 27 + 28 - bad.signature[64];
    });
    assert!(refused.contains("found the high-s twin"), "{refused}");
    assert!(refuse(&|bad| bad.signature[3] ^= 1).contains("signature: expected one by"));
    assert!(refuse(&|bad| bad.signature[..64].fill(0)).contains("r or s outside the group order"));
    assert!(refuse(&|bad| bad.message.valid_until = u64::MAX).contains("digest: expected 0x"));
    assert!(refuse(&|bad| bad.digest.0[0] ^= 1).contains("digest: expected 0x"));
    assert!(refuse(&|bad| bad.message.payees[0].share_ppm -= 1).contains("sum to 1000000 ppm, found 999999"));
    // Somebody who signs in another's name.
    let mallory = key(KeyKind::Secp256k1);
    let forged = signed(&mut registrar, "alpha", &mallory, |_| ());
    let mut forged = forged;
    forged.message.licensor = address(&signer);
    forged.digest = forged.message.digest(registrar.domain());
    assert!(message(registrar.accept(&SignedLicence::Eip712(forged))).contains("signature: expected one by"));
    assert_eq!(registrar.verify(&NoProgress).unwrap().signatures, 0);
}

fn replays(place: &Place) {
    let mut registrar = place.init();
    for name in ["alpha", "beta"] {
        place.add(&mut registrar, name, &lines(name)).unwrap();
    }
    let signer = key(KeyKind::Secp256k1);
    let licence = signed(&mut registrar, "alpha", &signer, |_| ());
    registrar.accept(&SignedLicence::Eip712(licence.clone())).unwrap();
    let refused = message(registrar.accept(&SignedLicence::Eip712(licence)));
    assert!(refused.contains("expected one that was not registered before"), "{refused}");
    // Nonces rise over all datasets of a licensor.
    for nonce in [0, 1] {
        let old = signed(&mut registrar, "beta", &signer, |message| message.nonce = nonce);
        let refused = message(registrar.accept(&SignedLicence::Eip712(old)));
        assert!(refused.starts_with("message.nonce: expected more than 1, the highest one that"), "{refused}");
    }
    let jump = signed(&mut registrar, "beta", &signer, |message| message.nonce = 40);
    assert_eq!(registrar.accept(&SignedLicence::Eip712(jump)).unwrap().nonce, 40);
    let refused = message({
        let (_, mut message) = registrar.prepare_revocation("beta", None, "").unwrap();
        message.nonce = 40;
        let domain = registrar.domain().clone();
        registrar.revoke(&Revocation::sign(Path::new("r"), domain, message, &signer).unwrap())
    });
    assert!(refused.starts_with("message.nonce: expected more than 40"), "{refused}");
}

fn another_registry_or_chain(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let home = registrar.domain().clone();
    for domain in [RegistryDomain { salt: [7; 32], ..home.clone() }, RegistryDomain { chain_id: 5, ..home.clone() }] {
        let message_here = registrar.prepare("alpha", address(&signer), None, 0).unwrap();
        let foreign =
            ascribe_registry::sign_licence(Path::new("l"), domain.clone(), message_here, "x", &signer).unwrap();
        let refused = message(registrar.accept(&SignedLicence::Eip712(foreign.clone())));
        assert!(refused.contains("domain: expected"), "{refused}");
        // The foreign signature under a domain that says ours.
        let mut relabelled = foreign;
        relabelled.domain = home.clone();
        relabelled.digest = relabelled.message.digest(&home);
        let refused = message(registrar.accept(&SignedLicence::Eip712(relabelled)));
        assert!(refused.contains("signature: expected one by"), "{refused}");
    }
}

fn backdated_and_expired(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let backdated = signed(&mut registrar, "alpha", &signer, |message| message.valid_from = 1_000);
    let refused = message(registrar.accept(&SignedLicence::Eip712(backdated)));
    assert!(refused.starts_with("message.validFrom: expected at least "), "{refused}");
    let over = signed(&mut registrar, "alpha", &signer, |message| {
        message.valid_from -= 100;
        message.valid_until = message.valid_from + 1;
    });
    let refused = message(registrar.accept(&SignedLicence::Eip712(over)));
    assert!(refused.starts_with("message.validUntil: expected 0 or more than "), "{refused}");
    assert_eq!(registrar.verify(&NoProgress).unwrap().signatures, 0);
}

fn a_revoked_licence_does_not_come_back(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    let licence = signed(&mut registrar, "alpha", &signer, |_| ());
    let valid_from = licence.message.valid_from;
    registrar.accept(&SignedLicence::Eip712(licence.clone())).unwrap();
    // Nobody else revokes it.
    let mallory = key(KeyKind::Secp256k1);
    let refused = message(revoke(&mut registrar, "alpha", &mallory, 5));
    assert!(refused.contains("licensor: expected"), "{refused}");
    revoke(&mut registrar, "alpha", &signer, valid_from + 10).unwrap();
    assert!(message(revoke(&mut registrar, "alpha", &signer, 5)).contains("expected one that was not revoked yet"));
    assert!(message(registrar.accept(&SignedLicence::Eip712(licence))).contains("was not registered before"));
    registrar.verify(&NoProgress).unwrap();
    drop(registrar);
    // Forward only: a run that began before goes on counting, a later one is refused.
    let folder = place.folder();
    folder.verify(None, &NoProgress).unwrap();
    folder.check_training_permitted(valid_from + 9).unwrap();
    let refused = message(folder.check_training_permitted(valid_from + 10));
    assert!(refused.starts_with("alpha: licence revoked from "), "{refused}");
    // A revocation that is taken away is missed: its digest stands in the log.
    fs::remove_file(place.root().join("alpha/revocation.json")).unwrap();
    let refused = message(place.folder().verify(None, &NoProgress));
    assert!(refused.contains("line 2 of the log: expected a digest whose licence or revocation lies"), "{refused}");
}

fn one_content_one_claim(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let refused = message(place.add(&mut registrar, "omega", &lines("alpha")));
    assert!(refused.contains("the content of \"alpha\", which \"Owner of alpha\" registered before"), "{refused}");
    assert!(!place.root().join("omega").exists());
    // A name belongs to whoever registered it.
    let mut other = described("alpha");
    other.owner = "Mallory".to_owned();
    let path = place.file("theirs.jsonl", lines("theirs"));
    let refused = message(registrar.add(&other, &content(&path), &NoProgress));
    assert!(refused.contains("owner of dataset \"alpha\": expected \"Owner of alpha\""), "{refused}");
}

fn a_dataset_has_one_licensor(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let (ann, mallory) = (key(KeyKind::Secp256k1), key(KeyKind::Secp256k1));
    license(&mut registrar, "alpha", &ann);
    let theirs = signed(&mut registrar, "alpha", &mallory, |_| ());
    let refused = message(registrar.accept(&SignedLicence::Eip712(theirs)));
    assert!(refused.starts_with(&format!("licensor of dataset \"alpha\": expected {}", ann.licensor())), "{refused}");
}

fn what_is_refused_leaves_nothing(place: &Place) {
    let mut registrar = place.init();
    for (bad, expected) in [
        ("", "expected at least one record"),
        (
            "{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"a\",\"text\":\"y\"}\n",
            ":2: duplicate record id \"a\", first seen on line 1",
        ),
        ("{\"id\":\"a\"}\n", ":1: expected a member \"text\", found none"),
        ("{\"id\":\"a\",\"text\":\"x\"}\nnot json\n", ":2: expected"),
    ] {
        let refused = message(place.add(&mut registrar, "alpha", bad));
        assert!(refused.contains(expected), "expected {expected:?}, found {refused:?}");
    }
    let mut wrong = described("alpha");
    wrong.payees[0].share_ppm = 999_999;
    let path = place.file("alpha.jsonl", lines("alpha"));
    assert!(message(registrar.add(&wrong, &content(&path), &NoProgress)).contains("sum to 1000000 ppm, found 999999"));
    assert!(registrar.datasets().unwrap().is_empty());
    let left: Vec<_> = fs::read_dir(place.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("alpha")), "{left:?}");
}

fn changed_evidence_is_found(place: &Place) {
    let mut registrar = place.init();
    for name in ["alpha", "beta"] {
        place.add(&mut registrar, name, &lines(name)).unwrap();
    }
    license(&mut registrar, "alpha", &key(KeyKind::Secp256k1));
    for (file, from, to, expected) in [
        ("alpha/records.jsonl", "text 3", "text 7", "alpha/records.jsonl: content_root: expected "),
        ("beta/records.jsonl", "text 3", "text 7", "beta/records.jsonl: content_root: expected "),
        ("beta/manifest.json", "The beta", "The best", "SHA-256 of the manifest that was registered"),
        ("alpha/manifest.json", "The alpha", "The best", "message.metadataSha256: expected "),
    ] {
        let path = place.root().join(file);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, old.replacen(from, to, 1)).unwrap();
        let refused = message(registrar.verify(&NoProgress));
        assert!(refused.contains(expected), "expected {expected:?}, found {refused:?}");
        fs::write(&path, old).unwrap();
    }
    registrar.verify(&NoProgress).unwrap();
    drop(registrar);
    // A row that says something else than what was signed.
    let sql = "UPDATE signatures SET document = ?1";
    place.database().execute(sql, &[b"{}".to_vec().into()]).unwrap();
    assert!(place.open().verify(&NoProgress).is_err());
}

fn a_crash_between_database_and_log(place: &Place) {
    let mut registrar = place.init();
    for name in ["alpha", "beta"] {
        place.add(&mut registrar, name, &lines(name)).unwrap();
    }
    let signer = key(KeyKind::Secp256k1);
    license(&mut registrar, "alpha", &signer);
    let accepted = license(&mut registrar, "beta", &signer);
    drop(registrar);
    let log = place.root().join("licences.log");
    let whole = fs::read_to_string(&log).unwrap();
    let second_line = whole.find('\n').unwrap() + 1;
    let licence = place.root().join("beta/licence.json");
    // Each state that a crash can leave after the row was committed: no file and no line; a file; half a line; a line.
    for (keep_file, log_bytes) in
        [(false, second_line), (true, second_line), (true, second_line + 20), (true, whole.len())]
    {
        place.database().execute("UPDATE signatures SET log_index = NULL WHERE log_index = 1", &[]).unwrap();
        fs::write(&log, &whole[..log_bytes]).unwrap();
        if !keep_file {
            fs::remove_file(&licence).unwrap();
        }
        let mut again = place.open();
        again.verify(&NoProgress).unwrap();
        assert_eq!(again.datasets().unwrap()[1].licence.as_ref().unwrap().digest, accepted.digest);
        assert_eq!(fs::read_to_string(&log).unwrap(), whole);
    }
}

fn a_crash_while_adding(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    drop(registrar);
    let (dir, staging) = (place.root().join("alpha"), place.root().join(".adding-alpha"));
    // After the rows were committed, before the files had their names: they get them.
    fs::rename(&dir, &staging).unwrap();
    let mut again = place.open();
    assert_eq!(again.verify(&NoProgress).unwrap().unlicensed, ["alpha"]);
    drop(again);
    // Before the rows were committed: it never happened.
    let other = place.root().join(".adding-beta");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("records.jsonl"), "half a rec").unwrap();
    place.open().verify(&NoProgress).unwrap();
    assert!(!other.exists() && !place.root().join("beta").exists());
}

fn a_log_that_was_rewritten(place: &Place) {
    let mut registrar = place.init();
    for name in ["alpha", "beta"] {
        place.add(&mut registrar, name, &lines(name)).unwrap();
        license(&mut registrar, name, &key(KeyKind::Secp256k1));
    }
    drop(registrar);
    let log = place.root().join("licences.log");
    let whole = fs::read_to_string(&log).unwrap();
    let mut turned: Vec<&str> = whole.lines().collect();
    turned.reverse();
    let turned = turned.join("\n") + "\n";
    let truncated = whole.lines().next().unwrap().to_owned() + "\n";
    let extended = whole.clone() + &format!("0x{}\n", "ab".repeat(32));
    for bad in [&turned, &truncated, &extended] {
        fs::write(&log, bad).unwrap();
        // A line that nobody accepted is not even opened, so that it is never signed.
        let verified = Registrar::open(&place.root()).and_then(|mut registrar| registrar.verify(&NoProgress));
        assert!(verified.is_err(), "{bad}");
    }
    fs::write(&log, whole).unwrap();
    place.open().verify(&NoProgress).unwrap();
}

fn disputes_open_and_close(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    assert!(registrar.open_dispute("omega", "Ann", "mine").is_err());
    assert!(registrar.open_dispute("alpha", " ", "mine").is_err());
    assert_eq!(registrar.open_dispute("alpha", "Ann", "copied from my site").unwrap(), 1);
    assert_eq!(registrar.verify(&NoProgress).unwrap().open_disputes, 1);
    registrar.close_dispute(1, "withdrawn").unwrap();
    assert!(message(registrar.close_dispute(1, "again")).contains("the number of an open one"));
    let disputes = registrar.disputes().unwrap();
    assert_eq!((disputes[0].dataset.as_str(), disputes[0].outcome.as_deref()), ("alpha", Some("withdrawn")));
}

fn two_programs_write_in_turn(place: &Place) {
    drop(place.init());
    std::thread::scope(|scope| {
        for name in ["alpha", "beta", "gamma"] {
            scope.spawn(move || {
                let mut registrar = place.open();
                place.add(&mut registrar, name, &lines(name)).unwrap();
                drop(registrar);
                license(&mut place.open(), name, &key(KeyKind::Secp256k1));
            });
        }
    });
    assert_eq!(place.open().verify(&NoProgress).unwrap().signatures, 3);
}

fn a_record_is_proven_a_member(place: &Place) {
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    license(&mut registrar, "alpha", &key(KeyKind::Secp256k1));
    let registry = registrar.licensed().unwrap();
    let dataset = registry.dataset("alpha").unwrap();
    let root = dataset.manifest.content_root.to_string();
    for i in 0..5 {
        let proof = MembershipProof::of(dataset, &format!("alpha/{i}")).unwrap();
        let path = place.file("proof.json", serde_json::to_vec(&proof).unwrap());
        let read = MembershipProof::read(&path).unwrap();
        read.verify(&path, Some(&root)).unwrap();
        let mut other = read.clone();
        other.line = other.line.replace("text", "test");
        assert!(other.verify(&path, Some(&root)).is_err());
        let mut moved = read;
        moved.index = (moved.index + 1) % 5;
        assert!(moved.verify(&path, Some(&root)).is_err());
    }
    assert!(message(MembershipProof::of(dataset, "alpha/9")).contains("record: expected an id of dataset"));
}

#[test]
fn files_are_read_back_as_what_they_are() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    let signer = key(KeyKind::Secp256k1);
    license(&mut registrar, "alpha", &signer);
    revoke(&mut registrar, "alpha", &signer, u64::from(u32::MAX)).unwrap();
    let read = |file: &str| NewSigned::read(&place.root().join(file)).unwrap();
    assert!(matches!(read("alpha/licence.json"), NewSigned::Licence(SignedLicence::Eip712(_))));
    assert!(matches!(read("alpha/revocation.json"), NewSigned::Revocation(_)));
}
