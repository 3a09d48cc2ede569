//! Faults: swapped and spoilt material, full disks, stalling clients, signals.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ascribe_core::NoProgress;
use ascribe_registry::verify_usage_log;
use ascribe_tlog::NoteVerifier;
use serde_json::{Value, json};

use crate::common::finished;
use crate::server::Server;

#[test]
fn a_swap_under_load_fails_no_request() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let (ended, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let expected = server.example(2, false).body["shares"].clone();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let reply = server.example(2, true);
                    assert_eq!(reply.status, 200, "{}", reply.text);
                    assert_eq!(reply.body["shares"], expected);
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..3 {
            let reply = server.reload();
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
        ended.store(true, Ordering::SeqCst);
    });
    assert!(asked.load(Ordering::SeqCst) > 10);
}

#[test]
fn spoilt_material_is_refused_and_the_old_goes_on() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let before = server.example(0, false).body;
    let model = tiny.model().join("model.safetensors");
    let whole = std::fs::read(&model).unwrap();
    let mut spoilt = whole.clone();
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    // By a new file under the old name, as a deployment does it; the running server keeps the one that it has.
    let replace = |bytes: &[u8]| {
        let tmp = tiny.model().join("new.tmp");
        std::fs::write(&tmp, bytes).unwrap();
        std::fs::rename(&tmp, &model).unwrap();
    };
    replace(&spoilt);
    let refused = server.reload();
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(refused.body["detail"].as_str().unwrap().contains("model.safetensors"), "{}", refused.text);
    let after = server.example(0, false).body;
    assert_eq!((&after["shares"], &after["index"]), (&before["shares"], &before["index"]));
    assert_eq!(server.get("/readyz").status, 200);
    assert!(server.get("/metrics").text.contains("ascribe_reloads_total{outcome=\"refused\"} 1"));
    let audit = server.get_with("/admin/audit", &server.admin()).body;
    assert!(audit["actions"].as_array().unwrap().last().unwrap()["outcome"].as_str().unwrap().contains("model"));
    replace(&whole);
    assert_eq!(server.reload().status, 200);
}

/// No file of the server may pass 2 KiB, which one receipt fills and two do not: writes beyond fail as on a full disk.
const FULL: &str = "trap '' XFSZ; ulimit -f 2";

/// Batches of receipts until one does not fit: ids that were acknowledged, and the answer that was not.
fn fill(server: &Server) -> (Vec<String>, Value) {
    let questions: Vec<Value> = (0..12).map(|i| json!({ "example": i, "k": 1, "receipt": true })).collect();
    let mut acknowledged = Vec::new();
    for _ in 0..20 {
        let reply = server.post("/v1/attributions:batch", &json!({ "requests": questions }));
        assert_eq!(reply.status, 200, "{}", reply.text);
        for item in reply.body["responses"].as_array().unwrap() {
            match item["receipt"].is_object() {
                true => acknowledged.push(item["id"].as_str().unwrap().to_owned()),
                false => return (acknowledged, item.clone()),
            }
        }
    }
    panic!("the disk is never full: {} receipts", acknowledged.len());
}

#[test]
fn a_full_disk_refuses_answers_without_receipt() {
    let tiny = finished().tiny.copy_with_run();
    // Caches are made with room.
    drop(Server::start(&tiny, &[]));
    let server = Server::start_by(&tiny, &[], Some(FULL));
    let (acknowledged, refused) = fill(&server);
    assert_eq!(refused["status"].as_u64(), Some(503), "{refused}");
    assert!(refused["type"].as_str().unwrap().ends_with("receipt-not-logged"), "{refused}");
    // Without a receipt there is an answer, and what was acknowledged is there.
    assert_eq!(server.example(0, false).status, 200);
    let all_there = |server: &Server| {
        for id in &acknowledged {
            assert_eq!(server.get(&format!("/v1/receipts/{id}")).status, 200, "{id}");
        }
    };
    all_there(&server);
    drop(server);
    // With room again, nothing acknowledged is lost.
    all_there(&Server::start(&tiny, &[]));
}

