//! What outsiders build on: routes, answers, receipts, refusals.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use ascribe_core::NoProgress;
use ascribe_engine::walk::calibrate::{channels_of, tables};
use ascribe_engine::walk::intervals::Intervals;
use ascribe_registry::{SignedUsage, UsageSalts, salted_hash, verify_usage_log};
use ascribe_store::read_scores;
use ascribe_tlog::{Ed25519PublicKey, NoteSigner, NoteVerifier};
use serde_json::{Value, json};

use crate::common::finished;
use crate::server::Server;

/// The demo's responses through the server have the demo's scores and the fitted method's shares.
#[test]
fn responses_have_the_walks_scores_and_shares() {
    let tiny = &finished().tiny.copy_with_run();
    let server = Server::start(tiny, &[]);
    let scores = read_scores(&tiny.out().join("scores.parquet")).unwrap();
    let names = ["trajectory_fisher", "embedding", "bm25"].map(String::from);
    let walked = tables(&scores, &names).unwrap();
    let method = Intervals::read(&tiny.out()).unwrap().method;
    let shares = method.calibration.predict(&channels_of(&walked)).unwrap();
    let registry = tiny.registry();
    let examples = server.get("/v1/examples").body["examples"].as_array().unwrap().clone();
    assert_eq!(examples.len(), shares.nrows());
    let mut same_tokens = 0;
    for (q, example) in examples.iter().enumerate() {
        let by_number = server.example(q, false).body;
        for share in by_number["shares"].as_array().unwrap() {
            let k = registry.dataset(share["dataset"].as_str().unwrap()).unwrap().ordinal as usize;
            assert_eq!(share["share"].as_f64().unwrap(), shares[(q, k)], "response {q}, dataset {k}");
            assert_eq!(share["score"].as_f64().unwrap(), walked[0].1[(q, k)]);
        }
        assert_eq!(by_number["coverage"].as_f64().unwrap(), method.coverage());
        // As a text: the same where the text has the same tokens (a window may begin within a word or a character). Others have
        // no words to send.
        if example["completion"] == "" {
            continue;
        }
        let text = json!({ "prompt": example["prompt"], "completion": example["completion"], "k": 2 });
        let by_text = server.post("/v1/attributions", &text).body;
        same_tokens += usize::from(by_text["shares"] == by_number["shares"]);
        assert_eq!(by_text["shares"].as_array().unwrap().len(), 3);
    }
    assert!(same_tokens > 0, "no response of {} is the same as a text", examples.len());
}

#[test]
fn an_answer_has_all_its_parts_and_a_receipt_that_outsiders_check() {
    let tiny = &finished().tiny.copy_with_run();
    let mut server = Server::start(tiny, &[]);
    let question = json!({
        "prompt": "It is a truth", "completion": " universally acknowledged, that a single man", "k": 3, "receipt": true,
        "tokens": true, "verbatim": true, "revenue": { "currency": "USD", "minor_units": "1000000" },
    });
    let reply = server.post("/v1/attributions", &question);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{}", reply.text);
    assert!(reply.header("x-request-id").is_some());
    let a = &reply.body;
    assert_eq!((a["hits"].as_array().unwrap().len(), a["shares"].as_array().unwrap().len()), (3, 3));
    for field in ["id", "method", "spec_hash", "model", "verdict"] {
        assert!(a[field].is_string(), "{field}");
    }
    let tokens: String = a["tokens"].as_array().unwrap().iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(tokens, " universally acknowledged, that a single man");
    let total: f64 = a["shares"].as_array().unwrap().iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-9);

    let keys = server.get("/v1/keys").body;
    let operator = Ed25519PublicKey::from_did_key(keys["keys"][0]["id"].as_str().unwrap()).unwrap();
    let signed = serde_json::to_vec(&a["receipt"]).unwrap();
    let signed: SignedUsage = serde_json::from_slice(&signed).unwrap();
    signed.verify(&operator).unwrap();
    assert_eq!(signed.receipt.request_id, a["id"].as_str().unwrap());
    // The operator finds the salt again and opens the receipt; no other output has that hash.
    let secret = std::fs::read_to_string(server.state.join("operator.key")).unwrap();
    let salt = UsageSalts::of(NoteSigner::parse(&secret).unwrap().key()).salt(&signed.receipt.request_id);
    let opens = |output: &str| salted_hash(&salt, output.as_bytes()) == signed.receipt.output_salted_sha256;
    assert!(opens(" universally acknowledged, that a single man") && !opens("another"));
    let payable = a["verdict"] == "payable";
    assert_eq!(!signed.receipt.shares.is_empty(), payable);
    let kept = server.get(&format!("/v1/receipts/{}", a["id"].as_str().unwrap())).body;
    assert_eq!(kept["receipt"], a["receipt"]);
    let statement = server.get("/v1/owners/Bo/statement").body;
    assert_eq!((statement["owner"].as_str(), statement["receipts_in_all"].as_u64()), (Some("Bo"), Some(1)));
    assert_eq!(server.get("/v1/datasets").body["datasets"].as_array().unwrap().len(), 3);
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    // The log that is left is one that outsiders verify.
    let verifier = NoteVerifier::parse(keys["keys"][0]["verifier"].as_str().unwrap()).unwrap();
    let audit = verify_usage_log(&server.state.join("usage"), &verifier, &[], &NoProgress).unwrap();
    assert_eq!((audit.size, audit.receipts), (1, 1));
}

