//! Requests and answers as they stand on the wire. Unknown fields are refused; what a field means stands at its type, and the
//! contract (`/openapi.json`) is made of these types.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use ascribe_engine::respond::{Ask, Filter, Input, Opened};

use crate::problem::Problem;

mod text;
mod whole;

pub use text::Text;

/// Most records per answer.
pub const MAX_K: usize = 1_000;
/// Records per answer of those who do not say.
pub const DEFAULT_K: usize = 10;
/// Largest number of a vector, in size: products with it still fit.
pub const NUMBER_MAX: f32 = 1e18;
/// Most characters of a prompt, and of a completion.
pub const MAX_CHARS: usize = 8_192;
/// Most names of a filter's list.
pub const MAX_FILTER: usize = 100;
/// Most questions of one batch.
pub const MAX_BATCH: usize = 64;

/// Which datasets count. Several lists must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WireFilter {
    /// Names, or `urn:uuid:…`.
    #[serde(default)]
    #[schema(max_items = 100)]
    pub datasets: Vec<String>,
    /// Owners, as the datasets name them.
    #[serde(default)]
    #[schema(max_items = 100)]
    pub owners: Vec<String>,
    /// SPDX expressions.
    #[serde(default)]
    #[schema(max_items = 100)]
    pub licences: Vec<String>,
}

/// Revenue that was settled for the response, for its receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WireRevenue {
    /// ISO 4217 code or CAIP-19 asset.
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    pub currency: String,
    /// Amount in the currency's smallest unit, a decimal string.
    #[schema(pattern = "^(0|[1-9][0-9]{0,30})$")]
    pub minor_units: String,
}

/// What is explained, and how. Exactly one of: `completion` (with `prompt`), `example`, `embedding`, `features`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttributionRequest {
    /// Name of the model; refused if another one is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What the model was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 8192)]
    pub prompt: Option<String>,
    /// What it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 8192)]
    pub completion: Option<String>,
    /// A held-out response of the corpus by number, with the very tokens that the walk explained.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole::or_null")]
    pub example: Option<u32>,
    /// A mean hidden state (or, for a store without a model, a vector of its rows' length).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<f32>>,
    /// A projected gradient row of the last checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
    /// `calibrated`, `block_fisher`, `trajectory_fisher`, `tracin`: gradient mode. `embedding`: approximate look-up, scored again
    /// exactly. For stores `dot`, `dot_certified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Records in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole::or_null")]
    #[schema(maximum = 1000, default = 10)]
    pub k: Option<usize>,
    /// Records below this score are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    /// Which datasets count. Shares of others are left out, not given to those that stay.
    #[serde(default)]
    pub filter: WireFilter,
    /// A signed receipt that enters the usage log.
    #[serde(default)]
    pub receipt: bool,
    /// Influence by token of the completion.
    #[serde(default)]
    pub tokens: bool,
    /// Runs of the completion that stand word for word in the data.
    #[serde(default)]
    pub verbatim: bool,
    /// What was settled for the response; goes into the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revenue: Option<WireRevenue>,
}

/// Several questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// Questions, answered in their order.
    #[schema(max_items = 64)]
    pub requests: Vec<AttributionRequest>,
}

/// What produced the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IndexRef {
    /// Generation of index, model and registry: equal questions to equal generations have equal answers.
    pub generation: String,
    /// BLAKE3 of the rows' manifest.
    pub rows_blake3: String,
}

/// A part of a record. Offsets count characters (code points) of the record's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireSpan {
    /// The record.
    pub record_id: String,
    /// First character.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// The text, where the licence permits `search`; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WireHit {
    /// The record that fills most of the training example.
    pub record_id: String,
    /// The training example: `dataset ordinal:position`.
    pub example_id: String,
    /// Name of the dataset.
    pub dataset: String,
    /// `urn:uuid:…` of the dataset.
    pub dataset_id: String,
    /// Owner.
    pub owner: String,
    /// SPDX expression.
    pub licence: String,
    /// Score; positive = its presence made the response likelier.
    pub score: f64,
    /// Text of the record, where the licence permits `search`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Parts of records that stand in the example.
    pub spans: Vec<WireSpan>,
}

