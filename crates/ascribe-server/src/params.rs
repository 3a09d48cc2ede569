//! Parameters of the contract: each header and each setting of a query that the server reads, by name and meaning. Routes read them
//! through what is declared here, and `/openapi.json` is made of the same lines, so that nothing is read that the contract does not say.

use ascribe_book::x402::wire::{PAYMENT_SIGNATURE as PAYMENT_SIGNATURE_NAME, X_PAYMENT as X_PAYMENT_NAME};
use axum::extract::FromRequestParts;
use axum::extract::rejection::PathRejection;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use crate::problem::Problem;

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the head of a request.
    Header,
    /// In the query of its address.
    Query,
}

/// A parameter.
#[derive(Debug)]
pub(crate) struct Param {
    /// Name.
    pub(crate) name: &'static str,
    /// Where it stands.
    pub(crate) place: Place,
    /// What it means.
    pub(crate) about: &'static str,
}

const fn header(name: &'static str, about: &'static str) -> Param {
    Param { name, place: Place::Header, about }
}

const fn query(name: &'static str, about: &'static str) -> Param {
    Param { name, place: Place::Query, about }
}

/// Of every request.
pub(crate) static REQUEST_ID: Param = header(
    "x-request-id",
    "Id of the request, of a proxy: taken where the server trusts it and it is 1 to 128 printable characters, else a new one is made",
);
/// Rows and columns of a binary body.
pub(crate) static SHAPE: Param = header(
    "x-shape",
    "Shape of a binary body: `D`, or `N,D` for N rows; without it rows of the served length. Other bodies have no use for it",
);
/// Type of its numbers.
pub(crate) static DTYPE: Param =
    header("x-dtype", "Type of the little-endian numbers of a binary body; f32 without it");
/// What its rows are.
pub(crate) static KIND: Param = query("kind", "What the rows of a binary body are; embeddings without it");
/// Method of questions that name none.
pub(crate) static METHOD: Param = query("method", "Method of the questions that name none");
/// Records of questions that do not say how many.
pub(crate) static K: Param = query("k", "Records in the answers to questions that do not say how many");
/// Least score of questions that name none.
pub(crate) static MIN_SCORE: Param = query("min_score", "Least score of records, for the questions that name none");
/// Filters of questions whose own are empty.
pub(crate) static DATASETS: Param = query(
    "datasets",
    "Datasets that count, by name or `urn:uuid:…`, for the questions whose filter names none; once for each",
);
/// By owner.
pub(crate) static OWNERS: Param = query("owners", "Owners whose datasets count, in the same way");
/// By licence.
pub(crate) static LICENCES: Param = query("licences", "Licences whose datasets count, in the same way");
/// Receipts for all questions.
pub(crate) static RECEIPT: Param =
    query("receipt", "True for receipts of all answers, also to questions that ask for none");
/// Amount of a top-up.
pub(crate) static AMOUNT: Param = query("amount", "What is paid in, in the token's unit, as `12.50`");
/// A payment, second version of x402.
pub(crate) static PAYMENT: Param = header(PAYMENT_SIGNATURE_NAME, "A payment (x402, version 2): base64 of its JSON");
/// A payment, first version.
pub(crate) static PAYMENT_V1: Param = header(X_PAYMENT_NAME, "A payment (x402, version 1): base64 of its JSON");
/// A customer.
pub(crate) static PREPAID: Param = header(
    "prepaid-authorization",
    "`NAME:SECRET` of a prepaid customer; the secret has at least 16 characters, all of it at most 512",
);
/// Name of a debit.
pub(crate) static IDEMPOTENCY_KEY: Param =
    header("idempotency-key", "Name of a request that a balance pays for: the same one is charged once");
/// The caller's span.
#[cfg(feature = "otel")]
pub(crate) static TRACE_PARENT: Param = header("traceparent", "The caller's span (W3C Trace Context)");
/// What tracers say beside it.
#[cfg(feature = "otel")]
pub(crate) static TRACE_STATE: Param = header("tracestate", "What the caller's tracers say of it (W3C Trace Context)");

