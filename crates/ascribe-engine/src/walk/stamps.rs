//! What is finished: per station a key over everything it read, and the digests of what it wrote.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::Digest;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;

/// Name of the stamp file in a run folder.
pub const STAMPS_FILE: &str = "stations.json";

/// One finished station.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Digest over everything that the station read.
    pub key: Digest,
    /// SHA-256 of what it wrote, by path relative to the run folder.
    pub outputs: BTreeMap<String, Digest>,
}

/// The stamps of a run folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamps(BTreeMap<String, Stamp>);

impl Stamps {
    /// Reads the stamps of `out`; a missing or unreadable file means that nothing is finished.
    pub fn read(out: &Path) -> Self {
        let bytes = std::fs::read(out.join(STAMPS_FILE)).unwrap_or_default();
        // Stamps only save work: a damaged file costs time, and what it vouched for is made again.
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// The stamp of a station.
    pub fn get(&self, station: &str) -> Option<&Stamp> {
        self.0.get(station)
    }

    /// True when `station` was finished with this key and its outputs still have their bytes.
    pub fn is_done(&self, out: &Path, station: &str, key: Digest) -> bool {
        self.0.get(station).is_some_and(|stamp| {
            stamp.key == key
                && stamp.outputs.iter().all(|(path, digest)| files::digest(&out.join(path)).ok() == Some(*digest))
        })
    }

    /// Notes that `station` is finished and has written `paths`.
    ///
    /// # Errors
    /// A path that cannot be read back; the disk's errors.
    pub fn finish(&mut self, out: &Path, station: &str, key: Digest, paths: &[String]) -> Result<(), EngineError> {
        let outputs = paths.iter().map(|p| Ok((p.clone(), files::digest(&out.join(p))?)));
        let outputs = outputs.collect::<Result<_, EngineError>>()?;
        self.0.insert(station.to_owned(), Stamp { key, outputs });
        files::write_atomic(&out.join(STAMPS_FILE), &[serde_json::to_vec_pretty(self)?, b"\n".to_vec()].concat())
    }

    /// Digest over the outputs of finished stations: the key of whatever reads them.
    pub fn outputs_digest(&self, stations: &[&str]) -> Digest {
        let outputs: Vec<_> = stations.iter().map(|s| self.0.get(*s).map(|stamp| &stamp.outputs)).collect();
        Digest::of_json(&outputs).expect("strings always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_output_or_key_is_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (Digest::of(b"1"), Digest::of(b"2"));
        files::write_atomic(&dir.path().join("a"), b"x").unwrap();
        Stamps::default().finish(dir.path(), "s", key, &["a".into()]).unwrap();
        let stamps = Stamps::read(dir.path());
        assert!(stamps.is_done(dir.path(), "s", key) && !stamps.is_done(dir.path(), "s", other));
        files::write_atomic(&dir.path().join("a"), b"y").unwrap();
        assert!(!stamps.is_done(dir.path(), "s", key));
    }

    #[test]
    fn a_damaged_stamp_file_means_nothing_is_done() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(STAMPS_FILE), b"{").unwrap();
        assert_eq!(Stamps::read(dir.path()), Stamps::default());
    }
}
