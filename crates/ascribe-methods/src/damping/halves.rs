//! One half of a set of examples, as a reader of rows or a source of captures. Here never lives: what the halves are for.

use std::borrow::Cow;

use ascribe_core::{FeatureReader, FeatureSpec, Features};
use ndarray::Axis;

use super::in_second_half;
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer};

/// The rows of one half, in the reader's order.
pub(super) struct Half<'a, R> {
    inner: &'a R,
    seed: u64,
    second: bool,
    n_rows: u64,
}

impl<'a, R: FeatureReader> Half<'a, R> {
    /// Counts the rows of the half: one look at all ids.
    pub(super) fn new(inner: &'a R, seed: u64, second: bool) -> Result<Self, MethodError> {
        let mut half = Self { inner, seed, second, n_rows: 0 };
        for block_idx in 0..inner.n_blocks() {
            let block =
                inner.block(block_idx).map_err(|source| MethodError::Read { block_idx, source: Box::new(source) })?;
            half.n_rows += half.rows(&block).len() as u64;
        }
        Ok(half)
    }

    /// Rows of a block that belong to the half.
    fn rows(&self, block: &Features<'_>) -> Vec<usize> {
        let of = |id: &ascribe_core::ExampleId| u64::from(id.dataset) << 32 | u64::from(id.idx);
        (0..block.ids.len()).filter(|&i| in_second_half(self.seed, of(&block.ids[i])) == self.second).collect()
    }
}

impl<R: FeatureReader> FeatureReader for Half<'_, R> {
    type Error = R::Error;

    fn spec(&self) -> &FeatureSpec {
        self.inner.spec()
    }

    fn n_rows(&self) -> u64 {
        self.n_rows
    }

    fn n_blocks(&self) -> usize {
        self.inner.n_blocks()
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Self::Error> {
        let block = self.inner.block(block_idx)?;
        let rows = self.rows(&block);
        let ids = rows.iter().map(|&i| block.ids[i]).collect();
        Ok(Features { ids: Cow::Owned(ids), rows: block.rows.select(Axis(0), &rows).into() })
    }
}

/// Chosen examples of a source.
pub(super) struct Picked<'a> {
    inner: &'a dyn CaptureSource,
    examples: Vec<u32>,
}

impl<'a> Picked<'a> {
    /// One half of the examples.
    pub(super) fn half(inner: &'a dyn CaptureSource, seed: u64, second: bool) -> Result<Self, MethodError> {
        let mut examples = crate::captured::all_examples(inner)?;
        examples.retain(|&e| in_second_half(seed, u64::from(e)) == second);
        if examples.is_empty() {
            return Err(MethodError::Empty { what: "one half of the examples" });
        }
        Ok(Self { inner, examples })
    }
}

impl CaptureSource for Picked<'_> {
    fn layers(&self) -> &[Layer] {
        self.inner.layers()
    }

    fn len(&self) -> usize {
        self.examples.len()
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let own: Vec<u32> = examples.iter().map(|&e| self.examples[e as usize]).collect();
        self.inner.capture(&own, labels, out)
    }
}
