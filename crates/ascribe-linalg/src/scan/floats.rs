//! Products of float rows: 16 lanes of fused multiply-adds for few queries, the products of `packed` for many.
#![allow(clippy::needless_range_loop)] // register tiles are indexed by row
#![allow(unsafe_code)] // vector loads by pointer; lengths are checked where slices become pointers

use super::queries::{Form, Queries};
use super::{Block, Lines};
use crate::elementwise::dispatch::{LANES, kernel, sum_lanes};
use crate::packed::Rows;

/// Rows that are widened together: with 4,096 numbers each they fill a quarter of the second cache.
const TALL: usize = 32;

/// Memory for widened rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    wide: Vec<f32>,
    pairs: Vec<u16>,
}

/// Multiplies all rows with all queries into `out`: `[row][width]` for many queries, `[query][width]` for few.
pub(super) fn multiply(block: &Block<'_>, queries: &Queries, out: &mut [f32], width: usize, scratch: &mut Scratch) {
    match &queries.form {
        Form::Floats { len, numbers } => few(block, queries.n(), *len, numbers, out, width, scratch),
        Form::Packed(matrix) => many(block, matrix, out, width, scratch),
        Form::Codes { .. } => panic!("queries of codes for rows of floats"),
    }
}

/// Many queries: one product for every run of rows.
fn many(block: &Block<'_>, matrix: &crate::packed::PackedMatrix, out: &mut [f32], width: usize, scratch: &mut Scratch) {
    let (n, dim, stride) = (block.n_rows, block.dim, block.stride);
    match block.lines {
        Lines::F32(data) => matrix.multiply(&Rows::new(n, dim, stride, data), 0.0, out, width),
        Lines::Bf16(data) if matrix.precision() == crate::packed::Precision::Bf16 => {
            let whole = n / LANES * LANES;
            let done = match Rows::bf16(whole, dim, stride, data) {
                Some(rows) if whole > 0 => {
                    matrix.multiply(&rows, 0.0, out, width);
                    whole
                }
                _ => 0,
            };
            // The rest, or rows that lie otherwise than tiles need them: copied out, 16 at a time.
            let padded = dim.next_multiple_of(2 * LANES);
            for first in (done..n).step_by(LANES) {
                let tall = (n - first).min(LANES);
                scratch.pairs.clear();
                scratch.pairs.resize(LANES * padded, 0);
                for (r, pairs) in scratch.pairs.chunks_mut(padded.max(1)).enumerate().take(tall) {
                    pairs[..dim].copy_from_slice(&data[(first + r) * stride..][..dim]);
                }
                let rows = Rows::bf16(LANES, dim, padded, &scratch.pairs).expect("rows were laid as tiles need them");
                let mut own = vec![0.0f32; LANES * width];
                matrix.multiply(&rows, 0.0, &mut own, width);
                out[first * width..(first + tall) * width].copy_from_slice(&own[..tall * width]);
            }
        }
        _ => {
            for first in (0..n).step_by(TALL) {
                let tall = (n - first).min(TALL);
                scratch.wide.resize(TALL * dim, 0.0);
                for (r, wide) in scratch.wide.chunks_mut(dim.max(1)).enumerate().take(tall) {
                    widen(block, first + r, wide);
                }
                let rows = Rows::new(tall, dim, dim, &scratch.wide);
                matrix.multiply(&rows, 0.0, &mut out[first * width..], width);
            }
        }
    }
}

/// One row as f32.
fn widen(block: &Block<'_>, row: usize, out: &mut [f32]) {
    let range = row * block.stride..row * block.stride + block.dim;
    match block.lines {
        Lines::F32(x) => out.copy_from_slice(&x[range]),
        Lines::F16(x) => widen_halves(&x[range], out),
        Lines::Bf16(x) => widen_bf16(&x[range], out),
        Lines::Int8(_) | Lines::Int4(_) => panic!("codes are not widened"),
    }
}