#[test]
fn refusals_are_problems_that_name_the_field() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[("body_limit_bytes", "20000")]);
    let dim = server.get("/v1/index").body["dim"].as_u64().unwrap() as usize;
    let check = |body: &Value, status: u16, word: &str| {
        let reply = server.post("/v1/attributions", body);
        assert_eq!((reply.status, reply.header("content-type")), (status, Some("application/problem+json")), "{body}");
        assert!(reply.body["detail"].as_str().unwrap().contains(word), "{body}: {}", reply.text);
        assert_eq!(reply.body["status"].as_u64(), Some(u64::from(status)));
        assert!(reply.body["instance"].as_str().unwrap().starts_with("/requests/"));
    };
    check(&json!({ "prompt": "a", "completion": "b", "colour": "red" }), 422, "colour");
    check(&json!({ "prompt": "a", "completion": 7 }), 422, "string");
    check(&json!({}), 422, "exactly one");
    check(&json!({ "completion": "b", "example": 1 }), 422, "exactly one");
    check(&json!({ "prompt": "a", "example": 1 }), 422, "exactly one");
    check(&json!({ "completion": "" }), 422, "completion");
    check(&json!({ "completion": "b", "k": 1001 }), 422, "k:");
    check(&json!({ "completion": "b", "k": -1 }), 422, "-1");
    check(&json!({ "embedding": [1.0] }), 422, "embedding");
    check(&json!({ "features": vec![1e30; 3] }), 422, "features");
    check(&json!({ "completion": "b", "model": "other" }), 404, "model");
    check(&json!({ "completion": "b", "method": "random" }), 404, "method");
    check(&json!({ "completion": "b", "filter": { "owners": ["Nobody"] } }), 404, "owners");
    check(&json!({ "example": 10_000 }), 404, "example");
    check(&json!({ "completion": "x".repeat(30_000) }), 413, "20000");
    check(&json!({ "completion": "x".repeat(9_000) }), 422, "8192");
    let revenue = |currency: &str, units: &str| json!({ "completion": "b", "revenue": { "currency": currency, "minor_units": units } });
    check(&revenue("USD", "1.5"), 422, "minor_units");
    check(&revenue("", "1"), 422, "currency");
    let raw = |content_type: &str, headers: &[(&str, &str)], body: &[u8]| {
        let reply = server.send("/v1/attributions?kind=features", content_type, headers, body);
        (reply.status, reply.body["detail"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(raw("application/json", &[], b"{\"completion\": ").0, 400);
    assert_eq!(raw("application/json", &[], b"\xff\xfe").0, 400);
    assert_eq!(raw("text/plain", &[], b"hello").0, 415);
    let numbers = |x: f32| x.to_le_bytes().repeat(dim);
    let shape = dim.to_string();
    let (status, detail) = raw("application/octet-stream", &[("x-shape", &shape)], &numbers(f32::NAN));
    assert!(status == 422 && detail.contains("features"), "{detail}");
    assert_eq!(raw("application/octet-stream", &[("x-shape", "4")], &numbers(1.0)[..12]).0, 422);
    assert_eq!(raw("application/octet-stream", &[("x-shape", &shape)], &numbers(1e-3)).0, 200);
    for (path, status) in
        [("/nothing", 404), ("/v1/receipts/none", 404), ("/v1/datasets/none", 404), ("/v1/owners/x/statement", 404)]
    {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let wrong = server.get("/v1/attributions");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
}

#[test]
fn batches_come_whole_or_line_by_line() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let one = server.example(1, false).body["shares"].clone();
    let questions = json!({ "requests": [{ "example": 1, "k": 2 }, { "completion": "a", "filter": { "owners": ["Nobody"] } }, { "completion": "words" }] });
    let whole = server.post("/v1/attributions:batch", &questions);
    let responses = whole.body["responses"].as_array().unwrap();
    assert_eq!((responses.len(), &responses[0]["shares"], responses[1]["status"].as_u64()), (3, &one, Some(404)));
    let refused =
        server.post("/v1/attributions:batch", &json!({ "requests": [{ "example": 1 }, { "example": 99_999 }] }));
    assert!(refused.status == 404 && refused.body["detail"].as_str().unwrap().starts_with("requests[1]: example"));
    let lines: Vec<String> = (0..40).map(|i| json!({ "example": i % 12, "k": 1 }).to_string()).collect();
    let body = format!("{}\n\nnot json\n{{\"example\": 1, \"k\": 2}}", lines.join("\n"));
    let streamed = server.send("/v1/attributions:batch", "application/x-ndjson", &[], body.as_bytes());
    assert_eq!((streamed.status, streamed.header("content-type")), (200, Some("application/x-ndjson")));
    let answers: Vec<Value> = streamed.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), 42);
    assert_eq!(answers[40]["status"].as_u64(), Some(400));
    assert_eq!(answers[41]["shares"], one);
    // In the order of the questions, whoever answered first.
    assert_eq!(answers[0]["shares"], answers[12]["shares"]);
    let dim = server.get("/v1/index").body["embedding_dim"].as_u64().unwrap() as usize;
    let shape = format!("2,{dim}");
    let bytes = 0.25f32.to_le_bytes().repeat(2 * dim);
    let vectors = server.send("/v1/attributions:batch?k=1", "application/octet-stream", &[("x-shape", &shape)], &bytes);
    let responses = vectors.body["responses"].as_array().unwrap();
    assert_eq!((responses.len(), responses[0]["method"].as_str()), (2, Some("embedding")), "{}", vectors.text);
}

