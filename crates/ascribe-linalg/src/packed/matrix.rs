//! The packed right operand and its products.
#![allow(unsafe_code)] // hands checked slices to `drive`

use ndarray::ArrayView2;

use super::drive::{Left, Panel, Result, product};
use super::layout::{LANES, Line, pack_f32, pack_pairs, pair_steps, panel_widths};
use super::route::{Precision, Route};
use super::rows::{Rows, Words};

/// A matrix `[k, n]`, packed once as the right operand of many products.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    precision: Precision,
    route: Route,
    k: usize,
    n: usize,
    /// Steps of a panel: k, or padded pairs.
    steps: usize,
    lines: Vec<Line>,
}

impl PackedMatrix {
    /// Packs `b` `[k, n]`, any strides. [`Precision::Bf16`] rounds it, ties to even. Cost: one pass; memory: [`Self::bytes`].
    pub fn new(precision: Precision, b: ArrayView2<'_, f32>) -> Self {
        Self::on(Route::best(precision), precision, b)
    }

    pub(super) fn on(route: Route, precision: Precision, b: ArrayView2<'_, f32>) -> Self {
        assert!(route.available(), "this processor has no {route:?}");
        Self::on_unchecked(route, precision, b)
    }

    /// [`Self::on`] for the self-test that decides whether a route is available.
    pub(super) fn on_unchecked(route: Route, precision: Precision, b: ArrayView2<'_, f32>) -> Self {
        let (k, n) = b.dim();
        let (steps, lines) = match route.pairs() {
            true => (pair_steps(k), pack_pairs(b)),
            false => (k, pack_f32(b, precision == Precision::Bf16)),
        };
        Self { precision, route, k, n, steps, lines }
    }

    /// Inner dimension.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Columns of a product.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// The number type of its products.
    pub const fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// `c ← a·b + keep·c`; a `[m, k]`, c `[m, n]` with `c_stride` numbers from row to row. With `keep = 0` the old content
    /// of `c` is not read.
    ///
    /// Each number is one chain `keep·c, fma(a₀, b₀, ·), fma(a₁, b₁, ·), …`: the bits of a row depend on that row alone.
    /// Single-threaded, allocates nothing. Cost `2·m·k·n`.
    ///
    /// # Panics
    /// If the inner dimensions differ, `c` is too short, rows of `c` overlap, or the rows were prepared for another
    /// precision.
    pub fn multiply(&self, a: &Rows<'_>, keep: f32, c: &mut [f32], c_stride: usize) {
        self.run(a, None, keep, c, c_stride);
    }

    /// [`Self::multiply`] with `bias` `[n]` added to every row: the chain starts with `keep·c + bias`.
    ///
    /// # Panics
    /// As [`Self::multiply`], and if `bias` has another length than `n`.
    pub fn multiply_with_bias(&self, a: &Rows<'_>, bias: &[f32], keep: f32, c: &mut [f32], c_stride: usize) {
        assert_eq!(bias.len(), self.n, "one bias per column");
        self.run(a, Some(bias), keep, c, c_stride);
    }

    fn run(&self, a: &Rows<'_>, bias: Option<&[f32]>, keep: f32, c: &mut [f32], c_stride: usize) {
        assert_eq!(a.k, self.k, "inner dimensions of a product differ");
        if a.m == 0 || self.n == 0 {
            return;
        }
        assert!(a.m == 1 || c_stride >= self.n, "rows of the result overlap");
        let end = (a.m - 1).checked_mul(c_stride).and_then(|start| start.checked_add(self.n));
        assert!(end.is_some_and(|end| end <= c.len()), "the result of a product ends behind its slice");
        let rounded = self.precision == Precision::Bf16;
        let words = match a.words {
            Words::F32(data) if !rounded => data.as_ptr().cast::<u32>(),
            Words::Rounded(data) if rounded && !self.route.pairs() => data.as_ptr().cast(),
            Words::Pairs(lines) if self.route.pairs() => lines.as_ptr().cast(),
            // `Rows::bf16` has asked for the best route, and tiles read more than other pairs do.
            Words::Bf16(data) if self.route.pairs() && self.route == Route::best(Precision::Bf16) => {
                data.as_ptr().cast()
            }
            _ => panic!("rows were prepared for another precision than {:?}", self.precision),
        };
        // Pairs behind k are zero on both sides; tiles multiply them, others only the last half pair.
        let steps = match (self.route.tiles(), self.route.pairs()) {
            (true, _) => self.steps,
            (false, true) => self.k.div_ceil(2),
            (false, false) => self.k,
        };
        let out =
            Result { c: c.as_mut_ptr(), row: c_stride, keep, bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr) };
        // SAFETY: `Rows` checked that its slice holds `m` rows of `k` numbers (pairs are padded to whole lines, and memory
        // for pairs holds rows to a multiple of 16); the panels hold `self.steps ≥ steps` steps; `c` and `bias` were checked above, and `c` is borrowed
        // mutably; the route was available when the matrix was packed.
        unsafe {
            product(self.route, a.m, steps, Left { words, row: a.stride, step: 1 }, self.panels(), out);
        }
    }

    fn panels(&self) -> impl Iterator<Item = Panel> + Clone {
        let base = self.lines.as_ptr().cast::<u32>();
        let (steps, n) = (self.steps, self.n);
        panel_widths(n).scan(0, move |column, lines| {
            let first = *column;
            *column += lines * LANES;
            // In bounds: panels follow each other, each `lines · steps` lines long, and `first` counts their words of one
            // step. `wrapping_add` needs no promise; `product` gets one from `run`.
            let words = base.wrapping_add(first * steps);
            Some(Panel { words, step: lines * LANES, column: first, lines, columns: (n - first).min(lines * LANES) })
        })
    }
}