#[test]
fn a_full_disk_marks_answers_where_that_is_the_policy() {
    let tiny = finished().tiny.copy_with_run();
    drop(Server::start(&tiny, &[]));
    let server = Server::start_by(&tiny, &[("receipt_policy", "mark")], Some(FULL));
    let (_, marked) = fill(&server);
    assert!(marked["shares"].is_array() && marked["receipt"].is_null(), "{marked}");
    assert!(marked["receipt_error"].as_str().unwrap().contains("durable receipt"), "{marked}");
    assert!(server.get("/metrics").text.contains("outcome=\"not_logged\""));
}

#[test]
fn a_client_that_stalls_is_let_go_and_hinders_nobody() {
    let settings = [("header_timeout_ms", "500"), ("body_timeout_ms", "500"), ("max_connections", "16")];
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &settings);
    let head =
        "POST /v1/attributions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let began = Instant::now();
    let mut stalled: Vec<TcpStream> = (0..10)
        .map(|i| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(if i % 2 == 0 { &head.as_bytes()[..40] } else { head.as_bytes() }).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.example(0, false).status, 200);
    for (i, stream) in stalled.iter_mut().enumerate() {
        let mut text = Vec::new();
        drop(stream.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        // A head that never ends is cut off; a body that never ends is told so.
        assert!(i % 2 == 0 || text.starts_with("HTTP/1.1 408"), "{text}");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn requests_in_flight_end_before_the_process_does() {
    let tiny = finished().tiny.copy_with_run();
    let mut server = Server::start(&tiny, &[]);
    let lines: Vec<String> =
        (0..60).map(|i| json!({ "example": i % 12, "tokens": true, "receipt": true }).to_string()).collect();
    let body = lines.join("\n");
    let answered = std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            let reply = server.send("/v1/attributions:batch", "application/x-ndjson", &[], body.as_bytes());
            (reply.status, reply.text.lines().filter(|l| l.contains("\"receipt\"")).count())
        });
        // Once the server works on it.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            if server.get("/metrics").text.contains("ascribe_receipts_total") {
                break;
            }
        }
        server.signal("TERM");
        request.join().unwrap()
    });
    assert_eq!(answered, (200, 60));
    assert_eq!(server.wait(), Some(0));
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn kill_9_loses_no_acknowledged_receipt() {
    let tiny = finished().tiny.copy_with_run();
    let acknowledged: Mutex<Vec<String>> = Mutex::default();
    for round in 0..3u64 {
        let server = Server::start(&tiny, &[]);
        std::thread::scope(|scope| {
            for t in 0..4 {
                let (server, acknowledged) = (&server, &acknowledged);
                scope.spawn(move || {
                    // Until the connection breaks.
                    for i in 0.. {
                        let reply = server.example((t + i) % 12, true);
                        if reply.status != 200 {
                            return;
                        }
                        acknowledged.lock().unwrap().push(reply.body["id"].as_str().unwrap().to_owned());
                    }
                });
            }
            // Rounds end before, around and after the first journal moves into the log.
            std::thread::sleep(Duration::from_millis(700 + 900 * round));
            server.signal("KILL");
        });
    }
    let ids = acknowledged.into_inner().unwrap();
    assert!(ids.len() > 20, "{}", ids.len());
    let mut server = Server::start(&tiny, &[]);
    for id in &ids {
        assert_eq!(server.get(&format!("/v1/receipts/{id}")).status, 200, "{id} of {}", ids.len());
    }
    let keys = server.get("/v1/keys").body;
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let verifier = NoteVerifier::parse(keys["keys"][0]["verifier"].as_str().unwrap()).unwrap();
    let audit = verify_usage_log(&server.state.join("usage"), &verifier, &[], &NoProgress).unwrap();
    assert!(audit.size >= ids.len() as u64 && audit.receipts == audit.size);
}
