//! How much memory a stage takes, before it is asked for anything. Planning a run lives at the doors.

use super::block::Block;
use super::{GradientStage, PACK_NUMBERS, PACK_ROWS};
use crate::arch::{QkNorm, Topology};
use crate::decoder::Decoder;

/// Bytes of memory of a stage at work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// The model's weights in f32.
    pub weights: usize,
    /// The linear weights, packed for the way up and the way down.
    pub packed: usize,
    /// Projectors, masks, optimiser factors.
    pub projectors: usize,
    /// One thread's pass and scratch.
    pub per_thread: usize,
}

impl Memory {
    /// All of it with `threads` threads.
    pub fn total(&self, threads: usize) -> usize {
        let fixed = self.weights.saturating_add(self.packed).saturating_add(self.projectors);
        fixed.saturating_add(self.per_thread.saturating_mul(threads))
    }
}

impl GradientStage<'_> {
    /// Memory of the stage for examples of up to `longest` tokens, rows that are handed in not counted. An estimate of what
    /// the passes allocate, a little on the high side; it grows with the square of `longest` (attention's probabilities).
    pub fn memory(&self, longest: usize) -> Memory {
        let rows = PACK_ROWS.max(longest);
        let projectors = self.plan.blocks().map(Block::bytes).sum::<usize>()
            + self
                .plan
                .sites
                .iter()
                .flatten()
                .filter_map(|site| site.joined.as_ref())
                .map(|p| 4 * p.len())
                .sum::<usize>()
            + self.elementwise.iter().map(|(_, factors)| 4 * factors.len()).sum::<usize>();
        let reduced = self.plan.blocks().map(|block| block.shape().0.max(block.shape().1)).max().unwrap_or(0);
        let formed = self.plan.blocks().map(Block::small_len).max().unwrap_or(0);
        let scratch = 4 * (2 * rows * reduced + 2 * formed + PACK_NUMBERS.max(self.plan.dim));
        Memory {
            weights: 4 * self.decoder.parameters().len(),
            packed: self.weights.bytes(),
            projectors,
            per_thread: workspace(self.decoder, rows, longest) + scratch,
        }
    }
}

/// Bytes of one pass's tapes and scratch over `rows` rows in sequences of up to `longest`.
fn workspace(decoder: &Decoder, rows: usize, longest: usize) -> usize {
    let c = &decoder.config;
    let (d, f, q, kv) = (c.hidden_size, c.intermediate_size, c.query_width(), c.key_width());
    let wide = if c.arch.gated { 2 * f } else { f };
    let norms = if matches!(c.arch.topology, Topology::Pre | Topology::Parallel) { 0 } else { 2 * d };
    let heads = if c.arch.qk_norm == QkNorm::None { 0 } else { q + kv };
    // x_in, attn_in, x_mid, mlp_in; qkv; mixed; gates and ups; act; statistics of the norms.
    let layer = 4 * d + norms + heads + c.qkv_width() + q + wide + f + 16 + 4 * c.num_attention_heads;
    let probabilities: usize = (0..c.num_hidden_layers)
        .map(|l| decoder.attention(l).probabilities_len(longest).saturating_mul(rows.div_ceil(longest.max(1))))
        .fold(0, usize::saturating_add);
    let scratch = 4 * d + d.max(q) + f + wide.max(c.qkv_width()) + 2 * heads;
    let attention = (0..c.num_hidden_layers).map(|l| decoder.attention(l).scratch_len(longest)).max().unwrap_or(0);
    let logits = 2 * 128 * c.vocab_size;
    // Rows rounded to bf16 for the products are half a row of the widest input.
    let rounded = rows.saturating_mul(wide.max(c.qkv_width()).max(c.vocab_size.min(rows)));
    let numbers = rows
        .saturating_mul(layer.saturating_mul(c.num_hidden_layers).saturating_add(scratch))
        .saturating_add(probabilities)
        .saturating_add(attention + logits + rounded);
    numbers.saturating_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Workspace;
    use crate::decoder::tests::{families, scattered, tokens};
    use crate::features::block::Scratch;
    use crate::{Example, TapConfig};

    /// What the planner says against what a pass over the longest text left allocated.
    #[test]
    fn planned_memory_covers_what_a_pass_takes() {
        for (_, config) in families() {
            let decoder = scattered(config, 4);
            let stage = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
            let text = tokens(1, 80);
            let examples = [Example::whole(&text); 7];
            let (mut ws, mut scratch) = (Workspace::default(), Scratch::default());
            let mut rows = vec![0.0; 7 * stage.dim()];
            stage.pack(&examples[..PACK_ROWS / 80], &mut rows[..PACK_ROWS / 80 * stage.dim()], &mut ws, &mut scratch);
            let tape = |layer: &crate::decoder::LayerTape| {
                let parts = [&layer.x_in, &layer.attn_in, &layer.q_raw, &layer.k_raw, &layer.qkv, &layer.probabilities];
                let more = [&layer.mixed, &layer.attn_out, &layer.x_mid, &layer.mlp_in, &layer.gate_up, &layer.act];
                parts.iter().chain(&more).map(|part| part.len()).sum::<usize>() + layer.mlp_out.len()
            };
            let taken =
                4 * (ws.layers.iter().map(tape).sum::<usize>() + ws.x_out.len() + ws.hidden.len() + ws.logits.len());
            let planned = stage.memory(80).per_thread - 4 * PACK_NUMBERS;
            assert!(planned > taken && planned < 3 * taken, "{planned} {taken}");
        }
    }
}
