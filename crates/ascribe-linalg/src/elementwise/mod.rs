//! Vectorised elementwise kernels of a decoder: exponentials, norms, rotations, the optimiser's update; sums through sparse transforms.
//!
//! Every kernel gives the same bits on every instruction set (see [`dispatch`]). Here lives arithmetic on slices; what a
//! layer or a model is stands elsewhere.

mod act;
pub mod dispatch;
mod exp;
mod image;
mod masked;
mod norm;
mod scatter;
mod vector;

pub use act::{
    Act, activate, activate_backward, activate_mul, activate_mul_backward, normal_cdf, soft_cap, soft_cap_backward,
    tanh,
};
pub use exp::{
    banded_softmax, causal_softmax, cross_entropy, cross_entropy_backward, exp, silu_mul, silu_mul_backward,
    softmax_backward,
};
pub use image::{
    SgdStep, add_bias, channel_affine, channel_backward, channel_products, channel_squares, channel_sums, dense_rows,
    dense_rows_backward, outer, relu, relu_backward, sgd_update,
};
pub use masked::{masked_softmax, masked_softmax_backward};
pub use norm::{add, add_row, layer_norm, layer_norm_backward, sum_rows};
pub use scatter::scatter_outer;
pub use vector::{AdamStep, adam_update, add_assign, dot, rms_norm, rms_norm_backward, rotate, scale, sum_squares};
