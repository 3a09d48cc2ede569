//! The loops around the tiles: which rows and columns meet when. No arithmetic.
//!
//! Blocks of k, then blocks of rows, then panels, then tiles: a block of rows stays in the second cache while the panels pass
//! it, and every panel is read once per block of rows. The order of additions to one number does not depend on any of it.
#![allow(unsafe_code)] // tiles take raw pointers; the two callers check shapes against slices

use super::layout::LANES;
use super::route::Route;

/// k steps per block. A panel's block of 1,024 steps streams through the first cache; shorter blocks that stay in it measured
/// slower, because the sums then go to memory and back more often (benches/SETTINGS.md).
const STEP_BLOCK: usize = 1024;

/// Rows per block: with [`STEP_BLOCK`] one MiB of the left operand, a second cache.
const ROW_BLOCK: usize = 256;

/// One register tile: `mr × (nv·16)` numbers of the result over `depth` k steps.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// First word of the left rows.
    pub a: *const u32,
    /// Words from row to row.
    pub a_row: usize,
    /// Words from step to step.
    pub a_step: usize,
    /// First word of the right operand.
    pub b: *const u32,
    /// Words from step to step.
    pub b_step: usize,
    /// k steps.
    pub depth: usize,
    /// First number of the result.
    pub c: *mut f32,
    /// Numbers from row to row.
    pub c_row: usize,
    /// The chain starts with `keep·c + bias`; with 0 the old content is not read.
    pub keep: f32,
    /// First bias, or null.
    pub bias: *const f32,
    /// Columns of the last register that exist, as bits.
    pub mask: u16,
}

/// Strided words of a left operand.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub words: *const u32,
    pub row: usize,
    pub step: usize,
}

/// A panel of the right operand.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub words: *const u32,
    /// Words from step to step.
    pub step: usize,
    /// First column.
    pub column: usize,
    /// Registers per step.
    pub lines: usize,
    /// Columns that exist.
    pub columns: usize,
}

/// Where the result goes and what it starts with.
#[derive(Clone, Copy)]
pub(super) struct Result {
    pub c: *mut f32,
    pub row: usize,
    pub keep: f32,
    pub bias: *const f32,
}

/// `c ← keep·c + bias + a·b` over all panels.
///
/// # Safety
/// As [`blocks`]; tiles also read left rows up to the next multiple of 16.
pub(super) unsafe fn product(
    route: Route,
    m: usize,
    steps: usize,
    a: Left,
    panels: impl Iterator<Item = Panel> + Clone,
    out: Result,
) {
    #[cfg(target_arch = "x86_64")]
    if route == Route::Amx {
        // SAFETY: matrices are packed for this route only where the processor has it; the rest is passed on.
        unsafe {
            super::amx::configure();
            blocks(route, m, steps, a, panels, out);
            return super::amx::release();
        }
    }
    // SAFETY: passed on.
    unsafe { blocks(route, m, steps, a, panels, out) }
}

/// # Safety
/// `a` must be readable for `m` rows of `steps`, every panel for `steps` steps of its existing columns (of whole lines for
/// pairs), `c` writable and `bias` (unless null) readable wherever a panel's columns lie; `route` must be available, and
/// the words of the kind that it reads.
#[inline(always)]
unsafe fn blocks(
    route: Route,
    m: usize,
    steps: usize,
    a: Left,
    panels: impl Iterator<Item = Panel> + Clone,
    out: Result,
) {
    if steps == 0 {
        // SAFETY: as promised by the caller; a tile of depth 0 leaves the start values.
        return unsafe { block(route, 0..m, 0..0, a, panels, out) };
    }
    for first in (0..steps).step_by(STEP_BLOCK) {
        let k = first..(first + STEP_BLOCK).min(steps);
        // Later blocks continue the chains where the earlier ones stored them.
        let out = if first == 0 { out } else { Result { keep: 1.0, bias: std::ptr::null(), ..out } };
        for row in (0..m).step_by(ROW_BLOCK) {
            // SAFETY: rows, steps and columns stay within what the caller promised.
            unsafe { block(route, row..(row + ROW_BLOCK).min(m), k.clone(), a, panels.clone(), out) };
        }
    }
}

/// One block of rows and steps against all panels.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn block(
    route: Route,
    rows: std::ops::Range<usize>,
    steps: std::ops::Range<usize>,
    a: Left,
    panels: impl Iterator<Item = Panel>,
    out: Result,
) {
    for panel in panels {
        let tallest = max_rows(route, panel.lines);
        let tiles = rows.len().div_ceil(tallest);
        let (base, longer) = (rows.len() / tiles.max(1), rows.len() % tiles.max(1));
        let mut row = rows.start;
        for index in 0..tiles {
            let mr = match route.tiles() {
                true => tallest.min(rows.end - row),
                // Of nearly one height: a last tile of two rows would leave the pipes idle.
                false => base + usize::from(index < longer),
            };
            let existing = panel.columns - (panel.lines - 1) * LANES;
            // SAFETY: offsets stay within the operands as the caller promised.
            unsafe {
                let tile = Tile {
                    a: a.words.add(row * a.row + steps.start * a.step),
                    a_row: a.row,
                    a_step: a.step,
                    b: panel.words.add(steps.start * panel.step),
                    b_step: panel.step,
                    depth: steps.len(),
                    c: out.c.add(row * out.row + panel.column),
                    c_row: out.row,
                    keep: out.keep,
                    bias: if out.bias.is_null() { out.bias } else { out.bias.add(panel.column) },
                    mask: (u32::from(u16::MAX) >> (LANES - existing)) as u16,
                };
                tile_of(route, mr, panel.lines, &tile);
            }
            row += mr;
        }
    }
}

/// Rows of the tallest tile of `lines` registers.
fn max_rows(route: Route, lines: usize) -> usize {
    match route {
        Route::Portable => 8,
        #[cfg(target_arch = "x86_64")]
        Route::Avx512 | Route::Avx512Bf16 => super::avx512::MAX_ROWS[lines],
        #[cfg(target_arch = "x86_64")]
        Route::Avx2 => super::avx2::MAX_ROWS,
        #[cfg(target_arch = "x86_64")]
        Route::Amx => super::amx::MAX_ROWS,
        #[cfg(all(test, target_arch = "x86_64"))]
        Route::Emulated => super::amx::MAX_ROWS,
        #[cfg(not(target_arch = "x86_64"))]
        _ => 8,
    }
}

/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tile_of(route: Route, mr: usize, lines: usize, tile: &Tile) {
    // SAFETY: the caller promised the pointers, and that the processor has the route.
    unsafe {
        match route {
            Route::Portable => super::portable::tile(mr, lines, tile),
            #[cfg(target_arch = "x86_64")]
            Route::Avx2 => super::avx2::tile(mr, lines, tile),
            #[cfg(target_arch = "x86_64")]
            Route::Avx512 => super::avx512::tile_f32(mr, lines, tile),
            #[cfg(target_arch = "x86_64")]
            Route::Avx512Bf16 => super::avx512::tile_bf16(mr, lines, tile),
            #[cfg(target_arch = "x86_64")]
            Route::Amx => super::amx::tile(mr, lines, tile),
            #[cfg(all(test, target_arch = "x86_64"))]
            Route::Emulated => super::amx::tile_with(super::amx::emulated::pick, mr, lines, tile),
            #[cfg(not(target_arch = "x86_64"))]
            _ => super::portable::tile(mr, lines, tile),
        }
    }
}
