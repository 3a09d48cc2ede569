//! A decoder with an adapter merged in, and gradients of the adapter's weights.
//!
//! The passes run on `W = W₀ + s·B·A`. At an adapted module with input `x` and output gradient `δ` the chain rule gives
//! `∇B = s·δᵀ(x·Aᵀ)` and `∇A = s·(δ·B)ᵀ·x`: two narrow products, and the module's full gradient is never formed. Attribution
//! over merged weights needs nothing from here but [`AdaptedDecoder::decoder`].

use std::collections::BTreeMap;

use ascribe_linalg::{Threads, gemm};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::adapter::{Adapter, Part, sites};
use crate::decoder::{Decoder, Module, Norm, NormGradient, Rows, Sequence, Sink};
use crate::error::ModelError;
use crate::ops::{matrix, matrix_mut};

/// Sequences whose gradients are added one after another before groups are added: part of the definition of the bytes.
const GROUP: usize = 16;

/// Groups that are in memory at the same time.
const WAVE: usize = 16;

/// A decoder that runs with an adapter merged into its weights.
#[derive(Clone, Debug)]
pub struct AdaptedDecoder {
    /// With merged weights.
    decoder: Decoder,
    adapter: Adapter,
    /// The adapted modules' own weights, one after another.
    base: Vec<Vec<f32>>,
    /// Which parts stand at a product: four per layer, then the output layer.
    at: Vec<Vec<usize>>,
}

impl AdaptedDecoder {
    /// Merges `adapter`, which was made for a decoder of this shape, into `decoder`. Keeps a copy of the adapted modules'
    /// own weights.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if the adapter was made for another shape; [`ModelError::NotFinite`] if a merged weight is
    /// not finite.
    pub fn new(decoder: Decoder, adapter: Adapter) -> Result<Self, ModelError> {
        let n_layers = decoder.config().num_hidden_layers;
        let mut at = vec![vec![]; 4 * n_layers + 1];
        let sites: BTreeMap<String, Part> = sites(&decoder).map(|(site, _)| (site.name.clone(), site)).collect();
        for (i, part) in adapter.parts.iter().enumerate() {
            let fits = sites.get(&part.name).is_some_and(|site| {
                (site.module, &site.weight, site.fan, site.transposed)
                    == (part.module, &part.weight, part.fan, part.transposed)
            });
            if !fits {
                let (expected, found) = ("an adapter for this model".into(), format!("one with {}", part.name));
                return Err(ModelError::Mismatch { what: "adapter", expected, found });
            }
            at[index(part.module, n_layers)].push(i);
        }
        let base = adapter.parts.iter().map(|part| decoder.parameters()[part.weight.clone()].to_vec()).collect();
        let mut adapted = Self { decoder, adapter, base, at };
        adapted.merge()?;
        Ok(adapted)
    }

    /// The model with merged weights: everything that can be asked of a decoder can be asked of it.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The adapter as it stands.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The merged model alone.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// Takes another vector of adapter weights (in the order of [`Adapter::slots`]) and merges it anew from the base
    /// weights: nothing of earlier merges stays. Cost: `2·r` operations per adapted weight.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for another length, [`ModelError::NotFinite`] if a merged weight is not finite.
    pub fn set_parameters(&mut self, parameters: &[f32]) -> Result<(), ModelError> {
        if parameters.len() != self.adapter.len() {
            let (expected, found) = (self.adapter.len().to_string(), parameters.len().to_string());
            return Err(ModelError::Mismatch { what: "number of adapter weights", expected, found });
        }
        self.adapter.parameters.copy_from_slice(parameters);
        self.merge()
    }

