//! A committed shard, mapped: its checked head, and its bytes as rows.

use std::borrow::Cow;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ascribe_core::RowType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use safetensors::tensor::Dtype;

use super::copies::{Beside, Places, RowCopies};
use super::layout::StoreHeader;
use super::leaves::{self, Leaves};
use super::manifest::ShardEntry;
use super::quant;
use super::view::ShardView;
use crate::error::StoreError;
use crate::mmap::{Advice, Map};
use crate::tensors::{ALIGN, Table};
use crate::wide::wide;

/// A mapped shard. Its bytes are checked before the first row leaves it: group by group where it has leaves, else as a whole.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    bytes: Bytes,
    layout: ShardLayout,
    blake3_expected: String,
    /// BLAKE3 of the bytes, computed at first use.
    blake3_found: OnceLock<String>,
    /// Read at first use; none if it has none that are its own.
    leaves: OnceLock<Option<Leaves>>,
}

/// Where the bytes of a shard are.
#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    /// Fetched from an object store. Eight bytes at a time, so that every number is aligned.
    Owned(Vec<u64>, usize),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(words, len) => &bytemuck::cast_slice(words)[..*len],
        }
    }
}

/// What a shard's head says: where its tensors are.
#[derive(Clone, Debug)]
struct ShardLayout {
    row_type: RowType,
    dim: usize,
    stride: usize,
    n_rows: usize,
    grad: Range<usize>,
    ids: Range<usize>,
    norms: Range<usize>,
    scales: Option<Range<usize>>,
    errors: Option<Range<usize>>,
}

impl ShardLayout {
    /// Checks the head of the shard file `bytes` against header and manifest.
    fn read(path: &Path, bytes: &[u8], header: &StoreHeader, entry: &ShardEntry) -> Result<Self, StoreError> {
        let (row_type, n_rows) = (header.row_type, entry.rows as usize);
        let table = Table::read(path, bytes)?;
        let store = table.key(path, "ascribe.store")?;
        if store != header.uuid {
            return Err(StoreError::malformed(path, "store that the shard belongs to", &header.uuid, store));
        }
        let range = |name, dtype, shape: &[usize]| {
            let range = table.range(path, name, dtype, shape)?;
            if range.start % ALIGN != 0 {
                return Err(StoreError::malformed(path, "start of a tensor", "a multiple of 64", range.start));
            }
            Ok(range)
        };
        let (has_scale, has_error) = (row_type.has_scale(), has_error(header));
        Ok(Self {
            row_type,
            dim: header.spec.dim,
            stride: header.stride(),
            n_rows,
            grad: range("grad", dtype(row_type), &[n_rows, header.stride_numbers()])?,
            ids: range("example_id", Dtype::U64, &[n_rows])?,
            norms: range("norm", Dtype::F32, &[n_rows])?,
            scales: has_scale.then(|| range("scale", Dtype::F32, &[n_rows])).transpose()?,
            errors: has_error.then(|| range("error", Dtype::F32, &[n_rows])).transpose()?,
        })
    }
}

/// True if shards of this store carry error bounds: every type but f32 loses something.
pub(crate) fn has_error(header: &StoreHeader) -> bool {
    header.row_type != RowType::F32 && !header.is_v1()
}

/// Type of the `grad` tensor.
pub(crate) fn dtype(row_type: RowType) -> Dtype {
    match row_type {
        RowType::F32 => Dtype::F32,
        RowType::Bf16 => Dtype::BF16,
        RowType::F16 => Dtype::F16,
        RowType::Int8 => Dtype::I8,
        RowType::Int4 => Dtype::U8,
    }
}

impl Shard {
    /// Maps the file and checks its length, shape and first and last id against the manifest.
    pub fn open(path: &Path, header: &StoreHeader, entry: &ShardEntry) -> Result<Self, StoreError> {
        check_len(path, entry.bytes)?;
        Self::of(path, Bytes::Mapped(Map::open(path)?), header, entry)
    }

    /// The same for bytes that were fetched.
    pub fn from_bytes(path: &Path, bytes: &[u8], header: &StoreHeader, entry: &ShardEntry) -> Result<Self, StoreError> {
        if bytes.len() as u64 != entry.bytes {
            let (expected, found) = (entry.bytes, bytes.len() as u64);
            return Err(StoreError::WrongLength { path: path.to_path_buf(), expected, found });
        }
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self::of(path, Bytes::Owned(words, bytes.len()), header, entry)
    }

    fn of(path: &Path, bytes: Bytes, header: &StoreHeader, entry: &ShardEntry) -> Result<Self, StoreError> {
        if let Bytes::Mapped(map) = &bytes {
            // Of a shard that is not in the page cache, three pages are wanted and not the mebibytes around them.
            map.advise(Advice::FewPages);
        }
        let layout = ShardLayout::read(path, &bytes, header, entry)?;
        let (path, blake3_expected) = (path.to_path_buf(), entry.blake3.clone());
        let shard =
            Self { path, bytes, layout, blake3_expected, blake3_found: OnceLock::new(), leaves: OnceLock::new() };
        let view = shard.unchecked();
        let found = (view.ids.first().map(|_| view.id(0)), view.ids.last().map(|_| view.id(view.n_rows - 1)));
        if found != (Some(entry.first_id), Some(entry.last_id)) {
            let expected = format!("{} … {}", entry.first_id, entry.last_id);
            return Err(StoreError::malformed(&shard.path, "first and last example", expected, format!("{found:?}")));
        }
        // Head and last ids were looked at: with large pages that is some mebibytes of every shard.
        shard.advise(Advice::DontNeed);
        shard.advise(Advice::Normal);
        Ok(shard)
    }

