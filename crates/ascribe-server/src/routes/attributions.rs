//! `POST /v1/attributions`: one response in, its datasets, records and receipt out.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
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
use crate::routes::settings::{Pairs, Settings};
use crate::traces;
use crate::wire::{Attribution, AttributionRequest};

/// What an answer without shares takes, about.
const BYTES_PER_ANSWER: usize = 4096;
/// What a share takes, about.
const BYTES_PER_SHARE: usize = 320;

/// Attribute one response.
///
/// The body is JSON, or one row of little-endian numbers. Settings of the query hold where the body leaves them out.
#[utoipa::path(
    post, path = "/v1/attributions", operation_id = "attribute", tag = "attributions",
    request_body = AttributionRequest,
    responses((status = 200, description = "Datasets, records, and the receipt if one was asked for", body = Attribution)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    pairs: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + app.config.request_timeout;
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Attribute)?;
    let (kind, settings) = (Kind::of(&headers)?, Settings::of(&headers, &pairs)?);
    if kind == Kind::Lines {
        return Err(Problem::media_type("expected one question, found lines; hint: :batch takes them"));
    }
    let generation = app.generation();
    settings.check(&generation.known.opened, false)?;
    let bytes = body::read(&app, &headers, body).await?;
    let request = match kind {
        Kind::Numbers => one(settings.questions(&generation.known.opened, &bytes)?)?,
        _ => settings.fill(body::json(&bytes)?),
    };
    written(&answer(&app, &generation, &request, deadline).await?)
}

/// The only one of some questions.
fn one(mut questions: Vec<AttributionRequest>) -> Result<AttributionRequest, Problem> {
    match (questions.pop(), questions.len()) {
        (Some(only), 0) => Ok(only),
        (_, others) => {
            let detail = format!("body: expected one row, found {}; hint: :batch takes more", others + 1);
            Err(Problem::invalid(detail))
        }
    }
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
