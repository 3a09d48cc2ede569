//! What a store holds, in numbers.

use ascribe_core::FeatureReader as _;
use serde::Serialize;

use super::reader::FeatureStore;
use super::terms::OwnerSums;
use crate::error::StoreError;

/// Numbers of a store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreStats {
    /// Format version.
    pub format_version: u32,
    /// Name of the store.
    pub uuid: String,
    /// Hash of the spec.
    pub spec_sha256: String,
    /// Generation that is open.
    pub generation: u64,
    /// What made it.
    pub made_by: String,
    /// How numbers are kept.
    pub row_type: String,
    /// Numbers of a row.
    pub dim: usize,
    /// Bytes from one row to the next.
    pub stride_bytes: usize,
    /// Rows that are not deleted.
    pub n_rows: u64,
    /// Deleted rows that are still in their shards.
    pub n_dead: u64,
    /// Shards.
    pub n_shards: usize,
    /// Bytes of the shard files.
    pub shard_bytes: u64,
    /// Bytes of the side files.
    pub side_bytes: u64,
    /// Bytes of shard and side files for each row in them, dead ones too.
    pub bytes_per_row: f64,
    /// Least, mean and largest Euclidean norm of the rows as stored.
    pub norms: [f64; 3],
    /// Largest and mean bound of what a row lost, relative to its norm; none for f32.
    pub error_rel: Option<[f64; 2]>,
    /// Rows of each dataset, by ordinal, and the norm of their sum.
    pub datasets: Vec<DatasetStats>,
    /// The same by owner; empty if the store knows no owners.
    pub owners: Vec<OwnerStats>,
    /// Modules with their first column and width.
    pub modules: Vec<(String, usize, usize)>,
    /// Companions, and whether they are of the rows that the store has now.
    pub companions: Vec<(String, String)>,
}

/// Numbers of a dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DatasetStats {
    /// Its ordinal.
    pub dataset: u32,
    /// Its rows.
    pub rows: u64,
    /// Euclidean norm of the sum of its rows.
    pub sum_norm: f64,
    /// Its name, where the store was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its owner, where the store was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its licence, where the store was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

/// Numbers of an owner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OwnerStats {
    /// Who.
    pub owner: String,
    /// Ordinals of the datasets.
    pub datasets: Vec<u32>,
    /// Rows of them all.
    pub rows: u64,
    /// Euclidean norm of the sum of these rows.
    pub sum_norm: f64,
}

impl FeatureStore {
    /// Counts, sizes, norms. Cost: a look at norms, errors and sums; rows are not read.
    ///
    /// # Errors
    /// Sums that are not the committed ones.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let header = self.header();
        let norms = self.norms().map(f64::from);
        let (least, largest, total) =
            norms.fold((f64::INFINITY, 0.0f64, 0.0), |(a, b, c), x| (a.min(x), b.max(x), c + x));
        let n = self.n_rows().max(1) as f64;
        let sums = if header.companion_of.is_none() { Some(self.dataset_sums()?) } else { None };
        let datasets = sums.map_or_else(Vec::new, |sums| {
            let rows = sums.sums();
            let of = |(k, (&rows, sum)): (usize, (&u64, _))| {
                let terms = self.terms().of_dataset(k as u32).cloned().unwrap_or_default();
                let (name, owner, licence) = (terms.name, terms.owner, terms.licence);
                DatasetStats { dataset: k as u32, rows, sum_norm: norm(sum), name, owner, licence }
            };
            sums.counts.iter().zip(rows.rows()).enumerate().map(of).filter(|d| d.rows > 0).collect()
        });
        let owners = self.owner_stats()?;
        let shard_bytes = self.entries().iter().map(|e| e.bytes).sum();
        let side_bytes = self.entries().iter().map(|e| e.side_bytes).sum();
        let in_files = (self.n_rows() + self.generation().n_dead).max(1) as f64;
        Ok(StoreStats {
            format_version: header.format_version,
            uuid: header.uuid.clone(),
            spec_sha256: header.spec_sha256.to_string(),
            generation: self.generation().generation,
            made_by: self.generation().made_by.clone(),
            row_type: header.row_type.name().to_owned(),
            dim: header.spec.dim,
            stride_bytes: header.stride(),
            n_rows: self.n_rows(),
            n_dead: self.generation().n_dead,
            n_shards: self.n_shards(),
            shard_bytes,
            side_bytes,
            bytes_per_row: (shard_bytes + side_bytes) as f64 / in_files,
            norms: if self.n_rows() == 0 { [0.0; 3] } else { [least, total / n, largest] },
            error_rel: self.error_rel(),
            datasets,
            owners,
            modules: header.spec.columns.iter().map(|c| (c.name.clone(), c.start, c.len)).collect(),
            companions: self.companions(),
        })
    }

    fn owner_stats(&self) -> Result<Vec<OwnerStats>, StoreError> {
        let OwnerSums { owners, sums } = self.owner_sums()?;
        let rows = sums.sums();
        let of = |((owner, &rows), sum): ((String, &u64), _)| {
            let datasets = self.terms().datasets_where(|terms| terms.owner.as_ref() == Some(&owner));
            OwnerStats { owner, datasets, rows, sum_norm: norm(sum) }
        };
        Ok(owners.into_iter().zip(&sums.counts).zip(rows.rows()).map(of).collect())
    }

    fn error_rel(&self) -> Option<[f64; 2]> {
        let (mut largest, mut total, mut n) = (0.0f64, 0.0, 0u64);
        for shard in &self.shards {
            let view = shard.unchecked();
            for (&error, &norm) in view.error?.iter().zip(view.norm).filter(|(_, norm)| **norm > 0.0) {
                let rel = f64::from(error) / f64::from(norm);
                (largest, total, n) = (largest.max(rel), total + rel, n + 1);
            }
        }
        (n > 0).then(|| [largest, total / n as f64])
    }

    /// Row types of the folders below that are companions, and their state.
    fn companions(&self) -> Vec<(String, String)> {
        let state = |row_type| match self.companion(row_type) {
            Ok(_) => Some("current".to_owned()),
            Err(StoreError::Missing { .. }) => None,
            Err(StoreError::Stale { .. }) => Some("stale".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let types = ascribe_core::RowType::ALL.into_iter();
        types.filter_map(|t| state(t).map(|state| (t.name().to_owned(), state))).collect()
    }
}

fn norm(row: ndarray::ArrayView1<'_, f64>) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}
