//! Two-sided seeded projection of a layer's gradient (LoGra, arXiv:2405.13954).

use ndarray::Array2;

use crate::rng::Stream;

/// Version of the projector's bits (it stands in every `ProjectorSpec`).
pub const TWO_SIDED_VERSION: u32 = 1;

/// The two factors of one module's projection: `ĝ = P_outᵀ · (Σ_t δ_t x_tᵀ) · P_in`.
///
/// Entries are `±1/√k`, so that dot products are kept in expectation. Entry `(i, j)` is the sign of word `i·k + j` of
/// the stream `"{module}/in"` or `"{module}/out"`: it depends on nothing else.
#[derive(Clone, Debug)]
pub struct TwoSided {
    /// `[I, k_in]`.
    pub p_in: Array2<f32>,
    /// `[O, k_out]`.
    pub p_out: Array2<f32>,
}

impl TwoSided {
    /// The projection of `module` (fan-in `fan_in`, fan-out `fan_out`) under `seed`.
    ///
    /// A side whose fan is not larger than its `k` is kept as it is (identity): projecting it would only add noise.
    pub fn new(seed: u64, module: &str, fan_in: usize, fan_out: usize, k_in: usize, k_out: usize) -> Self {
        Self { p_in: side(seed, module, "in", fan_in, k_in), p_out: side(seed, module, "out", fan_out, k_out) }
    }

    /// Numbers in a projected row: `k_out · k_in`.
    pub fn dim(&self) -> usize {
        self.p_in.ncols() * self.p_out.ncols()
    }
}

fn side(seed: u64, module: &str, side: &str, fan: usize, k: usize) -> Array2<f32> {
    if fan <= k {
        return Array2::eye(fan);
    }
    let stream = Stream::new(seed, &format!("{module}/{side}"));
    let scale = 1.0 / (k as f32).sqrt();
    Array2::from_shape_fn((fan, k), |(i, j)| if stream.at((i * k + j) as u64) >> 63 == 0 { scale } else { -scale })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_products_are_kept_on_average() {
        // E⟨Pᵀu, Pᵀv⟩ = ⟨u, v⟩; with 2,000 seeds and k = 8 the standard error is ‖u‖‖v‖·√(2/8/2000) ≈ 0.011·‖u‖‖v‖.
        let u = ndarray::arr1(&[1.0f32, -2.0, 0.5, 3.0, 1.0, 0.0, -1.0, 2.0, 0.25, 1.5]);
        let v = ndarray::arr1(&[0.5f32, 1.0, -1.0, 2.0, 0.0, 1.0, 1.0, -0.5, 2.0, 1.0]);
        let mean: f32 = (0..2000)
            .map(|seed| {
                let p = TwoSided::new(seed, "m", 10, 1, 8, 1).p_in;
                p.t().dot(&u).dot(&p.t().dot(&v))
            })
            .sum::<f32>()
            / 2000.0;
        let bound = 5.0 * 0.011 * u.dot(&u).sqrt() * v.dot(&v).sqrt();
        assert!((mean - u.dot(&v)).abs() < bound, "{mean} against {}", u.dot(&v));
    }

    #[test]
    fn a_narrow_side_is_kept_whole() {
        let p = TwoSided::new(1, "m", 4, 100, 8, 8);
        assert_eq!(p.p_in, Array2::<f32>::eye(4));
        assert_eq!(p.dim(), 32);
    }
}
