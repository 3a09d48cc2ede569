//! The part of `traces` that knows OpenTelemetry: its SDK keeps, samples and batches spans, `ureq` carries them.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::response::Response;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue, global};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::error::ServerError;

/// Name of this library in spans, and of the service where OTEL_SERVICE_NAME says none.
const NAME: &str = "ascribe-server";
/// Time for one batch of spans, and for the last one at the end.
const SEND: Duration = Duration::from_secs(5);

/// A collector, and spans on their way to it.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    propagator: TraceContextPropagator,
}

/// A request's span, open.
pub(super) struct Open {
    context: Context,
}

impl Exporter {
    pub(super) fn open(endpoint: &str) -> Result<Option<Self>, ServerError> {
        if endpoint.is_empty() {
            return Ok(None);
        }
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(super::refused(endpoint, "a collector's address, as http://127.0.0.1:4318"));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Carrier::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(SEND)
            .build()
            .map_err(|error| super::refused(endpoint, &format!("a collector's address ({error})")))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(NAME);
        }
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        // The batch has an end: spans that a slow collector leaves behind are dropped, not kept.
        let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        // Parts of a request find it there; a second server of this process would take over.
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self { provider, propagator: TraceContextPropagator::new() }))
    }

    pub(super) fn begin(&self, request: &Request, route: &str, id: &str) -> Open {
        let parent = self.propagator.extract_with_context(&Context::new(), &HeaderExtractor(request.headers()));
        let tracer = self.provider.tracer_with_scope(scope());
        let method = request.method().as_str().to_owned();
        let has_route = route.starts_with('/');
        let name = if has_route { format!("{method} {route}") } else { method.clone() };
        let mut attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("ascribe.request_id", id.to_owned()),
        ];
        if has_route {
            attributes.push(KeyValue::new("http.route", route.to_owned()));
        }
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        let span = tracer.build_with_context(builder, &parent);
        Open { context: parent.with_span(span) }
    }

    pub(super) fn close(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SEND) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

impl Open {
    pub(super) async fn around(&self, work: impl Future<Output = Response> + Send) -> Response {
        let response = work.with_context(self.context.clone()).await;
        let (span, status) = (self.context.span(), response.status());
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
            span.set_status(Status::error(status.canonical_reason().unwrap_or_default()));
        }
        span.end();
        response
    }

    pub(super) fn trace_id(&self) -> Option<String> {
        let span = self.context.span();
        span.is_recording().then(|| span.span_context().trace_id().to_string())
    }
}

pub(super) async fn part<T>(name: &'static str, work: impl Future<Output = T> + Send) -> T {
    let around = Context::current();
    if !around.span().is_recording() {
        return work.await;
    }
    let span = global::tracer_with_scope(scope()).start_with_context(name, &around);
    let context = around.with_span(span);
    let outcome = work.with_context(context.clone()).await;
    context.span().end();
    outcome
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(NAME).with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Carries batches. It blocks, which the batching thread of the SDK may.
#[derive(Debug)]
struct Carrier {
    agent: ureq::Agent,
}

impl Carrier {
    fn new() -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(SEND));
        Self { agent: config.build().new_agent() }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = response.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }
}

impl HttpClient for Carrier {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let sent = self.send(request);
        match &sent {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => tracing::warn!(status = response.status().as_u16(), "the collector refused spans"),
            Err(error) => tracing::warn!(%error, "spans could not be sent"),
        }
        Box::pin(std::future::ready(sent))
    }
}
