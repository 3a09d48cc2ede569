//! Curvature as Kronecker products per layer: K-FAC, EK-FAC and Shampoo's basis with corrected eigenvalues; SOURCE on top.
//!
//! With `g = Σ_t δ_t x_tᵀ` the gradient of one layer for one example, the Fisher matrix of the layer is `E[vec(g)vec(g)ᵀ]`
//! (labels drawn from the model) and is taken as `(Q_S ⊗ Q_A)ᵀ diag(Λ) (Q_S ⊗ Q_A)`:
//!
//! | kind | rows of `Q_A`, `Q_S` are eigenvectors of | `Λ_ab` |
//! |---|---|---|
//! | [`Kind::Kfac`] | `A = E_t[xxᵀ]`, `S = E_t[δδᵀ]` | `T̄·λ_S,a·λ_A,b` |
//! | [`Kind::Ekfac`] | the same | `E[(Q_S g Q_Aᵀ)²_ab]` |
//! | [`Kind::ShampooEvc`] | `E[gᵀg]`, `E[ggᵀ]` | the same |
//!
//! `E_t` runs over positions, `E` over **examples**: Λ is on the scale of one example's gradient whatever its length, with
//! `T̄` positions on average. (Mixing the two scales is the usual mistake: damping then means something else.) Layers are
//! independent of each other. Sources: K-FAC arXiv:1503.05671, its sum over positions arXiv:2311.00636 ("expand"); EK-FAC
//! arXiv:1806.03884, for influence arXiv:2308.03296; Shampoo arXiv:1802.09568 with the correction of arXiv:2409.11321.
//!
//! Cost of a fit, per layer, `n` positions in all: `n(n_in² + n_out²)` for the covariances (f64), `9(n_in³ + n_out³)` for the
//! eigenvectors, `2n(n_in² + n_out² + n_in·n_out)` for Λ, and two passes of the source. Memory: `8(2n_in² + 2n_out² +
//! n_in·n_out)` bytes per layer, and about 50 MB of captures per thread. Solving costs `4·n_in·n_out·(n_in + n_out)` per query
//! and layer. Bytes do not depend on threads.
//!
//! Here lives: fitting, solving, self-influence, SOURCE. Here never lives: choosing a damping (see `damping`), files.
//!
//! ```no_run
//! # use ascribe_methods::{captured, kron, source::{CaptureSource, Labels}};
//! # fn f(train: &dyn CaptureSource, queries: &dyn CaptureSource) -> Result<(), ascribe_methods::MethodError> {
//! use ascribe_core::NoProgress;
//! let factors = kron::Kron::fit(train, &kron::Options::default(), &NoProgress)?;
//! let inverse = factors.inverse(kron::Inverse::Damped, &kron::Damping::Relative(0.1))?;
//! let q = captured::gradients(queries, &[0, 1, 2], Labels::Given)?;
//! let scores = captured::score(train, inverse.solve(q.view())?.view(), Labels::Given, &NoProgress)?; // [3, N]
//! # Ok(()) }
//! ```

mod covariance;
mod eigenvalues;
mod factors;
mod inverse;
mod separable;
mod source_method;
#[cfg(test)]
mod tests;

pub use factors::{Kron, LayerFactors};
pub use inverse::{Damping, Inverse, Inverted};
pub use source_method::{Segment, source_vectors};

use crate::source::Labels;

/// Which basis, which eigenvalues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Products of the covariances' eigenvalues. Exact when inputs and output gradients are independent.
    Kfac,
    /// The same basis, eigenvalues measured in it.
    #[default]
    Ekfac,
    /// Basis of the gradients' own second moments, eigenvalues measured in it.
    ShampooEvc,
}

/// How factors are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which basis, which eigenvalues.
    pub kind: Kind,
    /// Sampled labels (the default, seed 0) give the true Fisher matrix, given ones the empirical.
    pub labels: Labels,
    /// Measures Λ on labels drawn anew. A model that is sure of nearly all examples has few draws with a gradient at all; their
    /// own eigenvectors then fit them, and Λ measured on the same draws is too large there and too small elsewhere.
    pub redraw: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { kind: Kind::default(), labels: Labels::Sampled { seed: 0 }, redraw: false }
    }
}
