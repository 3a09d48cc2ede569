//! Softmax over a part of strided rows: attention's tiles, which lie side by side in one matrix of probabilities.

use super::dispatch::{LANES, kernel, sum_lanes};
use super::exp::{exp_row, row_max, scale_row};

kernel! {
    /// Softmax of the first `n_cols` numbers of rows that are `stride` apart (the last row may end there): row `i` keeps
    /// the last `window` columns up to `first_row + i` (all that there are if it lies beyond them), the others become 0.
    /// A row that sees nothing becomes 0. What stands between `n_cols` and `stride` is not touched.
    ///
    /// # Panics
    /// If `n_cols > stride`, or the last row ends before `n_cols`.
    pub fn masked_softmax / masked_softmax_at (
        scores: &mut [f32], stride: usize, n_cols: usize, first_row: usize, window: usize,
    ) {
        assert!(n_cols <= stride, "a part of a row is not longer than the row");
        for (i, row) in scores.chunks_mut(stride).enumerate() {
            let row = &mut row[..n_cols];
            let end = first_row + i + 1;
            let (row, hidden) = row.split_at_mut(end.min(n_cols));
            hidden.fill(0.0);
            let (hidden, seen) = row.split_at_mut(end.saturating_sub(window).min(row.len()));
            hidden.fill(0.0);
            if !seen.is_empty() {
                let max = row_max(seen);
                let sum = exp_row(seen, max);
                scale_row(seen, 1.0 / sum);
            }
        }
    }
}

kernel! {
    /// Backward of [`masked_softmax`]: `dp ← scale · p ∘ (dp − Σ dp∘p)` for the first `n_cols` numbers of rows that are
    /// `stride` apart in both.
    ///
    /// # Panics
    /// If `n_cols > stride`, the lengths differ, or the last row ends before `n_cols`.
    pub fn masked_softmax_backward / masked_softmax_backward_at (
        p: &[f32], dp: &mut [f32], stride: usize, n_cols: usize, scale: f32,
    ) {
        assert!(n_cols <= stride, "a part of a row is not longer than the row");
        assert_eq!(p.len(), dp.len(), "probabilities and their gradients have one shape");
        for (p, dp) in p.chunks(stride).zip(dp.chunks_mut(stride)) {
            let (p, dp) = (&p[..n_cols], &mut dp[..n_cols]);
            let (p_chunks, p_rest) = p.as_chunks::<LANES>();
            let (d_chunks, d_rest) = dp.as_chunks::<LANES>();
            let mut lanes = [0.0f32; LANES];
            for (p, d) in p_chunks.iter().zip(d_chunks) {
                for i in 0..LANES {
                    lanes[i] += p[i] * d[i];
                }
            }
            for ((lane, &p), &d) in lanes.iter_mut().zip(p_rest).zip(d_rest) {
                *lane += p * d;
            }
            let dot = sum_lanes(lanes);
            for (d, &p) in dp.iter_mut().zip(p) {
                *d = scale * p * (*d - dot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, level};
    use super::super::{banded_softmax, softmax_backward};
    use super::*;
    use crate::rng::Stream;

    fn noise(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(14, name);
        (0..n).map(|_| (stream.normal() * 2.0) as f32).collect()
    }

    /// The same rows one below the other, without strides, must give the same numbers; between them nothing may move.
    #[test]
    fn strided_rows_give_what_dense_rows_give() {
        let (rows, stride) = (5, 40);
        for (n_cols, first_row, window) in
            [(40, 0, usize::MAX), (33, 28, usize::MAX), (16, 3, 2), (24, 30, 9), (1, 0, 1)]
        {
            let scores = &noise("scores", rows * stride)[..(rows - 1) * stride + n_cols];
            let gradients = &noise("dp", rows * stride)[..scores.len()];
            let dense = |x: &[f32]| x.chunks(stride).flat_map(|row| row[..n_cols].to_vec()).collect::<Vec<_>>();
            let (mut p, mut dp) = (dense(scores), dense(gradients));
            banded_softmax(&mut p, n_cols, first_row, window);
            softmax_backward(&p, &mut dp, n_cols, 0.7);
            for l in [Level::Portable, Level::V3, Level::V4].into_iter().filter(|&l| l <= level()) {
                let (mut q, mut dq) = (scores.to_vec(), gradients.to_vec());
                masked_softmax_at(l, &mut q, stride, n_cols, first_row, window);
                masked_softmax_backward_at(l, &q, &mut dq, stride, n_cols, 0.7);
                assert_eq!((dense(&q), dense(&dq)), (p.clone(), dp.clone()), "{l:?} {n_cols}");
                for (got, old) in [(&q, scores), (&dq, gradients)] {
                    for (got, old) in got.chunks(stride).zip(old.chunks(stride)) {
                        assert_eq!(got[n_cols..], old[n_cols..]);
                    }
                }
            }
        }
    }
}
