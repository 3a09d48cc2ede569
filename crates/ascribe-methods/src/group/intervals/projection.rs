//! What a random two-sided projection adds to the spread of dataset scores, from one store: every projected column is left out
//! once (a jackknife over columns), without projecting anything again.
//!
//! A module's row is `P_out·G·P_inᵀ`, `[k_out, k_in]`, and the rows of `P_out` (and of `P_in`) are drawn alike, so each is a
//! replicate. Without the coordinates D of one of them the block-Fisher score `qᵀA⁻¹G` of a module (`A = H + λ`) becomes
//! `qᵀA⁻¹G − v_Dᵀ ((A⁻¹)_DD)⁻¹ u_D` with `v = A⁻¹q`, `u = A⁻¹G`: the inverse of a principal part of A by its Schur complement
//! (Horn and Johnson, Matrix Analysis, 0.7.3), so no factor is made again. Source of the jackknife: Efron and Stein,
//! Ann. Statist. 9, 1981; for rows and columns apart: Owen, Ann. Appl. Stat. 1, 2007.

use ascribe_core::Column;
use ascribe_linalg::Cholesky;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::block_fisher::{Preconditioner, precondition};
use crate::blocks;
use crate::dot::check_finite;
use crate::error::MethodError;

/// A module's projected gradient as a matrix: `(k_out, k_in)`; `None` where nothing was projected (gains of norms).
pub type MatrixShape = Option<(usize, usize)>;

/// Dataset scores with one projected column left out, in every module at once.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnReplicates {
    /// Per output column `[Q, K]`.
    pub outputs: Vec<Array2<f64>>,
    /// Per input column `[Q, K]`.
    pub inputs: Vec<Array2<f64>>,
}

impl ColumnReplicates {
    /// Adds another checkpoint's replicates, times its weight in the trajectory.
    ///
    /// # Errors
    /// Another number of columns, queries or datasets.
    pub fn add(&mut self, other: &Self, weight: f64) -> Result<(), MethodError> {
        for (mine, theirs) in [(&mut self.outputs, &other.outputs), (&mut self.inputs, &other.inputs)] {
            let shapes = |side: &[Array2<f64>]| side.iter().map(Array2::dim).collect::<Vec<_>>();
            if shapes(mine) != shapes(theirs) {
                return Err(MethodError::shape("replicates of another checkpoint", shapes(mine), shapes(theirs)));
            }
            mine.iter_mut().zip(theirs).for_each(|(m, t)| m.scaled_add(weight, t));
        }
        Ok(())
    }

    /// The same, every score times `factor`.
    pub fn scaled(mut self, factor: f64) -> Self {
        self.outputs.iter_mut().chain(&mut self.inputs).for_each(|table| *table *= factor);
        self
    }
}

/// Leaves out every projected column once. `queries` `[Q, D]` are plain, `sums` `[K, D]` are dataset sums, `shapes` says which
/// modules are projected matrices. Column `o` goes from every module that has more than `o`.
///
/// Deterministic. Cost: two solves, the inverse of every module (`d_m³`), then little.
///
/// # Errors
/// Shapes, NaN; a matrix shape that is not its module's length; fewer than two columns on a side.
pub fn column_replicates(
    by: &dyn Preconditioner,
    shapes: &[MatrixShape],
    queries: ArrayView2<'_, f32>,
    sums: ArrayView2<'_, f64>,
) -> Result<ColumnReplicates, MethodError> {
    PreparedColumns::new(by, shapes, sums)?.replicates(by, queries)
}

/// What [`column_replicates`] needs whatever the queries are, made once: for whoever is asked response by response.
#[derive(Debug)]
pub struct PreparedColumns {
    columns: Vec<Column>,
    n_out: usize,
    n_in: usize,
    modules: Vec<Module>,
}

