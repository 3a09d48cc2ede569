//! What answers are made of: datasets, what they have earned, owners' statements, the index, responses to try.

use std::collections::BTreeMap;
use std::sync::Arc;

use ascribe_engine::respond::CatalogDataset;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::earned::{DatasetEarned, Earned};
use crate::generation::Generation;
use crate::keys::Scope;
use crate::params::Name;
use crate::problem::Problem;
use crate::routes::Peer;

/// A registered dataset.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DatasetRow {
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
    /// Permitted uses, RSL tokens.
    pub permits: Vec<String>,
    /// Prohibited uses.
    pub prohibits: Vec<String>,
    /// Measured reputation, where the run folder holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reputation: Option<serde_json::Value>,
    /// Revenue of receipts of this server, split by the dataset's payees; no payment, only what was attributed.
    pub earned: Vec<EarnedRow>,
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts of responses, in millionths of a response, a decimal string.
    pub response_ppm: String,
}

/// What a payee's part of a dataset's revenue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct EarnedRow {
    /// CAIP-10 account; empty for a dataset without payees.
    pub account: String,
    /// Smallest units, a decimal string.
    pub amount: String,
    /// Currency.
    pub currency: String,
}

/// All datasets.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DatasetList {
    /// By ordinal.
    pub datasets: Vec<DatasetRow>,
}

/// One dataset of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StatementRow {
    /// Name.
    pub dataset: String,
    /// `urn:uuid:…`.
    pub dataset_id: String,
    /// Receipts with a share of it.
    pub receipts: u64,
    /// Sum of its parts of responses, in millionths of a response.
    pub response_ppm: String,
    /// Revenue by currency, smallest units as decimal strings.
    pub revenue: BTreeMap<String, String>,
}

/// What an owner's datasets have earned by this server's receipts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Statement {
    /// The owner.
    pub owner: String,
    /// Receipts of this server in all.
    pub receipts_in_all: u64,
    /// Its datasets.
    pub datasets: Vec<StatementRow>,
    /// Sums by currency.
    pub revenue: BTreeMap<String, String>,
    /// What this is not.
    pub note: String,
}

/// A method that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MethodRow {
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct IndexInfo {
    /// Generation of index, model and registry.
    pub generation: String,
    /// Name of the model; `none` for a store alone.
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
    pub methods: Vec<MethodRow>,
}

/// A held-out response to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ExampleRow {
    /// Number, for `example` of a request.
    pub id: usize,
    /// Prompt; empty where the dataset's licence forbids display.
    pub prompt: String,
    /// Completion; empty where the dataset's licence forbids display.
    pub completion: String,
    /// Name of the dataset that it was held out from.
    pub dataset: String,
    /// Its language tag.
    pub language: String,
}

/// Responses to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ExampleList {
    /// Responses.
    pub examples: Vec<ExampleRow>,
}

/// All registered datasets.
#[utoipa::path(
    get, path = "/v1/datasets", operation_id = "datasets", tag = "catalog",
    responses((status = 200, description = "All datasets", body = DatasetList)),
)]
pub async fn datasets(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<DatasetList>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    let (generation, earned) = (app.generation(), app.receipts.earned());
    let row = |d: &CatalogDataset| row(d, &earned, &generation);
    Ok(Json(DatasetList { datasets: generation.known.catalog.datasets.iter().map(row).collect() }))
}

/// One dataset, by name or `urn:uuid:…`.
#[utoipa::path(
    get, path = "/v1/datasets/{id}", operation_id = "dataset", tag = "catalog",
    params(("id" = String, Path, description = "Name or `urn:uuid:…`")),
    responses((status = 200, description = "The dataset", body = DatasetRow)),
)]
pub async fn dataset(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    Name(id): Name,
    headers: HeaderMap,
) -> Result<Json<DatasetRow>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    let generation = app.generation();
    let found = generation.known.catalog.datasets.iter().find(|d| d.name == id || d.uuid == id);
    let found = found.ok_or_else(|| Problem::not_found(format!("dataset: expected a registered one, found {id:?}")))?;
    Ok(Json(row(found, &app.receipts.earned(), &generation)))
}

fn row(dataset: &CatalogDataset, earned: &Earned, generation: &Generation) -> DatasetRow {
    let none = DatasetEarned::default();
    let sums = earned.datasets.get(&dataset.uuid).unwrap_or(&none);
    let reputation = generation.known.reputation.as_ref().and_then(|r| {
        let rows = r.get("datasets").or_else(|| r.get("rows"))?.as_array()?;
        rows.iter().find(|row| row.get("dataset").and_then(|d| d.as_str()) == Some(&dataset.name)).cloned()
    });
    DatasetRow {
        dataset_id: dataset.uuid.clone(),
        dataset: dataset.name.clone(),
        title: dataset.title.clone(),
        owner: dataset.owner.clone(),
        licence: dataset.licence.clone(),
        language: dataset.language.clone(),
        records: dataset.records,
        content_root: dataset.content_root.clone(),
        may_show: dataset.may_show,
        revoked: dataset.revoked,
        permits: dataset.permits.clone(),
        prohibits: dataset.prohibits.clone(),
        reputation,
        earned: by_payee(dataset, sums),
        receipts: sums.receipts,
        response_ppm: sums.response_ppm.to_string(),
    }
}

