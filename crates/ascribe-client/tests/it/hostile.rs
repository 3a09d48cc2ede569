//! Servers that are none: whatever comes, the client ends with an error that says so, in time, within its memory.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use ascribe_client::{AttributionRequest, Client, ClientError};

/// A server that takes one connection, reads the head and writes these bytes; `then` is what it does with the open connection.
fn serve(bytes: Vec<u8>, then: fn()) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        drop(stream.read(&mut head));
        // The client may hang up before it has everything.
        drop(stream.write_all(&bytes));
        then();
    });
    Client::builder(address).timeout(Duration::from_secs(2)).retries(0).build().unwrap()
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

#[test]
fn nonsense_is_told_as_nonsense() {
    let kind = "200 OK\r\ncontent-type: application/json";
    for body in [&b"<html>"[..], b"{}", b"[]", b"", b"{\"generation\": 1}", b"\xff\xfe"] {
        let error = serve(answer(kind, body), || ()).index().unwrap_err();
        assert!(matches!(error, ClientError::Answer { status: 200, .. }), "{error}");
    }
    for bytes in
        [&b"SSH-2.0-OpenSSH\r\n"[..], b"", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"]
    {
        let error = serve(bytes.to_vec(), || ()).index().unwrap_err();
        assert!(matches!(error, ClientError::Transport { .. }), "{error}");
    }
}

#[test]
fn a_refusal_without_a_problem_document_keeps_its_status_and_words() {
    let error =
        serve(answer("502 Bad Gateway\r\ncontent-type: text/html", b"<h1>nginx</h1>"), || ()).index().unwrap_err();
    assert_eq!(error.status(), Some(502));
    assert!(error.to_string().contains("Bad Gateway: <h1>nginx</h1>"), "{error}");
    // A status in the document does not hide the real one.
    let lie = br#"{"title":"fine","status":200,"detail":"all is well"}"#;
    let error = serve(answer("500 Internal Server Error\r\ncontent-type: application/problem+json", lie), || ());
    assert_eq!(error.index().unwrap_err().status(), Some(500));
}

#[test]
fn nobody_is_sent_elsewhere() {
    let error =
        serve(answer("307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/", b""), || ()).index().unwrap_err();
    assert_eq!(error.status(), Some(307), "{error}");
}

#[test]
fn a_silent_server_ends_with_the_time_limit() {
    let began = Instant::now();
    let error = serve(Vec::new(), || std::thread::sleep(Duration::from_secs(20))).index().unwrap_err();
    assert!(matches!(error, ClientError::Transport { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn a_body_without_end_is_cut() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n";
    // More than is ever read; the connection stays open behind it.
    let bytes = [&head[..], &vec![b' '; 65 << 20]].concat();
    let error = serve(bytes, || std::thread::sleep(Duration::from_secs(20))).index().unwrap_err();
    assert!(matches!(error, ClientError::Transport { .. }), "{error}");
}

#[test]
fn a_stream_that_breaks_off_says_so_once() {
    let body = b"{\"status\":404,\"title\":\"t\",\"detail\":\"d\",\"type\":\"/x\"}\n{\"id\":\"attr_";
    let bytes = answer("200 OK\r\ncontent-type: application/x-ndjson", body);
    let mut lines = serve(bytes, || ()).attribute_stream(&[AttributionRequest::of("p", "c")]).unwrap();
    assert_eq!(lines.next().unwrap().unwrap().unwrap_err().status, 404);
    let error = lines.next().unwrap().unwrap_err();
    assert!(error.to_string().contains("broke off"), "{error}");
    assert!(lines.next().is_none());
    let json = serve(answer("200 OK\r\ncontent-type: application/json", b"{}"), || ());
    assert!(matches!(json.attribute_stream(&[]).unwrap_err(), ClientError::Answer { .. }));
}