impl PreparedColumns {
    /// Solves the sums and inverts every module's principal parts. Arguments, cost and errors as [`column_replicates`].
    ///
    /// # Errors
    /// As [`column_replicates`].
    pub fn new(
        by: &dyn Preconditioner,
        shapes: &[MatrixShape],
        sums: ArrayView2<'_, f64>,
    ) -> Result<Self, MethodError> {
        let columns = by.columns();
        check(columns, shapes, sums)?;
        let widest = |side: fn((usize, usize)) -> usize| shapes.iter().flatten().map(|&s| side(s)).max().unwrap_or(0);
        let (n_out, n_in) = (widest(|s| s.0), widest(|s| s.1));
        if n_out < 2 || n_in < 2 {
            return Err(MethodError::shape("projected columns on a side", "at least 2", (n_out, n_in)));
        }
        let module = |(module, (column, &shape)): (usize, (&Column, &MatrixShape))| {
            Module::new(by, module, column, shape, (n_out, n_in), sums)
        };
        let modules = columns.par_iter().zip(shapes).enumerate().map(module).collect();
        Ok(Self { columns: columns.to_vec(), n_out, n_in, modules })
    }

    /// The replicates of `queries` `[Q, D]`; `by` is what this was made with. A query's numbers do not depend on its neighbours.
    /// Cost: a solve, then `Q·K·d_m` per module and column.
    ///
    /// # Errors
    /// Shapes, NaN.
    pub fn replicates(
        &self,
        by: &dyn Preconditioner,
        queries: ArrayView2<'_, f32>,
    ) -> Result<ColumnReplicates, MethodError> {
        self.replicates_of(precondition(by, queries)?.view())
    }

    /// The same of queries `[Q, D]` that are solved already ([`precondition`] with what this was made with): same bytes.
    ///
    /// # Errors
    /// Shapes, NaN.
    pub fn replicates_of(&self, solved: ArrayView2<'_, f64>) -> Result<ColumnReplicates, MethodError> {
        blocks::check_columns(&self.columns, solved.ncols())?;
        check_finite("solved queries", solved)?;
        // Per module: solved queries `[Q, d]` and their part of the score `[Q, K]`.
        let part = |(column, prepared): (&Column, &Module)| {
            let solved = solved.slice(s![.., column.start..column.start + column.len]).to_owned();
            let whole = blocks::rows_times(solved.view(), prepared.sums.t());
            (solved, whole)
        };
        let parts: Vec<(Array2<f64>, Array2<f64>)> = self.columns.par_iter().zip(&self.modules).map(part).collect();
        let n_datasets = self.modules.first().map_or(0, |m| m.sums.nrows());
        let without = |gone: fn(&Module, usize) -> Option<&Gone>, at: usize| -> Array2<f64> {
            let zeros = Array2::zeros((solved.nrows(), n_datasets));
            self.modules.iter().zip(&parts).fold(zeros, |sum: Array2<f64>, (module, (solved, whole))| {
                sum + match gone(module, at) {
                    Some(gone) => gone.without(solved, whole),
                    None => whole.clone(),
                }
            })
        };
        let outputs = |o| without(|m, at| m.outputs.get(at)?.as_ref(), o);
        let inputs = |i| without(|m, at| m.inputs.get(at)?.as_ref(), i);
        Ok(ColumnReplicates {
            outputs: (0..self.n_out).into_par_iter().map(outputs).collect(),
            inputs: (0..self.n_in).into_par_iter().map(inputs).collect(),
        })
    }
}

fn check(columns: &[Column], shapes: &[MatrixShape], sums: ArrayView2<'_, f64>) -> Result<(), MethodError> {
    blocks::check_columns(columns, sums.ncols())?;
    check_finite("dataset sums", sums)?;
    if shapes.len() != columns.len() {
        return Err(MethodError::shape("matrix shapes, one per module", columns.len(), shapes.len()));
    }
    let wrong = columns.iter().zip(shapes).find(|(c, s)| s.is_some_and(|(o, i)| o * i != c.len));
    match wrong {
        None => Ok(()),
        Some((column, shape)) => Err(MethodError::shape(
            "matrix shape of a module",
            format!("{} numbers in {}", column.len, column.name),
            shape,
        )),
    }
}

/// Coordinates that go with one column, and the sums solved in their own part of the inverse.
#[derive(Debug)]
struct Gone {
    at: Vec<usize>,
    /// `((A⁻¹)_DD)⁻¹ u_D`, `[K, |D|]`.
    solved: Array2<f64>,
}