#[test]
fn the_contract_has_a_form_for_each_kind_of_question_and_the_page_is_there() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let contract = server.get("/openapi.json").body;
    assert_eq!(contract["openapi"].as_str().map(|v| &v[..3]), Some("3.1"));
    let forms = contract["components"]["schemas"]["AttributionRequest"]["oneOf"].as_array().unwrap();
    assert!(forms.len() == 4 && forms.iter().all(|f| f["additionalProperties"] == false));
    assert_eq!((server.get("/healthz").status, server.get("/readyz").status), (200, 200));
    let page = server.get("/");
    assert!(page.status == 200 && page.text.contains("<html"), "{}", page.status);
    server.example(0, true);
    let metrics = server.get("/metrics").text;
    assert!(metrics.contains("ascribe_receipts_total{outcome=\"logged\"} 1"), "{metrics}");
    assert!(metrics.contains("route=\"/v1/attributions\""));
}

#[test]
fn intervals_of_the_embedding_are_its_own_and_pay_nobody() {
    let tiny = &finished().tiny.copy_with_run();
    let server = Server::start(tiny, &[]);
    let dim = server.get("/v1/index").body["embedding_dim"].as_u64().unwrap() as usize;
    let answer = server.post("/v1/attributions", &json!({ "embedding": vec![0.25; dim], "k": 1 })).body;
    assert_eq!(answer["verdict"], "too noisy to pay");
    // The rule's quantile, found again from an interval that is not cut off at 0 or 1: ± r (√(p(1-p)) + 0.05).
    let whole = Intervals::read(&tiny.out()).unwrap().method.conformal;
    let mut n_whole = 0;
    for share in answer["shares"].as_array().unwrap() {
        let [share, low, high] = ["share", "low", "high"].map(|f| share[f].as_f64().unwrap());
        assert!(low <= share && share <= high && (low, high) != (share, share), "{low} {share} {high}");
        n_whole += usize::from((low, high) == whole.interval(share));
    }
    assert_eq!(n_whole, 0, "intervals of another method: {}", answer["shares"]);
}

/// Any token is a method of HTTP: counters must not grow by what clients invent.
#[test]
fn invented_methods_make_no_series() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    for i in 0..50 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(stream, "INVENTED{i} /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    }
    let metrics = server.get("/metrics").text;
    let series = metrics.lines().find(|l| l.contains("method=\"other\"")).unwrap();
    assert!(series.ends_with(" 50") && !metrics.contains("INVENTED"), "{metrics}");
}
