//! Rows that wait for their shard to be full, and how they become its files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use ascribe_core::{Digest, ExampleId, RowType};
use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::ArrayView2;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::FEATURES_FORMAT_VERSION;
use super::layout::StoreHeader;
use super::quant::{self, Encoded, round_up};
use super::shard::{dtype, has_error};
use super::view::ShardView;
use crate::error::StoreError;
use crate::room::Room;
use crate::tensors::{self, Tensor};
use crate::wide::wide;

/// Fewer numbers are coded where they are pushed: handing them to other threads takes some microseconds.
const PARALLEL_NUMBERS: usize = 1 << 16;

/// Lanes of the f64 sums of a row.
const LANES: usize = 8;

/// Rows on their way into a shard.
#[derive(Debug, Default)]
pub(crate) struct ShardBuffer {
    pub ids: Vec<u64>,
    norms: Vec<f32>,
    scales: Vec<f32>,
    errors: Vec<f32>,
    grad: Room,
}

impl ShardBuffer {
    /// Makes room for shard `shard_idx` of up to `n_rows` rows, which are then likely to lie in memory as in their file, so that it can
    /// be written without a copy. Rows that are to be there already are forgotten.
    pub fn begin(&mut self, header: &StoreHeader, shard_idx: u32, n_rows: usize) {
        self.clear();
        self.grad.begin(self.head_bytes(header, shard_idx, n_rows), n_rows.saturating_mul(header.stride()));
    }

    /// Length of the head of a shard of `n_rows` rows.
    fn head_bytes(&self, header: &StoreHeader, shard_idx: u32, n_rows: usize) -> usize {
        let (stride, shape) = (header.stride_numbers(), [n_rows]);
        let mut table = vec![
            ("grad", dtype(header.row_type), vec![n_rows, stride], n_rows * header.stride()),
            ("example_id", Dtype::U64, shape.to_vec(), 8 * n_rows),
        ];
        let facts = [("norm", true), ("scale", header.row_type.has_scale()), ("error", has_error(header))];
        table.extend(facts.into_iter().filter(|f| f.1).map(|f| (f.0, Dtype::F32, shape.to_vec(), 4 * n_rows)));
        let table: Vec<_> = table.iter().map(|t| (t.0, t.1, t.2.as_slice(), t.3)).collect();
        tensors::head(&table, &self.metadata(header, shard_idx)).map_or(0, |head| head.len())
    }

    /// Bytes of the rows so far.
    pub fn n_bytes(&self) -> usize {
        self.grad.len()
    }

