//! A Krylov subspace of the curvature, once for all queries. Source: arXiv:2112.03052.
//!
//! From a seeded start the products `v, Hv, H²v, …` are made orthonormal; in that basis `H` is a small matrix whose eigenpairs
//! approach the outermost ones of `H`. The top k of them, `H ≈ UᵀΛU`, give a solve, and features `Λ^{−½}U g` of k numbers per
//! example whose dot products are the scores.

use ascribe_core::Progress;
use ascribe_linalg::{Stream, SymmetricEigen};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{InverseCurvature, rows};
use crate::blocks;
use crate::error::MethodError;
use crate::source::Operator;

/// A new direction shorter than this, in units of the product that gave it, is rounding: products are f32.
const DEPENDENT: f64 = 1e-5;

/// Numbers of a row that one task adds to.
const STRIPE: usize = 4096;

/// What happens to the part of a vector outside of the kept eigenvectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// It is dropped, as in the paper.
    #[default]
    Dropped,
    /// It is divided by the damping: the inverse of `UᵀΛU + λI`. Needs a positive damping and has no k-number features.
    Damped,
}

/// Options of [`Arnoldi`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArnoldiOptions {
    /// Added to the kept eigenvalues. 0, the paper's: small eigenvalues are not kept.
    pub damping: f64,
    /// Basis vectors. 200.
    pub basis: usize,
    /// Vectors per product with the curvature: starts of a block Krylov space. 1, the paper's; more share a pass, and see
    /// repeated eigenvalues.
    pub block: usize,
    /// Eigenpairs that are kept, the largest. 100.
    pub top: usize,
    /// What lies outside of them.
    pub rest: Rest,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for ArnoldiOptions {
    fn default() -> Self {
        Self { damping: 0.0, basis: 200, block: 1, top: 100, rest: Rest::Dropped, seed: 0 }
    }
}

/// The kept eigenpairs.
///
/// Memory `8·basis·P` bytes while fitting, `4·top·P` after. Cost: `basis` products over all examples and `8·basis²·P`; a
/// solve `4·Q·top·P`. Bytes depend on the seed, never on threads or queries.
#[derive(Clone, Debug)]
pub struct Arnoldi {
    values: Vec<f64>,
    /// `[k, P]`, orthonormal.
    vectors: Array2<f32>,
    damping: f64,
    rest: Rest,
    n_basis: usize,
    n_dropped: usize,
}

/// Basis, and `H` in it.
struct Krylov {
    /// `[m, P]`, of which `len` rows are filled.
    basis: Array2<f64>,
    len: usize,
    /// `[m, m]`; entry `(i, j)` is `b_iᵀ H b_j`.
    small: Array2<f64>,
}

impl Arnoldi {
    /// Builds the subspace over all examples and keeps the top eigenpairs that are positive.
    ///
    /// # Errors
    /// Parameters out of range; a curvature that is zero or has no positive eigenvalue; NaN; the operator's.
    pub fn fit(
        operator: &dyn Operator,
        options: &ArnoldiOptions,
        progress: &dyn Progress,
    ) -> Result<Self, MethodError> {
        rows::check_damping(options.damping)?;
        rows::check_count("basis", options.basis)?;
        rows::check_count("block", options.block)?;
        rows::check_count("top", options.top)?;
        if options.rest == Rest::Damped {
            rows::check_positive("damping of what lies outside of the subspace", options.damping)?;
        }
        let krylov = Krylov::build(operator, options, progress)?;
        let m = krylov.len;
        let small = krylov.small.slice(s![..m, ..m]);
        let small = (&small + &small.t()) * 0.5;
        let eigen = SymmetricEigen::of(small.view()).map_err(|source| MethodError::Curvature {
            what: format!("the curvature in a basis of {m} vectors"),
            hint: "another seed, or a smaller basis",
            source,
        })?;
        // Ritz values at the level of rounding in the f32 products carry no curvature.
        let largest = eigen.values.iter().fold(0.0f64, |a, v| a.max(v.abs()));
        let noise = 8.0 * f64::from(f32::EPSILON) * largest;
        let wanted: Vec<usize> = (0..m).rev().take(options.top).collect();
        let kept: Vec<usize> = wanted.iter().copied().filter(|&j| eigen.values[j] > noise).collect();
        if kept.is_empty() {
            let largest = eigen.values.last().copied().unwrap_or(0.0);
            let expected = "a curvature with a positive eigenvalue";
            return Err(MethodError::Parameter { field: "the largest eigenvalue found", expected, found: largest });
        }
        // [k, m] · [m, P] → [k, P]
        let coefficients = eigen.vectors.select(Axis(0), &kept);
        let vectors = blocks::rows_times(coefficients.view(), krylov.basis.slice(s![..m, ..]));
        Ok(Self {
            values: kept.iter().map(|&j| eigen.values[j]).collect(),
            vectors: rows::narrow(&vectors),
            damping: options.damping,
            rest: options.rest,
            n_basis: m,
            n_dropped: wanted.len() - kept.len(),
        })
    }

