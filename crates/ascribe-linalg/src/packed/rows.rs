//! The left operand: rows of f32, or the same rounded once for several products.

use super::layout::{LANES, Line, pair_steps, rounded, to_bf16};
use super::route::{Precision, Route};

/// Rows `[m, k]` as a product reads them.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(super) m: usize,
    pub(super) k: usize,
    /// Words from row to row.
    pub(super) stride: usize,
    pub(super) words: Words<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Words<'a> {
    /// Plain f32.
    F32(&'a [f32]),
    /// f32 that hold bf16 values.
    Rounded(&'a [f32]),
    /// Pairs of bf16.
    Pairs(&'a [Line]),
    /// Pairs of bf16 as somebody else keeps them.
    Bf16(&'a [u16]),
}

impl<'a> Rows<'a> {
    /// `m` rows of `k` numbers, `stride` numbers from row to row, for [`Precision::F32`].
    ///
    /// # Panics
    /// If `data` is too short, or rows overlap (`stride < k`).
    pub fn new(m: usize, k: usize, stride: usize, data: &'a [f32]) -> Self {
        check(m, k, stride, data.len());
        Self { m, k, stride, words: Words::F32(data) }
    }

    /// `m` rows of `k` bf16 numbers as they lie in a file, `stride` numbers from row to row, for [`Precision::Bf16`]; none if
    /// the products of this processor do not take bf16 as it is, or cannot take rows that lie so: the kernels read pairs, and
    /// tiles read 16 rows and 32 numbers at a time (numbers behind `k` meet zeros; they should be finite).
    ///
    /// # Panics
    /// If `data` is too short, or rows overlap.
    pub fn bf16(m: usize, k: usize, stride: usize, data: &'a [u16]) -> Option<Self> {
        check(m, k, stride, data.len());
        let route = Route::best(Precision::Bf16);
        let read = if route.tiles() { 2 * pair_steps(k) } else { k.next_multiple_of(2) };
        let end = m.saturating_sub(1).checked_mul(stride).and_then(|start| start.checked_add(read));
        let lies = stride.is_multiple_of(2) && (!route.tiles() || m.is_multiple_of(LANES));
        let fits = m == 0 || end.is_some_and(|end| end <= data.len());
        (route.pairs() && lies && fits).then_some(Self { m, k, stride: stride / 2, words: Words::Bf16(data) })
    }

    /// Number of rows.
    pub const fn m(&self) -> usize {
        self.m
    }

    /// Numbers per row.
    pub const fn k(&self) -> usize {
        self.k
    }
}

fn check(m: usize, k: usize, stride: usize, len: usize) {
    assert!(m < 2 || stride >= k, "rows of a product overlap");
    let end = m.saturating_sub(1).checked_mul(stride).and_then(|start| start.checked_add(k));
    assert!(m == 0 || end.is_some_and(|end| end <= len), "the rows of a product end behind their slice");
}

/// Memory for rows rounded to bf16: filled once, read by several products. Grows, never shrinks.
#[derive(Clone, Debug, Default)]
pub struct RoundedRows {
    lines: Vec<Line>,
    floats: Vec<f32>,
}

impl RoundedRows {
    /// No rows yet.
    pub const fn new() -> Self {
        Self { lines: Vec::new(), floats: Vec::new() }
    }

    /// Makes `[m, k]` rows ready for `precision`: f32 rows are handed through, bf16 rows are rounded into this memory
    /// (ties to even). Cost of rounding: one pass over the rows.
    ///
    /// # Panics
    /// As [`Rows::new`].
    pub fn prepare<'a>(
        &'a mut self,
        precision: Precision,
        m: usize,
        k: usize,
        stride: usize,
        data: &'a [f32],
    ) -> Rows<'a> {
        match precision {
            Precision::F32 => Rows::new(m, k, stride, data),
            Precision::Bf16 => self.round(Route::best(precision), m, k, stride, data),
        }
    }

    pub(super) fn round(&mut self, route: Route, m: usize, k: usize, stride: usize, data: &[f32]) -> Rows<'_> {
        check(m, k, stride, data.len());
        if !route.pairs() {
            self.floats.clear();
            self.floats.extend((0..m).flat_map(|i| &data[i * stride..i * stride + k]).map(|&x| rounded(x)));
            return Rows { m, k, stride: k, words: Words::Rounded(&self.floats) };
        }
        let row_lines = row_lines(k);
        // AMX reads 16 rows at a time; rows behind the last one may hold anything.
        let needed = m.next_multiple_of(LANES) * row_lines;
        if self.lines.len() < needed {
            self.lines.resize(needed, Line([0; LANES]));
        }
        for (i, lines) in self.lines.chunks_exact_mut(row_lines).take(m).enumerate() {
            round_row(route, &data[i * stride..i * stride + k], &mut lines[..pair_steps(k) / LANES]);
        }
        Rows { m, k, stride: row_lines * LANES, words: Words::Pairs(&self.lines) }
    }
}

/// Lines from row to row: those that the pairs take, and one more where rows would all fall into the same sets of the
/// first cache (multiples of 4 KiB apart).
const fn row_lines(k: usize) -> usize {
    let lines = pair_steps(k) / LANES;
    if lines.is_multiple_of(64) { lines + 1 } else { lines }
}

fn round_row(route: Route, x: &[f32], lines: &mut [Line]) {
    let (whole, rest) = x.as_chunks::<32>();
    let (full, tail) = lines.split_at_mut(whole.len());
    #[cfg(target_arch = "x86_64")]
    if route.pairs() {
        super::avx512::round(whole, full);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no route of this processor takes pairs: {route:?}");
    if let Some(last) = tail.first_mut() {
        let mut padded = [0.0f32; 32];
        padded[..rest.len()].copy_from_slice(rest);
        *last = plain_line(&padded);
    }
}

/// One line of pairs by plain arithmetic.
pub(super) fn plain_line(x: &[f32; 32]) -> Line {
    Line(std::array::from_fn(|i| u32::from(to_bf16(x[2 * i])) | u32::from(to_bf16(x[2 * i + 1])) << 16))
}
