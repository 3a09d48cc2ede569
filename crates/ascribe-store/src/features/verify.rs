//! Checking a whole store: every byte that a row, a sum or a side line came from.

use super::reader::FeatureStore;
use super::sums::DatasetSums;
use crate::error::StoreError;
use crate::mmap::Map;

/// What was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyReport {
    /// Rows whose bytes were hashed.
    pub n_rows: u64,
    /// Shards.
    pub n_shards: u32,
    /// Bytes hashed.
    pub len_bytes: u64,
}

impl FeatureStore {
    /// Hashes every file again and adds up the rows again.
    ///
    /// Cost: one read of everything.
    ///
    /// # Errors
    /// The first file that is not as it was written, as [`StoreError::WrongChecksum`], [`StoreError::WrongLength`] or
    /// [`StoreError::Missing`]; [`StoreError::Malformed`] if the sums are not the sums of the rows.
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        for (entry, shard) in self.entries.iter().zip(&self.shards) {
            shard.check_bytes()?;
            let path = self.paths.side(entry.shard);
            super::shard::check_len(&path, entry.side_bytes)?;
            let found = blake3::hash(&Map::open(&path)?).to_hex().to_string();
            if found != entry.side_blake3 {
                let expected = entry.side_blake3.clone();
                return Err(StoreError::WrongChecksum { path, expected, found });
            }
        }
        let again = DatasetSums::of_shards(&self.shards, self.header())?;
        if again != self.dataset_sums()? {
            return Err(StoreError::malformed(&self.paths.sums(), "sums", "the sums of the rows", "others"));
        }
        let (n_rows, n_shards) = (self.seal.n_rows, self.seal.n_shards);
        Ok(VerifyReport { n_rows, n_shards, len_bytes: self.len_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use ascribe_core::{Column, Digest, ExampleId, FeatureSink, FeatureSpec, ProjectorSpec, RowType};
    use ndarray::Array2;

    use crate::FeatureWriter;

    /// Every row type: what a reader hands out is what the plain decoding of the bytes gives.
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
        for row_type in [RowType::F32, RowType::Bf16, RowType::F16] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = FeatureWriter::create_or_resume(dir.path(), &spec, row_type, 3, 7).unwrap();
            writer.push(&ids, rows.view()).unwrap();
            let store = writer.finish().unwrap();
            for shard in &store.shards {
                let fast: Vec<f32> = shard.rows(0..shard.ids.len()).unwrap().iter().copied().collect();
                assert_eq!(fast, shard.rows_slow());
            }
            assert_eq!(store.verify().unwrap().n_rows, 7);
        }
    }
}
