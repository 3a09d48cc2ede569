//! What is differentiated at the output layer: the kind of loss, the positions that count, their targets.
//!
//! An [`Objective`] turns rows of logits into rows of their gradients. Here never lives how logits come about, nor what
//! becomes of the gradients. Losses of image classifiers live with their nets.

use std::ops::Range;

use ascribe_linalg::Stream;
use ascribe_linalg::elementwise::{causal_softmax, cross_entropy, cross_entropy_backward};
use serde::{Deserialize, Serialize};

use super::Sequence;

/// The scalar whose gradient a row is. All are summed over the counted positions, and smaller means "more of this text", so
/// products of rows of different losses keep their sign.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Loss {
    /// `−ln p(target)`, in nats.
    #[default]
    NextToken,
    /// `−ln(p/(1 − p))` with `p = p(target)`: the negative of TRAK's model output function (arXiv:2303.14186, section 3.2),
    /// in nats. Computed as `logsumexp_{j≠y} z_j − z_y`, which is exact for p near 0 and near 1.
    Margin,
    /// `−ln p(ỹ)` for a label `ỹ` that is drawn from the model's own distribution: the gradients' second moment is the true
    /// Fisher matrix (arXiv:2308.03296, section 2.1). The draw for the token at position t of example `id` is word t of the
    /// stream `pseudo-label/{id}` of the seed, whatever else is computed.
    Sampled {
        /// Root seed of the draws.
        seed: u64,
    },
}

impl Loss {
    /// The name that a feature spec carries.
    pub fn spec_name(self) -> String {
        match self {
            Self::NextToken => "next_token_nll_sum".into(),
            Self::Margin => "margin_sum".into(),
            Self::Sampled { seed } => format!("sampled_label_nll_sum(seed={seed})"),
        }
    }
}

/// One scalar function of a sequence's logits.
#[derive(Clone, Debug)]
pub(crate) struct Objective<'a> {
    /// The text.
    pub tokens: &'a [u32],
    /// Entry t is what position t − 1 should predict; as many as tokens, the first is never asked for.
    pub targets: &'a [u32],
    /// Positions whose logits count; the token that position t predicts is t + 1.
    pub predicting: Range<usize>,
    pub loss: Loss,
    /// Names the stream of sampled labels.
    pub id: u64,
}

impl<'a> From<Sequence<'a>> for Objective<'a> {
    fn from(sequence: Sequence<'a>) -> Self {
        let (tokens, predicting) = (sequence.tokens, sequence.predicting());
        Self { tokens, targets: tokens, predicting, loss: Loss::NextToken, id: 0 }
    }
}

impl Objective<'_> {
    /// Losses of the positions `first..first + values.len()`, whose logits `[n, width]` become their gradients.
    pub fn backward(&self, first: usize, width: usize, logits: &mut [f32], values: &mut [f32]) {
        let targets = &self.targets[first + 1..=first + values.len()];
        match self.loss {
            Loss::NextToken => cross_entropy_backward(logits, width, targets, values),
            Loss::Margin => {
                for ((row, &target), value) in logits.chunks_exact_mut(width).zip(targets).zip(values) {
                    *value = margin(row, target as usize, true);
                }
            }
            Loss::Sampled { seed } => {
                let drawn = self.draw(seed, first, width, logits);
                cross_entropy_backward(logits, width, &drawn, values);
            }
        }
    }

    /// [`Objective::backward`] without gradients, which differences are taken of; the logits are left in any state.
    #[cfg(test)]
    fn values(&self, first: usize, width: usize, logits: &mut [f32], values: &mut [f32]) {
        let targets = &self.targets[first + 1..=first + values.len()];
        match self.loss {
            Loss::NextToken => cross_entropy(logits, width, targets, values),
            Loss::Margin => {
                for ((row, &target), value) in logits.chunks_exact_mut(width).zip(targets).zip(values) {
                    *value = margin(row, target as usize, false);
                }
            }
            Loss::Sampled { seed } => {
                let drawn = self.draw(seed, first, width, logits);
                cross_entropy(logits, width, &drawn, values);
            }
        }
    }

    /// Labels of the rows of logits, by the inverse of the cumulative distribution.
    fn draw(&self, seed: u64, first: usize, width: usize, logits: &[f32]) -> Vec<u32> {
        let stream = Stream::new(seed, &format!("pseudo-label/{}", self.id));
        let label = |(i, row): (usize, &[f32])| {
            let uniform = (stream.at((first + i + 1) as u64) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
            sample(row, uniform)
        };
        logits.chunks_exact(width).enumerate().map(label).collect()
    }
}

/// The first index at which the cumulative softmax exceeds `uniform` in `[0, 1)`; sums in order, in f64.
fn sample(row: &[f32], uniform: f64) -> u32 {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let weight = |&x: &f32| f64::from(ascribe_linalg::elementwise::exp(x - max));
    let threshold = uniform * row.iter().map(weight).sum::<f64>();
    let mut below = 0.0;
    let found = row.iter().position(|x| {
        below += weight(x);
        below > threshold
    });
    // Not found only if a logit is NaN: any label will do, the caller refuses the row.
    found.unwrap_or(row.len() - 1) as u32
}

