//! Records in, a content root out: the one way by which files of any format become registered content.
//!
//! Every record has one *canonical line*: a line of a JSONL file that is an object of exactly `id` and `text` is its own,
//! byte for byte; every other record is written as `{"id":…,"text":…}`. The record's hash is the SHA-256 of that line, the
//! content root is the RFC 6962 root over these hashes in the order of the source. So the same records have the same root
//! in whatever format they came, and a strict `records.jsonl` has the root that it always had.
//!
//! Batches are parsed and hashed on all threads and joined in their order, so the root does not depend on threads. Memory
//! is bounded: a batch per thread, the peaks of the tree, and 48 MB of ids (see `ids`).

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_tlog::{RootBuilder, leaf_hash};
use rayon::prelude::*;
use serde::de::DeserializeSeed;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use crate::content::{ContentSummary, ID_CAP_BYTES, LINE_CAP_BYTES, Line, parse_line, record_hash, record_line};
use crate::error::{RegistryError, clip};
use crate::ids::{IdHash, IdSet, id_hash};
use crate::source::{self, Batch, Fields, RecordSource, SourceSet};

mod plain;

/// One record in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalRecord<'a> {
    /// Id.
    pub id: Cow<'a, str>,
    /// Text.
    pub text: Cow<'a, str>,
    /// The line that is hashed, without newline.
    pub line: Cow<'a, str>,
}

/// What reads the records of one source twice or more, in the same order each time.
#[derive(Clone, Debug)]
pub struct Ingest<'a> {
    /// The files.
    pub set: &'a SourceSet,
    /// The columns.
    pub fields: &'a Fields,
    /// Refuse every line that is not its own canonical form: what a registry's own record file must be.
    pub strict: bool,
}

/// Batches of a group for each thread.
const BATCHES_PER_THREAD: usize = 8;

/// What takes a few batches of one file at a time.
type EachGroup<'a> = dyn FnMut(&Path, Vec<Batch>) -> Result<(), RegistryError> + 'a;

/// The next batches of a source, fewer at its end; what was read before an error comes with it.
fn next_group(source: &mut dyn RecordSource, len: usize) -> (Vec<Batch>, Option<RegistryError>) {
    let mut group = Vec::with_capacity(len);
    while group.len() < len {
        match source.next_batch() {
            Ok(Some(batch)) => group.push(batch),
            Ok(None) => break,
            Err(error) => return (group, Some(error)),
        }
    }
    (group, None)
}

/// Lines without their newlines.
fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr::memchr_iter(b'\n', body).chain(std::iter::once(body.len())).map(move |end| {
        let line = &body[start..end];
        start = end + 1;
        line
    })
}

/// What a batch adds up to.
struct Digested {
    leaves: Vec<Digest>,
    ids: Vec<IdHash>,
    len_bytes: u64,
    /// The canonical lines; `None` where they are the bytes of the batch.
    lines: Option<Vec<u8>>,
}

/// A group that was read, on its way into the sum.
type Group = (PathBuf, Vec<Batch>, Vec<Result<Digested, RegistryError>>);

