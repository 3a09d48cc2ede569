//! What a feature row is about: an example, or a span of its tokens; and the targets of its loss.

use std::ops::Range;

use super::plan::mismatch;
use crate::decoder::{Decoder, Loss, Objective, Sequence};
use crate::error::ModelError;

/// A text and the parts of it that have rows.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// Token ids; 1 to `max_position_embeddings` of them.
    pub tokens: &'a [u32],
    /// First position whose token counts (a prompt before it is context only).
    pub loss_from: usize,
    /// What should have been predicted, where that is not the text itself: entry t stands in for `tokens[t]` as a target, and
    /// only as a target. As many as tokens; entry 0 is never asked for.
    pub targets: Option<&'a [u32]>,
    /// Token ranges with a row each, from the losses of the *target* tokens in them (and from `loss_from` on): the tokens of
    /// a record within a window that packs several. Empty means one row for the whole example.
    pub spans: &'a [Range<usize>],
    /// Names the stream of sampled labels ([`Loss::Sampled`]); of no consequence otherwise.
    pub id: u64,
}

impl<'a> Example<'a> {
    /// A text of which every prediction counts, one row.
    pub fn whole(tokens: &'a [u32]) -> Self {
        Self::numbered(Sequence::whole(tokens), 0)
    }

    /// One row for a sequence under an id.
    pub fn numbered(sequence: Sequence<'a>, id: u64) -> Self {
        Self { tokens: sequence.tokens, loss_from: sequence.loss_from, targets: None, spans: &[], id }
    }

    /// Rows that the example has.
    pub fn n_rows(&self) -> usize {
        self.spans.len().max(1)
    }

    /// One objective per row.
    pub(crate) fn objectives(&self, loss: Loss) -> impl Iterator<Item = Objective<'a>> + '_ {
        let sequence = Sequence { tokens: self.tokens, loss_from: self.loss_from };
        let whole = 0..self.tokens.len();
        let spans = if self.spans.is_empty() { std::slice::from_ref(&whole).to_vec() } else { self.spans.to_vec() };
        let targets = self.targets.unwrap_or(self.tokens);
        let (tokens, id, all) = (self.tokens, self.id, sequence.predicting());
        spans.into_iter().map(move |span| {
            // Token t is predicted at position t − 1.
            let start = all.start.max(span.start.saturating_sub(1));
            let end = all.end.min(span.end.saturating_sub(1)).max(start);
            Objective { tokens, targets, predicting: start..end, loss, id }
        })
    }
}

/// What became of a row.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct RowReport {
    /// Summed loss of the counted positions, nats.
    pub loss: f64,
    /// Number of these positions.
    pub n_predictions: usize,
    /// `‖row‖`, before factoring.
    pub norm: f32,
    /// `‖row − factored row‖/‖row‖` for [`Projection::Factored`](super::Projection::Factored), else 0.
    pub residual: f32,
}

/// Checks tokens, targets and spans.
pub(crate) fn check(decoder: &Decoder, examples: &[Example<'_>]) -> Result<(), ModelError> {
    let sequences: Vec<Sequence<'_>> = examples.iter().map(|example| Sequence::whole(example.tokens)).collect();
    decoder.check(&sequences)?;
    let vocabulary = decoder.config.vocab_size;
    for (sequence, example) in examples.iter().enumerate() {
        let len = example.tokens.len();
        if let Some(targets) = example.targets {
            if targets.len() != len {
                let expected = format!("{len}, one per token of example {sequence}");
                return Err(mismatch("number of targets", expected, targets.len().to_string()));
            }
            if let Some(position) = targets.iter().position(|&target| target as usize >= vocabulary) {
                return Err(ModelError::Token { sequence, position, vocabulary, found: targets[position] });
            }
        }
        if let Some(span) = example.spans.iter().find(|span| span.start > span.end || span.end > len) {
            let expected = format!("a range within 0..{len}, the tokens of example {sequence}");
            return Err(mismatch("token span", expected, format!("{span:?}")));
        }
    }
    Ok(())
}
