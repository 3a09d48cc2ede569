//! What can go wrong between records and examples.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The tokenizer file cannot be read, or does not hold a tokenizer.
    #[error("{path}: not a usable tokenizer: {why}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library said.
        why: String,
    },
    /// A model folder has no tokenizer that can be used.
    #[error(
        "{path}: expected a Hugging Face tokenizer file, found {found}; hint: write one with \
         AutoTokenizer.from_pretrained(...).save_pretrained(...), or give token ids instead of text",
        path = path.display()
    )]
    NoTokenizer {
        /// The file that should be there.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A tokenizer gives ids that the model does not have.
    #[error(
        "{path}: expected ids below the model's vocab_size {vocab_size}, found more: token `{token}` has id {id}; hint: the \
         tokenizer belongs to another model",
        path = path.display()
    )]
    VocabularyTooLarge {
        /// The tokenizer file.
        path: PathBuf,
        /// Rows of the model's embedding.
        vocab_size: usize,
        /// The first token that does not fit.
        token: String,
        /// Its id.
        id: u32,
    },
    /// Training the tokenizer failed.
    #[error("the tokenizer could not be trained: {0}")]
    TrainTokenizer(String),
    /// A text could not be encoded.
    #[error("dataset {dataset}, record {record}: cannot be tokenised: {why}")]
    Encode {
        /// Dataset name.
        dataset: String,
        /// Record id.
        record: String,
        /// What the tokenizer library said.
        why: String,
    },
    /// A dataset is too small for the asked split.
    #[error(
        "dataset {dataset}: expected text for {expected} {what}, found {found}; hint: lower it in the recipe or add records"
    )]
    TooSmall {
        /// Dataset name.
        dataset: String,
        /// What was to be cut.
        what: &'static str,
        /// How many were asked for.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A window does not fit the types that hold it.
    #[error("seq_len: expected 2 to 65535, found {found}")]
    SeqLen {
        /// The value found.
        found: usize,
    },
    /// The prompt leaves no response.
    #[error("prompt_len: expected 1 to {max}, found {found}")]
    PromptLen {
        /// Largest allowed.
        max: usize,
        /// The value found.
        found: usize,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
