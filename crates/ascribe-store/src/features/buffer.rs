//! Rows that wait for their shard to be full, and how they become its files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use ascribe_core::{Digest, ExampleId, RowType};
use ndarray::ArrayView2;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::FEATURES_FORMAT_VERSION;
use super::fit;
use super::layout::StoreHeader;
use super::quant::{self, Encoded, round_up};
use super::shard::{dtype, has_error};
use super::view::ShardView;
use crate::error::StoreError;
use crate::room::Room;
use crate::tensors::{self, Tensor};
use crate::wide::{add_square, wide};

/// Fewer numbers are coded where they are pushed. Handing them to other threads takes some 50 microseconds, in which one thread rounds
/// half as many to two bytes and codes a quarter as many; and the other processors have shards to hash, to sum up and to write.
const fn parallel_numbers(row_type: RowType) -> usize {
    match row_type {
        RowType::F16 | RowType::Bf16 => 1 << 18,
        RowType::F32 | RowType::Int8 | RowType::Int4 => 1 << 20,
    }
}

/// Lanes of the f64 sums of a row: four chains of additions where a register holds eight of them, so that none waits for itself.
const LANES: usize = 32;

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

    /// Takes rows in standard layout; `lost` is what each lost before (nothing for rows that come from their maker). Large blocks are
    /// coded on all threads. If a number does not fit the row type no row is taken, and the first row with such a one is told.
    ///
    /// A norm is that of the row as stored, summed in f64 in fixed lanes and narrowed once.
    pub fn push(
        &mut self,
        ids: &[ExampleId],
        rows: ArrayView2<'_, f32>,
        header: &StoreHeader,
        lost: Option<&[f32]>,
    ) -> Result<(), usize> {
        let (row_type, stride, dim) = (header.row_type, header.stride(), rows.ncols());
        let numbers = rows.to_slice().expect("rows are in standard layout");
        let (limit, first_bad) = (fit::limit(row_type), AtomicUsize::new(usize::MAX));
        let store = |i: usize, bytes: &mut [u8]| {
            let row = &numbers[i * dim..(i + 1) * dim];
            let (bytes, filling) = bytes.split_at_mut(row_type.row_bytes(dim));
            filling.fill(0);
            let Some(found) = stored(row, row_type, limit, bytes) else {
                first_bad.fetch_min(i, Ordering::Relaxed);
                return Encoded { scale: 0.0, norm: 0.0, error: 0.0 };
            };
            let before = lost.map_or(0.0, |lost| lost[i]);
            Encoded { error: round_up(f64::from(found.error) + f64::from(before)), ..found }
        };
        let len_before = self.grad.len();
        let (places, parallel) = (self.grad.more(ids.len() * stride), parallel_numbers(row_type));
        let found: Vec<Encoded> = if numbers.len() < parallel {
            places.chunks_mut(stride).enumerate().map(|(i, bytes)| store(i, bytes)).collect()
        } else {
            let least = (parallel / 4).div_ceil(dim.max(1));
            let places = places.par_chunks_mut(stride).enumerate().with_min_len(least);
            places.map(|(i, bytes)| store(i, bytes)).collect()
        };
        let first_bad = first_bad.into_inner();
        if first_bad != usize::MAX {
            self.grad.truncate(len_before);
            return Err(first_bad);
        }
        self.ids.extend(ids.iter().map(|id| id.to_u64()));
        self.norms.extend(found.iter().map(|f| f.norm));
        if row_type.has_scale() {
            self.scales.extend(found.iter().map(|f| f.scale));
        }
        if has_error(header) {
            self.errors.extend(found.iter().map(|f| f.error));
        }
        Ok(())
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
            // Every number of the others is there once or nearly: a dictionary of them is made and thrown away.
            .set_dictionary_enabled(false)
            .set_column_dictionary_enabled(ColumnPath::from("dataset_id"), true)
            .set_column_dictionary_enabled(ColumnPath::from("shard"), true)
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

/// Writes one row as the row type has it; none if a number of it is not below `limit`.
fn stored(row: &[f32], row_type: RowType, limit: f32, bytes: &mut [u8]) -> Option<Encoded> {
    match row_type {
        RowType::Int8 | RowType::Int4 => quant::encode(row, row_type, bytes),
        _ if !fit::all_fit(row, limit) => None,
        RowType::F32 => {
            bytes.copy_from_slice(bytemuck::cast_slice(row));
            let squares = squares(row);
            Some(Encoded { scale: 1.0, norm: squares.sqrt() as f32, error: 0.0 })
        }
        RowType::Bf16 => Some(known(to_bf16(row, bytes), row.len())),
        RowType::F16 => Some(known(to_f16(row, bytes), row.len())),
    }
}

/// What is known of a row in two bytes a number, from `Σ (x − y)²` and `Σ y²`.
fn known([rest, squares]: [f64; 2], n: usize) -> Encoded {
    Encoded { scale: 1.0, norm: squares.sqrt() as f32, error: quant::bound(rest, n) }
}

/// Adds `(x − y)²` and `y²`, where `y` is `x` rounded to fewer digits, so that the difference is exact in f32: it is a multiple of the
/// last digit of `x` and no longer than `x`.
#[inline(always)]
fn add_rest_and_square<const FMA: bool>(rest: &mut f64, square: &mut f64, x: f32, y: f32) {
    *rest = add_square::<FMA>(*rest, x - y);
    *square = add_square::<FMA>(*square, y);
}

/// A type of two bytes. A trait and no closure: a long closure stays a call, and the loop around it one of single numbers.
trait Round {
    /// The bits of a finite number that fits, ties to even, and the number that they are; without branches.
    fn round(x: f32) -> (u16, f32);
}

struct Bf16;

impl Round for Bf16 {
    #[inline(always)]
    fn round(x: f32) -> (u16, f32) {
        let x = x.to_bits();
        let rounded = x + 0x7FFF + (x >> 16 & 1);
        ((rounded >> 16) as u16, f32::from_bits(rounded & 0xFFFF_0000))
    }
}

struct F16;

impl Round for F16 {
    #[inline(always)]
    fn round(x: f32) -> (u16, f32) {
        /// 2⁻¹⁴, the least normal number of binary16.
        const NORMAL_MIN: u32 = 0x3880_0000;
        let (bits, sign) = (x.to_bits() & 0x7FFF_FFFF, x.to_bits() & 0x8000_0000);
        // Normal: ten digits stay of 23, and the exponent counts from −15 in the place of −127.
        let rounded = (bits + 0x0FFF + (bits >> 13 & 1)) & 0xFFFF_E000;
        // Below: multiples of 2⁻²⁴, which is the last digit of numbers from ½ to 1.
        let small = f32::from_bits(bits) + 0.5;
        let is_normal = bits >= NORMAL_MIN;
        let half = if is_normal { (rounded >> 13).wrapping_sub(112 << 10) } else { small.to_bits() & 0x7FF };
        let wide = if is_normal { rounded } else { (small - 0.5).to_bits() };
        ((half | sign >> 16) as u16, f32::from_bits(wide | sign))
    }
}

/// Writes the rounded numbers. The sums are in [`LANES`] lanes, number `i` in lane `i mod LANES`: one result on every machine.
#[inline(always)]
fn rounded<const FMA: bool, R: Round>(row: &[f32], bytes: &mut [u8]) -> [f64; 2] {
    let (mut rests, mut squares) = ([0.0f64; LANES], [0.0f64; LANES]);
    let mut take = |row: &[f32; LANES], bits: &mut [[u8; 2]; LANES]| {
        for i in 0..LANES {
            let (own, y) = R::round(row[i]);
            bits[i] = own.to_le_bytes();
            add_rest_and_square::<FMA>(&mut rests[i], &mut squares[i], row[i], y);
        }
    };
    let (chunks, last) = row.as_chunks::<LANES>();
    let (places, last_places) = bytes.as_chunks_mut::<2>().0.as_chunks_mut::<LANES>();
    chunks.iter().zip(places).for_each(|(row, bits)| take(row, bits));
    let (mut filled_up, mut bits) = ([0.0; LANES], [[0; 2]; LANES]);
    filled_up[..last.len()].copy_from_slice(last);
    take(&filled_up, &mut bits);
    last_places.copy_from_slice(&bits[..last.len()]);
    [quant::folded(rests), quant::folded(squares)]
}

wide! {
    fn to_bf16 / to_bf16_at (row: &[f32], bytes: &mut [u8]) -> [f64; 2] {
        rounded::<FMA, Bf16>(row, bytes)
    }
}

wide! {
    fn to_f16 / to_f16_at (row: &[f32], bytes: &mut [u8]) -> [f64; 2] {
        rounded::<FMA, F16>(row, bytes)
    }
}

wide! {
    /// `Σ y²` in the same lanes.
    fn squares / squares_at (row: &[f32]) -> f64 {
        let mut squares = [0.0f64; LANES];
        let (chunks, last) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                squares[i] = add_square::<FMA>(squares[i], chunk[i]);
            }
        }
        squares.iter_mut().zip(last).for_each(|(square, &x)| *square = add_square::<FMA>(*square, x));
        quant::folded(squares)
    }
}

