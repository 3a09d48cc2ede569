//! Records and queries of fact tracing: JSONL files, read whole, checked line by line.
//!
//! Here never lives: how a record is found.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ascribe_core::Digest;
use serde_json::{Map, Value};

use crate::error::EngineError;
use crate::files;

/// Longest part of a line that an error shows.
const SHOWN_CHARS: usize = 60;

/// All records of a folder, in the order of file names and lines.
#[derive(Clone, Debug)]
pub struct Records {
    /// Ids as their files give them.
    pub ids: Vec<String>,
    /// Texts.
    pub texts: Vec<String>,
    /// SHA-256 over ids and texts.
    pub digest: Digest,
    places: HashMap<String, u64>,
}

/// A question, its answer, and the records that state it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its id.
    pub id: String,
    /// The question.
    pub query: String,
    /// The answer.
    pub answer: String,
    /// Positions of the records that state the fact, rising.
    pub sources: Vec<u64>,
    /// Ordinal of its file in the list of sets.
    pub set: usize,
}

impl Records {
    /// Reads every `.jsonl` file below `dir`: `NAME.jsonl` of a corpora folder, `NAME/records.jsonl` of registered datasets.
    /// A record is a line `{"id", "text", …}`; other fields do not matter.
    ///
    /// # Errors
    /// [`EngineError::Record`] with file, line and field: no JSON object, no id or text, an id that stands twice. A folder
    /// without records.
    pub fn read(dir: &Path) -> Result<Self, EngineError> {
        let mut records =
            Self { ids: Vec::new(), texts: Vec::new(), digest: Digest::default(), places: HashMap::new() };
        let mut bytes = Vec::new();
        for name in files::list(dir)?.iter().filter(|name| name.ends_with(".jsonl")) {
            let path = dir.join(name);
            for (number, line) in lines(&path)? {
                let line = Line::parse(&path, number, &line)?;
                let (id, text) = (line.text("id")?, line.text("text")?);
                if let Some(first) = records.places.insert(id.to_owned(), records.ids.len() as u64) {
                    return Err(line.refuse("id", "an id that no other record has", format!("that of record {first}")));
                }
                bytes.extend(Digest::of_json(&(id, text))?.0);
                records.ids.push(id.to_owned());
                records.texts.push(text.to_owned());
            }
        }
        if records.ids.is_empty() {
            let expected = "records: lines {\"id\", \"text\"} in .jsonl files".into();
            return Err(EngineError::Content { path: dir.into(), expected, found: "none".into() });
        }
        records.digest = Digest::of(&bytes);
        Ok(records)
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True without records.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Reads query files; each is a set named after its file. Returns the names of the sets and all queries, in order.
///
/// A query is a line `{"id", "query", "answer", "sources": [record ids], …}`; other fields do not matter.
///
/// # Errors
/// [`EngineError::Record`] with file, line and field; a file without queries.
pub fn read_queries(paths: &[PathBuf], records: &Records) -> Result<(Vec<String>, Vec<Query>), EngineError> {
    let (mut sets, mut queries) = (Vec::new(), Vec::new());
    for path in paths {
        let before = queries.len();
        for (number, line) in lines(path)? {
            let line = Line::parse(path, number, &line)?;
            let (id, query, answer) = (line.text("id")?, line.text("query")?, line.text("answer")?);
            let sources = line.sources(records)?;
            let (id, query, answer) = (id.to_owned(), query.to_owned(), answer.to_owned());
            queries.push(Query { id, query, answer, sources, set: sets.len() });
        }
        if queries.len() == before {
            let expected = "queries: lines {\"id\", \"query\", \"answer\", \"sources\"}".into();
            return Err(EngineError::Content { path: path.clone(), expected, found: "none".into() });
        }
        sets.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    Ok((sets, queries))
}

/// Lines that are not blank, numbered from 1.
fn lines(path: &Path) -> Result<Vec<(u64, String)>, EngineError> {
    let text = String::from_utf8(files::read(path)?).map_err(|e| EngineError::Content {
        path: path.into(),
        expected: "UTF-8".into(),
        found: format!("another byte at offset {}", e.utf8_error().valid_up_to()),
    })?;
    let numbered = text.lines().zip(1u64..).filter(|(line, _)| !line.trim().is_empty());
    Ok(numbered.map(|(line, number)| (number, line.to_owned())).collect())
}

/// A line as a JSON object, with its place.
struct Line<'a> {
    path: &'a Path,
    number: u64,
    fields: Map<String, Value>,
}

impl<'a> Line<'a> {
    fn parse(path: &'a Path, number: u64, text: &str) -> Result<Self, EngineError> {
        let line = Self { path, number, fields: Map::new() };
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Self { fields, ..line }),
            Ok(_) => Err(line.refuse("line", "a JSON object", short(text))),
            Err(why) => Err(line.refuse("line", "a JSON object", format!("{why}: {}", short(text)))),
        }
    }

