//! Sums in a fixed order: blocks of fixed length in f64, added as a tree by block index.
//!
//! The order depends on the length of the input alone, never on threads, so the bytes of a sum can be replayed.
//! Here never lives: sums of money (those are integers).

use rayon::prelude::*;

use crate::elementwise::dispatch::kernel;

/// Numbers per block. A block is summed in [`LANES`] interleaved partial sums; blocks are joined pairwise.
pub const BLOCK: usize = 1024;

/// Interleaved partial sums within a block: as many as fill a 512-bit register with f64.
pub const LANES: usize = 8;

/// Sums `terms(i)` for `i` in `0..n` in the fixed order of this module.
///
/// The error is at most about `(n/(BLOCK) log₂ + BLOCK/LANES)·eps·Σ|term|`. Sequential. Cost `n`.
pub fn sum_by(n: usize, term: impl Fn(usize) -> f64) -> f64 {
    let blocks = (0..n.div_ceil(BLOCK)).map(|block| sum_block(block * BLOCK..n.min((block + 1) * BLOCK), &term));
    tree(blocks.collect())
}

/// [`sum_by`] with the blocks spread over rayon's current pool. Gives the same bytes as [`sum_by`].
pub fn par_sum_by(n: usize, term: impl Fn(usize) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> = (0..n.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| sum_block(block * BLOCK..n.min((block + 1) * BLOCK), &term))
        .collect();
    tree(sums)
}

/// Sum of `values`.
pub fn sum(values: &[f64]) -> f64 {
    sum_by(values.len(), |i| values[i])
}

/// `Σ a_i·b_i` of two f32 slices; every product and every sum is in f64.
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "a dot product needs two slices of one length");
    if a.len() <= BLOCK {
        // The tree of one block is that block, and takes no memory.
        return dot_block(a, b);
    }
    let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK)).map(|(a, b)| dot_block(a, b));
    tree(blocks.collect())
}

kernel! {
    /// One block of a dot product. A product of two f32 numbers is exact in f64, so it makes no difference whether a processor
    /// fuses it with the sum: the twins give the same bits.
    fn dot_block / dot_block_at (a: &[f32], b: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (x, y) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] += f64::from(x[lane]) * f64::from(y[lane]);
            }
        }
        for (lane, (x, y)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += f64::from(*x) * f64::from(*y);
        }
        join_lanes(lanes)
    }
}

/// [`dot`] of `a` with four slices at once, to the bit: `a` is read and widened once, which makes scans of many rows faster.
///
/// # Panics
/// If the lengths differ.
pub fn dot4(a: &[f32], b: [&[f32]; 4]) -> [f64; 4] {
    assert!(b.iter().all(|b| b.len() == a.len()), "a dot product needs two slices of one length");
    let mut blocks: [Vec<f64>; 4] = Default::default();
    for (i, a) in a.chunks(BLOCK).enumerate() {
        let part = b.map(|b| &b[i * BLOCK..i * BLOCK + a.len()]);
        for (blocks, sum) in blocks.iter_mut().zip(dot4_block(a, part)) {
            blocks.push(sum);
        }
    }
    blocks.map(tree)
}

kernel! {
    /// One block of [`dot4`]: the additions of [`dot_block`], in its order.
    fn dot4_block / dot4_block_at (a: &[f32], b: [&[f32]; 4]) -> [f64; 4] {
        let mut lanes = [[0.0f64; LANES]; 4];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let n = a.len() * LANES;
        let [b0, b1, b2, b3] = b.map(|b| b[..n].as_chunks::<LANES>().0);
        for ((((x, y0), y1), y2), y3) in a.iter().zip(b0).zip(b1).zip(b2).zip(b3) {
            for (lanes, y) in lanes.iter_mut().zip([y0, y1, y2, y3]) {
                for lane in 0..LANES {
                    lanes[lane] += f64::from(x[lane]) * f64::from(y[lane]);
                }
            }
        }
        for (lanes, b) in lanes.iter_mut().zip(b) {
            for (lane, (x, y)) in lanes.iter_mut().zip(a_rest.iter().zip(&b[n..])) {
                *lane += f64::from(*x) * f64::from(*y);
            }
        }
        lanes.map(join_lanes)
    }
}

