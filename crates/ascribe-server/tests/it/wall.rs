//! A paywall's file, and a chain that only says which it is.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::Tiny;

const CHAIN: u64 = 84_532;
pub const PRICE: u128 = 10_000;

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
pub fn wall(tiny: &Tiny, changed: &[(&str, &str)]) -> (PathBuf, String) {
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