/// One dataset's share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WireShare {
    /// Name.
    #[schema(value_type = String)]
    pub dataset: Text,
    /// `urn:uuid:…`.
    #[schema(value_type = String)]
    pub dataset_id: Text,
    /// Owner.
    #[schema(value_type = String)]
    pub owner: Text,
    /// SPDX expression.
    #[schema(value_type = String)]
    pub licence: Text,
    /// Share of the attributed part.
    pub share: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Standard error of what was drawn by chance.
    pub std_error: f64,
    /// Score that stands behind it, in the method's unit.
    pub score: f64,
}

/// How records were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WireApprox {
    /// `certified` (proven to be the best), `exact`, or `ann`.
    pub mode: String,
    /// Recall: 1 where it is proven, else as measured when the index was built.
    pub recall: f64,
    /// Rows scored again from the precise store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescored: Option<u64>,
}

/// A token of the completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WireToken {
    /// Its text; empty where an `example` is a record whose licence forbids display.
    pub text: String,
    /// What the datasets did for its prediction, each by its share.
    pub influence: f64,
}

/// Where a verbatim run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireSource {
    /// Name of the dataset.
    pub dataset: String,
    /// `urn:uuid:…`.
    pub dataset_id: String,
    /// The record.
    pub record_id: String,
}

/// A run of the completion that stands word for word in the data. It shows that a source was available, not that it caused the
/// response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WireRun {
    /// First character (code point) of the completion.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// First token.
    pub token_start: usize,
    /// One past the last.
    pub token_end: usize,
    /// Its text; empty where an `example` is a record whose licence forbids display.
    pub text: String,
    /// Places in all records.
    pub count: u64,
    /// Some of them.
    pub sources: Vec<WireSource>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attribution {
    /// Id of the answer, and of its receipt.
    pub id: String,
    /// Method.
    pub method: String,
    /// What produced it.
    pub index: IndexRef,
    /// Digest of everything that scores and shares depend on besides the response.
    pub spec_hash: String,
    /// Name of the model.
    pub model: String,
    /// Records, best first.
    pub hits: Vec<WireHit>,
    /// Shares, largest first.
    pub shares: Vec<WireShare>,
    /// Part of a pool that these shares cover; the rest is unattributed.
    pub coverage: f64,
    /// `payable`, `too noisy to pay`, or `not measured`.
    pub verdict: String,
    /// Half width of the widest share's 95 % interval of what was drawn by chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_width: Option<f64>,
    /// How records were found.
    pub approx: WireApprox,
    /// Tokens of the completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<WireToken>>,
    /// Runs of the completion that stand in the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbatim: Option<Vec<WireRun>>,
    /// The signed receipt, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<serde_json::Value>,
    /// Why there is no receipt although one was asked for (policy `mark`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt_error: Option<String>,
}

/// One place of a batch: an answer or a problem.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BatchItem {
    /// An answer.
    Answer(Box<Attribution>),
    /// A problem with this question alone.
    Problem(Problem),
}

/// Answers of a batch, in the order of its questions.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BatchAnswer {
    /// Answers and problems.
    pub responses: Vec<BatchItem>,
}

impl AttributionRequest {
    /// The question to the engine.
    ///
    /// # Errors
    /// No input or several; numbers out of range; another model.
    pub fn ask(&self, served: &str) -> Result<Ask, Problem> {
        if let Some(model) = self.model.as_deref().filter(|m| *m != served) {
            return Err(Problem::not_found(format!("model: expected {served:?}, found {model:?}")));
        }
        self.check_texts()?;
        let k = self.k.unwrap_or(DEFAULT_K);
        if k > MAX_K {
            return Err(Problem::invalid(format!("k: expected at most {MAX_K}, found {k}")));
        }
        if self.min_score.is_some_and(|least| !least.is_finite()) {
            return Err(Problem::invalid("min_score: expected a finite number, found another"));
        }
        for (field, vector) in [("embedding", &self.embedding), ("features", &self.features)] {
            let huge = |x: &f32| x.is_nan() || x.abs() > NUMBER_MAX;
            if let Some(at) = vector.iter().flatten().position(huge) {
                return Err(Problem::invalid(format!("{field}: expected numbers up to 1e18, found another at {at}")));
            }
        }
        let given =
            [self.completion.is_some(), self.example.is_some(), self.embedding.is_some(), self.features.is_some()];
        let n = given.iter().filter(|g| **g).count();
        if n != 1 || (self.prompt.is_some() && self.completion.is_none()) {
            let detail = "expected exactly one of completion (with prompt), example, embedding, features; found ";
            return Err(Problem::invalid(format!(
                "{detail}{n}{}",
                if self.prompt.is_some() { " and a prompt" } else { "" }
            )));
        }
        let input = match (&self.completion, self.example, &self.embedding, &self.features) {
            (Some(completion), ..) => {
                Input::Text { prompt: self.prompt.clone().unwrap_or_default(), completion: completion.clone() }
            }
            (_, Some(number), ..) => Input::Example(number as usize),
            (_, _, Some(vector), _) => Input::Embedding(vector.clone()),
            (.., features) => Input::Features(features.clone().unwrap_or_default()),
        };
        Ok(Ask {
            input,
            method: self.method.clone(),
            k,
            min_score: self.min_score,
            filter: Filter {
                datasets: self.filter.datasets.clone(),
                owners: self.filter.owners.clone(),
                licences: self.filter.licences.clone(),
            },
            tokens: self.tokens,
            verbatim: self.verbatim,
        })
    }

