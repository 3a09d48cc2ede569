//! Whitening a gradient matrix from both sides, so that few factors in few bits keep what a score needs.
//!
//! With plain factors two things go wrong at once: the best rank-c approximation keeps the directions with the largest gradients,
//! which the inverse curvature then makes small, and the rounding of the codes is as large in the others, which it makes large. In
//! whitened coordinates nearness is nearness of scores. And a Kronecker product of two small inverses keeps a matrix a matrix (a
//! whitened row of the whole block's inverse has hardly any low rank left).

use ascribe_core::{Column, FeatureReader, Progress};
use ascribe_linalg::{LinalgError, SymmetricEigen, Threads, factors, gemm_f64};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use crate::block_fisher::Preconditioner;
use crate::blocks;
use crate::error::MethodError;

/// `H_m ≈ A ⊗ B / t` of every module: `A = (1/n) Σ GGᵀ`, `B = (1/n) Σ GᵀG`, `t = (1/n) Σ ‖G‖²`, exact where rows are matrix-normal
/// (Gupta and Varga, J. Appl. Probab. 29, 1992). A module that is no matrix counts as one row, for which `B` is its second moments.
///
/// As a [`Preconditioner`] it whitens by `√t · A^(−1/2) G B^(−1/2)` and solves by the same twice; each side is damped relative to its
/// own mean eigenvalue.
#[derive(Clone, Debug)]
pub struct BothSides {
    columns: Vec<Column>,
    sides: Vec<Side>,
    damping_rel: f64,
}

/// One module.
#[derive(Clone, Debug)]
struct Side {
    /// `[o, i]`.
    shape: [usize; 2],
    is_matrix: bool,
    /// `√t · A^(−1/2)`, `[o, o]`.
    left: Array2<f64>,
    /// `B^(−1/2)`, `[i, i]`.
    right: Array2<f64>,
}

impl BothSides {
    /// One pass over dense rows, modules in parallel; `shapes` says which columns are matrices `[o, i]`, row-major.
    ///
    /// Sums are f64 in row order: the bytes depend on neither threads nor shards. Cost `N·Σ o·i·(o + i)` multiply-adds.
    ///
    /// # Errors
    /// Shapes that do not fit the columns; a damping that is not above 0; no rows; reader errors; NaN.
    pub fn fit<R: FeatureReader>(
        reader: &R,
        shapes: &[Option<[usize; 2]>],
        damping_rel: f64,
        progress: &dyn Progress,
    ) -> Result<Self, MethodError> {
        let columns = reader.spec().columns.clone();
        let fits = |(c, shape): (&Column, &Option<[usize; 2]>)| shape.is_none_or(|[o, i]| o * i == c.len);
        if shapes.len() != columns.len() || !columns.iter().zip(shapes).all(fits) {
            let expected = columns.iter().map(|c| c.len).collect::<Vec<_>>();
            return Err(MethodError::shape("shapes of the modules", expected, shapes));
        }
        if !(damping_rel > 0.0 && damping_rel.is_finite()) {
            return Err(MethodError::Parameter { field: "damping", expected: "above 0", found: damping_rel });
        }
        let shape_of = |(c, shape): (&Column, &Option<[usize; 2]>)| shape.unwrap_or([1, c.len]);
        let of: Vec<[usize; 2]> = columns.iter().zip(shapes).map(shape_of).collect();
        let mut sums: Vec<[Array2<f64>; 2]> =
            of.iter().map(|&[o, i]| [Array2::zeros((o, o)), Array2::zeros((i, i))]).collect();
        progress.start("fit both sides", reader.n_rows(), "rows");
        let n_rows = blocks::for_each(reader, progress, |block| {
            sums.par_iter_mut().zip(&columns).zip(&of).for_each(|((sums, c), &shape)| {
                // Rows of zeros below the last one add nothing.
                add(sums, block.rows.slice(s![.., c.start..c.start + c.len]), shape);
            });
            Ok(())
        })?;
        if n_rows == 0 {
            return Err(MethodError::Empty { what: "the set of training rows" });
        }
        progress.finish("both sides fitted");
        let modules = sums.into_par_iter().zip(&columns).zip(&of).zip(shapes);
        let sides = modules.map(|((([mut a, mut b], column), &shape), given)| {
            let root = |m: &Array2<f64>| {
                inverse_root(m.view(), damping_rel).map_err(|source| failed(column, damping_rel, source))
            };
            a.mapv_inplace(|x| x / n_rows as f64);
            b.mapv_inplace(|x| x / n_rows as f64);
            let total = b.diag().sum();
            let mut left = root(&a)?;
            left.mapv_inplace(|x| x * total.sqrt());
            Ok(Side { shape, is_matrix: given.is_some(), left, right: root(&b)? })
        });
        let sides = sides.collect::<Result<_, MethodError>>()?;
        Ok(Self { columns, sides, damping_rel })
    }

