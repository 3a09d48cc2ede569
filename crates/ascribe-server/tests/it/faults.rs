//! Faults: swapped and spoilt material, full disks, stalling clients, signals.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ascribe_core::{Digest, NoProgress};
use ascribe_registry::verify_usage_log;
use ascribe_server::keys::{API_KEYS_VERSION, KeyEntry, KeyFile, Scope};
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

/// What an answer is of: its generation and its shares.
fn pair(answer: &Value) -> (Value, Value) {
    (answer["index"]["generation"].clone(), answer["shares"].clone())
}

/// Another run (features drawn from another seed) takes the folder's place under load, by an administrator's reload, and makes way again
/// by SIGHUP: an answer is of one of the two, whole, and after a reload of the new one.
#[test]
fn another_index_swapped_under_load_is_answered_from_whole() {
    let (tiny, other) = (finished().tiny.copy_with_run(), finished().tiny.copy());
    let (ours, theirs) = (tiny.model().join("attribution.toml"), other.model().join("attribution.toml"));
    let text = std::fs::read_to_string(&theirs).unwrap();
    let changed = text.replace("seed = 7", "seed = 8");
    assert_ne!(text, changed);
    std::fs::write(&theirs, &changed).unwrap();
    other.demo(&other.out()).unwrap();
    let new = pair(&Server::start(&other, &[]).example(2, false).body);
    let server = Server::start(&tiny, &[]);
    let old = pair(&server.example(2, false).body);
    assert!(old.0 != new.0 && old.1 != new.1, "the two runs do not differ");

    // By renames, as a deployment does it: the running server keeps the files that it has.
    let aside = tiny.root().join("aside");
    let put = |attribution: &str, from: &Path, to: &Path| {
        let tmp = ours.with_extension("tmp");
        std::fs::write(&tmp, attribution).unwrap();
        std::fs::rename(&tmp, &ours).unwrap();
        std::fs::rename(tiny.out(), to).unwrap();
        std::fs::rename(from, tiny.out()).unwrap();
    };
    let ended = AtomicBool::new(false);
    let seen: Mutex<Vec<(Value, Value)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let reply = server.example(2, true);
                    assert_eq!(reply.status, 200, "{}", reply.text);
                    seen.lock().unwrap().push(pair(&reply.body));
                }
            });
        }
        // Threads of the scope go on until they are told to end, whatever happens here.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            put(&changed, &other.out(), &aside);
            let reply = server.reload();
            assert_eq!((reply.status, &reply.body["generation"]), (200, &new.0), "{}", reply.text);
            assert_eq!(pair(&server.example(2, false).body), new);
            std::thread::sleep(Duration::from_millis(300));
            put(&text, &aside, &other.out());
            server.signal("HUP");
            let began = Instant::now();
            while server.get("/healthz").body["generation"] != old.0 {
                assert!(began.elapsed() < Duration::from_secs(60), "SIGHUP loads nothing");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(pair(&server.example(2, false).body), old);
        }));
        ended.store(true, Ordering::SeqCst);
        outcome.unwrap();
    });
    let seen = seen.into_inner().unwrap();
    let of = |which: &(Value, Value)| seen.iter().filter(|p| *p == which).count();
    let (n_old, n_new) = (of(&old), of(&new));
    assert_eq!(n_old + n_new, seen.len(), "answers of neither run");
    assert!(n_old > 3 && n_new > 3, "{n_old} of the old run, {n_new} of the new one");
}

