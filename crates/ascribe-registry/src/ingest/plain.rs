//! Lines that are canonical at first sight. Hashing needs a line's id and its bytes, not its text: a line of the usual form is
//! checked where it stands, at the speed of a search for quotes, and nothing of it is unescaped or copied.

use crate::content::{ID_CAP_BYTES, LINE_CAP_BYTES};

/// The id of a line, and the line, if it is plainly `{"id":"…","text":"…"}` (one space may follow a colon or comma): an id without
/// escapes, both strings not empty, every escape whole. `None` says nothing about the line: the parser decides, and words what is wrong.
/// Escapes of surrogates, which must stand in pairs, are left to it too.
pub(super) fn canonical_line(line: &[u8]) -> Option<(&str, &str)> {
    if line.len() as u64 > LINE_CAP_BYTES || line.iter().fold(false, |bad, byte| bad | (*byte < 0x20)) {
        return None;
    }
    let line = std::str::from_utf8(line).ok()?;
    let bytes = line.as_bytes();
    let id_start = after(bytes, after(bytes, 0, b"{\"id\":")?, b"\"")?;
    let id_end = id_start + memchr::memchr2(b'"', b'\\', &bytes[id_start..])?;
    let text_start = after(bytes, after(bytes, after(bytes, id_end, b"\",")?, b"\"text\":")?, b"\"")?;
    let text_end = string_end(bytes, text_start)?;
    let id = &line[id_start..id_end];
    let whole = bytes[text_end..] == *b"\"}";
    (whole && text_end > text_start && !id.is_empty() && id.len() <= ID_CAP_BYTES).then_some((id, line))
}

/// The place behind `expected`, and behind one space if it ends in a colon or comma.
fn after(bytes: &[u8], start: usize, expected: &[u8]) -> Option<usize> {
    let rest = bytes.get(start..)?.strip_prefix(expected)?;
    let separates = matches!(expected.last(), Some(b':' | b','));
    Some(start + expected.len() + usize::from(separates && rest.first() == Some(&b' ')))
}

/// The closing quote of a string that began before `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        match bytes.get(at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
            b'u' => {
                let digits = bytes.get(at + 2..at + 6)?;
                let surrogate = matches!(digits, [b'd' | b'D', b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F', ..]);
                if surrogate || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                at += 6;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::content::parse_line;
    use crate::ingest::Ingest;
    use crate::source::{Fields, SourceFormat, SourceSet};

    #[test]
    fn plain_lines_are_seen_and_others_are_left_to_the_parser() {
        for plain in
            [r#"{"id":"a","text":"b"}"#, r#"{"id": "a/1", "text": "天 \"q\" \\ \/ \b\f\n\r\t \u00e9 \uD7ff \uE000 é"}"#]
        {
            let (id, line) = canonical_line(plain.as_bytes()).unwrap();
            assert_eq!((id, line), (&*parse_line(plain).unwrap().id, plain));
        }
        for other in [
            "",
            "{}",
            r#"{"id":"a","text":""}"#,
            r#"{"id":"","text":"b"}"#,
            r#"{"id":"a\n","text":"b"}"#,
            r#"{"id":"a","text":"b","more":1}"#,
            r#"{"text":"b","id":"a"}"#,
            r#"{"id":"a",  "text":"b"}"#,
            r#"{"id":"a","text":"b"} "#,
            r#"{"id":"a","text":"\x"}"#,
            r#"{"id":"a","text":"\u12"}"#,
            r#"{"id":"a","text":"\ud83d\ude00"}"#,
            r#"{"id":"a","text":"\"}"#,
            "{\"id\":\"a\",\"text\":\"b\tc\"}",
            "{\"id\":\"a\",\"text\":\"b\"}\r",
        ] {
            assert_eq!(canonical_line(other.as_bytes()), None, "{other}");
        }
        assert_eq!(canonical_line(b"{\"id\":\"a\",\"text\":\"\xff\"}"), None);
        let long = format!("{{\"id\":\"{}\",\"text\":\"b\"}}", "i".repeat(ID_CAP_BYTES + 1));
        assert_eq!(canonical_line(long.as_bytes()), None);
    }

    /// Whatever is seen as plain is what the parser makes of it, strictly and otherwise: over many lines with a few bytes changed.
    #[test]
    fn what_is_plain_is_what_the_parser_finds() {
        let pieces =
            ["\\u00e9", "\\n", "\\\\", "\\\"", "é", "天", "a", " ", "\\ud83d\\ude00", "/", "\\u000", "\"", "\\", "}"];
        let set = SourceSet { root: "x".into(), format: SourceFormat::Jsonl, files: vec![], len_bytes: 0 };
        let fields = Fields::default();
        let mut state = 7u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut n_plain = 0;
        for _ in 0..20_000 {
            let word = |next: &mut dyn FnMut(usize) -> usize| {
                (0..next(6)).map(|_| pieces[next(pieces.len())]).collect::<String>()
            };
            let (id, text) = (word(&mut next), word(&mut next));
            let mut line = format!("{{\"id\":\"{id}\",\"text\":\"{text}\"}}").into_bytes();
            if next(3) == 0 {
                let at = next(line.len());
                line[at] = next(256) as u8;
            }
            let Some((id, found)) = canonical_line(&line) else { continue };
            n_plain += 1;
            assert_eq!(found.as_bytes(), line);
            for strict in [true, false] {
                let record =
                    Ingest { set: &set, fields: &fields, strict }.of_line(Path::new("x"), 1, &line).unwrap().unwrap();
                assert_eq!((&*record.id, record.line.as_bytes()), (id, &*line), "{found}");
            }
        }
        assert!(n_plain > 400, "{n_plain}");
    }
}
