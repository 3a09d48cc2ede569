//! Scores of many rows for a few queries, at the speed of memory: the kernels under exact search.
//!
//! Rows stay as a store keeps them: row-major, every row on a whole number of cache lines, numbers of one [`RowType`].
//! Queries are prepared once ([`Queries`]): rounded to what the kernel multiplies, with the part that rounding lost at hand,
//! so that a caller can bound every score.
//!
//! | rows | up to [`FEW`] queries | more |
//! |---|---|---|
//! | int8, int4 | VNNI (else AVX2 by pairs of bytes), 4 rows × 1–4 queries in registers | AMX int8 tiles over the rows as they lie (int4: spread into bytes in the cache first), else VNNI, else AVX2 over rows widened in the cache |
//! | f32, f16 | widened in registers, 16 lanes of f32 FMA (AVX-512 or AVX2) | widened into the cache, then the f32 product of `packed` |
//! | bf16 | the same | AMX bf16 tiles, else AVX-512's products of bf16 pairs (`vdpbf16ps`), over the rows as they lie (queries rounded to bf16 for both); else as f16 |
//!
//! Integer products are exact, so every route gives the same numbers; plain loops are the twin that tests hold those routes
//! against that the processor under them has (AMX where there is AMX). Float products with few queries have one order (16 lanes of fused multiply-adds, joined as a tree), equal bit for
//! bit to the plain twin; with more they have the order of `packed`. [`Scores`] says how far a product may be off.
//!
//! Here never lives: files, threads, which rows are worth a second look (`select` says which reach a threshold).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod floats;
mod ints;
mod queries;
mod select;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use ints::{Codes, ask_for, dots_at};
pub use queries::{FEW, Queries};
pub use select::{Bounds, Reach, RowFacts, Thresholds, reaching};

use ascribe_core::RowType;

/// Most numbers in a row of integer codes: 127² times this still fits 32 bits.
pub const MAX_CODED_DIM: usize = 1 << 17;

/// Rows as a store keeps them.
#[derive(Clone, Copy, Debug)]
pub enum Lines<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision, as bits.
    F16(&'a [u16]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
    /// Codes, a byte each.
    Int8(&'a [u8]),
    /// Codes, two to a byte, the first in the low half; each is a 4-bit two's complement number.
    Int4(&'a [u8]),
}

impl Lines<'_> {
    /// The row type.
    pub const fn row_type(&self) -> RowType {
        match self {
            Self::F32(_) => RowType::F32,
            Self::F16(_) => RowType::F16,
            Self::Bf16(_) => RowType::Bf16,
            Self::Int8(_) => RowType::Int8,
            Self::Int4(_) => RowType::Int4,
        }
    }

    /// Elements of the slice: numbers, or bytes of codes.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) | Self::Bf16(x) => x.len(),
            Self::Int8(x) | Self::Int4(x) => x.len(),
        }
    }

    /// True if there is nothing.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A block of rows.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The rows.
    pub lines: Lines<'a>,
    /// How many.
    pub n_rows: usize,
    /// Numbers of a row.
    pub dim: usize,
    /// Elements of the slice from row to row.
    pub stride: usize,
}

impl Block<'_> {
    fn check(&self) {
        let width = if matches!(self.lines, Lines::Int4(_)) { self.dim.div_ceil(2) } else { self.dim };
        assert!(self.n_rows < 2 || self.stride >= width, "rows of a block overlap");
        let end = self.n_rows.saturating_sub(1).checked_mul(self.stride).and_then(|start| start.checked_add(width));
        assert!(self.n_rows == 0 || end.is_some_and(|end| end <= self.lines.len()), "a block ends behind its slice");
    }
}

/// Products of a block with queries. Memory is kept from block to block.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    n_rows: usize,
    n_queries: usize,
    by_row: bool,
    /// Numbers from line to line.
    width: usize,
    ints: Vec<i32>,
    floats: Vec<f32>,
    scratch: floats::Scratch,
}

impl Scores {
    /// No products yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Multiplies every row of `block` with every query. Single-threaded.
    ///
    /// With up to [`FEW`] queries, and for rows of floats only: `|product − true product with the prepared query| ≤`
    /// [`Bounds`]; integers are exact. Cost: one pass over the block's bytes, `2 · rows · dim · queries` operations.
    ///
    /// # Panics
    /// If the block ends behind its slice, or the queries were prepared for other rows.
    pub fn multiply(&mut self, block: &Block<'_>, queries: &Queries) {
        block.check();
        assert!(
            queries.row_type() == block.lines.row_type() && queries.dim() == block.dim,
            "the queries were prepared for other rows"
        );
        (self.n_rows, self.n_queries, self.by_row) = (block.n_rows, queries.n(), queries.by_row());
        self.width = if self.by_row { queries.n().next_multiple_of(16) } else { block.n_rows };
        let len = if self.by_row { block.n_rows * self.width } else { queries.n() * self.width };
        match block.lines {
            Lines::Int8(bytes) | Lines::Int4(bytes) => {
                grow(&mut self.ints, len);
                ints::multiply(ints::Route::best(), bytes, block, queries, &mut self.ints[..len], self.width);
            }
            _ => {
                grow(&mut self.floats, len);
                floats::multiply(block, queries, &mut self.floats[..len], self.width, &mut self.scratch);
            }
        }
    }

    /// The product of one row and one query: in units of row scale × query scale for codes.
    pub fn at(&self, row: usize, query: usize, row_type: RowType) -> f64 {
        let at = if self.by_row { row * self.width + query } else { query * self.width + row };
        match row_type {
            RowType::Int8 | RowType::Int4 => f64::from(self.ints[at]),
            _ => f64::from(self.floats[at]),
        }
    }
}

fn grow<T: Clone + Default>(memory: &mut Vec<T>, len: usize) {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
}
