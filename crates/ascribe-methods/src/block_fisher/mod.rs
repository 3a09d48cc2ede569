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
//! and `dot::dataset_scores` with preconditioned queries. [`removal_vectors`] takes a dataset's own curvature away too.
//!
//! ```
//! use ascribe_core::NoProgress;
//! use ascribe_methods::{block_fisher, dot};
//! # use ascribe_testkit::{MemoryReader, gradient_spec, toy_rows};
//! # let (ids, rows) = toy_rows(40, 12, 4);
//! # let query_gradients = rows.slice(ndarray::s![..2, ..]).to_owned();
//! # let reader = MemoryReader::new(gradient_spec(&[8, 4]), ids, rows, 16);
//! // `reader` is any `FeatureReader`, `query_gradients` [2, 12] f32.
//! let covariance = block_fisher::Covariance::fit(&reader, &NoProgress)?;
//! let factors = covariance.cholesky(0.1)?;
//! let queries = block_fisher::precondition(&factors, query_gradients.view())?;
//! let sums = dot::dataset_sums(&reader, 4, None, &NoProgress)?;
//! assert_eq!(dot::dataset_scores(queries.view(), sums.view())?.dim(), (2, 4));
//! # Ok::<(), ascribe_methods::MethodError>(())
//! ```

mod covariance;
mod precondition;
mod removal;

pub use covariance::Covariance;
pub use precondition::{
    Damped, Factors, Preconditioner, Spectrum, precondition, row_weights, scores_by_module, self_influence,
    self_influence_of, unit_queries, whiten_and_solve,
};
pub use removal::removal_vectors;
