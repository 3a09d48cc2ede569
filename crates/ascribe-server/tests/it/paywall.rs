//! `paywall = FILE`: what is sold is this server's own answer, and its revenue goes where the answer says. Payments on a real chain
//! are `tests/conformance/x402`; here the node only says which chain it is, and customers pay from a balance.

use ascribe_book::{Book, Purpose};
use ascribe_ledger::{Currency, Money};
use serde_json::{Value, json};

use crate::common::finished;
use crate::server::{Reply, Server};
use crate::wall::{PRICE, wall};

const PAID: &str = "/v1/paid/attributions";
const SECRET: &str = "a secret of acme, long enough";

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
