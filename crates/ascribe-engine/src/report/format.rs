//! Numbers, texts and names as the page writes them.
//!
//! Here lives every rounding and every character that stands for a number, so that one figure looks the same wherever
//! it appears. Here never lives HTML: escaping is the template engine's work.

/// Stands for a negative sign; a hyphen is too short beside digits.
const MINUS: char = '\u{2212}';

/// A number with a fixed count of decimals, a true minus, and no negative zero.
pub(super) fn fixed(x: f64, decimals: usize) -> String {
    let digits = format!("{:.*}", decimals, x.abs());
    let is_zero = digits.bytes().all(|b| b == b'0' || b == b'.');
    if x < 0.0 && !is_zero { format!("{MINUS}{digits}") } else { digits }
}

/// A part of one as a percentage with one decimal: `43.2%`.
pub(super) fn percent(x: f64) -> String {
    format!("{}%", fixed(100.0 * x, 1))
}

/// A part of one as a whole percentage: `43%`.
pub(super) fn percent_whole(x: f64) -> String {
    format!("{}%", fixed(100.0 * x, 0))
}

/// An interval of parts of one: `31–53%`.
pub(super) fn percent_range(low: f64, high: f64) -> String {
    format!("{}\u{2013}{}%", fixed(100.0 * low, 1), fixed(100.0 * high, 1))
}

/// An interval of plain numbers. With a negative end the two are parted by a word, because `−0.1–0.2` misreads.
pub(super) fn range(low: f64, high: f64, decimals: usize) -> String {
    let (low, high) = (fixed(low, decimals), fixed(high, decimals));
    if low.starts_with(MINUS) || high.starts_with(MINUS) {
        format!("{low} to {high}")
    } else {
        format!("{low}\u{2013}{high}")
    }
}

/// A position along an axis, for `left`, `width` and `x`: clamped to the axis, at most two decimals, no trailing zeros.
pub(super) fn place(x: f64) -> String {
    let text = format!("{:.2}", 100.0 * x.clamp(0.0, 1.0));
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A whole number in groups of three: `9,216`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three significant digits: plain between 0.0001 and 10⁶, a power of ten outside.
pub(super) fn significant(x: f64) -> String {
    let size = x.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    // The exponent after rounding: 9.999 has to become 10.0, not 10.00.
    let scientific = format!("{size:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("the e format has an e");
    let exponent: i32 = exponent.parse().expect("the e format ends in an integer");
    let sign = if x < 0.0 { "\u{2212}" } else { "" };
    match exponent {
        -4..=2 => format!("{sign}{size:.*}", usize::try_from(2 - exponent).expect("2 − exponent is 0 to 6")),
        3..=5 => format!("{sign}{}", count(size.round() as u64)),
        _ => {
            let raised: String = exponent.to_string().chars().map(superscript).collect();
            format!("{sign}{mantissa}\u{a0}×\u{a0}10{raised}")
        }
    }
}

fn superscript(c: char) -> char {
    match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' => '⁰',
        '4'..='9' => char::from_u32('⁴' as u32 + (c as u32 - '4' as u32)).expect("⁴ to ⁹ are six in a row"),
        other => other,
    }
}

/// A duration: `0.42 s`, `12.3 s`, `3 min 05 s`.
pub(super) fn seconds(x: f64) -> String {
    if x < 9.995 {
        format!("{} s", fixed(x, 2))
    } else if x < 119.5 {
        format!("{} s", fixed(x, 1))
    } else {
        let whole = x.round() as u64;
        format!("{} min {:02} s", count(whole / 60), whole % 60)
    }
}

/// A text as it can stand on a page: line ends unified, characters that would be invisible or would reorder their
/// neighbours shown as what they are, cut to `cap` characters at most.
///
/// Records are strangers' bytes. A NUL, an escape or a right-to-left override is legal UTF-8 and survives HTML escaping,
/// and would still make the page show another text than the one that was trained on.
pub(super) fn clean(text: &str, cap: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut n_shown = 0;
    while let Some(c) = chars.next() {
        if n_shown == cap {
            out.push('…');
            break;
        }
        n_shown += 1;
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            // Control pictures: U+2400 + code, and ␡ for delete.
            '\0'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).expect("U+2400 to U+241F are assigned")),
            '\u{7f}' => out.push('\u{2421}'),
            '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}' => out.push_str(&format!("⟨U+{:04X}⟩", c as u32)),
            // Noncharacters are not allowed in HTML.
            '\u{fdd0}'..='\u{fdef}' => out.push('\u{fffd}'),
            _ if (c as u32) & 0xfffe == 0xfffe => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// A text without its blank lines, for a few lines of prose out of a longer text.
pub(super) fn without_blank_lines(text: &str) -> String {
    text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
}

/// One line out of a text: runs of white space become one space, cut to `cap` characters.
pub(super) fn one_line(text: &str, cap: usize) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    clean(&joined, cap)
}

