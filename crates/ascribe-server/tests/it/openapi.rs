//! The contract held against the server that publishes it: methods, keys, settings, bodies of octets, statuses and headers.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ascribe_core::Digest;
use ascribe_server::keys::{API_KEYS_VERSION, KeyEntry, KeyFile};
use serde_json::{Value, json};

use crate::common::finished;
use crate::server::{Reply, Server};
use crate::wall::wall;

/// Head of the answer to a request with any method.
fn head(address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n")
        .unwrap();
    let mut text = String::new();
    drop(stream.read_to_string(&mut text));
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase())
}

/// `(path, method, operation)` of all operations.
fn operations(contract: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = contract["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(p, item)| item.as_object().unwrap().iter().map(move |(m, o)| (p.as_str(), m.as_str(), o)))
        .collect()
}

/// A path with its open parts filled.
fn filled(path: &str) -> String {
    path.replace("{id}", "x").replace("{customer}", "acme")
}

/// The answer is one that the contract has for the operation: status, media type, headers.
fn is_declared(contract: &Value, path: &str, method: &str, reply: &Reply) {
    let declared = &contract["paths"][path][method]["responses"][reply.status.to_string()];
    assert!(declared.is_object(), "{method} {path}: {} is not declared: {}", reply.status, reply.text);
    let kind = reply.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
    let kinds: Vec<&String> = declared["content"].as_object().into_iter().flatten().map(|(kind, _)| kind).collect();
    assert!(kinds.iter().any(|k| *k == kind), "{method} {path}: {} as {kind:?}, of {kinds:?}", reply.status);
    // What every request has, and nobody declares.
    let of_http =
        ["content-type", "content-length", "date", "transfer-encoding", "connection", "cache-control", "allow"];
    for (name, _) in reply.headers.iter().filter(|(name, _)| !of_http.contains(&name.as_str())) {
        assert!(declared["headers"][name].is_object(), "{method} {path}: {}: {name} is not declared", reply.status);
    }
}

#[test]
fn every_route_serves_the_methods_of_the_contract_and_no_others() {
    let tiny = finished().tiny.copy_with_run();
    let (path, _) = wall(&tiny, &[]);
    let server = Server::start(&tiny, &[("paywall", path.to_str().unwrap())]);
    let contract = server.get("/openapi.json").body;
    let all = operations(&contract);
    assert_eq!(all.len(), 18);
    for path in all.iter().map(|(path, ..)| *path).collect::<BTreeSet<_>>() {
        let (status, head) = head(server.address, "PURGE", &filled(path), "");
        let allow = head.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap_or_default();
        let found: BTreeSet<&str> = allow.split(',').map(str::trim).filter(|m| *m != "head").collect();
        let declared: BTreeSet<&str> = all.iter().filter(|(p, ..)| *p == path).map(|(_, method, _)| *method).collect();
        assert_eq!((status, found), (405, declared), "{path}");
    }
    // Files of the page are no contract; everything else is not there.
    for (path, expected) in [("/", 200), ("/assets/explorer.js", 200), ("/v1", 404), ("/v1/paid", 404), ("/admin", 404)]
    {
        assert_eq!(head(server.address, "GET", path, "").0, expected, "{path}");
    }
    // A path that is no text is told so in the contract's words.
    let reply = server.get("/v1/datasets/%ff");
    is_declared(&contract, "/v1/datasets/{id}", "get", &reply);
    assert_eq!(reply.status, 400);
    let unpaid = server.post("/v1/paid/attributions", &json!({ "example": 0 }));
    assert_eq!(unpaid.status, 402);
    is_declared(&contract, "/v1/paid/attributions", "post", &unpaid);
    let other = server.send("/v1/paid/attributions", "text/plain", &[], b"x");
    assert_eq!(other.status, 402, "an order of another kind is no order before it is paid for");
    let stranger = server.get("/v1/prepaid/acme");
    assert_eq!(stranger.status, 401);
    is_declared(&contract, "/v1/prepaid/{customer}", "get", &stranger);
    let amount = server.send("/v1/prepaid/acme/top-up?amount=1&colour=red", "application/json", &[], b"");
    assert!(amount.status == 422 && amount.text.contains("colour"), "{}", amount.text);
    // One byte too many, so that all of it is read before the connection ends.
    let large = "a".repeat((2 << 20) + 1);
    let large = server.send("/v1/paid/attributions", "application/json", &[], large.as_bytes());
    assert_eq!(large.status, 413, "{}", large.text);
    is_declared(&contract, "/v1/paid/attributions", "post", &large);
}

#[test]
fn keys_are_asked_for_where_the_contract_says() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.root().join("keys.json");
    let mut file = KeyFile { format_version: API_KEYS_VERSION, keys: Vec::new() };
    let mut add = |id: &str| {
        let (id, sha256, note) = (id.to_owned(), Digest([0; 32]), String::new());
        file.add(KeyEntry { id, sha256, scopes: BTreeSet::new(), expires: None, per_second: None, note }).unwrap()
    };
    let powerless = format!("authorization: Bearer {}\r\n", add("powerless"));
    file.write(&path).unwrap();
    let server = Server::start(&tiny, &[("api_keys", path.to_str().unwrap())]);
    let contract = server.get("/openapi.json").body;
    for (path, method, operation) in operations(&contract) {
        let needs_key =
            operation["security"].as_array().unwrap().iter().all(|s| s.as_object().is_some_and(|s| !s.is_empty()));
        let statuses = ["401", "403", "429"].map(|status| operation["responses"][status].is_object());
        assert_eq!(statuses, [needs_key; 3], "{method} {path}");
        let ask = |headers: &str| head(server.address, &method.to_uppercase(), &filled(path), headers);
        let ((without, head), (with_another, _)) = (ask(""), ask(&powerless));
        assert_eq!(needs_key, without == 401, "{method} {path}: {without}");
        assert_eq!(needs_key, head.contains("www-authenticate: "), "{method} {path}");
        assert_eq!(needs_key, with_another == 403, "{method} {path}: {with_another}");
    }
}