    /// Takes rows in standard layout, which are known to be finite and to fit the row type; `lost` is what each lost before
    /// (nothing for rows that come from their maker). Large blocks are coded on all threads.
    ///
    /// A norm is that of the row as stored, summed in f64 in fixed lanes and narrowed once.
    pub fn push(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>, header: &StoreHeader, lost: Option<&[f32]>) {
        let (row_type, stride, dim) = (header.row_type, header.stride(), rows.ncols());
        let numbers = rows.to_slice().expect("rows are in standard layout");
        self.ids.extend(ids.iter().map(|id| id.to_u64()));
        let store = |i: usize, bytes: &mut [u8]| {
            let (bytes, filling) = bytes.split_at_mut(row_type.row_bytes(dim));
            filling.fill(0);
            let found = stored(&numbers[i * dim..(i + 1) * dim], row_type, bytes);
            let before = lost.map_or(0.0, |lost| lost[i]);
            Encoded { error: round_up(f64::from(found.error) + f64::from(before)), ..found }
        };
        let places = self.grad.more(ids.len() * stride);
        let found: Vec<Encoded> = if numbers.len() < PARALLEL_NUMBERS {
            places.chunks_mut(stride).enumerate().map(|(i, bytes)| store(i, bytes)).collect()
        } else {
            let least = (PARALLEL_NUMBERS / 4).div_ceil(dim.max(1));
            let places = places.par_chunks_mut(stride).enumerate().with_min_len(least);
            places.map(|(i, bytes)| store(i, bytes)).collect()
        };
        self.norms.extend(found.iter().map(|f| f.norm));
        if row_type.has_scale() {
            self.scales.extend(found.iter().map(|f| f.scale));
        }
        if has_error(header) {
            self.errors.extend(found.iter().map(|f| f.error));
        }
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
        let row = &view.row(i)[..header.row_type.row_bytes(header.spec.dim)];
        let (bytes, filling) = self.grad.more(header.stride()).split_at_mut(row.len());
        bytes.copy_from_slice(row);
        filling.fill(0);
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
            Tensor::new("grad", dtype(header.row_type), &shape, &*self.grad),
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

/// Writes one row as the row type has it.
fn stored(row: &[f32], row_type: RowType, bytes: &mut [u8]) -> Encoded {
    match row_type {
        RowType::F32 => {
            bytes.copy_from_slice(bytemuck::cast_slice(row));
            let squares = squares(row);
            Encoded { scale: 1.0, norm: squares.sqrt() as f32, error: 0.0 }
        }
        RowType::Bf16 => halves(row, bytes, to_bf16),
        RowType::F16 => halves(row, bytes, |row, bits, wide| {
            let halves: &mut [f16] = bytemuck::cast_slice_mut(bits);
            halves.convert_from_f32_slice(row);
            halves.convert_to_f32_slice(wide);
        }),
        RowType::Int8 | RowType::Int4 => quant::encode(row, row_type, bytes),
    }
}

/// Writes one row in two bytes a number, part by part: so the numbers as they will be read are at hand for what is known of the row.
fn halves(row: &[f32], bytes: &mut [u8], round: impl Fn(&[f32], &mut [u16], &mut [f32])) -> Encoded {
    /// Numbers of a part: what is made of them stays in the first cache. A multiple of [`LANES`].
    const PART: usize = 1024;
    // Room of an even address, and the numbers as they will be read.
    let (mut bits, mut wide) = ([0u16; PART], [0.0f32; PART]);
    let mut lanes = [[0.0f64; LANES]; 2];
    for (row, bytes) in row.chunks(PART).zip(bytes.chunks_mut(2 * PART)) {
        let (bits, wide) = (&mut bits[..row.len()], &mut wide[..row.len()]);
        round(row, bits, wide);
        bytes.copy_from_slice(bytemuck::cast_slice(bits));
        rest_and_squares(row, wide, &mut lanes);
    }
    let [rest, squares] = lanes.map(|lanes| lanes.iter().sum::<f64>());
    Encoded { scale: 1.0, norm: squares.sqrt() as f32, error: quant::bound(rest, row.len()) }
}

wide! {
    /// Rounds finite numbers that fit to bfloat16, ties to even: its bits, and the numbers that they are.
    fn to_bf16 / to_bf16_at (row: &[f32], bits: &mut [u16], wide: &mut [f32]) {
        for ((&x, bits), wide) in row.iter().zip(bits).zip(wide) {
            let x = x.to_bits();
            let rounded = x + 0x7FFF + (x >> 16 & 1);
            *bits = (rounded >> 16) as u16;
            *wide = f32::from_bits(rounded & 0xFFFF_0000);
        }
    }
}

wide! {
    /// Adds `(x − y)²` and `y²` to f64 sums in [`LANES`] lanes, number `i` to lane `i mod LANES`: one result on every machine, and no
    /// chain of additions that each wait for the one before.
    fn rest_and_squares / rest_and_squares_at (x: &[f32], y: &[f32], lanes: &mut [[f64; LANES]; 2]) {
        let [mut rests, mut squares] = *lanes;
        let mut take = |x: &[f32], y: &[f32]| {
            for (((rest, square), &x), &y) in rests.iter_mut().zip(&mut squares).zip(x).zip(y) {
                let (x, y) = (f64::from(x), f64::from(y));
                *rest += (x - y) * (x - y);
                *square += y * y;
            }
        };
        let ((xs, x_last), (ys, y_last)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        xs.iter().zip(ys).for_each(|(x, y)| take(x, y));
        take(x_last, y_last);
        *lanes = [rests, squares];
    }
}

wide! {
    /// `Σ y²` in the same lanes.
    fn squares / squares_at (row: &[f32]) -> f64 {
        let mut squares = [0.0f64; LANES];
        let mut take = |x: &[f32]| {
            squares.iter_mut().zip(x).for_each(|(square, &x)| *square += f64::from(x) * f64::from(x));
        };
        let (chunks, last) = row.as_chunks::<LANES>();
        chunks.iter().for_each(|chunk| take(chunk));
        take(last);
        squares.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::wide::levels;

    #[test]
    fn bfloat16_is_rounded_to_nearest_and_every_twin_gives_the_same() {
        let row: Vec<f32> = (0..4099u32).map(|i| f32::from_bits(i.wrapping_mul(0x0102_7331) % 0x7F00_0000)).collect();
        let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0, 0.0, -0.0, f32::from_bits(0x0000_8000)];
        let row = [&row[..], &ties].concat();
        let mut wanted = vec![bf16::ZERO; row.len()];
        wanted.convert_from_f32_slice(&row);
        for level in levels() {
            let (mut bits, mut wide) = (vec![0; row.len()], vec![0.0; row.len()]);
            to_bf16_at(level, &row, &mut bits, &mut wide);
            assert!(bits.iter().zip(&wanted).all(|(bits, wanted)| *bits == wanted.to_bits()), "{level:?}");
            assert!(wide.iter().zip(&wanted).all(|(wide, wanted)| wide.to_bits() == wanted.to_f32().to_bits()));
            let small: Vec<f32> = row.iter().map(|x| x % 3.0).collect();
            let sums = |level, x, y| {
                let mut lanes = [[0.0; LANES]; 2];
                rest_and_squares_at(level, x, y, &mut lanes);
                lanes.map(|lanes| lanes.iter().sum::<f64>().to_bits())
            };
            assert_eq!(sums(level, &small, &wide), sums(levels()[0], &small, &wide), "{level:?}");
            assert_eq!(squares_at(level, &small).to_bits(), sums(level, &wide, &small)[1], "{level:?}");
        }
    }
}
