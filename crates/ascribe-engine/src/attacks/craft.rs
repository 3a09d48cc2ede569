//! Texts that attackers register: copies with small changes, rewritten copies, noise, outliers. All from named random streams, so
//! that the same attack is the same bytes.

use ascribe_linalg::rng::Stream;

/// Words of English prose and what says the same: applied where they stand alone. Chosen by hand, without a model.
const SYNONYMS: [(&str, &str); 96] = [
    ("a number of", "several"),
    ("in order to", "to"),
    ("such as", "for instance"),
    ("for example", "say"),
    ("that is", "in other words"),
    ("as well as", "and also"),
    ("because", "since"),
    ("often", "frequently"),
    ("usually", "as a rule"),
    ("also", "too"),
    ("however", "yet"),
    ("although", "even if"),
    ("used", "employed"),
    ("use", "employ"),
    ("uses", "employs"),
    ("using", "by means of"),
    ("make", "produce"),
    ("makes", "produces"),
    ("made", "produced"),
    ("called", "known as"),
    ("very", "quite"),
    ("many", "numerous"),
    ("some", "certain"),
    ("large", "big"),
    ("small", "little"),
    ("begin", "start"),
    ("began", "started"),
    ("show", "display"),
    ("shows", "displays"),
    ("help", "assist"),
    ("get", "obtain"),
    ("gets", "obtains"),
    ("need", "require"),
    ("needs", "requires"),
    ("find", "discover"),
    ("found", "discovered"),
    ("allow", "permit"),
    ("allows", "permits"),
    ("allowed", "permitted"),
    ("kind", "sort"),
    ("type", "class"),
    ("part", "portion"),
    ("first", "initial"),
    ("last", "final"),
    ("important", "significant"),
    ("common", "widespread"),
    ("original", "earliest"),
    ("originally", "at first"),
    ("main", "principal"),
    ("different", "distinct"),
    ("other", "further"),
    ("another", "a further"),
    ("between", "among"),
    ("about", "concerning"),
    ("into", "in"),
    ("within", "inside"),
    ("when", "whenever"),
    ("which", "that"),
    ("where", "in which place"),
    ("person", "individual"),
    ("people", "persons"),
    ("program", "piece of software"),
    ("programs", "pieces of software"),
    ("computer", "machine"),
    ("computers", "machines"),
    ("user", "operator"),
    ("users", "operators"),
    ("system", "arrangement"),
    ("systems", "arrangements"),
    ("language", "notation"),
    ("word", "term"),
    ("words", "terms"),
    ("error", "mistake"),
    ("errors", "mistakes"),
    ("problem", "difficulty"),
    ("problems", "difficulties"),
    ("way", "manner"),
    ("ways", "manners"),
    ("method", "procedure"),
    ("methods", "procedures"),
    ("example", "instance"),
    ("code", "source"),
    ("version", "edition"),
    ("old", "aged"),
    ("new", "recent"),
    ("good", "fine"),
    ("bad", "poor"),
    ("fast", "quick"),
    ("slow", "sluggish"),
    ("always", "at all times"),
    ("never", "at no time"),
    ("must", "has to"),
    ("may", "might"),
    ("can", "is able to"),
    ("cannot", "is not able to"),
    ("only", "merely"),
];

/// The text with one word in ten damaged: two letters change places, or a character of a script without spaces is dropped.
pub fn near_copy(text: &str, stream: &mut Stream) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(char::is_whitespace) {
        let mut chars: Vec<char> = piece.chars().collect();
        // A long piece is a run of Chinese: one character in twenty goes.
        if chars.len() > 24 {
            let mut kept = Vec::with_capacity(chars.len());
            kept.extend(chars.iter().filter(|_| stream.below(20) != 0));
            chars = kept;
        } else if chars.len() > 3 && stream.below(10) == 0 {
            let at = 1 + stream.below(chars.len() as u32 - 3) as usize;
            chars.swap(at, at + 1);
        }
        out.extend(chars);
    }
    out
}

/// The text said in other words, by rules: sentences in another order, clauses turned round a semicolon or a comma, and about a hundred
/// words and turns replaced ([`SYNONYMS`]). Meaning is kept roughly, as a cheap rewriter would; names and numbers stay.
pub fn paraphrase(text: &str, stream: &mut Stream) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut sentences: Vec<String> = split_sentences(&flat);
    // A heading stays in front.
    if sentences.len() > 2 {
        stream.shuffle(&mut sentences[1..]);
    }
    let turned: Vec<String> = sentences.iter().map(|sentence| replace_words(&turn(sentence))).collect();
    turned.join(" ")
}