/// Adds neighbours until one is left; an odd last one waits for the next level. The empty sum is 0.
pub fn tree(mut sums: Vec<f64>) -> f64 {
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
    sums.first().copied().unwrap_or(0.0)
}

fn sum_block(range: std::ops::Range<usize>, term: &impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for (position, i) in range.enumerate() {
        lanes[position % LANES] += term(i);
    }
    join_lanes(lanes)
}

#[inline(always)]
fn join_lanes(l: [f64; LANES]) -> f64 {
    ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn integers_are_summed_exactly() {
        for n in [0usize, 1, 7, 8, 9, 1023, 1024, 1025, 5000] {
            assert_eq!(sum_by(n, |i| i as f64), (n * n.saturating_sub(1) / 2) as f64, "n = {n}");
            assert_eq!(dot(&vec![2.0; n], &vec![3.0; n]), 6.0 * n as f64, "n = {n}");
        }
    }

    #[test]
    fn twins_give_the_same_bits() {
        use crate::elementwise::dispatch::{Level, level};
        let mut stream = Stream::new(3, "sum-test");
        let x: Vec<f32> = (0..2000).map(|_| (stream.normal() * 1e3) as f32).collect();
        for n in [0, 1, 7, 8, 100, 1000] {
            let (a, b) = (&x[..n], &x[1000..1000 + n]);
            let portable = dot_block_at(Level::Portable, a, b);
            for twin in [Level::V3, Level::V4].into_iter().filter(|twin| *twin <= level()) {
                assert_eq!(dot_block_at(twin, a, b).to_bits(), portable.to_bits(), "{twin:?} {n}");
            }
        }
    }

    #[test]
    fn four_dot_products_have_the_bits_of_one_each() {
        use crate::elementwise::dispatch::{Level, level};
        let mut stream = Stream::new(4, "sum-test");
        let x: Vec<f32> = (0..16_000).map(|_| (stream.normal() * 1e3) as f32).collect();
        for n in [0, 1, 7, 8, 100, 1023, 1024, 1025, 3000] {
            let (a, b) = (&x[..n], [1, 2, 3, 4].map(|i| &x[i * 3000 + 7..i * 3000 + 7 + n]));
            let bits = |sums: [f64; 4]| sums.map(f64::to_bits);
            assert_eq!(bits(dot4(a, b)), bits(b.map(|b| dot(a, b))), "{n}");
            if n <= BLOCK {
                for twin in [Level::Portable, Level::V3, Level::V4].into_iter().filter(|twin| *twin <= level()) {
                    assert_eq!(bits(dot4_block_at(twin, a, b)), bits(b.map(|b| dot_block(a, b))), "{twin:?} {n}");
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bytes() {
        let mut stream = Stream::new(1, "sum-test");
        let values: Vec<f64> = (0..50_001).map(|_| stream.normal() * 1e3).collect();
        let plain = sum(&values);
        for n_threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let parallel = pool.install(|| par_sum_by(values.len(), |i| values[i]));
            assert_eq!(plain.to_bits(), parallel.to_bits());
        }
    }

    #[test]
    fn is_close_to_a_compensated_sum() {
        let mut stream = Stream::new(2, "sum-test");
        let values: Vec<f64> = (0..100_000).map(|_| stream.normal()).collect();
        // Neumaier's compensated sum: a second route with an error of about eps.
        let (mut total, mut carry) = (0.0f64, 0.0f64);
        for &v in &values {
            let next = total + v;
            carry += if total.abs() >= v.abs() { (total - next) + v } else { (v - next) + total };
            total = next;
        }
        let magnitude: f64 = values.iter().map(|v| v.abs()).sum();
        // Depth of the tree: 128 additions in a lane, 3 to join lanes, 7 to join 98 blocks.
        assert!((sum(&values) - (total + carry)).abs() <= 138.0 * f64::EPSILON * magnitude);
    }
}
