//! Identifiers. All are fixed width; none is a bare integer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// A dataset by its content: the RFC 6962 root over its record hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatasetId(pub Digest);

/// One registered record: the ordinal of its dataset in the corpus manifest and its row there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RecordId {
    /// Ordinal of the dataset in the corpus manifest.
    pub dataset: u32,
    /// Row in the dataset's record file, from 0.
    pub row: u32,
}

/// One training item: a token window cut from one dataset. Knows its dataset, so sums per dataset need no look-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ExampleId {
    /// Ordinal of the dataset in the corpus manifest.
    pub dataset: u32,
    /// Position of the example within its dataset, from 0.
    pub idx: u32,
}

impl ExampleId {
    /// Dataset in the high half, position in the low half: sorts like the pair.
    pub const fn to_u64(self) -> u64 {
        ((self.dataset as u64) << 32) | self.idx as u64
    }

    /// Inverse of [`ExampleId::to_u64`].
    pub const fn from_u64(packed: u64) -> Self {
        Self { dataset: (packed >> 32) as u32, idx: packed as u32 }
    }
}

impl fmt::Display for ExampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dataset, self.idx)
    }
}

/// One response to explain, by its position in the query set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueryId(pub u32);

/// The part of a record that stands in an example: bytes of the record's text, tokens of the example.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordSpan {
    /// The record.
    pub record: RecordId,
    /// First byte of the record's text.
    pub byte_start: u32,
    /// One past the last byte of the record's text.
    pub byte_end: u32,
    /// First token of the example.
    pub token_start: u16,
    /// One past the last token of the example.
    pub token_end: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_order() {
        let a = ExampleId { dataset: 1, idx: u32::MAX };
        let b = ExampleId { dataset: 2, idx: 0 };
        assert!(a.to_u64() < b.to_u64());
        assert_eq!(ExampleId::from_u64(a.to_u64()), a);
    }
}
