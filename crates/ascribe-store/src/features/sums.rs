//! Exact sums of the stored rows per dataset: what makes dataset-level influence a single small product.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, ArrayView2};
use safetensors::tensor::Dtype;

use super::layout::StoreHeader;
use super::shard::Shard;
use super::{BLOCK_ROWS, FEATURES_FORMAT_VERSION};
use crate::atomic::write_atomic;
use crate::error::StoreError;
use crate::mmap::Map;
use crate::tensors::{self, Table, Tensor};

/// `G_k = Σ_{i in dataset k} g_i`, over the rows as stored, in f64, in the order of the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSums {
    /// `[K, dim]`; row k is the dataset with ordinal k, zero for one without rows.
    pub sums: Array2<f64>,
    /// Rows of each dataset, `[K]`.
    pub counts: Vec<u64>,
}

impl DatasetSums {
    /// Sums all rows of `shards`, first to last: one order, so one set of bytes.
    pub(crate) fn of_shards(shards: &[Shard], header: &StoreHeader) -> Result<Self, StoreError> {
        let n_datasets = shards.iter().flat_map(|s| &s.ids).map(|id| id.dataset as usize + 1).max().unwrap_or(0);
        let mut sums = Array2::zeros((n_datasets, header.spec.dim));
        let mut counts = vec![0; n_datasets];
        for shard in shards {
            for start in (0..shard.ids.len()).step_by(BLOCK_ROWS) {
                let end = (start + BLOCK_ROWS).min(shard.ids.len());
                let rows = shard.rows(start..end)?;
                for (id, row) in shard.ids[start..end].iter().zip(rows.rows()) {
                    sums.row_mut(id.dataset as usize).zip_mut_with(&row, |sum, &x| *sum += f64::from(x));
                    counts[id.dataset as usize] += 1;
                }
            }
        }
        Ok(Self { sums, counts })
    }

    /// Writes the file and returns its BLAKE3.
    pub(crate) fn write(&self, path: &Path, header: &StoreHeader) -> Result<String, StoreError> {
        let numbers = self.sums.as_slice().expect("sums are made in standard layout");
        let tensors = [
            Tensor::new("sum", Dtype::F64, self.sums.shape(), bytemuck::cast_slice(numbers)),
            Tensor::new("count", Dtype::U64, &[self.counts.len()], bytemuck::cast_slice::<u64, u8>(&self.counts)),
        ];
        let metadata = BTreeMap::from([
            ("ascribe.format_version".to_owned(), FEATURES_FORMAT_VERSION.to_string()),
            ("ascribe.spec".to_owned(), header.spec_sha256.to_string()),
            ("ascribe.store".to_owned(), header.uuid.clone()),
        ]);
        let mut bytes = Vec::new();
        tensors::write(&mut bytes, path, &tensors, &metadata)?;
        write_atomic(path, &bytes)?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    /// Reads the file back; its bytes must hash to `blake3`.
    pub(crate) fn read(path: &Path, header: &StoreHeader, n_datasets: u32, blake3: &str) -> Result<Self, StoreError> {
        let map = Map::open(path)?;
        let found = blake3::hash(&map).to_hex().to_string();
        if found != blake3 {
            let expected = blake3.to_owned();
            return Err(StoreError::WrongChecksum { path: path.to_path_buf(), expected, found });
        }
        let (n_datasets, dim) = (n_datasets as usize, header.spec.dim);
        let table = Table::read(path, &map)?;
        let sum_range = table.range(path, "sum", Dtype::F64, &[n_datasets, dim])?;
        let count_range = table.range(path, "count", Dtype::U64, &[n_datasets])?;
        let sums: Vec<f64> = map[sum_range].as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let counts = map[count_range].as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let sums = ArrayView2::from_shape((n_datasets, dim), &sums).expect("the range has this shape").to_owned();
        Ok(Self { sums, counts })
    }
}
