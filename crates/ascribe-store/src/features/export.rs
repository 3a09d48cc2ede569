//! Live rows as one file that others open: numpy, safetensors, Arrow IPC, Parquet. Numbers are f32, codes multiplied out.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::{FileWriter, StreamWriter};
use ascribe_core::{FeatureReader, Features, Progress};
use parquet::arrow::ArrowWriter;
use safetensors::tensor::Dtype;

use super::reader::FeatureStore;
use crate::atomic::AtomicFile;
use crate::error::StoreError;
use crate::tensors;

/// Formats of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExportFormat {
    /// `FILE.npy`, f32 `[n, dim]`, and `FILE.ids.npy`, u64 `[n]`.
    Npy,
    /// Tensors `grad` f32 `[n, dim]`, `example_id` u64 `[n]`, `norm` f32 `[n]`.
    Safetensors,
    /// Arrow's IPC file format: `example_id`, `dataset_id`, `norm`, `grad` as a list of `dim` f32.
    Arrow,
    /// The same as Arrow's IPC stream, which some readers want instead.
    ArrowStream,
    /// The same columns in Parquet.
    Parquet,
}

impl ExportFormat {
    /// The format that a file's ending stands for: `npy`, `safetensors`, `arrow`, `arrows`, `parquet`.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "npy" => Some(Self::Npy),
            "safetensors" => Some(Self::Safetensors),
            "arrow" | "feather" => Some(Self::Arrow),
            "arrows" => Some(Self::ArrowStream),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// Writes the live rows of `store` to `out`, whole or not at all; returns the files. Memory: one block.
///
/// # Errors
/// Damage in the store; those of writing; [`StoreError::Stopped`] on request, nothing half written stays.
pub fn export(
    store: &FeatureStore,
    out: &Path,
    format: ExportFormat,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, StoreError> {
    progress.start("export", store.n_rows(), "rows");
    let files = match format {
        ExportFormat::Npy => npy(store, out, progress)?,
        ExportFormat::Safetensors => safetensors(store, out, progress)?,
        ExportFormat::Arrow => batches(store, out, progress, |file, schema| {
            Ok(Box::new(Ipc(FileWriter::try_new(file, &schema).map_err(|e| failed(out, e))?)))
        })?,
        ExportFormat::ArrowStream => batches(store, out, progress, |file, schema| {
            Ok(Box::new(IpcStream(StreamWriter::try_new(file, &schema).map_err(|e| failed(out, e))?)))
        })?,
        ExportFormat::Parquet => batches(store, out, progress, |file, schema| {
            Ok(Box::new(Columns(ArrowWriter::try_new(file, schema, None).map_err(|e| failed(out, e))?)))
        })?,
    };
    progress.finish(&format!("{} rows", store.n_rows()));
    Ok(files)
}

fn each_block(
    store: &FeatureStore,
    progress: &dyn Progress,
    mut take: impl FnMut(&Features<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for i in 0..store.n_blocks() {
        if progress.stop_requested() {
            return Err(StoreError::Stopped);
        }
        let block = store.block(i)?;
        take(&block)?;
        progress.advance(block.ids.len() as u64);
    }
    Ok(())
}

fn write_rows(file: &mut impl Write, path: &Path, block: &Features<'_>) -> Result<(), StoreError> {
    let rows = block.rows.as_standard_layout();
    let numbers = rows.as_slice().expect("standard layout is contiguous");
    file.write_all(bytemuck::cast_slice(numbers)).map_err(|source| StoreError::io("write", path, source))
}

/// The head of a `.npy` file of format 1.0, padded to 64 bytes as numpy does.
fn npy_head(descr: &str, shape: &str) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let len = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    head.extend((len as u16).to_le_bytes());
    head.extend(dict.as_bytes());
    head.resize(10 + len - 1, b' ');
    head.push(b'\n');
    head
}

fn npy(store: &FeatureStore, out: &Path, progress: &dyn Progress) -> Result<Vec<PathBuf>, StoreError> {
    let (n, dim) = (store.n_rows(), store.spec().dim);
    let ids_path = out.with_extension("ids.npy");
    let write = |file: &mut AtomicFile, path: &Path, bytes: &[u8]| {
        file.write_all(bytes).map_err(|source| StoreError::io("write", path, source))
    };
    let mut rows = AtomicFile::create(out)?;
    let mut ids = AtomicFile::create(&ids_path)?;
    write(&mut rows, out, &npy_head("<f4", &format!("{n}, {dim}")))?;
    write(&mut ids, &ids_path, &npy_head("<u8", &format!("{n},")))?;
    each_block(store, progress, |block| {
        write_rows(&mut rows, out, block)?;
        let packed: Vec<u64> = block.ids.iter().map(|id| id.to_u64()).collect();
        write(&mut ids, &ids_path, bytemuck::cast_slice(&packed))
    })?;
    ids.commit()?;
    rows.commit()?;
    Ok(vec![out.to_path_buf(), ids_path])
}

fn safetensors(store: &FeatureStore, out: &Path, progress: &dyn Progress) -> Result<Vec<PathBuf>, StoreError> {
    let (n, dim) = (store.n_rows() as usize, store.spec().dim);
    let (ids, norms): (Vec<u64>, Vec<f32>) = (store.ids().map(|id| id.to_u64()).collect(), store.norms().collect());
    let table = [
        ("example_id", Dtype::U64, &[n][..], 8 * n),
        ("norm", Dtype::F32, &[n][..], 4 * n),
        ("grad", Dtype::F32, &[n, dim][..], 4 * n * dim),
    ];
    let metadata = BTreeMap::from([("ascribe.spec".to_owned(), store.header().spec_sha256.to_string())]);
    let head = tensors::head(&table, &metadata).map_err(|error| failed(out, error))?;
    let mut file = AtomicFile::create(out)?;
    for (bytes, is_last) in
        [(head.as_slice(), true), (bytemuck::cast_slice(&ids), false), (bytemuck::cast_slice(&norms), false)]
    {
        let pad = if is_last { 0 } else { bytes.len().next_multiple_of(tensors::ALIGN) - bytes.len() };
        let zeros = [0u8; tensors::ALIGN];
        let written = file.write_all(bytes).and_then(|()| file.write_all(&zeros[..pad]));
        written.map_err(|source| StoreError::io("write", out, source))?;
    }
    each_block(store, progress, |block| write_rows(&mut file, out, block))?;
    file.commit()?;
    Ok(vec![out.to_path_buf()])
}

/// A writer of record batches.
trait Batches {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), String>;
    fn close(self: Box<Self>) -> Result<(), String>;
}

struct Ipc<'a>(FileWriter<&'a mut AtomicFile>);
struct IpcStream<'a>(StreamWriter<&'a mut AtomicFile>);
struct Columns<'a>(ArrowWriter<&'a mut AtomicFile>);

