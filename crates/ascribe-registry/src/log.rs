//! `licences.log`: the digests of all licences and revocations in the order of registration, one a line, append-only.
//!
//! The tree over it is RFC 6962 with the 32-byte digests as entries. Which licences existed when a model was trained
//! is what size and root of the log, stated in the run record, fix. The log proves order, not time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ascribe_core::Digest;
use ascribe_tlog::{RootBuilder, inclusion_proof, leaf_hash};
use serde::{Deserialize, Serialize};

use crate::error::{RegistryError, clip};
use crate::files;
use crate::licence::LicenceDigest;

/// Name of the log file of a registry.
pub const LOG_FILE: &str = "licences.log";

/// Longest log that is read: 8 million licences.
pub(crate) const LOG_CAP_BYTES: u64 = 512 << 20;

/// Bytes of a line: `0x`, 64 digits and a newline.
pub(crate) const LOG_LINE_BYTES: u64 = 67;

/// Size and root of the log at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// Licences.
    pub size: u64,
    /// RFC 6962 root over their digests.
    pub root: Digest,
}

/// The licence log of a registry.
#[derive(Clone, Debug)]
pub struct LicenceLog {
    path: PathBuf,
    digests: Vec<LicenceDigest>,
    index_by_digest: HashMap<LicenceDigest, u64>,
}

impl LicenceLog {
    /// Reads the log of the registry in `registry_dir`.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Field`] naming the line that is no digest or stands twice.
    pub fn read(registry_dir: &Path) -> Result<Self, RegistryError> {
        let path = registry_dir.join(LOG_FILE);
        let bytes = files::read_capped(&path, "licence log", LOG_CAP_BYTES)?;
        Self::parse(path, &bytes)
    }

    /// Parses the bytes of a log.
    fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self, RegistryError> {
        let mut log = Self { path, digests: Vec::new(), index_by_digest: HashMap::new() };
        for (i, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let field = format!("line {}", i + 1);
            let digest = line
                .strip_suffix(b"\n")
                .and_then(|line| std::str::from_utf8(line).ok())
                .and_then(|line| line.parse::<LicenceDigest>().ok());
            let Some(digest) = digest else {
                let found = clip(&format!("{:?}", String::from_utf8_lossy(line)));
                return Err(RegistryError::field(
                    &log.path,
                    field,
                    "0x, 64 lower-case hex digits and a newline",
                    found,
                ));
            };
            if let Some(first) = log.index_by_digest.get(&digest) {
                let found = format!("{digest} again, first on line {}", first + 1);
                return Err(RegistryError::field(&log.path, field, "each licence once", found));
            }
            log.push(digest);
        }
        Ok(log)
    }

    /// Takes note of a line that was appended to the file; returns its index.
    pub(crate) fn note(&mut self, digest: LicenceDigest) -> u64 {
        self.push(digest);
        self.digests.len() as u64 - 1
    }

    fn push(&mut self, digest: LicenceDigest) {
        self.index_by_digest.insert(digest, self.digests.len() as u64);
        self.digests.push(digest);
    }

    /// Size and root of the whole log.
    pub fn head(&self) -> LogHead {
        self.head_of(self.digests.len())
    }

    /// Size and root as they were after the first `size` licences, or `None` if the log is shorter.
    pub fn head_at(&self, size: u64) -> Option<LogHead> {
        let size = usize::try_from(size).ok().filter(|size| *size <= self.digests.len())?;
        Some(self.head_of(size))
    }

    fn head_of(&self, size: usize) -> LogHead {
        let mut builder = RootBuilder::new();
        for digest in &self.digests[..size] {
            builder.push_entry(&digest.0);
        }
        let head = builder.head();
        LogHead { size: head.size, root: head.root }
    }

    /// Place of a licence, from 0.
    pub fn index_of(&self, digest: LicenceDigest) -> Option<u64> {
        self.index_by_digest.get(&digest).copied()
    }

    /// The digest at `index`, if the log is that long.
    pub fn digest_at(&self, index: u64) -> Option<LicenceDigest> {
        usize::try_from(index).ok().and_then(|index| self.digests.get(index)).copied()
    }

    /// The digests, in order.
    pub fn digests(&self) -> &[LicenceDigest] {
        &self.digests
    }

    /// Where the log lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Proof that the licence at `index` stands in this log; `None` outside it. Check with
    /// [`ascribe_tlog::verify_inclusion`] and the leaf hash of the 32 digest bytes.
    pub fn proof(&self, index: u64) -> Option<Vec<Digest>> {
        let leaves: Vec<Digest> = self.digests.iter().map(|digest| leaf_hash(&digest.0)).collect();
        inclusion_proof(&leaves, index).ok()
    }
}

/// Appends licences to the log of `registry_dir`, which is created if there is none; one that stands there already
/// stays where it is. Returns their indices.
///
/// # Errors
/// As [`LicenceLog::read`], and [`RegistryError::Io`] when writing fails: the old log then stands.
pub(crate) fn append(registry_dir: &Path, digests: &[LicenceDigest]) -> Result<Vec<u64>, RegistryError> {
    let path = registry_dir.join(LOG_FILE);
    let mut bytes = match files::read_capped(&path, "licence log", LOG_CAP_BYTES) {
        Err(RegistryError::Missing { .. }) => Vec::new(),
        read => read?,
    };
    let mut log = LicenceLog::parse(path.clone(), &bytes)?;
    let mut place = |digest: LicenceDigest| {
        log.index_of(digest).unwrap_or_else(|| {
            bytes.extend_from_slice(format!("{digest}\n").as_bytes());
            log.note(digest)
        })
    };
    let indices = digests.iter().map(|digest| place(*digest)).collect();
    files::write_atomic(&path, &bytes)?;
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use ascribe_tlog::{TreeHead, verify_inclusion};

    use super::*;

    fn parse(text: &str) -> Result<LicenceLog, String> {
        LicenceLog::parse("licences.log".into(), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn heads_and_proofs_follow_the_tree() {
        let digests: Vec<LicenceDigest> = (0..5u8).map(|i| LicenceDigest([i; 32])).collect();
        let text: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        let log = parse(&text).unwrap();
        let head = log.head();
        assert_eq!(head.size, 5);
        assert_eq!(log.head_at(0).unwrap().root, ascribe_tlog::EMPTY_ROOT);
        assert_eq!(log.head_at(1).unwrap().root, leaf_hash(&[0; 32]));
        assert_eq!(log.head_at(6), None);
        let tree = TreeHead { size: head.size, root: head.root };
        for (i, digest) in digests.iter().enumerate() {
            assert_eq!(log.index_of(*digest), Some(i as u64));
            verify_inclusion(leaf_hash(&digest.0), i as u64, &log.proof(i as u64).unwrap(), tree).unwrap();
        }
        assert_eq!(log.proof(5), None);
    }

    #[test]
    fn bad_lines_are_named() {
        let line = format!("{}\n", LicenceDigest([1; 32]));
        assert!(parse(&line.replace('\n', "")).unwrap_err().starts_with("licences.log: line 1: expected 0x, 64"));
        assert!(parse(&format!("{line}\n")).unwrap_err().starts_with("licences.log: line 2: expected 0x, 64"));
        assert!(
            parse(&format!("{line}{line}")).unwrap_err().contains("line 2: expected each licence once, found 0x01")
        );
        assert!(parse(&line.to_uppercase()).is_err());
    }
}