impl Param {
    /// The header's text; none where it is not there.
    ///
    /// # Errors
    /// A header that is no text, or stands there more than once.
    pub(crate) fn text<'h>(&self, headers: &'h HeaderMap) -> Result<Option<&'h str>, Problem> {
        debug_assert_eq!(self.place, Place::Header, "{}", self.name);
        let mut given = headers.get_all(self.name).iter();
        let Some(first) = given.next() else { return Ok(None) };
        let found = match (first.to_str(), given.next()) {
            (Ok(text), None) => return Ok(Some(text)),
            (_, Some(_)) => "more than one",
            (Err(_), _) => "other bytes",
        };
        Err(Problem::invalid(format!("{}: expected one value of printable characters, found {found}", self.name)))
    }

    /// The same, for those to whom a header that cannot be read is none.
    pub(crate) fn readable<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        self.text(headers).ok().flatten()
    }

    /// The setting's value in a query that was taken apart; none where it is not there.
    ///
    /// # Errors
    /// A setting that stands there more than once.
    pub(crate) fn setting<'q>(&self, pairs: &'q [(String, String)]) -> Result<Option<&'q str>, Problem> {
        debug_assert_eq!(self.place, Place::Query, "{}", self.name);
        let mut given = pairs.iter().filter(|(name, _)| name == self.name).map(|(_, value)| value.as_str());
        match (given.next(), given.next()) {
            (first, None) => Ok(first),
            (Some(first), Some(second)) => Err(self.refuse("one value", &format!("{first:?} and {second:?}"))),
            (None, Some(_)) => unreachable!("a second one without a first"),
        }
    }

    /// All values of a setting that may stand in a query many times.
    pub(crate) fn settings(&self, pairs: &[(String, String)]) -> Vec<String> {
        pairs.iter().filter(|(name, _)| name == self.name).map(|(_, value)| value.clone()).collect()
    }

    /// A value that cannot be used.
    pub(crate) fn refuse(&self, expected: &str, found: &str) -> Problem {
        Problem::invalid(format!("{}: expected {expected}, found {found}", self.name))
    }
}

/// Refuses settings that are none of `known`: a misspelt one would be without effect.
///
/// # Errors
/// 422 naming the setting.
pub(crate) fn only(known: &[&Param], pairs: &[(String, String)]) -> Result<(), Problem> {
    match pairs.iter().find(|(name, _)| known.iter().all(|param| param.name != name)) {
        None => Ok(()),
        Some((name, value)) => {
            let names: Vec<&str> = known.iter().map(|param| param.name).collect();
            let expected = format!("no such setting; there are {}", names.join(", "));
            Err(Problem::invalid(format!("{name}: expected {expected}, found {value:?}")))
        }
    }
}

/// The part of a path that a route leaves open.
#[derive(Debug)]
pub struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: Result<axum::extract::Path<String>, PathRejection> =
            axum::extract::Path::from_request_parts(parts, state).await;
        match path {
            Ok(axum::extract::Path(name)) => Ok(Self(name)),
            Err(_) => Err(Problem::malformed("path: expected percent-encoded UTF-8, found other bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_header_is_there_once_or_not_at_all() {
        let mut headers = HeaderMap::new();
        assert_eq!(SHAPE.text(&headers).unwrap(), None);
        headers.append("x-shape", HeaderValue::from_static("3"));
        assert_eq!(SHAPE.text(&headers).unwrap(), Some("3"));
        headers.append("x-shape", HeaderValue::from_static("4"));
        assert!(SHAPE.text(&headers).unwrap_err().detail.contains("more than one"));
        headers.insert("x-shape", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(SHAPE.text(&headers).unwrap_err().detail.contains("other bytes"));
        assert_eq!(SHAPE.readable(&headers), None);
    }

    #[test]
    fn settings_are_known_and_stand_once() {
        let pairs = |text: &[(&str, &str)]| -> Vec<(String, String)> {
            text.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(K.setting(&pairs(&[("k", "3")])).unwrap(), Some("3"));
        assert!(K.setting(&pairs(&[("k", "3"), ("k", "4")])).unwrap_err().detail.contains("\"3\" and \"4\""));
        assert!(only(&[&K, &KIND], &pairs(&[("kind", "a")])).is_ok());
        let refused = only(&[&K, &KIND], &pairs(&[("colour", "red")])).unwrap_err().detail;
        assert!(refused.contains("colour") && refused.contains("k, kind"), "{refused}");
    }
}