    /// Rows of the shard, dead ones too.
    pub fn n_rows(&self) -> usize {
        self.layout.n_rows
    }

    /// Refuses the shard if its bytes are not the committed ones. Hashes once; later calls are free.
    pub fn check_bytes(&self) -> Result<(), StoreError> {
        let found = self.blake3_found.get_or_init(|| blake3::hash(&self.bytes).to_hex().to_string());
        if *found != self.blake3_expected {
            let (path, expected) = (self.path.clone(), self.blake3_expected.clone());
            return Err(StoreError::WrongChecksum { path, expected, found: found.clone() });
        }
        Ok(())
    }

    /// The rows as they lie, after [`Shard::check_bytes`].
    pub fn view(&self) -> Result<ShardView<'_>, StoreError> {
        self.check_bytes()?;
        Ok(self.unchecked())
    }

    /// The rows as they lie, after checking what the rows `rows` are read from: their numbers, ids, norms, scales and errors,
    /// and the head. The others must not be looked at.
    pub fn view_of(&self, rows: impl IntoIterator<Item = Range<usize>>) -> Result<ShardView<'_>, StoreError> {
        if self.blake3_found.get().is_some() {
            return self.view();
        }
        let Some(leaves) = self.leaves() else { return self.view() };
        self.check_rows(rows, |range| leaves.check(&self.bytes, range))?;
        Ok(self.unchecked())
    }

    fn leaves(&self) -> Option<&Leaves> {
        let read = || Leaves::read(&self.path, self.bytes.len(), &self.blake3_expected);
        self.leaves.get_or_init(read).as_ref()
    }

    /// Hands every range of bytes that rows are read from to `check`: the head, their numbers and facts.
    fn check_rows(
        &self,
        rows: impl IntoIterator<Item = Range<usize>>,
        check: impl Fn(Range<usize>) -> Result<(), (String, String)>,
    ) -> Result<(), StoreError> {
        let ShardLayout { stride, grad, ids, norms, scales, errors, .. } = &self.layout;
        let starts = [Some(grad), Some(ids), Some(norms), scales.as_ref(), errors.as_ref()].into_iter().flatten();
        let head = 0..starts.map(|range| range.start).min().unwrap_or(0);
        let check = |range: Range<usize>| {
            check(range).map_err(|(expected, found)| {
                let path = self.path.clone();
                StoreError::WrongChecksum { path, expected, found }
            })
        };
        check(head)?;
        for rows in rows {
            let of = |tensor: &Range<usize>, width: usize| {
                tensor.start + rows.start * width..tensor.start + rows.end * width
            };
            check(of(grad, *stride))?;
            check(of(ids, 8))?;
            for tensor in [Some(norms), scales.as_ref(), errors.as_ref()].into_iter().flatten() {
                check(of(tensor, 4))?;
            }
        }
        Ok(())
    }

    /// Copies rows, and what is known of them, after checking what they are read from. No page of a shard with leaves becomes one of
    /// this process; one without is hashed whole first.
    pub fn copy_rows(&self, rows: &[u32], beside: Beside, out: &mut RowCopies) -> Result<(), StoreError> {
        let copy = |range: Range<usize>, out: &mut [u8]| match &self.bytes {
            Bytes::Mapped(map) => map.copy(range, out),
            owned => out.copy_from_slice(&owned[range]),
        };
        match self.leaves().filter(|_| self.blake3_found.get().is_none()) {
            Some(leaves) => {
                let rows = rows.iter().map(|&row| row as usize..row as usize + 1);
                self.check_rows(rows, |range| leaves.check_copied(self.bytes.len(), range, copy))?;
            }
            None if self.blake3_found.get().is_none() => {
                self.check_bytes()?;
                self.advise(Advice::DontNeed);
            }
            None => self.check_bytes()?,
        }
        let ShardLayout { row_type, dim, stride, grad, ids, norms, scales, errors, .. } = &self.layout;
        let (row_type, dim, stride, grad) = (*row_type, *dim, *stride, grad.start);
        let (scales, errors) = (scales.as_ref(), errors.as_ref());
        let places = Places { row_type, dim, stride, grad, ids, norms, scales, errors };
        out.fill(&places, rows, beside, copy);
        Ok(())
    }

    /// Brings rows and their facts into the page cache.
    pub fn read_ahead(&self, rows: Range<usize>) {
        let Bytes::Mapped(map) = &self.bytes else { return };
        let ShardLayout { stride, grad, norms, scales, errors, .. } = &self.layout;
        let facts = [Some(norms), scales.as_ref(), errors.as_ref()].into_iter().flatten().map(|fact| (fact, 4));
        for (tensor, width) in [(grad, *stride)].into_iter().chain(facts) {
            map.read_ahead(tensor.start + rows.start * width..tensor.start + rows.end * width);
        }
    }

    /// Refuses leaves that are there and are not this shard's. They do no harm; [`super::FeatureStore::verify`] tells of them.
    pub fn check_leaves(&self) -> Result<(), StoreError> {
        let path = leaves::path_of(&self.path);
        if path.exists() && Leaves::read(&self.path, self.bytes.len(), &self.blake3_expected).is_none() {
            let expected = format!("leaves of {}", self.blake3_expected);
            return Err(StoreError::malformed(&path, "leaves", expected, "others (hint: delete the file)"));
        }
        Ok(())
    }

    /// The rows as they lie, not hashed: for ids and norms that are only listed.
    pub fn unchecked(&self) -> ShardView<'_> {
        let ShardLayout { row_type, dim, stride, n_rows, grad, ids, norms, scales, errors } = &self.layout;
        let floats = |range: &Range<usize>| bytemuck::cast_slice::<u8, f32>(&self.bytes[range.clone()]);
        ShardView {
            row_type: *row_type,
            n_rows: *n_rows,
            dim: *dim,
            stride_bytes: *stride,
            rows: &self.bytes[grad.clone()],
            scale: scales.as_ref().map(floats),
            norm: floats(norms),
            error: errors.as_ref().map(floats),
            ids: bytemuck::cast_slice(&self.bytes[ids.clone()]),
            dead: &[],
        }
    }

    /// Rows `range` as f32 `[n, dim]`: borrowed from the map for f32 without padding, widened for the others.
    pub fn rows(&self, range: Range<usize>) -> Result<CowArray<'_, f32, Ix2>, StoreError> {
        let view = self.view_of([range.clone()])?;
        let shape = (range.len(), view.dim);
        if view.row_type == RowType::F32 && view.stride_bytes == 4 * view.dim {
            let bytes = &view.rows[range.start * view.stride_bytes..range.end * view.stride_bytes];
            let rows = ArrayView2::from_shape(shape, bytemuck::cast_slice(bytes));
            return Ok(CowArray::from(rows.expect("a range of rows has the rows' shape")));
        }
        Ok(CowArray::from(widened(&view, range.len(), range)))
    }

    /// The same for single rows.
    pub fn rows_at(&self, rows: &[u32]) -> Result<CowArray<'_, f32, Ix2>, StoreError> {
        let view = self.view_of(rows.iter().map(|&row| row as usize..row as usize + 1))?;
        Ok(CowArray::from(widened(&view, rows.len(), rows.iter().map(|&row| row as usize))))
    }

    /// Tells the system how the shard's pages will be used.
    pub fn advise(&self, advice: Advice) {
        if let Bytes::Mapped(map) = &self.bytes {
            map.advise(advice);
        }
    }
}

