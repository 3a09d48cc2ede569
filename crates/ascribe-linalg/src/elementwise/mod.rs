//! Vectorised elementwise kernels of a decoder: exponentials, norms, rotations, the optimiser's update.
//!
//! Every kernel gives the same bits on every instruction set (see [`dispatch`]). Here lives arithmetic on slices; what a
//! layer or a model is stands elsewhere.

pub mod dispatch;
mod exp;
mod vector;

pub use exp::{
    causal_softmax, cross_entropy, cross_entropy_backward, exp, silu_mul, silu_mul_backward, softmax_backward,
};
pub use vector::{AdamStep, adam_update, add_assign, dot, rms_norm, rms_norm_backward, rotate, scale, sum_squares};
