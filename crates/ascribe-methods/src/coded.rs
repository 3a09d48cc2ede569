//! Feature rows in few bits per number, as they are or whitened first.
//!
//! A score is `⟨(H + λ)⁻¹q, g⟩ = ⟨Wq, Wg⟩` with `WᵀW = (H + λ)⁻¹`. Rows `Wg` are close to isotropic: no number is worth more than
//! another, so one scale and few levels serve them all, and what rounding loses is spread evenly. Rows as they are have
//! directions that curvature later blows up, and rounding errors in these with them. So whitened rows are what makes 2 bits or
//! 1 bit work; their queries are [`whiten_queries`], and the damping is fixed when rows are stored.
//!
//! [`CodedRows`] is a [`FeatureReader`]: blocks are decoded on their way into `dot::score`. Codes and their error bounds:
//! `ascribe_linalg::quant`. Here never lives: files.

use std::convert::Infallible;

use ascribe_core::{Column, ExampleId, FeatureReader, FeatureSpec, Features, Progress};
use ascribe_linalg::{Code, LinalgError, RowCodec};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::block_fisher::Preconditioner;
use crate::blocks;
use crate::dot;
use crate::error::MethodError;
use crate::rows::check_metric;

/// Rows of a decoded block.
const BLOCK_ROWS: usize = 512;
/// Rows per whitening task.
const TASK_ROWS: usize = 128;
/// What the spec's normalizer of whitened rows ends with: they must not be compared with rows as they are.
const WHITENED: &str = "+whitened";

/// How rows are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    /// Code of a number.
    pub code: Code,
    /// One scale per module, or one for the whole row. One is enough for whitened rows.
    pub groups: Groups,
    /// Seed of the rotation before coding, if there is to be one.
    pub rotation: Option<u64>,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// The numbers of a module.
    Module,
    /// All numbers of a row.
    Row,
}

impl Coding {
    /// The codec for rows of `columns`.
    pub fn codec(&self, columns: &[Column]) -> RowCodec {
        let groups = match self.groups {
            Groups::Module => columns.iter().map(|c| c.len).collect(),
            Groups::Row => vec![columns.iter().map(|c| c.len).sum()],
        };
        RowCodec::new(self.code, groups, self.rotation)
    }
}

/// Coded rows in memory.
#[derive(Clone, Debug)]
pub struct CodedRows {
    spec: FeatureSpec,
    ids: Vec<ExampleId>,
    codec: RowCodec,
    /// `[N, codec.len_bytes()]`.
    bytes: Vec<u8>,
    lost: f64,
}

impl CodedRows {
    /// Codes all rows of `reader`, whitened by `whiten` if given. Bytes of a row depend on the row alone. Cost: `N·D` (with
    /// rotation `N·D·log D`), whitening `N·Σ d_m²`; memory: the bytes and one block of rows.
    ///
    /// # Errors
    /// Columns that are not those of `whiten`; rows that are whitened already; reader errors; NaN, its place named.
    pub fn encode<R: FeatureReader>(
        reader: &R,
        coding: Coding,
        whiten: Option<&dyn Preconditioner>,
        progress: &dyn Progress,
    ) -> Result<Self, MethodError> {
        let mut spec = reader.spec().clone();
        if let Some(by) = whiten {
            check_metric(reader, by)?;
            if spec.normalizer.ends_with(WHITENED) {
                return Err(MethodError::shape("rows to whiten", "rows as they are", spec.normalizer));
            }
            spec.normalizer += WHITENED;
        }
        let codec = coding.codec(&spec.columns);
        let len = codec.len_bytes();
        let mut bytes = Vec::new();
        let mut ids = Vec::with_capacity(dot::n_rows(reader)?);
        let (mut lost, mut whole) = (0.0, 0.0);
        progress.start("code rows", reader.n_rows(), "rows");
        blocks::for_each(reader, progress, |block| {
            let n = block.ids.len();
            let start = bytes.len();
            bytes.resize(start + n * len, 0u8);
            let tasks = bytes[start..].par_chunks_mut(TASK_ROWS * len.max(1)).enumerate();
            let parts: Result<Vec<[f64; 2]>, MethodError> = tasks
                .map(|(task, target)| {
                    let first = task * TASK_ROWS;
                    let mut rows = block.rows.slice(s![first..(first + TASK_ROWS).min(n), ..]).to_owned();
                    if let Some(by) = whiten {
                        whiten_rows(by, &mut rows);
                    }
                    encode_rows(&codec, &rows, target, block.first_row + first)
                })
                .collect();
            for [l, w] in parts? {
                (lost, whole) = (lost + l, whole + w);
            }
            ids.extend_from_slice(block.ids);
            Ok(())
        })?;
        progress.finish("rows coded");
        let lost = if whole > 0.0 { lost / whole } else { 0.0 };
        Ok(Self { spec, ids, codec, bytes, lost })
    }