#[cfg(test)]
mod tests {
    use half::slice::HalfFloatSliceExt;
    use half::{bf16, f16};

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
            let mut bytes = vec![0; 2 * row.len()];
            to_bf16_at(level, &row, &mut bytes);
            let bits: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
            assert!(bits.iter().zip(&wanted).all(|(bits, wanted)| *bits == wanted.to_bits()), "{level:?}");
        }
    }

    /// Every binary16, the numbers half way between two, and those beside these.
    #[test]
    fn binary16_is_rounded_to_nearest_by_every_twin() {
        let all = (0..0x7C00u16).map(|bits| f16::from_bits(bits).to_f32().to_bits());
        let mut row: Vec<f32> = Vec::new();
        for (low, high) in all.clone().zip(all.skip(1)) {
            let (low, high) = (f64::from(f32::from_bits(low)), f64::from(f32::from_bits(high)));
            let middle = ((low + high) / 2.0) as f32;
            for x in [low as f32, middle, middle.next_down(), middle.next_up()] {
                row.extend([x, -x]);
            }
        }
        row.extend([65504.0, 65519.996, -65519.996, f32::from_bits(1), -1e-30, 2f32.powi(-25)]);
        let mut wanted = vec![f16::ZERO; row.len()];
        wanted.convert_from_f32_slice(&row);
        for level in levels() {
            let mut bytes = vec![0; 2 * row.len()];
            to_f16_at(level, &row, &mut bytes);
            for ((bytes, wanted), x) in bytes.as_chunks::<2>().0.iter().zip(&wanted).zip(&row) {
                assert_eq!(u16::from_le_bytes(*bytes), wanted.to_bits(), "{x:e} {level:?}");
                assert_eq!(F16::round(*x).1.to_bits(), wanted.to_f32().to_bits(), "{x:e}");
            }
        }
    }

    /// On every level and for both types the same bits, which are close to sums made number by number the other way round.
    #[test]
    fn what_is_known_of_a_row_is_the_same_from_every_twin() {
        for n in [0, 1, 31, 32, 33, 1023, 1024, 1300] {
            let row: Vec<f32> =
                (0..n).map(|i| ((i * 7919 % 2003) as f32 / 300.0 - 3.1) * 2f32.powi(i % 40 - 30)).collect();
            let mut bytes = vec![0; 2 * row.len()];
            let near = |found: f64, wanted: f64| (found - wanted).abs() <= 1e-12 * wanted;
            let sums = |y: &dyn Fn(f32) -> f32| {
                let of = |f: &dyn Fn(f32) -> f64| row.iter().rev().map(|&x| f(x)).sum::<f64>();
                [of(&|x| (f64::from(x) - f64::from(y(x))).powi(2)), of(&|x| f64::from(y(x)).powi(2))]
            };
            let wanted = sums(&|x| bf16::from_f32(x).to_f32());
            let found = to_bf16_at(levels()[0], &row, &mut bytes);
            assert!(near(found[0], wanted[0]) && near(found[1], wanted[1]), "{n}: {found:?} {wanted:?}");
            let wanted_half = sums(&|x| f16::from_f32(x).to_f32());
            let halves = to_f16_at(levels()[0], &row, &mut bytes);
            assert!(
                near(halves[0], wanted_half[0]) && near(halves[1], wanted_half[1]),
                "{n}: {halves:?} {wanted_half:?}"
            );
            let wide: Vec<f32> = row.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            for level in levels() {
                assert_eq!(
                    to_bf16_at(level, &row, &mut bytes).map(f64::to_bits),
                    found.map(f64::to_bits),
                    "{n} {level:?}"
                );
                assert_eq!(
                    to_f16_at(level, &row, &mut bytes).map(f64::to_bits),
                    halves.map(f64::to_bits),
                    "{n} {level:?}"
                );
                assert_eq!(squares_at(level, &wide).to_bits(), found[1].to_bits(), "{n} {level:?}");
            }
        }
    }
}
