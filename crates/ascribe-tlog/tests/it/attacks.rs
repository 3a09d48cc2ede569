//! A log that was cut, forked, rewritten, damaged or interrupted.

use std::fs;

use ascribe_core::{NoProgress, Progress};
use ascribe_tlog::{CHECKPOINT_FILE, Checkpoint, LogWriter, TlogError, TreeHead};

use crate::{Log, ORIGIN, entry, signer, witness};

#[test]
fn a_changed_entry() {
    let log = Log::of(300);
    log.flip("tile/entries/000", 9);
    let message = log.refusal(&[]);
    assert!(message.starts_with("tile/entries/000: hash of entry 0: expected "), "{message}");
    assert!(log.tree().entry(0).is_err());
}

#[test]
fn a_changed_tile_at_every_level() {
    for (name, at) in [("tile/0/000", 40), ("tile/0/001.p/44", 0), ("tile/1/000.p/1", 3)] {
        let log = Log::of(300);
        log.flip(name, at);
        assert!(log.audit(&[]).is_err(), "{name}");
        assert!(log.open().is_err() || name == "tile/0/000", "a writer must not go on from {name}");
    }
}

/// Entry, leaf and the tile above agree with each other after the change; only the signed root does not.
#[test]
fn a_consistent_rewrite_without_the_key() {
    let (honest, forged) = (Log::of(300), Log::new());
    let mut writer = forged.open().unwrap();
    writer.append((0..300).map(|i| entry(if i == 17 { 99_999 } else { i })), &NoProgress).unwrap();
    drop(writer);
    fs::write(forged.file(CHECKPOINT_FILE), honest.read_checkpoint_bytes()).unwrap();
    assert!(forged.refusal(&[]).contains("Merkle root of 300 leaves: expected"));
}

#[test]
fn a_missing_bundle_or_tile() {
    for name in ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"] {
        let log = Log::of(300);
        fs::remove_file(log.file(name)).unwrap();
        let message = log.refusal(&[]);
        assert!(message.starts_with(&format!("{name}: missing ")), "{message}");
    }
}

#[test]
fn a_bundle_that_is_cut_or_too_long() {
    let log = Log::of(300);
    let path = log.file("tile/entries/000");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(log.refusal(&[]).contains("expected its whole length"));
    fs::write(&path, [&bytes[..], b"\0\0"].concat()).unwrap();
    assert!(log.refusal(&[]).contains("entries: expected at most 256"));
}

#[test]
fn an_altered_checkpoint() {
    let log = Log::of(300);
    let text = String::from_utf8(log.read_checkpoint_bytes()).unwrap();
    for (from, to) in [("\n300\n", "\n299\n"), (ORIGIN, "log.example/other")] {
        fs::write(log.file(CHECKPOINT_FILE), text.replace(from, to)).unwrap();
        assert!(log.audit(&[]).is_err(), "{to}");
    }
    // Signed well, by somebody else.
    let other = signer("log.example/other");
    let checkpoint = Checkpoint { origin: "log.example/other".into(), head: log.tree_head(&text), extensions: vec![] };
    fs::write(log.file(CHECKPOINT_FILE), checkpoint.sign(&other).unwrap().as_str()).unwrap();
    assert!(log.refusal(&[]).contains("expected a signature by the log log.example/tests"));
}

impl Log {
    fn tree_head(&self, note: &str) -> TreeHead {
        Checkpoint::parse(&format!("{}\n", note.split_once("\n\n").unwrap().0)).unwrap().head
    }
}

#[test]
fn truncation_is_seen_by_whoever_kept_a_checkpoint() {
    let log = Log::of(200);
    let short = log.copy();
    log.grow(300);
    let kept = log.checkpoint();
    short.audit(&[]).unwrap();
    assert_eq!(
        short.refusal(std::slice::from_ref(&kept)),
        "checkpoint of 300 leaves against one of 200: the log was cut short: expected at least 300 leaves, found 200"
    );
    // Within the folder the history gives a clumsy cut away too.
    fs::copy(short.file(CHECKPOINT_FILE), log.file(CHECKPOINT_FILE)).unwrap();
    assert!(log.refusal(&[]).contains("cut short"));
}

