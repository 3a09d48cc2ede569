//! Speed of the passes, in tokens per CPU-second: the floor that per-example gradients are compared with.

use std::time::Instant;

use ascribe_linalg::packed::Precision;

use crate::decoder::{
    Decoder, Module, Norm, NormGradient, Objective, PackedWeights, Pass, Rows, Sequence, Sink, packs,
};
use crate::error::ModelError;
use crate::features::GradientStage;
use crate::gradient::FullGradient;
use crate::graph::{GraphDecoder, GraphKind};

/// Tokens per second of one thread.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Tokens per CPU-second (per wall second where the system does not tell a thread's CPU time).
    pub tokens_per_cpu_second: f64,
    /// Operations per token that the pass must do (products only).
    pub flop_per_token: f64,
}

/// CPU nanoseconds of the calling thread, if the system tells.
fn thread_cpu_ns() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
}

/// Best of several runs of `work` on the calling thread, in seconds.
pub(crate) fn best_seconds(repeats: usize, mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..repeats.max(1) {
        let (wall, cpu) = (Instant::now(), thread_cpu_ns());
        work();
        let seconds = match (cpu, thread_cpu_ns()) {
            (Some(from), Some(to)) if to > from => (to - from) as f64 * 1e-9,
            _ => wall.elapsed().as_secs_f64(),
        };
        best = best.min(seconds);
    }
    best
}

/// Speed of a forward pass over `sequences`, and of forward and backward with full weight gradients (what training needs).
///
/// # Errors
/// [`ModelError::Length`], [`ModelError::Token`].
pub fn floor(decoder: &Decoder, sequences: &[Sequence<'_>], repeats: usize) -> Result<(Rate, Rate), ModelError> {
    decoder.check(sequences)?;
    let tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    let forward = best_seconds(repeats, || {
        decoder.pool().with(|ws| {
            for &sequence in sequences {
                std::hint::black_box(decoder.nll(sequence, ws));
            }
        });
    });
    let mut flat = vec![0.0f32; decoder.parameter_layout().len()];
    let backward = best_seconds(repeats, || {
        decoder.pool().with(|ws| {
            for &sequence in sequences {
                std::hint::black_box(decoder.backward(sequence, ws, &mut FullGradient::new(decoder, &mut flat)));
            }
        });
    });
    let flop = forward_flop(decoder, tokens as f64 / sequences.len().max(1) as f64);
    let rate = |seconds: f64, flop: f64| Rate { tokens_per_cpu_second: tokens as f64 / seconds, flop_per_token: flop };
    Ok((rate(forward, flop), rate(backward, 3.0 * flop)))
}

/// Speed of forward and backward with full weight gradients in a candle graph: what one gets without own kernels.
///
/// # Errors
/// What [`GraphDecoder::loss_and_gradient`] refuses.
pub fn graph_floor(
    decoder: &Decoder,
    kind: GraphKind,
    sequences: &[Sequence<'_>],
    repeats: usize,
) -> Result<Rate, ModelError> {
    let graph = GraphDecoder::new(decoder, kind)?;
    let tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    let mut failure = None;
    let seconds = best_seconds(repeats, || {
        for &sequence in sequences {
            match graph.loss_and_gradient(sequence) {
                Ok(result) => drop(std::hint::black_box(result)),
                Err(error) => failure = Some(error),
            }
        }
    });
    let flop = 3.0 * forward_flop(decoder, tokens as f64 / sequences.len().max(1) as f64);
    match failure {
        Some(error) => Err(error),
        None => Ok(Rate { tokens_per_cpu_second: tokens as f64 / seconds, flop_per_token: flop }),
    }
}

/// Speed of the gradient stage over `sequences`, on the calling thread.
///
/// # Errors
/// [`ModelError::Length`], [`ModelError::Token`].
pub fn gradient_stage(
    stage: &GradientStage<'_>,
    decoder: &Decoder,
    sequences: &[Sequence<'_>],
    repeats: usize,
) -> Result<Rate, ModelError> {
    decoder.check(sequences)?;
    let tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    let mut rows = vec![];
    let seconds = best_seconds(repeats, || stage.rows_on_this_thread(sequences, &mut rows));
    let flop = forward_flop(decoder, tokens as f64 / sequences.len().max(1) as f64);
    Ok(Rate { tokens_per_cpu_second: tokens as f64 / seconds, flop_per_token: 2.0 * flop + stage.flop_per_token() })
}

/// Speed of the packed route over `sequences` in packs of at most `pack_rows` rows, with nothing tapped: forward alone, and
/// forward with the backward pass of the activations down to the first layer's queries, keys and values.
///
/// # Errors
/// [`ModelError::Length`], [`ModelError::Token`].
pub fn packed(
    decoder: &Decoder,
    precision: Precision,
    sequences: &[Sequence<'_>],
    pack_rows: usize,
    repeats: usize,
) -> Result<(Rate, Rate), ModelError> {
    decoder.check(sequences)?;
    let weights = PackedWeights::new(decoder, precision);
    let pass = Pass::packed(decoder, &weights);
    let objectives: Vec<Objective<'_>> = sequences.iter().map(|&sequence| sequence.into()).collect();
    let packs = packs(sequences.iter().map(|s| s.tokens.len()), pack_rows);
    let tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    let mut losses = vec![0.0; sequences.len()];
    let (forward, both) = decoder.pool().with(|ws| {
        let forward = best_seconds(repeats, || {
            for pack in &packs {
                pass.forward(objectives[pack.clone()].iter().map(|o| o.tokens).enumerate(), ws);
            }
        });
        let both = best_seconds(repeats, || {
            for pack in &packs {
                pass.backward(&objectives[pack.clone()], ws, &mut Nothing, &mut losses[pack.clone()]);
            }
        });
        (forward, both)
    });
    let flop = forward_flop(decoder, tokens as f64 / sequences.len().max(1) as f64);
    let rate = |seconds: f64, flop: f64| Rate { tokens_per_cpu_second: tokens as f64 / seconds, flop_per_token: flop };
    let head = 2.0 * (decoder.config().hidden_size * decoder.config().vocab_size) as f64;
    Ok((rate(forward, flop - head), rate(both, 2.0 * flop)))
}

/// A sink that asks for nothing.
struct Nothing;

impl Sink for Nothing {
    fn linear(&mut self, _module: Module, _n: usize, _rows: Rows<'_>) {}

    fn norm(&mut self, _norm: Norm, _sequence: usize) -> NormGradient<'_> {
        NormGradient { gain: &mut [], bias: &mut [] }
    }

    fn embedding(&mut self, _sequence: usize, _tokens: &[u32], _d_x: &[f32]) {}

    fn wants_input_gradient(&self) -> bool {
        false
    }
}

/// Operations per token of a forward pass at sequence length `t`: two per weight of a product, and causal attention.
fn forward_flop(decoder: &Decoder, t: f64) -> f64 {
    let c = decoder.config();
    let modules = [Module::Qkv(0), Module::O(0), Module::Up(0), Module::Down(0)];
    let weights = |module| (decoder.fan(module).input * decoder.fan(module).output) as f64;
    let linear: f64 = modules.map(weights).iter().sum();
    let attention = c.query_width() as f64 * (t + 1.0);
    2.0 * (c.num_hidden_layers as f64 * (linear + attention) + weights(Module::Head))
}
