//! Proofs that a record is part of a dataset: the record's line, its place, and its RFC 6962 path to the content root.
//!
//! Whoever holds a signed licence holds the content root, so a proof checked against it needs nothing else of ours.

use std::path::Path;

use ascribe_core::{Digest, NoProgress};
use ascribe_tlog::{RootBuilder, TreeHead, leaf_hash, verify_inclusion};
use serde::{Deserialize, Serialize};

use crate::content::{parse_line, record_hash, with_ingest};
use crate::error::RegistryError;
use crate::files;
use crate::licence::check_equal;
use crate::registry::Dataset;

/// Version of the proof file that this code reads and writes.
pub const PROOF_FORMAT_VERSION: u32 = 1;

/// A proof that a record is part of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MembershipProof {
    /// [`PROOF_FORMAT_VERSION`].
    pub format_version: u32,
    /// `urn:uuid:…` of the dataset.
    pub dataset: String,
    /// RFC 6962 root over the record hashes.
    pub content_root: Digest,
    /// Records of the dataset.
    pub record_count: u64,
    /// Place of the record, from 0.
    pub index: u64,
    /// The record's canonical line.
    pub line: String,
    /// Sibling hashes from the leaf up.
    pub path: Vec<Digest>,
}

impl MembershipProof {
    /// Proves the record of that id. Reads the records twice, in memory that does not grow with them.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an id that is not there, and what reading meets.
    pub fn of(dataset: &Dataset, id: &str) -> Result<Self, RegistryError> {
        let mut found = None;
        let size = with_ingest(dataset, |ingest| {
            ingest.each_record(&NoProgress, |row, record| {
                if record.id == id && found.is_none() {
                    found = Some((row, record.line.clone().into_owned()));
                }
                Ok::<(), RegistryError>(())
            })?;
            Ok(dataset.manifest.record_count)
        })?;
        let Some((index, line)) = found else {
            return Err(RegistryError::refused(
                "record",
                format!("an id of dataset {:?}", dataset.name()),
                format!("{id:?}"),
            ));
        };
        let mut siblings: Vec<(u64, u64, RootBuilder)> =
            sibling_ranges(index, size).into_iter().map(|(from, to)| (from, to, RootBuilder::new())).collect();
        with_ingest(dataset, |ingest| {
            ingest.each_record(&NoProgress, |row, record| {
                if let Some((.., root)) = siblings.iter_mut().find(|(from, to, _)| (*from..*to).contains(&row)) {
                    root.push_leaf(leaf_hash(&record_hash(record.line.as_bytes()).0));
                }
                Ok::<(), RegistryError>(())
            })
        })?;
        let proof = Self {
            format_version: PROOF_FORMAT_VERSION,
            dataset: dataset.manifest.uuid.clone(),
            content_root: dataset.manifest.content_root,
            record_count: size,
            index,
            line,
            path: siblings.into_iter().map(|(.., root)| root.head().root).collect(),
        };
        // Records that changed since they were registered prove nothing.
        proof.verify(&dataset.records_path(), None)?;
        Ok(proof)
    }

    /// Reads a proof file.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Json`].
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        files::parse_json(path, &files::read_small(path, "proof")?)
    }

    /// Checks the proof against a content root given in hex, or the one that it states. `file` is what errors name.
    ///
    /// # Errors
    /// [`RegistryError::Field`].
    pub fn verify(&self, file: &Path, root: Option<&str>) -> Result<(), RegistryError> {
        let versions = [PROOF_FORMAT_VERSION, self.format_version].map(|version| version.to_string());
        check_equal(file, "format_version", &versions[0], &versions[1])?;
        if let Some(root) = root {
            check_equal(file, "content_root", root.trim_start_matches("0x"), &self.content_root.to_string())?;
        }
        parse_line(&self.line).map_err(|reason| RegistryError::field(file, "line", "a record", reason))?;
        let leaf = leaf_hash(&record_hash(self.line.as_bytes()).0);
        let head = TreeHead { size: self.record_count, root: self.content_root };
        verify_inclusion(leaf, self.index, &self.path, head)
            .map_err(|error| RegistryError::field(file, "path", "one from the record to the content root", error))
    }
}

/// The subtrees beside the path of a leaf, from the leaf up, as ranges of leaves.
fn sibling_ranges(index: u64, size: u64) -> Vec<(u64, u64)> {
    let (mut from, mut to, mut ranges) = (0, size, Vec::new());
    while to - from > 1 {
        // The largest power of two below the width.
        let left = 1u64 << (63 - (to - from - 1).leading_zeros());
        let middle = from + left;
        if index < middle {
            ranges.push((middle, to));
            to = middle;
        } else {
            ranges.push((from, middle));
            from = middle;
        }
    }
    ranges.reverse();
    ranges
}

#[cfg(test)]
mod tests {
    use ascribe_tlog::{inclusion_proof, root_of_leaves};

    use super::*;

    #[test]
    fn streamed_paths_are_the_log_s_own() {
        for size in 1..40u64 {
            let leaves: Vec<Digest> = (0..size).map(|i| leaf_hash(&i.to_le_bytes())).collect();
            for index in 0..size {
                let streamed: Vec<Digest> = sibling_ranges(index, size)
                    .into_iter()
                    .map(|(from, to)| root_of_leaves(&leaves[from as usize..to as usize]))
                    .collect();
                assert_eq!(streamed, inclusion_proof(&leaves, index).unwrap(), "{index} of {size}");
            }
        }
    }
}
