//! Traces as a collector receives them: OTLP over HTTP on loopback, read here by hand, so that the exporter is not its own judge.
#![allow(clippy::unwrap_used)] // test code: a panic with the error is the report

#[path = "../../../ascribe-engine/tests/it/common.rs"]
#[allow(dead_code)] // the home of the walk's tests; most of it is theirs alone
mod common;
#[path = "../it/server.rs"]
#[allow(dead_code)] // the server of the other tests
mod server;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::json;

use crate::common::finished;
use crate::server::Server;

/// One request to the collector.
struct Sent {
    path: String,
    content_type: String,
    body: Vec<u8>,
}

/// Receives what an exporter sends and answers with `status`.
fn collector(status: &'static str) -> (String, Receiver<Sent>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let send = send.clone();
            std::thread::spawn(move || {
                while let Some(sent) = receive(&stream, status) {
                    if send.send(sent).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, received)
}

fn receive(stream: &TcpStream, status: &str) -> Option<Sent> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut content_type) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "content-type" => content_type = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").ok()?;
    Some(Sent { path, content_type, body })
}

/// A field of a protobuf message: its number with its bytes, or with its integer.
#[derive(Clone, Debug, PartialEq)]
enum Field {
    Bytes(Vec<u8>),
    Number(u64),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

/// The fields of a message (protobuf's wire format).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let size = match key & 7 {
            0 => {
                found.push((key >> 3, Field::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(size);
        let is_fixed = key & 7 != 2;
        let number = || value.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        found.push((key >> 3, if is_fixed { Field::Number(number()) } else { Field::Bytes(value.to_vec()) }));
        bytes = rest;
    }
    found
}

fn all(bytes: &[u8], number: u64) -> Vec<Vec<u8>> {
    let wanted = fields(bytes).into_iter().filter(|(n, _)| *n == number);
    wanted.filter_map(|(_, field)| if let Field::Bytes(bytes) = field { Some(bytes) } else { None }).collect()
}

fn text(bytes: &[u8], number: u64) -> String {
    all(bytes, number).first().map(|b| String::from_utf8(b.clone()).unwrap()).unwrap_or_default()
}

/// Attributes, `KeyValue {1: key, 2: AnyValue {1: string, 3: integer}}`, as texts.
fn attributes(bytes: &[u8], number: u64) -> BTreeMap<String, String> {
    let value = |pair: &[u8]| match fields(&all(pair, 2)[0]).remove(0) {
        (1, Field::Bytes(bytes)) => String::from_utf8(bytes).unwrap(),
        (_, Field::Number(n)) => n.to_string(),
        other => format!("{other:?}"),
    };
    all(bytes, number).iter().map(|pair| (text(pair, 1), value(pair))).collect()
}

/// A span, in the fields of `opentelemetry.proto.trace.v1.Span` that the test looks at.
#[derive(Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    ns: u64,
    attributes: BTreeMap<String, String>,
    status: u64,
}

fn span(bytes: &[u8]) -> Span {
    let id = |number| all(bytes, number).first().map(hex::encode).unwrap_or_default();
    let number = |bytes: &[u8], wanted| {
        fields(bytes).into_iter().find_map(|(n, f)| match f {
            Field::Number(x) if n == wanted => Some(x),
            _ => None,
        })
    };
    Span {
        trace: id(1),
        id: id(2),
        parent: id(4),
        name: text(bytes, 5),
        kind: number(bytes, 6).unwrap_or(0),
        ns: number(bytes, 8).unwrap() - number(bytes, 7).unwrap(),
        attributes: attributes(bytes, 9),
        status: all(bytes, 15).first().and_then(|status| number(status, 3)).unwrap_or(0),
    }
}

/// All spans that arrive until the server has ended, and the service that they are of.
fn spans(received: &Receiver<Sent>) -> (Vec<Span>, String) {
    let (mut spans, mut service) = (Vec::new(), String::new());
    while let Ok(sent) = received.recv_timeout(Duration::from_millis(500)) {
        assert_eq!((sent.path.as_str(), sent.content_type.as_str()), ("/v1/traces", "application/x-protobuf"));
        for of_resource in all(&sent.body, 1) {
            service = attributes(&all(&of_resource, 1)[0], 1)["service.name"].clone();
            for of_scope in all(&of_resource, 2) {
                spans.extend(all(&of_scope, 2).iter().map(|bytes| span(bytes)));
            }
        }
    }
    (spans, service)
}

#[test]
fn a_request_is_a_span_with_its_id_and_parts_under_the_callers_trace() {
    let (url, received) = collector("200 OK");
    let tiny = finished().tiny.copy_with_run();
    let mut server = Server::start(&tiny, &[("otlp_endpoint", &url)]);
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let ask = |flags: &str, id: &str, body: &serde_json::Value| {
        let parent = format!("00-{trace}-{caller}-{flags}");
        let headers = [("traceparent", parent.as_str()), ("x-request-id", id)];
        server.send("/v1/attributions", "application/json", &headers, body.to_string().as_bytes()).status
    };
    assert_eq!(ask("01", "wanted", &json!({ "example": 0, "k": 1, "receipt": true })), 200);
    assert_eq!(ask("00", "unwanted", &json!({ "example": 0, "k": 1 })), 200);
    assert_eq!(ask("01", "refused", &json!({ "example": 99_999 })), 404);
    assert_eq!(server.get("/healthz").status, 200);
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let (spans, service) = spans(&received);
    assert_eq!(service, "ascribe-server");
    let of = |id: &str| spans.iter().find(|s| s.attributes.get("ascribe.request_id").is_some_and(|v| v == id));
    let wanted = of("wanted").unwrap();
    assert_eq!((wanted.trace.as_str(), wanted.parent.as_str()), (trace, caller), "{spans:#?}");
    assert_eq!((wanted.name.as_str(), wanted.kind, wanted.status), ("POST /v1/attributions", 2, 0));
    let value = |name: &str| wanted.attributes[name].as_str();
    assert_eq!((value("http.route"), value("http.response.status_code")), ("/v1/attributions", "200"));
    let parts: Vec<&Span> = spans.iter().filter(|s| s.parent == wanted.id).collect();
    let mut names: Vec<&str> = parts.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["answer", "receipt"]);
    assert!(parts.iter().all(|s| s.trace == trace && s.ns <= wanted.ns), "{spans:#?}");
    // Whoever calls decides what is sampled; a refusal is the caller's fault, not an error of the server.
    assert!(of("unwanted").is_none());
    let refused = of("refused").unwrap();
    assert_eq!((refused.attributes["http.response.status_code"].as_str(), refused.status), ("404", 0));
    // Without a caller's trace it is one of its own.
    let health = spans.iter().find(|s| s.name == "GET /healthz").unwrap();
    assert!(health.parent.is_empty() && health.trace.len() == 32 && health.trace != trace);
}

#[test]
fn a_collector_that_fails_or_is_away_hinders_nobody() {
    let (failing, received) = collector("503 Service Unavailable");
    let tiny = finished().tiny.copy_with_run();
    // Nobody listens on the port of a listener that is gone.
    let away = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    for url in [failing, away] {
        let mut server = Server::start(&tiny, &[("otlp_endpoint", &url)]);
        assert_eq!(server.example(0, true).status, 200);
        server.signal("TERM");
        assert_eq!(server.wait(), Some(0));
    }
    assert!(received.try_recv().is_ok());
}
