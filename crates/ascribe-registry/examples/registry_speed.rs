//! Speed of a registry: hashing and registering records, and verifying licences.
//!
//!   cargo run --release -p ascribe-registry --example registry_speed -- [FILE.jsonl ...]
//!
//! Registers each file (or, without one, 400 MB of records made on the spot) twice from the page cache, in place and with a
//! copy; then signs 100,000 licences of one key into the tables and verifies them. Prints JSON: seconds of the clock, and of this
//! process's own time on the processor, which a busy machine does not lengthen.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_core::NoProgress;
use ascribe_registry::prepare::NewDataset;
use ascribe_registry::registrar::{NewContent, Registrar};
use ascribe_registry::{Fields, LicenceKey, Payee, Settings, Source, SourceSet, sign_licence};
use ascribe_sql::{Database, Value};

const LICENCES: u64 = 100_000;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let work = tempfile::tempdir()?;
    let mut files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        files.push(made(work.path())?);
    }
    let root = work.path().join("registry");
    let mut registrar = Registrar::init(&root, &Settings::new("speed", 1, "sqlite:registry.db"))?;
    let mut rows = Vec::new();
    for (i, file) in files.iter().enumerate() {
        // Into the page cache.
        let bytes = fs::read(file)?.len() as f64;
        for (how, in_place) in [("in place", true), ("with a copy", false)] {
            let name = format!("d{i}-{}", if in_place { "a" } else { "b" });
            let content = NewContent { set: SourceSet::find(file)?, fields: Fields::default(), in_place };
            let mut fresh = Registrar::init(
                &work.path().join(format!("r{}", rows.len())),
                &Settings::new(&name, 1, "sqlite:registry.db"),
            )?;
            let (started, cpu) = (Instant::now(), cpu_seconds());
            let added = fresh.add(&described(&name), &content, &NoProgress)?;
            let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
            rows.push(serde_json::json!({
                "file": file.file_name().map(|name| name.to_string_lossy()), "how": how, "bytes": bytes,
                "records": added.record_count, "seconds": seconds, "mb_per_s": bytes / 1e6 / seconds,
                "cpu_seconds": cpu, "mb_per_cpu_s": bytes / 1e6 / cpu,
            }));
        }
    }
    let path = work.path().join("one.jsonl");
    fs::write(&path, "{\"id\":\"a\",\"text\":\"one record\"}\n")?;
    let content = NewContent { set: SourceSet::find(&path)?, fields: Fields::default(), in_place: false };
    registrar.add(&described("licensed"), &content, &NoProgress)?;
    let signing = Instant::now();
    sign_many(&mut registrar, &root)?;
    let signing = signing.elapsed().as_secs_f64();
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let verified = registrar.verify_signatures(&NoProgress)?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let report = serde_json::json!({
        "threads": rayon::current_num_threads(), "register": rows,
        "licences": { "verified": verified, "seconds": seconds, "cpu_seconds": cpu, "signing_seconds": signing },
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

/// Time of this process's threads on a processor, as Linux counts it.
fn cpu_seconds() -> f64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |thread: fs::DirEntry| -> Option<f64> {
        fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    threads.filter_map(of).sum::<f64>() / 1e9
}

fn described(name: &str) -> NewDataset {
    NewDataset {
        name: name.to_owned(),
        title: name.to_owned(),
        owner: "Nobody".to_owned(),
        language: "en".to_owned(),
        licence: "MIT".to_owned(),
        permits: vec!["ai-train".to_owned()],
        prohibits: vec![],
        payees: vec![Payee {
            account: "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed".to_owned(),
            share_ppm: 1_000_000,
        }],
        source: Source { registry: "own".to_owned(), package: name.to_owned(), version: "1".to_owned() },
        notes: String::new(),
        terms: "Terms.\n".to_owned(),
    }
}

/// 400 MB of records of about 700 bytes, with the escapes and other letters that real ones have.
fn made(dir: &Path) -> Outcome<PathBuf> {
    let path = dir.join("made.jsonl");
    let mut out = std::io::BufWriter::new(fs::File::create(&path)?);
    let mut state = 1u64;
    for i in 0..600_000 {
        let mut text = String::new();
        while text.len() < 640 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(
                ["the ", "record ", "of\n", "a \"quoted\" ", "naïve ", "word ", "天地 ", "and, "]
                    [(state >> 61) as usize],
            );
        }
        writeln!(out, "{}", serde_json::json!({ "id": format!("made/{i}"), "text": text }))?;
    }
    out.flush()?;
    Ok(path)
}

/// Puts signed licences straight into the tables: what is measured is their verification.
fn sign_many(registrar: &mut Registrar, root: &Path) -> Outcome<()> {
    let key = LicenceKey::demo("speed");
    let base = registrar.prepare("licensed", key.address(), None, 0)?;
    let domain = registrar.domain().clone();
    let mut rows = Vec::with_capacity(LICENCES as usize);
    for i in 0..LICENCES {
        let mut message = base.clone();
        message.nonce = i + 1;
        let (licensor, uuid) = (message.licensor.to_checksum(None), message.dataset.clone());
        let licence = sign_licence(root, domain.clone(), message, "Nobody", &key)?;
        rows.push(vec![
            Value::from(licence.digest.0),
            "licence".into(),
            uuid.into(),
            1.into(),
            licensor.into(),
            Value::Int(i64::try_from(i)? + 1),
            0.into(),
            0.into(),
            serde_json::to_vec(&licence)?.into(),
            0.into(),
            Value::Int(i64::try_from(i)?),
        ]);
    }
    let columns = [
        "digest",
        "kind",
        "uuid",
        "version",
        "licensor",
        "nonce",
        "valid_from",
        "valid_until",
        "document",
        "accepted_unix_s",
        "log_index",
    ];
    let mut db = Database::open(&format!("sqlite:{}", root.join("registry.db").display()))?;
    db.transaction(|tx| tx.insert_many("signatures", &columns, rows.clone()))?;
    Ok(())
}
