//! `ascribe speed`: the gradient stage beside the plain forward and backward of the same model, in one process.

use std::fmt;

use ascribe_linalg::{Threads, gemm};
use ascribe_models::bench::{Rate, floor, gradient_stage, graph_floor};
use ascribe_models::graph::GraphKind;
use ascribe_models::{Decoder, GradientStage, Sequence};
use ndarray::Array2;
use serde::Serialize;

use crate::error::EngineError;
use crate::home::Home;
use crate::recipe::{Attribution, Recipe};
use crate::train::run::{dataset_parts, tokenizer};
use crate::walk::features::taps_of;

/// Repeats of every measurement; the best counts.
const REPEATS: usize = 5;
/// Side of the square product that stands for the peak.
const PEAK_SIDE: usize = 1024;

/// Tokens per CPU-second of one thread, and what part of the product peak that is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Tokens per CPU-second.
    pub tokens_per_cpu_second: f64,
    /// Operations per token that the pass must do, as a part of the measured product peak.
    pub part_of_peak: f64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpeedReport {
    /// Best rate of a large f32 product on one thread, Gflop/s.
    pub peak_gflops: f64,
    /// Forward pass.
    pub forward: Speed,
    /// Forward and backward with full weight gradients: the floor.
    pub forward_backward: Speed,
    /// The same through candle's autograd with its own operators.
    pub candle_stock: Speed,
    /// The same through candle's autograd with our fused operators.
    pub candle_fused: Speed,
    /// Gradient stage: forward, backward, projected per-example rows.
    pub gradient_stage: Speed,
    /// Gradient stage over the floor.
    pub ratio_to_floor: f64,
}

/// Measures on the model's own training examples.
///
/// # Errors
/// From registry, corpus or model.
pub fn run(home: &Home, model: &str, n_examples: usize) -> Result<SpeedReport, EngineError> {
    let dir = home.model(model);
    let recipe = Recipe::read(&dir.join("recipe.toml"))?;
    let attribution = Attribution::read(&dir.join("attribution.toml"))?;
    let parts = dataset_parts(&ascribe_registry::Registry::open(&home.datasets())?)?;
    let tokenizer = tokenizer(&dir, &parts, &recipe)?;
    let corpus = ascribe_corpus::Corpus::build(parts, &tokenizer, recipe.corpus.clone())?;
    let decoder = Decoder::load(&dir, "model.safetensors")?;
    let step = (corpus.examples.len() / n_examples.max(1)).max(1);
    let sequences: Vec<Sequence<'_>> =
        corpus.examples.iter().step_by(step).map(|e| Sequence::whole(&e.tokens)).collect();
    let few = &sequences[..sequences.len().min(32)];
    let stage = GradientStage::new(&decoder, taps_of(&attribution))?;
    let peak = peak_gflops();
    let speed = |rate: Rate| Speed {
        tokens_per_cpu_second: rate.tokens_per_cpu_second,
        part_of_peak: rate.tokens_per_cpu_second * rate.flop_per_token / (peak * 1e9),
    };
    let (forward, backward) = floor(&decoder, &sequences, REPEATS)?;
    let rows = gradient_stage(&stage, &decoder, &sequences, REPEATS)?;
    Ok(SpeedReport {
        peak_gflops: peak,
        forward: speed(forward),
        forward_backward: speed(backward),
        candle_stock: speed(graph_floor(&decoder, GraphKind::Stock, few, 2)?),
        candle_fused: speed(graph_floor(&decoder, GraphKind::Fused, few, 2)?),
        gradient_stage: speed(rows),
        ratio_to_floor: rows.tokens_per_cpu_second / backward.tokens_per_cpu_second,
    })
}

fn peak_gflops() -> f64 {
    let a = Array2::<f32>::from_elem((PEAK_SIDE, PEAK_SIDE), 0.5);
    let mut c = Array2::<f32>::zeros((PEAK_SIDE, PEAK_SIDE));
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = std::time::Instant::now();
        gemm(1.0, a.view(), a.view(), 0.0, c.view_mut(), Threads::One);
        best = best.min(started.elapsed().as_secs_f64());
    }
    2.0 * (PEAK_SIDE as f64).powi(3) / best / 1e9
}

impl fmt::Display for SpeedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "one thread; product peak {:.0} Gflop/s", self.peak_gflops)?;
        let rows = [
            ("forward", self.forward),
            ("forward + backward (floor)", self.forward_backward),
            ("candle, its own operators", self.candle_stock),
            ("candle, our fused operators", self.candle_fused),
            ("gradient stage", self.gradient_stage),
        ];
        for (name, s) in rows {
            let (rate, part) = (s.tokens_per_cpu_second, 100.0 * s.part_of_peak);
            writeln!(f, "{name:<28} {rate:>9.0} tokens per CPU-second, {part:>4.0} % of peak")?;
        }
        write!(f, "gradient stage is {:.2} x the floor", self.ratio_to_floor)
    }
}
