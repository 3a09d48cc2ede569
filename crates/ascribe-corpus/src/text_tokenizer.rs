//! The tokenizer of somebody else's model: any Hugging Face `tokenizer.json` (byte-level BPE, sentencepiece BPE, Unigram,
//! WordPiece), used as `AutoTokenizer(text)` uses it.
//!
//! The tokenizer that the registered datasets are trained with lives in `tokenizer`; cutting into windows lives with the
//! caller, who knows the model's context.

use std::path::{Path, PathBuf};

use ascribe_core::Digest;
use tokenizers::Tokenizer;

use crate::error::CorpusError;
use crate::tokenizer::Token;

/// Name of the file in a Hugging Face model folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Largest file that is read: the largest vocabularies in use (256,000 entries with merges) take about 35 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Vocabulary files without which a `tokenizer.json` can be made, and who makes it.
const OTHER_FORMATS: [&str; 5] =
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json"];

/// What the post-processor of the file adds around a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SpecialTokens {
    /// Whatever the file says (`<s>` in front for Llama 2 and Gemma, `[CLS] … [SEP]` for BERT, nothing for GPT-2): what
    /// `AutoTokenizer(text)` gives.
    #[default]
    AsFile,
    /// None.
    None,
}

/// A tokenizer of any kind that a `tokenizer.json` can hold.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    json: String,
    special_tokens: SpecialTokens,
}

impl TextTokenizer {
    /// Loads `tokenizer.json` of the model folder `dir`.
    ///
    /// # Errors
    /// As [`TextTokenizer::load_file`]; a folder without the file is told what to do.
    pub fn load(dir: &Path, special_tokens: SpecialTokens) -> Result<Self, CorpusError> {
        let path = dir.join(TOKENIZER_FILE);
        if !path.exists() {
            let found = OTHER_FORMATS.iter().find(|name| dir.join(name).exists());
            let found = found.map_or_else(|| "no tokenizer at all".to_owned(), |name| format!("only {name}"));
            return Err(CorpusError::NoTokenizer { path, found });
        }
        Self::load_file(&path, special_tokens)
    }

    /// Loads a `tokenizer.json`. Truncation and padding that the file asks for are left out, as `AutoTokenizer(text)`
    /// leaves them out: every token of a text counts.
    ///
    /// # Errors
    /// [`CorpusError::Io`] or [`CorpusError::Tokenizer`] naming the file.
    pub fn load_file(path: &Path, special_tokens: SpecialTokens) -> Result<Self, CorpusError> {
        let io = |source| CorpusError::Io { path: path.into(), source };
        let broken = |why: String| CorpusError::Tokenizer { path: path.into(), why };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_FILE_BYTES {
            return Err(broken(format!("expected at most {MAX_FILE_BYTES} bytes, found {size}")));
        }
        let json = std::fs::read_to_string(path).map_err(io)?;
        Self::from_json(json, special_tokens).map_err(broken)
    }

    /// A tokenizer out of the text of its file.
    ///
    /// # Errors
    /// The library's words.
    pub fn from_json(json: String, special_tokens: SpecialTokens) -> Result<Self, String> {
        let mut inner: Tokenizer = json.parse().map_err(|e: tokenizers::Error| e.to_string())?;
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        Ok(Self { inner, json, special_tokens })
    }