    fn refuse(&self, field: &str, expected: &str, found: String) -> EngineError {
        let (field, expected) = (field.to_owned(), expected.to_owned());
        EngineError::Record { path: self.path.into(), line: self.number, field, expected, found }
    }

    /// A text that is not empty.
    fn text(&self, field: &str) -> Result<&str, EngineError> {
        match self.fields.get(field) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
            Some(Value::String(_)) => Err(self.refuse(field, "a text", "an empty one".into())),
            Some(other) => Err(self.refuse(field, "a text", short(&other.to_string()))),
            None => Err(self.refuse(field, "a text", "no such field".into())),
        }
    }

    fn sources(&self, records: &Records) -> Result<Vec<u64>, EngineError> {
        let expected = "a list of ids of records, at least one";
        let list = match self.fields.get("sources") {
            Some(Value::Array(list)) if !list.is_empty() => list,
            Some(other) => return Err(self.refuse("sources", expected, short(&other.to_string()))),
            None => return Err(self.refuse("sources", expected, "no such field".into())),
        };
        let place = |id: &Value| {
            let found = id.as_str().and_then(|id| records.places.get(id).copied());
            found.ok_or_else(|| self.refuse("sources", "ids of records in the corpora", short(&id.to_string())))
        };
        let mut sources = list.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        sources.sort_unstable();
        sources.dedup();
        Ok(sources)
    }
}

fn short(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            files::write_atomic(&dir.path().join(name), text.as_bytes()).unwrap();
        }
        dir
    }

    const RECORDS: &str = "{\"id\":\"a/1\",\"text\":\"one\",\"meta\":{}}\n\n{\"id\":\"a/2\",\"text\":\"two\"}\n";

    #[test]
    fn both_forms_of_folders_read() {
        let dir = folder(&[
            ("x.jsonl", RECORDS),
            ("b/records.jsonl", "{\"id\":\"b/1\",\"text\":\"three\"}"),
            ("sources.json", "not a record"),
            ("b/terms.txt", "not a record"),
        ]);
        let records = Records::read(dir.path()).unwrap();
        assert_eq!(records.ids, ["b/1", "a/1", "a/2"]);
        assert_eq!(records.texts, ["three", "one", "two"]);
        let queries = folder(&[(
            "set.jsonl",
            "{\"id\":\"q\",\"query\":\"?\",\"answer\":\"!\",\"sources\":[\"a/2\",\"b/1\",\"a/2\"],\"lang\":\"en\"}\n",
        )]);
        let (sets, read) = read_queries(&[queries.path().join("set.jsonl")], &records).unwrap();
        assert_eq!((sets, read[0].sources.clone()), (vec!["set".to_owned()], vec![0, 2]));
    }

    #[test]
    fn broken_lines_are_named() {
        let refused = |text: &str| {
            let dir = folder(&[("x.jsonl", text)]);
            Records::read(dir.path()).unwrap_err().to_string()
        };
        for (text, want) in [
            ("{\"id\":\"a\",\"text\":\"x\"}\n[1]\n", "line 2, field `line`: expected a JSON object"),
            ("{\"id\":\"a\"}\n", "line 1, field `text`: expected a text, found no such field"),
            ("{\"id\":7,\"text\":\"x\"}\n", "line 1, field `id`: expected a text, found 7"),
            (
                "{\"id\":\"a\",\"text\":\"x\"}\n\n{\"id\":\"a\",\"text\":\"y\"}",
                "line 3, field `id`: expected an id that no other record has",
            ),
            ("\n", "expected records"),
        ] {
            let error = refused(text);
            assert!(error.contains(want), "{error}");
        }
        let records = Records::read(folder(&[("x.jsonl", RECORDS)]).path()).unwrap();
        for (text, want) in [
            ("{\"id\":\"q\",\"query\":\"?\",\"answer\":\"\",\"sources\":[\"a/1\"]}", "field `answer`"),
            ("{\"id\":\"q\",\"query\":\"?\",\"answer\":\"!\"}", "field `sources`: expected a list"),
            ("{\"id\":\"q\",\"query\":\"?\",\"answer\":\"!\",\"sources\":[]}", "field `sources`: expected a list"),
            (
                "{\"id\":\"q\",\"query\":\"?\",\"answer\":\"!\",\"sources\":[\"a/9\"]}",
                "line 1, field `sources`: expected ids of records in the corpora, found \"a/9\"",
            ),
            ("", "expected queries"),
        ] {
            let dir = folder(&[("set.jsonl", text)]);
            let error = read_queries(&[dir.path().join("set.jsonl")], &records).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("set.jsonl"), "{error}");
        }
    }
}
