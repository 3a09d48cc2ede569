//! Second moments of feature rows, one block per module. Here never lives: inversion (see `precondition`).

use ascribe_core::{Column, FeatureReader, Progress};
use ascribe_linalg::{Cholesky, SymmetricEigen, Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::precondition::{Factors, Spectrum};
use crate::blocks;
use crate::error::MethodError;

/// Rows of a block of `H` that one task owns. Tasks differ in length, so many small ones keep both cores busy.
const PANEL: usize = 128;

/// `H_m = (1/n) Σ_i ĝ_{i,m} ĝ_{i,m}ᵀ` for every module m.
#[derive(Clone, Debug)]
pub struct Covariance {
    columns: Vec<Column>,
    n_rows: usize,
    blocks: Vec<Array2<f64>>,
}

/// Rows `first..first + values.nrows()` of one module's lower triangle.
struct Panel {
    module: usize,
    first: usize,
    /// `[≤ PANEL, first + ≤ PANEL]`: a panel ends at its own diagonal, the rest follows by symmetry.
    values: Array2<f64>,
}

impl Covariance {
    /// Fits the second moments in one pass over the rows.
    ///
    /// Products are f64 on blocks of 512 rows, added in row order: the bytes depend on neither threads nor shards. Cost
    /// about `N·Σ d_m²` multiply-adds (half of the full product); memory `8·Σ d_m²` bytes and one block of rows.
    ///
    /// # Errors
    /// Reader errors, NaN (row, block and module named), no rows at all.
    pub fn fit<R: FeatureReader>(reader: &R, progress: &dyn Progress) -> Result<Self, MethodError> {
        progress.start("fit curvature", reader.n_rows(), "rows");
        let (n_rows, mut blocks) = sums(reader, progress)?;
        if n_rows == 0 {
            return Err(MethodError::Empty { what: "the set of training rows" });
        }
        progress.finish("curvature fitted");
        blocks.iter_mut().for_each(|h| h.mapv_inplace(|x| x / n_rows as f64));
        Ok(Self { columns: reader.spec().columns.clone(), n_rows, blocks })
    }

    /// The moments of these rows and those of `added`: `(n·H + Σ ĝĝᵀ)/(n + m)`. Only the rows of `added` are read.
    ///
    /// Equal to fitting all rows together within a few `n·ε` of the largest moment of each block.
    ///
    /// # Errors
    /// As [`Covariance::fit`]; rows of other columns.
    pub fn with<R: FeatureReader>(&self, added: &R, progress: &dyn Progress) -> Result<Self, MethodError> {
        self.changed(added, 1.0, progress)
    }

    /// The moments of these rows without those of `removed`, which must be among them: `(n·H − Σ ĝĝᵀ)/(n − m)`.
    ///
    /// What is lost to cancellation is a few `n·ε` of the largest moment *before* the removal.
    ///
    /// # Errors
    /// As [`Covariance::fit`]; rows of other columns; [`MethodError::Empty`] if no row is left.
    pub fn without<R: FeatureReader>(&self, removed: &R, progress: &dyn Progress) -> Result<Self, MethodError> {
        self.changed(removed, -1.0, progress)
    }

    fn changed<R: FeatureReader>(&self, rows: &R, sign: f64, progress: &dyn Progress) -> Result<Self, MethodError> {
        if rows.spec().columns != self.columns {
            let name = |c: &[Column]| c.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
            return Err(MethodError::shape("columns of the rows", name(&self.columns), name(&rows.spec().columns)));
        }
        progress.start("update curvature", rows.n_rows(), "rows");
        let (m, changes) = sums(rows, progress)?;
        progress.finish("curvature updated");
        let n_rows = if sign > 0.0 { self.n_rows + m } else { self.n_rows.saturating_sub(m) };
        if n_rows == 0 {
            return Err(MethodError::Empty { what: "the set of training rows" });
        }
        let (before, after) = (self.n_rows as f64, n_rows as f64);
        let mut blocks = self.blocks.clone();
        for (block, change) in blocks.iter_mut().zip(&changes) {
            block.zip_mut_with(change, |h, c| *h = (before * *h + sign * c) / after);
        }
        Ok(Self { columns: self.columns.clone(), n_rows, blocks })
    }

    /// Second moments read back from a file.
    ///
    /// # Errors
    /// [`MethodError::Shape`] when blocks and columns do not fit, [`MethodError::Empty`] without rows.
    pub fn from_parts(columns: Vec<Column>, n_rows: usize, blocks: Vec<Array2<f64>>) -> Result<Self, MethodError> {
        if n_rows == 0 {
            return Err(MethodError::Empty { what: "the set of training rows" });
        }
        let expected: Vec<_> = columns.iter().map(|c| (c.len, c.len)).collect();
        let found: Vec<_> = blocks.iter().map(Array2::dim).collect();
        if expected != found {
            return Err(MethodError::shape("shapes of the curvature blocks", expected, found));
        }
        Ok(Self { columns, n_rows, blocks })
    }

    /// Column groups, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Rows that were averaged.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// `H_m`, `[d_m, d_m]`, symmetric.
    pub fn block(&self, module: usize) -> ArrayView2<'_, f64> {
        self.blocks[module].view()
    }

    /// Mean of the diagonal (= mean eigenvalue) of every block. Damping is relative to it.
    pub fn mean_diagonals(&self) -> Vec<f64> {
        self.blocks.iter().map(|h| h.diag().sum() / h.nrows() as f64).collect()
    }

    /// Cholesky factors of `H_m + λ_m I`. A block of zeros stays out: its part of every score is zero.
    ///
    /// Cost `Σ d_m³/3`, modules side by side.
    ///
    /// # Errors
    /// [`MethodError::Parameter`] for a negative or non-finite damping; [`MethodError::Factor`], naming module and pivot,
    /// when a rank-deficient block has no damping.
    pub fn cholesky(&self, damping_rel: f64) -> Result<Factors, MethodError> {
        check_damping(damping_rel)?;
        self.cholesky_each(&vec![damping_rel; self.blocks.len()])
    }

    /// [`Covariance::cholesky`] with a relative damping of its own for every module, as `damping` chooses them.
    ///
    /// # Errors
    /// As [`Covariance::cholesky`]; another number of dampings than modules.
    pub fn cholesky_each(&self, damping_rel: &[f64]) -> Result<Factors, MethodError> {
        if damping_rel.len() != self.blocks.len() {
            return Err(MethodError::shape("dampings, one per module", self.blocks.len(), damping_rel.len()));
        }
        damping_rel.iter().try_for_each(|&rel| check_damping(rel))?;
        let means = self.mean_diagonals();
        let factors: Result<Vec<_>, MethodError> = (0..self.blocks.len())
            .into_par_iter()
            .map(|module| {
                if is_zero(&self.blocks[module]) {
                    return Ok(None);
                }
                let mut damped = self.blocks[module].clone();
                let lambda = damping_rel[module] * means[module];
                damped.diag_mut().mapv_inplace(|d| d + lambda);
                let factor = Cholesky::factor(damped.view());
                factor.map(Some).map_err(|source| self.factor_error(module, damping_rel[module], source))
            })
            .collect();
        Ok(Factors::new(self.columns.clone(), factors?))
    }

    /// Eigenvalues and eigenvectors of every block: once `9·Σ d_m³`, then every damping is free.
    ///
    /// # Errors
    /// [`MethodError::Factor`] when an eigenvalue iteration does not converge.
    pub fn spectrum(&self) -> Result<Spectrum, MethodError> {
        let eigens: Result<Vec<_>, MethodError> = (0..self.blocks.len())
            .into_par_iter()
            .map(|module| {
                SymmetricEigen::of(self.blocks[module].view()).map_err(|source| self.factor_error(module, 0.0, source))
            })
            .collect();
        Ok(Spectrum::new(self.columns.clone(), self.mean_diagonals(), eigens?))
    }

    fn factor_error(&self, module: usize, damping_rel: f64, source: ascribe_linalg::LinalgError) -> MethodError {
        MethodError::Factor { module: self.columns[module].name.clone(), damping_rel, source }
    }
}

