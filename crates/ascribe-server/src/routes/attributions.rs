//! `POST /v1/attributions`: one response in, its datasets, records and receipt out.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;

use crate::answer::{attribution, new_id, receipt};
use crate::app::App;
use crate::config::ReceiptPolicy;
use crate::generation::Generation;
use crate::keys::Scope;
use crate::problem::Problem;
use crate::receipts::NotLogged;
use crate::routes::Peer;
use crate::routes::body::{self, Kind};
use crate::traces;
use crate::wire::{Attribution, AttributionRequest};

/// What an answer without shares takes, about.
const BYTES_PER_ANSWER: usize = 4096;
/// What a share takes, about.
const BYTES_PER_SHARE: usize = 320;

/// Attribute one response.
///
/// The body is JSON. A vector may also come as `application/octet-stream` (little-endian f32, or f16 with `x-dtype: f16`; the
/// shape in `x-shape`), with `kind=embedding|features`, `k`, `method` and `receipt` in the query.
#[utoipa::path(
    post, path = "/v1/attributions", operation_id = "attribute", tag = "attributions",
    request_body = AttributionRequest,
    responses((status = 200, description = "Datasets, records, and the receipt if one was asked for", body = Attribution)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + app.config.request_timeout;
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Attribute)?;
    let kind = Kind::of(&headers)?;
    let bytes = body::read(&app, &headers, body).await?;
    let request = match kind {
        Kind::Json => body::json(&bytes)?,
        Kind::Numbers => {
            let mut rows = body::numbers(&headers, &bytes)?;
            match rows.len() {
                1 => of_vector(rows.remove(0), query.as_deref())?,
                n => {
                    return Err(Problem::invalid(format!(
                        "x-shape: expected one row, found {n}; hint: :batch takes more"
                    )));
                }
            }
        }
        Kind::Lines => return Err(Problem::malformed("expected one JSON value, found lines; hint: :batch takes them")),
    };
    written(&answer(&app, &app.generation(), &request, deadline).await?)
}

/// An answer as JSON, in a buffer that is large enough from the beginning.
fn written(answer: &Attribution) -> Result<Response, Problem> {
    let mut bytes = Vec::with_capacity(BYTES_PER_ANSWER + BYTES_PER_SHARE * answer.shares.len());
    serde_json::to_writer(&mut bytes, answer).map_err(|_| Problem::fault())?;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// One question from beginning to end: answer, receipt, durable.
///
/// # Errors
/// [`Problem`].
pub async fn answer(
    app: &Arc<App>,
    generation: &Generation,
    request: &AttributionRequest,
    deadline: Instant,
) -> Result<Attribution, Problem> {
    let known = &generation.known;
    let ask = request.ask(&known.opened.model)?;
    let found = traces::part("answer", generation.ask(ask, deadline)).await;
    app.metrics.waiting.set(generation.waiting() as i64);
    let mut answer = attribution(new_id("attr")?, &found?, known);
    if request.receipt {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let usage = receipt(&answer, request, known, app.receipts.salts(), now)?;
        match traces::part("receipt", app.receipts.log(usage)).await {
            Ok(signed) => {
                app.metrics.receipt("logged");
                answer.receipt = Some(serde_json::to_value(&signed).map_err(|_| Problem::fault())?);
            }
            Err(NotLogged::Busy) => {
                app.metrics.receipt("busy");
                return Err(Problem::overloaded("expected room for a receipt, found none"));
            }
            Err(NotLogged::Malformed(why)) => {
                tracing::error!(why, "a receipt was made that is none");
                return Err(Problem::fault());
            }
            Err(NotLogged::Disk(why)) => {
                app.metrics.receipt("not_logged");
                let detail = format!("expected a durable receipt, found: {why}");
                match app.config.receipt_policy {
                    ReceiptPolicy::Refuse => return Err(Problem::not_logged(detail)),
                    ReceiptPolicy::Mark => answer.receipt_error = Some(detail),
                }
            }
        }
    }
    Ok(answer)
}

/// A question about a vector, with its settings from the query.
///
/// # Errors
/// A setting that is unknown or cannot be used.
pub fn of_vector(vector: Vec<f32>, query: Option<&str>) -> Result<AttributionRequest, Problem> {
    let mut object = serde_json::Map::new();
    let mut kind = "embedding".to_owned();
    for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let refuse = |expected: &str| Problem::invalid(format!("{name}: expected {expected}, found {value:?}"));
        let value = match name {
            "kind" if value == "embedding" || value == "features" => {
                kind = value.to_owned();
                continue;
            }
            "kind" => return Err(refuse("embedding or features")),
            "method" => value.into(),
            "k" => value.parse::<usize>().map_err(|_| refuse("a number"))?.into(),
            "receipt" => value.parse::<bool>().map_err(|_| refuse("true or false"))?.into(),
            _ => return Err(refuse("no such setting; there are kind, method, k, receipt")),
        };
        object.insert(name.to_owned(), value);
    }
    let mut request: AttributionRequest =
        serde_json::from_value(object.into()).map_err(|e| Problem::invalid(e.to_string()))?;
    match kind.as_str() {
        "features" => request.features = Some(vector),
        _ => request.embedding = Some(vector),
    }
    Ok(request)
}
