//! What a licence lets be shown, and what a filter leaves.

use std::collections::{BTreeMap, BTreeSet};

use ascribe_registry::read_records;
use serde_json::{Value, json};

use crate::common::{DATASETS, SHOWN, Tiny, finished, licence_of};
use crate::server::Server;

/// Ways to ask, each with its own way to the records.
const METHODS: [&str; 3] = ["calibrated", "block_fisher", "embedding"];
/// Shortest piece of a record that would give it away, in characters.
const PIECE: usize = 24;

/// Texts of every record by dataset and id.
fn registered(tiny: &Tiny) -> BTreeMap<String, BTreeMap<String, String>> {
    let registry = tiny.registry();
    let of = |name: &str| read_records(registry.dataset(name).unwrap()).unwrap();
    DATASETS.map(|(name, _)| (name.to_owned(), of(name).into_iter().map(|r| (r.id, r.text)).collect())).into()
}

/// True if a stretch of [`PIECE`] characters of `secret`, of every `PIECE`th, stands in `text`.
fn gives_away(text: &str, secret: &str) -> bool {
    let chars: Vec<char> = secret.chars().collect();
    chars.chunks_exact(PIECE).any(|piece| text.contains(&piece.iter().collect::<String>()))
}

/// Every string below a value.
fn strings<'v>(value: &'v Value, out: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(list) => list.iter().for_each(|v| strings(v, out)),
        Value::Object(map) => map.values().for_each(|v| strings(v, out)),
        _ => {}
    }
}

#[test]
fn texts_are_shown_where_the_licence_permits_it_and_ids_alone_elsewhere() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let texts = registered(&tiny);
    let rows = server.get("/v1/datasets").body["datasets"].clone();
    for row in rows.as_array().unwrap() {
        assert_eq!(row["may_show"], row["dataset"] == SHOWN, "{row}");
    }
    let (mut shown, mut withheld) = (0, 0);
    for (method, (name, _)) in METHODS.into_iter().flat_map(|m| DATASETS.map(|d| (m, d))) {
        let question = json!({
            "completion": "It is a truth universally acknowledged", "k": 10, "method": method, "filter": { "datasets": [name] },
        });
        let reply = server.post("/v1/attributions", &question);
        assert_eq!(reply.status, 200, "{}", reply.text);
        for hit in reply.body["hits"].as_array().unwrap() {
            assert_eq!(hit["dataset"], name);
            let of_dataset = &texts[name];
            let record = &of_dataset[hit["record_id"].as_str().unwrap()];
            let spans = hit["spans"].as_array().unwrap();
            assert!(!spans.is_empty(), "{hit}");
            for span in spans {
                let whole = &of_dataset[span["record_id"].as_str().unwrap()];
                match (name == SHOWN, span["text"].as_str()) {
                    // The end of a record is a token of its own, without a character.
                    (true, Some(text)) => {
                        assert!(text.is_empty() == (span["start"] == span["end"]) && whole.contains(text), "{hit}");
                    }
                    (shown, text) => assert!(!shown && text.is_none(), "{hit}"),
                }
            }
            if name == SHOWN {
                assert_eq!(hit["text"], *record);
                shown += 1;
                continue;
            }
            assert!(hit.get("text").is_none(), "{hit}");
            let mut all = Vec::new();
            strings(hit, &mut all);
            assert!(!all.iter().any(|text| gives_away(text, record)), "{hit}");
            withheld += 1;
        }
    }
    assert!(shown > 5 && withheld > 5, "{shown} records shown, {withheld} withheld");
}

/// Held-out responses are records, too: those whose licence forbids it are named by number, without their words.
#[test]
fn responses_to_try_are_shown_under_the_same_terms() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let secrets = registered(&tiny);
    let examples = server.get("/v1/examples").body["examples"].clone();
    let (mut shown, mut withheld) = (0, 0);
    for example in examples.as_array().unwrap() {
        let question = json!({ "example": example["id"], "k": 0, "tokens": true, "verbatim": true });
        let reply = server.post("/v1/attributions", &question);
        assert_eq!(reply.status, 200, "{}", reply.text);
        let mut all = Vec::new();
        strings(example, &mut all);
        strings(&reply.body, &mut all);
        let tokens: String =
            reply.body["tokens"].as_array().unwrap().iter().filter_map(|t| t["text"].as_str()).collect();
        if example["dataset"] == SHOWN {
            assert!(!example["completion"].as_str().unwrap().is_empty() && !tokens.is_empty());
            shown += 1;
            continue;
        }
        let said = all.concat();
        for secret in secrets[example["dataset"].as_str().unwrap()].values() {
            assert!(!gives_away(&said, secret) && !gives_away(&tokens, secret), "{example} {}", reply.text);
        }
        withheld += 1;
    }
    assert!(shown > 2 && withheld > 2, "{shown} shown, {withheld} withheld");
}

#[test]
fn filters_leave_what_all_their_lists_hold_and_change_no_share() {
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &[]);
    let uuids: BTreeMap<String, String> = server.get("/v1/datasets").body["datasets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["dataset"].as_str().unwrap().to_owned(), d["dataset_id"].as_str().unwrap().to_owned()))
        .collect();
    let [(novels, ada), (code, bo), (classics, chen)] = DATASETS;
    let cases: [(Value, &[&str]); 8] = [
        (json!({ "owners": [bo] }), &[code]),
        (json!({ "owners": [ada, chen] }), &[novels, classics]),
        (json!({ "licences": [licence_of(chen)] }), &[classics]),
        (json!({ "licences": [licence_of(ada)] }), &[novels, code]),
        (json!({ "datasets": [novels] }), &[novels]),
        (json!({ "datasets": [uuids[classics]] }), &[classics]),
        (json!({ "owners": [ada, chen], "licences": [licence_of(ada)] }), &[novels]),
        (json!({ "owners": [chen], "licences": [licence_of(bo)] }), &[]),
    ];
    for method in METHODS {
        let ask = |filter: &Value| {
            let question = json!({ "example": 3, "k": 40, "method": method, "filter": filter });
            let reply = server.post("/v1/attributions", &question);
            assert_eq!(reply.status, 200, "{}", reply.text);
            reply.body
        };
        let everything = ask(&json!({}));
        for (filter, left) in &cases {
            let left: BTreeSet<&str> = left.iter().copied().collect();
            let answer = ask(filter);
            let names = |part: &str| -> BTreeSet<String> {
                answer[part].as_array().unwrap().iter().map(|v| v["dataset"].as_str().unwrap().to_owned()).collect()
            };
            assert!(names("shares").iter().map(String::as_str).eq(left.iter().copied()), "{method} {filter}");
            assert!(names("hits").iter().all(|name| left.contains(name.as_str())), "{method} {filter}");
            let of_left = |v: &&Value| left.contains(v["dataset"].as_str().unwrap());
            let shares: Vec<&Value> = everything["shares"].as_array().unwrap().iter().filter(of_left).collect();
            assert!(answer["shares"].as_array().unwrap().iter().eq(shares), "{method} {filter}");
            assert_eq!(answer["hits"].as_array().unwrap().is_empty(), left.is_empty(), "{method} {filter}");
        }
    }
    for (list, name) in [("owners", "Nobody"), ("licences", "GPL-2.0-only"), ("datasets", "none")] {
        let refused = server.post("/v1/attributions", &json!({ "example": 1, "filter": { list: [name] } }));
        assert!(refused.status == 404 && refused.text.contains(&format!("filter.{list}")), "{}", refused.text);
    }
}
