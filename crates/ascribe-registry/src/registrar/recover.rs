//! What a crash left half done is finished: staged files are published or thrown away, accepted messages get their file and
//! their line in the log.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, NoProgress};

use super::accept::Pending;
use super::add::publish_staged;
use super::{Registrar, int};
use crate::error::RegistryError;
use crate::files;
use crate::licence::LicenceDigest;
use crate::log::{self, LOG_FILE, LicenceLog};
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::tiles;

/// Held by the one program that writes.
const LOCK_FILE: &str = ".lock";

/// Waits until no other program writes to the registry; the lock goes with the file.
pub(super) fn lock(dir: &Path) -> Result<File, RegistryError> {
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).map_err(RegistryError::io(&path, "opening"))?;
    file.lock().map_err(RegistryError::io(&path, "locking"))?;
    Ok(file)
}

impl Registrar {
    /// See [`Registrar::open`].
    pub(super) fn recover(&mut self) -> Result<(), RegistryError> {
        self.mend_log_tail()?;
        for staging in self.staged()? {
            self.finish_staged(&staging)?;
        }
        self.finish_pending()?;
        self.sign_log()
    }

    /// A line that a crash cut off at the end of the log was never acknowledged: its row has no place yet.
    fn mend_log_tail(&self) -> Result<(), RegistryError> {
        let path = self.dir.join(LOG_FILE);
        let bytes = files::read_capped(&path, "licence log", log::LOG_CAP_BYTES)?;
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |end| end + 1);
        if whole == bytes.len() {
            return Ok(());
        }
        let file = fs::OpenOptions::new().write(true).open(&path).map_err(RegistryError::io(&path, "opening"))?;
        file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(RegistryError::io(&path, "mending"))
    }

    fn staged(&self) -> Result<Vec<PathBuf>, RegistryError> {
        let mut staged = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(RegistryError::io(&self.dir, "listing"))? {
            let entry = entry.map_err(RegistryError::io(&self.dir, "listing"))?;
            if entry.file_name().to_string_lossy().starts_with(".adding-") {
                staged.push(entry.path());
            }
        }
        staged.sort();
        Ok(staged)
    }

    /// A version whose rows were committed is published; one whose rows were not never was.
    fn finish_staged(&mut self, staging: &Path) -> Result<(), RegistryError> {
        let path = staging.join(MANIFEST_FILE);
        if path.exists() {
            let bytes = files::read_small(&path, "manifest")?;
            let manifest: Manifest = files::parse_json(&path, &bytes)?;
            let sql = "SELECT v.manifest FROM datasets d JOIN dataset_versions v ON v.uuid = d.uuid AND \
                       v.version = d.version WHERE d.uuid = ?1";
            let known = self.db.query(sql, &[manifest.uuid.as_str().into()])?;
            let committed = known.first().map(|row| row.bytes(0).map(Digest::of)).transpose()?;
            if committed == Some(Digest::of(&bytes)) {
                publish_staged(&self.dir.join(&manifest.name), staging)?;
            }
        }
        fs::remove_dir_all(staging).map_err(RegistryError::io(staging, "clearing"))
    }

    /// Gives every accepted message that has no place in the log its file and its line, in the order of acceptance.
    pub(super) fn finish_pending(&mut self) -> Result<(), RegistryError> {
        let sql = "SELECT s.digest, s.kind, d.name, s.subject, s.document FROM signatures s \
                   JOIN datasets d ON d.uuid = s.uuid WHERE s.log_index IS NULL ORDER BY s.accepted_unix_s, s.nonce";
        let mut pending = Vec::new();
        for row in self.db.query(sql, &[])? {
            pending.push(Pending {
                digest: LicenceDigest(row.array(0)?),
                kind: row.text(1)?.to_owned(),
                dataset: row.text(2)?.to_owned(),
                subject: if row.is_null(3) { None } else { Some(LicenceDigest(row.array(3)?)) },
                document: row.bytes(4)?.to_vec(),
            });
        }
        if pending.is_empty() {
            return Ok(());
        }
        let mut log = LicenceLog::read(&self.dir)?;
        for message in &pending {
            debug_assert_eq!(message.kind == "revocation", message.subject.is_some());
            self.write_evidence(message)?;
            let index = match log.index_of(message.digest) {
                Some(index) => index,
                None => self.append_to_log(&mut log, message.digest)?,
            };
            let values = [message.digest.0.into(), int("log index", index)?];
            self.db.execute("UPDATE signatures SET log_index = ?2 WHERE digest = ?1", &values)?;
        }
        self.sign_log()
    }

    fn append_to_log(&self, log: &mut LicenceLog, digest: LicenceDigest) -> Result<u64, RegistryError> {
        let path = self.dir.join(LOG_FILE);
        let mut file = fs::OpenOptions::new().append(true).open(&path).map_err(RegistryError::io(&path, "opening"))?;
        let line = format!("{digest}\n");
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(RegistryError::io(&path, "appending"))?;
        Ok(log.note(digest))
    }

    /// Brings the signed tiles up to the text log, when their key is here. Lines that the database does not know are not signed:
    /// somebody else wrote them. The registry's lock keeps other writers out.
    fn sign_log(&mut self) -> Result<(), RegistryError> {
        let Some((covered, signer)) = tiles::behind(&self.dir)? else { return Ok(()) };
        self.check_log_from(covered)?;
        tiles::mirror(&self.dir, signer, &NoProgress).map(drop)
    }

    /// Checks that the log holds what the database says at each place, and nothing else.
    pub(super) fn check_log(&mut self) -> Result<(), RegistryError> {
        self.check_log_from(0)
    }

    fn check_log_from(&mut self, first: u64) -> Result<(), RegistryError> {
        let log = LicenceLog::read(&self.dir)?;
        let sql = "SELECT log_index, digest FROM signatures WHERE log_index >= ?1 ORDER BY log_index";
        let rows = self.db.query(sql, &[int("log index", first)?])?;
        for (index, row) in (first..).zip(&rows) {
            let (expected, found) = (LicenceDigest(row.array(1)?), log.digest_at(index));
            if row.uint(0)? != index || found != Some(expected) {
                let found = found.map_or_else(|| "the end of the log".to_owned(), |found| found.to_string());
                return Err(RegistryError::field(log.path(), format!("line {}", index + 1), expected, found));
            }
        }
        let (expected, found) = (first + rows.len() as u64, log.head().size);
        if expected == found { Ok(()) } else { Err(RegistryError::field(log.path(), "lines", expected, found)) }
    }
}
