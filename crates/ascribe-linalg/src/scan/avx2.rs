//! Products of codes with AVX2, for processors without VNNI: bytes are multiplied in pairs, sums of pairs are widened.
//!
//! `VPMADDUBSW` adds two products of an unsigned and a signed byte into 16 bits and saturates there. It never does so here:
//!
//! | rows | unsigned | signed | a pair at most |
//! |---|---|---|---|
//! | int8 | `\|c\|` ≤ 128 | the query's code, with the sign of `c` | 2 · 128 · 127 = 32,512 |
//! | int4 | `c + 8` ≤ 15 | the query's code | 2 · 15 · 127 = 3,810, so eight pairs fit 16 bits |
//!
//! (a query's codes lie in ±127 by construction; a row's may be any byte that a file holds). The query's sum times 8 is taken
//! off again for int4. For many queries int8 rows and queries are widened to 16 bits in the cache first, and `VPMADDWD`
//! multiplies them from register tiles of 2 × 4. All of it is exact, so it gives the integers of the plain loops, which tests
//! hold it against. Benefit over the plain loops as the compiler vectorises them: twice to five times (`ascribe bench search`).
#![allow(clippy::needless_range_loop)] // register tiles are indexed by row and column
#![allow(unsafe_code)] // vector loads by pointer; lengths are checked where slices become pointers

use std::arch::x86_64::*;

use super::ints::{Rows, Side};
use super::queries::LINE;

/// Codes of a vector.
const WIDE: usize = 32;
/// Rows that are widened together, and codes of each: with the codes of 64 queries they fill a fifth of the second cache.
const TALL: usize = 32;
const DEPTH: usize = 1024;
/// Rows and queries of a register tile.
const TILE: (usize, usize) = (2, 4);

/// True if the processor has it.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Multiplies all rows with all queries. Products of few queries are handed to `put(row, query, product)`, those of many too.
/// The caller has asked [`available`] and checked that rows of `line_bytes` are whole.
pub(super) fn multiply(rows: &Rows<'_>, side: &Side<'_>, many: bool, mut put: impl FnMut(usize, usize, i32)) {
    assert!(side.codes.len() >= side.n * side.len && side.sums.len() >= side.n, "a code for every number of a query");
    assert_eq!(side.len, if rows.four { 2 * rows.line_bytes } else { rows.line_bytes }, "rows as long as the queries");
    assert!(rows.line_bytes.is_multiple_of(LINE), "whole lines");
    if rows.n == 0 || side.n == 0 || side.len == 0 {
        return;
    }
    assert!(rows.bytes.len() >= (rows.n - 1) * rows.stride + rows.line_bytes, "rows within their slice");
    match (many, rows.four) {
        (false, _) => few(rows, side, put),
        (true, false) => many_eight(rows, side, put),
        (true, true) => many_four(rows, side, &mut put),
    }
}

/// Row by row: memory is read in one stream. Four rows side by side, quicker in the cache, come at less than half its speed on
/// the processor that this was measured on.
fn few(rows: &Rows<'_>, side: &Side<'_>, mut put: impl FnMut(usize, usize, i32)) {
    for row in 0..rows.n {
        let bytes = &rows.bytes[row * rows.stride..][..rows.line_bytes];
        for query in 0..side.n {
            let codes = &side.codes[query * side.len..(query + 1) * side.len];
            // SAFETY: the caller asked `available`; the row is as long as the query, as `multiply` checked.
            let sum = unsafe { if rows.four { four(bytes, codes) } else { dot(bytes, codes) } };
            let bias = if rows.four { 8i32.wrapping_mul(side.sums[query]) } else { 0 };
            put(row, query, sum.wrapping_sub(bias));
        }
    }
}

/// Sum of the eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn total(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn totals(sums: &[[__m256i; TILE.1]; TILE.0]) -> [[i32; TILE.1]; TILE.0] {
    let mut out = [[0; TILE.1]; TILE.0];
    for r in 0..TILE.0 {
        for q in 0..TILE.1 {
            out[r][q] = total(sums[r][q]);
        }
    }
    out
}

/// 32 codes of a row times 32 of a query, pairs added, in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(row: __m256i, query: __m256i) -> __m256i {
    _mm256_maddubs_epi16(_mm256_abs_epi8(row), _mm256_sign_epi8(query, row))
}

/// Products of one row of int8 codes with a query.
///
/// # Safety
/// AVX2 must exist.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dot(row: &[u8], query: &[i8]) -> i32 {
    assert!(row.len() == query.len() && row.len().is_multiple_of(LINE), "whole lines of both");
    let ones = _mm256_set1_epi16(1);
    let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for at in (0..query.len()).step_by(LINE) {
        // SAFETY: a line of both from `at` on, as asserted.
        unsafe {
            let load = |at: usize| {
                let row = _mm256_loadu_si256(row.as_ptr().add(at).cast());
                pairs(row, _mm256_loadu_si256(query.as_ptr().add(at).cast()))
            };
            even = _mm256_add_epi32(even, _mm256_madd_epi16(load(at), ones));
            odd = _mm256_add_epi32(odd, _mm256_madd_epi16(load(at + WIDE), ones));
        }
    }
    total(_mm256_add_epi32(even, odd))
}

