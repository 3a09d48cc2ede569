//! Golden folders of the registry's own formats: what was written once opens for ever.
//!
//! `cargo test -p ascribe-registry --test it -- --ignored make_golden_registry` writes those of the newest versions.

use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::keystore::KeyKind;
use ascribe_registry::registrar::NewContent;
use ascribe_registry::{
    Did, DidLicence, Fields, Licensor as _, MembershipProof, NewSigned, PROOF_FORMAT_VERSION,
    REVOCATION_FORMAT_VERSION, Registry, SETTINGS_FORMAT_VERSION, SOURCES_FORMAT_VERSION, Settings, SignedLicence,
    Signer as _, SourceSet,
};

use crate::place::*;

/// Stands for the folder in the golden `sources.json`, which holds an absolute path otherwise.
const ROOT: &str = "THE-FOLDER";

fn golden(name: &str, version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(name).join(format!("v{version}"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else if !name.starts_with('.') && !name.starts_with("registry.db") {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[test]
#[ignore = "writes the golden folders"]
fn make_golden_registry() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    let signer = key(KeyKind::Secp256k1);
    place.add(&mut registrar, "alpha", &lines("alpha")).unwrap();
    license(&mut registrar, "alpha", &signer);
    place.add(&mut registrar, "alpha", &(lines("alpha") + "{\"id\":\"more\",\"text\":\"one more\"}\n")).unwrap();
    license(&mut registrar, "alpha", &signer);
    revoke(&mut registrar, "alpha", &signer, 4_000_000_000).unwrap();
    place.add(&mut registrar, "beta", &lines("beta")).unwrap();
    let did = key(KeyKind::Ed25519);
    let message = registrar.prepare("beta", Did::parse(&did.licensor()).unwrap(), None, 0).unwrap();
    let domain = registrar.domain().clone();
    let licence = DidLicence::sign(Path::new("l"), domain, message, 1_800_000_000, &did).unwrap();
    registrar.accept(&SignedLicence::Did(Box::new(licence))).unwrap();

    let folder = golden("settings", SETTINGS_FORMAT_VERSION);
    copy(&place.root(), &folder);
    let revocation = golden("revocation", REVOCATION_FORMAT_VERSION);
    fs::create_dir_all(&revocation).unwrap();
    fs::copy(place.root().join("alpha/revocation.json"), revocation.join("revocation.json")).unwrap();
    let proof = golden("proof", PROOF_FORMAT_VERSION);
    fs::create_dir_all(&proof).unwrap();
    let made = MembershipProof::of(registrar.licensed().unwrap().dataset("alpha").unwrap(), "alpha/3").unwrap();
    fs::write(proof.join("proof.json"), serde_json::to_vec_pretty(&made).unwrap()).unwrap();

    place.file("texts/one.txt", "The first text.");
    place.file("texts/two.md", "The second.");
    let root = place.dir.path().join("texts");
    let content = NewContent { set: SourceSet::find(&root).unwrap(), fields: Fields::default(), in_place: true };
    registrar.add(&described("texts"), &content, &NoProgress).unwrap();
    let sources = golden("sources", SOURCES_FORMAT_VERSION);
    copy(&root, &sources.join("texts"));
    copy(&place.root().join("texts"), &sources.join("dataset"));
    let path = sources.join("dataset/sources.json");
    let text = fs::read_to_string(&path).unwrap();
    let whole = root.canonicalize().unwrap();
    fs::write(&path, text.replace(&*whole.to_string_lossy(), ROOT)).unwrap();
}

/// Opens `formats/settings/v1`: a registry with a past, a revocation and both kinds of key.
#[test]
fn the_first_registry_verifies_for_ever() {
    let folder = golden("settings", 1);
    let settings = Settings::read(&folder).unwrap();
    assert_eq!(settings.domain, Settings::new("a test registry", 1, "").domain);
    let registry = Registry::open(&folder).unwrap();
    let report = registry.verify(None, &NoProgress).unwrap();
    assert_eq!((report.datasets.len(), report.licence_log.size), (2, 4));
    assert_eq!(report.datasets[0].revoked_from, Some(4_000_000_000));
    assert!(report.datasets[1].licensor.starts_with("did:key:z6Mk"));
    assert_eq!(registry.datasets()[0].history.len(), 1);
}

/// Opens `formats/revocation/v1`.
#[test]
fn the_first_revocation_holds_for_ever() {
    let path = golden("revocation", 1).join("revocation.json");
    let NewSigned::Revocation(revocation) = NewSigned::read(&path).unwrap() else { panic!("a revocation") };
    revocation.check_signed(&path, &Settings::new("a test registry", 1, "").domain).unwrap();
}

/// Opens `formats/proof/v1`.
#[test]
fn the_first_proof_holds_for_ever() {
    let path = golden("proof", 1).join("proof.json");
    MembershipProof::read(&path).unwrap().verify(&path, None).unwrap();
}

/// Opens `formats/sources/v1`: texts that were registered where they lie.
#[test]
fn the_first_reference_is_read_for_ever() {
    let folder = golden("sources", 1);
    let place = Place::sqlite();
    let mut registrar = place.init();
    let texts = place.dir.path().join("texts");
    copy(&folder.join("texts"), &texts);
    let content = NewContent { set: SourceSet::find(&texts).unwrap(), fields: Fields::default(), in_place: true };
    let added = registrar.add(&described("texts"), &content, &NoProgress).unwrap();
    let text = fs::read_to_string(folder.join("dataset/sources.json")).unwrap();
    let here = text.replace(ROOT, &texts.canonicalize().unwrap().to_string_lossy());
    assert_eq!(fs::read_to_string(place.root().join("texts/sources.json")).unwrap(), here);
    let manifest = fs::read_to_string(folder.join("dataset/manifest.json")).unwrap();
    assert!(manifest.contains(&added.content_root.to_string()));
    assert_ne!(added.content_root, Digest([0; 32]));
    registrar.verify(&NoProgress).unwrap();
}
