//! Times the stages at the demo's size: `cargo run --release -p ascribe-methods --example speed`.
//!
//! Arguments (optional): rows, columns per module, modules, queries. Prints seconds and the f64 rate of each stage.
#![allow(clippy::print_stdout)] // a table for a person

use std::error::Error;
use std::time::Instant;

use ascribe_core::NoProgress;
use ascribe_linalg::{Stream, Threads, gemm_f64};
use ascribe_methods::block_fisher::{self, Covariance};
use ascribe_methods::combine::{self, Channel, FitOptions, Holdout, Splits, TrueShares};
use ascribe_methods::dot;
use ascribe_testkit::{MemoryReader, gradient_spec, toy_rows};
use ndarray::Array2;
use rayon::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let argument = |i: usize, default: usize| given.get(i).copied().unwrap_or(default);
    let (n, width, modules, q) = (argument(0, 9_000), argument(1, 1_024), argument(2, 8), argument(3, 80));
    let dim = width * modules;
    let mut stream = Stream::new(1, "speed");
    // A cheap pool of normal numbers, shifted per row: the speed does not depend on the values.
    let pool: Vec<f32> = (0..100_003).map(|_| stream.normal() as f32).collect();
    let rows = Array2::from_shape_fn((n, dim), |(i, j)| pool[(i * 7_919 + j) % pool.len()]);
    let reader = MemoryReader::new(gradient_spec(&vec![width; modules]), toy_rows(n, 1, 10).0, rows, 1_000);
    let queries = Array2::from_shape_fn((q, dim), |(i, j)| pool[(i * 104_729 + j * 3) % pool.len()]);
    println!("{n} rows of {modules} × {width} columns, {q} queries, {} threads", rayon::current_num_threads());

    let (n, dim, width, q) = (n as f64, dim as f64, width as f64, q as f64);
    // The yardstick under the same load: plain f64 products, one per thread at a time.
    let square = Array2::<f64>::ones((512, 512));
    let products = || {
        let one = |_| {
            let mut c = Array2::zeros((512, 512));
            gemm_f64(1.0, square.view(), square.view(), 0.0, c.view_mut(), Threads::One);
            c[(0, 0)]
        };
        Ok::<f64, std::convert::Infallible>((0..200).into_par_iter().map(one).sum())
    };
    timed("gemm 512³, the yardstick", 200.0 * 2.0 * 512f64.powi(3), products)?;
    let covariance = timed("covariance", n * dim * width, || Covariance::fit(&reader, &NoProgress))?;
    let factors = timed("cholesky", dim * width * width / 3.0, || covariance.cholesky(0.01))?;
    let spectrum = timed("spectrum", 9.0 * dim * width * width, || covariance.spectrum())?;
    let damped = spectrum.damped(0.01)?;
    let by = |b: &dyn block_fisher::Preconditioner| block_fisher::precondition(b, queries.view());
    let query = timed("precondition (cholesky)", 2.0 * q * dim * width, || by(&factors))?;
    timed("precondition (spectrum)", 4.0 * q * dim * width, || by(&damped))?;
    timed("scores", 2.0 * q * n * dim, || dot::score(&reader, query.view(), None, &NoProgress))?;
    let sums = timed("dataset sums", 2.0 * n * dim, || dot::dataset_sums(&reader, 10, None, &NoProgress))?;
    timed("dataset scores", 20.0 * q * dim, || dot::dataset_scores(query.view(), sums.view()))?;
    let own = || block_fisher::self_influence(&reader, &factors, &NoProgress);
    timed("self-influence", n * dim * width, own)?;
    let removal = || block_fisher::removal_vectors(&reader, &covariance, 0.1, 10, &NoProgress);
    timed("removal vectors", n * dim * width * 2.0, removal)?;
    calibration()
}

/// Twenty splits of six noisy channels, 80 queries, ten datasets.
fn calibration() -> Result<(), Box<dyn Error>> {
    let mut stream = Stream::new(2, "speed");
    let latent = Array2::from_shape_fn((80, 10), |(q, k)| stream.normal() + if q % 10 == k { 1.5 } else { 0.0 });
    let mut truth = latent.mapv(|v: f64| (2.0 * v).exp());
    for mut row in truth.rows_mut() {
        let total = row.sum();
        row /= total;
    }
    let scores: Vec<Array2<f64>> =
        (0..6).map(|c| latent.mapv(|v| v + (0.4 + 0.2 * f64::from(c)) * stream.normal())).collect();
    let names = ["a", "b", "c", "d", "e", "f"];
    let channels: Vec<Channel<'_>> =
        names.into_iter().zip(&scores).map(|(name, s)| Channel { name, scores: s.view() }).collect();
    let (usable, own): (Vec<usize>, Vec<u32>) = ((0..80).collect(), (0..80).map(|q| q % 10).collect());
    let truth = TrueShares { shares: truth.view(), usable: &usable, own: &own };
    let splits = Splits { holdout: Holdout::Queries, n: 20, seed: 1 };
    timed("cross-fit, 1 channel", 0.0, || combine::cross_fit(&channels[..1], &truth, splits, &FitOptions::default()))?;
    timed("cross-fit, 6 channels", 0.0, || combine::cross_fit(&channels, &truth, splits, &FitOptions::default()))?;
    Ok(())
}

/// Runs `work` and prints its time and rate.
fn timed<T, E>(stage: &str, flops: f64, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let out = work()?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{stage:24} {seconds:8.3} s {:8.1} Gflop/s", flops / seconds * 1e-9);
    Ok(out)
}
