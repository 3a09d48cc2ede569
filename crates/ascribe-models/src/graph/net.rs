//! The network of every family from composed candle operators that have a gradient, one sequence at a time.
//!
//! Written from the descriptions in `arch`, not from the hand-written passes, so that the two can disagree. Only operators
//! that a test of this folder compares with finite differences may appear here: several of candle's fused ones have no
//! gradient and say nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor, Var};

use super::{GraphKind, fused, tables};
use crate::arch::{Activation, NormKind, QkNorm, QkvOrder, Topology};
use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Sequence};
use crate::layout::{LayerLayout, LinearLayout, NormLayout, ParameterLayout};

/// Tables of one layer, for the longest sequence.
struct LayerTables {
    /// Cosines and sines `[1, n, half]`.
    turn: Option<[Tensor; 2]>,
    /// `[n, n]`.
    mask: Option<Tensor>,
}

/// Weights as variables, and the tables.
pub(super) struct Net<'m> {
    decoder: &'m Decoder,
    kind: GraphKind,
    /// By first place in the flat vector: a whole fused matrix, a bias, a gain.
    vars: BTreeMap<usize, (Range<usize>, Var)>,
    tables: Vec<LayerTables>,
}

/// Places of the layout's units: matrices as the products use them, vectors.
pub(super) fn units(layout: &ParameterLayout) -> Vec<Range<usize>> {
    fn linear(out: &mut Vec<Range<usize>>, layout: &LinearLayout) {
        out.push(layout.weight.clone());
        out.extend(layout.bias.clone());
    }
    fn norm(out: &mut Vec<Range<usize>>, layout: &Option<NormLayout>) {
        out.extend(layout.iter().flat_map(|norm| [Some(norm.gain.clone()), norm.bias.clone()]).flatten());
    }
    let mut out = vec![layout.embedding.clone()];
    out.extend(layout.positions.iter().chain(&layout.token_types).cloned());
    norm(&mut out, &layout.embedding_norm);
    for LayerLayout { attn_norm, qkv, q_norm, k_norm, o, attn_post, mlp_norm, up, down, mlp_post } in &layout.layers {
        [attn_norm, q_norm, k_norm, attn_post, mlp_norm, mlp_post]
            .into_iter()
            .for_each(|layout| norm(&mut out, layout));
        [qkv, o, up, down].into_iter().for_each(|layout| linear(&mut out, layout));
    }
    norm(&mut out, &layout.norm);
    linear(&mut out, &layout.head);
    out.sort_by_key(|range| range.start);
    // A tied head is the embedding.
    out.dedup();
    out
}

/// Shape of the unit at `range`: tensors that lie in it are stacked.
pub(super) fn unit_shape(layout: &ParameterLayout, range: &Range<usize>) -> Vec<usize> {
    let mut inside = layout.slots().iter().filter(|slot| range.contains(&slot.range.start));
    let mut shape = inside.next().expect("every unit begins with a slot").shape.clone();
    shape[0] += inside.map(|slot| slot.shape[0]).sum::<usize>();
    shape
}