    /// `W ← W₀ + s·B·A`, one thread per module.
    fn merge(&mut self) -> Result<(), ModelError> {
        let Self { decoder, adapter, base, .. } = self;
        let mut rest = decoder.parameters_mut();
        let mut passed = 0;
        let mut places = vec![];
        // Parts stand in the order of the layout: their places can be cut off one after another.
        for part in &adapter.parts {
            let (_, tail) = rest.split_at_mut(part.weight.start - passed);
            let (place, tail) = tail.split_at_mut(part.weight.len());
            places.push(place);
            rest = tail;
            passed = part.weight.end;
        }
        let numbers = &adapter.parameters;
        places.into_par_iter().zip(&adapter.parts).zip(base).try_for_each(|((weight, part), base)| {
            weight.copy_from_slice(base);
            let (a, b) = (part.a(numbers), part.b(numbers));
            let (i, o) = (part.fan.input, part.fan.output);
            if part.transposed {
                gemm(part.scale, a.t(), b.t(), 1.0, matrix_mut(weight, i, o), Threads::One);
            } else {
                gemm(part.scale, b, a, 1.0, matrix_mut(weight, o, i), Threads::One);
            }
            crate::weights::check_finite(weight, std::path::Path::new("<merged>"), &part.name)
        })
    }

    /// `Σ_i ∇ℓ_i` over `sequences` with respect to the adapter's weights, flat in the order of [`Adapter::slots`]; `ℓ_i` is
    /// the summed loss of [`Sequence`].
    ///
    /// Groups of 16 sequences are added in order, groups in parallel, group sums in order, in f64: the bytes depend on the
    /// order of the sequences, never on threads. Cost: one forward and one backward pass without weight gradients, and
    /// `6·r·(in + out)` operations per token and adapted module.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn gradient_sum(&self, sequences: &[Sequence<'_>]) -> Result<Vec<f32>, ModelError> {
        self.decoder.check(sequences)?;
        let mut total = vec![0.0f64; self.adapter.len()];
        for wave in sequences.chunks(GROUP * WAVE) {
            let group = |group: &[Sequence<'_>]| {
                let mut flat = vec![0.0f32; self.adapter.len()];
                for &sequence in group {
                    self.add_gradient(sequence, &mut flat);
                }
                flat
            };
            let groups: Vec<Vec<f32>> = wave.par_chunks(GROUP).map(group).collect();
            for group in groups {
                total.iter_mut().zip(group).for_each(|(sum, g)| *sum += f64::from(g));
            }
        }
        Ok(total.into_iter().map(|sum| sum as f32).collect())
    }

    /// Gradient of each sequence's summed loss with respect to the adapter's weights, `[n, len]`.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`].
    pub fn gradients(&self, sequences: &[Sequence<'_>]) -> Result<Array2<f32>, ModelError> {
        self.decoder.check(sequences)?;
        let mut out = Array2::zeros((sequences.len(), self.adapter.len()));
        let flat = out.as_slice_mut().expect("a fresh array is contiguous");
        flat.par_chunks_mut(self.adapter.len()).zip(sequences).for_each(|(flat, &sequence)| {
            self.add_gradient(sequence, flat);
        });
        Ok(out)
    }

    /// Adds the gradient of a sequence's summed loss to `flat`; returns the loss.
    pub(crate) fn add_gradient(&self, sequence: Sequence<'_>, flat: &mut [f32]) -> f64 {
        let mut sink = AdapterGradient { adapted: self, flat, scratch: Scratch::default() };
        self.decoder.pool().with(|ws| self.decoder.backward(sequence, ws, &mut sink))
    }

    /// The adapted modules of a product.
    fn parts(&self, module: Module) -> impl Iterator<Item = &Part> {
        self.at[index(module, self.decoder.config().num_hidden_layers)].iter().map(|&i| &self.adapter.parts[i])
    }
}

fn index(module: Module, n_layers: usize) -> usize {
    match module {
        Module::Qkv(l) => 4 * l,
        Module::O(l) => 4 * l + 1,
        Module::Up(l) => 4 * l + 2,
        Module::Down(l) => 4 * l + 3,
        Module::Head => 4 * n_layers,
    }
}

