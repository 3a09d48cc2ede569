//! From a response to what the stages read: tokens, windows, terms.

use ascribe_corpus::Corpus;
use ascribe_corpus::tokenizer::END_OF_TEXT_ID;
use ascribe_methods::controls::text::terms;
use ascribe_models::Sequence;

use super::answer::{Input, RespondError};
use super::material::Material;
use crate::walk::report::texts;

/// Longest response, in tokens: 64 windows of the shipped models.
pub const MAX_TOKENS: usize = 8_192;
/// Tokens of a window that are context for the rest of it, as a part of the window: a quarter, as in the corpus.
const CONTEXT_PART: usize = 4;

/// A response, tokenised.
#[derive(Clone, Debug)]
pub struct Tokenised {
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    /// First token of the completion.
    pub completion: usize,
    /// Bytes of the completion's text that each of its tokens stands for; empty for an example of the corpus.
    pub bytes: Vec<(usize, usize)>,
    /// The completion.
    pub text: String,
    /// Whether its words may be said: those that were sent may, a record's by its licence.
    pub may_show: bool,
    /// Terms of prompt and completion, where a channel is BM25.
    pub terms: Vec<String>,
}

/// Terms of a text, where they are asked for.
fn words(material: &Material, text: impl FnOnce() -> String) -> Vec<String> {
    if material.bm25.is_some() { terms(&text()) } else { Vec::new() }
}

impl Tokenised {
    /// Tokenises a text, or takes a response of the corpus.
    ///
    /// The completion begins with the first token that ends inside it: a token across the border counts.
    pub fn new(material: &Material, input: &Input) -> Result<Self, RespondError> {
        match input {
            Input::Text { prompt, completion } => Self::of_text(material, prompt, completion),
            Input::Example(number) => Self::of_example(&material.context.corpus, material, *number),
            _ => Err(RespondError::refuse("method", "one that takes vectors", "a method that needs a text")),
        }
    }

    fn of_text(material: &Material, prompt: &str, completion: &str) -> Result<Self, RespondError> {
        if completion.is_empty() {
            return Err(RespondError::refuse("completion", "at least one token", "an empty text"));
        }
        let text = [prompt, completion].concat();
        let encoded = material.context.tokenizer.encode(&text);
        let encoded = encoded.map_err(|why| RespondError::refuse("completion", "a text that can be tokenised", why))?;
        let border = prompt.len();
        let first = encoded.iter().position(|t| t.byte_end as usize > border).unwrap_or(encoded.len());
        if first >= encoded.len() {
            return Err(RespondError::refuse("completion", "at least one token", "none"));
        }
        if encoded.len() > MAX_TOKENS {
            let expected = format!("at most {MAX_TOKENS} tokens with the prompt");
            return Err(RespondError::refuse("completion", expected, encoded.len()));
        }
        let within = |byte: u32| (byte as usize).saturating_sub(border);
        let bytes = encoded[first..].iter().map(|t| (within(t.byte_start), within(t.byte_end))).collect();
        let ids = encoded.iter().map(|t| t.id);
        // What is predicted needs something before it: records follow the end of another one.
        let (tokens, completion_at) = match first {
            0 => (std::iter::once(END_OF_TEXT_ID).chain(ids).collect(), 1),
            first => (ids.collect(), first),
        };
        Ok(Self {
            bytes,
            tokens,
            completion: completion_at,
            terms: words(material, || text.clone()),
            text: completion.to_owned(),
            may_show: true,
        })
    }

    fn of_example(corpus: &Corpus, material: &Material, number: usize) -> Result<Self, RespondError> {
        let Some(query) = corpus.queries.get(number) else {
            return Err(RespondError::refuse("example", format!("below {}", corpus.queries.len()), number));
        };
        let completion = corpus.manifest.config.prompt_len;
        Ok(Self {
            tokens: query.tokens.clone(),
            completion,
            bytes: Vec::new(),
            text: texts(&material.context, &query.tokens, completion).1,
            terms: words(material, || corpus.text_of(&query.spans)),
            may_show: material.catalog.datasets[query.dataset as usize].may_show,
        })
    }

    /// Tokens of the completion.
    pub fn n_completion(&self) -> usize {
        self.tokens.len() - self.completion
    }

    /// Windows of at most `longest` tokens. A response that fits is one window, just as it is; a longer one is cut, its parts
    /// each with a quarter of a window before them as context, and gradients of parts add up.
    pub fn windows(&self, longest: usize) -> Vec<Sequence<'_>> {
        let (n, from) = (self.tokens.len(), self.completion.max(1));
        if n <= longest {
            return vec![Sequence { tokens: &self.tokens, loss_from: self.completion }];
        }
        let context = (longest / CONTEXT_PART).max(1);
        let mut windows = Vec::new();
        let mut at = from;
        while at < n {
            // As much of the prompt as fits comes before the first part.
            let end = (at + longest - context).min(n);
            let start = end.saturating_sub(longest).min(at - 1);
            windows.push(Sequence { tokens: &self.tokens[start..end], loss_from: at - start });
            at = end;
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenised(n: usize, completion: usize) -> Tokenised {
        let tokens = (0..n as u32).collect();
        Tokenised { tokens, completion, bytes: Vec::new(), text: String::new(), may_show: true, terms: Vec::new() }
    }

    #[test]
    fn windows_predict_every_token_of_the_completion_once() {
        for (n, completion, longest) in
            [(10, 3, 16), (128, 32, 128), (129, 32, 128), (500, 1, 128), (400, 300, 128), (9, 0, 4)]
        {
            let t = tokenised(n, completion);
            let mut predicted = Vec::new();
            for w in t.windows(longest) {
                assert!(w.tokens.len() <= longest, "{n} {completion}");
                predicted.extend(w.tokens[w.loss_from.max(1)..].iter().copied());
            }
            let all: Vec<u32> = (completion.max(1) as u32..n as u32).collect();
            assert_eq!(predicted, all, "{n} {completion} {longest}");
        }
        // One that fits is the walk's own sequence.
        let whole = tokenised(128, 32);
        let windows = whole.windows(128);
        assert_eq!((windows.len(), windows[0].loss_from, windows[0].tokens.len()), (1, 32, 128));
    }
}