    /// Every module with its whitening: its columns, whether it is a matrix, `√t · A^(−1/2)` and `B^(−1/2)`.
    pub fn parts(&self) -> impl Iterator<Item = (&Column, bool, &Array2<f64>, &Array2<f64>)> + '_ {
        self.columns.iter().zip(&self.sides).map(|(column, s)| (column, s.is_matrix, &s.left, &s.right))
    }

    /// Read back from what [`BothSides::parts`] gave: names, whether each is a matrix, and the two sides.
    ///
    /// # Errors
    /// Sides that are not square; NaN.
    pub fn from_parts(
        parts: Vec<(String, bool, Array2<f64>, Array2<f64>)>,
        damping_rel: f64,
    ) -> Result<Self, MethodError> {
        let (mut columns, mut sides, mut start) = (Vec::new(), Vec::new(), 0);
        for (name, is_matrix, left, right) in parts {
            if !left.is_square() || !right.is_square() || (!is_matrix && left.nrows() != 1) {
                let found = (left.dim(), right.dim());
                return Err(MethodError::shape("sides of a whitening", "two square matrices", found));
            }
            crate::dot::check_finite("sides of a whitening", left.view())?;
            crate::dot::check_finite("sides of a whitening", right.view())?;
            let shape = [left.nrows(), right.nrows()];
            columns.push(Column { name, start, len: shape[0] * shape[1] });
            start += shape[0] * shape[1];
            sides.push(Side { shape, is_matrix, left, right });
        }
        Ok(Self { columns, sides, damping_rel })
    }

    /// Columns of [`BothSides::factor`]'s rows, for [`Layout::new`](super::Layout::new).
    pub fn stored_columns(&self, rank: usize) -> Vec<Column> {
        let mut start = 0;
        let column = |(c, side): (&Column, &Side)| {
            let [o, i] = side.shape;
            let len = if side.is_matrix { rank.min(o).min(i) * (o + i) } else { c.len };
            start += len;
            Column { name: c.name.clone(), start: start - len, len }
        };
        self.columns.iter().zip(&self.sides).map(column).collect()
    }

    /// Dense rows `[n, D]` whitened and kept as the best factors of `rank` of every matrix, `[n, stored]`. Their product with a
    /// whitened query ([`whiten_queries`](crate::coded::whiten_queries)), once multiplied out, is the score.
    ///
    /// Cost per row and module `o·i·(o + i)` and an eigendecomposition of the smaller side; rows in parallel.
    ///
    /// # Errors
    /// Rows of another width; NaN; no convergence.
    pub fn factor(&self, rows: ArrayView2<'_, f32>, rank: usize) -> Result<Array2<f32>, MethodError> {
        let white = crate::coded::whiten_queries(self, rows)?;
        let stored = self.stored_columns(rank);
        let mut out = Array2::<f32>::zeros((rows.nrows(), stored.last().map_or(0, |c| c.start + c.len)));
        out.outer_iter_mut().into_par_iter().zip(white.outer_iter().into_par_iter()).try_for_each(
            |(mut out, row)| {
                for ((c, side), to) in self.columns.iter().zip(&self.sides).zip(&stored) {
                    let numbers = row.slice(s![c.start..c.start + c.len]).mapv(|x| x as f32);
                    let mut out = out.slice_mut(s![to.start..to.start + to.len]);
                    if !side.is_matrix {
                        out.assign(&numbers);
                        continue;
                    }
                    let [o, i] = side.shape;
                    let matrix = numbers.into_shape_with_order((o, i)).expect("a module has its matrix's numbers");
                    let found = factors(matrix.view(), rank).map_err(|source| failed(c, self.damping_rel, source))?;
                    let both = found.left.iter().chain(found.right.iter());
                    out.iter_mut().zip(both).for_each(|(to, &x)| *to = x as f32);
                }
                Ok::<(), MethodError>(())
            },
        )?;
        Ok(out)
    }
}

