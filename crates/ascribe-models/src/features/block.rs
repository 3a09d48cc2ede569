//! From rows of inputs and output gradients to a block of a feature row: one tracked module, one projection.
//!
//! Everything here adds, and is linear in the gradient: contributions may come in any number of calls.

use std::ops::Range;

use ascribe_linalg::Sjlt;
use ascribe_linalg::packed::multiply_views;
use ndarray::{Array2, ArrayView2, Axis, s};

use super::adapter::AdapterTap;
use crate::ops::{matrix, matrix_mut};

/// Memory of one worker; every buffer grows to what was asked for once.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Reduced inputs.
    pub x: Vec<f32>,
    /// Reduced output gradients.
    pub delta: Vec<f32>,
    /// A module's gradient, between masks and products.
    pub small: Vec<f32>,
    /// Half a projection of it.
    pub half: Vec<f32>,
    /// Where the gains and biases of norms go that nobody asked for.
    pub norm: Vec<f32>,
    /// Rows before they are factored.
    pub dense: Vec<f32>,
    /// The narrow factors of an adapter's gradients.
    pub narrow: [Vec<f32>; 2],
}

/// The first `len` numbers of a buffer, which grows if it must.
pub(super) fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// How one side of a gradient matrix becomes smaller.
#[derive(Debug)]
pub(super) enum Side {
    /// Kept as it is.
    Whole(usize),
    /// Multiplied by `[fan, k]`.
    Product(Array2<f32>),
    /// Some of its `fan` numbers, in rising order.
    Pick { kept: Vec<usize>, fan: usize },
}

impl Side {
    /// Width before.
    pub fn fan(&self) -> usize {
        match self {
            Self::Whole(fan) | Self::Pick { fan, .. } => *fan,
            Self::Product(p) => p.nrows(),
        }
    }

    /// Width afterwards.
    pub fn width(&self) -> usize {
        match self {
            Self::Whole(fan) => *fan,
            Self::Product(p) => p.ncols(),
            Self::Pick { kept, .. } => kept.len(),
        }
    }

    /// Width after masks alone.
    fn masked_width(&self) -> usize {
        if let Self::Pick { kept, .. } = self { kept.len() } else { self.fan() }
    }

    /// Operations per row.
    pub fn flop(&self) -> f64 {
        if let Self::Product(p) = self { 2.0 * p.len() as f64 } else { 0.0 }
    }

    /// `rows` `[n, fan]` → `[n, width]`; products only if `products` says so.
    fn reduce<'a>(&self, rows: ArrayView2<'a, f32>, products: bool, buffer: &'a mut Vec<f32>) -> ArrayView2<'a, f32> {
        let n = rows.nrows();
        match self {
            Self::Pick { kept, .. } => {
                let out = room(buffer, n * kept.len());
                for (out, row) in out.chunks_exact_mut(kept.len()).zip(rows.rows()) {
                    out.iter_mut().zip(kept).for_each(|(out, &i)| *out = row[i]);
                }
                matrix(out, n, kept.len())
            }
            Self::Product(p) if products => {
                let out = room(buffer, n * p.ncols());
                multiply_views(rows, p.view(), 0.0, matrix_mut(out, n, p.ncols()));
                matrix(out, n, p.ncols())
            }
            _ => rows,
        }
    }

    /// The number that row `index` of the masked matrix has, if the mask kept it.
    fn masked_index(&self, index: usize) -> Option<usize> {
        if let Self::Pick { kept, .. } = self { kept.binary_search(&index).ok() } else { Some(index) }
    }
}

/// A tracked module's place in the row and its projection.
#[derive(Debug)]
pub(super) struct Block {
    /// Hugging Face name of its weight, for optimiser moments.
    pub parameter: String,
    /// Its columns of the fused output.
    pub columns: Range<usize>,
    pub input: Side,
    pub output: Side,
    /// What becomes of the small matrix; none keeps it.
    pub sjlt: Option<Sjlt>,
    /// Elementwise factors of the gradient after masks, `[O, I]`.
    pub scale: Option<Array2<f32>>,
    /// Its columns of the row before factoring.
    pub place: Range<usize>,
}

impl Block {
    /// Shape of the projected matrix, `[k_out, k_in]`.
    pub fn shape(&self) -> (usize, usize) {
        (self.output.width(), self.input.width())
    }

    /// Numbers of the projected block.
    pub fn len(&self) -> usize {
        self.sjlt.as_ref().map_or(self.output.width() * self.input.width(), Sjlt::dim)
    }

