//! Views of feature rows: rows that lie in memory, all columns as one group, rows times weights; and scores over any of them
//! under any metric and normalisation.
//!
//! `GradDot` is [`score`] without metric, `GradCos` the same with [`Normalisation::Cosine`]; block-Fisher influence, ℓ-RelatIF and
//! θ-RelatIF are the same call with curvature as metric. Here never lives: how rows come about, files.

use ascribe_core::{Column, Digest, ExampleId, FeatureReader, FeatureSpec, Features, Progress, ProjectorSpec};
use ndarray::{Array2, ArrayView2, CowArray, s};
use rayon::prelude::*;

use crate::block_fisher::{self, Preconditioner};
use crate::blocks;
use crate::dot::{self, ExampleScores};
use crate::error::MethodError;
use crate::narrow;
use crate::normalise::{Normalisation, Own, normalise};

/// Rows per task where a metric is applied to rows.
const TASK_ROWS: usize = 128;

/// Rows in memory behind [`FeatureReader`], in one block.
#[derive(Clone, Debug)]
pub struct InMemory<'a> {
    spec: FeatureSpec,
    ids: Vec<ExampleId>,
    rows: ArrayView2<'a, f32>,
}

impl<'a> InMemory<'a> {
    /// Rows `[n, D]` whose columns form one group, `row`; example i is `0:i`. The spec says that the rows lie in memory: its hash
    /// is not that of any stored rows.
    pub fn new(rows: ArrayView2<'a, f32>) -> Self {
        let columns = vec![Column { name: "row".to_owned(), start: 0, len: rows.ncols() }];
        let ids = (0..rows.nrows()).map(|i| ExampleId { dataset: 0, idx: i as u32 }).collect();
        let origin = Digest::of(b"rows in memory");
        let spec = FeatureSpec {
            model: origin,
            checkpoint: "memory".to_owned(),
            quantity: "gradient".to_owned(),
            loss: "memory".to_owned(),
            normalizer: "none".to_owned(),
            projector: ProjectorSpec::Identity,
            dim: rows.ncols(),
            columns,
            corpus: origin,
        };
        Self { spec, ids, rows }
    }

    /// The same rows in column groups.
    ///
    /// # Errors
    /// Groups that do not cover the columns.
    pub fn with_columns(mut self, columns: Vec<Column>) -> Result<Self, MethodError> {
        blocks::check_columns(&columns, self.rows.ncols())?;
        self.spec.columns = columns;
        Ok(self)
    }

    /// The same rows of other examples.
    ///
    /// # Errors
    /// Another number of ids than rows.
    pub fn with_ids(mut self, ids: Vec<ExampleId>) -> Result<Self, MethodError> {
        if ids.len() != self.rows.nrows() {
            return Err(MethodError::shape("ids of the rows", self.rows.nrows(), ids.len()));
        }
        self.ids = ids;
        Ok(self)
    }
}

impl FeatureReader for InMemory<'_> {
    type Error = std::convert::Infallible;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.rows.nrows() as u64
    }

    fn n_blocks(&self) -> usize {
        1
    }

    fn block(&self, _: usize) -> Result<Features<'_>, Self::Error> {
        Ok(Features { ids: self.ids.as_slice().into(), rows: CowArray::from(self.rows) })
    }
}

/// The rows of another reader with all columns in one group: curvature over whole rows instead of block by block.
#[derive(Clone, Debug)]
pub struct OneGroup<'a, R> {
    reader: &'a R,
    spec: FeatureSpec,
}

impl<'a, R: FeatureReader> OneGroup<'a, R> {
    /// All columns of `reader` in one group, `row`.
    pub fn new(reader: &'a R) -> Self {
        let mut spec = reader.spec().clone();
        spec.columns = vec![Column { name: "row".to_owned(), start: 0, len: spec.dim }];
        Self { reader, spec }
    }
}

impl<R: FeatureReader> FeatureReader for OneGroup<'_, R> {
    type Error = R::Error;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.reader.n_rows()
    }

    fn n_blocks(&self) -> usize {
        self.reader.n_blocks()
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Self::Error> {
        self.reader.block(block_idx)
    }
}

/// The rows of another reader, row i times `weights[i]` (in f32: one rounding).
#[derive(Clone, Debug)]
pub struct Weighted<'a, R> {
    reader: &'a R,
    weights: &'a [f64],
    /// First row of every block.
    starts: Vec<usize>,
}

impl<'a, R: FeatureReader> Weighted<'a, R> {
    /// Rows of `reader` times `weights`, `[N]`. Reads every block once, for its length.
    ///
    /// # Errors
    /// Another number of weights than rows; a weight that is not finite; reader errors.
    pub fn new(reader: &'a R, weights: &'a [f64]) -> Result<Self, MethodError> {
        if weights.len() as u64 != reader.n_rows() {
            return Err(MethodError::shape("weights, one per row", reader.n_rows(), weights.len()));
        }
        if let Some(row) = weights.iter().position(|w| !w.is_finite()) {
            return Err(MethodError::BadValue { what: "row weights".to_owned(), row, column: 0, found: weights[row] });
        }
        let mut starts = vec![0];
        for block_idx in 0..reader.n_blocks() {
            let block =
                reader.block(block_idx).map_err(|source| MethodError::Read { block_idx, source: Box::new(source) })?;
            starts.push(starts[block_idx] + block.rows.nrows());
        }
        if starts.last() != Some(&weights.len()) {
            let found = starts.last().copied().unwrap_or(0) as u64;
            return Err(MethodError::RowCount { expected: reader.n_rows(), found });
        }
        Ok(Self { reader, weights, starts })
    }
}

