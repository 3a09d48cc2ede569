//! Removing a whole dataset at once: the curvature that is left, not the curvature that was.
//!
//! Influence adds up single removals. When dataset k goes, its own curvature goes with it, and the first-order change of
//! the loss becomes `q̂ᵀ (H + λ − H_k)⁻¹ G_k / n` with `H_k = (1/n) Σ_{i∈k} ĝĝᵀ`: exact for a quadratic loss whose
//! Fisher is its Hessian, where plain influence falls short by the leverage of the group. Source: group influence, Koh et
//! al., arXiv:1905.13289, and Basu et al., arXiv:1911.00418, here block by block.

use ascribe_core::{FeatureReader, Progress};
use ascribe_linalg::{Cholesky, Threads, gemm_f64};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::covariance::{Covariance, check_damping};
use crate::blocks;
use crate::error::MethodError;

/// `x_k = (H + λ − H_k)⁻¹ G_k` per dataset, `[K, D]` f64.
///
/// Use it in place of the dataset sums, with **plain** query gradients: `dot::dataset_scores(q̂, x)` is the change of the
/// query's summed loss when dataset k is left out, times n, in the units of block-Fisher influence. Rows must come
/// grouped by dataset (ids rising, as a corpus gives them). A dataset without rows gets zeros. Bytes do not depend on
/// threads or shards. Cost: that of the covariance again, and K times that of its Cholesky factors.
///
/// # Errors
/// A dataset whose rows are not together; an ordinal of `n_datasets` or more; columns that are not the covariance's;
/// [`MethodError::Parameter`] and [`MethodError::Factor`] as for `Covariance::cholesky` (a dataset that alone carries a
/// direction needs damping); reader errors; NaN.
pub fn removal_vectors<R: FeatureReader>(
    reader: &R,
    covariance: &Covariance,
    damping_rel: f64,
    n_datasets: usize,
    progress: &dyn Progress,
) -> Result<Array2<f64>, MethodError> {
    check_damping(damping_rel)?;
    if reader.spec().columns != covariance.columns() {
        let found = reader.spec().columns.len();
        return Err(MethodError::shape("column groups", covariance.columns().len(), found));
    }
    let dim = reader.spec().dim;
    let mut state = State {
        covariance,
        damping_rel,
        current: None,
        left: (0..covariance.columns().len()).map(|m| covariance.block(m).to_owned()).collect(),
        sum: vec![0.0; dim],
        out: Array2::zeros((n_datasets, dim)),
        done: vec![false; n_datasets],
    };
    progress.start("remove datasets", reader.n_rows(), "rows");
    blocks::for_each(reader, progress, |block| {
        let mut start = 0;
        while start < block.ids.len() {
            let dataset = block.ids[start].dataset;
            let run = block.ids[start..].iter().take_while(|id| id.dataset == dataset).count();
            state.enter(dataset as usize)?;
            state.take(block.rows.slice(s![start..start + run, ..]));
            start += run;
        }
        Ok(())
    })?;
    state.leave()?;
    progress.finish("datasets removed");
    Ok(state.out)
}

/// What has been gathered of the dataset whose rows are passing.
struct State<'a> {
    covariance: &'a Covariance,
    damping_rel: f64,
    current: Option<usize>,
    /// `H_m − H_{m,k}` so far.
    left: Vec<Array2<f64>>,
    /// `G_k` so far.
    sum: Vec<f64>,
    out: Array2<f64>,
    done: Vec<bool>,
}

impl State<'_> {
    fn enter(&mut self, dataset: usize) -> Result<(), MethodError> {
        if self.current == Some(dataset) {
            return Ok(());
        }
        self.leave()?;
        if dataset >= self.done.len() {
            return Err(MethodError::shape("dataset ordinal", format!("below {}", self.done.len()), dataset));
        }
        if self.done[dataset] {
            let found = format!("dataset {dataset} in two places");
            return Err(MethodError::shape("order of the rows", "rows grouped by dataset", found));
        }
        self.current = Some(dataset);
        Ok(())
    }

    /// Adds rows `[r, D]` of the current dataset.
    fn take(&mut self, rows: ArrayView2<'_, f64>) {
        let (columns, scale) = (self.covariance.columns(), 1.0 / self.covariance.n_rows() as f64);
        self.left.par_iter_mut().zip(columns).for_each(|(left, column)| {
            let part = rows.slice(s![.., column.start..column.start + column.len]);
            gemm_f64(-scale, part.t(), part, 1.0, left.view_mut(), Threads::One);
        });
        for row in rows.axis_iter(Axis(0)) {
            self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }

    /// Solves for the dataset that has just passed, and makes room for the next.
    fn leave(&mut self) -> Result<(), MethodError> {
        let Some(dataset) = self.current.take() else { return Ok(()) };
        let lambdas: Vec<f64> = self.covariance.mean_diagonals().iter().map(|mean| self.damping_rel * mean).collect();
        let (covariance, damping_rel, sum) = (self.covariance, self.damping_rel, &self.sum);
        let solved: Result<Vec<Array2<f64>>, MethodError> = self
            .left
            .par_iter_mut()
            .zip(covariance.columns())
            .zip(&lambdas)
            .enumerate()
            .map(|(module, ((left, column), &lambda))| {
                let mut x = Array2::from_shape_fn((1, column.len), |(_, j)| sum[column.start + j]);
                // λ = 0 for a module of zeros (its sum is zero too) and for damping 0 (the factor then decides).
                if x.iter().any(|&v| v != 0.0) {
                    left.diag_mut().mapv_inplace(|d| d + lambda);
                    let factor = Cholesky::factor(left.view()).map_err(|source| {
                        let module = format!("{} without dataset {dataset}", column.name);
                        MethodError::Factor { module, damping_rel, source }
                    })?;
                    factor.solve_rows(x.view_mut());
                }
                left.assign(&covariance.block(module));
                Ok(x)
            })
            .collect();
        for (x, column) in solved?.iter().zip(covariance.columns()) {
            self.out.slice_mut(s![dataset..dataset + 1, column.start..column.start + column.len]).assign(x);
        }
        self.sum.fill(0.0);
        self.done[dataset] = true;
        Ok(())
    }
}
