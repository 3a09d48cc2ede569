//! Inverse curvature applied to rows: Cholesky factors for one damping, a spectrum for all of them.

use ascribe_core::{Column, FeatureReader, Progress};
use ascribe_linalg::{Cholesky, LinalgError, SymmetricEigen};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::covariance::check_damping;
use crate::blocks;
use crate::dot;
use crate::error::MethodError;

/// Rows that one whitening task takes.
const WHITEN_ROWS: usize = 128;

/// Applies `(H_m + λ_m I)⁻¹` and its square root, module by module.
pub trait Preconditioner: Sync {
    /// Column groups, in order.
    fn columns(&self) -> &[Column];
    /// Replaces every row `x` of `rows`, `[r, d_m]`, by `(H_m + λ_m I)⁻¹ x`.
    fn solve(&self, module: usize, rows: ArrayViewMut2<'_, f64>);
    /// Replaces every row `x` of `rows`, `[r, d_m]`, by `W x` with `WᵀW = (H_m + λ_m I)⁻¹`.
    fn whiten(&self, module: usize, rows: ArrayViewMut2<'_, f64>);
}

/// Cholesky factors of one damping.
#[derive(Clone, Debug)]
pub struct Factors {
    columns: Vec<Column>,
    /// `None` for a module whose rows are all zero.
    factors: Vec<Option<Cholesky>>,
}

impl Factors {
    pub(super) fn new(columns: Vec<Column>, factors: Vec<Option<Cholesky>>) -> Self {
        Self { columns, factors }
    }

    /// `L_m` per module with `L_m L_mᵀ = H_m + λ_m I`, for a factor file; an empty matrix for a module of zeros.
    pub fn to_parts(&self) -> Vec<(String, Array2<f64>)> {
        let lower = |f: &Option<Cholesky>| f.as_ref().map_or_else(|| Array2::zeros((0, 0)), Cholesky::lower);
        self.columns.iter().zip(&self.factors).map(|(c, f)| (c.name.clone(), lower(f))).collect()
    }

    /// Factors read back from [`Factors::to_parts`], in the order of `columns`.
    ///
    /// # Errors
    /// [`MethodError::Shape`] when a factor does not fit its module, [`MethodError::Factor`] when it is no factor.
    pub fn from_parts(columns: Vec<Column>, parts: Vec<Array2<f64>>) -> Result<Self, MethodError> {
        if columns.len() != parts.len() {
            return Err(MethodError::shape("factors, one per module", columns.len(), parts.len()));
        }
        let read = |(column, lower): (&Column, &Array2<f64>)| {
            if lower.is_empty() {
                return Ok(None);
            }
            if lower.nrows() != column.len {
                return Err(MethodError::shape("rows of a factor", column.len, lower.nrows()));
            }
            let factor = Cholesky::from_lower(lower.view());
            factor.map(Some).map_err(|source| factor_error(column, f64::NAN, source))
        };
        let factors: Result<Vec<_>, _> = columns.iter().zip(&parts).map(read).collect();
        Ok(Self { factors: factors?, columns })
    }
}

/// `L⁻¹q` and `A⁻¹q = L⁻ᵀL⁻¹q` of every query row: `[Q, D]` f32 → twice `[Q, D]` f64, the second with the bytes of [`precondition`].
///
/// `⟨L⁻¹x, L⁻¹q⟩ = ⟨x, A⁻¹q⟩` for every training row x. Cost `2·Q·Σ d_m²`, modules side by side.
///
/// # Errors
/// As [`precondition`].
pub fn whiten_and_solve(by: &Factors, queries: ArrayView2<'_, f32>) -> Result<(Array2<f64>, Array2<f64>), MethodError> {
    let mut whitened = blocks::query_rows(queries, by.columns())?;
    let mut solved = Array2::zeros(whitened.dim());
    let parts = by_module(by.columns(), &mut whitened).into_par_iter().zip(by_module(by.columns(), &mut solved));
    parts.enumerate().for_each(|(module, (mut whitened, mut solved))| {
        by.whiten(module, whitened.view_mut());
        solved.assign(&whitened);
        if let Some(factor) = &by.factors[module] {
            factor.back_rows(solved);
        }
    });
    Ok((whitened, solved))
}

impl Preconditioner for Factors {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn solve(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>) {
        match &self.factors[module] {
            Some(factor) => factor.solve_rows(rows),
            None => rows.fill(0.0),
        }
    }

    fn whiten(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>) {
        match &self.factors[module] {
            Some(factor) => factor.whiten_rows(rows),
            None => rows.fill(0.0),
        }
    }
}

/// Eigenvalues and eigenvectors of every block; [`Spectrum::damped`] gives a preconditioner for any damping.
#[derive(Clone, Debug)]
pub struct Spectrum {
    columns: Vec<Column>,
    mean_diagonals: Vec<f64>,
    eigens: Vec<SymmetricEigen>,
}

impl Spectrum {
    pub(super) fn new(columns: Vec<Column>, mean_diagonals: Vec<f64>, eigens: Vec<SymmetricEigen>) -> Self {
        Self { columns, mean_diagonals, eigens }
    }

    /// Eigenvalues of a module's block in rising order. Rounding can make the smallest slightly negative.
    pub fn values(&self, module: usize) -> &[f64] {
        &self.eigens[module].values
    }

    /// A preconditioner with `λ_m = damping_rel · mean(diag H_m)`. Negative eigenvalues (rounding) count as zero.
    ///
    /// # Errors
    /// [`MethodError::Parameter`] for a negative or non-finite damping; [`MethodError::Factor`] when a block that is not
    /// zero has a vanishing eigenvalue and no damping.
    pub fn damped(&self, damping_rel: f64) -> Result<Damped<'_>, MethodError> {
        check_damping(damping_rel)?;
        let mut inverses = Vec::with_capacity(self.eigens.len());
        for (module, eigen) in self.eigens.iter().enumerate() {
            let lambda = damping_rel * self.mean_diagonals[module];
            if self.mean_diagonals[module] == 0.0 {
                inverses.push(vec![0.0; eigen.values.len()]);
                continue;
            }
            // Below this an eigenvalue is rounding noise: n·eps of the largest one.
            let largest = eigen.values.last().copied().unwrap_or(0.0);
            let noise = eigen.values.len() as f64 * f64::EPSILON * largest;
            if let Some(pivot) = eigen.values.iter().position(|v| v.max(0.0) + lambda <= noise) {
                let source = LinalgError::NotPositive { pivot, dim: eigen.values.len() };
                return Err(factor_error(&self.columns[module], damping_rel, source));
            }
            inverses.push(eigen.values.iter().map(|v| 1.0 / (v.max(0.0) + lambda)).collect());
        }
        Ok(Damped { spectrum: self, inverses })
    }
}

/// A spectrum under one damping.
#[derive(Clone, Debug)]
pub struct Damped<'a> {
    spectrum: &'a Spectrum,
    /// `1/(λ_j + λ)` per module and eigenvalue; zeros for a module of zeros.
    inverses: Vec<Vec<f64>>,
}

