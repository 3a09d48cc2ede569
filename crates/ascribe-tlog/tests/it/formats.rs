//! The first log folder opens for ever.

use std::path::{Path, PathBuf};

use ascribe_core::NoProgress;
use ascribe_tlog::{
    LOG_FORMAT_VERSION, LogWriter, NoteVerifier, Receipt, TileTree, audit, leaf_hash, read_checkpoint, read_key,
};

use crate::{ORIGIN, entry, signer, witness};

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/log/v{version}"))
}

/// `cargo test -p ascribe-tlog -- --ignored make_golden`
#[test]
#[ignore = "writes the golden folder"]
fn make_golden_log() {
    let dir = golden(LOG_FORMAT_VERSION);
    let _ = std::fs::remove_dir_all(&dir);
    let mut writer = LogWriter::create(&dir, signer(ORIGIN)).unwrap();
    writer.append((0..100).map(entry), &NoProgress).unwrap();
    writer.append((100..300).map(entry), &NoProgress).unwrap();
    let w = witness("witness.example/golden");
    let cosigned = writer.checkpoint().note.with_signature(&w, 1_700_000_000).unwrap();
    writer.add_cosignature(&cosigned, w.verifier()).unwrap();
    let receipt = Receipt::issue(&writer.tree(), writer.checkpoint(), 123).unwrap();
    std::fs::write(dir.join("123.tlog-proof"), receipt.to_text()).unwrap();
    drop(writer);
    std::fs::remove_file(dir.join(".lock")).unwrap();
}

/// Opens `formats/log/v1`.
#[test]
fn the_first_log_opens_for_ever() {
    let dir = golden(1);
    let key = read_key(&dir).unwrap();
    assert_eq!(key.to_string(), KEY);
    let w: NoteVerifier = witness("witness.example/golden").verifier().clone();
    let found = audit(&dir, &key, std::slice::from_ref(&w), &[], &NoProgress).unwrap();
    assert_eq!((found.head.size, found.head.root.to_string().as_str()), (300, ROOT));
    assert_eq!(found.extends, [100, 300]);
    let checkpoint = read_checkpoint(&dir, &key, &[w]).unwrap();
    assert_eq!(checkpoint.witnessed_unix_s(), Some(1_700_000_000));
    assert_eq!(TileTree::new(&dir, checkpoint.head()).entry(299).unwrap(), entry(299));
    let receipt = Receipt::parse(&std::fs::read(dir.join("123.tlog-proof")).unwrap()).unwrap();
    assert_eq!(receipt.verify(leaf_hash(&entry(123)), &key, &[]).unwrap().head(), checkpoint.head());
}

const KEY: &str = "log.example/tests+a01ff172+AcgEm5mRfnSxE67S+EcS+4G8MLhAjScL604d/oK8hx7F";
const ROOT: &str = "d4acf57f11ace3bd0fd76ccf8a9f71df429d03e7fa90561a638f4e40e7707473";
