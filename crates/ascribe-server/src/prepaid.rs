//! Prepaid balances over HTTP: `POST /v1/prepaid/{customer}/top-up?amount=…` pays in by x402, `GET /v1/prepaid/{customer}` says what is
//! left, and paid responses may be debited instead of paid one by one.
//!
//! A customer is a name and a secret of their own choice, `prepaid-authorization: NAME:SECRET`; the first top-up fixes it. A debit
//! needs an `idempotency-key`: the same key is charged once.

use std::sync::Arc;

use ascribe_book::x402::Resource;
use ascribe_book::{BookError, Credit, PaidResponse, Source, show_amount};
use ascribe_ledger::Money;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::params::{AMOUNT, IDEMPOTENCY_KEY, Name, PREPAID, only};
use crate::problem::Problem;
use crate::routes::settings::Pairs;
use crate::x402::{Shop, Ware, blocking, now_unix_s, paid, problem, quote, refusal, request_name, respond, settle};

/// Shortest secret, in characters.
const SECRET_MIN: usize = 16;
/// Longest header of this file.
const HEADER_MAX: usize = 512;

fn unauthorized() -> Response {
    let detail = format!(
        "expected {}: NAME:SECRET of a customer with a secret of at least {SECRET_MIN} characters",
        PREPAID.name
    );
    problem(StatusCode::UNAUTHORIZED, "unauthorized", "A customer's secret is needed", &detail)
}

/// Name and secret of the customer who asks; none if they are not there or not of the right form.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let header = PREPAID.readable(headers).filter(|header| header.len() <= HEADER_MAX)?;
    let (customer, secret) = header.rsplit_once(':')?;
    (secret.len() >= SECRET_MIN && !customer.is_empty()).then(|| (customer.to_owned(), secret.to_owned()))
}

async fn known(shop: &Arc<Shop>, headers: &HeaderMap) -> Result<String, Response> {
    let (customer, secret) = credentials(headers).ok_or_else(unauthorized)?;
    let (for_work, name) = (Arc::clone(shop), customer.clone());
    let is_known = blocking(move || for_work.wall.book().is_customer(&name, secret.as_bytes())).await?;
    if is_known { Ok(customer) } else { Err(unauthorized()) }
}

/// A balance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Balance {
    /// The customer.
    pub customer: String,
    /// What is left, in the token's unit.
    pub balance: String,
    /// The same in the ledger's smallest unit, a decimal string.
    #[schema(pattern = "^(0|[1-9][0-9]*)$")]
    pub balance_subunits: String,
}

/// What a top-up did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PaidIn {
    /// The customer.
    pub customer: String,
    /// Amount and currency.
    pub paid_in: String,
}

/// What is left of a prepaid balance, for the customer alone.
#[utoipa::path(
    get, path = "/v1/prepaid/{customer}", operation_id = "balance", tag = "paid",
    params(("customer" = String, Path, description = "Name of the customer")),
    responses((status = 200, description = "What is left", body = Balance)),
)]
pub(crate) async fn balance(State(shop): State<Arc<Shop>>, Name(customer): Name, headers: HeaderMap) -> Response {
    let answer = async {
        if known(&shop, &headers).await? != customer {
            return Err(unauthorized());
        }
        let (for_work, name) = (Arc::clone(&shop), customer.clone());
        let currency = shop.wall.offer().currency;
        let left = blocking(move || for_work.wall.book().prepaid(&name, currency)).await?;
        let balance = Balance { customer, balance: show_amount(left, currency), balance_subunits: left.to_string() };
        Ok(respond(StatusCode::OK, "application/json", spelled(&balance).map_err(Problem::into_response)?.into()))
    };
    answer.await.unwrap_or_else(|response| response)
}

/// Pays in by x402; a request without a payment gets the quote. The first top-up fixes the customer's secret.
#[utoipa::path(
    post, path = "/v1/prepaid/{customer}/top-up", operation_id = "topUp", tag = "paid",
    params(("customer" = String, Path, description = "Name of the customer")),
    responses((status = 200, description = "Paid in", body = PaidIn)),
)]
pub(crate) async fn top_up(
    State(shop): State<Arc<Shop>>,
    Name(customer): Name,
    pairs: Pairs,
    headers: HeaderMap,
) -> Response {
    pay_in(&shop, &customer, &pairs, &headers).await.unwrap_or_else(|response| response)
}