impl Damped<'_> {
    /// Rows in the eigenbasis, column j scaled by `scale(1/(λ_j + λ))`.
    fn rotated(&self, module: usize, rows: ArrayView2<'_, f64>, scale: impl Fn(f64) -> f64) -> Array2<f64> {
        let mut rotated = blocks::rows_times(rows, self.spectrum.eigens[module].vectors.t());
        for (mut column, &inverse) in rotated.axis_iter_mut(Axis(1)).zip(&self.inverses[module]) {
            column *= scale(inverse);
        }
        rotated
    }
}

impl Preconditioner for Damped<'_> {
    fn columns(&self) -> &[Column] {
        &self.spectrum.columns
    }

    fn solve(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>) {
        let rotated = self.rotated(module, rows.view(), |inverse| inverse);
        rows.assign(&blocks::rows_times(rotated.view(), self.spectrum.eigens[module].vectors.view()));
    }

    fn whiten(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>) {
        let rotated = self.rotated(module, rows.view(), f64::sqrt);
        rows.assign(&rotated);
    }
}

/// `(H + λ)⁻¹ q` for every query row: `[Q, D]` f32 → `[Q, D]` f64, ready for `dot::score`.
///
/// Cost `2·Q·Σ d_m²`, modules side by side. A row's bytes do not depend on the other rows.
///
/// # Errors
/// Width of the rows; NaN (row and module named).
pub fn precondition(by: &dyn Preconditioner, queries: ArrayView2<'_, f32>) -> Result<Array2<f64>, MethodError> {
    let mut out = blocks::query_rows(queries, by.columns())?;
    for_modules(by, &mut out, |module, rows| by.solve(module, rows));
    Ok(out)
}

/// `q / √(qᵀ(H + λ)⁻¹q)`-scaled preconditioned queries: the query side of the cosine in the curvature's metric.
///
/// With [`row_weights`] on the training side the score becomes a cosine in `[−1, 1]` (TrackStar's unit norm,
/// arXiv:2410.17413, without its optimiser term). A query without gradient stays zero. Shapes as [`precondition`].
///
/// # Errors
/// As [`precondition`].
pub fn unit_queries(by: &dyn Preconditioner, queries: ArrayView2<'_, f32>) -> Result<Array2<f64>, MethodError> {
    let norms = self_influence_of(by, queries)?;
    let mut out = precondition(by, queries)?;
    for (mut row, &norm) in out.rows_mut().into_iter().zip(&norms) {
        row *= if norm > 0.0 { 1.0 / norm.sqrt() } else { 0.0 };
    }
    Ok(out)
}

