//! AMX: bf16 products on 16 × 16 tiles, from stable Rust through `asm!`.
//!
//! Instructions and layouts follow the Intel 64 manual (LDTILECFG, TILELOADD, TDPBF16PS): a left tile is 16 rows of 32
//! bf16, a right tile 16 pairs of rows by 16 columns, which is how panels lie anyway. The processor that this was written
//! on has no AMX: the blocks were assembled and reviewed, the loops around them are tested against emulated tiles, and a
//! processor that has AMX uses them only after [`works`] has compared a product with plain loops.
#![allow(unsafe_code)] // tiles exist only in assembly; `drive` keeps the pointers within the operands

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use super::drive::Tile;
use super::layout::{LANES, Line};

/// Rows of the tallest block: two left tiles.
pub(super) const MAX_ROWS: usize = 32;

/// What `LDTILECFG` reads: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

const CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64; // bytes per row, little endian
        bytes[48 + tile] = 16; // rows
        tile += 1;
    }
    Config(bytes)
};

/// True if the processor has AMX tiles with bf16 and the system lets this process use them (asked for here).
pub(crate) fn available() -> bool {
    const TILE_STATE: u64 = 3 << 17;
    let (leaf_1, leaf_7) = (__cpuid(1), if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 });
    let (has_tiles, has_bf16) = (leaf_7 >> 24 & 1 == 1, leaf_7 >> 22 & 1 == 1);
    let os_saves = leaf_1.ecx >> 27 & 1 == 1;
    // SAFETY: XGETBV exists where the system has set OSXSAVE, which was checked just before.
    has_tiles && has_bf16 && os_saves && unsafe { state_components() } & TILE_STATE == TILE_STATE && permitted()
}

// SAFETY: to be called where OSXSAVE is set.
#[target_feature(enable = "xsave")]
unsafe fn state_components() -> u64 {
    // SAFETY: register 0 always exists.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the 8 KiB of tile state per thread that it hands out on request only; holds for the whole process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let status: i64;
    // SAFETY: a system call with two plain numbers; it reads and writes no memory of ours, and the kernel changes only
    // rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => status,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    status == 0
}

/// Elsewhere nobody has told us how to ask.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Makes the eight tiles ready on this thread.
///
/// # Safety
/// [`available`] must have said yes.
pub(crate) unsafe fn configure() {
    // SAFETY: the instruction exists, and reads the 64 bytes of a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) }
}

/// Gives the tiles back, so that a task switch need not save them.
///
/// # Safety
/// [`available`] must have said yes.
pub(crate) unsafe fn release() {
    // SAFETY: the instruction exists and touches tile state only.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

/// Operands of one block of 1 or 2 by 1 or 2 tiles, strides in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub a: *const u32,
    pub a_row: usize,
    pub b: *const u32,
    pub b_step: usize,
    /// Groups of 16 steps (32 numbers of k), at least one.
    pub groups: usize,
    pub c: *mut f32,
    pub c_row: usize,
    /// False: sums start at zero; true: at what stands in `c`.
    pub keep: bool,
}

/// A block function: multiplies whole tiles.
pub(crate) type Multiply = unsafe fn(&Block);

