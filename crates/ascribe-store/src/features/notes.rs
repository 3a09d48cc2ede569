//! Notes beside a store: files that whoever made the rows left there (which record a row is, what was asked for), and `notes.json`,
//! which has the hash of each, so that a changed bit in them is found as one in the rows is.
//!
//! The store knows the notes by name only. A note is no part of a generation: an add writes the lines of the rows that come before
//! their rows. So there is one `notes.json`, and while a note changes it names both contents, the one that is there and the one that
//! comes: at no moment does a kill leave a note that is called damaged. Notes without `notes.json` (of earlier versions, or made by
//! hand) are read unchecked, as ever.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::FEATURES_FORMAT_VERSION;
use super::generation::Part;
use super::layout::{check_version, parse_json};
use super::remote::{Objects, named, part_key};
use super::sealed::{self, NO_CHECKSUM};
use super::sums::check_part;
use crate::atomic::{read_capped, write_atomic};
use crate::error::StoreError;
use crate::limits::NOTES_MAX_BYTES;

/// The file that has the hashes.
pub const NOTES_FILE: &str = "notes.json";
const LOST: &str = "`notes.json` names this file; restore it, or make the store again";
/// Tries of a read beside somebody who writes: between a look at `notes.json` and one at the note both may become others.
const TRIES: usize = 8;

/// `notes.json`. While a note is written it stands there twice: as it was and as it will be.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Notes {
    format_version: u32,
    notes: Vec<Part>,
    checksum: String,
}

impl Notes {
    fn new(notes: Vec<Part>) -> Self {
        Self { format_version: FEATURES_FORMAT_VERSION, notes, checksum: NO_CHECKSUM.to_owned() }
    }