impl Batches for Ipc<'_> {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), String> {
        self.0.write(batch).map_err(|e| e.to_string())
    }
    fn close(mut self: Box<Self>) -> Result<(), String> {
        self.0.finish().map_err(|e| e.to_string())
    }
}

impl Batches for IpcStream<'_> {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), String> {
        self.0.write(batch).map_err(|e| e.to_string())
    }
    fn close(mut self: Box<Self>) -> Result<(), String> {
        self.0.finish().map_err(|e| e.to_string())
    }
}

impl Batches for Columns<'_> {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), String> {
        self.0.write(batch).map_err(|e| e.to_string())
    }
    fn close(self: Box<Self>) -> Result<(), String> {
        self.0.close().map(drop).map_err(|e| e.to_string())
    }
}

fn batches<F>(store: &FeatureStore, out: &Path, progress: &dyn Progress, open: F) -> Result<Vec<PathBuf>, StoreError>
where
    F: for<'a> FnOnce(&'a mut AtomicFile, Arc<Schema>) -> Result<Box<dyn Batches + 'a>, StoreError>,
{
    let dim = i32::try_from(store.spec().dim).expect("the format caps a row's width far below this");
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let field = |name: &str, kind| Field::new(name, kind, false);
    let metadata = [("ascribe.spec".to_owned(), store.header().spec_sha256.to_string())];
    let schema = Schema::new(vec![
        field("example_id", DataType::UInt64),
        field("dataset_id", DataType::UInt32),
        field("norm", DataType::Float32),
        field("grad", DataType::FixedSizeList(Arc::clone(&item), dim)),
    ]);
    let schema = Arc::new(schema.with_metadata(metadata.into()));
    let mut norms = store.norms();
    let mut file = AtomicFile::create(out)?;
    let mut writer = open(&mut file, Arc::clone(&schema))?;
    each_block(store, progress, |block| {
        let rows = block.rows.as_standard_layout();
        let numbers = Float32Array::from_iter_values(rows.iter().copied());
        let grad = FixedSizeListArray::try_new(Arc::clone(&item), dim, Arc::new(numbers), None);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(block.ids.iter().map(|id| id.to_u64()))),
            Arc::new(UInt32Array::from_iter_values(block.ids.iter().map(|id| id.dataset))),
            Arc::new(Float32Array::from_iter_values(norms.by_ref().take(block.ids.len()))),
            Arc::new(grad.map_err(|e| failed(out, e))?),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| failed(out, e))?;
        writer.write(&batch).map_err(|e| failed(out, e))
    })?;
    writer.close().map_err(|e| failed(out, e))?;
    file.commit()?;
    Ok(vec![out.to_path_buf()])
}

/// What the writer of a format said. A full disk is among it, in words.
fn failed(path: &Path, error: impl ToString) -> StoreError {
    StoreError::malformed(path, "export", "a file that can be written", error)
}
