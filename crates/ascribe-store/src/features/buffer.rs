//! Rows that wait for their shard to be full, and how they become its files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use ascribe_core::{Digest, ExampleId, RowType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use safetensors::tensor::Dtype;

use super::FEATURES_FORMAT_VERSION;
use super::layout::StoreHeader;
use super::quant::{self, round_up};
use super::shard::{dtype, has_error};
use super::view::ShardView;
use crate::error::StoreError;
use crate::tensors::Tensor;

/// Rows on their way into a shard.
#[derive(Debug, Default)]
pub(crate) struct ShardBuffer {
    pub ids: Vec<u64>,
    norms: Vec<f32>,
    scales: Vec<f32>,
    errors: Vec<f32>,
    grad: Vec<u8>,
}

impl ShardBuffer {
    /// Takes one row, which is known to be finite and to fit the row type; `lost` is what it lost before (0 for a row that
    /// comes from its maker).
    ///
    /// The norm is that of the row as stored, summed in f64 in fixed lanes and narrowed once.
    pub fn push(&mut self, id: ExampleId, row: &[f32], header: &StoreHeader, lost: f32) {
        self.ids.push(id.to_u64());
        let start = self.grad.len();
        match header.row_type {
            RowType::F32 => {
                self.grad.extend_from_slice(bytemuck::cast_slice(row));
                self.norms.push(sum_of_squares(row.len(), |i| f64::from(row[i])).sqrt() as f32);
            }
            RowType::Bf16 => self.push_narrow(row, bf16::ZERO, bf16::to_f64, lost),
            RowType::F16 => self.push_narrow(row, f16::ZERO, f16::to_f64, lost),
            RowType::Int8 | RowType::Int4 => {
                let found = quant::encode(row, header.row_type, &mut self.grad);
                self.scales.push(found.scale);
                self.norms.push(found.norm);
                self.errors.push(round_up(f64::from(found.error) + f64::from(lost)));
            }
        }
        self.grad.resize(start + header.stride(), 0);
    }

    /// Appends a row rounded to nearest, ties to even.
    fn push_narrow<T: bytemuck::Pod>(&mut self, row: &[f32], zero: T, to_f64: fn(T) -> f64, lost: f32)
    where
        [T]: HalfFloatSliceExt,
    {
        let mut narrow = vec![zero; row.len()];
        narrow.convert_from_f32_slice(row);
        self.grad.extend_from_slice(bytemuck::cast_slice(&narrow));
        let rest = sum_of_squares(row.len(), |i| f64::from(row[i]) - to_f64(narrow[i]));
        self.norms.push(sum_of_squares(row.len(), |i| to_f64(narrow[i])).sqrt() as f32);
        self.errors.push(round_up(f64::from(quant::bound(rest, row.len())) + f64::from(lost)));
    }

    /// Takes row `i` of a shard of the same row type and width, byte for byte.
    pub fn push_stored(&mut self, view: &ShardView<'_>, i: usize, header: &StoreHeader) {
        self.ids.push(view.ids[i]);
        self.norms.push(view.norm[i]);
        self.scales.extend(view.scale.map(|s| s[i]));
        if has_error(header) {
            // A store of version 1 did not say what its rows had lost; they are precise for all that is known.
            self.errors.push(view.error.map_or(0.0, |e| e[i]));
        }
        let start = self.grad.len();
        self.grad.extend_from_slice(&view.row(i)[..header.row_type.row_bytes(header.spec.dim)]);
        self.grad.resize(start + header.stride(), 0);
    }

    /// Rows so far.
    pub fn n_rows(&self) -> usize {
        self.ids.len()
    }

    /// The rows as they will lie in their file.
    pub fn view(&self, header: &StoreHeader) -> ShardView<'_> {
        ShardView {
            row_type: header.row_type,
            n_rows: self.n_rows(),
            dim: header.spec.dim,
            stride_bytes: header.stride(),
            rows: &self.grad,
            scale: header.row_type.has_scale().then_some(&self.scales),
            norm: &self.norms,
            error: has_error(header).then_some(&self.errors),
            ids: &self.ids,
            dead: &[],
        }
    }

    /// Forgets all rows, keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.norms.clear();
        self.scales.clear();
        self.errors.clear();
        self.grad.clear();
    }

    /// Tensors of the shard file, `grad` first so that it starts the data section.
    pub fn tensors(&self, header: &StoreHeader) -> Vec<Tensor<'_>> {
        let n_rows = self.n_rows();
        let shape = [n_rows, header.stride_numbers()];
        let column = |name, numbers: &'_ [f32]| {
            Tensor::new(name, Dtype::F32, &[n_rows], bytemuck::cast_slice::<f32, u8>(numbers).to_vec())
        };
        let mut tensors = vec![
            Tensor::new("grad", dtype(header.row_type), &shape, self.grad.as_slice()),
            Tensor::new("example_id", Dtype::U64, &[n_rows], bytemuck::cast_slice::<u64, u8>(&self.ids)),
            column("norm", &self.norms),
        ];
        if header.row_type.has_scale() {
            tensors.push(column("scale", &self.scales));
        }
        if has_error(header) {
            tensors.push(column("error", &self.errors));
        }
        tensors
    }

    /// Metadata of the shard file.
    pub fn metadata(&self, header: &StoreHeader, shard_idx: u32) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("ascribe.dim".to_owned(), header.spec.dim.to_string()),
            ("ascribe.format_version".to_owned(), FEATURES_FORMAT_VERSION.to_string()),
            ("ascribe.row_type".to_owned(), header.row_type.name().to_owned()),
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
            Arc::new(UInt64Array::from_iter_values(self.ids.iter().copied())),
            Arc::new(UInt32Array::from_iter_values(self.ids.iter().map(|id| (id >> 32) as u32))),
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

/// `Σ x(i)²` for `i` below `n`, in eight lanes that are added in their order: one result on every machine, and no chain of
/// additions that each wait for the one before.
fn sum_of_squares(n: usize, x: impl Fn(usize) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let x = x(start + lane);
            *sum += x * x;
        }
    }
    for (i, sum) in (whole..n).zip(&mut lanes) {
        *sum += x(i) * x(i);
    }
    lanes.iter().sum()
}