    /// Bytes of the matrices that it keeps.
    pub fn bytes(&self) -> usize {
        let side = |side: &Side| if let Side::Product(p) = side { 4 * p.len() } else { 8 * side.width() };
        side(&self.input) + side(&self.output) + 4 * self.scale.as_ref().map_or(0, Array2::len)
    }

    /// Numbers of scratch for the module's gradient.
    pub fn small_len(&self) -> usize {
        if self.scale.is_none() && self.sjlt.is_none() {
            return 0;
        }
        self.output.masked_width() * self.input.masked_width()
    }

    /// `x` `[n, I]` as [`Block::add`] wants it.
    pub fn reduce_input<'a>(&self, x: ArrayView2<'a, f32>, buffer: &'a mut Vec<f32>) -> ArrayView2<'a, f32> {
        self.input.reduce(x, self.scale.is_none(), buffer)
    }

    /// Adds the gradient `deltaᵀ·x` of reduced rows to `out`.
    fn add(
        &self,
        x: ArrayView2<'_, f32>,
        delta: ArrayView2<'_, f32>,
        small: &mut Vec<f32>,
        half: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (b, a) = (delta.ncols(), x.ncols());
        if self.scale.is_none() && self.sjlt.is_none() {
            multiply_views(delta.t(), x, 1.0, matrix_mut(out, b, a));
            return;
        }
        let small = room(small, a * b);
        multiply_views(delta.t(), x, 0.0, matrix_mut(small, b, a));
        if let Some(scale) = &self.scale {
            small.iter_mut().zip(scale.iter()).for_each(|(g, s)| *g *= s);
        }
        if let Some(sjlt) = &self.sjlt {
            return sjlt.add(0, small, out);
        }
        let g = matrix(small, b, a);
        // [O, I] → [O, k_in] → [k_out, k_in]
        let g = match &self.input {
            Side::Product(p) => {
                let half = room(half, b * p.ncols());
                multiply_views(g, p.view(), 0.0, matrix_mut(half, b, p.ncols()));
                matrix(half, b, p.ncols())
            }
            _ => g,
        };
        match &self.output {
            Side::Product(p) => {
                multiply_views(p.t(), g, 1.0, matrix_mut(out, p.ncols(), g.ncols()));
            }
            _ => out.iter_mut().zip(g.iter()).for_each(|(out, g)| *out += g),
        }
    }

    /// Adds the gradient of a table that was read at `indices`: `Σ_t e_index(t)·d_x_tᵀ`, `d_x` `[n, I]`.
    pub fn add_rows(&self, indices: &[u32], d_x: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
        let (n, width) = (indices.len(), self.input.fan());
        let Scratch { x, delta, half, .. } = scratch;
        let scaled = self.scale_rows(indices, matrix(d_x, n, width), half);
        let scaled = scaled.as_ref().map_or(matrix(d_x, n, width), |rows| matrix(rows, n, self.input.masked_width()));
        // A mask has been applied together with the factors.
        let x = match &self.input {
            Side::Pick { .. } if self.scale.is_some() => scaled,
            side => side.reduce(scaled, true, x),
        };
        match (&self.output, &self.sjlt) {
            (output, Some(sjlt)) => {
                for (&index, row) in indices.iter().zip(x.rows()) {
                    if let Some(index) = output.masked_index(index as usize) {
                        let row = row.as_slice().expect("rows of a product or a slice are contiguous");
                        sjlt.add(index * x.ncols(), row, out);
                    }
                }
            }
            (Side::Product(p), None) => {
                // Projecting a one-hot side picks a row of P_out.
                let picked = room(delta, n * p.ncols());
                for (row, &index) in picked.chunks_exact_mut(p.ncols()).zip(indices) {
                    p.row(index as usize).iter().zip(row).for_each(|(&p, out)| *out = p);
                }
                let block = matrix_mut(out, p.ncols(), x.ncols());
                multiply_views(matrix(picked, n, p.ncols()).t(), x, 1.0, block);
            }
            (output, None) => {
                for (&index, row) in indices.iter().zip(x.rows()) {
                    if let Some(index) = output.masked_index(index as usize) {
                        let out = &mut out[index * x.ncols()..(index + 1) * x.ncols()];
                        out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
                    }
                }
            }
        }
    }

