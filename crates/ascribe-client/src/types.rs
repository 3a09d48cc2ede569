//! The contract's types, field for field; a test holds them against `/openapi.json` of a running server. Fields that a newer
//! server adds are ignored, so that a client outlives a server's minor versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which datasets count. Empty lists leave nothing out; several lists must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// Names, or `urn:uuid:…`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<String>,
    /// Owners, as the datasets name them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
    /// SPDX expressions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub licences: Vec<String>,
}

/// Revenue that was settled for the response, for its receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revenue {
    /// ISO 4217 code or CAIP-19 asset.
    pub currency: String,
    /// Amount in the currency's smallest unit, a decimal string.
    pub minor_units: String,
}

/// What is explained, and how. Exactly one of `completion` (with `prompt`), `example`, `embedding` and `features`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AttributionRequest {
    /// Name of the model; refused if another one is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What the model was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// A held-out response of the corpus by number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<u32>,
    /// A mean hidden state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<f32>>,
    /// A projected gradient row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<f32>>,
    /// A method by name ([`Index::methods`]); the server's default without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Records in the answer; the server's default without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Records below this score are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    /// Which datasets count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// A signed receipt that enters the usage log.
    #[serde(skip_serializing_if = "is_false")]
    pub receipt: bool,
    /// Influence by token of the completion.
    #[serde(skip_serializing_if = "is_false")]
    pub tokens: bool,
    /// Runs of the completion that stand word for word in the data.
    #[serde(skip_serializing_if = "is_false")]
    pub verbatim: bool,
    /// What was settled for the response; goes into the receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revenue: Option<Revenue>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl AttributionRequest {
    /// A prompt and what the model made of it, everything else as the server has it.
    pub fn of(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        Self { prompt: Some(prompt.into()), completion: Some(completion.into()), ..Self::default() }
    }

    /// A held-out response of the corpus.
    pub fn of_example(number: u32) -> Self {
        Self { example: Some(number), ..Self::default() }
    }

    /// Asks for a signed receipt.
    #[must_use]
    pub fn with_receipt(self) -> Self {
        Self { receipt: true, ..self }
    }

    /// Asks for so many records.
    #[must_use]
    pub fn with_k(self, k: usize) -> Self {
        Self { k: Some(k), ..self }
    }

    /// Asks for a method by name.
    #[must_use]
    pub fn with_method(self, method: impl Into<String>) -> Self {
        Self { method: Some(method.into()), ..self }
    }

    /// Asks for influence by token and for verbatim runs.
    #[must_use]
    pub fn with_evidence(self) -> Self {
        Self { tokens: true, verbatim: true, ..self }
    }
}

/// What produced an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRef {
    /// Equal questions to equal generations have equal answers.
    pub generation: String,
    /// BLAKE3 of the rows' manifest.
    pub rows_blake3: String,
}

/// A part of a record; offsets count characters (code points) of its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The record.
    pub record_id: String,
    /// First character.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// The text, where the licence permits it.
    #[serde(default)]
    pub text: Option<String>,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// The record that fills most of the training example.
    pub record_id: String,
    /// The training example.
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
    /// Text of the record, where the licence permits it.
    #[serde(default)]
    pub text: Option<String>,
    /// Parts of records that stand in the example.
    pub spans: Vec<Span>,
}

/// One dataset's share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Name.
    pub dataset: String,
    /// `urn:uuid:…`.
    pub dataset_id: String,
    /// Owner.
    pub owner: String,
    /// SPDX expression.
    pub licence: String,
    /// Share of the attributed part, 0 to 1.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approx {
    /// `certified`, `exact` or `ann`.
    pub mode: String,
    /// 1 where it is proven, else as measured when the index was built.
    pub recall: f64,
    /// Rows scored again from the precise store.
    #[serde(default)]
    pub rescored: Option<u64>,
}

/// A token of the completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// What the datasets did for its prediction.
    pub influence: f64,
}

/// Where a verbatim run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the dataset.
    pub dataset: String,
    /// `urn:uuid:…`.
    pub dataset_id: String,
    /// The record.
    pub record_id: String,
}

/// A run of the completion that stands word for word in the data: evidence that it was there, not that it caused the response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerbatimRun {
    /// First character (code point) of the completion.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// First token.
    pub token_start: usize,
    /// One past the last.
    pub token_end: usize,
    /// Its text.
    pub text: String,
    /// Places in all records.
    pub count: u64,
    /// Some of them.
    pub sources: Vec<Source>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    pub hits: Vec<Hit>,
    /// Shares, largest first.
    pub shares: Vec<Share>,
    /// Part of a pool that these shares cover; the rest is unattributed.
    pub coverage: f64,
    /// `payable`, `too noisy to pay`, or `not measured`.
    pub verdict: String,
    /// Half width of the widest share's 95 % interval of what was drawn by chance.
    #[serde(default)]
    pub half_width: Option<f64>,
    /// How records were found.
    pub approx: Approx,
    /// Tokens of the completion, if asked for.
    #[serde(default)]
    pub tokens: Option<Vec<Token>>,
    /// Runs that stand in the data, if asked for.
    #[serde(default)]
    pub verbatim: Option<Vec<VerbatimRun>>,
    /// The signed receipt, if one was asked for: `{"receipt", "signer", "signature"}`.
    #[serde(default)]
    pub receipt: Option<serde_json::Value>,
    /// Why there is no receipt although one was asked for.
    #[serde(default)]
    pub receipt_error: Option<String>,
}

