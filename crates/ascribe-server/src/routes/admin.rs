//! What an administrator may do. Every action stands in the audit.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::audit::AuditLine;
use crate::keys::Scope;
use crate::problem::Problem;
use crate::routes::Peer;

/// Lines of the audit in one answer.
const AUDIT_LINES: usize = 200;

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Reloaded {
    /// Generation that answers now.
    pub generation: String,
    /// Seconds that loading took; requests went on meanwhile.
    pub seconds: f64,
}

/// Lines of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditList {
    /// Oldest first.
    pub actions: Vec<AuditLine>,
}

/// Load index, model, registry and API keys again. What cannot be loaded changes nothing.
#[utoipa::path(
    post, path = "/admin/reload", operation_id = "reload", tag = "admin",
    responses((status = 200, description = "The new generation answers", body = Reloaded)),
)]
pub async fn reload(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<Reloaded>, Problem> {
    let caller = app.admit(&headers, peer.map(|p| p.0.0), Scope::Admin)?;
    // On a task of its own: a client that goes away, or the time limit, does not stop half of a reload.
    let theirs = Arc::clone(&app);
    let reload = tokio::spawn(async move { theirs.reload(&caller.id).await });
    let generation = reload.await.map_err(|_| Problem::fault())??;
    let known = &generation.known;
    Ok(Json(Reloaded { generation: known.opened.generation.clone(), seconds: known.load_s }))
}

/// The last actions of administrators.
#[utoipa::path(
    get, path = "/admin/audit", operation_id = "audit", tag = "admin",
    responses((status = 200, description = "The last 200 actions", body = AuditList)),
)]
pub async fn audit(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<AuditList>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Admin)?;
    let actions = app.audit().last(AUDIT_LINES).map_err(|error| {
        tracing::error!(%error, "the audit could not be read");
        Problem::fault()
    })?;
    Ok(Json(AuditList { actions }))
}