fn failed(column: &Column, damping_rel: f64, source: LinalgError) -> MethodError {
    MethodError::Factor { module: column.name.clone(), damping_rel, source }
}

/// Adds `GGᵀ` and `GᵀG` of all rows.
fn add([a, b]: &mut [Array2<f64>; 2], rows: ArrayView2<'_, f64>, [o, i]: [usize; 2]) {
    let n = rows.nrows();
    let tall = rows.as_standard_layout().into_owned().into_shape_with_order((n * o, i)).expect("rows of matrices");
    gemm_f64(1.0, tall.t(), tall.view(), 1.0, b.view_mut(), Threads::One);
    let mut wide = Array2::zeros((o, n * i));
    for (row, line) in tall.outer_iter().enumerate() {
        let start = row / o * i;
        wide.slice_mut(s![row % o, start..start + i]).assign(&line);
    }
    gemm_f64(1.0, wide.view(), wide.t(), 1.0, a.view_mut(), Threads::One);
}

/// `(M + λ·mean eigenvalue·I)^(−1/2)`, symmetric; zero for a module whose rows are all zero.
fn inverse_root(m: ArrayView2<'_, f64>, damping_rel: f64) -> Result<Array2<f64>, LinalgError> {
    let eigen = SymmetricEigen::of(m)?;
    let mean = eigen.values.iter().sum::<f64>() / eigen.values.len().max(1) as f64;
    let mut scaled = eigen.vectors.clone();
    for (mut vector, &value) in scaled.outer_iter_mut().zip(&eigen.values) {
        let damped = value.max(0.0) + damping_rel * mean;
        let factor = if damped > 0.0 { 1.0 / damped.sqrt() } else { 0.0 };
        vector.mapv_inplace(|x| x * factor);
    }
    Ok(eigen.vectors.t().dot(&scaled))
}

impl Preconditioner for BothSides {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn solve(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>) {
        // Both roots are symmetric.
        self.whiten(module, rows.view_mut());
        self.whiten(module, rows);
    }

    fn whiten(&self, module: usize, mut rows: ArrayViewMut2<'_, f64>) {
        let Side { shape: [o, i], left, right, .. } = &self.sides[module];
        rows.outer_iter_mut().into_par_iter().for_each(|mut row| {
            let matrix = row.to_owned().into_shape_with_order((*o, *i)).expect("a module has its matrix's numbers");
            let white = left.dot(&matrix).dot(right);
            row.iter_mut().zip(white.iter()).for_each(|(to, &x)| *to = x);
        });
    }
}

#[cfg(test)]
mod tests {
    use ascribe_core::NoProgress;
    use ascribe_linalg::Stream;

    use super::*;
    use crate::coded::whiten_queries;
    use crate::lorif::Layout;
    use crate::rows::InMemory;

