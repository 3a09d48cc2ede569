//! The two routes of a pass's linear products.
//!
//! The exact route multiplies with the weights as they lie, through `gemm`: what training does, weights change every step.
//! The packed route multiplies with weights that were packed once, in f32 or bf16; there a row of a product does not feel
//! the other rows, so many sequences may share a pass and each still has the bits that it has alone.

use ascribe_linalg::packed::{PackedMatrix, Precision, RoundedRows};

use super::{Decoder, Module};
use crate::ops::linear::{Linear, Onto, prepare};

/// Both directions of one linear layer.
#[derive(Clone, Debug)]
struct Both {
    /// `Wᵀ`, `[I, O]`.
    up: PackedMatrix,
    /// `W`, `[O, I]`.
    down: PackedMatrix,
}

/// The weights of all linear layers of a decoder, packed for the way up and the way down.
///
/// Memory: twice the linear weights in f32, once in bf16. They are those of the decoder when it was packed: whoever changes
/// weights packs again.
#[derive(Clone, Debug)]
pub(crate) struct PackedWeights {
    precision: Precision,
    /// Query-key-value, output, up, down of each layer; then the output layer.
    modules: Vec<Both>,
}

impl PackedWeights {
    /// Packs the linear layers of `decoder`. Cost: two passes over the weights.
    pub fn new(decoder: &Decoder, precision: Precision) -> Self {
        let layers = 0..decoder.config.num_hidden_layers;
        let modules = layers.flat_map(|l| [Module::Qkv(l), Module::O(l), Module::Up(l), Module::Down(l)]);
        let both = |module| {
            let w = decoder.linear(module).matrix();
            Both { up: PackedMatrix::new(precision, w.t()), down: PackedMatrix::new(precision, w) }
        };
        Self { precision, modules: modules.chain([Module::Head]).map(both).collect() }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.modules.iter().map(|both| both.up.bytes() + both.down.bytes()).sum()
    }

    fn of(&self, module: Module) -> &Both {
        let place = match module {
            Module::Qkv(l) => 4 * l,
            Module::O(l) => 4 * l + 1,
            Module::Up(l) => 4 * l + 2,
            Module::Down(l) => 4 * l + 3,
            Module::Head => self.modules.len() - 1,
        };
        &self.modules[place]
    }
}

/// The route of a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Products<'m> {
    /// Weights as they lie.
    Exact,
    /// Weights packed once.
    Packed(&'m PackedWeights),
}

impl Products<'_> {
    /// `y ← x·Wᵀ + b + onto`; x `[n, I]`, y `[n, O]`.
    #[allow(clippy::too_many_arguments)] // the model's weights, the operands of a product and its memory
    pub fn forward(
        self,
        model: &Decoder,
        module: Module,
        n: usize,
        x: &[f32],
        onto: Onto<'_>,
        y: &mut [f32],
        rounded: &mut RoundedRows,
    ) {
        let linear = model.linear(module);
        let Self::Packed(weights) = self else {
            return linear.forward(n, x, onto, y);
        };
        let (i, o) = (linear.fan.input, linear.fan.output);
        let (w, y) = (&weights.of(module).up, &mut y[..n * o]);
        let x = rounded.prepare(weights.precision, n, i, i, x);
        // The bias joins inside the product.
        let keep = prepare(None, onto, y);
        match linear.bias {
            Some(bias) => w.multiply_with_bias(&x, bias, keep, y, o),
            None => w.multiply(&x, keep, y, o),
        }
    }

    /// `y ← x·Wᵀ`, no bias: how a change of the input changes the output; x `[n, I]`, y `[n, O]`.
    pub fn tangent(
        self,
        model: &Decoder,
        module: Module,
        n: usize,
        x: &[f32],
        y: &mut [f32],
        rounded: &mut RoundedRows,
    ) {
        let linear = Linear { bias: None, ..model.linear(module) };
        let (i, o) = (linear.fan.input, linear.fan.output);
        match self {
            Self::Exact => linear.forward(n, x, Onto::Fresh, y),
            Self::Packed(weights) => {
                let x = rounded.prepare(weights.precision, n, i, i, x);
                weights.of(module).up.multiply(&x, 0.0, &mut y[..n * o], o);
            }
        }
    }

    /// `d_x ← d_y·W`; d_y `[n, O]`, d_x `[n, I]`.
    pub fn backward_input(
        self,
        model: &Decoder,
        module: Module,
        n: usize,
        d_y: &[f32],
        d_x: &mut [f32],
        rounded: &mut RoundedRows,
    ) {
        let Self::Packed(weights) = self else {
            return model.linear(module).backward_input(n, d_y, d_x);
        };
        let fan = model.fan(module);
        let d_y = rounded.prepare(weights.precision, n, fan.output, fan.output, d_y);
        weights.of(module).down.multiply(&d_y, 0.0, &mut d_x[..n * fan.input], fan.input);
    }
}
