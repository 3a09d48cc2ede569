//! Single rows of a shard, copied out: what a second look at a few of them reads.

use std::ops::Range;

use ascribe_core::RowType;

use super::view::ShardView;

/// What is copied beside the numbers of rows, and their scales.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// Examples: of whoever shows the rows.
    Ids,
    /// Norms and errors: of whoever bounds a product.
    Bounds,
}

/// From so many rows of a shard on all of a fact is read at once, else that of each row.
const WHOLE_FACT_ROWS: usize = 32;

/// Rows and some of what is known of them, one after the other as a shard has them. Memory is kept from use to use.
#[derive(Clone, Debug)]
pub struct RowCopies {
    row_type: RowType,
    n_rows: usize,
    dim: usize,
    stride: usize,
    /// Eight bytes at a time, so that every number is aligned.
    rows: Vec<u64>,
    scale: Vec<f32>,
    norm: Vec<f32>,
    error: Vec<f32>,
    ids: Vec<u64>,
    /// A fact of a whole shard.
    all: Vec<u8>,
}

impl Default for RowCopies {
    fn default() -> Self {
        let (scale, norm, error) = Default::default();
        let (n_rows, dim, stride, rows, ids, all) = Default::default();
        Self { row_type: RowType::F32, n_rows, dim, stride, rows, scale, norm, error, ids, all }
    }
}

/// Where the bytes of a shard are: the start of every tensor.
pub(crate) struct Places<'a> {
    pub row_type: RowType,
    pub dim: usize,
    pub stride: usize,
    pub grad: usize,
    pub ids: &'a Range<usize>,
    pub norms: &'a Range<usize>,
    pub scales: Option<&'a Range<usize>>,
    pub errors: Option<&'a Range<usize>>,
}

impl RowCopies {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the place of what was copied before; `copy` copies bytes of the shard's file.
    pub(crate) fn fill(
        &mut self,
        places: &Places<'_>,
        rows: &[u32],
        beside: Beside,
        copy: impl Fn(Range<usize>, &mut [u8]),
    ) {
        (self.row_type, self.n_rows) = (places.row_type, rows.len());
        (self.dim, self.stride) = (places.dim, places.stride);
        self.rows.clear();
        self.rows.resize((rows.len() * places.stride).div_ceil(8), 0);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.rows);
        for (&row, out) in rows.iter().zip(bytes.chunks_exact_mut(places.stride.max(1))) {
            let start = places.grad + row as usize * places.stride;
            copy(start..start + places.stride, out);
        }
        let all = &mut self.all;
        let mut fact = |place: Option<&Range<usize>>, numbers: &mut Vec<f32>| {
            numbers.clear();
            if let Some(place) = place {
                numbers.resize(rows.len(), 0.0);
                picked(place, 4, rows, bytemuck::cast_slice_mut(numbers), all, &copy);
            }
        };
        let is_bounded = beside == Beside::Bounds;
        fact(places.scales, &mut self.scale);
        fact(Some(places.norms).filter(|_| is_bounded), &mut self.norm);
        fact(places.errors.filter(|_| is_bounded), &mut self.error);
        self.ids.clear();
        if !is_bounded {
            self.ids.resize(rows.len(), 0);
            picked(places.ids, 8, rows, bytemuck::cast_slice_mut(&mut self.ids), all, &copy);
        }
    }

    /// The copies as rows of a shard: row i is the i-th that was asked for. None is said to be dead; what was not asked for is not
    /// there.
    pub fn view(&self) -> ShardView<'_> {
        ShardView {
            row_type: self.row_type,
            n_rows: self.n_rows,
            dim: self.dim,
            stride_bytes: self.stride,
            rows: &bytemuck::cast_slice(&self.rows)[..self.n_rows * self.stride],
            scale: self.row_type.has_scale().then_some(&self.scale),
            norm: &self.norm,
            error: (!self.error.is_empty()).then_some(&self.error),
            ids: &self.ids,
            dead: &[],
        }
    }
}

/// The numbers of `rows` in a tensor of one number of `width` bytes a row.
fn picked(
    place: &Range<usize>,
    width: usize,
    rows: &[u32],
    out: &mut [u8],
    all: &mut Vec<u8>,
    copy: impl Fn(Range<usize>, &mut [u8]),
) {
    let at = |row: u32| row as usize * width..(row as usize + 1) * width;
    if rows.len() < WHOLE_FACT_ROWS {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            let at = at(row);
            copy(place.start + at.start..place.start + at.end, out);
        }
        return;
    }
    all.clear();
    all.resize(place.len(), 0);
    copy(place.clone(), all);
    rows.iter().zip(out.chunks_exact_mut(width)).for_each(|(&row, out)| out.copy_from_slice(&all[at(row)]));
}