/// [`widen_f16`] by the processor's own conversion where there is one: 16 numbers an instruction.
pub(super) fn widen_halves(from: &[u16], to: &mut [f32]) {
    let whole = from.len() / LANES * LANES;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: AVX-512 exists.
        unsafe { widen_lines(from.as_chunks::<LANES>().0, to.as_chunks_mut::<LANES>().0) };
        return widen_f16(&from[whole..], &mut to[whole..]);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
        // SAFETY: AVX and F16C exist.
        unsafe { widen_lines_v3(from.as_chunks::<LANES>().0, to.as_chunks_mut::<LANES>().0) };
        return widen_f16(&from[whole..], &mut to[whole..]);
    }
    let _ = whole;
    widen_f16(from, to);
}

// SAFETY: to be called where AVX and F16C exist.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn widen_lines_v3(from: &[[u16; LANES]], to: &mut [[f32; LANES]]) {
    use std::arch::x86_64::*;
    for (from, to) in from.iter().zip(to) {
        for half in [0, LANES / 2] {
            // SAFETY: 8 numbers on both sides.
            unsafe {
                let eight = _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(half).cast()));
                _mm256_storeu_ps(to.as_mut_ptr().add(half), eight);
            }
        }
    }
}

// SAFETY: to be called where AVX-512 F and BW exist.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen_lines(from: &[[u16; LANES]], to: &mut [[f32; LANES]]) {
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 16 numbers on both sides.
        unsafe { std::arch::x86_64::_mm512_storeu_ps(to.as_mut_ptr(), F16::load(from.as_ptr())) };
    }
}

/// Registers that rows are widened in.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Isa {
    /// AVX2, FMA and F16C: 16 lanes are two registers.
    V3,
    /// AVX-512 F and BW.
    V4,
}

#[cfg(target_arch = "x86_64")]
impl Isa {
    /// Those of this processor, the best last.
    pub fn all() -> impl Iterator<Item = Self> {
        let v3 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let v4 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        v3.then_some(Self::V3).into_iter().chain(v4.then_some(Self::V4))
    }
}

/// Few queries: four rows at a time from registers, or (rows without padding, an old processor) one by one through memory.
fn few(block: &Block<'_>, n: usize, len: usize, numbers: &[f32], out: &mut [f32], width: usize, scratch: &mut Scratch) {
    if n == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        let padded = block.stride >= len && block.lines.len() >= block.n_rows.saturating_sub(1) * block.stride + len;
        if let Some(isa) = Isa::all().last().filter(|_| padded) {
            return registers(isa, block, n, len, numbers, out, width);
        }
    }
    scratch.wide.clear();
    scratch.wide.resize(len, 0.0);
    for row in 0..block.n_rows {
        widen(block, row, &mut scratch.wide[..block.dim]);
        for query in 0..n {
            out[query * width + row] = best_dot(&scratch.wide, &numbers[query * len..(query + 1) * len]);
        }
    }
}

/// Products of padded rows on one instruction set, `[query][row]`.
#[cfg(all(test, target_arch = "x86_64"))]
pub(super) fn few_on(isa: Isa, block: &Block<'_>, queries: ndarray::ArrayView2<'_, f32>) -> Vec<f32> {
    let prepared = Queries::new(block.lines.row_type(), queries);
    let Form::Floats { len, numbers } = &prepared.form else { panic!("few queries for floats") };
    assert!(block.stride >= *len, "padded rows");
    let mut out = vec![0.0; queries.nrows() * block.n_rows];
    registers(isa, block, queries.nrows(), *len, numbers, &mut out, block.n_rows);
    out
}

/// [`fused_dot`] with the processor's own fused multiply-add, where it has one.
pub(super) fn best_dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both.
        return unsafe { dot_v3(a, b) };
    }
    fused_dot(a, b)
}

// SAFETY: to be called where AVX2 and FMA exist; the body is safe code, compiled for them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_v3(a: &[f32], b: &[f32]) -> f32 {
    fused_dot(a, b)
}

/// The plain twin: 16 lanes of fused multiply-adds over whole lines, joined as a tree.
#[inline(always)]
pub(super) fn fused_dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    sum_lanes(lanes)
}

