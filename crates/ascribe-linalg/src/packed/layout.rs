//! How operands lie in memory: cache lines of 16 words, panels of up to three lines' width, bf16 in pairs.
//!
//! A word is 32 bits: one f32, or two bf16 of neighbouring k (the lower half is the even one), which is at once what
//! `vdpbf16ps` reads and the layout of an AMX right-hand tile.

use ndarray::ArrayView2;

/// Words per cache line and per 512-bit register.
pub(super) const LANES: usize = 16;

/// Lines per k step of a wide panel: 8 rows × 3 registers of sums keep both FMA pipes busy with 11 loads per 24 FMAs.
pub(super) const PANEL_LINES: usize = 3;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; LANES]);

/// Widths in lines of the panels that `n` columns are cut into: threes, and twos at the end where the count asks for it
/// (a panel of one line runs at half the speed, so 4 = 2 + 2, not 3 + 1).
pub(super) fn panel_widths(n: usize) -> impl Iterator<Item = usize> + Clone {
    let lines = n.div_ceil(LANES);
    let (threes, rest) = match (lines % PANEL_LINES, lines) {
        (_, 1) => (0, 1),
        (0, _) => (lines / 3, 0),
        (1, _) => (lines / 3 - 1, 4),
        (_, _) => (lines / 3, 2),
    };
    let tail = match rest {
        1 => [1, 0],
        2 => [2, 0],
        4 => [2, 2],
        _ => [0, 0],
    };
    std::iter::repeat_n(PANEL_LINES, threes).chain(tail).filter(|&width| width > 0)
}

/// `x` rounded to bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { ((bits >> 16) as u16) | 0x40 } else { rounded }
}

/// `x` rounded to bf16, as f32.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(x)) << 16)
}

/// Packs `b` `[k, n]` into panels of single f32 words: panel after panel, `[k][width]` lines each, zeros past column n.
pub(super) fn pack_f32(b: ArrayView2<'_, f32>, round: bool) -> Vec<Line> {
    let k = b.nrows();
    pack(b.ncols(), k, |step, column| {
        let x = b[(step, column)];
        if round { rounded(x).to_bits() } else { x.to_bits() }
    })
}

/// Packs `b` into pairs: step p holds rows 2p and 2p + 1, zeros past row k, as many steps as [`pair_steps`] says.
pub(super) fn pack_pairs(b: ArrayView2<'_, f32>) -> Vec<Line> {
    let k = b.nrows();
    pack(b.ncols(), pair_steps(k), |step, column| {
        let half = |row: usize| if row < k { u32::from(to_bf16(b[(row, column)])) } else { 0 };
        half(2 * step) | half(2 * step + 1) << 16
    })
}

/// Pairs that `k` numbers take, rounded up to whole cache lines (AMX reads 16 pairs at a time).
pub(super) const fn pair_steps(k: usize) -> usize {
    k.div_ceil(2).next_multiple_of(LANES)
}

fn pack(n: usize, steps: usize, word: impl Fn(usize, usize) -> u32) -> Vec<Line> {
    let mut lines = Vec::with_capacity(n.div_ceil(LANES) * steps);
    let mut first = 0;
    for width in panel_widths(n) {
        for step in 0..steps {
            for line in 0..width {
                let start = first + line * LANES;
                lines.push(Line(std::array::from_fn(|i| if start + i < n { word(step, start + i) } else { 0 })));
            }
        }
        first += width * LANES;
    }
    lines
}
