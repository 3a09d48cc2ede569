//! The doors, and what stands before each: request ids, limits, time, counters, the log.

pub mod admin;
pub mod attributions;
pub mod batch;
pub mod body;
pub mod catalog;
pub mod health;
pub mod receipts;
pub(crate) mod settings;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};

use crate::answer::new_id;
use crate::app::App;
use crate::keys::Scope;
use crate::metrics::{RequestLabels, RouteLabels};
use crate::params;
use crate::problem::Problem;

/// Routes that are answered even when the server has too much to do.
const ALWAYS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Where the request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Id of the request.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Where one method of one path is served, and what stands before it. Router and contract are made of these.
pub(crate) struct Door<S: 'static> {
    /// Path, as routes and the contract write it.
    pub(crate) path: &'static str,
    /// Method, as the contract writes it.
    pub(crate) method: &'static str,
    /// What an API key must permit; none where everybody may ask.
    pub(crate) scope: Option<Scope>,
    handler: fn() -> MethodRouter<S>,
}

impl<S: Clone + Send + Sync + 'static> Door<S> {
    pub(crate) const fn new(
        path: &'static str,
        method: &'static str,
        scope: Option<Scope>,
        handler: fn() -> MethodRouter<S>,
    ) -> Self {
        Self { path, method, scope, handler }
    }

    /// Answered even when the server has too much to do.
    pub(crate) fn is_always_open(&self) -> bool {
        ALWAYS.contains(&self.path)
    }

    /// These doors as a router.
    pub(crate) fn all(doors: &[Self]) -> Router<S> {
        doors.iter().fold(Router::new(), |router, door| router.route(door.path, (door.handler)()))
    }
}

/// All doors but those of what is sold, and the files of the page.
pub(crate) static DOORS: [Door<Arc<App>>; 15] = [
    Door::new("/v1/attributions", "post", Some(Scope::Attribute), || post(attributions::create)),
    Door::new("/v1/attributions:batch", "post", Some(Scope::Attribute), || post(batch::create)),
    Door::new("/v1/receipts/{id}", "get", Some(Scope::Read), || get(receipts::one)),
    Door::new("/v1/datasets", "get", Some(Scope::Read), || get(catalog::datasets)),
    Door::new("/v1/datasets/{id}", "get", Some(Scope::Read), || get(catalog::dataset)),
    Door::new("/v1/owners/{id}/statement", "get", Some(Scope::Read), || get(catalog::statement)),
    Door::new("/v1/examples", "get", Some(Scope::Read), || get(catalog::examples)),
    Door::new("/v1/index", "get", Some(Scope::Read), || get(catalog::index)),
    Door::new("/v1/keys", "get", None, || get(receipts::keys)),
    Door::new("/healthz", "get", None, || get(health::healthz)),
    Door::new("/readyz", "get", None, || get(health::readyz)),
    Door::new("/metrics", "get", Some(Scope::Read), || get(health::metrics)),
    Door::new("/openapi.json", "get", None, || get(health::openapi)),
    Door::new("/admin/reload", "post", Some(Scope::Admin), || post(admin::reload)),
    Door::new("/admin/audit", "get", Some(Scope::Admin), || get(admin::audit)),
];

/// All routes, with those of what is sold.
pub fn router(app: Arc<App>, paid: Router) -> Router {
    Door::all(&DOORS)
        .merge(crate::page::routes())
        .fallback(|| async { Problem::not_found("expected a route of /openapi.json, found another") })
        .method_not_allowed_fallback(|| async {
            let detail = "expected a method of the `allow` header, found another";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "The route has no such method", detail)
        })
        .with_state(Arc::clone(&app))
        .merge(paid)
        .layer(from_fn_with_state(app, observe))
}

/// Around every request: its id, a place among those in flight, the time limit, counters and one line of log.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let given = params::REQUEST_ID.readable(request.headers()).filter(|id| is_plain(id));
    let id = match given.filter(|_| app.config.trust_proxy_ids) {
        Some(id) => id.to_owned(),
        None => new_id("req").unwrap_or_default(),
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = app.traces.begin(&request, &route, &id);
    let permit = app.in_flight.try_acquire();
    let has_room = permit.is_ok() || ALWAYS.contains(&route.as_str());
    let work = async {
        if !has_room {
            return Problem::overloaded("expected room for the request, found none").into_response();
        }
        match tokio::time::timeout(app.config.request_timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem::late("expected an answer within the time limit").into_response(),
        }
    };
    let mut response = span.around(work).await;
    drop(permit);
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        problem.instance = Some(format!("/requests/{id}"));
        let (allow, fresh) = (response.headers().get("allow").cloned(), problem.into_response());
        response = fresh;
        if let Some(allow) = allow {
            response.headers_mut().insert("allow", allow);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(params::REQUEST_ID.name, value);
    }
    let (status, seconds) = (response.status(), began.elapsed().as_secs_f64());
    let labels = RequestLabels { route: route.clone(), method: counted(&method).to_owned(), status: status.as_u16() };
    app.metrics.requests.get_or_create(&labels).inc();
    app.metrics.seconds.get_or_create(&RouteLabels { route: route.clone() }).observe(seconds);
    let (ms, trace_id) = (seconds * 1e3, span.trace_id());
    let trace_id = trace_id.as_deref();
    if status.is_server_error() {
        tracing::warn!(request_id = id, %method, route, status = status.as_u16(), ms, trace_id, "request");
    } else {
        tracing::info!(request_id = id, %method, route, status = status.as_u16(), ms, trace_id, "request");
    }
    response
}

/// A method as counters name it. Any token may be one: invented ones must make no new series.
fn counted(method: &Method) -> &str {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::TRACE,
        Method::CONNECT,
    ];
    if KNOWN.contains(method) { method.as_str() } else { "other" }
}

/// An id that may stand in a log and a header.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic() && b != b'"')
}
