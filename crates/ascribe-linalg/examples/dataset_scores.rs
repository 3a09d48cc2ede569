//! How fast one core gives a response's scores for many datasets, once its query vector is there.
//!
//! `cargo run --release -p ascribe-linalg --example dataset_scores -- [datasets] [dim]`
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use ascribe_linalg::{Bf16Rows, Stream, Threads, gemm_f64};
use ndarray::{Array2, ArrayView2};

const ROUNDS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |text| text.parse());
    let (n, dim) = (number(0, 1000)?, number(1, 8192)?);
    let stream = Stream::new(1, "dataset_scores");
    let value = |i: u64| (stream.at(i) >> 40) as f64 / f64::from(1 << 23) - 1.0;
    let sums = Array2::from_shape_fn((n, dim), |(k, j)| value((k * dim + j) as u64));
    let query: Vec<f32> = (0..dim as u64).map(|j| value(1 << 50 | j) as f32).collect();
    let halves = Bf16Rows::new(sums.view());

    // The floor: the same bytes read once and added up, four streams, on the same core.
    let words: Vec<u64> = vec![0x0123_4567_89AB_CDEF; halves.len_bytes() / 8];
    let read = best(|| black_box(read_once(black_box(&words))));
    let mut scores = vec![0.0; n];
    let product = best(|| {
        halves.multiply(black_box(&query), &mut scores);
        black_box(scores[0])
    });
    let wide: Array2<f64> = Array2::from_shape_fn((1, dim), |(_, j)| f64::from(query[j]));
    let mut exact = Array2::zeros((1, n));
    let double = best(|| {
        gemm_f64(1.0, black_box(wide.view()), sums.t(), 0.0, exact.view_mut(), Threads::One);
        black_box(exact[(0, 0)])
    });
    let worst =
        (0..n).map(|k| (exact[(0, k)] - f64::from(scores[k])).abs() / halves.bound(k, &query)).fold(0.0, f64::max);
    let gb = |bytes: usize, s: f64| bytes as f64 / s / 1e9;
    println!("{n} datasets, {dim} numbers, one core, best of {ROUNDS}");
    println!("bfloat16 product  {:8.3} ms  {:6.1} GB/s", product * 1e3, gb(halves.len_bytes(), product));
    println!("bfloat16 bytes, read only {:8.3} ms  {:6.1} GB/s", read * 1e3, gb(halves.len_bytes(), read));
    println!("exact f64 product {:8.3} ms  {:6.1} GB/s", double * 1e3, gb(8 * n * dim, double));
    println!(
        "largest error, in parts of its bound: {worst:.2e}; rank correlation of the two: {:.6}",
        agreement(exact.view(), &scores)
    );
    Ok(())
}

fn best<T>(mut work: impl FnMut() -> T) -> f64 {
    let time = |_| {
        let begun = Instant::now();
        black_box(work());
        begun.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}

fn read_once(words: &[u64]) -> u64 {
    let quarter = words.len() / 4;
    let (a, b) = words.split_at(2 * quarter);
    let ((a, b), (c, d)) = (a.split_at(quarter), b.split_at(quarter));
    let mut sums = [[0u64; 8]; 4];
    let chunks =
        a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).zip(c.as_chunks::<8>().0).zip(d.as_chunks::<8>().0);
    for (((a, b), c), d) in chunks {
        for i in 0..8 {
            sums[0][i] ^= a[i];
            sums[1][i] ^= b[i];
            sums[2][i] ^= c[i];
            sums[3][i] ^= d[i];
        }
    }
    sums.iter().flatten().fold(0, |all, x| all ^ x)
}

/// Spearman's correlation.
fn agreement(exact: ArrayView2<'_, f64>, scores: &[f32]) -> f64 {
    let ranks = |values: Vec<f64>| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mut ranks = vec![0.0; order.len()];
        order.into_iter().enumerate().for_each(|(rank, i)| ranks[i] = rank as f64);
        ranks
    };
    let (a, b) = (ranks(exact.iter().copied().collect()), ranks(scores.iter().map(|&x| f64::from(x)).collect()));
    let squares: f64 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
    let n = a.len() as f64;
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}
