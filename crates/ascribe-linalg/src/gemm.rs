//! Matrix products over `ndarray` views, through the `gemm` crate (AVX-512 where the processor has it).
//!
//! One product of one shape gives the same bytes whatever `Threads` says only with [`Threads::One`]; code whose bytes
//! matter (features, scores) therefore runs single-threaded products of fixed shapes inside its own parallel loop.
#![allow(unsafe_code)] // the `gemm` crate takes raw pointers; bounds are checked here, once

use ndarray::{ArrayView2, ArrayViewMut2};

/// How many threads one product may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    /// The calling thread alone.
    One,
    /// All of rayon's current pool.
    All,
}

macro_rules! product {
    ($(#[$doc:meta])* $name:ident, $float:ty) => {
        $(#[$doc])*
        pub fn $name(
            alpha: $float,
            a: ArrayView2<'_, $float>,
            b: ArrayView2<'_, $float>,
            beta: $float,
            mut c: ArrayViewMut2<'_, $float>,
            threads: Threads,
        ) {
            let (m, k) = a.dim();
            let n = b.ncols();
            assert_eq!(k, b.nrows(), "inner dimensions of a product differ");
            assert_eq!((m, n), c.dim(), "the result of a product has another shape");
            let parallelism = match threads {
                Threads::One => ::gemm::Parallelism::None,
                Threads::All => ::gemm::Parallelism::Rayon(0),
            };
            let (c_rs, c_cs) = (c.strides()[0], c.strides()[1]);
            // SAFETY: pointers and strides come from live views whose shapes were just checked to fit each other;
            // `c` is borrowed mutably, so it overlaps neither `a` nor `b`.
            unsafe {
                ::gemm::gemm(
                    m, n, k,
                    c.as_mut_ptr(), c_cs, c_rs, beta != 0.0,
                    a.as_ptr(), a.strides()[1], a.strides()[0],
                    b.as_ptr(), b.strides()[1], b.strides()[0],
                    beta, alpha, false, false, false, parallelism,
                );
            }
        }
    };
}

product!(
    /// `c ← alpha · a·b + beta · c` in f32. With `beta = 0` the old content of `c` is not read.
    ///
    /// Shapes `[m, k] · [k, n] → [m, n]`, any strides. Cost `2·m·k·n`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    gemm,
    f32
);

product!(
    /// [`gemm()`] in f64.
    ///
    /// # Panics
    /// If the shapes do not fit.
    gemm_f64,
    f64
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use ndarray::Array2;

    fn check(m: usize, k: usize, n: usize) {
        let mut stream = Stream::new(1, "gemm-test");
        let a = Array2::from_shape_fn((m, k), |_| stream.normal() as f32);
        let b = Array2::from_shape_fn((n, k), |_| stream.normal() as f32);
        let mut c = Array2::from_elem((m, n), 1.0f32);
        gemm(2.0, a.view(), b.t(), 0.5, c.view_mut(), Threads::One);
        for ((i, j), &got) in c.indexed_iter() {
            let exact: f64 = 0.5 + 2.0 * (0..k).map(|l| f64::from(a[(i, l)]) * f64::from(b[(j, l)])).sum::<f64>();
            // Forward error of a dot product of k terms of unit size: a few k·eps.
            let tolerance = 4.0 * k as f64 * f64::from(f32::EPSILON) + 1e-6;
            assert!((f64::from(got) - exact).abs() < tolerance, "{m}x{k}x{n} at {i},{j}: {got} {exact}");
        }
    }

    #[test]
    fn agrees_with_the_plain_sum() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (128, 128, 32), (33, 129, 65), (1, 64, 8), (8, 64, 1)] {
            check(m, k, n);
        }
    }
}