impl<'m> Net<'m> {
    pub fn new(decoder: &'m Decoder, kind: GraphKind) -> Result<Self> {
        let dtype = if kind == GraphKind::StockF64 { DType::F64 } else { DType::F32 };
        let tensor =
            |numbers: &[f32], shape: &[usize]| Tensor::from_slice(numbers, shape, &Device::Cpu)?.to_dtype(dtype);
        let layout = decoder.parameter_layout();
        let mut vars = BTreeMap::new();
        for range in units(layout) {
            let numbers = tensor(&decoder.parameters()[range.clone()], &unit_shape(layout, &range))?;
            vars.insert(range.start, (range, Var::from_tensor(&numbers)?));
        }
        let config = decoder.config();
        let n = config.max_position_embeddings;
        let layer = |l: usize| -> Result<LayerTables> {
            let turn = match tables::angles(config, l, n) {
                Some(a) => Some([tensor(&a.cos, &[1, n, a.half])?, tensor(&a.sin, &[1, n, a.half])?]),
                None => None,
            };
            let mask = tables::mask(config, l, n).map(|mask| tensor(&mask, &[n, n])).transpose()?;
            Ok(LayerTables { turn, mask })
        };
        let tables = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { decoder, kind, vars, tables })
    }

    /// All variables with their places, in order.
    pub fn vars(&self) -> impl Iterator<Item = &(Range<usize>, Var)> {
        self.vars.values()
    }

    fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    fn at(&self, range: &Range<usize>) -> &Tensor {
        &self.vars[&range.start].1
    }

    /// Summed loss of the counted positions, a scalar.
    pub fn loss(&self, sequence: Sequence<'_>) -> Result<Tensor> {
        let rows = sequence.predicting();
        let logits = self.head(&self.hidden(sequence.tokens)?.narrow(0, rows.start, rows.len())?)?;
        let targets = &sequence.tokens[rows.start + 1..=rows.end];
        if self.kind == GraphKind::Fused {
            return fused::apply(fused::NllSum { targets: targets.to_vec() }, &logits);
        }
        let targets = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu)?;
        candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&targets, 1)?.sum_all()?.neg()
    }

    /// Final hidden states `[T, d]`, normed where the family norms them.
    pub fn hidden(&self, tokens: &[u32]) -> Result<Tensor> {
        let (layout, arch, t) = (self.decoder.parameter_layout(), &self.config().arch, tokens.len());
        let ids = Tensor::from_slice(tokens, t, &Device::Cpu)?;
        let mut x = self.at(&layout.embedding).index_select(&ids, 0)?;
        if let Some(scale) = arch.embedding_scale {
            x = x.affine(scale, 0.0)?;
        }
        if let Some(positions) = &layout.positions {
            x = (x + self.at(positions).narrow(0, 0, t)?)?;
        }
        if let Some(types) = &layout.token_types {
            x = x.broadcast_add(&self.at(types).narrow(0, 0, 1)?)?;
        }
        x = self.maybe_norm(&layout.embedding_norm, &x)?;
        for l in 0..self.config().num_hidden_layers {
            x = self.layer(l, &x)?;
        }
        self.maybe_norm(&layout.norm, &x)
    }

    fn layer(&self, l: usize, x: &Tensor) -> Result<Tensor> {
        let w = &self.decoder.parameter_layout().layers[l];
        match self.config().arch.topology {
            // A norm that a topology lacks changes nothing.
            Topology::Pre | Topology::Post | Topology::Sandwich => {
                let mixed = self.attention(l, &self.maybe_norm(&w.attn_norm, x)?)?;
                let y = (x + self.maybe_norm(&w.attn_post, &mixed)?)?;
                let out = self.feed_forward(w, &self.maybe_norm(&w.mlp_norm, &y)?)?;
                y + self.maybe_norm(&w.mlp_post, &out)?
            }
            Topology::Parallel => {
                let mixed = self.attention(l, &self.maybe_norm(&w.attn_norm, x)?)?;
                let out = self.feed_forward(w, &self.maybe_norm(&w.mlp_norm, x)?)?;
                (x + mixed)? + out
            }
            Topology::Encoder => {
                let y = self.maybe_norm(&w.attn_post, &(x + self.attention(l, x)?)?)?;
                self.maybe_norm(&w.mlp_post, &(&y + self.feed_forward(w, &y)?)?)
            }
        }
    }

    /// Logits of hidden states.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.linear(&self.decoder.parameter_layout().head, hidden)?;
        soft_cap(&logits, self.config().arch.logit_softcap)
    }

    fn linear(&self, layout: &LinearLayout, x: &Tensor) -> Result<Tensor> {
        let w = self.at(&layout.weight);
        let y = if layout.transposed { x.matmul(w)? } else { x.matmul(&w.t()?)? };
        match &layout.bias {
            Some(bias) => y.broadcast_add(self.at(bias)),
            None => Ok(y),
        }
    }

    fn maybe_norm(&self, layout: &Option<NormLayout>, x: &Tensor) -> Result<Tensor> {
        let Some(NormLayout { gain, bias, .. }) = layout else { return Ok(x.clone()) };
        let (gain, eps) = (self.at(gain), self.config().rms_norm_eps);
        if self.kind == GraphKind::Fused {
            return fused::norm(x, gain, eps as f32);
        }
        let kind = self.config().arch.norm;
        let x = if kind == NormKind::Layer { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let unit = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
        let out = match kind {
            NormKind::RmsPlusOne => unit.broadcast_mul(&(gain + 1.0)?)?,
            NormKind::Rms | NormKind::Layer => unit.broadcast_mul(gain)?,
        };
        match bias {
            Some(bias) => out.broadcast_add(self.at(bias)),
            None => Ok(out),
        }
    }

    fn feed_forward(&self, w: &LayerLayout, x: &Tensor) -> Result<Tensor> {
        let (arch, f) = (&self.config().arch, self.config().intermediate_size);
        let up = self.linear(&w.up, x)?;
        let act = if self.kind == GraphKind::Fused {
            fused::apply(fused::SwiGlu { width: f }, &up)?
        } else if arch.gated {
            (activate(arch.activation, &up.narrow(1, 0, f)?)? * up.narrow(1, f, f)?)?
        } else {
            activate(arch.activation, &up)?
        };
        self.linear(&w.down, &act)
    }

    fn attention(&self, l: usize, x: &Tensor) -> Result<Tensor> {
        let (config, w) = (self.config(), &self.decoder.parameter_layout().layers[l]);
        let qkv = self.linear(&w.qkv, x)?;
        if self.kind == GraphKind::Fused {
            return self.linear(&w.o, &fused::attention(self.decoder, &qkv)?);
        }
        let (t, dh) = (x.dims2()?.0, config.head_dim);
        let (n_queries, n_keys) = (config.num_attention_heads, config.num_key_value_heads);
        let [q, k, v] = self.split(&qkv)?;
        // [T, H·dh] → [H, T, dh], normed and turned on the way
        let heads = |x: &Tensor, n: usize, norm: &Option<NormLayout>| -> Result<Tensor> {
            let x = match config.arch.qk_norm {
                QkNorm::PerHead => self.maybe_norm(norm, &x.reshape((t * n, dh))?)?,
                QkNorm::Full => self.maybe_norm(norm, x)?,
                QkNorm::None => x.clone(),
            };
            x.reshape((t, n, dh))?.transpose(0, 1)?.contiguous()
        };
        let q = self.turned(l, &heads(&q, n_queries, &w.q_norm)?)?;
        let k = self.turned(l, &heads(&k, n_keys, &w.k_norm)?)?;
        let v = heads(&v, n_keys, &None)?;
        // Each key head serves a group of query heads: [Hkv, T, dh] → [H, T, dh]
        let shared = |x: &Tensor| -> Result<Tensor> {
            let wide = x.unsqueeze(1)?.broadcast_as((n_keys, n_queries / n_keys, t, dh))?;
            wide.contiguous()?.reshape((n_queries, t, dh))
        };
        let scale = config.arch.attention_scale.unwrap_or(1.0 / (dh as f64).sqrt());
        let scores = q.matmul(&shared(&k)?.transpose(1, 2)?.contiguous()?)?.affine(scale, 0.0)?;
        let mut scores = soft_cap(&scores, config.arch.attention_softcap)?;
        if let Some(mask) = &self.tables[l].mask {
            scores = scores.broadcast_add(&mask.narrow(0, 0, t)?.narrow(1, 0, t)?)?;
        }
        let p = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let mixed = p.matmul(&shared(&v)?)?.transpose(0, 1)?.contiguous()?.reshape((t, n_queries * dh))?;
        self.linear(&w.o, &mixed)
    }

    /// Queries, keys and values of the fused rows.
    fn split(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let config = self.config();
        let (t, dh, n_queries) = (qkv.dims2()?.0, config.head_dim, config.num_attention_heads);
        let (q, kv) = (n_queries * dh, config.num_key_value_heads * dh);
        match config.arch.qkv_order {
            QkvOrder::Blocked => Ok([qkv.narrow(1, 0, q)?, qkv.narrow(1, q, kv)?, qkv.narrow(1, q + kv, kv)?]),
            QkvOrder::Interleaved => {
                let heads = qkv.reshape((t, n_queries, 3, dh))?;
                let part = |i: usize| heads.narrow(2, i, 1)?.contiguous()?.reshape((t, n_queries * dh));
                Ok([part(0)?, part(1)?, part(2)?])
            }
        }
    }

    /// Rotary positions, `[H, T, dh]`: the first two halves are turned, the rest stays.
    fn turned(&self, l: usize, x: &Tensor) -> Result<Tensor> {
        let Some([cos, sin]) = &self.tables[l].turn else { return Ok(x.clone()) };
        let (_, t, dh) = x.dims3()?;
        let half = cos.dims3()?.2;
        let (cos, sin) = (cos.narrow(1, 0, t)?, sin.narrow(1, 0, t)?);
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let mut parts = vec![first, second];
        if 2 * half < dh {
            parts.push(x.narrow(2, 2 * half, dh - 2 * half)?);
        }
        Tensor::cat(&parts, 2)
    }
}

/// `c·tanh(x/c)`.
fn soft_cap(x: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => x.affine(1.0 / cap, 0.0)?.tanh()?.affine(cap, 0.0),
        None => Ok(x.clone()),
    }
}

/// The GELUs are composed: candle's own carry six-digit constants.
fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    let half_gate = |inner: Tensor| -> Result<Tensor> { x.affine(0.5, 0.0)? * (inner + 1.0)? };
    match kind {
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::Gelu => half_gate(x.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()?),
        Activation::GeluTanh => {
            let cubic = (x * x.sqr()?.affine(0.044_715, 1.0)?)?;
            half_gate(cubic.affine((2.0 / std::f64::consts::PI).sqrt(), 0.0)?.tanh()?)
        }
    }
}
