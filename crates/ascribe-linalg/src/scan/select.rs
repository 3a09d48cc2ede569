//! Which products may reach a threshold, every error counted in.
//!
//! A product `p` of stored row `x̂` and prepared query `q̂` stands for `⟨x, q⟩`, where `‖x − x̂‖ ≤ e`, `‖q − q̂‖ = l`:
//!
//! ```text
//! |⟨x, q⟩ − s_x·s_q·p| ≤ e·‖q‖ + ‖x̂‖·l + γ·‖x̂‖·‖q̂‖ + tiny
//! ```
//!
//! by Cauchy–Schwarz, twice; `γ` bounds an f32 sum of any order (Higham, Accuracy and Stability of Numerical Algorithms,
//! §3.1; twice that, for kernels that add pairs first), and is nothing for integers; `tiny` covers numbers that a kernel
//! takes for zero. With `‖x̂‖ ≤ n + e` this is linear in two facts of the row, `e` and `n`, so a comparison costs three
//! multiply-adds.
#![allow(clippy::neg_cmp_op_on_partial_ord)] // `!(x < t)` on purpose: a product that is not a number reaches every threshold

use ascribe_core::RowType;

use super::{Queries, Scores};
use crate::elementwise::dispatch::kernel;

/// Relative slack for facts that are kept in f32 and for the f64 arithmetic here.
const SLACK: f64 = 1e-6;
/// Rows that are looked at together where products stand query by query.
const RUN: usize = 16;

/// What a store knows of each row of a block; an empty slice means 1 for scales and 0 for errors.
#[derive(Clone, Copy, Debug)]
pub struct RowFacts<'a> {
    /// What codes are multiplied with.
    pub scale: &'a [f32],
    /// Upper bound of the distance between the precise row and this one.
    pub error: &'a [f32],
    /// Norm of this row or of the precise one.
    pub norm: &'a [f32],
}

/// The coefficients of the bound, per query, in units of the query's scale: `a·e + b·n + c`.
#[derive(Clone, Debug)]
pub struct Bounds {
    unit: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
}

impl Bounds {
    /// Of prepared queries.
    pub fn new(queries: &Queries) -> Self {
        let (n, dim) = (queries.n(), queries.dim() as f64);
        let padded = n.next_multiple_of(16);
        let coded = matches!(queries.row_type(), RowType::Int8 | RowType::Int4);
        let u = f64::from(f32::EPSILON) / 2.0;
        let error = 2.0 * (dim + 32.0) * u;
        let gamma = match coded {
            true => 0.0,
            false if error < 0.5 => error / (1.0 - error),
            false => f64::INFINITY,
        };
        let tiny = if coded { 0.0 } else { f64::from(f32::MIN_POSITIVE) * 2.0 * (dim + 1.0) };
        let mut bounds =
            Self { unit: vec![1.0; padded], a: vec![0.0; padded], b: vec![0.0; padded], c: vec![0.0; padded] };
        for q in 0..n {
            let (unit, norm, lost) = (queries.scale(q), queries.norm(q), queries.lost(q));
            // Of the row's decoded numbers, too, each may have been rounded once to f32: part of the slack on the norm.
            let per_norm = lost + (gamma + SLACK) * (norm + lost) + tiny;
            bounds.unit[q] = unit;
            bounds.a[q] = (norm + per_norm) * (1.0 + SLACK) / unit;
            bounds.b[q] = per_norm * (1.0 + SLACK) / unit;
            bounds.c[q] = tiny * (1.0 + norm) / unit;
        }
        bounds
    }

    /// How far a product of `query` may be off, in real units, for a row with these facts.
    pub fn of(&self, query: usize, error: f32, norm: f32) -> f64 {
        (self.a[query] * f64::from(error) + self.b[query] * f64::from(norm) + self.c[query]) * self.unit[query]
    }
}

/// Thresholds per query. Kept in the query's units, padded so that kernels see whole vectors.
#[derive(Clone, Debug)]
pub struct Thresholds {
    units: Vec<f64>,
    values: Vec<f64>,
    n: usize,
}

impl Thresholds {
    /// One per query, below everything.
    pub fn new(bounds: &Bounds, n: usize) -> Self {
        let mut values = vec![f64::INFINITY; n.next_multiple_of(16)];
        values[..n].fill(f64::NEG_INFINITY);
        Self { units: bounds.unit.clone(), values, n }
    }

    /// Sets a query's to `value`, in real units.
    pub fn set(&mut self, query: usize, value: f64) {
        assert!(query < self.n, "a threshold of a query that does not exist");
        // Rounded down, so that no row is lost to this division.
        let scaled = value / self.units[query];
        self.values[query] = if scaled.is_finite() { scaled - scaled.abs() * 1e-12 } else { f64::NEG_INFINITY };
    }
}

/// A row that may reach the threshold of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Row of the block.
    pub row: usize,
    /// The query.
    pub query: usize,
    /// The product in real units; not a number if the kernel overflowed.
    pub value: f64,
    /// How far it may be off.
    pub bound: f64,
}