impl Ingest<'_> {
    /// Reads everything and adds it up; canonical lines go to `sink` if there is one.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the source: [`RegistryError::BadRecord`],
    /// [`RegistryError::DuplicateRecord`], [`RegistryError::EmptyDataset`], and what reading meets.
    pub fn run(
        &self,
        mut sink: Option<&mut dyn Write>,
        progress: &dyn Progress,
    ) -> Result<ContentSummary, RegistryError> {
        progress.start("read records", self.set.len_bytes, "bytes");
        let keep_lines = sink.is_some();
        let (mut root, mut ids, mut len_bytes) = (RootBuilder::new(), IdSet::new(), 0u64);
        let id_error = |source| RegistryError::io(&std::env::temp_dir(), "keeping ids")(source);
        let mut join = |(path, batches, group): Group| -> Result<(), RegistryError> {
            for (batch, digested) in batches.iter().zip(group) {
                let digested = digested?;
                for (leaf, id) in digested.leaves.into_iter().zip(digested.ids) {
                    ids.insert(id, root.size()).map_err(id_error)?;
                    root.push_leaf(leaf);
                }
                len_bytes += digested.len_bytes;
                if let Some(sink) = &mut sink {
                    let copied = match (&digested.lines, batch) {
                        (None, Batch::Lines { bytes, .. }) => put_lines(*sink, bytes),
                        (lines, _) => sink.write_all(lines.as_deref().unwrap_or_default()),
                    };
                    copied.map_err(RegistryError::io(&path, "copying"))?;
                }
            }
            Ok(())
        };
        // One group is joined, in order and on this thread, while the next is parsed and hashed on the others.
        let mut waiting: Option<Group> = None;
        let walked = self.each_group(progress, &mut |path, batches| {
            let mut digested = Vec::new();
            let before = waiting.take();
            rayon::in_place_scope(|scope| {
                scope.spawn(|_| {
                    batches
                        .par_iter()
                        .map(|batch| self.digest(path, batch, keep_lines))
                        .collect_into_vec(&mut digested);
                });
                before.map_or(Ok(()), &mut join)
            })?;
            waiting = Some((path.to_owned(), batches, digested));
            Ok(())
        });
        // What waits comes before whatever ended the reading: the first error of the source is the one that is told.
        if let Some(group) = waiting {
            join(group)?;
        }
        walked?;
        if root.size() == 0 {
            return Err(RegistryError::EmptyDataset { path: self.set.root.clone() });
        }
        if let Some((first, second)) = ids.finish().map_err(id_error)? {
            return Err(self.duplicate(first, second));
        }
        let head = root.head();
        progress.finish(&format!("{} records, {len_bytes} bytes", head.size));
        Ok(ContentSummary { record_count: head.size, len_bytes, root: head.root })
    }

    /// Hands over all records, in order, in memory that does not grow with them.
    ///
    /// # Errors
    /// What is wrong with a record, and whatever `each` returns.
    pub fn each_record<E: From<RegistryError>>(
        &self,
        progress: &dyn Progress,
        mut each: impl FnMut(u64, &CanonicalRecord<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut row, mut stopped) = (0, None);
        let walked = self.each_group(progress, &mut |path, batches| {
            for batch in &batches {
                self.records_of(path, batch, &mut |record| {
                    if stopped.is_none() {
                        stopped = each(row, record).err();
                    }
                    row += 1;
                })?;
                if stopped.is_some() {
                    return Err(RegistryError::Stopped);
                }
            }
            Ok(())
        });
        match (stopped, walked) {
            (Some(error), _) => Err(error),
            (None, walked) => walked.map_err(E::from),
        }
    }

    /// Reads a few batches at a time and hands them over.
    pub(crate) fn each_group(&self, progress: &dyn Progress, each: &mut EachGroup<'_>) -> Result<(), RegistryError> {
        let group_len = BATCHES_PER_THREAD * rayon::current_num_threads();
        for path in &self.set.files {
            let mut source = if self.strict {
                source::open_strict(path)?
            } else {
                source::open(self.set.format, &self.set.root, path, self.fields)?
            };
            // The next group is read while this one is worked on. What is wrong comes in the order of the source.
            std::thread::scope(|scope| {
                let (send, receive) = std::sync::mpsc::sync_channel(1);
                scope.spawn(move || {
                    let mut left = true;
                    while left {
                        let (group, failed) = next_group(source.as_mut(), group_len);
                        left = failed.is_none() && group.len() == group_len;
                        // Nobody takes it when the work has failed.
                        left &= send.send((group, failed)).is_ok();
                    }
                });
                for (group, failed) in receive {
                    if progress.stop_requested() {
                        return Err(RegistryError::Stopped);
                    }
                    if !group.is_empty() {
                        let len_bytes = group.iter().map(batch_bytes).sum();
                        each(path, group)?;
                        progress.advance(len_bytes);
                    }
                    if let Some(error) = failed {
                        return Err(error);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn digest(&self, path: &Path, batch: &Batch, keep_lines: bool) -> Result<Digested, RegistryError> {
        let mut out = Digested { leaves: Vec::new(), ids: Vec::new(), len_bytes: 0, lines: None };
        let source = match batch {
            Batch::Lines { bytes, .. } => bytes.as_slice(),
            Batch::Pairs { .. } => &[],
        };
        self.lines_of(path, batch, &mut |id, line| {
            if keep_lines {
                let line = line.as_bytes();
                // As long as each canonical line is the next one of the source, the source is its own copy.
                let next =
                    source.get(out.len_bytes as usize..).is_some_and(|rest| std::ptr::eq(rest.as_ptr(), line.as_ptr()));
                if out.lines.is_none() && !next {
                    out.lines = Some(source[..out.len_bytes as usize].to_vec());
                }
                if let Some(lines) = &mut out.lines {
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                }
            }
            out.leaves.push(leaf_hash(&record_hash(line.as_bytes()).0));
            out.ids.push(id_hash(id));
            out.len_bytes += line.len() as u64 + 1;
        })?;
        // Lines that were left out at the end are not part of the copy.
        if keep_lines && out.lines.is_none() && (out.len_bytes as usize) < source.len() {
            out.lines = Some(source[..out.len_bytes as usize].to_vec());
        }
        Ok(out)
    }

    /// The records of a batch in their canonical form.
    pub(crate) fn records_of(
        &self,
        path: &Path,
        batch: &Batch,
        each: &mut dyn FnMut(&CanonicalRecord<'_>),
    ) -> Result<(), RegistryError> {
        match batch {
            Batch::Lines { first_line, bytes } => {
                self.each_line(path, *first_line, bytes, |number, line| {
                    if let Some(record) = self.of_line(path, number, line)? {
                        each(&record);
                    }
                    Ok(())
                })?;
            }
            Batch::Pairs { first_row, pairs } => {
                for (number, (id, text)) in (*first_row..).zip(pairs) {
                    if let Some(record) = self.of_pair(path, number, id.as_deref(), text.as_deref())? {
                        each(&record);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ids and canonical lines of a batch: [`Self::records_of`] without the texts, for which most lines need no parser.
    fn lines_of(&self, path: &Path, batch: &Batch, each: &mut dyn FnMut(&str, &str)) -> Result<(), RegistryError> {
        match batch {
            Batch::Lines { first_line, bytes } if self.strict || self.fields.are_plain() => {
                self.each_line(path, *first_line, bytes, |number, line| {
                    if let Some((id, line)) = plain::canonical_line(line) {
                        each(id, line);
                    } else if let Some(record) = self.of_line(path, number, line)? {
                        each(&record.id, &record.line);
                    }
                    Ok(())
                })
            }
            _ => self.records_of(path, batch, &mut |record| each(&record.id, &record.line)),
        }
    }

    fn each_line(
        &self,
        path: &Path,
        first_line: u64,
        bytes: &[u8],
        mut each: impl FnMut(u64, &[u8]) -> Result<(), RegistryError>,
    ) -> Result<(), RegistryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        // The last line of a source may lack its newline.
        let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        for (number, line) in (first_line..).zip(lines(body)) {
            each(number, line)?;
        }
        if self.strict && body.len() == bytes.len() {
            let line = first_line + memchr::memchr_iter(b'\n', body).count() as u64;
            let reason = "expected a newline at the end of the file, found none".to_owned();
            return Err(RegistryError::BadRecord { path: path.to_owned(), line, reason });
        }
        Ok(())
    }

    fn of_line<'a>(
        &self,
        path: &Path,
        number: u64,
        line: &'a [u8],
    ) -> Result<Option<CanonicalRecord<'a>>, RegistryError> {
        let bad = |reason: String| RegistryError::BadRecord { path: path.to_owned(), line: number, reason };
        let line = std::str::from_utf8(line).map_err(|error| {
            let offset = error.valid_up_to();
            RegistryError::NotUtf8 { path: path.to_owned(), line: number, offset, byte: line[offset] }
        })?;
        if self.strict {
            if line.len() as u64 > LINE_CAP_BYTES {
                return Err(bad(format!("expected a line of at most {LINE_CAP_BYTES} bytes, found a longer one")));
            }
            let Line { id, text } = parse_line(line).map_err(bad)?;
            return Ok(Some(CanonicalRecord { id, text, line: Cow::Borrowed(line) }));
        }
        let parsed = self.parse(line).map_err(|error| bad(clip(&error.to_string())))?;
        let Some(text) = parsed.text.filter(|text| !text.is_empty()) else {
            return self.no_text(path, number);
        };
        let strict = parsed.strict && parsed.id.as_ref().is_some_and(|id| !id.is_empty());
        if strict && line.len() as u64 <= LINE_CAP_BYTES && !line.ends_with('\r') {
            let id = parsed.id.unwrap_or_default();
            check_id(path, number, &id)?;
            return Ok(Some(CanonicalRecord { id, text, line: Cow::Borrowed(line) }));
        }
        canonical(path, number, parsed.id, text).map(Some)
    }

    fn of_pair<'a>(
        &self,
        path: &Path,
        number: u64,
        id: Option<&'a str>,
        text: Option<&'a str>,
    ) -> Result<Option<CanonicalRecord<'a>>, RegistryError> {
        match text.filter(|text| !text.is_empty()) {
            None => self.no_text(path, number),
            Some(text) => canonical(path, number, id.map(Cow::Borrowed), Cow::Borrowed(text)).map(Some),
        }
    }

    fn no_text<'a>(&self, path: &Path, number: u64) -> Result<Option<CanonicalRecord<'a>>, RegistryError> {
        if self.fields.skip_empty {
            return Ok(None);
        }
        let reason = format!(
            "{}: expected a string that is not empty, found none (hint: leave such records out with --skip-empty)",
            self.fields.text
        );
        Err(RegistryError::BadRecord { path: path.to_owned(), line: number, reason })
    }

    fn parse<'a>(&self, line: &'a str) -> Result<Parsed<'a>, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_str(line);
        let parsed = LineSeed(self.fields).deserialize(&mut reader)?;
        reader.end()?;
        Ok(parsed)
    }

    /// Names an id that stands twice, by reading up to it again.
    fn duplicate(&self, first: u64, second: u64) -> RegistryError {
        let mut found = String::new();
        let read = self.each_record::<RegistryError>(&ascribe_core::NoProgress, |row, record| {
            if row == second {
                found = record.id.clone().into_owned();
                return Err(RegistryError::Stopped);
            }
            Ok(())
        });
        match read {
            Err(RegistryError::Stopped) => {
                let (path, line, first_line) = (self.set.root.clone(), second + 1, first + 1);
                RegistryError::DuplicateRecord { path, line, id: clip(&found), first_line }
            }
            Err(error) => error,
            Ok(()) => RegistryError::BadSource {
                path: self.set.root.clone(),
                reason: "the files changed while they were read".to_owned(),
            },
        }
    }
}

/// Lines as they were read; the last one of a source may lack its newline.
fn put_lines(sink: &mut dyn Write, bytes: &[u8]) -> std::io::Result<()> {
    sink.write_all(bytes)?;
    if bytes.is_empty() || bytes.ends_with(b"\n") { Ok(()) } else { sink.write_all(b"\n") }
}

fn batch_bytes(batch: &Batch) -> u64 {
    match batch {
        Batch::Lines { bytes, .. } => bytes.len() as u64,
        Batch::Pairs { pairs, .. } => pairs.iter().map(|(_, text)| text.as_ref().map_or(0, String::len) as u64).sum(),
    }
}

fn check_id(path: &Path, number: u64, id: &str) -> Result<(), RegistryError> {
    if id.len() <= ID_CAP_BYTES {
        return Ok(());
    }
    let reason = format!("id: expected at most {ID_CAP_BYTES} bytes, found {}", id.len());
    Err(RegistryError::BadRecord { path: path.to_owned(), line: number, reason })
}

/// A record whose line is ours to write. One without an id is called by its place, from 0.
fn canonical<'a>(
    path: &Path,
    number: u64,
    id: Option<Cow<'a, str>>,
    text: Cow<'a, str>,
) -> Result<CanonicalRecord<'a>, RegistryError> {
    let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| {
        // Files of one dataset each count from 0, so the name of the file keeps their records apart.
        let file = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        Cow::Owned(format!("{file}#{}", number - 1))
    });
    check_id(path, number, &id)?;
    let line = record_line(&id, &text);
    if line.len() as u64 > LINE_CAP_BYTES {
        let reason = format!(
            "expected a record of at most {LINE_CAP_BYTES} bytes, found {} (hint: split long texts)",
            line.len()
        );
        return Err(RegistryError::BadRecord { path: path.to_owned(), line: number, reason });
    }
    Ok(CanonicalRecord { id, text, line: Cow::Owned(line) })
}

/// What a line says of the two columns.
struct Parsed<'a> {
    id: Option<Cow<'a, str>>,
    text: Option<Cow<'a, str>>,
    /// True when there is nothing else, under the plain names, each a string and once.
    strict: bool,
}

