//! Everything that can go wrong with a model, each variant naming what, where, expected and found.

use std::path::PathBuf;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file system said no.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    Io {
        /// What was tried (`read`, `write`).
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A configuration says something this crate does not do, or that contradicts itself.
    #[error("{path}: field `{field}`: expected {expected}, found {found}", path = path.display())]
    Config {
        /// The file (or `<memory>`).
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is supported.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A file is not of the format that its name promises.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The configuration asks for a tensor that the file does not hold.
    #[error("{path}: tensor `{tensor}` is missing; the configuration asks for it", path = path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The configuration asks for a tensor that the file does not hold, and the names there are those of another family.
    #[error("{path}: tensor `{tensor}` is missing; the configuration says {expected}, the names in the file look like {found}", path = path.display())]
    ForeignTensors {
        /// The file.
        path: PathBuf,
        /// The first tensor that is missing.
        tensor: String,
        /// The family of the configuration.
        expected: &'static str,
        /// What has such names.
        found: &'static str,
    },
    /// The file holds a tensor that the configuration does not know: it describes another model.
    #[error("{path}: tensor `{tensor}` does not belong to this configuration", path = path.display())]
    ExtraTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape or number type.
    #[error("{path}: tensor `{tensor}`: expected {expected}, found {found}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape or type that the configuration asks for.
        expected: String,
        /// Shape or type in the file.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor `{tensor}`: expected finite numbers, found {found} at element {element}", path = path.display())]
    NotFinite {
        /// The file (or `<memory>`).
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat position.
        element: usize,
        /// The value.
        found: f32,
    },
    /// A token id outside the vocabulary.
    #[error("sequence {sequence}, position {position}: expected a token below {vocabulary}, found {found}")]
    Token {
        /// Position of the sequence in the call.
        sequence: usize,
        /// Position of the token in the sequence.
        position: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
        /// The token.
        found: u32,
    },
    /// A sequence that is empty or longer than the context.
    #[error("sequence {sequence}: expected 1 to {context} tokens, found {found}")]
    Length {
        /// Position of the sequence in the call.
        sequence: usize,
        /// Longest sequence the model takes.
        context: usize,
        /// Tokens in the sequence.
        found: usize,
    },
    /// A recipe that cannot be carried out.
    #[error("recipe: `{field}`: expected {expected}, found {found}")]
    Recipe {
        /// The field.
        field: &'static str,
        /// What is possible.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// Training diverged: the loss or the gradient is not a finite number any more.
    #[error("step {step}: expected a finite {what}, found {found}; lower the learning rate or the clipping norm")]
    Diverged {
        /// The step, from 0.
        step: u32,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The value.
        found: f64,
    },
    /// The candle graph failed.
    #[error("candle graph: {0}")]
    Graph(#[from] candle_core::Error),
    /// Two things that belong together do not.
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch {
        /// What was compared.
        what: &'static str,
        /// One side.
        expected: String,
        /// The other side.
        found: String,
    },
}

impl ModelError {
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}
