//! Products of integer codes: exact, whatever computes them.
//!
//! VNNI multiplies unsigned by signed bytes: a row's code `c` enters as `c + 128` (int8: one xor) or `c + 8` (int4), and the
//! query's sum times that is taken off again. All arithmetic wraps at 32 bits and the true sum fits them
//! ([`super::MAX_CODED_DIM`]), so the result is exact.
#![allow(clippy::needless_range_loop)] // register tiles are indexed by row and column
#![allow(unsafe_code)] // vector loads by pointer; lengths are checked where slices become pointers

use super::queries::{Form, LINE, Queries};
use super::{Block, Lines};
use crate::elementwise::dispatch::kernel;

/// What multiplies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Route {
    /// Plain loops.
    Plain,
    /// AVX2: pairs of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// VNNI, from registers.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AMX tiles for whole tiles of rows and many queries, VNNI for the rest.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Route {
    /// The best of this processor.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if vnni_available() {
            return if super::tiles::available() { Self::Tiles } else { Self::Vnni };
        }
        #[cfg(target_arch = "x86_64")]
        if super::avx2::available() {
            return Self::Avx2;
        }
        Self::Plain
    }
}

/// Multiplies all rows with all queries into `out`: `[row][width]` for many queries, `[query][width]` for few.
pub(super) fn multiply(
    route: Route,
    bytes: &[u8],
    block: &Block<'_>,
    queries: &Queries,
    out: &mut [i32],
    width: usize,
) {
    let four = matches!(block.lines, Lines::Int4(_));
    let Form::Codes { len, codes, sums, tiles } = &queries.form else { panic!("queries without codes") };
    let line_bytes = if four { len / 2 } else { *len };
    let side = Side { codes, len: *len, sums, n: queries.n() };
    let padded =
        block.stride >= line_bytes && bytes.len() >= block.n_rows.saturating_sub(1) * block.stride + line_bytes;
    let by_row = queries.by_row();
    #[cfg(target_arch = "x86_64")]
    if padded && route != Route::Plain {
        let rows = Rows { bytes, stride: block.stride, line_bytes, n: block.n_rows, four };
        if route == Route::Avx2 {
            let put = |row, query, sum| out[place(by_row, width, row, query)] = sum;
            return super::avx2::multiply(&rows, &side, by_row, put);
        }
        let first = match route {
            Route::Tiles if by_row => super::tiles::multiply(&rows, *len, tiles, out, width),
            _ => 0,
        };
        return vnni(&rows, first, &side, |row, query, sum| out[place(by_row, width, row, query)] = sum);
    }
    let _ = (route, tiles, padded);
    plain(bytes, block, four, &side, |row, query, sum| out[place(by_row, width, row, query)] = sum);
}

const fn place(by_row: bool, width: usize, row: usize, query: usize) -> usize {
    if by_row { row * width + query } else { query * width + row }
}

/// Rows whose lines are whole.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub bytes: &'a [u8],
    pub stride: usize,
    /// Bytes of a row that are read: a whole number of lines.
    pub line_bytes: usize,
    pub n: usize,
    pub four: bool,
}

/// The queries' side.
pub(super) struct Side<'a> {
    pub codes: &'a [i8],
    /// Codes of a query.
    pub len: usize,
    pub sums: &'a [i32],
    pub n: usize,
}

kernel! {
    /// Bytes of a row spread into one code a byte, in the order of `queries::place`.
    pub(super) fn spread / spread_at (bytes: &[u8], out: &mut [u8]) {
        for (line, out) in bytes.chunks(LINE).zip(out.chunks_mut(2 * LINE)) {
            let (low, high) = out.split_at_mut(LINE.min(out.len()));
            // Two's complement of four bits, widened by flipping the sign bit and taking its worth off.
            line.iter().zip(low).for_each(|(b, o)| *o = ((b & 15) ^ 8).wrapping_sub(8));
            line.iter().zip(high).for_each(|(b, o)| *o = ((b >> 4) ^ 8).wrapping_sub(8));
        }
    }
}

