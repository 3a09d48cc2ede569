//! Norms and non-linearities on tensors of any device, forward and backward.
//!
//! Forward uses candle's fused kernels where there are any (they have no gradient, and none is asked of them); sums are
//! taken in f32 whatever the numbers are. The ways back are the formulas.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::arch::Activation;

/// `a·b`; on the processor, where candle has no bf16 product, rounded from the f32 one, as a tensor core does it.
pub(in crate::graph) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() == DType::BF16 && matches!(a.device(), Device::Cpu) {
        return a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(DType::BF16);
    }
    a.matmul(b)
}

/// Softmax of the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // candle's kernel for the processor adds in the numbers' own type, its CUDA kernel in f32.
    if x.dtype() == DType::BF16 && matches!(x.device(), Device::Cpu) {
        return candle_nn::ops::softmax_last_dim(&x.to_dtype(DType::F32)?)?.to_dtype(DType::BF16);
    }
    candle_nn::ops::softmax_last_dim(x)
}

/// Parameters of a norm.
pub(super) struct Norm {
    /// `[width]`, in the numbers of the pass; the 1 of `RmsPlusOne` is in it.
    pub gain: Tensor,
    pub bias: Option<Tensor>,
    /// LayerNorm, not RMSNorm.
    pub centred: bool,
    pub eps: f64,
}

impl Norm {
    /// Rows of `x`, normed.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        match (&self.bias, self.centred) {
            (Some(bias), true) => candle_nn::ops::layer_norm(&x, &self.gain, bias, self.eps as f32),
            _ => candle_nn::ops::rms_norm(&x, &self.gain, self.eps as f32),
        }
    }

    /// The gradient of `x`, and row by row that of the gain (f32; that of the bias is `d` itself).
    pub fn backward(&self, x: &Tensor, d: &Tensor) -> Result<(Tensor, Tensor)> {
        let (wide, d) = (x.to_dtype(DType::F32)?, d.to_dtype(DType::F32)?);
        let wide = if self.centred { wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)? } else { wide };
        let inv = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?.recip()?;
        let unit = wide.broadcast_mul(&inv)?;
        let d_gain = (&unit * &d)?;
        let d_unit = d.broadcast_mul(&self.gain.to_dtype(DType::F32)?)?;
        let along = (&unit * &d_unit)?.mean_keepdim(D::Minus1)?;
        let mut d_x = (&d_unit - unit.broadcast_mul(&along)?)?;
        if self.centred {
            d_x = d_x.broadcast_sub(&d_unit.mean_keepdim(D::Minus1)?)?;
        }
        Ok((d_x.broadcast_mul(&inv)?.to_dtype(x.dtype())?, d_gain))
    }
}

/// The feed-forward layer's non-linearity on rows of gates then ups, or of ups alone.
#[derive(Clone, Copy)]
pub(super) struct Gate {
    pub activation: Activation,
    pub gated: bool,
    /// Width of the result, f.
    pub width: usize,
}

impl Gate {
    pub fn forward(self, u: &Tensor) -> Result<Tensor> {
        if !self.gated {
            return Ok(self.curve(u)?.0);
        }
        let value = self.curve(&u.narrow(1, 0, self.width)?)?.0;
        value * u.narrow(1, self.width, self.width)?
    }

    /// The gradient of `u`.
    pub fn backward(self, u: &Tensor, d: &Tensor) -> Result<Tensor> {
        if !self.gated {
            return d * self.curve(u)?.1;
        }
        let (value, slope) = self.curve(&u.narrow(1, 0, self.width)?)?;
        let d_gate = ((d * u.narrow(1, self.width, self.width)?)? * slope)?;
        Tensor::cat(&[d_gate, (d * value)?], 1)
    }

    /// Value and slope of the curve.
    fn curve(self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        match self.activation {
            Activation::Silu => {
                let sigma = candle_nn::ops::sigmoid(&x.contiguous()?)?;
                let value = (x * &sigma)?;
                // σ + xσ(1 − σ)
                let slope = ((&value + &sigma)? - (&value * &sigma)?)?;
                Ok((value, slope))
            }
            Activation::Relu => Ok((x.relu()?, x.gt(0.0)?.to_dtype(x.dtype())?)),
            Activation::Gelu => {
                let below = x.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()?.affine(0.5, 0.5)?;
                let density =
                    x.sqr()?.affine(-0.5, 0.0)?.exp()?.affine(1.0 / (2.0 * std::f64::consts::PI).sqrt(), 0.0)?;
                Ok(((x * &below)?, (below + (x * density)?)?))
            }
            Activation::GeluTanh => {
                const CUBIC: f64 = 0.044_715;
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let square = x.sqr()?;
                let tanh = (x * square.affine(root * CUBIC, root)?)?.tanh()?;
                let below = tanh.affine(0.5, 0.5)?;
                // below + ½x(1 − tanh²)·root·(1 + 3cx²)
                let inner = square.affine(1.5 * root * CUBIC, 0.5 * root)?;
                let rest = ((x * tanh.sqr()?.affine(-1.0, 1.0)?)? * inner)?;
                Ok(((x * &below)?, (below + rest)?))
            }
        }
    }
}

/// `c·tanh(x/c)`.
pub(super) fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    x.affine(1.0 / cap, 0.0)?.tanh()?.affine(cap, 0.0)
}

/// `d·(1 − (y/c)²)` for `y = c·tanh(x/c)`.
pub(super) fn soft_cap_backward(y: &Tensor, cap: f64, d: &Tensor) -> Result<Tensor> {
    d * y.sqr()?.affine(-1.0 / (cap * cap), 1.0)?
}
