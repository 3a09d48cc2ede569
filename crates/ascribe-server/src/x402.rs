//! `POST /v1/paid/attributions`: a response that is paid for before it leaves, by x402 or from a prepaid balance, and whose revenue
//! goes to the contributors of that very response. Prices, payments and the book are `ascribe_book`'s; here is only HTTP.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ascribe_book::x402::wire;
use ascribe_book::x402::{Payment, Paywall, Resource, Settlement, Verified};
use ascribe_book::{BookError, Credit, NamedWeight};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::params::{PAYMENT, PAYMENT_V1, PREPAID};
use crate::problem::Problem;
use crate::routes::Door;
use crate::wire::{Attribution, AttributionRequest};

/// Where paid responses are.
pub const PAID_ROUTE: &str = "/v1/paid/attributions";
/// Between two looks at payments that a slow chain left open.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// An answer that can be sold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// JSON for the customer.
    pub body: Vec<u8>,
    /// Part that measured evidence covers.
    pub coverage_ppm: u32,
    /// Whom it owes: weights by dataset.
    pub weights: Vec<NamedWeight>,
}

/// An answer in the making; the error is what the customer gets instead, uncharged.
pub type Answering = Pin<Box<dyn Future<Output = Result<Answer, Response>> + Send>>;

/// Whatever answers: it is asked after a payment was verified and before it is settled.
pub trait PaidAnswer: Send + Sync {
    /// Answers a request.
    fn answer(&self, headers: HeaderMap, body: Bytes) -> Answering;
}

/// A paywall with something behind it.
pub struct Shop {
    /// Offers, verifies, settles, credits.
    pub wall: Paywall,
    /// What is sold.
    pub answers: Box<dyn PaidAnswer>,
    /// Price of one response in the token's smallest unit.
    pub price_minor: u128,
    /// Address of this server as customers see it, without a slash at its end.
    pub public_url: String,
}

/// Doors of what is sold.
pub(crate) static DOORS: [Door<Arc<Shop>>; 3] = [
    Door::new(PAID_ROUTE, "post", None, || post(create)),
    Door::new("/v1/prepaid/{customer}", "get", None, || get(crate::prepaid::balance)),
    Door::new("/v1/prepaid/{customer}/top-up", "post", None, || post(crate::prepaid::top_up)),
];

/// Routes of paid responses and prepaid balances.
pub fn routes(shop: Arc<Shop>) -> Router {
    Door::all(&DOORS).with_state(shop)
}

/// Looks after payments that a crash or a slow chain left open, until the shop is dropped. Needs a runtime.
pub fn watch(shop: &Arc<Shop>) {
    let shop = Arc::downgrade(shop);
    tokio::spawn(async move {
        while let Some(shop) = shop.upgrade() {
            // A node that is away now is asked again in five seconds.
            let _ = tokio::task::spawn_blocking(move || shop.wall.recover(&now_unix_s)).await;
            tokio::time::sleep(WATCH_EVERY).await;
        }
    });
}

/// Seconds since 1970.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error as problem details (RFC 9457).
pub(crate) fn problem(status: StatusCode, kind: &str, title: &str, detail: &str) -> Response {
    let value =
        json!({"type": format!("/problems/{kind}"), "title": title, "status": status.as_u16(), "detail": detail});
    respond(status, "application/problem+json", value.to_string().into())
}

pub(crate) fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What the book refused, for the customer: faults of ours stay in the log.
pub(crate) fn refusal(error: &BookError) -> Response {
    match error {
        BookError::Reused { .. } | BookError::State { .. } => {
            problem(StatusCode::CONFLICT, "conflict", "It was done before with other contents", &error.to_string())
        }
        BookError::Unknown { .. } => {
            problem(StatusCode::NOT_FOUND, "not-found", "There is no such thing", &error.to_string())
        }
        BookError::Field { .. } | BookError::Ledger(_) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            problem(status, "invalid-request", "A field cannot be used", &error.to_string())
        }
        BookError::Chain(_) => {
            let mut response = problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "chain",
                "The chain does not answer",
                "nothing was charged; try again",
            );
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            response
        }
        _ => {
            tracing::error!(%error, "the book refused");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "fault", "A fault of this server", "the log says more")
        }
    }
}

/// Runs work that waits for a disk or a chain.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BookError> + Send + 'static,
) -> Result<T, Response> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(BookError::Payment { reason, why })) => Err(payment_problem(reason, &why)),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => {
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "fault", "A fault of this server", "the log says more"))
        }
    }
}

/// Marks a refused payment until the quote is put around it.
fn payment_problem(reason: &str, why: &str) -> Response {
    problem(StatusCode::PAYMENT_REQUIRED, reason, "The payment does not buy this", why)
}

/// What is sold, and for how much.
#[derive(Debug, Clone)]
pub(crate) struct Ware {
    pub(crate) resource: Resource,
    pub(crate) amount: u128,
}