/// The plain twin: any processor, rows of any layout.
fn plain(bytes: &[u8], block: &Block<'_>, four: bool, side: &Side<'_>, mut put: impl FnMut(usize, usize, i32)) {
    let mut line = vec![0u8; side.len];
    let width = if four { block.dim.div_ceil(2) } else { block.dim };
    for row in 0..block.n_rows {
        let bytes = &bytes[row * block.stride..row * block.stride + width];
        if four {
            spread(bytes, &mut line)
        } else {
            line[..width].copy_from_slice(bytes)
        }
        for query in 0..side.n {
            put(row, query, dot(&line, &side.codes[query * side.len..(query + 1) * side.len]));
        }
    }
}

kernel! {
    /// `Σ a·b` of codes.
    fn dot / dot_at (a: &[u8], b: &[i8]) -> i32 {
        a.iter().zip(b).map(|(&a, &b)| i32::from(i16::from(a as i8) * i16::from(b))).sum()
    }
}

/// True if the processor multiplies bytes by fours.
#[cfg(target_arch = "x86_64")]
pub(super) fn vnni_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Rows from `first` on, four at a time with up to four queries in registers.
#[cfg(target_arch = "x86_64")]
fn vnni(rows: &Rows<'_>, first: usize, side: &Side<'_>, mut put: impl FnMut(usize, usize, i32)) {
    let mut row = first;
    while row < rows.n {
        let height = if rows.n - row >= 4 { 4 } else { 1 };
        let mut query = 0;
        while query < side.n {
            let columns = if side.n - query >= 4 { 4 } else { 1 };
            let codes = &side.codes[query * side.len..(query + columns) * side.len];
            let bytes = &rows.bytes[row * rows.stride..];
            debug_assert!(bytes.len() >= (height - 1) * rows.stride + rows.line_bytes, "`multiply` checked the rows");
            let mut sums = [[0i32; 4]; 4];
            // SAFETY: the caller asked `vnni_available`; `height` rows of `line_bytes` (a multiple of 64) are within `bytes`
            // (checked by `multiply`), and `columns` queries of `len` codes within `codes`; `len` is `line_bytes`, or
            // twice that for codes of four bits.
            unsafe {
                match (height, columns, rows.four) {
                    (4, 4, false) => vnni_block::<4, 4, false>(bytes, rows, codes, side.len, &mut sums),
                    (4, _, false) => vnni_block::<4, 1, false>(bytes, rows, codes, side.len, &mut sums),
                    (_, 4, false) => vnni_block::<1, 4, false>(bytes, rows, codes, side.len, &mut sums),
                    (_, _, false) => vnni_block::<1, 1, false>(bytes, rows, codes, side.len, &mut sums),
                    (4, 4, true) => vnni_block::<4, 4, true>(bytes, rows, codes, side.len, &mut sums),
                    (4, _, true) => vnni_block::<4, 1, true>(bytes, rows, codes, side.len, &mut sums),
                    (_, 4, true) => vnni_block::<1, 4, true>(bytes, rows, codes, side.len, &mut sums),
                    (_, _, true) => vnni_block::<1, 1, true>(bytes, rows, codes, side.len, &mut sums),
                }
            }
            let bias = if rows.four { 8 } else { 128i32 };
            for (r, sums) in sums.iter().enumerate().take(height) {
                for (q, &sum) in sums.iter().enumerate().take(columns) {
                    put(row + r, query + q, sum.wrapping_sub(bias.wrapping_mul(side.sums[query + q])));
                }
            }
            query += columns;
        }
        row += height;
    }
}

