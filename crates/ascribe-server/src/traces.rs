//! Traces of requests, for a collector that speaks OTLP over HTTP: a build with the feature `otel` and the setting `otlp_endpoint`.
//!
//! Every request is one span of kind server, named by method and route, with the request's id; a `traceparent` of the caller is its
//! parent, and is obeyed when it says that nobody samples. Within it: the wait for and work of the answer, and the wait for the
//! receipt's journal. Without the feature nothing here does anything, and the setting is refused.

#[cfg(feature = "otel")]
mod otlp;

use std::future::Future;

use axum::extract::Request;
use axum::response::Response;

use crate::error::ServerError;

/// Where spans go.
pub struct Traces {
    #[cfg(feature = "otel")]
    exporter: Option<otlp::Exporter>,
}

/// The span of one request.
pub(crate) struct Span {
    #[cfg(feature = "otel")]
    open: Option<otlp::Open>,
}

impl Traces {
    /// Spans go to the collector at `endpoint`, as `http://127.0.0.1:4318`; nowhere if it is empty.
    ///
    /// # Errors
    /// An endpoint in a build without the feature, or one that is no address.
    pub fn open(endpoint: &str) -> Result<Self, ServerError> {
        #[cfg(feature = "otel")]
        return Ok(Self { exporter: otlp::Exporter::open(endpoint)? });
        #[cfg(not(feature = "otel"))]
        if endpoint.is_empty() { Ok(Self {}) } else { Err(refused(endpoint, "nothing: built without feature `otel`")) }
    }

    /// Begins the span of a request.
    pub(crate) fn begin(&self, request: &Request, route: &str, id: &str) -> Span {
        #[cfg(feature = "otel")]
        return Span { open: self.exporter.as_ref().map(|exporter| exporter.begin(request, route, id)) };
        #[cfg(not(feature = "otel"))]
        {
            let _ = (request, route, id);
            Span {}
        }
    }

    /// Sends what was not sent. Blocks, at most a few seconds.
    pub fn close(&self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            exporter.close();
        }
    }
}

impl Span {
    /// Does the request's work within the span, and ends it with the answer's status.
    pub(crate) async fn around(&self, work: impl Future<Output = Response> + Send) -> Response {
        #[cfg(feature = "otel")]
        if let Some(open) = &self.open {
            return open.around(work).await;
        }
        work.await
    }

    /// Id of the trace, for the log.
    pub(crate) fn trace_id(&self) -> Option<String> {
        #[cfg(feature = "otel")]
        return self.open.as_ref().and_then(otlp::Open::trace_id);
        #[cfg(not(feature = "otel"))]
        None
    }
}

/// Does a part of a request's work, in a span within the request's.
pub(crate) async fn part<T>(name: &'static str, work: impl Future<Output = T> + Send) -> T {
    #[cfg(feature = "otel")]
    return otlp::part(name, work).await;
    #[cfg(not(feature = "otel"))]
    {
        let _ = name;
        work.await
    }
}

fn refused(endpoint: &str, expected: &str) -> ServerError {
    ServerError::Setting {
        setting: "otlp_endpoint".into(),
        origin: "settings".into(),
        expected: expected.to_owned(),
        found: format!("{endpoint:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_cannot_be_used_is_refused() {
        assert!(Traces::open("").is_ok());
        let refused = Traces::open("collector:4318").err().unwrap().to_string();
        assert!(refused.contains("otlp_endpoint") && refused.contains("collector:4318"), "{refused}");
    }
}
