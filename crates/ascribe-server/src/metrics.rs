//! Counters for Prometheus.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Route as registered, so that ids in paths make no new series.
    pub route: String,
    /// Method; `other` for one that HTTP does not define.
    pub method: String,
    /// Status.
    pub status: u16,
}

/// Labels of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// Route.
    pub route: String,
}

/// Labels of an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `ok`, or why not.
    pub outcome: String,
}

/// All counters.
pub struct Metrics {
    registry: Registry,
    /// Requests that were answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds from the first byte of the request to the head of the answer.
    pub seconds: Family<RouteLabels, Histogram>,
    /// Questions that wait for a worker.
    pub waiting: Gauge,
    /// Requests that are worked on.
    pub in_flight: Gauge,
    /// Receipts by outcome.
    pub receipts: Family<OutcomeLabels, Counter>,
    /// Reloads by outcome.
    pub reloads: Family<OutcomeLabels, Counter>,
    /// Seconds that loading the current generation took.
    pub load_seconds: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ascribe");
        let requests = Family::default();
        registry.register("http_requests", "Requests that were answered", requests.clone());
        // 0.25 ms to 8 s.
        let seconds = Family::<RouteLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
        });
        registry.register("http_request_seconds", "Time to the head of the answer", seconds.clone());
        let waiting = Gauge::default();
        registry.register("queue_waiting", "Questions that wait for a worker", waiting.clone());
        let in_flight = Gauge::default();
        registry.register("http_in_flight", "Requests that are worked on", in_flight.clone());
        let receipts = Family::default();
        registry.register("receipts", "Receipts by outcome", receipts.clone());
        let reloads = Family::default();
        registry.register("reloads", "Reloads by outcome", reloads.clone());
        let load_seconds = Gauge::default();
        registry.register("load_seconds", "Time that loading the generation took", load_seconds.clone());
        Self { registry, requests, seconds, waiting, in_flight, receipts, reloads, load_seconds }
    }
}

impl Metrics {
    /// Notes a receipt's outcome.
    pub fn receipt(&self, outcome: &str) {
        self.receipts.get_or_create(&OutcomeLabels { outcome: outcome.to_owned() }).inc();
    }

    /// Notes a reload's outcome.
    pub fn reload(&self, outcome: &str) {
        self.reloads.get_or_create(&OutcomeLabels { outcome: outcome.to_owned() }).inc();
    }

    /// OpenMetrics text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string fails for no reason of its own.
        let _ = encode(&mut out, &self.registry);
        out
    }
}
