//! The strongest eigenpairs of every module's second moments, and the inverse that they make.

use ascribe_core::{Column, FeatureReader, Progress};
use ascribe_linalg::{LinalgError, Stream, SymmetricEigen, Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::block_fisher::Preconditioner;
use crate::blocks::{self, rows_times};
use crate::error::MethodError;

/// What is taken of the directions that are not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// No curvature: they are divided by `λ` alone, as in the paper. Right when the kept ones hold nearly all of it.
    Zero,
    /// Their mean, `τ = (tr H − Σ s)/(d − r)`: `H ≈ V diag(s) Vᵀ + τ(I − VVᵀ)`, the most likely covariance of this form (Tipping
    /// and Bishop, J. R. Stat. Soc. B 61, 1999). A small λ then no longer blows up what was left out.
    #[default]
    Mean,
}

/// Options of [`LowRank::fit`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Eigenpairs kept per module (all, where a module has fewer columns).
    pub rank: usize,
    /// Directions carried along beyond `rank` while iterating.
    pub oversample: usize,
    /// Passes over the rows that sharpen the subspace, before the one that measures it.
    pub passes: usize,
    /// `λ` relative to the mean eigenvalue of each module. Positive: what is not kept may have only λ to divide by.
    pub damping_rel: f64,
    /// What is taken of the rest.
    #[serde(default)]
    pub tail: Tail,
    /// Seed of the first directions.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { rank: 64, oversample: 10, passes: 2, damping_rel: 1e-3, tail: Tail::Mean, seed: 0 }
    }
}

/// `H ≈ V diag(s) Vᵀ` of one module, and its `λ`.
#[derive(Clone, Debug)]
struct Part {
    /// Row j is the eigenvector of `values[j]`, `[r, d]`.
    vectors: Array2<f64>,
    /// Falling, not negative.
    values: Vec<f64>,
    lambda: f64,
    /// `τ`: curvature of the directions that are not kept.
    tail: f64,
    /// `tr H`.
    trace: f64,
}

impl Part {
    /// Part of a kept direction that the inverse takes away: `(H + λ)⁻¹ = (I − V diag((s − τ)/(s + λ)) Vᵀ)/(τ + λ)`.
    fn taken(&self, s: f64) -> f64 {
        if self.trace > 0.0 { (s - self.tail) / (s + self.lambda) } else { 0.0 }
    }
}

/// Low-rank curvature of all modules.
#[derive(Clone, Debug)]
pub struct LowRank {
    columns: Vec<Column>,
    parts: Vec<Part>,
}

impl LowRank {
    /// Fits in `passes + 1` passes over the rows (one, where `rank + oversample` covers a module). Sums are f64 over fixed
    /// blocks: bytes depend on neither threads nor shards. Cost per pass `4·N·D·(rank + oversample)`; memory
    /// `8·D·(rank + oversample)` bytes, twice, and one block of rows.
    ///
    /// # Errors
    /// Rank 0, a damping that is not positive; no rows; reader errors; NaN; an eigenvalue iteration that does not converge.
    pub fn fit<R: FeatureReader>(reader: &R, options: Options, progress: &dyn Progress) -> Result<Self, MethodError> {
        let Options { rank, oversample, passes, damping_rel, tail, seed } = options;
        if rank == 0 {
            return Err(MethodError::Parameter { field: "rank", expected: "at least 1", found: 0.0 });
        }
        if !(damping_rel.is_finite() && damping_rel > 0.0) {
            let expected = "finite and positive";
            return Err(MethodError::Parameter { field: "damping_rel", expected, found: damping_rel });
        }
        let columns = reader.spec().columns.clone();
        let width = rank.saturating_add(oversample);
        let mut bases: Vec<Array2<f64>> = columns.iter().map(|c| start(c, width, seed)).collect();
        if columns.iter().any(|c| c.len > width) {
            for _ in 0..passes {
                bases = sharpen(reader, &columns, bases, progress)?;
            }
        }
        let (n_rows, small, traces) = measure(reader, &columns, &bases, progress)?;
        if n_rows == 0 {
            return Err(MethodError::Empty { what: "the set of training rows" });
        }
        let parts: Result<Vec<Part>, MethodError> = (0..columns.len())
            .into_par_iter()
            .map(|m| {
                let scale = 1.0 / n_rows as f64;
                let eigen = SymmetricEigen::of((&small[m] * scale).view()).map_err(|source: LinalgError| {
                    MethodError::Factor { module: columns[m].name.clone(), damping_rel, source }
                })?;
                let kept = rank.min(eigen.values.len());
                // Eigenvalues rise; the strongest stand last.
                let order: Vec<usize> = (0..eigen.values.len()).rev().take(kept).collect();
                let inner = eigen.vectors.select(Axis(0), &order);
                let (trace, d) = (traces[m] * scale, columns[m].len);
                let values: Vec<f64> = order.iter().map(|&j| eigen.values[j].max(0.0)).collect();
                let left = (trace - values.iter().sum::<f64>()).max(0.0);
                Ok(Part {
                    vectors: rows_times(inner.view(), bases[m].view()),
                    values,
                    lambda: damping_rel * trace / d as f64,
                    tail: if tail == Tail::Mean && d > kept { left / (d - kept) as f64 } else { 0.0 },
                    trace,
                })
            })
            .collect();
        Ok(Self { columns, parts: parts? })
    }