/// `Σ_i ĝ_{i,m} ĝ_{i,m}ᵀ` of every module and the number of rows, in one pass.
fn sums<R: FeatureReader>(reader: &R, progress: &dyn Progress) -> Result<(usize, Vec<Array2<f64>>), MethodError> {
    let columns = &reader.spec().columns;
    let mut panels: Vec<Panel> = Vec::new();
    for (module, column) in columns.iter().enumerate() {
        for first in (0..column.len).step_by(PANEL) {
            let height = PANEL.min(column.len - first);
            panels.push(Panel { module, first, values: Array2::zeros((height, first + height)) });
        }
    }
    let n_rows = blocks::for_each(reader, progress, |block| {
        panels.par_iter_mut().for_each(|panel| {
            let start = columns[panel.module].start;
            let (height, width) = panel.values.dim();
            let left = block.rows.slice(s![.., start + panel.first..start + panel.first + height]);
            let right = block.rows.slice(s![.., start..start + width]);
            // [h, 512] · [512, w] added to [h, w]
            gemm_f64(1.0, left.t(), right, 1.0, panel.values.view_mut(), Threads::One);
        });
        Ok(())
    })?;
    let mut blocks: Vec<Array2<f64>> = columns.iter().map(|c| Array2::zeros((c.len, c.len))).collect();
    for panel in &panels {
        for ((i, j), &value) in panel.values.indexed_iter() {
            let row = panel.first + i;
            if j <= row {
                blocks[panel.module][(row, j)] = value;
                blocks[panel.module][(j, row)] = value;
            }
        }
    }
    Ok((n_rows, blocks))
}

/// Damping must be a finite number that is not negative.
pub(super) fn check_damping(damping_rel: f64) -> Result<(), MethodError> {
    if damping_rel.is_finite() && damping_rel >= 0.0 {
        return Ok(());
    }
    Err(MethodError::Parameter { field: "damping_rel", expected: "finite and not negative", found: damping_rel })
}

fn is_zero(block: &Array2<f64>) -> bool {
    // A second moment is zero if and only if its diagonal is.
    block.diag().iter().all(|&d| d == 0.0)
}