#[test]
fn spoilt_material_is_refused_and_the_old_goes_on() {
    let tiny = finished().tiny.copy_with_run();
    let (path, mut keys) =
        (tiny.root().join("keys.json"), KeyFile { format_version: API_KEYS_VERSION, keys: Vec::new() });
    let mut key = |id: &str| {
        let scopes = [Scope::Attribute, Scope::Read, Scope::Admin].into_iter().collect();
        let sha256 = Digest([0; 32]);
        let entry = KeyEntry { id: id.into(), sha256, scopes, expires: None, per_second: None, note: String::new() };
        keys.add(entry).unwrap()
    };
    let (stays, goes) = (key("stays"), key("goes"));
    keys.write(&path).unwrap();
    let server = Server::start(&tiny, &[("api_keys", path.to_str().unwrap())]);
    let ask = |key: &str| server.post_with("/v1/attributions", &json!({ "example": 0, "k": 2 }), key);
    assert_eq!(ask(&goes).status, 200);
    let before = ask(&stays).body;
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
    keys.keys.retain(|k| k.id != "goes");
    keys.write(&path).unwrap();
    let refused = server.reload();
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(refused.body["detail"].as_str().unwrap().contains("model.safetensors"), "{}", refused.text);
    // A revoked key is gone though nothing else could be loaded.
    assert_eq!(ask(&goes).status, 401);
    let after = ask(&stays).body;
    assert_eq!((&after["shares"], &after["index"]), (&before["shares"], &before["index"]));
    assert_eq!(server.get("/readyz").status, 200);
    let metrics = server.get_with("/metrics", &stays).text;
    assert!(metrics.contains("ascribe_reloads_total{outcome=\"refused\"} 1"), "{metrics}");
    let audit = server.get_with("/admin/audit", &server.admin()).body;
    assert!(audit["actions"].as_array().unwrap().last().unwrap()["outcome"].as_str().unwrap().contains("model"));
    replace(&whole);
    assert_eq!(server.reload().status, 200);
}

#[test]
fn an_answer_that_takes_too_long_is_504() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[("request_timeout_ms", "1")]);
    // Dozens of windows through three checkpoints: far more than a millisecond.
    let long = json!({ "completion": "It is a truth universally acknowledged. ".repeat(60), "tokens": true });
    for _ in 0..5 {
        let late = server.post("/v1/attributions", &long);
        assert_eq!((late.status, late.body["type"].as_str()), (504, Some("/problems/timeout")), "{}", late.text);
        assert!(late.body["instance"].as_str().unwrap().starts_with("/requests/"));
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn clients_that_never_read_lose_their_connections() {
    let settings = [("write_timeout_ms", "1000"), ("max_connections", "4")];
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &settings);
    let contract = server.get("/openapi.json").text.len();
    // More answers than the buffers of both ends hold.
    let n = 40_000_000 / contract;
    let questions = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(n);
    let stalled: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            // Answers are taken by nobody; the server reads no further question while one waits.
            drop(stream.write_all(questions.as_bytes()));
            stream
        })
        .collect();
    // All connections are theirs until they are cut off.
    let began = Instant::now();
    let fresh: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).build().into();
    assert_eq!(fresh.get(server.url("/healthz")).call().unwrap().status().as_u16(), 200);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(stalled);
}

#[test]
fn the_log_has_a_line_of_json_for_every_request() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.root().join("log.jsonl");
    let server = Server::start_by(&tiny, &[("log", "info")], Some(&format!("exec 2>{}", path.display())));
    let sent = [("x-request-id", "from-a-proxy-7")];
    let asked = server.send("/v1/attributions", "application/json", &sent, b"{\"example\": 1}");
    let missing = server.get("/v1/datasets/none");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (reply, method, route) in [(&asked, "POST", "/v1/attributions"), (&missing, "GET", "/v1/datasets/{id}")] {
        let id = reply.header("x-request-id").unwrap();
        let line = lines.iter().find(|l| l["request_id"] == id).unwrap();
        assert_eq!((line["method"].as_str(), line["route"].as_str()), (Some(method), Some(route)), "{line}");
        assert_eq!((line["status"].as_u64(), line["message"].as_str()), (Some(reply.status.into()), Some("request")));
        assert!(line["ms"].as_f64().unwrap() > 0.0 && line["timestamp"].is_string());
    }
    assert_eq!((asked.status, asked.header("x-request-id"), missing.status), (200, Some("from-a-proxy-7"), 404));
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

