//! The three kinds of norms over rows, and what each leaves for the way back.

use std::ops::Range;

use ascribe_linalg::elementwise::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};

use crate::arch::NormKind;

/// A norm's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormOp<'a> {
    pub kind: NormKind,
    /// `[width]`.
    pub gain: &'a [f32],
    /// `[width]`; empty unless `kind` is [`NormKind::Layer`].
    pub bias: &'a [f32],
    pub eps: f32,
}

/// Statistics of the rows that went through a norm.
#[derive(Debug, Default)]
pub(crate) struct NormTape {
    /// Inverse root mean squares, or inverse standard deviations.
    pub inv: Vec<f32>,
    /// Means; zeros that nobody reads unless the kind is [`NormKind::Layer`].
    pub mean: Vec<f32>,
}

impl NormTape {
    /// Room for `rows` rows.
    pub fn new(rows: usize) -> Self {
        Self { inv: vec![0.0; rows], mean: vec![0.0; rows] }
    }
}

/// Where the gradients of a norm's parameters are added.
pub(crate) struct NormGradient<'a> {
    /// `[width]`; empty where nobody asks for it.
    pub gain: &'a mut [f32],
    /// `[width]`, or empty where the norm has no bias or nobody asks for it.
    pub bias: &'a mut [f32],
}

impl<'a> NormOp<'a> {
    /// The gain that multiplies: `1 + g` is made in `scratch`.
    fn factor<'s>(&self, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        if self.kind != NormKind::RmsPlusOne {
            return self.gain;
        }
        scratch.clear();
        scratch.extend(self.gain.iter().map(|g| 1.0 + g));
        scratch
    }

    /// `out ← norm(x)`; as many rows as fit into `x`, their statistics at the front of `tape`.
    pub fn forward(&self, x: &[f32], out: &mut [f32], tape: &mut NormTape, scratch: &mut Vec<f32>) {
        let n = x.len() / self.gain.len();
        let gain = self.factor(scratch);
        match self.kind {
            NormKind::Layer => {
                layer_norm(x, gain, self.bias, self.eps, out, &mut tape.mean[..n], &mut tape.inv[..n]);
            }
            NormKind::Rms | NormKind::RmsPlusOne => rms_norm(x, gain, self.eps, out, &mut tape.inv[..n]),
        }
    }

    /// `d_x += normᵀ(d_out)`; the statistics are those of `rows` of the tape.
    pub fn backward(
        &self,
        x: &[f32],
        (tape, rows): (&NormTape, Range<usize>),
        d_out: &[f32],
        d_x: &mut [f32],
        into: NormGradient<'_>,
        scratch: &mut Vec<f32>,
    ) {
        let gain = self.factor(scratch);
        let inv = &tape.inv[rows.clone()];
        match self.kind {
            NormKind::Layer => {
                layer_norm_backward(x, gain, &tape.mean[rows], inv, d_out, d_x, into.gain, into.bias);
            }
            NormKind::Rms | NormKind::RmsPlusOne => rms_norm_backward(x, gain, inv, d_out, d_x, into.gain),
        }
    }
    /// `out ← (∂norm/∂x)·d_x` for as many rows as fit into `x`; their statistics stand at the front of `tape`. Without its
    /// gain a norm's Jacobian is symmetric, so the way back computes it.
    pub fn tangent(&self, x: &[f32], tape: &NormTape, d_x: &[f32], out: &mut [f32], scratch: &mut Vec<f32>) {
        let (width, n) = (self.gain.len(), x.len() / self.gain.len());
        scratch.clear();
        scratch.resize(width, 1.0);
        out.fill(0.0);
        let inv = &tape.inv[..n];
        match self.kind {
            NormKind::Layer => {
                layer_norm_backward(x, scratch, &tape.mean[..n], inv, d_x, out, &mut [], &mut []);
            }
            NormKind::Rms | NormKind::RmsPlusOne => rms_norm_backward(x, scratch, inv, d_x, out, &mut []),
        }
        let gain = self.factor(scratch);
        for row in out.chunks_exact_mut(width) {
            row.iter_mut().zip(gain).for_each(|(y, g)| *y *= g);
        }
    }
}