    /// Eigenvalues kept of a module, falling.
    pub fn values(&self, module: usize) -> &[f64] {
        &self.parts[module].values
    }

    /// `λ` of a module.
    pub fn lambda(&self, module: usize) -> f64 {
        self.parts[module].lambda
    }

    /// Part of a module's curvature that the kept eigenpairs hold, `Σ s / tr H` (1 for a module of zeros).
    pub fn explained(&self, module: usize) -> f64 {
        let part = &self.parts[module];
        if part.trace > 0.0 { part.values.iter().sum::<f64>() / part.trace } else { 1.0 }
    }

    /// Numbers that the curvature of all modules takes: `Σ r_m (d_m + 1)`.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|p| p.vectors.len() + p.values.len()).sum()
    }

    /// True without any eigenpair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `τ + λ` of a module: what directions that are not kept are divided by. 0 for a module of zeros.
    pub(super) fn floor(&self, module: usize) -> f64 {
        self.parts[module].tail + self.parts[module].lambda
    }

    /// Per kept direction the part that the inverse takes away.
    pub(super) fn taken(&self, module: usize) -> impl Iterator<Item = f64> + '_ {
        let part = &self.parts[module];
        part.values.iter().map(|&s| part.taken(s))
    }

    /// `V_m`, `[r, d_m]`.
    pub(super) fn vectors(&self, module: usize) -> ArrayView2<'_, f64> {
        self.parts[module].vectors.view()
    }

    /// `rows − (rows·Vᵀ) diag(f(part taken away)) V`, all times `factor`.
    fn apply(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>, factor: f64, f: impl Fn(f64) -> f64) {
        let part = &self.parts[module];
        if part.trace == 0.0 {
            rows.fill(0.0);
            return;
        }
        let mut inner = rows_times(rows.view(), part.vectors.t());
        for (mut column, &s) in inner.axis_iter_mut(Axis(1)).zip(&part.values) {
            column *= f(part.taken(s));
        }
        let taken = rows_times(inner.view(), part.vectors.view());
        ndarray::Zip::from(&mut rows).and(&taken).for_each(|x, &t| *x = (*x - t) * factor);
    }
}

impl Preconditioner for LowRank {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn solve(&self, module: usize, rows: ArrayViewMut2<'_, f64>) {
        self.apply(module, rows, 1.0 / self.floor(module), |taken| taken);
    }

    fn whiten(&self, module: usize, rows: ArrayViewMut2<'_, f64>) {
        // The root of 1 − taken is that of (τ + λ)/(s + λ); rounding may leave it just below 0.
        self.apply(module, rows, 1.0 / self.floor(module).sqrt(), |taken| 1.0 - (1.0 - taken).max(0.0).sqrt());
    }
}

