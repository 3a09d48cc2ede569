//! Rows with factored blocks: which blocks are factored, how a row is written, how it is multiplied out.

use std::ops::Range;

use ascribe_core::Column;
use ascribe_linalg::factors;
use ndarray::ArrayView2;

use super::config::Projection;
use super::plan::Plan;

/// One block on its way from the dense row to the stored one.
#[derive(Clone, Debug)]
struct Piece {
    dense: Range<usize>,
    stored: Range<usize>,
    /// Shape `[k_out, k_in]` and rank, where the block is factored.
    factored: Option<([usize; 2], usize)>,
}

/// The way from dense rows to stored ones.
#[derive(Clone, Debug)]
pub(super) struct Factoring {
    pieces: Vec<Piece>,
    pub columns: Vec<Column>,
    pub dim: usize,
}

impl Factoring {
    /// None if rows are stored as they are.
    pub fn new(plan: &Plan, projection: Projection) -> Option<Self> {
        let Projection::Factored { rank } = projection else { return None };
        let mut out = Self { pieces: vec![], columns: vec![], dim: 0 };
        for column in &plan.columns {
            let dense = column.start..column.start + column.len;
            let block = plan.blocks().find(|block| block.place == dense);
            let factored = block.map(super::block::Block::shape).filter(|(o, i)| (o + i) * rank < o * i);
            let len = factored.map_or(column.len, |(o, i)| (o + i) * rank);
            let stored = out.dim..out.dim + len;
            out.columns.push(Column { name: column.name.clone(), start: stored.start, len });
            out.dim = stored.end;
            out.pieces.push(Piece { dense, stored, factored: factored.map(|(o, i)| ([o, i], rank)) });
        }
        Some(out)
    }

    /// Writes `row` from the dense row; returns `‖dense − expanded‖²`, NaN if the row is not finite.
    pub fn write(&self, dense: &[f32], row: &mut [f32]) -> f64 {
        let mut dropped = 0.0;
        for Piece { dense: from, stored: to, factored } in &self.pieces {
            let (from, to) = (&dense[from.clone()], &mut row[to.clone()]);
            let Some(([o, i], rank)) = *factored else {
                to.copy_from_slice(from);
                continue;
            };
            let block = ArrayView2::from_shape((o, i), from).expect("a block has its own length");
            let Ok(factors) = factors(block, rank) else { return f64::NAN };
            let numbers = factors.left.iter().chain(&factors.right);
            to.iter_mut().zip(numbers).for_each(|(to, &x)| *to = x as f32);
            dropped += factors.dropped;
        }
        dropped
    }

    /// Multiplies a stored row out.
    pub fn expand(&self, row: &[f32], dense: &mut [f32]) {
        for Piece { dense: to, stored: from, factored } in &self.pieces {
            let (from, to) = (&row[from.clone()], &mut dense[to.clone()]);
            let Some(([o, i], rank)) = *factored else {
                to.copy_from_slice(from);
                continue;
            };
            let (left, right) = from.split_at(o * rank);
            for (to, left) in to.chunks_exact_mut(i).zip(left.chunks_exact(rank)) {
                for (to, right) in to.iter_mut().zip(right.chunks_exact(rank)) {
                    *to = left.iter().zip(right).map(|(l, r)| l * r).sum();
                }
            }
        }
    }
}
