//! LoRIF: rows kept as rank-c factors of each module's projected gradient, inverse curvature as a few eigenvectors.
//!
//! A module's projected gradient is a matrix `[o, i]`; its best rank-c factors `L [o, c]`, `R [i, c]` need `c(o + i)` numbers.
//! The second moments `H = (1/n) Σ ĝĝᵀ` of a module are kept as their r strongest eigenpairs `V diag(s) Vᵀ` from a randomised
//! subspace iteration, and `(H + λ)⁻¹ = (I − V diag((s − τ)/(s + λ)) Vᵀ)/(τ + λ)` (Woodbury; `τ` is what is taken of the rest,
//! 0 in the paper, see [`Tail`]). So a score is `(⟨q, g⟩ − (Vᵀq)ᵀ diag(…) (Vᵀg))/(τ + λ)`, where for two factored rows
//! `⟨q, g⟩ = Σ_{cc'} (l_q,c·l_g,c')(r_q,c·r_g,c')`: `2c²(o + i)` operations per pair instead of `2·o·i`. With c and r full all of
//! this is exact block-Fisher influence.
//! Source: LoRIF, arXiv:2601.21929; Halko et al., arXiv:0909.4061, for the subspace iteration.
//!
//! [`Layout`] says how stored rows are laid out, [`Expanded`] multiplies them out for every other method, [`LowRank`] is the
//! curvature (a `Preconditioner` over multiplied-out rows), [`score`] works on the factors. [`BothSides`] makes factors of whitened
//! matrices, which few bits and a small rank suit better. Here never lives: factors of plain gradients (models), files.

mod factored;
mod layout;
mod low_rank;
mod sides;

pub use factored::score;
pub use layout::{Expanded, Layout, Module};
pub use low_rank::{LowRank, Options, Tail};
pub use sides::BothSides;

/// What stands in a spec's `normalizer` before the SHA-256 of the whitening that rows of factors were made with.
pub const WHITENED_BY: &str = " whitened from both sides by ";
