//! A small scanner of Rust text: what is code and what is comment, which words stand where, how long functions are.
//!
//! It is no parser. It knows strings (escaped, raw, byte, C), characters against lifetimes, nested comments and
//! brackets, which is enough to count lines and to find a word without being fooled by a string that contains it.

use std::ops::RangeInclusive;

/// A Rust file taken apart.
#[derive(Debug)]
pub struct Scan {
    /// The text with comments and the insides of literals blanked out; same length, same lines.
    code: String,
    /// `(line, text)` of each comment line, from 1.
    pub comments: Vec<(usize, String)>,
}

/// A word or a single mark of the code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token<'a> {
    /// The word (letters, digits, underscores) or one mark.
    pub text: &'a str,
    /// Line, from 1.
    pub line: usize,
}

/// A function with a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of `fn`.
    pub line: usize,
    /// Lines from `fn` to the closing brace, both counted.
    pub n_lines: usize,
}

impl Scan {
    /// Takes `text` apart.
    pub fn new(text: &str) -> Self {
        let mut masker =
            Masker { bytes: text.as_bytes(), at: 0, out: Vec::with_capacity(text.len()), comments: vec![] };
        masker.run();
        let comments = comment_lines(text, &masker.comments);
        // Only whole characters are blanked, byte by byte, with ASCII: what is left is UTF-8.
        let code = String::from_utf8_lossy(&masker.out).into_owned();
        Self { code, comments }
    }

    /// Words and marks of the code, in order.
    pub fn tokens(&self) -> Vec<Token<'_>> {
        let mut tokens = Vec::new();
        for (idx, line) in self.code.lines().enumerate() {
            let mut rest = line;
            while let Some(first) = rest.chars().next() {
                let is_word = |c: char| c.is_alphanumeric() || c == '_';
                let len =
                    if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
                let (text, tail) = rest.split_at(len);
                if !first.is_whitespace() {
                    tokens.push(Token { text, line: idx + 1 });
                }
                rest = tail;
            }
        }
        tokens
    }

    /// Functions with a body, in the order of their `fn`; an inner function counts for itself and for the outer one.
    pub fn functions(&self) -> Vec<Function> {
        let tokens = self.tokens();
        let mut functions = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            // `fn(u32) -> u32` is a type: its next token is a parenthesis, not a name.
            let Some(name) = tokens.get(i + 1).filter(|_| token.text == "fn") else { continue };
            let name_idx = if name.text == "$" { i + 2 } else { i + 1 };
            let Some(name) = tokens.get(name_idx).filter(|name| is_name(name.text)) else { continue };
            if let Some(end) = body_end(&tokens, name_idx + 1) {
                functions.push(Function {
                    name: name.text.to_owned(),
                    line: token.line,
                    n_lines: end - token.line + 1,
                });
            }
        }
        functions
    }

    /// Line ranges of items under `#[cfg(test)]` or `#[cfg(all(test, …))]`.
    pub fn test_ranges(&self) -> Vec<RangeInclusive<usize>> {
        let tokens = self.tokens();
        let words: Vec<&str> = tokens.iter().map(|token| token.text).collect();
        let mut ranges = Vec::new();
        for i in 0..words.len() {
            let head = &words[i..];
            if head.starts_with(&["#", "[", "cfg", "(", "test", ")"])
                || head.starts_with(&["#", "[", "cfg", "(", "all", "(", "test", ","])
            {
                // The item's body is the first brace after the attribute; a `;` before it means there is none here.
                if let Some(end) = body_end(&tokens, i + 1) {
                    ranges.push(tokens[i].line..=end);
                }
            }
        }
        ranges
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Line of the brace that closes the first body after `from`, or nothing if a `;` ends the item first.
fn body_end(tokens: &[Token<'_>], from: usize) -> Option<usize> {
    // Brackets and parentheses of the signature may hold braces (`[u8; { N }]`) and semicolons (`[u8; 4]`).
    let mut depth = 0usize;
    let mut braces = 0usize;
    for token in &tokens[from..] {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            ";" if depth == 0 && braces == 0 => return None,
            "{" if depth == 0 || braces > 0 => braces += 1,
            "}" if braces > 0 => {
                braces -= 1;
                if braces == 0 {
                    return Some(token.line);
                }
            }
            _ => {}
        }
        // Inside the body only braces matter: an unbalanced parenthesis cannot compile.
        if braces > 0 {
            depth = 0;
        }
    }
    None
}

/// The lines of the comment byte ranges.
fn comment_lines(text: &str, ranges: &[(usize, usize)]) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let (mut line, mut counted_to) = (1, 0);
    for &(start, end) in ranges {
        line += text[counted_to..start].matches('\n').count();
        counted_to = start;
        for (offset, piece) in text[start..end].lines().enumerate() {
            lines.push((line + offset, piece.to_owned()));
        }
    }
    lines
}

