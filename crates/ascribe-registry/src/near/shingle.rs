//! Words and shingles.
//!
//! A word is a run of letters and digits, lower-cased; a character of a script that does not space its words (Chinese,
//! Japanese, Thai) is a word of its own. A shingle is [`SHINGLE_WORDS`] words in a row, kept as a 32-bit hash.

/// Words of a shingle. Four of running text are rarely shared by chance, and a copy with a word changed here and there still
/// has most of them.
pub const SHINGLE_WORDS: usize = 4;

/// A multiplier with well-spread bits (the golden ratio in 64).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The distinct shingles of a text, ascending. A text of fewer words than a shingle is one shingle.
pub(super) fn shingles(text: &str) -> Vec<u32> {
    let words = words(text);
    let mut shingles: Vec<u32> = if words.len() < SHINGLE_WORDS {
        if words.is_empty() { Vec::new() } else { vec![hash_of(&words)] }
    } else {
        words.windows(SHINGLE_WORDS).map(hash_of).collect()
    };
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

fn hash_of(words: &[u64]) -> u32 {
    let mixed = words.iter().fold(0u64, |hash, word| (hash.rotate_left(23) ^ word).wrapping_mul(MIX));
    (mixed >> 32) as u32
}

/// Where the hash of a word begins (FNV-1a), and what it is multiplied with.
const START: u64 = 0xcbf2_9ce4_8422_2325;
const STEP: u64 = 0x0100_0000_01b3;

/// What a byte of ASCII means: its lower-case form if it is part of a word, 0 if it ends one.
const ASCII: [u8; 128] = {
    let mut table = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        if (byte as u8).is_ascii_alphanumeric() {
            table[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// Hashes of the words (FNV-1a over their lower-cased bytes, then mixed).
fn words(text: &str) -> Vec<u64> {
    let mut words = Words { hashes: Vec::with_capacity(text.len() / 5), hash: START, within: false };
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte < 128 {
            match ASCII[usize::from(byte)] {
                0 => words.end(),
                lower => words.take(u64::from(lower)),
            }
            at += 1;
            continue;
        }
        let Some(c) = text[at..].chars().next() else { break };
        words.take_other(c);
        at += c.len_utf8();
    }
    words.end();
    words.hashes
}

/// Words as they are read.
struct Words {
    hashes: Vec<u64>,
    hash: u64,
    within: bool,
}

impl Words {
    fn take(&mut self, unit: u64) {
        self.hash = (self.hash ^ unit).wrapping_mul(STEP);
        self.within = true;
    }

    fn end(&mut self) {
        if self.within {
            self.hashes.push((self.hash ^ (self.hash >> 29)).wrapping_mul(MIX));
            (self.hash, self.within) = (START, false);
        }
    }

    /// A character beyond ASCII.
    fn take_other(&mut self, c: char) {
        if is_unspaced(c) {
            self.end();
            self.take(u64::from(c as u32));
            self.end();
        } else if c.is_alphanumeric() {
            c.to_lowercase().for_each(|lower| self.take(u64::from(lower as u32)));
        } else {
            self.end();
        }
    }
}

/// Scripts that do not put spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0e00}'..='\u{0eff}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// Numbers that stand in both of two ascending lists.
pub(super) fn n_shared(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        shared += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_punctuation_do_not_count() {
        assert_eq!(shingles("The cat -- sat, on the MAT."), shingles("the cat sat on the mat"));
        assert_eq!(shingles("the cat sat on the mat").len(), 3);
        assert_ne!(shingles("the cat sat on"), shingles("the cat sat off"));
        assert_eq!(shingles("Ünder Österreich ist es kühl"), shingles("ünder österreich ist es kühl"));
    }

    #[test]
    fn unspaced_scripts_are_cut_by_characters() {
        // Nine characters, six shingles of four; one character changed touches four of them.
        let (a, b) = (shingles("天地玄黄宇宙洪荒也"), shingles("天地玄黄宇宙洪荒哉"));
        assert_eq!((a.len(), n_shared(&a, &b)), (6, 5));
    }

    #[test]
    fn short_and_empty_texts() {
        assert_eq!(shingles("two words").len(), 1);
        assert!(shingles(" ... ").is_empty());
    }

    #[test]
    fn shared_numbers_are_counted() {
        assert_eq!(n_shared(&[1, 3, 5, 7], &[2, 3, 4, 7, 9]), 2);
        assert_eq!(n_shared(&[], &[1]), 0);
    }
}
