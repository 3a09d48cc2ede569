//! Products with the Gauss–Newton matrix of the tracked weights, `H = Σ_t J_tᵀ(diag p_t − p_t p_tᵀ)J_t`, and with `Jᵀ` alone.
//!
//! For a next-token loss this is the Fisher matrix of the model's own distribution, without drawing a label. A product is one
//! walk forward along the direction, the softmax's own second derivative, and one ordinary way down.

use ascribe_linalg::elementwise::{causal_softmax, soft_cap_backward, softmax_backward};
use ascribe_linalg::packed::multiply_views;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::tangent::{Directions, Tangents};
use super::tokens::{DIRECTIONS, Piece, pieces};
use super::{TANGENT_ROWS, TappedDecoder};
use crate::decoder::{Loss, Module, Norm, NormGradient, Objective, Rows, Sink, Workspace};
use crate::error::ModelError;
use crate::features::Example;
use crate::ops::{matrix, matrix_mut};

/// Examples whose products are added in f32 before groups are added in f64: part of the definition of the bytes.
const GROUP: usize = 16;

/// Groups that are in memory at the same time.
const WAVE: usize = 16;

/// Adds `Σ_t δ_t x_tᵀ` of all sequences of a pass to one flat vector.
struct SumSink<'a, 'm> {
    tapped: &'a TappedDecoder<'m>,
    flat: &'a mut [f32],
}

impl Sink for SumSink<'_, '_> {
    fn linear(&mut self, module: Module, n: usize, Rows { x, delta, .. }: Rows<'_>) {
        let fan = self.tapped.decoder.fan(module);
        let (x, delta) = (matrix(x, n, fan.input), matrix(delta, n, fan.output));
        for (_, tap) in self.tapped.taps_of(module) {
            let delta = delta.slice(s![.., tap.columns.clone()]);
            let mut into = matrix_mut(&mut self.flat[tap.range()], tap.n_out, tap.n_in);
            multiply_views(delta.t(), x, 1.0, into.slice_mut(s![.., ..fan.input]));
            if tap.has_bias {
                for delta in delta.rows() {
                    into.column_mut(fan.input).iter_mut().zip(delta).for_each(|(sum, d)| *sum += d);
                }
            }
        }
    }

    fn norm(&mut self, _: Norm, _: usize) -> NormGradient<'_> {
        NormGradient { gain: &mut [], bias: &mut [] }
    }

    fn embedding(&mut self, _: usize, _: &[u32], _: &[f32]) {}

    fn ends_at(&self) -> Option<Module> {
        Some(self.tapped.lowest())
    }
}

/// Memory of one worker.
#[derive(Debug, Default)]
struct Memory {
    tangents: Tangents,
    p: Vec<f32>,
    moved: Vec<f32>,
    /// Gradients by the final hidden states, `[R, N, d]`.
    by_hidden: Vec<f32>,
}