fn widened(view: &ShardView<'_>, n: usize, rows: impl Iterator<Item = usize>) -> Array2<f32> {
    let mut wide = Array2::zeros((n, view.dim));
    for (mut out, row) in wide.rows_mut().into_iter().zip(rows) {
        view.widen(row, out.as_slice_mut().expect("a fresh row is contiguous"));
    }
    wide
}

/// Widens one stored row.
pub(crate) fn widen_row(row_type: RowType, bytes: &[u8], scale: f32, out: &mut [f32]) {
    match row_type {
        RowType::F32 => out.copy_from_slice(&numbers::<f32>(bytes, out.len())),
        RowType::Bf16 => widen_bf16(bytes, out),
        RowType::F16 => numbers::<f16>(bytes, out.len()).convert_to_f32_slice(out),
        RowType::Int8 | RowType::Int4 => quant::decode(bytes, scale, row_type, out),
    }
}

wide! {
    /// Bfloat16 as f32, which begins with the same bits.
    fn widen_bf16 / widen_bf16_at (bytes: &[u8], out: &mut [f32]) {
        for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}

/// The first `n` numbers of a row; copied if they do not lie on a multiple of their size, which a row in a buffer need not.
fn numbers<T: bytemuck::Pod>(bytes: &[u8], n: usize) -> Cow<'_, [T]> {
    let bytes = &bytes[..n * size_of::<T>()];
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => Cow::Borrowed(numbers),
        Err(_) => Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()),
    }
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::wide::levels;

    #[test]
    fn every_bfloat16_is_widened_by_every_twin_to_itself() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        for level in levels() {
            let mut wide = vec![0.0; bits.len()];
            widen_bf16_at(level, &bytes, &mut wide);
            for (wide, &bits) in wide.iter().zip(&bits) {
                let wanted = bf16::from_bits(bits).to_f32();
                // The type's own widening makes a quiet NaN of a signalling one; a store has neither.
                assert!(wide.to_bits() == wanted.to_bits() || (wide.is_nan() && wanted.is_nan()), "{level:?} {bits:x}");
            }
        }
    }
}