// SAFETY: to be called where VNNI exists, with `R` rows of `rows.line_bytes` in `bytes` and `Q` queries of `len` in `codes`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn vnni_block<const R: usize, const Q: usize, const FOUR: bool>(
    bytes: &[u8],
    rows: &Rows<'_>,
    codes: &[i8],
    len: usize,
    out: &mut [[i32; 4]; 4],
) {
    use std::arch::x86_64::*;
    let flip = _mm512_set1_epi8(if FOUR { 8 } else { -128 });
    let low = _mm512_set1_epi8(15);
    let mut sums = [[_mm512_setzero_si512(); Q]; R];
    let ahead = bytes.as_ptr().wrapping_add(PREFETCH_BYTES);
    for line in 0..rows.line_bytes / LINE {
        for r in 0..R {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add((line * R + r) * LINE).cast());
            // SAFETY: the line lies within the row, and the query's line within the query, as the caller promised.
            unsafe {
                let raw = _mm512_loadu_si512(bytes.as_ptr().add(r * rows.stride + line * LINE).cast());
                for q in 0..Q {
                    let code = codes.as_ptr().add(q * len);
                    if FOUR {
                        let first = _mm512_xor_si512(_mm512_and_si512(raw, low), flip);
                        let second = _mm512_xor_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(raw), low), flip);
                        let at = code.add(line * 2 * LINE);
                        sums[r][q] = _mm512_dpbusd_epi32(sums[r][q], first, _mm512_loadu_si512(at.cast()));
                        sums[r][q] = _mm512_dpbusd_epi32(sums[r][q], second, _mm512_loadu_si512(at.add(LINE).cast()));
                    } else {
                        let at = code.add(line * LINE);
                        let shifted = _mm512_xor_si512(raw, flip);
                        sums[r][q] = _mm512_dpbusd_epi32(sums[r][q], shifted, _mm512_loadu_si512(at.cast()));
                    }
                }
            }
        }
    }
    for q in 0..Q {
        if R == 4 {
            let mut four = [0i32; 4];
            let added = across(std::array::from_fn(|r| sums[r][q]));
            // SAFETY: room for four sums.
            unsafe { _mm_storeu_si128(four.as_mut_ptr().cast(), added) };
            (0..4).for_each(|r| out[r][q] = four[r]);
        } else {
            (0..R).for_each(|r| out[r][q] = _mm512_reduce_add_epi32(sums[r][q]));
        }
    }
}

/// The sums of the lanes of four registers at once: pairs of lanes, then of pairs, then the four quarters. Thirteen instructions in the
/// place of some forty.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn across([a, b, c, d]: [std::arch::x86_64::__m512i; 4]) -> std::arch::x86_64::__m128i {
    use std::arch::x86_64::*;
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

/// Rows of int8 codes of one length without gaps between lines of 64, for a walk that visits them one by one.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> Codes<'a> {
    /// Rows of `len` bytes, a multiple of 64.
    ///
    /// # Panics
    /// If `len` is not, or `bytes` is no whole number of rows.
    pub fn new(bytes: &'a [u8], len: usize) -> Self {
        assert!(len > 0 && len.is_multiple_of(LINE), "rows of codes are whole lines");
        assert!(bytes.len().is_multiple_of(len), "codes are whole rows");
        Self { bytes, len }
    }

    /// Number of rows.
    pub const fn n_rows(&self) -> usize {
        self.bytes.len() / self.len
    }
}

/// Products of chosen rows with one query of `codes.len` codes, whose sum is `sum`: `out[i]` is that of row `rows[i]`.
///
/// Exact, equal on every processor. Cost: one random row of memory each; all rows are asked for before the first is read.
///
/// # Panics
/// If a row does not exist, or lengths differ.
pub fn dots_at(codes: Codes<'_>, query: &[i8], sum: i32, rows: &[u32], out: &mut [i32]) {
    assert!(
        query.len() == codes.len && out.len() == rows.len(),
        "a query of the rows' length, a place for every product"
    );
    let n_rows = codes.n_rows();
    assert!(rows.iter().all(|&row| (row as usize) < n_rows), "a row that does not exist");
    #[cfg(target_arch = "x86_64")]
    if vnni_available() {
        // SAFETY: VNNI exists; every row lies within the codes, and the query is as long as a row.
        return unsafe { vnni_at(codes, query, sum, rows, out) };
    }
    let _ = sum;
    #[cfg(target_arch = "x86_64")]
    if super::avx2::available() {
        return avx2_at(codes, query, rows, out);
    }
    for (&row, out) in rows.iter().zip(out) {
        *out = dot(&codes.bytes[row as usize * codes.len..][..codes.len], query);
    }
}

/// How far ahead of a tile of rows the lines are asked for, one by one in the order of memory: the processor's own prefetcher
/// follows one stream in a page, and four short rows side by side are four. A prefetch never faults.
#[cfg(target_arch = "x86_64")]
pub(super) const PREFETCH_BYTES: usize = 4096;