impl TappedDecoder<'_> {
    /// `Σ_i H_i v_r` over `examples`, `[R, P]` in f64; `H_i` is the Gauss–Newton matrix of the example's summed next-token
    /// loss, `v` `[R, P]`.
    ///
    /// Groups of 16 examples are added in f32, groups in f64, both in order: bytes depend on the order of the examples, not on
    /// threads or on the other directions. Cost per token and direction: about three forward passes.
    ///
    /// # Errors
    /// As [`TappedDecoder::token_tangents`].
    pub fn gauss_newton(&self, examples: &[Example<'_>], v: ArrayView2<'_, f32>) -> Result<Array2<f64>, ModelError> {
        self.check(examples)?;
        self.check_directions(v)?;
        let objectives: Vec<Objective<'_>> =
            examples.iter().flat_map(|example| example.objectives(Loss::NextToken).collect::<Vec<_>>()).collect();
        let mut total = Array2::<f64>::zeros(v.dim());
        for first in (0..v.nrows()).step_by(DIRECTIONS) {
            let chunk = first..(first + DIRECTIONS).min(v.nrows());
            let directions = Directions::new(self, v.slice(s![chunk.clone(), ..]));
            let groups: Vec<(&[Example<'_>], &[Objective<'_>])> =
                examples.chunks(GROUP).zip(objectives.chunks(GROUP)).collect();
            for wave in groups.chunks(WAVE) {
                let of_group = |memory: &mut Memory, &(examples, objectives): &(&[Example<'_>], &[Objective<'_>])| {
                    let mut sums = vec![0.0f32; directions.n * self.dim()];
                    for pack in self.packs(examples, TANGENT_ROWS) {
                        self.decoder
                            .pool()
                            .with(|ws| self.curvature_pack(&objectives[pack], &directions, ws, memory, &mut sums));
                    }
                    sums
                };
                let sums: Vec<Vec<f32>> = wave.par_iter().map_init(Memory::default, of_group).collect();
                let mut total = total.slice_mut(s![chunk.clone(), ..]);
                for sums in &sums {
                    total.iter_mut().zip(sums).for_each(|(total, &x)| *total += f64::from(x));
                }
            }
        }
        match total.indexed_iter().find(|(_, x)| !x.is_finite()) {
            Some((_, &found)) => Err(ModelError::Diverged { step: 0, what: "curvature product", found }),
            None => Ok(total),
        }
    }

    fn curvature_pack(
        &self,
        objectives: &[Objective<'_>],
        directions: &Directions,
        ws: &mut Workspace,
        memory: &mut Memory,
        sums: &mut [f32],
    ) {
        let Memory { tangents, p, moved, by_hidden } = memory;
        if !self.walk(objectives, directions, ws, tangents) {
            return;
        }
        let (v, d, n_rows) = (self.decoder.config.vocab_size, self.decoder.config.hidden_size, ws.n());
        by_hidden.clear();
        by_hidden.resize(directions.n * n_rows * d, 0.0);
        for piece in pieces(&ws.spans, objectives) {
            self.logits(&piece, ws);
            let n = piece.positions.len();
            p.clear();
            p.extend_from_slice(&ws.logits[..n * v]);
            p.chunks_exact_mut(v).for_each(|row| causal_softmax(row, v, v - 1));
            for (r, sums) in sums.chunks_exact_mut(self.dim()).enumerate() {
                self.logit_tangents(&piece, directions, r, tangents, ws, moved);
                // (diag p − ppᵀ) is the Jacobian of softmax.
                softmax_backward(p, moved, v, 1.0);
                self.head_down(&piece, ws, moved, &mut by_hidden[r * n_rows * d..(r + 1) * n_rows * d], sums);
            }
        }
        for (by_hidden, sums) in by_hidden.chunks_exact(n_rows * d).zip(sums.chunks_exact_mut(self.dim())) {
            self.body_down(objectives, ws, by_hidden, sums);
        }
    }

    /// From a piece's gradients by (capped) logits to gradients by hidden states, `[N, d]`; a tracked output layer adds its
    /// own to `sums`. `ws.logits` holds the logits.
    fn head_down(&self, piece: &Piece, ws: &mut Workspace, delta: &mut [f32], by_hidden: &mut [f32], sums: &mut [f32]) {
        let (c, n, rows) = (&self.decoder.config, piece.positions.len(), piece.rows());
        let (d, v) = (c.hidden_size, c.vocab_size);
        if let Some(cap) = c.arch.logit_softcap {
            soft_cap_backward(&ws.logits[..n * v], cap as f32, delta);
        }
        let rows = rows.start * d..rows.end * d;
        let shown = Rows { sequence: 0, first: 0, x: &ws.hidden[rows.clone()], delta };
        SumSink { tapped: self, flat: sums }.linear(Module::Head, n, shown);
        self.pass().linear_backward(Module::Head, n, delta, &mut by_hidden[rows], &mut ws.scratch.rounded);
    }

    /// From gradients by hidden states to those of the tracked modules, added to `sums`.
    fn body_down(&self, objectives: &[Objective<'_>], ws: &mut Workspace, by_hidden: &[f32], sums: &mut [f32]) {
        if self.lowest() == Module::Head {
            return;
        }
        ws.scratch.d_in[..by_hidden.len()].copy_from_slice(by_hidden);
        let mut sink = SumSink { tapped: self, flat: sums };
        self.pass().descend_from_hidden(|sequence| objectives[sequence].tokens, ws, &mut sink);
    }

    /// `Jᵀu`: the gradient `[P]` of `Σ u∘logits` over the predicting positions of an example, `d_logits` `[n_predictions, V]`.
    ///
    /// # Errors
    /// What [`TappedDecoder::capture`] refuses; `d_logits` of another shape.
    pub fn pull_back(&self, example: &Example<'_>, d_logits: ArrayView2<'_, f32>) -> Result<Vec<f32>, ModelError> {
        self.check(std::slice::from_ref(example))?;
        let objectives: Vec<Objective<'_>> = example.objectives(Loss::NextToken).collect();
        let (d, v) = (self.decoder.config.hidden_size, self.decoder.config.vocab_size);
        let shape = (objectives[0].predicting.len(), v);
        if d_logits.dim() != shape {
            let (expected, found) = (format!("{shape:?}"), format!("{:?}", d_logits.dim()));
            return Err(ModelError::Mismatch { what: "gradients of logits", expected, found });
        }
        let mut flat = vec![0.0; self.dim()];
        if objectives[0].predicting.is_empty() {
            return Ok(flat);
        }
        self.decoder.pool().with(|ws| {
            self.pass().forward(std::iter::once((0, example.tokens)), ws);
            let mut by_hidden = vec![0.0; ws.n() * d];
            for piece in pieces(&ws.spans, &objectives) {
                self.logits(&piece, ws);
                let first = piece.positions.start - objectives[0].predicting.start;
                let rows = d_logits.slice(s![first..first + piece.positions.len(), ..]);
                let mut delta: Vec<f32> = rows.iter().copied().collect();
                self.head_down(&piece, ws, &mut delta, &mut by_hidden, &mut flat);
            }
            self.body_down(&objectives, ws, &by_hidden, &mut flat);
        });
        Ok(flat)
    }
}
