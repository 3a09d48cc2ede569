//! Speed of [`GraphStage`] on its device, beside the product of large matrices that the same device reaches.

use std::time::Instant;

use candle_core::Tensor;
use ndarray::Array2;

use super::GraphStage;
use super::stage::{Placement, product, target};
use crate::decoder::{Decoder, Sequence};
use crate::error::ModelError;

/// What a pass over some sequences took.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DeviceRate {
    /// Wall seconds, best of the repeats, rows brought to the processor.
    pub seconds: f64,
    /// Positions per second, without padding.
    pub tokens_per_second: f64,
    /// Operations per position that the rows need: two per weight on the way up and two on the way down, projections, the
    /// lower triangle of attention.
    pub flop_per_token: f64,
}

/// Wall time of the rows of `sequences`.
///
/// # Errors
/// What [`GraphStage::rows`] refuses.
pub fn device_rate(
    stage: &GraphStage<'_>,
    decoder: &Decoder,
    sequences: &[Sequence<'_>],
    repeats: usize,
) -> Result<DeviceRate, ModelError> {
    let mut rows = Array2::zeros((sequences.len(), stage.dim()));
    let mut seconds = f64::INFINITY;
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        stage.rows(sequences, rows.view_mut())?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    let tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    let config = decoder.config();
    let (d, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let up = if config.arch.gated { 2 } else { 1 };
    let weights =
        config.num_hidden_layers * (d * config.qkv_width() + d * config.query_width() + (up + 1) * d * f) + d * v;
    // Two products of [T, T] up and four down, half of each below the diagonal.
    let pairs: f64 = sequences.iter().map(|s| (s.tokens.len() as f64).powi(2)).sum::<f64>() / tokens.max(1) as f64;
    let attention = 6.0 * config.num_hidden_layers as f64 * config.query_width() as f64 * pairs;
    let flop_per_token = 4.0 * weights as f64 + attention + stage.projection_flop();
    Ok(DeviceRate { seconds, tokens_per_second: tokens as f64 / seconds, flop_per_token })
}

/// Operations per second of a product of two `n × n` matrices, best of the repeats.
///
/// # Errors
/// [`ModelError::Mismatch`] if the build has no such device, [`ModelError::Graph`].
pub fn product_rate(placement: Placement, n: usize, repeats: usize) -> Result<f64, ModelError> {
    const PRODUCTS: usize = 10;
    let (device, dtype) = target(placement)?;
    let matrix = Tensor::rand(-1f32, 1f32, (n, n), &device)?.to_dtype(dtype)?;
    let mut best = 0.0f64;
    for _ in 0..repeats.max(1) {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..PRODUCTS {
            product(&matrix, &matrix)?;
        }
        device.synchronize()?;
        best = best.max(2.0 * (n as f64).powi(3) * PRODUCTS as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DecoderConfig;
    use crate::features::{GradientStage, TapConfig};
    use crate::graph::{Numbers, Place};

    #[test]
    fn operations_are_counted_as_by_hand() {
        // Width 8, f 12, one layer, two heads over one key head of 4, 13 words.
        let decoder = Decoder::init(DecoderConfig::llama(13, 8, 12, 1, 2, 1, 16), 1).unwrap();
        let taps = TapConfig { embedding: false, norms: false, modules: vec!["*.o".into()], ..TapConfig::all(1, 2) };
        let stage = GradientStage::new(&decoder, taps).unwrap();
        let placement = Placement { place: Place::Cpu, numbers: Numbers::F32, batch_tokens: 64 };
        let graph = GraphStage::new(&decoder, &stage, placement).unwrap();
        let (a, b) = ([1u32, 2, 3, 4], [5u32, 6]);
        let rate = device_rate(&graph, &decoder, &[Sequence::whole(&a), Sequence::whole(&b)], 1).unwrap();
        // qkv 8·16, o 8·8, gate, up and down 3·8·12, output layer 8·13.
        let weights = 4.0 * (128.0 + 64.0 + 288.0 + 104.0);
        // (4² + 2²)/6 pairs per token, 8 numbers each, six products of which half is needed.
        let attention = 6.0 * 8.0 * 20.0 / 6.0;
        // Two matrices of [8, 2] and a block of 2 × 2.
        let projections = 2.0 * (16.0 + 16.0 + 4.0);
        assert!((rate.flop_per_token - weights - attention - projections).abs() < 1e-9, "{rate:?}");
        assert!((rate.tokens_per_second * rate.seconds - 6.0).abs() < 1e-9 && rate.seconds > 0.0);
        assert!(product_rate(placement, 32, 1).unwrap() > 0.0);
    }
}