    /// Those of a folder; none if it has none.
    fn of(dir: &Path) -> Result<Vec<Part>, StoreError> {
        let path = dir.join(NOTES_FILE);
        match read_capped(&path, NOTES_MAX_BYTES, LOST) {
            Ok(bytes) => Self::parse(&path, &bytes),
            Err(StoreError::Missing { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Part>, StoreError> {
        check_version(path, bytes)?;
        let found: Self = parse_json(path, "notes", bytes)?;
        sealed::check(path, bytes, &found.checksum)?;
        for note in &found.notes {
            let mut components = Path::new(&note.file).components();
            if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
                return Err(StoreError::malformed(path, "note", "a file beside the store", &note.file));
            }
        }
        Ok(found.notes)
    }
}

fn part_of(name: &str, bytes: &[u8]) -> Part {
    Part { file: name.to_owned(), bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
}

/// A note's bytes if it is there, unchecked.
fn plain(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::io("read", path, source)),
    }
}

/// Refuses bytes that are none of the contents that `notes` has of this name; without any there is nothing to hold them to.
fn check(path: &Path, name: &str, bytes: Option<&[u8]>, notes: &[Part]) -> Result<(), StoreError> {
    let mut known = notes.iter().filter(|part| part.file == name).peekable();
    let Some(&last) = known.peek() else { return Ok(()) };
    let Some(bytes) = bytes else { return Err(StoreError::Missing { path: path.to_path_buf(), hint: LOST }) };
    let found = part_of(name, bytes);
    if known.any(|part| *part == found) { Ok(()) } else { check_part(path, bytes, last) }
}

/// Reads a note beside the store at `dir` and holds it to `notes.json`; none if there is none.
///
/// # Errors
/// [`StoreError::WrongChecksum`] naming the note, or `notes.json`, if a byte of it changed; [`StoreError::Missing`] for a note that
/// `notes.json` names; those of the file system.
pub fn read_note(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let path = dir.join(name);
    let mut tries = 1;
    loop {
        let notes = Notes::of(dir)?;
        let bytes = plain(&path)?;
        match check(&path, name, bytes.as_deref(), &notes) {
            Ok(()) => return Ok(bytes),
            Err(StoreError::WrongChecksum { .. } | StoreError::Missing { .. }) if tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Writes a note beside the store at `dir`, whole or not at all, and its hash into `notes.json`. A kill at any moment leaves the note as
/// it was or as it is to be, and neither is called damaged. Same notes, same bytes, in whatever order they were written.
///
/// # Errors
/// A `notes.json` that is damaged; [`StoreError::DiskFull`], [`StoreError::Io`]: the old note is then still there.
pub fn write_note(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (before, new) = (Notes::of(dir)?, part_of(name, bytes));
    let seal = |mut notes: Vec<Part>| {
        notes.sort_by(|a, b| (&a.file, &a.blake3).cmp(&(&b.file, &b.blake3)));
        notes.dedup();
        sealed::write(&dir.join(NOTES_FILE), &Notes::new(notes))
    };
    // A note that nobody knows of is checked by nobody until it is there: it needs no announcement.
    let is_known = before.iter().any(|part| part.file == name);
    if is_known && !before.contains(&new) {
        seal(before.iter().cloned().chain([new.clone()]).collect())?;
    }
    write_atomic(&dir.join(name), bytes)?;
    seal(before.into_iter().filter(|part| part.file != name).chain([new]).collect())
}

/// Holds every note that `notes.json` names to it. Returns their names and the bytes that were hashed.
///
/// # Errors
/// Those of [`read_note`].
pub fn verify_notes(dir: &Path) -> Result<(Vec<String>, u64), StoreError> {
    let mut names: Vec<String> = Notes::of(dir)?.into_iter().map(|part| part.file).collect();
    names.dedup();
    let mut len_bytes = 0;
    for name in &names {
        len_bytes += read_note(dir, name)?.map_or(0, |bytes| bytes.len() as u64);
    }
    Ok((names, len_bytes))
}

/// Puts the notes of these names onto an object store. Each is an object whose name has its hash, and `notes.json` names them, so
/// whoever pulls finds the notes of one push and never a mixture of two. Call it after [`super::push`].
///
/// # Errors
/// Those of [`read_note`] and of the medium.
pub fn push_notes(dir: &Path, names: &[&str], objects: &dyn Objects) -> Result<(), StoreError> {
    let mut notes = Vec::new();
    for name in names {
        let Some(bytes) = read_note(dir, name)? else { continue };
        let part = part_of(name, &bytes);
        objects.put_new(&part_key(&part), &bytes)?;
        notes.push(part);
    }
    if notes.is_empty() {
        return Ok(());
    }
    notes.sort_by(|a, b| a.file.cmp(&b.file));
    let sealed = sealed::to_bytes(&named(objects, NOTES_FILE), &Notes::new(notes))?;
    if objects.get(NOTES_FILE)?.is_some_and(|found| found == sealed) {
        return Ok(());
    }
    objects.put(NOTES_FILE, &sealed)
}

/// Brings the notes of these names from an object store; others that it may have are left there. Notes of an earlier version's push lie
/// there under their own names and were never hashed: they are taken as they are.
///
/// # Errors
/// An object that is missing or changed, by name; those of [`write_note`] and of the medium.
pub fn pull_notes(objects: &dyn Objects, dir: &Path, names: &[&str]) -> Result<(), StoreError> {
    let Some(sealed) = objects.get(NOTES_FILE)? else {
        for name in names {
            if let Some(bytes) = objects.get(name)? {
                write_note(dir, name, &bytes)?;
            }
        }
        return Ok(());
    };
    for part in Notes::parse(&named(objects, NOTES_FILE), &sealed)? {
        if names.contains(&part.file.as_str()) {
            let key = part_key(&part);
            let path = named(objects, &key);
            let Some(bytes) = objects.get(&key)? else { return Err(StoreError::Missing { path, hint: LOST }) };
            check_part(&path, &bytes, &part)?;
            write_note(dir, &part.file, &bytes)?;
        }
    }
    Ok(())
}
