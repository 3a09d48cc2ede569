//! `paywall = FILE`: what is sold is this server's own answer, and its revenue goes where the answer says. Payments on a real chain
//! are `tests/conformance/x402`; here the node only says which chain it is, and customers pay from a balance.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use ascribe_book::{Book, Purpose};
use ascribe_ledger::{Currency, Money};
use serde_json::{Value, json};

use crate::common::{Tiny, finished};
use crate::server::{Reply, Server};

const CHAIN: u64 = 84_532;
const PRICE: u128 = 10_000;
const PAID: &str = "/v1/paid/attributions";
const SECRET: &str = "a secret of acme, long enough";

/// A node that knows the number of its chain and nothing else.
fn node() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || while answer(&stream).is_some() {});
        }
    });
    url
}

fn answer(stream: &TcpStream) -> Option<()> {
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let question: Value = serde_json::from_slice(&body).ok()?;
    let said = match question["method"].as_str() {
        Some("eth_chainId") => json!({ "jsonrpc": "2.0", "id": 1, "result": format!("0x{CHAIN:x}") }),
        _ => json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": -32601, "message": "no such method" } }),
    };
    let (said, mut stream) = (said.to_string(), stream);
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{said}", said.len())
        .ok()
}

/// The file of a paywall, with some lines changed, and the address of its book.
fn wall(tiny: &Tiny, changed: &[(&str, &str)]) -> (PathBuf, String) {
    let book = format!("sqlite:{}", tiny.root().join("book.sqlite").display());
    let key = tiny.root().join("relayer.key");
    std::fs::write(&key, "11".repeat(32)).unwrap();
    let mut lines = vec![
        ("book", json!(book)),
        ("rpc", json!(node())),
        ("chain_id", json!(CHAIN)),
        ("token", json!(format!("0x{}", "22".repeat(20)))),
        ("token_name", json!("USD Coin")),
        ("token_version", json!("2")),
        ("currency", json!("USDC")),
        ("pay_to", json!(format!("0x{}", "33".repeat(20)))),
        ("relayer_key_file", json!(key)),
        ("price_minor", json!(PRICE)),
        ("public_url", json!("https://shop.example/")),
        ("operator_ppm", json!(100_000)),
    ];
    for (name, value) in changed {
        let line = lines.iter_mut().find(|(n, _)| n == name).unwrap();
        line.1 = serde_json::from_str(value).unwrap();
    }
    let text: String = lines.iter().filter(|(_, v)| !v.is_null()).map(|(n, v)| format!("{n} = {v}\n")).collect();
    let path = tiny.root().join("paywall.toml");
    std::fs::write(&path, text).unwrap();
    (path, book)
}

fn buy(server: &Server, question: &Value, secret: &str, key: Option<&str>) -> Reply {
    let customer = format!("acme:{secret}");
    let mut headers = vec![("prepaid-authorization", customer.as_str())];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    server.send(PAID, "application/json", &headers, question.to_string().as_bytes())
}

