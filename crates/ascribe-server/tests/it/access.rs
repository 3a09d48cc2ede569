//! Who may ask: keys, scopes, rates, TLS, the audit.

use std::path::Path;

use ascribe_core::Digest;
use ascribe_server::keys::{API_KEYS_VERSION, KeyEntry, KeyFile, Scope};
use serde_json::json;

use crate::common::finished;
use crate::server::Server;

fn entry(id: &str, scopes: &[Scope], expires: Option<&str>, per_second: Option<u32>) -> KeyEntry {
    KeyEntry {
        id: id.into(),
        sha256: Digest([0; 32]),
        scopes: scopes.iter().copied().collect(),
        expires: expires.map(String::from),
        per_second,
        note: String::new(),
    }
}

#[test]
fn keys_open_what_they_may_and_no_more() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.root().join("keys.json");
    let mut file = KeyFile { format_version: API_KEYS_VERSION, keys: Vec::new() };
    let proxy = file.add(entry("proxy", &[Scope::Attribute], None, None)).unwrap();
    let reader = file.add(entry("reader", &[Scope::Read], None, Some(3))).unwrap();
    let gone = file.add(entry("gone", &[Scope::Read], Some("2020-01-01T00:00:00Z"), None)).unwrap();
    let boss = file.add(entry("boss", &[Scope::Admin], None, None)).unwrap();
    file.write(&path).unwrap();
    let server = Server::start(&tiny, &[("api_keys", path.to_str().unwrap())]);
    let question = json!({ "example": 0 });
    let none = server.post("/v1/attributions", &question);
    assert_eq!((none.status, none.header("www-authenticate").is_some()), (401, true));
    assert_eq!(server.post_with("/v1/attributions", &question, &proxy).status, 200);
    assert_eq!(server.post_with("/v1/attributions", &question, &reader).status, 403);
    assert_eq!(server.post_with("/v1/attributions", &question, "ask_proxy_00").status, 401);
    assert_eq!(server.get_with("/v1/datasets", &gone).status, 401);
    assert_eq!(server.get_with("/v1/datasets", &proxy).status, 403);
    // Three a second, and the fourth at once is too many.
    let statuses: Vec<u16> = (0..6).map(|_| server.get_with("/v1/datasets", &reader).status).collect();
    assert!(statuses[0] == 200 && statuses.contains(&429), "{statuses:?}");
    let limited = (0..9).map(|_| server.get_with("/v1/datasets", &reader)).find(|r| r.status == 429).unwrap();
    assert!(limited.header("retry-after").is_some());
    // Health needs no key; the administrator's key reloads, and a revoked key is gone after it.
    assert_eq!(server.get("/healthz").status, 200);
    file.keys.retain(|k| k.id != "proxy");
    file.write(&path).unwrap();
    assert_eq!(server.post_with("/admin/reload", &json!({}), &proxy).status, 403);
    assert_eq!(server.post_with("/admin/reload", &json!({}), &boss).status, 200);
    assert_eq!(server.post_with("/v1/attributions", &question, &proxy).status, 401);
    let audit = server.get_with("/admin/audit", &boss).body;
    let last = audit["actions"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (last["who"].as_str(), last["action"].as_str(), last["outcome"].as_str()),
        (Some("boss"), Some("reload"), Some("ok"))
    );
}

#[test]
fn without_keys_only_the_state_folders_token_administers() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    assert_eq!(server.post("/admin/reload", &json!({})).status, 401);
    assert_eq!(server.post_with("/admin/reload", &json!({}), "guess").status, 401);
    assert_eq!(server.get_with("/admin/audit", &server.admin()).status, 200);
    let mode = std::fs::metadata(server.state.join("admin.token")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

#[test]
fn a_reload_beside_another_is_refused_and_audited() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let together = std::sync::Barrier::new(4);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let reload = || {
            together.wait();
            server.reload().status
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(reload)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let n_refused = statuses.iter().filter(|s| **s == 409).count();
    assert!(n_refused > 0 && statuses.iter().all(|s| [200, 409].contains(s)), "{statuses:?}");
    let audit = server.get_with("/admin/audit", &server.admin()).body;
    let refused = |line: &&serde_json::Value| line["outcome"].as_str().unwrap().starts_with("refused: a reload");
    assert_eq!(audit["actions"].as_array().unwrap().iter().filter(refused).count(), n_refused);
}

#[test]
fn it_speaks_tls() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (certificate, key) = (fixtures.join("localhost.pem"), fixtures.join("localhost.key"));
    let settings = [("tls_certificate", certificate.to_str().unwrap()), ("tls_key", key.to_str().unwrap())];
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &settings);
    assert!(server.url("/").starts_with("https://"));
    assert_eq!(server.example(0, true).status, 200);
    // Plain HTTP to it is no request.
    let plain = ureq::get(format!("http://{}/healthz", server.address)).call();
    assert!(plain.is_err());
}