impl Part {
    /// `A` `[r, in]`.
    pub fn a<'a>(&self, parameters: &'a [f32]) -> ArrayView2<'a, f32> {
        matrix(&parameters[self.a.clone()], self.rank, self.fan.input)
    }

    /// `B` `[out, r]`.
    pub fn b<'a>(&self, parameters: &'a [f32]) -> ArrayView2<'a, f32> {
        matrix(&parameters[self.b.clone()], self.fan.output, self.rank)
    }
}

/// The two narrow factors of a module's adapter gradients, both `[n, r]`: `s·x·Aᵀ`, which is the input of `B`, and `s·δ·B`,
/// which is the output gradient of `A`. `x` `[n, in]`, `delta` `[n, out]` (the module's columns), `a` `[r, in]`, `b` `[out, r]`.
pub(crate) fn narrow<'s>(
    scale: f32,
    [a, b]: [ArrayView2<'_, f32>; 2],
    x: ArrayView2<'_, f32>,
    delta: ArrayView2<'_, f32>,
    [px, pd]: [&'s mut Vec<f32>; 2],
) -> [ArrayView2<'s, f32>; 2] {
    let (n, rank) = (x.nrows(), a.nrows());
    px.resize(px.len().max(n * rank), 0.0);
    pd.resize(pd.len().max(n * rank), 0.0);
    gemm(scale, x, a.t(), 0.0, matrix_mut(px, n, rank), Threads::One);
    gemm(scale, delta, b, 0.0, matrix_mut(pd, n, rank), Threads::One);
    [matrix(px, n, rank), matrix(pd, n, rank)]
}

/// Memory of one worker.
#[derive(Debug, Default)]
struct Scratch {
    x: Vec<f32>,
    delta: Vec<f32>,
    norm: Vec<f32>,
}

/// Adds an adapter's gradients to a flat vector.
struct AdapterGradient<'a> {
    adapted: &'a AdaptedDecoder,
    flat: &'a mut [f32],
    scratch: Scratch,
}

impl Sink for AdapterGradient<'_> {
    fn linear(&mut self, module: Module, n: usize, Rows { x, delta, .. }: Rows<'_>) {
        let numbers = &self.adapted.adapter.parameters;
        for part in self.adapted.parts(module) {
            let x = matrix(x, n, part.fan.input);
            let delta = matrix(delta, n, delta.len() / n).slice_move(s![.., part.columns.clone()]);
            let Scratch { x: px, delta: pd, .. } = &mut self.scratch;
            let [px, pd] = narrow(part.scale, [part.a(numbers), part.b(numbers)], x, delta, [px, pd]);
            let (rank, o) = (part.rank, part.fan.output);
            gemm(1.0, pd.t(), x, 1.0, matrix_mut(&mut self.flat[part.a.clone()], rank, part.fan.input), Threads::One);
            gemm(1.0, delta.t(), px, 1.0, matrix_mut(&mut self.flat[part.b.clone()], o, rank), Threads::One);
        }
    }

    fn norm(&mut self, norm: Norm, _sequence: usize) -> NormGradient<'_> {
        // Nobody asked for it: it goes where the next norm's goes.
        let layout = self.adapted.decoder.norm_layout(norm);
        let width = layout.gain.len();
        self.scratch.norm.resize(self.scratch.norm.len().max(2 * width), 0.0);
        let (gain, bias) = self.scratch.norm[..2 * width].split_at_mut(width);
        NormGradient { gain, bias: if layout.bias.is_some() { bias } else { &mut [] } }
    }

    fn embedding(&mut self, _sequence: usize, _tokens: &[u32], _d_x: &[f32]) {}

    fn wants_input_gradient(&self) -> bool {
        false
    }

    fn ends_at(&self) -> Option<Module> {
        // The first part of the layout is the last that a pass comes to.
        self.adapted.adapter.parts.first().map(|part| part.module)
    }
}
