//! SOURCE: influence through a training run cut into segments of constant curvature. Source: arXiv:2405.12186, section 3.
//!
//! Within segment l (learning rates `η` over its steps, curvature `H_l`) removing an example moves the parameters by the
//! integral of a decaying exponential. Walking the segments backwards from the query `q_L = q`, with `k_l = Ση/(1 − β)`:
//!
//! `r_l = (1 − e^{−k_l H_l})H_l⁻¹ q_l`, `q_{l−1} = e^{−k_l H_l} q_l`, and `τ(z) = Σ_l ⟨r_l, ḡ_l(z)⟩`, where `ḡ_l(z)` is the
//! example's gradient averaged over the checkpoints of segment l. Both functions act on the eigenvalues of factors fitted
//! over those checkpoints together (`chained::Chained`). The paper divides by the number of examples; here, as for every
//! method, a score is not divided. Here never lives: scoring (`captured::score`, once per checkpoint), checkpoints.

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::factors::Kron;
use crate::captured::check_vectors;
use crate::error::MethodError;

/// A stretch of training with one curvature.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// Factors fitted over the checkpoints of the segment.
    pub factors: &'a Kron,
    /// Sum of the learning rates of its steps, `η̄·K`.
    pub learning_rate_sum: f64,
    /// β of heavy-ball momentum, 0 without: steps then reach `1/(1 − β)` times as far.
    pub momentum: f64,
    /// L2 penalty of the optimizer, added to every eigenvalue.
    pub weight_decay: f64,
}

/// `r_l` for every segment, in the order given (first segment first): `[Q, P]` each.
///
/// Scores are the sum over segments of `captured::score` with `r_l`, averaged over the checkpoints of the segment. With one
/// segment and `k·H` large this is influence with `H⁻¹`; with `k·H` small it is TracIn, `k⟨q, g⟩`. Computed in f64, narrowed
/// once; a query does not feel the others. Cost `8·n_in·n_out·(n_in + n_out)` per query, layer and segment.
///
/// # Errors
/// No segments, layers that differ between them, queries of another length or not finite, parameters out of range.
pub fn source_vectors(segments: &[Segment<'_>], queries: ArrayView2<'_, f32>) -> Result<Vec<Array2<f32>>, MethodError> {
    let Some(first) = segments.first() else { return Err(MethodError::Empty { what: "the list of segments" }) };
    let layers = first.factors.plain_layers();
    check_vectors(&layers, queries)?;
    for segment in segments {
        segment.check()?;
        let own = segment.factors.plain_layers();
        if own != layers {
            return Err(MethodError::shape("layers of a segment", layers, own));
        }
    }
    let functions: Vec<[Vec<Array2<f64>>; 2]> = segments.iter().map(Segment::functions).collect();
    let rows: Vec<_> = queries.rows().into_iter().collect();
    let walked: Vec<Vec<Vec<f32>>> = rows
        .into_par_iter()
        .map(|row| {
            let mut q: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            let mut out = Vec::with_capacity(segments.len());
            for (segment, [reach, decay]) in segments.iter().zip(&functions).rev() {
                let mut r = q.clone();
                segment.factors.apply(&mut r, reach);
                out.push(r.iter().map(|&v| v as f32).collect());
                segment.factors.apply(&mut q, decay);
            }
            out
        })
        .collect();
    let n = segments.len();
    let table = |l: usize| {
        let data: Vec<f32> = walked.iter().flat_map(|parts| &parts[n - 1 - l]).copied().collect();
        Array2::from_shape_vec(queries.dim(), data).expect("one vector per query")
    };
    Ok((0..n).map(table).collect())
}

impl Segment<'_> {
    fn check(&self) -> Result<(), MethodError> {
        let range = |field, expected, found: f64, ok: bool| match ok && found.is_finite() {
            true => Ok(()),
            false => Err(MethodError::Parameter { field, expected, found }),
        };
        let (rate, beta, decay) = (self.learning_rate_sum, self.momentum, self.weight_decay);
        range("learning_rate_sum", "finite and positive", rate, rate > 0.0)?;
        range("momentum", "at least 0 and below 1", beta, (0.0..1.0).contains(&beta))?;
        range("weight_decay", "finite and not negative", decay, decay >= 0.0)
    }

    /// `(1 − e^{−kσ})/σ` and `e^{−kσ}` of every layer's eigenvalues.
    fn functions(&self) -> [Vec<Array2<f64>>; 2] {
        let k = self.learning_rate_sum / (1.0 - self.momentum);
        let of = |f: &dyn Fn(f64) -> f64| {
            let layers = self.factors.layers().iter();
            layers.map(|l| l.eigenvalues().mapv(|v| f(v + self.weight_decay))).collect::<Vec<_>>()
        };
        let reach = |v: f64| if v == 0.0 { k } else { -(-k * v).exp_m1() / v };
        [of(&reach), of(&|v| (-k * v).exp())]
    }
}