impl Gone {
    /// `None` for a module of zeros, whose inverse is zeros too: nothing to take away.
    fn new(at: Vec<usize>, inverse: &Array2<f64>, sums: &Array2<f64>) -> Option<Self> {
        let block = inverse.select(Axis(0), &at).select(Axis(1), &at);
        let mut solved = sums.select(Axis(1), &at);
        Cholesky::factor(block.view()).ok()?.solve_rows(solved.view_mut());
        Some(Self { at, solved })
    }

    /// `[Q, K]` without these coordinates.
    fn without(&self, queries: &Array2<f64>, whole: &Array2<f64>) -> Array2<f64> {
        let v = queries.select(Axis(1), &self.at);
        whole - &blocks::rows_times(v.view(), self.solved.t())
    }
}

/// One module, solved once.
#[derive(Debug)]
struct Module {
    /// Its columns of the dataset sums, `[K, d]`.
    sums: Array2<f64>,
    /// By output column; empty for a module that is not projected.
    outputs: Vec<Option<Gone>>,
    /// By input column.
    inputs: Vec<Option<Gone>>,
}

impl Module {
    fn new(
        by: &dyn Preconditioner,
        module: usize,
        column: &Column,
        shape: MatrixShape,
        (most_out, most_in): (usize, usize),
        sums: ArrayView2<'_, f64>,
    ) -> Self {
        let sums = sums.slice(s![.., column.start..column.start + column.len]).to_owned();
        let Some((n_out, n_in)) = shape else { return Self { sums, outputs: Vec::new(), inputs: Vec::new() } };
        let solve = |mut rows: Array2<f64>| {
            by.solve(module, rows.view_mut());
            rows
        };
        let (inverse, solved) = (solve(Array2::eye(column.len)), solve(sums.clone()));
        let output = |o: usize| Gone::new((o * n_in..(o + 1) * n_in).collect(), &inverse, &solved);
        let input = |i: usize| Gone::new((0..n_out).map(|o| o * n_in + i).collect(), &inverse, &solved);
        let outputs = (0..n_out.min(most_out)).map(output).collect();
        let inputs = (0..n_in.min(most_in)).map(input).collect();
        Self { sums, outputs, inputs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_fisher::Covariance;
    use crate::group::intervals::jackknife_variance;
    use ascribe_linalg::Stream;

    fn normal(name: &str, seed: u64, shape: (usize, usize)) -> Array2<f64> {
        let mut stream = Stream::new(seed, name);
        Array2::from_shape_fn(shape, |_| stream.normal())
    }

    fn columns(lens: &[usize]) -> Vec<Column> {
        let mut start = 0;
        let of = |(i, &len): (usize, &usize)| {
            start += len;
            Column { name: format!("m{i}"), start: start - len, len }
        };
        lens.iter().enumerate().map(of).collect()
    }

    /// Second route: the factor made again without the coordinates.
    #[test]
    fn the_short_cut_is_what_a_new_factor_gives() {
        let (lens, shapes) = ([12, 5], [Some((3, 4)), None]);
        let blocks: Vec<Array2<f64>> = lens
            .iter()
            .map(|&d| {
                let rows = normal("columns/h", d as u64, (40, d));
                rows.t().dot(&rows) / 40.0
            })
            .collect();
        let covariance = Covariance::from_parts(columns(&lens), 40, blocks.clone()).unwrap();
        let (queries, sums) = (normal("columns/q", 1, (3, 17)), normal("columns/g", 2, (4, 17)));
        let queries = queries.mapv(|v| v as f32);
        let damping_rel = 0.1;
        let factors = covariance.cholesky(damping_rel).unwrap();
        let got = column_replicates(&factors, &shapes, queries.view(), sums.view()).unwrap();
        assert_eq!((got.outputs.len(), got.inputs.len()), (3, 4));
        let plain = queries.mapv(f64::from);
        let score = |kept: &[usize]| {
            let mut total = Array2::zeros((3, 4));
            for (m, (h, start)) in blocks.iter().zip([0, 12]).enumerate() {
                let kept: Vec<usize> = if m == 0 { kept.to_vec() } else { (0..5).collect() };
                let mut a = h.select(Axis(0), &kept).select(Axis(1), &kept);
                let lambda = damping_rel * h.diag().mean().unwrap();
                a.diag_mut().mapv_inplace(|d| d + lambda);
                let at: Vec<usize> = kept.iter().map(|i| start + i).collect();
                let mut solved = plain.select(Axis(1), &at);
                Cholesky::factor(a.view()).unwrap().solve_rows(solved.view_mut());
                total += &solved.dot(&sums.select(Axis(1), &at).t());
            }
            total
        };
        for o in 0..3 {
            let kept: Vec<usize> = (0..12).filter(|i| i / 4 != o).collect();
            assert!((&got.outputs[o] - &score(&kept)).iter().all(|e| e.abs() < 1e-9), "output {o}");
        }
        for i in 0..4 {
            let kept: Vec<usize> = (0..12).filter(|j| j % 4 != i).collect();
            assert!((&got.inputs[i] - &score(&kept)).iter().all(|e| e.abs() < 1e-9), "input {i}");
        }
    }

    /// Shares from many projections differ by about what one projection's columns say.
    #[test]
    fn the_jackknife_sees_the_spread_of_projections() {
        let (n_out, n_in, k, n_sets) = (40, 30, 12, 3);
        // Sums of rank one and a common part, as dataset sums are; a query that leans on the first.
        let matrices: Vec<Array2<f64>> = (0..n_sets).map(|i| normal("columns/set", i, (n_out, n_in))).collect();
        let query = normal("columns/query", 9, (n_out, n_in)) + &matrices[0] * 0.7 + &matrices[1] * 0.3;
        let shares = |table: &Array2<f64>| {
            let positive = table.mapv(|v| v.max(0.0));
            let total = positive.sum();
            positive / total
        };
        let (mut seen, mut said) = (Vec::new(), Array2::<f64>::zeros((1, n_sets as usize)));
        let n_seeds = 150;
        for seed in 0..n_seeds {
            let (out, input) = (normal("columns/out", seed, (k, n_out)), normal("columns/in", seed, (k, n_in)));
            let project =
                |g: &Array2<f64>| -> Vec<f64> { (out.dot(g).dot(&input.t()) / k as f64).iter().copied().collect() };
            let row = |g: &Array2<f64>| Array2::from_shape_vec((1, k * k), project(g)).unwrap();
            let sums =
                Array2::from_shape_vec((n_sets as usize, k * k), matrices.iter().flat_map(&project).collect()).unwrap();
            // Curvature of the identity: plain inner products.
            let covariance = Covariance::from_parts(columns(&[k * k]), 1, vec![Array2::eye(k * k)]).unwrap();
            let factors = covariance.cholesky(0.0).unwrap();
            let queries = row(&query).mapv(|v| v as f32);
            let found = column_replicates(&factors, &[Some((k, k))], queries.view(), sums.view()).unwrap();
            let side =
                |tables: &[Array2<f64>]| jackknife_variance(&tables.iter().map(shares).collect::<Vec<_>>()).unwrap();
            said += &(side(&found.outputs) + side(&found.inputs));
            seen.push(shares(&queries.mapv(f64::from).dot(&sums.t())));
        }
        said /= n_seeds as f64;
        let (_, variance) = super::super::mean_and_variance(&seen).unwrap();
        let ratio = said.sum() / variance.sum();
        // Rows and columns apart count their interaction twice (Owen): between once and a little over twice.
        assert!((0.8..2.5).contains(&ratio), "said {said}, seen {variance}, ratio {ratio}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let covariance = Covariance::from_parts(columns(&[4]), 1, vec![Array2::eye(4)]).unwrap();
        let factors = covariance.cholesky(0.0).unwrap();
        let (q, g) = (Array2::<f32>::zeros((1, 4)), Array2::<f64>::zeros((2, 4)));
        let error =
            |shapes: &[MatrixShape]| column_replicates(&factors, shapes, q.view(), g.view()).unwrap_err().to_string();
        assert!(error(&[Some((2, 3))]).contains("4 numbers in m0"));
        assert!(error(&[]).contains("one per module"));
        assert!(error(&[None]).contains("at least 2"));
        let mut nan = g.clone();
        nan[(1, 2)] = f64::NAN;
        let error = column_replicates(&factors, &[Some((2, 2))], q.view(), nan.view()).unwrap_err().to_string();
        assert!(error.contains("dataset sums, row 1, column 2"), "{error}");
    }
}