/// `logsumexp_{j≠y} z_j − z_y`; with `gradient` the row becomes `softmax_{j≠y}(z)` with −1 at y.
fn margin(row: &mut [f32], target: usize, gradient: bool) -> f32 {
    let at_target = row[target];
    let (mut best, mut top) = (target, f32::NEG_INFINITY);
    for (j, &z) in row.iter().enumerate().filter(|&(j, _)| j != target) {
        if z > top {
            (best, top) = (j, z);
        }
    }
    // The target takes part with weight e⁻⁸⁷, which no f32 sum notices.
    row[target] = top - 200.0;
    let mut over_top = [0.0];
    cross_entropy(row, row.len(), &[best as u32], &mut over_top);
    if gradient {
        let width = row.len();
        causal_softmax(row, width, width - 1);
        row[target] = -1.0;
    }
    (f64::from(over_top[0]) + f64::from(top) - f64::from(at_target)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective<'a>(tokens: &'a [u32], loss: Loss) -> Objective<'a> {
        Objective { tokens, targets: tokens, predicting: 0..tokens.len() - 1, loss, id: 7 }
    }

    fn logits(n: usize, width: usize) -> Vec<f32> {
        let mut stream = Stream::new(3, "logits");
        (0..n * width).map(|_| (2.0 * stream.normal()) as f32).collect()
    }

    /// Three words with weights 1 : 2 : 5 and target 2: p = 5/8, odds 5/3; the others share 1/3 and 2/3.
    #[test]
    fn the_margin_of_three_words_by_hand() {
        let mut row = [1.0f32, 2.0, 5.0].map(f32::ln);
        let value = margin(&mut row, 2, true);
        assert!((value - (3.0f32 / 5.0).ln()).abs() < 1e-6);
        assert!((row[0] - 1.0 / 3.0).abs() < 1e-6 && (row[1] - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(row[2], -1.0);
        // Far out on either side nothing overflows and nothing cancels: odds of e^±60 in two words.
        for sign in [1.0f32, -1.0] {
            let mut row = [30.0 * sign, -30.0 * sign];
            assert!((margin(&mut row, 0, true) + 60.0 * sign).abs() < 1e-4);
            assert_eq!(row, [-1.0, 1.0]);
        }
    }

    /// The gradient of each loss against central differences of its own value.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let (tokens, width) = ([0u32, 4, 1, 10], 11);
        for loss in [Loss::NextToken, Loss::Margin, Loss::Sampled { seed: 5 }] {
            let objective = objective(&tokens, loss);
            let plain = logits(3, width);
            let (mut gradient, mut values) = (plain.clone(), [0.0; 3]);
            objective.backward(0, width, &mut gradient, &mut values);
            let mut again = [0.0; 3];
            objective.values(0, width, &mut plain.clone(), &mut again);
            assert_eq!(values, again, "{loss:?}");
            let drawn = objective.draw(5, 0, width, &plain);
            for i in 0..plain.len() {
                let moved = |h: f32| {
                    let (mut logits, mut values) = (plain.clone(), [0.0f32; 3]);
                    logits[i] += h;
                    // A moved logit must not move the label that was drawn.
                    match loss {
                        Loss::Sampled { .. } => cross_entropy(&logits, width, &drawn, &mut values),
                        _ => objective.values(0, width, &mut logits, &mut values),
                    }
                    values.iter().map(|&x| f64::from(x)).sum::<f64>()
                };
                let h = 0.02;
                let quotient =
                    (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * f64::from(h));
                assert!((quotient - f64::from(gradient[i])).abs() < 1e-4, "{loss:?} {i}: {quotient} {}", gradient[i]);
            }
        }
    }

    /// Frequencies of 20,000 drawn labels against the softmax that they are drawn from, within five standard errors.
    #[test]
    fn labels_follow_the_models_own_distribution() {
        let row = [0.1f32, 0.5, 0.15, 0.25].map(f32::ln);
        let n = 20_000usize;
        let tokens = vec![0u32; n + 1];
        let many: Vec<f32> = row.iter().copied().cycle().take(4 * n).collect();
        let drawn = objective(&tokens, Loss::Sampled { seed: 1 }).draw(9, 0, 4, &many);
        for (label, p) in [0.1, 0.5, 0.15, 0.25].into_iter().enumerate() {
            let share = drawn.iter().filter(|&&x| x as usize == label).count() as f64 / n as f64;
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{label}: {share}");
        }
        // The draw belongs to the position, not to the chunk in which it is asked for.
        let later = objective(&tokens, Loss::Sampled { seed: 1 }).draw(9, 100, 4, &many[..80]);
        assert_eq!(later, drawn[100..120]);
    }
}
