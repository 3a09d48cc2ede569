//! `ascribe nll`: how surprised a model is by a text; the figure that any other implementation can be held against.

use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_corpus::SpecialTokens;
use ascribe_models::Sequence;
use serde::Serialize;

use crate::error::EngineError;
use crate::files;
use crate::lab::data::{DataOptions, LabData};
use crate::lab::model::LabModel;

/// Mean negative log-likelihood.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NllReport {
    /// Mean nats per predicted token.
    pub nll: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// Tokenises the file `text` and reads it in windows as long as the model's context, one after the other. The first token
/// of a window is context only; with special tokens (as `AutoTokenizer(text)` adds them) that is usually `<s>`.
///
/// # Errors
/// A tokenizer that does not load or belongs to another model, a text that is not UTF-8 or shorter than two tokens.
pub fn run(model: &LabModel, text: &Path, special_tokens: SpecialTokens) -> Result<NllReport, EngineError> {
    let tokenizer = model.tokenizer(special_tokens)?;
    let content =
        |expected: &str, found: String| EngineError::Content { path: text.into(), expected: expected.into(), found };
    let text = String::from_utf8(files::read(text)?)
        .map_err(|e| content("UTF-8", format!("another byte at offset {}", e.utf8_error().valid_up_to())))?;
    let tokens = tokenizer.encode(&text).map_err(|why| content("a text that can be tokenised", why))?;
    let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    let vocab_size = model.decoder().config().vocab_size;
    if let Some(token) = tokens.iter().find(|token| token.id as usize >= vocab_size) {
        let name = tokenizer.token(token.id).unwrap_or_default();
        let found = format!("token `{name}` of id {} at byte {}", token.id, token.byte_start);
        return Err(content(&format!("token ids below the model's vocab_size {vocab_size}"), found));
    }
    let windows: Vec<Sequence<'_>> = ids.chunks(model.context()).filter(|w| w.len() > 1).map(Sequence::whole).collect();
    if windows.is_empty() {
        return Err(content("at least two tokens", ids.len().to_string()));
    }
    report(model, &windows)
}

/// The same over the records of a JSONL file (see [`LabData`]); each record is a text of its own, prompts are context only.
///
/// # Errors
/// As [`run`], and the first record that cannot be used.
pub fn run_records(model: &LabModel, data: &Path, special_tokens: SpecialTokens) -> Result<NllReport, EngineError> {
    let options = model.options(&DataOptions::new(0))?;
    let tokenizer = || model.tokenizer(special_tokens);
    let data = LabData::read(data, &options, model.decoder().config().vocab_size, &tokenizer, &NoProgress)?;
    report(model, &data.sequences())
}

fn report(model: &LabModel, windows: &[Sequence<'_>]) -> Result<NllReport, EngineError> {
    let n: u64 = windows.iter().map(|w| w.n_predictions() as u64).sum();
    Ok(NllReport { nll: model.decoder().losses(windows)?.iter().sum::<f64>() / n as f64, tokens: n })
}