/// Four rows at a time, or one. The caller has asked `isa` of the processor and checked that
/// rows of `len` numbers are whole.
#[cfg(target_arch = "x86_64")]
fn registers(isa: Isa, block: &Block<'_>, n: usize, len: usize, numbers: &[f32], out: &mut [f32], width: usize) {
    assert!(numbers.len() >= n * len && len.is_multiple_of(LANES), "whole lines of queries");
    assert!(
        block.n_rows == 0 || block.lines.len() >= (block.n_rows - 1) * block.stride + len,
        "rows within their slice"
    );
    let mut row = 0;
    while row < block.n_rows {
        // Without AVX-512 row by row: memory is read in one stream, see `avx2`.
        let tall = if isa == Isa::V4 && block.n_rows - row >= 4 { 4 } else { 1 };
        let at = row * block.stride;
        for query in 0..n {
            let q = &numbers[query * len..(query + 1) * len];
            let mut sums = [[0.0f32; LANES]; 4];
            // SAFETY: the instruction set exists, and rows `row..row + tall` of `len` numbers (a multiple of 16) lie within
            // the slice: checked above; `q` has `len` numbers.
            unsafe {
                match block.lines {
                    Lines::F32(x) => rows_of::<f32>(isa, tall, x.as_ptr().add(at), block.stride, q, &mut sums),
                    Lines::F16(x) => rows_of::<F16>(isa, tall, x.as_ptr().add(at), block.stride, q, &mut sums),
                    Lines::Bf16(x) => rows_of::<Bf16>(isa, tall, x.as_ptr().add(at), block.stride, q, &mut sums),
                    Lines::Int8(_) | Lines::Int4(_) => panic!("codes are no floats"),
                }
            }
            for (r, lanes) in sums.iter().enumerate().take(tall) {
                out[query * width + row + r] = sum_lanes(*lanes);
            }
        }
        row += tall;
    }
}

// SAFETY: to be called where `isa` exists, with `tall` rows (four, AVX-512 only, or one) of `query.len()` numbers, a multiple of 16, at `rows`.
#[cfg(target_arch = "x86_64")]
unsafe fn rows_of<W: Wide>(
    isa: Isa,
    tall: usize,
    rows: *const W::Stored,
    stride: usize,
    query: &[f32],
    out: &mut [[f32; LANES]; 4],
) {
    // SAFETY: passed on.
    unsafe {
        match (isa, tall) {
            (Isa::V4, 4) => fused::<W, 4>(rows, stride, query, out),
            (Isa::V4, _) => fused::<W, 1>(rows, stride, query, out),
            (Isa::V3, _) => fused_v3::<W>(rows, query, &mut out[0]),
        }
    }
}

/// How 16 numbers of a row become f32.
#[cfg(target_arch = "x86_64")]
trait Wide {
    type Stored;
    // SAFETY: to be called where AVX-512 F and BW exist, with 16 readable numbers.
    unsafe fn load(at: *const Self::Stored) -> std::arch::x86_64::__m512;
    // SAFETY: to be called where AVX2 and F16C exist, with 8 readable numbers.
    unsafe fn load_v3(at: *const Self::Stored) -> std::arch::x86_64::__m256;
}

#[cfg(target_arch = "x86_64")]
struct F16;
#[cfg(target_arch = "x86_64")]
struct Bf16;

