//! A shop for tests: answers come from a file, payments from a real chain.
//!
//! `paywall CONFIG.json`, with `{"book", "rpc", "chain_id", "token", "token_name", "token_version", "pay_to", "relayer_key_file",
//! "price_minor", "settle_wait_ms", "answers": {PROMPT: {"text", "weights": [{"dataset", "weight"}]}}, "terms": [{"dataset", "owner",
//! "account"}]}`. Prints the address that it listens on as JSON, and ends when its standard input does.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a program of its own")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use ascribe_book::x402::authorization::address_of;
use ascribe_book::x402::{Node, Offer, Paywall, Relayer, TokenDomain};
use ascribe_book::{Book, NamedWeight, RevenueSplit};
use ascribe_ledger::{Currency, PayeeShare, Terms};
use ascribe_server::x402::{Answer, Answering, PaidAnswer, Shop, routes, watch};
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use k256::ecdsa::SigningKey;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Config {
    book: String,
    rpc: String,
    chain_id: u64,
    token: String,
    token_name: String,
    token_version: String,
    pay_to: String,
    relayer_key_file: String,
    price_minor: u128,
    settle_wait_ms: u64,
    answers: BTreeMap<String, Fixed>,
    terms: Vec<Term>,
}

#[derive(Clone, Deserialize)]
struct Fixed {
    text: String,
    weights: Vec<NamedWeight>,
}

#[derive(Deserialize)]
struct Term {
    dataset: String,
    owner: String,
    account: String,
}

struct Answers(BTreeMap<String, Fixed>);

impl PaidAnswer for Answers {
    fn answer(&self, _: HeaderMap, body: Bytes) -> Answering {
        let prompt = serde_json::from_slice::<Value>(&body).ok().and_then(|v| v["prompt"].as_str().map(str::to_owned));
        let found = prompt.and_then(|prompt| self.0.get(&prompt).cloned());
        Box::pin(async move {
            let Some(Fixed { text, weights }) = found else {
                return Err((StatusCode::UNPROCESSABLE_ENTITY, "no such prompt").into_response());
            };
            let body = json!({"text": text, "owes": weights}).to_string().into_bytes();
            Ok(Answer { body, coverage_ppm: 900_000, weights })
        })
    }
}

fn relayer(file: &str) -> Relayer {
    let text = std::fs::read_to_string(file).unwrap();
    let key = SigningKey::from_slice(&hex::decode(text.trim().trim_start_matches("0x")).unwrap()).unwrap();
    let address = address_of(key.verifying_key());
    let sign = move |digest: &[u8; 32]| {
        let (signature, recovery) = key.sign_prehash_recoverable(digest).map_err(|error| error.to_string())?;
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + recovery.to_byte();
        Ok(bytes)
    };
    Relayer { address, sign: Box::new(sign) }
}

fn shop(config: Config, public_url: String) -> Shop {
    let currency = Currency::of("USDC").unwrap();
    let mut book = Book::open(&config.book).unwrap();
    let term = |term: Term| Terms {
        dataset: term.dataset,
        owner: term.owner,
        payees: vec![PayeeShare { account: Some(term.account.parse().unwrap()), share_ppm: 1_000_000 }],
    };
    let terms: Vec<Terms> = config.terms.into_iter().map(term).collect();
    let split = RevenueSplit { operator_ppm: 100_000, reserve_ppm: 0 };
    let table = book.pay_table(currency, &terms, &vec![None; terms.len()], split).unwrap();
    let node = Node::connect(&config.rpc, config.chain_id, relayer(&config.relayer_key_file)).unwrap();
    let domain = TokenDomain {
        name: config.token_name,
        version: config.token_version,
        chain_id: config.chain_id,
        token: config.token.parse().unwrap(),
    };
    let offer = Offer {
        domain,
        pay_to: config.pay_to.parse().unwrap(),
        currency,
        max_timeout_s: 60,
        name_v1: None,
        confirmations: 1,
        settle_wait: Duration::from_millis(config.settle_wait_ms),
    };
    let wall = Paywall::new(offer, Box::new(node), book, table).unwrap();
    Shop { wall, answers: Box::new(Answers(config.answers)), price_minor: config.price_minor, public_url }
}

fn main() {
    let path = std::env::args().nth(1).expect("paywall CONFIG.json");
    let config: Config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shop = tokio::task::spawn_blocking(move || shop(config, format!("http://{address}"))).await.unwrap();
        let shop = Arc::new(shop);
        watch(&shop);
        println!("{}", json!({"listening": address.to_string()}));
        // Whoever started this closes its input to end it, also when it dies.
        let ends = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        tokio::select! {
            served = axum::serve(listener, routes(shop)) => served.unwrap(),
            _ = ends => {}
        }
    });
}
