//! Our kernels as candle operators with their own backward passes.
//!
//! candle's own fused norms, softmax and rotary positions give no gradient, silently (`apply_op*_no_bwd`), so none of
//! them is used anywhere; a test walks every operator of this file and compares it with finite differences.

use std::sync::Arc;

use ascribe_linalg::elementwise::{
    cross_entropy, cross_entropy_backward, rms_norm, rms_norm_backward, silu_mul, silu_mul_backward,
};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::decoder::Decoder;
use crate::ops::attention::{self, Heads};
use crate::ops::rope::Rotary;

/// One operand: contiguous f32 on the processor.
fn slice<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::F32(_), None) => bail!("{name}: expected a contiguous operand"),
        _ => bail!("{name}: expected f32"),
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// An operator of one operand, as slices.
pub(crate) trait Unary {
    /// Name in errors.
    const NAME: &'static str;
    /// Shape of the result for a matrix operand `[n, columns]`.
    fn shape(&self, n: usize, columns: usize) -> Shape;
    /// The result; `out` is zeroed.
    fn forward(&self, n: usize, x: &[f32], out: &mut [f32]);
    /// The gradient of `x`; `d_x` is zeroed.
    fn backward(&self, n: usize, x: &[f32], d_out: &[f32], d_x: &mut [f32]);
}

struct Op1<K>(K);

impl<K: Unary> CustomOp1 for Op1<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, columns) = layout.shape().dims2()?;
        let shape = self.0.shape(n, columns);
        let mut out = vec![0.0f32; shape.elem_count()];
        self.0.forward(n, slice(K::NAME, storage, layout)?, &mut out);
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        let n = x.dims2()?.0;
        let mut d_x = vec![0.0f32; x.elem_count()];
        self.0.backward(n, &numbers(x)?, &numbers(d_out)?, &mut d_x);
        Tensor::from_vec(d_x, x.shape(), x.device()).map(Some)
    }
}

/// Applies `op` to a matrix.
pub(crate) fn apply<K: Unary + Send + Sync + 'static>(op: K, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Op1(op))
}

/// Turns the first heads of every row.
#[derive(Clone)]
pub(crate) struct Rotate {
    pub rotary: Arc<Rotary>,
    pub stride: usize,
    pub n_heads: usize,
}

impl Unary for Rotate {
    const NAME: &'static str = "ascribe-rotate";

    fn shape(&self, n: usize, columns: usize) -> Shape {
        (n, columns).into()
    }

    fn forward(&self, _n: usize, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        self.rotary.apply(out, self.stride, self.n_heads, 1.0);
    }

    fn backward(&self, _n: usize, _x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
        d_x.copy_from_slice(d_out);
        self.rotary.apply(d_x, self.stride, self.n_heads, -1.0);
    }
}

/// Causal attention over fused rows of queries, keys and values.
#[derive(Clone)]
pub(crate) struct Attention(pub Heads);

impl Attention {
    fn probabilities(&self, n: usize) -> Vec<f32> {
        vec![0.0; attention::Attention::plain(self.0).probabilities_len(n)]
    }
}

impl Unary for Attention {
    const NAME: &'static str = "ascribe-attention";

    fn shape(&self, n: usize, _columns: usize) -> Shape {
        (n, self.0.queries * self.0.width).into()
    }

    fn forward(&self, n: usize, x: &[f32], out: &mut [f32]) {
        attention::Attention::plain(self.0).forward(n, x, &mut self.probabilities(n), out);
    }

    fn backward(&self, n: usize, x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
        let (mut p, mut out) = (self.probabilities(n), vec![0.0; d_out.len()]);
        attention::Attention::plain(self.0).forward(n, x, &mut p, &mut out);
        let mut scratch = vec![0.0; attention::Attention::plain(self.0).scratch_len(n)];
        attention::Attention::plain(self.0).backward(n, x, &p, d_out, d_x, &mut scratch);
    }
}

/// `silu(gate)·up` over rows of gates then ups.
#[derive(Clone)]
pub(crate) struct SwiGlu {
    pub width: usize,
}

impl Unary for SwiGlu {
    const NAME: &'static str = "ascribe-swiglu";

    fn shape(&self, n: usize, _columns: usize) -> Shape {
        (n, self.width).into()
    }

    fn forward(&self, _n: usize, x: &[f32], out: &mut [f32]) {
        silu_mul(x, self.width, out);
    }

    fn backward(&self, _n: usize, x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
        silu_mul_backward(x, self.width, d_out, d_x);
    }
}

/// Summed negative log-likelihood of the targets, one per row of logits.
#[derive(Clone)]
pub(crate) struct NllSum {
    pub targets: Vec<u32>,
}

impl Unary for NllSum {
    const NAME: &'static str = "ascribe-nll-sum";

    fn shape(&self, _n: usize, _columns: usize) -> Shape {
        ().into()
    }

    fn forward(&self, n: usize, x: &[f32], out: &mut [f32]) {
        let mut nll = vec![0.0; n];
        cross_entropy(x, x.len() / n, &self.targets, &mut nll);
        out[0] = nll.into_iter().map(f64::from).sum::<f64>() as f32;
    }

