//! Every route of a real server, and every field of the contract.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ascribe_book::Book;
use ascribe_client::{AttributionRequest, Client, ClientError, Customer, Filter, Pay, Revenue, Rows};
use ascribe_core::Digest;
use ascribe_ledger::{Currency, Money};
use ascribe_server::keys::{API_KEYS_VERSION, KeyEntry, KeyFile, Scope};
use serde::Serialize;
use serde_json::Value;

use crate::common::{Tiny, finished};
use crate::server::Server;
use crate::wall::{PRICE, wall};

/// A server, the folder that it serves (which must outlive it), and a client of it.
fn start() -> (Server, Tiny, Client) {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let client = Client::new(&server.url("")).unwrap();
    (server, tiny, client)
}

/// Without absent optional fields, which the wire leaves out and our types spell as null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(all) => all.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// What came over the wire, read into our type and written again, is what came: no field is unknown, renamed or lost.
#[track_caller]
fn same(typed: &impl Serialize, wire: &Value) {
    assert_eq!(without_nulls(serde_json::to_value(typed).unwrap()), without_nulls(wire.clone()));
}

#[test]
fn every_field_of_every_answer_has_its_place() {
    let (server, _tiny, client) = start();
    same(&client.index().unwrap(), &server.get("/v1/index").body);
    same(&client.datasets().unwrap(), &server.get("/v1/datasets").body);
    same(&client.examples().unwrap(), &server.get("/v1/examples").body);
    same(&client.keys().unwrap(), &server.get("/v1/keys").body);
    same(&client.ready().unwrap(), &server.get("/readyz").body);
    same(&client.health().unwrap(), &server.get("/healthz").body);
    assert_eq!(client.contract().unwrap(), server.get("/openapi.json").body);
    assert!(client.metrics().unwrap().ends_with("# EOF\n"));
    let asked = AttributionRequest::of_example(0).with_k(3).with_evidence().with_receipt();
    let answer = client.attribute(&asked).unwrap();
    let mut wire = server.post("/v1/attributions", &serde_json::to_value(&asked).unwrap()).body;
    // Every answer has an id of its own, and its receipt the id, a salt and a time.
    wire["id"] = answer.id.clone().into();
    wire["receipt"] = answer.receipt.clone().unwrap();
    same(&answer, &wire);
    assert!(answer.hits.len() == 3 && answer.tokens.is_some_and(|t| !t.is_empty()) && answer.receipt.is_some());
    same(&client.receipt(&answer.id).unwrap(), &server.get(&format!("/v1/receipts/{}", answer.id)).body);
    let dataset = client.dataset(&answer.shares[0].dataset).unwrap();
    assert_eq!(dataset, client.dataset(&answer.shares[0].dataset_id).unwrap());
    same(&dataset, &server.get(&format!("/v1/datasets/{}", dataset.dataset)).body);
    let statement = client.statement(&dataset.owner).unwrap();
    same(&statement, &server.get(&format!("/v1/owners/{}/statement", dataset.owner)).body);
    let administrator = Client::builder(server.url("")).key(server.admin()).build().unwrap();
    assert_eq!(administrator.reload().unwrap().generation, answer.index.generation);
    let audit = administrator.audit().unwrap();
    same(&audit, &server.get_with("/admin/audit", &server.admin()).body);
    assert_eq!(audit.actions.last().map(|a| (a.action.as_str(), a.outcome.as_str())), Some(("reload", "ok")));
}

/// Rows as octets are answered as the same numbers in JSON are.
#[test]
fn rows_of_numbers_travel_as_octets() {
    let (_server, _tiny, client) = start();
    let index = client.index().unwrap();
    let numbers = |width: usize| -> Vec<f32> { (0..2 * width).map(|i| (i as f32 * 0.37).sin()).collect() };
    let (hidden, rows) = (numbers(index.embedding_dim), numbers(index.dim));
    let of_json = |request: AttributionRequest| client.attribute(&request.with_k(3)).unwrap();
    let first = AttributionRequest { embedding: Some(hidden[..index.embedding_dim].into()), ..Default::default() };
    let (first, found) = (of_json(first), Rows::embeddings(&hidden, index.embedding_dim).with_k(3));
    let found = client.attribute_rows(&found).unwrap().remove(0).unwrap();
    assert_eq!((&found.shares, &found.hits, &found.method), (&first.shares, &first.hits, &first.method));
    let second = AttributionRequest { features: Some(rows[index.dim..].into()), ..Default::default() };
    let second = of_json(second);
    let alone = Rows::features(&rows[index.dim..], index.dim).with_k(3).with_receipt().with_method("block_fisher");
    let alone = client.attribute_row(&alone).unwrap();
    assert_eq!((&alone.shares, &alone.hits, alone.receipt.is_some()), (&second.shares, &second.hits, true));
    let both = client.attribute_rows(&Rows::features(&rows, index.dim).with_k(3)).unwrap();
    assert_eq!((both.len(), &both[1].as_ref().unwrap().hits), (2, &second.hits));
    let refused = |outcome: Result<_, ClientError>| -> (Option<u16>, String) {
        outcome.map(|_: Vec<_>| ()).map_err(|e| (e.status(), e.to_string())).unwrap_err()
    };
    let (status, words) = refused(client.attribute_row(&Rows::features(&rows, index.dim)).map(|one| vec![Ok(one)]));
    assert!(status == Some(422) && words.contains("one row, found 2"), "{words}");
    let (status, words) = refused(client.attribute_rows(&Rows::features(&rows[1..], index.dim)));
    assert!(status == Some(422) && words.contains("bytes"), "{words}");
}