#[test]
fn settings_beside_a_body_are_the_declared_ones_and_are_read() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let contract = server.get("/openapi.json").body;
    let question = json!({ "example": 1 }).to_string();
    for path in ["/v1/attributions", "/v1/attributions:batch"] {
        let body = if path.ends_with("batch") { format!("{{\"requests\":[{question}]}}") } else { question.clone() };
        let ask = |query: &str, headers: &[(&str, &str)]| {
            let reply = server.send(&format!("{path}{query}"), "application/json", headers, body.as_bytes());
            is_declared(&contract, path, "post", &reply);
            reply
        };
        let parameters = contract["paths"][path]["post"]["parameters"].as_array().unwrap();
        let names = |place: &str| -> BTreeSet<&str> {
            parameters.iter().filter(|p| p["in"] == place).map(|p| p["name"].as_str().unwrap()).collect()
        };
        let lists = ["datasets", "owners", "licences"];
        let others = ["k", "kind", "method", "min_score", "receipt"];
        assert_eq!(names("query"), lists.into_iter().chain(others).collect());
        assert_eq!(names("header"), BTreeSet::from(["x-dtype", "x-request-id", "x-shape"]));
        for name in names("query") {
            // What each cannot be, and that it is there twice.
            let wrong = ask(&format!("?{name}=%F0%9F%8E%88"), &[]);
            let twice = ask(&format!("?{name}=1&{name}=2"), &[]);
            let is_list = lists.contains(&name);
            assert!(
                matches!(wrong.status, 404 | 422) || wrong.text.contains("\"status\":404"),
                "{name}: {}",
                wrong.text
            );
            assert!(is_list || twice.status == 422 && twice.text.contains(name), "{name}: {}", twice.text);
        }
        let unknown = ask("?colour=red", &[]);
        assert!(unknown.status == 422 && unknown.text.contains("colour"), "{}", unknown.text);
        // Also where no question will use it.
        let said =
            if path.ends_with("batch") { "{\"requests\":[]}" } else { r#"{"example":1,"k":1,"method":"embedding"}"# };
        for (query, status) in [("k=1001", 422), ("method=null", 404), ("min_score=NaN", 422)] {
            let reply = server.send(&format!("{path}?{query}"), "application/json", &[], said.as_bytes());
            is_declared(&contract, path, "post", &reply);
            assert_eq!(reply.status, status, "{query}: {}", reply.text);
        }
        for (name, value) in [("x-shape", "?"), ("x-shape", "0"), ("x-shape", "7"), ("x-dtype", "f64")] {
            let wrong = ask("", &[(name, value)]);
            assert!(wrong.status == 422 && wrong.text.contains(name), "{}", wrong.text);
        }
        let named = ask("?k=2&receipt=true&method=embedding", &[("x-request-id", "req-7")]);
        assert_eq!((named.status, named.header("x-request-id")), (200, Some("req-7")));
        let answer = if path.ends_with("batch") { &named.body["responses"][0] } else { &named.body };
        assert_eq!((answer["hits"].as_array().map(Vec::len), answer["method"].as_str()), (Some(2), Some("embedding")));
        assert!(answer["receipt"].is_object());
    }
    // Lines, too, are filled by the query; what they say themselves stays.
    let lines = b"{\"example\":1}\n{\"example\":1,\"k\":1}\n";
    for kind in ["application/x-ndjson", "application/jsonl"] {
        assert!(contract["paths"]["/v1/attributions:batch"]["post"]["requestBody"]["content"][kind].is_object());
        let reply = server.send("/v1/attributions:batch?k=3", kind, &[], lines);
        let hits = |line: &str| serde_json::from_str::<Value>(line).unwrap()["hits"].as_array().unwrap().len();
        assert_eq!(reply.text.lines().map(hits).collect::<Vec<_>>(), [3, 1], "{kind}");
        is_declared(&contract, "/v1/attributions:batch", "post", &reply);
    }
    let lines = server.send("/v1/attributions", "application/x-ndjson", &[], b"{}");
    assert_eq!(lines.status, 415);
    is_declared(&contract, "/v1/attributions", "post", &lines);
}

