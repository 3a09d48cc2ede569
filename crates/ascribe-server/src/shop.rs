//! The paywall before this server's own answers: `paywall = FILE` in the settings opens `/v1/paid/attributions` and prepaid balances.
//!
//! The file is TOML: `book` (address of the ledger's database), `rpc`, `chain_id`, `token`, `token_name`, `token_version`, `currency`,
//! `pay_to`, `relayer_key_file` (a keystore with `relayer_passphrase_file`), `price_minor`, `public_url`, `operator_ppm`. What was
//! paid goes to the datasets of that very response, by its shares; what its coverage leaves, and all of a response that is not
//! payable, stays unattributed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ascribe_book::x402::authorization::address_of;
use ascribe_book::x402::{Node, Offer, Paywall, Relayer, TokenDomain};
use ascribe_book::{Book, NamedWeight, RevenueSplit};
use ascribe_engine::respond::Catalog;
use ascribe_ledger::{Currency, PayeeShare, Terms};
use ascribe_registry::{Signer as _, keystore};
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use k256::ecdsa::SigningKey;
use serde::Deserialize;

use crate::app::App;
use crate::error::ServerError;
use crate::problem::Problem;
use crate::routes::attributions;
use crate::routes::body::{self, Kind};
use crate::wire::{Attribution, AttributionRequest};
use crate::x402::{Answer, Answering, PaidAnswer, Shop};

/// Blocks after which a payment counts as settled.
const CONFIRMATIONS: u64 = 1;
/// Time that a request waits for its payment to settle.
const SETTLE_WAIT: Duration = Duration::from_secs(20);
/// Longest validity that is asked of an authorisation.
const MAX_TIMEOUT_S: u64 = 60;

/// The file of `paywall`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wall {
    book: String,
    rpc: String,
    chain_id: u64,
    token: String,
    token_name: String,
    token_version: String,
    currency: String,
    pay_to: String,
    relayer_key_file: PathBuf,
    relayer_passphrase_file: Option<PathBuf>,
    price_minor: u128,
    public_url: String,
    #[serde(default)]
    operator_ppm: u32,
}

/// Opens the paywall of a file over this server's answers. Blocks: it reads a database and asks a node.
///
/// # Errors
/// A field of the file that cannot be used; a book or node that does not answer.
pub fn open(path: &Path, app: &Arc<App>) -> Result<Shop, ServerError> {
    let content = |found: String| ServerError::Content {
        path: path.to_owned(),
        expected: "the settings of a paywall".into(),
        found,
    };
    let text = std::fs::read_to_string(path).map_err(|e| ServerError::io(path, e))?;
    let wall: Wall = toml::from_str(&text).map_err(|e| content(e.to_string()))?;
    let said = |what: &str, why: &dyn std::fmt::Display| content(format!("{what}: {why}"));
    let currency = Currency::of(&wall.currency).map_err(|e| said("currency", &e))?;
    let mut book = Book::open(&wall.book).map_err(|e| said("book", &e))?;
    let terms = terms(&app.generation().known.catalog).map_err(|e| said("payees", &e))?;
    let split = RevenueSplit { operator_ppm: wall.operator_ppm, reserve_ppm: 0 };
    let table =
        book.pay_table(currency, &terms, &vec![None; terms.len()], split).map_err(|e| said("operator_ppm", &e))?;
    let relayer = match &wall.relayer_passphrase_file {
        Some(passphrase) => relayer_of_keystore(&wall.relayer_key_file, passphrase)?,
        None => relayer(&wall.relayer_key_file)?,
    };
    let node = Node::connect(&wall.rpc, wall.chain_id, relayer).map_err(|e| said("rpc", &e))?;
    let domain = TokenDomain {
        name: wall.token_name.clone(),
        version: wall.token_version.clone(),
        chain_id: wall.chain_id,
        token: wall.token.parse().map_err(|e| said("token", &e))?,
    };
    let offer = Offer {
        domain,
        pay_to: wall.pay_to.parse().map_err(|e| said("pay_to", &e))?,
        currency,
        max_timeout_s: MAX_TIMEOUT_S,
        name_v1: None,
        confirmations: CONFIRMATIONS,
        settle_wait: SETTLE_WAIT,
    };
    let paywall = Paywall::new(offer, Box::new(node), book, table).map_err(|e| said("currency", &e))?;
    let public_url = wall.public_url.trim_end_matches('/').to_owned();
    Ok(Shop { wall: paywall, answers: Box::new(Ours(Arc::downgrade(app))), price_minor: wall.price_minor, public_url })
}

/// Who is paid for each dataset.
fn terms(catalog: &Catalog) -> Result<Vec<Terms>, ascribe_ledger::LedgerError> {
    let of = |dataset: &ascribe_engine::respond::CatalogDataset| {
        let payee = |(account, share_ppm): &(String, u32)| {
            Ok(PayeeShare { account: Some(account.parse()?), share_ppm: *share_ppm })
        };
        Ok(Terms {
            dataset: dataset.uuid.clone(),
            owner: dataset.owner.clone(),
            payees: dataset.payees.iter().map(payee).collect::<Result<_, ascribe_ledger::LedgerError>>()?,
        })
    };
    catalog.datasets.iter().map(of).collect()
}