/// A connection that stays open, and what it says to one more request.
fn ask_again(stream: &mut TcpStream, path: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{path}: the connection ended after {text:?}");
        text.push(char::from(byte[0]));
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (text[9..12].parse().unwrap(), text)
}

/// For the lame-duck time only `/readyz` refuses: open connections and new ones are answered, what began ends; then nobody is let in.
#[test]
fn a_server_that_leaves_says_so_before_it_refuses() {
    const LAME: Duration = Duration::from_millis(3_000);
    let tiny = finished().tiny.copy_with_run();
    let mut server = Server::start(&tiny, &[("lame_duck_ms", "3000")]);
    let mut open = TcpStream::connect(server.address).unwrap();
    open.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(ask_again(&mut open, "/readyz").0, 200);
    let body: Vec<String> =
        (0..60).map(|i| json!({ "example": i % 12, "tokens": true, "receipt": true }).to_string()).collect();
    let body = body.join("\n");
    let (in_flight, n_ready, n_answered) = std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            let reply = server.send("/v1/attributions:batch", "application/x-ndjson", &[], body.as_bytes());
            (reply.status, reply.text.lines().filter(|l| l.contains("\"receipt\"")).count())
        });
        let asked = Instant::now();
        while !server.get("/metrics").text.contains("ascribe_receipts_total") {
            assert!(asked.elapsed() < Duration::from_secs(60), "no receipt yet");
        }
        server.signal("TERM");
        let (told, mut n_ready, mut n_answered) = (Instant::now(), 0, 0);
        while told.elapsed() < LAME - Duration::from_millis(800) {
            // On the connection of before, and on one made now.
            let (status, head) = ask_again(&mut open, "/readyz");
            let is_first = n_answered == 0 && status == 200;
            n_ready += usize::from(status == 200);
            assert!(is_first || (status == 503 && head.contains("retry-after: ")), "{status} {head}");
            assert_eq!(ask_again(&mut open, "/healthz").0, 200);
            let probe = server.get("/readyz").status;
            assert!(probe == 503 || is_first, "{probe}");
            assert_eq!(server.example(n_answered % 12, true).status, 200);
            n_answered += 1;
        }
        (request.join().unwrap(), n_ready, n_answered)
    });
    assert_eq!(in_flight, (200, 60));
    assert!(n_answered > 5 && n_ready <= 1, "{n_answered} answered while leaving, {n_ready} times ready");
    assert_eq!(server.wait(), Some(0));
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn a_second_signal_ends_the_lame_duck_time() {
    let tiny = finished().tiny.copy_with_run();
    let mut server = Server::start(&tiny, &[("lame_duck_ms", "600000")]);
    server.signal("TERM");
    let told = Instant::now();
    while server.get("/readyz").status != 503 {
        assert!(told.elapsed() < Duration::from_secs(30), "still ready, or gone");
    }
    let began = Instant::now();
    server.signal("INT");
    assert_eq!(server.wait(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn kill_9_loses_no_acknowledged_receipt() {
    let tiny = finished().tiny.copy_with_run();
    let acknowledged: Mutex<Vec<(String, Value)>> = Mutex::default();
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
                        let id = reply.body["id"].as_str().unwrap().to_owned();
                        acknowledged.lock().unwrap().push((id, reply.body["receipt"].clone()));
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
    for (id, receipt) in &ids {
        let kept = server.get(&format!("/v1/receipts/{id}"));
        assert_eq!((kept.status, &kept.body["receipt"]), (200, receipt), "{id} of {}", ids.len());
    }
    let keys = server.get("/v1/keys").body;
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let verifier = NoteVerifier::parse(keys["keys"][0]["verifier"].as_str().unwrap()).unwrap();
    let audit = verify_usage_log(&server.state.join("usage"), &verifier, &[], &NoProgress).unwrap();
    assert!(audit.size >= ids.len() as u64 && audit.receipts == audit.size);
}