/// Left tiles stand in tmm4 and tmm5, right tiles in tmm6 and tmm7, sums in tmm0 to tmm3 (row · 2 + column).
macro_rules! block {
    ($name:ident, zero: [$($zero:literal),*], load: [$($load:literal),*], step: [$($step:expr),*], store: [$($store:literal),*]) => {
        // SAFETY: to be called on a configured thread with a block whose pointers cover its whole tiles.
        unsafe fn $name(block: &$crate::packed::amx::Block) {
            // SAFETY: the caller promised readable and writable tiles; all registers that change are declared.
            unsafe {
                std::arch::asm!(
                    "test {keep}, {keep}",
                    "jz 2f",
                    $($load,)*
                    "jmp 3f",
                    "2:",
                    $($zero,)*
                    "3:",
                    $($step,)*
                    "add {a0}, 64",
                    "add {a1}, 64",
                    "add {b}, {b_group}",
                    "dec {groups}",
                    "jnz 3b",
                    $($store,)*
                    // Named although some blocks need fewer: an operand may not stay unused.
                    "/* {a0} {a1} {a_row} {b} {b_step} {c0} {c1} {c_row} */",
                    keep = in(reg) usize::from(block.keep),
                    a0 = inout(reg) block.a => _,
                    a1 = inout(reg) block.a.wrapping_byte_add(16 * block.a_row) => _,
                    a_row = in(reg) block.a_row,
                    b = inout(reg) block.b => _,
                    b_step = in(reg) block.b_step,
                    b_group = in(reg) 16 * block.b_step,
                    groups = inout(reg) block.groups => _,
                    c0 = in(reg) block.c,
                    c1 = in(reg) block.c.wrapping_byte_add(16 * block.c_row),
                    c_row = in(reg) block.c_row,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

pub(crate) use block;

/// The four shapes of block around one instruction (bf16 here, int8 in `scan::tiles`: the geometry in bytes is the same), and
/// `real`, which picks one by its rows and columns of tiles.
macro_rules! blocks {
    ($product:literal) => {
        $crate::packed::amx::block!(
            one_by_one,
            zero: ["tilezero tmm0"],
            load: ["tileloadd tmm0, [{c0} + {c_row}]"],
            step: [
                "tileloadd tmm4, [{a0} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_step}]",
                concat!($product, " tmm0, tmm4, tmm6")
            ],
            store: ["tilestored [{c0} + {c_row}], tmm0"]
        );

        $crate::packed::amx::block!(
            one_by_two,
            zero: ["tilezero tmm0", "tilezero tmm1"],
            load: ["tileloadd tmm0, [{c0} + {c_row}]", "tileloadd tmm1, [{c0} + {c_row} + 64]"],
            step: [
                "tileloadd tmm4, [{a0} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_step}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b} + {b_step} + 64]",
                concat!($product, " tmm1, tmm4, tmm7")
            ],
            store: ["tilestored [{c0} + {c_row}], tmm0", "tilestored [{c0} + {c_row} + 64], tmm1"]
        );

        $crate::packed::amx::block!(
            two_by_one,
            zero: ["tilezero tmm0", "tilezero tmm2"],
            load: ["tileloadd tmm0, [{c0} + {c_row}]", "tileloadd tmm2, [{c1} + {c_row}]"],
            step: [
                "tileloadd tmm4, [{a0} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_step}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm5, [{a1} + {a_row}]",
                concat!($product, " tmm2, tmm5, tmm6")
            ],
            store: ["tilestored [{c0} + {c_row}], tmm0", "tilestored [{c1} + {c_row}], tmm2"]
        );

        $crate::packed::amx::block!(
            two_by_two,
            zero: ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
            load: [
                "tileloadd tmm0, [{c0} + {c_row}]",
                "tileloadd tmm1, [{c0} + {c_row} + 64]",
                "tileloadd tmm2, [{c1} + {c_row}]",
                "tileloadd tmm3, [{c1} + {c_row} + 64]"
            ],
            step: [
                "tileloadd tmm4, [{a0} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_step}]",
                concat!($product, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b} + {b_step} + 64]",
                concat!($product, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{a1} + {a_row}]",
                concat!($product, " tmm2, tmm5, tmm6"),
                concat!($product, " tmm3, tmm5, tmm7")
            ],
            store: [
                "tilestored [{c0} + {c_row}], tmm0",
                "tilestored [{c0} + {c_row} + 64], tmm1",
                "tilestored [{c1} + {c_row}], tmm2",
                "tilestored [{c1} + {c_row} + 64], tmm3"
            ]
        );

        /// The block function of `rows` by `columns` tiles on the processor's own tiles.
        fn real(rows: usize, columns: usize) -> $crate::packed::amx::Multiply {
            match (rows, columns) {
                (1, 1) => one_by_one,
                (1, _) => one_by_two,
                (_, 1) => two_by_one,
                _ => two_by_two,
            }
        }
    };
}

pub(crate) use blocks;

blocks!("tdpbf16ps");

/// One tile of `drive`: up to 32 rows and 3 lines.
///
/// # Safety
/// As `drive::product`, on a configured thread; left rows must be readable up to the next multiple of 16, steps up to the
/// next multiple of 16 with zeros on the right side.
pub(super) unsafe fn tile(mr: usize, lines: usize, t: &Tile) {
    // SAFETY: passed on.
    unsafe { tile_with(real, mr, lines, t) }
}

/// [`tile`] on any kind of tiles.
///
/// # Safety
/// As [`tile`].
pub(super) unsafe fn tile_with(pick: fn(usize, usize) -> Multiply, mr: usize, lines: usize, t: &Tile) {
    let mut line = 0;
    while line < lines {
        let columns = (lines - line).min(2);
        let mask = if line + columns == lines { t.mask } else { u16::MAX };
        let width = (columns - 1) * LANES + mask.count_ones() as usize;
        // SAFETY: lines of the panel and rows of the result that the caller promised.
        unsafe {
            let part = Tile {
                b: t.b.add(line * LANES),
                c: t.c.add(line * LANES),
                bias: if t.bias.is_null() { t.bias } else { t.bias.add(line * LANES) },
                ..*t
            };
            columns_of(pick(mr.div_ceil(LANES), columns), mr, columns, width, &part);
        }
        line += columns;
    }
}

/// One or two lines of a tile: whole tiles in place, others through a buffer.
///
/// # Safety
/// As [`tile`].
unsafe fn columns_of(multiply: Multiply, mr: usize, columns: usize, width: usize, t: &Tile) {
    let keep = t.keep != 0.0 || !t.bias.is_null();
    let mut block = Block {
        a: t.a,
        a_row: 4 * t.a_row,
        b: t.b,
        b_step: 4 * t.b_step,
        groups: t.depth.div_ceil(LANES),
        c: t.c,
        c_row: 4 * t.c_row,
        keep,
    };
    // SAFETY: rows `0..mr` and columns `0..width` of the result exist; the buffer holds 32 rows of two lines.
    unsafe {
        if keep && !(t.keep == 1.0 && t.bias.is_null()) {
            start(mr, width, t);
        }
        if block.groups == 0 {
            if !keep {
                start(mr, width, t);
            }
        } else if mr.is_multiple_of(LANES) && width == columns * LANES {
            multiply(&block);
        } else {
            let mut buffer = [Line([0; LANES]); 2 * MAX_ROWS];
            let own = buffer.as_mut_ptr().cast::<f32>();
            for i in 0..if keep { mr } else { 0 } {
                std::ptr::copy_nonoverlapping(t.c.add(i * t.c_row), own.add(i * 2 * LANES), width);
            }
            (block.c, block.c_row) = (own, 4 * 2 * LANES);
            multiply(&block);
            for i in 0..mr {
                std::ptr::copy_nonoverlapping(own.add(i * 2 * LANES), t.c.add(i * t.c_row), width);
            }
        }
    }
}

/// `c ← keep·c + bias` by plain loops.
///
/// # Safety
/// As [`tile`].
unsafe fn start(mr: usize, width: usize, t: &Tile) {
    for i in 0..mr {
        for j in 0..width {
            // SAFETY: row `i` and column `j` of the result exist, and so does the bias of column `j`.
            unsafe {
                let (c, bias) = (t.c.add(i * t.c_row + j), if t.bias.is_null() { 0.0 } else { *t.bias.add(j) });
                *c = if t.keep == 0.0 { bias } else { t.keep.mul_add(*c, bias) };
            }
        }
    }
}

/// True if a small product on tiles agrees with plain loops: asked once, after [`available`].
pub(super) fn works() -> bool {
    use super::matrix::PackedMatrix;
    use super::route::{Precision, Route};
    use super::rows::RoundedRows;
    let (m, k, n) = (37, 70, 83);
    let mut stream = crate::rng::Stream::new(1, "amx-self-test");
    let a: Vec<f32> = (0..m * k).map(|_| stream.normal() as f32).collect();
    let b = ndarray::Array2::from_shape_fn((k, n), |_| stream.normal() as f32);
    let product = |route| {
        let mut c = vec![0.5f32; m * n];
        let matrix = PackedMatrix::on_unchecked(route, Precision::Bf16, b.view());
        matrix.multiply(&RoundedRows::new().round(route, m, k, k, &a), 1.0, &mut c, n);
        c
    };
    let (tiles, plain) = (product(Route::Amx), product(Route::Portable));
    // Sums of 70 products of unit size in another order: a few times √70·eps.
    tiles.iter().zip(&plain).all(|(x, y)| (x - y).abs() < 1e-4)
}

/// Tiles in plain arithmetic, to test the loops on processors without AMX.
#[cfg(test)]
pub(super) mod emulated {
    use super::*;

    pub(in super::super) fn pick(rows: usize, columns: usize) -> Multiply {
        match (rows, columns) {
            (1, 1) => multiply::<1, 1>,
            (1, _) => multiply::<1, 2>,
            (_, 1) => multiply::<2, 1>,
            _ => multiply::<2, 2>,
        }
    }

    // SAFETY: to be called with a block whose pointers cover its whole tiles.
    unsafe fn multiply<const ROWS: usize, const COLUMNS: usize>(block: &Block) {
        let half = |word: u32, odd: bool| f32::from_bits(if odd { word & 0xffff_0000 } else { word << 16 });
        for i in 0..ROWS * LANES {
            for j in 0..COLUMNS * LANES {
                // SAFETY: whole tiles, as the caller promised.
                unsafe {
                    let c = block.c.byte_add(i * block.c_row).add(j);
                    let mut sum = if block.keep { *c } else { 0.0 };
                    for group in 0..block.groups {
                        let mut parts = [0.0f32; 2];
                        for step in group * LANES..(group + 1) * LANES {
                            let a = *block.a.byte_add(i * block.a_row).add(step);
                            let b = *block.b.byte_add(step * block.b_step).add(j);
                            for (odd, part) in parts.iter_mut().enumerate() {
                                *part += half(a, odd == 1) * half(b, odd == 1);
                            }
                        }
                        sum += parts[0] + parts[1];
                    }
                    *c = sum;
                }
            }
        }
    }
}
