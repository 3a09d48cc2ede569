//! The twin of every f32 kernel in plain loops: what the others must equal bit for bit.
#![allow(unsafe_code)] // reads the same pointers as the kernels that it stands for

use super::drive::Tile;
use super::layout::LANES;

/// One tile; `f32::mul_add` rounds once on every machine.
///
/// # Safety
/// As `drive::product`: the tile's pointers cover its rows, steps and existing columns.
pub(super) unsafe fn tile(mr: usize, lines: usize, t: &Tile) {
    let columns = (lines - 1) * LANES + t.mask.count_ones() as usize;
    for i in 0..mr {
        for line in 0..lines {
            let width = (columns - line * LANES).min(LANES);
            let mut sums = [0.0f32; LANES];
            // SAFETY: columns `line·16 .. line·16 + width` of row `i` exist, as the caller promised.
            unsafe {
                let c = std::slice::from_raw_parts_mut(t.c.add(i * t.c_row + line * LANES), width);
                for (j, sum) in sums.iter_mut().enumerate().take(width) {
                    *sum = match (t.keep != 0.0, t.bias.is_null()) {
                        (false, true) => 0.0,
                        (false, false) => *t.bias.add(line * LANES + j),
                        (true, true) => t.keep * c[j],
                        (true, false) => t.keep.mul_add(c[j], *t.bias.add(line * LANES + j)),
                    };
                }
                for step in 0..t.depth {
                    let a = f32::from_bits(*t.a.add(i * t.a_row + step * t.a_step));
                    let b = std::slice::from_raw_parts(t.b.add(step * t.b_step + line * LANES), width);
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        *sum = a.mul_add(f32::from_bits(b), *sum);
                    }
                }
                c.copy_from_slice(&sums[..width]);
            }
        }
    }
}
