//! Why there is no answer.

use std::time::Duration;

use serde::Deserialize;

/// The server's own words (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// URI reference that names the kind of problem, as `/problems/overloaded`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// HTTP status.
    #[serde(default)]
    pub status: u16,
    /// Field, expected, found.
    #[serde(default)]
    pub detail: String,
    /// Id of the request, as in the server's log.
    #[serde(default)]
    pub instance: Option<String>,
}

/// What a call can end with instead of an answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be used.
    #[error("address {found:?}: expected http://HOST[:PORT] or https://HOST[:PORT], without a path")]
    Address {
        /// What was given.
        found: String,
    },
    /// No answer came: refused, reset, too late, TLS.
    #[error("{method} {path}: no answer came: {source}; hint: is the server running, and reachable from here?")]
    Transport {
        /// Method.
        method: &'static str,
        /// Path.
        path: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server refused, in its own words.
    #[error("{method} {path}: {status}: {title}: {detail}{request}", status = problem.status, title = problem.title,
        detail = problem.detail, request = problem.instance.as_ref().map_or(String::new(), |id| format!(" (request {id})")))]
    Refused {
        /// Method.
        method: &'static str,
        /// Path.
        path: String,
        /// Its words.
        problem: Box<Problem>,
        /// When it is worth another try, if the server says so.
        retry_after: Option<Duration>,
        /// What is to be paid first, where that is why.
        quote: Option<Box<serde_json::Value>>,
    },
    /// An answer came that is none of the contract.
    #[error("{method} {path}: {status}: expected {expected}, found {found}")]
    Answer {
        /// Method.
        method: &'static str,
        /// Path.
        path: String,
        /// HTTP status.
        status: u16,
        /// What the contract promises.
        expected: &'static str,
        /// What came.
        found: String,
    },
}

impl ClientError {
    /// HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { problem, .. } => Some(problem.status),
            Self::Answer { status, .. } => Some(*status),
            Self::Address { .. } | Self::Transport { .. } => None,
        }
    }

    /// Whether the same call may succeed later: overload and rate limits.
    pub fn is_temporary(&self) -> bool {
        matches!(self.status(), Some(429 | 503))
    }
}
