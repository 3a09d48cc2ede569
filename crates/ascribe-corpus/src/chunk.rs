//! Cutting a run of records into windows of equal length.

use ascribe_core::{RecordId, RecordSpan};

use crate::tokenizer::{END_OF_TEXT_ID, Token};

/// A window: tokens and where they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Exactly `seq_len` tokens.
    pub tokens: Vec<u32>,
    /// Spans in token order; the end-of-text token belongs to the record before it.
    pub spans: Vec<RecordSpan>,
}

/// Joins tokenised records, each closed by the end-of-text token, and cuts the stream every `seq_len` tokens.
///
/// A rest shorter than `seq_len` is left out (less than one window per call). Windows never overlap.
pub fn windows<'r>(records: impl Iterator<Item = (RecordId, &'r [Token])>, seq_len: usize) -> Vec<Window> {
    let mut done = Vec::new();
    let mut open = Window { tokens: Vec::with_capacity(seq_len), spans: Vec::new() };
    for (record, tokens) in records {
        let end = tokens.last().map_or(0, |t| t.byte_end);
        let closing = Token { id: END_OF_TEXT_ID, byte_start: end, byte_end: end };
        for &token in tokens.iter().chain(std::iter::once(&closing)) {
            push(&mut open, record, token);
            if open.tokens.len() == seq_len {
                let next = Window { tokens: Vec::with_capacity(seq_len), spans: Vec::new() };
                done.push(std::mem::replace(&mut open, next));
            }
        }
    }
    done
}

fn push(window: &mut Window, record: RecordId, token: Token) {
    let at = window.tokens.len() as u16;
    window.tokens.push(token.id);
    match window.spans.last_mut() {
        Some(span) if span.record == record => {
            span.byte_end = token.byte_end;
            span.token_end = at + 1;
        }
        _ => window.spans.push(RecordSpan {
            record,
            byte_start: token.byte_start,
            byte_end: token.byte_end,
            token_start: at,
            token_end: at + 1,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, byte_start: u32) -> Token {
        Token { id, byte_start, byte_end: byte_start + 2 }
    }

    #[test]
    fn windows_tile_the_stream_and_spans_tile_the_windows() {
        let first: Vec<Token> = (0..5).map(|i| token(10 + i, 2 * i)).collect();
        let second: Vec<Token> = (0..4).map(|i| token(20 + i, 2 * i)).collect();
        let ids = [RecordId { dataset: 3, row: 7 }, RecordId { dataset: 3, row: 9 }];
        let got = windows([(ids[0], first.as_slice()), (ids[1], second.as_slice())].into_iter(), 4);
        // Stream: 10 11 12 13 | 14 0 20 21 | 22 23 0 (rest, dropped)
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].tokens, [10, 11, 12, 13]);
        assert_eq!(got[1].tokens, [14, 0, 20, 21]);
        let span = |row: usize, b: (u32, u32), t: (u16, u16)| RecordSpan {
            record: ids[row],
            byte_start: b.0,
            byte_end: b.1,
            token_start: t.0,
            token_end: t.1,
        };
        assert_eq!(got[0].spans, [span(0, (0, 8), (0, 4))]);
        assert_eq!(got[1].spans, [span(0, (8, 10), (0, 2)), span(1, (0, 4), (2, 4))]);
    }
}
