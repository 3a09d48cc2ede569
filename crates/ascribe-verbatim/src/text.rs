//! The text of one shard: tokens of its records, each record closed by a separator, and the order of its suffixes.
//!
//! A token is kept as its id plus one, 0 is the separator: it sorts before every token, and no query has it. Suffixes are
//! sorted by libsais (Apache-2.0, induced sorting: linear time) through its Rust binding. The order is unique, so the bytes
//! depend on the tokens alone.

use libsais::SuffixArrayConstruction;

use crate::error::VerbatimError;

/// Closes every record.
pub const SEPARATOR: u32 = 0;
/// Largest vocabulary of two-byte tokens: ids plus one must fit.
const NARROW_VOCAB_MAX: u32 = u16::MAX as u32;

/// True if tokens of this vocabulary take two bytes, not four.
pub fn is_narrow(vocab_size: u32) -> bool {
    vocab_size <= NARROW_VOCAB_MAX
}

/// What a token is kept as.
pub fn symbol(token: u32) -> u32 {
    token + 1
}

/// Tokens under way to a shard.
#[derive(Debug)]
pub enum Text {
    /// Two bytes a token.
    Narrow(Vec<u16>),
    /// Four; signed because the sorting library counts that way.
    Wide(Vec<i32>),
}

impl Text {
    /// An empty text.
    pub fn new(vocab_size: u32) -> Self {
        if is_narrow(vocab_size) { Self::Narrow(Vec::new()) } else { Self::Wide(Vec::new()) }
    }

    /// Tokens and separators.
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(text) => text.len(),
            Self::Wide(text) => text.len(),
        }
    }

    /// Adds a record; the caller has checked that its tokens are below the vocabulary's size.
    pub fn push(&mut self, tokens: &[u32]) {
        let symbols = tokens.iter().map(|&token| symbol(token)).chain(std::iter::once(SEPARATOR));
        match self {
            Self::Narrow(text) => text.extend(symbols.map(|s| s as u16)),
            Self::Wide(text) => text.extend(symbols.map(|s| s as i32)),
        }
    }

    /// How often each symbol stands here, `[vocab_size + 1]`.
    pub fn counts(&self, vocab_size: u32) -> Vec<u32> {
        let mut counts = vec![0; vocab_size as usize + 1];
        match self {
            Self::Narrow(text) => text.iter().for_each(|&s| counts[s as usize] += 1),
            Self::Wide(text) => text.iter().for_each(|&s| counts[s as usize] += 1),
        }
        counts
    }

    /// Start positions of all suffixes in their order.
    ///
    /// Time and memory (one `i32` each, plus the alphabet) linear in the length.
    ///
    /// # Errors
    /// [`VerbatimError::Sort`] when memory is out.
    pub fn sorted_suffixes(&mut self) -> Result<Vec<i32>, VerbatimError> {
        let tokens = self.len();
        let failed = |error: libsais::LibsaisError| VerbatimError::Sort { tokens, why: format!("{error:?}") };
        match self {
            Self::Narrow(text) => {
                let sorted = SuffixArrayConstruction::for_text(text).in_owned_buffer32().single_threaded().run();
                Ok(sorted.map_err(failed)?.into_vec())
            }
            // The library works in the text and leaves it as it was.
            Self::Wide(text) => {
                let sorted = SuffixArrayConstruction::for_text_mut(text).in_owned_buffer32().single_threaded().run();
                Ok(sorted.map_err(failed)?.into_vec())
            }
        }
    }

    /// The bytes of the symbols, little endian.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Narrow(text) => bytemuck::cast_slice(text),
            Self::Wide(text) => bytemuck::cast_slice(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;

    fn symbols(text: &Text) -> Vec<u32> {
        match text {
            Text::Narrow(text) => text.iter().map(|&s| u32::from(s)).collect(),
            Text::Wide(text) => text.iter().map(|&s| s as u32).collect(),
        }
    }

    #[test]
    fn suffixes_are_those_of_sorting_them() {
        let mut stream = Stream::new(11, "verbatim-text");
        for vocab_size in [3, 300, 65_535, 65_536, 200_000] {
            for n_records in [0, 1, 7, 40] {
                let mut text = Text::new(vocab_size);
                for _ in 0..n_records {
                    let len = stream.below(30);
                    // Few different ones, from the top of the vocabulary: many repeats.
                    let tokens: Vec<u32> = (0..len).map(|_| vocab_size - 1 - stream.below(3)).collect();
                    text.push(&tokens);
                }
                let plain = symbols(&text);
                let sorted = text.sorted_suffixes().unwrap();
                assert_eq!(symbols(&text), plain, "the text came back changed");
                let mut expected: Vec<i32> = (0..plain.len() as i32).collect();
                expected.sort_by_key(|&at| &plain[at as usize..]);
                assert_eq!(sorted, expected, "{vocab_size} tokens, {n_records} records");
                let counts = text.counts(vocab_size);
                assert_eq!(counts.iter().map(|&n| n as usize).sum::<usize>(), plain.len());
                assert_eq!(counts[0], n_records);
                assert_eq!(text.bytes().len(), plain.len() * if is_narrow(vocab_size) { 2 } else { 4 });
            }
        }
    }
}