    fn backward(&self, n: usize, x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
        d_x.copy_from_slice(x);
        cross_entropy_backward(d_x, x.len() / n, &self.targets, &mut vec![0.0; n]);
        ascribe_linalg::elementwise::scale(d_x, d_out[0]);
    }
}

/// Turned, attended rows of fused queries, keys and values, as `decoder` attends them.
pub(crate) fn attention(decoder: &Decoder, qkv: &Tensor) -> Result<Tensor> {
    let heads = decoder.heads();
    let rotary = Arc::new(decoder.rotary.clone());
    let rotate = Rotate { rotary, stride: heads.stride(), n_heads: heads.queries + heads.keys };
    apply(Attention(heads), &apply(rotate, qkv)?)
}

/// RMS normalisation of rows with a gain.
struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "ascribe-rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (slice(self.name(), x, xl)?, slice(self.name(), g, gl)?);
        let (mut out, mut inv) = (vec![0.0; x.len()], vec![0.0; x.len() / gain.len()]);
        rms_norm(x, gain, self.eps, &mut out, &mut inv);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, gains) = (numbers(x)?, numbers(gain)?);
        let (mut out, mut inv) = (vec![0.0; xs.len()], vec![0.0; xs.len() / gains.len()]);
        rms_norm(&xs, &gains, self.eps, &mut out, &mut inv);
        let (mut d_x, mut d_gain) = (vec![0.0; xs.len()], vec![0.0; gains.len()]);
        rms_norm_backward(&xs, &gains, &inv, &numbers(d_out)?, &mut d_x, &mut d_gain);
        let d_x = Tensor::from_vec(d_x, x.shape(), x.device())?;
        Ok((Some(d_x), Some(Tensor::from_vec(d_gain, gain.shape(), gain.device())?)))
    }
}

/// RMS normalisation of the rows of `x` `[n, d]` with `gain` `[d]`.
pub(crate) fn norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op2(gain, RmsNorm { eps })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use candle_core::{Device, Var};

    fn noise(name: &str, n: usize) -> Vec<f32> {
        let mut stream = Stream::new(8, name);
        (0..n).map(|_| stream.normal() as f32).collect()
    }

    type Build = Box<dyn Fn(&[Var]) -> Result<Tensor>>;

    /// Every operator of this file, with the shapes of its operands.
    fn all() -> Vec<(&'static str, Vec<Vec<usize>>, Build)> {
        let heads = Heads { queries: 4, keys: 2, width: 4 };
        let rotate = Rotate { rotary: Arc::new(Rotary::new(100.0, 4, 9)), stride: heads.stride(), n_heads: 6 };
        let rows = vec![vec![9, heads.stride()]];
        vec![
            ("rotate", rows.clone(), Box::new(move |x| apply(rotate.clone(), &x[0]))),
            ("attention", rows, Box::new(move |x| apply(Attention(heads), &x[0]))),
            ("swiglu", vec![vec![3, 10]], Box::new(|x| apply(SwiGlu { width: 5 }, &x[0]))),
            ("nll", vec![vec![3, 7]], Box::new(|x| apply(NllSum { targets: vec![6, 0, 3] }, &x[0]))),
            ("norm", vec![vec![3, 8], vec![8]], Box::new(|x| norm(&x[0], &x[1], 1e-5))),
        ]
    }

    /// Directional fourth-order differences of ⟨c, op(x)⟩ in each operand.
    #[test]
    fn every_operator_agrees_with_finite_differences() {
        for (name, shapes, build) in all() {
            let values: Vec<Vec<f32>> =
                shapes.iter().enumerate().map(|(i, s)| noise(&format!("{name}{i}"), s.iter().product())).collect();
            let vars = |values: &[Vec<f32>]| -> Vec<Var> {
                let var = |(v, s): (&Vec<f32>, &Vec<usize>)| Var::from_slice(v, s.as_slice(), &Device::Cpu).unwrap();
                values.iter().zip(&shapes).map(var).collect()
            };
            let base = vars(&values);
            let out = build(&base).unwrap();
            let weights = noise("weights", out.elem_count());
            let loss = |out: &Tensor| -> f64 {
                let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                out.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let c = Tensor::from_slice(&weights, out.shape(), &Device::Cpu).unwrap();
            let grads = (out * c).unwrap().sum_all().unwrap().backward().unwrap();
            for (i, var) in base.iter().enumerate() {
                let gradient = grads.get(var).expect("a gradient for every operand").flatten_all().unwrap();
                let gradient = gradient.to_vec1::<f32>().unwrap();
                let direction = noise("direction", gradient.len());
                let moved = |h: f32| {
                    let mut values = values.clone();
                    values[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += h * d);
                    loss(&build(&vars(&values)).unwrap())
                };
                let h = 0.01;
                let near = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                let far = (moved(2.0 * h) - moved(-2.0 * h)) / (4.0 * f64::from(h));
                let quotient = (4.0 * near - far) / 3.0;
                let exact: f64 = gradient.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let size = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                // Rounding of f32 sums of some hundred terms over a step of 0.01.
                assert!((quotient - exact).abs() < 1e-3 * (1.0 + size), "{name} {i}: {quotient} {exact} {size}");
            }
        }
    }
}
