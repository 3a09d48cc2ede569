//! The protocol's JSON and headers, versions 1 and 2, as their specification and the published clients write them.

use ascribe_ledger::EvmAddress;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::BookError;
use crate::x402::authorization::Authorization;
use crate::x402::paywall::Offer;

/// Header of the quote, version 2.
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// Header of the payment, version 2.
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// Header of the settlement, version 2.
pub const PAYMENT_RESPONSE: &str = "payment-response";
/// Header of the payment, version 1.
pub const X_PAYMENT: &str = "x-payment";
/// Header of the settlement, version 1.
pub const X_PAYMENT_RESPONSE: &str = "x-payment-response";

/// Longest payment header that is read.
pub const PAYMENT_MAX_BYTES: usize = 16 << 10;

/// The one scheme.
pub const SCHEME: &str = "exact";

/// What is sold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its address.
    pub url: String,
    /// In words.
    pub description: String,
    /// What the answer is.
    pub mime_type: String,
}

/// A payment as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// 1 or 2.
    pub version: u8,
    /// Named by the payer.
    pub network: String,
    /// What was signed.
    pub authorization: Authorization,
    /// r ‖ s ‖ v.
    pub signature: [u8; 65],
    /// Version 2: the offer that the payer accepted.
    pub accepted: Option<Value>,
}

fn encode(value: &Value) -> String {
    STANDARD.encode(value.to_string())
}

/// An offer of version 2.
pub fn requirements(offer: &Offer, amount: u128) -> Value {
    json!({
        "scheme": SCHEME,
        "network": offer.network(),
        "amount": amount.to_string(),
        "asset": offer.domain.token.to_string(),
        "payTo": offer.pay_to.to_string(),
        "maxTimeoutSeconds": offer.max_timeout_s,
        "extra": {"name": offer.domain.name, "version": offer.domain.version},
    })
}

/// The quote of version 2 as its header's text.
pub fn required_header(offer: &Offer, resource: &Resource, amount: u128, error: &str) -> String {
    encode(&json!({
        "x402Version": 2,
        "error": error,
        "resource": {"url": resource.url, "description": resource.description, "mimeType": resource.mime_type},
        "accepts": [requirements(offer, amount)],
        "extensions": {},
    }))
}

/// The quote of version 1: the body of the answer. Its networks have names of their own; a chain without one is written as
/// CAIP-2, as in version 2.
pub fn required_body(offer: &Offer, resource: &Resource, amount: u128, error: &str) -> Value {
    json!({
        "x402Version": 1,
        "error": error,
        "accepts": [{
            "scheme": SCHEME,
            "network": offer.network_v1(),
            "maxAmountRequired": amount.to_string(),
            "resource": resource.url,
            "description": resource.description,
            "mimeType": resource.mime_type,
            "payTo": offer.pay_to.to_string(),
            "maxTimeoutSeconds": offer.max_timeout_s,
            "asset": offer.domain.token.to_string(),
            "extra": {"name": offer.domain.name, "version": offer.domain.version},
        }],
    })
}

/// The settlement as its header's text.
pub fn response_header(
    network: &str,
    payer: EvmAddress,
    transaction: Option<&str>,
    amount: u128,
    failure: Option<&str>,
) -> String {
    let mut value = json!({
        "success": failure.is_none(),
        "transaction": transaction.unwrap_or_default(),
        "network": network,
        "payer": payer.to_string(),
        "amount": amount.to_string(),
    });
    if let Some(failure) = failure {
        value["errorReason"] = failure.into();
    }
    encode(&value)
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "x402Version")]
    version: u8,
    scheme: Option<String>,
    network: Option<String>,
    accepted: Option<Value>,
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    signature: String,
    authorization: Fields,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    from: String,
    to: String,
    value: String,
    valid_after: String,
    valid_before: String,
    nonce: String,
}

fn fixed<const N: usize>(what: &str, text: &str) -> Result<[u8; N], BookError> {
    let mut bytes = [0; N];
    let digits = text.strip_prefix("0x").unwrap_or_default();
    match hex::decode_to_slice(digits, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(invalid(format!("{what}: expected 0x and {} hex digits", 2 * N))),
    }
}

fn invalid(why: String) -> BookError {
    BookError::Payment { reason: "invalid_payload", why }
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, BookError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = digits.then(|| text.parse().ok()).flatten();
    value.ok_or_else(|| {
        invalid(format!("{what}: expected an integer as text, found {:?}", text.chars().take(50).collect::<String>()))
    })
}

impl Payment {
    /// Reads a payment header of either version.
    ///
    /// # Errors
    /// [`BookError::Payment`] for anything but a payment of scheme `exact` by an authorisation.
    pub fn read(header: &str) -> Result<Self, BookError> {
        if header.len() > PAYMENT_MAX_BYTES {
            return Err(invalid(format!("expected at most {PAYMENT_MAX_BYTES} bytes, found {}", header.len())));
        }
        let bytes = STANDARD.decode(header.trim()).map_err(|_| invalid("expected base64".into()))?;
        let head: Head = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        let text = |name: &str| head.accepted.as_ref()?.get(name)?.as_str().map(str::to_owned);
        let (scheme, network) = match head.version {
            1 => (head.scheme, head.network),
            2 => (text("scheme"), text("network")),
            found => {
                let reason = "invalid_x402_version";
                return Err(BookError::Payment { reason, why: format!("expected 1 or 2, found {found}") });
            }
        };
        if scheme.as_deref() != Some(SCHEME) {
            let why = format!("expected {SCHEME}, found {scheme:?}");
            return Err(BookError::Payment { reason: "unsupported_scheme", why });
        }
        let fields = head.payload.authorization;
        let address = |what: &str, text: &str| fixed::<20>(what, text).map(EvmAddress);
        Ok(Self {
            version: head.version,
            network: network.ok_or_else(|| invalid("network: missing".into()))?,
            authorization: Authorization {
                from: address("from", &fields.from)?,
                to: address("to", &fields.to)?,
                value: number("value", &fields.value)?,
                valid_after: number("validAfter", &fields.valid_after)?,
                valid_before: number("validBefore", &fields.valid_before)?,
                nonce: fixed("nonce", &fields.nonce)?,
            },
            signature: fixed("signature", &head.payload.signature)?,
            accepted: head.accepted,
        })
    }

    /// The authorisation as it is kept until it has settled.
    pub(crate) fn to_json(&self) -> String {
        let a = &self.authorization;
        json!({
            "x402Version": self.version,
            "scheme": SCHEME,
            "network": self.network,
            "accepted": self.accepted,
            "payload": {
                "signature": format!("0x{}", hex::encode(self.signature)),
                "authorization": {
                    "from": a.from.to_string(),
                    "to": a.to.to_string(),
                    "value": a.value.to_string(),
                    "validAfter": a.valid_after.to_string(),
                    "validBefore": a.valid_before.to_string(),
                    "nonce": format!("0x{}", hex::encode(a.nonce)),
                },
            },
        })
        .to_string()
    }

    pub(crate) fn of_json(text: &str) -> Result<Self, BookError> {
        Self::read(&STANDARD.encode(text))
    }
}