/// Products of one row of int4 codes, each plus 8, with a query.
///
/// # Safety
/// AVX2 must exist.
#[target_feature(enable = "avx2")]
unsafe fn four(row: &[u8], query: &[i8]) -> i32 {
    assert!(2 * row.len() == query.len() && row.len().is_multiple_of(LINE), "whole lines of both");
    let (flip, low) = (_mm256_set1_epi8(0x88u8 as i8), _mm256_set1_epi8(15));
    let ones = _mm256_set1_epi16(1);
    let mut sum = _mm256_setzero_si256();
    for line in (0..row.len()).step_by(LINE) {
        let mut short = _mm256_setzero_si256();
        for half in [line, line + WIDE] {
            // SAFETY: 32 bytes of the row and the 64 codes of the query that belong to them, as asserted.
            unsafe {
                // Code plus 8: the sign bit flipped.
                let both = _mm256_xor_si256(_mm256_loadu_si256(row.as_ptr().add(half).cast()), flip);
                let second = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                let codes = query.as_ptr().add(line + half);
                let (a, b) = (_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(LINE).cast()));
                short = _mm256_add_epi16(short, _mm256_maddubs_epi16(_mm256_and_si256(both, low), a));
                short = _mm256_add_epi16(short, _mm256_maddubs_epi16(second, b));
            }
        }
        // Four pairs so far: at most 15,240.
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(short, ones));
    }
    total(sum)
}

/// Many queries over int8 rows: both widened into the cache, a run of their codes at a time.
fn many_eight(rows: &Rows<'_>, side: &Side<'_>, mut put: impl FnMut(usize, usize, i32)) {
    let depth = side.len.min(DEPTH);
    let tall = rows.n.min(TALL);
    let mut queries = vec![0i16; side.n * depth];
    let mut wide = vec![0i16; tall * depth];
    // Sums over the runs of long rows; rows of one run need none.
    let mut sums = vec![0i32; if side.len > depth { rows.n * side.n } else { 0 }];
    for from in (0..side.len).step_by(depth) {
        let len = (side.len - from).min(depth);
        let is_last = from + len == side.len;
        for (query, wide) in queries.chunks_mut(depth).enumerate() {
            // SAFETY: AVX2 exists, as the caller asked.
            unsafe { widen(&side.codes[query * side.len + from..][..len], wide) };
        }
        for first in (0..rows.n).step_by(TALL) {
            let tall = (rows.n - first).min(TALL);
            for (r, wide) in wide.chunks_mut(depth).enumerate().take(tall) {
                let bytes = &rows.bytes[(first + r) * rows.stride + from..][..len];
                // SAFETY: AVX2 exists, as the caller asked.
                unsafe { widen_bytes(bytes, wide) };
            }
            tiles(tall, side.n, |rs, qs| {
                let row = rs.map(|r| wide[r * depth..].as_ptr());
                let query = qs.map(|q| queries[q * depth..].as_ptr());
                // SAFETY: AVX2 exists; `len` numbers (a multiple of 32) stand at each of the pointers, within the two buffers.
                let found = unsafe { tile_eight(row, query, len) };
                each(rs, qs, |r, q, i, j| {
                    let sum = match sums.get_mut((first + r) * side.n + q) {
                        Some(before) => {
                            *before += found[i][j];
                            *before
                        }
                        None => found[i][j],
                    };
                    if is_last {
                        put(first + r, q, sum);
                    }
                });
            });
        }
    }
}

/// Many queries over int4 rows: the rows spread into bytes of `code + 8` in the cache.
fn many_four(rows: &Rows<'_>, side: &Side<'_>, put: &mut impl FnMut(usize, usize, i32)) {
    let tall = rows.n.min(TALL);
    let mut wide = vec![0u8; tall * side.len];
    for first in (0..rows.n).step_by(TALL) {
        let tall = (rows.n - first).min(TALL);
        for (r, wide) in wide.chunks_mut(side.len).enumerate().take(tall) {
            let bytes = &rows.bytes[(first + r) * rows.stride..][..rows.line_bytes];
            // SAFETY: AVX2 exists, as the caller asked.
            unsafe { spread(bytes, wide) };
        }
        tiles(tall, side.n, |rs, qs| {
            let row = rs.map(|r| wide[r * side.len..].as_ptr());
            let query = qs.map(|q| side.codes[q * side.len..].as_ptr());
            // SAFETY: AVX2 exists; `len` codes (a multiple of 128) stand at each of the pointers, within their slices.
            let found = unsafe { tile_four(row, query, side.len) };
            each(rs, qs, |r, q, i, j| put(first + r, q, found[i][j].wrapping_sub(8i32.wrapping_mul(side.sums[q]))));
        });
    }
}