struct Masker<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
    comments: Vec<(usize, usize)>,
}

impl Masker<'_> {
    fn run(&mut self) {
        while self.at < self.bytes.len() {
            let start = self.at;
            match self.bytes[self.at] {
                b'/' if self.peek(1) == Some(b'/') => self.line_comment(),
                b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
                b'"' => self.blank_to(self.string_end(self.at)),
                b'\'' => self.character_or_lifetime(),
                b'r' if !self.follows_word() => match self.raw_string_end() {
                    Some(end) => self.blank_to(end),
                    None => self.keep(1),
                },
                _ => self.keep(1),
            }
            debug_assert!(self.at > start, "the scanner must move");
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    /// True when the byte before belongs to a longer word than a literal's `b` or `c` prefix.
    fn follows_word(&self) -> bool {
        let is_word = |idx: usize| self.bytes.get(idx).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let Some(before) = self.at.checked_sub(1).filter(|&idx| is_word(idx)) else { return false };
        let is_prefix = matches!(self.bytes[before], b'b' | b'c') && !before.checked_sub(1).is_some_and(is_word);
        !is_prefix
    }

    fn keep(&mut self, n: usize) {
        self.out.extend_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
    }

    fn blank_to(&mut self, end: usize) {
        let end = end.min(self.bytes.len());
        self.out.extend(self.bytes[self.at..end].iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
        self.at = end;
    }

    fn line_comment(&mut self) {
        let len = self.bytes[self.at..].iter().position(|&b| b == b'\n').unwrap_or(self.bytes.len() - self.at);
        self.comments.push((self.at, self.at + len));
        self.blank_to(self.at + len);
    }

    fn block_comment(&mut self) {
        let (mut depth, mut end) = (0usize, self.at);
        while end < self.bytes.len() {
            match &self.bytes[end..] {
                [b'/', b'*', ..] => (depth, end) = (depth + 1, end + 2),
                [b'*', b'/', ..] => {
                    (depth, end) = (depth - 1, end + 2);
                    if depth == 0 {
                        break;
                    }
                }
                _ => end += 1,
            }
        }
        self.comments.push((self.at, end));
        self.blank_to(end);
    }

    /// One past the quote that closes the string (or character) opened at `open`.
    fn string_end(&self, open: usize) -> usize {
        let quote = self.bytes[open];
        let mut end = open + 1;
        while end < self.bytes.len() {
            match self.bytes[end] {
                b'\\' => end += 2,
                b if b == quote => return end + 1,
                _ => end += 1,
            }
        }
        self.bytes.len()
    }

    /// One past the raw string that starts here, if one does (`r#name` is a word, not a string).
    fn raw_string_end(&self) -> Option<usize> {
        let n_hashes = self.bytes[self.at + 1..].iter().take_while(|&&b| b == b'#').count();
        let open = self.at + 1 + n_hashes;
        if self.bytes.get(open) != Some(&b'"') {
            return None;
        }
        let mut end = open + 1;
        while end < self.bytes.len() {
            let hashes = self.bytes[end + 1..].iter().take(n_hashes).take_while(|&&b| b == b'#').count();
            if self.bytes[end] == b'"' && hashes == n_hashes {
                return Some(end + 1 + n_hashes);
            }
            end += 1;
        }
        Some(self.bytes.len())
    }

    /// `'x'`, `'\n'`, `'船'` are characters; `'a` without a closing quote is a lifetime or a label.
    fn character_or_lifetime(&mut self) {
        let len = match self.peek(1) {
            Some(b'\\') => return self.blank_to(self.string_end(self.at)),
            Some(first) => utf8_len(first),
            None => return self.keep(1),
        };
        if self.peek(1 + len) == Some(b'\'') {
            self.blank_to(self.at + len + 2);
        } else {
            self.keep(1);
        }
    }
}

const fn utf8_len(first: u8) -> usize {
    match first {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        Scan::new(text).tokens().iter().map(|token| token.text.to_owned()).collect()
    }

    fn lengths(text: &str) -> Vec<(String, usize, usize)> {
        Scan::new(text).functions().into_iter().map(|f| (f.name, f.line, f.n_lines)).collect()
    }

    #[test]
    fn strings_of_every_kind_are_blank() {
        assert_eq!(words(r#"a "in \" { fn b() {" c"#), ["a", "c"]);
        assert_eq!(words(r##"a r"\" b r#"x " { "# c"##), ["a", "b", "c"]);
        assert_eq!(words(r###"br##"fn "# x"## d"###), ["b", "d"]);
        assert_eq!(words(r#"b"fn" c"fn" e"#), ["b", "c", "e"]);
        assert_eq!(words("\"two\nlines {\" f"), ["f"]);
    }

    #[test]
    fn raw_words_are_not_raw_strings() {
        assert_eq!(words("r#fn + for\"x\" y"), ["r", "#", "fn", "+", "for", "y"]);
        assert_eq!(words("number\"{\""), ["number"]);
    }

    #[test]
    fn characters_and_lifetimes_differ() {
        assert_eq!(words("'{' '\\'' '\\u{7B}' b'}' '船' '\"' z"), ["b", "z"]);
        assert_eq!(words("<'a, 'b> 'outer: {"), ["<", "'", "a", ",", "'", "b", ">", "'", "outer", ":", "{"]);
        assert_eq!(words("&'a str, ' '"), ["&", "'", "a", "str", ","]);
    }

    #[test]
    fn comments_are_kept_aside_with_their_lines() {
        let scan = Scan::new("a // fn one() {\n/* two /* nested */\n } */ b\n/// three\nc");
        let comments: Vec<(usize, &str)> = scan.comments.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(comments, [(1, "// fn one() {"), (2, "/* two /* nested */"), (3, " } */"), (4, "/// three")]);
        assert_eq!(words("a // x\n/* y /* z */ */ b\nc"), ["a", "b", "c"]);
        assert_eq!(scan.tokens().last().map(|token| token.line), Some(5));
    }

    #[test]
    fn unfinished_text_ends_quietly() {
        for text in ["\"open", "r#\"open", "/* open", "'", "'\\", "fn", "fn f(", "fn f() {", "r", "\"\\"] {
            let scan = Scan::new(text);
            assert!(scan.functions().is_empty(), "{text}");
            assert!(scan.test_ranges().is_empty(), "{text}");
        }
    }

    #[test]
    fn function_lengths_count_from_fn_to_brace() {
        let text = "fn a() {}\n\npub const fn b(\n    x: [u8; { 2 + 1 }],\n) -> [u8; 3]\nwhere\n    [(); { 1 }]: Sized,\n{\n    let s = \"}\"; // }\n    x\n}\n";
        assert_eq!(lengths(text), [("a".to_owned(), 1, 1), ("b".to_owned(), 3, 9)]);
    }

    #[test]
    fn declarations_and_pointer_types_have_no_length() {
        let text = "trait T {\n    fn a(&self) -> [u8; 4];\n    fn b(&self) {\n    }\n}\ntype F = fn(u32) -> u32;\n";
        assert_eq!(lengths(text), [("b".to_owned(), 3, 2)]);
    }

    #[test]
    fn inner_functions_count_twice_and_macros_once() {
        let text =
            "fn outer() {\n    fn inner() {\n    }\n}\nmacro_rules! m { ($name:ident) => { fn $name() {\n} } }\n";
        assert_eq!(lengths(text), [("outer".to_owned(), 1, 4), ("inner".to_owned(), 2, 2), ("name".to_owned(), 5, 2)]);
    }

    #[test]
    fn test_items_are_found_with_their_extent() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(not(test))]\nfn c() {}\n#[cfg(test)]\nmod far;\n#[cfg(all(test, unix))]\nfn d() {\n}\n";
        assert_eq!(Scan::new(text).test_ranges(), [2..=5, 10..=12]);
    }
}