/// Whoever sends settlements to the chain, with the key of a version 3 keystore; the passphrase is the first line of a file.
fn relayer_of_keystore(path: &Path, passphrase: &Path) -> Result<Relayer, ServerError> {
    let bad = |expected: &str, found: String| ServerError::Content {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let text = std::fs::read_to_string(passphrase).map_err(|e| ServerError::io(passphrase, e))?;
    let phrase = text.lines().next().unwrap_or_default().as_bytes();
    let signer = keystore::open(path, phrase).map_err(|e| bad("a version 3 keystore", e.to_string()))?;
    let address = signer.licensor().parse().map_err(|_| bad("a secp256k1 key", signer.licensor()))?;
    let sign = move |digest: &[u8; 32]| {
        let signature = signer.sign(digest).map_err(|e| e.to_string())?;
        signature.try_into().map_err(|s: Vec<u8>| format!("expected 65 bytes of signature, found {}", s.len()))
    };
    Ok(Relayer { address, sign: Box::new(sign) })
}

/// The same with the key of a file (64 hex digits).
fn relayer(path: &Path) -> Result<Relayer, ServerError> {
    let bad = || ServerError::Content {
        path: path.to_owned(),
        expected: "a secp256k1 secret key, 64 hex digits".into(),
        found: "something else; hint: a keystore needs relayer_passphrase_file".into(),
    };
    let text = std::fs::read_to_string(path).map_err(|e| ServerError::io(path, e))?;
    let bytes = hex::decode(text.trim().trim_start_matches("0x")).map_err(|_| bad())?;
    let key = SigningKey::from_slice(&bytes).map_err(|_| bad())?;
    let address = address_of(key.verifying_key());
    let sign = move |digest: &[u8; 32]| {
        let (signature, recovery) = key.sign_prehash_recoverable(digest).map_err(|error| error.to_string())?;
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + recovery.to_byte();
        Ok(bytes)
    };
    Ok(Relayer { address, sign: Box::new(sign) })
}

/// This server's own answers. Weak, because the routes that hold it are the application's.
struct Ours(Weak<App>);

impl PaidAnswer for Ours {
    fn answer(&self, headers: HeaderMap, body: Bytes) -> Answering {
        let app = self.0.upgrade();
        Box::pin(async move {
            let app = app.ok_or_else(|| Problem::fault().into_response())?;
            attribute(&app, &headers, &body).await.map_err(Problem::into_response)
        })
    }
}

async fn attribute(app: &Arc<App>, headers: &HeaderMap, bytes: &[u8]) -> Result<Answer, Problem> {
    if Kind::of(headers)? != Kind::Json {
        return Err(Problem::media_type("content-type: expected application/json, found another kind"));
    }
    let mut request: AttributionRequest = body::json(bytes)?;
    if request.revenue.is_some() {
        let found = "revenue: expected none in a request that is paid for, the book says what was settled; found some";
        return Err(Problem::invalid(found));
    }
    // What is paid leaves a receipt, whether the customer asks for one or not.
    request.receipt = true;
    let deadline = Instant::now() + app.config.request_timeout;
    let answer = attributions::answer(app, &app.generation(), &request, deadline).await?;
    let body = serde_json::to_vec(&answer).map_err(|_| Problem::fault())?;
    Ok(Answer { body, coverage_ppm: (answer.coverage.clamp(0.0, 1.0) * 1e6) as u32, weights: weights(&answer) })
}

/// Whom a response owes, in parts per 10¹² of what is attributed.
fn weights(answer: &Attribution) -> Vec<NamedWeight> {
    if answer.verdict != "payable" {
        return Vec::new();
    }
    let weight = |share: &crate::wire::WireShare| NamedWeight {
        dataset: share.dataset_id.to_string(),
        weight: (share.share.clamp(0.0, 1.0) * 1e12).floor() as u64,
    };
    answer.shares.iter().map(weight).filter(|w| w.weight > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_registry::keystore::KeyKind;
    use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};

    #[test]
    fn a_keystore_signs_for_the_address_that_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("phrase"), "correct horse\nnot this\n").unwrap();
        keystore::create(&at("key.json"), b"correct horse", KeyKind::Secp256k1).unwrap();
        let relayer = relayer_of_keystore(&at("key.json"), &at("phrase")).unwrap();
        let digest = [7; 32];
        let bytes = (relayer.sign)(&digest).unwrap();
        let signature = Signature::from_slice(&bytes[..64]).unwrap();
        let recovery = RecoveryId::from_byte(bytes[64] - 27).unwrap();
        let key = VerifyingKey::recover_from_prehash(&digest, &signature, recovery).unwrap();
        assert_eq!(address_of(&key), relayer.address);

        let refused = |key: &str, phrase: &str| relayer_of_keystore(&at(key), &at(phrase)).err().unwrap().to_string();
        std::fs::write(at("wrong"), "battery staple").unwrap();
        assert!(refused("key.json", "wrong").contains("passphrase"));
        keystore::create(&at("did.json"), b"correct horse", KeyKind::Ed25519).unwrap();
        assert!(refused("did.json", "phrase").contains("did:key"));
        assert!(refused("none.json", "phrase").contains("none.json"));
        // The other way round: a keystore where 64 digits are expected.
        assert!(super::relayer(&at("key.json")).err().unwrap().to_string().contains("relayer_passphrase_file"));
    }
}