#[test]
fn a_fork_by_the_logs_own_operator() {
    let log = Log::of(200);
    let fork = log.copy();
    log.grow(300);
    let mut writer = fork.open().unwrap();
    writer.append((0..100).map(|i| entry(5000 + i)), &NoProgress).unwrap();
    drop(writer);
    // Each side alone is a good log; one checkpoint of the other side is enough to see two.
    log.audit(&[]).unwrap();
    fork.audit(&[]).unwrap();
    assert!(fork.refusal(&[log.checkpoint()]).contains("the log was forked"));
    let mut writer = fork.open().unwrap();
    writer.append([entry(1)], &NoProgress).unwrap();
    drop(writer);
    assert!(fork.refusal(&[log.checkpoint()]).contains("the log was rewritten"));
}

#[test]
fn a_rewrite_by_the_logs_own_operator() {
    let (log, rewritten) = (Log::of(200), Log::new());
    let kept = log.checkpoint();
    let mut writer = rewritten.open().unwrap();
    writer.append((0..400).map(|i| entry(i + 1)), &NoProgress).unwrap();
    drop(writer);
    rewritten.audit(&[]).unwrap();
    assert!(rewritten.refusal(&[kept]).contains("the log was rewritten"));
}

#[test]
fn a_forged_cosignature() {
    let log = Log::of(5);
    let (w, other) = (witness("w.example"), witness("v.example"));
    let cosigned = log.checkpoint().note.with_signature(&other, 7).unwrap();
    let renamed = cosigned.as_str().replace("v.example", "w.example");
    fs::write(log.file(CHECKPOINT_FILE), renamed).unwrap();
    // The key id is not the witness's, so the line is an unknown key's and vouches for nothing.
    let read = ascribe_tlog::read_checkpoint(log.path(), &log.key(), &[w.verifier().clone()]).unwrap();
    assert_eq!(read.witnessed_unix_s(), None);
}

/// Every file of a batch, in the order in which a writer makes them: it may die after any of them.
#[test]
fn a_writer_that_died_before_its_checkpoint() {
    let before = Log::of(250);
    let after = before.copy();
    after.grow(600);
    let new = [
        "tile/0/000",
        "tile/0/001",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/0/002.p/88",
        "tile/entries/002.p/88",
    ];
    for n_files in 0..=new.len() {
        let crashed = before.copy();
        for (i, name) in new[..n_files].iter().enumerate() {
            fs::create_dir_all(crashed.file(name).parent().unwrap()).unwrap();
            // The last of them is torn, as a file that nobody made durable may be.
            let bytes = fs::read(after.file(name)).unwrap();
            let len = if i + 1 == n_files { bytes.len() / 2 } else { bytes.len() };
            fs::write(crashed.file(name), &bytes[..len]).unwrap();
        }
        assert_eq!(crashed.audit(&[]).unwrap().head.size, 250, "{n_files}");
        // The next writer goes on from the checkpoint; what it writes is another batch.
        let mut writer = crashed.open().unwrap();
        writer.append((250..620).map(|i| entry(i * 2)), &NoProgress).unwrap();
        drop(writer);
        assert_eq!(crashed.audit(&[before.checkpoint()]).unwrap().head.size, 620, "{n_files}");
    }
}

#[test]
fn a_writer_that_died_after_its_checkpoint() {
    let log = Log::of(250);
    log.grow(600);
    fs::remove_file(log.file("checkpoints/600")).unwrap();
    assert_eq!(log.audit(&[]).unwrap().extends, [250]);
    log.grow(601);
    assert_eq!(log.audit(&[]).unwrap().extends, [250, 600, 601]);
}

#[test]
fn a_writer_that_is_asked_to_stop() {
    struct Stop;
    impl Progress for Stop {
        fn start(&self, _: &str, _: u64, _: &str) {}
        fn advance(&self, _: u64) {}
        fn finish(&self, _: &str) {}
        fn stop_requested(&self) -> bool {
            true
        }
    }
    let log = Log::of(10);
    let mut writer = log.open().unwrap();
    assert_eq!(writer.append((10..1000).map(entry), &Stop), Err(TlogError::Stopped));
    assert_eq!(writer.checkpoint().head().size, 10);
    // The same writer can go on.
    writer.append((10..1000).map(entry), &NoProgress).unwrap();
    drop(writer);
    log.audit(&[]).unwrap();
    drop(LogWriter::open(log.path(), signer(ORIGIN)).unwrap());
}
