//! Full gradients, flat in the order of `ParameterLayout`: exact dataset-level influence and training stand on them.

use std::ops::Range;

use ascribe_linalg::elementwise::{add_assign, sum_rows};
use ndarray::Array2;
use rayon::prelude::*;

use crate::decoder::{Decoder, Module, Norm, NormGradient, Rows, Sequence, Sink};
use crate::error::ModelError;
use crate::ops::linear;

/// Sequences whose gradients are added one after another before groups are added: part of the definition of the bytes.
const GROUP: usize = 16;

/// Groups that are in memory at the same time.
const WAVE: usize = 16;

/// Adds weight gradients to a flat vector.
pub(crate) struct FullGradient<'a> {
    decoder: &'a Decoder,
    flat: &'a mut [f32],
}

impl<'a> FullGradient<'a> {
    pub fn new(decoder: &'a Decoder, flat: &'a mut [f32]) -> Self {
        assert_eq!(flat.len(), decoder.layout.len(), "a flat gradient has one number per parameter");
        Self { decoder, flat }
    }
}

impl Sink for FullGradient<'_> {
    fn linear(&mut self, module: Module, n: usize, rows: Rows<'_>) {
        let layout = self.decoder.linear_layout(module);
        let (d_w, d_b) = weight_and_bias(self.flat, &layout.weight, layout.bias.as_ref());
        let fan = self.decoder.fan(module);
        linear::backward_weight(fan, layout.transposed, n, rows.x, rows.delta, d_w, d_b);
    }

    fn norm(&mut self, norm: Norm, _sequence: usize) -> NormGradient<'_> {
        let layout = self.decoder.norm_layout(norm);
        let (gain, bias) = weight_and_bias(self.flat, &layout.gain, layout.bias.as_ref());
        NormGradient { gain, bias: bias.unwrap_or_default() }
    }

    fn embedding(&mut self, _sequence: usize, tokens: &[u32], d_x: &[f32]) {
        let d = self.decoder.config.hidden_size;
        let layout = &self.decoder.layout;
        let rows = &mut self.flat[layout.embedding.clone()];
        for (d_x, &token) in d_x.chunks_exact(d).zip(tokens) {
            add_assign(&mut rows[token as usize * d..(token as usize + 1) * d], d_x);
        }
        if let Some(positions) = &layout.positions {
            add_assign(&mut self.flat[positions.clone()][..d_x.len()], d_x);
        }
        if let Some(types) = &layout.token_types {
            // Every token is of the first type.
            sum_rows(d_x, &mut self.flat[types.clone()][..d]);
        }
    }
}

/// Writable slices of a weight and of the bias behind it.
pub(crate) fn weight_and_bias<'f>(
    flat: &'f mut [f32],
    weight: &Range<usize>,
    bias: Option<&Range<usize>>,
) -> (&'f mut [f32], Option<&'f mut [f32]>) {
    match bias {
        None => (&mut flat[weight.clone()], None),
        Some(bias) => {
            let (front, back) = flat[..bias.end].split_at_mut(bias.start);
            (&mut front[weight.clone()], Some(back))
        }
    }
}

impl Decoder {
    /// `Σ_i ∇ℓ_i` over `sequences`, flat in the order of [`Decoder::parameter_layout`]; `ℓ_i` is the summed loss of
    /// [`Sequence`].
    ///
    /// Groups of 16 sequences are added in order, groups in parallel, group sums in order: the bytes depend on the order
    /// of the sequences, never on threads. Sums are f32 within a group and f64 across groups. Cost: one forward and
    /// backward pass, 6 operations per parameter and token.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn gradient_sum(&self, sequences: &[Sequence<'_>]) -> Result<Vec<f32>, ModelError> {
        self.check(sequences)?;
        let mut total = vec![0.0f64; self.layout.len()];
        for wave in sequences.chunks(GROUP * WAVE) {
            let groups: Vec<Vec<f32>> = wave.par_chunks(GROUP).map(|group| self.group_gradient(group)).collect();
            total.par_chunks_mut(1 << 14).enumerate().for_each(|(chunk, total)| {
                let start = chunk << 14;
                for group in &groups {
                    for (sum, &g) in total.iter_mut().zip(&group[start..]) {
                        *sum += f64::from(g);
                    }
                }
            });
        }
        Ok(total.into_iter().map(|sum| sum as f32).collect())
    }

    fn group_gradient(&self, group: &[Sequence<'_>]) -> Vec<f32> {
        let mut flat = vec![0.0f32; self.layout.len()];
        self.pool().with(|ws| {
            for &sequence in group {
                self.backward(sequence, ws, &mut FullGradient::new(self, &mut flat));
            }
        });
        flat
    }

    /// Full gradient of each sequence's summed loss, `[n, num_parameters]`: for queries, `4·n·num_parameters` bytes.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn gradients(&self, sequences: &[Sequence<'_>]) -> Result<Array2<f32>, ModelError> {
        self.check(sequences)?;
        let mut out = Array2::zeros((sequences.len(), self.layout.len()));
        let flat = out.as_slice_mut().expect("a fresh array is contiguous");
        flat.par_chunks_mut(self.layout.len()).zip(sequences).for_each(|(flat, &sequence)| {
            self.pool().with(|ws| self.backward(sequence, ws, &mut FullGradient::new(self, flat)));
        });
        Ok(out)
    }

    /// Exact `‖∇ℓ_i‖` of each sequence over all parameters. Cost: one forward and backward pass; memory: one flat
    /// gradient per thread.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn gradient_norms(&self, sequences: &[Sequence<'_>]) -> Result<Vec<f32>, ModelError> {
        self.check(sequences)?;
        let norm = |flat: &mut Vec<f32>, &sequence: &Sequence<'_>| {
            flat.fill(0.0);
            self.pool().with(|ws| self.backward(sequence, ws, &mut FullGradient::new(self, flat)));
            ascribe_linalg::elementwise::sum_squares(flat).sqrt() as f32
        };
        Ok(sequences.par_iter().map_init(|| vec![0.0f32; self.layout.len()], norm).collect())
    }
}
