//! One shard: how rows become bytes, and a mapped shard becomes rows.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use ascribe_core::{Digest, ExampleId, RowType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use safetensors::tensor::Dtype;

use super::FEATURES_FORMAT_VERSION;
use super::layout::StoreHeader;
use super::manifest::ShardEntry;
use crate::error::StoreError;
use crate::mmap::Map;
use crate::tensors::{Table, Tensor};

/// Rows that wait for their shard to be full.
#[derive(Debug, Default)]
pub(crate) struct ShardBuffer {
    pub ids: Vec<ExampleId>,
    pub norms: Vec<f32>,
    pub grad: Vec<u8>,
}

impl ShardBuffer {
    /// Takes one row, which is known to be finite and to fit `row_type`.
    ///
    /// The norm is that of the row as stored, summed in f64 from left to right and narrowed once.
    pub fn push(&mut self, id: ExampleId, row: &[f32], row_type: RowType) {
        self.ids.push(id);
        let norm_sq: f64 = match row_type {
            RowType::F32 => {
                self.grad.extend_from_slice(bytemuck::cast_slice(row));
                row.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
            }
            RowType::Bf16 => self.push_narrow(row, bf16::ZERO, bf16::to_f64),
            RowType::F16 => self.push_narrow(row, f16::ZERO, f16::to_f64),
        };
        self.norms.push(norm_sq.sqrt() as f32);
    }

    /// Appends a row rounded to nearest, ties to even; returns its squared norm.
    fn push_narrow<T: bytemuck::Pod>(&mut self, row: &[f32], zero: T, to_f64: fn(T) -> f64) -> f64
    where
        [T]: HalfFloatSliceExt,
    {
        let mut narrow = vec![zero; row.len()];
        narrow.convert_from_f32_slice(row);
        self.grad.extend_from_slice(bytemuck::cast_slice(&narrow));
        narrow.iter().map(|&x| to_f64(x)).map(|x| x * x).sum()
    }

    /// Rows so far.
    pub fn n_rows(&self) -> usize {
        self.ids.len()
    }

    pub fn clear(&mut self) {
        self.ids.clear();
        self.norms.clear();
        self.grad.clear();
    }

    /// Tensors of the shard file, `grad` first so that it starts the data section.
    pub fn tensors(&self, header: &StoreHeader) -> Vec<Tensor<'_>> {
        let n_rows = self.n_rows();
        let ids: Vec<u8> = self.ids.iter().flat_map(|id| id.to_u64().to_le_bytes()).collect();
        let norms: &[u8] = bytemuck::cast_slice(&self.norms);
        vec![
            Tensor::new("grad", dtype(header.row_type), &[n_rows, header.spec.dim], self.grad.as_slice()),
            Tensor::new("example_id", Dtype::U64, &[n_rows], ids),
            Tensor::new("norm", Dtype::F32, &[n_rows], norms),
        ]
    }

    /// Metadata of the shard file.
    pub fn metadata(&self, header: &StoreHeader, shard_idx: u32) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("ascribe.format_version".to_owned(), FEATURES_FORMAT_VERSION.to_string()),
            ("ascribe.shard".to_owned(), shard_idx.to_string()),
            ("ascribe.spec".to_owned(), header.spec_sha256.to_string()),
            ("ascribe.store".to_owned(), header.uuid.clone()),
        ])
    }

    /// The side file: what SQL needs to know of each row without touching the gradients.
    pub fn side(&self, path: &Path, spec: Digest, shard_idx: u32) -> Result<Vec<u8>, StoreError> {
        let failed = |error: parquet::errors::ParquetError| StoreError::malformed(path, "side file", "Parquet", error);
        let n_rows = self.n_rows();
        let field = |name: &str, kind| Field::new(name, kind, false);
        let schema = Arc::new(Schema::new(vec![
            field("example_id", DataType::UInt64),
            field("dataset_id", DataType::UInt32),
            field("shard", DataType::UInt32),
            field("row", DataType::UInt32),
            field("norm", DataType::Float32),
        ]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(self.ids.iter().map(|id| id.to_u64()))),
            Arc::new(UInt32Array::from_iter_values(self.ids.iter().map(|id| id.dataset))),
            Arc::new(UInt32Array::from_value(shard_idx, n_rows)),
            Arc::new(UInt32Array::from_iter_values(0..n_rows as u32)),
            Arc::new(Float32Array::from_iter_values(self.norms.iter().copied())),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)
            .map_err(|error| StoreError::malformed(path, "side file", "equal columns", error))?;
        let properties = WriterProperties::builder()
            .set_created_by(format!("ascribe-store side v{FEATURES_FORMAT_VERSION}"))
            .set_compression(Compression::UNCOMPRESSED)
            .set_key_value_metadata(Some(vec![parquet::file::metadata::KeyValue::new(
                "ascribe.spec".to_owned(),
                spec.to_string(),
            )]))
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties)).map_err(failed)?;
        writer.write(&batch).map_err(failed)?;
        writer.close().map_err(failed)?;
        Ok(bytes)
    }
}

fn dtype(row_type: RowType) -> Dtype {
    match row_type {
        RowType::F32 => Dtype::F32,
        RowType::Bf16 => Dtype::BF16,
        RowType::F16 => Dtype::F16,
    }
}