/// Hands every row that may reach its query's threshold to `take`, which may raise thresholds. Rows come in their order
/// (within a query). A product that is not finite always reaches. Cost: three multiply-adds a product.
///
/// # Panics
/// If a slice of facts is neither empty nor as long as the block.
pub fn reaching(
    scores: &Scores,
    row_type: RowType,
    facts: &RowFacts<'_>,
    bounds: &Bounds,
    thresholds: &mut Thresholds,
    mut take: impl FnMut(Reach, &mut Thresholds),
) {
    let n = scores.n_rows;
    for (slice, what) in [(facts.scale, "scales"), (facts.error, "errors"), (facts.norm, "norms")] {
        assert!(slice.is_empty() || slice.len() == n, "{what} of a block are none or one per row");
    }
    let fact = |slice: &[f32], row: usize, default: f64| slice.get(row).map_or(default, |&x| f64::from(x));
    let one = |row: usize, query: usize, thresholds: &mut Thresholds, take: &mut dyn FnMut(Reach, &mut Thresholds)| {
        let (scale, error, norm) =
            (fact(facts.scale, row, 1.0), fact(facts.error, row, 0.0), fact(facts.norm, row, f64::INFINITY));
        let value = scores.at(row, query, row_type) * scale;
        let bound = bounds.a[query] * error + bounds.b[query] * norm + bounds.c[query];
        // Not `>=`: a value that is not a number reaches.
        if !(value + bound < thresholds.values[query]) {
            let unit = bounds.unit[query];
            take(Reach { row, query, value: value * unit, bound: bound * unit }, thresholds);
        }
    };
    let coded = matches!(row_type, RowType::Int8 | RowType::Int4);
    if scores.by_row {
        for row in 0..n {
            let line = row * scores.width..(row + 1) * scores.width;
            let facts =
                [fact(facts.scale, row, 1.0), fact(facts.error, row, 0.0), fact(facts.norm, row, f64::INFINITY)];
            let any = match coded {
                true => any_int(&scores.ints[line], facts, bounds, &thresholds.values),
                false => any_float(&scores.floats[line], facts, bounds, &thresholds.values),
            };
            if any {
                (0..scores.n_queries).for_each(|query| one(row, query, thresholds, &mut take));
            }
        }
        return;
    }
    for query in 0..scores.n_queries {
        let coefficients = [bounds.a[query], bounds.b[query], bounds.c[query]];
        for first in (0..n).step_by(RUN) {
            let last = (first + RUN).min(n);
            let line = query * scores.width + first..query * scores.width + last;
            let part = |slice: &'_ [f32], default: f32| -> [f32; RUN] {
                let mut run = [default; RUN];
                if !slice.is_empty() {
                    run[..last - first].copy_from_slice(&slice[first..last]);
                }
                run
            };
            let runs = [part(facts.scale, 1.0), part(facts.error, 0.0), part(facts.norm, f32::INFINITY)];
            let threshold = thresholds.values[query];
            let any = match coded {
                true => run_int(&scores.ints[line], &runs, coefficients, threshold),
                false => run_float(&scores.floats[line], &runs, coefficients, threshold),
            };
            if any {
                (first..last).for_each(|row| one(row, query, thresholds, &mut take));
            }
        }
    }
}

macro_rules! reach_kernels {
    ($any:ident / $any_at:ident, $run:ident / $run_at:ident, $number:ty) => {
        kernel! {
            /// True if one row may reach the threshold of some query.
            fn $any / $any_at (products: &[$number], facts: [f64; 3], bounds: &Bounds, thresholds: &[f64]) -> bool {
                let [scale, error, norm] = facts;
                let n = products.len().min(thresholds.len());
                let (a, b, c) = (&bounds.a[..n], &bounds.b[..n], &bounds.c[..n]);
                let (products, thresholds) = (&products[..n], &thresholds[..n]);
                let mut reached = 0u64;
                for i in 0..n {
                    let upper = f64::from(products[i]) * scale + a[i] * error + b[i] * norm + c[i];
                    reached |= u64::from(!(upper < thresholds[i]));
                }
                reached != 0
            }
        }
        kernel! {
            /// True if one of a run of rows may reach the threshold of one query.
            fn $run / $run_at (
                products: &[$number],
                facts: &[[f32; RUN]; 3],
                coefficients: [f64; 3],
                threshold: f64,
            ) -> bool {
                let [a, b, c] = coefficients;
                let mut line = [<$number>::default(); RUN];
                line[..products.len()].copy_from_slice(products);
                let mut uppers = [0.0f64; RUN];
                for i in 0..RUN {
                    let (scale, error, norm) = (f64::from(facts[0][i]), f64::from(facts[1][i]), f64::from(facts[2][i]));
                    uppers[i] = f64::from(line[i]) * scale + a * error + b * norm + c;
                }
                let mut reached = 0u64;
                for upper in &uppers[..products.len()] {
                    reached |= u64::from(!(*upper < threshold));
                }
                reached != 0
            }
        }
    };
}
reach_kernels!(any_int / any_int_at, run_int / run_int_at, i32);
reach_kernels!(any_float / any_float_at, run_float / run_float_at, f32);
