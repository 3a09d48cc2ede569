//! What the report shows, as plain values. The walk fills it, the template draws it; the same values in the same order
//! give the same bytes.

use serde::{Deserialize, Serialize};

/// Everything on the page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportData {
    /// Facts about the run, in display order: label and value (`Model`, `datasets`, hashes, seed, versions).
    pub facts: Vec<Fact>,
    /// Registered datasets, by ordinal.
    pub datasets: Vec<DatasetRow>,
    /// Responses, in query order.
    pub responses: Vec<ResponseRow>,
    /// Methods and controls: measured against retraining.
    pub methods: Vec<MethodRow>,
    /// Agreement of one retraining seed with the others (against their mean): how noisy the truth itself is.
    pub ceiling: Option<MethodRow>,
    /// Name of the default method (the one that shares and payouts come from).
    pub default_method: String,
    /// Payout lines.
    pub payout: Vec<PayoutRow>,
    /// The pool, for example `1000.00 USD`.
    pub pool: String,
    /// Part of the pool kept as Unattributed, formatted.
    pub unattributed: String,
    /// Measured coverage in `[0, 1]`.
    pub coverage: f64,
    /// How coverage was measured, one sentence.
    pub coverage_note: String,
    /// HNSW against exact search.
    pub index: IndexFacts,
    /// Seconds per station, in walk order.
    pub timings: Vec<Timing>,
    /// Measured dataset influence by retraining: mean truth share `[dataset][dataset of the query]`, for the heat map's
    /// companion; empty without a bank.
    pub truth_heat: Vec<Vec<f64>>,
}

/// One labelled value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// Label.
    pub label: String,
    /// Value; long hashes whole.
    pub value: String,
}

/// One registered dataset.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatasetRow {
    /// Short name.
    pub name: String,
    /// Title.
    pub title: String,
    /// Owner.
    pub owner: String,
    /// SPDX expression.
    pub licence: String,
    /// `en`, `zh`, `code-py`, …
    pub language: String,
    /// Records registered.
    pub records: u64,
    /// Training examples cut from them.
    pub examples: u64,
    /// Content root, hex.
    pub content_root: String,
    /// Held-out bits per byte of the model.
    pub bits_per_byte: f64,
    /// The same of the bigram baseline.
    pub bits_per_byte_bigram: f64,
    /// The same of the unigram baseline.
    pub bits_per_byte_unigram: f64,
}

/// One explained response.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResponseRow {
    /// Position in the query set.
    pub id: u32,
    /// Ordinal of the dataset that the held-out text comes from.
    pub source_dataset: u32,
    /// The prompt part of the text.
    pub prompt: String,
    /// The response part, whose loss was attributed.
    pub response: String,
    /// Mean loss of the response in bits per byte.
    pub bits_per_byte: f64,
    /// Whether its shares can be paid, in a sentence.
    pub verdict: String,
    /// Share per dataset, by ordinal, default method.
    pub shares: Vec<ShareBar>,
    /// Truth share per dataset by retraining, if a bank is there.
    pub truth: Option<Vec<f64>>,
    /// Top source records, best first.
    pub top: Vec<SourceHit>,
}

/// A share with its interval.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShareBar {
    /// Share in `[0, 1]`.
    pub share: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A training record that the response owes to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceHit {
    /// Ordinal of the dataset.
    pub dataset: u32,
    /// Record id (`kjv-bible/Ge.1.1-7`).
    pub record: String,
    /// Influence score (block-Fisher, units of target).
    pub score: f64,
    /// The text of the span, cut to a few hundred characters.
    pub snippet: String,
}

/// One method's agreement with retraining.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MethodRow {
    /// Name.
    pub name: String,
    /// True for controls.
    pub control: bool,
    /// Held-out share error, raw scores.
    pub share_error: f64,
    /// Interval.
    pub share_error_low: f64,
    /// Interval.
    pub share_error_high: f64,
    /// Held-out share error after the one-temperature calibration.
    pub calibrated: f64,
    /// Interval.
    pub calibrated_low: f64,
    /// Interval.
    pub calibrated_high: f64,
    /// How often the top dataset is right.
    pub top1: f64,
    /// Mean Spearman correlation over datasets.
    pub spearman: f64,
    /// Interval.
    pub low: f64,
    /// Interval.
    pub high: f64,
    /// Spearman without the query's own dataset.
    pub spearman_others: f64,
}

/// One payee.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PayoutRow {
    /// Owner.
    pub owner: String,
    /// CAIP-10 account.
    pub account: String,
    /// Names of the owner's datasets.
    pub datasets: Vec<String>,
    /// Amount with currency, from integers.
    pub amount: String,
    /// Part of the attributed pool, in `[0, 1]`.
    pub part: f64,
    /// Lower end of the part (bootstrap over responses).
    pub part_low: f64,
    /// Upper end.
    pub part_high: f64,
}

/// The approximate index beside exact search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IndexFacts {
    /// Rows indexed.
    pub rows: u64,
    /// Numbers per row.
    pub dim: u64,
    /// Recall@10 against exact search over the responses.
    pub recall_at_10: f64,
    /// Store bytes per example.
    pub bytes_per_example: f64,
}

/// One station's time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Station.
    pub stage: String,
    /// Wall seconds.
    pub seconds: f64,
    /// What it did, in a few words (`9,216 examples, 31,000 tokens/s`).
    pub note: String,
}
