//! Records: the strict reader of `records.jsonl`, record hashes and the content root.
//!
//! A record's hash is SHA-256 over the raw bytes of its line without the newline; the content root is the RFC 6962 root
//! whose entries are these 32-byte hashes, in line order. No parsing stands between the file and its root.
//!
//! A record file is UTF-8 without a byte order mark; every line, the last one too, ends with one LF (no CR); a line is a
//! JSON object with exactly the members `id` and `text`, both strings and not empty; ids are unique.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, NoProgress};
use ascribe_tlog::RootBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{RegistryError, clip};
use crate::files;
use crate::ingest::Ingest;
use crate::manifest::Manifest;
use crate::reference::Reference;
use crate::registry::Dataset;
use crate::source::{Fields, SourceSet};

/// Name of the record file of a dataset.
pub const RECORDS_FILE: &str = "records.jsonl";

/// Longest line that a reader believes.
pub const LINE_CAP_BYTES: u64 = 1 << 20;

/// Longest record id.
pub const ID_CAP_BYTES: usize = 256;

/// One registered record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Row in the dataset, from 0.
    pub row: u32,
    /// Id, unique within the dataset.
    pub id: String,
    /// The text.
    pub text: String,
}

/// The form of a line, both ways.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line<'a> {
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) text: Cow<'a, str>,
}

/// What a record file adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentSummary {
    /// Records.
    pub record_count: u64,
    /// Bytes of the file.
    pub len_bytes: u64,
    /// RFC 6962 root over the record hashes.
    pub root: Digest,
}

/// Hash of a record: SHA-256 of its raw line without the newline.
pub fn record_hash(line: &[u8]) -> Digest {
    Digest::of(line)
}

/// The line, without newline, that a record is written as.
pub fn record_line(id: &str, text: &str) -> String {
    let line = Line { id: Cow::Borrowed(id), text: Cow::Borrowed(text) };
    serde_json::to_string(&line).expect("two strings always serialise")
}

/// Reads records one by one and keeps the running content root.
///
/// Iterates over `Result<Record, RegistryError>` and ends after the first error; [`RecordReader::summary`] is meaningful
/// once the iteration has ended without one. Memory: one line, the ids, and the peaks of the Merkle tree.
pub struct RecordReader<R> {
    input: R,
    path: PathBuf,
    line: Vec<u8>,
    lines_by_id: HashMap<String, u64>,
    root: RootBuilder,
    len_bytes: u64,
    done: bool,
}

impl RecordReader<BufReader<std::fs::File>> {
    /// Opens a record file.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Io`].
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        Ok(Self::new(BufReader::with_capacity(1 << 18, files::open(path, "record file")?), path))
    }
}

impl<R: BufRead> RecordReader<R> {
    /// Reads from `input`; `path` is what errors name.
    pub fn new(input: R, path: &Path) -> Self {
        Self {
            input,
            path: path.to_owned(),
            line: Vec::new(),
            lines_by_id: HashMap::new(),
            root: RootBuilder::new(),
            len_bytes: 0,
            done: false,
        }
    }

    /// Count, bytes and root of what was read so far.
    pub fn summary(&self) -> ContentSummary {
        let head = self.root.head();
        ContentSummary { record_count: head.size, len_bytes: self.len_bytes, root: head.root }
    }

    /// The next record, or `None` at the end of the file.
    fn read_record(&mut self) -> Result<Option<Record>, RegistryError> {
        self.line.clear();
        let cap = LINE_CAP_BYTES + 1;
        let n_bytes = (&mut self.input)
            .take(cap)
            .read_until(b'\n', &mut self.line)
            .map_err(RegistryError::io(&self.path, "reading"))?;
        if n_bytes == 0 {
            return match self.root.size() {
                0 => Err(RegistryError::EmptyDataset { path: self.path.clone() }),
                _ => Ok(None),
            };
        }
        let line_number = self.root.size() + 1;
        let bad = |reason: String| RegistryError::BadRecord { path: self.path.clone(), line: line_number, reason };
        let Some(line) = self.line.strip_suffix(b"\n") else {
            return Err(if n_bytes as u64 == cap {
                bad(format!("expected a line of at most {LINE_CAP_BYTES} bytes, found a longer one"))
            } else {
                bad("expected a newline at the end of the file, found none".to_owned())
            });
        };
        let text = std::str::from_utf8(line).map_err(|error| {
            let offset = error.valid_up_to();
            RegistryError::NotUtf8 { path: self.path.clone(), line: line_number, offset, byte: line[offset] }
        })?;
        let parsed = parse_line(text).map_err(bad)?;
        let row = u32::try_from(self.root.size()).map_err(|_| bad("expected at most 2^32 records".to_owned()))?;
        let record = Record { row, id: parsed.id.into_owned(), text: parsed.text.into_owned() };
        if let Some(first_line) = self.lines_by_id.insert(record.id.clone(), line_number) {
            let path = self.path.clone();
            return Err(RegistryError::DuplicateRecord { path, line: line_number, id: record.id, first_line });
        }
        self.root.push_entry(&record_hash(line).0);
        self.len_bytes += n_bytes as u64;
        Ok(Some(record))
    }
}

