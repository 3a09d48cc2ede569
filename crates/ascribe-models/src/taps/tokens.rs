//! Forward mode at the output layer: how the loss of every token, or its logits, change along directions.

use std::ops::Range;

use ascribe_linalg::elementwise::soft_cap_backward;
use ndarray::{Array2, Array3, ArrayView2};
use rayon::prelude::*;

use super::tangent::{Directions, Tangents, Walk};
use super::{TANGENT_ROWS, TappedDecoder};
use crate::decoder::{Loss, Module, Objective, Span, Workspace, head_pieces};
use crate::error::ModelError;
use crate::features::Example;

/// Directions that are walked at once; no part of the results.
pub(super) const DIRECTIONS: usize = 8;

/// A piece of the positions of one sequence whose logits are looked at together.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub span: Span,
    /// Positions within the sequence.
    pub positions: Range<usize>,
}

impl Piece {
    /// Its rows within the pass.
    pub fn rows(&self) -> Range<usize> {
        self.span.start + self.positions.start..self.span.start + self.positions.end
    }
}

/// All pieces of a pass.
pub(super) fn pieces(spans: &[Span], objectives: &[Objective<'_>]) -> Vec<Piece> {
    let of_span = |span: &Span| {
        let span = *span;
        head_pieces(objectives[span.sequence].predicting.clone()).map(move |positions| Piece { span, positions })
    };
    spans.iter().flat_map(of_span).collect()
}

impl TappedDecoder<'_> {
    /// Directions of the right length, all finite.
    pub(super) fn check_directions(&self, directions: ArrayView2<'_, f32>) -> Result<(), ModelError> {
        let mismatch = |what, expected: String, found: String| Err(ModelError::Mismatch { what, expected, found });
        if directions.ncols() != self.dim() {
            return mismatch("length of directions", self.dim().to_string(), directions.ncols().to_string());
        }
        match directions.indexed_iter().find(|(_, x)| !x.is_finite()) {
            Some(((r, p), x)) => mismatch("directions", "finite numbers".into(), format!("{x} in row {r}, column {p}")),
            None => Ok(()),
        }
    }

    /// `d/dε ℓ_t(θ + εv_r)` at `ε = 0` for every prediction of every example: per example `[R, n_predictions]`, for
    /// `directions` `[R, P]`. With `v = H⁻¹q` these are the influences of single training tokens on the query, with the sign
    /// of scores: positive where the token helps. They add up to `⟨∇ℓ, v_r⟩` over an example. Exact forward-mode products,
    /// nothing is stored. [`Loss::Sampled`] differentiates at labels that stay as they were drawn.
    ///
    /// Examples share passes and run in parallel; bytes depend on the example and the direction alone. Cost per token: a
    /// forward pass and, per direction, two forward passes without the output layer. Memory: the directions once more, and
    /// about `8·R₈·(2d + 4f)` bytes per token of a pass, `R₈ ≤ 8` directions at once.
    ///
    /// # Errors
    /// What [`TappedDecoder::capture`] refuses; directions of another length or not finite.
    pub fn token_tangents(
        &self,
        examples: &[Example<'_>],
        loss: Loss,
        directions: ArrayView2<'_, f32>,
    ) -> Result<Vec<Array2<f32>>, ModelError> {
        self.check(examples)?;
        self.check_directions(directions)?;
        let objectives: Vec<Objective<'_>> =
            examples.iter().flat_map(|example| example.objectives(loss).collect::<Vec<_>>()).collect();
        let mut out: Vec<Array2<f32>> = objectives
            .iter()
            .map(|objective| Array2::zeros((directions.nrows(), objective.predicting.len())))
            .collect();
        let packs = self.packs(examples, TANGENT_ROWS);
        for first in (0..directions.nrows()).step_by(DIRECTIONS) {
            let chunk = first..(first + DIRECTIONS).min(directions.nrows());
            let packed = Directions::new(self, directions.slice(ndarray::s![chunk, ..]));
            let mut jobs = vec![];
            let mut rest = &mut out[..];
            for pack in &packs {
                let found;
                (found, rest) = rest.split_at_mut(pack.len());
                jobs.push((&objectives[pack.clone()], found));
            }
            jobs.into_par_iter().for_each_init(Tangents::default, |tangents, (objectives, found)| {
                self.decoder.pool().with(|ws| self.token_pack(objectives, &packed, ws, tangents, first, found));
            });
        }
        let bad = out.iter().position(|values| values.iter().any(|x| !x.is_finite()));
        match bad {
            Some(e) => {
                let found = format!("another number in example {e}");
                Err(ModelError::Mismatch { what: "token tangents", expected: "finite numbers".into(), found })
            }
            None => Ok(out),
        }
    }

    /// Way up and walk over the counted sequences of a pack; false if there are none.
    pub(super) fn walk(
        &self,
        objectives: &[Objective<'_>],
        directions: &Directions,
        ws: &mut Workspace,
        tangents: &mut Tangents,
    ) -> bool {
        let counted = objectives.iter().enumerate().filter(|(_, objective)| !objective.predicting.is_empty());
        let pack = counted.map(|(index, objective)| (index, objective.tokens));
        if pack.clone().next().is_none() {
            return false;
        }
        let pass = self.pass();
        pass.forward(pack, ws);
        Walk { tapped: self, pass, directions, n: ws.n() }.run(ws, tangents);
        true
    }

    fn token_pack(
        &self,
        objectives: &[Objective<'_>],
        directions: &Directions,
        ws: &mut Workspace,
        tangents: &mut Tangents,
        first_row: usize,
        out: &mut [Array2<f32>],
    ) {
        if !self.walk(objectives, directions, ws, tangents) {
            return;
        }
        let (c, n_rows) = (&self.decoder.config, ws.n());
        let (d, v) = (c.hidden_size, c.vocab_size);
        let (mut by_hidden, mut moved) = (vec![], vec![]);
        for piece in pieces(&ws.spans, objectives) {
            let (objective, n, rows) = (&objectives[piece.span.sequence], piece.positions.len(), piece.rows());
            self.logits(&piece, ws);
            let capped = c.arch.logit_softcap.map(|cap| (cap as f32, ws.logits[..n * v].to_vec()));
            let (logits, values) = (&mut ws.logits[..n * v], &mut ws.nll[..n]);
            objective.backward(piece.positions.start, v, logits, values);
            if let Some((cap, capped)) = capped {
                soft_cap_backward(&capped, cap, logits);
            }
            by_hidden.resize(n * d, 0.0);
            self.pass().linear_backward(Module::Head, n, logits, &mut by_hidden, &mut ws.scratch.rounded);
            let column = piece.positions.start - objective.predicting.start;
            for r in 0..directions.n {
                let start = (r * n_rows + rows.start) * d;
                let hidden = tangents.x[start..start + n * d].chunks_exact(d);
                let mut along: Vec<f64> = by_hidden.chunks_exact(d).zip(hidden).map(|(g, x)| dot(g, x)).collect();
                for (at, tap) in self.taps_of(Module::Head) {
                    moved.clear();
                    moved.resize(n * tap.n_out, 0.0);
                    directions.add(at, r, n, &ws.hidden[rows.start * d..rows.end * d], &mut moved, tap.n_out);
                    for ((sum, delta), y) in along.iter_mut().zip(logits.chunks_exact(v)).zip(moved.chunks(tap.n_out)) {
                        *sum += dot(&delta[tap.columns.clone()], y);
                    }
                }
                let values = &mut out[piece.span.sequence];
                along.iter().enumerate().for_each(|(i, &x)| values[[first_row + r, column + i]] = x as f32);
            }
        }
    }

    /// Logits of a piece, capped where the family caps them, into `ws.logits`.
    pub(super) fn logits(&self, piece: &Piece, ws: &mut Workspace) {
        let (d, rows) = (self.decoder.config.hidden_size, piece.rows());
        ws.head[..rows.len() * d].copy_from_slice(&ws.hidden[rows.start * d..rows.end * d]);
        self.pass().logits(rows.len(), ws);
    }

    /// Changes of a piece's logits along direction `r`, `[n, V]`, into `out`; `ws.logits` holds the logits.
    pub(super) fn logit_tangents(
        &self,
        piece: &Piece,
        directions: &Directions,
        r: usize,
        tangents: &Tangents,
        ws: &mut Workspace,
        out: &mut Vec<f32>,
    ) {
        let (c, n, rows, n_rows) = (&self.decoder.config, piece.positions.len(), piece.rows(), ws.n());
        let (d, v) = (c.hidden_size, c.vocab_size);
        out.resize(n * v, 0.0);
        let start = (r * n_rows + rows.start) * d;
        self.pass().tangent(Module::Head, n, &tangents.x[start..start + n * d], out, &mut ws.scratch.rounded);
        for (at, tap) in self.taps_of(Module::Head) {
            directions.add(at, r, n, &ws.hidden[rows.start * d..rows.end * d], &mut out[tap.columns.start..], v);
        }
        if let Some(cap) = c.arch.logit_softcap {
            soft_cap_backward(&ws.logits[..n * v], cap as f32, out);
        }
    }

    /// `J v_r`: how the logits of every predicting position of an example change, `[R, n_predictions, V]`.
    ///
    /// # Errors
    /// As [`TappedDecoder::token_tangents`].
    pub fn push_forward(
        &self,
        example: &Example<'_>,
        directions: ArrayView2<'_, f32>,
    ) -> Result<Array3<f32>, ModelError> {
        self.check(std::slice::from_ref(example))?;
        self.check_directions(directions)?;
        let objectives: Vec<Objective<'_>> = example.objectives(Loss::NextToken).collect();
        let v = self.decoder.config.vocab_size;
        let mut out = Array3::zeros((directions.nrows(), objectives[0].predicting.len(), v));
        let (packed, mut tangents, mut moved) = (Directions::new(self, directions), Tangents::default(), vec![]);
        self.decoder.pool().with(|ws| {
            if !self.walk(&objectives, &packed, ws, &mut tangents) {
                return;
            }
            for piece in pieces(&ws.spans, &objectives) {
                self.logits(&piece, ws);
                let first = piece.positions.start - objectives[0].predicting.start;
                for r in 0..packed.n {
                    self.logit_tangents(&piece, &packed, r, &tangents, ws, &mut moved);
                    let mut out = out.slice_mut(ndarray::s![r, first..first + piece.positions.len(), ..]);
                    out.iter_mut().zip(&moved).for_each(|(out, &x)| *out = x);
                }
            }
        });
        Ok(out)
    }
}

/// `Σ a·b` in f64, in order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
