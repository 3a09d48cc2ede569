//! The sink of the passes: every gradient goes to its place in the row of its sequence.

use super::GradientStage;
use super::block::{Scratch, Target, room};
use crate::decoder::{Module, Norm, NormGradient, Rows, Sink};
use crate::ops::matrix;

/// Rows of the sequences of one pass, before factoring.
pub(super) struct RowSink<'a, 'm> {
    pub stage: &'a GradientStage<'m>,
    /// `[sequences, dim]`, or `[T, dim]` where every position of the only sequence has a row.
    pub rows: &'a mut [f32],
    pub per_token: bool,
    pub scratch: &'a mut Scratch,
}

impl RowSink<'_, '_> {
    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let dim = self.stage.plan.dim;
        row * dim..(row + 1) * dim
    }
}

impl Sink for RowSink<'_, '_> {
    fn linear(&mut self, module: Module, n: usize, Rows { sequence, first, x, delta }: Rows<'_>) {
        let plan = &self.stage.plan;
        let range = self.range(sequence);
        let mut target = if self.per_token {
            Target::PerToken { rows: &mut *self.rows, dim: plan.dim, first }
        } else {
            Target::Whole(&mut self.rows[range])
        };
        let tied = module == Module::Head && self.stage.decoder.config.tie_word_embeddings;
        if let Some(block) = plan.embedding.as_ref().filter(|_| tied) {
            let Scratch { x: px, delta: pd, small, half, .. } = &mut *self.scratch;
            let x = block.reduce_input(matrix(x, n, x.len() / n), px);
            return block.add_to(x, matrix(delta, n, delta.len() / n), [pd, small, half], &mut target);
        }
        if let Some(site) = plan.site(module) {
            site.add(n, x, delta, self.scratch, &mut target);
        }
    }

    fn norm(&mut self, norm: Norm, sequence: usize) -> NormGradient<'_> {
        let range = self.range(sequence);
        match self.stage.plan.norm(norm) {
            // Gain and bias are neighbours in the row.
            Some(tap) => {
                let both = &mut self.rows[range][tap.gain.start..tap.bias.end];
                let (gain, bias) = both.split_at_mut(tap.gain.len());
                NormGradient { gain, bias }
            }
            None => {
                let layout = self.stage.decoder.norm_layout(norm);
                let width = layout.gain.len();
                let (gain, bias) = room(&mut self.scratch.norm, 2 * width).split_at_mut(width);
                NormGradient { gain, bias: if layout.bias.is_some() { bias } else { &mut [] } }
            }
        }
    }

    fn embedding(&mut self, sequence: usize, tokens: &[u32], d_x: &[f32]) {
        let plan = &self.stage.plan;
        let tables = [(&plan.embedding, false), (&plan.positions, true)];
        for (block, by_position) in tables {
            let Some(block) = block else { continue };
            let positions: Vec<u32>;
            let indices = if by_position {
                positions = (0..tokens.len() as u32).collect();
                &positions
            } else {
                tokens
            };
            if self.per_token {
                let width = d_x.len() / tokens.len();
                for (t, (index, d_x)) in indices.chunks(1).zip(d_x.chunks_exact(width)).enumerate() {
                    let range = self.range(t);
                    block.add_rows(index, d_x, self.scratch, &mut self.rows[range][block.place.clone()]);
                }
            } else {
                let range = self.range(sequence);
                block.add_rows(indices, d_x, self.scratch, &mut self.rows[range][block.place.clone()]);
            }
        }
    }

    fn wants_input_gradient(&self) -> bool {
        self.stage.plan.wants_input_gradient()
    }

    fn ends_at(&self) -> Option<Module> {
        self.stage.plan.ends_at()
    }
}