/// The letter that names a dataset beside its colour: A to Z, then AA, AB, …
pub(super) fn letter(ordinal: usize) -> String {
    let last = char::from(b'A' + u8::try_from(ordinal % 26).expect("below 26"));
    match ordinal / 26 {
        0 => last.to_string(),
        more => format!("{}{last}", letter(more - 1)),
    }
}

/// The value for an HTML `lang` attribute, or `None` where the text is in no human language or the tag is malformed.
pub(super) fn lang(language: &str) -> Option<String> {
    let first = language.split('-').next().unwrap_or_default();
    let is_tag = (2..=3).contains(&first.len())
        && first.bytes().all(|b| b.is_ascii_lowercase())
        && language
            .split('-')
            .skip(1)
            .all(|part| (2..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric()));
    match first {
        _ if !is_tag => None,
        // `zh-en` is a dictionary from one to the other; Han glyphs are what the tag has to choose.
        "zh" if !language.starts_with("zh-Han") => Some("zh-Hans".to_owned()),
        _ => Some(language.to_owned()),
    }
}

/// Whether texts of this language are program code: `x-python`, `code-py`, `code`.
pub(super) fn is_code(language: &str) -> bool {
    language == "code" || language.starts_with("code-") || language.starts_with("x-")
}

/// A language in words for the dataset table; an unknown tag stands for itself.
pub(super) fn language_name(language: &str) -> String {
    let name = match language {
        "en" => "English",
        "zh" | "zh-Hans" => "Chinese",
        "zh-en" => "Chinese and English",
        "code-py" | "x-python" => "Python",
        "code-js" | "x-javascript" => "JavaScript",
        "code-rs" | "x-rust" => "Rust",
        "code" => "Code",
        other => return clean(other, 40),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_one_way() {
        assert_eq!(fixed(-0.0004, 3), "0.000");
        assert_eq!(fixed(-0.25, 2), "−0.25");
        assert_eq!(percent(0.43249), "43.2%");
        assert_eq!(percent_range(0.31, 0.5349), "31.0–53.5%");
        assert_eq!(range(0.1, 0.25, 2), "0.10–0.25");
        assert_eq!(range(-0.1, 0.25, 2), "−0.10 to 0.25");
        assert_eq!(place(0.5), "50%");
        assert_eq!(place(1.7), "100%");
        assert_eq!(place(0.123_456), "12.35%");
        assert_eq!(place(0.0), "0%");
        assert_eq!((count(0), count(999), count(1000)), ("0".into(), "999".into(), "1,000".into()));
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(seconds(0.421), "0.42 s");
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(seconds(185.2), "3 min 05 s");
    }

    #[test]
    fn significant_digits_survive_rounding_up() {
        let cases = [
            (0.0, "0"),
            (9.999, "10.0"),
            (0.012_34, "0.0123"),
            (-1.5, "−1.50"),
            (123_456.0, "123,456"),
            (999.6, "1,000"),
            (1.234e-7, "1.23\u{a0}×\u{a0}10⁻⁷"),
            (5e12, "5.00\u{a0}×\u{a0}10¹²"),
        ];
        for (x, want) in cases {
            assert_eq!(significant(x), want, "{x}");
        }
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(clean("a\0b\u{1b}[31m\r\nc\rd\u{7f}", 99), "a␀b␛[31m\nc␍d␡");
        assert_eq!(clean("x\u{202e}y\u{feff}", 99), "x⟨U+202E⟩y⟨U+FEFF⟩");
        assert_eq!(clean("\u{fffe}", 9), "\u{fffd}");
        assert_eq!(clean("论语论语", 2), "论语…");
        assert_eq!(clean("ab", 2), "ab");
        assert_eq!(without_blank_lines("a\n\n  \nb\r\n"), "a\nb");
        assert_eq!(one_line("  a\n\n b\tc ", 99), "a b c");
    }

    #[test]
    fn letters_go_on_after_z() {
        assert_eq!((letter(0), letter(25), letter(26), letter(52)), ("A".into(), "Z".into(), "AA".into(), "BA".into()));
    }

    #[test]
    fn languages_become_tags() {
        assert_eq!(lang("en").as_deref(), Some("en"));
        assert_eq!(lang("zh-en").as_deref(), Some("zh-Hans"));
        assert_eq!(lang("zh-Hant").as_deref(), Some("zh-Hant"));
        assert_eq!(lang("code-py"), None);
        assert_eq!(lang("\" onload=x"), None);
        assert_eq!(lang("x-python"), None);
        assert!(is_code("code-py") && is_code("x-python") && !is_code("codex"));
        assert_eq!(language_name("x-python"), "Python");
    }
}
