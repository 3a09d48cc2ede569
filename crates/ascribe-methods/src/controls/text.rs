//! Text to terms for BM25: words where words are separated, character pairs where they are not.

/// Cuts `text` into terms.
///
/// Runs of letters and digits are lower-cased words (`don't` gives `don`, `t`; `snake_case` gives two). Runs of CJK
/// characters give every pair of neighbours, a single one by itself: the usual stand-in for segmentation (Lucene's
/// `CJKBigramFilter`). Everything else separates. Digits beside letters stay in the word (`utf8`).
pub fn terms(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut cjk: Vec<char> = Vec::new();
    for c in text.chars() {
        if is_cjk(c) {
            flush_word(&mut word, &mut out);
            cjk.push(c);
        } else if c.is_alphanumeric() {
            flush_cjk(&mut cjk, &mut out);
            word.extend(c.to_lowercase());
        } else {
            flush_word(&mut word, &mut out);
            flush_cjk(&mut cjk, &mut out);
        }
    }
    flush_word(&mut word, &mut out);
    flush_cjk(&mut cjk, &mut out);
    out
}

/// Scripts written without spaces between words: Han (with extensions and compatibility forms), kana, bopomofo.
fn is_cjk(c: char) -> bool {
    matches!(u32::from(c),
        0x3005 | 0x3007 | 0x3041..=0x30FF | 0x3105..=0x312F | 0x31A0..=0x31BF | 0x31F0..=0x31FF
        | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x323AF)
}

fn flush_word(word: &mut String, out: &mut Vec<String>) {
    if !word.is_empty() {
        out.push(std::mem::take(word));
    }
}

fn flush_cjk(run: &mut Vec<char>, out: &mut Vec<String>) {
    match run.as_slice() {
        [] => {}
        [single] => out.push(single.to_string()),
        _ => out.extend(run.windows(2).map(|pair| pair.iter().collect::<String>())),
    }
    run.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(terms(text), expected, "{text:?}");
    }

    #[test]
    fn words_pairs_and_borders() {
        check("", &[]);
        check("  ,.;\n", &[]);
        check("The King's ENGLISH", &["the", "king", "s", "english"]);
        check("def read_file(x1): return utf8", &["def", "read", "file", "x1", "return", "utf8"]);
        check("中华人民", &["中华", "华人", "人民"]);
        check("法", &["法"]);
        check("第1条 合同", &["第", "1", "条", "合同"]);
        check("Python语言code", &["python", "语言", "code"]);
        check("Straße ÉCOLE", &["straße", "école"]);
        check("子曰:「學而」", &["子曰", "學而"]);
    }
}
