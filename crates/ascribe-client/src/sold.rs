//! What a server with a paywall sells. Payments are made elsewhere: here are the texts that carry them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{Call, Client, JSON, escaped};
use crate::error::ClientError;
use crate::types::{Attribution, AttributionRequest};

/// How a response is paid for.
#[derive(Clone, PartialEq, Eq)]
pub enum Pay {
    /// Not yet: the server answers with its quote, [`ClientError::quote`].
    Ask,
    /// By x402, version 2: base64 of the signed payment's JSON.
    Payment(String),
    /// From a prepaid balance.
    Balance {
        /// Who pays.
        customer: Customer,
        /// Name of this request: it is charged once, however often it is sent.
        idempotency_key: String,
    },
}

/// A prepaid customer: a name and a secret of at least 16 characters, both of their own choice; the first top-up fixes them.
#[derive(Clone, PartialEq, Eq)]
pub struct Customer {
    /// Name.
    pub name: String,
    /// Secret.
    pub secret: String,
}

/// What is left of a prepaid balance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The customer.
    pub customer: String,
    /// In the token's unit.
    pub balance: String,
    /// In the ledger's smallest unit, a decimal string.
    pub balance_subunits: String,
}

/// What a top-up did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaidIn {
    /// The customer.
    pub customer: String,
    /// Amount and currency.
    pub paid_in: String,
}

// Secrets and payments stay out of logs.
impl std::fmt::Debug for Customer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Customer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ask => f.write_str("Ask"),
            Self::Payment(_) => f.write_str("Payment(..)"),
            Self::Balance { customer, idempotency_key } => {
                f.debug_struct("Balance").field("customer", customer).field("key", idempotency_key).finish()
            }
        }
    }
}

impl Customer {
    fn header(&self) -> (&'static str, String) {
        ("prepaid-authorization", format!("{}:{}", self.name, self.secret))
    }
}

impl Client {
    /// `POST /v1/paid/attributions`: an answer that is paid for before it leaves, always with a receipt.
    ///
    /// # Errors
    /// [`ClientError`]; without a payment, or with one that does not fit, the refusal has a [`ClientError::quote`].
    pub fn buy(&self, request: &AttributionRequest, pay: &Pay) -> Result<Attribution, ClientError> {
        let mut call = Call::post("/v1/paid/attributions", request)?;
        match pay {
            Pay::Ask => {}
            Pay::Payment(payment) => call.headers.push(("payment-signature", payment.clone())),
            Pay::Balance { customer, idempotency_key } => {
                call.headers.extend([customer.header(), ("idempotency-key", idempotency_key.clone())]);
            }
        }
        self.send(&call)
    }

    /// `GET /v1/prepaid/{customer}`: what is left.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn balance(&self, customer: &Customer) -> Result<Balance, ClientError> {
        let mut call = Call::get(format!("/v1/prepaid/{}", escaped(&customer.name)));
        call.headers.push(customer.header());
        self.send(&call)
    }

    /// `POST /v1/prepaid/{customer}/top-up`: pays in `amount` of the token, as `12.50`, by x402; without a payment the refusal has a
    /// [`ClientError::quote`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn top_up(&self, customer: &Customer, amount: &str, payment: Option<&str>) -> Result<PaidIn, ClientError> {
        let path = format!("/v1/prepaid/{}/top-up?amount={}", escaped(&customer.name), escaped(amount));
        let mut call = Call::of(path, Vec::new(), JSON);
        call.headers.push(customer.header());
        call.headers.extend(payment.map(|payment| ("payment-signature", payment.to_owned())));
        self.send(&call)
    }
}

impl ClientError {
    /// What the server asks to be paid, in the words of x402's first version: `{"x402Version", "error", "accepts"}`.
    pub fn quote(&self) -> Option<&Value> {
        match self {
            Self::Refused { quote, .. } => quote.as_deref(),
            _ => None,
        }
    }
}
