//! A matrix in bfloat16 times one vector, at the speed at which one core reads memory: sums per dataset against a query.
//!
//! A thousand datasets of 8,192 numbers are 64 MiB in f64, 32 in f32, 16 in bfloat16; a product with one vector reads each
//! once and does nothing else, so bytes are time. Entries are rounded once (relative error at most 2⁻⁹), the vector is not,
//! sums are f32 in fixed lanes; [`Bf16Rows::bound`] says how far a product can be from the exact one. Payments use the exact
//! sums, not these. Here never lives: products with many vectors (see [`crate::packed`]).

use ndarray::ArrayView2;

use crate::elementwise::dispatch::{LANES, kernel, sum_lanes};

/// Rows read side by side: one stream of loads is not enough to keep a core's memory busy.
const ROWS: usize = 4;

/// `[K, D]` in bfloat16.
#[derive(Clone, Debug)]
pub struct Bf16Rows {
    n_rows: usize,
    dim: usize,
    numbers: Vec<u16>,
    /// Largest magnitude of each row.
    largest: Vec<f32>,
}

impl Bf16Rows {
    /// Rounds `[K, D]` to nearest, ties to even.
    pub fn new(rows: ArrayView2<'_, f64>) -> Self {
        let numbers = rows.iter().map(|&x| round(x as f32)).collect();
        let largest = rows.rows().into_iter().map(|r| r.iter().fold(0.0f32, |m, &x| m.max(x.abs() as f32))).collect();
        Self { n_rows: rows.nrows(), dim: rows.ncols(), numbers, largest }
    }

    /// Bytes that a product reads.
    pub fn len_bytes(&self) -> usize {
        2 * self.numbers.len()
    }

    /// `out[k] = ⟨row_k, vector⟩`. One thread; the bits do not depend on the processor.
    ///
    /// # Panics
    /// If `vector` is not `[D]` or `out` not `[K]`.
    pub fn multiply(&self, vector: &[f32], out: &mut [f32]) {
        assert_eq!((vector.len(), out.len()), (self.dim, self.n_rows), "a vector of D numbers gives K products");
        if self.dim == 0 {
            return out.fill(0.0);
        }
        multiply(&self.numbers, vector, out);
    }

    /// How far [`Bf16Rows::multiply`] can be from the exact product with row `k`:
    /// `max|row_k| · Σ|v| · (2⁻⁹ + (D/16 + 8)·2⁻²³)`, that is rounding of entries and f32 sums in 16 lanes.
    pub fn bound(&self, k: usize, vector: &[f32]) -> f64 {
        let total: f64 = vector.iter().map(|&x| f64::from(x.abs())).sum();
        let sums = (self.dim as f64 / LANES as f64 + 8.0) * 2f64.powi(-23);
        f64::from(self.largest[k]) * total * (2f64.powi(-9) + sums) * (1.0 + 2f64.powi(-8))
    }
}

/// The nearest bfloat16, ties to even; numbers beyond its range become infinite.
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

#[inline(always)]
fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