impl<R: BufRead> Iterator for RecordReader<R> {
    type Item = Result<Record, RegistryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read_record().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// One line of the strict form, or what is wrong with it.
pub(crate) fn parse_line(line: &str) -> Result<Line<'_>, String> {
    if line.is_empty() {
        return Err("expected a record, found a blank line".to_owned());
    }
    if line.ends_with('\r') {
        return Err("expected lines that end with LF alone, found CR LF".to_owned());
    }
    let parsed: Line<'_> = serde_json::from_str(line).map_err(|error| clip(&error.to_string()))?;
    for (name, value) in [("id", &parsed.id), ("text", &parsed.text)] {
        if value.is_empty() {
            return Err(format!("{name}: expected a string that is not empty, found \"\""));
        }
    }
    if parsed.id.len() > ID_CAP_BYTES {
        return Err(format!("id: expected at most {ID_CAP_BYTES} bytes, found {}", parsed.id.len()));
    }
    Ok(parsed)
}

/// Reads a record file without keeping its records, on all threads and in bounded memory.
///
/// # Errors
/// Whatever is wrong with the file, see [`RecordReader`].
pub fn summarise(path: &Path) -> Result<ContentSummary, RegistryError> {
    let set = SourceSet::strict(path)?;
    Ingest { set: &set, fields: &Fields::default(), strict: true }.run(None, &NoProgress)
}

/// What the records of a dataset add up to, wherever they lie.
///
/// # Errors
/// As [`summarise`]; for records that were registered where they lie, whatever reading them meets.
pub(crate) fn summarise_dataset(dataset: &Dataset) -> Result<ContentSummary, RegistryError> {
    with_ingest(dataset, |ingest| ingest.run(None, &NoProgress))
}