/// The first directions of a module, `[k, d]`: normal numbers, or the axes where `k` covers them all.
fn start(column: &Column, width: usize, seed: u64) -> Array2<f64> {
    if column.len <= width {
        return Array2::eye(column.len);
    }
    let mut stream = Stream::new(seed, &format!("{}/subspace", column.name));
    let mut basis = Array2::from_shape_fn((width, column.len), |_| stream.normal());
    orthonormalise(&mut basis);
    basis
}

/// One pass of the subspace iteration: rows of `basis` times `GᵀG`, made orthonormal again.
fn sharpen<R: FeatureReader>(
    reader: &R,
    columns: &[Column],
    bases: Vec<Array2<f64>>,
    progress: &dyn Progress,
) -> Result<Vec<Array2<f64>>, MethodError> {
    let mut next: Vec<Array2<f64>> = bases.iter().map(|b| Array2::zeros(b.dim())).collect();
    progress.start("sharpen the subspace", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        next.par_iter_mut().zip(&bases).zip(columns).for_each(|((next, basis), c)| {
            let part = block.rows.slice(s![.., c.start..c.start + c.len]);
            let mut inner = Array2::zeros((part.nrows(), basis.nrows()));
            gemm_f64(1.0, part, basis.t(), 0.0, inner.view_mut(), Threads::One);
            gemm_f64(1.0, inner.t(), part, 1.0, next.view_mut(), Threads::One);
        });
        Ok(())
    })?;
    progress.finish("subspace sharpened");
    next.par_iter_mut().zip(&bases).for_each(|(next, basis)| {
        // Whole modules keep their axes: there is nothing to find.
        if basis.nrows() == basis.ncols() {
            next.assign(basis);
        } else {
            orthonormalise(next);
        }
    });
    Ok(next)
}

/// Per module `Σ (Bg)(Bg)ᵀ` and `Σ ‖g‖²`, and the number of rows.
type Measured = (usize, Vec<Array2<f64>>, Vec<f64>);

fn measure<R: FeatureReader>(
    reader: &R,
    columns: &[Column],
    bases: &[Array2<f64>],
    progress: &dyn Progress,
) -> Result<Measured, MethodError> {
    let mut sums: Vec<(Array2<f64>, f64)> =
        bases.iter().map(|b| (Array2::zeros((b.nrows(), b.nrows())), 0.0)).collect();
    progress.start("measure the subspace", reader.n_rows(), "rows");
    let n_rows = blocks::for_each(reader, progress, |block| {
        sums.par_iter_mut().zip(bases).zip(columns).for_each(|(((small, trace), basis), c)| {
            let part = block.rows.slice(s![.., c.start..c.start + c.len]);
            let mut inner = Array2::zeros((part.nrows(), basis.nrows()));
            gemm_f64(1.0, part, basis.t(), 0.0, inner.view_mut(), Threads::One);
            gemm_f64(1.0, inner.t(), inner.view(), 1.0, small.view_mut(), Threads::One);
            *trace += part.iter().map(|x| x * x).sum::<f64>();
        });
        Ok(())
    })?;
    progress.finish("subspace measured");
    let (small, traces) = sums.into_iter().unzip();
    Ok((n_rows, small, traces))
}

/// Makes the rows orthonormal: Gram and Schmidt, twice (once loses orthogonality where rows are nearly dependent). A row that
/// adds nothing becomes zero, and stays a direction without curvature.
fn orthonormalise(rows: &mut Array2<f64>) {
    for j in 0..rows.nrows() {
        let (before, mut rest) = rows.view_mut().split_at(Axis(0), j);
        let mut row = rest.row_mut(0);
        let length = row.dot(&row).sqrt();
        for _ in 0..2 {
            let parts = before.dot(&row);
            row -= &before.t().dot(&parts);
        }
        let left = row.dot(&row).sqrt();
        if left > 1e-12 * length {
            row /= left;
        } else {
            row.fill(0.0);
        }
    }
}
