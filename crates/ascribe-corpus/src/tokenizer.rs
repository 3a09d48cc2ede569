//! Byte-level BPE through the `tokenizers` crate: training, loading, encoding with byte offsets.
//!
//! Byte level means that every UTF-8 text has an encoding and an exact way back; there is no unknown token.

use std::path::Path;

use ascribe_core::Digest;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::error::CorpusError;

/// Ends every record; its id is always 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Id of [`END_OF_TEXT`].
pub const END_OF_TEXT_ID: u32 = 0;

/// A token with the bytes of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Id in the vocabulary.
    pub id: u32,
    /// First byte.
    pub byte_start: u32,
    /// One past the last byte. Tokens that split one character all carry the whole character's bytes.
    pub byte_end: u32,
}

/// A byte-level BPE tokenizer and the digest of its file.
#[derive(Clone)]
pub struct BpeTokenizer {
    inner: Tokenizer,
    json: String,
}

impl BpeTokenizer {
    /// Learns `vocab_size` tokens from `texts` (in that order; the result does not depend on threads).
    ///
    /// # Errors
    /// [`CorpusError::TrainTokenizer`] with the library's words.
    pub fn train<'t>(texts: impl Iterator<Item = &'t str> + Send, vocab_size: usize) -> Result<Self, CorpusError> {
        let why = |e: tokenizers::Error| CorpusError::TrainTokenizer(e.to_string());
        let mut trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build();
        let mut learner = TokenizerBuilder::<_, tokenizers::NormalizerWrapper, _, ByteLevel, _>::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_post_processor(None::<ByteLevel>)
            .with_decoder(Some(ByteLevel::default()))
            .build()
            .map_err(why)?;
        learner.train(&mut trainer, texts).map_err(why)?;
        let json = learner.to_string(true).map_err(why)?;
        Self::from_json(json).map_err(CorpusError::TrainTokenizer)
    }

    /// Loads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// [`CorpusError::Io`] or [`CorpusError::Tokenizer`] naming the file.
    pub fn load(path: &Path) -> Result<Self, CorpusError> {
        let json = std::fs::read_to_string(path).map_err(|source| CorpusError::Io { path: path.into(), source })?;
        Self::from_json(json).map_err(|why| CorpusError::Tokenizer { path: path.into(), why })
    }

    fn from_json(json: String) -> Result<Self, String> {
        let inner: Tokenizer = json.parse().map_err(|e: tokenizers::Error| e.to_string())?;
        Ok(Self { inner, json })
    }

    /// The tokenizer file's text.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// SHA-256 of the tokenizer file.
    pub fn digest(&self) -> Digest {
        Digest::of(self.json.as_bytes())
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Encodes one text, without special tokens.
    ///
    /// # Errors
    /// The library's words.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>, String> {
        let encoding = self.inner.encode(text, false).map_err(|e| e.to_string())?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, end))| Token { id, byte_start: start as u32, byte_end: end as u32 }).collect())
    }

    /// Bytes of text that `ids` stand for; the end-of-text token stands for none.
    ///
    /// A byte-level token is written with one character per byte, so its length is its number of characters.
    pub fn len_bytes(&self, ids: &[u32]) -> u64 {
        let len = |&id: &u32| match id {
            END_OF_TEXT_ID => 0,
            _ => self.inner.id_to_token(id).map_or(0, |t| t.chars().count() as u64),
        };
        ids.iter().map(len).sum()
    }

    /// Decodes ids to text; incomplete characters at the ends become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        // Unknown ids cannot come from `encode`; the library's answer to them is an empty text.
        self.inner.decode(ids, true).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 4] = [
        "in the beginning was the word",
        "the word was with the words",
        "天地玄黄，宇宙洪荒。天地",
        "def f(x):\n    return x\n",
    ];

    fn small() -> BpeTokenizer {
        BpeTokenizer::train(TEXTS.into_iter(), 300).unwrap()
    }

    #[test]
    fn every_text_comes_back_and_offsets_cover_it() {
        let tokenizer = small();
        for text in TEXTS.into_iter().chain(["naïve 🙂 ünseen\t\u{0}"]) {
            let tokens = tokenizer.encode(text).unwrap();
            let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
            assert_eq!(tokenizer.decode(&ids), text);
            assert_eq!(tokenizer.len_bytes(&ids), text.len() as u64);
            assert_eq!(tokens.first().unwrap().byte_start, 0);
            assert_eq!(tokens.last().unwrap().byte_end as usize, text.len());
            for t in &tokens {
                assert!(text.get(t.byte_start as usize..t.byte_end as usize).is_some(), "offsets fall on characters");
            }
        }
    }

    #[test]
    fn training_twice_gives_the_same_bytes_and_the_end_token_is_first() {
        let (a, b) = (small(), small());
        assert_eq!(a.json(), b.json());
        assert_eq!(a.inner.token_to_id(END_OF_TEXT), Some(END_OF_TEXT_ID));
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, "{\"version\":").unwrap();
        let error = BpeTokenizer::load(&path).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}