    /// Rows `L·Z·R` with a module of 3 × 4 and one of 2 numbers.
    fn made(n: usize) -> (Array2<f32>, Vec<Column>) {
        let mut stream = Stream::new(5, "both-sides");
        let left = Array2::from_shape_fn((3, 3), |(a, b)| if a == b { 3.0 - a as f64 } else { 0.3 });
        let right = Array2::from_shape_fn((4, 4), |(a, b)| if a == b { 0.5 + a as f64 } else { -0.2 });
        let mut rows = Array2::zeros((n, 14));
        for mut row in rows.outer_iter_mut() {
            let g = left.dot(&Array2::from_shape_fn((3, 4), |_| stream.normal())).dot(&right);
            row.iter_mut().zip(g.iter()).for_each(|(to, &x)| *to = x as f32);
            let x = stream.normal();
            (row[12], row[13]) = ((5.0 * x) as f32, (5.0 * x + 0.1 * stream.normal()) as f32);
        }
        let column = |name: &str, start, len| Column { name: name.into(), start, len };
        (rows, vec![column("w", 0, 12), column("b", 12, 2)])
    }

    const SHAPES: [Option<[usize; 2]>; 2] = [Some([3, 4]), None];

    #[test]
    fn whitened_rows_have_second_moments_of_one() {
        let n = 20_000;
        let (rows, columns) = made(n);
        let reader = InMemory::new(rows.view()).with_columns(columns).unwrap();
        let by = BothSides::fit(&reader, &SHAPES, 1e-9, &NoProgress).unwrap();
        let white = whiten_queries(&by, rows.view()).unwrap();
        let moments = white.t().dot(&white) / n as f64;
        for ((a, b), &x) in moments.indexed_iter() {
            // Six standard errors of a second moment of normal numbers, √(2/n), and what A and B err by.
            let wanted = if a == b { 1.0 } else { 0.0 };
            let apart = (a < 12) != (b < 12);
            assert!(apart || (x - wanted).abs() < 12.0 * (2.0 / n as f64).sqrt(), "({a}, {b}): {x}");
        }
        // Solving is whitening twice.
        let mut solved = white.slice(s![..3, ..12]).to_owned();
        by.whiten(0, solved.view_mut());
        let mut direct = rows.slice(s![..3, ..12]).mapv(f64::from);
        by.solve(0, direct.view_mut());
        assert!(solved.iter().zip(&direct).all(|(a, b)| (a - b).abs() <= 1e-12 * (1.0 + a.abs())));
    }

    #[test]
    fn factors_of_full_rank_are_the_whitened_rows_and_fewer_lose_least() {
        let (rows, columns) = made(50);
        let reader = InMemory::new(rows.view()).with_columns(columns).unwrap();
        let by = BothSides::fit(&reader, &SHAPES, 0.01, &NoProgress).unwrap();
        let white = whiten_queries(&by, rows.view()).unwrap();
        let lost = |rank| {
            let stored = by.factor(rows.view(), rank).unwrap();
            let layout = Layout::new(&by.stored_columns(rank), &SHAPES, rank).unwrap();
            assert_eq!(stored.ncols(), layout.stored_dim());
            let back = layout.expand_rows(stored.view()).unwrap();
            white.iter().zip(&back).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>().sqrt()
        };
        let size = white.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (one, two, three) = (lost(1), lost(2), lost(3));
        assert!(three < 1e-5 * size && three < two && two < one && one < size, "{one} {two} {three} of {size}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (rows, columns) = made(5);
        let reader = InMemory::new(rows.view()).with_columns(columns).unwrap();
        let fit = |shapes: &[Option<[usize; 2]>], damping| BothSides::fit(&reader, shapes, damping, &NoProgress);
        assert!(matches!(fit(&[Some([3, 5]), None], 0.1), Err(MethodError::Shape { .. })));
        assert!(matches!(fit(&[None], 0.1), Err(MethodError::Shape { .. })));
        assert!(matches!(fit(&SHAPES, 0.0), Err(MethodError::Parameter { .. })));
        assert!(matches!(fit(&SHAPES, f64::NAN), Err(MethodError::Parameter { .. })));
    }
}