/// Does something with the records of a dataset, wherever they lie.
pub(crate) fn with_ingest<T>(
    dataset: &Dataset,
    work: impl FnOnce(&Ingest<'_>) -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    with_ingest_in(&dataset.dir, work)
}

/// The same for the folder of a dataset.
pub(crate) fn with_ingest_in<T>(
    dir: &Path,
    work: impl FnOnce(&Ingest<'_>) -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let (set, fields, strict) = sources_of(dir)?;
    work(&Ingest { set: &set, fields: &fields, strict })
}

/// Where the records of the dataset in a folder lie, how they are read, and whether every line must be canonical.
pub(crate) fn sources_of(dir: &Path) -> Result<(SourceSet, Fields, bool), RegistryError> {
    match Reference::read(dir)? {
        Some(reference) => Ok((reference.set()?, reference.fields().clone(), false)),
        None => Ok((SourceSet::strict(&dir.join(RECORDS_FILE))?, Fields::default(), true)),
    }
}

/// Reads all records of a dataset and checks them against its manifest: what is returned is what was registered.
///
/// # Errors
/// Whatever is wrong with the file, see [`RecordReader`], and [`RegistryError::Field`] when count, length or content
/// root are not those of the manifest.
pub fn read_records(dataset: &Dataset) -> Result<Vec<Record>, RegistryError> {
    let capacity = dataset.manifest.record_count.min(1 << 20) as usize;
    let mut records = Vec::with_capacity(capacity);
    if Reference::read(&dataset.dir)?.is_some() {
        check_summary(dataset, &summarise_dataset(dataset)?)?;
        with_ingest(dataset, |ingest| {
            ingest.each_record(&NoProgress, |row, record| {
                let row = u32::try_from(row).map_err(|_| too_many(dataset))?;
                records.push(Record {
                    row,
                    id: record.id.clone().into_owned(),
                    text: record.text.clone().into_owned(),
                });
                Ok::<(), RegistryError>(())
            })
        })?;
        return Ok(records);
    }
    let path = dataset.records_path();
    let mut reader = RecordReader::open(&path)?;
    for record in &mut reader {
        records.push(record?);
    }
    check_summary(dataset, &reader.summary())?;
    Ok(records)
}

fn too_many(dataset: &Dataset) -> RegistryError {
    let found = dataset.manifest.record_count;
    RegistryError::field(&dataset.manifest_path(), "record_count", "at most 2^32 records to be read at once", found)
}

/// Compares what a record file adds up to with what its manifest says.
pub(crate) fn check_summary(dataset: &Dataset, found: &ContentSummary) -> Result<(), RegistryError> {
    check_manifest(&dataset.records_path(), &dataset.manifest, found)
}

/// The same for a manifest alone; `path` is what errors name.
pub(crate) fn check_manifest(path: &Path, manifest: &Manifest, found: &ContentSummary) -> Result<(), RegistryError> {
    if found.record_count != manifest.record_count {
        return Err(RegistryError::field(path, "record_count", manifest.record_count, found.record_count));
    }
    if found.root != manifest.content_root {
        return Err(RegistryError::field(path, "content_root", manifest.content_root, found.root));
    }
    if found.len_bytes != manifest.len_bytes {
        return Err(RegistryError::field(path, "len_bytes", manifest.len_bytes, found.len_bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ascribe_tlog::{leaf_hash, node_hash};

    use super::*;

    fn read(bytes: &[u8]) -> Result<(Vec<Record>, ContentSummary), String> {
        let mut reader = RecordReader::new(bytes, Path::new("r.jsonl"));
        let records: Result<Vec<Record>, RegistryError> = (&mut reader).collect();
        Ok((records.map_err(|error| error.to_string())?, reader.summary()))
    }

    #[test]
    fn root_is_over_hashes_of_raw_lines() {
        // Spaces within a line are content: the root pins bytes, not meaning.
        let (a, b) = (r#"{"id":"a","text":"x\ny"}"#, r#"{ "id": "b", "text": "天" }"#);
        let (records, summary) = read(format!("{a}\n{b}\n").as_bytes()).unwrap();
        assert_eq!(records[0], Record { row: 0, id: "a".into(), text: "x\ny".into() });
        assert_eq!(records[1], Record { row: 1, id: "b".into(), text: "天".into() });
        let leaf = |line: &str| leaf_hash(&Digest::of(line.as_bytes()).0);
        assert_eq!(summary.root, node_hash(leaf(a), leaf(b)));
        assert_eq!((summary.record_count, summary.len_bytes), (2, (a.len() + b.len() + 2) as u64));
    }

    #[test]
    fn written_lines_read_back() {
        let (id, text) = ("q/1", "tab\t quote\" back\\ 天 \u{7f}\u{1}");
        let (records, _) = read(format!("{}\n", record_line(id, text)).as_bytes()).unwrap();
        assert_eq!((records[0].id.as_str(), records[0].text.as_str()), (id, text));
    }

    #[test]
    fn each_bad_line_is_named() {
        let good = r#"{"id":"a","text":"x"}"#;
        let cases: [(Vec<u8>, &str); 13] = [
            (b"".to_vec(), "r.jsonl: expected at least one record, found none"),
            (good.into(), "r.jsonl:1: expected a newline at the end of the file"),
            (format!("{good}\n\n").into(), "r.jsonl:2: expected a record, found a blank line"),
            (format!("{good}\r\n").into(), "r.jsonl:1: expected lines that end with LF alone"),
            (format!("{good}\n{good}\n").into(), "r.jsonl:2: duplicate record id \"a\", first seen on line 1"),
            (
                [good.as_bytes(), b"\n{\"id\":\"\xff\"}\n"].concat(),
                "r.jsonl:2: expected UTF-8, found byte 0xff at offset 7",
            ),
            (b"{\"id\":\"a\"}\n".to_vec(), "r.jsonl:1: missing field `text`"),
            (b"{\"text\":\"a\"}\n".to_vec(), "r.jsonl:1: missing field `id`"),
            (b"{\"id\":\"a\",\"text\":\"\"}\n".to_vec(), "r.jsonl:1: text: expected a string that is not empty"),
            (b"{\"id\":\"a\",\"text\":7}\n".to_vec(), "r.jsonl:1: invalid type: integer `7`"),
            (b"{\"id\":\"a\",\"text\":\"b\",\"meta\":1}\n".to_vec(), "r.jsonl:1: unknown field `meta`"),
            (b"\xef\xbb\xbf{\"id\":\"a\",\"text\":\"b\"}\n".to_vec(), "r.jsonl:1: expected value at line 1 column 1"),
            (vec![b'x'; LINE_CAP_BYTES as usize + 5], "r.jsonl:1: expected a line of at most 1048576 bytes"),
        ];
        for (bytes, expected) in cases {
            let message = read(&bytes).unwrap_err();
            assert!(message.starts_with(expected), "expected {expected:?}, found {message:?}");
        }
    }

    #[test]
    fn reading_ends_at_the_first_error() {
        let mut reader = RecordReader::new(&b"x\n{\"id\":\"a\",\"text\":\"b\"}\n"[..], Path::new("r.jsonl"));
        assert!(reader.next().is_some_and(|first| first.is_err()));
        assert!(reader.next().is_none());
    }
}
