//! `ascribe tokens`: which tokens of which training examples helped a model to a response.
//!
//! With `q` the gradient of the response's loss and `H` the curvature of training (EK-FAC over the linear modules of all
//! layers), the influence of training token `t` is `d/dε ℓ_t(θ + εH⁻¹q)`, one forward-mode pass per example and no store. The
//! values of an example's tokens add up to its own influence. Positive: without the token, the response's loss would be higher.
//! Here lives the choice of examples and what is told about them; the mathematics is that of methods and models.

use ascribe_core::Progress;
use ascribe_corpus::{BpeTokenizer, Corpus};
use ascribe_methods::captured;
use ascribe_methods::damping::{self, Curve};
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::source::Labels;
use ascribe_models::{Decoder, Example, Granularity, Loss};
use ndarray::Array2;
use serde::Serialize;

use crate::bench::decoder::{DecoderSource, query_examples, training_examples};
use crate::bench::runners::open_decoder;
use crate::error::EngineError;
use crate::home::Home;

/// Linear modules of all layers; embedding, norms and a tied output layer count as constants.
const MODULES: &str = "*.layers.*";
/// Tokens shown on either side of a token.
const CONTEXT: usize = 6;

/// What is asked.
#[derive(Clone, Debug)]
pub struct TokensRequest {
    /// Model folder under `models/`.
    pub model: String,
    /// Held-out response, from 0, in the order of the corpus.
    pub query: usize,
    /// Training examples, by their number in the corpus; none for the most influential ones.
    pub examples: Vec<u32>,
    /// How many most influential examples are looked into where none are named.
    pub best: usize,
    /// How many tokens are listed.
    pub top: usize,
    /// Training examples that the curvature is fitted on, evenly spread; 0 for all.
    pub fit_examples: usize,
    /// Damping, times the mean eigenvalue of a module's curvature.
    pub damping_rel: f64,
    /// Takes per module the damping under which held-out gradients are most likely instead, and reports the curves.
    pub choose_damping: bool,
    /// Seed of the labels that the curvature is fitted with.
    pub seed: u64,
}

/// One training token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenScore {
    /// The example's number in the corpus.
    pub example: u32,
    /// Place of the token in its example, from 0; what is scored is its own prediction.
    pub position: usize,
    /// The token.
    pub piece: String,
    /// Influence, squared nats per unit of curvature; positive where the token helped.
    pub score: f32,
}

/// One training example, token by token.
#[derive(Clone, Debug, Serialize)]
pub struct ExampleTokens {
    /// Its number in the corpus.
    pub example: u32,
    /// Name of its dataset.
    pub dataset: String,
    /// Its own influence: the sum of its tokens'.
    pub score: f64,
    /// Its pieces of text; the first is predicted by nothing and has no score.
    pub pieces: Vec<String>,
    /// Influence of pieces 1, 2, ….
    pub scores: Vec<f32>,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct TokensReport {
    /// Model folder.
    pub model: String,
    /// The response's number.
    pub query: usize,
    /// Dataset that it was held out from.
    pub dataset: String,
    /// What the model was given.
    pub prompt: String,
    /// What is explained.
    pub response: String,
    /// Tracked numbers.
    pub parameters: usize,
    /// Examples that the curvature was fitted on.
    pub fitted_on: usize,
    /// Relative damping; `None` where it was chosen module by module.
    pub damping_rel: Option<f64>,
    /// How the damping was chosen, one curve per module; empty where it was given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damping: Vec<Curve>,
    /// Examples, most influential first (or as they were named).
    pub examples: Vec<ExampleTokens>,
    /// The tokens of largest absolute influence among these examples.
    pub top: Vec<TokenScore>,
}

/// Scores the tokens of training examples against one held-out response.
///
/// # Errors
/// A response or an example beyond the end, a damping that is negative, a model or corpus that does not open; [the stop of a
/// listener](EngineError).
pub fn run(home: &Home, request: &TokensRequest, progress: &dyn Progress) -> Result<TokensReport, EngineError> {
    let data = open_decoder(home, &request.model)?;
    let (corpus, tokenizer) = (&data.corpus, &data.tokenizer);
    check(request, corpus)?;
    let decoder = Decoder::open(&home.model(&request.model))?;
    let queries = query_examples(corpus);
    let source = |examples| DecoderSource::new(&decoder, examples, &[MODULES], Granularity::Module);
    let train = source(training_examples(corpus))?;
    let (direction, damping) =
        direction(request, source(vec![queries[request.query]])?, &source(fitted(request, corpus))?, progress)?;
    let chosen = if request.examples.is_empty() {
        let scores = captured::score(&train, direction.view(), Labels::Given, progress)?;
        best(scores.row(0).as_slice().expect("a fresh matrix has contiguous rows"), request.best)
    } else {
        request.examples.clone()
    };
    let picked: Vec<Example<'_>> = chosen.iter().map(|&i| train.examples()[i as usize]).collect();
    let found = train.tapped().token_tangents(&picked, Loss::NextToken, direction.view())?;
    let examples: Vec<ExampleTokens> =
        chosen.iter().zip(&found).map(|(&i, scores)| told(corpus, tokenizer, i, scores)).collect();
    let query = &corpus.queries[request.query];
    let prompt_len = corpus.manifest.config.prompt_len;
    Ok(TokensReport {
        model: request.model.clone(),
        query: request.query,
        dataset: corpus.datasets[query.dataset as usize].name.clone(),
        prompt: tokenizer.decode(&query.tokens[..prompt_len]),
        response: tokenizer.decode(&query.tokens[prompt_len..]),
        parameters: train.tapped().dim(),
        fitted_on: fitted(request, corpus).len(),
        damping_rel: (!request.choose_damping).then_some(request.damping_rel),
        damping,
        top: top(&examples, request.top),
        examples,
    })
}

/// Refuses what is not there.
fn check(request: &TokensRequest, corpus: &Corpus) -> Result<(), EngineError> {
    let refuse = |setting, end: usize, found: String| {
        Err(EngineError::Setting { setting, expected: format!("a number below {end}"), found })
    };
    if request.query >= corpus.queries.len() {
        return refuse("query", corpus.queries.len(), request.query.to_string());
    }
    match request.examples.iter().find(|&&i| i as usize >= corpus.examples.len()) {
        Some(found) => refuse("examples", corpus.examples.len(), found.to_string()),
        None => Ok(()),
    }
}

/// The examples of the fit, evenly spread over the corpus.
fn fitted<'c>(request: &TokensRequest, corpus: &'c Corpus) -> Vec<Example<'c>> {
    let all = training_examples(corpus);
    let (n, wanted) = (all.len(), if request.fit_examples == 0 { all.len() } else { request.fit_examples });
    if wanted >= n { all } else { (0..wanted).map(|i| all[i * n / wanted]).collect() }
}

