//! The checksum of a score file's content: independent of pages, encodings and compression.

use super::SCORES_FORMAT_VERSION;
use super::table::{ScoreFileMeta, ScoreRow};

/// Hashes metadata first, then every row in file order.
#[derive(Debug)]
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    pub fn new(meta: &ScoreFileMeta) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("ascribe-scores-v{SCORES_FORMAT_VERSION}\n{}\n{}\n", meta.spec, meta.corpus).as_bytes());
        for (name, digest) in &meta.methods {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&digest.0);
        }
        Self(hasher)
    }

    pub fn row(&mut self, row: &ScoreRow) {
        // Optional numbers are widened so that "none" is a value of its own.
        let wide = |x: Option<u32>| x.map_or(u64::MAX, u64::from).to_le_bytes();
        let mut bytes = [0u8; 40];
        bytes[..2].copy_from_slice(&row.method.to_le_bytes());
        bytes[2] = row.level as u8;
        bytes[4..8].copy_from_slice(&row.query.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&row.dataset.to_le_bytes());
        bytes[12..16].copy_from_slice(&row.rank.to_le_bytes());
        bytes[16..24].copy_from_slice(&wide(row.example_idx));
        bytes[24..32].copy_from_slice(&wide(row.record_row));
        bytes[32..].copy_from_slice(&row.score.to_le_bytes());
        self.0.update(&bytes);
    }

    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}
