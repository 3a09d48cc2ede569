//! Folders written in batches of any size: the same tree, the same files, proofs that hold.

use ascribe_core::{Digest, NoProgress};
use ascribe_tlog::{
    EMPTY_ROOT, LogWriter, Receipt, RootBuilder, SignedNote, TileTree, TlogError, TreeHead, TreeNodes as _, leaf_hash,
    open_checkpoint, read_key, verify_consistency,
};
use proptest::prelude::*;

use crate::{Log, ORIGIN, entry, signer, witness};

/// The head by the streaming builder, which knows no tiles.
fn head(n: u64) -> TreeHead {
    let mut builder = RootBuilder::new();
    (0..n).for_each(|i| builder.push_entry(&entry(i)));
    builder.head()
}

#[test]
fn a_log_of_any_size_audits_and_has_the_root_of_the_definition() {
    for n in [0, 1, 2, 255, 256, 257, 511, 512, 513, 1000, 65_535, 65_536, 65_537, 70_000] {
        let log = Log::of(n);
        assert_eq!(log.checkpoint().head(), head(n), "{n}");
        assert_eq!(log.audit(&[]).unwrap().head.size, n);
        assert_eq!(read_key(log.path()).unwrap(), log.key());
    }
    assert_eq!(Log::new().checkpoint().head().root, EMPTY_ROOT);
}

/// The files of the specification's example.
#[test]
fn seventy_thousand_leaves_have_the_files_of_the_specification() {
    let log = Log::of(70_000);
    let files: [(&str, u64); 6] = [
        ("tile/0/000", 8192),
        ("tile/0/272", 8192),
        ("tile/0/273.p/112", 112 * 32),
        ("tile/1/000", 8192),
        ("tile/1/001.p/17", 17 * 32),
        ("tile/2/000.p/1", 32),
    ];
    for (name, len) in files {
        assert_eq!(std::fs::metadata(log.file(name)).unwrap().len(), len, "{name}");
    }
    assert!(log.file("tile/entries/273.p/112").is_file());
    assert!(!log.file("tile/0/274").exists() && !log.file("tile/2/000").exists());
}

#[test]
fn batches_leave_no_trace_but_their_checkpoints() {
    let (one, many) = (Log::of(700), Log::new());
    for size in [1, 2, 3, 200, 255, 256, 257, 300, 512, 699, 700] {
        many.grow(size);
        many.audit(&[]).unwrap();
    }
    assert_eq!(many.read_checkpoint_bytes(), one.read_checkpoint_bytes());
    for name in ["tile/0/000", "tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2", "tile/entries/001"] {
        assert_eq!(std::fs::read(many.file(name)).unwrap(), std::fs::read(one.file(name)).unwrap(), "{name}");
    }
    // Partial tiles that became full are gone, those of the latest checkpoint stand.
    assert!(!many.file("tile/0/000.p").exists() && !many.file("tile/0/001.p").exists());
    let audit = many.audit(&[]).unwrap();
    assert_eq!(audit.extends, [1, 2, 3, 200, 255, 256, 257, 300, 512, 699, 700]);
}

#[test]
fn every_entry_and_every_older_size_has_its_proof() {
    let log = Log::of(600);
    let (tree, checkpoint) = (log.tree(), log.checkpoint());
    for i in (0..600).step_by(7).chain([255, 256, 511, 512, 599]) {
        assert_eq!(tree.entry(i).unwrap(), entry(i));
        let receipt = Receipt::issue(&tree, &checkpoint, i).unwrap();
        let read = Receipt::parse(receipt.to_text().as_bytes()).unwrap();
        assert_eq!(read, receipt);
        assert_eq!(read.verify(leaf_hash(&entry(i)), &log.key(), &[]).unwrap(), checkpoint);
        assert!(read.verify(leaf_hash(&entry(i + 1)), &log.key(), &[]).is_err());
        let moved = Receipt { index: i ^ 1, ..read };
        assert!(moved.verify(leaf_hash(&entry(i)), &log.key(), &[]).is_err());
    }
    for old in 1..=600 {
        let proof = tree.prove_extends(head(old)).unwrap();
        verify_consistency(head(old), tree.head(), &proof).unwrap();
    }
    assert!(matches!(tree.prove(600), Err(TlogError::IndexOutOfRange { .. })));
    assert_eq!(tree.prove_extends(TreeHead { size: 0, root: EMPTY_ROOT }).unwrap(), []);
    assert_eq!(tree.size(), 600);
}