kernel! {
    /// Products of all rows with `v`, four rows at a time, each in its own [`LANES`] lanes.
    pub fn multiply / multiply_at (rows: &[u16], v: &[f32], out: &mut [f32]) {
        let dim = v.len();
        let (v_chunks, v_rest) = v.as_chunks::<LANES>();
        let mut groups = rows.chunks_exact(ROWS * dim);
        let mut outs = out.chunks_exact_mut(ROWS);
        for (group, out) in (&mut groups).zip(&mut outs) {
            let (ab, cd) = group.split_at(2 * dim);
            let ((a, b), (c, d)) = (ab.split_at(dim), cd.split_at(dim));
            let [(a, a_rest), (b, b_rest), (c, c_rest), (d, d_rest)] = [a, b, c, d].map(|r| r.as_chunks::<LANES>());
            let mut lanes = [[0.0f32; LANES]; ROWS];
            for ((((v, a), b), c), d) in v_chunks.iter().zip(a).zip(b).zip(c).zip(d) {
                for i in 0..LANES {
                    lanes[0][i] += widen(a[i]) * v[i];
                    lanes[1][i] += widen(b[i]) * v[i];
                    lanes[2][i] += widen(c[i]) * v[i];
                    lanes[3][i] += widen(d[i]) * v[i];
                }
            }
            for ((lanes, rest), out) in lanes.iter_mut().zip([a_rest, b_rest, c_rest, d_rest]).zip(out) {
                lanes.iter_mut().zip(rest).zip(v_rest).for_each(|((lane, &x), &v)| *lane += widen(x) * v);
                *out = sum_lanes(*lanes);
            }
        }
        for (row, out) in groups.remainder().chunks_exact(dim).zip(outs.into_remainder()) {
            let (chunks, rest) = row.as_chunks::<LANES>();
            let mut lanes = [0.0f32; LANES];
            for (v, x) in v_chunks.iter().zip(chunks) {
                for i in 0..LANES {
                    lanes[i] += widen(x[i]) * v[i];
                }
            }
            lanes.iter_mut().zip(rest).zip(v_rest).for_each(|((lane, &x), &v)| *lane += widen(x) * v);
            *out = sum_lanes(lanes);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::elementwise::dispatch::{Level, level};
    use crate::rng::Stream;

    fn toy(n_rows: usize, dim: usize) -> (Array2<f64>, Vec<f32>) {
        let stream = Stream::new(3, "halves");
        let number = |i: u64| (stream.at(i) >> 40) as f64 / f64::from(1 << 23) - 1.0;
        let rows =
            Array2::from_shape_fn((n_rows, dim), |(i, j)| number((i * dim + j) as u64) * 10f64.powi(i as i32 % 7));
        (rows, (0..dim as u64).map(|j| number(1 << 40 | j) as f32).collect())
    }

    /// Against the exact product in f64, within the bound, for shapes that leave rests of every kind; twins to the bit.
    #[test]
    fn products_are_within_their_bound_on_every_level() {
        for (n_rows, dim) in [(1, 1), (3, 16), (4, 17), (9, 100), (6, 1024), (0, 5), (5, 0)] {
            let (rows, v) = toy(n_rows, dim);
            let halves = Bf16Rows::new(rows.view());
            let mut out = vec![f32::NAN; n_rows];
            halves.multiply(&v, &mut out);
            for (k, (row, &found)) in rows.rows().into_iter().zip(&out).enumerate() {
                let exact: f64 = row.iter().zip(&v).map(|(x, &v)| x * f64::from(v)).sum();
                let gap = (exact - f64::from(found)).abs();
                assert!(gap <= halves.bound(k, &v), "[{n_rows}, {dim}], row {k}: {gap} above {}", halves.bound(k, &v));
            }
            if dim > 0 {
                let mut plain = vec![f32::NAN; n_rows];
                for at in [Level::Portable, Level::V3, Level::V4].into_iter().filter(|&l| l <= level()) {
                    multiply_at(at, &halves.numbers, &v, &mut plain);
                    assert_eq!(plain, out, "{at:?}");
                }
            }
        }
    }

    #[test]
    fn rounding_by_hand() {
        // 1 + 2⁻⁸ is half way between 1 and the next bfloat16: to even. A little more goes up.
        assert_eq!(widen(round(1.0 + 2f32.powi(-8))), 1.0);
        assert_eq!(widen(round(1.0 + 2f32.powi(-8) + 2f32.powi(-20))), 1.0 + 2f32.powi(-7));
        assert_eq!(widen(round(-3.5)), -3.5);
        let rows = ndarray::array![[1.0, 2.0], [0.5, -4.0]];
        let mut out = [0.0; 2];
        Bf16Rows::new(rows.view()).multiply(&[3.0, 0.25], &mut out);
        assert_eq!(out, [3.5, 0.5]);
    }
}
