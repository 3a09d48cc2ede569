//! Grouped attention over a padded batch, forward and backward, on any device.
//!
//! The queries that share a key head lie under one another, `[B·Hkv, G·T, dh]`: keys and values are never copied, and their
//! gradients add up inside the product. Padding stands at the end of a sequence, where the causal mask hides it.

use candle_core::{DType, Result, Tensor};

use super::functions::{Norm, product, soft_cap, soft_cap_backward, softmax};
use crate::arch::{QkNorm, QkvOrder};

/// Cosines and sines `[T, half]` of the batch, f32.
pub(super) struct Turn {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// What a layer's attention is made of, for one batch.
pub(super) struct Attention<'a> {
    pub n_sequences: usize,
    pub t: usize,
    pub n_keys: usize,
    /// Queries per key head, G.
    pub group: usize,
    pub width: usize,
    pub order: QkvOrder,
    pub qk_norm: QkNorm,
    /// Norms of queries and keys.
    pub norms: Option<[&'a Norm; 2]>,
    pub turn: Option<Turn>,
    pub scale: f64,
    pub cap: Option<f64>,
    /// Additive, `[T, T]`, in the numbers of the pass.
    pub mask: Tensor,
}

/// What the way back needs.
pub(super) struct Saved {
    /// Queries and keys before their norms; nothing without norms.
    raw: Option<[Tensor; 2]>,
    /// `[B·Hkv, G·T, dh]`, turned and scaled.
    q: Tensor,
    /// `[B·Hkv, T, dh]`, turned.
    k: Tensor,
    v: Tensor,
    /// Capped scores, before the mask.
    capped: Option<Tensor>,
    /// `[B·Hkv, G·T, T]`.
    p: Tensor,
    /// `[B·Hkv, G·T, dh]`.
    out: Tensor,
}

/// Of the norms of queries and keys, row by row: the gradients of their gains (f32), and of their outputs.
pub(super) type NormRows = [(Tensor, Tensor); 2];

impl Attention<'_> {
    /// `[B·T, stride]` to `[B·T, H·dh]`.
    pub fn forward(&self, qkv: &Tensor) -> Result<(Tensor, Saved)> {
        let dtype = qkv.dtype();
        let [q, k, v] = self.split(qkv)?;
        let raw = [q, k];
        let [q, k] = match self.norms {
            Some(norms) => [self.normed(norms[0], &raw[0])?, self.normed(norms[1], &raw[1])?],
            None => raw.clone(),
        };
        let q = self.turned(&self.place(&q, self.group)?, false)?.affine(self.scale, 0.0)?.to_dtype(dtype)?;
        let k = self.turned(&self.place(&k, 1)?, false)?.to_dtype(dtype)?;
        let (q, k) = (self.stacked(&q, self.group)?, self.stacked(&k, 1)?);
        let v = self.stacked(&self.place(&v, 1)?, 1)?;
        let mut scores = product(&q, &k.transpose(1, 2)?)?;
        let mut capped = None;
        if let Some(cap) = self.cap {
            scores = soft_cap(&scores, cap)?;
            capped = Some(scores.clone());
        }
        let (rows, t) = (self.n_sequences * self.n_keys * self.group, self.t);
        let p = softmax(&scores.reshape((rows, t, t))?.broadcast_add(&self.mask)?)?.reshape(scores.shape())?;
        let out = product(&p, &v)?;
        let mixed = self.unplace(&out, self.group)?;
        let raw = self.norms.map(|_| raw);
        Ok((mixed, Saved { raw, q, k, v, capped, p, out }))
    }

    /// The gradient of the fused rows, and those of the norms.
    pub fn backward(&self, saved: Saved, d_mixed: &Tensor) -> Result<(Tensor, Option<NormRows>)> {
        let dtype = d_mixed.dtype();
        let Saved { raw, q, k, v, capped, p, out } = saved;
        let d_out = self.stacked(&self.place(d_mixed, self.group)?, self.group)?;
        let d_v = product(&p.transpose(1, 2)?, &d_out)?;
        // Σ_j p_j·dp_j = ⟨d_out, out⟩: one number per query, in f32.
        let along = (d_out.to_dtype(DType::F32)? * out.to_dtype(DType::F32)?)?.sum_keepdim(2)?.to_dtype(dtype)?;
        let d_p = product(&d_out, &v.transpose(1, 2)?)?;
        let mut d_scores = (p * d_p.broadcast_sub(&along)?)?;
        if let (Some(cap), Some(capped)) = (self.cap, capped) {
            d_scores = soft_cap_backward(&capped, cap, &d_scores)?;
        }
        let d_q = product(&d_scores, &k)?.affine(self.scale, 0.0)?;
        let d_k = product(&d_scores.transpose(1, 2)?, &q)?;
        let turn_back = |d: &Tensor, group: usize| -> Result<Tensor> {
            let d = d.reshape((self.n_sequences * self.n_keys, group, self.t, self.width))?;
            self.unplace(&self.turned(&d, true)?.to_dtype(dtype)?, group)
        };
        let (d_q, d_k, d_v) = (turn_back(&d_q, self.group)?, turn_back(&d_k, 1)?, self.unplace(&d_v, 1)?);
        let (Some(norms), Some(raw)) = (self.norms, raw) else {
            return Ok((self.join([d_q, d_k, d_v])?, None));
        };
        let (d_raw_q, rows_q) = self.norm_backward(norms[0], &raw[0], &d_q)?;
        let (d_raw_k, rows_k) = self.norm_backward(norms[1], &raw[1], &d_k)?;
        Ok((self.join([d_raw_q, d_raw_k, d_v])?, Some([(rows_q, self.vectors(&d_q)?), (rows_k, self.vectors(&d_k)?)])))
    }

