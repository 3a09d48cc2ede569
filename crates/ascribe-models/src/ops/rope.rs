//! Tables of rotary positions, in the arithmetic of `transformers`: f32 frequencies and angles.

/// Cosines and sines, `[positions, head_dim/2]`.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Angles `t · θ^(−2i/head_dim)` for `t < positions`.
    pub fn new(theta: f64, head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32).collect();
        let angles = (0..positions).flat_map(|t| frequencies.iter().map(move |f| f64::from(t as f32 * f)));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Self { half, cos, sin }
    }

    /// Turns (`sign = 1`) or turns back (`sign = −1`) the first `n_heads` heads of each row of `x` `[n, stride]`.
    pub fn apply(&self, x: &mut [f32], stride: usize, n_heads: usize, sign: f32) {
        let len = x.len() / stride * self.half;
        let (cos, sin) = (&self.cos[..len], &self.sin[..len]);
        ascribe_linalg::elementwise::rotate(x, stride, n_heads, self.half, cos, sin, sign);
    }
}
