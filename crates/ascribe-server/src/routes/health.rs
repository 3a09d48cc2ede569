//! Is it alive, is it ready, what does it count, what does it promise.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::keys::Scope;
use crate::problem::Problem;
use crate::routes::Peer;

/// Media type of metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// State in a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Generation that answers.
    pub generation: String,
    /// Version of the server.
    pub version: String,
}

fn health(app: &App) -> Health {
    Health {
        status: "ok".into(),
        generation: app.generation().known.opened.generation.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// The process lives.
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz", tag = "operation",
    responses((status = 200, description = "It lives", body = Health)),
)]
pub async fn healthz(State(app): State<Arc<App>>) -> Json<Health> {
    Json(health(&app))
}

/// Questions are answered; 503 while it drains.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "operation",
    responses((status = 200, description = "It is ready", body = Health)),
)]
pub async fn readyz(State(app): State<Arc<App>>) -> Result<Json<Health>, Problem> {
    if app.is_draining() {
        return Err(Problem::overloaded("expected a server that goes on, found one that drains"));
    }
    Ok(Json(health(&app)))
}

/// Counters, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "operation",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")),
)]
pub async fn metrics(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    app.metrics.waiting.set(app.generation().waiting() as i64);
    let busy = app.config.max_in_flight.saturating_sub(app.in_flight.available_permits());
    app.metrics.in_flight.set(busy as i64);
    Ok(([(CONTENT_TYPE, OPENMETRICS)], app.metrics.text()).into_response())
}

/// The contract: this document, for what is served now.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "contract", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub async fn openapi(State(app): State<Arc<App>>) -> Json<serde_json::Value> {
    Json(crate::openapi::document(&app.generation().known.opened, &app.config))
}
