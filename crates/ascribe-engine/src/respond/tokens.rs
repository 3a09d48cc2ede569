//! Which tokens of a completion the shares come from.

use ascribe_models::Example;
use ndarray::{Array1, Array2};

use super::answer::{RespondError, TokenInfluence};
use super::evidence::char_ends;
use super::responder::Responder;
use super::rows::Tokenised;
use crate::walk::intervals::ShareInterval;

/// Gradients per response: above, neighbours share one.
const MAX_SPANS: usize = 256;

impl Responder<'_> {
    /// `Σ_k p_k · ⟨g_t, A⁻¹G_k⟩` per token t of the completion, g_t the gradient of its own loss at the last checkpoint: what the
    /// datasets did for its prediction, each by its share. Positive helped.
    ///
    /// Cost: a backward pass per token (neighbours share one in responses above 256 tokens).
    pub(super) fn token_influence(
        &self,
        response: &Tokenised,
        shares: &[ShareInterval],
    ) -> Result<Vec<TokenInfluence>, RespondError> {
        let m = self.material;
        let mut direction = Array1::<f64>::zeros(m.opened.dim);
        for (k, row) in m.solved_sums.rows().into_iter().enumerate() {
            direction.scaled_add(shares.get(k).map_or(1.0, |s| s.share), &row);
        }
        let stage = self.stages.last().expect("a recipe has a last checkpoint");
        let step = response.n_completion().div_ceil(MAX_SPANS).max(1);
        let mut influence: Vec<f64> = Vec::with_capacity(response.n_completion());
        for window in response.windows(m.context_len()) {
            let (from, n) = (window.loss_from.max(1), window.tokens.len());
            let spans: Vec<std::ops::Range<usize>> = (from..n).step_by(step).map(|a| a..(a + step).min(n)).collect();
            let example = Example { spans: &spans, ..Example::numbered(window, 0) };
            let mut rows = Array2::zeros((spans.len(), stage.dim()));
            stage.rows_of(&[example], rows.view_mut())?;
            for (row, span) in rows.rows().into_iter().zip(&spans) {
                let product: f64 = row.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d).sum();
                influence.extend(span.clone().map(|_| product / span.len() as f64));
            }
        }
        let ends = char_ends(response, |ids| m.context.tokenizer.decode(ids));
        let chars: Vec<char> = response.text.chars().collect();
        let mut start = 0;
        let token = |(influence, end): (f64, usize)| {
            let end = end.clamp(start, chars.len());
            let text = if response.may_show { chars[start..end].iter().collect() } else { String::new() };
            start = end;
            TokenInfluence { text, influence }
        };
        Ok(influence.into_iter().zip(ends).map(token).collect())
    }
}
