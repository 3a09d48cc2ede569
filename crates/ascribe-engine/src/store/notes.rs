//! Notes beside a store: which record each row is, and what was asked for. They travel with the rows.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_store::FeatureStore;
use ascribe_store::features::{read_note, write_note};

use crate::error::EngineError;
use crate::lab::features::{EXAMPLES_FILE, ExampleLine, LAB_FILE};

/// What whoever made the rows left beside them, held to its hashes in `notes.json`; it travels with them.
pub(super) const NOTES: [&str; 2] = [EXAMPLES_FILE, LAB_FILE];

/// Gives a store that was made of all live rows of the one at `dir`, in their order, its notes: what was asked for as it is, and the
/// lines of the rows that are there, numbered as they lie now. So lines of deleted rows stay behind. Does the same again after a kill.
///
/// # Errors
/// A note that is damaged, or a line that is no example's where lines must be left out; those of writing.
pub(super) fn carry(dir: &Path, store: &FeatureStore, out: &Path) -> Result<(), EngineError> {
    if let Some(lab) = read_note(dir, LAB_FILE)? {
        write_note(out, LAB_FILE, &lab)?;
    }
    let Some(bytes) = read_note(dir, EXAMPLES_FILE)? else { return Ok(()) };
    let mut lines = by_id(parse(&dir.join(EXAMPLES_FILE), &bytes)?);
    // A part of a build has the lines of all its rows, and its rows are not the first of them.
    let rows = store.ids().zip(0..).filter_map(|(id, row)| Some(ExampleLine { row, ..lines.remove(&id.to_u64())? }));
    let rows: Vec<ExampleLine> = rows.collect();
    Ok(write_note(out, EXAMPLES_FILE, text(&rows)?.as_bytes())?)
}

/// The lines of `examples.jsonl`, in their order.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<ExampleLine>, EngineError> {
    let wrong = |line: usize, found: String| EngineError::Record {
        path: path.to_path_buf(),
        line: line as u64 + 1,
        field: "line".to_owned(),
        expected: "an example".to_owned(),
        found,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| wrong(0, error.to_string()))?;
    let line = |(n, text)| serde_json::from_str(text).map_err(|error: serde_json::Error| wrong(n, error.to_string()));
    text.lines().enumerate().map(line).collect()
}

/// The same by the id of their rows.
pub(super) fn by_id(lines: Vec<ExampleLine>) -> BTreeMap<u64, ExampleLine> {
    lines.into_iter().map(|line| (line.example_id, line)).collect()
}

/// What [`parse`] reads.
pub(super) fn text(lines: &[ExampleLine]) -> Result<String, EngineError> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line)?);
        text.push('\n');
    }
    Ok(text)
}
