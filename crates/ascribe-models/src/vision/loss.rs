//! What is differentiated for an image: which measure, of which class. The arithmetic stands in `ops/loss.rs`.

use serde::{Deserialize, Serialize};

/// The number measured at an example's logits, in nats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// `−ln p_c`: what training lowers.
    CrossEntropy,
    /// `ln(p_c / (1 − p_c))`, TRAK's model output (arXiv:2303.14186, section 3): what training *raises*; the gradient is that
    /// of the margin itself, not of its negative.
    Margin,
}

/// The class whose measure is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target<'a> {
    /// The image's own label.
    Label,
    /// A class per image, in the order of the call.
    Given(&'a [u32]),
    /// A class drawn from the model's own probabilities: gradients of its cross-entropy have the true Fisher matrix as
    /// their second moment. Image `i` of its set always uses word `i` of the stream `vision/labels` under the seed.
    Sampled {
        /// Seed of the stream.
        seed: u64,
    },
}

/// A measure of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Objective<'a> {
    /// What is measured.
    pub measure: Measure,
    /// Of which class.
    pub target: Target<'a>,
}

impl Objective<'_> {
    /// Cross-entropy of the labels: the training loss.
    pub const LOSS: Objective<'static> = Objective { measure: Measure::CrossEntropy, target: Target::Label };
    /// Margin of the labels.
    pub const MARGIN: Objective<'static> = Objective { measure: Measure::Margin, target: Target::Label };

    /// Name of the loss in a feature spec.
    pub fn name(&self) -> String {
        let measure = match self.measure {
            Measure::CrossEntropy => "class_nll",
            Measure::Margin => "class_margin",
        };
        match self.target {
            Target::Label => measure.into(),
            Target::Given(_) => format!("{measure}_given"),
            Target::Sampled { seed } => format!("{measure}_sampled_{seed}"),
        }
    }
}
