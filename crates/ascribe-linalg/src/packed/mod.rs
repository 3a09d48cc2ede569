//! Matrix products with a right operand packed once: frozen weights meet many batches of rows.
//!
//! Every number of a result is one chain of fused multiply-adds over the inner dimension, in its order, whatever tile,
//! block or instruction set computes it. So a row of the result depends on its own row of the left operand and on the
//! right operand alone: never on how many rows come with it. That is what lets sequences share a pass and still give
//! the bytes that they give alone. The f32 kernels (AVX-512, AVX2, plain loops) agree bit for bit; the bf16 kernels
//! (AMX tiles, `vdpbf16ps`, f32 kernels over rounded values) round their inputs alike but add in orders of their own,
//! and agree to rounding.
//!
//! Everything runs on the calling thread and allocates nothing. Here never lives: parallelism, and what a layer is.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod direct;
mod drive;
mod layout;
mod matrix;
mod portable;
mod route;
mod rows;
#[cfg(test)]
mod tests;
mod transpose;

pub use direct::{Operand, multiply_direct, multiply_views};
pub(crate) use layout::rounded;
pub use matrix::PackedMatrix;
pub(crate) use route::isa_takes_bf16;
pub use route::{Precision, isa};
pub use rows::{RoundedRows, Rows};
pub use transpose::transpose_scaled;
