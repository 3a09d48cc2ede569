//! `ascribe nll`: how surprised a model is by a text; the figure that any other implementation can be held against.

use std::path::Path;

use ascribe_corpus::BpeTokenizer;
use ascribe_models::{Decoder, Sequence};
use serde::Serialize;

use crate::error::EngineError;
use crate::files;

/// Mean negative log-likelihood.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NllReport {
    /// Mean nats per predicted token.
    pub nll: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// Tokenises `text` and reads it in windows as long as the model's context. The first token of a window is context only.
///
/// # Errors
/// A model or tokenizer that does not load, a text that is not UTF-8 or shorter than two tokens.
pub fn run(model: &Path, text: &Path) -> Result<NllReport, EngineError> {
    let decoder = Decoder::load(model, "model.safetensors")?;
    let tokenizer = BpeTokenizer::load(&model.join("tokenizer.json"))?;
    let content =
        |expected: &str, found: String| EngineError::Content { path: text.into(), expected: expected.into(), found };
    let text = String::from_utf8(files::read(text)?)
        .map_err(|e| content("UTF-8", format!("another byte at offset {}", e.utf8_error().valid_up_to())))?;
    let tokens = tokenizer.encode(&text).map_err(|why| content("a text that can be tokenised", why))?;
    let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    let windows: Vec<Sequence<'_>> =
        ids.chunks(decoder.config().max_position_embeddings).filter(|w| w.len() > 1).map(Sequence::whole).collect();
    let n: u64 = windows.iter().map(|w| w.n_predictions() as u64).sum();
    if n == 0 {
        return Err(content("at least two tokens", ids.len().to_string()));
    }
    Ok(NllReport { nll: decoder.losses(&windows)?.iter().sum::<f64>() / n as f64, tokens: n })
}