#[test]
fn a_receipt_carries_what_the_application_needs() {
    let log = Log::of(3);
    let mut receipt = Receipt::issue(&log.tree(), &log.checkpoint(), 2).unwrap();
    receipt.extra = Some(b"salt".to_vec());
    assert_eq!(Receipt::parse(receipt.to_text().as_bytes()).unwrap(), receipt);
    assert!(receipt.to_text().starts_with("c2sp.org/tlog-proof@v1\nextra c2FsdA==\nindex 2\n"));
}

#[test]
fn a_witness_vouches_for_the_latest_checkpoint() {
    let log = Log::of(10);
    let (w, key) = (witness("witness.example/w1"), log.key());
    let cosigned = log.checkpoint().note.with_signature(&w, 1_700_000_000).unwrap();
    let mut writer = log.open().unwrap();
    writer.add_cosignature(&cosigned, w.verifier()).unwrap();
    let checkpoint = ascribe_tlog::read_checkpoint(log.path(), &key, &[w.verifier().clone()]).unwrap();
    assert_eq!(checkpoint.witnessed_unix_s(), Some(1_700_000_000));
    // Whoever does not know the witness sees the log's own signature only.
    assert_eq!(log.checkpoint().witnessed_unix_s(), None);
    // After the log has grown the old cosignature is about an old checkpoint.
    writer.append([entry(10)], &NoProgress).unwrap();
    assert!(writer.add_cosignature(&cosigned, w.verifier()).is_err());
    let old = open_checkpoint(&log.file("checkpoints/10"), &key, &[w.verifier().clone()]).unwrap();
    assert_eq!(old.witnessed_unix_s(), Some(1_700_000_000));
    assert!(SignedNote::parse(cosigned.as_str().as_bytes()).is_ok());
}

#[test]
fn an_entry_may_have_65535_bytes_and_no_more() {
    let log = Log::new();
    let mut writer = log.open().unwrap();
    let error = writer.append([vec![0; 10], vec![0; 65_536]], &NoProgress).unwrap_err();
    assert!(
        error.to_string().starts_with("entry 1 of the batch: expected at most 65535 bytes, found 65536"),
        "{error}"
    );
    assert_eq!(writer.checkpoint().head().size, 0);
    writer.append([vec![7; 65_535], vec![]], &NoProgress).unwrap();
    drop(writer);
    log.audit(&[]).unwrap();
    assert_eq!(log.tree().entry(0).unwrap().len(), 65_535);
}

#[test]
fn two_writers_are_refused_and_a_second_log_too() {
    let log = Log::of(1);
    let writer = log.open().unwrap();
    assert!(matches!(log.open(), Err(TlogError::Locked { .. })));
    drop(writer);
    log.open().unwrap();
    let error = LogWriter::create(log.path(), signer(ORIGIN)).err().unwrap().to_string();
    assert!(error.contains("expected a folder without a log"), "{error}");
    // Another key may read, not write.
    assert!(LogWriter::open(log.path(), signer("log.example/other")).is_err());
    let missing = LogWriter::open(&log.file("nowhere"), signer(ORIGIN)).err().unwrap().to_string();
    assert!(missing.contains("missing log folder"), "{missing}");
}

#[test]
fn an_old_reader_is_not_disturbed_by_a_growing_log() {
    let log = Log::of(300);
    let old = TileTree::new(log.path(), log.checkpoint().head());
    log.grow(900);
    old.check_root().unwrap();
    assert_eq!(old.entry(299).unwrap(), entry(299));
    let (leaf, _) = old.prove(299).unwrap();
    assert_eq!(leaf, leaf_hash(&entry(299)));
    assert_ne!(old.head().root, Digest::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_batches_make_the_same_log(batches in prop::collection::vec(0u64..400, 1..6), old in any::<prop::sample::Index>()) {
        let log = Log::new();
        let mut size = 0;
        for n in batches {
            size += n;
            log.grow(size);
        }
        prop_assert_eq!(log.checkpoint().head(), head(size));
        log.audit(&[]).unwrap();
        if size > 0 {
            let old = old.index(size as usize) as u64 + 1;
            log.tree().prove_extends(head(old)).unwrap();
        }
    }
}
