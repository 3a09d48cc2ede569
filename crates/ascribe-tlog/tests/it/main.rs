//! The log from outside: trees against published vectors, folders written and read, attacks, hostile bytes.

#![allow(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod attacks;
mod folder;
mod formats;
mod hostile;
mod stamps;
mod trees;

use std::path::{Path, PathBuf};

use ascribe_core::NoProgress;
use ascribe_tlog::{
    CHECKPOINT_FILE, Ed25519Key, LogAudit, LogWriter, NoteSigner, NoteVerifier, SignatureKind, SignedCheckpoint,
    TileTree, TlogError, audit, read_checkpoint,
};
use tempfile::TempDir;

/// Origin of the logs of these tests.
const ORIGIN: &str = "log.example/tests";

fn signer(name: &str) -> NoteSigner {
    NoteSigner::new(name, SignatureKind::Note, Ed25519Key::demo(name)).unwrap()
}

fn witness(name: &str) -> NoteSigner {
    NoteSigner::new(name, SignatureKind::Cosignature, Ed25519Key::demo(name)).unwrap()
}

/// Entry `i`: its number, and now and then more bytes.
fn entry(i: u64) -> Vec<u8> {
    let mut bytes = i.to_be_bytes().to_vec();
    bytes.resize(8 + (i % 5) as usize, b'.');
    bytes
}

/// A log folder of its own.
struct Log {
    dir: TempDir,
}

impl Log {
    fn new() -> Self {
        let log = Self { dir: TempDir::new().unwrap() };
        LogWriter::create(log.path(), signer(ORIGIN)).unwrap();
        log
    }

    /// A log of `n` entries, in one batch.
    fn of(n: u64) -> Self {
        let log = Self::new();
        log.grow(n);
        log
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn open(&self) -> Result<LogWriter, TlogError> {
        LogWriter::open(self.path(), signer(ORIGIN))
    }

    /// Appends the next entries up to `size`.
    fn grow(&self, size: u64) {
        let mut writer = self.open().unwrap();
        let from = writer.checkpoint().head().size;
        writer.append((from..size).map(entry), &NoProgress).unwrap();
    }

    fn key(&self) -> NoteVerifier {
        signer(ORIGIN).verifier().clone()
    }

    fn checkpoint(&self) -> SignedCheckpoint {
        read_checkpoint(self.path(), &self.key(), &[]).unwrap()
    }

    fn tree(&self) -> TileTree {
        TileTree::new(self.path(), self.checkpoint().head())
    }

    fn audit(&self, older: &[SignedCheckpoint]) -> Result<LogAudit, TlogError> {
        audit(self.path(), &self.key(), &[], older, &NoProgress)
    }

    /// The message with which the log is refused, without the path of the temporary folder.
    fn refusal(&self, older: &[SignedCheckpoint]) -> String {
        let message = self.audit(older).expect_err("the log should be refused").to_string();
        message.replace(&format!("{}/", self.path().display()), "")
    }

    /// Changes one byte of a file.
    fn flip(&self, name: &str, at: usize) {
        let path = self.file(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    /// A copy of the whole folder.
    fn copy(&self) -> Self {
        let copy = Self { dir: TempDir::new().unwrap() };
        copy_dir(self.path(), copy.path());
        copy
    }

    fn read_checkpoint_bytes(&self) -> Vec<u8> {
        std::fs::read(self.file(CHECKPOINT_FILE)).unwrap()
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap().path();
        let target = to.join(item.file_name().unwrap());
        if item.is_dir() {
            copy_dir(&item, &target);
        } else {
            std::fs::copy(&item, &target).unwrap();
        }
    }
}