impl Attribution {
    /// True if owners may be paid for this response.
    pub fn is_payable(&self) -> bool {
        self.verdict == "payable"
    }
}

/// A receipt as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Id of the answer that it is for.
    pub id: String,
    /// `{"receipt", "signer", "signature"}`: the signature is Ed25519 over the receipt's canonical JSON (RFC 8785).
    pub receipt: serde_json::Value,
    /// Index in the usage log; `None` for the first seconds.
    #[serde(default)]
    pub index: Option<u64>,
    /// C2SP tlog-proof.
    #[serde(default)]
    pub proof: Option<String>,
}

/// What a payee's part of a dataset's revenue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earned {
    /// CAIP-10 account; empty for a dataset without payees.
    pub account: String,
    /// Smallest units, a decimal string.
    pub amount: String,
    /// Currency.
    pub currency: String,
}

/// A registered dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// `urn:uuid:…`.
    pub dataset_id: String,
    /// Name.
    pub dataset: String,
    /// Title for people.
    pub title: String,
    /// The paid party.
    pub owner: String,
    /// SPDX expression.
    pub licence: String,
    /// Language tag.
    pub language: String,
    /// Records.
    pub records: u64,
    /// RFC 6962 root over the record hashes.
    pub content_root: String,
    /// True if texts of records may be shown.
    pub may_show: bool,
    /// True if its licence was revoked.
    pub revoked: bool,
    /// Permitted uses.
    pub permits: Vec<String>,
    /// Prohibited uses.
    pub prohibits: Vec<String>,
    /// Measured reputation, where the run folder holds it.
    #[serde(default)]
    pub reputation: Option<serde_json::Value>,
    /// Revenue of receipts, split by payees.
    pub earned: Vec<Earned>,
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts, in millionths of a response, a decimal string.
    pub response_ppm: String,
}

/// All datasets, by ordinal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Datasets {
    /// Datasets.
    pub datasets: Vec<Dataset>,
}

/// One dataset of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementRow {
    /// Name.
    pub dataset: String,
    /// `urn:uuid:…`.
    pub dataset_id: String,
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts, in millionths of a response.
    pub response_ppm: String,
    /// Revenue by currency, smallest units.
    pub revenue: BTreeMap<String, String>,
}

/// What an owner's datasets have earned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The owner.
    pub owner: String,
    /// Receipts of this server in all.
    pub receipts_in_all: u64,
    /// Its datasets.
    pub datasets: Vec<StatementRow>,
    /// Sums by currency, smallest units.
    pub revenue: BTreeMap<String, String>,
    /// What this is not.
    pub note: String,
}

/// A method that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Method {
    /// Name.
    pub name: String,
    /// For people.
    pub title: String,
    /// `gradient` or `embedding`.
    pub mode: String,
    /// True for the one that is taken if none is named.
    pub default: bool,
}

/// What stands behind the answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Generation of index, model and registry.
    pub generation: String,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of its weights.
    pub model_sha256: String,
    /// Id of the training run.
    pub run_id: String,
    /// Hash of the rows' feature spec.
    pub spec_hash: String,
    /// Digest of the registry.
    pub registry: String,
    /// Digest of the corpus manifest.
    pub corpus: String,
    /// BLAKE3 of the rows' manifest.
    pub rows_blake3: String,
    /// Rows.
    pub rows: u64,
    /// Numbers of a row: what `features` needs.
    pub dim: usize,
    /// Numbers of an embedding.
    pub embedding_dim: usize,
    /// Datasets.
    pub datasets: usize,
    /// Responses to try by number.
    pub examples: usize,
    /// Methods.
    pub methods: Vec<Method>,
}

/// A held-out response to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Number, for [`AttributionRequest::example`].
    pub id: u32,
    /// Prompt.
    pub prompt: String,
    /// Completion.
    pub completion: String,
    /// Name of the dataset that it was held out from.
    pub dataset: String,
    /// Its language tag.
    pub language: String,
}

/// Responses to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examples {
    /// Responses.
    pub examples: Vec<Example>,
}

/// A key that signs receipts and checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorKey {
    /// `did:key:…`.
    pub id: String,
    /// Signature algorithm.
    pub alg: String,
    /// Multibase.
    pub public_key: String,
    /// Verifier line of a signed note.
    pub verifier: String,
    /// PEM.
    pub pem: String,
}

/// Keys of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Keys.
    pub keys: Vec<OperatorKey>,
}

/// State in a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Generation that answers.
    pub generation: String,
    /// Version of the server.
    pub version: String,
}

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Generation that answers now.
    pub generation: String,
    /// Seconds that loading took.
    pub seconds: f64,
}

/// One action of an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLine {
    /// When, RFC 3339.
    pub at: String,
    /// Id of the key.
    pub who: String,
    /// What.
    pub action: String,
    /// Generation that answered after it.
    pub generation: String,
    /// `ok`, or why not.
    pub outcome: String,
}

/// The last actions of administrators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Oldest first.
    pub actions: Vec<AuditLine>,
}
