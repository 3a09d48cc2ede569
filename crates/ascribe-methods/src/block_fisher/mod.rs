//! Block-diagonal Fisher influence over projected gradients.
//!
//! `τ(q, i) = Σ_m q̂_mᵀ (H_m + λ_m I)⁻¹ ĝ_{i,m}` with `H_m = (1/n) Σ_i ĝ_{i,m} ĝ_{i,m}ᵀ` and
//! `λ_m = damping_rel · mean(diag H_m)`; one block per tracked module. Source: LoGra, arXiv:2405.13954, section 3, with
//! the empirical Fisher; RelatIF, arXiv:2003.11630, for the training-side normalisation.
//!
//! To first order, leaving example i out raises the summed loss of q by `τ(q, i) / n` nats.
//!
//! [`Covariance::fit`] passes over the rows once. From it come [`Factors`] (Cholesky, one damping, cheapest) or a
//! [`Spectrum`] (eigenvalues, then any damping for nothing). Both are a [`Preconditioner`]; scoring is `dot::score`
//! and `dot::dataset_scores` with preconditioned queries.

mod covariance;
mod precondition;

pub use covariance::Covariance;
pub use precondition::{
    Damped, Factors, Preconditioner, Spectrum, precondition, row_weights, scores_by_module, self_influence,
    self_influence_of, unit_queries,
};