    /// Coded rows that were kept somewhere: every byte is looked at first.
    ///
    /// # Errors
    /// Bytes that no encoder writes, the row named; a spec, ids and bytes that do not fit each other.
    pub fn from_parts(
        spec: FeatureSpec,
        ids: Vec<ExampleId>,
        codec: RowCodec,
        bytes: Vec<u8>,
        lost: f64,
    ) -> Result<Self, MethodError> {
        blocks::check_columns(&spec.columns, spec.dim)?;
        if codec.dim() != spec.dim {
            return Err(MethodError::shape("numbers of a coded row", spec.dim, codec.dim()));
        }
        if bytes.len() != ids.len() * codec.len_bytes() {
            return Err(MethodError::shape("bytes of the coded rows", ids.len() * codec.len_bytes(), bytes.len()));
        }
        for (row, coded) in bytes.chunks(codec.len_bytes().max(1)).enumerate() {
            codec.check(coded).map_err(|e| {
                MethodError::shape("bytes of the coded rows", "what the codec writes", format!("row {row}: {e}"))
            })?;
        }
        Ok(Self { spec, ids, codec, bytes, lost })
    }

    /// The codec.
    pub fn codec(&self) -> &RowCodec {
        &self.codec
    }

    /// Ids of the rows.
    pub fn ids(&self) -> &[ExampleId] {
        &self.ids
    }

    /// All bytes, `[N, codec().len_bytes()]`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `Σ‖row − decoded‖² / Σ‖row‖²` of the rows that were coded (whitened, if they were).
    pub fn lost(&self) -> f64 {
        self.lost
    }

    /// Bytes per example, exactly: codes and scales, ids not counted.
    pub fn bytes_per_example(&self) -> usize {
        self.codec.len_bytes()
    }
}

impl FeatureReader for CodedRows {
    type Error = Infallible;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.ids.len() as u64
    }

    fn n_blocks(&self) -> usize {
        self.ids.len().div_ceil(BLOCK_ROWS)
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Infallible> {
        let (len, dim) = (self.codec.len_bytes(), self.spec.dim);
        let range = block_idx * BLOCK_ROWS..((block_idx + 1) * BLOCK_ROWS).min(self.ids.len());
        let mut rows = vec![0.0f32; range.len() * dim];
        if dim > 0 {
            let bytes = &self.bytes[range.start * len..range.end * len];
            rows.par_chunks_mut(dim).zip(bytes.par_chunks(len)).for_each(|(row, bytes)| self.codec.decode(bytes, row));
        }
        let rows = Array2::from_shape_vec((range.len(), dim), rows).expect("as many numbers as rows times columns");
        Ok(Features { ids: self.ids[range].into(), rows: rows.into() })
    }
}

/// `W q` for every query row, `[Q, D]`: the other half of whitened rows. Cost `Q·Σ d_m²`.
///
/// # Errors
/// Width of the rows; NaN.
pub fn whiten_queries(by: &dyn Preconditioner, queries: ArrayView2<'_, f32>) -> Result<Array2<f64>, MethodError> {
    let mut out = blocks::query_rows(queries, by.columns())?;
    whiten_rows(by, &mut out);
    Ok(out)
}

fn whiten_rows(by: &dyn Preconditioner, rows: &mut Array2<f64>) {
    for (module, c) in by.columns().iter().enumerate() {
        by.whiten(module, rows.slice_mut(s![.., c.start..c.start + c.len]));
    }
}

/// Codes rows into `target`; returns what was lost and what there was.
fn encode_rows(codec: &RowCodec, rows: &Array2<f64>, target: &mut [u8], first: usize) -> Result<[f64; 2], MethodError> {
    let mut totals = [0.0; 2];
    let mut narrow = vec![0.0f32; codec.dim()];
    for (i, (row, bytes)) in rows.rows().into_iter().zip(target.chunks_mut(codec.len_bytes().max(1))).enumerate() {
        narrow.iter_mut().zip(row).for_each(|(to, &x)| *to = x as f32);
        let lost = codec.encode(&narrow, bytes).map_err(|e| match e {
            LinalgError::NotFinite { col, found, .. } => {
                MethodError::BadValue { what: "whitened rows".to_owned(), row: first + i, column: col, found }
            }
            other => MethodError::shape("a row to code", "finite numbers", other.to_string()),
        })?;
        totals[0] += lost;
        totals[1] += narrow.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    }
    Ok(totals)
}