fn split_sentences(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut sentence = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        sentence.push(c);
        let ends = matches!(c, '。' | '；') || (matches!(c, '.' | '?' | '!') && chars.peek().is_none_or(|n| *n == ' '));
        if ends && sentence.chars().count() > 12 {
            out.push(std::mem::take(&mut sentence).trim().to_owned());
        }
    }
    if !sentence.trim().is_empty() {
        out.push(sentence.trim().to_owned());
    }
    out
}

/// Two clauses change places.
fn turn(sentence: &str) -> String {
    let body = sentence.trim_end_matches(['.', '。', ';', '；']);
    let end = &sentence[body.len()..];
    for cut in ["; ", ", ", "，"] {
        if let Some((a, b)) = body.split_once(cut).filter(|(a, b)| a.len() > 12 && b.len() > 12) {
            return format!("{b}{cut}{a}{end}");
        }
    }
    sentence.to_owned()
}

fn replace_words(sentence: &str) -> String {
    let mut out = format!(" {sentence} ");
    for (from, to) in SYNONYMS {
        // Both ends must be borders; punctuation counts as one.
        for (left, right) in [(" ", " "), (" ", ","), (" ", "."), ("(", " ")] {
            out = out.replace(&format!("{left}{from}{right}"), &format!("{left}{to}{right}"));
        }
    }
    out.trim().to_owned()
}

/// A record of words drawn at random from `words`.
pub fn noise(words: &[String], n_words: usize, stream: &mut Stream) -> String {
    let pick = |_| words[stream.below(words.len() as u32) as usize].as_str();
    (0..n_words).map(pick).collect::<Vec<_>>().join(" ")
}

/// A record that no text looks like, by one of six recipes: gradients of such texts are long.
pub fn outlier(recipe: usize, words: &[String], stream: &mut Stream) -> String {
    let char_of = |from: u32, n: u32, stream: &mut Stream| char::from_u32(from + stream.below(n)).unwrap_or('x');
    match recipe % 6 {
        0 => (0..400).map(|_| char_of(0x21, 94, stream)).collect(),
        1 => (0..150).map(|_| char_of(0x4E00, 5000, stream)).collect(),
        2 => (0..150).map(|_| char_of(0x0400, 255, stream)).collect(),
        3 => {
            let word = words[stream.below(words.len() as u32) as usize].clone();
            [word.as_str(); 90].join(" ")
        }
        4 => (0..120).map(|_| format!("{:x}", stream.next_u64() >> 40)).collect::<Vec<_>>().join(","),
        _ => (0..60).map(|_| noise(words, 1, stream).to_uppercase().chars().rev().collect::<String>()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "A program is used by many people, because it is fast. The first version was often slow; users \
                        found many errors in the code. It was called a toy.";

    #[test]
    fn the_same_stream_gives_the_same_text() {
        let of = |seed| near_copy(TEXT, &mut Stream::new(seed, "near"));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let changed = TEXT.split(' ').zip(of(1).split(' ')).filter(|(a, b)| a != b).count();
        assert!(changed > 0 && changed < 10, "{changed}");
    }

    /// Few four-word runs survive a paraphrase: it is another text.
    #[test]
    fn a_paraphrase_is_another_text() {
        let said = paraphrase(TEXT, &mut Stream::new(1, "said"));
        let runs = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
            words.windows(4).map(|w| w.join(" ")).collect::<std::collections::HashSet<_>>()
        };
        let (a, b) = (runs(TEXT), runs(&said));
        let shared = a.intersection(&b).count();
        assert!(shared * 4 < a.len(), "{shared} of {} runs in {said:?}", a.len());
        assert!(said.contains("employed") || said.contains("machines") || said.contains("numerous"), "{said}");
    }

    #[test]
    fn noise_and_outliers_are_texts() {
        let words = vec!["alpha".to_owned(), "beta".to_owned()];
        let mut stream = Stream::new(1, "noise");
        assert_eq!(noise(&words, 7, &mut stream).split(' ').count(), 7);
        assert!((0..6).all(|recipe| outlier(recipe, &words, &mut stream).len() > 100));
    }
}