impl<R: FeatureReader> FeatureReader for Weighted<'_, R> {
    type Error = R::Error;

    fn spec(&self) -> &FeatureSpec {
        self.reader.spec()
    }

    fn n_rows(&self) -> u64 {
        self.reader.n_rows()
    }

    fn n_blocks(&self) -> usize {
        self.reader.n_blocks()
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Self::Error> {
        let Features { ids, rows } = self.reader.block(block_idx)?;
        let mut rows = rows.into_owned();
        for (mut row, &w) in rows.rows_mut().into_iter().zip(&self.weights[self.starts[block_idx]..]) {
            row.mapv_inplace(|x| (f64::from(x) * w) as f32);
        }
        Ok(Features { ids, rows: rows.into() })
    }
}

/// `‖row‖²` of every row, `[N]`, in f64. Cost `2·N·D`.
///
/// # Errors
/// Reader errors, NaN.
pub fn square_norms<R: FeatureReader>(reader: &R, progress: &dyn Progress) -> Result<Vec<f64>, MethodError> {
    let mut out = Vec::with_capacity(dot::n_rows(reader)?);
    progress.start("row norms", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        let rows: Vec<_> = block.rows.rows().into_iter().take(block.ids.len()).collect();
        out.par_extend(rows.into_par_iter().map(|row| ascribe_linalg::sum::sum_by(row.len(), |j| row[j] * row[j])));
        Ok(())
    })?;
    progress.finish("norms taken");
    Ok(out)
}

/// `‖M·row‖` of every row, `[N]`: how far an example moves the parameters (θ-RelatIF). Cost `2·N·Σ d_m²`.
///
/// # Errors
/// Reader errors; columns that are not those of the metric; NaN.
pub fn moved_norms<R: FeatureReader>(
    reader: &R,
    by: &dyn Preconditioner,
    progress: &dyn Progress,
) -> Result<Vec<f64>, MethodError> {
    check_metric(reader, by)?;
    let mut out = Vec::with_capacity(dot::n_rows(reader)?);
    progress.start("row moves", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        let starts: Vec<usize> = (0..block.ids.len()).step_by(TASK_ROWS).collect();
        let parts: Vec<Vec<f64>> = starts
            .par_iter()
            .map(|&start| {
                let end = (start + TASK_ROWS).min(block.ids.len());
                let mut rows = block.rows.slice(s![start..end, ..]).to_owned();
                for (module, c) in by.columns().iter().enumerate() {
                    by.solve(module, rows.slice_mut(s![.., c.start..c.start + c.len]));
                }
                let norm = |row: ndarray::ArrayView1<'_, f64>| {
                    ascribe_linalg::sum::sum_by(row.len(), |j| row[j] * row[j]).sqrt()
                };
                rows.rows().into_iter().map(norm).collect()
            })
            .collect();
        out.extend(parts.into_iter().flatten());
        Ok(())
    })?;
    progress.finish("moves taken");
    Ok(out)
}

/// Scores of every row against every query under a metric and a normalisation, `[Q, N]`.
///
/// `queries` is `[Q, D]`, plain query gradients; `metric` is the identity (`None`) or inverse curvature. Units: those of
/// `⟨q, M g⟩` divided by what the normalisation divides by. Products are f32, added in f64. Bytes depend on neither threads, blocks nor
/// the other queries. Cost `2·Q·N·D`, and what norms cost: `N·Σ d_m²` under a metric.
///
/// # Errors
/// Shapes; columns that are not those of the metric; reader errors; NaN, with its place.
pub fn score<R: FeatureReader>(
    reader: &R,
    queries: ArrayView2<'_, f32>,
    metric: Option<&dyn Preconditioner>,
    by: Normalisation,
    progress: &dyn Progress,
) -> Result<ExampleScores, MethodError> {
    let plain = blocks::query_rows(queries, &reader.spec().columns)?;
    let own_query = |by: &dyn Preconditioner| block_fisher::self_influence_of(by, queries);
    let (vectors, query, train, moved) = match metric {
        Some(metric) => {
            check_metric(reader, metric)?;
            (
                block_fisher::precondition(metric, queries)?,
                by.needs_query().then(|| own_query(metric)).transpose()?,
                by.needs_train().then(|| block_fisher::self_influence(reader, metric, progress)).transpose()?,
                by.needs_moved().then(|| moved_norms(reader, metric, progress)).transpose()?,
            )
        }
        None => {
            let train = match by.needs_train() || by.needs_moved() {
                true => Some(square_norms(reader, progress)?),
                false => None,
            };
            let moved = train.as_ref().map(|squares| squares.iter().map(|s| s.sqrt()).collect::<Vec<f64>>());
            (plain.clone(), by.needs_query().then(|| squares_of(&plain)), train, moved)
        }
    };
    let mut scores = narrow::score(reader, vectors.view(), progress)?;
    let own = Own { query: query.as_deref(), train: train.as_deref(), moved: moved.as_deref() };
    normalise(&mut scores.values, by, &own)?;
    Ok(scores)
}

fn squares_of(rows: &Array2<f64>) -> Vec<f64> {
    rows.rows().into_iter().map(|row| ascribe_linalg::sum::sum_by(row.len(), |j| row[j] * row[j])).collect()
}

/// Rows and metric must speak of the same columns.
pub(crate) fn check_metric<R: FeatureReader>(reader: &R, by: &dyn Preconditioner) -> Result<(), MethodError> {
    if reader.spec().columns == by.columns() {
        return Ok(());
    }
    let names = |columns: &[Column]| columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    Err(MethodError::shape("column groups", names(by.columns()), names(&reader.spec().columns)))
}