/// Bytes of rows that are asked for ahead of those that are read: more are in flight than a core can wait for at once.
#[cfg(target_arch = "x86_64")]
const AHEAD_BYTES: usize = 2048;

/// Asks for the cache lines of `numbers`, which will be read soon. A prefetch never faults.
#[inline]
pub fn ask_for<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    ask_lines(numbers.as_ptr().cast(), size_of_val(numbers));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ask_lines(start: *const u8, len: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..len).step_by(LINE) {
        // SAFETY: SSE is part of every x86-64 processor, and a prefetch of any address does no harm.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at).cast()) };
    }
}

impl Codes<'_> {
    /// Asks for a row's lines.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn ask(&self, row: u32) {
        ask_lines(self.bytes.as_ptr().wrapping_add(row as usize * self.len), self.len);
    }

    /// Rows to ask for ahead.
    #[cfg(target_arch = "x86_64")]
    const fn ahead(&self) -> usize {
        let rows = AHEAD_BYTES / self.len;
        if rows < 4 { 4 } else { rows }
    }
}

/// The same with AVX2, which the caller has asked for; rows and query were checked by [`dots_at`].
#[cfg(target_arch = "x86_64")]
fn avx2_at(codes: Codes<'_>, query: &[i8], rows: &[u32], out: &mut [i32]) {
    let ahead = codes.ahead();
    rows.iter().take(ahead).for_each(|&row| codes.ask(row));
    for (i, (&row, out)) in rows.iter().zip(out).enumerate() {
        if let Some(&next) = rows.get(i + ahead) {
            codes.ask(next);
        }
        let bytes = &codes.bytes[row as usize * codes.len..][..codes.len];
        // SAFETY: AVX2 exists.
        *out = unsafe { super::avx2::dot(bytes, query) };
    }
}

// SAFETY: to be called where VNNI exists, with rows that exist and a query of `codes.len`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn vnni_at(codes: Codes<'_>, query: &[i8], sum: i32, rows: &[u32], out: &mut [i32]) {
    use std::arch::x86_64::*;
    let ahead = codes.ahead();
    rows.iter().take(ahead).for_each(|&row| codes.ask(row));
    let bias = 128i32.wrapping_mul(sum);
    let start = |row: u32| codes.bytes.as_ptr().wrapping_add(row as usize * codes.len);
    let ((fours, rest), (out, out_rest)) = (rows.as_chunks::<4>(), out.as_chunks_mut::<4>());
    for (i, (four, out)) in fours.iter().zip(out).enumerate() {
        rows.iter().skip(4 * i + ahead).take(4).for_each(|&row| codes.ask(row));
        // SAFETY: lines of existing rows and of a query as long as a row.
        let lanes = unsafe { vnni_lines(four.map(start), query) };
        let four = _mm_sub_epi32(across(lanes), _mm_set1_epi32(bias));
        // SAFETY: `out` has room for four sums.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), four) };
    }
    for (&row, out) in rest.iter().zip(out_rest) {
        // SAFETY: as above.
        let [sums] = unsafe { vnni_lines([start(row)], query) };
        *out = _mm512_reduce_add_epi32(sums).wrapping_sub(bias);
    }
}

// SAFETY: to be called where VNNI exists, with rows that are as long as the query, a whole number of lines.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn vnni_lines<const R: usize>(rows: [*const u8; R], query: &[i8]) -> [std::arch::x86_64::__m512i; R] {
    use std::arch::x86_64::*;
    let flip = _mm512_set1_epi8(-128);
    let mut sums = [_mm512_setzero_si512(); R];
    for at in (0..query.len()).step_by(LINE) {
        // SAFETY: the line lies within the query and within every row, as the caller promised.
        unsafe {
            let codes = _mm512_loadu_si512(query.as_ptr().add(at).cast());
            for r in 0..R {
                let shifted = _mm512_xor_si512(_mm512_loadu_si512(rows[r].add(at).cast()), flip);
                sums[r] = _mm512_dpbusd_epi32(sums[r], shifted, codes);
            }
        }
    }
    sums
}