#[test]
fn octets_are_read_as_the_contract_describes_them() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let contract = server.get("/openapi.json").body;
    for path in ["/v1/attributions", "/v1/attributions:batch"] {
        let operation = &contract["paths"][path]["post"];
        let media = &operation["requestBody"]["x-ascribe-octets"]["application/octet-stream"];
        let rows = &media["x-ascribe-rows"];
        let most = rows["maxRows"].as_u64().unwrap();
        assert_eq!(most, if path.ends_with("batch") { 64 } else { 1 });
        for (kind, length) in rows["numbersPerRow"].as_object().unwrap() {
            let length = length.as_u64().unwrap() as usize;
            for (dtype, width) in rows["bytesPerNumber"].as_object().unwrap() {
                let one = if width == 4 { 1f32.to_le_bytes().to_vec() } else { vec![0x00, 0x3c] };
                let n = most.min(2) as usize;
                let bytes = one.repeat(n * length);
                assert!(media["schema"]["minLength"].as_u64().unwrap() <= bytes.len() as u64);
                let shape = format!("{n},{length}");
                let ask = |headers: &[(&str, &str)], bytes: &[u8]| {
                    let headers = [headers, &[("x-dtype", dtype.as_str())]].concat();
                    let address = format!("{path}?kind={kind}&k=1");
                    let reply = server.send(&address, "application/octet-stream", &headers, bytes);
                    is_declared(&contract, path, "post", &reply);
                    reply
                };
                let (said, unsaid) = (ask(&[("x-shape", &shape)], &bytes), ask(&[], &bytes));
                assert_eq!((said.status, unsaid.status), (200, 200), "{path} {kind} {dtype}: {}", said.text);
                let shares = |reply: &Reply| match path.ends_with("batch") {
                    true => reply.body["responses"][n - 1]["shares"].clone(),
                    false => reply.body["shares"].clone(),
                };
                assert!(shares(&said).as_array().is_some_and(|s| s.len() == 3) && shares(&said) == shares(&unsaid));
                let too_many = ask(&[], &one.repeat((most as usize + 1) * length));
                assert_eq!(too_many.status, 422, "{path}: {}", too_many.text);
                assert_eq!(ask(&[], &bytes[1..]).status, 422);
            }
        }
    }
}