#[cfg(target_arch = "x86_64")]
impl Wide for f32 {
    type Stored = f32;
    // SAFETY: as the trait says.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(at: *const f32) -> std::arch::x86_64::__m512 {
        // SAFETY: 16 readable numbers.
        unsafe { std::arch::x86_64::_mm512_loadu_ps(at) }
    }
    // SAFETY: as the trait says.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_v3(at: *const f32) -> std::arch::x86_64::__m256 {
        // SAFETY: 8 readable numbers.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(at) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Wide for F16 {
    type Stored = u16;
    // SAFETY: as the trait says.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(at: *const u16) -> std::arch::x86_64::__m512 {
        // SAFETY: 16 readable numbers.
        unsafe { std::arch::x86_64::_mm512_cvtph_ps(std::arch::x86_64::_mm256_loadu_si256(at.cast())) }
    }
    // SAFETY: as the trait says.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_v3(at: *const u16) -> std::arch::x86_64::__m256 {
        // SAFETY: 8 readable numbers.
        unsafe { std::arch::x86_64::_mm256_cvtph_ps(std::arch::x86_64::_mm_loadu_si128(at.cast())) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Wide for Bf16 {
    type Stored = u16;
    // SAFETY: as the trait says.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(at: *const u16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: 16 readable numbers.
        let words = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(at.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
    }
    // SAFETY: as the trait says.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_v3(at: *const u16) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: 8 readable numbers.
        let words = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(at.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }
}

// SAFETY: to be called where AVX-512 F and BW exist, with `R` rows of `query.len()` numbers (a multiple of 16) at `rows`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn fused<W: Wide, const R: usize>(
    rows: *const W::Stored,
    stride: usize,
    query: &[f32],
    out: &mut [[f32; LANES]; 4],
) {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_ps(); R];
    let (line_bytes, ahead) =
        (LANES * size_of::<W::Stored>(), rows.cast::<u8>().wrapping_add(super::ints::PREFETCH_BYTES));
    for at in (0..query.len()).step_by(LANES) {
        // Half precision asks for a line twice, which costs nothing beside waiting for it.
        for r in 0..R {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add((at / LANES * R + r) * line_bytes).cast());
        }
        // SAFETY: 16 numbers of the query and of each row from `at` on, as the caller promised.
        unsafe {
            let q = _mm512_loadu_ps(query.as_ptr().add(at));
            for r in 0..R {
                sums[r] = _mm512_fmadd_ps(W::load(rows.add(r * stride + at)), q, sums[r]);
            }
        }
    }
    for r in 0..R {
        // SAFETY: a place of 16 numbers.
        unsafe { _mm512_storeu_ps(out[r].as_mut_ptr(), sums[r]) };
    }
}

// SAFETY: to be called where AVX2, FMA and F16C exist, with a row of `query.len()` numbers (a multiple of 16) at `row`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fused_v3<W: Wide>(row: *const W::Stored, query: &[f32], out: &mut [f32; LANES]) {
    use std::arch::x86_64::*;
    // Lanes 0 to 7, and 8 to 15.
    let mut sums = [_mm256_setzero_ps(); 2];
    for at in (0..query.len()).step_by(LANES) {
        for half in 0..2 {
            let at = at + half * LANES / 2;
            // SAFETY: 8 numbers of the query and of the row from `at` on, as the caller promised.
            unsafe {
                let q = _mm256_loadu_ps(query.as_ptr().add(at));
                sums[half] = _mm256_fmadd_ps(W::load_v3(row.add(at)), q, sums[half]);
            }
        }
    }
    for half in 0..2 {
        // SAFETY: a place of 16 numbers.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(half * LANES / 2), sums[half]) };
    }
}

kernel! {
    /// IEEE half precision to f32, exactly.
    pub fn widen_f16 / widen_f16_at (from: &[u16], to: &mut [f32]) {
        for (&h, x) in from.iter().zip(to) {
            let (sign, body) = (u32::from(h & 0x8000) << 16, u32::from(h & 0x7fff));
            // The exponent is rebased by one exact product, subnormals too; infinities and NaN keep theirs.
            let rebased = (f32::from_bits(body << 13) * f32::from_bits(0x7780_0000)).to_bits();
            let bits = if body >= 0x7c00 { 0x7f80_0000 | body << 13 } else { rebased };
            *x = f32::from_bits(bits | sign);
        }
    }
}

kernel! {
    /// bfloat16 to f32, exactly.
    pub fn widen_bf16 / widen_bf16_at (from: &[u16], to: &mut [f32]) {
        for (&h, x) in from.iter().zip(to) {
            *x = f32::from_bits(u32::from(h) << 16);
        }
    }
}