/// `⌊amount · ppm / 10⁶⌋` per payee; what is left is dust that the ledger keeps.
fn by_payee(dataset: &CatalogDataset, sums: &DatasetEarned) -> Vec<EarnedRow> {
    let mut rows = Vec::new();
    for (currency, amount) in sums.revenue.iter().filter(|(_, amount)| **amount > 0) {
        let mut push = |account: &str, amount: u128| {
            rows.push(EarnedRow {
                account: account.to_owned(),
                amount: amount.to_string(),
                currency: currency.clone(),
            });
        };
        if dataset.payees.is_empty() {
            push("", *amount);
        }
        for (account, ppm) in &dataset.payees {
            let ppm = u128::from(*ppm);
            push(account, (amount / 1_000_000) * ppm + (amount % 1_000_000) * ppm / 1_000_000);
        }
    }
    rows
}

/// What an owner's datasets have earned by receipts of this server. The id is the owner as datasets name it, or one of its
/// datasets' names.
#[utoipa::path(
    get, path = "/v1/owners/{id}/statement", operation_id = "statement", tag = "catalog",
    params(("id" = String, Path, description = "Owner, percent-encoded")),
    responses((status = 200, description = "The statement", body = Statement)),
)]
pub async fn statement(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    Name(id): Name,
    headers: HeaderMap,
) -> Result<Json<Statement>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    let generation = app.generation();
    let all = &generation.known.catalog.datasets;
    let owner = all.iter().find(|d| d.owner == id || d.name == id).map(|d| d.owner.clone());
    let owner = owner.ok_or_else(|| Problem::not_found(format!("owner: expected a registered one, found {id:?}")))?;
    let (earned, none) = (app.receipts.earned(), DatasetEarned::default());
    let mut totals: BTreeMap<String, u128> = BTreeMap::new();
    let mut rows = Vec::new();
    for dataset in all.iter().filter(|d| d.owner == owner) {
        let sums = earned.datasets.get(&dataset.uuid).unwrap_or(&none);
        for (currency, amount) in &sums.revenue {
            let total = totals.entry(currency.clone()).or_default();
            *total = total.saturating_add(*amount);
        }
        rows.push(StatementRow {
            dataset: dataset.name.clone(),
            dataset_id: dataset.uuid.clone(),
            receipts: sums.receipts,
            response_ppm: sums.response_ppm.to_string(),
            revenue: sums.revenue.iter().map(|(c, n)| (c.clone(), n.to_string())).collect(),
        });
    }
    let note =
        "attributed by receipts of this server; nothing is owed before `ascribe ledger accrue --usage` has booked them";
    Ok(Json(Statement {
        owner,
        receipts_in_all: earned.receipts,
        datasets: rows,
        revenue: totals.into_iter().map(|(c, n)| (c, n.to_string())).collect(),
        note: note.into(),
    }))
}

/// Held-out responses to try.
#[utoipa::path(
    get, path = "/v1/examples", operation_id = "examples", tag = "catalog",
    responses((status = 200, description = "Responses", body = ExampleList)),
)]
pub async fn examples(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<ExampleList>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    let generation = app.generation();
    let row = |s: &ascribe_engine::respond::Sample| {
        let dataset = &generation.known.catalog.datasets[s.dataset];
        let said = |text: &String| if dataset.may_show { text.clone() } else { String::new() };
        ExampleRow {
            id: s.number,
            prompt: said(&s.prompt),
            completion: said(&s.completion),
            dataset: dataset.name.clone(),
            language: dataset.language.clone(),
        }
    };
    Ok(Json(ExampleList { examples: generation.known.samples.iter().map(row).collect() }))
}

/// What stands behind the answers.
#[utoipa::path(
    get, path = "/v1/index", operation_id = "index", tag = "catalog",
    responses((status = 200, description = "Generation, model, methods", body = IndexInfo)),
)]
pub async fn index(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<IndexInfo>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    let generation = app.generation();
    let o = &generation.known.opened;
    Ok(Json(IndexInfo {
        generation: o.generation.clone(),
        model: o.model.clone(),
        model_sha256: o.model_sha256.to_string(),
        run_id: o.run_id.clone(),
        spec_hash: o.spec_hash.to_string(),
        registry: o.registry.to_string(),
        corpus: o.corpus.to_string(),
        rows_blake3: o.rows_blake3.clone(),
        rows: o.rows,
        dim: o.dim,
        embedding_dim: o.embedding_dim,
        datasets: o.datasets,
        examples: o.examples,
        methods: o.methods.iter().enumerate().map(|(at, name)| method(name, at == 0)).collect(),
    }))
}

fn method(name: &str, default: bool) -> MethodRow {
    let (title, mode) = match name {
        "calibrated" => ("Calibrated combination", "gradient"),
        "block_fisher" => ("Influence, last checkpoint", "gradient"),
        "trajectory_fisher" => ("Influence, whole training", "gradient"),
        "tracin" => ("TracIn", "gradient"),
        "embedding" => ("Similarity of hidden states", "embedding"),
        "dot_certified" => ("Inner product, proven", "embedding"),
        _ => ("Inner product", "embedding"),
    };
    MethodRow { name: name.to_owned(), title: title.to_owned(), mode: mode.to_owned(), default }
}

/// The reputation that a run folder holds, if somebody ran `ascribe reputation` with it.
pub fn read_reputation(run: &std::path::Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(run.join("reputation.json")).ok()?).ok()
}
