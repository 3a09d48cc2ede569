//! int8 products on AMX tiles, over rows as they lie: 16 rows of a line are a left tile.
//!
//! The blocks are those of `packed::amx` with TDPBSSD (signed bytes, sums of 32 bits) in the place of TDPBF16PS. Used after a
//! comparison with plain loops on this very processor. Benefit: twice to ten times VNNI from 16 queries on (`ascribe bench
//! search` prints both ends).
#![allow(unsafe_code)] // tiles exist in assembly only; rows and results are checked against their slices here

use std::sync::OnceLock;

use super::ints::{Rows, spread};
use super::queries::LINE;
use crate::packed::amx::{self, Block, blocks};

/// Rows of a tile.
const TILE: usize = 16;
/// Codes of a row that are multiplied before the next rows are: two tall tiles of them, and as much of the queries, stay in
/// the second cache.
const DEPTH: usize = 8192;

blocks!("tdpbssd");

/// True if this processor has int8 tiles, the system lets us use them, and a small product agrees with plain loops. Asked
/// once.
pub(super) fn available() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        // Leaf 7 exists: `amx::available` has read it.
        let has_int8 = || std::arch::x86_64::__cpuid_count(7, 0).edx >> 25 & 1 == 1;
        amx::available() && has_int8() && works()
    })
}

/// Multiplies whole tiles of rows with tiles of queries (`width` of them, `len` codes each) into `out` `[row][width]`;
/// returns how many rows that were. The caller has asked [`available`].
pub(super) fn multiply(rows: &Rows<'_>, len: usize, tiles: &[i8], out: &mut [i32], width: usize) -> usize {
    let whole = rows.n / TILE * TILE;
    if whole == 0 || len == 0 {
        return 0;
    }
    assert!(
        width.is_multiple_of(TILE) && tiles.len() == width * len && len.is_multiple_of(LINE),
        "whole tiles of queries"
    );
    assert!(out.len() >= whole * width, "a place for every product");
    assert!(rows.bytes.len() >= (whole - 1) * rows.stride + rows.line_bytes, "rows within their slice");
    assert_eq!(len, if rows.four { 2 * rows.line_bytes } else { rows.line_bytes }, "rows as long as the queries");
    let mut wide = vec![0u8; if rows.four { 2 * TILE * len } else { 0 }];
    // SAFETY: `available` said yes.
    unsafe { amx::configure() };
    for first in (0..whole).step_by(2 * TILE) {
        let tall = (whole - first).min(2 * TILE);
        let (base, stride) = if rows.four {
            for (r, out) in wide.chunks_mut(len).enumerate().take(tall) {
                spread(&rows.bytes[(first + r) * rows.stride..][..rows.line_bytes], out);
            }
            (wide.as_ptr(), len)
        } else {
            (rows.bytes[first * rows.stride..].as_ptr(), rows.stride)
        };
        for depth in (0..len).step_by(DEPTH) {
            let groups = (len - depth).min(DEPTH) / LINE;
            for column in (0..width).step_by(2 * TILE) {
                let product = real(tall / TILE, (width - column).min(2 * TILE) / TILE);
                // SAFETY: rows `first..first + tall`, `groups` lines from `depth` on, columns up to `width` and steps up to
                // `len` exist by the checks above, and the thread is configured.
                unsafe {
                    product(&Block {
                        a: base.add(depth).cast(),
                        a_row: stride,
                        b: tiles.as_ptr().add(depth * width + column * 4).cast(),
                        b_step: width * 4,
                        groups,
                        c: out.as_mut_ptr().add(first * width + column).cast(),
                        c_row: width * 4,
                        keep: depth > 0,
                    });
                }
            }
        }
    }
    // SAFETY: `available` said yes.
    unsafe { amx::release() };
    whole
}

/// A product of every shape of block, with both kinds of rows, held against plain sums.
fn works() -> bool {
    let (n, len, width) = (48, 128, 48);
    let byte = |i: usize| ((i * 2_654_435_761) >> 7) as u8;
    let tiles: Vec<i8> = (0..width * len).map(|i| (byte(i) as i8).max(-127)).collect();
    [false, true].into_iter().all(|four| {
        let line_bytes = if four { len / 2 } else { len };
        let bytes: Vec<u8> = (0..n * line_bytes).map(|i| byte(i + 17)).collect();
        let mut out = vec![0i32; n * width];
        multiply(&Rows { bytes: &bytes, stride: line_bytes, line_bytes, n, four }, len, &tiles, &mut out, width);
        let mut line = vec![0u8; len];
        (0..n).all(|row| {
            let bytes = &bytes[row * line_bytes..(row + 1) * line_bytes];
            if four {
                spread(bytes, &mut line)
            } else {
                line.copy_from_slice(bytes)
            }
            (0..width).all(|q| {
                let code = |j: usize| i32::from(tiles[(j / 4 * width + q) * 4 + j % 4]);
                out[row * width + q] == (0..len).map(|j| i32::from(line[j] as i8) * code(j)).sum::<i32>()
            })
        })
    })
}
