//! Notes beside a store: a changed bit is found and named, a change that is cut off is none, and they travel.

use std::fs;
use std::path::Path;

use ascribe_store::StoreError;
use ascribe_store::features::{
    FolderObjects, NOTES_FILE, Objects, pull_notes, push_notes, read_note, verify_notes, write_note,
};

use crate::common::{copy, folder, poke};

const NAMES: [&str; 2] = ["examples.jsonl", "lab.json"];

fn write(dir: &Path) {
    write_note(dir, "lab.json", b"{\"records\": 2}\n").unwrap();
    write_note(dir, "examples.jsonl", b"{\"row\":0}\n{\"row\":1}\n").unwrap();
}

#[test]
fn a_flipped_bit_in_any_of_them_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let whole = folder(dir.path());
    assert_eq!(whole.len(), 3);
    let len = |name: &str| whole[name].len() as u64;
    assert_eq!(
        verify_notes(dir.path()).unwrap(),
        (NAMES.map(String::from).to_vec(), len("examples.jsonl") + len("lab.json"))
    );
    for (name, bytes) in &whole {
        for (at, byte) in bytes.iter().enumerate() {
            for bit in 0..8 {
                poke(&dir.path().join(name), at, byte ^ (1 << bit));
                let error = verify_notes(dir.path()).unwrap_err();
                assert!(error.to_string().contains(name), "{name}, byte {at}, bit {bit}: {error}");
                // Whoever reads that note finds it as well, and nobody calls the other one damaged.
                for note in NAMES {
                    let found = read_note(dir.path(), note);
                    assert_eq!(found.is_err(), name == note || name == NOTES_FILE, "{name}, byte {at}, bit {bit}");
                }
            }
            poke(&dir.path().join(name), at, *byte);
        }
    }
    fs::remove_file(dir.path().join("lab.json")).unwrap();
    assert!(matches!(verify_notes(dir.path()), Err(StoreError::Missing { path, .. }) if path.ends_with("lab.json")));
}

#[test]
fn notes_of_an_earlier_version_are_read_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_note(dir.path(), "lab.json").unwrap(), None);
    fs::write(dir.path().join("lab.json"), "old").unwrap();
    assert_eq!(read_note(dir.path(), "lab.json").unwrap().unwrap(), b"old");
    assert_eq!(verify_notes(dir.path()).unwrap(), (vec![], 0));
    // The first one that is written is held to its hash from then on; the other stays what it was.
    write_note(dir.path(), "examples.jsonl", b"new").unwrap();
    assert_eq!(verify_notes(dir.path()).unwrap().0, ["examples.jsonl"]);
    assert_eq!(read_note(dir.path(), "lab.json").unwrap().unwrap(), b"old");
}

/// Between its three steps a change shows the old note or the new one, whole; from each the same call ends with the same bytes.
#[test]
fn a_change_that_is_cut_off_is_no_damage() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(old.path());
    copy(old.path(), new.path());
    let changed = b"{\"row\":0}\n{\"row\":1}\n{\"row\":2}\n";
    write_note(new.path(), "examples.jsonl", changed).unwrap();
    // What stands after the first step, made by cutting a change off: the folder refuses the note because a folder has its name.
    let cut = tempfile::tempdir().unwrap();
    copy(old.path(), cut.path());
    fs::create_dir(cut.path().join("examples.jsonl.tmp")).unwrap();
    write_note(cut.path(), "examples.jsonl", changed).unwrap_err();
    fs::remove_dir(cut.path().join("examples.jsonl.tmp")).unwrap();
    assert_ne!(folder(cut.path())[NOTES_FILE], folder(old.path())[NOTES_FILE]);
    let before = read_note(old.path(), "examples.jsonl").unwrap();
    assert_eq!(read_note(cut.path(), "examples.jsonl").unwrap(), before);
    verify_notes(cut.path()).unwrap();
    // After the second.
    let second = tempfile::tempdir().unwrap();
    copy(cut.path(), second.path());
    fs::write(second.path().join("examples.jsonl"), changed).unwrap();
    assert_eq!(read_note(second.path(), "examples.jsonl").unwrap().unwrap(), changed);
    verify_notes(second.path()).unwrap();
    for dir in [&cut, &second] {
        write_note(dir.path(), "examples.jsonl", changed).unwrap();
        assert_eq!(folder(dir.path()), folder(new.path()));
    }
    // Another order, the same bytes.
    let other = tempfile::tempdir().unwrap();
    write_note(other.path(), "examples.jsonl", changed).unwrap();
    write_note(other.path(), "lab.json", b"{\"records\": 2}\n").unwrap();
    assert_eq!(folder(other.path()), folder(new.path()));
}

#[test]
fn they_are_pushed_and_pulled_and_damage_on_the_way_is_named() {
    let (dir, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = FolderObjects::new(bucket.path());
    let pulled = |objects: &FolderObjects| {
        let out = tempfile::tempdir().unwrap();
        pull_notes(objects, out.path(), &NAMES).map(|()| folder(out.path()))
    };
    push_notes(dir.path(), &NAMES, &objects).unwrap();
    assert!(folder(bucket.path()).is_empty() && pulled(&objects).unwrap().is_empty(), "no notes, no objects");
    // An earlier version's push.
    objects.put_new("lab.json", b"old").unwrap();
    assert_eq!(pulled(&objects).unwrap()["lab.json"], b"old");
    write(dir.path());
    push_notes(dir.path(), &NAMES, &objects).unwrap();
    assert_eq!(pulled(&objects).unwrap(), folder(dir.path()));
    // Notes that grew since are pulled as they are now.
    write_note(dir.path(), "examples.jsonl", b"more lines").unwrap();
    push_notes(dir.path(), &NAMES, &objects).unwrap();
    assert_eq!(pulled(&objects).unwrap(), folder(dir.path()));
    for (name, bytes) in folder(bucket.path()) {
        poke(&bucket.path().join(&name), bytes.len() / 2, bytes[bytes.len() / 2] ^ 16);
        match pulled(&objects) {
            Ok(found) => assert_eq!(found, folder(dir.path()), "{name} is of no use any more"),
            Err(error) => assert!(error.to_string().contains(&name), "{name}: {error}"),
        }
        poke(&bucket.path().join(&name), bytes.len() / 2, bytes[bytes.len() / 2]);
    }
    // A name that leads out of the folder is none of a note, whoever wrote it.
    let path = dir.path().join(NOTES_FILE);
    let text = fs::read_to_string(&path).unwrap().replace("lab.json", "../lab.j");
    fs::write(&path, text).unwrap();
    assert!(verify_notes(dir.path()).is_err());
    // A damaged local note is not pushed.
    let bad = tempfile::tempdir().unwrap();
    write(bad.path());
    poke(&bad.path().join("lab.json"), 3, b'X');
    let before = folder(bucket.path());
    assert!(push_notes(bad.path(), &NAMES, &objects).unwrap_err().to_string().contains("lab.json"));
    assert_eq!(folder(bucket.path())[NOTES_FILE], before[NOTES_FILE]);
}