/// A committed shard, mapped. Its checksum is verified once, before the first row leaves it.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    map: Map,
    grad: Range<usize>,
    row_type: RowType,
    dim: usize,
    pub ids: Vec<ExampleId>,
    pub norms: Vec<f32>,
    blake3_expected: String,
    /// BLAKE3 of the bytes, computed at first use.
    blake3_found: OnceLock<String>,
}

impl Shard {
    /// Maps the file and checks its length, shape and first and last id against the manifest.
    pub fn open(path: &Path, header: &StoreHeader, entry: &ShardEntry) -> Result<Self, StoreError> {
        check_len(path, entry.bytes)?;
        let map = Map::open(path)?;
        let (n_rows, dim) = (entry.rows as usize, header.spec.dim);
        let table = Table::read(path, &map)?;
        let store = table.key(path, "ascribe.store")?;
        if store != header.uuid {
            return Err(StoreError::malformed(path, "store that the shard belongs to", &header.uuid, store));
        }
        let grad = table.range(path, "grad", dtype(header.row_type), &[n_rows, dim])?;
        let id_range = table.range(path, "example_id", Dtype::U64, &[n_rows])?;
        let norm_range = table.range(path, "norm", Dtype::F32, &[n_rows])?;
        let (id_chunks, _) = map[id_range].as_chunks::<8>();
        let ids: Vec<ExampleId> = id_chunks.iter().map(|b| ExampleId::from_u64(u64::from_le_bytes(*b))).collect();
        let (norm_chunks, _) = map[norm_range].as_chunks::<4>();
        let norms: Vec<f32> = norm_chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let found = (ids.first().copied(), ids.last().copied());
        if found != (Some(entry.first_id), Some(entry.last_id)) {
            let expected = format!("{} … {}", entry.first_id, entry.last_id);
            return Err(StoreError::malformed(path, "first and last example", expected, format!("{found:?}")));
        }
        Ok(Self {
            path: path.to_path_buf(),
            grad,
            row_type: header.row_type,
            dim,
            ids,
            norms,
            blake3_expected: entry.blake3.clone(),
            blake3_found: OnceLock::new(),
            map,
        })
    }

    /// Refuses the shard if its bytes are not the committed ones. Hashes once; later calls are free.
    pub fn check_bytes(&self) -> Result<(), StoreError> {
        let found = self.blake3_found.get_or_init(|| blake3::hash(&self.map).to_hex().to_string());
        if *found != self.blake3_expected {
            let (path, expected) = (self.path.clone(), self.blake3_expected.clone());
            return Err(StoreError::WrongChecksum { path, expected, found: found.clone() });
        }
        Ok(())
    }

    /// Rows `range` as f32 `[n, dim]`: borrowed from the map for f32, widened (exactly) for the others.
    pub fn rows(&self, range: Range<usize>) -> Result<CowArray<'_, f32, Ix2>, StoreError> {
        self.check_bytes()?;
        let shape = (range.len(), self.dim);
        let row_bytes = self.dim * self.row_type.len_bytes();
        let bytes = &self.map[self.grad.clone()][range.start * row_bytes..range.end * row_bytes];
        let wide = match self.row_type {
            RowType::F32 => match bytemuck::try_cast_slice::<u8, f32>(bytes) {
                Ok(numbers) => {
                    let view = ArrayView2::from_shape(shape, numbers).expect("a range of rows has the rows' shape");
                    return Ok(CowArray::from(view));
                }
                // A foreign writer may not have aligned the tensor: copy, and be right anyway.
                Err(_) => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            },
            RowType::Bf16 => widen::<bf16>(bytes, bf16::from_le_bytes),
            RowType::F16 => widen::<f16>(bytes, f16::from_le_bytes),
        };
        Ok(CowArray::from(Array2::from_shape_vec(shape, wide).expect("a range of rows has the rows' shape")))
    }

    /// Widens all rows the slow way, one number at a time: the twin that the tests compare the fast path with.
    #[cfg(test)]
    pub fn rows_slow(&self) -> Vec<f32> {
        let bytes = &self.map[self.grad.clone()];
        match self.row_type {
            RowType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            RowType::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            RowType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
}

fn widen<T>(bytes: &[u8], from_le: fn([u8; 2]) -> T) -> Vec<f32>
where
    T: bytemuck::Pod,
    [T]: HalfFloatSliceExt,
{
    let narrow: Cow<'_, [T]> = match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => Cow::Borrowed(numbers),
        Err(_) => bytes.as_chunks::<2>().0.iter().map(|b| from_le(*b)).collect(),
    };
    let mut wide = vec![0.0; narrow.len()];
    narrow.convert_to_f32_slice(&mut wide);
    wide
}

/// Refuses a file whose length is not the committed one.
pub(crate) fn check_len(path: &Path, expected: u64) -> Result<(), StoreError> {
    let found = fs::metadata(path)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => StoreError::Missing {
                path: path.to_path_buf(),
                hint: "the manifest names this file; restore it or write the store again",
            },
            _ => StoreError::io("measure", path, source),
        })?
        .len();
    if found != expected {
        return Err(StoreError::WrongLength { path: path.to_path_buf(), expected, found });
    }
    Ok(())
}
