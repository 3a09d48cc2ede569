//! The decoder as a candle graph: the independent second route of the hand-written passes.
//!
//! Three routes through the same weights: our kernels as candle operators, candle's own composed operators, and these
//! again in f64. Logits, losses and full gradients must agree; nothing else uses this module, speed is not its purpose.

mod ops;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use ndarray::Array2;

use crate::decoder::{Decoder, Sequence};
use crate::error::ModelError;

/// Which operators a graph is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GraphKind {
    /// Our kernels, wrapped as candle operators with their own backward passes, f32.
    Fused,
    /// candle's composed operators, f32: what a user of candle would write.
    Stock,
    /// The same in f64: the reference.
    StockF64,
}

/// A decoder as a graph of candle tensors.
pub struct GraphDecoder<'m> {
    decoder: &'m Decoder,
    kind: GraphKind,
    /// One per slot of the layout, in its order.
    vars: Vec<Var>,
    /// Additive causal mask of the longest sequence, cosines and sines (stock kinds).
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
}

/// Tensors per layer in the layout.
const PER_LAYER: usize = 9;

impl<'m> GraphDecoder<'m> {
    /// Copies the weights into variables.
    ///
    /// # Errors
    /// [`ModelError::Graph`].
    pub fn new(decoder: &'m Decoder, kind: GraphKind) -> std::result::Result<Self, ModelError> {
        let dtype = if kind == GraphKind::StockF64 { DType::F64 } else { DType::F32 };
        let tensor =
            |numbers: &[f32], shape: &[usize]| Tensor::from_slice(numbers, shape, &Device::Cpu)?.to_dtype(dtype);
        let slots = decoder.parameter_layout().slots();
        let var = |slot: &crate::layout::ParameterSlot| {
            Var::from_tensor(&tensor(&decoder.parameters[slot.range.clone()], &slot.shape)?)
        };
        let vars = slots.iter().map(var).collect::<Result<Vec<_>>>()?;
        let (t, half) = (decoder.config.max_position_embeddings, decoder.config.head_dim / 2);
        let mask: Vec<f32> = (0..t * t).map(|at| if at % t > at / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let (cos, sin) = decoder.rotary.tables();
        Ok(Self {
            decoder,
            kind,
            vars,
            mask: tensor(&mask, &[t, t])?,
            cos: tensor(cos, &[1, t, half])?,
            sin: tensor(sin, &[1, t, half])?,
        })
    }

    /// Logits `[T, V]`.
    ///
    /// # Errors
    /// What the decoder refuses, and [`ModelError::Graph`].
    pub fn logits(&self, tokens: &[u32]) -> std::result::Result<Array2<f32>, ModelError> {
        self.decoder.check(&[Sequence::whole(tokens)])?;
        let logits = self.head(&self.hidden(tokens)?)?.to_dtype(DType::F32)?;
        let numbers = logits.flatten_all()?.to_vec1::<f32>()?;
        Ok(Array2::from_shape_vec(logits.dims2()?, numbers).expect("as many numbers as the shape says"))
    }

    /// Summed loss of the counted positions and its gradient, flat in the order of the decoder's layout.
    ///
    /// # Errors
    /// What the decoder refuses; [`ModelError::Graph`], also when a parameter got no gradient.
    pub fn loss_and_gradient(&self, sequence: Sequence<'_>) -> std::result::Result<(f64, Vec<f32>), ModelError> {
        self.decoder.check(&[sequence])?;
        let loss = self.loss(sequence)?;
        let gradients = loss.backward()?;
        let mut flat = Vec::with_capacity(self.decoder.parameter_layout().len());
        for (var, slot) in self.vars.iter().zip(self.decoder.parameter_layout().slots()) {
            let gradient = gradients.get(var).ok_or_else(|| {
                ModelError::Graph(candle_core::Error::Msg(format!("no gradient reached `{}`", slot.name)))
            })?;
            flat.extend(gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok((loss.to_dtype(DType::F64)?.to_scalar()?, flat))
    }

    fn loss(&self, sequence: Sequence<'_>) -> Result<Tensor> {
        let rows = sequence.predicting();
        let logits = self.head(&self.hidden(sequence.tokens)?.narrow(0, rows.start, rows.len())?)?;
        let targets = &sequence.tokens[rows.start + 1..=rows.end];
        if self.kind == GraphKind::Fused {
            return ops::apply(ops::NllSum { targets: targets.to_vec() }, &logits);
        }
        let targets = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu)?;
        candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&targets, 1)?.sum_all()?.neg()
    }

    /// Final normed hidden states `[T, d]`.
    fn hidden(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = self.vars[0].index_select(&ids, 0)?;
        let n_layers = self.decoder.config.num_hidden_layers;
        for l in 0..n_layers {
            let w = &self.vars[1 + PER_LAYER * l..1 + PER_LAYER * (l + 1)];
            let h = self.norm(&x, &w[0])?;
            let [q, k, v] = [&w[1], &w[2], &w[3]].map(|w| linear(&h, w));
            let mixed = self.attention(&q?, &k?, &v?)?;
            x = (x + linear(&mixed, &w[4])?)?;
            let h = self.norm(&x, &w[5])?;
            let (gate, up) = (linear(&h, &w[6])?, linear(&h, &w[7])?);
            let act = if self.kind == GraphKind::Fused {
                let width = self.decoder.config.intermediate_size;
                ops::apply(ops::SwiGlu { width }, &Tensor::cat(&[gate, up], 1)?)?
            } else {
                (gate.silu()? * up)?
            };
            x = (x + linear(&act, &w[8])?)?;
        }
        self.norm(&x, &self.vars[1 + PER_LAYER * n_layers])
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let tied = self.decoder.config.tie_word_embeddings;
        linear(hidden, if tied { &self.vars[0] } else { &self.vars[self.vars.len() - 1] })
    }

    fn norm(&self, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
        let eps = self.decoder.config.rms_norm_eps;
        if self.kind == GraphKind::Fused {
            return ops::norm(x, gain, eps as f32);
        }
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(gain)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = self.decoder.heads();
        if self.kind == GraphKind::Fused {
            let rotary = Arc::new(self.decoder.rotary.clone());
            let rotate = ops::Rotate { rotary, stride: heads.stride(), n_heads: heads.queries + heads.keys };
            let qkv = ops::apply(rotate, &Tensor::cat(&[q, k, v], 1)?)?;
            return ops::apply(ops::Attention(heads), &qkv);
        }
        let t = q.dims2()?.0;
        // [T, H·dh] → [H, T, dh]
        let split = |x: &Tensor, n: usize| x.reshape((t, n, heads.width))?.transpose(0, 1)?.contiguous();
        let q = self.turned(&split(q, heads.queries)?)?;
        let k = self.turned(&split(k, heads.keys)?)?;
        let v = split(v, heads.keys)?;
        // Each key head serves a group of query heads: [Hkv, T, dh] → [H, T, dh]
        let shared = |x: &Tensor| -> Result<Tensor> {
            let group = heads.queries / heads.keys;
            let wide = x.unsqueeze(1)?.broadcast_as((heads.keys, group, t, heads.width))?;
            wide.contiguous()?.reshape((heads.queries, t, heads.width))
        };
        let scale = 1.0 / (heads.width as f64).sqrt();
        let scores = (q.matmul(&shared(&k)?.transpose(1, 2)?.contiguous()?)? * scale)?;
        let mask = self.mask.narrow(0, 0, t)?.narrow(1, 0, t)?;
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
        p.matmul(&shared(&v)?)?.transpose(0, 1)?.contiguous()?.reshape((t, heads.queries * heads.width))
    }

    /// Rotary positions from composed operators, `[H, T, dh]`.
    fn turned(&self, x: &Tensor) -> Result<Tensor> {
        let (_, t, width) = x.dims3()?;
        let half = width / 2;
        let (cos, sin) = (self.cos.narrow(1, 0, t)?, self.sin.narrow(1, 0, t)?);
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 2)
    }
}

fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DecoderConfig;
    use crate::decoder::tests::{tiny_config, tokens};

    fn configs() -> Vec<DecoderConfig> {
        let grouped = DecoderConfig { initializer_range: 0.4, ..tiny_config() };
        let wide_heads = DecoderConfig { head_dim: 6, num_key_value_heads: 2, ..grouped.clone() };
        let untied = DecoderConfig { tie_word_embeddings: false, ..wide_heads.clone() };
        vec![grouped, wide_heads, untied]
    }

    /// Largest difference over a tensor, relative to the tensor's largest number.
    fn worst(a: &[f32], b: &[f32]) -> f32 {
        let scale = b.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs() / scale))
    }

    #[test]
    fn hand_written_passes_agree_with_candles_autograd() {
        for config in configs() {
            let decoder = Decoder::init(config, 6).unwrap();
            for (len, loss_from) in [(70, 0), (11, 5), (2, 0)] {
                let text = tokens(3, len);
                let sequence = Sequence { tokens: &text, loss_from };
                let logits = decoder.logits(&text).unwrap();
                let loss = decoder.losses(&[sequence]).unwrap()[0];
                let gradient = decoder.gradient_sum(&[sequence]).unwrap();
                for kind in [GraphKind::StockF64, GraphKind::Stock, GraphKind::Fused] {
                    let graph = GraphDecoder::new(&decoder, kind).unwrap();
                    let other = graph.logits(&text).unwrap();
                    assert!(worst(logits.as_slice().unwrap(), other.as_slice().unwrap()) < 1e-5, "{kind:?} logits");
                    let (other, flat) = graph.loss_and_gradient(sequence).unwrap();
                    assert!((loss / other - 1.0).abs() < 1e-5, "{kind:?}: {loss} {other}");
                    for slot in decoder.parameter_layout().slots() {
                        let off = worst(&gradient[slot.range.clone()], &flat[slot.range.clone()]);
                        assert!(off < 1e-5, "{kind:?} {}: {off}", slot.name);
                    }
                }
            }
        }
    }
}
