//! Labs: a setting opened, with its trained models, as every method sees it. Here lives: what methods may ask for, whatever is
//! trained. Here never lives: a method (`methods`), the truth (`bank`, `contest`).

mod decoders;
mod images;
mod tuned;

use ascribe_core::{Digest, FeatureSpec};
use ascribe_methods::source::{CaptureSource, Operator};
use ascribe_models::TapConfig;
use ndarray::Array2;

pub use decoders::DecoderLab;
pub use images::ImageLab;
pub use tuned::TunedLab;

use super::setting::{Setting, Subject};
use crate::error::EngineError;
use crate::home::Home;

/// A model of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Trained to the end under the recipe's seed plus this: 0 is the model that is explained.
    Final(u64),
    /// The same on a random half of the examples, a half of its own for every number. Labs of images only.
    Half(u64),
    /// A kept checkpoint of the model that is explained, by its place in [`Lab::stretches`].
    Kept(usize),
}

/// What a gradient is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The training loss (for a query: its loss), in nats.
    Loss,
    /// Minus the margin `ln(p/(1 − p))` of the right answer, summed over predictions: TRAK's output, turned so that smaller is
    /// better, as for a loss.
    NegativeMargin,
}

/// A part of the training between two kept checkpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// Steps up to its checkpoint, the one at its end.
    pub step: u64,
    /// Sum of the learning rates of its steps.
    pub learning_rate_sum: f64,
    /// Heavy-ball momentum.
    pub momentum: f64,
    /// L2 penalty that acts through the gradient.
    pub weight_decay: f64,
}

/// Words of training examples and of queries.
pub type Words = (Vec<Vec<String>>, Vec<Vec<String>>);

/// Tokens of training examples and of queries.
pub type Tokens<'a> = (Vec<&'a [u32]>, Vec<&'a [u32]>);

/// Projected gradients of a decoder's sequences.
pub struct StageRows {
    /// What they are, module by module.
    pub spec: FeatureSpec,
    /// Of training examples, `[N, dim]`.
    pub train: Array2<f32>,
    /// Of queries, `[Q, dim]`.
    pub queries: Array2<f32>,
}

/// A trained model with the training examples and queries of its lab.
pub trait View: Sync {
    /// Training examples.
    fn train(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError>;
    /// Queries.
    fn queries(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError>;
    /// Gauss–Newton matrix of the mean training loss.
    fn curvature(&self) -> Result<Box<dyn Operator + '_>, EngineError>;
    /// Hessian of the mean training loss, where the model has products with it.
    fn hessian(&self) -> Result<Box<dyn Operator + '_>, EngineError> {
        Err(EngineError::Setting {
            setting: "method",
            expected: "a model with second derivatives (a classifier)".into(),
            found: "one with the Gauss–Newton matrix alone".into(),
        })
    }
    /// Rows of training examples and queries as `ascribe features` makes them, under a corpus of this digest.
    fn stage_rows(&self, _taps: &TapConfig, _corpus: Digest) -> Result<StageRows, EngineError> {
        Err(EngineError::Setting { setting: "method", expected: "a decoder".into(), found: "images".into() })
    }
    /// `[N, F]` and `[Q, F]`: hidden states (images: what the last layer reads; text: the mean over positions).
    fn embeddings(&self) -> Result<(Array2<f32>, Array2<f32>), EngineError>;
    /// `1 − p` of every training example's right answer (text: its mean over predictions), `[N]`.
    fn residuals(&self) -> Result<Vec<f32>, EngineError>;
}

/// An opened setting.
pub trait Lab: Sync {
    /// SHA-256 over data and recipe: what decides all scores besides the method.
    fn digest(&self) -> Digest;
    /// Training examples.
    fn n_examples(&self) -> usize;
    /// Queries.
    fn n_queries(&self) -> usize;
    /// A model, trained or loaded.
    ///
    /// # Errors
    /// Training or reading fails; a checkpoint that is not kept.
    fn model(&self, which: Which) -> Result<Box<dyn View + '_>, EngineError>;
    /// The training in parts, one per kept checkpoint, the last ending with the final model.
    fn stretches(&self) -> Vec<Stretch>;
    /// Classes of training examples and queries, where there are classes.
    fn labels(&self) -> Option<(&[u32], &[u32])> {
        None
    }
    /// Words of training examples and queries, where they are text.
    fn words(&self) -> Option<Words> {
        None
    }
    /// Tokens of training examples and of what is explained, where they are text.
    fn tokens(&self) -> Option<Tokens<'_>> {
        None
    }
    /// Texts of training examples and queries, where they are text.
    fn texts(&self) -> Option<(Vec<String>, Vec<String>)> {
        None
    }
    /// The dataset of every training example, where there are datasets.
    fn datasets(&self) -> Option<Vec<u32>> {
        None
    }
    /// The opened image subject, for methods that train themselves.
    fn images(&self) -> Option<&ImageLab> {
        None
    }
    /// The opened decoder subject.
    fn decoder(&self) -> Option<&DecoderLab> {
        None
    }
}

/// What a lab says whose models are dear to train on halves.
fn no_halves() -> EngineError {
    EngineError::Setting {
        setting: "halves",
        expected: "a setting of images".into(),
        found: "a decoder (hint: leave \"halves\" out)".into(),
    }
}

/// Opens a setting.
///
/// # Errors
/// Data, recipe or model folders that do not read.
pub fn open(home: &Home, setting: &Setting) -> Result<Box<dyn Lab>, EngineError> {
    Ok(match &setting.subject {
        Subject::Images(subject) => Box::new(ImageLab::open(subject, &setting.dir)?),
        Subject::Decoder { model } => Box::new(DecoderLab::open(home, model)?),
        Subject::Tuned(subject) => Box::new(TunedLab::new(subject.open(home)?)),
        Subject::Facts { .. } => {
            let expected = "images, a decoder or a tuned model".to_owned();
            return Err(EngineError::Setting { setting: "subject", expected, found: "facts".into() });
        }
    })
}