    /// The file's text.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> Digest {
        Digest::of(self.json.as_bytes())
    }

    /// One more than the largest id of the vocabulary proper, without added tokens.
    pub fn id_bound(&self) -> u64 {
        self.inner.get_vocab(false).values().max().map_or(0, |&id| u64::from(id) + 1)
    }

    /// One more than the largest id that a text can become, added tokens included.
    pub fn id_bound_with_added(&self) -> u64 {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| u64::from(id) + 1)
    }

    /// Encodes a text. Special tokens stand for no bytes (0 to 0).
    ///
    /// # Errors
    /// The library's words.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>, String> {
        if u32::try_from(text.len()).is_err() {
            return Err(format!("expected fewer than 2^32 bytes of text, found {}", text.len()));
        }
        let special = self.special_tokens == SpecialTokens::AsFile;
        let encoding = self.inner.encode(text, special).map_err(|e| e.to_string())?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, end))| Token { id, byte_start: start as u32, byte_end: end as u32 }).collect())
    }

    /// The token of an id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Refuses a tokenizer that can give ids which the model does not have; `path` is where it was loaded from.
    ///
    /// The other way round is usual: vocabularies are rounded up to a multiple, and the last rows are never used. Added
    /// tokens may lie beyond too (Gemma 3's `<image_soft_token>` does in its text models): they are refused when a text
    /// uses one.
    ///
    /// # Errors
    /// [`CorpusError::VocabularyTooLarge`] naming the first token that does not fit.
    pub fn check_fits(&self, path: &Path, vocab_size: usize) -> Result<(), CorpusError> {
        if self.id_bound() <= vocab_size as u64 {
            return Ok(());
        }
        let vocabulary = self.inner.get_vocab(false);
        let beyond = vocabulary.iter().filter(|(_, id)| **id as usize >= vocab_size).min_by_key(|(_, id)| **id);
        let (token, id) = beyond.map_or((String::new(), 0), |(token, id)| (token.clone(), *id));
        Err(CorpusError::VocabularyTooLarge { path: PathBuf::from(path), vocab_size, token, id })
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::AddedToken;

    use super::*;

    /// Four kinds by hand, each with three or four entries; the expected ids follow from the definitions of the kinds.
    fn load(model: &str, rest: &str) -> TextTokenizer {
        let json = format!("{{\"version\":\"1.0\",\"added_tokens\":[],{rest}\"model\":{model}}}");
        TextTokenizer::from_json(json, SpecialTokens::AsFile).unwrap()
    }

    fn ids(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text).unwrap().iter().map(|t| t.id).collect()
    }

    #[test]
    fn sentencepiece_bpe_falls_back_to_bytes() {
        // As Llama 2's: a space is ▁, unknown characters are bytes.
        let model = r#"{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,
            "vocab":{"<unk>":0,"<0xC3>":1,"<0xA9>":2,"▁":3,"a":4,"b":5,"▁a":6},"merges":["▁ a"]}"#;
        let normalizer = r#""normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
            {"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"#;
        let tokenizer = load(model, normalizer);
        assert_eq!(ids(&tokenizer, "ab aé"), [6, 5, 6, 1, 2]);
        // Offsets are those of the given text, not of the normalised one.
        let tokens = tokenizer.encode("ab").unwrap();
        assert_eq!((tokens[0].byte_end, tokens[1].byte_start, tokens[1].byte_end), (1, 1, 2));
    }

    #[test]
    fn unigram_takes_the_likeliest_split() {
        let model = r#"{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.0],["b",-1.0],["ab",-1.5]]}"#;
        let tokenizer = load(model, "");
        // ab costs 1.5, a and b together 2.
        assert_eq!(ids(&tokenizer, "aba"), [3, 1]);
    }

    const WORD_PIECE: &str = r###"{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
        "max_input_chars_per_word":100,"vocab":{"[UNK]":0,"[CLS]":1,"[SEP]":2,"play":3,"##ing":4}}"###;
    const BERT_REST: &str = r#""pre_tokenizer":{"type":"BertPreTokenizer"},
        "truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,
        "pad_token":"[UNK]"},
        "post_processor":{"type":"BertProcessing","sep":["[SEP]",2],"cls":["[CLS]",1]},"#;

    #[test]
    fn word_pieces_with_special_tokens_untruncated_and_unpadded() {
        let tokenizer = load(WORD_PIECE, BERT_REST);
        assert_eq!(ids(&tokenizer, "playing play x"), [1, 3, 4, 3, 0, 2]);
        let plain = TextTokenizer { special_tokens: SpecialTokens::None, ..tokenizer };
        assert_eq!(ids(&plain, "playing"), [3, 4]);
    }

    #[test]
    fn a_vocabulary_that_does_not_fit_is_named() {
        let tokenizer = load(WORD_PIECE, "");
        assert_eq!(tokenizer.id_bound(), 5);
        tokenizer.check_fits(Path::new("tokenizer.json"), 5).unwrap();
        tokenizer.check_fits(Path::new("tokenizer.json"), 64).unwrap();
        let image = AddedToken::from("<image>", true);
        let mut added = tokenizer.clone();
        added.inner.add_special_tokens([image]).unwrap();
        added.check_fits(Path::new("tokenizer.json"), 5).unwrap();
        assert_eq!(ids(&added, "<image>"), [5]);
        assert_eq!((added.id_bound(), added.id_bound_with_added()), (5, 6));
        let message = tokenizer.check_fits(Path::new("m/tokenizer.json"), 3).unwrap_err().to_string();
        assert!(message.contains("m/tokenizer.json") && message.contains("`play` has id 3"), "{message}");
    }

    #[test]
    fn a_folder_without_the_file_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let message = || TextTokenizer::load(dir.path(), SpecialTokens::AsFile).err().unwrap().to_string();
        assert!(message().contains("no tokenizer at all"), "{}", message());
        std::fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
        assert!(message().contains("only tokenizer.model") && message().contains("save_pretrained"), "{}", message());
        std::fs::write(dir.path().join(TOKENIZER_FILE), "{\"version\":").unwrap();
        assert!(message().contains("not a usable tokenizer"), "{}", message());
    }
}
