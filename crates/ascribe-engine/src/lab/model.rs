//! A model folder and its tokenizer, checked against each other.

use std::path::{Path, PathBuf};

use ascribe_corpus::text_tokenizer::TOKENIZER_FILE;
use ascribe_corpus::{SpecialTokens, TextTokenizer};
use ascribe_models::lora::{AdaptedDecoder, Adapter};
use ascribe_models::{Decoder, GradientStage, Normalizer, TapConfig};

use super::data::DataOptions;
use crate::error::EngineError;

/// Added to the root of a second moment before a gradient is divided by it: AdamW's own usual constant.
const MOMENTS_EPS: f32 = 1e-8;

/// A decoder with the folder it came from.
pub struct LabModel {
    /// The folder.
    pub dir: PathBuf,
    body: Body,
}

enum Body {
    Plain(Box<Decoder>),
    /// With an adapter that stays visible.
    Adapted(Box<AdaptedDecoder>),
}

/// What rows are taken of, besides the taps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// PEFT folder of a LoRA that is merged into the model.
    pub adapter: Option<PathBuf>,
    /// Rows over the adapter's weights, in the place of the merged ones.
    pub adapter_weights: bool,
    /// Second moments of AdamW, by parameter name: gradients are divided by their roots.
    pub moments: Option<PathBuf>,
}

impl LabModel {
    /// Opens a Hugging Face model folder of any supported family (weights in one file, in shards, or a GGUF file), or a
    /// `.gguf` file itself.
    ///
    /// # Errors
    /// From the model: the file, tensor or field, what was expected and what was found.
    pub fn open(dir: &Path) -> Result<Self, EngineError> {
        let model = Self::open_any(dir)?;
        if model.decoder().config().arch.is_encoder() {
            return Err(EngineError::Content {
                path: dir.into(),
                expected: "a decoder, which predicts next tokens (an encoder gives `features --embeddings`)".into(),
                found: "an encoder".into(),
            });
        }
        Ok(model)
    }

    /// [`LabModel::open`] that takes encoders too.
    fn open_any(dir: &Path) -> Result<Self, EngineError> {
        if !dir.is_dir() && dir.extension().is_none_or(|extension| extension != "gguf") {
            return Err(EngineError::Content {
                path: dir.into(),
                expected: "a Hugging Face model folder (config.json, weights, tokenizer.json)".into(),
                found: if dir.exists() { "a file".into() } else { "nothing".into() },
            });
        }
        let decoder = Decoder::open(dir)?;
        // A tokenizer stands beside a GGUF file.
        let folder = if dir.is_file() { dir.parent().unwrap_or(Path::new(".")) } else { dir };
        Ok(Self { dir: folder.into(), body: Body::Plain(Box::new(decoder)) })
    }

    /// A model that was never a folder; its tokenizer is looked for in `dir`.
    pub fn of(dir: PathBuf, decoder: Decoder) -> Self {
        Self { dir, body: Body::Plain(Box::new(decoder)) }
    }

    /// Opens a folder and merges the adapter of `subject` into it.
    ///
    /// # Errors
    /// As [`LabModel::open`], and of an adapter that is broken or belongs to another model.
    pub fn open_subject(dir: &Path, subject: &Subject) -> Result<Self, EngineError> {
        Self::open(dir)?.with(subject)
    }

    /// [`LabModel::open_subject`] for reading alone: an encoder will do.
    ///
    /// # Errors
    /// As there.
    pub fn open_reader(dir: &Path, subject: &Subject) -> Result<Self, EngineError> {
        Self::open_any(dir)?.with(subject)
    }

    fn with(self, subject: &Subject) -> Result<Self, EngineError> {
        let model = self;
        let Some(adapter_dir) = &subject.adapter else { return Ok(model) };
        let folder = model.dir.clone();
        let decoder = model.into_decoder();
        let adapter = Adapter::load(&decoder, adapter_dir)?;
        let adapted = AdaptedDecoder::new(decoder, adapter)?;
        let body = match subject.adapter_weights {
            true => Body::Adapted(Box::new(adapted)),
            false => Body::Plain(Box::new(adapted.into_decoder())),
        };
        Ok(Self { dir: folder, body })
    }

    /// The weights, with an adapter merged in if there is one.
    pub fn decoder(&self) -> &Decoder {
        match &self.body {
            Body::Plain(decoder) => decoder,
            Body::Adapted(adapted) => adapted.decoder(),
        }
    }

    /// The weights alone.
    pub fn into_decoder(self) -> Decoder {
        match self.body {
            Body::Plain(decoder) => *decoder,
            Body::Adapted(adapted) => adapted.into_decoder(),
        }
    }

    /// The gradient stage of `taps` over what `subject` names.
    ///
    /// # Errors
    /// Taps that fit nothing, moments of another model, moments and adapter weights together.
    pub fn stage(&self, taps: &TapConfig, subject: &Subject) -> Result<GradientStage<'_>, EngineError> {
        match (&self.body, &subject.moments) {
            (Body::Adapted(adapted), None) => Ok(GradientStage::of_adapter(adapted, taps.clone())?),
            (Body::Plain(decoder), None) => Ok(GradientStage::new(decoder, taps.clone())?),
            (Body::Plain(decoder), Some(path)) => {
                let normalizer = Normalizer::from_file(decoder, path, "", None, MOMENTS_EPS)?;
                Ok(GradientStage::normalized(decoder, taps.clone(), &normalizer)?)
            }
            (Body::Adapted(_), Some(path)) => Err(EngineError::Setting {
                setting: "--moments",
                expected: "rows over the model's own weights".into(),
                found: format!("{} beside --adapter-weights", path.display()),
            }),
        }
    }

    /// Loads the folder's tokenizer and checks that the model has all its ids.
    ///
    /// # Errors
    /// No tokenizer, a broken one, or one of another model.
    pub fn tokenizer(&self, special_tokens: SpecialTokens) -> Result<TextTokenizer, EngineError> {
        let tokenizer = TextTokenizer::load(&self.dir, special_tokens)?;
        tokenizer.check_fits(&self.dir.join(TOKENIZER_FILE), self.decoder().config().vocab_size)?;
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
        self.decoder().config().max_position_embeddings
    }
}
