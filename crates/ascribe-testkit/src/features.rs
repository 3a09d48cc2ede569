//! A feature reader over rows in memory, in blocks of any size.

use std::borrow::Cow;
use std::convert::Infallible;

use ascribe_core::{Column, Digest, ExampleId, FeatureReader, FeatureSpec, Features, ProjectorSpec};
use ndarray::{Array2, CowArray, s};

/// Rows in memory behind [`FeatureReader`].
///
/// Blocks have `rows_per_block` rows, the last one what is left. A test that reads the same rows through several block
/// sizes shows that its subject does not depend on how a store was cut.
#[derive(Clone, Debug)]
pub struct MemoryReader {
    spec: FeatureSpec,
    ids: Vec<ExampleId>,
    rows: Array2<f32>,
    rows_per_block: usize,
}

impl MemoryReader {
    /// Rows `[n, spec.dim]` with their ids.
    ///
    /// # Panics
    /// If ids, rows and spec disagree, or `rows_per_block` is 0.
    pub fn new(spec: FeatureSpec, ids: Vec<ExampleId>, rows: Array2<f32>, rows_per_block: usize) -> Self {
        assert_eq!(ids.len(), rows.nrows(), "one id per row");
        assert_eq!(spec.dim, rows.ncols(), "as many numbers per row as the spec says");
        assert!(rows_per_block > 0, "a block without rows would never end");
        Self { spec, ids, rows, rows_per_block }
    }

    /// All rows `[n, dim]`: the plain twin to compare a streamed result with.
    pub fn rows(&self) -> &Array2<f32> {
        &self.rows
    }

    /// All ids, in order.
    pub fn ids(&self) -> &[ExampleId] {
        &self.ids
    }

    /// The same rows cut into blocks of another size.
    pub fn with_rows_per_block(&self, rows_per_block: usize) -> Self {
        Self::new(self.spec.clone(), self.ids.clone(), self.rows.clone(), rows_per_block)
    }
}

impl FeatureReader for MemoryReader {
    type Error = Infallible;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.rows.nrows() as u64
    }

    fn n_blocks(&self) -> usize {
        self.rows.nrows().div_ceil(self.rows_per_block)
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Infallible> {
        let start = block_idx * self.rows_per_block;
        let end = (start + self.rows_per_block).min(self.rows.nrows());
        Ok(Features {
            ids: Cow::Borrowed(&self.ids[start..end]),
            rows: CowArray::from(self.rows.slice(s![start..end, ..])),
        })
    }
}

/// A gradient spec whose column groups have the given lengths (`block.0`, `block.1`, …).
pub fn gradient_spec(group_lens: &[usize]) -> FeatureSpec {
    let mut columns = Vec::with_capacity(group_lens.len());
    let mut start = 0;
    for (i, &len) in group_lens.iter().enumerate() {
        columns.push(Column { name: format!("block.{i}"), start, len });
        start += len;
    }
    FeatureSpec {
        model: Digest::of(b"testkit model"),
        checkpoint: "final".to_owned(),
        quantity: "gradient".to_owned(),
        loss: "next_token_nll_sum".to_owned(),
        normalizer: "none".to_owned(),
        projector: ProjectorSpec::Identity,
        columns,
        dim: start,
        corpus: Digest::of(b"testkit corpus"),
    }
}

/// `n_rows` rows of dimension `dim` spread evenly over `n_datasets` datasets, with ids in ascending order.
///
/// The numbers are `sin(1 + 0.7·i·dim + 1.3·j² + i·j)`: no two rows are alike, none is zero, and anyone can recompute
/// them in any language.
///
/// # Panics
/// If `n_datasets` is 0.
pub fn toy_rows(n_rows: usize, dim: usize, n_datasets: usize) -> (Vec<ExampleId>, Array2<f32>) {
    assert!(n_datasets > 0, "a row belongs to a dataset");
    let per_dataset = n_rows.div_ceil(n_datasets).max(1);
    let ids =
        (0..n_rows).map(|i| ExampleId { dataset: (i / per_dataset) as u32, idx: (i % per_dataset) as u32 }).collect();
    let rows = Array2::from_shape_fn((n_rows, dim), |(i, j)| {
        let (i, j) = (i as f64, j as f64);
        (1.0 + 0.7 * i * dim as f64 + 1.3 * j * j + i * j).sin() as f32
    });
    (ids, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_any_size_hold_the_same_rows_in_order() {
        let (ids, rows) = toy_rows(7, 5, 3);
        let whole = MemoryReader::new(gradient_spec(&[2, 3]), ids, rows, 100);
        assert_eq!(whole.n_blocks(), 1);
        for rows_per_block in 1..=8 {
            let cut = whole.with_rows_per_block(rows_per_block);
            let (mut seen, mut seen_ids) = (Vec::new(), Vec::new());
            for block_idx in 0..cut.n_blocks() {
                let Ok(block) = cut.block(block_idx);
                seen.extend(block.rows.iter().copied());
                seen_ids.extend(block.ids.iter().copied());
            }
            assert_eq!(seen, whole.rows().iter().copied().collect::<Vec<_>>());
            assert_eq!(seen_ids, whole.ids());
        }
    }

    #[test]
    fn ids_ascend_and_reach_every_dataset() {
        let (ids, _) = toy_rows(10, 2, 3);
        assert!(ids.is_sorted());
        assert_eq!(ids.last().map(|id| id.dataset), Some(2));
    }

    #[test]
    fn columns_cover_the_row_without_gaps() {
        let spec = gradient_spec(&[4, 1, 6]);
        assert_eq!(spec.dim, 11);
        assert_eq!(spec.columns.iter().map(|c| (c.start, c.len)).collect::<Vec<_>>(), [(0, 4), (4, 1), (5, 6)]);
    }
}