#[test]
fn a_response_is_sold_and_its_revenue_goes_where_its_shares_say() {
    let tiny = finished().tiny.copy_with_run();
    let (path, address) = wall(&tiny, &[]);
    let currency = Currency::of("USDC").unwrap();
    let sub_units = |minor| Money { minor, currency }.sub_units().unwrap();
    let mut book = Book::open(&address).unwrap();
    book.open_customer("acme", SECRET.as_bytes()).unwrap();
    book.top_up("acme", sub_units(2 * PRICE + PRICE / 2), currency, "invoice 1", 1_764_000_000).unwrap();
    let server = Server::start(&tiny, &[("paywall", path.to_str().unwrap())]);
    let question = json!({ "example": 2, "k": 2 });

    // Without money there is a quote, with the request's id as on every route.
    let quote = server.post(PAID, &question);
    assert_eq!(quote.status, 402, "{}", quote.text);
    assert!(quote.header("payment-required").is_some() && quote.header("x-request-id").is_some());
    let offer = &quote.body["accepts"][0];
    assert_eq!((offer["maxAmountRequired"].as_str(), offer["resource"].as_str()), {
        (Some("10000"), Some("https://shop.example/v1/paid/attributions"))
    });
    assert!(offer["payTo"].as_str().unwrap().eq_ignore_ascii_case(&format!("0x{}", "33".repeat(20))));

    // What is not an order is not charged.
    assert_eq!(buy(&server, &question, "another secret, as long", Some("1")).status, 401);
    assert_eq!(buy(&server, &question, SECRET, None).status, 400);
    assert_eq!(buy(&server, &json!({ "example": 10_000 }), SECRET, Some("0")).status, 404);
    assert_eq!(buy(&server, &json!({ "example": 2, "colour": "red" }), SECRET, Some("0")).status, 422);
    let boast = json!({ "example": 2, "revenue": { "currency": "USD", "minor_units": "1000000" } });
    assert_eq!(buy(&server, &boast, SECRET, Some("0")).status, 422);

    // The answer is the one that everybody gets; the same key is charged once; what is not there is not spent.
    let free = server.post("/v1/attributions", &question).body;
    let bought: Vec<Reply> = ["1", "1", "2"].iter().map(|key| buy(&server, &question, SECRET, Some(key))).collect();
    for reply in &bought {
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!((&reply.body["shares"], &reply.body["hits"]), (&free["shares"], &free["hits"]));
        // Nobody asked for a receipt; what is paid leaves one all the same.
        let receipt = reply.body["id"].as_str().unwrap();
        assert!(reply.body["receipt"].is_object() && free["receipt"].is_null());
        assert_eq!(server.get(&format!("/v1/receipts/{receipt}")).status, 200);
    }
    let left = |reply: &Reply| reply.header("prepaid-balance").unwrap().to_owned();
    assert_eq!(left(&bought[0]), left(&bought[1]));
    assert!(left(&bought[0]).starts_with("0.015") && left(&bought[2]).starts_with("0.005"), "{}", left(&bought[2]));
    let poor = buy(&server, &question, SECRET, Some("3"));
    assert_eq!((poor.status, poor.body["error"].as_str()), (402, Some("insufficient_prepaid_balance")));
    let metrics = server.get("/metrics").text;
    assert!(metrics.contains(PAID), "{metrics}");
    drop(server);
    revenue_is_split(&mut Book::open(&address).unwrap(), &free, sub_units(2 * PRICE).0);
}

/// Two responses were sold: what the book holds is what their shares say, to the sub-units that floors leave.
fn revenue_is_split(book: &mut Book, answer: &Value, revenue: u128) {
    let balances = book.balances().unwrap();
    let held = |wanted: &dyn Fn(&Purpose) -> bool| -> u128 {
        let of = balances.iter().filter(|(account, _)| wanted(&account.purpose));
        of.map(|(_, b)| b.credits_posted.0 - b.debits_posted.0).sum()
    };
    assert_eq!(held(&|p| *p == Purpose::Operator), revenue / 10);
    let parts = held(&|p| matches!(p, Purpose::Payable { .. } | Purpose::Unattributed | Purpose::Dust));
    assert_eq!(parts, revenue - revenue / 10);
    let pool = (revenue - revenue / 10) as f64;
    let payable = if answer["verdict"] == "payable" { answer["coverage"].as_f64().unwrap() } else { 0.0 };
    let mut total = 0.0;
    for share in answer["shares"].as_array().unwrap() {
        let owner = share["owner"].as_str().unwrap();
        let found = held(&|p| matches!(p, Purpose::Payable { owner: o, .. } if o == owner)) as f64;
        let expected = pool * payable * share["share"].as_f64().unwrap();
        // A millionth of the pool: coverage is counted in parts per million.
        assert!((found - expected).abs() <= pool * 1e-6 + 8.0, "{owner}: {found}, not {expected}");
        total += found;
    }
    assert_eq!(total > 0.0, payable > 0.0);
    book.verify().unwrap();
}

#[test]
fn a_wall_that_cannot_stand_keeps_the_server_from_starting() {
    let tiny = finished().tiny.copy_with_run();
    for (name, value, words) in [
        ("price_minor", "null", "price_minor"),
        ("chain_id", "1", "expected chain 1, found 84532"),
        ("token", "\"0x22\"", "token"),
        ("currency", "\"SHELLS\"", "currency"),
        ("relayer_key_file", "\"/dev/null\"", "secp256k1 secret key"),
        ("rpc", "\"http://127.0.0.1:9\"", "rpc"),
    ] {
        let (path, _) = wall(&tiny, &[(name, value)]);
        let said = Server::refused(&tiny, &[("paywall", path.to_str().unwrap())]);
        assert!(said.contains(words), "{name}: {said}");
    }
}
