//! Bodies: read within their time and size, as JSON or as numbers in binary.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::problem::Problem;
use crate::routes::batch::LINES;

/// What a body says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `application/json`.
    Json,
    /// `application/x-ndjson`: one JSON value per line.
    Lines,
    /// `application/octet-stream`: rows of little-endian numbers.
    Numbers,
}

impl Kind {
    /// By the content type.
    ///
    /// # Errors
    /// 415.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let given = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            lines if LINES.contains(&lines) => Ok(Self::Lines),
            "application/octet-stream" => Ok(Self::Numbers),
            _ => Err(Problem::media_type(format!(
                "content-type: expected application/json, application/x-ndjson or application/octet-stream, found {given:?}"
            ))),
        }
    }
}

/// The whole body, within the limits of size and time.
///
/// # Errors
/// 413, 408, 400.
pub async fn read(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    let limit = app.config.body_limit;
    let too_large = || Problem::too_large(format!("expected a body of at most {limit} bytes, found more"));
    let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    match tokio::time::timeout(app.config.body_timeout, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(error)) => {
            let is_limit = std::error::Error::source(&error).is_some_and(|e| e.to_string().contains("length limit"));
            if is_limit {
                Err(too_large())
            } else {
                Err(Problem::malformed("expected a whole body, found a part of one"))
            }
        }
        Err(_) => Err(Problem::stalled("expected the body within its time limit, found a part of it")),
    }
}

/// JSON, with the field that is wrong: 400 for what is no JSON, 422 for JSON that is something else.
///
/// # Errors
/// [`Problem`].
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::invalid(error.to_string()),
        _ => Problem::malformed(format!("expected JSON, found {error}")),
    })
}
