//! Taps on the weights of a LoRA adapter: the two narrow products of the chain rule, then blocks like any other.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use super::block::{Block, Scratch, Target};
use crate::lora::narrow;

/// An adapted module whose `A` or `B` is tracked.
#[derive(Debug)]
pub(super) struct AdapterTap {
    /// `s` of `W₀ + s·B·A`.
    pub scale: f32,
    /// `[r, in]`.
    pub a: Array2<f32>,
    /// `[out, r]`.
    pub b: Array2<f32>,
    /// The module's columns of the fused output.
    pub columns: Range<usize>,
    /// What becomes of `∇A = (s·δ·B)ᵀ·x`.
    pub on_a: Option<Block>,
    /// What becomes of `∇B = δᵀ·(s·x·Aᵀ)`.
    pub on_b: Option<Block>,
}

impl AdapterTap {
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.on_a.iter().chain(&self.on_b)
    }

    /// Adds rows of the product's input `x` and of its whole output gradient `delta`.
    pub fn add(
        &self,
        x: ArrayView2<'_, f32>,
        delta: ArrayView2<'_, f32>,
        scratch: &mut Scratch,
        target: &mut Target<'_>,
    ) {
        let Scratch { x: reduced, delta: pd, small, half, narrow: [narrow_x, narrow_delta], .. } = scratch;
        let own = delta.slice(s![.., self.columns.clone()]);
        let [x_of_b, delta_of_a] = narrow(self.scale, [self.a.view(), self.b.view()], x, own, [narrow_x, narrow_delta]);
        if let Some(block) = &self.on_a {
            let x = block.reduce_input(x, reduced);
            block.add_to(x, delta_of_a, [&mut *pd, &mut *small, &mut *half], target);
        }
        if let Some(block) = &self.on_b {
            let x = block.reduce_input(x_of_b, reduced);
            block.add_to(x, delta, [&mut *pd, &mut *small, &mut *half], target);
        }
    }
}