    /// Rows of a table's gradient times the factors of their places, after the input's mask; none without factors.
    fn scale_rows<'a>(
        &self,
        indices: &[u32],
        d_x: ArrayView2<'_, f32>,
        buffer: &'a mut Vec<f32>,
    ) -> Option<&'a mut [f32]> {
        let scale = self.scale.as_ref()?;
        let width = self.input.masked_width();
        let rows = room(buffer, indices.len() * width);
        for ((out, d_x), &index) in rows.chunks_exact_mut(width).zip(d_x.rows()).zip(indices) {
            let Some(index) = self.output.masked_index(index as usize) else {
                out.fill(0.0);
                continue;
            };
            for (i, (out, &s)) in out.iter_mut().zip(scale.row(index)).enumerate() {
                let place = if let Side::Pick { kept, .. } = &self.input { kept[i] } else { i };
                *out = d_x[place] * s;
            }
        }
        Some(rows)
    }
}

/// A tracked bias: its columns of the fused output and of the row.
#[derive(Debug)]
pub(super) struct Bias {
    pub parameter: String,
    pub columns: Range<usize>,
    pub place: Range<usize>,
}

/// All that is tracked at one fused product.
#[derive(Debug, Default)]
pub(super) struct Site {
    pub blocks: Vec<Block>,
    pub biases: Vec<Bias>,
    /// The input projections of all blocks side by side: the input is read once.
    pub joined: Option<Array2<f32>>,
    pub adapters: Vec<AdapterTap>,
}

/// Where contributions go: into one row, or the contribution of each position into a row of its own.
pub(super) enum Target<'a> {
    Whole(&'a mut [f32]),
    /// `[T, dim]`; the first row of the call is row `first`.
    PerToken {
        rows: &'a mut [f32],
        dim: usize,
        first: usize,
    },
}

impl Target<'_> {
    /// The row of call row `t`; the only row there is, or the position's.
    fn row(&mut self, t: usize) -> &mut [f32] {
        match self {
            Self::Whole(row) => row,
            Self::PerToken { rows, dim, first } => &mut rows[(*first + t) * *dim..(*first + t + 1) * *dim],
        }
    }
}

impl Block {
    /// Adds rows of reduced inputs and unreduced output gradients to the target.
    pub fn add_to(
        &self,
        x: ArrayView2<'_, f32>,
        delta: ArrayView2<'_, f32>,
        [pd, small, half]: [&mut Vec<f32>; 3],
        target: &mut Target<'_>,
    ) {
        let delta = self.output.reduce(delta.slice_move(s![.., self.columns.clone()]), self.scale.is_none(), pd);
        if let Target::Whole(row) = target {
            return self.add(x, delta, small, half, &mut row[self.place.clone()]);
        }
        for t in 0..x.nrows() {
            let (x, delta) = (x.slice(s![t..=t, ..]), delta.slice(s![t..=t, ..]));
            self.add(x, delta, small, half, &mut target.row(t)[self.place.clone()]);
        }
    }
}

impl Site {
    /// Joins the input projections where there are several.
    pub fn join(&mut self) {
        let parts: Option<Vec<_>> = self
            .blocks
            .iter()
            .map(|block| match (&block.input, &block.scale) {
                (Side::Product(p), None) => Some(p.view()),
                _ => None,
            })
            .collect();
        self.joined = parts
            .filter(|parts| parts.len() > 1)
            .map(|parts| ndarray::concatenate(Axis(1), &parts).expect("one input has one width"))
            // A concatenation may lie column by column; products read rows.
            .map(|joined| joined.as_standard_layout().into_owned());
    }

    /// Adds `n` rows of the product's input `x` and output gradient `delta`.
    pub fn add(&self, n: usize, x: &[f32], delta: &[f32], scratch: &mut Scratch, target: &mut Target<'_>) {
        let x = matrix(x, n, x.len() / n);
        let delta = matrix(delta, n, delta.len() / n);
        for adapter in &self.adapters {
            adapter.add(x, delta, scratch, target);
        }
        let Scratch { x: px, delta: pd, small, half, .. } = scratch;
        if let Some(joined) = &self.joined {
            let out = room(px, n * joined.ncols());
            multiply_views(x, joined.view(), 0.0, matrix_mut(out, n, joined.ncols()));
        }
        let mut column = 0;
        for block in &self.blocks {
            let x = match &self.joined {
                Some(joined) => {
                    column += block.input.width();
                    matrix(px, n, joined.ncols()).slice_move(s![.., column - block.input.width()..column])
                }
                None => block.reduce_input(x, px),
            };
            block.add_to(x, delta, [&mut *pd, &mut *small, &mut *half], target);
        }
        for bias in &self.biases {
            for (t, delta) in delta.rows().into_iter().enumerate() {
                let delta = delta.slice_move(s![bias.columns.clone()]);
                let sums = &mut target.row(t)[bias.place.clone()];
                sums.iter_mut().zip(delta).for_each(|(sum, d)| *sum += d);
            }
        }
    }
}
