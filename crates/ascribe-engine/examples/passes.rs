#![allow(clippy::print_stdout)] // an example talks to a person
//! What unprojected influence costs on a decoder, pass by pass: CPU-seconds, and the operations that each pass must do.
//!
//! `cargo run --release -p ascribe-engine --example passes -- MODEL`. The figures in `benches/BARS.md` come from here.

use ascribe_core::NoProgress;
use ascribe_engine::Home;
use ascribe_engine::bench::decoder::{DecoderCurvature, DecoderSource, query_examples, training_examples};
use ascribe_engine::bench::runners::open_decoder;
use ascribe_engine::machine::cpu_seconds;
use ascribe_methods::captured;
use ascribe_methods::kron::{Damping, Inverse, Kron, Options};
use ascribe_methods::source::{CaptureSource as _, Captured, Labels, Operator as _};
use ascribe_models::{Decoder, Granularity, Loss};
use ndarray::{Array2, s};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Examples of the passes that are measured on a part.
const PART: usize = 512;
/// Directions of the products with the curvature.
const DIRECTIONS: usize = 8;

/// Runs a pass and says what it took.
fn timed<T>(name: &str, flop: f64, pass: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = cpu_seconds();
    let result = pass()?;
    let seconds = cpu_seconds() - before;
    println!("{name:<44} {seconds:>9.2} CPU-s  {:>9.1} Gflop  {:>7.1} Gflop/s", flop / 1e9, flop / 1e9 / seconds);
    Ok(result)
}

fn main() -> Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "finch".into());
    let home = Home::find(None)?;
    let data = open_decoder(&home, &model)?;
    let decoder = Decoder::open(&home.model(&model))?;
    let source = |examples| DecoderSource::new(&decoder, examples, &["*.layers.*"], Granularity::Module);
    let (train, queries) = (source(training_examples(&data.corpus))?, source(query_examples(&data.corpus))?);
    let (n, q, t) = (train.len() as f64, queries.len() as f64, data.corpus.manifest.config.seq_len as f64);
    let p = train.tapped().dim() as f64;
    let c = decoder.config();
    let head = (c.hidden_size * c.vocab_size) as f64;
    println!("{model}: {n} examples of {t} tokens, {q} queries, {p} tracked numbers, output layer {head}");
    // Up: every weight once; down: every weight once more. Attention's own products are not counted.
    let pass = 4.0 * (p + head) * t;
    let squares: f64 = train.layers().iter().map(|l| (l.n_in * l.n_in + l.n_out * l.n_out) as f64).sum();
    let ids: Vec<u32> = (0..train.len() as u32).collect();
    timed("captures", n * pass, || {
        let mut out = Captured::default();
        Ok(ids.chunks(32).try_for_each(|ids| train.capture(ids, Labels::Given, &mut out))?)
    })?;
    let flop = n * (2.0 * pass + t * (squares + 2.0 * squares + 2.0 * p));
    let kron = timed("EK-FAC fit, two passes", flop, || Ok(Kron::fit(&train, &Options::default(), &NoProgress)?))?;
    let all: Vec<u32> = (0..queries.len() as u32).collect();
    let flop = q * (pass + 2.0 * t * p);
    let rows = timed("query gradients", flop, || Ok(captured::gradients(&queries, &all, Labels::Given)?))?;
    let flop: f64 = train.layers().iter().map(|l| 4.0 * (l.n_in * l.n_out * (l.n_in + l.n_out)) as f64).sum();
    let vectors = timed("H⁻¹q", q * flop, || {
        Ok(kron.inverse(Inverse::Damped, &Damping::Relative(0.1))?.solve(rows.view())?)
    })?;
    let flop = n * (pass + 2.0 * (q + t) * p);
    let scores = timed("scores of all examples", flop, || {
        Ok(captured::score(&train, vectors.view(), Labels::Given, &NoProgress)?)
    })?;
    let part = &train.examples()[..PART.min(train.len())];
    let (m, r) = (part.len() as f64, DIRECTIONS as f64);
    let few = vectors.slice(s![..DIRECTIONS, ..]);
    let flop = m * t * (4.0 * head + 2.0 * p + r * 4.0 * p);
    let found = timed(&format!("token losses, {m} examples, {r} directions"), flop, || {
        Ok(train.tapped().token_tangents(part, Loss::NextToken, few)?)
    })?;
    let worst = found.iter().enumerate().flat_map(|(i, tokens)| {
        let sums: Vec<f64> = tokens.rows().into_iter().map(|row| row.iter().map(|&x| f64::from(x)).sum()).collect();
        sums.into_iter().enumerate().map(move |(r, sum)| (i, r, sum)).collect::<Vec<_>>()
    });
    let worst = worst.map(|(i, r, sum)| (sum - f64::from(scores[[r, i]])).abs()).fold(0.0, f64::max);
    let scale = scores.slice(s![..DIRECTIONS, ..]).iter().fold(0.0f32, |m, x| m.max(x.abs()));
    println!("token losses add up to the scores: at most {worst:.2e} off, largest score {scale:.2e}");
    let flop = m * t * (2.0 * (p + head) + r * (8.0 * p + 4.0 * head));
    let chosen: Vec<u32> = (0..part.len() as u32).collect();
    timed(&format!("curvature products, {m} examples, {r} vectors"), flop, || {
        let mut out = Array2::zeros((DIRECTIONS, train.tapped().dim()));
        Ok(DecoderCurvature(&train).apply(Some(&chosen), few, out.view_mut())?)
    })?;
    Ok(())
}
