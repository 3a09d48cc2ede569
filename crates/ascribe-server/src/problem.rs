//! Errors as problem details (RFC 9457): `application/problem+json` with a type, a title, the status and one sentence.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use ascribe_engine::EngineError;
use ascribe_engine::respond::RespondError;

/// Media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// URI reference that names the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "/problems/invalid-request")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What happened here: field, expected, found.
    pub detail: String,
    /// Id of the request, as in the log and the `x-request-id` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Seconds after which it is worth another try.
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem of a kind.
    pub fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: None,
            retry_after_s: None,
        }
    }

    /// The body cannot be read as what it says it is.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "The request cannot be read", detail)
    }

    /// The body is read, and a field of it cannot be used.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", "A field cannot be used", detail)
    }

    /// A body of a kind that is not taken here.
    pub fn media_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "The body is of no known kind", detail)
    }

    /// Nothing of that name.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    /// Too much.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    }

    /// No key, or one that is not known.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A valid API key is needed", detail)
    }

    /// A key that may not do this.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "The key may not do this", detail)
    }

    /// The key's rate is used up.
    pub fn too_many(retry_after_s: u64) -> Self {
        let detail = format!("expected at most the key's rate, found more; hint: try again after {retry_after_s} s");
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail);
        Self { retry_after_s: Some(retry_after_s), ..problem }
    }

    /// More work than can be done in time.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "The server has too much to do", detail);
        Self { retry_after_s: Some(1), ..problem }
    }

    /// The answer took too long.
    pub fn late(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "The answer took too long", detail)
    }

    /// The client sends too slowly.
    pub fn stalled(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "stalled", "The request did not arrive in time", detail)
    }

    /// Our fault. The detail goes to the log, the client learns where to look.
    pub fn fault() -> Self {
        let detail = "a fault of the server; the log has it under this request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "fault", "The server failed", detail)
    }

    /// The receipt could not be made durable, and the policy is to refuse answers without one.
    pub fn not_logged(detail: impl Into<String>) -> Self {
        let title = "The receipt could not be logged";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "receipt-not-logged", title, detail);
        Self { retry_after_s: Some(5), ..problem }
    }

    /// From an answer that failed. Names that are not there are 404, all else about the question is 422.
    pub fn of(error: &RespondError) -> Self {
        match error {
            RespondError::Refused { field, .. }
                if field.starts_with("filter.") || matches!(*field, "method" | "example") =>
            {
                Self::not_found(error.to_string())
            }
            RespondError::Refused { field: "completion", expected, .. } if expected.starts_with("at most") => {
                Self::too_large(error.to_string())
            }
            RespondError::Refused { .. } => Self::invalid(error.to_string()),
            RespondError::Engine(EngineError::Model(ascribe_models::ModelError::Diverged { .. })) => {
                Self::invalid(format!("the model's gradient of this response is not finite: {error}"))
            }
            RespondError::Engine(_) => Self::fault(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = self.retry_after_s;
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = retry {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ascribe\""));
        }
        // Problems made outside the innermost layer are finished by `observe`, which knows the request's id.
        response.extensions_mut().insert(self);
        response
    }
}