/// The server's counters, after each function of the client was called once, name every operation of the contract and no other.
#[test]
fn every_operation_of_the_contract_has_a_function() {
    let tiny = finished().tiny.copy_with_run();
    let (path, book) = wall(&tiny, &[]);
    let currency = Currency::of("USDC").unwrap();
    let mut book = Book::open(&book).unwrap();
    let acme = Customer { name: "acme".into(), secret: "a secret of acme, long enough".into() };
    book.open_customer(&acme.name, acme.secret.as_bytes()).unwrap();
    let paid_in = Money { minor: 3 * PRICE, currency }.sub_units().unwrap();
    book.top_up(&acme.name, paid_in, currency, "invoice 1", 1_764_000_000).unwrap();
    drop(book);
    let server = Server::start(&tiny, &[("paywall", path.to_str().unwrap())]);
    let client = Client::builder(server.url("")).key(server.admin()).build().unwrap();

    let one = AttributionRequest::of_example(0).with_k(1);
    let answer = client.attribute(&one.clone().with_receipt()).unwrap();
    client.attribute_batch(std::slice::from_ref(&one)).unwrap();
    client.receipt(&answer.id).unwrap();
    client.datasets().unwrap();
    let dataset = client.dataset(&answer.shares[0].dataset).unwrap();
    client.statement(&dataset.owner).unwrap();
    client.examples().unwrap();
    client.index().unwrap();
    client.keys().unwrap();
    client.health().unwrap();
    client.ready().unwrap();
    client.reload().unwrap();
    client.audit().unwrap();
    let contract = client.contract().unwrap();
    let quoted = client.buy(&one, &Pay::Ask).unwrap_err();
    assert_eq!(quoted.status(), Some(402));
    assert_eq!(quoted.quote().unwrap()["accepts"][0]["maxAmountRequired"], PRICE.to_string());
    let pay = Pay::Balance { customer: acme.clone(), idempotency_key: "1".into() };
    let bought = client.buy(&one, &pay).unwrap();
    assert!(bought.shares == answer.shares && bought.receipt.is_some());
    assert_eq!(client.balance(&acme).unwrap().balance_subunits.parse::<u128>().unwrap() * 3, 2 * paid_in.0);
    let quoted = client.top_up(&acme, "12.50", None).unwrap_err();
    assert_eq!(quoted.quote().unwrap()["accepts"][0]["maxAmountRequired"], "12500000");
    client.metrics().unwrap();

    let metrics = client.metrics().unwrap();
    let label = |line: &str, name: &str| {
        line.split_once(&format!("{name}=\"")).unwrap().1.split('"').next().unwrap().to_owned()
    };
    let counted = metrics.lines().filter(|line| line.starts_with("ascribe_http_requests_total{"));
    let counted: BTreeSet<_> = counted.map(|l| (label(l, "route"), label(l, "method").to_lowercase())).collect();
    let paths = contract["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| item.as_object().unwrap().keys().map(|m| (path.clone(), m.clone())));
    assert_eq!(counted, operations.collect::<BTreeSet<_>>());
}

/// The request has exactly the fields of the contract.
#[test]
fn the_request_is_the_contracts() {
    let (server, _tiny, _) = start();
    let full = AttributionRequest {
        model: Some("tiny".into()),
        prompt: Some("p".into()),
        completion: Some("c".into()),
        example: Some(1),
        embedding: Some(vec![1.0]),
        features: Some(vec![1.0]),
        method: Some("embedding".into()),
        k: Some(1),
        min_score: Some(0.0),
        filter: Some(Filter { datasets: vec!["a".into()], owners: vec!["b".into()], licences: vec!["c".into()] }),
        receipt: true,
        tokens: true,
        verbatim: true,
        revenue: Some(Revenue { currency: "EUR".into(), minor_units: "1".into() }),
    };
    let contract = server.get("/openapi.json").body;
    let schemas = &contract["components"]["schemas"];
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    let ours = serde_json::to_value(&full).unwrap();
    // One form for each kind of input; together they have every field.
    let forms = schemas["AttributionRequest"]["oneOf"].as_array().unwrap();
    let all: BTreeSet<String> = forms.iter().flat_map(|form| names(&form["properties"])).collect();
    assert_eq!((names(&ours), forms.len()), (all, 4));
    assert_eq!(names(&ours["filter"]), names(&schemas["WireFilter"]["properties"]));
    assert_eq!(names(&ours["revenue"]), names(&schemas["WireRevenue"]["properties"]));
    // And a small one says nothing that it does not mean.
    let small = serde_json::to_value(AttributionRequest::of("p", "c")).unwrap();
    assert_eq!(names(&small), BTreeSet::from(["prompt".into(), "completion".into()]));
}

#[test]
fn batches_and_streams_keep_their_order() {
    let (_server, _tiny, client) = start();
    let mut requests: Vec<_> = (0..12).map(|n| AttributionRequest::of_example(n).with_k(1)).collect();
    let one_by_one: Vec<_> = requests.iter().map(|r| client.attribute(r).unwrap().shares).collect();
    let batch = client.attribute_batch(&requests).unwrap();
    let shares: Vec<_> = batch.into_iter().map(|answer| answer.unwrap().shares).collect();
    assert_eq!(shares, one_by_one);
    // A question that breaks the contract refuses a whole batch, by its place; of a stream, only itself.
    requests[5] = AttributionRequest::of_example(9_999);
    let refused = client.attribute_batch(&requests).unwrap_err();
    assert!(refused.status() == Some(404) && refused.to_string().contains("requests[5]"), "{refused}");
    let stream: Vec<_> = client.attribute_stream(&requests).unwrap().map(Result::unwrap).collect();
    for (n, (one, streamed)) in one_by_one.iter().zip(&stream).enumerate() {
        match streamed {
            Ok(answer) => assert!(n != 5 && answer.shares == *one, "question {n}"),
            Err(problem) => assert_eq!((n, problem.status), (5, 404)),
        }
    }
    assert_eq!(stream.len(), 12);
}

#[test]
fn refusals_come_in_the_servers_words() {
    let (_server, _tiny, client) = start();
    let unknown = AttributionRequest::of("p", "c").with_method("sorcery");
    let error = client.attribute(&unknown).unwrap_err();
    assert_eq!((error.status(), error.is_temporary()), (Some(404), false));
    let words = error.to_string();
    assert!(words.starts_with("POST /v1/attributions: 404: ") && words.contains("sorcery"), "{words}");
    assert!(words.contains("(request /requests/req_"), "{words}");
    let both = AttributionRequest { example: Some(1), ..AttributionRequest::of("p", "c") };
    assert_eq!(client.attribute(&both).unwrap_err().status(), Some(422));
    assert_eq!(client.receipt("../datasets").unwrap_err().status(), Some(404));
    let gone = Client::new("http://127.0.0.1:9").unwrap();
    assert!(matches!(gone.index().unwrap_err(), ClientError::Transport { .. }));
}

#[test]
fn keys_are_sent_and_rates_are_waited_for() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.root().join("keys.json");
    let mut file = KeyFile { format_version: API_KEYS_VERSION, keys: Vec::new() };
    let entry = KeyEntry {
        id: "reader".into(),
        sha256: Digest([0; 32]),
        scopes: [Scope::Read].into_iter().collect(),
        expires: None,
        per_second: Some(2),
        note: String::new(),
    };
    let key = file.add(entry).unwrap();
    file.write(&path).unwrap();
    let server = Server::start(&tiny, &[("api_keys", path.to_str().unwrap())]);
    assert_eq!(Client::new(&server.url("")).unwrap().datasets().unwrap_err().status(), Some(401));
    let patient = Client::builder(server.url("")).key(&key).retries(5).build().unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        patient.datasets().unwrap();
    }
    assert!(began.elapsed() > Duration::from_millis(900), "five calls at two a second: {:?}", began.elapsed());
    let hasty = Client::builder(server.url("")).key(&key).retries(0).build().unwrap();
    let refused = (0..9).find_map(|_| hasty.datasets().err()).unwrap();
    assert!(refused.is_temporary() && refused.status() == Some(429), "{refused}");
    let ClientError::Refused { retry_after, .. } = refused else { panic!("{refused}") };
    assert!(retry_after.is_some_and(|wait| wait >= Duration::from_secs(1)));
}

#[test]
fn clones_work_side_by_side() {
    let (_server, _tiny, client) = start();
    let expected = client.attribute(&AttributionRequest::of_example(0)).unwrap().shares;
    std::thread::scope(|scope| {
        let work = || {
            let client = client.clone();
            scope.spawn(move || client.attribute(&AttributionRequest::of_example(0)).unwrap().shares)
        };
        let threads: Vec<_> = (0..4).map(|_| work()).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == expected));
    });
}
