//! Duplicates: planted copies are found with their evidence, and nothing else is.

use std::fs;
use std::path::Path;

use ascribe_core::NoProgress;
use ascribe_registry::keystore::KeyKind;
use ascribe_registry::near::{self, Compared, Duplicates, Thresholds};
use ascribe_registry::{Fields, Ingest, SourceSet};
use tempfile::TempDir;

use crate::place::{Place, key, license};

fn words(from: usize, n: usize) -> String {
    // Words that no other range has.
    (from..from + n).map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
}

fn write(dir: &Path, name: &str, texts: &[String]) -> SourceSet {
    let path = dir.join(format!("{name}.jsonl"));
    let lines: String = texts
        .iter()
        .enumerate()
        .map(|(i, text)| serde_json::json!({ "id": format!("{name}/{i}"), "text": text }).to_string() + "\n")
        .collect();
    fs::write(&path, lines).unwrap();
    SourceSet::find(&path).unwrap()
}

fn find(sets: &[(&str, Option<u64>, &SourceSet)]) -> Duplicates {
    let fields = Fields::default();
    let compared: Vec<Compared<'_>> = sets
        .iter()
        .map(|(name, log_index, set)| Compared {
            name: (*name).to_owned(),
            owner: (*name).to_owned(),
            log_index: *log_index,
            ingest: Ingest { set, fields: &fields, strict: false },
        })
        .collect();
    near::find(&compared, Thresholds::default(), &NoProgress).unwrap()
}

#[test]
fn planted_copies_are_found_with_the_earliest_licence_first() {
    let dir = TempDir::new().unwrap();
    let first: Vec<String> = (0..200).map(|i| words(1_000 * i, 100)).collect();
    let copies = vec![
        first[7].clone(),                                  // the same bytes
        first[8].to_uppercase() + "!",                     // other bytes, the same words
        words(900_000, 60) + " " + &first[9],              // a whole text inside another
        words(1_000 * 10, 60) + " " + &words(910_000, 20), // most of a text, and more
        words(920_000, 100),                               // its own
        words(1_000 * 11, 10) + " " + &words(930_000, 90), // one sentence quoted
    ];
    let (a, b) = (write(dir.path(), "a", &first), write(dir.path(), "b", &copies));
    // `b` was licensed first.
    let found = find(&[("a", Some(5), &a), ("b", Some(2), &b)]);
    assert_eq!((found.records, found.redundant), (206, 4));
    let pairs: Vec<(String, String)> =
        found.clusters.iter().map(|cluster| (cluster.members[0].id.clone(), cluster.members[1].id.clone())).collect();
    let expected = [("b/0", "a/7"), ("b/1", "a/8"), ("b/2", "a/9"), ("b/3", "a/10")];
    assert_eq!(pairs, expected.map(|(x, y)| (x.to_owned(), y.to_owned())));
    assert!(found.clusters.iter().all(|cluster| cluster.across_owners && cluster.evidence.len() == 1));
    // 97 shingles of four in a hundred words.
    let evidence: Vec<_> = found.clusters.iter().map(|cluster| &cluster.evidence[0]).collect();
    assert!(evidence[0].exact && evidence[0].shared == 97 && evidence[0].jaccard == 1.0);
    assert!(!evidence[1].exact && evidence[1].jaccard == 1.0);
    assert_eq!((evidence[2].shared, evidence[2].containment), (97, 1.0));
    // 57 of the copy's 77 shingles stand in the original.
    assert_eq!((evidence[3].shared, evidence[3].containment), (57, 0.7403));
}

#[test]
fn clusters_do_not_depend_on_threads_or_order_of_datasets() {
    let dir = TempDir::new().unwrap();
    let texts: Vec<String> = (0..300).map(|i| words(1_000 * (i % 100), 50) + &" tail".repeat(i / 100)).collect();
    let (a, b) = (write(dir.path(), "a", &texts[..150]), write(dir.path(), "b", &texts[150..]));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let found = find(&[("a", Some(0), &a), ("b", Some(1), &b)]);
    assert_eq!(one.install(|| find(&[("a", Some(0), &a), ("b", Some(1), &b)])), found);
    let turned = find(&[("b", Some(1), &b), ("a", Some(0), &a)]);
    assert_eq!(found.clusters.len(), 100);
    let members = |found: &Duplicates| found.clusters.iter().map(|c| c.members.clone()).collect::<Vec<_>>();
    assert_eq!(members(&turned), members(&found));
}

#[test]
fn chinese_copies_are_found() {
    let dir = TempDir::new().unwrap();
    let text = |from: u32| (0..80).map(|i| char::from_u32(0x4e00 + from + i).unwrap()).collect::<String>();
    let a = write(dir.path(), "a", &[text(0), text(200), text(400)]);
    let b = write(dir.path(), "b", &[text(600), text(200) + "。" + &text(800)]);
    let found = find(&[("a", None, &a), ("b", None, &b)]);
    assert_eq!(found.clusters.len(), 1);
    assert_eq!(found.clusters[0].members[1].id, "b/1");
}

#[test]
fn a_registry_is_searched_whole() {
    let place = Place::sqlite();
    let mut registrar = place.init();
    let line = |id: &str, text: &str| format!("{{\"id\":\"{id}\",\"text\":\"{text}\"}}\n");
    place.add(&mut registrar, "alpha", &(line("a", &words(0, 50)) + &line("b", &words(100, 50)))).unwrap();
    place.add(&mut registrar, "beta", &(line("c", &words(0, 50)) + &line("d", &words(200, 50)))).unwrap();
    license(&mut registrar, "beta", &key(KeyKind::Secp256k1));
    drop(registrar);
    let found = near::find_in_registry(&place.root(), Thresholds::default(), &NoProgress).unwrap();
    assert_eq!(found.clusters.len(), 1);
    // Only `beta` has a licence, so it comes first.
    let members: Vec<&str> = found.clusters[0].members.iter().map(|member| member.dataset.as_str()).collect();
    assert_eq!(members, ["beta", "alpha"]);
}
