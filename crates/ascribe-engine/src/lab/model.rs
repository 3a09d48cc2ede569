//! A model folder and its tokenizer, checked against each other.

use std::path::{Path, PathBuf};

use ascribe_corpus::text_tokenizer::TOKENIZER_FILE;
use ascribe_corpus::{SpecialTokens, TextTokenizer};
use ascribe_models::Decoder;

use super::data::DataOptions;
use crate::error::EngineError;

/// A decoder with the folder it came from.
pub struct LabModel {
    /// The folder.
    pub dir: PathBuf,
    /// The weights.
    pub decoder: Decoder,
}

impl LabModel {
    /// Opens a Hugging Face model folder of any supported family (weights in one file, in shards, or a GGUF file), or a
    /// `.gguf` file itself.
    ///
    /// # Errors
    /// From the model: the file, tensor or field, what was expected and what was found.
    pub fn open(dir: &Path) -> Result<Self, EngineError> {
        if !dir.is_dir() && dir.extension().is_none_or(|extension| extension != "gguf") {
            return Err(EngineError::Content {
                path: dir.into(),
                expected: "a Hugging Face model folder (config.json, weights, tokenizer.json)".into(),
                found: if dir.exists() { "a file".into() } else { "nothing".into() },
            });
        }
        Ok(Self { dir: dir.into(), decoder: Decoder::open(dir)? })
    }

    /// Loads the folder's tokenizer and checks that the model has all its ids.
    ///
    /// # Errors
    /// No tokenizer, a broken one, or one of another model.
    pub fn tokenizer(&self, special_tokens: SpecialTokens) -> Result<TextTokenizer, EngineError> {
        let tokenizer = TextTokenizer::load(&self.dir, special_tokens)?;
        tokenizer.check_fits(&self.dir.join(TOKENIZER_FILE), self.decoder.config().vocab_size)?;
        Ok(tokenizer)
    }

    /// The options with the model's context in the place of a `max_len` of 0.
    ///
    /// # Errors
    /// [`EngineError::Setting`] if windows would be too long for the model, or too short to predict anything.
    pub fn options(&self, options: &DataOptions) -> Result<DataOptions, EngineError> {
        let max_len = if options.max_len == 0 { self.context() } else { options.max_len };
        if !(2..=self.context()).contains(&max_len) {
            let (expected, found) = (format!("2 to the model's context {}", self.context()), max_len.to_string());
            return Err(EngineError::Setting { setting: "--max-len", expected, found });
        }
        Ok(DataOptions { max_len, ..options.clone() })
    }

    /// Longest sequence of the model.
    pub fn context(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }
}
