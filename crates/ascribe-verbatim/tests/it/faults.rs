//! Kills, damage, other settings, a second writer.

use std::fs;
use std::path::Path;

use ascribe_core::{NoProgress, RecordId};
use ascribe_linalg::Stream;
use ascribe_store::StoreError;
use ascribe_verbatim::{FindOptions, MANIFEST_FILE, VerbatimError, VerbatimIndex, VerbatimWriter};

use crate::common::{Datasets, build, datasets, records, settings, sources};

fn some_data() -> Datasets {
    datasets(&mut Stream::new(8, "verbatim-faults"), 3, 30, 4)
}

fn bytes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| read(e.unwrap())).collect();
    all.sort();
    all
}

#[test]
fn a_stopped_build_goes_on_and_ends_with_the_same_bytes() {
    let data = some_data();
    let dir = tempfile::tempdir().unwrap();
    let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
    build(&whole, &data, settings(4, 100));
    let all: Vec<_> = records(&data).collect();
    for stop in [0, 1, 7, 20, 41, 60] {
        let _ = fs::remove_dir_all(&stopped);
        let mut writer = VerbatimWriter::open(&stopped, settings(4, 100), sources(3)).unwrap();
        for (id, offset, tokens) in &all[..stop] {
            writer.push(*id, *offset, tokens).unwrap();
        }
        // A kill in the middle of a shard: nothing of the open one is kept, and its half-written file is of no use.
        drop(writer);
        fs::write(stopped.join("shard-000009.safetensors.tmp"), b"half").unwrap();
        let error = VerbatimIndex::open(&stopped).unwrap_err().to_string();
        assert!(error.contains("unfinished") && error.contains("resumes"), "{error}");
        build(&stopped, &data, settings(4, 100));
        fs::remove_file(stopped.join("shard-000009.safetensors.tmp")).unwrap();
        assert_eq!(bytes(&stopped), bytes(&whole), "stopped after {stop} records");
    }
    // A finished index is left alone.
    build(&stopped, &data, settings(4, 100));
    assert_eq!(bytes(&stopped), bytes(&whole));
}

#[test]
fn other_settings_other_sources_and_a_second_writer_are_refused() {
    let data = some_data();
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &data, settings(4, 100));
    for (settings, sources, name) in [
        (settings(5, 100), sources(3), "vocabulary size"),
        (settings(4, 101), sources(3), "tokens per shard"),
        (settings(4, 100), sources(2), "sources"),
    ] {
        let error = VerbatimWriter::open(dir.path(), settings, sources).unwrap_err();
        assert!(
            matches!(&error, VerbatimError::Store(StoreError::SettingMismatch { setting, .. }) if *setting == name)
        );
    }
    let _first = VerbatimWriter::open(dir.path(), settings(4, 100), sources(3)).unwrap();
    let error = VerbatimWriter::open(dir.path(), settings(4, 100), sources(3)).unwrap_err();
    assert!(matches!(error, VerbatimError::Store(StoreError::Locked { .. })), "{error}");
    for (vocab_size, shard_tokens) in [(0, 1), (1 << 25, 1), (1, 0), (1, 1 << 31)] {
        let made = VerbatimWriter::open(&dir.path().join("x"), settings(vocab_size, shard_tokens), sources(1));
        assert!(matches!(made, Err(VerbatimError::Setting { .. })), "{vocab_size}, {shard_tokens}");
    }
}

#[test]
fn records_out_of_order_and_unknown_tokens_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = VerbatimWriter::open(dir.path(), settings(4, 100), sources(2)).unwrap();
    let at = |dataset, row| RecordId { dataset, row };
    writer.push(at(0, 0), 0, &[1]).unwrap();
    for (record, tokens) in [(at(0, 0), [1]), (at(0, 2), [1]), (at(1, 1), [1]), (at(2, 0), [1]), (at(0, 1), [4])] {
        let error = writer.push(record, 0, &tokens).unwrap_err().to_string();
        assert!(error.starts_with(&format!("dataset {}, record {}: expected", record.dataset, record.row)), "{error}");
    }
    writer.push(at(1, 0), 0, &[3]).unwrap();
    writer.finish().unwrap();
    assert_eq!(VerbatimIndex::open(dir.path()).unwrap().record_counts(), [1, 1]);
}

