//! Bodies: read within their time and size, as JSON or as numbers in binary.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::problem::Problem;

/// What a body says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `application/json`.
    Json,
    /// `application/x-ndjson`: one JSON value per line.
    Lines,
    /// `application/octet-stream`: little-endian numbers, with `x-shape` and `x-dtype`.
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
            "application/x-ndjson" | "application/jsonl" => Ok(Self::Lines),
            "application/octet-stream" => Ok(Self::Numbers),
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "The body is of no known kind",
                format!(
                    "content-type: expected application/json, application/x-ndjson or application/octet-stream, found {given:?}"
                ),
            )),
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

/// Rows of numbers from a binary body: `x-shape: N,D` (or `D`), `x-dtype: f32` (or `f16`), little endian.
///
/// # Errors
/// 422 naming the header; a body of another length than the shape.
pub fn numbers(headers: &HeaderMap, bytes: &[u8]) -> Result<Vec<Vec<f32>>, Problem> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let shape: Option<Vec<usize>> =
        text("x-shape").and_then(|t| t.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>());
    let (n, dim) = match shape.as_deref() {
        Some([dim]) => (1, *dim),
        Some([n, dim]) => (*n, *dim),
        _ => return Err(Problem::invalid("x-shape: expected D or N,D, found none or another")),
    };
    let width = match text("x-dtype").unwrap_or("f32") {
        "f32" => 4,
        "f16" => 2,
        other => return Err(Problem::invalid(format!("x-dtype: expected f32 or f16, found {other:?}"))),
    };
    let expected = n.checked_mul(dim).and_then(|n| n.checked_mul(width)).filter(|n| *n > 0);
    if expected != Some(bytes.len()) {
        let expected = expected.map_or_else(|| "a positive number".to_owned(), |n| n.to_string());
        return Err(Problem::invalid(format!(
            "body: expected {expected} bytes for {n} × {dim}, found {}",
            bytes.len()
        )));
    }
    let number = |b: &[u8]| match b {
        [a, b] => half::f16::from_le_bytes([*a, *b]).to_f32(),
        b => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    };
    Ok(bytes.chunks_exact(dim * width).map(|row| row.chunks_exact(width).map(number).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (axum::http::HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn numbers_come_back_in_both_widths() {
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(numbers(&headers(&[("x-shape", "2")]), &bytes).unwrap(), [[1.5, -2.0]]);
        assert_eq!(numbers(&headers(&[("x-shape", "2,1")]), &bytes).unwrap(), [[1.5], [-2.0]]);
        let halves: Vec<u8> = [half::f16::from_f32(0.5)].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(numbers(&headers(&[("x-shape", "1"), ("x-dtype", "f16")]), &halves).unwrap(), [[0.5]]);
    }

    #[test]
    fn shapes_that_lie_are_refused() {
        let detail = |pairs: &[(&'static str, &'static str)], n: usize| {
            numbers(&headers(pairs), &vec![0; n]).unwrap_err().detail
        };
        assert!(detail(&[], 4).contains("x-shape"));
        assert!(detail(&[("x-shape", "2,3")], 4).contains("expected 24 bytes"));
        assert!(detail(&[("x-shape", "18446744073709551615,8")], 8).contains("a positive number"));
        assert!(detail(&[("x-shape", "0,8")], 0).contains("a positive number"));
        assert!(detail(&[("x-shape", "1"), ("x-dtype", "f64")], 8).contains("x-dtype"));
    }
}
