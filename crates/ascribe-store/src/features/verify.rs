//! Checking a whole store: every byte that a row, a sum or a side line came from.

use serde::{Deserialize, Serialize};

use super::quant;
use super::reader::FeatureStore;
use super::sums::DatasetSums;
use crate::error::StoreError;
use crate::mmap::Map;

/// What sums may differ from the sums of the rows, relative to the largest number of their dataset: the compensated sums of
/// deletions (see [`DatasetSums`]), and the plain f64 sums of version 1.
const SUMS_TOLERANCE: [f64; 2] = [1e-22, 1e-9];

/// What was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Rows that are not deleted.
    pub n_rows: u64,
    /// Deleted rows that are still in their shards.
    pub n_dead: u64,
    /// Shards.
    pub n_shards: u32,
    /// Bytes hashed.
    pub len_bytes: u64,
}

impl FeatureStore {
    /// Hashes every file again, looks at every code, and adds up the rows again.
    ///
    /// Cost: one read of everything.
    ///
    /// # Errors
    /// The first file that is not as it was written, as [`StoreError::WrongChecksum`], [`StoreError::WrongLength`] or
    /// [`StoreError::Missing`]; [`StoreError::Malformed`] if the sums are not the sums of the rows, or a code is none.
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        let mut again = DatasetSums::new(self.header().spec.dim);
        for (i, entry) in self.entries.iter().enumerate() {
            let view = self.shard_view(i)?;
            self.shards[i].check_leaves()?;
            if view.row_type.has_scale() {
                self.check_codes(i)?;
            }
            let path = self.paths.side(entry.shard);
            super::shard::check_len(&path, entry.side_bytes)?;
            let found = blake3::hash(&Map::open(&path)?).to_hex().to_string();
            if found != entry.side_blake3 {
                let expected = entry.side_blake3.clone();
                return Err(StoreError::WrongChecksum { path, expected, found });
            }
            if self.generation.sums.is_some() {
                again.add_stored(&view);
            }
        }
        if let Some(part) = &self.generation.sums {
            let found = self.dataset_sums()?;
            again.grow(found.counts.len());
            let distance = again.distance(&found);
            let is_close = distance <= SUMS_TOLERANCE[usize::from(self.header().is_v1())];
            if !is_close {
                let path = self.paths.root.join(&part.file);
                let expected = "the sums of the rows";
                return Err(StoreError::malformed(&path, "sums", expected, format!("others, off by {distance:e}")));
            }
        }
        self.check_owner_sums()?;
        let (n_rows, n_dead, n_shards) = (self.generation.n_rows, self.generation.n_dead, self.entries.len() as u32);
        Ok(VerifyReport { n_rows, n_dead, n_shards, len_bytes: self.len_bytes() })
    }

    /// Sums per owner are those of the datasets to the last bit.
    fn check_owner_sums(&self) -> Result<(), StoreError> {
        let Some(part) = &self.generation.owner_sums else { return Ok(()) };
        let found = self.owner_sums()?;
        if found == self.terms().owner_sums(&self.dataset_sums()?) {
            return Ok(());
        }
        let path = self.paths.root.join(&part.file);
        Err(StoreError::malformed(&path, "sums per owner", "the datasets' sums, added by owner", "others"))
    }

    fn check_codes(&self, i: usize) -> Result<(), StoreError> {
        let view = self.shard_view(i)?;
        let packed = view.row_type.row_bytes(view.dim);
        for row in 0..view.n_rows {
            let scale = view.scale.map_or(0.0, |s| s[row]);
            let bad = quant::first_bad(&view.row(row)[..packed], view.dim, view.row_type);
            if bad.is_some() || !scale.is_finite() || scale < 0.0 {
                let path = self.paths.shard(self.entries[i].shard);
                let found = format!("row {row}: scale {scale}, first bad byte {bad:?}");
                return Err(StoreError::malformed(&path, "codes", "codes within ±127 or ±7, a scale above 0", found));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ascribe_core::{Column, Digest, ExampleId, FeatureSink, FeatureSpec, ProjectorSpec, RowType};
    use half::{bf16, f16};
    use ndarray::Array2;

    use crate::FeatureWriter;

    /// Every row type: what a reader hands out is what the plain decoding of the bytes gives, one number at a time.
    #[test]
    fn fast_and_plain_decoding_agree() {
        let columns = vec![Column { name: "m".into(), start: 0, len: 5 }];
        let spec = FeatureSpec {
            model: Digest::of(b"model"),
            checkpoint: "final".into(),
            quantity: "gradient".into(),
            loss: "next_token_nll_sum".into(),
            normalizer: "none".into(),
            projector: ProjectorSpec::Identity,
            columns,
            dim: 5,
            corpus: Digest::of(b"corpus"),
        };
        let rows = Array2::from_shape_fn((7, 5), |(i, j)| ((i * 5 + j) as f32 - 17.3) * 1.37e-3);
        let ids: Vec<ExampleId> = (0..7).map(|idx| ExampleId { dataset: idx % 2, idx }).collect();
        for row_type in RowType::ALL {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = FeatureWriter::create_or_resume(dir.path(), &spec, row_type, 3, 7).unwrap();
            writer.push(&ids, rows.view()).unwrap();
            let store = writer.finish().unwrap();
            for (i, shard) in store.shards.iter().enumerate() {
                let fast: Vec<f32> = shard.rows(0..shard.n_rows()).unwrap().iter().copied().collect();
                let view = store.shard_view(i).unwrap();
                assert_eq!(view.stride_bytes, 64);
                let slow = |row: usize, j: usize| {
                    let b = view.row(row);
                    match row_type {
                        RowType::F32 => f32::from_le_bytes([b[4 * j], b[4 * j + 1], b[4 * j + 2], b[4 * j + 3]]),
                        RowType::Bf16 => bf16::from_le_bytes([b[2 * j], b[2 * j + 1]]).to_f32(),
                        RowType::F16 => f16::from_le_bytes([b[2 * j], b[2 * j + 1]]).to_f32(),
                        RowType::Int8 => view.scale.unwrap()[row] * f32::from(b[j] as i8),
                        RowType::Int4 => {
                            let digit = (b[j / 2] >> (4 * (j % 2))) & 15;
                            view.scale.unwrap()[row] * (f32::from(digit) - if digit > 7 { 16.0 } else { 0.0 })
                        }
                    }
                };
                let plain: Vec<f32> =
                    (0..view.n_rows).flat_map(|r| (0..5).map(move |j| (r, j))).map(|(r, j)| slow(r, j)).collect();
                assert_eq!(fast, plain);
                for row in 0..view.n_rows {
                    assert!(view.row(row)[row_type.row_bytes(5)..].iter().all(|&b| b == 0), "padding is zero");
                }
            }
            assert_eq!(store.verify().unwrap().n_rows, 7);
        }
    }
}