/// `H⁻¹q`, `[1, P]`, and how its damping was chosen.
fn direction(
    request: &TokensRequest,
    query: DecoderSource<'_>,
    fit: &DecoderSource<'_>,
    progress: &dyn Progress,
) -> Result<(Array2<f32>, Vec<Curve>), EngineError> {
    let q = captured::gradients(&query, &[0], Labels::Given)?;
    let options = Options { labels: Labels::Sampled { seed: request.seed }, ..Options::default() };
    let curvature = Kron::fit(fit, &options, progress)?;
    let (rule, curves) = match request.choose_damping {
        false => (Damping::Relative(request.damping_rel), Vec::new()),
        true => {
            let curves = damping::kron(fit, &options, &damping::Options::default(), progress)?;
            (damping::per_layer(&curves, &curvature)?, curves)
        }
    };
    Ok((curvature.inverse(Inverse::Damped, &rule)?.solve(q.view())?, curves))
}

/// The `n` largest scores, largest first, ties by number.
fn best(scores: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    order.truncate(n);
    order
}

fn told(corpus: &Corpus, tokenizer: &BpeTokenizer, i: u32, scores: &Array2<f32>) -> ExampleTokens {
    let example = &corpus.examples[i as usize];
    ExampleTokens {
        example: i,
        dataset: corpus.datasets[example.id.dataset as usize].name.clone(),
        score: scores.iter().map(|&x| f64::from(x)).sum(),
        pieces: example.tokens.iter().map(|&token| tokenizer.decode(&[token])).collect(),
        scores: scores.row(0).to_vec(),
    }
}

/// The `n` tokens of largest absolute influence, ties in order.
fn top(examples: &[ExampleTokens], n: usize) -> Vec<TokenScore> {
    let of_example = |example: &ExampleTokens| {
        let token = |(t, &score): (usize, &f32)| TokenScore {
            example: example.example,
            position: t + 1,
            piece: example.pieces[t + 1].clone(),
            score,
        };
        example.scores.iter().enumerate().map(token).collect::<Vec<_>>()
    };
    let mut all: Vec<TokenScore> = examples.iter().flat_map(of_example).collect();
    all.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
    all.truncate(n);
    all
}

impl ExampleTokens {
    /// The text around the token at `position`, which stands in brackets; line breaks are written out.
    pub fn around(&self, position: usize) -> String {
        let first = position.saturating_sub(CONTEXT);
        let last = (position + CONTEXT + 1).min(self.pieces.len());
        let text = |pieces: &[String]| pieces.concat().replace('\n', "\\n");
        let (before, after) = (&self.pieces[first..position], &self.pieces[position + 1..last]);
        format!("{}[{}]{}", text(before), text(&self.pieces[position..=position]), text(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_keep_their_order() {
        assert_eq!(best(&[1.0, 3.0, -5.0, 3.0], 3), [1, 3, 0]);
        assert!(best(&[], 3).is_empty());
        let example = |example, scores: &[f32]| ExampleTokens {
            example,
            dataset: String::new(),
            score: 0.0,
            pieces: ["a", "b\n", " c"].map(String::from).to_vec(),
            scores: scores.to_vec(),
        };
        let examples = [example(7, &[0.5, -2.0]), example(9, &[2.0, 0.1])];
        let found: Vec<(u32, usize)> = top(&examples, 3).iter().map(|t| (t.example, t.position)).collect();
        assert_eq!(found, [(7, 2), (9, 1), (7, 1)]);
        assert_eq!(examples[0].around(1), "a[b\\n] c");
        assert_eq!(examples[0].around(0), "[a]b\\n c");
    }
}