/// `xᵀ(H + λ)⁻¹x` for every row in memory, `[Q]`.
///
/// # Errors
/// As [`precondition`].
pub fn self_influence_of(by: &dyn Preconditioner, rows: ArrayView2<'_, f32>) -> Result<Vec<f64>, MethodError> {
    let mut whitened = blocks::query_rows(rows, by.columns())?;
    for_modules(by, &mut whitened, |module, rows| by.whiten(module, rows));
    let total = |row: ArrayView1<'_, f64>| {
        let part = |c: &Column| squares(row.slice(s![c.start..c.start + c.len]));
        by.columns().iter().map(part).fold(0.0, |sum, v| sum + v)
    };
    Ok(whitened.rows().into_iter().map(total).collect())
}

/// Self-influence `ĝ_iᵀ(H + λ)⁻¹ĝ_i` of every training row, `[N]`. Never negative; zero for a row of zeros.
///
/// Large values mark examples that the model fits alone (mislabelled, rare, memorised). Cost `N·Σ d_m²`.
///
/// # Errors
/// Reader errors; columns that are not those of the preconditioner; NaN.
pub fn self_influence<R: FeatureReader>(
    reader: &R,
    by: &dyn Preconditioner,
    progress: &dyn Progress,
) -> Result<Vec<f64>, MethodError> {
    if reader.spec().columns != by.columns() {
        let names = |columns: &[Column]| columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        return Err(MethodError::shape("column groups", names(by.columns()), names(&reader.spec().columns)));
    }
    let mut out = Vec::with_capacity(dot::n_rows(reader)?);
    progress.start("self-influence", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        // Module by module: one factor then serves all row groups of the block from the cache.
        let groups: Vec<usize> = (0..block.ids.len()).step_by(WHITEN_ROWS).collect();
        let parts: Vec<Vec<f64>> = (0..by.columns().len() * groups.len())
            .into_par_iter()
            .map(|task| {
                let (module, start) = (task / groups.len(), groups[task % groups.len()]);
                let column = &by.columns()[module];
                let end = (start + WHITEN_ROWS).min(block.ids.len());
                let part = s![start..end, column.start..column.start + column.len];
                let mut rows = block.rows.slice(part).to_owned();
                by.whiten(module, rows.view_mut());
                rows.rows().into_iter().map(squares).collect()
            })
            .collect();
        let first = out.len();
        out.resize(first + block.ids.len(), 0.0);
        for (task, values) in parts.iter().enumerate() {
            let start = first + groups[task % groups.len()];
            out[start..start + values.len()].iter_mut().zip(values).for_each(|(total, v)| *total += v);
        }
        Ok(())
    })?;
    progress.finish("rows whitened");
    Ok(out)
}

/// `1/√(self-influence)` per row: the weights that make an influence score RelatIF's (arXiv:2003.11630, eq. 6).
///
/// A row without gradient gets weight zero: it has no influence to normalise.
pub fn row_weights(self_influence: &[f64]) -> Vec<f64> {
    self_influence.iter().map(|&s| if s > 0.0 { 1.0 / s.sqrt() } else { 0.0 }).collect()
}

/// Dataset scores module by module: M tables `[Q, K]` whose sum is `dot::dataset_scores`.
///
/// Modules answer different questions (embeddings see words, upper layers see form); a combination may weigh them.
///
/// # Errors
/// Shapes; NaN.
pub fn scores_by_module(
    columns: &[Column],
    queries: ArrayView2<'_, f64>,
    sums: ArrayView2<'_, f64>,
) -> Result<Vec<Array2<f64>>, MethodError> {
    blocks::check_columns(columns, queries.ncols())?;
    if queries.ncols() != sums.ncols() {
        return Err(MethodError::shape("columns of the dataset sums", queries.ncols(), sums.ncols()));
    }
    let part = |c: &Column| s![.., c.start..c.start + c.len];
    columns.iter().map(|c| dot::dataset_scores(queries.slice(part(c)), sums.slice(part(c)))).collect()
}

/// Runs `work` on every module's columns of `rows`, modules side by side.
fn for_modules(by: &dyn Preconditioner, rows: &mut Array2<f64>, work: impl Fn(usize, ArrayViewMut2<'_, f64>) + Sync) {
    by_module(by.columns(), rows).into_par_iter().enumerate().for_each(|(module, part)| work(module, part));
}

/// The columns of every module.
fn by_module<'r>(columns: &[Column], rows: &'r mut Array2<f64>) -> Vec<ArrayViewMut2<'r, f64>> {
    let mut rest = rows.view_mut();
    let mut parts = Vec::with_capacity(columns.len());
    for column in columns {
        let (part, others) = rest.split_at(Axis(1), column.len);
        parts.push(part);
        rest = others;
    }
    parts
}

/// `Σ x²` of one module's columns.
fn squares(row: ArrayView1<'_, f64>) -> f64 {
    ascribe_linalg::sum::sum_by(row.len(), |i| row[i] * row[i])
}

fn factor_error(column: &Column, damping_rel: f64, source: LinalgError) -> MethodError {
    MethodError::Factor { module: column.name.clone(), damping_rel, source }
}