    /// Everything that the contract says of this question to a server of `opened`, without asking it.
    ///
    /// # Errors
    /// What [`AttributionRequest::ask`] refuses; a method, example or length that is not served.
    pub fn check(&self, opened: &Opened) -> Result<(), Problem> {
        self.ask(&opened.model)?;
        if let Some(method) = self.method.as_ref().filter(|m| !opened.methods.contains(m)) {
            let expected = opened.methods.join(", ");
            return Err(Problem::not_found(format!("method: expected one of {expected}, found {method:?}")));
        }
        if let Some(number) = self.example.filter(|n| *n as usize >= opened.examples) {
            return Err(Problem::not_found(format!("example: expected below {}, found {number}", opened.examples)));
        }
        let lengths = [("embedding", &self.embedding, opened.embedding_dim), ("features", &self.features, opened.dim)];
        for (field, vector, dim) in lengths {
            if let Some(found) = vector.as_ref().map(Vec::len).filter(|n| *n != dim) {
                return Err(Problem::invalid(format!("{field}: expected {dim} numbers, found {found}")));
            }
        }
        let is_vector = self.embedding.is_some() || self.features.is_some();
        if is_vector && (self.tokens || self.verbatim) {
            return Err(Problem::invalid("tokens, verbatim: expected a text, found a vector"));
        }
        Ok(())
    }

    /// What the contract says of texts, lists and revenue: it is refused whether it would be used or not.
    fn check_texts(&self) -> Result<(), Problem> {
        for (field, text) in [("prompt", &self.prompt), ("completion", &self.completion)] {
            let n = text.as_ref().map_or(0, |t| t.chars().count());
            if n > MAX_CHARS {
                return Err(Problem::invalid(format!("{field}: expected at most {MAX_CHARS} characters, found {n}")));
            }
        }
        if self.completion.as_ref().is_some_and(String::is_empty) {
            return Err(Problem::invalid("completion: expected at least one character, found none"));
        }
        let lists = [&self.filter.datasets, &self.filter.owners, &self.filter.licences];
        if let Some(list) = lists.into_iter().find(|list| list.len() > MAX_FILTER) {
            return Err(Problem::invalid(format!("filter: expected at most {MAX_FILTER} names, found {}", list.len())));
        }
        let Some(WireRevenue { currency, minor_units }) = &self.revenue else { return Ok(()) };
        if currency.is_empty() || currency.len() > 128 || !currency.bytes().all(|b| b.is_ascii_graphic()) {
            let expected = "1 to 128 printable characters of ASCII";
            return Err(Problem::invalid(format!("revenue.currency: expected {expected}, found {currency:?}")));
        }
        let is_plain = minor_units == "0" || !minor_units.starts_with('0');
        if minor_units.is_empty()
            || minor_units.len() > 31
            || !minor_units.bytes().all(|b| b.is_ascii_digit())
            || !is_plain
        {
            let expected = "a plain decimal of at most 31 digits";
            return Err(Problem::invalid(format!("revenue.minor_units: expected {expected}, found {minor_units:?}")));
        }
        Ok(())
    }
}
