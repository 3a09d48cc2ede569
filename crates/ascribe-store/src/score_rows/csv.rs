//! CSV score files: RFC 4180 with a header line, `\n` or `\r\n`, read line by line. A field may be quoted; it holds no line break.

use std::io::{BufRead, BufReader, Read as _};

use super::batch::Columns;
use super::{BATCH_ROWS, Label, Revenues, RowBatch, ScoreRows};
use super::{Each, Resolve, open};
use crate::error::StoreError;

/// No line of numbers and names is longer.
const LINE_MAX_BYTES: u64 = 1 << 16;

pub(super) fn read(source: &ScoreRows, resolve: &Resolve<'_>, each: &mut Each<'_>) -> Result<(), StoreError> {
    let path = &source.path;
    let mut reader = BufReader::with_capacity(1 << 18, open(path)?);
    let (mut line, mut fields) = (Vec::new(), Vec::new());
    let mut columns: Option<(Columns, usize)> = None;
    let mut rows = RowBatch::default();
    for number in 1u64.. {
        line.clear();
        let mut capped = reader.by_ref().take(LINE_MAX_BYTES + 1);
        let n = capped.read_until(b'\n', &mut line).map_err(|source| StoreError::io("read", path, source))?;
        if n == 0 {
            break;
        }
        let bad = |what, expected: &str, found: &str| {
            StoreError::malformed(path, what, expected, format!("{found:?} on line {number}"))
        };
        if n as u64 > LINE_MAX_BYTES {
            return Err(bad("line", "at most 65536 bytes", "more"));
        }
        let text = std::str::from_utf8(&line).map_err(|_| bad("line", "UTF-8", "other bytes"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        // A byte-order mark is what spreadsheets put in front.
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        split(text, &mut fields).ok_or_else(|| bad("line", "fields with closed quotation marks", text))?;
        let Some((columns, width)) = &columns else {
            let names: Vec<&str> = fields.iter().map(String::as_str).collect();
            columns = Some((Columns::of_names(path, &names)?, names.len()));
            continue;
        };
        if fields.len() != *width {
            return Err(bad("fields", &format!("{width} as in the header"), text));
        }
        if columns.level.is_some_and(|level| fields[level] != "dataset") {
            continue;
        }
        if let Some(method) = columns.method
            && !source.takes_method(&fields[method])?
        {
            continue;
        }
        let (query, dataset, score) = (&fields[columns.query], &fields[columns.dataset], &fields[columns.score]);
        if query.is_empty() || dataset.is_empty() {
            return Err(bad("response and dataset", "a name or number", text));
        }
        let value = score.trim().parse::<f64>().ok().filter(|value| value.is_finite());
        rows.scores.push(value.ok_or_else(|| bad("score", "a finite number", score))?);
        if let Some(revenue) = columns.revenue {
            let text = fields[revenue].trim();
            if text.is_empty() {
                return Err(bad("revenue", "an amount", &fields[revenue]));
            }
            match &mut rows.revenues {
                Revenues::Texts(texts) => texts.push(text.to_owned()),
                other => *other = Revenues::Texts(vec![text.to_owned()]),
            }
        }
        rows.queries.push(source.query_number(query)?);
        rows.datasets.push(resolve(Label::Text(dataset)));
        if rows.scores.len() == BATCH_ROWS {
            each(&rows)?;
            rows.clear();
        }
    }
    if columns.is_none() {
        return Err(StoreError::malformed(path, "score file", "a header line", "nothing"));
    }
    if rows.scores.is_empty() { Ok(()) } else { each(&rows) }
}

/// Splits a line into `fields`; `None` for broken quotation marks.
fn split(line: &str, fields: &mut Vec<String>) -> Option<()> {
    fields.clear();
    let mut rest = line;
    loop {
        let mut value = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let at = quoted.find('"')?;
                value += &quoted[..at];
                quoted = &quoted[at + 1..];
                match quoted.strip_prefix('"') {
                    Some(next) => {
                        value.push('"');
                        quoted = next;
                    }
                    None => break,
                }
            }
            rest = quoted;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            value += &rest[..end];
            rest = &rest[end..];
        }
        fields.push(value);
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return rest.is_empty().then_some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        let mut fields = Vec::new();
        split("a,\"b,\"\"c\"\"\",,d", &mut fields).unwrap();
        assert_eq!(fields, ["a", "b,\"c\"", "", "d"]);
        for broken in ["\"a", "\"a\"b", "\"a\"\""] {
            assert!(split(broken, &mut fields).is_none(), "{broken}");
        }
    }
}
