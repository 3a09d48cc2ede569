//! Times gradients from captures: `cargo run --release -p ascribe-methods --example captures [queries]`.
//!
//! Activations lie in memory, so what is timed is this crate's part. Prints seconds, CPU-seconds and rates.
#![allow(clippy::print_stdout)] // a table for a person

use std::error::Error;
use std::time::Instant;

use ascribe_core::NoProgress;
use ascribe_linalg::Stream;
use ascribe_methods::MethodError;
use ascribe_methods::captured;
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture, dim};
use ndarray::Array2;

/// Name, examples, positions of each, layers `(n_out, n_in)`.
type Shape = (&'static str, usize, usize, Vec<(usize, usize)>);

/// Every example sees a stretch of the same pool of normal numbers.
struct Pool {
    layers: Vec<Layer>,
    n: usize,
    positions: usize,
    pool: Vec<f32>,
}

impl CaptureSource for Pool {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.n
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let t = self.positions;
        out.losses = vec![0.0; examples.len()];
        out.starts = vec![(0..=examples.len()).map(|e| e * t).collect(); self.layers.len()];
        out.layers.resize_with(self.layers.len(), LayerCapture::default);
        for (layer, own) in self.layers.iter().zip(&mut out.layers) {
            for (rows, k) in [(&mut own.x, layer.n_in), (&mut own.delta, layer.n_out)] {
                if rows.dim() != (examples.len() * t, k) {
                    *rows = Array2::zeros((examples.len() * t, k));
                }
                for (part, e) in rows.as_slice_mut().into_iter().flat_map(|r| r.chunks_exact_mut(t * k)).zip(examples) {
                    let first = *e as usize * 101 % (self.pool.len() - t * k);
                    part.copy_from_slice(&self.pool[first..first + t * k]);
                }
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let q: usize = std::env::args().nth(1).map_or(Ok(100), |a| a.parse())?;
    let decoder: Vec<(usize, usize)> =
        (0..4).flat_map(|_| [(64, 64), (64, 64), (64, 64), (64, 64), (192, 64), (192, 64), (64, 192)]).collect();
    let shapes: [Shape; 3] = [
        ("logistic regression", 5_000, 1, vec![(10, 785)]),
        ("MLP 784-128-64-10", 5_000, 1, vec![(128, 785), (64, 129), (10, 65)]),
        ("decoder, d = 64, 128 positions", 512, 128, decoder),
    ];
    println!("{q} vectors, {} threads", rayon::current_num_threads());
    for (name, n, positions, layers) in shapes {
        let layer = |(i, &(n_out, n_in)): (usize, &(usize, usize))| Layer { name: format!("{i}"), n_out, n_in };
        let mut stream = Stream::new(1, name);
        let pool = (0..200_003).map(|_| stream.normal() as f32).collect();
        let source = Pool { layers: layers.iter().enumerate().map(layer).collect(), n, positions, pool };
        let p = dim(source.layers());
        let v = Array2::from_shape_fn((q, p), |(i, j)| source.pool[(i * 7_919 + j) % source.pool.len()]);
        println!("{name}: P = {p}, N = {n}");
        let start = Clock::now();
        captured::score(&source, v.view(), Labels::Given, &NoProgress)?;
        report("score", start, 2.0 * (q + positions) as f64 * p as f64 * n as f64);
        let start = Clock::now();
        captured::square_norms(&source, Labels::Given, &NoProgress)?;
        report("norms", start, 2.0 * positions as f64 * p as f64 * n as f64);
        let start = Clock::now();
        let kron = Kron::fit(&source, &Options::default(), &NoProgress)?;
        let squares: usize = source.layers().iter().map(|l| l.n_in * l.n_in + l.n_out * l.n_out).sum();
        report("fit EK-FAC", start, (positions * n) as f64 * (3 * squares + 2 * p) as f64);
        let inverse = kron.inverse(Inverse::Damped, &Damping::Relative(0.1))?;
        let start = Clock::now();
        inverse.solve(v.view())?;
        let flops: usize = source.layers().iter().map(|l| 4 * l.len() * (l.n_in + l.n_out)).sum();
        report("solve (f64)", start, (q * flops) as f64);
        let start = Clock::now();
        inverse.self_influence(&source, Labels::Given, &NoProgress)?;
        report("self-influence", start, (positions * n) as f64 * (2 * squares + 2 * p) as f64);
    }
    Ok(())
}

fn report(stage: &str, start: Clock, flops: f64) {
    let (seconds, cpu) = (start.wall.elapsed().as_secs_f64(), Clock::now().cpu - start.cpu);
    println!("  {stage:<15} {seconds:>8.3} s  {cpu:>7.2} CPU-s  {:>7.1} Gflop per CPU-second", flops / cpu / 1e9);
}

struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    /// CPU seconds of all threads come from the kernel's table, in ticks of 10 ms; NaN where there is none.
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<f64> = stat.split_whitespace().map(|f| f.parse().unwrap_or(f64::NAN)).collect();
        let cpu = fields.get(13).zip(fields.get(14)).map_or(f64::NAN, |(user, system)| (user + system) / 100.0);
        Self { wall: Instant::now(), cpu }
    }
}
