//! Products with a packed right operand against the machine's own limit, at the shapes of a small GPT-2's passes.
//!
//! Prints Gflop/s of one thread and the share of the peak that a loop of nothing but FMAs reaches. The best of many short
//! rounds counts, so that a busy machine does not blur it more than it must.
#![allow(unsafe_code)] // the peak loop calls a function compiled for AVX-512
#![allow(clippy::print_stdout)] // a bench is a door

use std::hint::black_box;
use std::time::Instant;

use ascribe_benches::normal;
use ascribe_linalg::packed::{self, Operand, PackedMatrix, Precision, RoundedRows, multiply_direct};
use ascribe_linalg::{Threads, gemm};
use ndarray::Array2;

/// `[k, n]`: qkv, attention output, up, down, head, head backward, and three projections of gradient rows.
const WEIGHTS: [[usize; 2]; 10] = [
    [256, 768],
    [256, 256],
    [256, 1024],
    [1024, 256],
    [256, 4096],
    [4096, 256],
    [256, 16],
    [1024, 16],
    [1024, 32],
    [1024, 64],
];

const ROWS: [usize; 3] = [128, 512, 1024];

/// Attention's products over a sequence of 128 with heads of 64, and one sequence's outer product of projections.
const DIRECT: [([usize; 3], bool); 5] = [
    ([128, 64, 128], false),
    ([128, 128, 64], false),
    ([128, 128, 64], true),
    ([16, 128, 16], true),
    ([64, 128, 64], true),
];

fn main() {
    let peaks = peaks();
    println!("{}; peak f32 {:.0}, bf16 {:.0} Gflop/s", packed::isa(), peaks[0], peaks[1]);
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    println!("{:>16} {:>8} {:>12} {:>16} {:>16}", "m x k x n", "gemm", "with W^T", "packed f32", "packed bf16");
    for [k, n] in WEIGHTS {
        for m in ROWS {
            let name = format!("{m}x{k}x{n}");
            if only.as_ref().is_none_or(|only| name.contains(only)) {
                row(&name, [m, k, n], peaks);
            }
        }
    }
    println!("{:>16} {:>8} {:>16}", "direct", "gemm", "ours");
    for (shape @ [m, k, n], transposed) in DIRECT {
        let name = format!("{m}x{k}x{n}{}", if transposed { " T" } else { "" });
        if only.as_ref().is_none_or(|only| name.contains(only)) {
            direct_row(&name, shape, transposed, peaks[0]);
        }
    }
}

fn row(name: &str, [m, k, n]: [usize; 3], peaks: [f64; 2]) {
    let flop = (2 * m * k * n) as f64;
    let (a, b, mut c) = (normal("a", m, k), normal("b", k, n), Array2::<f32>::zeros((m, n)));
    let b_t = b.t().as_standard_layout().into_owned();
    let x = a.as_slice().expect("fresh arrays are contiguous");
    let stock = rate(flop, || gemm(1.0, a.view(), b.view(), 0.0, c.view_mut(), Threads::One));
    let stock_t = rate(flop, || gemm(1.0, a.view(), b_t.t(), 0.0, c.view_mut(), Threads::One));
    let c = c.as_slice_mut().expect("fresh arrays are contiguous");
    let mut memory = RoundedRows::new();
    let ours = [Precision::F32, Precision::Bf16].map(|precision| {
        let matrix = PackedMatrix::new(precision, b.view());
        rate(flop, || matrix.multiply(&memory.prepare(precision, m, k, k, x), 0.0, c, n))
    });
    let share = |i: usize| format!("{:.0} ({:.0} %)", ours[i], 100.0 * ours[i] / peaks[i]);
    println!("{name:>16} {stock:>8.0} {stock_t:>12.0} {:>16} {:>16}", share(0), share(1));
}

fn direct_row(name: &str, [m, k, n]: [usize; 3], transposed: bool, peak: f64) {
    let flop = (2 * m * k * n) as f64;
    let (b, mut c) = (normal("b", k, n), Array2::<f32>::zeros((m, n)));
    let a = if transposed { normal("a", k, m) } else { normal("a", m, k) };
    let view = if transposed { a.t() } else { a.view() };
    let stock = rate(flop, || gemm(1.0, view, b.view(), 0.0, c.view_mut(), Threads::One));
    let x = a.as_slice().expect("fresh arrays are contiguous");
    let operand = if transposed { Operand::transposed(x, m) } else { Operand::rows(x, k) };
    let b = b.as_slice().expect("fresh arrays are contiguous");
    let c = c.as_slice_mut().expect("fresh arrays are contiguous");
    let ours = rate(flop, || multiply_direct([m, k, n], operand, (b, n), 0.0, (c, n)));
    println!("{name:>16} {stock:>8.0} {:>16}", format!("{ours:.0} ({:.0} %)", 100.0 * ours / peak));
}

/// Gflop/s: the best of 30 rounds of about 2 ms, so that one round finds the core free even on a busy machine.
fn rate(flop: f64, mut work: impl FnMut()) -> f64 {
    let mut time = |n: usize| {
        let start = Instant::now();
        for _ in 0..n {
            black_box(&mut work)();
        }
        start.elapsed().as_secs_f64()
    };
    let once = (0..3).map(|_| time(1)).fold(f64::INFINITY, f64::min);
    let n = (0.002 / once.max(1e-7)).ceil() as usize;
    let best = (0..30).map(|_| time(n)).fold(f64::INFINITY, f64::min);
    flop * n as f64 / best / 1e9
}

/// Gflop/s of 24 independent chains of FMAs, and of bf16 pair products, that touch no memory.
#[cfg(target_arch = "x86_64")]
fn peaks() -> [f64; 2] {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    fn fma() {
        let (x, y) = (_mm512_set1_ps(black_box(1e-9)), _mm512_set1_ps(black_box(0.5)));
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..10_000 {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn pairs() {
        let x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(1e-9)), _mm512_set1_ps(black_box(0.5)));
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..10_000 {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    let flop = 24.0 * 16.0 * 2.0 * 10_000.0;
    let mut found = [f64::NAN; 2];
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the feature.
        found[0] = rate(flop, || unsafe { fma() });
    }
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the processor has the feature.
        found[1] = rate(2.0 * flop, || unsafe { pairs() });
    }
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn peaks() -> [f64; 2] {
    [f64::NAN; 2]
}