/// The quote, in the words of both versions of the protocol.
pub(crate) fn quote(shop: &Shop, ware: &Ware, error: &str) -> Response {
    let offer = shop.wall.offer();
    let body = wire::required_body(offer, &ware.resource, ware.amount, error);
    let mut response = respond(StatusCode::PAYMENT_REQUIRED, "application/json", body.to_string().into());
    put(&mut response, wire::PAYMENT_REQUIRED, &wire::required_header(offer, &ware.resource, ware.amount, error));
    response
}

fn put(response: &mut Response, name: &'static str, value: &str) {
    // Base64 is always a header's text.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Reads and verifies the payment of a request; without one, or with one that does not fit, the customer gets a quote.
pub(crate) async fn paid(shop: &Arc<Shop>, headers: &HeaderMap, ware: &Ware) -> Result<Verified, Response> {
    let header = PAYMENT.readable(headers).or_else(|| PAYMENT_V1.readable(headers));
    let Some(header) = header.map(str::to_owned) else {
        return Err(quote(shop, ware, "payment required"));
    };
    let (for_work, amount) = (Arc::clone(shop), ware.amount);
    let verified =
        tokio::task::spawn_blocking(move || for_work.wall.verify(Payment::read(&header)?, amount, now_unix_s()));
    match verified.await {
        Ok(Ok(verified)) => Ok(verified),
        Ok(Err(BookError::Payment { reason, why })) => {
            tracing::info!(reason, why, "a payment was refused");
            Err(quote(shop, ware, reason))
        }
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => {
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "fault", "A fault of this server", "the log says more"))
        }
    }
}

/// Settles a payment and puts the chain's word on the answer, which leaves only if the money has moved.
pub(crate) async fn settle(
    shop: &Arc<Shop>,
    verified: Verified,
    request: String,
    credit: Credit,
    ware: &Ware,
    answer: Vec<u8>,
) -> Response {
    let (payer, version) = (verified.payment.authorization.from, verified.payment.version);
    let for_work = Arc::clone(shop);
    let settled = tokio::task::spawn_blocking(move || for_work.wall.settle(&verified, &request, credit, &now_unix_s));
    let (transaction, failure) = match settled.await {
        Ok(Ok(Settlement::Settled { transaction })) => (Some(transaction), None),
        Ok(Ok(Settlement::Pending { transaction })) => (transaction, Some("settlement_pending")),
        Ok(Ok(Settlement::Failed { why })) => {
            tracing::warn!(why, "a payment failed");
            (None, Some("transaction_failed"))
        }
        Ok(Err(BookError::Payment { reason, .. })) => (None, Some(reason)),
        Ok(Err(error)) => return refusal(&error),
        Err(_) => {
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "fault", "A fault of this server", "the log says more");
        }
    };
    let network = shop.wall.offer().network();
    let network = if version == 1 { shop.wall.offer().network_v1() } else { network };
    let said = wire::response_header(&network, payer, transaction.as_deref(), ware.amount, failure);
    let mut response = match failure {
        None => respond(StatusCode::OK, "application/json", answer.into()),
        Some(reason) => quote(shop, ware, reason),
    };
    if failure == Some("settlement_pending") {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    put(&mut response, if version == 1 { wire::X_PAYMENT_RESPONSE } else { wire::PAYMENT_RESPONSE }, &said);
    response
}

/// Names a request by its contents, so that a payment for one question never buys the answer to another.
pub(crate) fn request_name(route: &str, body: &[u8]) -> String {
    hex::encode(Sha256::new().chain_update(route).chain_update([0]).chain_update(body).finalize())
}

/// Attribute one response that is paid for: by x402 (a request without a payment gets the quote), or from a prepaid balance.
///
/// The question is that of `/v1/attributions`, in JSON, without `revenue`; its answer always carries a receipt.
#[utoipa::path(
    post, path = "/v1/paid/attributions", operation_id = "buy", tag = "paid",
    request_body = AttributionRequest,
    responses((status = 200, description = "The answer, paid for", body = Attribution)),
)]
pub(crate) async fn create(
    State(shop): State<Arc<Shop>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Problem::too_large("expected a body of at most 2 MB, found more").into_response();
        }
        Err(_) => return Problem::malformed("expected a whole body, found a part of one").into_response(),
    };
    let ware = Ware {
        resource: Resource {
            url: format!("{}{PAID_ROUTE}", shop.public_url),
            description: "One response with the datasets that it owes".into(),
            mime_type: "application/json".into(),
        },
        amount: shop.price_minor,
    };
    sell(&shop, &headers, body, &ware).await.unwrap_or_else(|response| response)
}

async fn sell(shop: &Arc<Shop>, headers: &HeaderMap, body: Bytes, ware: &Ware) -> Result<Response, Response> {
    if headers.contains_key(PREPAID.name) {
        return crate::prepaid::sell(shop, headers, body, ware).await;
    }
    let verified = paid(shop, headers, ware).await?;
    let request = request_name(PAID_ROUTE, &body);
    let answer = shop.answers.answer(headers.clone(), body).await?;
    let credit = Credit::Response { coverage_ppm: answer.coverage_ppm, weights: answer.weights };
    Ok(settle(shop, verified, request, credit, ware, answer.body).await)
}
