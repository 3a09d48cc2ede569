//! How factored rows are laid out, and how they are multiplied out.

use ascribe_core::{Column, FeatureReader, FeatureSpec, Features, ProjectorSpec};
use ndarray::Array2;
use rayon::prelude::*;

use crate::blocks;
use crate::error::MethodError;

/// One module of a factored row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its stored columns.
    pub stored: Column,
    /// Its columns in a row that was multiplied out.
    pub dense: Column,
    /// `[o, i]` of the matrix, where it is factored: `left [o, rank]`, then `right [i, rank]`, both row-major.
    pub shape: Option<[usize; 2]>,
}

/// The modules of a factored row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    modules: Vec<Module>,
    rank: usize,
}

impl Layout {
    /// From the stored columns and, per module, the shape of its matrix where it is factored.
    ///
    /// # Errors
    /// Rank 0; another number of shapes than columns; a factored column that has not `rank·(o + i)` numbers; columns with gaps.
    pub fn new(columns: &[Column], shapes: &[Option<[usize; 2]>], rank: usize) -> Result<Self, MethodError> {
        if rank == 0 {
            return Err(MethodError::Parameter { field: "rank of the factors", expected: "at least 1", found: 0.0 });
        }
        if shapes.len() != columns.len() {
            return Err(MethodError::shape("shapes, one per module", columns.len(), shapes.len()));
        }
        blocks::check_columns(columns, columns.iter().map(|c| c.len).sum())?;
        let mut start = 0;
        let mut modules = Vec::with_capacity(columns.len());
        for (stored, &shape) in columns.iter().zip(shapes) {
            let len = match shape {
                None => stored.len,
                Some([o, i]) if (o + i) * rank == stored.len => o * i,
                Some([o, i]) => {
                    let expected = format!("{} of {o} × {i} at rank {rank}", (o + i) * rank);
                    let found = format!("{} of {}", stored.len, stored.name);
                    return Err(MethodError::shape("numbers of a factored module", expected, found));
                }
            };
            let dense = Column { name: stored.name.clone(), start, len };
            start += len;
            modules.push(Module { stored: stored.clone(), dense, shape });
        }
        Ok(Self { modules, rank })
    }

    /// From a spec of factored rows: a module of `rank·(k_out + k_in)` numbers is taken as factored, every other one as kept
    /// whole. Right where every factored module is wider than `k_in` and `k_out`; a module that is narrower on one side has
    /// another shape, which the spec does not tell: use [`Layout::new`].
    ///
    /// # Errors
    /// A spec of other rows, or of whitened ones; what [`Layout::new`] refuses.
    pub fn of_spec(spec: &FeatureSpec) -> Result<Self, MethodError> {
        let ProjectorSpec::Factored { k_in, k_out, rank, .. } = spec.projector else {
            return Err(MethodError::shape("projector of the rows", "factored", &spec.projector));
        };
        if let Some((_, by)) = spec.normalizer.split_once(super::WHITENED_BY) {
            // As gradients they would be scored by their curvature a second time.
            return Err(MethodError::shape(
                "normalizer of factored rows",
                "none that whitens",
                format!("whitened by {by}"),
            ));
        }
        let shape = |c: &Column| (c.len == rank * (k_out + k_in)).then_some([k_out, k_in]);
        let shapes: Vec<_> = spec.columns.iter().map(shape).collect();
        Self::new(&spec.columns, &shapes, rank)
    }

    /// The modules, in order.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Columns of the factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Column groups of rows that were multiplied out.
    pub fn dense_columns(&self) -> Vec<Column> {
        self.modules.iter().map(|m| m.dense.clone()).collect()
    }

    /// Column groups of stored rows.
    pub fn stored_columns(&self) -> Vec<Column> {
        self.modules.iter().map(|m| m.stored.clone()).collect()
    }

    /// Numbers of a stored row.
    pub fn stored_dim(&self) -> usize {
        self.modules.last().map_or(0, |m| m.stored.start + m.stored.len)
    }

    /// Numbers of a row that was multiplied out.
    pub fn dense_dim(&self) -> usize {
        self.modules.last().map_or(0, |m| m.dense.start + m.dense.len)
    }

    /// Multiplies a stored row out: `L·Rᵀ` per factored module, in f32.
    ///
    /// # Panics
    /// If a row has another length.
    pub fn expand(&self, stored: &[f32], dense: &mut [f32]) {
        assert!(stored.len() == self.stored_dim() && dense.len() == self.dense_dim(), "rows of the layout's lengths");
        for Module { stored: from, dense: to, shape } in &self.modules {
            let (from, to) = (&stored[from.start..from.start + from.len], &mut dense[to.start..to.start + to.len]);
            let Some([o, i]) = *shape else {
                to.copy_from_slice(from);
                continue;
            };
            let (left, right) = from.split_at(o * self.rank);
            for (to, left) in to.chunks_exact_mut(i).zip(left.chunks_exact(self.rank)) {
                for (to, right) in to.iter_mut().zip(right.chunks_exact(self.rank)) {
                    *to = left.iter().zip(right).map(|(l, r)| l * r).sum();
                }
            }
        }
    }

    /// Stored rows `[n, stored]` multiplied out, `[n, dense]`.
    ///
    /// # Errors
    /// Rows of another width.
    pub fn expand_rows(&self, rows: ndarray::ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        if rows.ncols() != self.stored_dim() {
            return Err(MethodError::shape("numbers of a factored row", self.stored_dim(), rows.ncols()));
        }
        let rows = rows.as_standard_layout();
        let mut out = Array2::<f32>::zeros((rows.nrows(), self.dense_dim()));
        let targets = out.outer_iter_mut().into_par_iter();
        targets.zip(rows.outer_iter().into_par_iter()).for_each(|(mut to, from)| {
            let (from, to) = (from.to_slice(), to.as_slice_mut());
            self.expand(from.expect("rows in standard layout"), to.expect("a new array is in standard layout"));
        });
        Ok(out)
    }
}

/// The rows of a reader of factored rows, multiplied out.
#[derive(Clone, Debug)]
pub struct Expanded<'a, R> {
    reader: &'a R,
    layout: &'a Layout,
    spec: FeatureSpec,
}

impl<'a, R: FeatureReader> Expanded<'a, R> {
    /// Multiplies the rows of `reader` out.
    ///
    /// # Errors
    /// A reader whose columns are not those of the layout.
    pub fn new(reader: &'a R, layout: &'a Layout) -> Result<Self, MethodError> {
        if reader.spec().columns != layout.stored_columns() {
            let found = reader.spec().columns.iter().map(|c| c.len).collect::<Vec<_>>();
            let expected = layout.modules.iter().map(|m| m.stored.len).collect::<Vec<_>>();
            return Err(MethodError::shape("column groups of factored rows", expected, found));
        }
        let mut spec = reader.spec().clone();
        (spec.columns, spec.dim) = (layout.dense_columns(), layout.dense_dim());
        Ok(Self { reader, layout, spec })
    }
}

impl<R: FeatureReader> FeatureReader for Expanded<'_, R> {
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
        let Features { ids, rows } = self.reader.block(block_idx)?;
        // A block of another width than the spec promises goes on as it is: whoever reads it refuses it with its width.
        let rows = match self.layout.expand_rows(rows.view()) {
            Ok(dense) => dense.into(),
            Err(_) => rows,
        };
        Ok(Features { ids, rows })
    }
}
