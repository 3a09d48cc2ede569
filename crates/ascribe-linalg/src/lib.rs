//! Kernels: matrix products, seeded projectors, named random streams, fixed-order sums, top-k, Cholesky,
//! rows in few bits.
//!
//! Here lives arithmetic that knows nothing of models, datasets or money. Here never lives: policy, input and output.
//! Every function gives the same bytes for the same input whatever the number of threads.

pub mod chol;
pub mod eigen;
pub mod elementwise;
pub mod error;
pub mod factor;
pub mod gemm;
pub mod halves;
pub mod large;
pub mod packed;
pub mod project;
pub mod quant;
pub mod rng;
pub mod scan;
pub mod sparse;
pub mod sum;
pub mod topk;

pub use chol::Cholesky;
pub use eigen::SymmetricEigen;
pub use error::LinalgError;
pub use factor::{Factors, factors};
pub use gemm::{Threads, gemm, gemm_f64};
pub use halves::Bf16Rows;
pub use large::LargeSymmetric;
pub use project::TwoSided;
pub use quant::{Code, RowCodec};
pub use rng::Stream;
pub use sparse::Sjlt;
pub use topk::{Hit, TopK, top_k};