/// Every single flipped bit: an error that names the file, or the right answer. Never another answer, never a panic.
#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let data = some_data();
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path(), &data, settings(4, 300));
    let query: Vec<u32> = data[0].iter().flatten().copied().take(40).collect();
    let options = FindOptions { min_tokens: 2, max_occurrences: None, ..FindOptions::default() };
    let answer = |index: &VerbatimIndex| -> Result<_, VerbatimError> {
        Ok((index.find(&query, &options)?, index.longest_runs(&query, 2)?))
    };
    let expected = answer(&index).unwrap();
    let (mut found, mut harmless) = (0, 0);
    for (name, original) in bytes(dir.path()) {
        if original.is_empty() {
            continue; // the lock
        }
        let path = dir.path().join(&name);
        for at in (0..original.len()).step_by(7) {
            let mut changed = original.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, &changed).unwrap();
            let got = VerbatimIndex::open(dir.path()).and_then(|index| {
                let got = answer(&index)?;
                // What a search does not look at (names in the head, filling between tensors) is found by verify.
                assert!(name == MANIFEST_FILE || index.verify(&NoProgress).is_err(), "{name}, byte {at}: not verified");
                Ok(got)
            });
            match got {
                Ok(got) => {
                    assert_eq!(got, expected, "{name}, byte {at}: another answer");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains(&name), "{name}, byte {at}: {error}");
                    found += 1;
                }
            }
        }
        for cut in [0, 1, original.len() / 2, original.len() - 1] {
            fs::write(&path, &original[..cut]).unwrap();
            assert!(VerbatimIndex::open(dir.path()).is_err(), "{name} cut to {cut} bytes");
        }
        fs::remove_file(&path).unwrap();
        assert!(VerbatimIndex::open(dir.path()).is_err(), "without {name}");
        fs::write(&path, &original).unwrap();
    }
    assert!(found > 100 && harmless < found, "{found} found, {harmless} harmless");
    assert_eq!(answer(&VerbatimIndex::open(dir.path()).unwrap()).unwrap(), expected);
}

/// A stranger can make all sums agree: then anything may come out but a panic, an endless loop or a place out of bounds.
#[test]
fn a_forged_shard_does_not_panic() {
    let data = some_data();
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &data, settings(4, 1 << 20));
    let manifest = fs::read_to_string(dir.path().join(MANIFEST_FILE)).unwrap();
    let mut stream = Stream::new(9, "verbatim-forged");
    let honest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(honest["blake3"], seal(&honest["index"]), "the forger seals as the writer does");
    for round in 0..60 {
        // Numbers of the manifest changed under a seal that fits is what only a stranger does.
        let mut value: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let shard = &mut value["index"]["shards"][0];
        match round % 4 {
            0 => shard["tokens"] = stream.below(2000).into(),
            1 => shard["parts"][0]["records"] = stream.below(2000).into(),
            2 => shard["parts"][0]["first_row"] = u32::MAX.into(),
            _ => shard["bytes"] = stream.below(2000).into(),
        }
        let index: serde_json::Value = value["index"].clone();
        value["blake3"] = seal(&index).into();
        fs::write(dir.path().join(MANIFEST_FILE), serde_json::to_vec(&value).unwrap()).unwrap();
        if let Ok(index) = VerbatimIndex::open(dir.path()) {
            let _ = index.find(&[1, 2, 3, 1, 2], &FindOptions { min_tokens: 1, ..FindOptions::default() });
            let _ = index.longest_runs(&[1, 2, 3], 1);
        }
    }
}

/// The seal over fields in the order of the manifest.
fn seal(index: &serde_json::Value) -> String {
    let field = |name: &str| format!("\"{name}\":{}", ordered(name, &index[name]));
    let fields = ["format_version", "settings", "sources", "shards", "complete"].map(field);
    blake3::hash(format!("{{{}}}", fields.join(",")).as_bytes()).to_hex().to_string()
}

fn ordered(name: &str, value: &serde_json::Value) -> String {
    let order: &[&str] = match name {
        "settings" => &["tokenizer", "vocab_size", "shard_tokens"],
        "sources" => &["name", "id", "path"],
        "shards" => &["tokens", "parts", "bytes", "blake3", "tables_blake3"],
        "parts" => &["dataset", "first_row", "records"],
        _ => return value.to_string(),
    };
    let object = |value: &serde_json::Value| {
        let field = |name: &&str| format!("\"{name}\":{}", ordered(name, &value[*name]));
        format!("{{{}}}", order.iter().map(field).collect::<Vec<_>>().join(","))
    };
    match value {
        serde_json::Value::Array(items) => format!("[{}]", items.iter().map(object).collect::<Vec<_>>().join(",")),
        _ => object(value),
    }
}