/// Walks register tiles, four queries outside and two rows inside, so that the queries stay in the first cache. At the ends
/// the last row and query stand in for those that are not there.
fn tiles(n_rows: usize, n_queries: usize, mut tile: impl FnMut([usize; TILE.0], [usize; TILE.1])) {
    for query in (0..n_queries).step_by(TILE.1) {
        let qs = std::array::from_fn(|j| (query + j).min(n_queries - 1));
        for row in (0..n_rows).step_by(TILE.0) {
            tile(std::array::from_fn(|i| (row + i).min(n_rows - 1)), qs);
        }
    }
}

/// Every row and query of a tile once, with its place in the tile.
fn each(rs: [usize; TILE.0], qs: [usize; TILE.1], mut take: impl FnMut(usize, usize, usize, usize)) {
    for (i, &r) in rs.iter().enumerate().filter(|&(i, r)| i == 0 || rs[i - 1] != *r) {
        for (j, &q) in qs.iter().enumerate().filter(|&(j, q)| j == 0 || qs[j - 1] != *q) {
            take(r, q, i, j);
        }
    }
}

#[target_feature(enable = "avx2")]
fn widen(codes: &[i8], out: &mut [i16]) {
    codes.iter().zip(out).for_each(|(&code, out)| *out = i16::from(code));
}

#[target_feature(enable = "avx2")]
fn widen_bytes(codes: &[u8], out: &mut [i16]) {
    codes.iter().zip(out).for_each(|(&code, out)| *out = i16::from(code as i8));
}

/// Bytes of a row spread into `code + 8`, in the order of `queries::place`.
#[target_feature(enable = "avx2")]
fn spread(bytes: &[u8], out: &mut [u8]) {
    for (line, out) in bytes.as_chunks::<LINE>().0.iter().zip(out.as_chunks_mut::<{ 2 * LINE }>().0) {
        for i in 0..LINE {
            let both = line[i] ^ 0x88;
            (out[i], out[LINE + i]) = (both & 15, both >> 4);
        }
    }
}

// SAFETY: to be called where AVX2 exists, with `len` numbers, a multiple of 16, at every pointer.
#[target_feature(enable = "avx2")]
unsafe fn tile_eight(rows: [*const i16; TILE.0], queries: [*const i16; TILE.1], len: usize) -> [[i32; TILE.1]; TILE.0] {
    let mut sums = [[_mm256_setzero_si256(); TILE.1]; TILE.0];
    for at in (0..len).step_by(16) {
        // SAFETY: 16 numbers from `at` on, as the caller promised.
        unsafe {
            let mut query = [_mm256_setzero_si256(); TILE.1];
            for q in 0..TILE.1 {
                query[q] = _mm256_loadu_si256(queries[q].add(at).cast());
            }
            for r in 0..TILE.0 {
                let row = _mm256_loadu_si256(rows[r].add(at).cast());
                for q in 0..TILE.1 {
                    sums[r][q] = _mm256_add_epi32(sums[r][q], _mm256_madd_epi16(row, query[q]));
                }
            }
        }
    }
    totals(&sums)
}

// SAFETY: to be called where AVX2 exists, with `len` codes, a multiple of 128, at every pointer.
#[target_feature(enable = "avx2")]
unsafe fn tile_four(rows: [*const u8; TILE.0], queries: [*const i8; TILE.1], len: usize) -> [[i32; TILE.1]; TILE.0] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); TILE.1]; TILE.0];
    for line in (0..len).step_by(2 * LINE) {
        let mut short = [[_mm256_setzero_si256(); TILE.1]; TILE.0];
        for at in (line..line + 2 * LINE).step_by(WIDE) {
            // SAFETY: 32 codes from `at` on, as the caller promised.
            unsafe {
                let mut query = [_mm256_setzero_si256(); TILE.1];
                for q in 0..TILE.1 {
                    query[q] = _mm256_loadu_si256(queries[q].add(at).cast());
                }
                for r in 0..TILE.0 {
                    let row = _mm256_loadu_si256(rows[r].add(at).cast());
                    for q in 0..TILE.1 {
                        short[r][q] = _mm256_add_epi16(short[r][q], _mm256_maddubs_epi16(row, query[q]));
                    }
                }
            }
        }
        // Four pairs: at most 15,240.
        for r in 0..TILE.0 {
            for q in 0..TILE.1 {
                sums[r][q] = _mm256_add_epi32(sums[r][q], _mm256_madd_epi16(short[r][q], ones));
            }
        }
    }
    totals(&sums)
}