    /// Kept eigenvalues, falling.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Their eigenvectors, `[k, P]`.
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.vectors.view()
    }

    /// Vectors of the basis: fewer than asked for where the subspace closed before.
    pub fn n_basis(&self) -> usize {
        self.n_basis
    }

    /// Eigenvalues among the wanted that were left out for being zero or negative.
    pub fn n_dropped(&self) -> usize {
        self.n_dropped
    }

    /// `(Λ + λ)^{−½} U`, `[k, P]`: with it `captured::score` gives features, `[k, N]`, and dot products of features are scores.
    ///
    /// # Errors
    /// [`MethodError::Parameter`] when what lies outside of the subspace was asked to be kept: k numbers cannot hold it.
    pub fn projection(&self) -> Result<Array2<f32>, MethodError> {
        if self.rest == Rest::Damped {
            let expected = "\"dropped\" for features of k numbers";
            return Err(MethodError::Parameter { field: "rest", expected, found: self.damping });
        }
        let mut out = self.vectors.clone();
        for (mut row, value) in out.rows_mut().into_iter().zip(&self.values) {
            let scale = 1.0 / (value + self.damping).sqrt();
            row.mapv_inplace(|v| (f64::from(v) * scale) as f32);
        }
        Ok(out)
    }

    /// `s(g) = gᵀ(H + λ)⁻¹g` from features `[k, n]`: `Σ_k f²`, exact in the subspace and free.
    pub fn self_influence(features: ArrayView2<'_, f32>) -> Vec<f64> {
        features.axis_iter(Axis(1)).map(|f| rows::dot32(f, f)).collect()
    }
}

impl InverseCurvature for Arnoldi {
    fn solve(&self, rows: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        rows::check("query vectors", rows, self.vectors.ncols())?;
        let one = |v: ArrayView1<'_, f32>| {
            let mut out = match self.rest {
                Rest::Dropped => Array1::<f64>::zeros(v.len()),
                Rest::Damped => v.mapv(|v| f64::from(v) / self.damping),
            };
            let outside = if self.rest == Rest::Damped { 1.0 / self.damping } else { 0.0 };
            for (u, value) in self.vectors.rows().into_iter().zip(&self.values) {
                let weight = rows::dot32(u, v) * (1.0 / (value + self.damping) - outside);
                out.zip_mut_with(&u, |out, &u| *out += weight * f64::from(u));
            }
            out.mapv(|v| v as f32)
        };
        let solved: Vec<Array1<f32>> = rows.axis_iter(Axis(0)).into_par_iter().map(one).collect();
        let mut out = Array2::zeros(rows.dim());
        out.rows_mut().into_iter().zip(&solved).for_each(|(mut to, row)| to.assign(row));
        Ok(out)
    }
}

impl Krylov {
    fn build(operator: &dyn Operator, options: &ArnoldiOptions, progress: &dyn Progress) -> Result<Self, MethodError> {
        let dim = operator.dim();
        let m = options.basis.min(dim);
        let mut krylov = Self { basis: Array2::zeros((m, dim)), len: 0, small: Array2::zeros((m, m)) };
        let mut stream = Stream::new(options.seed, "inverse/arnoldi");
        let mut fresh = Vec::new();
        while fresh.len() < options.block.min(m) {
            let start = Array1::from_shape_fn(dim, |_| stream.normal());
            match krylov.add(start) {
                Some(at) => fresh.push(at),
                None => break,
            }
        }
        progress.start("Krylov basis", m as u64, "vectors");
        while !fresh.is_empty() {
            if progress.stop_requested() {
                return Err(MethodError::Stopped);
            }
            let block = krylov.basis.select(Axis(0), &fresh);
            let product = rows::apply(operator, None, rows::narrow(&block).view())?;
            let products = rows::widen(product.view());
            let mut next = Vec::new();
            for (&j, w) in fresh.iter().zip(products.rows()) {
                let along = krylov.along(w);
                along.iter().enumerate().for_each(|(i, &v)| krylov.small[(i, j)] = v);
                if krylov.len < m
                    && let Some(at) = krylov.add(w.to_owned())
                {
                    krylov.small[(at, j)] = rows::dot(krylov.basis.row(at), w);
                    next.push(at);
                }
            }
            // What is not set is zero: a product lies in the span of the basis as it was right after it joined.
            progress.advance(fresh.len() as u64);
            fresh = next;
        }
        progress.finish("subspace built");
        Ok(krylov)
    }

    /// Products of `w` with all vectors.
    fn along(&self, w: ArrayView1<'_, f64>) -> Vec<f64> {
        (0..self.len).into_par_iter().map(|i| rows::dot(self.basis.row(i), w)).collect()
    }

    /// Makes `w` orthogonal to all vectors (twice: once leaves rounding behind) and of length 1; its place, or `None` if
    /// nothing was left.
    fn add(&mut self, mut w: Array1<f64>) -> Option<usize> {
        let before = rows::norm(w.view());
        for _ in 0..2 {
            let weights = self.along(w.view());
            let values = w.as_slice_mut().expect("a vector without gaps");
            values.par_chunks_mut(STRIPE).enumerate().for_each(|(stripe, values)| {
                let first = stripe * STRIPE;
                for (i, &weight) in weights.iter().enumerate() {
                    let basis = self.basis.row(i);
                    let basis = &basis.to_slice().expect("rows of the basis have no gaps")[first..first + values.len()];
                    values.iter_mut().zip(basis).for_each(|(v, &b)| *v -= weight * b);
                }
            });
        }
        let after = rows::norm(w.view());
        if before == 0.0 || after <= DEPENDENT * before {
            return None;
        }
        self.basis.row_mut(self.len).assign(&(w / after));
        self.len += 1;
        Some(self.len - 1)
    }
}