    /// `[B·T, heads·dh]` with a row per normed vector.
    fn vectors(&self, x: &Tensor) -> Result<Tensor> {
        if self.qk_norm == QkNorm::PerHead {
            x.reshape((x.elem_count() / self.width, self.width))
        } else {
            Ok(x.clone())
        }
    }

    fn normed(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        norm.forward(&self.vectors(x)?)?.reshape(x.shape())
    }

    fn norm_backward(&self, norm: &Norm, x: &Tensor, d: &Tensor) -> Result<(Tensor, Tensor)> {
        let (d_x, rows) = norm.backward(&self.vectors(x)?, &self.vectors(d)?)?;
        Ok((d_x.reshape(x.shape())?, rows))
    }

    fn split(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let n = self.n_sequences * self.t;
        let kv = self.n_keys * self.width;
        let q = kv * self.group;
        if self.order == QkvOrder::Interleaved {
            let heads = qkv.reshape((n, self.n_keys, 3, self.width))?;
            let part = |i: usize| heads.narrow(2, i, 1)?.contiguous()?.reshape((n, kv));
            return Ok([part(0)?, part(1)?, part(2)?]);
        }
        let part = |start: usize, len: usize| qkv.narrow(1, start, len)?.contiguous();
        Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?])
    }

    fn join(&self, parts: [Tensor; 3]) -> Result<Tensor> {
        if self.order == QkvOrder::Interleaved {
            let n = self.n_sequences * self.t;
            let heads = parts.map(|part| part.reshape((n, self.n_keys, 1, self.width)));
            let [q, k, v] = heads;
            return Tensor::cat(&[q?, k?, v?], 2)?.reshape((n, 3 * self.n_keys * self.width));
        }
        Tensor::cat(&parts, 1)
    }

    /// `[B·T, Hkv·G·dh]` → `[B·Hkv, G, T, dh]`
    fn place(&self, x: &Tensor, group: usize) -> Result<Tensor> {
        let Self { n_sequences: b, t, n_keys, width, .. } = *self;
        let x = x.reshape((b, t, n_keys, group, width))?.permute((0, 2, 3, 1, 4))?.contiguous()?;
        x.reshape((b * n_keys, group, t, width))
    }

    /// `[B·Hkv, G, T, dh]` → `[B·Hkv, G·T, dh]`
    fn stacked(&self, x: &Tensor, group: usize) -> Result<Tensor> {
        x.reshape((self.n_sequences * self.n_keys, group * self.t, self.width))
    }

    /// The way back from both.
    fn unplace(&self, x: &Tensor, group: usize) -> Result<Tensor> {
        let Self { n_sequences: b, t, n_keys, width, .. } = *self;
        let x = x.reshape((b, n_keys, group, t, width))?.permute((0, 3, 1, 2, 4))?.contiguous()?;
        x.reshape((b * t, n_keys * group * width))
    }

    /// Turned, or turned back, in f32; the numbers past the turned ones stay.
    fn turned(&self, x: &Tensor, back: bool) -> Result<Tensor> {
        let Some(Turn { cos, sin }) = &self.turn else { return x.to_dtype(DType::F32) };
        let sin = if back { sin.neg()? } else { sin.clone() };
        let x = x.to_dtype(DType::F32)?;
        let wide = 2 * cos.dims2()?.1;
        if wide == self.width {
            return candle_nn::rotary_emb::rope(&x, cos, &sin);
        }
        let first = candle_nn::rotary_emb::rope(&x.narrow(3, 0, wide)?.contiguous()?, cos, &sin)?;
        Tensor::cat(&[first, x.narrow(3, wide, self.width - wide)?], 3)
    }
}
