//! Tiny records in three kinds of text, and the record file they make.

use std::io::{self, Write as _};
use std::path::Path;

use serde_json::json;

/// One line of a `records.jsonl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TinyRecord {
    /// Identifier, unique in its file.
    pub id: &'static str,
    /// The text.
    pub text: &'static str,
}

/// Six records: English, Chinese and code, with the characters that break naive readers (quotes, a backslash, a
/// newline, a tab, an emoji outside the basic plane, combining marks). Written for this crate; no licence needed.
pub fn tiny_records() -> Vec<TinyRecord> {
    let rows = [
        ("en/1", "The ferry leaves at noon.\nIt returns before dusk."),
        ("en/2", "She said \"no\", then wrote C:\\temp\tin the margin."),
        ("zh/1", "渡船正午开航，黄昏之前返回。"),
        ("zh/2", "她说：“不。”随后在页边写下一行字。"),
        ("code/1", "def double(x):\n    return 2 * x  # not x ** 2\n"),
        ("mixed/1", "Cafe\u{301} \u{1F6F6} naïve — 船"),
    ];
    rows.into_iter().map(|(id, text)| TinyRecord { id, text }).collect()
}

/// Writes records as JSON lines `{"id", "text"}`, each ended by one newline.
///
/// # Errors
/// The file system's.
pub fn write_jsonl(path: &Path, records: &[TinyRecord]) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    for record in records {
        writeln!(file, "{}", json!({ "id": record.id, "text": record.text }))?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_file_reads_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("records.jsonl");
        write_jsonl(&path, &tiny_records()).expect("a small file");
        let text = std::fs::read_to_string(&path).expect("the file just written");
        assert!(text.ends_with('\n'));
        let back: Vec<(String, String)> = text
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).expect("one JSON object per line");
                (value["id"].as_str().unwrap().to_owned(), value["text"].as_str().unwrap().to_owned())
            })
            .collect();
        let wanted: Vec<_> = tiny_records().iter().map(|r| (r.id.to_owned(), r.text.to_owned())).collect();
        assert_eq!(back, wanted);
    }

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<_> = tiny_records().iter().map(|r| r.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), tiny_records().len());
    }
}
