//! Receipts and the keys that they are checked with.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::keys::Scope;
use crate::params::Name;
use crate::problem::Problem;
use crate::routes::Peer;

/// A receipt, as it was signed, with the proof of its place in the usage log once it has one.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ReceiptAnswer {
    /// Id of the answer that it is for.
    pub id: String,
    /// The receipt, `did:key` of the signer, signature over its canonical JSON (RFC 8785).
    #[schema(value_type = Object)]
    pub receipt: serde_json::Value,
    /// Index in the usage log; absent while it is in the journal alone (seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// C2SP tlog-proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyRow {
    /// `did:key:…`.
    pub id: String,
    /// Signature algorithm.
    pub alg: String,
    /// Multibase of the public key.
    pub public_key: String,
    /// The same as the verifier line of a signed note: for checkpoints of the usage log.
    pub verifier: String,
    /// PEM, SubjectPublicKeyInfo.
    pub pem: String,
}

/// Keys of this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyList {
    /// Keys.
    pub keys: Vec<KeyRow>,
}

/// A receipt by the id of its answer.
#[utoipa::path(
    get, path = "/v1/receipts/{id}", operation_id = "receipt", tag = "receipts",
    params(("id" = String, Path, description = "Id of the answer")),
    responses((status = 200, description = "The receipt", body = ReceiptAnswer)),
)]
pub async fn one(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    Name(id): Name,
    headers: HeaderMap,
) -> Result<Json<ReceiptAnswer>, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Read)?;
    let (theirs, wanted) = (Arc::clone(&app), id.clone());
    let found = tokio::task::spawn_blocking(move || theirs.receipts.find(&wanted)).await;
    let found = found.map_err(|_| Problem::fault())?.map_err(|error| {
        tracing::error!(%error, id, "a receipt could not be read");
        Problem::fault()
    })?;
    let kept = found.ok_or_else(|| Problem::not_found(format!("receipt: expected the id of one, found {id:?}")))?;
    let receipt = serde_json::to_value(&kept.signed).map_err(|_| Problem::fault())?;
    Ok(Json(ReceiptAnswer { id, receipt, index: kept.index, proof: kept.proof }))
}

/// The keys that sign receipts and checkpoints.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "keys", tag = "receipts",
    responses((status = 200, description = "Keys", body = KeyList)),
)]
pub async fn keys(State(app): State<Arc<App>>) -> Json<KeyList> {
    let verifier = app.receipts.operator().verifier();
    let key = verifier.key();
    Json(KeyList {
        keys: vec![KeyRow {
            id: key.did_key(),
            alg: "Ed25519".into(),
            public_key: key.multibase(),
            verifier: verifier.to_string(),
            pem: key.to_pem(),
        }],
    })
}