struct LineSeed<'f>(&'f Fields);

impl<'de> DeserializeSeed<'de> for LineSeed<'_> {
    type Value = Parsed<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Parsed<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LineSeed<'_> {
    type Value = Parsed<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a member {:?}", self.0.text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed<'de>, A::Error> {
        let mut parsed = Parsed { id: None, text: None, strict: self.0.are_plain() };
        let mut has_text = false;
        while let Some(Key(name)) = map.next_key()? {
            if name == self.0.text {
                if std::mem::replace(&mut has_text, true) {
                    return Err(A::Error::custom(format!("{}: expected it once, found it twice", self.0.text)));
                }
                let Text(text) = map.next_value()?;
                parsed.strict &= text.is_some();
                parsed.text = text;
            } else if name == self.0.id {
                if parsed.id.is_some() {
                    return Err(A::Error::custom(format!("{}: expected it once, found it twice", self.0.id)));
                }
                let Id(id, is_string) = map.next_value()?;
                parsed.strict &= is_string;
                parsed.id = id;
            } else {
                parsed.strict = false;
                map.next_value::<IgnoredAny>()?;
            }
        }
        if has_text {
            Ok(parsed)
        } else {
            Err(A::Error::custom(format!(
                "expected a member {:?}, found none (hint: name the column with --text-field)",
                self.0.text
            )))
        }
    }
}

/// Reads borrowed strings without a copy where JSON has no escape in them.
macro_rules! string_visitor {
    ($visitor:ident, $value:ty, $make:expr, $expecting:literal, { $($more:tt)* }) => {
        struct $visitor;
        impl<'de> Visitor<'de> for $visitor {
            type Value = $value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expecting)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok($make(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok($make(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok($make(Cow::Owned(text)))
            }
            $($more)*
        }
    };
}

struct Key<'a>(Cow<'a, str>);
struct Text<'a>(Option<Cow<'a, str>>);
/// An id, and whether it was a string.
struct Id<'a>(Option<Cow<'a, str>>, bool);

string_visitor!(KeyVisitor, Key<'de>, Key, "a name", {});
string_visitor!(TextVisitor, Text<'de>, |text| Text(Some(text)), "a string", {
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text(None))
    }
});
string_visitor!(IdVisitor, Id<'de>, |id| Id(Some(id), true), "a string or an integer", {
    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Id(Some(Cow::Owned(value.to_string())), false))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Id(Some(Cow::Owned(value.to_string())), false))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Id(None, false))
    }
});

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'de> serde::Deserialize<'de> for Id<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}