async fn pay_in(
    shop: &Arc<Shop>,
    customer: &str,
    Pairs(pairs): &Pairs,
    headers: &HeaderMap,
) -> Result<Response, Response> {
    let currency = shop.wall.offer().currency;
    only(&[&AMOUNT], pairs).map_err(Problem::into_response)?;
    let asked = AMOUNT.setting(pairs).map_err(Problem::into_response)?.unwrap_or_default();
    let amount: Money = format!("{asked} {currency}").parse().map_err(|error| refusal(&BookError::Ledger(error)))?;
    if amount.minor == 0 {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(problem(status, "invalid-request", "A field cannot be used", "amount: expected more than nothing"));
    }
    let (name, secret) = credentials(headers).ok_or_else(unauthorized)?;
    if name != customer {
        return Err(unauthorized());
    }
    let ware = Ware {
        resource: Resource {
            url: format!("{}/v1/prepaid/{customer}/top-up?amount={asked}", shop.public_url),
            description: format!("A prepaid balance of {amount} more"),
            mime_type: "application/json".into(),
        },
        amount: amount.minor,
    };
    let verified = paid(shop, headers, &ware).await?;
    let for_work = Arc::clone(shop);
    let opened = blocking(move || match for_work.wall.book().open_customer(&name, secret.as_bytes()) {
        Err(BookError::Reused { .. }) => Ok(false),
        done => done.map(|()| true),
    });
    if !opened.await? {
        return Err(unauthorized());
    }
    let request = request_name(&ware.resource.url, &[]);
    let answer = spelled(&PaidIn { customer: customer.to_owned(), paid_in: amount.to_string() })
        .map_err(Problem::into_response)?;
    let credit = Credit::TopUp { customer: customer.to_owned() };
    Ok(settle(shop, verified, request, credit, &ware, answer).await)
}

fn spelled(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|_| Problem::fault())
}

/// Sells one response from a balance: what is not there is not spent, and the quote says how to pay instead.
pub(crate) async fn sell(
    shop: &Arc<Shop>,
    headers: &HeaderMap,
    body: Bytes,
    ware: &Ware,
) -> Result<Response, Response> {
    let customer = known(shop, headers).await?;
    let key = IDEMPOTENCY_KEY.readable(headers).filter(|key| !key.is_empty() && key.len() <= HEADER_MAX);
    let Some(key) = key else {
        let detail = format!("expected {}: a name of this request, so that it is charged once", IDEMPOTENCY_KEY.name);
        return Err(problem(StatusCode::BAD_REQUEST, "malformed", "The request cannot be read", &detail));
    };
    let request = request_name(&format!("{}/{customer}/{key}", ware.resource.url), &body);
    let revenue = Money { minor: ware.amount, currency: shop.wall.offer().currency }.sub_units();
    let revenue = revenue.map_err(|error| refusal(&BookError::Ledger(error)))?;
    let answer = shop.answers.answer(headers.clone(), body).await?;
    let for_work = Arc::clone(shop);
    let (coverage_ppm, weights) = (answer.coverage_ppm, answer.weights);
    let charged = tokio::task::spawn_blocking(move || {
        let table = for_work.wall.table();
        let (lines, unknown_weight) = table.lines(&weights)?;
        let response = PaidResponse {
            request: &format!("prepaid/{request}"),
            at_unix_s: now_unix_s(),
            revenue,
            // The charge names the customer's account itself.
            source: Source::Cash,
            coverage_ppm,
            lines: &lines,
            unknown_weight,
        };
        for_work.wall.book().charge(&table, &customer, &response)
    });
    match charged.await {
        Ok(Ok(charged)) => {
            let mut response = respond(StatusCode::OK, "application/json", answer.body.into());
            if let Ok(value) = charged.balance.parse() {
                response.headers_mut().insert("prepaid-balance", value);
            }
            Ok(response)
        }
        Ok(Err(BookError::Insufficient { .. })) => Ok(quote(shop, ware, "insufficient_prepaid_balance")),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => {
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "fault", "A fault of this server", "the log says more"))
        }
    }
}
