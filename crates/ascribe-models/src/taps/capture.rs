//! What tracked modules saw: inputs and output gradients of single positions. Nothing is summed or projected here.

use super::{PACK_ROWS, TappedDecoder};
use crate::decoder::{Loss, Module, Norm, NormGradient, Objective, Rows, Sink};
use crate::error::ModelError;
use crate::features::Example;

/// The rows of one module: `∂ℓ/∂W = Σ_t δ_t x_tᵀ` over the rows of an example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TapRows {
    /// Example `e` has the rows `starts[e]..starts[e + 1]`.
    pub starts: Vec<usize>,
    /// Inputs `[T, n_in]`; the last column is 1 where the module has a bias.
    pub x: Vec<f32>,
    /// Gradients of the example's summed loss by the module's outputs, `[T, n_out]`.
    pub delta: Vec<f32>,
}

/// What all tracked modules saw of some examples. Its memory is used again by the next call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capture {
    /// One per tap.
    pub taps: Vec<TapRows>,
    /// Summed loss of every example, nats.
    pub losses: Vec<f64>,
}

impl TappedDecoder<'_> {
    /// One forward and backward pass over `examples` under `loss`, on the calling thread, into `out`.
    ///
    /// A module has a row for every position up to the last one that predicts (the output layer: for every position that
    /// predicts); later positions have no gradient anywhere. An example without predictions has no rows and loss 0. Cost per
    /// token: a forward pass and the activations' half of a backward pass.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`]; [`ModelError::Mismatch`] for targets of another length or more than one
    /// span; [`ModelError::Diverged`] if a loss is not finite.
    pub fn capture(&self, examples: &[Example<'_>], loss: Loss, out: &mut Capture) -> Result<(), ModelError> {
        self.check(examples)?;
        let objectives: Vec<Objective<'_>> =
            examples.iter().flat_map(|example| example.objectives(loss).collect::<Vec<_>>()).collect();
        self.make_room(&objectives, out);
        let Capture { taps, losses } = out;
        for pack in self.packs(examples, PACK_ROWS) {
            let mut sink = CaptureSink { tapped: self, first: pack.start, objectives: &objectives, taps };
            let (objectives, losses) = (&objectives[pack.clone()], &mut losses[pack]);
            self.decoder.pool().with(|ws| self.pass().backward(objectives, ws, &mut sink, losses));
        }
        match losses.iter().find(|loss| !loss.is_finite()) {
            Some(&found) => Err(ModelError::Diverged { step: 0, what: "loss", found }),
            None => Ok(()),
        }
    }

    fn make_room(&self, objectives: &[Objective<'_>], out: &mut Capture) {
        out.losses.clear();
        out.losses.resize(objectives.len(), 0.0);
        out.taps.resize_with(self.taps.len(), TapRows::default);
        for (tap, rows) in self.taps.iter().zip(&mut out.taps) {
            rows.starts.clear();
            rows.starts.push(0);
            let mut total = 0;
            for objective in objectives {
                total += rows_of(tap.module, objective).len();
                rows.starts.push(total);
            }
            rows.x.resize(total * tap.n_in, 0.0);
            rows.delta.resize(total * tap.n_out, 0.0);
        }
    }
}

/// Positions of which a module keeps a row.
pub(super) fn rows_of(module: Module, objective: &Objective<'_>) -> std::ops::Range<usize> {
    let predicting = &objective.predicting;
    match module {
        _ if predicting.is_empty() => 0..0,
        Module::Head => predicting.clone(),
        _ => 0..predicting.end,
    }
}

/// Writes the rows of one pack to their places.
struct CaptureSink<'a, 'm> {
    tapped: &'a TappedDecoder<'m>,
    /// Index of the pack's first example.
    first: usize,
    /// Of all examples.
    objectives: &'a [Objective<'a>],
    taps: &'a mut [TapRows],
}

impl Sink for CaptureSink<'_, '_> {
    fn linear(&mut self, module: Module, n: usize, Rows { sequence, first, x, delta }: Rows<'_>) {
        let example = self.first + sequence;
        let kept = rows_of(module, &self.objectives[example]);
        let n = (first + n).min(kept.end) - first;
        let fan = self.tapped.decoder.fan(module);
        for (at, tap) in self.tapped.taps_of(module) {
            let rows = &mut self.taps[at];
            let start = rows.starts[example] + first - kept.start;
            let into = rows.x[start * tap.n_in..(start + n) * tap.n_in].chunks_exact_mut(tap.n_in);
            for (into, x) in into.zip(x.chunks_exact(fan.input)) {
                into[..fan.input].copy_from_slice(x);
                into[fan.input..].fill(1.0);
            }
            let into = rows.delta[start * tap.n_out..(start + n) * tap.n_out].chunks_exact_mut(tap.n_out);
            for (into, delta) in into.zip(delta.chunks_exact(fan.output)) {
                into.copy_from_slice(&delta[tap.columns.clone()]);
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
